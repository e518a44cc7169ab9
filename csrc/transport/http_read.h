// One read of an HTTP object: attempts, each a request, until its bytes are with the sink.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "transport/http_attempts.h"
#include "transport/source.h"

namespace torchnpy {

class HedgedRead;

class HttpRead final : public HttpAttempts {
 public:
  // `sink` lives until its done(); `key` is what cancel_jobs() knows the read by, with the source.
  // `hedge`: told when the answer is late.
  HttpRead(std::shared_ptr<HttpSource> source, Range range, Sink& sink, const void* key,
           std::shared_ptr<HedgedRead> hedge = nullptr);

  HttpRequest begin() override;
  bool follow(const Job& leader) override;
  void slow() override;
  bool body(ByteView bytes) override;
  void finish(std::exception_ptr error) noexcept override;

 private:
  // What is done with the body of the answer.
  enum class Answer { kNone, kData, kUnchanged, kRedirect, kError, kOtherVersion };

  void rewind();
  Headers prepare();
  std::string_view offered_tag() const;
  std::string format_range() const;
  void clamp_to(uint64_t nbytes);
  bool accept_version(std::optional<uint64_t> nbytes);
  bool accept_part();
  bool accept_whole();
  bool accept_unchanged();
  void check_encoding() const;
  std::optional<uint64_t> content_length() const;
  bool deliver(ByteView bytes);

  bool accept_head() override;
  std::optional<double> conclude(const ExchangeEnd& end) override;
  std::string describe_request() const override { return asked_range_; }
  void saw_answer(const ExchangeEnd& end) override;

  std::optional<double> end_data(const ExchangeEnd& end);
  std::optional<double> end_failure();
  std::optional<double> end_unsatisfiable();
  double restart();

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

  const Clock::time_point made_ = Clock::now();
  bool restarted_ = false;
  bool without_range_ = false;  // the server knows no ranges

  // The exchange that runs.
  bool ranged_ = false;
  bool conditional_ = false;
  std::string condition_;                   // the tag in If-Match
  std::shared_ptr<const Version> offered_;  // that is asked for no more (HttpSource::offer)
  Answer answer_ = Answer::kNone;
  uint64_t skip_nbytes_ = 0;  // of the body, before the range
  std::string asked_range_;   // " bytes=0-9", for the log while it is on
};

}  // namespace torchnpy
