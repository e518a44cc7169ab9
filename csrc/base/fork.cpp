#include "base/fork.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <thread>

namespace torchnpy {
namespace {

std::atomic<uint64_t> forks{0};

std::mutex& mutex() {
  static std::mutex* const instance = new std::mutex;  // leaked: threads may outlive statics
  return *instance;
}

std::atomic<int> forking{0};         // threads in fork()
std::atomic<int> inside_no_fork{0};  // NoForkScopes

void wait_a_little() { std::this_thread::sleep_for(std::chrono::microseconds(50)); }

// Before the mutex: those inside may want it.
void before_fork() {
  ++forking;
  for (int waits = 0; inside_no_fork != 0 && waits < 20'000; ++waits) wait_a_little();
  mutex().lock();
}

void after_fork_in_parent() {
  mutex().unlock();
  --forking;
}

void after_fork_in_child() {
  forks.fetch_add(1, std::memory_order_relaxed);
  forking = inside_no_fork = 0;  // those were other threads
  mutex().unlock();
}

// Registered when the library is loaded: a handler registered at first use would miss a
// fork that races with that use.
const int registered = pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);

}  // namespace

NoForkScope::NoForkScope() {
  while (true) {
    ++inside_no_fork;
    if (forking == 0) return;
    --inside_no_fork;
    while (forking != 0) wait_a_little();
  }
}

NoForkScope::~NoForkScope() { --inside_no_fork; }

std::mutex& process_mutex() { return mutex(); }

uint64_t fork_count() {
  static_cast<void>(registered);
  return forks.load(std::memory_order_relaxed);
}

void ThreadCount::add(int64_t change) {
  const uint64_t generation = fork_count() << 32;
  uint64_t seen = state_.load();
  uint64_t wanted;
  do {
    const uint64_t current = (seen >> 32 << 32) == generation ? seen : generation;
    wanted = current + static_cast<uint64_t>(change);
  } while (!state_.compare_exchange_weak(seen, wanted));
}

bool ThreadCount::is_zero() const {
  const uint64_t seen = state_.load();
  return (seen >> 32) != (fork_count() & 0xFFFFFFFF) || (seen & 0xFFFFFFFF) == 0;
}

}  // namespace torchnpy
