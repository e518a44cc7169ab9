// One command to an HTTP object, such as a PUT, until it is answered: attempts, each the whole of
// it.
#pragma once

#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "transport/http_attempts.h"

namespace torchnpy {

struct SendOptions {
  std::string subject{};  // for messages, after the object's name: "part 3"
  // Of a good answer that came whole: whether it tells of an error.
  bool (*holds_error)(const HttpResponse& response) = nullptr;
  std::optional<double> limit_s{};  // for all attempts together, beside the client's deadline_s
  bool is_farewell = false;
  size_t owner_limit = std::numeric_limits<size_t>::max();  // as Job's
};

struct SendResult {
  HttpResponse response;  // good: 2xx
  // In its place: TransportError (kExists: If-None-Match), InterruptedError.
  std::exception_ptr error;
  // The server may have done it at an attempt whose answer did not come.
  bool was_maybe_done = false;
};

class HttpSend final : public HttpAttempts {
 public:
  // Called once, on an I/O thread, when nothing reads the command's content any more; must be quick
  // and not throw.
  using Done = std::function<void(SendResult result)>;

  // `owner`: what cancel_jobs() knows it by, as owner and key.
  HttpSend(std::shared_ptr<HttpObject> object, std::shared_ptr<HttpContext> context,
           HttpCommand command, SendOptions options, const void* owner, Done done);

  HttpRequest begin() override;
  bool body(ByteView bytes) override;
  void finish(std::exception_ptr error) noexcept override;

 private:
  bool accept_head() override { return true; }
  std::optional<double> conclude(const ExchangeEnd& end) override;
  std::string describe_request() const override;

  const HttpCommand command_;
  const SendOptions options_;
  const Done done_;
  SendResult result_;
};

// Sends it and waits (base/wait.h). Interrupted, or given up: that is the result's error.
SendResult send_and_wait(std::shared_ptr<HttpObject> object, std::shared_ptr<HttpContext> context,
                         HttpCommand command, SendOptions options = {});

}  // namespace torchnpy
