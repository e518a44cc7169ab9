// Which job starts next, and on which I/O thread. No threads, no locks, no I/O: the engine
// guards it with its mutex.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "transport/engine.h"

namespace torchnpy {

// Clients take turns, and within a client its objects (the jobs' owners): an object's next job
// starts when each other object with jobs has had its turn, so that a small one is not stuck
// behind the parts of a large one. A job starts while fewer than its client's max_in_flight jobs
// of the process, and fewer than its own owner_limit of its owner's, are in flight; on the least
// loaded of the client's I/O threads ("reactors"), the first of several: so single requests in a
// row all go to one thread, where their connection is.
class JobQueue {
 public:
  // Takes ownership. `first`: before all other jobs of its client.
  void push(std::unique_ptr<Job> job, bool first);
  // The next job that `reactor` may start; it counts as in flight there. nullptr when there
  // is none.
  std::unique_ptr<Job> pop(size_t reactor);
  // `job`, which was in flight on `reactor`, is so no more.
  void release(size_t reactor, const Job& job);
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
  using Jobs = std::list<std::unique_ptr<Job>>;
  // The jobs of one owner.
  struct Flow {
    uint64_t last_round = 0;  // of its job that was queued last
    size_t queued = 0;        // in rounds, or held
    size_t in_flight = 0;
    Jobs held;  // that found the owner at its limit
  };
  // The jobs of one client.
  struct Lane {
    std::shared_ptr<const EngineSettings> settings;
    // Start-time fair queueing: each job of an owner is one round later than the one before.
    std::map<uint64_t, Jobs> rounds;  // none is empty
    uint64_t round = 0;               // of the job that started last
    std::unordered_map<const void*, Flow> flows;
  };
  using Lanes = std::list<Lane>;

  Lanes::iterator find_lane(const Job& job);
  // The reactor for the lane's next job; empty when there is none or too much is in flight.
  std::optional<size_t> choose_reactor(const Lane& lane) const;
  static std::unique_ptr<Job> pop_first(Lane& lane);
  static void insert(Lane& lane, std::unique_ptr<Job> job, uint64_t round, bool first);
  void drop_if_idle(Lanes::iterator lane, const void* owner);

  Lanes lanes_;                // the one whose turn it is first
  std::vector<size_t> loads_;  // jobs in flight on each reactor
  size_t limit_ = std::numeric_limits<size_t>::max();
  size_t in_flight_ = 0;
};

}  // namespace torchnpy
