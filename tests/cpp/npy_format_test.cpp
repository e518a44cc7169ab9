#include <gtest/gtest.h>

#include <string>

#include "format/npy.h"

namespace torchnpy {
namespace {

// Of these arguments numpy.lib.format writes the same; tests/test_save.py compares many more.
TEST(FormatNpyHeader, IsNumpys) {
  std::string expected = "\x93NUMPY\1";
  expected += std::string("\0v\0", 3);
  expected += "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }";
  expected += std::string(128 - 10 - 59 - 1, ' ') + "\n";
  EXPECT_EQ(format_npy_header("'<f4'", false, {2, 3}), expected);
}

TEST(FormatNpyHeader, LeavesRoomForTheAxisThatGrows) {
  // 21 characters, less those of the number that is there.
  for (const uint64_t rows : {uint64_t{7}, uint64_t{12345678901234567890u}}) {
    const std::string descr = "'" + std::string(40, 'x') + "'";
    const size_t nbytes = format_npy_header(descr, false, {rows, 3}).size();
    EXPECT_EQ(format_npy_header(descr, true, {3, rows}).size(), nbytes);
    EXPECT_EQ(format_npy_header(descr, false, {rows + 1, 3}).size(), nbytes);
  }
}

TEST(FormatNpyHeader, WhatIsAlignedIsPaddedAllTheSame) {
  for (size_t nbytes = 1; nbytes <= 65; ++nbytes) {
    const std::string header = format_npy_header(std::string(nbytes, 'x'), false, {});
    EXPECT_EQ(header.size() % 64, 0u);
    const size_t padding = header.size() - 1 - header.find_last_not_of(" \n") - 1;
    EXPECT_GE(padding, 1u);
    EXPECT_LE(padding, 64u);
  }
}

TEST(FormatNpyHeader, TakesTheOldestVersionThatHoldsIt) {
  const auto version = [](const std::string& descr) {
    const std::string header = format_npy_header(descr, false, {2});
    EXPECT_EQ(header.size() % 64, 0u);
    EXPECT_EQ(header.back(), '\n');
    return static_cast<int>(header[6]);
  };
  EXPECT_EQ(version("[('a', '<f4')]"), 1);
  EXPECT_EQ(version("[('\u00e9', '<f4')]"), 1);
  EXPECT_EQ(version("'" + std::string(65000, 'x') + "'"), 1);
  EXPECT_EQ(version("'" + std::string(66000, 'x') + "'"), 2);
  EXPECT_EQ(version("[('\u0100', '<f4')]"), 3);
  // latin-1 in versions 1.0 and 2.0.
  EXPECT_NE(format_npy_header("'\u00e9'", false, {}).find("'\xe9'"), std::string::npos);
}

}  // namespace
}  // namespace torchnpy
