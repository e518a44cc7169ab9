#include "transport/engine.h"

#include <curl/curl.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <iterator>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/fork.h"
#include "transport/engine_state.h"
#include "transport/reactor.h"

namespace torchnpy {

namespace {

// Under process_mutex(). Leaked: threads may outlive statics.
std::vector<void (*)() noexcept>& shutdown_hooks() {
  static auto* const hooks = new std::vector<void (*)() noexcept>;
  return *hooks;
}

}  // namespace

std::atomic<Engine*> Engine::current_{nullptr};

Engine* Engine::existing() {
  Engine* engine = current_.load(std::memory_order_acquire);
  return engine != nullptr && engine->is_mine() ? engine : nullptr;
}

Engine& Engine::instance() {
  if (Engine* engine = existing()) return *engine;
  const std::lock_guard lock(process_mutex());
  if (Engine* engine = existing()) return *engine;
  // Under the mutex instead of call_once: fork() waits for it. Never undone: other users of
  // libcurl in the process may live longer.
  static bool initialised = false;
  if (!initialised) {
    initialise_curl();
    // After OpenSSL registered its own handler, so that it runs before it: a transfer that
    // lives during OpenSSL's clean-up crashes.
    std::atexit(shutdown_engine);
    initialised = true;
  }
  auto* engine = new Engine(current_.load());
  current_.store(engine, std::memory_order_release);
  return *engine;
}

void Engine::submit(std::unique_ptr<Job> job) {
  const std::lock_guard lock(mutex_);
  if (stopping_) throw InterruptedError("interrupted: the process is ending");
  Job* const added = job.get();
  link(*added);
  enqueue(std::move(job), added->urgent);
  wake_takers();
  if (!reactors_.empty()) return;
  unlink(*added);
  shared_.erase(added->share_key);
  queue_.take(*added);
  throw TransportError("expected an I/O thread to start but the system has none to give");
}

// A job that another's exchange may answer waits for that.
void Engine::enqueue(std::unique_ptr<Job> job, bool first) {
  if (job->share_key != 0) {
    Shared& shared = shared_[job->share_key];
    if (shared.leader != nullptr && shared.leader != job.get()) {
      Job& added = *job;
      added.follows_ = true;
      added.place_ = shared.followers.insert(shared.followers.end(), std::move(job));
      return;
    }
    shared.leader = job.get();
  }
  queue_.push(std::move(job), first);
}

// `leader` ends without an answer, or has one: who comes later does not wait for it.
void Engine::dissolve(const Job& leader) {
  const auto found = shared_.find(leader.share_key);
  if (leader.share_key == 0 || found == shared_.end() || found->second.leader != &leader) return;
  auto followers = std::move(found->second.followers);
  shared_.erase(found);
  for (std::unique_ptr<Job>& job : followers) {
    job->follows_ = false;
    enqueue(std::move(job), true);
  }
}

std::vector<std::unique_ptr<Job>> Engine::take_followers(const Job& leader, size_t reactor) {
  const std::lock_guard lock(mutex_);
  const auto found = shared_.find(leader.share_key);
  if (found == shared_.end() || found->second.leader != &leader) return {};
  std::vector<std::unique_ptr<Job>> followers;
  for (std::unique_ptr<Job>& job : found->second.followers) {
    job->follows_ = false;
    job->reactor_ = reactor;
    followers.push_back(std::move(job));
  }
  shared_.erase(found);
  return followers;
}

std::unique_ptr<Job> Engine::take_waiting(Job& job) {
  if (!job.follows_) return queue_.take(job);
  std::unique_ptr<Job> taken = std::move(*job.place_);
  shared_.find(job.share_key)->second.followers.erase(job.place_);
  job.follows_ = false;
  return taken;
}

// Wakes or starts the reactors that have something to take.
void Engine::wake_takers() {
  for (const size_t taker : queue_.takers()) {
    if (taker < reactors_.size()) {
      reactors_[taker]->wake(false);
      continue;
    }
    try {
      reactors_.push_back(std::make_unique<Reactor>(*this, taker));
      reactors_.back()->start();
    } catch (const std::system_error&) {
      reactors_.pop_back();
      if (reactors_.empty()) return;
      queue_.limit_reactors(reactors_.size());
      return wake_takers();
    }
  }
}

void Engine::cancel(const void* owner, const void* key, const Job* spared) {
  const std::lock_guard lock(mutex_);
  if (stopping_) return;  // they all end
  const auto found = jobs_.find({owner, key});
  if (found == jobs_.end()) return;
  for (Job* job = found->second; job != nullptr; job = job->next_) {
    if (job == spared || std::exchange(job->cancelled_, true)) continue;
    const bool queued = job->reactor_ == Job::kNoReactor;
    if (queued) cancelled_.push_back(take_waiting(*job));
    reactors_[queued ? 0 : job->reactor_]->wake(true);
  }
}

void Engine::stop() {
  std::vector<std::thread> threads;
  {
    constexpr std::chrono::seconds kFarewellTime(2);
    std::unique_lock lock(mutex_);
    farewells_ended_.wait_for(lock, kFarewellTime, [this] { return farewell_count_ == 0; });
    if (std::exchange(stopping_, true)) return;
    for (const auto& reactor : reactors_) {
      reactor->wake(true);
      threads.push_back(reactor->take_thread());
    }
  }
  for (std::thread& thread : threads) {
    // exit() may be called by an I/O thread, inside a sink.
    if (thread.get_id() == std::this_thread::get_id()) {
      thread.detach();
    } else {
      thread.join();
    }
  }
}

std::unique_ptr<Job> Engine::take(size_t reactor, size_t* in_flight) {
  const std::lock_guard lock(mutex_);
  std::unique_ptr<Job> job = stopping_ ? nullptr : queue_.pop(reactor);
  if (job != nullptr) {
    job->reactor_ = reactor;
    *in_flight = queue_.in_flight();
  }
  if (!stopping_) wake_takers();
  return job;
}

void Engine::requeue(std::unique_ptr<Job> job) {
  const std::lock_guard lock(mutex_);
  // cancel() has woken the reactor that calls this.
  if (job->cancelled_) return cancelled_.push_back(std::move(job));
  job->reactor_ = Job::kNoReactor;
  enqueue(std::move(job), true);
}

void Engine::release(size_t reactor, const Job& job) {
  const std::lock_guard lock(mutex_);
  queue_.release(reactor, job);
}

// From now on cancel() does not find it.
void Engine::retire(Job& job, std::optional<size_t> in_flight_on) {
  const std::lock_guard lock(mutex_);
  if (in_flight_on) queue_.release(*in_flight_on, job);
  unlink(job);
  dissolve(job);
}

void Engine::link(Job& job) {
  if (job.is_farewell) ++farewell_count_;
  Job*& first = jobs_[{job.owner_, job.key_}];
  job.next_ = first;
  if (first != nullptr) first->previous_ = &job;
  first = &job;
}

void Engine::unlink(Job& job) {
  if (job.is_farewell && --farewell_count_ == 0) farewells_ended_.notify_all();
  if (job.next_ != nullptr) job.next_->previous_ = job.previous_;
  if (job.previous_ != nullptr) {
    job.previous_->next_ = job.next_;
  } else if (job.next_ != nullptr) {
    jobs_[{job.owner_, job.key_}] = job.next_;
  } else {
    jobs_.erase({job.owner_, job.key_});
  }
}

std::vector<std::unique_ptr<Job>> Engine::take_cancelled() {
  const std::lock_guard lock(mutex_);
  std::vector<std::unique_ptr<Job>> taken = std::exchange(cancelled_, {});
  if (!stopping_) return taken;
  queue_.take_all(taken);
  for (auto& [key, shared] : shared_)
    std::ranges::move(shared.followers, std::back_inserter(taken));
  shared_.clear();
  return taken;
}

bool Engine::is_cancelled(const Job& job) {
  const std::lock_guard lock(mutex_);
  return job.cancelled_;
}

bool Engine::is_stopping() {
  const std::lock_guard lock(mutex_);
  return stopping_;
}

bool Engine::may_sleep(Reactor& reactor) {
  const std::lock_guard lock(mutex_);
  return reactor.prepare_sleep(queue_);
}

void submit_job(std::unique_ptr<Job> job) { Engine::instance().submit(std::move(job)); }

void cancel_jobs(const void* owner, const void* key, const Job* spared) {
  if (Engine* engine = Engine::existing()) engine->cancel(owner, key, spared);
}

void add_shutdown_hook(void (*hook)() noexcept) {
  const std::lock_guard lock(process_mutex());
  auto& hooks = shutdown_hooks();
  if (std::ranges::find(hooks, hook) == hooks.end()) hooks.push_back(hook);
}

void shutdown_engine() {
  Engine* const engine = Engine::existing();
  if (engine == nullptr) return;
  std::vector<void (*)() noexcept> hooks;
  {
    const std::lock_guard lock(process_mutex());
    hooks = shutdown_hooks();
  }
  for (const auto hook : hooks) hook();
  engine->stop();
}

std::map<std::string, std::string> http_library_versions() {
  const curl_version_info_data& info = *curl_version_info(CURLVERSION_NOW);
  std::map<std::string, std::string> versions{{"libcurl", info.version}};
  if (info.ssl_version != nullptr) versions["tls"] = info.ssl_version;
  if ((info.features & CURL_VERSION_HTTP2) != 0 && info.nghttp2_version != nullptr) {
    versions["nghttp2"] = info.nghttp2_version;
  }
  return versions;
}

}  // namespace torchnpy
