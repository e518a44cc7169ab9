// Any bytes give a header or a FormatError, and a header agrees with itself.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <vector>

#include "base/error.h"
#include "format/npy.h"

namespace torchnpy {
namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

// One byte less than `nbytes` must not do.
void check_short_data(const NpyHeader& header) {
  check_npy_data(header, header.nbytes);
  if (header.nbytes == 0) return;
  try {
    check_npy_data(header, header.nbytes - 1);
  } catch (const FormatError&) {
    return;
  }
  std::abort();
}

uint64_t count_elements(const std::vector<uint64_t>& shape) {
  uint64_t count = 1;
  for (const uint64_t dimension : shape) require(checked_multiply(count, dimension, &count));
  return count;
}

void check_dtype(const Dtype& dtype) {
  uint64_t end = 0;
  for (const Field& field : dtype.fields) {
    require(field.offset >= end);
    end = field.offset + field.dtype.itemsize * count_elements(field.shape);
    require(end <= dtype.itemsize);
    check_dtype(field.dtype);
  }
}

// A line end before the dict changes nothing, but keeps the header from being read as one that
// numpy wrote: both ways must agree.
void check_other_way(const NpyHeader& header, ByteView bytes) {
  const size_t start = header.major == 1 ? 10 : 12;
  const size_t header_nbytes = header.data_offset - start + 1;
  if (header_nbytes > kMaxHeaderChars || bytes[start] != '{') return;
  std::vector<uint8_t> longer(bytes.begin(), bytes.begin() + header.data_offset);
  for (size_t i = 8; i < start; ++i) {
    longer[i] = static_cast<uint8_t>(header_nbytes >> (8 * (i - 8)));
  }
  longer.insert(longer.begin() + start, '\n');
  const NpyHeader other = parse_npy_header(longer);
  require(other.descr == header.descr && other.shape == header.shape);
  require(other.fortran_order == header.fortran_order && other.nbytes == header.nbytes);
  require(other.dtype.type == header.dtype.type && other.dtype.unit == header.dtype.unit);
  require(other.dtype.big_endian == header.dtype.big_endian);
}

void check_header(const NpyHeader& header, ByteView bytes) {
  require(header.data_offset <= bytes.size());
  require(header.shape.size() <= kMaxDims);
  require(header.count == count_elements(header.shape));
  require(header.nbytes == header.count * header.dtype.itemsize);
  check_dtype(header.dtype);
  check_short_data(header);
  try {
    check_npy_loadable(header.dtype);
  } catch (const UnsupportedError&) {
  }
  // What follows the header does not change it.
  const NpyHeader again = parse_npy_header(bytes.first(header.data_offset));
  require(again.descr == header.descr && again.shape == header.shape);
  check_other_way(header, bytes);
}

void parse(ByteView bytes) {
  std::optional<uint64_t> data_offset;
  try {
    data_offset = find_npy_data_offset(bytes);
    const NpyHeader header = parse_npy_header(bytes);
    require(data_offset == header.data_offset);
    check_header(header, bytes);
  } catch (const FormatError&) {
  }
}

}  // namespace
}  // namespace torchnpy

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  torchnpy::parse({data, size});
  return 0;
}
