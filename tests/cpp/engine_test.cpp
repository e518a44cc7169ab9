#include "transport/engine.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "forked_child.h"
#include "http_testing.h"

namespace torchnpy {
namespace {

using namespace testing;

// Sockets of this process that are connected to `port`.
int count_sockets_to(int port) {
  int count = 0;
  for (int descriptor = 0; descriptor < 1024; ++descriptor) {
    sockaddr_in address{};
    socklen_t length = sizeof address;
    if (getpeername(descriptor, reinterpret_cast<sockaddr*>(&address), &length) == 0 &&
        address.sin_family == AF_INET && ntohs(address.sin_port) == port) {
      ++count;
    }
  }
  return count;
}

TEST(Engine, CancelEndsAStalledReadAndAQueuedOne) {
  FaultServer server("0123456789", {{.stall_at = 4}});
  TestClient client;
  client.options->max_in_flight = 1;
  const auto source = client.open(server.url());
  TestSink running;
  TestSink queued;
  source->start({}, running);
  server.wait_for_requests(1);
  source->start({}, queued);
  source->cancel(queued);
  EXPECT_EQ(queued.wait(), "error: interrupted: the read was cancelled");
  source->cancel(running);
  EXPECT_EQ(running.wait(), "error: interrupted: the read was cancelled");
  EXPECT_EQ(server.requests().size(), 1);
  EXPECT_EQ(client.metrics->in_flight.value(), 0);
}

TEST(Engine, CancelEndsManyQueuedReads) {
  FaultServer server("0123456789", {{.stall_at = 4}});
  TestClient client;
  client.options->max_in_flight = 1;
  const auto source = client.open(server.url());
  std::vector<TestSink> sinks(20'000);
  for (TestSink& sink : sinks) source->start({}, sink);
  for (TestSink& sink : sinks) source->cancel(sink);
  for (TestSink& sink : sinks) {
    EXPECT_EQ(sink.wait(), "error: interrupted: the read was cancelled");
  }
  EXPECT_EQ(client.metrics->in_flight.value(), 0);
}

TEST(Engine, CancelEndsAllReadsIntoOneSink) {
  class CountingSink : public Sink {
   public:
    MutableBytes room(uint64_t, size_t) override { return {}; }
    void filled(uint64_t, size_t) override {}
    void done(std::exception_ptr error) override { errors += error ? 1 : 0; }
    std::atomic<int> errors{0};
  };
  FaultServer server("0123456789", {{.stall_at = 0}});
  TestClient client;
  client.options->max_in_flight = 1;
  const auto source = client.open(server.url());
  CountingSink sink;
  for (int i = 0; i < 2'000; ++i) source->start({}, sink);
  source->cancel(sink);
  while (sink.errors < 2'000) std::this_thread::yield();
  EXPECT_EQ(client.metrics->errors, 0);  // what was cancelled is none
}

TEST(Engine, CancelEndsAReadThatWaitsForItsNextAttempt) {
  FaultServer server("",
                     {{.status = "503 Service Unavailable", .headers = "Retry-After: 100\r\n"}});
  TestClient client;
  const auto source = client.open(server.url());
  TestSink sink;
  source->start({}, sink);
  server.wait_for_requests(1);
  source->cancel(sink);
  EXPECT_EQ(sink.wait(), "error: interrupted: the read was cancelled");
}

TEST(Engine, ReadsThatAreCancelledAtAnyMomentEndOnce) {
  const std::string object = make_object(50'000);
  FaultServer server(object);
  TestClient client;
  client.options->max_in_flight = 4;
  const auto source = client.open(server.url());
  int ended_by_themselves = 0;
  for (int round = 0; round < 60; ++round) {
    std::vector<TestSink> sinks(8);
    for (TestSink& sink : sinks) source->start({}, sink);
    if (round % 2 == 0) sinks[0].wait_for_bytes(static_cast<size_t>(round) * 500);
    for (TestSink& sink : sinks) source->cancel(sink);
    for (TestSink& sink : sinks) {
      const std::string result = sink.wait();
      if (result == object) {
        ++ended_by_themselves;
      } else {
        EXPECT_EQ(result, "error: interrupted: the read was cancelled");
      }
    }
  }
  EXPECT_LT(ended_by_themselves, 60 * 8);
  EXPECT_EQ(client.metrics->in_flight.value(), 0);
}

TEST(Engine, ManyReadsOfTwoSourcesKeepTheirBytesApart) {
  const std::string a = make_object(3'000'000);
  const std::string b(3'000'000, '-');
  FaultServer server_a(a);
  FaultServer server_b(b);
  TestClient client;
  const auto source_a = client.open(server_a.url());
  const auto source_b = client.open(server_b.url());
  constexpr size_t kCount = 100;
  constexpr size_t kPart = 30'000;
  std::vector<TestSink> sinks(2 * kCount);
  for (size_t i = 0; i < kCount; ++i) {
    source_a->start({i * kPart, kPart}, sinks[2 * i]);
    source_b->start({i * kPart, kPart}, sinks[2 * i + 1]);
  }
  for (size_t i = 0; i < kCount; ++i) {
    EXPECT_EQ(sinks[2 * i].wait(), a.substr(i * kPart, kPart));
    EXPECT_EQ(sinks[2 * i + 1].wait(), b.substr(i * kPart, kPart));
  }
  EXPECT_EQ(client.metrics->requests, 2 * kCount);
  EXPECT_EQ(client.metrics->bytes_received, 2 * kCount * kPart);
  EXPECT_LE(server_a.connections() + server_b.connections(), 128);
}

TEST(Engine, RequestsInFlightStayUnderTheClientsCap) {
  FaultServer server("0123456789", {{.stall_at = 0}});
  TestClient client;
  client.options->max_in_flight = 3;
  const auto source = client.open(server.url());
  std::vector<TestSink> sinks(10);
  for (size_t i = 0; i < sinks.size(); ++i) source->start({0, i + 1}, sinks[i]);
  server.wait_for_requests(3);
  EXPECT_EQ(client.metrics->in_flight.value(), 3);
  for (TestSink& sink : sinks) source->cancel(sink);
  for (TestSink& sink : sinks) sink.wait();
  EXPECT_EQ(client.metrics->in_flight.value(), 0);
}

TEST(Engine, TlsIsVerifiedByDefault) {
  FaultServer server("0123456789", {kGood}, true);
  TestClient client;
  TestSink refused;
  client.open(server.url())->start({}, refused);
  const std::string text = refused.wait();
  EXPECT_NE(text.find(": TLS failed ("), std::string::npos) << text;
  EXPECT_NE(text.find("after 1 attempt"), std::string::npos) << text;
  EXPECT_EQ(server.requests().size(), 0);

  TestClient trusting;
  trusting.options->ca_bundle = server.ca_bundle();
  TestSink sink;
  trusting.open(server.url())->start(kMiddle, sink);
  EXPECT_EQ(sink.wait(), "234567");

  TestClient careless;
  careless.options->verify_tls = false;
  TestSink unverified;
  careless.open(server.url())->start(kMiddle, unverified);
  EXPECT_EQ(unverified.wait(), "234567");
}

class EngineFork : public ::testing::TestWithParam<bool> {  // over TLS
#ifdef __SANITIZE_THREAD__
  void SetUp() override { GTEST_SKIP() << "ThreadSanitizer refuses threads in a forked child"; }
#endif
};

TEST_P(EngineFork, ChildReadsWhileTheParentsReadsStall) {
  FaultServer server("0123456789", {{.stall_at = 4}, {.stall_at = 4}, kGood}, GetParam());
  TestClient client;
  client.options->ca_bundle = server.ca_bundle();
  const auto source = client.open(server.url());
  std::vector<TestSink> sinks(2);
  for (size_t i = 0; i < sinks.size(); ++i) source->start({0, 8 + i}, sinks[i]);
  for (TestSink& sink : sinks) sink.wait_for_bytes(4);
  const int result = run_in_child([&] {
    if (count_sockets_to(server.port()) != 0) return 1;
    if (client.metrics->in_flight.value() != 0) return 2;
    source->cancel(sinks[0]);  // the parent's
    for (const auto& used : {source, client.open(server.url())}) {
      TestSink sink;
      used->start(kMiddle, sink);
      if (sink.wait() != "234567") return 3;
    }
    return 0;
  });
  EXPECT_EQ(result, 0);
  EXPECT_EQ(client.metrics->in_flight.value(), 2);
  for (TestSink& sink : sinks) source->cancel(sink);
  for (TestSink& sink : sinks) sink.wait();
}

TEST_P(EngineFork, ChildReadsWhileTheParentsReadsGoOn) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "a fork inherits AddressSanitizer's own locks, held by the parent's threads";
#endif
  if (GetParam()) {
    GTEST_SKIP() << "a fork waits for the engine's TLS, not for that of the server's threads here; "
                    "test_processes.py has the server in a process of its own";
  }
  const std::string object = make_object(4'000'000);
  FaultServer server(object, {kGood}, GetParam());
  TestClient client;
  client.options->ca_bundle = server.ca_bundle();
  const auto source = client.open(server.url());
  std::atomic<bool> stop{false};
  std::atomic<int> wrong{0};
  // So that forks meet the engine in the middle of everything, its mutex locked included.
  std::thread reader([&] {
    while (!stop) {
      std::vector<TestSink> sinks(8);
      for (size_t i = 0; i < sinks.size(); ++i) source->start({i * 500'000, 500'000}, sinks[i]);
      for (size_t i = 0; i < sinks.size(); ++i) {
        if (sinks[i].wait() != object.substr(i * 500'000, 500'000)) ++wrong;
      }
    }
  });
  server.wait_for_requests(8);
  for (int i = 0; i < 10; ++i) {
    const int result = run_in_child([&] {
      if (count_sockets_to(server.port()) != 0) return 1;
      for (const auto& used : {source, client.open(server.url())}) {
        TestSink sink;
        used->start({100, 300'000}, sink);
        if (sink.wait() != object.substr(100, 300'000)) return 2;
      }
      return client.metrics->in_flight.value() == 0 ? 0 : 3;
    });
    EXPECT_EQ(result, 0);
  }
  stop = true;
  reader.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(client.metrics->retries, 0);  // the parent's connections survived
}

// A port that takes no connection and refuses none.
class SilentPort {
 public:
  SilentPort() {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof address;
    auto* const any = reinterpret_cast<sockaddr*>(&address);
    const int listener = add();
    if (bind(listener, any, length) != 0 || listen(listener, 0) != 0 ||
        getsockname(listener, any, &length) != 0) {
      throw std::runtime_error("no port to listen on");
    }
    port_ = ntohs(address.sin_port);
    for (int i = 0; i < 3; ++i) static_cast<void>(connect(add(), any, length));
  }
  ~SilentPort() {
    for (const int descriptor : descriptors_) ::close(descriptor);
  }
  int port() const { return port_; }

 private:
  int add() {
    descriptors_.push_back(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    return descriptors_.back();
  }

  std::vector<int> descriptors_;
  int port_ = 0;
};

// libcurl says nothing when it closes a socket that is still connecting; others get its number.
TEST_P(EngineFork, ChildKeepsFilesThatTookTheNumbersOfFailedConnections) {
  const SilentPort silent;
  TestClient client;
  client.options->retries = 1;
  client.options->connect_timeout_s = 0.2;
  TestSink failed;
  const auto source = client.open("http://127.0.0.1:" + std::to_string(silent.port()) + "/x");
  source->start({}, failed);
  EXPECT_EQ(failed.transport_error().kind(), TransportError::Kind::kTimeout);
  std::vector<int> files;
  for (int i = 0; i < 32; ++i) files.push_back(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  const int closed_count = run_in_child([&] {
    return static_cast<int>(
        std::ranges::count_if(files, [](int file) { return fcntl(file, F_GETFD) < 0; }));
  });
  for (const int file : files) ::close(file);
  EXPECT_EQ(closed_count, 0);
}

TEST_P(EngineFork, ExitWithATransferInFlightIsClean) {
  FaultServer server(make_object(1'000'000), {{.stall_at = 400'000}}, GetParam());
  TestClient client;
  client.options->ca_bundle = server.ca_bundle();
  for (int i = 0; i < 10; ++i) {
    const int result = run_in_child([&] {
      auto* sinks = new std::vector<TestSink>(4);  // as the threads that wait for them, alive
      const auto source = client.open(server.url());
      for (TestSink& sink : *sinks) source->start({}, sink);
      for (TestSink& sink : *sinks) sink.wait_for_bytes(100'000);
      // Not _exit(): the handlers of std::atexit run.
      std::exit(42);
      return 0;
    });
    EXPECT_EQ(result, 42);
  }
}

TEST_P(EngineFork, ReadsAfterTheShutdownAreInterrupted) {
  FaultServer server("0123456789", {kGood, {.stall_at = 4}}, GetParam());
  TestClient client;
  client.options->ca_bundle = server.ca_bundle();
  const int result = run_in_child([&] {
    const auto source = client.open(server.url());
    TestSink good;
    source->start({}, good);
    if (good.wait() != "0123456789") return 1;
    TestSink running;
    source->start({}, running);
    running.wait_for_bytes(4);
    shutdown_engine();
    if (running.wait() != "error: interrupted: the read was cancelled") return 2;
    TestSink late;
    source->start({}, late);
    if (late.wait() != "error: interrupted: the process is ending") return 3;
    source->cancel(late);
    shutdown_engine();
    return 0;
  });
  EXPECT_EQ(result, 0);
}

INSTANTIATE_TEST_SUITE_P(Transport, EngineFork, ::testing::Values(false, true),
                         [](const auto& tls) { return tls.param ? "Tls" : "Plain"; });

}  // namespace
}  // namespace torchnpy
