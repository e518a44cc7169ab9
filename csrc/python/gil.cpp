#include "python/gil.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <thread>
#include <utility>

#include "base/wait.h"
#include "transport/engine.h"

namespace torchnpy {
namespace {

// What a signal handler raised, other than KeyboardInterrupt. Only the main thread, which
// alone runs handlers, touches it.
PyObject* raised_type = nullptr;
PyObject* raised_value = nullptr;
PyObject* raised_trace = nullptr;

#if PY_VERSION_HEX >= 0x030D0000
bool is_finalizing() { return Py_IsFinalizing() != 0; }
#else
bool is_finalizing() { return _Py_IsFinalizing() != 0; }
#endif

// True of the thread that forked too, in its child.
bool is_main_thread() { return syscall(SYS_gettid) == getpid(); }

// Runs the signal handlers that are due; true when one of them raised.
bool check_signals() {
  if (!is_main_thread() || is_finalizing()) return false;
  const PyGILState_STATE gil = PyGILState_Ensure();
  const bool raised = PyErr_CheckSignals() != 0;
  if (raised && PyErr_ExceptionMatches(PyExc_KeyboardInterrupt)) {
    // Under TorchScript the error arrives as a RuntimeError, which programs catch. The signal
    // is put back, so that Ctrl-C ends the program all the same; raise_interrupt() takes it.
    PyErr_Clear();
    PyErr_SetInterruptEx(SIGINT);
  } else if (raised) {
    Py_CLEAR(raised_type);
    Py_CLEAR(raised_value);
    Py_CLEAR(raised_trace);
    PyErr_Fetch(&raised_type, &raised_value, &raised_trace);
  }
  PyGILState_Release(gil);
  return raised;
}

// Buffers whose last view died on a thread without the GIL: a list that is pushed to by any
// thread and taken whole by one with the GIL.
struct PendingRelease {
  Py_buffer* view;
  PendingRelease* next;
};
std::atomic<PendingRelease*> pending{nullptr};
// Threads that may be calling into the interpreter to have the list drained, and whether
// they still may: once it is closed the views of C++ leak, and the process ends.
std::atomic<int> scheduling{0};
std::atomic<bool> closed{false};

int drain_pending(void* = nullptr) {
  PendingRelease* entry = pending.exchange(nullptr);
  while (entry != nullptr) {
    PyBuffer_Release(entry->view);
    delete entry->view;
    delete std::exchange(entry, entry->next);
  }
  return 0;
}

void schedule_drain() {
  ++scheduling;
  // Fails when 32 calls are waiting; a later release or load drains the list then.
  if (!closed) Py_AddPendingCall(drain_pending, nullptr);
  --scheduling;
}

}  // namespace

ReleasedGil::ReleasedGil() : state_(PyEval_SaveThread()) {}

ReleasedGil::~ReleasedGil() {
  while (is_finalizing()) pause();
  PyEval_RestoreThread(state_);
}

void install_interrupt_check() { set_interrupt_check(check_signals); }

void raise_interrupt() {
  if (raised_type != nullptr && is_main_thread()) {
    PyErr_Restore(std::exchange(raised_type, nullptr), std::exchange(raised_value, nullptr),
                  std::exchange(raised_trace, nullptr));
    return;
  }
  if (PyErr_CheckSignals() == 0) PyErr_SetNone(PyExc_KeyboardInterrupt);
}

void drain_released_buffers() {
  if (pending.load(std::memory_order_relaxed) != nullptr) drain_pending();
}

void release_buffer(Py_buffer* view) noexcept {
  // torch gives up the GIL while it destroys a tensor that Python dropped. This thread comes
  // from Python, then, and takes it again in any case; a thread of C++ never does.
  if (!closed && PyGILState_GetThisThreadState() != nullptr) {
    const PyGILState_STATE gil = PyGILState_Ensure();
    PyBuffer_Release(view);
    PyGILState_Release(gil);
    delete view;
    return;
  }
  auto* entry = new PendingRelease{view, pending.load()};
  while (!pending.compare_exchange_weak(entry->next, entry)) {
  }
  schedule_drain();
}

void end_python() noexcept {
  {
    const ReleasedGil released;
    end_waits();
    shutdown_engine();
  }
  drain_pending();
  closed = true;
  while (scheduling != 0) std::this_thread::yield();
}

}  // namespace torchnpy
