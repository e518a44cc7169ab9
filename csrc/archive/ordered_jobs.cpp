#include "archive/ordered_jobs.h"

#include <array>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <new>
#include <span>
#include <utility>

#include "base/error.h"
#include "base/helpers.h"
#include "base/wait.h"

namespace torchnpy {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kCheckInterval{50};
constexpr const char* kInterrupted = "interrupted while saving";

}  // namespace

class OrderedJobs::State : public std::enable_shared_from_this<State> {
 public:
  explicit State(int threads) : threads_(threads) {}

  void push(std::unique_ptr<Job> job, uint64_t cost_ns) {
    bool wants_help = false;
    {
      const std::lock_guard lock(mutex_);
      slots_.push_back({std::move(job), cost_ns, nullptr, false});
      waiting_cost_ns_ += cost_ns;
      wants_help = helper_count_ + 1 < threads_ &&
                   waiting_cost_ns_ / static_cast<uint64_t>(helper_count_ + 1) > kWorthHelp_ns;
      if (wants_help) ++helper_count_;
    }
    if (wants_help && !ask_helper()) {
      const std::lock_guard lock(mutex_);
      --helper_count_;
    }
  }

  bool is_empty() {
    const std::lock_guard lock(mutex_);
    return slots_.empty();
  }

  bool is_oldest_done() {
    const std::lock_guard lock(mutex_);
    return !slots_.empty() && slots_.front().is_done;
  }

  std::unique_ptr<Job> pop(Clock::time_point& checked) {
    WaitScope scope;
    throw_if_interrupted(checked);
    std::unique_lock lock(mutex_);
    const auto is_done = [this] { return slots_.front().is_done; };
    while (!is_done()) {
      if (do_some(lock)) {
        lock.unlock();
        throw_if_interrupted(checked);
        lock.lock();
      } else if (!scope.wait(lock, changed_, is_done)) {
        throw InterruptedError(kInterrupted);
      }
    }
    Slot slot = std::move(slots_.front());
    slots_.pop_front();
    --begun_count_;
    lock.unlock();
    if (slot.error) std::rethrow_exception(slot.error);
    return std::move(slot.job);
  }

  void stop() {
    std::unique_lock lock(mutex_);
    begun_count_ = slots_.size();
    wait_until_ready(lock, changed_, [this] { return running_count_ == 0; });
    std::deque<Slot> slots = std::move(slots_);
    slots_.clear();
    begun_count_ = 0;
    lock.unlock();
  }

 private:
  struct Slot {
    std::unique_ptr<Job> job;
    uint64_t cost_ns = 0;
    std::exception_ptr error;
    bool is_done = false;
  };

  static void throw_if_interrupted(Clock::time_point& checked) {
    if (Clock::now() - checked <= kCheckInterval) return;
    if (WaitScope::must_stop()) throw InterruptedError(kInterrupted);
    checked = Clock::now();
  }

  bool ask_helper() noexcept {
    try {
      return ask_for_help([state = shared_from_this()] {
        std::unique_lock lock(state->mutex_);
        if (state->do_some(lock)) return true;
        --state->helper_count_;
        return false;
      });
    } catch (const std::bad_alloc&) {
      return false;
    }
  }

  // Does the oldest jobs that have not begun, without the lock; false when there are none.
  bool do_some(std::unique_lock<std::mutex>& lock) {
    std::array<Slot*, 32> room;
    size_t count = 0;
    uint64_t cost_ns = 0;
    while (begun_count_ < slots_.size() && count < room.size() && cost_ns < kWorthHelp_ns) {
      Slot& slot = slots_[begun_count_++];
      cost_ns += slot.cost_ns;
      room[count++] = &slot;  // stays there while others come and go
    }
    if (count == 0) return false;
    waiting_cost_ns_ -= cost_ns;
    ++running_count_;
    lock.unlock();
    const std::span slots = std::span(room).first(count);
    for (Slot* slot : slots) {
      try {
        slot->job->run();
      } catch (...) {
        slot->error = std::current_exception();
      }
    }
    lock.lock();
    for (Slot* slot : slots) slot->is_done = true;
    --running_count_;
    changed_.notify_one();  // only the caller waits
    return true;
  }

  const int threads_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Slot> slots_;  // guarded by mutex_, as are those that follow
  size_t begun_count_ = 0;  // of slots_, from the oldest on
  uint64_t waiting_cost_ns_ = 0;
  int helper_count_ = 0;
  int running_count_ = 0;
};

OrderedJobs::OrderedJobs(int threads)
    : state_(std::make_shared<State>(threads)), checked_(Clock::now()) {}

OrderedJobs::~OrderedJobs() { state_->stop(); }

void OrderedJobs::push(std::unique_ptr<Job> job, uint64_t cost_ns) {
  state_->push(std::move(job), cost_ns);
}

bool OrderedJobs::is_empty() const { return state_->is_empty(); }

bool OrderedJobs::is_oldest_done() const { return state_->is_oldest_done(); }

std::unique_ptr<OrderedJobs::Job> OrderedJobs::pop() { return state_->pop(checked_); }

}  // namespace torchnpy
