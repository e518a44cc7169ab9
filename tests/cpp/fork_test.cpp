#include "base/fork.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>

#include "forked_child.h"

namespace torchnpy {
namespace {

using namespace testing;

class Fork : public ::testing::Test {
#ifdef __SANITIZE_THREAD__
  void SetUp() override { GTEST_SKIP() << "ThreadSanitizer slows forks among threads too much"; }
#endif
};

TEST_F(Fork, CutsNoScopeInTwo) {
  std::atomic<bool> stop{false};
  std::atomic<bool> half_done{false};
  std::thread worker([&] {
    while (!stop) {
      const NoForkScope scope;
      half_done = true;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      half_done = false;
    }
  });
  while (!half_done) std::this_thread::yield();
  for (int i = 0; i < 50; ++i) {
    EXPECT_EQ(run_in_child([&] { return half_done ? 1 : 0; }), 0);
  }
  stop = true;
  worker.join();
}

TEST_F(Fork, GoesOnWhenAScopeDoesNotEnd) {
  std::atomic<bool> stop{false};
  std::atomic<bool> is_inside{false};
  std::thread worker([&] {
    const NoForkScope scope;
    is_inside = true;
    while (!stop) std::this_thread::yield();
  });
  while (!is_inside) std::this_thread::yield();
  EXPECT_EQ(run_in_child([&] {
              const NoForkScope scope;  // the parent's holds up nobody here
              return 0;
            }),
            0);
  stop = true;
  worker.join();
}

}  // namespace
}  // namespace torchnpy
