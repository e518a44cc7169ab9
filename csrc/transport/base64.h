// RFC 4648.
#pragma once

#include <string>
#include <string_view>

namespace torchnpy {

std::string encode_base64(std::string_view bytes);

}  // namespace torchnpy
