#include "format/npy.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "format/descr.h"
#include "format/literal.h"
#include "format/text.h"

namespace torchnpy {
namespace {

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr size_t kVersionOffset = 6;
constexpr size_t kLengthOffset = 8;
// Sizes and strides of torch are signed.
constexpr uint64_t kMaxNbytes = std::numeric_limits<int64_t>::max();

void check_magic(std::string_view prefix) {
  const std::string_view magic = prefix.substr(0, kMagic.size());
  if (magic == kMagic.substr(0, magic.size())) return;
  throw_format_error(fmt::format("the magic {}", format_snippet(kMagic)), format_snippet(magic), 0,
                     magic.starts_with("PK\3\4") ? "this is an archive: open it with open_npz()"
                                                 : "this is not an NPY file");
}

void check_version(uint8_t major, uint8_t minor) {
  if (major >= 1 && major <= 3 && minor == 0) return;
  throw_format_error("version 1.0, 2.0 or 3.0", fmt::format("{}.{}", major, minor), kVersionOffset,
                     "save the array again with NumPy");
}

constexpr std::string_view kHeaderTooLong =
    "NumPy does not read it either: save the array with fewer or shorter field names";

size_t data_offset_of_empty_header(uint8_t major) { return major == 1 ? 10 : 12; }

// Versions 1.0 and 2.0 are latin-1, one byte a character.
void check_header_nbytes(uint8_t major, uint64_t nbytes) {
  const uint64_t limit = major == 3 ? kMaxHeaderNbytes : kMaxHeaderChars;
  if (nbytes <= limit) return;
  throw_format_error(fmt::format("a header of at most {} bytes", limit), std::to_string(nbytes),
                     kLengthOffset, kHeaderTooLong);
}

void check_utf8(std::string_view source, size_t start) {
  const std::string_view text = source.substr(start);
  const size_t invalid = find_invalid_utf8(text);
  if (invalid != std::string_view::npos) {
    throw_format_error("UTF-8", format_snippet(text.substr(invalid, 1)), start + invalid);
  }
  const auto count = std::count_if(text.begin(), text.end(),
                                   [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; });
  if (static_cast<uint64_t>(count) <= kMaxHeaderChars) return;
  throw_format_error(fmt::format("a header of at most {} characters", kMaxHeaderChars),
                     std::to_string(count), start, kHeaderTooLong);
}

// The three values of the dict.
struct HeaderValues {
  const Literal* descr = nullptr;
  const Literal* fortran_order = nullptr;
  const Literal* shape = nullptr;
};

constexpr std::string_view kKeys = "the keys 'descr', 'fortran_order' and 'shape', once each,";

HeaderValues find_values(const Literal& dict) {
  HeaderValues values;
  for (const Literal* key = dict.items; key != nullptr; key = key->next->next) {
    const bool is_string = key->kind == Literal::Kind::kString;
    const Literal** value = is_string && key->text == "descr"           ? &values.descr
                            : is_string && key->text == "fortran_order" ? &values.fortran_order
                            : is_string && key->text == "shape"         ? &values.shape
                                                                        : nullptr;
    if (value == nullptr) throw_literal_error(kKeys, *key);
    if (*value != nullptr) {
      throw_format_error(kKeys, fmt::format("a second {}", format_snippet(key->source)),
                         key->offset);
    }
    *value = key->next;
  }
  const std::string_view missing = values.descr == nullptr           ? "descr"
                                   : values.fortran_order == nullptr ? "fortran_order"
                                   : values.shape == nullptr         ? "shape"
                                                                     : "";
  if (!missing.empty()) {
    throw_format_error(kKeys, fmt::format("no '{}' in the dict", missing), dict.offset);
  }
  return values;
}

bool parse_fortran_order(const Literal& value) {
  if (value.kind == Literal::Kind::kTrue) return true;
  if (value.kind == Literal::Kind::kFalse) return false;
  throw_literal_error("True or False", value);
}

std::vector<uint64_t> parse_shape(const Literal& value) {
  if (value.kind != Literal::Kind::kTuple) throw_literal_error("a shape: a tuple", value);
  if (value.count > kMaxDims) {
    throw_format_error(fmt::format("at most {} dimensions", kMaxDims), std::to_string(value.count),
                       value.offset, "save the array with fewer");
  }
  std::vector<uint64_t> shape;
  shape.reserve(value.count);
  for (const Literal* item = value.items; item != nullptr; item = item->next) {
    if (item->kind != Literal::Kind::kInteger || item->integer > kMaxNbytes) {
      throw_literal_error("a dimension from 0 to 9223372036854775807", *item);
    }
    shape.push_back(item->integer);
  }
  return shape;
}

// Sets count and nbytes; false when they are too many. A dimension of 0 hides no overflow:
// torch computes strides with the others all the same.
bool measure(NpyHeader& header) {
  uint64_t bound = std::max<uint64_t>(header.dtype.itemsize, 1);
  header.count = 1;
  for (const uint64_t dimension : header.shape) {
    const bool fits = checked_multiply(bound, std::max<uint64_t>(dimension, 1), &bound);
    if (!fits || bound > kMaxNbytes) return false;
    header.count *= dimension;
  }
  header.nbytes = header.count * header.dtype.itemsize;
  return true;
}

// Takes `token` off the front of `text`, if it is there.
bool take(std::string_view& text, std::string_view token) {
  if (!text.starts_with(token)) return false;
  text.remove_prefix(token.size());
  return true;
}

// Takes `(3, 4)`, as Python prints it, up to the closing bracket. A count that may grow has blanks
// before it (growing_header.h).
bool take_usual_shape(std::string_view& text, std::vector<uint64_t>& shape) {
  constexpr size_t kDigits = 18;  // as many as always fit
  shape.reserve(4);
  bool ends_in_comma = true;
  while (ends_in_comma && !text.starts_with(')')) {
    text.remove_prefix(std::min(text.find_first_not_of(' '), text.size()));
    uint64_t dimension = 0;
    size_t digits = 0;
    for (; digits < text.size() && text[digits] >= '0' && text[digits] <= '9'; ++digits) {
      dimension = dimension * 10 + static_cast<uint64_t>(text[digits] - '0');
      if (digits == kDigits) return false;
    }
    const bool has_leading_zero = digits > 1 && text[0] == '0';
    if (digits == 0 || has_leading_zero || shape.size() == kMaxDims) return false;
    shape.push_back(dimension);
    text.remove_prefix(digits);
    ends_in_comma = take(text, ", ") || take(text, ",");
  }
  const bool is_tuple = shape.size() != 1 || ends_in_comma;
  return is_tuple && take(text, ")");
}

bool is_padding(std::string_view text) {
  constexpr std::string_view kSpaces = "        ";
  while (take(text, kSpaces)) {
  }
  const size_t end = text.find_first_not_of(' ');
  return end == std::string_view::npos || text.substr(end) == "\n";
}

// Reads the header of a plain array exactly as numpy writes it, without a parser: twice
// as fast, which shows for small arrays. False, with `header` spoilt, for any other header;
// the parser must read each one that this reads, as the same.
bool parse_usual_header(std::string_view text, NpyHeader& header) {
  constexpr size_t kMaxDescrNbytes = 16;
  if (!take(text, "{'descr': '")) return false;
  const std::string_view descr = text.substr(0, text.substr(0, kMaxDescrNbytes).find('\''));
  const bool is_word = std::all_of(descr.begin(), descr.end(), [](char c) { return c > ' '; });
  if (!is_word) return false;
  text.remove_prefix(descr.size());
  if (!take(text, "', 'fortran_order': ")) return false;
  header.fortran_order = take(text, "True");
  if (!header.fortran_order && !take(text, "False")) return false;
  if (!take(text, ", 'shape': (") || !take_usual_shape(text, header.shape)) return false;
  if (!take(text, ", }") || !is_padding(text)) return false;
  std::optional<Dtype> dtype = parse_format(descr);
  if (!dtype) return false;
  header.dtype = *std::move(dtype);
  header.descr = descr;
  return true;
}

// numpy gives a sub-array type its own elements, and refuses when they are not as many as
// the shape says.
void check_subarray(const NpyHeader& header, const Element& element, const Literal& descr) {
  const uint64_t per_element = count_elements(element.shape);
  if (per_element == 1 || header.count == 0) return;
  throw_format_error("a dtype of one element",
                     fmt::format("a sub-array of shape {}", format_shape(element.shape)),
                     descr.offset, "save the array with these dimensions in its shape");
}

// source[start..] is the header.
void parse_any_header(std::string_view source, size_t start, NpyHeader& header) {
  const bool is_utf8 = header.major == 3;
  if (is_utf8) check_utf8(source, start);
  LiteralArena arena;
  const Literal& dict = parse_literal_dict(source, start, {!is_utf8, !is_utf8}, arena);
  const HeaderValues values = find_values(dict);

  const Literal& descr = *values.descr;
  Element element = parse_descr(descr);
  header.dtype = std::move(element.dtype);
  const bool is_plain = descr.kind == Literal::Kind::kString;
  header.descr = is_plain  ? std::string(descr.text)
                 : is_utf8 ? std::string(descr.source)
                           : latin1_to_utf8(descr.source);
  header.fortran_order = parse_fortran_order(*values.fortran_order);
  header.shape = parse_shape(*values.shape);
  if (!measure(header)) {
    throw_literal_error(
        fmt::format("a shape of at most {} bytes of {}", kMaxNbytes, format_dtype(header.dtype)),
        *values.shape);
  }
  check_subarray(header, element, descr);
}

std::string_view name_fixed(ScalarType type) {
  switch (type) {
    case ScalarType::kBool: return "bool";
    case ScalarType::kInt8: return "int8";
    case ScalarType::kInt16: return "int16";
    case ScalarType::kInt32: return "int32";
    case ScalarType::kInt64: return "int64";
    case ScalarType::kUInt8: return "uint8";
    case ScalarType::kUInt16: return "uint16";
    case ScalarType::kUInt32: return "uint32";
    case ScalarType::kUInt64: return "uint64";
    case ScalarType::kFloat16: return "float16";
    case ScalarType::kFloat32: return "float32";
    case ScalarType::kFloat64: return "float64";
    case ScalarType::kComplex32: return "complex32";
    case ScalarType::kComplex64: return "complex64";
    case ScalarType::kComplex128: return "complex128";
    case ScalarType::kBFloat16: return "bfloat16";
    case ScalarType::kFloat8E4M3FN: return "float8_e4m3fn";
    case ScalarType::kFloat8E4M3FNUZ: return "float8_e4m3fnuz";
    case ScalarType::kFloat8E5M2: return "float8_e5m2";
    case ScalarType::kFloat8E5M2FNUZ: return "float8_e5m2fnuz";
    case ScalarType::kFloat8E8M0FNU: return "float8_e8m0fnu";
    case ScalarType::kDatetime64: return "datetime64";
    case ScalarType::kTimedelta64: return "timedelta64";
    case ScalarType::kStructured: return "record";
    case ScalarType::kVoid: return "void";
    case ScalarType::kBytes: return "bytes";
    case ScalarType::kUnicode: return "str";
    case ScalarType::kLongDouble: return "float";
    case ScalarType::kObject: return "object";
  }
  return "unknown";
}

std::string format_record(const Dtype& dtype) {
  std::string text = "{";
  for (const Field& field : dtype.fields) {
    if (text.size() > 1) text += ", ";
    text += fmt::format("{}: {}", field.name, format_dtype(field.dtype));
    if (!field.shape.empty()) text.append(" ").append(format_shape(field.shape));
  }
  return text += '}';
}

// `path` is the field in a record, as `a.b`; empty outside one.
void check_loadable(const Dtype& dtype, const std::string& path) {
  std::string_view advice;
  switch (dtype.type) {
    case ScalarType::kStructured:
      for (const Field& field : dtype.fields) {
        check_loadable(field.dtype,
                       path.empty() ? field.name : fmt::format("{}.{}", path, field.name));
      }
      return;
    case ScalarType::kObject:
      advice =
          "it is a pickle, which can run code when it is read, and is never loaded: "
          "save the values with a numeric dtype";
      break;
    case ScalarType::kVoid:
      advice = path.empty()
                   ? "the file cannot name these bits: pass dtype= to say what they are"
                   : "the file cannot name these bits: save the field with a numeric dtype";
      break;
    case ScalarType::kBytes:
    case ScalarType::kUnicode:
      advice =
          "torch has no text: save numbers, or take the raw bytes as uint8 from the header's "
          "data_offset on";
      break;
    case ScalarType::kLongDouble:
      advice = "torch has no long double: save it as float64 or complex128";
      break;
    default: return;
  }
  const std::string where = path.empty() ? "" : fmt::format(" in the field '{}'", path);
  throw UnsupportedError(fmt::format("expected a dtype that torch has but found {}{}; {}",
                                     format_dtype(dtype), where, advice));
}

}  // namespace

bool begins_as_npy(ByteView bytes) { return as_text(bytes).starts_with(kMagic); }

std::optional<uint64_t> find_npy_data_offset(ByteView prefix) {
  check_magic(as_text(prefix));
  if (prefix.size() < kLengthOffset) return std::nullopt;
  Cursor cursor(prefix);
  cursor.skip(kVersionOffset);
  const uint8_t major = cursor.read_u8();
  const uint8_t minor = cursor.read_u8();
  check_version(major, minor);
  if (prefix.size() < data_offset_of_empty_header(major)) return std::nullopt;
  const uint64_t header_nbytes = major == 1 ? cursor.read_u16() : cursor.read_u32();
  check_header_nbytes(major, header_nbytes);
  return cursor.offset() + header_nbytes;
}

NpyHeader parse_npy_header(ByteView bytes) {
  const std::optional<uint64_t> data_offset = find_npy_data_offset(bytes);
  if (!data_offset) {
    const bool is_known = bytes.size() > kVersionOffset;
    throw FormatError(fmt::format(
        "expected {} bytes of magic, version and header length but found {}; the file is truncated",
        is_known ? data_offset_of_empty_header(bytes[kVersionOffset]) : 10, bytes.size()));
  }
  if (*data_offset > bytes.size()) {
    throw FormatError(
        fmt::format("expected {} bytes up to the end of the header but found {}; the file is "
                    "truncated",
                    *data_offset, bytes.size()));
  }
  NpyHeader header;
  header.major = bytes[kVersionOffset];
  header.minor = bytes[kVersionOffset + 1];
  header.data_offset = *data_offset;

  const std::string_view source = as_text(bytes.first(*data_offset));
  const size_t start = data_offset_of_empty_header(bytes[kVersionOffset]);
  if (parse_usual_header(source.substr(start), header) && measure(header)) return header;
  header.shape.clear();
  parse_any_header(source, start, header);
  return header;
}

void check_npy_data(const NpyHeader& header, uint64_t available) {
  if (header.nbytes <= available) return;
  throw FormatError(fmt::format(
      "expected {} bytes of data ({}, shape {}) but found {}; the file is truncated", header.nbytes,
      format_dtype(header.dtype), format_shape(header.shape), available));
}

void check_npy_loadable(const Dtype& dtype) { check_loadable(dtype, ""); }

std::string format_dtype(const Dtype& dtype) {
  const std::string_view name = name_fixed(dtype.type);
  switch (dtype.type) {
    case ScalarType::kStructured: return format_record(dtype);
    case ScalarType::kDatetime64:
    case ScalarType::kTimedelta64:
      return dtype.unit.empty() ? std::string(name) : fmt::format("{}[{}]", name, dtype.unit);
    case ScalarType::kLongDouble:
      return fmt::format("{}{}", dtype.itemsize > 16 ? "complex" : "float", dtype.itemsize * 8);
    case ScalarType::kVoid:
    case ScalarType::kBytes:
    case ScalarType::kUnicode: return fmt::format("{}{}", name, dtype.itemsize * 8);
    default: return std::string(name);
  }
}

std::string format_shape(const std::vector<uint64_t>& shape) {
  if (shape.size() == 1) return fmt::format("({},)", shape[0]);
  std::string text = "(";
  for (const uint64_t dimension : shape) {
    if (text.size() > 1) text += ", ";
    text += std::to_string(dimension);
  }
  return text += ')';
}

bool are_bools(ByteView bytes) {
  // In blocks, so that a wrong byte at the front of much data shows early and the inner loop
  // is vectorised.
  constexpr size_t kBlockNbytes = 4096;
  for (size_t begin = 0; begin < bytes.size(); begin += kBlockNbytes) {
    const ByteView block = bytes.subspan(begin, std::min(kBlockNbytes, bytes.size() - begin));
    uint8_t seen = 0;
    for (const uint8_t byte : block) seen |= byte;
    if (seen > 1) return false;
  }
  return true;
}

void normalize_bools(MutableBytes bytes) {
  for (uint8_t& byte : bytes) byte = byte != 0;
}

}  // namespace torchnpy
