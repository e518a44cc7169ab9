#include "archive/ordered_jobs.h"

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/wait.h"

namespace torchnpy {
namespace {

constexpr uint64_t kLong_ns = 1'000'000'000;

class Call final : public OrderedJobs::Job {
 public:
  Call(int place, std::function<void()> function) : number(place), function_(std::move(function)) {}
  void run() override { function_(); }
  const int number;

 private:
  const std::function<void()> function_;
};

void push(OrderedJobs& jobs, int number, std::function<void()> function, uint64_t cost_ns = 1000) {
  jobs.push(std::make_unique<Call>(number, std::move(function)), cost_ns);
}

int pop(OrderedJobs& jobs) { return static_cast<Call&>(*jobs.pop()).number; }

TEST(OrderedJobsTest, ComeBackInOrderEachDoneOnce) {
  for (const uint64_t cost_ns : {uint64_t{0}, uint64_t{10'000}, kLong_ns}) {
    OrderedJobs jobs(4);
    std::vector<std::atomic<int>> runs(1000);
    int next = 0;
    for (int i = 0; i < 1000; ++i) {
      push(jobs, i, [&runs, i] { ++runs[static_cast<size_t>(i)]; }, cost_ns);
      while (jobs.is_oldest_done()) EXPECT_EQ(pop(jobs), next++);
    }
    while (!jobs.is_empty()) EXPECT_EQ(pop(jobs), next++);
    EXPECT_EQ(next, 1000);
    for (const std::atomic<int>& count : runs) EXPECT_EQ(count, 1);
  }
}

TEST(OrderedJobsTest, OneThreadIsTheCallers) {
  OrderedJobs jobs(1);
  std::set<std::thread::id> threads;
  for (int i = 0; i < 100; ++i) {
    push(jobs, i, [&threads] { threads.insert(std::this_thread::get_id()); }, kLong_ns);
  }
  EXPECT_FALSE(jobs.is_oldest_done());
  for (int i = 0; i < 100; ++i) EXPECT_EQ(pop(jobs), i);
  EXPECT_EQ(threads, std::set{std::this_thread::get_id()});
}

TEST(OrderedJobsTest, WhatAJobThrowsComesOutOfPop) {
  OrderedJobs jobs(2);
  push(jobs, 0, [] {});
  push(jobs, 1, [] { throw std::runtime_error("broken"); });
  push(jobs, 2, [] {});
  EXPECT_EQ(pop(jobs), 0);
  try {
    jobs.pop();
    FAIL();
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "broken");
  }
  EXPECT_EQ(pop(jobs), 2);
}

TEST(OrderedJobsTest, NoJobRunsAfterTheEnd) {
  std::atomic<int> begun{0};
  std::atomic<int> ended{0};
  {
    OrderedJobs jobs(4);
    for (int i = 0; i < 200; ++i) {
      push(
          jobs, i,
          [&] {
            ++begun;
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
            ++ended;
          },
          kLong_ns);
    }
  }
  const int then = begun;
  EXPECT_EQ(ended, then);
  EXPECT_LT(then, 200);
  std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_EQ(begun, then);
}

TEST(OrderedJobsTest, CallerDestroysTheJobs) {
  const auto caller = std::this_thread::get_id();
  std::atomic<int> elsewhere{0};
  {
    OrderedJobs jobs(4);
    for (int i = 0; i < 100; ++i) {
      const std::shared_ptr<void> held(nullptr, [&](void*) {
        if (std::this_thread::get_id() != caller) ++elsewhere;
      });
      push(jobs, i, [held] {}, kLong_ns);
    }
    for (int i = 0; i < 50; ++i) pop(jobs);
  }
  EXPECT_EQ(elsewhere, 0);
}

TEST(OrderedJobsTest, InterruptEndsTheWaitAndTheWork) {
  const std::atomic<bool> wanted{true};
  const StopScope scope(wanted);
  for (const int threads : {1, 2}) {
    OrderedJobs jobs(threads);
    for (int i = 0; i < 100; ++i) {
      push(jobs, i, [] { std::this_thread::sleep_for(std::chrono::milliseconds(2)); }, kLong_ns);
    }
    EXPECT_THROW(
        {
          for (int i = 0; i < 100; ++i) pop(jobs);
        },
        InterruptedError);
  }
}

// Else a caller whose jobs others do in time would never be.
TEST(OrderedJobsTest, CallerIsInterruptedWhenItNeedNotWait) {
  OrderedJobs jobs(1);
  push(jobs, 0, [] {});
  push(jobs, 1, [] {});
  EXPECT_EQ(pop(jobs), 0);
  ASSERT_TRUE(jobs.is_oldest_done());
  std::this_thread::sleep_for(std::chrono::milliseconds(60));
  const std::atomic<bool> wanted{true};
  const StopScope scope(wanted);
  EXPECT_THROW(jobs.pop(), InterruptedError);
}

}  // namespace
}  // namespace torchnpy
