// Numbers as NumPy's text reader spells and stores them. Pure; whatever the locale.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "format/npy.h"

namespace torchnpy {

// The first code point of `text`, which is not empty, and its bytes; a byte that breaks UTF-8
// counts for itself.
struct CodePoint {
  char32_t value;
  size_t nbytes;
};
CodePoint read_code_point(std::string_view text);

// Blanks as Python's str.isspace() has them, U+00A0 and U+3000 among them.
bool is_space(char32_t code_point);
// Without the blanks around it.
std::string_view strip_spaces(std::string_view text);

// A decimal number, "inf", "infinity" or "nan" in any case, with or without a sign and with blanks
// around it: the nearest double; beyond its range infinity or zero. Empty for anything else.
std::optional<double> parse_double(std::string_view text);

// The nearest half precision number, as bits; ties go to the even one.
uint16_t double_to_half(double value);
double half_to_double(uint16_t bits);

// Whether store_number() knows elements of `type`: bool, integers, and floating point and complex
// numbers that NumPy has.
bool is_number(ScalarType type);
// Bytes of such an element.
size_t number_nbytes(ScalarType type);

enum class Stored : uint8_t {
  kYes,
  kNoNumber,
  kOutOfRange,  // an integer, but not one of that type
};
// Parses `text` and stores it as an element of `type` in this machine's byte order. The rules are
// NumPy's: no "1.0" for integers, integers for bools (0 is false), "1+2j", "(1+2j)" and "2j" for
// complex numbers, and all floating point numbers by way of double.
Stored store_number(ScalarType type, std::string_view text, uint8_t* element);

}  // namespace torchnpy
