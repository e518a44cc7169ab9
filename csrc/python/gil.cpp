#include "python/gil.h"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <thread>
#include <utility>

#include "base/fork.h"
#include "base/helpers.h"
#include "base/log.h"
#include "base/wait.h"
#include "python/log.h"
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

void forget_raised() {
  Py_CLEAR(raised_type);
  Py_CLEAR(raised_value);
  Py_CLEAR(raised_trace);
}

// For threads that Python knows. The interpreter does not end meanwhile: end_python() waits for all
// WaitScopes.
void drain_log_while_waiting() {
  if (!has_log_records() || PyGILState_GetThisThreadState() == nullptr) return;
  const PyGILState_STATE gil = PyGILState_Ensure();
  drain_log();
  PyGILState_Release(gil);
}

// Runs the signal handlers that are due; true when one of them raised. Any thread hands out log
// records.
bool check_signals() {
  if (is_finalizing()) return false;
  if (!is_main_thread()) {
    drain_log_while_waiting();
    return false;
  }
  const PyGILState_STATE gil = PyGILState_Ensure();
  drain_log();
  const bool raised = PyErr_CheckSignals() != 0;
  if (raised && PyErr_ExceptionMatches(PyExc_KeyboardInterrupt)) {
    // Under TorchScript the error arrives as a RuntimeError, which programs catch. The signal
    // is put back, so that Ctrl-C ends the program all the same; raise_interrupt() takes it.
    PyErr_Clear();
    forget_raised();
    PyErr_SetInterruptEx(SIGINT);
  } else if (raised) {
    forget_raised();
    PyErr_Fetch(&raised_type, &raised_value, &raised_trace);
  }
  PyGILState_Release(gil);
  return raised;
}

// Buffers whose last view, and objects whose last owner, died on a thread without the GIL: a list
// that is pushed to by any thread and taken whole by one with the GIL.
struct PendingRelease {
  Py_buffer* view;  // or
  PyObject* object;
  PendingRelease* next;
};
std::atomic<PendingRelease*> pending{nullptr};

// Through which threads that do not hold the GIL call into the interpreter, until the
// process ends: CPython ends a thread that asks a finalizing interpreter for the GIL by
// unwinding it, and aborts the process where C++ does not let it.
class Gate {
 public:
  // True: call, then leave(). False: it is closed.
  bool enter() {
    inside_.enter();
    if (!closed_) return true;
    inside_.leave();
    return false;
  }
  void leave() { inside_.leave(); }
  // Returns when nobody is inside. Without the GIL, which they may be waiting for.
  void close() {
    closed_ = true;
    while (!inside_.is_zero()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }

 private:
  ThreadCount inside_;
  std::atomic<bool> closed_{false};
};
Gate gate;

int drain_pending(void* = nullptr) {
  PendingRelease* entry = pending.exchange(nullptr);
  while (entry != nullptr) {
    if (entry->view != nullptr) PyBuffer_Release(entry->view);
    delete entry->view;
    Py_XDECREF(entry->object);
    delete std::exchange(entry, entry->next);
  }
  return 0;
}

}  // namespace

ReleasedGil::ReleasedGil() {
  // Of an earlier wait inside a scripted model, where nobody could raise it.
  if (raised_type != nullptr && is_main_thread()) forget_raised();
  state_ = PyEval_SaveThread();
}

ReleasedGil::~ReleasedGil() {
  const bool entered = gate.enter();
  while (!entered && !is_main_thread()) pause();
  PyEval_RestoreThread(state_);
  if (entered) gate.leave();
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

namespace {

void release(Py_buffer* view, PyObject* object) noexcept {
  // torch gives up the GIL while it destroys a tensor that Python dropped. This thread comes
  // from Python, then, and takes it again in any case; a thread of C++ never does.
  const bool is_python = PyGILState_GetThisThreadState() != nullptr;
  const bool entered = gate.enter();
  if (is_python && entered) {
    const PyGILState_STATE gil = PyGILState_Ensure();
    if (view != nullptr) PyBuffer_Release(view);
    Py_XDECREF(object);
    PyGILState_Release(gil);
    delete view;
  } else {
    auto* entry = new PendingRelease{view, object, pending.load()};
    while (!pending.compare_exchange_weak(entry->next, entry)) {
    }
    // Fails when 32 calls are waiting; a later release or load drains the list then.
    if (entered) Py_AddPendingCall(drain_pending, nullptr);
  }
  if (entered) gate.leave();
}

}  // namespace

void release_buffer(Py_buffer* view) noexcept { release(view, nullptr); }

void release_object(PyObject* object) noexcept { release(nullptr, object); }

TakenGil::TakenGil() : entered_(gate.enter()) {
  if (entered_) state_ = PyGILState_Ensure();
}

TakenGil::~TakenGil() {
  if (!entered_) return;
  PyGILState_Release(state_);
  gate.leave();
}

void end_python() noexcept {
  drain_log();
  {
    const ReleasedGil released;
    end_waits();
    shutdown_helpers();
    shutdown_engine();
    gate.close();
  }
  drain_pending();
  drain_log();
}

}  // namespace torchnpy
