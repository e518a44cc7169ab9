#include "transport/http_read.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/log.h"
#include "transport/hedged_read.h"
#include "transport/words.h"

namespace torchnpy {
namespace {

constexpr size_t kMaxUnreadNbytes = 64 << 10;
// To read so much that nobody wants costs less than a new connection.
constexpr uint64_t kDrainNbytes = 64 << 10;

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

}  // namespace

HttpRead::HttpRead(std::shared_ptr<HttpSource> source, Range range, Sink& sink, const void* key,
                   std::shared_ptr<HedgedRead> hedge)
    : HttpAttempts(source->shared_object(), source->context(), source.get(), key),
      source_(std::move(source)),
      range_(range),
      sink_(sink),
      hedge_(std::move(hedge)) {
  share_key = make_share_key(*source_, range);
  if (range.offset != 0) {
    owner_limit = experience().parts_in_flight(settings()->io_threads);
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
  begin_attempt();
  const std::shared_ptr<const Version> pinned = version_ ? version_ : source_->version();
  if (pinned && pinned->nbytes && *pinned->nbytes > position_) clamp_to(*pinned->nbytes);
  answer_ = Answer::kNone;
  skip_nbytes_ = 0;

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
  return headers;
}

HttpRequest HttpRead::begin() {
  if (attempts_ > 0 && Clock::now() >= deadline) fail_deadline();
  HttpRequest request = make_request({prepare()});
  if (hedge_ != nullptr) {
    if (const auto late_us = experience().late_us()) {
      slow_at = Clock::now() + std::chrono::microseconds(*late_us);
    }
  }
  if (log_enabled()) asked_range_ = ranged_ ? ' ' + format_range() : "";
  note_request(request);
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
  const bool is_same =
      settings() == other.settings() && object().identity() == other.object().identity() &&
      ranged_ == other.ranged_ && format_range() == other.format_range() &&
      conditional_ == other.conditional_ && condition_ == other.condition_ &&
      offered_tag() == other.offered_tag() && !redirected_to_ && !other.redirected_to_;
  if (!is_same) {
    if (!redirected_to_) --attempts_;
    return false;
  }
  url_ = other.url_;
  made_with_ = other.made_with_;
  follows_ = true;
  metrics().reads_shared.fetch_add(1, std::memory_order_relaxed);
  return true;
}

void HttpRead::slow() { hedge_->begin_second(); }

bool HttpRead::accept_head() {
  bool is_pinned = true;
  if (head_.status == 304 && offered_) {
    answer_ = accept_unchanged() ? Answer::kUnchanged : Answer::kOtherVersion;
    return answer_ != Answer::kOtherVersion;
  }
  if (head_.status == 206) {
    is_pinned = accept_part();
  } else if (head_.status == 200 || head_.status == 203) {
    is_pinned = accept_whole();
  } else {
    answer_ = is_redirect() ? Answer::kRedirect : Answer::kError;
    return true;
  }
  answer_ = is_pinned ? Answer::kData : Answer::kOtherVersion;
  // Only of an answer that is asked for without a range is it sure that it is of the whole object.
  if (!is_pinned || ranged_ || head_.status != 200 || !source_->asks_checksum()) return is_pinned;
  HttpResponse response;
  response.status = head_.status;
  response.headers = parse_headers(head_text_);
  if (const auto checksum = object().find_checksum(response)) {
    source_->learn_checksum(*checksum);
  }
  return true;
}

// False when the answer is from another version than what was read before.
bool HttpRead::accept_version(std::optional<uint64_t> nbytes) {
  const VersionSeen seen{nbytes, head_.etag, head_.last_modified};
  std::shared_ptr<const Version> pinned = source_->pin(seen, version_ == nullptr);
  if (pinned == nullptr) return false;
  const bool is_first = version_ == nullptr && range_.offset == 0 && !range_.from_end;
  version_ = std::move(pinned);
  if (version_->nbytes) clamp_to(*version_->nbytes);
  if (is_first && version_->nbytes) experience().saw_object(*version_->nbytes);
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
  metrics().cache_revalidations.fetch_add(1, std::memory_order_relaxed);
  return true;
}

bool HttpRead::body(ByteView bytes) {
  body_began_ = true;
  body_nbytes_ += bytes.size();
  if (answer_ == Answer::kError) return keep_body(bytes);
  if (answer_ != Answer::kData) return body_nbytes_ <= kMaxUnreadNbytes;
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
  if (complete_) return std::nullopt;
  if (end.fault == Fault::kDeadline) fail_deadline();
  switch (answer_) {
    case Answer::kData: return end_data(end);
    case Answer::kUnchanged: return std::nullopt;
    case Answer::kRedirect: return follow_redirect();
    case Answer::kError: return end_failure();
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

std::optional<double> HttpRead::end_failure() {
  if (head_.status == 412 && conditional_) return restart();
  if (head_.status == 416 && ranged_) return end_unsatisfiable();
  return end_error();
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
    count_retry(metrics().retries_learnt, "HTTP 416 without a size");
    return 0;
  }
  fail(fmt::format("HTTP 416 ({}) for {}", clean_words(head_.reason), format_range()));
}

// The object is not what it was. The only read of it may begin again.
double HttpRead::restart() {
  if (!restarted_ && source_->unpin(version_ != nullptr) && (!filled_any_ || sink_.restart())) {
    restarted_ = true;
    version_ = nullptr;
    leave_redirect();
    rewind();
    count_retry(metrics().retries_changed, "the object changed");
    return 0;
  }
  fail("expected the object to stay the same but it changed while it was read; load it again",
       Kind::kChanged);
}

void HttpRead::saw_answer(const ExchangeEnd& end) {
  metrics().first_byte_us.fetch_add(end.first_byte_us, std::memory_order_relaxed);
  metrics().first_byte.add(end.first_byte_us);
  experience().saw_answer(end.first_byte_us, body_nbytes_,
                          end.total_us - std::min(end.total_us, end.first_byte_us));
}

void HttpRead::finish(std::exception_ptr error) noexcept {
  if (on_wire_) metrics().in_flight.add(-1);
  if (hedge_ == nullptr) source_->count_read(made_, error);
  if (error) error = add_name(std::move(error), source_->name());
  sink_.done(std::move(error));
}

}  // namespace torchnpy
