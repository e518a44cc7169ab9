#include "transport/metrics.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <thread>
#include <vector>

#include "forked_child.h"
#include "http_testing.h"

namespace torchnpy {
namespace {

using namespace testing;

TEST(Histogram, IsZeroWithoutDurations) {
  const Histogram histogram;
  EXPECT_EQ(0u, histogram.count());
  EXPECT_EQ(0u, histogram.quantile_us(0.5));
}

TEST(Histogram, GivesADurationBackAtMostAnEighthTooLong) {
  for (uint64_t us = 0; us < 4'000'000'000; us = us * 17 / 16 + 1) {
    Histogram histogram;
    histogram.add(us);
    EXPECT_GE(histogram.quantile_us(1), us);
    EXPECT_LE(histogram.quantile_us(1), us + us / 8);
  }
}

TEST(Histogram, KeepsTheShortestApart) {
  for (uint64_t us = 0; us < 16; ++us) {
    Histogram histogram;
    histogram.add(us);
    EXPECT_EQ(us, histogram.quantile_us(0.5));
  }
}

TEST(Histogram, CountsWhatIsTooLongAsTheLongest) {
  Histogram histogram;
  histogram.add(UINT64_MAX);
  EXPECT_EQ(1u, histogram.count());
  EXPECT_GT(histogram.quantile_us(1), uint64_t{3600} * 1'000'000);
}

TEST(Histogram, HasTheQuantilesOfTheSortedDurations) {
  std::mt19937 generator(3);
  std::lognormal_distribution<double> draw(8, 2);
  Histogram histogram;
  std::vector<uint64_t> sorted;
  for (int i = 0; i < 5000; ++i) {
    sorted.push_back(static_cast<uint64_t>(draw(generator)));
    histogram.add(sorted.back());
  }
  std::ranges::sort(sorted);
  for (const double share : {0.0002, 0.1, 0.5, 0.9, 0.95, 0.99, 1.0}) {
    const auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(sorted.size())));
    const uint64_t exact = sorted[rank - 1];
    EXPECT_GE(histogram.quantile_us(share), exact) << share;
    EXPECT_LE(histogram.quantile_us(share), exact + exact / 8) << share;
  }
}

TEST(Histogram, CountsThoseOfAllThreads) {
  Histogram histogram;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (uint64_t us = 0; us < 1000; ++us) histogram.add(us);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(4000u, histogram.count());
}

TEST(Histogram, GoesOnInAForkedChildWithoutTheParentSeeingIt) {
  Histogram histogram;
  histogram.add(5);
  EXPECT_EQ(2, run_in_child([&] {
              histogram.add(5);
              return static_cast<int>(histogram.count());
            }));
  EXPECT_EQ(1u, histogram.count());
}

TEST(Gauge, KnowsTheMostAndBeginsAtZeroInAForkedChild) {
  Gauge gauge;
  gauge.add(3);
  gauge.add(-1);
  EXPECT_EQ(2, gauge.value());
  EXPECT_EQ(3, gauge.max());
  EXPECT_EQ(10, run_in_child([&] {
              const int before = gauge.value();
              gauge.add(1);
              return before * 100 + gauge.max() * 10;
            }));
  EXPECT_EQ(2, gauge.value());
}

double sum_of_reasons(const std::map<std::string, double>& metrics) {
  double sum = 0;
  for (const auto& [name, value] : metrics) {
    if (name.starts_with("retries_")) sum += value;
  }
  return sum;
}

// What a server does to one read, and the reason that counts.
struct Cause {
  const char* reason;
  Step step;
};

void PrintTo(const Cause& cause, std::ostream* out) { *out << cause.reason; }

class RetryCause : public ::testing::TestWithParam<Cause> {};

TEST_P(RetryCause, IsCounted) {
  FaultServer server("0123456789", {GetParam().step, kGood});
  TestClient client;
  client.options->stall_timeout_s = 0.1;
  TestSink sink;
  sink.can_restart = true;
  client.open(server.url())->start(kMiddle, sink);
  EXPECT_EQ("234567", sink.wait());
  const auto metrics = client.metrics->snapshot();
  EXPECT_EQ(1, metrics.at(GetParam().reason));
  EXPECT_EQ(1, metrics.at("retries"));
  EXPECT_EQ(1, sum_of_reasons(metrics));
  EXPECT_EQ(1, metrics.at("reads"));
  EXPECT_EQ(2, metrics.at("requests"));
}

INSTANTIATE_TEST_SUITE_P(Transport, RetryCause,
                         ::testing::Values(Cause{"retries_status",
                                                 {.status = "503 Service Unavailable"}},
                                           Cause{"retries_connection", {.reset_at = 3}},
                                           Cause{"retries_connection", {.close_at = SIZE_MAX}},
                                           Cause{"retries_timeout", {.stall_at = 2}}));

TEST(Metrics, CountAnObjectThatChangedAndALostMiddle) {
  FaultServer server(
      "0123456789",
      {{.reset_at = 2}, {.object = "abcdefghij", .etag = "\"v2\""}, {.etag = "\"v2\""}});
  TestClient client;
  TestSink sink;
  sink.can_restart = true;
  client.open(server.url())->start(kMiddle, sink);
  EXPECT_EQ("cdefgh", sink.wait());
  const auto metrics = client.metrics->snapshot();
  EXPECT_EQ(1, metrics.at("retries_connection"));
  EXPECT_EQ(1, metrics.at("retries_changed"));
  EXPECT_EQ(2, metrics.at("retries"));
  EXPECT_EQ(static_cast<double>(server.requests().size()), metrics.at("requests"));
}

TEST(Metrics, TellConnectionsThatWereOpenedFromThoseThatWereThere) {
  FaultServer server("0123456789");
  TestClient client;
  const auto source = client.open(server.url());
  for (int i = 0; i < 3; ++i) {
    TestSink sink;
    source->start(kMiddle, sink);
    sink.wait();
  }
  const auto metrics = client.metrics->snapshot();
  EXPECT_EQ(1, metrics.at("connections_opened"));
  EXPECT_EQ(2, metrics.at("connections_reused"));
  EXPECT_GT(metrics.at("first_byte_p50_s"), 0);
  EXPECT_GE(metrics.at("total_p99_s"), metrics.at("total_p50_s"));
  EXPECT_EQ(1, metrics.at("in_flight_max"));
  EXPECT_EQ(0, metrics.at("in_flight"));
}

}  // namespace
}  // namespace torchnpy
