#include "format/row_format.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "base/text.h"
#include "format/number.h"

namespace torchnpy {
namespace {

constexpr int kMaxPrecision = 100;
constexpr size_t kMaxWidth = 1000;
// The largest double has 309 digits before the point.
constexpr size_t kMaxNumberNbytes = 309 + 1 + kMaxPrecision + 8;

bool is_supported(ScalarType type) { return type <= ScalarType::kFloat64; }

bool is_float(ScalarType type) {
  return type == ScalarType::kFloat16 || type == ScalarType::kFloat32 ||
         type == ScalarType::kFloat64;
}

template <typename T>
T read_as(const uint8_t* element) {
  T value;
  std::memcpy(&value, element, sizeof(value));
  return value;
}

// Of an integer or a bool.
struct SignedInteger {
  bool is_negative = false;
  uint64_t magnitude = 0;
};

SignedInteger from_signed(int64_t value) {
  const auto bits = static_cast<uint64_t>(value);
  return {value < 0, value < 0 ? 0 - bits : bits};
}

SignedInteger read_integer(ScalarType type, const uint8_t* element) {
  switch (type) {
    case ScalarType::kInt8: return from_signed(read_as<int8_t>(element));
    case ScalarType::kInt16: return from_signed(read_as<int16_t>(element));
    case ScalarType::kInt32: return from_signed(read_as<int32_t>(element));
    case ScalarType::kInt64: return from_signed(read_as<int64_t>(element));
    case ScalarType::kUInt16: return {false, read_as<uint16_t>(element)};
    case ScalarType::kUInt32: return {false, read_as<uint32_t>(element)};
    case ScalarType::kUInt64: return {false, read_as<uint64_t>(element)};
    case ScalarType::kBool: return {false, *element != 0 ? 1U : 0U};  // as numpy takes bytes
    default: return {false, *element};
  }
}

double read_double(ScalarType type, const uint8_t* element) {
  switch (type) {
    case ScalarType::kFloat16: return half_to_double(read_as<uint16_t>(element));
    case ScalarType::kFloat32: return read_as<float>(element);
    case ScalarType::kFloat64: return read_as<double>(element);
    default: {
      const SignedInteger integer = read_integer(type, element);
      const auto magnitude = static_cast<double>(integer.magnitude);
      return integer.is_negative ? -magnitude : magnitude;
    }
  }
}

// A number in the making: to_chars() fills it.
struct Digits {
  char text[kMaxNumberNbytes];
  size_t nbytes = 0;

  template <typename... Arguments>
  void print(Arguments... arguments) {
    nbytes = static_cast<size_t>(std::to_chars(text, text + sizeof(text), arguments...).ptr - text);
  }
  void set(std::string_view word) { nbytes = word.copy(text, sizeof(text)); }
  std::string_view view() const { return {text, nbytes}; }
};

// The fewest digits that tell a half from its neighbours, as a double with just these.
double shorten_half(double value) {
  const uint16_t bits = double_to_half(value);
  constexpr int kEnough = 4;  // after the first
  for (int precision = 0; precision <= kEnough; ++precision) {
    // A value half way between two decimals is rounded up where the lower one is another half.
    for (const double rounded : {value, std::nextafter(value, 2 * value)}) {
      Digits digits;
      digits.print(rounded, std::chars_format::scientific, precision);
      double shorter = 0;
      std::from_chars(digits.text, digits.text + digits.nbytes, shorter);
      if (double_to_half(shorter) == bits) return shorter;
    }
  }
  return value;
}

// As str() prints NumPy's scalars: the shortest text that reads back as the same value. `value` is
// neither negative nor NaN.
template <typename Float>
void print_shortest(Float value, double fixed_below, Digits& digits) {
  constexpr double kFixedFrom = 1e-4;
  const auto wide = static_cast<double>(value);
  if (wide != 0 && (wide < kFixedFrom || wide >= fixed_below)) {
    digits.print(value, std::chars_format::scientific);
    return;
  }
  digits.print(value, std::chars_format::fixed);
  if (digits.view().find('.') == std::string_view::npos) {
    digits.text[digits.nbytes++] = '.';
    digits.text[digits.nbytes++] = '0';
  }
}

void print_shortest(ScalarType type, double value, Digits& digits) {
  // As numpy/_core/src/multiarray/scalartypes.c.src has it since NumPy 2.4.
  if (type == ScalarType::kFloat64) return print_shortest(value, 1e16, digits);
  if (type == ScalarType::kFloat32) return print_shortest(static_cast<float>(value), 1e6, digits);
  const double shorter = shorten_half(value);
  print_shortest(shorter, 1e3, digits);
}

void make_upper(Digits& digits) {
  for (size_t i = 0; i < digits.nbytes; ++i) {
    if (is_lower(digits.text[i])) digits.text[i] = static_cast<char>(digits.text[i] - ('a' - 'A'));
  }
}

std::string_view name_of_special(double value) { return std::isnan(value) ? "nan" : "inf"; }

// The digits of %e, %f and %g, without a sign.
void print_float(char conversion, int precision, double magnitude, Digits& digits) {
  if (!std::isfinite(magnitude)) return digits.set(name_of_special(magnitude));
  const std::chars_format format = conversion == 'e'   ? std::chars_format::scientific
                                   : conversion == 'f' ? std::chars_format::fixed
                                                       : std::chars_format::general;
  digits.print(magnitude, format, precision);
}

// `zeros`: fills with zeros behind the sign, where Python does.
void append_padded(const TextSpecifier& specifier, std::string_view sign, std::string_view body,
                   bool zeros, std::string& text) {
  if (specifier.width == 0) {
    text.append(sign).append(body);
    return;
  }
  const size_t nbytes = sign.size() + body.size();
  const size_t missing = specifier.width > nbytes ? specifier.width - nbytes : 0;
  if (!specifier.left && !zeros) text.append(missing, ' ');
  text.append(sign);
  if (!specifier.left && zeros) text.append(missing, '0');
  text.append(body);
  if (specifier.left) text.append(missing, ' ');
}

std::string_view sign_of(const TextSpecifier& specifier, bool is_negative) {
  return is_negative ? "-" : specifier.plus ? "+" : specifier.blank ? " " : "";
}

// %s: what str() gives.
void append_word(const TextSpecifier& specifier, ScalarType type, const uint8_t* element,
                 std::string& text) {
  Digits digits;
  bool is_negative = false;
  if (type == ScalarType::kBool) {
    digits.set(*element != 0 ? "True" : "False");
  } else if (!is_float(type)) {
    const SignedInteger integer = read_integer(type, element);
    is_negative = integer.is_negative;
    digits.print(integer.magnitude);
  } else {
    const double value = read_double(type, element);
    is_negative = std::signbit(value) && !std::isnan(value);
    if (std::isfinite(value)) {
      print_shortest(type, std::abs(value), digits);
    } else {
      digits.set(name_of_special(value));
    }
  }
  if (specifier.precision) {  // characters to keep
    const auto kept = static_cast<size_t>(*specifier.precision);
    if (is_negative && kept == 0) is_negative = false, digits.nbytes = 0;
    digits.nbytes = std::min(digits.nbytes, kept - (is_negative ? 1 : 0));
  }
  append_padded(specifier, is_negative ? "-" : "", digits.view(), /*zeros=*/false, text);
}

// %d: floating point numbers are cut to integers. False for what is not finite.
bool append_integer(const TextSpecifier& specifier, ScalarType type, const uint8_t* element,
                    std::string& text) {
  Digits digits;
  bool is_negative = false;
  if (is_float(type)) {
    const double value = std::trunc(read_double(type, element));
    if (!std::isfinite(value)) return false;
    is_negative = value < 0;
    digits.print(std::abs(value), std::chars_format::fixed, 0);
  } else {
    const SignedInteger integer = read_integer(type, element);
    is_negative = integer.is_negative;
    digits.print(integer.magnitude);
  }
  append_padded(specifier, sign_of(specifier, is_negative), digits.view(), specifier.zero, text);
  return true;
}

// %e, %f, %g and their upper case.
void append_float(const TextSpecifier& specifier, ScalarType type, const uint8_t* element,
                  std::string& text) {
  constexpr int kDefaultPrecision = 6;
  const double value = read_double(type, element);
  const bool upper = is_upper(specifier.conversion);
  const char conversion =
      upper ? static_cast<char>(specifier.conversion + ('a' - 'A')) : specifier.conversion;
  Digits digits;
  print_float(conversion, specifier.precision.value_or(kDefaultPrecision), std::abs(value), digits);
  if (upper) make_upper(digits);
  const bool is_negative = std::signbit(value) && !std::isnan(value);
  append_padded(specifier, sign_of(specifier, is_negative), digits.view(), specifier.zero, text);
}

std::optional<size_t> take_count(std::string_view& format, size_t limit) {
  size_t count = 0;
  while (!format.empty() && is_digit(format.front())) {
    count = count * 10 + static_cast<size_t>(format.front() - '0');
    if (count > limit) return std::nullopt;
    format.remove_prefix(1);
  }
  return count;
}

bool is_one_of(char c, std::string_view set) { return set.find(c) != std::string_view::npos; }

bool* find_flag(TextSpecifier& specifier, char flag) {
  switch (flag) {
    case '-': return &specifier.left;
    case '+': return &specifier.plus;
    case ' ': return &specifier.blank;
    case '0': return &specifier.zero;
    default: return nullptr;
  }
}

// %[flags][width][.precision][hlL]conversion
std::optional<TextSpecifier> parse_specifier(std::string_view& format) {
  TextSpecifier specifier;
  for (; !format.empty(); format.remove_prefix(1)) {
    bool* const flag = find_flag(specifier, format.front());
    if (flag == nullptr) break;
    *flag = true;
  }
  const std::optional<size_t> width = take_count(format, kMaxWidth);
  if (!width) return std::nullopt;
  specifier.width = *width;
  if (format.starts_with('.')) {
    format.remove_prefix(1);
    const std::optional<size_t> precision = take_count(format, kMaxPrecision);
    if (!precision) return std::nullopt;
    specifier.precision = static_cast<int>(*precision);
  }
  if (!format.empty() && is_one_of(format.front(), "hlL")) {
    format.remove_prefix(1);
  }
  if (format.empty()) return std::nullopt;
  specifier.conversion = format.front();
  format.remove_prefix(1);
  const bool is_known = is_one_of(specifier.conversion, "eEfFgGs") ||
                        (is_one_of(specifier.conversion, "diu") && !specifier.precision);
  if (!is_known) return std::nullopt;
  return specifier;
}

}  // namespace

std::optional<RowFormat> RowFormat::parse(std::string_view format,
                                          std::vector<TextColumn> columns) {
  RowFormat row;
  std::string literal;
  while (!format.empty()) {
    const size_t next = std::min(format.find('%'), format.size());
    literal.append(format.substr(0, next));
    format.remove_prefix(next);
    if (format.empty()) break;
    if (format.starts_with("%%")) {
      literal += '%';
      format.remove_prefix(2);
      continue;
    }
    format.remove_prefix(1);
    std::optional<TextSpecifier> specifier = parse_specifier(format);
    if (!specifier) return std::nullopt;
    specifier->literal = std::exchange(literal, "");
    row.specifiers_.push_back(*std::move(specifier));
  }
  const bool printable = std::all_of(columns.begin(), columns.end(), [](const TextColumn& column) {
    return is_supported(column.type);
  });
  if (!printable || row.specifiers_.size() != columns.size()) return std::nullopt;
  row.tail_ = std::move(literal);
  row.columns_ = std::move(columns);
  return row;
}

void RowFormat::append_row(uint64_t row, std::string& text) const {
  for (size_t i = 0; i < columns_.size(); ++i) {
    const TextSpecifier& specifier = specifiers_[i];
    const ScalarType type = columns_[i].type;
    const uint8_t* const element =
        columns_[i].data + static_cast<int64_t>(row) * columns_[i].stride;
    text.append(specifier.literal);
    if (specifier.conversion == 's') {
      append_word(specifier, type, element, text);
    } else if (!is_one_of(specifier.conversion, "diu")) {
      append_float(specifier, type, element, text);
    } else if (!append_integer(specifier, type, element, text)) {
      throw ArgumentError(
          fmt::format("expected finite numbers for the format %{} but found {} in row {}, column "
                      "{} of the array",
                      specifier.conversion, name_of_special(read_double(type, element)), row, i));
    }
  }
  text.append(tail_);
}

}  // namespace torchnpy
