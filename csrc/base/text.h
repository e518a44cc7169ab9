// ASCII text, whatever the locale.
#pragma once

#include <string>
#include <string_view>

namespace torchnpy {

inline bool is_lower(char c) { return c >= 'a' && c <= 'z'; }
inline bool is_upper(char c) { return c >= 'A' && c <= 'Z'; }
inline bool is_digit(char c) { return c >= '0' && c <= '9'; }
inline bool is_alphanumeric(char c) { return is_lower(c) || is_upper(c) || is_digit(c); }

inline std::string lower(std::string_view text) {
  std::string result(text);
  for (char& c : result) {
    if (is_upper(c)) c = static_cast<char>(c + ('a' - 'A'));
  }
  return result;
}

}  // namespace torchnpy
