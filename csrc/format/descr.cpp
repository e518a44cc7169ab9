#include "format/descr.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>

#include "base/text.h"
#include "format/text.h"

namespace torchnpy {
namespace {

struct Format {
  std::string_view name;
  ScalarType type;
  uint64_t itemsize;
};

struct SizedFormat {
  char kind;
  uint64_t size;  // as it is written
  ScalarType type;
};

// What dtype.str writes, and `f1`, `c4`, `f12` and `c24` of other writers.
constexpr SizedFormat kSizedFormats[] = {
    {'f', 4, ScalarType::kFloat32},     {'f', 8, ScalarType::kFloat64},
    {'i', 8, ScalarType::kInt64},       {'i', 4, ScalarType::kInt32},
    {'u', 1, ScalarType::kUInt8},       {'f', 2, ScalarType::kFloat16},
    {'i', 1, ScalarType::kInt8},        {'i', 2, ScalarType::kInt16},
    {'u', 2, ScalarType::kUInt16},      {'u', 4, ScalarType::kUInt32},
    {'u', 8, ScalarType::kUInt64},      {'b', 1, ScalarType::kBool},
    {'c', 8, ScalarType::kComplex64},   {'c', 16, ScalarType::kComplex128},
    {'f', 16, ScalarType::kLongDouble}, {'c', 32, ScalarType::kLongDouble},
    {'O', 4, ScalarType::kObject},      {'O', 8, ScalarType::kObject},
    {'c', 4, ScalarType::kComplex32},   {'f', 1, ScalarType::kFloat8E5M2},
    {'f', 12, ScalarType::kLongDouble}, {'c', 24, ScalarType::kLongDouble},
};

// numpy's one-letter codes, which may follow a byte order, as they are on 64-bit Linux.
constexpr Format kLetterFormats[] = {
    {"?", ScalarType::kBool, 1},        {"b", ScalarType::kInt8, 1},
    {"B", ScalarType::kUInt8, 1},       {"h", ScalarType::kInt16, 2},
    {"H", ScalarType::kUInt16, 2},      {"i", ScalarType::kInt32, 4},
    {"I", ScalarType::kUInt32, 4},      {"l", ScalarType::kInt64, 8},
    {"L", ScalarType::kUInt64, 8},      {"q", ScalarType::kInt64, 8},
    {"Q", ScalarType::kUInt64, 8},      {"p", ScalarType::kInt64, 8},
    {"P", ScalarType::kUInt64, 8},      {"n", ScalarType::kInt64, 8},
    {"N", ScalarType::kUInt64, 8},      {"e", ScalarType::kFloat16, 2},
    {"f", ScalarType::kFloat32, 4},     {"d", ScalarType::kFloat64, 8},
    {"g", ScalarType::kLongDouble, 16}, {"F", ScalarType::kComplex64, 8},
    {"D", ScalarType::kComplex128, 16}, {"G", ScalarType::kLongDouble, 32},
    {"c", ScalarType::kBytes, 1},       {"O", ScalarType::kObject, 8},
};

// Names, which take no byte order: numpy's, and those of the ml_dtypes that torch has.
constexpr Format kNamedFormats[] = {
    {"bool", ScalarType::kBool, 1},
    {"bool_", ScalarType::kBool, 1},
    {"int8", ScalarType::kInt8, 1},
    {"byte", ScalarType::kInt8, 1},
    {"int16", ScalarType::kInt16, 2},
    {"short", ScalarType::kInt16, 2},
    {"int32", ScalarType::kInt32, 4},
    {"intc", ScalarType::kInt32, 4},
    {"int64", ScalarType::kInt64, 8},
    {"int", ScalarType::kInt64, 8},
    {"int_", ScalarType::kInt64, 8},
    {"intp", ScalarType::kInt64, 8},
    {"long", ScalarType::kInt64, 8},
    {"longlong", ScalarType::kInt64, 8},
    {"uint8", ScalarType::kUInt8, 1},
    {"ubyte", ScalarType::kUInt8, 1},
    {"uint16", ScalarType::kUInt16, 2},
    {"ushort", ScalarType::kUInt16, 2},
    {"uint32", ScalarType::kUInt32, 4},
    {"uintc", ScalarType::kUInt32, 4},
    {"uint64", ScalarType::kUInt64, 8},
    {"uint", ScalarType::kUInt64, 8},
    {"uintp", ScalarType::kUInt64, 8},
    {"ulong", ScalarType::kUInt64, 8},
    {"ulonglong", ScalarType::kUInt64, 8},
    {"float16", ScalarType::kFloat16, 2},
    {"half", ScalarType::kFloat16, 2},
    {"float32", ScalarType::kFloat32, 4},
    {"single", ScalarType::kFloat32, 4},
    {"float64", ScalarType::kFloat64, 8},
    {"float", ScalarType::kFloat64, 8},
    {"double", ScalarType::kFloat64, 8},
    {"float128", ScalarType::kLongDouble, 16},
    {"longdouble", ScalarType::kLongDouble, 16},
    {"complex64", ScalarType::kComplex64, 8},
    {"csingle", ScalarType::kComplex64, 8},
    {"complex128", ScalarType::kComplex128, 16},
    {"complex", ScalarType::kComplex128, 16},
    {"cdouble", ScalarType::kComplex128, 16},
    {"complex256", ScalarType::kLongDouble, 32},
    {"clongdouble", ScalarType::kLongDouble, 32},
    {"bytes", ScalarType::kBytes, 0},
    {"bytes_", ScalarType::kBytes, 0},
    {"str", ScalarType::kUnicode, 0},
    {"str_", ScalarType::kUnicode, 0},
    {"unicode", ScalarType::kUnicode, 0},
    {"void", ScalarType::kVoid, 0},
    {"object", ScalarType::kObject, 8},
    {"object_", ScalarType::kObject, 8},
    {"bfloat16", ScalarType::kBFloat16, 2},
    {"float8_e4m3fn", ScalarType::kFloat8E4M3FN, 1},
    {"float8_e4m3fnuz", ScalarType::kFloat8E4M3FNUZ, 1},
    {"float8_e5m2", ScalarType::kFloat8E5M2, 1},
    {"float8_e5m2fnuz", ScalarType::kFloat8E5M2FNUZ, 1},
    {"float8_e8m0fnu", ScalarType::kFloat8E8M0FNU, 1},
};

constexpr std::string_view kUnits[] = {"Y",  "M",  "W",  "D",  "h",  "m",  "s",
                                       "ms", "us", "ns", "ps", "fs", "as", "generic"};

template <size_t N>
const Format* find_format(const Format (&formats)[N], std::string_view name) {
  const auto* found = std::find_if(std::begin(formats), std::end(formats),
                                   [&](const Format& format) { return format.name == name; });
  return found == std::end(formats) ? nullptr : found;
}

bool is_byte_order(char c) { return c == '<' || c == '>' || c == '=' || c == '|'; }

// Takes a number off the front of `text` as C's strtol does, blanks and sign included:
// numpy reads sizes with it. Empty when there is none or when it does not fit a C int.
std::optional<uint64_t> take_number(std::string_view& text) {
  const size_t blanks = text.find_first_not_of(" \t\n\v\f\r");
  std::string_view rest = text.substr(std::min(blanks, text.size()));
  const bool is_negative = rest.starts_with('-');
  if (is_negative || rest.starts_with('+')) rest.remove_prefix(1);
  if (rest.empty() || !is_digit(rest[0])) return std::nullopt;
  uint64_t value = 0;
  for (; !rest.empty() && is_digit(rest[0]); rest.remove_prefix(1)) {
    value = value * 10 + static_cast<uint64_t>(rest[0] - '0');
    if (value > kMaxItemNbytes) return std::nullopt;
  }
  if (is_negative && value != 0) return std::nullopt;
  text = rest;
  return value;
}

// `[25s]` to `25s`; empty when it is not a unit.
std::optional<std::string> parse_unit(std::string_view metadata) {
  if (metadata.size() < 2 || metadata.back() != ']') return std::nullopt;
  std::string_view unit = metadata.substr(1, metadata.size() - 2);
  const uint64_t multiple = take_number(unit).value_or(1);
  if (unit == "\u03bcs") unit = "us";
  if (std::find(std::begin(kUnits), std::end(kUnits), unit) == std::end(kUnits)) {
    return std::nullopt;
  }
  if (unit == "generic") return "";
  return multiple == 1 ? std::string(unit) : fmt::format("{}{}", multiple, unit);
}

// `body` is without its byte order.
std::optional<Dtype> parse_datetime(std::string_view body) {
  Dtype dtype;
  dtype.itemsize = 8;
  dtype.type = body.starts_with('M') || body.starts_with('d') ? ScalarType::kDatetime64
                                                              : ScalarType::kTimedelta64;
  for (const std::string_view name : {"datetime64", "timedelta64", "M8", "m8", "M", "m"}) {
    if (!body.starts_with(name)) continue;
    body.remove_prefix(name.size());
    if (body.empty()) return dtype;
    if (body[0] != '[' || name.size() == 1) return std::nullopt;
    std::optional<std::string> unit = parse_unit(body);
    if (!unit) return std::nullopt;
    dtype.unit = *std::move(unit);
    return dtype;
  }
  return std::nullopt;
}

// A kind and a size: f4, S5. The size of S, a, U and V is in characters, and may be left out.
std::optional<Dtype> parse_sized(std::string_view body) {
  const char kind = body[0];
  body.remove_prefix(1);
  const bool has_size = !body.empty();
  const std::optional<uint64_t> size = take_number(body);
  if (has_size && (!size || !body.empty())) return std::nullopt;
  Dtype dtype;
  dtype.itemsize = size.value_or(0);
  switch (kind) {
    case 'S':
    case 'a': dtype.type = ScalarType::kBytes; return dtype;
    case 'V': dtype.type = ScalarType::kVoid; return dtype;
    case 'U':
      dtype.type = ScalarType::kUnicode;
      dtype.itemsize *= 4;
      return dtype.itemsize <= kMaxItemNbytes ? std::optional(dtype) : std::nullopt;
    default: break;
  }
  for (const SizedFormat& format : kSizedFormats) {
    if (format.kind != kind || format.size != dtype.itemsize) continue;
    dtype.type = format.type;
    if (format.type == ScalarType::kObject) dtype.itemsize = 8;
    return dtype;
  }
  return std::nullopt;
}

bool has_byte_order(const Dtype& dtype) {
  switch (dtype.type) {
    case ScalarType::kUnicode: return true;
    case ScalarType::kBytes:
    case ScalarType::kVoid:
    case ScalarType::kObject: return false;
    default: return dtype.itemsize > 1;
  }
}

bool is_sequence(const Literal& literal) {
  return literal.kind == Literal::Kind::kTuple || literal.kind == Literal::Kind::kList;
}

Dtype parse_named(const Literal& name) {
  std::optional<Dtype> dtype = parse_format(name.text);
  if (!dtype) {
    throw_format_error("a dtype", format_snippet(name.source), name.offset,
                       "save the array with a dtype that NumPy has");
  }
  return *std::move(dtype);
}

uint64_t parse_dimension(const Literal& dimension) {
  if (dimension.kind != Literal::Kind::kInteger || dimension.integer > kMaxItemNbytes) {
    throw_literal_error("a dimension from 0 to 2147483647", dimension);
  }
  return dimension.integer;
}

std::vector<uint64_t> parse_subarray_shape(const Literal& shape) {
  if (!is_sequence(shape)) return {parse_dimension(shape)};
  if (shape.count > kMaxDims) {
    throw_format_error(fmt::format("at most {} dimensions", kMaxDims), std::to_string(shape.count),
                       shape.offset);
  }
  std::vector<uint64_t> dimensions;
  dimensions.reserve(shape.count);
  for (const Literal* item = shape.items; item != nullptr; item = item->next) {
    dimensions.push_back(parse_dimension(*item));
  }
  return dimensions;
}

void check_item_nbytes(uint64_t nbytes, const Literal& where) {
  if (nbytes <= kMaxItemNbytes) return;
  throw_literal_error(fmt::format("an element of at most {} bytes", kMaxItemNbytes), where);
}

// Bytes of an element, sub-array included.
uint64_t checked_item_nbytes(const Element& element, const Literal& where) {
  // Dimensions of 0, and elements of no bytes, hide no overflow.
  uint64_t bound = std::max<uint64_t>(element.dtype.itemsize, 1);
  for (const uint64_t dimension : element.shape) {
    bound *= std::max<uint64_t>(dimension, 1);  // both below 2^31
    check_item_nbytes(bound, where);
  }
  check_item_nbytes(bound, where);
  return element.dtype.itemsize * count_elements(element.shape);
}

bool is_unsized(const Dtype& dtype) {
  return dtype.itemsize == 0 &&
         (dtype.type == ScalarType::kBytes || dtype.type == ScalarType::kUnicode ||
          dtype.type == ScalarType::kVoid);
}

// (S, 5) is S5; (f4, 5), (f4, (5,)) and (f4, [5]) are sub-arrays.
Element parse_subarray(const Literal& base, const Literal& shape) {
  Element element = parse_descr(base);
  const bool is_empty_subarray = !element.shape.empty() && checked_item_nbytes(element, base) == 0;
  if (is_empty_subarray) throw_literal_error("a sub-array that is not empty", base);
  if (shape.kind == Literal::Kind::kList && shape.count == 0) {
    throw_literal_error("the shape of a sub-array", shape);
  }
  if (is_unsized(element.dtype)) {
    const uint64_t width = element.dtype.type == ScalarType::kUnicode ? 4 : 1;
    element.dtype.itemsize = parse_dimension(shape) * width;
  } else {
    std::vector<uint64_t> dimensions = parse_subarray_shape(shape);
    element.shape.insert(element.shape.begin(), dimensions.begin(), dimensions.end());
  }
  checked_item_nbytes(element, base);
  return element;
}

// The names that a field takes: its own, and its title when that is a string.
struct FieldNames {
  const Literal* name = nullptr;
  const Literal* title = nullptr;
};

FieldNames parse_field_names(const Literal& literal) {
  FieldNames names{&literal, nullptr};
  if (literal.kind == Literal::Kind::kTuple) {
    if (literal.count != 2) {
      throw_literal_error("a title and a name", literal);
    }
    names = {literal.items->next, literal.items};
  }
  if (names.name->kind != Literal::Kind::kString) {
    throw_literal_error("the name of a field", *names.name);
  }
  return names;
}

void check_unique(std::vector<const Literal*>& names) {
  std::sort(names.begin(), names.end(), [](const Literal* a, const Literal* b) {
    return std::tie(a->text, a->offset) < std::tie(b->text, b->offset);
  });
  const auto twice =
      std::adjacent_find(names.begin(), names.end(),
                         [](const Literal* a, const Literal* b) { return a->text == b->text; });
  if (twice == names.end()) return;
  throw_literal_error("each name and title of a field once", **std::next(twice));
}

// Bytes between fields, as numpy writes them: any void or sub-array with an empty name.
bool is_padding(const Literal& name, const Element& element) {
  const bool is_nameless = name.kind == Literal::Kind::kString && name.text.empty();
  return is_nameless && (element.dtype.type == ScalarType::kVoid || !element.shape.empty());
}

Dtype parse_fields(const Literal& list) {
  Dtype record;
  record.type = ScalarType::kStructured;
  std::vector<const Literal*> names;
  for (const Literal* item = list.items; item != nullptr; item = item->next) {
    if (!is_sequence(*item) || item->count < 2 || item->count > 3) {
      throw_literal_error("a field: (name, descr) or (name, descr, shape)", *item);
    }
    const Literal& name = *item->items;
    const Literal& descr = *name.next;
    Element element =
        descr.next == nullptr ? parse_descr(descr) : parse_subarray(descr, *descr.next);
    const uint64_t offset = record.itemsize;
    record.itemsize += checked_item_nbytes(element, *item);
    check_item_nbytes(record.itemsize, *item);
    if (is_padding(name, element)) continue;
    const FieldNames named = parse_field_names(name);
    names.push_back(named.name);
    if (named.title != nullptr && named.title->kind == Literal::Kind::kString) {
      names.push_back(named.title);
    }
    record.fields.push_back({std::string(named.name->text), std::move(element.dtype), offset,
                             std::move(element.shape)});
  }
  check_unique(names);
  return record;
}

}  // namespace

std::optional<Dtype> parse_format(std::string_view text) {
  if (text.empty()) return std::nullopt;
  const bool has_prefix = is_byte_order(text[0]);
  const std::string_view body = text.substr(has_prefix ? 1 : 0);
  if (body.empty()) return std::nullopt;
  std::optional<Dtype> dtype = parse_sized(body);
  if (!dtype) {
    const Format* format = find_format(kLetterFormats, body);
    if (format == nullptr && !has_prefix) format = find_format(kNamedFormats, body);
    if (format != nullptr) {
      dtype.emplace();
      dtype->type = format->type;
      dtype->itemsize = format->itemsize;
    } else {
      dtype = parse_datetime(body);
    }
  }
  if (dtype) dtype->big_endian = text[0] == '>' && has_byte_order(*dtype);
  return dtype;
}

Element parse_descr(const Literal& descr) {
  switch (descr.kind) {
    case Literal::Kind::kString: return {parse_named(descr), {}};
    case Literal::Kind::kList: return {parse_fields(descr), {}};
    case Literal::Kind::kTuple:
      if (descr.count < 2) break;
      return parse_subarray(*descr.items, *descr.items->next);
    default: break;
  }
  throw_literal_error("a dtype: a string, a list of fields, or (descr, shape)", descr);
}

uint64_t count_elements(const std::vector<uint64_t>& shape) {
  uint64_t count = 1;
  for (const uint64_t dimension : shape) count *= dimension;
  return count;
}

}  // namespace torchnpy
