// Writing an array as a .npy.
#pragma once

#include <cstdint>
#include <string>

#include "archive/array_bytes.h"
#include "transport/target.h"

namespace torchnpy {

class NpyWriter {
 public:
  // Throws ArgumentError for an array that no .npy can hold.
  explicit NpyWriter(ArrayView array);

  // Of the whole .npy: for TargetOptions.
  uint64_t nbytes() const { return header_.size() + data_.nbytes(); }
  // Adds it to the target, and does not finish that. Data that does not lie in memory as the file
  // holds it is copied piece by piece.
  void write(Target& target) const;

 private:
  ArrayBytes data_;
  std::string header_;
};

}  // namespace torchnpy
