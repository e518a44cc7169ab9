// Tables of numbers as text, for Python.
#pragma once

#include <pybind11/pybind11.h>

namespace torchnpy {

// Adds to _C:
// - TextReader, which text is fed to, compressed or not, and which gives an array;
// - TextWriter, which gives the rows of tensors as text;
// - GzipWriter;
// - read_object(): the bytes of an object, as a uint8 tensor.
void bind_text_tables(pybind11::module_& m);

}  // namespace torchnpy
