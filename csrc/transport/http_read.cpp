#include "transport/http_read.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "base/log.h"
#include "transport/hedged_read.h"
#include "transport/words.h"

namespace torchnpy {
namespace {

using Kind = TransportError::Kind;

constexpr size_t kMaxHeadNbytes = 256 << 10;
constexpr size_t kMaxErrorNbytes = 64 << 10;
// To read so much that nobody wants costs less than a new connection.
constexpr uint64_t kDrainNbytes = 64 << 10;
constexpr int kMaxRedirects = 10;
constexpr int kMaxImmediateRetries = 3;
constexpr double kMaxBackoff_s = 15;

bool is_retried(int status) {
  return status == 408 || status == 429 || status == 500 || status == 502 || status == 503 ||
         status == 504;
}

bool is_redirect(int status) {
  return status == 301 || status == 302 || status == 303 || status == 307 || status == 308;
}

Kind kind_of(int status) {
  if (status == 404 || status == 410) return Kind::kNotFound;
  if (status == 401 || status == 403) return Kind::kDenied;
  return Kind::kOther;
}

// Reads with different ones differ; follow() compares those with the same.
uint64_t make_share_key(const HttpSource& source, const Range& range) {
  uint64_t key = std::hash<std::string>()(source.object().identity());
  for (const uint64_t part : {range.offset, range.nbytes, uint64_t{range.from_end},
                              reinterpret_cast<uint64_t>(source.settings().get())}) {
    key = (key ^ part) * 0x9E3779B97F4A7C15;  // 2^64 over the golden ratio: spreads the bits
    key ^= key >> 32;
  }
  return key | 1;  // 0 is none
}

double draw(double low, double high) {
  thread_local std::minstd_rand generator(std::random_device{}());
  return low < high ? std::uniform_real_distribution<double>(low, high)(generator) : low;
}

}  // namespace

HttpRead::HttpRead(std::shared_ptr<HttpSource> source, Range range, Sink& sink, const void* key,
                   std::shared_ptr<HedgedRead> hedge)
    : Job(source->settings(), source.get(), key),
      source_(std::move(source)),
      range_(range),
      sink_(sink),
      hedge_(std::move(hedge)),
      backoff_s_(source_->options().backoff_s) {
  share_key = make_share_key(*source_, range);
  if (range.offset != 0) {
    owner_limit = source_->experience().parts_in_flight(settings()->io_threads);
  }
  rewind();
}

void HttpRead::rewind() {
  suffix_ = range_.from_end;
  position_ = suffix_ ? 0 : range_.offset;
  end_ = suffix_ || range_.nbytes > Range::kToEnd - range_.offset ? Range::kToEnd
                                                                  : range_.offset + range_.nbytes;
  filled_any_ = false;
}

// Now that the object's size is known.
void HttpRead::clamp_to(uint64_t nbytes) {
  if (std::exchange(suffix_, false)) position_ = nbytes - std::min(nbytes, range_.nbytes);
  end_ = std::min(end_, nbytes);
}

std::string HttpRead::format_range() const {
  if (suffix_) return fmt::format("bytes=-{}", range_.nbytes);
  if (end_ == Range::kToEnd) return fmt::format("bytes={}-", position_);
  return fmt::format("bytes={}-{}", position_, end_ - 1);
}

// Begins an attempt: what its request says of the range.
Headers HttpRead::prepare() {
  if (attempts_ == 0) {
    started_ = Clock::now();
    if (const std::optional<double> deadline_s = source_->options().deadline_s) {
      deadline = started_ + std::chrono::duration_cast<Clock::duration>(
                                std::chrono::duration<double>(std::min(*deadline_s, 1e8)));
    }
  }
  if (!redirected_to_) ++attempts_;
  const std::shared_ptr<const Version> pinned = version_ ? version_ : source_->version();
  if (pinned && pinned->nbytes && *pinned->nbytes > position_) clamp_to(*pinned->nbytes);
  head_text_.clear();
  heads_nbytes_ = 0;
  head_complete_ = body_began_ = false;
  answer_ = Answer::kNone;
  skip_nbytes_ = body_nbytes_ = 0;
  expected_nbytes_.reset();
  error_body_.clear();

  Headers headers;
  headers.emplace_back("Accept-Encoding", "identity");
  ranged_ = !without_range_ && (suffix_ || position_ != 0 || end_ != Range::kToEnd);
  if (ranged_) headers.emplace_back("Range", format_range());
  conditional_ = pinned && pinned->has_strong_etag();
  if (conditional_) headers.emplace_back("If-Match", condition_ = pinned->etag);
  offered_ = pinned ? nullptr : source_->offered();
  if (offered_) {
    const bool strong = offered_->has_strong_etag();
    headers.emplace_back(strong ? "If-None-Match" : "If-Modified-Since", offered_tag());
  }
  follows_ = false;
  return headers;
}

HttpRequest HttpRead::make_request(Headers headers) {
  if (!redirected_to_) return source_->object().make_request(std::move(headers));
  if (!is_elsewhere_) {
    if (auto request = source_->object().make_request_at(*redirected_to_, headers)) {
      return std::move(*request);
    }
  }
  // From here on the next host is not the user's choice, even if it is the first again.
  is_elsewhere_ = true;
  return {redirected_to_->request(), std::move(headers)};
}

HttpRequest HttpRead::begin() {
  if (attempts_ > 0 && Clock::now() >= deadline) fail_deadline();
  HttpRequest request = make_request(prepare());
  url_ = request.url;
  made_with_ = request.made_with;
  if (hedge_ != nullptr) {
    if (const auto late_us = source_->experience().late_us()) {
      slow_at = Clock::now() + std::chrono::microseconds(*late_us);
    }
  }
  if (log_enabled()) {
    method_ = request.method;
    asked_range_ = ranged_ ? format_range() : "";
    sent_ = Clock::now();
  }
  on_wire_ = true;
  source_->metrics().requests.fetch_add(1, std::memory_order_relaxed);
  source_->metrics().in_flight.add(1);
  return request;
}

// What the request of an offered version says of it; "" for none.
std::string_view HttpRead::offered_tag() const {
  if (offered_ == nullptr) return {};
  return offered_->has_strong_etag() ? offered_->etag : offered_->modified;
}

bool HttpRead::follow(const Job& leader) {
  const auto& other = static_cast<const HttpRead&>(leader);  // none but reads have a share_key
  prepare();
  const bool is_same = settings() == other.settings() &&
                       source_->object().identity() == other.source_->object().identity() &&
                       ranged_ == other.ranged_ && format_range() == other.format_range() &&
                       conditional_ == other.conditional_ && condition_ == other.condition_ &&
                       offered_tag() == other.offered_tag() && !redirected_to_ &&
                       !other.redirected_to_;
  if (!is_same) {
    if (!redirected_to_) --attempts_;
    return false;
  }
  url_ = other.url_;
  made_with_ = other.made_with_;
  follows_ = true;
  source_->metrics().reads_shared.fetch_add(1, std::memory_order_relaxed);
  return true;
}

void HttpRead::slow() { hedge_->begin_second(); }

bool HttpRead::head(std::string_view line) {
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
  accept_head();
  return answer_ != Answer::kOtherVersion;
}

void HttpRead::accept_head() {
  bool is_pinned = true;
  if (head_.status == 304 && offered_) {
    answer_ = accept_unchanged() ? Answer::kUnchanged : Answer::kOtherVersion;
    return;
  }
  if (head_.status == 206) {
    is_pinned = accept_part();
  } else if (head_.status == 200 || head_.status == 203) {
    is_pinned = accept_whole();
  } else {
    answer_ =
        is_redirect(head_.status) && !head_.location.empty() ? Answer::kRedirect : Answer::kError;
    return;
  }
  answer_ = is_pinned ? Answer::kData : Answer::kOtherVersion;
  // Only of an answer that is asked for without a range is it sure that it is of the whole object.
  if (!is_pinned || ranged_ || head_.status != 200 || !source_->asks_checksum()) return;
  HttpResponse response;
  response.status = head_.status;
  response.headers = parse_headers(head_text_);
  if (const auto checksum = source_->object().find_checksum(response)) {
    source_->learn_checksum(*checksum);
  }
}

// False when the answer is from another version than what was read before.
bool HttpRead::accept_version(std::optional<uint64_t> nbytes) {
  const VersionSeen seen{nbytes, head_.etag, head_.last_modified};
  std::shared_ptr<const Version> pinned = source_->pin(seen, version_ == nullptr);
  if (pinned == nullptr) return false;
  const bool is_first = version_ == nullptr && range_.offset == 0 && !range_.from_end;
  version_ = std::move(pinned);
  if (version_->nbytes) clamp_to(*version_->nbytes);
  if (is_first && version_->nbytes) source_->experience().saw_object(*version_->nbytes);
  return true;
}

void HttpRead::check_encoding() const {
  const std::string_view encoding = head_.content_encoding;
  // "aws-chunked" is a remnant of the upload that some stores keep; it encodes nothing here.
  if (encoding.empty() || encoding == "identity" || encoding == "aws-chunked") return;
  fail(
      fmt::format("expected bytes as they are but found Content-Encoding {}; store the object "
                  "without it",
                  clean_words(encoding)));
}

// Empty when the answer has none. One that is no number is none to guess at: without a length a
// body that is cut short looks whole.
std::optional<uint64_t> HttpRead::content_length() const {
  if (head_.content_length.empty()) return std::nullopt;
  const std::optional<uint64_t> length = parse_decimal(head_.content_length);
  if (!length) {
    fail(fmt::format("expected a Content-Length but found \"{}\"",
                     clean_words(head_.content_length)));
  }
  return length;
}

// 206.
bool HttpRead::accept_part() {
  const std::optional<ContentRange> range = parse_content_range(head_.content_range);
  if (!ranged_ || !range || !range->satisfied) {
    fail(fmt::format("expected {} but found HTTP 206 with Content-Range \"{}\"",
                     ranged_ ? "a Content-Range for " + format_range() : "the whole object",
                     clean_words(head_.content_range)));
  }
  const std::string asked = format_range();
  if (!accept_version(range->total)) return false;
  check_encoding();
  const uint64_t nbytes = range->last - range->first + 1;
  if (suffix_ && nbytes <= range_.nbytes) {  // the total is unknown: the server says where it is
    suffix_ = false;
    position_ = range->first;
    end_ = range->last + 1;
  }
  if (end_ == Range::kToEnd) end_ = range->last + 1;
  if (suffix_ || range->first != position_ || range->last != end_ - 1) {
    fail(fmt::format("expected a Content-Range for {} but found \"{}\"", asked,
                     clean_words(head_.content_range)));
  }
  const std::optional<uint64_t> length = content_length();
  if (length && *length != nbytes) {
    fail(fmt::format("expected a Content-Length of {} bytes but found {}", nbytes, *length));
  }
  expected_nbytes_ = nbytes;
  return true;
}

// 200: the whole object, asked for or not.
bool HttpRead::accept_whole() {
  const std::optional<uint64_t> length = content_length();
  const bool was_suffix = suffix_;
  if (!accept_version(length)) return false;
  check_encoding();
  // The rest comes anyway: a sink that wants it need not ask again, for the whole object again.
  if (was_suffix) position_ = 0;
  suffix_ = false;
  if (ranged_) end_ = length.value_or(Range::kToEnd);
  skip_nbytes_ = position_;
  expected_nbytes_ = length;
  if (position_ >= end_) complete_ = true;
  return true;
}

// 304: the object is the version that was offered.
bool HttpRead::accept_unchanged() {
  const VersionSeen seen{offered_->nbytes, offered_->etag, offered_->modified};
  std::shared_ptr<const Version> pinned = source_->pin(seen, version_ == nullptr);
  if (pinned == nullptr) return false;
  version_ = std::move(pinned);
  source_->set_unchanged();
  source_->metrics().cache_revalidations.fetch_add(1, std::memory_order_relaxed);
  return true;
}

bool HttpRead::body(ByteView bytes) {
  body_began_ = true;
  body_nbytes_ += bytes.size();
  if (answer_ == Answer::kError) {
    const size_t room = kMaxErrorNbytes - error_body_.size();
    error_body_ += as_text(bytes.first(std::min(room, bytes.size())));
    return bytes.size() < room;
  }
  if (answer_ != Answer::kData) return body_nbytes_ <= kMaxErrorNbytes;
  if (expected_nbytes_ && body_nbytes_ > *expected_nbytes_) {
    fail(fmt::format("expected a body of {} bytes but found more", *expected_nbytes_));
  }
  const size_t skipped = static_cast<size_t>(std::min<uint64_t>(skip_nbytes_, bytes.size()));
  skip_nbytes_ -= skipped;
  if (!complete_) complete_ = deliver(bytes.subspan(skipped));
  return !complete_ || (expected_nbytes_ && *expected_nbytes_ - body_nbytes_ <= kDrainNbytes);
}

// True when the read needs no more.
bool HttpRead::deliver(ByteView bytes) {
  while (!bytes.empty() && position_ < end_) {
    const auto want = static_cast<size_t>(std::min<uint64_t>(bytes.size(), end_ - position_));
    const MutableBytes room = sink_.room(position_, want);
    if (room.empty()) return true;
    const size_t nbytes = std::min(room.size(), want);
    std::memcpy(room.data(), bytes.data(), nbytes);
    sink_.filled(position_, nbytes);
    filled_any_ = true;
    position_ += nbytes;
    bytes = bytes.subspan(nbytes);
  }
  return position_ >= end_;
}

std::optional<double> HttpRead::conclude(const ExchangeEnd& end) {
  if (end.thrown) std::rethrow_exception(end.thrown);
  if (complete_) return std::nullopt;
  if (end.fault == Fault::kDeadline) {
    fail_deadline();
  }
  switch (answer_) {
    case Answer::kData: return end_data(end);
    case Answer::kUnchanged: return std::nullopt;
    case Answer::kRedirect: return follow_redirect();
    case Answer::kError: return end_error();
    case Answer::kOtherVersion: return restart();
    case Answer::kNone: break;
  }
  return retry_fault(end);
}

std::optional<double> HttpRead::end_data(const ExchangeEnd& end) {
  if (end.fault != Fault::kNone) return retry_fault(end);
  if (expected_nbytes_ && body_nbytes_ < *expected_nbytes_) {
    ExchangeEnd cut = end;
    cut.fault = Fault::kShortBody;
    return retry_fault(cut);
  }
  // A body of unknown length has told the object's size by ending.
  if (!expected_nbytes_) source_->pin({body_nbytes_, {}, {}}, false);
  return std::nullopt;
}

std::optional<double> HttpRead::end_error() {
  if (head_.status == 412 && conditional_) return restart();
  if (head_.status == 416 && ranged_) return end_unsatisfiable();
  HttpResponse response;
  response.status = head_.status;
  response.headers = parse_headers(head_text_);
  response.body = std::move(error_body_);
  response.made_with = made_with_;
  const Verdict verdict = source_->object().judge(response);
  const std::string words = clean_words(verdict.message.empty() ? head_.reason : verdict.message);
  const std::string reason = fmt::format("HTTP {}{}{}{}", head_.status, words.empty() ? "" : " (",
                                         words, words.empty() ? "" : ")");
  if (verdict.action == Verdict::Action::kRetryNow && immediate_retries_ < kMaxImmediateRetries) {
    ++immediate_retries_;
    redirected_to_.reset();
    is_elsewhere_ = false;
    count_retry(source_->metrics().retries_learnt, reason);
    return 0;
  }
  // What was learnt too often did not help.
  if (verdict.action != Verdict::Action::kRetry && !is_retried(head_.status)) {
    fail(reason, kind_of(head_.status));
  }
  return retry(reason, kind_of(head_.status),
               parse_retry_after(head_.retry_after, head_.date).value_or(0),
               source_->metrics().retries_status);
}

// 416: the object ends before the range begins; an empty one always does.
std::optional<double> HttpRead::end_unsatisfiable() {
  const std::optional<ContentRange> range = parse_content_range(head_.content_range);
  if (range && range->total) {
    const bool was_suffix = suffix_;
    if (!accept_version(range->total)) return restart();
    if (was_suffix || position_ >= *range->total) return std::nullopt;
  } else if (suffix_ || position_ == 0) {
    // Only an empty object has no first byte; that the server means this, its 200 shows.
    without_range_ = true;
    count_retry(source_->metrics().retries_learnt, "HTTP 416 without a size");
    return 0;
  }
  fail(fmt::format("HTTP 416 ({}) for {}", clean_words(head_.reason), format_range()));
}

double HttpRead::follow_redirect() {
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
  source_->metrics().redirects.fetch_add(1, std::memory_order_relaxed);
  return 0;
}

// The object is not what it was. The only read of it may begin again.
double HttpRead::restart() {
  if (!restarted_ && source_->unpin(version_ != nullptr) && (!filled_any_ || sink_.restart())) {
    restarted_ = true;
    version_ = nullptr;
    redirected_to_.reset();
    is_elsewhere_ = false;
    rewind();
    count_retry(source_->metrics().retries_changed, "the object changed");
    return 0;
  }
  fail("expected the object to stay the same but it changed while it was read; load it again",
       Kind::kChanged);
}

double HttpRead::retry_fault(const ExchangeEnd& end) {
  TransportMetrics& metrics = source_->metrics();
  const std::string detail =
      end.detail.empty() ? "" : fmt::format(" ({})", clean_words(end.detail));
  switch (end.fault) {
    case Fault::kDns:
      return retry("the host name was not resolved" + detail, Kind::kOther, 0,
                   metrics.retries_connection);
    case Fault::kConnect:
      return retry((end.system_error == 0 ? "no connection"
                                          : std::system_category().message(end.system_error)) +
                       detail,
                   Kind::kOther, 0, metrics.retries_connection);
    case Fault::kTimeout:
      return retry("timed out" + detail, Kind::kTimeout, 0, metrics.retries_timeout);
    case Fault::kStall:
      return retry(fmt::format("stalled: no byte for {} s", settings()->stall_timeout_s),
                   Kind::kTimeout, 0, metrics.retries_timeout);
    case Fault::kShortBody:
      return retry(expected_nbytes_ ? fmt::format("expected a body of {} bytes but found {}",
                                                  *expected_nbytes_, body_nbytes_)
                                    : "the body was cut short" + detail,
                   Kind::kOther, 0, metrics.retries_connection);
    case Fault::kTls: fail("TLS failed" + detail);
    case Fault::kBadRequest: fail("the request cannot be sent" + detail);
    case Fault::kOther: fail("the transfer failed" + detail);
    case Fault::kNone:
    case Fault::kReset:
    case Fault::kDeadline: break;
  }
  return retry("the connection was lost" + detail, Kind::kOther, 0, metrics.retries_connection);
}

// Decorrelated jitter: clients that failed together do not come back together.
double HttpRead::retry(const std::string& reason, Kind kind, double at_least_s,
                       TransportMetrics::Counter& counter) {
  const ClientOptions& options = source_->options();
  backoff_s_ = std::min(kMaxBackoff_s, draw(options.backoff_s, backoff_s_ * 3));
  const double delay_s = std::max(backoff_s_, at_least_s);
  const double left_s = std::chrono::duration<double>(deadline - Clock::now()).count();
  if (attempts_ >= options.retries || elapsed_s() + delay_s > options.retry_timeout_s ||
      delay_s > left_s) {
    fail(reason, kind);
  }
  redirected_to_.reset();
  is_elsewhere_ = false;
  redirects_ = 0;
  count_retry(counter, reason);
  return delay_s;
}

std::optional<double> HttpRead::must_wait() noexcept {
  constexpr double kPoll_s = 0.02;
  const bool is_late = Clock::now() >= deadline || elapsed_s() > source_->options().retry_timeout_s;
  return !is_late && source_->object().must_wait() ? std::optional(kPoll_s) : std::nullopt;
}

double HttpRead::elapsed_s() const {
  return std::chrono::duration<double>(Clock::now() - started_).count();
}

void HttpRead::fail(const std::string& reason, Kind kind) const {
  throw TransportError(fmt::format("{}: {} after {} attempt{} in {:.2f} s", source_->name(), reason,
                                   attempts_, attempts_ == 1 ? "" : "s", elapsed_s()),
                       kind, head_complete_ ? head_.status : 0);
}

void HttpRead::fail_deadline() const {
  fail(fmt::format("not done within the deadline of {} s", *source_->options().deadline_s),
       Kind::kTimeout);
}

void HttpRead::finish(std::exception_ptr error) noexcept {
  if (on_wire_) source_->metrics().in_flight.add(-1);
  if (hedge_ == nullptr) source_->count_read(made_, error);
  if (error) error = add_name(std::move(error), source_->name());
  sink_.done(std::move(error));
}

}  // namespace torchnpy
