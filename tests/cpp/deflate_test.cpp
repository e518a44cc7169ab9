#include "format/deflate.h"

#include <gtest/gtest.h>
#include <zlib.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/checksum.h"
#include "base/error.h"
#include "deflated.h"
#include "error_of.h"

namespace torchnpy {
namespace {

using Bytes = std::vector<uint8_t>;

// Half of it compresses.
Bytes sample(size_t nbytes) {
  Bytes bytes(nbytes);
  std::minstd_rand random(7);
  std::generate(bytes.begin(), bytes.end(), [&] { return static_cast<uint8_t>(random() % 16); });
  std::iota(bytes.begin(), bytes.begin() + nbytes / 2, uint8_t{0});
  return bytes;
}

Bytes from_text(std::string_view text) { return {text.begin(), text.end()}; }

class DeflateTest : public testing::TestWithParam<Codec> {
 protected:
  static Bytes inflated(const Bytes& compressed, size_t nbytes) {
    Bytes out(nbytes);
    inflate(compressed, out, GetParam());
    return out;
  }
  static std::string inflate_error(const Bytes& compressed, size_t nbytes) {
    return error_of([&] { inflated(compressed, nbytes); });
  }
};

std::vector<Codec> codecs() {
  if (kDefaultCodec == Codec::kZlib) return {Codec::kZlib};
  return {Codec::kLibdeflate, Codec::kZlib};
}

INSTANTIATE_TEST_SUITE_P(Codecs, DeflateTest, testing::ValuesIn(codecs()), [](const auto& codec) {
  return codec.param == Codec::kZlib ? "Zlib" : "Libdeflate";
});

TEST_P(DeflateTest, WhatWasDeflatedComesBack) {
  for (const size_t nbytes : {size_t{1}, size_t{100}, size_t{65536}, size_t{1} << 20}) {
    const Bytes bytes = sample(nbytes);
    EXPECT_EQ(inflated(deflated(bytes), nbytes), bytes) << nbytes;
  }
}

TEST_P(DeflateTest, EachKindOfBlockInflates) {
  const Bytes bytes = sample(100'000);
  constexpr int kStored = 0;
  EXPECT_EQ(inflated(deflated(bytes, kStored), bytes.size()), bytes);
  EXPECT_EQ(inflated(deflated(bytes, 6, Z_FIXED), bytes.size()), bytes);
  EXPECT_EQ(inflated(deflated(bytes, 6, Z_HUFFMAN_ONLY), bytes.size()), bytes);
}

TEST_P(DeflateTest, LargestExpansionInflates) {
  const Bytes zeros(10 << 20);
  const Bytes compressed = deflated(zeros, 9);
  EXPECT_LT(compressed.size(), zeros.size() / 1000);
  EXPECT_EQ(inflated(compressed, zeros.size()), zeros);
}

TEST_P(DeflateTest, EmptyStreamGivesNothing) {
  EXPECT_EQ(inflated(Bytes{0x03, 0x00}, 0), Bytes{});
  EXPECT_EQ(inflated(Bytes{0x01, 0x00, 0x00, 0xFF, 0xFF}, 0), Bytes{});
}

TEST_P(DeflateTest, NoBytesAreNoStream) {
  constexpr const char* kMessage =
      "expected 0 bytes of inflated data but found 0 before the compressed data ended, at byte 0 "
      "of it; the data is truncated";
  EXPECT_EQ(inflate_error({}, 0), kMessage);
}

TEST_P(DeflateTest, TooFewBytesAreCounted) {
  EXPECT_EQ(inflate_error(deflated(sample(96)), 100),
            "expected 100 bytes of inflated data but found 96; the data is corrupt");
}

TEST_P(DeflateTest, TooManyBytesAreRefused) {
  EXPECT_EQ(inflate_error(deflated(sample(101)), 100),
            "expected 100 bytes of inflated data but found more; the data is corrupt");
  EXPECT_EQ(inflate_error(deflated(sample(1)), 0),
            "expected 0 bytes of inflated data but found more; the data is corrupt");
  EXPECT_EQ(inflate_error(deflated(sample(101), 0), 100),
            "expected 100 bytes of inflated data but found more; the data is corrupt");
}

TEST_P(DeflateTest, BytesAfterTheStreamAreCounted) {
  Bytes compressed = deflated(sample(100));
  const std::string end = std::to_string(compressed.size());
  compressed.resize(compressed.size() + 10);
  EXPECT_EQ(inflate_error(compressed, 100), "expected the compressed data to end at byte " + end +
                                                " but found 10 more bytes; the data is corrupt");
}

TEST_P(DeflateTest, CutStreamIsTruncated) {
  const Bytes bytes = sample(1000);
  const Bytes stored = deflated(bytes, 0);
  EXPECT_EQ(inflate_error(Bytes(stored.begin(), stored.begin() + 405), 1000),
            "expected 1000 bytes of inflated data but found 400 before the compressed data ended, "
            "at byte 405 of it; the data is truncated");
}

TEST_P(DeflateTest, EveryCutIsAnError) {
  const Bytes bytes = sample(1000);
  const Bytes compressed = deflated(bytes);
  for (size_t n = 0; n < compressed.size(); ++n) {
    const Bytes cut(compressed.begin(), compressed.begin() + static_cast<ptrdiff_t>(n));
    EXPECT_NE(inflate_error(cut, bytes.size()).find("; the data is truncated"), std::string::npos)
        << n;
  }
}

TEST_P(DeflateTest, GarbageIsNamed) {
  EXPECT_EQ(inflate_error(Bytes(20, 0xFF), 100),
            "expected DEFLATE data but found a broken stream (invalid block type) at byte 1 of it; "
            "the data is corrupt");
  EXPECT_NE(inflate_error(from_text("\x02\xFF\xFF"), 1).find("a broken stream"), std::string::npos);
}

TEST_P(DeflateTest, DistanceBeforeTheStartIsRefused) {
  // A fixed block: a match of length 3 at distance 1, with nothing before it.
  EXPECT_EQ(inflate_error(Bytes{0x03, 0x02, 0x00}, 3),
            "expected DEFLATE data but found a broken stream (invalid distance too far back) at "
            "byte 2 of it; the data is corrupt");
}

TEST_P(DeflateTest, FlippedBitsDoNoHarm) {
  const Bytes bytes = sample(2000);
  const Bytes compressed = deflated(bytes);
  for (size_t bit = 0; bit < 8 * compressed.size(); ++bit) {
    Bytes flipped = compressed;
    flipped[bit / 8] ^= static_cast<uint8_t>(1 << (bit % 8));
    Bytes out(bytes.size());
    try {
      inflate(flipped, out, GetParam());
      EXPECT_EQ(out.size(), bytes.size());
    } catch (const FormatError&) {
    }
  }
}

TEST_P(DeflateTest, ThreadsDoNotDisturbEachOther) {
  std::vector<int> correct(8);
  std::vector<std::thread> threads;
  for (size_t t = 0; t < correct.size(); ++t) {
    threads.emplace_back([&correct, t, codec = GetParam()] {
      const Bytes bytes = sample(10'000 + t);
      const Bytes compressed = deflated(bytes);
      for (int round = 0; round < 100; ++round) {
        Bytes out(bytes.size());
        inflate(compressed, out, codec);
        correct[t] += out == bytes;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(correct, std::vector<int>(8, 100));
}

TEST(InflatePrefix, EveryCutGivesTheFrontOfTheData) {
  const Bytes bytes = sample(3000);
  const Bytes compressed = deflated(bytes);
  size_t longest = 0;
  for (size_t n = 0; n <= compressed.size(); ++n) {
    Bytes out(bytes.size());
    const size_t found = inflate_prefix(ByteView(compressed).first(n), out);
    EXPECT_GE(found, longest) << n;
    EXPECT_TRUE(std::equal(out.begin(), out.begin() + static_cast<ptrdiff_t>(found), bytes.begin()))
        << n;
    longest = found;
  }
  EXPECT_EQ(longest, bytes.size());
}

TEST(InflatePrefix, StopsWhereTheOutputIsFull) {
  const Bytes bytes = sample(3000);
  Bytes compressed = deflated(bytes, 0);
  compressed.resize(200);
  compressed.push_back(0xFF);
  for (const size_t nbytes : {0, 1, 128}) {
    Bytes out(nbytes);
    EXPECT_EQ(inflate_prefix(compressed, out), nbytes);
    EXPECT_TRUE(std::equal(out.begin(), out.end(), bytes.begin()));
  }
}

TEST(InflatePrefix, StopsWhereTheStreamEnds) {
  Bytes compressed = deflated(sample(50));
  compressed.resize(compressed.size() + 10, 0xFF);
  Bytes out(100);
  EXPECT_EQ(inflate_prefix(compressed, out), 50U);
}

TEST(InflatePrefix, BrokenStreamIsNamed) {
  Bytes out(100);
  EXPECT_EQ(error_of([&] { inflate_prefix(Bytes(20, 0xFF), out); }),
            "expected DEFLATE data but found a broken stream (invalid block type) at byte 1 of it; "
            "the data is corrupt");
}

TEST(Crc32, KnownAnswers) {
  EXPECT_EQ(crc32(as_bytes("")), 0U);
  EXPECT_EQ(crc32(as_bytes("a")), 0xE8B7BE43U);
  EXPECT_EQ(crc32(as_bytes("123456789")), 0xCBF43926U);
  EXPECT_EQ(crc32(Bytes(1 << 20)), 0xA738EA1CU);
}

TEST(Crc32, GoesOnFromAnother) {
  const Bytes bytes = sample(1000);
  const ByteView view = bytes;
  const uint32_t whole = crc32(view);
  for (const size_t cut : {0, 1, 7, 64, 999, 1000}) {
    EXPECT_EQ(crc32(view.subspan(cut), crc32(view.first(cut))), whole) << cut;
  }
  EXPECT_EQ(crc32({}, whole), whole);
}

}  // namespace
}  // namespace torchnpy
