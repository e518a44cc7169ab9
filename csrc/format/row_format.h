// Rows of numbers as text, byte for byte what Python's % operator makes of NumPy's scalars.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "format/npy.h"

namespace torchnpy {

// One value of each row, in this machine's byte order; need not be aligned.
struct TextColumn {
  ScalarType type = ScalarType::kFloat64;  // bool, an integer or a floating point type of NumPy
  const uint8_t* data = nullptr;           // of the first row
  int64_t stride = 0;                      // bytes from row to row
};

// One of Python's format specifiers, and the text before it.
struct TextSpecifier {
  std::string literal;
  bool left = false;  // the flags - + blank 0
  bool plus = false;
  bool blank = false;
  bool zero = false;
  size_t width = 0;
  std::optional<int> precision;
  char conversion = 's';
};

class RowFormat {
 public:
  // `format` is for a whole row: text, and one specifier a column. Empty where Python must do it:
  // specifiers other than %d %i %u %e %f %g %s (and %E %F %G), the flag #, a precision of integers,
  // precisions above 100 and widths above 1000, other counts of specifiers and columns, other
  // types.
  static std::optional<RowFormat> parse(std::string_view format, std::vector<TextColumn> columns);

  // Appends row `row`. Throws ArgumentError for a NaN or an infinity as an integer.
  void append_row(uint64_t row, std::string& text) const;

 private:
  std::vector<TextColumn> columns_;
  std::vector<TextSpecifier> specifiers_;  // one a column
  std::string tail_;
};

}  // namespace torchnpy
