// Arrays as tensors: the dtype map, and tensors over memory that somebody else owns.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "format/npy.h"
#include "torch/storage.h"

namespace torchnpy {

struct NamedTensor {
  std::string name;  // of a nested field: "outer.inner"
  at::Tensor tensor;
};

// One tensor; for a structured dtype one a field, in the file's order.
using Array = std::variant<at::Tensor, std::vector<NamedTensor>>;

// The torch dtype of elements of `dtype`; empty where there is none.
std::optional<at::ScalarType> find_scalar_type(const Dtype& dtype);

// The array that `header` describes over `storage`, which holds exactly its data. No copy
// unless the elements are not aligned, are stored in the other byte order or are bools that
// are neither 0 nor 1; in place when the storage is `exclusive`ly this array's. `dtype` says
// what the bits of a void dtype are, or repeats the dtype that the header names; it never
// casts. Throws ArgumentError for another dtype, UnsupportedError for one with no tensor.
Array make_array(const NpyHeader& header, c10::Storage storage, bool exclusive,
                 std::optional<at::ScalarType> dtype = std::nullopt);

// What elements of a plain (not structured) dtype become. Throws as make_array().
at::ScalarType resolve_type(const Dtype& dtype, std::optional<at::ScalarType> wanted);
// Makes stored elements those of `type`, in place: in this machine's byte order, bools 0 or 1.
void make_native(MutableBytes bytes, const Dtype& dtype, at::ScalarType type);
// A contiguous tensor over the start of `storage`.
at::Tensor make_tensor(c10::Storage storage, at::ScalarType type,
                       const std::vector<uint64_t>& shape);
// The bytes of `storage` as a uint8 tensor.
at::Tensor make_bytes(c10::Storage storage);
}  // namespace torchnpy
