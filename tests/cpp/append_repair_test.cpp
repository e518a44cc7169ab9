#include "archive/append_repair.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "appender_testing.h"
#include "aws_environment.h"
#include "base/error.h"
#include "base/wait.h"
#include "npy_bytes.h"

namespace torchnpy {
namespace {

using testing::expected_data;
using testing::load_file;
using testing::make_rows;
using testing::read_file;

// A header as short as it can be, which has no room to grow.
std::string tight_header(const std::string& dict, char major = 1) {
  std::string bytes("\x93NUMPY", 6);
  bytes += major;
  bytes += '\0';
  bytes += static_cast<char>(dict.size() + 1);
  bytes.append(major == 1 ? 1 : 3, '\0');
  return bytes + dict + "\n";
}

class AppendRepairTest : public AwsEnvironment {
 protected:
  std::string path() const { return fast_.path() / "x.npy"; }
  std::string journal() const { return path() + ".journal"; }
  void write_tight(uint64_t count, char major = 1) {
    const std::string dict =
        fmt::format("{{'descr': '<u2', 'fortran_order': False, 'shape': ({}, 3), }}", count);
    write(path(), tight_header(dict, major) + expected_data(count));
  }
  void write_numpy(uint64_t says, const std::string& data) {
    write(path(), format_npy_header("'<u2'", false, {says, 3}) + data);
  }
  static void append_one(const std::string& path, uint64_t first) {
    Appender appender(path, {});
    const ArrayView rows = make_rows(first, 1);
    appender.append({&rows, 1});
  }
  void expect_rows(uint64_t count) const {
    const testing::Content content = load_file(path());
    EXPECT_EQ(content.header.shape, (std::vector<uint64_t>{count, 3}));
    EXPECT_TRUE(content.data == expected_data(count));
    EXPECT_EQ(read_file(path()).size(), content.header.data_offset + content.header.nbytes);
    EXPECT_FALSE(std::filesystem::exists(journal()));
  }

 private:
  const testing::FastFolder fast_{home_};
};

TEST_F(AppendRepairTest, AFileGetsRoomForItsCount) {
  for (const char major : {'\1', '\2', '\3'}) {
    for (const bool inplace : {false, true}) {
      write_tight(1000, major);
      ::chmod(path().c_str(), 0640);
      EXPECT_FALSE(is_appendable(path()));
      EXPECT_FALSE(needs_recovery(path()));
      ensure_appendable(path(), inplace);
      EXPECT_TRUE(is_appendable(path()));
      expect_rows(1000);
      EXPECT_EQ(load_file(path()).header.major, major);
      struct stat status;
      ASSERT_EQ(::stat(path().c_str(), &status), 0);
      EXPECT_EQ(status.st_mode & 0777, 0640u);
      append_one(path(), 1000);
      expect_rows(1001);
    }
  }
}

TEST_F(AppendRepairTest, AFileThatHasRoomIsLeftAsItIs) {
  write_numpy(2, expected_data(2));
  const std::string before = read_file(path());
  ensure_appendable(path(), true);
  ensure_appendable(path(), false);
  EXPECT_TRUE(read_file(path()) == before);
  EXPECT_TRUE(is_appendable(path()));
}

TEST_F(AppendRepairTest, WhatIsInNoRowMovesToo) {
  write_tight(10);
  write(path(), read_file(path()) + "tail");
  ensure_appendable(path(), true, {.move_nbytes = 7});
  EXPECT_TRUE(needs_recovery(path()));
  EXPECT_TRUE(read_file(path()).ends_with(expected_data(10) + "tail"));
}

TEST_F(AppendRepairTest, AnArrayWithoutAnAxisCannotBeMadeToGrow) {
  write(path(), npy_bytes("{'descr': '<u2', 'fortran_order': False, 'shape': (), }", "ab"));
  EXPECT_FALSE(is_appendable(path()));
  EXPECT_FALSE(needs_recovery(path()));
  EXPECT_EQ(message_of<ArgumentError>([&] { ensure_appendable(path(), false); }),
            path() +
                ": expected an array with an axis that can grow but found shape (); save it with "
                "shape (1,)");
}

TEST_F(AppendRepairTest, FilesThatAreNoneAreRefused) {
  write(path(), "");
  for (const auto& call : std::vector<std::function<void()>>{
           [&] { is_appendable(path()); }, [&] { needs_recovery(path()); },
           [&] { ensure_appendable(path(), false); }, [&] { recover(path(), false); }}) {
    EXPECT_TRUE(has(message_of<FormatError>(call), {path(), "the file is truncated"}));
  }
  std::filesystem::remove(path());
  EXPECT_TRUE(has(message_of<TransportError>([&] { is_appendable(path()); }),
                  {path(), "No such file or directory"}));
}

struct RecoverCase {
  const char* name;
  uint64_t says;     // the header
  uint64_t there;    // rows
  const char* tail;  // behind them
  bool zerofill;
  uint64_t recovered;
};

class Recover : public AppendRepairTest, public ::testing::WithParamInterface<RecoverCase> {};

TEST_P(Recover, CountsTheRowsThatAreThere) {
  const RecoverCase& test = GetParam();
  write_numpy(test.says, expected_data(test.there) + test.tail);
  EXPECT_TRUE(needs_recovery(path()));
  recover(path(), test.zerofill);
  EXPECT_FALSE(needs_recovery(path()));
  const testing::Content content = load_file(path());
  EXPECT_EQ(content.header.shape[0], test.recovered);
  EXPECT_EQ(content.data.substr(0, test.there * 6), expected_data(test.there));
  if (test.zerofill && test.tail[0] != '\0') {
    EXPECT_EQ(content.data.substr(test.there * 6), std::string(test.tail) + std::string(4, '\0'));
  }
  append_one(path(), 0);
  EXPECT_EQ(load_file(path()).header.shape[0], test.recovered + 1);
}

INSTANTIATE_TEST_SUITE_P(AppendRepair, Recover,
                         ::testing::Values(RecoverCase{"shorter", 10, 4, "", false, 4},
                                           RecoverCase{"shorter_incomplete", 10, 4, "ab", false, 4},
                                           RecoverCase{"shorter_filled", 10, 4, "ab", true, 5},
                                           RecoverCase{"nothing", 10, 0, "", true, 0},
                                           RecoverCase{"longer", 0, 7, "", false, 7},
                                           RecoverCase{"longer_incomplete", 3, 7, "ab", false, 7},
                                           RecoverCase{"longer_filled", 3, 7, "ab", true, 8}),
                         [](const auto& test) { return std::string(test.param.name); });

TEST_F(AppendRepairTest, RowsOfNoBytesCannotBeCounted) {
  write(path(), format_npy_header("'<u2'", false, {3, 0}) + "junk");
  EXPECT_TRUE(needs_recovery(path()));
  recover(path(), true);
  EXPECT_EQ(load_file(path()).header.shape, (std::vector<uint64_t>{3, 0}));
  EXPECT_FALSE(needs_recovery(path()));
  recover(path(), false);  // nothing to do
}

TEST_F(AppendRepairTest, AnotherArrayIsNotTakenForRows) {
  write_numpy(2, expected_data(2) + format_npy_header("'<u2'", false, {2, 3}) + expected_data(2));
  EXPECT_TRUE(has(message_of<FormatError>([&] { recover(path(), false); }),
                  {path(), "found another array at byte 140"}));
}

TEST_F(AppendRepairTest, WhatAKilledAppendLeftIsNoRow) {
  append_one(path(), 0);
  write(path(), read_file(path()) + expected_data(5));
  EXPECT_TRUE(needs_recovery(path()));
  recover(path(), true);
  expect_rows(1);
}

TEST_F(AppendRepairTest, RowsThatTheHeaderWasNotYetToCountAreRecovered) {
  const auto plan = std::make_shared<testing::FaultPlan>();
  {
    Appender appender(path(), {.header_every = 0, .open = testing::open_with(plan)});
    for (uint64_t first = 0; first < 10; first += 5) {
      const ArrayView rows = make_rows(first, 5);
      appender.append({&rows, 1});
    }
    plan->is_dead = true;
  }
  EXPECT_EQ(load_file(path()).header.shape[0], 0u);
  EXPECT_TRUE(has(message_of<ArgumentError>([&] { Appender(path(), {}); }),
                  {"expected 0 bytes of data", "found 60; call recover() first"}));
  recover(path(), false);
  expect_rows(10);
}

TEST_F(AppendRepairTest, AHeaderWithoutRoomMustGetItFirst) {
  write_tight(10);
  std::filesystem::resize_file(path(), 100);
  EXPECT_EQ(message_of<ArgumentError>([&] { recover(path(), false); }),
            path() +
                ": expected a header with room for its count but found none; call "
                "ensure_appendable() first");
  ensure_appendable(path(), true);
  recover(path(), false);
  EXPECT_EQ(load_file(path()).header.shape[0], 4u);
}

// The header and its count lie in two sectors: a power failure could write the one without the
// other.
TEST_F(AppendRepairTest, AHeaderOfSeveralSectorsIsWrittenAnewWithAJournal) {
  std::string descr = "[";
  for (int i = 0; i < 40; ++i) descr += fmt::format("('field_{}', '<u2'), ", i);
  descr += "]";
  for (const testing::Fault fault : testing::kFaults) {
    for (int at_step = 0;; ++at_step) {
      const std::string data(2 * 80, 'x');
      write(path(), format_npy_header(descr, false, {2}) + data);
      const auto plan = std::make_shared<testing::FaultPlan>();
      plan->fault = fault;
      plan->at_step = at_step;
      try {
        Appender appender(path(), {.open = testing::open_with(plan)});
      } catch (const TransportError&) {
      }
      if (needs_recovery(path())) {
        EXPECT_TRUE(has(message_of<ArgumentError>([&] { Appender(path(), {}); }),
                        {path(), "cut short; call recover() first"}));
        recover(path(), false);
      }
      Appender appender(path(), {});
      EXPECT_EQ(appender.shape(), (std::vector<uint64_t>{2}));
      EXPECT_EQ(load_file(path()).data, data);
      if (!plan->was_reached()) break;
      ASSERT_LT(at_step, 20);
    }
  }
}

class Move : public AppendRepairTest, public ::testing::WithParamInterface<testing::Fault> {};

// Whatever goes wrong, and wherever: recover() finishes it.
TEST_P(Move, ThatEndedAtAnyStepIsFinishedByRecover) {
  for (int at_step = 0;; ++at_step) {
    write_tight(100);  // 600 bytes in chunks of 150
    const auto plan = std::make_shared<testing::FaultPlan>();
    plan->fault = GetParam();
    plan->at_step = at_step;
    try {
      ensure_appendable(path(), true, {.open = testing::open_with(plan), .move_nbytes = 150});
    } catch (const TransportError&) {
    }
    if (std::filesystem::exists(journal())) {
      EXPECT_TRUE(needs_recovery(path()));
      EXPECT_FALSE(is_appendable(path()));
      EXPECT_TRUE(has(message_of<ArgumentError>([&] { Appender(path(), {}); }),
                      {path(), "cut short; call recover() first"}));
    }
    // What recovers may be killed as well.
    const auto again = std::make_shared<testing::FaultPlan>();
    again->fault = GetParam();
    again->at_step = at_step / 2;
    try {
      recover(path(), false, {.open = testing::open_with(again), .move_nbytes = 150});
    } catch (const TransportError&) {
    }
    recover(path(), false);
    ensure_appendable(path(), true);
    ASSERT_NO_FATAL_FAILURE(expect_rows(100));
    append_one(path(), 100);
    ASSERT_NO_FATAL_FAILURE(expect_rows(101));
    if (!plan->was_reached()) break;
    ASSERT_LT(at_step, 100);
  }
}

// The file was saved anew meanwhile, with the same header: nothing of the old one may come into it.
TEST_P(Move, OfAFileThatWasReplacedByOneOfItsSizeIsNotFinished) {
  struct Size {
    uint64_t rows;
    uint64_t move_nbytes;
  };
  for (const Size size : {Size{100, 150}, Size{100, 600}, Size{400, 1800}, Size{5, 150}}) {
    for (int at_step = 0;; ++at_step) {
      write_tight(size.rows);
      const auto plan = std::make_shared<testing::FaultPlan>();
      plan->fault = GetParam();
      plan->at_step = at_step;
      const RepairOptions options{testing::open_with(plan), size.move_nbytes};
      try {
        ensure_appendable(path(), true, options);
      } catch (const TransportError&) {
      }
      if (std::filesystem::exists(journal())) {
        write_tight(size.rows);
        std::string bytes = read_file(path());
        for (size_t i = bytes.size() - size.rows * 6; i < bytes.size(); ++i) bytes[i] ^= 0x55;
        write(path(), bytes);
        try {
          recover(path(), false);
        } catch (const FormatError& error) {
          EXPECT_TRUE(has(error.what(), {journal(), "if it was replaced since"}));
        }
        EXPECT_TRUE(load_file(path()).data == bytes.substr(bytes.size() - size.rows * 6));
        std::filesystem::remove(journal());
      }
      if (!plan->was_reached()) break;
      ASSERT_LT(at_step, 100);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(AppendRepair, Move, ::testing::ValuesIn(testing::kFaults));

TEST_F(AppendRepairTest, AJournalOfAnotherFileIsRefused) {
  write_tight(100);
  const auto plan = std::make_shared<testing::FaultPlan>();
  plan->fault = testing::Fault::kCrashBefore;
  plan->at_step = 2;
  EXPECT_THROW(ensure_appendable(path(), true, {.open = testing::open_with(plan)}), TransportError);
  ASSERT_TRUE(std::filesystem::exists(journal()));
  write(journal(), "something else");
  EXPECT_TRUE(has(message_of<FormatError>([&] { recover(path(), false); }),
                  {journal(), "expected a journal but found another magic"}));
  write_numpy(100, expected_data(100));
  write(journal(), "");  // created, and not written
  append_one(path(), 100);
  EXPECT_EQ(load_file(path()).header.shape[0], 101u);
}

TEST_F(AppendRepairTest, AJournalIsReadByNobodyWhoMayNotReadTheFile) {
  write_tight(100);
  ::chmod(path().c_str(), 0600);
  const auto plan = std::make_shared<testing::FaultPlan>();
  plan->fault = testing::Fault::kCrashAfter;
  plan->at_step = 3;
  EXPECT_THROW(ensure_appendable(path(), true, {.open = testing::open_with(plan)}), TransportError);
  struct stat status;
  ASSERT_EQ(::stat(journal().c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600u);
  recover(path(), false);
}

std::atomic<bool> stop_wanted{false};

TEST_F(AppendRepairTest, AnInterruptedMoveIsFinishedByRecover) {
  write_tight(100);
  stop_wanted = true;
  {
    const StopScope scope(stop_wanted);
    EXPECT_THROW(ensure_appendable(path(), true, {.move_nbytes = 150}), InterruptedError);
  }
  recover(path(), false);
  expect_rows(100);
}

}  // namespace
}  // namespace torchnpy
