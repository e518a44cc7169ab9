// How a thread waits for I/O so that Ctrl-C and interpreter exit reach it.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

namespace torchnpy {

// Asked every 50 ms by a waiting thread that holds no lock of ours: true to give up. The
// Python module sets one that runs signal handlers. Process-wide; nullptr for none.
using InterruptCheck = bool (*)();
void set_interrupt_check(InterruptCheck check);

// Ends all waits: each wait() returns false from now on, also later ones; returns when no
// thread is inside a WaitScope. For the end of the process. Not inherited by a forked child
// that was forked before.
void end_waits();

// Registers the calling thread as waiting for as long as it lives.
class WaitScope {
 public:
  // Throws InterruptedError after end_waits().
  WaitScope();
  ~WaitScope();
  WaitScope(const WaitScope&) = delete;
  WaitScope& operator=(const WaitScope&) = delete;

  // Waits until `ready()`, asked under `lock`, is true; false when the thread shall give up
  // first. The lock is released while the interrupt check runs.
  template <typename Ready>
  bool wait(std::unique_lock<std::mutex>& lock, std::condition_variable& changed, Ready ready) {
    while (!changed.wait_for(lock, std::chrono::milliseconds(50), ready)) {
      lock.unlock();
      const bool stop = must_stop();
      lock.lock();
      if (stop) return ready();
    }
    return true;
  }

 private:
  static bool must_stop();
};

}  // namespace torchnpy
