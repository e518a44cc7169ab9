// RowsLoader: which reads they ask for, and where the bytes go.
#include "archive/rows.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "archive/runs.h"
#include "base/error.h"
#include "memory_source.h"
#include "npy_bytes.h"

namespace torchnpy {
namespace {

// Rows of 1000 bytes, 500 of them.
constexpr uint64_t kRowNbytes = 1000;
constexpr uint64_t kRowCount = 500;

class Rows : public ::testing::Test {
 protected:
  Rows() : object_(make_npy(kRowCount, kRowNbytes)) { make_source(object_); }

  void make_source(std::string object) {
    source_ = std::make_shared<MemorySource>(std::move(object));
  }

  // Reads `rows`, sorted, one behind the other into memory; "" or the message of the error.
  std::string read(const std::vector<uint64_t>& rows, uint64_t free_gap_nbytes = kFreeGapNbytes) {
    memory_.assign(rows.size() * kRowNbytes, '?');
    std::vector<RowTarget> targets;
    for (size_t i = 0; i < rows.size(); ++i) targets.push_back({rows[i], place(i)});
    return read(std::move(targets), free_gap_nbytes);
  }
  std::string read(std::vector<RowTarget> targets, uint64_t free_gap_nbytes = kFreeGapNbytes) {
    source_->reads.clear();
    RowsLoader loader(source_, {kHeaderNbytes, kRowNbytes, kRowCount}, std::move(targets),
                      free_gap_nbytes);
    try {
      load_one(loader);
      return "";
    } catch (const Error& error) {
      return error.what();
    }
  }

  uint8_t* place(size_t i) { return reinterpret_cast<uint8_t*>(memory_.data()) + i * kRowNbytes; }
  std::string row(uint64_t row) const {
    return object_.substr(kHeaderNbytes + row * kRowNbytes, kRowNbytes);
  }
  std::string rows(const std::vector<uint64_t>& numbers) const {
    std::string all;
    for (const uint64_t number : numbers) all += row(number);
    return all;
  }

  // "first+count" of the rows that were asked for, and so many bytes where they are no whole rows.
  std::vector<std::string> reads() const {
    std::vector<std::string> reads;
    for (const Range& range : source_->reads) {
      const uint64_t begin = range.offset - kHeaderNbytes;
      const bool whole = begin % kRowNbytes == 0 && range.nbytes % kRowNbytes == 0;
      reads.push_back(whole ? fmt::format("{}+{}", begin / kRowNbytes, range.nbytes / kRowNbytes)
                            : fmt::format("bytes {}+{}", begin, range.nbytes));
    }
    return reads;
  }
  using Reads = std::vector<std::string>;

  std::string object_;
  std::shared_ptr<MemorySource> source_;
  std::string memory_;
};

TEST_F(Rows, FarRowsAreReadAlone) {
  EXPECT_EQ(read({0, 250, 499}), "");
  EXPECT_EQ(memory_, rows({0, 250, 499}));
  EXPECT_EQ(reads(), (Reads{"0+1", "250+1", "499+1"}));
}

TEST_F(Rows, AdjacentRowsAreOneRead) {
  EXPECT_EQ(read({3, 4, 5}, 0), "");
  EXPECT_EQ(memory_, rows({3, 4, 5}));
  EXPECT_EQ(reads(), Reads{"3+3"});
}

TEST_F(Rows, GapsAreReadForNothingUpToTheBudget) {
  EXPECT_EQ(read({0, 30, 60, 90}, 58'000), "");
  EXPECT_EQ(memory_, rows({0, 30, 60, 90}));
  // 58 000 bytes and a twentieth of 4000 hold two of three gaps.
  EXPECT_EQ(reads(), (Reads{"0+61", "90+1"}));
}

TEST_F(Rows, WithoutABudgetATwentiethIsReadForNothing) {
  std::vector<uint64_t> wanted;
  for (uint64_t i = 0; i < 45; ++i) wanted.push_back(i < 20 ? i : i < 40 ? i + 1 : i + 100);
  EXPECT_EQ(read(wanted, 0), "");
  EXPECT_EQ(memory_, rows(wanted));
  EXPECT_EQ(reads(), (Reads{"0+41", "140+5"}));
}

TEST_F(Rows, ClientMayCoalesceMore) {
  source_->sizes.coalesce_nbytes = 100'000;
  EXPECT_EQ(read({0, 100, 202}, 0), "");
  EXPECT_EQ(memory_, rows({0, 100, 202}));
  EXPECT_EQ(reads(), (Reads{"0+101", "202+1"}));
}

TEST_F(Rows, ManyRowsComeInParts) {
  source_->sizes.part_nbytes = 2500;
  EXPECT_EQ(read({10, 11, 12, 13, 14, 15}), "");
  EXPECT_EQ(memory_, rows({10, 11, 12, 13, 14, 15}));
  EXPECT_EQ(reads(), (Reads{"bytes 10000+2500", "bytes 12500+2500", "15+1"}));
}

TEST_F(Rows, OneRowLongerThanAPartComesInParts) {
  source_->sizes.part_nbytes = 400;
  EXPECT_EQ(read({7, 9}), "");
  EXPECT_EQ(memory_, rows({7, 9}));
  EXPECT_EQ(source_->reads.size(), 6U);
}

TEST_F(Rows, RowsGoWhereTheyBelong) {
  memory_.assign(3 * kRowNbytes, '?');
  EXPECT_EQ(read(std::vector<RowTarget>{{4, place(2)}, {5, place(0)}, {300, place(1)}}), "");
  EXPECT_EQ(memory_, rows({5, 300, 4}));
}

TEST_F(Rows, RowThatComesTwiceIsReadOnce) {
  for (const bool peeks : {false, true}) {
    make_source(object_);
    source_->offers_view = peeks;
    EXPECT_EQ(read({4, 4, 5, 5, 5, 300}, 0), "");
    EXPECT_EQ(memory_, rows({4, 4, 5, 5, 5, 300}));
    EXPECT_EQ(reads(), peeks ? Reads{} : (Reads{"4+2", "300+1"}));
  }
}

// Its second place is followed in memory by the place of the next row, its first is not.
TEST_F(Rows, RowBehindASecondPlaceDoesNotFollowTheFirst) {
  memory_.assign(4 * kRowNbytes, '?');
  EXPECT_EQ(
      read(std::vector<RowTarget>{{4, place(3)}, {4, place(0)}, {5, place(1)}, {6, place(2)}}), "");
  EXPECT_EQ(memory_, rows({4, 5, 6, 4}));
}

TEST_F(Rows, SmallRowsAreCopiedOutOfAView) {
  source_->offers_view = true;
  EXPECT_EQ(read({1, 2, 77, 499}), "");
  EXPECT_EQ(memory_, rows({1, 2, 77, 499}));
  EXPECT_EQ(reads(), Reads{});
}

TEST_F(Rows, LongRunsAreReadThoughThereIsAView) {
  source_->offers_view = true;
  std::vector<uint64_t> wanted;
  for (uint64_t i = 0; i < 100; ++i) wanted.push_back(i);
  EXPECT_EQ(read(wanted), "");
  EXPECT_EQ(memory_, rows(wanted));
  EXPECT_EQ(reads(), Reads{"0+100"});
}

// More than a thread copies without asking whether it shall stop.
TEST_F(Rows, ManyRowsAreCopiedByTheWorkers) {
  object_ = make_npy(10'000, kRowNbytes);
  make_source(object_);
  source_->offers_view = true;
  std::vector<uint64_t> wanted;
  for (uint64_t i = 0; i < 10'000; i += 2) wanted.insert(wanted.end(), 1 + i % 3, i);
  EXPECT_EQ(read(wanted), "");
  EXPECT_EQ(memory_, rows(wanted));
  EXPECT_EQ(reads(), Reads{});
}

TEST_F(Rows, ServerWithoutRangesIsReadNoFurther) {
  source_->ignores_ranges = true;
  EXPECT_EQ(read({3, 400}), "");
  EXPECT_EQ(memory_, rows({3, 400}));
}

TEST_F(Rows, TruncatedObjectIsAnError) {
  make_source(object_.substr(0, kHeaderNbytes + 300'500));
  source_->offers_view = true;  // its length is known
  EXPECT_EQ(
      read({1, 300}),
      "memory: expected 301128 bytes up to row 300 but found 300628; the object is truncated");
  EXPECT_EQ(read({1, 299}), "");
}

TEST_F(Rows, ObjectThatEndsEarlyIsAnError) {
  source_->ends_at = kHeaderNbytes + 300'500;
  EXPECT_EQ(read({1, 300}),
            "memory: expected 500 more bytes at byte 300628 but the object ends there");
}

TEST_F(Rows, ChangedObjectIsNotReadAnew) {
  source_->fault =
      std::make_exception_ptr(TransportError("memory: changed", TransportError::Kind::kChanged));
  source_->changes_to = object_;
  EXPECT_EQ(read({1, 300}), "memory: changed");
}

TEST_F(Rows, NoRowsTakeNoRead) {
  EXPECT_EQ(read(std::vector<uint64_t>{}), "");
  EXPECT_EQ(reads(), Reads{});
}

}  // namespace
}  // namespace torchnpy
