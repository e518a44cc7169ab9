// One request for reads of the same bytes, and two for one read.
#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "http_testing.h"
#include "transport/engine.h"
#include "transport/http.h"

namespace torchnpy {
namespace {

using namespace testing;

constexpr char kObject[] = "0123456789";

// Starts a read of `range` and returns when the server has its request, which is not answered yet.
struct SharedReads : ::testing::Test {
  void start_first(std::vector<Step> steps, Range range = kMiddle) {
    steps.front().delay_ms = 300;
    server.emplace(kObject, std::move(steps));
    first_source = client.open(server->url());
    first_source->start(range, first);
    server->wait_for_requests(1);
  }
  std::optional<FaultServer> server;
  TestClient client;
  std::shared_ptr<Source> first_source;
  TestSink first;
};

TEST_F(SharedReads, SameBytesAreAskedForOnce) {
  start_first({kGood});
  std::vector<TestSink> sinks(5);
  for (TestSink& sink : sinks) client.open(server->url())->start(kMiddle, sink);
  EXPECT_EQ(first.wait(), "234567");
  for (TestSink& sink : sinks) EXPECT_EQ(sink.wait(), "234567");
  EXPECT_EQ(server->ranges(), Texts{"bytes=2-7"});
  EXPECT_EQ(client.metrics->reads_shared, 5);
  EXPECT_EQ(client.metrics->requests, 1);
  EXPECT_EQ(client.metrics->bytes_received, 6);
}

TEST_F(SharedReads, OtherBytesObjectsAndClientsAreNot) {
  start_first({kGood});
  TestClient other_client;
  TestSink bytes;
  TestSink object;
  TestSink other;
  client.open(server->url())->start({2, 5}, bytes);
  client.open(server->url("/x.npy?version=2"))->start(kMiddle, object);
  other_client.open(server->url())->start(kMiddle, other);
  EXPECT_EQ(first.wait(), "234567");
  EXPECT_EQ(bytes.wait(), "23456");
  EXPECT_EQ(object.wait(), "234567");
  EXPECT_EQ(other.wait(), "234567");
  EXPECT_EQ(server->requests().size(), 4);
}

TEST_F(SharedReads, ReadThatComesAfterTheAnswerBeganAsksAnew) {
  start_first({{.stall_at = 3}, kGood});
  first.wait_for_bytes(3);
  TestSink late;
  client.open(server->url())->start(kMiddle, late);
  EXPECT_EQ(late.wait(), "234567");
  first_source->cancel(first);
  first.wait();
  EXPECT_EQ(server->requests().size(), 2);
}

TEST_F(SharedReads, CancelledReadLeavesTheOthers) {
  start_first({kGood});
  const auto source = client.open(server->url());
  TestSink cancelled;
  TestSink other;
  source->start(kMiddle, cancelled);
  client.open(server->url())->start(kMiddle, other);
  source->cancel(cancelled);
  EXPECT_EQ(cancelled.wait(), "error: interrupted: the read was cancelled");
  EXPECT_EQ(first.wait(), "234567");
  EXPECT_EQ(other.wait(), "234567");
  EXPECT_EQ(server->requests().size(), 1);
}

TEST_F(SharedReads, CancelledFirstReadLeavesTheRequestToTheOthers) {
  start_first({kGood});
  std::vector<TestSink> sinks(3);
  for (TestSink& sink : sinks) client.open(server->url())->start(kMiddle, sink);
  first_source->cancel(first);
  EXPECT_EQ(first.wait(), "error: interrupted: the read was cancelled");
  for (TestSink& sink : sinks) EXPECT_EQ(sink.wait(), "234567");
  EXPECT_EQ(server->requests().size(), 2);
}

TEST_F(SharedReads, EachCancelledInTheBodyEndsAlone) {
  start_first({{.stall_at = 3}, kGood});
  const auto source = client.open(server->url());
  TestSink cancelled;
  TestSink other;
  source->start(kMiddle, cancelled);
  client.open(server->url())->start(kMiddle, other);
  first.wait_for_bytes(3);
  cancelled.wait_for_bytes(3);
  source->cancel(cancelled);
  EXPECT_EQ(cancelled.wait(), "error: interrupted: the read was cancelled");
  // With the exchange goes the answer to the others: they resume where it stopped.
  first_source->cancel(first);
  EXPECT_EQ(first.wait(), "error: interrupted: the read was cancelled");
  EXPECT_EQ(other.wait(), "234567");
  EXPECT_EQ(server->ranges(), (Texts{"bytes=2-7", "bytes=5-7 if \"v1\""}));
}

TEST_F(SharedReads, FaultIsHealedForAll) {
  start_first({{.reset_at = 3}, kGood});
  std::vector<TestSink> sinks(3);
  for (TestSink& sink : sinks) client.open(server->url())->start(kMiddle, sink);
  EXPECT_EQ(first.wait(), "234567");
  for (TestSink& sink : sinks) EXPECT_EQ(sink.wait(), "234567");
}

TEST_F(SharedReads, ErrorIsEverybodys) {
  start_first({{.status = "404 Not Found"}});
  TestSink other;
  client.open(server->url())->start(kMiddle, other);
  EXPECT_EQ(first.transport_error().kind(), TransportError::Kind::kNotFound);
  EXPECT_EQ(other.transport_error().kind(), TransportError::Kind::kNotFound);
  EXPECT_EQ(server->requests().size(), 1);
}

TEST_F(SharedReads, OneThatFailsByItselfLeavesTheOthers) {
  class FailingSink : public TestSink {
   public:
    MutableBytes room(uint64_t, size_t) override { throw FormatError("no room"); }
  };
  start_first({kGood});
  FailingSink failing;
  TestSink other;
  client.open(server->url())->start(kMiddle, failing);
  client.open(server->url())->start(kMiddle, other);
  EXPECT_EQ(failing.wait(), "error: no room");
  EXPECT_EQ(first.wait(), "234567");
  EXPECT_EQ(other.wait(), "234567");
}

TEST_F(SharedReads, FirstThatFailsByItselfLeavesTheOthers) {
  class FailingSink : public TestSink {
   public:
    MutableBytes room(uint64_t, size_t) override { throw FormatError("no room"); }
  };
  FaultServer slow(kObject, {{.delay_ms = 300}, kGood});
  FailingSink failing;
  TestSink other;
  client.open(slow.url())->start(kMiddle, failing);
  slow.wait_for_requests(1);
  client.open(slow.url())->start(kMiddle, other);
  EXPECT_EQ(failing.wait(), "error: no room");
  EXPECT_EQ(other.wait(), "234567");
}

// A client that has seen prompt answers, and hedges.
struct Hedge : ::testing::Test {
  void serve(std::vector<Step> steps) {
    server.emplace(kObject, steps_after_warm_up(std::move(steps)));
    for (int i = 0; i < kWarmUp; ++i) {
      TestSink sink;
      client.open(server->url())->start({0, 1}, sink);
      EXPECT_EQ(sink.wait(), "0");
    }
    client.options->hedge = true;
  }
  std::vector<Step> steps_after_warm_up(std::vector<Step> steps) {
    std::vector<Step> all(kWarmUp, kGood);
    all.insert(all.end(), steps.begin(), steps.end());
    return all;
  }
  static constexpr int kWarmUp = 64;
  std::optional<FaultServer> server;
  TestClient client;
};

TEST_F(Hedge, SecondRequestAnswersALateOne) {
  serve({{.delay_ms = 2000}, kGood});
  TestSink sink;
  client.open(server->url())->start(kMiddle, sink);
  EXPECT_EQ(sink.wait(), "234567");
  EXPECT_EQ(client.metrics->hedges, 1);
  EXPECT_GE(client.metrics->hedges_won, 1u);
  EXPECT_EQ(client.metrics->errors, 0);
  EXPECT_EQ(client.metrics->total.count(), kWarmUp + 1);
}

TEST_F(Hedge, FirstRequestMayWinAllTheSame) {
  serve({{.delay_ms = 300}, {.delay_ms = 3000}});
  TestSink sink;
  client.open(server->url())->start(kMiddle, sink);
  EXPECT_EQ(sink.wait(), "234567");
  EXPECT_EQ(client.metrics->hedges, 1);
}

TEST_F(Hedge, CancelEndsBoth) {
  serve({{.delay_ms = 3000}});
  const auto source = client.open(server->url());
  TestSink sink;
  source->start(kMiddle, sink);
  server->wait_for_requests(kWarmUp + 2);
  source->cancel(sink);
  EXPECT_EQ(sink.wait(), "error: interrupted: the read was cancelled");
  while (client.metrics->in_flight.value() != 0) std::this_thread::yield();
}

TEST_F(Hedge, OneThatFailsDoesNotCountWhileTheOtherRuns) {
  serve({{.delay_ms = 300}, {.status = "404 Not Found"}});
  TestSink sink;
  client.open(server->url())->start(kMiddle, sink);
  EXPECT_EQ(sink.wait(), "234567");
}

TEST_F(Hedge, ErrorOfBothIsToldOnce) {
  serve({{.status = "404 Not Found", .delay_ms = 300}});
  TestSink sink;
  client.open(server->url())->start(kMiddle, sink);
  EXPECT_EQ(sink.transport_error().kind(), TransportError::Kind::kNotFound);
}

TEST_F(Hedge, StaysWithinFivePercentMoreRequests) {
  serve({{.delay_ms = 20}});
  for (int i = 0; i < 60; ++i) {
    TestSink sink;
    client.open(server->url())->start({0, 1}, sink);
    sink.wait();
  }
  EXPECT_LE(client.metrics->hedges * 20, client.metrics->requests);
}

TEST_F(Hedge, IsOffByDefault) {
  FaultServer slow(kObject, steps_after_warm_up({{.delay_ms = 300}}));
  for (int i = 0; i <= kWarmUp; ++i) {
    TestSink sink;
    client.open(slow.url())->start({0, 1}, sink);
    sink.wait();
  }
  EXPECT_EQ(client.metrics->hedges, 0);
  EXPECT_EQ(slow.requests().size(), kWarmUp + 1);
}

}  // namespace
}  // namespace torchnpy
