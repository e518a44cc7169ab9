#include "transport/job_queue.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace torchnpy {

void JobQueue::push(std::unique_ptr<Job> job, bool first) {
  auto lane = find_lane(*job);
  if (lane == lanes_.end()) {
    lane = lanes_.insert(lanes_.end(), Lane{job->settings(), {}});
    const auto threads = static_cast<size_t>(lane->settings->io_threads);
    if (loads_.size() < threads) loads_.resize(threads, 0);
  }
  const auto place = first ? lane->jobs.begin() : lane->jobs.end();
  Job& added = *job;
  added.place_ = lane->jobs.insert(place, std::move(job));
}

std::list<JobQueue::Lane>::iterator JobQueue::find_lane(const Job& job) {
  return std::find_if(lanes_.begin(), lanes_.end(),
                      [&](const Lane& lane) { return lane.settings == job.settings(); });
}

std::optional<size_t> JobQueue::choose_reactor(const Lane& lane) const {
  if (in_flight_ >= static_cast<size_t>(lane.settings->max_in_flight)) return std::nullopt;
  const size_t count = std::min(static_cast<size_t>(lane.settings->io_threads), limit_);
  const auto end = loads_.begin() + static_cast<std::ptrdiff_t>(count);
  return static_cast<size_t>(std::min_element(loads_.begin(), end) - loads_.begin());
}

std::unique_ptr<Job> JobQueue::pop(size_t reactor) {
  for (auto lane = lanes_.begin(); lane != lanes_.end(); ++lane) {
    if (choose_reactor(*lane) != reactor) continue;
    std::unique_ptr<Job> job = std::move(lane->jobs.front());
    lane->jobs.pop_front();
    ++loads_[reactor];
    ++in_flight_;
    if (lane->jobs.empty()) {
      lanes_.erase(lane);
    } else {
      lanes_.splice(lanes_.end(), lanes_, lane);
    }
    return job;
  }
  return nullptr;
}

void JobQueue::release(size_t reactor) {
  --loads_[reactor];
  --in_flight_;
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
  std::unique_ptr<Job> taken = std::move(*job.place_);
  lane->jobs.erase(job.place_);
  if (lane->jobs.empty()) lanes_.erase(lane);
  return taken;
}

void JobQueue::take_all(std::vector<std::unique_ptr<Job>>& taken) {
  for (Lane& lane : lanes_) std::ranges::move(lane.jobs, std::back_inserter(taken));
  lanes_.clear();
}

}  // namespace torchnpy
