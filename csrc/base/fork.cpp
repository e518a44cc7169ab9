#include "base/fork.h"

#include <pthread.h>

#include <atomic>

namespace torchnpy {
namespace {

std::atomic<uint64_t> forks{0};

std::mutex& mutex() {
  static std::mutex* const instance = new std::mutex;  // leaked: threads may outlive statics
  return *instance;
}

// Registered when the library is loaded: a handler registered at first use would miss a
// fork that races with that use.
const int registered = pthread_atfork([] { mutex().lock(); }, [] { mutex().unlock(); },
                                      [] {
                                        forks.fetch_add(1, std::memory_order_relaxed);
                                        mutex().unlock();
                                      });

}  // namespace

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
