// What the reactors of a process share; for engine.cpp and reactor.cpp alone.
#pragma once

#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/fork.h"
#include "transport/engine.h"
#include "transport/job_queue.h"

namespace torchnpy {

class Reactor;

using JobIdentity = std::pair<const void*, const void*>;  // owner and key
struct JobIdentityHash {
  size_t operator()(const JobIdentity& identity) const {
    const std::hash<const void*> hash;
    return hash(identity.first) * 31 + hash(identity.second);
  }
};

// The engine of one process. Never destroyed: threads may outlive statics, and a
// child's inherited engine must not be touched.
class Engine {
 public:
  static Engine& instance();
  // This process's engine if there is one.
  static Engine* existing();

  void submit(std::unique_ptr<Job> job);
  void cancel(const void* owner, const void* key, const Job* spared);
  void stop();

  // For reactors.
  std::unique_ptr<Job> take(size_t reactor, size_t* in_flight);
  void requeue(std::unique_ptr<Job> job);
  void release(size_t reactor, const Job& job);
  void retire(Job& job, std::optional<size_t> reactor);
  // The first byte of an answer to `leader`, which runs on `reactor`, has come: those that waited
  // for it, which run there, too, from now on. Later ones make their own exchange.
  std::vector<std::unique_ptr<Job>> take_followers(const Job& leader, size_t reactor);
  std::vector<std::unique_ptr<Job>> take_cancelled();
  bool may_sleep(Reactor& reactor);
  bool is_cancelled(const Job& job);
  bool is_stopping();

 private:
  explicit Engine(Engine* inherited) : inherited_(inherited) {}
  bool is_mine() const { return forks_ == fork_count() && pid_ == getpid(); }
  void wake_takers();
  void enqueue(std::unique_ptr<Job> job, bool first);
  void dissolve(const Job& leader);
  std::unique_ptr<Job> take_waiting(Job& job);
  void link(Job& job);
  void unlink(Job& job);

  static std::atomic<Engine*> current_;

  const uint64_t forks_ = fork_count();
  const pid_t pid_ = getpid();
  [[maybe_unused]] Engine* const inherited_;  // keeps it reachable for leak checkers
  std::mutex mutex_;
  JobQueue queue_;
  // By their share_key, the jobs that are queued or run without an answer, and those that wait
  // for theirs.
  struct Shared {
    const Job* leader = nullptr;
    std::list<std::unique_ptr<Job>> followers;
  };
  std::unordered_map<uint64_t, Shared> shared_;
  // All that live: the first of each owner and key, in lists because one sink may have many.
  std::unordered_map<JobIdentity, Job*, JobIdentityHash> jobs_;
  // Taken out of the queue by cancel(), for a reactor to end: finding them there takes a pass over
  // all of it.
  std::vector<std::unique_ptr<Job>> cancelled_;
  std::vector<std::unique_ptr<Reactor>> reactors_;
  size_t farewell_count_ = 0;
  std::condition_variable farewells_ended_;
  bool stopping_ = false;
};

}  // namespace torchnpy
