// Arrays as tensors: the dtype map, and tensors over memory that somebody else owns.
#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "archive/loader.h"
#include "format/npy.h"

namespace torchnpy {

struct NamedTensor {
  std::string name;  // of a nested field: "outer.inner"
  at::Tensor tensor;
};

// One tensor; for a structured dtype one a field, in the file's order.
using Array = std::variant<at::Tensor, std::vector<NamedTensor>>;

// The torch dtype of elements of `dtype`; empty where there is none.
std::optional<at::ScalarType> find_scalar_type(const Dtype& dtype);

// Memory of torch's CPU allocator. Take the storage when the load is done.
class StorageAllocator final : public Allocator {
 public:
  OwnedBytes allocate(uint64_t nbytes) override;
  c10::Storage take() { return std::move(storage_); }

 private:
  c10::Storage storage_;
};

// Memory of torch's CPU allocator, whose owner is all that keeps it.
Allocator& torch_allocator();

// A storage over bytes that live as long as `owner`. The deleter never takes the GIL.
c10::Storage share_bytes(OwnedBytes bytes);
// The same with a context and its deleter, for owners that are no shared_ptr.
c10::Storage share_bytes(MutableBytes bytes, void* context, c10::DeleterFnPtr deleter);

// The array that `header` describes over `storage`, which holds exactly its data. No copy
// unless the elements are not aligned, are stored in the other byte order or are bools that
// are neither 0 nor 1; in place when the storage is `exclusive`ly this array's. `dtype` says
// what the bits of a void dtype are, or repeats the dtype that the header names; it never
// casts. Throws ArgumentError for another dtype, UnsupportedError for one with no tensor.
Array make_array(const NpyHeader& header, c10::Storage storage, bool exclusive,
                 std::optional<at::ScalarType> dtype = std::nullopt);

// The bytes of `storage` as a uint8 tensor.
at::Tensor make_bytes(c10::Storage storage);

// A copy of `storage` in memory of torch's CPU allocator.
c10::Storage copy_storage(const c10::Storage& storage);

}  // namespace torchnpy
