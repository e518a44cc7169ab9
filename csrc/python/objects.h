// Objects as bytes, whatever they hold, for Python.
#pragma once

#include <pybind11/pybind11.h>

#include <atomic>

namespace torchnpy {

// Ends waits that another thread is in.
struct StopFlag {
  std::atomic<bool> wanted{false};
};

// Adds StopFlag and ObjectReader to _C.
void bind_objects(pybind11::module_& m);

}  // namespace torchnpy
