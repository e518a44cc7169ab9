// load_all(): runs loaders over their sources. The caller's thread starts the first reads and
// waits; afterwards each loader is advanced by the I/O thread that ended its last read.
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>

#include "archive/loader.h"
#include "base/error.h"
#include "base/wait.h"

namespace torchnpy {
namespace {

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
  void done(std::exception_ptr error) override;
  Range range() const { return read_.range; }

 private:
  Run& run_;
  Task& task_;
  const Read read_;
};

struct Task {
  Loader* loader = nullptr;
  std::vector<std::unique_ptr<TrackedSink>> reads;  // replaced under Run::mutex_
  std::atomic<size_t> outstanding{0};
  std::exception_ptr error;  // guarded by Run::mutex_ until the task has ended, as is
  bool restarted = false;
};

// Errors of the format name no object; those of the transport do.
std::exception_ptr name_object(std::exception_ptr error, const Source& source) {
  try {
    std::rethrow_exception(error);
  } catch (TransportError&) {
  } catch (InterruptedError&) {
  } catch (Error& e) {
    e.add_context(source.name());
  } catch (...) {
  }
  return error;
}

bool says_changed(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const TransportError& e) {
    return e.kind() == TransportError::Kind::kChanged;
  } catch (...) {
    return false;
  }
}

class Run {
 public:
  explicit Run(std::span<Loader* const> loaders) : tasks_(loaders.size()) {
    for (size_t i = 0; i < loaders.size(); ++i) tasks_[i].loader = loaders[i];
  }

  std::vector<std::exception_ptr> run(bool fail_fast) {
    WaitScope scope;
    unfinished_ = tasks_.size();
    for (Task& task : tasks_) advance(task);
    bool interrupted = false;
    {
      std::unique_lock lock(mutex_);
      const auto settled = [&] { return unfinished_ == 0 || (fail_fast && failed_); };
      interrupted = !scope.wait(lock, changed_, settled);
      if (unfinished_ != 0) {
        cancel_all();
        changed_.wait(lock, [&] { return unfinished_ == 0; });
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
    while (may_go_on(task) && start_reads(task)) {
      // The reads held one count each and this thread one more, so that none of them could
      // advance the task while it was still starting them.
      if (task.outstanding.fetch_sub(1) != 1) return;
    }
    finish();
  }

  void fail(Task& task, std::exception_ptr error) {
    const std::lock_guard lock(mutex_);
    failed_ = failed_ || task.restarted || !says_changed(error);
    if (!task.error) task.error = name_object(std::move(error), task.loader->source());
  }

  // False when the task has failed. It begins again, once, when its object has changed.
  bool may_go_on(Task& task) {
    {
      const std::lock_guard lock(mutex_);
      if (!task.error) return true;
      if (task.restarted || cancelled_ || !says_changed(task.error)) return false;
      task.restarted = true;
      task.error = nullptr;
    }
    task.loader->source().forget();
    task.loader->restart();
    return true;
  }

  void finish() {
    // Notified under the lock: the waiter destroys this object as soon as it can take it.
    const std::lock_guard lock(mutex_);
    --unfinished_;
    if (unfinished_ == 0 || failed_) changed_.notify_all();
  }

 private:
  bool start_reads(Task& task) {
    std::vector<std::unique_ptr<TrackedSink>> reads;
    try {
      for (const Read& read : task.loader->next()) {
        reads.push_back(std::make_unique<TrackedSink>(*this, task, read));
      }
    } catch (...) {
      fail(task, std::current_exception());
    }
    if (reads.empty()) return false;
    task.outstanding = reads.size() + 1;
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

  void cancel_all() {
    cancelled_ = true;
    for (Task& task : tasks_) {
      for (const auto& read : task.reads) task.loader->source().cancel(*read);
    }
  }

  std::vector<Task> tasks_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::atomic<bool> cancelled_{false};
  size_t unfinished_ = 0;  // guarded by mutex_, as is
  bool failed_ = false;
};

void TrackedSink::done(std::exception_ptr error) {
  read_.sink->done(error);
  if (error) run_.fail(task_, std::move(error));
  // The last of the task's reads goes on with it; this object may be gone afterwards.
  if (task_.outstanding.fetch_sub(1) != 1) return;
  run_.advance(task_);
}

}  // namespace

std::vector<std::exception_ptr> load_all(std::span<Loader* const> loaders, bool fail_fast) {
  return Run(loaders).run(fail_fast);
}

void load_one(Loader& loader) {
  Loader* const one[] = {&loader};
  if (const std::exception_ptr error = load_all(one).front()) std::rethrow_exception(error);
}

}  // namespace torchnpy
