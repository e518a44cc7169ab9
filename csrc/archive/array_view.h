// An array in memory that is to be written, as its owner describes it: numpy's or torch's alike.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace torchnpy {

struct ArrayView {
  // As it stands in a header, quotes included: "'<f4'", or the list of fields.
  std::string descr;
  uint64_t itemsize = 0;  // bytes
  std::vector<uint64_t> shape;
  std::vector<int64_t> strides;   // bytes, one an axis; may be negative, or 0
  const uint8_t* data = nullptr;  // of the element at (0, 0, ...)
  // Keeps the data alive, and is what targets hold while they still read from it.
  std::shared_ptr<const void> owner;
};

}  // namespace torchnpy
