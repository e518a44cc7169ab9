#include "transport/file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "aws_environment.h"
#include "base/error.h"

namespace torchnpy {
namespace {

// Keeps what it is given, with at most `step` bytes of room at a time.
class Collector : public Sink {
 public:
  explicit Collector(size_t step = 1000) : step_(step) {}
  MutableBytes room(uint64_t offset, size_t want) override {
    if (on_room) on_room();
    if (!started_) first_offset = offset;
    started_ = true;
    const size_t size = bytes.size();
    bytes.resize(size + std::min(step_, want));
    return MutableBytes(reinterpret_cast<uint8_t*>(bytes.data()), bytes.size()).subspan(size);
  }
  void filled(uint64_t offset, size_t nbytes) override {
    EXPECT_EQ(offset, first_offset + count_);
    count_ += nbytes;
    bytes.resize(count_);
  }
  void done(std::exception_ptr with) override {
    ++dones;
    bytes.resize(count_);
    error = with;
  }

  std::function<void()> on_room;
  std::string bytes;
  uint64_t first_offset = 0;
  int dones = 0;
  std::exception_ptr error;

 private:
  size_t step_;
  size_t count_ = 0;
  bool started_ = false;
};

class FileTest : public AwsEnvironment {
 protected:
  static std::string content(size_t nbytes) {
    std::string text(nbytes, '\0');
    for (size_t i = 0; i < nbytes; ++i) text[i] = static_cast<char>(i * 2654435761u >> 11);
    return text;
  }
  static std::string read(Source& source, Range range) {
    Collector sink;
    source.start(range, sink);
    EXPECT_EQ(sink.dones, 1);
    if (sink.error) std::rethrow_exception(sink.error);
    return sink.bytes;
  }
};

struct Way {
  size_t nbytes;
  bool mmap;
  bool viewable;
};

class EachWay : public FileTest, public ::testing::WithParamInterface<Way> {};

TEST_P(EachWay, ReadsRanges) {
  const auto [nbytes, mmap, viewable] = GetParam();
  const std::string text = content(nbytes);
  const std::string path = write("f", text);
  const auto source = open_file(path, mmap);
  EXPECT_EQ(source->name(), path);
  EXPECT_EQ(source->nbytes(), nbytes);
  EXPECT_EQ(source->view(0, nbytes).has_value(), viewable);
  EXPECT_TRUE(read(*source, {}) == text);
  const size_t half = nbytes / 2;
  EXPECT_EQ(read(*source, {half, 7}), text.substr(half, 7));
  EXPECT_TRUE(read(*source, {half, Range::kToEnd}) == text.substr(half));
  EXPECT_EQ(read(*source, {nbytes, 7}), "");
  EXPECT_EQ(read(*source, {nbytes + 1, 7}), "");
  EXPECT_EQ(read(*source, {0, 5, true}), text.substr(nbytes - std::min<size_t>(5, nbytes)));
  EXPECT_TRUE(read(*source, {0, nbytes + 9, true}) == text);
}

INSTANTIATE_TEST_SUITE_P(
    File, EachWay,
    ::testing::Values(Way{0, true, true}, Way{1, true, true}, Way{(256 << 10) - 1, true, true},
                      Way{256 << 10, true, true}, Way{(256 << 10) - 1, false, true},
                      Way{256 << 10, false, false}, Way{(9 << 20) + 1, false, false}));

TEST_F(FileTest, WritesToAViewDoNotReachTheFile) {
  const std::string text = content(300 << 10);
  const std::string path = write("f", text);
  auto view = open_file(path, true)->view(4096, 100);
  ASSERT_TRUE(view);
  view->bytes[0] ^= 0xff;
  EXPECT_TRUE(read(*open_file(path, false), {}) == text);
}

TEST_F(FileTest, AViewOutlivesTheSourceAndTheFile) {
  const std::string text = content(300 << 10);
  const std::string path = write("f", text);
  const auto view = open_file(path, true)->view(100, 50);
  std::filesystem::remove(path);
  EXPECT_EQ(as_text(view->bytes), text.substr(100, 50));
}

TEST_F(FileTest, ThatCannotBeMappedIsRead) {
  const std::string path = write("f", content(64 << 20));
  rlimit before{};
  getrlimit(RLIMIT_AS, &before);
  std::ifstream statm("/proc/self/statm");
  uint64_t pages = 0;
  statm >> pages;
  const uint64_t used = pages * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  const rlimit small{used + (32 << 20), before.rlim_max};
  setrlimit(RLIMIT_AS, &small);
  rlimit kept{};
  getrlimit(RLIMIT_AS, &kept);
  if (kept.rlim_cur != small.rlim_cur) GTEST_SKIP() << "qemu-user does not keep RLIMIT_AS";
  const auto source = open_file(path, true);
  const bool viewable = source->view(0, 1).has_value();
  setrlimit(RLIMIT_AS, &before);
  EXPECT_FALSE(viewable);
  EXPECT_EQ(read(*source, {7, 100}), content(64 << 20).substr(7, 100));
}

TEST_F(FileTest, ThatIsTruncatedAfterTheOpenEndsEarly) {
  const std::string path = write("f", content(300 << 10));
  const auto source = open_file(path, false);
  std::filesystem::resize_file(path, 1000);
  EXPECT_TRUE(read(*source, {}) == content(1000));
}

TEST_F(FileTest, MissingIsNotFound) {
  const std::string path = home_ / "missing.npy";
  try {
    open_file(path, true);
    FAIL();
  } catch (const TransportError& error) {
    EXPECT_EQ(error.kind(), TransportError::Kind::kNotFound);
    EXPECT_EQ(error.what(), path + ": cannot open: No such file or directory");
  }
}

TEST_F(FileTest, FileThatIsReadLetsPeekAtItsBytes) {
  for (const size_t nbytes : {1000, 300 << 10}) {
    const std::string text = content(nbytes);
    const auto source = open_file(write("f", text), false);
    const Range ranges[] = {{0, 10}, {500, 10}, {nbytes - 10, 10}};
    source->will_read(ranges);
    for (const Range& range : ranges) {
      const std::optional<OwnedBytes> bytes = source->peek(range.offset, range.nbytes);
      ASSERT_TRUE(bytes);
      EXPECT_EQ(as_text(bytes->bytes), text.substr(range.offset, range.nbytes));
    }
  }
}

// Instead of SIGBUS.
TEST_F(FileTest, BytesThatWereTruncatedAreNotPeekedAt) {
  const std::string path = write("f", content(300 << 10));
  const auto source = open_file(path, false);
  EXPECT_TRUE(source->peek(200 << 10, 1000));
  ASSERT_EQ(::truncate(path.c_str(), 100 << 10), 0);
  EXPECT_FALSE(source->peek(200 << 10, 1000));
  EXPECT_TRUE(source->peek(99 << 10, 1024));
}

TEST_F(FileTest, DirectoriesAndPipesAreRefused) {
  EXPECT_TRUE(has(message_of<TransportError>([&] { open_file(home_, true); }),
                  {"cannot read: Is a directory"}));
  const std::string fifo = home_ / "fifo";
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  EXPECT_TRUE(has(message_of<UnsupportedError>([&] { open_file(fifo, true); }),
                  {"expected a regular file"}));
  EXPECT_TRUE(has(message_of<UnsupportedError>([&] { open_file("/dev/null", true); }),
                  {"expected a regular file"}));
}

TEST_F(FileTest, WhatASinkThrowsComesBackThroughDone) {
  for (const size_t nbytes : {1000, 300 << 10}) {
    const auto source = open_file(write("f", content(nbytes)), false);
    Collector sink;
    sink.on_room = [] { throw FormatError("stop"); };
    source->start({}, sink);
    EXPECT_EQ(sink.dones, 1);
    EXPECT_THROW(std::rethrow_exception(sink.error), FormatError);
  }
}

TEST_F(FileTest, ACancelledReadEndsWithInterruptedError) {
  const auto source = open_file(write("f", content(300 << 10)), false);
  Collector sink;
  sink.on_room = [&] { source->cancel(sink); };
  source->start({}, sink);
  EXPECT_EQ(sink.dones, 1);
  EXPECT_THROW(std::rethrow_exception(sink.error), InterruptedError);
  EXPECT_LE(sink.bytes.size(), 1000u);
}

}  // namespace
}  // namespace torchnpy
