#include "base/checksum.h"

#include <gtest/gtest.h>
#include <zlib.h>

#include <random>
#include <string>
#include <vector>

namespace torchnpy {
namespace {

constexpr ChecksumKind kKinds[] = {ChecksumKind::kCrc32, ChecksumKind::kCrc32c,
                                   ChecksumKind::kCrc64Nvme};

std::vector<uint8_t> make_noise(size_t nbytes) {
  std::mt19937 generator(7);
  std::vector<uint8_t> bytes(nbytes);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(generator());
  return bytes;
}

// The catalogue of parametrised CRC algorithms has the check value of each: that of these digits.
TEST(Checksum, OfTheDigitsIsTheCatalogues) {
  const ByteView digits = as_bytes("123456789");
  EXPECT_EQ(0xCBF43926u, compute_crc(ChecksumKind::kCrc32, digits));
  EXPECT_EQ(0xE3069283u, compute_crc(ChecksumKind::kCrc32c, digits));
  EXPECT_EQ(0xAE8B14860A799888u, compute_crc(ChecksumKind::kCrc64Nvme, digits));
}

// RFC 3720, B.4.
TEST(Checksum, Crc32cIsThatOfIscsi) {
  EXPECT_EQ(0x8A9136AAu, compute_crc(ChecksumKind::kCrc32c, std::vector<uint8_t>(32, 0)));
  EXPECT_EQ(0x62A8AB43u, compute_crc(ChecksumKind::kCrc32c, std::vector<uint8_t>(32, 0xFF)));
  std::vector<uint8_t> rising(32);
  for (size_t i = 0; i < rising.size(); ++i) rising[i] = static_cast<uint8_t>(i);
  EXPECT_EQ(0x46DD794Eu, compute_crc(ChecksumKind::kCrc32c, rising));
}

// NVM Express NVM Command Set Specification 1.0d, table 122.
TEST(Checksum, Crc64IsThatOfNvme) {
  EXPECT_EQ(0x6482D367EB22B64Eu,
            compute_crc(ChecksumKind::kCrc64Nvme, std::vector<uint8_t>(4096, 0)));
  EXPECT_EQ(0xC0DDBA7302ECA3ACu,
            compute_crc(ChecksumKind::kCrc64Nvme, std::vector<uint8_t>(4096, 0xFF)));
}

TEST(Checksum, GoesOnFromWhereItWasCutAtEveryLength) {
  const std::vector<uint8_t> noise = make_noise(100);
  for (const ChecksumKind kind : kKinds) {
    const uint64_t whole = compute_crc(kind, noise);
    for (size_t cut = 0; cut <= noise.size(); ++cut) {
      const uint64_t first = compute_crc(kind, ByteView(noise).first(cut));
      EXPECT_EQ(whole, compute_crc(kind, ByteView(noise).subspan(cut), first));
    }
  }
}

// A byte at a time takes the tables, all at once the instructions that the CPU may have.
TEST(Checksum, IsTheSameAtOnceAsByteByByte) {
  const std::vector<uint8_t> noise = make_noise(700);
  for (const ChecksumKind kind : kKinds) {
    for (size_t begin = 0; begin < 20; ++begin) {
      uint64_t crc = 0x12345678;
      for (size_t end = begin; end < noise.size(); ++end) {
        const ByteView bytes = ByteView(noise).subspan(begin, end - begin);
        ASSERT_EQ(crc, compute_crc(kind, bytes, 0x12345678)) << begin << " to " << end;
        crc = compute_crc(kind, ByteView(noise).subspan(end, 1), crc);
      }
    }
  }
}

TEST(Checksum, OfPartsCombinesToThatOfTheWhole) {
  const std::vector<uint8_t> noise = make_noise(70'000);
  for (const ChecksumKind kind : kKinds) {
    for (const size_t cut : {0, 1, 7, 8, 4096, 65'537, 69'999, 70'000}) {
      const ByteView second = ByteView(noise).subspan(cut);
      EXPECT_EQ(compute_crc(kind, noise),
                combine_crcs(kind, compute_crc(kind, ByteView(noise).first(cut)),
                             compute_crc(kind, second), second.size()));
    }
  }
}

TEST(Checksum, CombinesCrc32AsZlibDoesAlsoBeyondFourGibibytes) {
  for (const uint64_t nbytes : {uint64_t{0}, uint64_t{1}, uint64_t{1} << 31, uint64_t{5} << 40}) {
    const uint32_t second = nbytes == 0 ? 0 : 0x9ABCDEF0;  // no bytes have no other CRC
    EXPECT_EQ(crc32_combine64(0x12345678, second, static_cast<int64_t>(nbytes)),
              combine_crcs(ChecksumKind::kCrc32, 0x12345678, second, nbytes));
  }
}

TEST(Checksum, IsWrittenWithItsNameAndWidth) {
  EXPECT_EQ("CRC-32 0x0000000a", format_checksum({ChecksumKind::kCrc32, 10}));
  EXPECT_EQ("CRC-32C 0xe3069283", format_checksum({ChecksumKind::kCrc32c, 0xE3069283}));
  EXPECT_EQ("CRC-64/NVME 0x000000000000000a", format_checksum({ChecksumKind::kCrc64Nvme, 10}));
}

}  // namespace
}  // namespace torchnpy
