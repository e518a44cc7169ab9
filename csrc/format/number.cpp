#include "format/number.h"

#include <locale.h>
#include <stdlib.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <system_error>

#include "format/text.h"

namespace torchnpy {
namespace {

// By strtod(): std::from_chars does not say whether a number is too large or too small.
double parse_extreme(std::string_view digits) {
  static const locale_t plain = newlocale(LC_ALL_MASK, "C", nullptr);
  return strtod_l(std::string(digits).c_str(), nullptr, plain);
}

// Reads a number from the front of `text`, which begins with it, and moves on behind it.
std::optional<double> take_double(std::string_view& text) {
  std::string_view digits = text;
  if (digits.starts_with('+')) {
    digits.remove_prefix(1);
    if (digits.starts_with('-')) return std::nullopt;
  }
  double value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error == std::errc::invalid_argument) return std::nullopt;
  const auto nbytes = static_cast<size_t>(end - digits.data());
  if (error == std::errc::result_out_of_range) value = parse_extreme(digits.substr(0, nbytes));
  // "nan(chars)" is C's.
  if (nbytes > 0 && end[-1] == ')') return std::nullopt;
  text = digits.substr(nbytes);
  return value;
}

struct ComplexNumber {
  double real = 0;
  double imaginary = 0;
};

std::string_view skip_spaces(std::string_view text) {
  while (!text.empty()) {
    const CodePoint first = read_code_point(text);
    if (!is_space(first.value)) break;
    text.remove_prefix(first.nbytes);
  }
  return text;
}

bool take(std::string_view& text, char wanted) {
  if (!text.starts_with(wanted)) return false;
  text.remove_prefix(1);
  return true;
}

// What follows the first part: nothing, the unit, or a second part and the unit.
bool take_imaginary(std::string_view& text, ComplexNumber& number) {
  if (take(text, 'j')) {
    number = {0, number.real};
    return true;
  }
  const bool signed_part = text.starts_with('+') || text.starts_with('-');
  if (!signed_part) return true;
  take(text, '+');  // "+-" and "++" are fine
  const std::optional<double> imaginary = take_double(text);
  if (!imaginary) return false;
  number.imaginary = *imaginary;
  return take(text, 'j');
}

std::optional<ComplexNumber> parse_complex(std::string_view text) {
  text = skip_spaces(text);
  const bool in_parentheses = take(text, '(');
  if (in_parentheses) text = skip_spaces(text);
  const std::optional<double> first = take_double(text);
  if (!first) return std::nullopt;
  ComplexNumber number{*first, 0};
  if (!take_imaginary(text, number)) return std::nullopt;
  if (in_parentheses) {
    text = skip_spaces(text);
    if (!take(text, ')')) return std::nullopt;
  }
  if (!skip_spaces(text).empty()) return std::nullopt;
  return number;
}

template <typename Integer>
Stored parse_integer(std::string_view text, Integer& value) {
  text = strip_spaces(text);
  if (text.starts_with('+')) {
    text.remove_prefix(1);
    if (text.starts_with('-')) return Stored::kNoNumber;
  }
  const char* const end = text.data() + text.size();
  const bool is_negative = text.starts_with('-');
  if constexpr (std::is_unsigned_v<Integer>) {
    if (is_negative) {
      int64_t below = 0;
      const auto [stop, error] = std::from_chars(text.data(), end, below);
      return stop == end && error != std::errc::invalid_argument ? Stored::kOutOfRange
                                                                 : Stored::kNoNumber;
    }
  }
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (stop != end || error == std::errc::invalid_argument) return Stored::kNoNumber;
  return error == std::errc{} ? Stored::kYes : Stored::kOutOfRange;
}

template <typename Integer>
Stored store_integer(std::string_view text, uint8_t* element) {
  Integer value = 0;
  const Stored stored = parse_integer(text, value);
  if (stored == Stored::kYes) std::memcpy(element, &value, sizeof(value));
  return stored;
}

Stored store_bool(std::string_view text, uint8_t* element) {
  int64_t value = 0;
  const Stored stored = parse_integer(text, value);
  if (stored == Stored::kYes) *element = value != 0 ? 1 : 0;
  return stored;
}

// A cast of a double that is too large for a float is undefined in C++.
float to_float(double value) {
  constexpr double kRoundsToInfinity = 0x1.ffffffp127;
  if (std::abs(value) >= kRoundsToInfinity) {
    return std::copysign(std::numeric_limits<float>::infinity(),
                         static_cast<float>(std::copysign(1.0, value)));
  }
  return static_cast<float>(value);
}

template <typename Float>
Stored store_float(std::string_view text, uint8_t* element) {
  const std::optional<double> value = parse_double(text);
  if (!value) return Stored::kNoNumber;
  const Float stored = std::is_same_v<Float, float> ? to_float(*value) : static_cast<Float>(*value);
  std::memcpy(element, &stored, sizeof(stored));
  return Stored::kYes;
}

Stored store_half(std::string_view text, uint8_t* element) {
  const std::optional<double> value = parse_double(text);
  if (!value) return Stored::kNoNumber;
  const uint16_t bits = double_to_half(*value);
  std::memcpy(element, &bits, sizeof(bits));
  return Stored::kYes;
}

Stored store_complex(ScalarType type, std::string_view text, uint8_t* element) {
  const std::optional<ComplexNumber> number = parse_complex(text);
  if (!number) return Stored::kNoNumber;
  if (type == ScalarType::kComplex64) {
    const float parts[] = {to_float(number->real), to_float(number->imaginary)};
    std::memcpy(element, parts, sizeof(parts));
  } else {
    const double parts[] = {number->real, number->imaginary};
    std::memcpy(element, parts, sizeof(parts));
  }
  return Stored::kYes;
}

}  // namespace

CodePoint read_code_point(std::string_view text) {
  const auto lead = static_cast<uint8_t>(text[0]);
  if (lead < 0xC2 || lead > 0xF4) return {lead < 0x80 ? lead : char32_t{0xFFFD}, 1};
  const size_t nbytes = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  if (nbytes > text.size()) return {0xFFFD, 1};
  if (find_invalid_utf8(text.substr(0, nbytes)) != std::string_view::npos) return {0xFFFD, 1};
  char32_t value = lead & (0xFFu >> (nbytes + 1));
  for (size_t i = 1; i < nbytes; ++i) value = value << 6 | (static_cast<uint8_t>(text[i]) & 0x3Fu);
  return {value, nbytes};
}

bool is_space(char32_t c) {
  if (c < 0x80) return c == ' ' || (c >= '\t' && c <= '\r') || (c >= 0x1C && c <= 0x1F);
  return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
         c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

std::string_view strip_spaces(std::string_view text) {
  const auto is_plain = [](char c) { return c > ' ' && c <= '~'; };
  if (!text.empty() && is_plain(text.front()) && is_plain(text.back())) return text;
  text = skip_spaces(text);
  while (!text.empty()) {
    size_t begin = text.size() - 1;
    while (begin > 0 && (static_cast<uint8_t>(text[begin]) & 0xC0) == 0x80) --begin;
    const CodePoint last = read_code_point(text.substr(begin));
    if (begin + last.nbytes != text.size() || !is_space(last.value)) break;
    text.remove_suffix(last.nbytes);
  }
  return text;
}

std::optional<double> parse_double(std::string_view text) {
  text = strip_spaces(text);
  const std::optional<double> value = take_double(text);
  if (!text.empty()) return std::nullopt;
  return value;
}

uint16_t double_to_half(double value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  constexpr uint16_t kInfinity = 0x7C00;
  if (std::isnan(value)) return sign | 0x7E00;
  const double magnitude = std::abs(value);
  constexpr double kRoundsToInfinity = 65520;
  if (magnitude >= kRoundsToInfinity) return sign | kInfinity;
  constexpr int kMinExponent = -14;
  const int exponent =
      magnitude == 0 ? kMinExponent : std::max(std::ilogb(magnitude), kMinExponent);
  // In units of the last of its 11 bits, which is exact; then to the nearest whole one.
  const auto units = static_cast<uint16_t>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
  // A carry out of the mantissa goes where it belongs: into the exponent.
  return static_cast<uint16_t>(sign | (((exponent - kMinExponent) << 10) + units));
}

double half_to_double(uint16_t bits) {
  const int exponent = bits >> 10 & 0x1F;
  const int mantissa = bits & 0x3FF;
  double magnitude;
  if (exponent == 0x1F) {
    magnitude = mantissa != 0 ? std::numeric_limits<double>::quiet_NaN()
                              : std::numeric_limits<double>::infinity();
  } else if (exponent == 0) {
    magnitude = std::ldexp(mantissa, -24);
  } else {
    magnitude = std::ldexp(mantissa + 1024, exponent - 25);
  }
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

bool is_number(ScalarType type) {
  return type <= ScalarType::kFloat64 || type == ScalarType::kComplex64 ||
         type == ScalarType::kComplex128;
}

size_t number_nbytes(ScalarType type) {
  switch (type) {
    case ScalarType::kBool:
    case ScalarType::kInt8:
    case ScalarType::kUInt8: return 1;
    case ScalarType::kInt16:
    case ScalarType::kUInt16:
    case ScalarType::kFloat16: return 2;
    case ScalarType::kInt32:
    case ScalarType::kUInt32:
    case ScalarType::kFloat32: return 4;
    case ScalarType::kComplex128: return 16;
    default: return 8;
  }
}

Stored store_number(ScalarType type, std::string_view text, uint8_t* element) {
  switch (type) {
    case ScalarType::kBool: return store_bool(text, element);
    case ScalarType::kInt8: return store_integer<int8_t>(text, element);
    case ScalarType::kInt16: return store_integer<int16_t>(text, element);
    case ScalarType::kInt32: return store_integer<int32_t>(text, element);
    case ScalarType::kInt64: return store_integer<int64_t>(text, element);
    case ScalarType::kUInt8: return store_integer<uint8_t>(text, element);
    case ScalarType::kUInt16: return store_integer<uint16_t>(text, element);
    case ScalarType::kUInt32: return store_integer<uint32_t>(text, element);
    case ScalarType::kUInt64: return store_integer<uint64_t>(text, element);
    case ScalarType::kFloat16: return store_half(text, element);
    case ScalarType::kFloat32: return store_float<float>(text, element);
    case ScalarType::kFloat64: return store_float<double>(text, element);
    case ScalarType::kComplex64:
    case ScalarType::kComplex128: return store_complex(type, text, element);
    default: return Stored::kNoNumber;
  }
}

}  // namespace torchnpy
