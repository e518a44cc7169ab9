// Target for Python: objects and files that are written piece by piece.
#pragma once

#include <pybind11/pybind11.h>

namespace torchnpy {

void bind_targets(pybind11::module_& m);

}  // namespace torchnpy
