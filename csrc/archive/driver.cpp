// load_all(): runs loaders over their sources. The caller's thread starts the first reads and
// waits; afterwards each loader is advanced by the thread that ended its last read or work. The
// loaders' CPU work is done by the caller, which has nothing else to do, and by helpers.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <utility>

#include "archive/loader.h"
#include "base/error.h"
#include "base/helpers.h"
#include "base/wait.h"

namespace torchnpy {
namespace {

using Clock = std::chrono::steady_clock;

class Run;
struct Task;

// Stands between a loader's sink and the source: sees the end of the read.
class TrackedSink final : public Sink {
 public:
  TrackedSink(Run& run, Task& task, const Read& read) : run_(run), task_(task), read_(read) {}
  MutableBytes room(uint64_t offset, size_t want) override {
    return read_.sink->room(offset, want);
  }
  void filled(uint64_t offset, size_t nbytes) override { read_.sink->filled(offset, nbytes); }
  bool restart() override { return read_.sink->restart(); }
  bool prefers_view() const override { return read_.sink->prefers_view(); }
  void done(std::exception_ptr error) override;
  Range range() const { return read_.range; }

 private:
  Run& run_;
  Task& task_;
  const Read read_;
};

struct Task final : public Workers {
  Run* owner = nullptr;
  Loader* loader = nullptr;
  std::vector<std::unique_ptr<TrackedSink>> reads;  // replaced under Run::mutex_
  // Reads and work that go on; one more while somebody begins others, so that none of them
  // can advance the task meanwhile.
  std::atomic<size_t> outstanding{0};
  std::atomic<bool> has_begun_work{false};
  std::exception_ptr error;  // guarded by Run::mutex_ until the task has ended, as is
  bool restarted = false;

  void run(std::function<void()> work, uint64_t cost_ns) override;
};

struct Work {
  Task* task = nullptr;
  std::function<void()> run;
  uint64_t cost_ns = 0;
};

bool is_cheaper(const Work& a, const Work& b) { return a.cost_ns < b.cost_ns; }

// Errors of the format name no object; those of the transport do.
std::exception_ptr name_object(std::exception_ptr error, const Source& source) {
  try {
    std::rethrow_exception(error);
  } catch (TransportError&) {
  } catch (InterruptedError&) {
  } catch (Error& e) {
    try {
      e.add_context(source.name());
    } catch (const std::bad_alloc&) {  // it goes without the name
    }
  } catch (...) {
  }
  return error;
}

// Why what was loaded is void, and the load may begin again.
enum class Void { kNot, kChanged, kDamaged };

Void why_void(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const TransportError& e) {
    if (e.kind() == TransportError::Kind::kDamaged) return Void::kDamaged;
    return e.kind() == TransportError::Kind::kChanged ? Void::kChanged : Void::kNot;
  } catch (...) {
    return Void::kNot;
  }
}

// Shared with the helpers that it asked for: some may come when it is long over.
class Run : public std::enable_shared_from_this<Run> {
 public:
  Run(std::span<Loader* const> loaders, const RunOptions& options)
      : options_(options), tasks_(loaders.size()) {
    for (size_t i = 0; i < loaders.size(); ++i) {
      tasks_[i].owner = this;
      tasks_[i].loader = loaders[i];
      loaders[i]->attach(tasks_[i]);
    }
  }

  std::vector<std::exception_ptr> run() {
    unfinished_ = tasks_.size();
    const bool interrupted = !run_until_settled();
    {
      std::unique_lock lock(mutex_);
      if (unfinished_ != 0) cancel_all();
      while (unfinished_ != 0) {
        if (!do_some(lock)) wait_for_change(lock, changed_);
      }
    }
    if (interrupted) throw InterruptedError("interrupted while loading");
    std::vector<std::exception_ptr> errors;
    errors.reserve(tasks_.size());
    for (Task& task : tasks_) errors.push_back(std::move(task.error));
    return errors;
  }

  // Starts what the loader wants next, unless it has failed. Only one thread at a time is
  // here for a task: the one that brought `outstanding` to zero.
  void advance(Task& task) {
    while (may_go_on(task)) {
      task.outstanding = 1;
      task.has_begun_work = false;
      const bool has_begun = start_next(task) || task.has_begun_work;
      if (task.outstanding.fetch_sub(1) != 1) return;
      if (!has_begun) break;
    }
    finish();
  }

  // A read or a piece of work has ended. The last one goes on with the task.
  void end_one(Task& task) {
    if (task.outstanding.fetch_sub(1) == 1) advance(task);
  }

  void fail(Task& task, std::exception_ptr error) {
    const std::lock_guard lock(mutex_);
    if (task.error) return;  // what fails after a change does not count: the task begins again
    failed_ = failed_ || task.restarted || why_void(error) == Void::kNot;
    task.error = name_object(std::move(error), task.loader->source());
  }

  void add_work(Work work) {
    bool wants_help = false;
    {
      const std::lock_guard lock(mutex_);
      work_cost_ns_ += work.cost_ns;
      work_.push_back(std::move(work));
      std::push_heap(work_.begin(), work_.end(), is_cheaper);
      // The first piece is the caller's, if it has nothing else to do.
      wants_help = helper_count_ + 1 < options_.threads && (work_.size() > 1 || caller_works_) &&
                   work_cost_ns_ / static_cast<uint64_t>(helper_count_ + 1) > kWorthHelp_ns;
      if (wants_help) ++helper_count_;
      changed_.notify_one();
    }
    if (wants_help && !ask_helper()) {
      const std::lock_guard lock(mutex_);
      --helper_count_;
    }
  }

 private:
  // The caller's work outlasts no more than this without asking whether it shall stop.
  static constexpr std::chrono::milliseconds kCheckInterval{50};

  bool ask_helper() noexcept {
    try {
      return ask_for_help([run = shared_from_this()] {
        std::unique_lock lock(run->mutex_);
        if (run->do_some(lock)) return true;
        --run->helper_count_;
        return false;
      });
    } catch (const std::bad_alloc&) {
      return false;
    }
  }

  // False when the caller was interrupted.
  bool run_until_settled() {
    WaitScope scope;
    const bool may_start = start_tasks();
    if (!may_start) return false;
    std::unique_lock lock(mutex_);
    const auto settled = [this] { return unfinished_ == 0 || (options_.fail_fast && failed_); };
    Clock::time_point checked = Clock::now();
    while (!settled()) {
      if (work_.empty()) {
        if (!scope.wait(lock, changed_, [&] { return settled() || !work_.empty(); })) return false;
        continue;
      }
      caller_works_ = true;
      do_some(lock);
      caller_works_ = false;
      if (Clock::now() - checked > kCheckInterval) {
        lock.unlock();
        if (WaitScope::must_stop()) return false;
        lock.lock();
        checked = Clock::now();
      }
    }
    return true;
  }

  // Those that come after a failure, or after the caller's interruption (false), do not begin.
  bool start_tasks() {
    Clock::time_point checked = Clock::now();
    bool interrupted = false;
    for (Task& task : tasks_) {
      if (!interrupted && Clock::now() - checked > kCheckInterval) {
        interrupted = WaitScope::must_stop();
        checked = Clock::now();
      }
      if (interrupted || (options_.fail_fast && has_failed())) {
        fail(task, std::make_exception_ptr(InterruptedError("interrupted: the load was given up")));
      }
      if (&task == &tasks_.back()) set_caller_free();
      advance(task);
    }
    return !interrupted;
  }

  // It takes the next work itself, soon.
  void set_caller_free() {
    const std::lock_guard lock(mutex_);
    caller_works_ = false;
  }

  bool has_failed() {
    const std::lock_guard lock(mutex_);
    return failed_;
  }

  // Does the dearest work, without the lock; false when there is none.
  bool do_some(std::unique_lock<std::mutex>& lock) {
    if (work_.empty()) return false;
    std::pop_heap(work_.begin(), work_.end(), is_cheaper);
    Work work = std::move(work_.back());
    work_.pop_back();
    work_cost_ns_ -= work.cost_ns;
    const bool is_wanted = !work.task->error;
    lock.unlock();
    if (is_wanted) {
      try {
        if (cancelled_) throw InterruptedError("interrupted: the load was given up");
        work.run();
      } catch (...) {
        fail(*work.task, std::current_exception());
      }
    }
    work.run = nullptr;
    end_one(*work.task);
    lock.lock();
    return true;
  }

  // False when the task has failed. It begins again, once, when its object has changed or came
  // damaged.
  bool may_go_on(Task& task) {
    Void why = Void::kNot;
    {
      const std::lock_guard lock(mutex_);
      if (!task.error) return true;
      why = why_void(task.error);
      if (task.restarted || cancelled_ || why == Void::kNot) return false;
    }
    if (!task.loader->restart()) {
      const std::lock_guard lock(mutex_);
      failed_ = true;
      return false;
    }
    if (why == Void::kDamaged) {
      task.loader->source().discard();
    } else {
      task.loader->source().forget();
    }
    const std::lock_guard lock(mutex_);
    task.restarted = true;
    task.error = nullptr;
    return true;
  }

  // True when there was something to start, or when that failed.
  bool start_next(Task& task) {
    std::vector<std::unique_ptr<TrackedSink>> reads;
    try {
      for (const Read& read : task.loader->next()) {
        reads.push_back(std::make_unique<TrackedSink>(*this, task, read));
      }
    } catch (...) {
      fail(task, std::current_exception());
      return true;
    }
    if (reads.empty()) return false;
    task.outstanding += reads.size();
    {
      const std::lock_guard lock(mutex_);
      task.reads.swap(reads);
    }
    Source& source = task.loader->source();
    for (const auto& read : task.reads) source.start(read->range(), *read);
    // cancel_all() may have run before the last of them was started.
    if (cancelled_) {
      for (const auto& read : task.reads) source.cancel(*read);
    }
    return true;
  }

  void finish() {
    // Notified under the lock: the waiter goes on as soon as it can take it.
    const std::lock_guard lock(mutex_);
    --unfinished_;
    if (unfinished_ == 0 || failed_) changed_.notify_all();
  }

  void cancel_all() {
    cancelled_ = true;
    for (Task& task : tasks_) {
      for (const auto& read : task.reads) task.loader->source().cancel(*read);
    }
  }

  const RunOptions options_;
  std::vector<Task> tasks_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::atomic<bool> cancelled_{false};
  size_t unfinished_ = 0;   // guarded by mutex_, as is
  bool failed_ = false;     // and
  std::vector<Work> work_;  // a heap, the dearest first; and
  uint64_t work_cost_ns_ = 0;
  int helper_count_ = 0;
  bool caller_works_ = true;  // at a piece of work, or at starting tasks but the last
};

void TrackedSink::done(std::exception_ptr error) {
  read_.sink->done(error);
  if (error) run_.fail(task_, std::move(error));
  run_.end_one(task_);  // this object may be gone afterwards
}

void Task::run(std::function<void()> work, uint64_t cost_ns) {
  has_begun_work = true;
  ++outstanding;
  try {
    owner->add_work({this, std::move(work), cost_ns});
  } catch (...) {  // no memory; the read or next() that asks has one of outstanding, too
    --outstanding;
    throw;
  }
}

}  // namespace

std::vector<std::exception_ptr> load_all(std::span<Loader* const> loaders, RunOptions options) {
  const auto run = std::make_shared<Run>(loaders, options);
  return run->run();
}

void load_one(Loader& loader, RunOptions options) {
  Loader* const one[] = {&loader};
  if (const std::exception_ptr error = load_all(one, options).front()) {
    std::rethrow_exception(error);
  }
}

}  // namespace torchnpy
