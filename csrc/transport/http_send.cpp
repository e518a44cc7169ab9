#include "transport/http_send.h"

#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <utility>

#include "base/wait.h"

namespace torchnpy {

HttpSend::HttpSend(std::shared_ptr<HttpObject> object, std::shared_ptr<HttpContext> context,
                   HttpCommand command, SendOptions options, const void* owner, Done done)
    : HttpAttempts(std::move(object), std::move(context), owner, owner),
      command_(std::move(command)),
      options_(std::move(options)),
      done_(std::move(done)) {
  subject_ = options_.subject;
  is_farewell = urgent = options_.is_farewell;
  owner_limit = options_.owner_limit;
  if (options_.limit_s) limit_s_ = std::min(*options_.limit_s, limit_s_.value_or(1e8));
}

HttpRequest HttpSend::begin() {
  if (attempts_ > 0 && Clock::now() >= deadline) fail_deadline();
  begin_attempt();
  HttpRequest request = make_request(command_);
  note_request(request);
  return request;
}

bool HttpSend::body(ByteView bytes) {
  body_began_ = true;
  body_nbytes_ += bytes.size();
  return keep_body(bytes);
}

std::string HttpSend::describe_request() const {
  return options_.subject.empty() ? "" : ' ' + options_.subject;
}

std::optional<double> HttpSend::conclude(const ExchangeEnd& end) {
  result_.was_maybe_done = result_.was_maybe_done || end.was_resent;
  const bool has_status = head_complete_ && head_.status >= 200;
  const bool is_good = has_status && head_.status < 300;
  // An error may come while the body is on its way, and break that off.
  if (has_status && !is_good && end.fault != Fault::kDeadline) {
    if (is_redirect() && head_.status != 303) return follow_redirect();
    const bool has_condition = std::ranges::any_of(
        command_.headers, [](const auto& header) { return header.first == "If-None-Match"; });
    if (head_.status == 412 && has_condition) {
      fail("HTTP 412: expected no object of that name (if_none_match) but found one",
           Kind::kExists);
    }
    result_.was_maybe_done =
        result_.was_maybe_done || head_.status == 500 || head_.status == 502 || head_.status == 504;
    return end_error();
  }
  if (end.fault != Fault::kNone) {
    const bool never_arrived = end.fault == Fault::kDns || end.fault == Fault::kConnect ||
                               end.fault == Fault::kTimeout || end.fault == Fault::kTls;
    if (!never_arrived) result_.was_maybe_done = true;
    return retry_fault(end);
  }
  if (end.stopped) fail("expected a shorter answer");
  HttpResponse response = take_response();
  if (options_.holds_error != nullptr && options_.holds_error(response)) {
    result_.was_maybe_done = true;
    keep_body(as_bytes(response.body));
    return end_error();
  }
  result_.response = std::move(response);
  return std::nullopt;
}

void HttpSend::finish(std::exception_ptr error) noexcept {
  if (on_wire_) metrics().in_flight.add(-1);
  // That there is no object may be what one wants to hear.
  const bool is_failure = error && !is_interruption(error) && command_.method != "HEAD";
  if (is_failure) metrics().errors.fetch_add(1, std::memory_order_relaxed);
  if (error) result_.error = add_name(std::move(error), object().name());
  done_(std::move(result_));
}

SendResult send_and_wait(std::shared_ptr<HttpObject> object, std::shared_ptr<HttpContext> context,
                         HttpCommand command, SendOptions options) {
  struct Outcome {
    std::mutex mutex;
    std::condition_variable changed;
    bool done = false;
    SendResult result;
  };
  WaitScope scope;
  const auto outcome = std::make_shared<Outcome>();
  submit_job(std::make_unique<HttpSend>(std::move(object), std::move(context), std::move(command),
                                        std::move(options), outcome.get(),
                                        [outcome](SendResult result) {
                                          const std::lock_guard lock(outcome->mutex);
                                          outcome->result = std::move(result);
                                          outcome->done = true;
                                          outcome->changed.notify_all();
                                        }));
  const auto is_done = [&] { return outcome->done; };
  std::unique_lock lock(outcome->mutex);
  if (!scope.wait(lock, outcome->changed, is_done)) {
    lock.unlock();
    cancel_jobs(outcome.get(), outcome.get());
    lock.lock();
    // Until then an I/O thread may read what is sent.
    wait_until_ready(lock, outcome->changed, is_done);
    outcome->result.error =
        std::make_exception_ptr(InterruptedError("interrupted: the upload was given up"));
  }
  return std::move(outcome->result);
}

}  // namespace torchnpy
