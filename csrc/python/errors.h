// The library's errors as Python's exceptions. All with the GIL.
#pragma once

#include <pybind11/pybind11.h>

#include <exception>

namespace torchnpy {

// Makes calls of all modules that share torch's pybind11 raise our classes, torch.ops' among them.
void register_errors();

// Raises `error`, of any kind: for what pybind11 does not see.
void raise_python(const std::exception_ptr& error);

// The exception that raise_python() would raise.
pybind11::object make_exception(const std::exception_ptr& error);

}  // namespace torchnpy
