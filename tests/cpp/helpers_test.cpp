// The process's helpers, and the driver's use of them.
#include "base/helpers.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "archive/loader.h"
#include "base/error.h"
#include "base/wait.h"
#include "forked_child.h"
#include "memory_source.h"
#include "npy_bytes.h"

namespace torchnpy {
namespace {

using testing::run_in_child;

// Counts down to zero, and waits for it.
class Countdown {
 public:
  explicit Countdown(int count) : count_(count) {}
  void step() {
    const std::lock_guard lock(mutex_);
    --count_;
    changed_.notify_all();
  }
  void wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return count_ <= 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int count_;
};

bool pin_to_one_cpu() {
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  CPU_SET(sched_getcpu(), &cpus);
  return sched_setaffinity(0, sizeof(cpus), &cpus) == 0;
}

class Helpers : public ::testing::Test {
  void SetUp() override {
    cpu_set_t cpus;
    if (sched_getaffinity(0, sizeof(cpus), &cpus) == 0 && CPU_COUNT(&cpus) == 1) {
      GTEST_SKIP() << "a process with one CPU has no helpers";
    }
  }
};

TEST_F(Helpers, HelpIsCalledUntilItSaysNo) {
  Countdown done(1);
  std::atomic<int> calls{0};
  std::atomic<bool> is_other{false};
  const std::thread::id own = std::this_thread::get_id();
  ask_for_help([&] {
    is_other = std::this_thread::get_id() != own;
    if (++calls < 100) return true;
    done.step();
    return false;
  });
  done.wait();
  // What is asked for later comes when the first help is over.
  Countdown later(1);
  ask_for_help([&] {
    later.step();
    return false;
  });
  later.wait();
  EXPECT_EQ(calls, 100);
  EXPECT_TRUE(is_other);
}

TEST_F(Helpers, ManyAskersAreAllHelped) {
  constexpr int kAskers = 8;
  constexpr int kTimes = 500;
  Countdown done(kAskers * kTimes);
  std::atomic<int> calls{0};
  std::vector<std::thread> askers;
  for (int i = 0; i < kAskers; ++i) {
    askers.emplace_back([&] {
      for (int j = 0; j < kTimes; ++j) {
        ask_for_help([&, left = 3]() mutable {
          ++calls;
          if (--left > 0) return true;
          done.step();
          return false;
        });
      }
    });
  }
  for (std::thread& asker : askers) asker.join();
  done.wait();
  EXPECT_EQ(calls, kAskers * kTimes * 3);
}

TEST_F(Helpers, HelpersAskForHelp) {
  Countdown done(2);
  ask_for_help([&] {
    ask_for_help([&] {
      done.step();
      return false;
    });
    done.step();
    return false;
  });
  done.wait();
}

TEST_F(Helpers, WhatHelpHoldsIsReleasedAfterIt) {
  auto held = std::make_shared<int>(1);
  const std::weak_ptr<int> watched = held;
  ask_for_help([held = std::exchange(held, nullptr)] { return false; });
  while (!watched.expired()) std::this_thread::yield();
}

class HelpersOfAChild : public Helpers {
#ifdef __SANITIZE_THREAD__
  void SetUp() override { GTEST_SKIP() << "ThreadSanitizer refuses threads in a forked child"; }
#endif
};

TEST_F(HelpersOfAChild, ForkedChildStartsItsOwn) {
  const auto is_helped = [] {
    Countdown done(1);
    ask_for_help([&] {
      done.step();
      return false;
    });
    done.wait();
    return 0;
  };
  EXPECT_EQ(is_helped(), 0);
  EXPECT_EQ(run_in_child(is_helped), 0);
  EXPECT_EQ(run_in_child([&] { return run_in_child(is_helped); }), 0);
  EXPECT_EQ(is_helped(), 0);
}

TEST_F(HelpersOfAChild, BusyHelpersOfTheParentDoNotHinderAChild) {
  std::atomic<bool> stop{false};
  Countdown begun(1);
  Countdown ended(1);
  ask_for_help([&, is_first = true]() mutable {
    if (std::exchange(is_first, false)) begun.step();
    if (!stop) return true;
    ended.step();
    return false;
  });
  begun.wait();
  const int result = run_in_child([] {
    Countdown done(1);
    ask_for_help([&] {
      done.step();
      return false;
    });
    done.wait();
    shutdown_helpers();
    return 0;
  });
  stop = true;
  ended.wait();
  EXPECT_EQ(result, 0);
}

TEST_F(HelpersOfAChild, NothingRunsAfterTheShutdown) {
  const int result = run_in_child([] {
    std::atomic<bool> is_over{false};
    std::atomic<int> late{0};
    Countdown begun(1);
    ask_for_help([&, is_first = true]() mutable {
      if (is_over) ++late;
      if (std::exchange(is_first, false)) begun.step();
      return true;
    });
    begun.wait();
    shutdown_helpers();
    is_over = true;
    auto held = std::make_shared<int>(1);
    ask_for_help([&, held] {
      ++late;
      return false;
    });
    if (held.use_count() != 1) return 1;
    shutdown_helpers();
    return late == 0 ? 0 : 2;
  });
  EXPECT_EQ(result, 0);
}

TEST_F(HelpersOfAChild, ExitWhileAHelperWorksIsClean) {
  for (int i = 0; i < 10; ++i) {
    const int result = run_in_child([] {
      auto* const begun = new Countdown(1);
      ask_for_help([begun] {
        begun->step();
        return true;
      });
      begun->wait();
      std::exit(42);
      return 0;
    });
    EXPECT_EQ(result, 42);
  }
}

// Gives all its work away in next(), and reads nothing.
class WorkLoader final : public Loader {
 public:
  WorkLoader(int count, std::function<void(int)> work) : count_(count), work_(std::move(work)) {}
  Source& source() override { return source_; }
  void attach(Workers& workers) override { workers_ = &workers; }
  std::vector<Read> next() override {
    if (std::exchange(has_begun_, true)) return {};
    for (int i = 0; i < count_; ++i) workers_->run([this, i] { work_(i); }, cost_ns(i));
    return {};
  }
  bool restart() override { return false; }

  std::function<uint64_t(int)> cost_ns = [](int) { return uint64_t{1'000'000}; };

 private:
  MemorySource source_{""};
  const int count_;
  const std::function<void(int)> work_;
  Workers* workers_ = nullptr;
  bool has_begun_ = false;
};

TEST_F(Helpers, HelpersShareTheWork) {
  Countdown both(2);
  std::mutex mutex;
  std::set<std::thread::id> threads;
  WorkLoader loader(2, [&](int) {
    {
      const std::lock_guard lock(mutex);
      threads.insert(std::this_thread::get_id());
    }
    both.step();
    both.wait();  // each waits for the other: one thread alone would hang
  });
  load_one(loader);
  EXPECT_EQ(threads.size(), 2U);
}

TEST_F(Helpers, OneThreadMeansNoHelper) {
  std::set<std::thread::id> threads;
  int count = 0;
  WorkLoader loader(1000, [&](int) {
    threads.insert(std::this_thread::get_id());
    ++count;
  });
  load_one(loader, {.threads = 1});
  EXPECT_EQ(count, 1000);
  EXPECT_EQ(threads, std::set<std::thread::id>{std::this_thread::get_id()});
}

TEST_F(Helpers, AllWorkIsDoneOnceByManyRunsAtOnce) {
  std::atomic<int> count{0};
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([&] {
      std::vector<std::unique_ptr<WorkLoader>> loaders;
      std::vector<Loader*> all;
      for (int j = 0; j < 50; ++j) {
        loaders.push_back(std::make_unique<WorkLoader>(20, [&](int) { ++count; }));
        all.push_back(loaders.back().get());
      }
      for (const std::exception_ptr& error : load_all(all)) EXPECT_FALSE(error);
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(count, 4 * 50 * 20);
}

TEST(Driver, DearestWorkComesFirst) {
  std::vector<int> order;
  WorkLoader loader(6, [&](int i) { order.push_back(i); });
  loader.cost_ns = [](int i) { return static_cast<uint64_t>((i * 5 + 2) % 6); };  // 2 1 0 5 4 3
  load_one(loader, {.threads = 1});
  EXPECT_EQ(order, (std::vector<int>{3, 4, 5, 0, 1, 2}));
}

TEST(Driver, WorkThatThrowsEndsTheLoad) {
  for (const int threads : {1, kMaxThreads}) {
    WorkLoader failing(100, [&](int i) {
      if (i == 50) throw FormatError("expected sense but found none");
    });
    try {
      load_one(failing, {.threads = threads});
      ADD_FAILURE() << "no error";
    } catch (const FormatError& error) {
      EXPECT_STREQ(error.what(), "memory: expected sense but found none");
    }
    WorkLoader strange(100, [&](int i) {
      if (i == 50) throw std::runtime_error("strange");
    });
    EXPECT_THROW(load_one(strange, {.threads = threads}), std::runtime_error);
  }
}

TEST(Driver, WorkOfAFailedLoadIsNotDone) {
  int count = 0;
  WorkLoader failing(100, [&](int) {
    ++count;
    throw FormatError("broken");
  });
  WorkLoader good(100, [&](int) { ++count; });
  Loader* const all[] = {&failing, &good};
  const auto errors = load_all(all, {.fail_fast = false, .threads = 1});
  EXPECT_TRUE(errors[0]);
  EXPECT_FALSE(errors[1]);
  EXPECT_EQ(count, 101);
}

TEST(Driver, FirstFailureCancelsTheWorkOfOthers) {
  std::atomic<int> count{0};
  WorkLoader failing(1, [](int) { throw FormatError("broken"); });
  failing.cost_ns = [](int) { return uint64_t{2'000'000}; };
  WorkLoader other(100'000, [&](int) {
    ++count;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  });
  Loader* const all[] = {&failing, &other};
  const auto errors = load_all(all);
  EXPECT_THROW(std::rethrow_exception(errors[0]), FormatError);
  EXPECT_THROW(std::rethrow_exception(errors[1]), InterruptedError);
  EXPECT_LT(count, 100'000);
}

TEST(Driver, WhatFailsAfterAChangeFailsNobodyElse) {
  const std::string before = make_npy(1000, 300);
  const std::string after = make_npy(2000, 300);
  const auto source = std::make_shared<MemorySource>(before);
  source->fault =
      std::make_exception_ptr(TransportError("memory: changed", TransportError::Kind::kChanged));
  source->later_fault = std::make_exception_ptr(TransportError("memory: gone"));
  source->changes_to = after;
  source->sizes.part_nbytes = 100 << 10;
  NpyLoader changing(source, heap_allocator());
  int count = 0;
  WorkLoader other(100, [&](int) { ++count; });
  Loader* const all[] = {&changing, &other};
  const auto errors = load_all(all, {.threads = 1});
  EXPECT_FALSE(errors[0]);
  EXPECT_FALSE(errors[1]);
  EXPECT_EQ(as_text(changing.data().bytes), after.substr(kHeaderNbytes));
  EXPECT_EQ(count, 100);
}

TEST(Driver, InterruptEndsALoadThatWorks) {
  for (const int threads : {1, kMaxThreads}) {
    std::atomic<int> count{0};
    std::atomic<int> running{0};
    WorkLoader loader(10'000, [&](int) {
      ++running;
      ++count;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      --running;
    });
    set_interrupt_check([] { return true; });
    EXPECT_THROW(load_one(loader, {.threads = threads}), InterruptedError);
    set_interrupt_check(nullptr);
    EXPECT_EQ(running, 0);
    EXPECT_LT(count, 10'000);
  }
}

TEST_F(HelpersOfAChild, CallerWorksAloneWhenThereIsNoHelp) {
  const auto load_alone = [] {
    std::set<std::thread::id> threads;
    WorkLoader loader(100, [&](int) { threads.insert(std::this_thread::get_id()); });
    load_one(loader);
    return threads == std::set<std::thread::id>{std::this_thread::get_id()} ? 0 : 1;
  };
  const int with_one_cpu = run_in_child([&] {
    if (!pin_to_one_cpu()) return 2;
    return load_alone();
  });
  EXPECT_EQ(with_one_cpu, 0);
  const int after_the_shutdown = run_in_child([&] {
    Countdown done(1);
    ask_for_help([&] {
      done.step();
      return false;
    });
    done.wait();
    shutdown_helpers();
    return load_alone();
  });
  EXPECT_EQ(after_the_shutdown, 0);
}

}  // namespace
}  // namespace torchnpy
