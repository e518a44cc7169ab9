// CPU work that the caller and the process's helpers (base/helpers.h) do at once, and that the
// caller takes back in the order in which it gave it.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>

namespace torchnpy {

// To be used from one thread, and not in a forked child.
class OrderedJobs {
 public:
  class Job {
   public:
    virtual ~Job() = default;
    // Once, on any thread. What it throws comes out of pop().
    virtual void run() = 0;
  };

  // `threads`: at most so many work, the caller's among them.
  explicit OrderedJobs(int threads);
  // Returns when no thread is at a job any more; those that have not begun do not.
  ~OrderedJobs();
  OrderedJobs(const OrderedJobs&) = delete;
  OrderedJobs& operator=(const OrderedJobs&) = delete;

  // `cost_ns`: the time that the job takes, roughly.
  void push(std::unique_ptr<Job> job, uint64_t cost_ns);
  bool is_empty() const;
  // Whether pop() would return at once.
  bool is_oldest_done() const;
  // The oldest job, which there must be, when it has run; until then the caller works, too. Throws
  // what the job threw, and InterruptedError (base/wait.h). Jobs are destroyed by the caller alone.
  std::unique_ptr<Job> pop();

 private:
  class State;
  // The helpers', too: some may come when all is long over.
  const std::shared_ptr<State> state_;
  std::chrono::steady_clock::time_point checked_;
};

}  // namespace torchnpy
