#include "base/helpers.h"

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <csignal>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "base/fork.h"
#include "base/wait.h"

namespace torchnpy {
namespace {

size_t count_cpus() {
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  if (sched_getaffinity(0, sizeof(cpus), &cpus) == 0) return static_cast<size_t>(CPU_COUNT(&cpus));
  return std::max(1U, std::thread::hardware_concurrency());
}

// The helpers of one process; never destroyed, for they may outlive statics.
class Helpers {
 public:
  // Of this process; an ancestor's are not its own.
  static Helpers* existing() {
    Helpers* const helpers = current_.load(std::memory_order_acquire);
    return helpers != nullptr && helpers->forks_ == fork_count() ? helpers : nullptr;
  }

  static Helpers& instance() {
    if (Helpers* const helpers = existing()) return *helpers;
    const std::lock_guard lock(process_mutex());
    if (Helpers* const helpers = existing()) return *helpers;
    if (current_.load() == nullptr) std::atexit(shutdown_helpers);
    auto* const made = new Helpers;
    current_.store(made, std::memory_order_release);
    return *made;
  }

  bool ask(std::function<bool()> help) {
    const std::lock_guard lock(mutex_);
    if (stopping_) return false;
    if (idle_count_ <= asked_.size() && thread_count_ < max_count_) start_thread();
    if (thread_count_ == 0) return false;
    asked_.push_back(std::move(help));
    changed_.notify_one();
    return true;
  }

  void stop() {
    std::unique_lock lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
    // exit() may be called by a helper.
    const size_t own = is_helper_ ? 1 : 0;
    wait_until_ready(lock, ended_, [&] { return thread_count_ <= own; });
  }

 private:
  // Its threads block all signals: those are the program's own threads' to handle.
  void start_thread() {
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      std::thread([this] { work(); }).detach();
      ++thread_count_;
    } catch (const std::system_error&) {  // those that are there do it, or the caller alone
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  void work() {
    pthread_setname_np(pthread_self(), "torchnpy-cpu");
    is_helper_ = true;
    std::unique_lock lock(mutex_);
    while (!stopping_) {
      if (asked_.empty()) {
        ++idle_count_;
        wait_for_change(lock, changed_);
        --idle_count_;
        continue;
      }
      std::function<bool()> help = std::move(asked_.front());
      asked_.pop_front();
      bool goes_on = true;
      while (goes_on && !stopping_) {
        lock.unlock();
        goes_on = help();
        lock.lock();
      }
      lock.unlock();
      help = nullptr;  // may be the last owner of what it holds
      lock.lock();
    }
    --thread_count_;
    ended_.notify_all();
  }

  static std::atomic<Helpers*> current_;
  static thread_local bool is_helper_;

  const uint64_t forks_ = fork_count();
  const size_t max_count_ = std::min<size_t>(count_cpus(), kMaxThreads) - 1;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::condition_variable ended_;
  std::deque<std::function<bool()>> asked_;
  size_t thread_count_ = 0;
  size_t idle_count_ = 0;
  bool stopping_ = false;
};

std::atomic<Helpers*> Helpers::current_{nullptr};
thread_local bool Helpers::is_helper_ = false;

}  // namespace

bool ask_for_help(std::function<bool()> help) { return Helpers::instance().ask(std::move(help)); }

void shutdown_helpers() {
  if (Helpers* const helpers = Helpers::existing()) helpers->stop();
}

}  // namespace torchnpy
