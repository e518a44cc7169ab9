// The attempts of one request to an object, until it has its answer: the policy of
// docs/transport.md, the same for what is read and for what is sent.
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
#include "transport/url.h"

namespace torchnpy {

class HttpAttempts : public Job {
 public:
  bool head(std::string_view line) final;
  std::optional<double> ended(const ExchangeEnd& end) final;
  std::optional<double> must_wait() noexcept final;

 protected:
  using Kind = TransportError::Kind;

  // `owner` and `key`: as Job's.
  HttpAttempts(std::shared_ptr<HttpObject> object, std::shared_ptr<HttpContext> context,
               const void* owner, const void* key);

  // head_ is that of the final answer. False ends the transfer.
  virtual bool accept_head() = 0;
  // What the end of an exchange means, as Job::ended(): by the calls below, mostly.
  virtual std::optional<double> conclude(const ExchangeEnd& end) = 0;
  // The request in a line of the log, after the object's name: " bytes=0-9".
  virtual std::string describe_request() const { return {}; }
  // An exchange had an answer.
  virtual void saw_answer(const ExchangeEnd&) {}

  // Begins an attempt, or the exchange that a redirect leads to.
  void begin_attempt();
  // The request of this attempt, at the object or where a redirect led.
  HttpRequest make_request(HttpCommand command);
  // It goes out now.
  void note_request(const HttpRequest& request);
  // The next bytes of a body that take_response() shall have. False: there are enough.
  bool keep_body(ByteView bytes);

  // After which the exchange begins again, in seconds; or they throw.
  double end_error();
  double follow_redirect();
  double retry_fault(const ExchangeEnd& end);
  double retry(const std::string& reason, Kind kind, double at_least_s,
               TransportMetrics::Counter& counter);
  void count_retry(TransportMetrics::Counter& counter, const std::string& reason);
  // Back to the object's own URL.
  void leave_redirect();

  [[noreturn]] void fail(const std::string& reason, Kind kind = Kind::kOther) const;
  [[noreturn]] void fail_deadline() const;

  HttpObject& object() const { return *object_; }
  const ClientOptions& options() const { return *context_->options; }
  TransportMetrics& metrics() const { return *context_->metrics; }
  Experience& experience() const { return context_->experience; }
  // The last answer; its body is moved out.
  HttpResponse take_response();
  bool is_redirect() const;

  std::string subject_;            // of the object, for messages: "part 3"
  std::optional<double> limit_s_;  // for all attempts together
  int attempts_ = 0;
  std::optional<Url> redirected_to_;  // within this attempt
  // The exchange that runs.
  std::string url_;
  std::shared_ptr<const void> made_with_;
  bool follows_ = false;  // another job's
  bool on_wire_ = false;
  HttpHead head_;  // views into head_text_
  bool head_complete_ = false;
  std::string head_text_;
  bool body_began_ = false;
  uint64_t body_nbytes_ = 0;                 // received
  std::optional<uint64_t> expected_nbytes_;  // of the body

 private:
  std::optional<double> judge_end(const ExchangeEnd& end);
  void count_exchange(const ExchangeEnd& end);
  std::string format_exchange(const ExchangeEnd& end) const;
  double elapsed_s() const;

  const std::shared_ptr<HttpObject> object_;
  const std::shared_ptr<HttpContext> context_;
  Clock::time_point started_;
  int immediate_retries_ = 0;
  int redirects_ = 0;
  double backoff_s_;
  bool is_elsewhere_ = false;  // a redirect led to a host that is not the object's
  size_t heads_nbytes_ = 0;    // of interim answers, the head and trailers
  std::string kept_body_;
  // For the log, while it is on.
  std::string method_;
  Clock::time_point sent_;
  std::string retry_reason_;
};

}  // namespace torchnpy
