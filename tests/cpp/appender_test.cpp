#include "archive/appender.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <random>
#include <set>
#include <thread>

#include "appender_testing.h"
#include "aws_environment.h"
#include "base/error.h"
#include "base/wait.h"
#include "forked_child.h"
#include "npy_bytes.h"

namespace torchnpy {
namespace {

using testing::Content;
using testing::expected_data;
using testing::load_file;
using testing::make_rows;
using testing::read_file;

class AppenderTest : public AwsEnvironment {
 protected:
  std::string path(const std::string& name = "x.npy") const { return folder_ / name; }
  // As numpy saves so many rows.
  std::string write_numpy(uint64_t count, const std::string& tail = "") {
    const std::string bytes =
        format_npy_header("'<u2'", false, {count, 3}) + expected_data(count) + tail;
    return write(path(), bytes);
  }
  static void expect_rows(const std::string& path, uint64_t count) {
    const Content content = load_file(path);
    EXPECT_EQ(content.header.shape, (std::vector<uint64_t>{count, 3}));
    EXPECT_TRUE(content.data == expected_data(count));
    EXPECT_EQ(read_file(path).size(), content.header.data_offset + content.header.nbytes);
  }

  std::filesystem::path folder_ = home_;
};

bool append(Appender& appender, const ArrayView& array) { return appender.append({&array, 1}); }

TEST_F(AppenderTest, RowsAreThereWhenAppendReturns) {
  Appender appender(path(), {});
  EXPECT_FALSE(std::filesystem::exists(path()));
  for (uint64_t first = 0; first < 1100; first += 11) {
    ASSERT_TRUE(append(appender, make_rows(first, 11)));
    ASSERT_NO_FATAL_FAILURE(expect_rows(path(), first + 11));
    ASSERT_EQ(appender.shape(), (std::vector<uint64_t>{first + 11, 3}));
  }
}

TEST_F(AppenderTest, TheCountStandsRightAlignedInAnAlignedSlot) {
  Appender appender(path(), {});
  append(appender, make_rows(0, 999));
  const std::string before = read_file(path());
  append(appender, make_rows(999, 1));
  const std::string after = read_file(path());
  const size_t slot = before.find("           999, 3), }");
  ASSERT_NE(slot, std::string::npos);
  const size_t end = before.find(", 3), }");
  EXPECT_EQ(end % 16, 0u);
  EXPECT_EQ(after.substr(end - 16, 16), "            1000");
  EXPECT_EQ(after.substr(0, end - 16), before.substr(0, end - 16));
  EXPECT_EQ(after.substr(end, 40), before.substr(end, 40));
}

TEST_F(AppenderTest, AFileIsAppendedToAgain) {
  for (uint64_t first = 0; first < 50; first += 10) {
    Appender appender(path(), {});
    append(appender, make_rows(first, 10));
  }
  expect_rows(path(), 50);
}

TEST_F(AppenderTest, ANumpyHeaderIsWrittenAnewInItsPlace) {
  write_numpy(9);
  const size_t nbytes = read_file(path()).size();
  Appender appender(path(), {});
  expect_rows(path(), 9);
  EXPECT_EQ(read_file(path()).size(), nbytes);
  append(appender, make_rows(9, 1));
  expect_rows(path(), 10);
}

TEST_F(AppenderTest, FortranOrderGrowsTheLastAxis) {
  ArrayView array = make_rows(0, 4);
  std::ranges::reverse(array.shape);  // (3, 4)
  std::ranges::reverse(array.strides);
  Appender appender(path(), {});
  append(appender, array);
  ArrayView more = make_rows(4, 2);
  std::ranges::reverse(more.shape);
  std::ranges::reverse(more.strides);
  append(appender, more);
  const Content content = load_file(path());
  EXPECT_TRUE(content.header.fortran_order);
  EXPECT_EQ(content.header.shape, (std::vector<uint64_t>{3, 6}));
  EXPECT_EQ(content.data, expected_data(6));
}

TEST_F(AppenderTest, AnArrayOfTheOtherOrderIsGathered) {
  Appender appender(path(), {});
  append(appender, make_rows(0, 2));
  // Rows 2 to 4, in Fortran order.
  const std::array<uint16_t, 9> values = {6, 9, 12, 7, 10, 13, 8, 11, 14};
  ArrayView array = make_rows(0, 3);
  array.data = reinterpret_cast<const uint8_t*>(values.data());
  array.strides = {2, 6};
  append(appender, array);
  expect_rows(path(), 5);
}

TEST_F(AppenderTest, ManyArraysAreAppendedAllOrNone) {
  Appender appender(path(), {});
  std::vector<ArrayView> arrays;
  for (uint64_t i = 0; i < 1000; ++i) arrays.push_back(make_rows(i, 1));
  EXPECT_TRUE(appender.append(arrays));
  expect_rows(path(), 1000);
  arrays[500].shape = {1, 4};
  EXPECT_THROW(appender.append(arrays), ArgumentError);
  arrays[500] = make_rows(0, 1);
  arrays[500].descr = "'<i2'";
  EXPECT_FALSE(appender.append(arrays));
  expect_rows(path(), 1000);
}

TEST_F(AppenderTest, ADtypeIsTheSameHoweverItIsWritten) {
  Appender appender(path(), {});
  append(appender, make_rows(0, 1));
  for (const char* descr : {"'=u2'", "'uint16'", "'u2'", "'H'"}) {
    ArrayView array = make_rows(1, 1);
    array.descr = descr;
    EXPECT_TRUE(append(appender, array)) << descr;
  }
  for (const char* descr : {"'>u2'", "'<i2'", "'<f2'", "'|V2'", "[('a', '<u2')]"}) {
    ArrayView array = make_rows(1, 1);
    array.descr = descr;
    EXPECT_FALSE(append(appender, array)) << descr;
  }
}

TEST_F(AppenderTest, TheSameRowsAreAppendedWithoutADescription) {
  Appender appender(path(), {});
  EXPECT_EQ(appender.layout(), nullptr);
  append(appender, make_rows(0, 1));
  ASSERT_NE(appender.layout(), nullptr);
  EXPECT_EQ(appender.layout()->nbytes, 6u);
  EXPECT_EQ(appender.layout()->shape, (std::vector<uint64_t>{3}));
  const ArrayView rows = make_rows(1, 5);
  appender.append_rows(testing::bytes_of(rows), 5);
  expect_rows(path(), 6);
}

TEST_F(AppenderTest, TheVersionOfAFileIsKept) {
  std::string bytes = format_npy_header("'<u2'", false, {2, 3});
  // A header of version 2.0: two more bytes of length, two blanks less.
  const size_t newline = bytes.size() - 1;
  bytes.erase(newline - 2, 2);
  bytes[6] = 2;
  bytes[8] = static_cast<char>(bytes[8] - 2);
  bytes.insert(10, 2, '\0');
  write(path(), bytes + expected_data(2));
  Appender appender(path(), {});
  append(appender, make_rows(2, 1));
  EXPECT_EQ(load_file(path()).header.major, 2);
  expect_rows(path(), 3);
}

TEST_F(AppenderTest, TheHeaderIsLeftForLaterWhenAsked) {
  {
    Appender appender(path(), {.header_every = 0});
    append(appender, make_rows(0, 5));
    append(appender, make_rows(5, 5));
    EXPECT_EQ(load_file(path()).header.shape[0], 0u);
    EXPECT_EQ(appender.shape()[0], 10u);
    appender.update_header();
    EXPECT_EQ(load_file(path()).header.shape[0], 10u);
    append(appender, make_rows(10, 1));
    EXPECT_EQ(load_file(path()).header.shape[0], 10u);
  }
  expect_rows(path(), 11);
  Appender appender(path(), {.header_every = 3});
  for (uint64_t i = 11; i < 19; ++i) append(appender, make_rows(i, 1));
  EXPECT_EQ(load_file(path()).header.shape[0], 17u);
  appender.close();
  expect_rows(path(), 19);
  EXPECT_EQ(read_file(path()).substr(0, 128).find('\t'), std::string::npos);
}

TEST_F(AppenderTest, ASecondWriterIsRefusedAtOnce) {
  Appender first(path(), {});
  append(first, make_rows(0, 1));
  const std::string message = message_of<LockError>([&] { Appender second(path(), {}); });
  EXPECT_EQ(message, path() +
                         ": expected a file that nobody else appends to but found it locked by "
                         "another writer; close that one first");
  EXPECT_EQ(testing::run_in_child([&] {
              try {
                Appender second(path(), {});
              } catch (const LockError&) {
                return 7;
              }
              return 0;
            }),
            7);
  EXPECT_THROW(Appender(path(), {.delete_if_exists = true}), LockError);
  EXPECT_THROW(recover(path(), false), LockError);
  EXPECT_THROW(ensure_appendable(path(), true), LockError);
  first.close();
  Appender second(path(), {});
  append(second, make_rows(1, 1));
  expect_rows(path(), 2);
}

TEST_F(AppenderTest, OfTwoThatBeginAFileOneIsRefused) {
  Appender first(path(), {});
  Appender second(path(), {});
  append(first, make_rows(0, 1));
  EXPECT_THROW(append(second, make_rows(1, 1)), LockError);
  first.close();
  append(second, make_rows(1, 1));  // to the file that is there now
  expect_rows(path(), 2);
}

TEST_F(AppenderTest, AForkedChildCannotHarmTheFile) {
  Appender appender(path(), {.header_every = 0});
  append(appender, make_rows(0, 2));
  const int answer = testing::run_in_child([&] {
    try {
      append(appender, make_rows(9, 1));
      return 1;
    } catch (const LockError& error) {
      if (!has(error.what(), {path(), "found a child that it forked"})) return 2;
    }
    appender.close();
    appender.~Appender();
    return 0;
  });
  EXPECT_EQ(answer, 0);
  append(appender, make_rows(2, 1));
  EXPECT_THROW(Appender(path(), {}), LockError);
  appender.close();
  expect_rows(path(), 3);
}

// A child that lives on has the open file, but not its lock.
TEST_F(AppenderTest, AFileThatWasClosedIsFreeThoughAChildLives) {
  auto appender = std::make_unique<Appender>(path(), AppenderOptions{});
  append(*appender, make_rows(0, 1));
  const pid_t child = fork();
  if (child == 0) {
    pause();
    _exit(0);
  }
  appender.reset();
  EXPECT_NO_THROW(Appender(path(), {}));
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
}

// Its write goes on when it is told to.
class SlowFile : public testing::FaultyFile {
 public:
  struct Gate {
    std::atomic<bool> is_reached{false};
    std::atomic<bool> is_open{false};
    static void wait_for(const std::atomic<bool>& reached) {
      while (!reached) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  };
  SlowFile(const std::string& path, FileAccess access, Gate& gate)
      : FaultyFile(open_growing_file(path, access), std::make_shared<testing::FaultPlan>()),
        gate_(gate) {}
  ssize_t write(ByteView bytes, uint64_t offset) override {
    gate_.is_reached = true;
    Gate::wait_for(gate_.is_open);
    return FaultyFile::write(bytes, offset);
  }

 private:
  Gate& gate_;
};

// A thread that then begins to wait sleeps for ever, but holds up neither those that work nor the
// main thread, which closes.
TEST_F(AppenderTest, ThreadsThatWaitWhenTheProcessEndsHoldNobodyUp) {
  const int answer = testing::run_in_child([&] {
    SlowFile::Gate gate;
    AppenderOptions options;
    options.open = [&](const std::string& path, FileAccess access) {
      return std::make_unique<SlowFile>(path, access, gate);
    };
    Appender appender(path(), options);
    std::thread works([&] { append(appender, make_rows(0, 1)); });
    SlowFile::Gate::wait_for(gate.is_reached);
    end_waits();
    std::thread([&] { append(appender, make_rows(1, 1)); }).detach();
    std::this_thread::sleep_for(std::chrono::milliseconds(100));  // it waits by now
    gate.is_open = true;
    works.join();
    appender.close();
    return 0;
  });
  EXPECT_EQ(answer, 0);
  expect_rows(path(), 1);
}

TEST_F(AppenderTest, AClosedOneSaysSo) {
  Appender appender(path(), {});
  append(appender, make_rows(0, 1));
  appender.close();
  appender.close();
  const std::string message =
      path() + ": expected an open file but found a closed one; open it again";
  EXPECT_EQ(message_of<ArgumentError>([&] { append(appender, make_rows(1, 1)); }), message);
  EXPECT_EQ(message_of<ArgumentError>([&] { appender.update_header(); }), message);
  expect_rows(path(), 1);
}

TEST_F(AppenderTest, WhatCannotBeAppendedIsRefusedWithTheShape) {
  Appender appender(path(), {});
  ArrayView scalar = make_rows(0, 1);
  scalar.shape.clear();
  scalar.strides.clear();
  EXPECT_EQ(message_of<ArgumentError>([&] { append(appender, scalar); }),
            path() +
                ": expected an array with an axis that grows but found shape (); append it with "
                "shape (1,)");
  EXPECT_FALSE(std::filesystem::exists(path()));
  append(appender, make_rows(0, 2));
  EXPECT_EQ(message_of<ArgumentError>([&] { append(appender, make_rows(0, 2, 4)); }),
            path() +
                ": expected an array of shape (2, 3), of which only the first axis may differ, but "
                "found (2, 4)");
  EXPECT_THROW(append(appender, scalar), ArgumentError);
  ArrayView objects = make_rows(0, 1);
  objects.descr = "'|O'";
  Appender other(path("o.npy"), {});
  EXPECT_EQ(message_of<UnsupportedError>([&] { append(other, objects); }),
            path("o.npy") +
                ": expected numbers but found objects, which are pickles; save them with a plain "
                "dtype");
  EXPECT_FALSE(std::filesystem::exists(path("o.npy")));
}

TEST_F(AppenderTest, AFileThatDoesNotFitIsRefusedWithWhatToDo) {
  write_numpy(2, "more");
  EXPECT_EQ(message_of<ArgumentError>([&] { Appender(path(), {}); }),
            path() +
                ": expected 12 bytes of data (uint16, shape (2, 3)) but found 16; call recover() "
                "first");
  write_numpy(2);
  std::filesystem::resize_file(path(), 130);
  EXPECT_TRUE(has(message_of<ArgumentError>([&] { Appender(path(), {}); }),
                  {"but found 2; call recover() first"}));
  write(path(), npy_bytes("{'descr': '<u2', 'fortran_order': False, 'shape': (2, 3), }" +
                              std::string(55, ' '),
                          expected_data(2)));
  Appender(path(), {}).close();  // 128 bytes: there is room
  // 22 blanks less than a header needs to grow
  std::string tight("\x93NUMPY\x01\x00", 8);
  const std::string dict = "{'descr': '<u2', 'fortran_order': False, 'shape': (2, 3), }\n";
  tight += static_cast<char>(dict.size());
  tight += '\0';
  write(path(), tight + dict + expected_data(2));
  EXPECT_EQ(message_of<ArgumentError>([&] { Appender(path(), {}); }),
            path() +
                ": expected a header with room for its count but found none; call "
                "ensure_appendable() first");
  write(path(), "");
  EXPECT_TRUE(has(message_of<FormatError>([&] { Appender(path(), {}); }),
                  {path(), "but found 0; the file is truncated"}));
  write(path(), npy_bytes("{'descr': '<u2', 'fortran_order': False, 'shape': (), }", "ab"));
  EXPECT_TRUE(
      has(message_of<ArgumentError>([&] { Appender(path(), {}); }), {path(), "found shape ()"}));
  write(path(), npy_bytes("{'descr': '|O', 'fortran_order': False, 'shape': (2,), }", "ab"));
  EXPECT_TRUE(
      has(message_of<UnsupportedError>([&] { Appender(path(), {}); }), {path(), "pickles"}));
  EXPECT_TRUE(
      has(message_of<TransportError>([&] { Appender(home_, {}); }), {home_, "Is a directory"}));
  ASSERT_EQ(mkfifo(path("fifo").c_str(), 0600), 0);
  EXPECT_TRUE(has(message_of<UnsupportedError>([&] { Appender(path("fifo"), {}); }),
                  {path("fifo"), "expected a regular file"}));
}

TEST_F(AppenderTest, RowsOfNoBytesAreCounted) {
  ArrayView array = make_rows(0, 3, 0);
  Appender appender(path(), {});
  append(appender, array);
  append(appender, array);
  EXPECT_EQ(load_file(path()).header.shape, (std::vector<uint64_t>{6, 0}));
}

TEST_F(AppenderTest, ThreadsLoseAndTearNoRow) {
  constexpr uint64_t kThreads = 8;
  constexpr uint64_t kRows = 10'000;
  Appender appender(path(), {});
  std::vector<std::thread> threads;
  for (uint64_t thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&, thread] {
      for (uint64_t i = 0; i < kRows; ++i) {
        const std::array<uint64_t, 4> row = {thread, i, thread ^ i, ~i};
        ArrayView array;
        array.descr = "'<u8'";
        array.itemsize = 8;
        array.shape = {1, 4};
        array.strides = {32, 8};
        array.data = reinterpret_cast<const uint8_t*>(row.data());
        append(appender, array);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const Content content = load_file(path());
  ASSERT_EQ(content.header.shape, (std::vector<uint64_t>{kThreads * kRows, 4}));
  std::array<uint64_t, kThreads> next{};
  for (uint64_t i = 0; i < kThreads * kRows; ++i) {
    std::array<uint64_t, 4> row;
    std::memcpy(row.data(), content.data.data() + i * sizeof(row), sizeof(row));
    ASSERT_LT(row[0], kThreads);
    ASSERT_EQ(row[1], next[row[0]]++);
    ASSERT_EQ(row[2], row[0] ^ row[1]);
    ASSERT_EQ(row[3], ~row[1]);
  }
}

// One counts to 1000 again and again; the other opens what is there.
TEST_F(AppenderTest, AReaderSeesAWholeNumberOfRowsAtAnyMoment) {
  const ArrayView row = make_rows(0, 1);
  {
    append(*std::make_unique<Appender>(path(), AppenderOptions{}), make_rows(0, 1));
  }
  std::atomic<bool> is_done{false};
  std::thread writer([&] {
    Appender appender(path(), {});
    for (int i = 0; i < 30'000; ++i) appender.append_rows(testing::bytes_of(row), 1);
    is_done = true;
  });
  uint64_t last = 0;
  uint64_t reads = 0;
  const int fd = open(path().c_str(), O_RDONLY);
  std::array<uint8_t, 128> head{};
  while (!is_done) {
    ASSERT_EQ(pread(fd, head.data(), head.size(), 0), 128);
    const NpyHeader header = parse_npy_header(head);
    struct stat status;
    ASSERT_EQ(fstat(fd, &status), 0);
    ASSERT_GE(header.shape[0], last);  // a torn count is smaller
    ASSERT_LE(header.data_offset + header.nbytes, static_cast<uint64_t>(status.st_size));
    last = header.shape[0];
    ++reads;
  }
  close(fd);
  writer.join();
  EXPECT_GT(reads, 0u);
  EXPECT_EQ(load_file(path()).header.shape[0], 30'001u);
}

TEST_F(AppenderTest, AFullDiskLeavesTheRowsThatWereThere) {
  Appender appender(path(), {});
  append(appender, make_rows(0, 100));
  appender.close();
  const int answer = testing::run_in_child([&] {
    const rlimit limit{1000, 1000};
    setrlimit(RLIMIT_FSIZE, &limit);
    Appender limited(path(), {});
    try {
      append(limited, make_rows(100, 100));
      return 1;
    } catch (const TransportError& error) {
      const std::string expected = fmt::format(
          "{}: expected to append 600 bytes at byte 728 but 272 were written: File too large; the "
          "file keeps its 100 rows",
          path());
      if (error.what() != expected) return fputs(error.what(), stderr), 2;
    }
    append(limited, make_rows(100, 10));
    return 0;
  });
  EXPECT_EQ(answer, 0);
  expect_rows(path(), 110);
}

TEST_F(AppenderTest, AHeaderThatAnotherProgramWroteIsNotWrittenOver) {
  Appender appender(path(), {});
  append(appender, make_rows(0, 1));
  write(path(), "");  // truncates it
  EXPECT_TRUE(has(message_of<TransportError>([&] { append(appender, make_rows(1, 1)); }),
                  {path(), "another program wrote to the file"}));
  write(path(), "");
  EXPECT_TRUE(has(message_of<TransportError>([&] {
                    Appender other(path("y.npy"), {.header_every = 0});
                    append(other, make_rows(0, 1));
                    write(path("y.npy"), "");
                    other.update_header();
                  }),
                  {path("y.npy"), "another program made the file shorter"}));
}

// Kills a writer at a random moment; what is there then must load, and be appended to.
TEST_F(AppenderTest, AKilledWriterLeavesAWholeNumberOfRows) {
  std::mt19937 random(11);
  uint64_t count = 0;
  for (int round = 0; round < 100; ++round) {
    int ready[2];
    ASSERT_EQ(pipe(ready), 0);
    const pid_t child = fork();
    if (child == 0) {
      Appender appender(path(), {});
      const char byte = 1;
      (void)!::write(ready[1], &byte, 1);
      for (uint64_t first = count;; first += 7) append(appender, make_rows(first, 7));
    }
    char byte;
    ASSERT_EQ(read(ready[0], &byte, 1), 1);
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 400));
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    close(ready[0]);
    close(ready[1]);
    if (!std::filesystem::exists(path())) continue;
    const Content content = load_file(path());
    ASSERT_GE(content.header.shape[0], count);
    ASSERT_EQ(content.header.shape[0] % 7, 0u);
    count = content.header.shape[0];
    if (count > 5000) {
      ASSERT_TRUE(content.data == expected_data(count));
      std::filesystem::remove(path());
      count = 0;
    }
  }
}

struct FaultCase {
  testing::Fault fault;
  bool is_numpy;  // the header is one of numpy's
  uint64_t header_every;
  AppenderOptions::Sync sync;
};

class AppenderFault : public AppenderTest, public ::testing::WithParamInterface<FaultCase> {
 protected:
  AppenderFault() { folder_ = fast_.path(); }

 private:
  const testing::FastFolder fast_{home_};
};

// Whatever goes wrong, and wherever: the file loads, has all rows of the appends that returned, and
// appending goes on.
TEST_P(AppenderFault, AtEachStepLosesNoRow) {
  const FaultCase& test = GetParam();
  for (int at_step = 0;; ++at_step) {
    if (test.is_numpy) {
      write_numpy(2);
    } else {
      std::filesystem::remove(path());
      Appender first(path(), {});
      append(first, make_rows(0, 2));
    }
    const auto plan = std::make_shared<testing::FaultPlan>();
    plan->fault = test.fault;
    plan->at_step = at_step;
    uint64_t count = 2;  // that were appended
    std::unique_ptr<Appender> appender;
    for (const uint64_t more : {1, 5, 3}) {
      try {
        AppenderOptions options{test.sync, test.header_every};
        options.open = testing::open_with(plan);
        if (!appender) appender = std::make_unique<Appender>(path(), options);
        append(*appender, make_rows(count, more));
        count += more;
      } catch (const TransportError&) {
      }
      const Content content = load_file(path());
      const uint64_t found = content.header.shape[0];
      ASSERT_TRUE(content.data == expected_data(found)) << "step " << at_step;
      const bool is_current = test.header_every == 1 && !plan->is_dead;
      ASSERT_EQ(found, is_current ? count : found) << "step " << at_step;
      if (plan->is_dead) break;
    }
    appender.reset();
    ASSERT_TRUE(load_file(path()).data == expected_data(load_file(path()).header.shape[0]));
    if (test.header_every != 1) recover(path(), false);
    {
      Appender again(path(), {});
      const uint64_t found = again.shape()[0];
      ASSERT_GE(found, count) << "step " << at_step;
      append(again, make_rows(found, 4));
      ASSERT_NO_FATAL_FAILURE(expect_rows(path(), found + 4));
    }
    if (!plan->was_reached()) break;
    ASSERT_LT(at_step, 100);
  }
}

std::vector<FaultCase> all_faults() {
  using Sync = AppenderOptions::Sync;
  std::vector<FaultCase> cases;
  for (const testing::Fault fault : testing::kFaults) {
    cases.push_back({fault, false, 1, Sync::kNever});
    cases.push_back({fault, true, 1, Sync::kAlways});
    cases.push_back({fault, false, 2, Sync::kHeader});
    cases.push_back({fault, true, 0, Sync::kNever});
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Appender, AppenderFault, ::testing::ValuesIn(all_faults()));

}  // namespace
}  // namespace torchnpy
