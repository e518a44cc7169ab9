// The memory of one column of a batch; for batch.cpp.
#pragma once

#include <atomic>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "torch/tensor.h"

namespace torchnpy {

// Rows of one tensor, one a sample; the first array shows what a row is. Samples are numbered from
// 0 to `count`.
class BatchColumn {
 public:
  BatchColumn(size_t count, std::optional<at::ScalarType> dtype, bool shared)
      : count_(count), dtype_(dtype), shared_(shared) {}

  // Memory for the data of sample `index`, which `header` describes; empty optional, from then on
  // for all, when it does not agree with the others. By any number of threads at once. `workers`
  // may be asked to touch the memory. Throws as make_array().
  std::optional<MutableBytes> row(size_t index, const NpyHeader& header, Workers* workers);

  // Of a sample that can have no row.
  void refuse();

  // The rest when no thread calls row() any more.

  // Whether all samples had rows.
  bool agrees() const { return agrees_; }
  // Whether `bytes` are a row of this column.
  bool holds(ByteView bytes) const;
  // The rows of `samples`, filled as stored in their files, in this order, which ascends. Once.
  at::Tensor take(std::span<const size_t> samples);
  // An array of its own from what was filled for `index`.
  Array copy_out(size_t index, const NpyHeader& header) const;

 private:
  struct Layout {
    at::ScalarType type;
    std::vector<uint64_t> shape;
    uint64_t nbytes;
  };

  MutableBytes bytes_of_row(size_t index) const {
    return bytes_of(storage_).subspan(index * layout_->nbytes, layout_->nbytes);
  }
  std::optional<Layout> find_layout(const NpyHeader& header) const;
  void begin(const Layout& layout, Workers* workers);

  const size_t count_;
  const std::optional<at::ScalarType> dtype_;
  const bool shared_;
  std::atomic<bool> agrees_{true};
  std::mutex mutex_;  // guards the rest
  std::optional<Layout> layout_;
  c10::Storage storage_;
  std::vector<Dtype> dtypes_;  // of the samples, as stored
};

}  // namespace torchnpy
