// The text between the quotes of a Python string.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace torchnpy {

// Of a hexadecimal digit; 16 for anything else.
inline uint32_t digit_value(char c) {
  if (c >= '0' && c <= '9') return static_cast<uint32_t>(c - '0');
  if (c >= 'a' && c <= 'f') return static_cast<uint32_t>(c - 'a' + 10);
  if (c >= 'A' && c <= 'F') return static_cast<uint32_t>(c - 'A' + 10);
  return 16;
}

struct PythonStringRules {
  bool raw = false;     // r'': no escapes
  bool latin1 = false;  // the body is latin-1; else UTF-8
};

// What `body` stands for, as UTF-8: escapes and line ends as Python reads them. Each of its
// backslashes has a byte after it. `offset` is where the body stands in the file. Throws
// FormatError for an escape that is cut short, a \N{name} and a surrogate.
std::string decode_python_string(std::string_view body, size_t offset, PythonStringRules rules);

}  // namespace torchnpy
