// Files that grow, for Python.
#pragma once

#include <pybind11/pybind11.h>

namespace torchnpy {

// Adds the class Appender, and the functions that make files fit for it, to _C.
void bind_append(pybind11::module_& m);

}  // namespace torchnpy
