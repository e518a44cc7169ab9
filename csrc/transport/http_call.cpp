#include "transport/http_call.h"

#include <fmt/format.h>

#include <condition_variable>
#include <mutex>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "base/wait.h"
#include "transport/engine.h"
#include "transport/http_head.h"
#include "transport/words.h"

namespace torchnpy {
namespace {

using Clock = std::chrono::steady_clock;

// Where the job leaves its answer; outlives the waiter, who may sleep for ever at the end of the
// process.
struct Outcome {
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
  HttpResponse response;
  std::exception_ptr error;
};

class CallJob final : public Job {
 public:
  CallJob(HttpRequest request, std::shared_ptr<const EngineSettings> settings, std::string name,
          const CallLimits& limits, std::shared_ptr<Outcome> outcome)
      : Job(std::move(settings), outcome.get(), outcome.get()),
        request_(std::move(request)),
        name_(std::move(name)),
        limits_(limits),
        outcome_(std::move(outcome)) {
    deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                  std::chrono::duration<double>(limits_.timeout_s));
  }

  HttpRequest begin() override { return std::move(request_); }

  bool head(std::string_view line) override {
    constexpr size_t kMaxNbytes = 256 << 10;
    if (line.starts_with("HTTP/")) head_text_.clear();
    if (line.size() > kMaxNbytes - head_text_.size()) fail("the answer's head is too long");
    head_text_ += line;
    return true;
  }

  bool body(ByteView bytes) override {
    if (bytes.size() > limits_.max_response_nbytes - response_.body.size()) {
      fail(fmt::format("expected an answer of at most {} bytes but found more",
                       limits_.max_response_nbytes));
    }
    response_.body += as_text(bytes);
    return true;
  }

  std::optional<double> ended(const ExchangeEnd& end) override {
    if (end.thrown) std::rethrow_exception(end.thrown);
    check(end);
    response_.status = parse_head(head_text_).status;
    response_.headers = parse_headers(head_text_);
    return std::nullopt;
  }

  void finish(std::exception_ptr error) noexcept override {
    const std::lock_guard lock(outcome_->mutex);
    outcome_->response = std::move(response_);
    outcome_->error = std::move(error);
    outcome_->done = true;
    outcome_->changed.notify_all();
  }

 private:
  using Kind = TransportError::Kind;

  [[noreturn]] void fail(std::string_view reason, Kind kind = Kind::kOther) const {
    throw TransportError(fmt::format("{}: {}", name_, reason), kind);
  }

  void check(const ExchangeEnd& end) const {
    switch (end.fault) {
      case Fault::kNone: return;
      case Fault::kDns: fail("the host name was not resolved");
      case Fault::kConnect:
        fail(end.system_error == 0 ? "no connection"
                                   : std::system_category().message(end.system_error));
      case Fault::kTimeout:
      case Fault::kStall:
      case Fault::kDeadline:
        fail(fmt::format("no answer within {} s", limits_.timeout_s), Kind::kTimeout);
      case Fault::kTls: fail(fmt::format("TLS failed ({})", clean_words(end.detail)));
      case Fault::kBadRequest: fail("the request cannot be sent");
      case Fault::kReset:
      case Fault::kShortBody:
      case Fault::kOther: break;
    }
    fail("the connection was lost");
  }

  HttpRequest request_;
  const std::string name_;
  const CallLimits limits_;
  const std::shared_ptr<Outcome> outcome_;
  std::string head_text_;
  HttpResponse response_;
};

HttpResponse call_once(HttpRequest request, std::shared_ptr<const EngineSettings> settings,
                       const std::string& name, const CallLimits& limits) {
  WaitScope scope;
  const auto outcome = std::make_shared<Outcome>();
  submit_job(
      std::make_unique<CallJob>(std::move(request), std::move(settings), name, limits, outcome));
  std::unique_lock lock(outcome->mutex);
  if (!scope.wait(lock, outcome->changed, [&] { return outcome->done; })) {
    lock.unlock();
    cancel_jobs(outcome.get(), outcome.get());
    throw InterruptedError("interrupted: the request was given up");
  }
  if (outcome->error) std::rethrow_exception(outcome->error);
  return std::move(outcome->response);
}

void pause(double seconds) {
  WaitScope scope;
  std::mutex mutex;
  std::condition_variable never;
  std::unique_lock lock(mutex);
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  if (scope.wait(lock, never, [&] { return Clock::now() >= end; })) return;
  throw InterruptedError("interrupted: the request was given up");
}

}  // namespace

HttpResponse call_http(const HttpRequest& request, std::shared_ptr<const EngineSettings> settings,
                       const std::string& name, const CallLimits& limits) {
  double pause_s = 0.1;
  for (int attempt = 1;; ++attempt) {
    try {
      HttpResponse response = call_once(request, settings, name, limits);
      if (response.status < 500 || attempt >= limits.attempts) return response;
    } catch (const TransportError&) {
      if (attempt >= limits.attempts) throw;
    }
    pause(pause_s);
    pause_s *= 2;
  }
}

}  // namespace torchnpy
