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

// For functions that CPython calls without pybind11: what `call` gives, or nullptr with what it
// throws raised.
template <typename Call>
PyObject* answer_python(Call call) noexcept {
  try {
    return pybind11::object(call()).release().ptr();
  } catch (pybind11::error_already_set& error) {
    error.restore();
  } catch (const pybind11::builtin_exception& error) {
    error.set_error();
  } catch (...) {
    raise_python(std::current_exception());
  }
  return nullptr;
}

}  // namespace torchnpy
