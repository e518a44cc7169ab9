#include "base/log.h"

#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

#include "forked_child.h"
#include "http_testing.h"

namespace torchnpy {
namespace {

using namespace testing;

class LogTest : public ::testing::Test {
 protected:
  LogTest() { take_log_records(); }
  ~LogTest() override { log_debug_wanted = false; }

  static Texts take_texts() {
    Texts texts;
    for (const LogRecord& record : take_log_records()) texts.push_back(record.text);
    return texts;
  }
};

TEST_F(LogTest, IsTakenOnceInOrder) {
  EXPECT_FALSE(has_log_records());
  log_debug("first");
  log_warning("second");
  EXPECT_TRUE(has_log_records());
  const std::vector<LogRecord> records = take_log_records();
  ASSERT_EQ(2u, records.size());
  EXPECT_EQ("first", records[0].text);
  EXPECT_EQ(LogLevel::kDebug, records[0].level);
  EXPECT_EQ("second", records[1].text);
  EXPECT_EQ(LogLevel::kWarning, records[1].level);
  EXPECT_LE(records[0].created_s, records[1].created_s);
  EXPECT_FALSE(has_log_records());
  EXPECT_EQ(Texts{}, take_texts());
}

TEST_F(LogTest, IsOneLine) {
  log_debug("a\r\nb\x7F\tc");
  EXPECT_EQ(Texts{"a??b??c"}, take_texts());
}

TEST_F(LogTest, DropsAndCountsWhatNobodyTakes) {
  for (int64_t i = 0; i < kMaxLogRecords + 7; ++i) log_debug("line");
  const std::vector<LogRecord> records = take_log_records();
  ASSERT_EQ(static_cast<size_t>(kMaxLogRecords) + 1, records.size());
  EXPECT_EQ("7 log records were dropped: nobody took them", records.back().text);
  EXPECT_EQ(LogLevel::kWarning, records.back().level);
  log_debug("again");
  EXPECT_EQ(Texts{"again"}, take_texts());
}

TEST_F(LogTest, LosesNothingAmongThreads) {
  constexpr size_t kPerThread = 500;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([] {
      for (size_t k = 0; k < kPerThread; ++k) log_debug(std::to_string(k));
    });
  }
  size_t count = 0;
  while (count < 2 * kPerThread) count += take_log_records().size();
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(4 * kPerThread, count + take_log_records().size());
}

TEST_F(LogTest, OfTheParentStaysTheParents) {
  log_debug("parent's");
  EXPECT_EQ(10, run_in_child([] {
              const bool inherited = has_log_records();
              log_debug("child's");
              return static_cast<int>(take_log_records().size()) * 10 + (inherited ? 1 : 0);
            }));
  EXPECT_EQ(Texts{"parent's"}, take_texts());
}

TEST_F(LogTest, SaysNothingOfRequestsUnlessItIsWanted) {
  FaultServer server("0123456789");
  TestClient client;
  TestSink sink;
  client.open(server.url())->start(kMiddle, sink);
  sink.wait();
  EXPECT_EQ(Texts{}, take_texts());
}

TEST_F(LogTest, HasALineForEachRequestBeforeItsReadIsDone) {
  FaultServer server("0123456789", {{.status = "503 Slow Down"}, kGood});
  TestClient client;
  TestSink sink;
  log_debug_wanted = true;
  client.open(server.url("/x.npy?secret=1"))->start(kMiddle, sink);
  EXPECT_EQ("234567", sink.wait());
  const Texts lines = take_texts();
  ASSERT_EQ(2u, lines.size());
  EXPECT_TRUE(lines[0].starts_with("GET " + server.url() + " bytes=2-7: HTTP 503, ")) << lines[0];
  EXPECT_NE(lines[0].find(", attempt 1; again in 0.0"), std::string::npos) << lines[0];
  EXPECT_TRUE(lines[0].ends_with(" s: HTTP 503 (Slow Down)")) << lines[0];
  EXPECT_TRUE(lines[1].starts_with("GET " + server.url() + " bytes=2-7: HTTP 206, 6 bytes, "))
      << lines[1];
  EXPECT_TRUE(lines[1].ends_with(" ms, attempt 2")) << lines[1];
}

}  // namespace
}  // namespace torchnpy
