#include "transport/hedged_read.h"

#include <utility>

#include "transport/http_read.h"

namespace torchnpy {

HedgedRead::HedgedRead(std::shared_ptr<HttpSource> source, Range range, Sink& sink)
    : source_(std::move(source)), range_(range), sink_(sink), first_(*this), second_(*this) {}

void HedgedRead::start(std::shared_ptr<HttpSource> source, Range range, Sink& sink) {
  const auto read = std::make_shared<HedgedRead>(std::move(source), range, sink);
  read->running_ = 1;
  read->submit(read->first_, false);
}

// The jobs keep this alive. One key for both, so that cancelling the sink cancels both.
void HedgedRead::submit(Arm& arm, bool urgent) {
  auto job = std::make_unique<HttpRead>(source_, range_, arm, &sink_, shared_from_this());
  if (urgent) {
    job->urgent = true;
    job->share_key = 0;  // or the first one's answer would be waited for
  }
  arm.job = job.get();
  submit_job(std::move(job));
}

void HedgedRead::begin_second() {
  constexpr uint64_t kRequestsPerHedge = 20;  // 5 % more requests
  TransportMetrics& metrics = source_->metrics();
  {
    const std::lock_guard lock(mutex_);
    const bool is_within_budget =
        (metrics.hedges.load() + 1) * kRequestsPerHedge <= metrics.requests.load();
    if (has_second_ || winner_ != nullptr || running_ == 0 || !is_within_budget) return;
    has_second_ = true;
    ++running_;
  }
  metrics.hedges.fetch_add(1, std::memory_order_relaxed);
  try {
    submit(second_, true);
  } catch (...) {
    second_.done(std::current_exception());
  }
}

// True for the arm that answers first, from now on.
bool HedgedRead::win(Arm& arm) {
  {
    const std::lock_guard lock(mutex_);
    if (winner_ != nullptr) return winner_ == &arm;
    winner_ = &arm;
    if (running_ < 2) return true;
  }
  if (&arm == &second_) source_->metrics().hedges_won.fetch_add(1, std::memory_order_relaxed);
  cancel_jobs(source_.get(), &sink_, arm.job);
  return true;
}

MutableBytes HedgedRead::Arm::room(uint64_t offset, size_t want) {
  // No room ends the read without an error.
  return read_.win(*this) ? read_.sink_.room(offset, want) : MutableBytes();
}

void HedgedRead::Arm::filled(uint64_t offset, size_t nbytes) { read_.sink_.filled(offset, nbytes); }

bool HedgedRead::Arm::restart() { return read_.sink_.restart(); }

void HedgedRead::Arm::done(std::exception_ptr error) {
  if (!error) read_.win(*this);
  bool is_last = false;
  bool is_winner = false;
  {
    const std::lock_guard lock(read_.mutex_);
    is_last = --read_.running_ == 0;
    is_winner = read_.winner_ == this;
    const bool is_over = read_.winner_ != nullptr;
    if (!is_over && error && !read_.error_) read_.error_ = std::move(error);
    if (!is_winner && (is_over || !is_last)) return;
    // Not held here any more when another thread has it.
    if (!is_winner) error = std::move(read_.error_);
  }
  read_.source_->count_read(read_.started_, error);
  read_.sink_.done(std::move(error));
}

}  // namespace torchnpy
