#include "transport/job_queue.h"

#include <algorithm>
#include <utility>

namespace torchnpy {

void JobQueue::push(std::unique_ptr<Job> job, bool first) {
  auto lane = std::find_if(lanes_.begin(), lanes_.end(),
                           [&](const Lane& l) { return l.settings == job->settings(); });
  if (lane == lanes_.end()) {
    lane = lanes_.insert(lanes_.end(), Lane{job->settings(), {}});
    const auto threads = static_cast<size_t>(lane->settings->io_threads);
    if (loads_.size() < threads) loads_.resize(threads, 0);
  }
  if (first) {
    lane->jobs.push_front(std::move(job));
  } else {
    lane->jobs.push_back(std::move(job));
  }
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

std::vector<std::unique_ptr<Job>> JobQueue::take_cancelled(bool all) {
  std::vector<std::unique_ptr<Job>> taken;
  for (Lane& lane : lanes_) {
    for (std::unique_ptr<Job>& job : lane.jobs) {
      if (all || job->cancelled_) taken.push_back(std::move(job));
    }
    std::erase(lane.jobs, nullptr);
  }
  std::erase_if(lanes_, [](const Lane& lane) { return lane.jobs.empty(); });
  return taken;
}

}  // namespace torchnpy
