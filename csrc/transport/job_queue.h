// Which job starts next, and on which I/O thread. No threads, no locks, no I/O: the engine
// guards it with its mutex.
#pragma once

#include <cstddef>
#include <limits>
#include <list>
#include <memory>
#include <optional>
#include <vector>

#include "transport/engine.h"

namespace torchnpy {

// Clients take turns; within one, jobs start in order. A job starts while fewer than its
// client's max_in_flight jobs of the process are in flight, on the least loaded of the
// client's I/O threads ("reactors"), the first of several: so single requests in a row all go
// to one thread, where their connection is.
class JobQueue {
 public:
  // Takes ownership. `first`: before the other jobs of its client.
  void push(std::unique_ptr<Job> job, bool first);
  // The next job that `reactor` may start; it counts as in flight there. nullptr when there
  // is none.
  std::unique_ptr<Job> pop(size_t reactor);
  // A job that was in flight on `reactor` is so no more.
  void release(size_t reactor);
  // The reactors that pop() would give a job; the last may be one that was not started yet.
  std::vector<size_t> takers() const;
  // Uses only the first `count` reactors from now on.
  void limit_reactors(size_t count) { limit_ = count; }
  // Takes out a job that is queued.
  std::unique_ptr<Job> take(Job& job);
  // Takes out all jobs.
  void take_all(std::vector<std::unique_ptr<Job>>& taken);

  size_t in_flight() const { return in_flight_; }

 private:
  struct Lane {  // the jobs of one client; never empty
    std::shared_ptr<const EngineSettings> settings;
    std::list<std::unique_ptr<Job>> jobs;
  };
  std::list<Lane>::iterator find_lane(const Job& job);
  // The reactor for the lane's next job; empty when too much is in flight.
  std::optional<size_t> choose_reactor(const Lane& lane) const;

  std::list<Lane> lanes_;      // the one whose turn it is first
  std::vector<size_t> loads_;  // jobs in flight on each reactor
  size_t limit_ = std::numeric_limits<size_t>::max();
  size_t in_flight_ = 0;
};

}  // namespace torchnpy
