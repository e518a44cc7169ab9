#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "format/deflate.h"

namespace torchnpy {
namespace {

using Bytes = std::vector<uint8_t>;

Bytes noise(size_t nbytes) {
  std::mt19937_64 random(nbytes);
  Bytes bytes(nbytes);
  std::ranges::generate(bytes, [&] { return static_cast<uint8_t>(random() >> 20); });
  return bytes;
}

// As int64 tokens of a vocabulary.
Bytes tokens(size_t nbytes) {
  Bytes bytes = noise(nbytes);
  for (size_t i = 0; i < nbytes; ++i) {
    if (i % 8 >= 2) bytes[i] = 0;
  }
  return bytes;
}

Bytes deflate(ByteView bytes, int level, size_t block_nbytes) {
  Bytes stream;
  size_t offset = 0;
  do {
    const ByteView block = bytes.subspan(offset, std::min(block_nbytes, bytes.size() - offset));
    offset += block.size();
    Bytes out(deflate_bound(block.size()));
    out.resize(deflate_block(block, offset == bytes.size(), level, out));
    stream.insert(stream.end(), out.begin(), out.end());
  } while (offset < bytes.size());
  return stream;
}

class DeflateBlockTest : public ::testing::TestWithParam<int> {
 protected:
  // The stream's length, once both codecs have inflated it to the same again.
  static size_t round_trip(const Bytes& bytes, size_t block_nbytes) {
    const Bytes stream = deflate(bytes, GetParam(), block_nbytes);
    for (const Codec codec : {Codec::kZlib, kDefaultCodec}) {
      Bytes inflated(bytes.size());
      inflate(stream, inflated, codec);
      EXPECT_TRUE(inflated == bytes) << bytes.size() << " in blocks of " << block_nbytes;
    }
    return stream.size();
  }
};

TEST_P(DeflateBlockTest, JoinedBlocksAreOneStream) {
  const Bytes bytes = tokens(300'000);
  for (const size_t block_nbytes : {1'000'000, 300'000, 150'000, 65'536, 5'000}) {
    EXPECT_LT(round_trip(bytes, block_nbytes), bytes.size() / 2);
  }
}

TEST_P(DeflateBlockTest, BlocksMayHaveAnyLength) {
  for (const size_t nbytes : {0, 1, 2, 3, 7, 100, 1000}) {
    for (const size_t block_nbytes : {1, 2, 3, 17, 1000}) {
      round_trip(tokens(nbytes), block_nbytes);
      round_trip(Bytes(nbytes, 'x'), block_nbytes);
    }
  }
}

// The last block of libdeflate may end at any bit of a byte.
TEST_P(DeflateBlockTest, BlocksMayEndAtAnyBit) {
  for (size_t nbytes = 2; nbytes < 60; ++nbytes) round_trip(Bytes(nbytes, 'x'), nbytes - 1);
}

TEST_P(DeflateBlockTest, NoiseGrowsByFiveBytesForEach65535) {
  const Bytes bytes = noise(200'000);
  EXPECT_LE(round_trip(bytes, 100'000), bytes.size() + 2 * 2 * 5);
  EXPECT_LE(round_trip(noise(65'535), 65'535), 65'535u + 5);
}

TEST_P(DeflateBlockTest, ZerosNearlyVanish) {
  EXPECT_LT(round_trip(Bytes(1 << 20), 1 << 18), size_t{1 << 20} / 200);
}

// Memory that ends where a page begins that nobody may touch: vector instructions could.
class GuardedBytes {
 public:
  explicit GuardedBytes(size_t nbytes) {
    constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS;
    memory_ = mmap(nullptr, kNbytes + kPageNbytes, PROT_READ | PROT_WRITE, kFlags, -1, 0);
    uint8_t* const end = static_cast<uint8_t*>(memory_) + kNbytes;
    EXPECT_EQ(mprotect(end, kPageNbytes, PROT_NONE), 0);
    bytes = {end - nbytes, nbytes};
  }
  ~GuardedBytes() { munmap(memory_, kNbytes + kPageNbytes); }
  GuardedBytes(const GuardedBytes&) = delete;
  GuardedBytes& operator=(const GuardedBytes&) = delete;

  MutableBytes bytes;

 private:
  static constexpr size_t kNbytes = 128 << 10;
  static constexpr size_t kPageNbytes = 64 << 10;  // the largest that there are
  void* memory_ = nullptr;
};

TEST_P(DeflateBlockTest, TouchesNothingBehindTheBlockAndTheRoom) {
  for (const size_t nbytes : {1, 31, 63, 255, 4095, 70'000}) {
    for (const Bytes& content : {tokens(nbytes), noise(nbytes)}) {
      const GuardedBytes block(nbytes);
      const GuardedBytes room(deflate_bound(nbytes));
      std::ranges::copy(content, block.bytes.begin());
      const size_t filled = deflate_block(block.bytes, true, GetParam(), room.bytes);
      Bytes inflated(nbytes);
      inflate(room.bytes.first(filled), inflated);
      EXPECT_TRUE(inflated == content);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Levels, DeflateBlockTest, ::testing::Range(1, kMaxDeflateLevel + 1));

// Of one library: zlib's 4 gives more than ISA-L's 2.
TEST(DeflateLevelsTest, HigherOnesGiveSmallerStreams) {
  const Bytes bytes = tokens(1 << 18);
  for (const std::vector<int>& levels : {std::vector{1, kDefaultDeflateLevel}, {4, 6, 9}}) {
    size_t before = bytes.size();
    for (const int level : levels) {
      const size_t nbytes = deflate(bytes, level, deflate_block_nbytes(level)).size();
      EXPECT_LT(nbytes, before) << level;
      before = nbytes;
    }
  }
}

TEST(DeflateBoundTest, IsThatOfStoredBlocks) {
  EXPECT_EQ(deflate_bound(0), 5u);
  EXPECT_EQ(deflate_bound(1), 6u);
  EXPECT_EQ(deflate_bound(65535), 65540u);
  EXPECT_EQ(deflate_bound(65536), 65546u);
}

}  // namespace
}  // namespace torchnpy
