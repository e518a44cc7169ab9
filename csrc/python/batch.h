// Batches of samples for Python.
#pragma once

#include <pybind11/pybind11.h>

namespace torchnpy {

// Adds load_batch, load_npz_batch, allocate_shared, split_rows and are_rows to _C.
void bind_batches(pybind11::module_& m);

}  // namespace torchnpy
