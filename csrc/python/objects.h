// Objects as bytes, whatever they hold, for Python.
#pragma once

#include <pybind11/pybind11.h>

#include <atomic>

namespace torchnpy {

// Ends waits that another thread is in.
struct StopFlag {
  std::atomic<bool> wanted{false};
};

// Adds to _C:
// - StopFlag.
// - call_until(stop, work): what work() returns; its waits end with KeyboardInterrupt once `stop`
// is
//   set. For threads other than the main one.
// - ObjectReader.
void bind_objects(pybind11::module_& m);

}  // namespace torchnpy
