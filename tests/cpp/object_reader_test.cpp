#include "archive/object_reader.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "memory_source.h"

namespace torchnpy {
namespace {

class ObjectReaderTest : public ::testing::Test {
 protected:
  ObjectReaderTest() {
    for (int i = 0; object_.size() < 100'000; ++i) object_ += fmt::format("{} ", i);
    object_.resize(100'000);
    source_ = std::make_shared<MemorySource>(object_);
    source_->sizes.part_nbytes = 10'000;
  }

  // The piece, or the message of the error.
  std::string read(uint64_t offset, size_t nbytes) {
    std::vector<uint8_t> room(nbytes);
    try {
      const uint64_t filled = reader().read(offset, room);
      return {reinterpret_cast<const char*>(room.data()), filled};
    } catch (const Error& error) {
      return error.what();
    }
  }

  ObjectReader& reader() {
    if (!reader_) reader_.emplace(source_);
    return *reader_;
  }

  std::string object_;
  std::shared_ptr<MemorySource> source_;
  std::optional<ObjectReader> reader_;
};

TEST_F(ObjectReaderTest, PiecesLieWhereTheyAreAskedFor) {
  EXPECT_EQ(std::nullopt, reader().nbytes());
  EXPECT_EQ(object_.substr(0, 35'000), read(0, 35'000));
  EXPECT_EQ(4u, source_->reads.size());  // one tells the length, three parts follow it
  EXPECT_EQ(100'000u, reader().nbytes());
  EXPECT_EQ(object_.substr(35'000, 1), read(35'000, 1));
  EXPECT_EQ(5u, source_->reads.size());
  EXPECT_EQ(object_.substr(1, 20'000), read(1, 20'000));
  EXPECT_EQ(7u, source_->reads.size());
}

TEST_F(ObjectReaderTest, ObjectEndsAPiece) {
  EXPECT_EQ(object_.substr(90'000), read(90'000, 50'000));
  EXPECT_EQ("", read(100'000, 10));
  EXPECT_EQ("", read(200'000, 10));
  EXPECT_EQ("", read(5, 0));
  source_ = std::make_shared<MemorySource>("");
  reader_.reset();
  EXPECT_EQ("", read(0, 10));
}

TEST_F(ObjectReaderTest, ObjectMayBeSmallerThanThePiece) {
  source_->ignores_ranges = true;
  EXPECT_EQ(object_, read(0, 1'000'000));
  EXPECT_EQ(1u, source_->reads.size());
}

TEST_F(ObjectReaderTest, VersionsAreNotMixed) {
  source_->chunk_nbytes = 1000;
  source_->changes_once = true;
  EXPECT_EQ("memory: changed while it was read", read(0, 50'000).substr(0, 40));
}

TEST_F(ObjectReaderTest, ObjectThatEndsEarlyIsAnError) {
  source_->ends_at = 15'000;
  EXPECT_EQ("memory: expected 5000 more bytes at byte 15000 but the object ends there",
            read(0, 50'000).substr(0, 80));
}

TEST_F(ObjectReaderTest, UnknownLengthIsRefused) {
  source_->size_known = false;
  EXPECT_EQ("memory: expected an answer that gives the object's size", read(0, 10).substr(0, 55));
}

}  // namespace
}  // namespace torchnpy
