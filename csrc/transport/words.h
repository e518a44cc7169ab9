// Others' words in our messages.
#pragma once

#include <string>
#include <string_view>

namespace torchnpy {

// Words of a server, of a program or of libcurl for a message: one line of at most 300 bytes,
// neither a query string nor the userinfo of a URL.
std::string clean_words(std::string_view text);

}  // namespace torchnpy
