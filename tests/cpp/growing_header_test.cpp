#include "format/growing_header.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "npy_bytes.h"

namespace torchnpy {
namespace {

NpyHeader numpy_header(const std::string& descr, bool fortran_order, std::vector<uint64_t> shape) {
  return parse_npy_header(as_bytes(format_npy_header(descr, fortran_order, shape)));
}

TEST(GrowingHeader, EveryHeaderOfNumpysHasRoomAndKeepsItsMeaning) {
  const std::vector<std::vector<uint64_t>> shapes = {
      {0}, {7}, {0, 3}, {12, 3}, {5, 0}, {1, 1, 1}, {999'999, 480, 640, 3}, {2, 3, 4, 5, 6, 7, 8}};
  for (size_t name_nbytes = 1; name_nbytes < 140; ++name_nbytes) {
    const std::string descr = fmt::format("[('{}', '<u8')]", std::string(name_nbytes, 'n'));
    for (const std::vector<uint64_t>& shape : shapes) {
      for (const bool fortran_order : {false, true}) {
        const NpyHeader header = numpy_header(descr, fortran_order, shape);
        ASSERT_TRUE(has_growth_room(header));
        const auto growing = format_growing_header(header, header.data_offset);
        ASSERT_TRUE(growing);
        ASSERT_EQ(growing->bytes.size(), header.data_offset);
        ASSERT_EQ(growing->slot_offset % kCountSlotNbytes, 0u);
        const NpyHeader again = parse_npy_header(as_bytes(growing->bytes));
        ASSERT_EQ(again.descr, header.descr);
        ASSERT_EQ(again.shape, header.shape);
        ASSERT_EQ(again.fortran_order, fortran_order);
        const auto slot = find_count_slot(again, as_bytes(growing->bytes));
        ASSERT_TRUE(slot);
        ASSERT_EQ(slot->offset, growing->slot_offset);
        ASSERT_FALSE(slot->count.has_more);
        ASSERT_LE(growing_header_nbytes(header), header.data_offset + 64);
      }
    }
  }
}

TEST(GrowingHeader, NumpysOwnTextIsNotOfThisForm) {
  const std::string bytes = format_npy_header("'<f4'", false, {3, 4});
  EXPECT_FALSE(find_count_slot(parse_npy_header(as_bytes(bytes)), as_bytes(bytes)));
}

TEST(GrowingHeader, AnyCountStandsInItsSlot) {
  const NpyHeader header = numpy_header("'<f4'", false, {3, 4});
  GrowingHeader growing = *format_growing_header(header, header.data_offset);
  for (const uint64_t rows :
       {uint64_t{0}, uint64_t{9}, uint64_t{10}, uint64_t{123'456'789}, kMaxGrowingCount}) {
    for (const bool has_more : {false, true}) {
      const CountSlot slot = format_count({rows, has_more});
      growing.bytes.replace(growing.slot_offset, slot.size(), as_text(slot));
      const NpyHeader again = parse_npy_header(as_bytes(growing.bytes));
      EXPECT_EQ(again.shape, (std::vector<uint64_t>{rows, 4}));
      const auto found = find_count_slot(again, as_bytes(growing.bytes));
      ASSERT_TRUE(found) << rows;
      EXPECT_EQ(found->count.rows, rows);
      EXPECT_EQ(found->count.has_more, has_more);
    }
  }
}

TEST(GrowingHeader, OneWithoutRoomGetsTheNextMultipleOf64) {
  const std::string dict = "{'descr': '<u2', 'fortran_order': False, 'shape': (1000, 3), }";
  std::string bytes("\x93NUMPY\1\0", 8);
  bytes += static_cast<char>(dict.size() + 1);
  bytes += '\0';
  bytes += dict + '\n';
  const NpyHeader header = parse_npy_header(as_bytes(bytes));
  EXPECT_FALSE(has_growth_room(header));
  EXPECT_EQ(growing_header_nbytes(header), 128u);
  EXPECT_FALSE(format_growing_header(header, 64));
}

TEST(GrowingHeader, WhatCannotGrowHasNoForm) {
  EXPECT_FALSE(has_growth_room(numpy_header("'<f4'", false, {})));
  EXPECT_FALSE(format_growing_header(numpy_header("'<f4'", false, {}), 128));
  // Of one element only while there is none.
  const std::string subarray =
      npy_bytes("{'descr': ('<f4', (3,)), 'fortran_order': False, 'shape': (0,), }", "");
  EXPECT_FALSE(format_growing_header(parse_npy_header(as_bytes(subarray)), 192));
  EXPECT_FALSE(format_growing_header(numpy_header("'<f4'", false, {kMaxGrowingCount + 1}), 128));
}

TEST(GrowingHeader, TextThatIsNotAsciiStaysInItsEncoding) {
  for (const std::string name : {"\u00e9t\u00e9", "\u6570"}) {
    const NpyHeader header = numpy_header(fmt::format("[('{}', '<u8')]", name), false, {3});
    const auto growing = format_growing_header(header, header.data_offset);
    ASSERT_TRUE(growing) << name;
    const NpyHeader again = parse_npy_header(as_bytes(growing->bytes));
    EXPECT_EQ(again.dtype.fields[0].name, name);
    EXPECT_EQ(again.major, header.major);
  }
}

}  // namespace
}  // namespace torchnpy
