#include "transport/http.h"

#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>
#include <string>

#include "base/error.h"
#include "fault_server.h"
#include "transport/metrics.h"

namespace torchnpy {
namespace {

using testing::FaultServer;
using testing::Step;

// Collects a read's bytes and waits for its end.
class TestSink final : public Sink {
 public:
  MutableBytes room(uint64_t offset, size_t want) override {
    if (bytes_.empty() && first_ == kNone) first_ = offset;
    if (bytes_.size() >= limit) return {};
    buffer_.resize(std::min(want, room_nbytes));
    return {reinterpret_cast<uint8_t*>(buffer_.data()), buffer_.size()};
  }
  void filled(uint64_t offset, size_t nbytes) override {
    if (offset != first_ + bytes_.size()) throw ArgumentError("filled out of order");
    bytes_.append(buffer_, 0, nbytes);
  }
  bool restart() override {
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

  // The bytes, or "error: " and the message up to " after ".
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
    return open_http(make_plain_object(url, options), options, metrics);
  }
};

TEST(Http, FirstRangeTellsTheSize) {
  FaultServer server("0123456789");
  TestClient client;
  const auto source = client.open(server.url());
  EXPECT_EQ(source->nbytes(), std::nullopt);
  TestSink sink;
  source->start({2, 4}, sink);
  EXPECT_EQ(sink.wait(), "2345");
  EXPECT_EQ(source->nbytes(), 10);
  EXPECT_EQ(server.ranges(), std::vector<std::string>{"bytes=2-5"});
}

TEST(Http, ReadAllReadsAll) {
  const std::string object(1'000'000, 'x');
  FaultServer server(object);
  TestClient client;
  EXPECT_EQ(read_all(*client.open(server.url()), 1'000'000), object);
  EXPECT_EQ(server.ranges(), std::vector<std::string>{"whole"});
}

}  // namespace
}  // namespace torchnpy
