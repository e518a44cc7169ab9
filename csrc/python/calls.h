// Calls of the program's own Python code from threads that wait for the library.
#pragma once

#include <pybind11/pybind11.h>

#include <functional>

namespace torchnpy {

// Calls `call()` on a thread of Python's own and waits, without the GIL. Then `take` gets, with the
// GIL, what it returned and what it raised, the other one None; what `take` throws is thrown here.
// For all threads but the main one: a call may take for ever, and the interpreter shall end all the
// same. It ends a thread of its own wherever that waits, but not one with our frames on its stack
// (python/gil.h). Throws InterruptedError, too; `take` may then be called later, or never.
void call_on_thread(
    pybind11::handle call,
    std::function<void(const pybind11::object& found, const pybind11::object& error)> take);

}  // namespace torchnpy
