// The interpreter's lock, its signals and its end, as threads that wait for I/O meet them.
// CPython only, no pybind11.
#pragma once

#include <Python.h>

namespace torchnpy {

// Releases the GIL while it lives. Unlike PyEval_RestoreThread alone it never ends a thread
// by unwinding it through C++ frames when the interpreter is finalizing: such a thread
// sleeps until the process is gone.
class ReleasedGil {
 public:
  ReleasedGil();
  ~ReleasedGil();
  ReleasedGil(const ReleasedGil&) = delete;
  ReleasedGil& operator=(const ReleasedGil&) = delete;

 private:
  PyThreadState* state_;
};

// Makes waiting threads of the library run Python's signal handlers (base/wait.h).
void install_interrupt_check();

// Raises what a signal handler raised during the wait that InterruptedError ended. With the GIL.
void raise_interrupt();

// Releases `view`, now when this thread holds the GIL, else soon on a thread that does. Never
// takes the GIL: a last view may die on a thread of C++ while the interpreter ends. Owns view,
// which was made with new.
void release_buffer(Py_buffer* view) noexcept;
// Releases what others left behind. With the GIL; cheap when there is nothing.
void drain_released_buffers();

// Ends the library's use of the interpreter: wakes and awaits the waiting threads, ends I/O.
// For atexit; with the GIL.
void end_python() noexcept;

}  // namespace torchnpy
