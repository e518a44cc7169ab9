#include "transport/job_queue.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace torchnpy {

void JobQueue::push(std::unique_ptr<Job> job, bool first) {
  auto lane = find_lane(*job);
  if (lane == lanes_.end()) {
    lane = lanes_.insert(lanes_.end(), Lane{job->settings(), {}, 0, {}});
    const auto threads = static_cast<size_t>(lane->settings->io_threads);
    if (loads_.size() < threads) loads_.resize(threads, 0);
  }
  Flow& flow = lane->flows[job->owner_];
  ++flow.queued;
  if (first) return insert(*lane, std::move(job), lane->round, true);
  // Behind the next job of each other owner: or ever more new ones would hold those up.
  flow.last_round = std::max(lane->round, flow.last_round) + 1;
  insert(*lane, std::move(job), flow.last_round, false);
}

void JobQueue::insert(Lane& lane, std::unique_ptr<Job> job, uint64_t round, bool first) {
  Job& added = *job;
  added.round_ = round;
  added.held_ = false;
  Jobs& jobs = lane.rounds[round];
  added.place_ = jobs.insert(first ? jobs.begin() : jobs.end(), std::move(job));
}

JobQueue::Lanes::iterator JobQueue::find_lane(const Job& job) {
  return std::find_if(lanes_.begin(), lanes_.end(),
                      [&](const Lane& lane) { return lane.settings == job.settings(); });
}

std::optional<size_t> JobQueue::choose_reactor(const Lane& lane) const {
  if (lane.rounds.empty() || in_flight_ >= static_cast<size_t>(lane.settings->max_in_flight)) {
    return std::nullopt;
  }
  const size_t count = std::min(static_cast<size_t>(lane.settings->io_threads), limit_);
  const auto end = loads_.begin() + static_cast<std::ptrdiff_t>(count);
  return static_cast<size_t>(std::min_element(loads_.begin(), end) - loads_.begin());
}

// The first job whose owner is below its limit; nullptr when there is none. Those before it are
// held until one of their owner's ends.
std::unique_ptr<Job> JobQueue::pop_first(Lane& lane) {
  while (!lane.rounds.empty()) {
    const auto round = lane.rounds.begin();
    Jobs& jobs = round->second;
    Job& job = *jobs.front();
    Flow& flow = lane.flows.find(job.owner_)->second;
    const bool may_start = flow.in_flight < job.owner_limit;
    std::unique_ptr<Job> started;
    if (may_start) {
      started = std::move(jobs.front());
      jobs.pop_front();
      lane.round = std::max(lane.round, round->first);
      --flow.queued;
      ++flow.in_flight;
    } else {
      flow.held.splice(flow.held.end(), jobs, jobs.begin());
      job.held_ = true;
    }
    if (jobs.empty()) lane.rounds.erase(round);
    if (may_start) return started;
  }
  return nullptr;
}

std::unique_ptr<Job> JobQueue::pop(size_t reactor) {
  for (auto lane = lanes_.begin(); lane != lanes_.end(); ++lane) {
    if (choose_reactor(*lane) != reactor) continue;
    std::unique_ptr<Job> job = pop_first(*lane);
    if (job == nullptr) continue;
    ++loads_[reactor];
    ++in_flight_;
    lanes_.splice(lanes_.end(), lanes_, lane);
    return job;
  }
  return nullptr;
}

void JobQueue::release(size_t reactor, const Job& job) {
  --loads_[reactor];
  --in_flight_;
  const auto lane = find_lane(job);
  Flow& flow = lane->flows.find(job.owner_)->second;
  --flow.in_flight;
  if (!flow.held.empty()) {
    std::unique_ptr<Job> next = std::move(flow.held.front());
    flow.held.pop_front();
    const uint64_t round = next->round_;
    insert(*lane, std::move(next), round, true);
  }
  drop_if_idle(lane, job.owner_);
}

void JobQueue::drop_if_idle(Lanes::iterator lane, const void* owner) {
  const auto flow = lane->flows.find(owner);
  if (flow->second.queued == 0 && flow->second.in_flight == 0) lane->flows.erase(flow);
  if (lane->flows.empty()) lanes_.erase(lane);
}

std::vector<size_t> JobQueue::takers() const {
  std::vector<size_t> reactors;
  for (const Lane& lane : lanes_) {
    const std::optional<size_t> reactor = choose_reactor(lane);
    if (reactor && std::find(reactors.begin(), reactors.end(), *reactor) == reactors.end()) {
      reactors.push_back(*reactor);
    }
  }
  return reactors;
}

std::unique_ptr<Job> JobQueue::take(Job& job) {
  const auto lane = find_lane(job);
  Flow& flow = lane->flows.find(job.owner_)->second;
  std::unique_ptr<Job> taken = std::move(*job.place_);
  if (job.held_) {
    flow.held.erase(job.place_);
  } else {
    const auto round = lane->rounds.find(job.round_);
    round->second.erase(job.place_);
    if (round->second.empty()) lane->rounds.erase(round);
  }
  --flow.queued;
  drop_if_idle(lane, job.owner_);
  return taken;
}

void JobQueue::take_all(std::vector<std::unique_ptr<Job>>& taken) {
  for (Lane& lane : lanes_) {
    for (auto& [round, jobs] : lane.rounds) std::ranges::move(jobs, std::back_inserter(taken));
    lane.rounds.clear();
    for (auto& [owner, flow] : lane.flows) {
      std::ranges::move(flow.held, std::back_inserter(taken));
      flow.held.clear();
      flow.queued = 0;
    }
    std::erase_if(lane.flows, [](const auto& entry) { return entry.second.in_flight == 0; });
  }
  lanes_.remove_if([](const Lane& lane) { return lane.flows.empty(); });
}

}  // namespace torchnpy
