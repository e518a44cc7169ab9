#include "base/bytes.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "base/error.h"
#include "error_of.h"

namespace torchnpy {
namespace {

constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();

TEST(Cursor, ReadsLittleEndianIntegersInOrder) {
  const std::vector<uint8_t> bytes = {1, 2, 0, 3, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0x80};
  Cursor cursor(bytes);
  EXPECT_EQ(cursor.read_u8(), 1);
  EXPECT_EQ(cursor.read_u16(), 2);
  EXPECT_EQ(cursor.read_u32(), 3U);
  EXPECT_EQ(cursor.read_u64(), 0x8000000000000004U);
  EXPECT_EQ(cursor.offset(), 15U);
  EXPECT_EQ(cursor.remaining(), 0U);
}

TEST(Cursor, ReadPastTheEndNamesTheOffsetAndReadsNothing) {
  const std::vector<uint8_t> bytes(6);
  Cursor cursor(bytes);
  cursor.skip(3);
  EXPECT_EQ(error_of([&] { cursor.read_u32(); }),
            "expected 4 more bytes at byte 3 but found 3; the data is truncated");
  EXPECT_EQ(cursor.offset(), 3U);
}

TEST(Cursor, HugeSizeIsRefusedWithoutWrapping) {
  const std::vector<uint8_t> bytes(6);
  Cursor cursor(bytes);
  cursor.skip(6);
  EXPECT_NE(error_of([&] { cursor.skip(kMax); }), "no error");
  EXPECT_NE(error_of([&] { cursor.read_bytes(kMax - 5); }), "no error");
  EXPECT_EQ(cursor.read_bytes(0).size(), 0U);
}

TEST(CheckedArithmetic, OverflowLeavesTheResultAlone) {
  uint64_t result = 7;
  EXPECT_FALSE(checked_add(kMax, 1, &result));
  EXPECT_FALSE(checked_multiply(kMax / 2 + 1, 2, &result));
  EXPECT_EQ(result, 7U);
}

TEST(CheckedArithmetic, LargestResultFits) {
  uint64_t result = 0;
  EXPECT_TRUE(checked_add(kMax - 1, 1, &result));
  EXPECT_EQ(result, kMax);
  EXPECT_TRUE(checked_multiply(kMax, 1, &result));
  EXPECT_EQ(result, kMax);
}

TEST(SwapBytes, EachUnitIsReversed) {
  const std::vector<uint8_t> bytes = {0, 1, 2, 3, 4, 5, 6, 7};
  const auto swapped = [&](size_t width) {
    std::vector<uint8_t> copy = bytes;
    swap_bytes(copy, width);
    return copy;
  };
  EXPECT_EQ(swapped(2), (std::vector<uint8_t>{1, 0, 3, 2, 5, 4, 7, 6}));
  EXPECT_EQ(swapped(4), (std::vector<uint8_t>{3, 2, 1, 0, 7, 6, 5, 4}));
  EXPECT_EQ(swapped(8), (std::vector<uint8_t>{7, 6, 5, 4, 3, 2, 1, 0}));
}

TEST(SwapBytes, OtherWidthIsAnArgumentError) {
  std::vector<uint8_t> bytes(6);
  EXPECT_THROW(swap_bytes(bytes, 3), ArgumentError);
}

TEST(SwapBytes, UnalignedMemoryIsFine) {
  std::vector<uint8_t> bytes = {9, 1, 2, 3, 4};
  swap_bytes(MutableBytes(bytes).subspan(1), 4);
  EXPECT_EQ(bytes, (std::vector<uint8_t>{9, 4, 3, 2, 1}));
}

TEST(AllocateBytes, MemoryIsAlignedAndOutlivesTheStruct) {
  std::shared_ptr<void> owner;
  MutableBytes bytes;
  {
    OwnedBytes owned = allocate_bytes(100);
    owner = owned.owner;
    bytes = owned.bytes;
  }
  EXPECT_EQ(bytes.size(), 100U);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(bytes.data()) % 64, 0U);
  bytes[99] = 1;
}

}  // namespace
}  // namespace torchnpy
