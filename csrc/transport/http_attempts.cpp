#include "transport/http_attempts.h"

#include <fmt/format.h>

#include <algorithm>
#include <random>
#include <system_error>
#include <utility>

#include "base/log.h"
#include "transport/words.h"

namespace torchnpy {
namespace {

using Kind = TransportError::Kind;

constexpr size_t kMaxHeadNbytes = 256 << 10;
constexpr size_t kMaxKeptNbytes = 64 << 10;
constexpr int kMaxRedirects = 10;
constexpr int kMaxImmediateRetries = 3;
constexpr double kMaxBackoff_s = 15;

bool is_retried(int status) {
  return status == 408 || status == 429 || status == 500 || status == 502 || status == 503 ||
         status == 504;
}

Kind kind_of(int status) {
  if (status == 404 || status == 410) return Kind::kNotFound;
  if (status == 401 || status == 403) return Kind::kDenied;
  return Kind::kOther;
}

double draw(double low, double high) {
  thread_local std::minstd_rand generator(std::random_device{}());
  return low < high ? std::uniform_real_distribution<double>(low, high)(generator) : low;
}

}  // namespace

HttpAttempts::HttpAttempts(std::shared_ptr<HttpObject> object, std::shared_ptr<HttpContext> context,
                           const void* owner, const void* key)
    : Job(context->settings(), owner, key),
      limit_s_(context->options->deadline_s),
      object_(std::move(object)),
      context_(std::move(context)),
      backoff_s_(options().backoff_s) {}

void HttpAttempts::begin_attempt() {
  if (attempts_ == 0) {
    started_ = Clock::now();
    if (limit_s_) {
      deadline = started_ + std::chrono::duration_cast<Clock::duration>(
                                std::chrono::duration<double>(std::min(*limit_s_, 1e8)));
    }
  }
  if (!redirected_to_) ++attempts_;
  head_text_.clear();
  heads_nbytes_ = 0;
  head_complete_ = body_began_ = false;
  body_nbytes_ = 0;
  expected_nbytes_.reset();
  kept_body_.clear();
  follows_ = false;
}

HttpRequest HttpAttempts::make_request(HttpCommand command) {
  if (!redirected_to_) return object().make_request(std::move(command));
  if (!is_elsewhere_) {
    if (auto request = object().make_request_at(*redirected_to_, command)) {
      return std::move(*request);
    }
  }
  // From here on the next host is not the user's choice, even if it is the first again.
  is_elsewhere_ = true;
  return {redirected_to_->request(), std::move(command.headers), std::move(command.method),
          std::move(command.body), command.content};
}

void HttpAttempts::note_request(const HttpRequest& request) {
  url_ = request.url;
  made_with_ = request.made_with;
  if (log_enabled()) {
    method_ = request.method;
    sent_ = Clock::now();
  }
  on_wire_ = true;
  metrics().requests.fetch_add(1, std::memory_order_relaxed);
  metrics().in_flight.add(1);
}

bool HttpAttempts::head(std::string_view line) {
  // All lines count: interim answers and trailers could go on for ever.
  heads_nbytes_ += line.size();
  if (heads_nbytes_ > kMaxHeadNbytes) {
    fail(fmt::format("expected a head of at most {} bytes but found more", kMaxHeadNbytes));
  }
  if (body_began_) return true;  // a trailer
  if (line.starts_with("HTTP/")) {
    head_text_.clear();
    head_complete_ = false;
  }
  if (head_complete_) return true;
  head_text_ += line;
  if (line != "\r\n" && line != "\n") return true;
  head_complete_ = true;
  head_ = parse_head(head_text_);
  if (head_.status < 200) return true;  // interim: another head follows
  return accept_head();
}

bool HttpAttempts::keep_body(ByteView bytes) {
  const size_t room = kMaxKeptNbytes - kept_body_.size();
  kept_body_ += as_text(bytes.first(std::min(room, bytes.size())));
  return bytes.size() < room;
}

bool HttpAttempts::is_redirect() const {
  const int status = head_.status;
  const bool has_status =
      status == 301 || status == 302 || status == 303 || status == 307 || status == 308;
  return has_status && !head_.location.empty();
}

HttpResponse HttpAttempts::take_response() {
  HttpResponse response;
  response.status = head_.status;
  response.headers = parse_headers(head_text_);
  response.body = std::move(kept_body_);
  response.made_with = made_with_;
  return response;
}

double HttpAttempts::end_error() {
  const Verdict verdict = object().judge(take_response());
  const std::string words = clean_words(verdict.message.empty() ? head_.reason : verdict.message);
  const std::string reason = fmt::format("HTTP {}{}{}{}", head_.status, words.empty() ? "" : " (",
                                         words, words.empty() ? "" : ")");
  if (verdict.action == Verdict::Action::kRetryNow && immediate_retries_ < kMaxImmediateRetries) {
    ++immediate_retries_;
    leave_redirect();
    count_retry(metrics().retries_learnt, reason);
    return 0;
  }
  // What was learnt too often did not help.
  if (verdict.action != Verdict::Action::kRetry && !is_retried(head_.status)) {
    fail(reason, kind_of(head_.status));
  }
  return retry(reason, kind_of(head_.status),
               parse_retry_after(head_.retry_after, head_.date).value_or(0),
               metrics().retries_status);
}

double HttpAttempts::follow_redirect() {
  if (++redirects_ > kMaxRedirects) {
    fail(fmt::format("expected at most {} redirects but found more", kMaxRedirects));
  }
  const Url from = redirected_to_ ? *redirected_to_ : parse_url(url_);
  Url to;
  try {
    to = resolve_reference(from, head_.location);
  } catch (const ArgumentError& error) {
    fail(fmt::format("HTTP {} to a Location that cannot be followed ({})", head_.status,
                     clean_words(error.what())));
  }
  if (from.scheme == "https" && to.scheme != "https") {
    fail(
        fmt::format("HTTP {} from https to {}, which is not followed", head_.status, to.display()));
  }
  redirected_to_ = std::move(to);
  metrics().redirects.fetch_add(1, std::memory_order_relaxed);
  return 0;
}

void HttpAttempts::leave_redirect() {
  redirected_to_.reset();
  is_elsewhere_ = false;
}

double HttpAttempts::retry_fault(const ExchangeEnd& end) {
  TransportMetrics& counts = metrics();
  const std::string detail =
      end.detail.empty() ? "" : fmt::format(" ({})", clean_words(end.detail));
  switch (end.fault) {
    case Fault::kDns:
      return retry("the host name was not resolved" + detail, Kind::kOther, 0,
                   counts.retries_connection);
    case Fault::kConnect:
      return retry((end.system_error == 0 ? "no connection"
                                          : std::system_category().message(end.system_error)) +
                       detail,
                   Kind::kOther, 0, counts.retries_connection);
    case Fault::kTimeout:
      return retry("timed out" + detail, Kind::kTimeout, 0, counts.retries_timeout);
    case Fault::kStall:
      return retry(fmt::format("stalled: no byte for {} s", settings()->stall_timeout_s),
                   Kind::kTimeout, 0, counts.retries_timeout);
    case Fault::kShortBody:
      return retry(expected_nbytes_ ? fmt::format("expected a body of {} bytes but found {}",
                                                  *expected_nbytes_, body_nbytes_)
                                    : "the body was cut short" + detail,
                   Kind::kOther, 0, counts.retries_connection);
    case Fault::kTls: fail("TLS failed" + detail);
    case Fault::kBadRequest: fail("the request cannot be sent" + detail);
    case Fault::kOther: fail("the transfer failed" + detail);
    case Fault::kDeadline: fail_deadline();
    case Fault::kNone:
    case Fault::kReset: break;
  }
  return retry("the connection was lost" + detail, Kind::kOther, 0, counts.retries_connection);
}

// Decorrelated jitter: clients that failed together do not come back together.
double HttpAttempts::retry(const std::string& reason, Kind kind, double at_least_s,
                           TransportMetrics::Counter& counter) {
  backoff_s_ = std::min(kMaxBackoff_s, draw(options().backoff_s, backoff_s_ * 3));
  const double delay_s = std::max(backoff_s_, at_least_s);
  const double left_s = std::chrono::duration<double>(deadline - Clock::now()).count();
  if (attempts_ >= options().retries || elapsed_s() + delay_s > options().retry_timeout_s ||
      delay_s > left_s) {
    fail(reason, kind);
  }
  leave_redirect();
  redirects_ = 0;
  count_retry(counter, reason);
  return delay_s;
}

std::optional<double> HttpAttempts::must_wait() noexcept {
  constexpr double kPoll_s = 0.02;
  const bool is_late = Clock::now() >= deadline || elapsed_s() > options().retry_timeout_s;
  return !is_late && object().must_wait() ? std::optional(kPoll_s) : std::nullopt;
}

double HttpAttempts::elapsed_s() const {
  return std::chrono::duration<double>(Clock::now() - started_).count();
}

void HttpAttempts::fail(const std::string& reason, Kind kind) const {
  throw TransportError(fmt::format("{}: {}{}{} after {} attempt{} in {:.2f} s", object().name(),
                                   subject_, subject_.empty() ? "" : ": ", reason, attempts_,
                                   attempts_ == 1 ? "" : "s", elapsed_s()),
                       kind, head_complete_ ? head_.status : 0);
}

std::optional<double> HttpAttempts::judge_end(const ExchangeEnd& end) {
  if (end.thrown) std::rethrow_exception(end.thrown);
  return conclude(end);
}

std::optional<double> HttpAttempts::ended(const ExchangeEnd& end) {
  if (!follows_) count_exchange(end);
  if (method_.empty() || !log_enabled()) return judge_end(end);
  retry_reason_.clear();
  const std::string line = format_exchange(end);  // before a retry forgets it
  try {
    const std::optional<double> again_s = judge_end(end);
    log_debug(retry_reason_.empty()
                  ? line
                  : fmt::format("{}; again in {:.3f} s: {}", line, *again_s, retry_reason_));
    return again_s;
  } catch (const std::exception& error) {
    log_debug(fmt::format("{}; failed: {}", line, error.what()));
    throw;
  }
}

void HttpAttempts::count_exchange(const ExchangeEnd& end) {
  on_wire_ = false;
  metrics().in_flight.add(-1);
  metrics().bytes_sent.fetch_add(end.sent_nbytes, std::memory_order_relaxed);
  metrics().bytes_received.fetch_add(body_nbytes_, std::memory_order_relaxed);
  metrics().connections_opened.fetch_add(end.connections_opened, std::memory_order_relaxed);
  if (end.first_byte_us == 0) return;
  // It had an answer: over a connection of before, unless it opened one.
  if (end.connections_opened == 0) {
    metrics().connections_reused.fetch_add(1, std::memory_order_relaxed);
  }
  saw_answer(end);
}

// One line for people, without secrets: neither headers nor a query.
std::string HttpAttempts::format_exchange(const ExchangeEnd& end) const {
  std::string line = fmt::format("{} {}", method_, object().name());
  if (redirected_to_) line += fmt::format(" at {}", redirected_to_->display());
  line += describe_request();
  line += head_complete_ ? fmt::format(": HTTP {}", head_.status) : ": no answer";
  if (end.sent_nbytes != 0) line += fmt::format(", {} bytes sent", end.sent_nbytes);
  line += fmt::format(", {} bytes", body_nbytes_);
  if (end.first_byte_us != 0) {
    line += fmt::format(", {} connection, first byte {:.1f} ms",
                        end.connections_opened == 0 ? "known" : "new",
                        static_cast<double>(end.first_byte_us) * 1e-3);
  }
  const std::chrono::duration<double, std::milli> total = Clock::now() - sent_;
  return line + fmt::format(", total {:.1f} ms, attempt {}", total.count(), attempts_);
}

void HttpAttempts::count_retry(TransportMetrics::Counter& counter, const std::string& reason) {
  metrics().retries.fetch_add(1, std::memory_order_relaxed);
  counter.fetch_add(1, std::memory_order_relaxed);
  if (log_enabled()) retry_reason_ = reason;
}

void HttpAttempts::fail_deadline() const {
  fail(fmt::format("not done within the deadline of {} s", *limit_s_), Kind::kTimeout);
}

}  // namespace torchnpy
