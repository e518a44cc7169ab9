// How a thread waits for I/O so that Ctrl-C and interpreter exit reach it.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>

namespace torchnpy {

// What std::condition_variable::wait does, for a caller that looks again: it may return early. That
// function itself is GLIBCXX_3.4.30 since GCC 12, which libraries for manylinux_2_34 cannot need.
inline void wait_for_change(std::unique_lock<std::mutex>& lock, std::condition_variable& changed) {
  changed.wait_for(lock, std::chrono::hours(1));
}

// The same until `ready()`, asked under `lock`, is true.
template <typename Ready>
void wait_until_ready(std::unique_lock<std::mutex>& lock, std::condition_variable& changed,
                      Ready ready) {
  while (!ready()) wait_for_change(lock, changed);
}

// Asked every 50 ms by a waiting thread that holds no lock of ours, inside its WaitScope: true to
// give up. The Python module sets one that runs signal handlers and hands out log records.
// Process-wide; nullptr for none.
using InterruptCheck = bool (*)();
void set_interrupt_check(InterruptCheck check);

// The process's first thread; in a forked child the one that forked.
bool is_main_thread();

// For the end of the process: threads that wait never go on from now on, so that none of them
// returns into an interpreter that is being torn down; nor do threads that begin to wait,
// except the main one, which gets an error. Returns when no thread is inside a WaitScope
// any more. What I/O writes to stays valid: the stacks of those threads are kept.
void end_waits();

// Whether `error`, which is not nullptr, is an InterruptedError.
bool is_interruption(const std::exception_ptr& error);

// While it lives, the calling thread's waits are given up once `wanted` is true, which any thread
// may make it. They nest: the innermost counts.
class StopScope {
 public:
  explicit StopScope(const std::atomic<bool>& wanted);
  ~StopScope();
  StopScope(const StopScope&) = delete;
  StopScope& operator=(const StopScope&) = delete;

 private:
  const std::atomic<bool>* outer_;
};

// Registers the calling thread as waiting for as long as it lives.
class WaitScope {
 public:
  // Throws TransportError on the main thread after end_waits().
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

  // For a thread that works instead of waiting: true when it shall give up. Not to be called
  // with a lock of ours held, nor much more often than every 50 ms.
  static bool must_stop();
};

}  // namespace torchnpy
