// The interpreter's lock, its signals and its end, as threads that wait for I/O meet them.
// CPython only, no pybind11.
#pragma once

#include <Python.h>

namespace torchnpy {

// Releases the GIL while it lives. Unlike PyEval_RestoreThread alone it never ends a thread
// by unwinding it through C++ frames when the interpreter is finalizing: after end_python()
// all threads but the main one sleep until the process is gone.
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

// Releases `view`: now on a thread that Python knows, else soon on one that holds the GIL. A
// thread of C++ never takes it: a last view may die there while the interpreter ends, which
// aborts. Owns view, which was made with new.
void release_buffer(Py_buffer* view) noexcept;
// Releases what others left behind. With the GIL; cheap when there is nothing.
void drain_released_buffers();

// The same for a reference to any object.
void release_object(PyObject* object) noexcept;

// Takes the GIL on any thread for as long as it lives; where that is not possible any more
// (`entered()` is false), the interpreter is ending and must not be called.
class TakenGil {
 public:
  TakenGil();
  ~TakenGil();
  TakenGil(const TakenGil&) = delete;
  TakenGil& operator=(const TakenGil&) = delete;
  bool entered() const { return entered_; }

 private:
  bool entered_;
  PyGILState_STATE state_{};
};

// Ends the library's use of the interpreter: wakes and awaits the waiting threads, ends I/O.
// For atexit; with the GIL.
void end_python() noexcept;

}  // namespace torchnpy
