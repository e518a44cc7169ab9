#include "archive/loader.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <thread>

#include "base/error.h"
#include "base/wait.h"
#include "memory_source.h"
#include "npy_bytes.h"

namespace torchnpy {
namespace {

std::string text_of(const OwnedBytes& bytes) { return std::string(as_text(bytes.bytes)); }

class LoaderTest : public ::testing::Test {
 protected:
  std::shared_ptr<MemorySource> make_source(std::string object) {
    source_ = std::make_shared<MemorySource>(std::move(object));
    return source_;
  }

  // What the load ends with: "" or the message of its error.
  std::string load(NpyLoadOptions options = {}) {
    loader_ = std::make_unique<NpyLoader>(source_, heap_allocator(), options);
    return run(*loader_);
  }

  std::string load_rows(int64_t start, int64_t stop) {
    NpyLoadOptions options;
    options.rows = RowSlice{start, stop};
    return load(options);
  }

  static std::string run(Loader& loader) {
    try {
      load_one(loader);
      return "";
    } catch (const Error& error) {
      return error.what();
    }
  }

  std::string data() { return text_of(loader_->data()); }

  std::shared_ptr<MemorySource> source_;
  std::unique_ptr<NpyLoader> loader_;
};

TEST_F(LoaderTest, SmallArrayTakesOneRead) {
  const std::string file = make_npy(3, 1000);
  make_source(file);
  EXPECT_EQ("", load());
  EXPECT_EQ(file.substr(kHeaderNbytes), data());
  ASSERT_EQ(1u, source_->reads.size());
  EXPECT_EQ(kFirstReadNbytes, source_->reads[0].nbytes);
}

TEST_F(LoaderTest, LargeArrayTakesPartsAfterTheFirstRead) {
  const std::string file = make_npy(1000, 300);
  make_source(file);
  source_->sizes.part_nbytes = 100 << 10;
  EXPECT_EQ("", load());
  EXPECT_EQ(file.substr(kHeaderNbytes), data());
  ASSERT_EQ(4u, source_->reads.size());
  EXPECT_EQ(kFirstReadNbytes, source_->reads[1].offset);
  EXPECT_EQ(100u << 10, source_->reads[1].nbytes);
  EXPECT_EQ(file.size(), source_->reads[3].offset + source_->reads[3].nbytes);
}

TEST_F(LoaderTest, AnyChunkingGivesTheSameBytes) {
  const std::string file = make_npy(100, 1000);
  for (const size_t chunk : {1, 7, 127, 128, 129, 1023, 1025, 16384, 1 << 20}) {
    make_source(file)->chunk_nbytes = chunk;
    EXPECT_EQ("", load());
    EXPECT_EQ(file.substr(kHeaderNbytes), data()) << chunk;
  }
}

TEST_F(LoaderTest, ServerThatIgnoresRangesIsReadOnce) {
  const std::string file = make_npy(1000, 300);
  make_source(file)->ignores_ranges = true;
  EXPECT_EQ("", load());
  EXPECT_EQ(file.substr(kHeaderNbytes), data());
  EXPECT_EQ(1u, source_->reads.size());
}

TEST_F(LoaderTest, UnknownSizeIsNoHindrance) {
  const std::string file = make_npy(1000, 300);
  make_source(file)->size_known = false;
  EXPECT_EQ("", load());
  EXPECT_EQ(file.substr(kHeaderNbytes), data());
}

TEST_F(LoaderTest, TruncatedObjectIsRefusedBeforeAllocating) {
  struct Refuser final : Allocator {
    OwnedBytes allocate(uint64_t) override { throw std::logic_error("allocated"); }
  } refuser;
  make_source(make_npy(1000, 300).substr(0, 200'000));
  NpyLoader loader(source_, refuser);
  EXPECT_EQ(
      "memory: expected 300000 bytes of data (uint8, shape (1000, 300)) but found 199872; the file "
      "is truncated",
      run(loader));
}

TEST_F(LoaderTest, EmptyObjectIsTruncated) {
  make_source("");
  EXPECT_TRUE(load().starts_with("memory: expected ")) << load();
}

TEST_F(LoaderTest, ObjectThatEndsInAPartNamesTheByte) {
  make_source(make_npy(1000, 300))->ends_at = 100'000;
  EXPECT_EQ("memory: expected 200128 more bytes at byte 100000 but the object ends there", load());
}

TEST_F(LoaderTest, ViewIsNotCopied) {
  make_source(make_npy(1000, 300))->offers_view = true;
  EXPECT_EQ("", load());
  EXPECT_TRUE(loader_->is_view());
  EXPECT_TRUE(source_->reads.empty());
  const OwnedBytes all = *source_->view(0, 1);
  EXPECT_EQ(all.bytes.data() + kHeaderNbytes, loader_->data().bytes.data());
}

TEST_F(LoaderTest, TruncatedViewIsRefused) {
  make_source(make_npy(10, 300).substr(0, 1000))->offers_view = true;
  EXPECT_EQ(
      "memory: expected 3000 bytes of data (uint8, shape (10, 300)) but found 872; the file is "
      "truncated",
      load());
}

TEST_F(LoaderTest, ChangedObjectIsReadAnewFromTheStart) {
  const std::string file = make_npy(100, 300);
  make_source(file)->changes_once = true;
  EXPECT_EQ("", load());
  EXPECT_EQ(file.substr(kHeaderNbytes), data());
}

TEST_F(LoaderTest, ObjectThatChangesBetweenPartsIsLoadedAnewOnce) {
  const auto changed =
      std::make_exception_ptr(TransportError("memory: changed", TransportError::Kind::kChanged));
  const std::string later = make_npy(2000, 300);
  make_source(make_npy(1000, 300))->fault = changed;
  source_->changes_to = later;
  EXPECT_EQ("", load());
  EXPECT_EQ(later.substr(kHeaderNbytes), data());

  struct EverChanging final : Source {
    std::string name_ = "memory";
    std::exception_ptr error;
    const std::string& name() const override { return name_; }
    std::optional<uint64_t> nbytes() const override { return std::nullopt; }
    std::optional<OwnedBytes> view(uint64_t, uint64_t) override { return std::nullopt; }
    void start(Range, Sink& sink) override { sink.done(error); }
    void cancel(Sink&) override {}
  };
  auto source = std::make_shared<EverChanging>();
  source->error = changed;
  NpyLoader loader(source, heap_allocator());
  EXPECT_EQ("memory: changed", run(loader));
}

TEST_F(LoaderTest, FaultInAPartEndsTheLoad) {
  make_source(make_npy(1000, 300))->fault = std::make_exception_ptr(TransportError("memory: gone"));
  EXPECT_EQ("memory: gone", load());
}

TEST_F(LoaderTest, RowsFetchOnlyTheirBytes) {
  const std::string file = make_npy(1000, 1000);
  make_source(file);
  EXPECT_EQ("", load_rows(500, 503));
  EXPECT_EQ(file.substr(kHeaderNbytes + 500'000, 3000), data());
  EXPECT_EQ((std::vector<uint64_t>{3, 1000}), loader_->header().shape);
  ASSERT_EQ(2u, source_->reads.size());
  EXPECT_EQ(kHeaderNbytes + 500'000u, source_->reads[1].offset);
  EXPECT_EQ(3000u, source_->reads[1].nbytes);
}

TEST_F(LoaderTest, RowsInTheFirstReadTakeNoOther) {
  const std::string file = make_npy(100, 100);
  for (const size_t chunk : {100, 1000, 16384}) {
    make_source(file)->chunk_nbytes = chunk;
    EXPECT_EQ("", load_rows(50, 53));
    EXPECT_EQ(file.substr(kHeaderNbytes + 5000, 300), data()) << chunk;
    EXPECT_EQ(1u, source_->reads.size());
  }
}

TEST_F(LoaderTest, RowsFollowTheRulesOfSlices) {
  const std::string file = make_npy(100, 10);
  struct Row {
    int64_t start, stop;
    size_t first, count;
  };
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  constexpr int64_t kMin = std::numeric_limits<int64_t>::min();
  for (const Row& row : {Row{0, 100, 0, 100},
                         {0, kMax, 0, 100},
                         {-1, kMax, 99, 1},
                         {-100, -99, 0, 1},
                         {kMin, 1, 0, 1},
                         {5, 5, 5, 0},
                         {7, 3, 7, 0},
                         {100, 200, 100, 0},
                         {0, kMin, 0, 0}}) {
    make_source(file);
    EXPECT_EQ("", load_rows(row.start, row.stop));
    EXPECT_EQ(file.substr(kHeaderNbytes + row.first * 10, row.count * 10), data())
        << row.start << ":" << row.stop;
    EXPECT_EQ(row.count, loader_->header().shape[0]);
  }
}

TEST_F(LoaderTest, RowsOfFortranOrderAreRefused) {
  make_source(make_npy(10, 10, true));
  EXPECT_EQ(
      "memory: expected C order but found fortran_order: True; rows do not lie together, load the "
      "whole array",
      load_rows(0, 1));
}

TEST_F(LoaderTest, BytesOfAnyObject) {
  const std::string object = make_npy(1000, 300);
  struct Row {
    uint64_t offset, nbytes;
    std::string outcome;
  };
  const uint64_t size = object.size();
  for (const Row& row : {
           Row{0, Range::kToEnd, ""},
           {10, 20, ""},
           {size, Range::kToEnd, ""},
           {100'000, 150'000, ""},
           {0, 0, ""},
           {size - 5, 6,
            fmt::format("memory: expected 6 bytes at byte {} but the object has {} bytes", size - 5,
                        size)},
           {size + 1, Range::kToEnd,
            fmt::format("memory: expected bytes at byte {} but the object has {} bytes", size + 1,
                        size)},
       }) {
    make_source(object)->sizes.part_nbytes = 64 << 10;
    BytesLoader loader(source_, heap_allocator(), row.offset, row.nbytes);
    EXPECT_EQ(row.outcome, run(loader)) << row.offset << "+" << row.nbytes;
    if (row.outcome.empty()) {
      EXPECT_EQ(object.substr(row.offset, row.nbytes), text_of(loader.data()));
    }
  }
}

TEST_F(LoaderTest, BytesOfUnknownTotalAreRefused) {
  make_source("abc")->size_known = false;
  BytesLoader loader(source_, heap_allocator(), 0);
  EXPECT_EQ(
      "memory: expected an answer that gives the object's size but found none; the server sends it "
      "in chunks of unknown total",
      run(loader));
}

TEST_F(LoaderTest, ManyLoadersEachEndForThemselves) {
  std::vector<std::unique_ptr<NpyLoader>> loaders;
  std::vector<Loader*> all;
  for (size_t i = 0; i < 50; ++i) {
    auto source = std::make_shared<MemorySource>(i == 20 ? "junk" : make_npy(i + 1, 3));
    loaders.push_back(std::make_unique<NpyLoader>(source, heap_allocator()));
    all.push_back(loaders.back().get());
  }
  const std::vector<std::exception_ptr> errors = load_all(all, {.fail_fast = false});
  for (size_t i = 0; i < 50; ++i) {
    EXPECT_EQ(i == 20, errors[i] != nullptr);
    if (errors[i]) continue;
    EXPECT_EQ((i + 1) * 3, loaders[i]->data().bytes.size());
  }
}

TEST_F(LoaderTest, FirstFailureEndsTheOthers) {
  NpyLoader stalled(std::make_shared<StalledSource>(), heap_allocator());
  NpyLoader broken(make_source("junk"), heap_allocator());
  Loader* const all[] = {&stalled, &broken};
  const std::vector<std::exception_ptr> errors = load_all(all);
  EXPECT_THROW(std::rethrow_exception(errors[0]), InterruptedError);
  EXPECT_THROW(std::rethrow_exception(errors[1]), FormatError);
}

TEST_F(LoaderTest, InterruptEndsTheWait) {
  set_interrupt_check([] { return true; });
  NpyLoader stalled(std::make_shared<StalledSource>(), heap_allocator());
  EXPECT_THROW(load_one(stalled), InterruptedError);
  set_interrupt_check(nullptr);
}

TEST_F(LoaderTest, AnotherThreadEndsTheWait) {
  std::atomic<bool> wanted{false};
  std::thread other([&wanted] { wanted = true; });
  {
    const StopScope scope(wanted);
    NpyLoader stalled(std::make_shared<StalledSource>(), heap_allocator());
    EXPECT_THROW(load_one(stalled), InterruptedError);
    EXPECT_TRUE(WaitScope::must_stop());
  }
  EXPECT_FALSE(WaitScope::must_stop());
  other.join();
}

// Arrays whose store has a checksum.
class LoaderChecksum : public LoaderTest, public ::testing::WithParamInterface<ChecksumKind> {
 protected:
  // `damage`: of the bytes that are sent, the one that is changed; none when it is npos.
  void make_damaged(const std::string& file, size_t damage) {
    std::string sent = file;
    if (damage != std::string::npos) sent[damage] ^= 1;
    make_source(sent)->stored = {GetParam(), compute_crc(GetParam(), as_bytes(file))};
    source_->chunk_nbytes = 1 << 20;
    source_->changes_to = sent;
  }

  // Of several pieces of the check, and of several parts.
  const std::string large_ = make_npy(9000, 1024);
};

TEST_P(LoaderChecksum, ThatMatchesTakesNoMoreReads) {
  make_damaged(make_npy(3, 1000), std::string::npos);
  EXPECT_EQ("", load());
  ASSERT_EQ(1u, source_->reads.size());
  EXPECT_EQ(Range::kToEnd, source_->reads[0].nbytes);
}

TEST_P(LoaderChecksum, OfALargeArrayMatchesOverItsParts) {
  make_damaged(large_, std::string::npos);
  source_->sizes.part_nbytes = 1 << 20;
  EXPECT_EQ("", load());
  EXPECT_EQ(large_.substr(kHeaderNbytes), data());
  EXPECT_GT(source_->reads.size(), 8u);
}

TEST_P(LoaderChecksum, FindsOneBitAnywhere) {
  for (const size_t damage : {kHeaderNbytes, size_t{70'000}, size_t{4} << 20, large_.size() - 1}) {
    make_damaged(large_, damage);
    const std::string error = load();
    EXPECT_TRUE(error.starts_with("memory: expected " + format_checksum(*source_->stored) +
                                  " but found 0x"))
        << error;
    EXPECT_TRUE(error.ends_with("; the data was damaged on its way")) << error;
  }
}

TEST_P(LoaderChecksum, BeginsAgainOnceWhenItDoesNotMatch) {
  make_damaged(large_, 5'000'000);
  source_->changes_to = large_;
  EXPECT_EQ("", load());
  EXPECT_EQ(large_.substr(kHeaderNbytes), data());
}

TEST_P(LoaderChecksum, IsOfNoConcernToRows) {
  make_damaged(make_npy(3, 1000), kHeaderNbytes);
  EXPECT_EQ("", load_rows(0, 1));
  EXPECT_EQ(kFirstReadNbytes, source_->reads[0].nbytes);
}

INSTANTIATE_TEST_SUITE_P(Kinds, LoaderChecksum,
                         ::testing::Values(ChecksumKind::kCrc32, ChecksumKind::kCrc32c,
                                           ChecksumKind::kCrc64Nvme));

}  // namespace
}  // namespace torchnpy
