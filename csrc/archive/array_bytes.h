// The data of an array in the order in which a .npy holds it.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "archive/array_view.h"
#include "transport/target.h"

namespace torchnpy {

class ArrayBytes {
 public:
  // Throws ArgumentError when the array has more bytes than memory can. `fortran_order` is numpy's
  // rule unless it is given: what is contiguous in Fortran order alone is held in it, all else in C
  // order.
  explicit ArrayBytes(ArrayView array, std::optional<bool> fortran_order = std::nullopt);

  const ArrayView& array() const { return array_; }
  bool fortran_order() const { return fortran_order_; }
  uint64_t nbytes() const { return nbytes_; }
  // All of them, where they lie in memory as the file holds them; else empty.
  std::optional<SharedBytes> whole() const;
  // Copies out.size() bytes from `offset` on, which must be there. From any number of threads at
  // once. Pieces of some MiB are fastest: memory is then read in the order in which it lies.
  void copy(uint64_t offset, MutableBytes out) const;

 private:
  struct Axis {
    uint64_t count;
    int64_t stride;      // bytes
    uint64_t below = 1;  // runs in one step along it
  };
  class Walk;

  void lay_out();
  void find_tiled_axis();
  void copy_runs(uint64_t first, uint64_t count, uint8_t* out) const;
  void copy_steps(const uint8_t* from, uint64_t steps, uint8_t* out) const;

  ArrayView array_;
  uint64_t nbytes_ = 0;
  bool fortran_order_ = false;
  // What lies together makes one run. The axes count the runs in the file's order, the outermost
  // first; those of one step are left out, and those that make one are joined.
  uint64_t run_nbytes_ = 0;
  std::vector<Axis> axes_;
  // The axis along which memory lies closest, where that is not the last and walking it alone would
  // read each cache line again and again.
  std::optional<size_t> tiled_axis_;
};

}  // namespace torchnpy
