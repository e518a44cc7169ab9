// The `descr` of an NPY header: what numpy.lib.format.descr_to_dtype makes of it.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "format/literal.h"
#include "format/npy.h"

namespace torchnpy {

// A dtype, with the shape of a sub-array type around it; else empty.
struct Element {
  Dtype dtype;
  std::vector<uint64_t> shape;
};

// numpy holds the bytes of an element in a C int.
inline constexpr uint64_t kMaxItemNbytes = 0x7FFFFFFF;

// Throws FormatError with the offset of the part that is wrong.
Element parse_descr(const Literal& descr);

// Of a string: "<f4". Empty when it names no dtype.
std::optional<Dtype> parse_format(std::string_view text);

// The elements of a sub-array; 1 without one.
uint64_t count_elements(const std::vector<uint64_t>& shape);

}  // namespace torchnpy
