// Writing for Python.
#pragma once

#include <pybind11/pybind11.h>

namespace torchnpy {

// Adds the class ArrayView, what makes one, and what saves them to _C.
void bind_save(pybind11::module_& m);

}  // namespace torchnpy
