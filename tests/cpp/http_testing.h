// What the tests of HTTP reads share: a sink that waits and a client with short back-offs.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "fault_server.h"
#include "transport/http.h"
#include "transport/metrics.h"

namespace torchnpy::testing {

// Collects a read's bytes and waits for its end.
class TestSink : public Sink {
 public:
  MutableBytes room(uint64_t offset, size_t want) override {
    const std::lock_guard lock(mutex_);
    if (bytes_.empty() && first_ == kNone) first_ = offset;
    if (bytes_.size() >= limit) return {};
    buffer_.resize(std::min(want, room_nbytes));
    return {reinterpret_cast<uint8_t*>(buffer_.data()), buffer_.size()};
  }
  void filled(uint64_t offset, size_t nbytes) override {
    const std::lock_guard lock(mutex_);
    if (offset != first_ + bytes_.size()) throw ArgumentError("filled out of order");
    bytes_.append(buffer_, 0, nbytes);
    changed_.notify_all();
  }
  bool restart() override {
    const std::lock_guard lock(mutex_);
    if (!can_restart) return false;
    ++restarts;
    bytes_.clear();
    first_ = kNone;
    return true;
  }
  void done(std::exception_ptr error) override {
    const std::lock_guard lock(mutex_);
    error_ = std::move(error);
    ++done_;
    changed_.notify_all();
  }

  // The bytes, or "error: " and the message.
  std::string wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return done_ > 0; });
    EXPECT_EQ(done_, 1);
    try {
      if (error_) std::rethrow_exception(error_);
    } catch (const std::exception& error) {
      const std::string text = error.what();
      return "error: " + text;
    }
    return bytes_;
  }
  // Until so many bytes have arrived, in a read that goes on.
  void wait_for_bytes(size_t nbytes) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return bytes_.size() >= nbytes; });
  }
  TransportError transport_error() {
    wait();
    try {
      if (error_) std::rethrow_exception(error_);
    } catch (const TransportError& error) {
      return error;
    }
    throw std::runtime_error("no transport error");
  }

  size_t room_nbytes = SIZE_MAX;  // that room() gives at once
  size_t limit = SIZE_MAX;        // bytes that are wanted
  bool can_restart = false;
  int restarts = 0;

 private:
  static constexpr uint64_t kNone = UINT64_MAX;
  uint64_t first_ = kNone;
  std::string buffer_;
  std::string bytes_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int done_ = 0;
  std::exception_ptr error_;
};

struct TestClient {
  std::shared_ptr<ClientOptions> options = std::make_shared<ClientOptions>();
  std::shared_ptr<TransportMetrics> metrics = std::make_shared<TransportMetrics>();
  TestClient() {
    options->backoff_s = 0.001;
    options->retries = 3;
    options->proxy = "";
  }
  std::shared_ptr<Source> open(const std::string& url) {
    return open_http(make_plain_object(url, options), context());
  }
  // Of the options as they are at the first call.
  std::shared_ptr<HttpContext> context() {
    if (context_ == nullptr) context_ = make_http_context(options, metrics);
    return context_;
  }

 private:
  std::shared_ptr<HttpContext> context_;
};

inline std::string make_object(size_t nbytes) {
  std::string object(nbytes, '\0');
  for (size_t i = 0; i < nbytes; ++i) object[i] = static_cast<char>('a' + i * 7 % 26);
  return object;
}

using Texts = std::vector<std::string>;

// Of "0123456789": "234567".
inline constexpr Range kMiddle{2, 6};
inline const Step kGood{};

}  // namespace torchnpy::testing
