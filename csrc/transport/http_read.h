// One read of an HTTP object: attempts, each a request, until its bytes are with the sink.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"
#include "transport/engine.h"
#include "transport/http.h"
#include "transport/http_head.h"
#include "transport/http_source.h"
#include "transport/source.h"
#include "transport/url.h"

namespace torchnpy {

class HedgedRead;

class HttpRead final : public Job {
 public:
  // `sink` lives until its done(); `key` is what cancel_jobs() knows the read by, with the source.
  // `hedge`: told when the answer is late.
  HttpRead(std::shared_ptr<HttpSource> source, Range range, Sink& sink, const void* key,
           std::shared_ptr<HedgedRead> hedge = nullptr);

  HttpRequest begin() override;
  bool follow(const Job& leader) override;
  void slow() override;
  bool head(std::string_view line) override;
  bool body(ByteView bytes) override;
  std::optional<double> ended(const ExchangeEnd& end) override;
  std::optional<double> must_wait() noexcept override;
  void finish(std::exception_ptr error) noexcept override;

 private:
  // What is done with the body of the answer.
  enum class Answer { kNone, kData, kUnchanged, kRedirect, kError, kOtherVersion };

  void rewind();
  Headers prepare();
  HttpRequest make_request(Headers headers);
  std::string_view offered_tag() const;
  std::string format_range() const;
  void clamp_to(uint64_t nbytes);
  bool accept_version(std::optional<uint64_t> nbytes);
  void accept_head();
  bool accept_part();
  bool accept_whole();
  bool accept_unchanged();
  void check_encoding() const;
  std::optional<uint64_t> content_length() const;
  bool deliver(ByteView bytes);

  std::optional<double> end_data(const ExchangeEnd& end);
  std::optional<double> end_error();
  std::optional<double> end_unsatisfiable();
  double follow_redirect();
  double restart();
  double retry_fault(const ExchangeEnd& end);
  double retry(const std::string& reason, TransportError::Kind kind, double at_least_s,
               TransportMetrics::Counter& counter);
  void count_retry(TransportMetrics::Counter& counter, const std::string& reason);
  void count_exchange(const ExchangeEnd& end);
  std::string format_exchange(const ExchangeEnd& end) const;
  std::optional<double> conclude(const ExchangeEnd& end);
  [[noreturn]] void fail_deadline() const;
  [[noreturn]] void fail(const std::string& reason,
                         TransportError::Kind kind = TransportError::Kind::kOther) const;
  double elapsed_s() const;

  const std::shared_ptr<HttpSource> source_;
  const Range range_;
  Sink& sink_;
  const std::shared_ptr<HedgedRead> hedge_;

  // What is still to be read.
  bool suffix_ = false;  // the object's last range_.nbytes, wherever that begins
  uint64_t position_ = 0;
  uint64_t end_ = 0;
  bool complete_ = false;
  bool filled_any_ = false;
  std::shared_ptr<const Version> version_;  // of the bytes that were filled

  // The attempts so far.
  const Clock::time_point made_ = Clock::now();
  Clock::time_point started_;
  int attempts_ = 0;
  int immediate_retries_ = 0;
  int redirects_ = 0;
  double backoff_s_;
  bool restarted_ = false;
  bool without_range_ = false;        // the server knows no ranges
  std::optional<Url> redirected_to_;  // within this attempt
  bool is_elsewhere_ = false;         // a redirect led to a host that is not the object's

  // The exchange that runs.
  std::string url_;
  std::shared_ptr<const void> made_with_;
  bool on_wire_ = false;
  bool follows_ = false;  // another read's
  bool ranged_ = false;
  bool conditional_ = false;
  std::string condition_;                   // the tag in If-Match
  std::shared_ptr<const Version> offered_;  // that is asked for no more (HttpSource::offer)
  size_t heads_nbytes_ = 0;                 // of interim answers, the head and trailers
  std::string head_text_;
  HttpHead head_;  // views into head_text_
  bool head_complete_ = false;
  bool body_began_ = false;
  Answer answer_ = Answer::kNone;
  uint64_t skip_nbytes_ = 0;                 // of the body, before the range
  uint64_t body_nbytes_ = 0;                 // received
  std::optional<uint64_t> expected_nbytes_;  // of the body
  std::string error_body_;
  // For the log, while it is on.
  std::string method_;
  std::string asked_range_;
  Clock::time_point sent_;
  std::string retry_reason_;
};

}  // namespace torchnpy
