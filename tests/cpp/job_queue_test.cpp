#include "transport/job_queue.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "transport/http.h"

namespace torchnpy {
namespace {

class NamedJob final : public Job {
 public:
  NamedJob(std::shared_ptr<const EngineSettings> settings, std::string job_name,
           const void* owner = nullptr)
      : Job(std::move(settings), owner, nullptr), name(std::move(job_name)) {}
  HttpRequest begin() override { return {}; }
  bool head(std::string_view) override { return true; }
  bool body(ByteView) override { return true; }
  std::optional<double> ended(const ExchangeEnd&) override { return std::nullopt; }
  void finish(std::exception_ptr) noexcept override {}
  const std::string name;
};

std::shared_ptr<const EngineSettings> make_client(int max_in_flight, int io_threads) {
  auto settings = std::make_shared<EngineSettings>();
  settings->max_in_flight = max_in_flight;
  settings->io_threads = io_threads;
  return settings;
}

struct TestQueue {
  JobQueue queue;
  void push(const std::shared_ptr<const EngineSettings>& client, const std::string& names,
            bool first = false) {
    for (const char name : names) {
      queue.push(std::make_unique<NamedJob>(client, std::string(1, name)), first);
    }
  }
  // As jobs of the object `owner`.
  void push_of(const std::shared_ptr<const EngineSettings>& client, const int& owner,
               const std::string& names, size_t limit = 99) {
    for (const char name : names) {
      auto job = std::make_unique<NamedJob>(client, std::string(1, name), &owner);
      job->owner_limit = limit;
      queue.push(std::move(job), false);
    }
  }
  // The names of the jobs that `reactor` gets until there is none.
  std::string pop_all(size_t reactor, size_t count = 99) {
    std::string names;
    while (names.size() < count) {
      std::unique_ptr<Job> job = queue.pop(reactor);
      if (job == nullptr) break;
      names += static_cast<const NamedJob&>(*job).name;
      running.push_back(std::move(job));
    }
    return names;
  }
  // The job that started first, of those that run, ends.
  void release(size_t reactor) {
    queue.release(reactor, *running.front());
    running.erase(running.begin());
  }
  std::vector<std::unique_ptr<Job>> running;
};

TEST(JobQueue, JobsOfOneClientStartInOrder) {
  TestQueue test;
  const auto client = make_client(9, 1);
  test.push(client, "abc");
  test.push(client, "r", true);
  EXPECT_EQ(test.pop_all(0), "rabc");
}

TEST(JobQueue, ClientsTakeTurns) {
  TestQueue test;
  test.push(make_client(9, 1), "abc");
  test.push(make_client(9, 1), "1");
  test.push(make_client(9, 1), "xy");
  EXPECT_EQ(test.pop_all(0), "a1xbyc");
}

TEST(JobQueue, ClientWaitsAtItsCapWhileOthersGoOn) {
  TestQueue test;
  test.push(make_client(2, 1), "abcd");
  test.push(make_client(4, 1), "1234");
  EXPECT_EQ(test.pop_all(0),
            "a1"
            "23");
  test.release(0);
  EXPECT_EQ(test.pop_all(0), "4");
  test.release(0);
  test.release(0);
  EXPECT_EQ(test.pop_all(0), "");
  test.release(0);
  EXPECT_EQ(test.pop_all(0), "b");
}

TEST(JobQueue, ObjectsOfOneClientTakeTurns) {
  TestQueue test;
  const auto client = make_client(99, 1);
  const int large = 0;
  const int other = 0;
  const int small = 0;
  test.push_of(client, large, "abcdef");
  test.push_of(client, other, "12");
  EXPECT_EQ(test.pop_all(0, 3), "a1b");
  test.push_of(client, small, "x");
  EXPECT_EQ(test.pop_all(0), "2cxdef");
}

TEST(JobQueue, ManySmallObjectsDoNotHoldUpALargeOne) {
  TestQueue test;
  const auto client = make_client(99, 1);
  const int large = 0;
  const std::vector<int> small(6);
  test.push_of(client, large, "abc");
  std::string started;
  for (const int& object : small) {
    test.push_of(client, object, "x");
    started += test.pop_all(0, 1);
  }
  EXPECT_EQ(started + test.pop_all(0), "axbxxcxxx");
}

TEST(JobQueue, ObjectAtItsLimitHoldsUpNoOther) {
  TestQueue test;
  const auto client = make_client(99, 1);
  const int large = 0;
  const int small = 0;
  test.push_of(client, large, "abcde", 2);
  EXPECT_EQ(test.pop_all(0), "ab");
  EXPECT_TRUE(test.queue.takers().empty());
  test.push_of(client, small, "x");
  EXPECT_EQ(test.pop_all(0), "x");
  test.release(0);
  EXPECT_EQ(test.queue.takers(), std::vector<size_t>{0});
  EXPECT_EQ(test.pop_all(0), "c");
  test.release(0);
  test.release(0);
  EXPECT_EQ(test.pop_all(0), "d");
  test.release(0);
  test.release(0);
  EXPECT_EQ(test.pop_all(0), "e");
}

TEST(JobQueue, TakesOutJobsThatAreHeld) {
  TestQueue test;
  const auto client = make_client(99, 1);
  const int large = 0;
  test.push_of(client, large, "a", 1);
  auto job = std::make_unique<NamedJob>(client, "b", &large);
  job->owner_limit = 1;
  NamedJob& held = *job;
  test.queue.push(std::move(job), false);
  test.push_of(client, large, "cd", 1);
  EXPECT_EQ(test.pop_all(0), "a");
  EXPECT_EQ(test.queue.take(held).get(), &held);
  std::vector<std::unique_ptr<Job>> all;
  test.queue.take_all(all);
  EXPECT_EQ(all.size(), 2);
  test.release(0);
  EXPECT_EQ(test.pop_all(0), "");
}

TEST(JobQueue, LeastLoadedReactorTakesTheNextJob) {
  TestQueue test;
  test.push(make_client(9, 2), "abcd");
  EXPECT_EQ(test.queue.takers(), std::vector<size_t>{0});
  EXPECT_EQ(test.pop_all(1), "");
  EXPECT_EQ(test.pop_all(0), "a");
  EXPECT_EQ(test.queue.takers(), std::vector<size_t>{1});
  EXPECT_EQ(test.pop_all(0), "");
  EXPECT_EQ(test.pop_all(1), "b");
  std::swap(test.running[0], test.running[1]);
  test.release(1);
  EXPECT_EQ(test.pop_all(1), "c");
}

TEST(JobQueue, ClientKeepsToItsReactors) {
  TestQueue test;
  test.push(make_client(9, 3), "x");
  test.push(make_client(9, 1), "abc");
  EXPECT_EQ(test.pop_all(0), "xabc");
}

TEST(JobQueue, ReactorsThatCannotStartAreNotWaitedFor) {
  TestQueue test;
  test.push(make_client(9, 4), "abc");
  EXPECT_EQ(test.pop_all(0), "a");
  test.queue.limit_reactors(1);
  EXPECT_EQ(test.pop_all(0), "bc");
}

TEST(JobQueue, TakesOutOneJobAndAll) {
  TestQueue jobs;
  const auto client = make_client(8, 1);
  const auto other = make_client(8, 1);
  auto job = std::make_unique<NamedJob>(client, "x");
  NamedJob& taken = *job;
  jobs.push(client, "a");
  jobs.queue.push(std::move(job), false);
  jobs.push(client, "b");
  EXPECT_EQ(jobs.queue.take(taken).get(), &taken);
  EXPECT_EQ(jobs.pop_all(0), "ab");
  jobs.push(client, "cd");
  jobs.push(other, "e");
  std::vector<std::unique_ptr<Job>> all;
  jobs.queue.take_all(all);
  EXPECT_EQ(all.size(), 3);
  EXPECT_EQ(jobs.pop_all(0), "");
}

}  // namespace
}  // namespace torchnpy
