// Batches of samples for Python.
#pragma once

#include <pybind11/pybind11.h>

namespace torchnpy {

// Adds load_batch, load_npz_batch, and what their memory, rows and marks need, to _C.
void bind_batches(pybind11::module_& m);

}  // namespace torchnpy
