// What a user should know though nothing failed: kept until a caller can tell them.
#pragma once

#include <string>
#include <vector>

namespace torchnpy {

// Any thread. Only so many are kept as nobody has taken; the text holds no secrets.
void add_warning(std::string text) noexcept;
// Those that were added since, in their order. Cheap when there are none.
std::vector<std::string> take_warnings();

}  // namespace torchnpy
