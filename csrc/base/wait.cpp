#include "base/wait.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <utility>

#include "base/error.h"
#include "base/fork.h"

namespace torchnpy {
namespace {

std::atomic<InterruptCheck> interrupt_check{nullptr};
std::atomic<bool> ended{false};
ThreadCount waiting;
// Of this thread: an interrupt check may run a program's code, which may wait, too.
thread_local int scope_count = 0;
thread_local const std::atomic<bool>* stop_wanted = nullptr;

// Leaves the scopes and stays here until the process is gone.
[[noreturn]] void park() {
  for (; scope_count > 0; --scope_count) waiting.leave();
  for (;;) pause();
}

}  // namespace

bool is_main_thread() { return syscall(SYS_gettid) == getpid(); }

void set_interrupt_check(InterruptCheck check) { interrupt_check = check; }

void end_waits() {
  ended = true;
  while (!waiting.is_zero()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

bool is_interruption(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const InterruptedError&) {
    return true;
  } catch (...) {
    return false;
  }
}

WaitScope::WaitScope() {
  waiting.enter();
  ++scope_count;
  if (!ended) return;
  if (!is_main_thread()) park();
  --scope_count;
  waiting.leave();
  throw TransportError("expected to load before the process ends but it is ending");
}

WaitScope::~WaitScope() {
  --scope_count;
  waiting.leave();
}

StopScope::StopScope(const std::atomic<bool>& wanted)
    : outer_(std::exchange(stop_wanted, &wanted)) {}

StopScope::~StopScope() { stop_wanted = outer_; }

bool WaitScope::must_stop() {
  if (ended) park();
  if (stop_wanted != nullptr && *stop_wanted) return true;
  const InterruptCheck check = interrupt_check;
  return check != nullptr && check();
}

}  // namespace torchnpy
