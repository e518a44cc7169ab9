// The NPY format, versions 1.0, 2.0 and 3.0 (numpy.lib.format): bytes in, a header out.
// Pure: no I/O. Safe on any bytes: every error is a FormatError that says what was
// expected, what was found and at which byte. The layout is in docs/format.md.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"

namespace torchnpy {

enum class ScalarType : uint8_t {
  kBool,
  kInt8,
  kInt16,
  kInt32,
  kInt64,
  kUInt8,
  kUInt16,
  kUInt32,
  kUInt64,
  kFloat16,
  kFloat32,
  kFloat64,
  kComplex32,
  kComplex64,
  kComplex128,
  kBFloat16,
  kFloat8E4M3FN,
  kFloat8E4M3FNUZ,
  kFloat8E5M2,
  kFloat8E5M2FNUZ,
  kFloat8E8M0FNU,
  kDatetime64,
  kTimedelta64,
  kStructured,
  // Parsed, so that the header can be shown, but with no tensor:
  kVoid,        // V: bits that the file cannot name; loads only with a dtype given
  kBytes,       // S, a
  kUnicode,     // U
  kLongDouble,  // f12, f16, c24, c32
  kObject,      // O: a pickle
};

struct Field;

struct Dtype {
  ScalarType type = ScalarType::kVoid;
  uint64_t itemsize = 0;      // bytes of one element, padding included
  bool big_endian = false;    // the stored byte order, for types that have one
  std::string unit;           // datetime64 and timedelta64: "ns", "25s", or "" for generic
  std::vector<Field> fields;  // kStructured: in file order, padding left out
};

struct Field {
  std::string name;
  Dtype dtype;
  uint64_t offset = 0;          // bytes from the start of the record
  std::vector<uint64_t> shape;  // of a sub-array field; else empty
};

struct NpyHeader {
  int major = 0;
  int minor = 0;
  std::string descr;  // as it stands in the file: "<f4" (without quotes), or the list of fields
  Dtype dtype;
  bool fortran_order = false;
  std::vector<uint64_t> shape;
  uint64_t data_offset = 0;  // bytes from the start of the array's magic
  uint64_t count = 0;        // elements; checked product of shape
  uint64_t nbytes = 0;       // bytes of data; checked
};

inline constexpr uint64_t kMaxHeaderChars = 10000;  // numpy's max_header_size
// A header of version 3.0 is UTF-8, up to 4 bytes a character.
inline constexpr uint64_t kMaxHeaderNbytes = 4 * kMaxHeaderChars;
inline constexpr size_t kDataAlignment = 64;  // of the data, in files that numpy and we write
inline constexpr size_t kGrowthChars = 21;    // numpy's GROWTH_AXIS_MAX_DIGITS
inline constexpr size_t kMaxDims = 64;        // numpy's NPY_MAXDIMS, and torch's

// Whether `bytes` begin with the magic of the format.
bool begins_as_npy(ByteView bytes);

// Where the data starts, once `prefix` is long enough to tell (10 bytes for version 1.0,
// 12 for the others); empty while it is not. At most 12 + kMaxHeaderNbytes. Throws FormatError
// for a wrong magic, an unknown version or too long a header, as soon as the bytes show it.
std::optional<uint64_t> find_npy_data_offset(ByteView prefix);

// Parses the header at the front of `bytes`, which may go on beyond it. Throws FormatError.
// Does not look at the data and accepts dtypes that cannot be loaded.
NpyHeader parse_npy_header(ByteView bytes);

// What numpy.lib.format.write_array puts before the data, byte for byte: its length is a multiple
// of 64, and it has room for the axis that grows (the first, in Fortran order the last) to become
// longer. `descr` is UTF-8, as Python prints it: "'<f4'", quotes included, or the list of fields.
// Version 1.0; 2.0 when that is too short, 3.0 when `descr` is not latin-1. Throws ArgumentError
// for a header of 4 GiB.
std::string format_npy_header(std::string_view descr, bool fortran_order,
                              const std::vector<uint64_t>& shape);

// Throws FormatError unless `available` bytes of data hold the array. Call check_npy_loadable
// first: the data of objects is a pickle of any size.
void check_npy_data(const NpyHeader& header, uint64_t available);

// Throws UnsupportedError for a dtype with no tensor: objects, text, long double, and void
// (the message says to pass dtype=).
void check_npy_loadable(const Dtype& dtype);

// "float32", "datetime64[ns]", "void16": for messages.
std::string format_dtype(const Dtype& dtype);
// "(3, 4)", "(3,)", "()".
std::string format_shape(const std::vector<uint64_t>& shape);

// True when each byte is 0 or 1, the only bytes that a torch.bool may hold.
bool are_bools(ByteView bytes);
// Makes each byte that is not 0 a 1, as numpy reads them.
void normalize_bools(MutableBytes bytes);

}  // namespace torchnpy
