#include "base/wait.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "base/error.h"
#include "base/fork.h"

namespace torchnpy {
namespace {

// The count holds the fork generation in its upper half: threads of the parent that were
// waiting do not exist in a child, so a child starts from zero.
std::atomic<InterruptCheck> interrupt_check{nullptr};
std::atomic<bool> ended{false};
std::atomic<uint64_t> waiting{0};

uint64_t generation() { return fork_count() << 32; }

void count(int64_t change) {
  uint64_t seen = waiting.load();
  uint64_t wanted;
  do {
    const uint64_t mine = (seen >> 32 << 32) == generation() ? seen : generation();
    wanted = mine + static_cast<uint64_t>(change);
  } while (!waiting.compare_exchange_weak(seen, wanted));
}

bool is_main_thread() { return syscall(SYS_gettid) == getpid(); }

// Leaves the scope and stays here until the process is gone.
[[noreturn]] void park() {
  count(-1);
  for (;;) pause();
}

}  // namespace

void set_interrupt_check(InterruptCheck check) { interrupt_check = check; }

void end_waits() {
  ended = true;
  while ((waiting.load() & 0xFFFFFFFF) != 0 && (waiting.load() >> 32 << 32) == generation()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

WaitScope::WaitScope() {
  count(+1);
  if (!ended) return;
  if (!is_main_thread()) park();
  count(-1);
  throw TransportError("expected to load before the process ends but it is ending");
}

WaitScope::~WaitScope() { count(-1); }

bool WaitScope::must_stop() {
  if (ended) park();
  const InterruptCheck check = interrupt_check;
  return check != nullptr && check();
}

}  // namespace torchnpy
