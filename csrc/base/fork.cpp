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

}  // namespace torchnpy
