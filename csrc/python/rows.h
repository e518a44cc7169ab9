// Rows of arrays for Python.
#pragma once

#include <pybind11/pybind11.h>

namespace torchnpy {

// Adds the class RowReader to _C.
void bind_rows(pybind11::module_& m);

}  // namespace torchnpy
