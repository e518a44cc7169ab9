#include "format/row_format.h"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "base/error.h"

namespace torchnpy {
namespace {

template <typename T>
TextColumn column(ScalarType type, const T* values) {
  return {type, reinterpret_cast<const uint8_t*>(values), sizeof(T)};
}

std::string print(std::string_view format, double value) {
  const std::optional<RowFormat> row =
      RowFormat::parse(format, {column(ScalarType::kFloat64, &value)});
  if (!row) return "<python>";
  std::string text;
  row->append_row(0, text);
  return text;
}

// What Python 3.11 gives.
TEST(RowFormatTest, PrintsAsPythonDoes) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(print("%.18e", 0.1), "1.000000000000000056e-01");
  EXPECT_EQ(print("%010f", kNan), "0000000nan");
  EXPECT_EQ(print("%-010f|", kNan), "nan       |");
  EXPECT_EQ(print("% e", -kNan), " nan");
  EXPECT_EQ(print("%+E", kInfinity), "+INF");
  EXPECT_EQ(print("%010.2f", -1.005), "-000001.00");
  EXPECT_EQ(print("%.0g", 123), "1e+02");
  EXPECT_EQ(print("%.e", 12.5), "1e+01");
  EXPECT_EQ(print("a%%b %s c", 1e16), "a%b 1e+16 c");
  EXPECT_EQ(print("%s", -0.0), "-0.0");
  EXPECT_EQ(print("%6.2s|", 1.25), "    1.|");
  EXPECT_EQ(print("%.0s|", -1.25), "|");
  EXPECT_EQ(print("%d", -0.5), "0");
  EXPECT_EQ(print("%+05d", -1.5), "-0001");
  EXPECT_EQ(print("%.100f", std::numeric_limits<double>::max()).size(), 309u + 1 + 100);
}

TEST(RowFormatTest, LeavesToPythonWhatItCannot) {
  for (const char* const format : {"%x", "%r", "%#g", "%.101f", "%1001f", "%.3d", "%", "%*f",
                                   "%(a)f", "%f%f", "", "%99999999999999999999f"}) {
    EXPECT_EQ(print(format, 1), "<python>") << format;
  }
  const float parts[2] = {1, 2};
  EXPECT_FALSE(RowFormat::parse("%s", {column(ScalarType::kComplex64, parts)}));
}

TEST(RowFormatTest, ANanIsNoInteger) {
  try {
    print("%d", std::numeric_limits<double>::quiet_NaN());
    FAIL();
  } catch (const ArgumentError& error) {
    EXPECT_STREQ(error.what(),
                 "expected finite numbers for the format %d but found nan in row 0, column 0 of "
                 "the array");
  }
}

TEST(RowFormatTest, ColumnsMayRunBackwardsAndLieUnaligned) {
  uint8_t bytes[1 + 3 * sizeof(int32_t)];
  const int32_t values[] = {1, -2, 3};
  std::memcpy(bytes + 1, values, sizeof(values));
  const TextColumn backwards{ScalarType::kInt32, bytes + 1 + 2 * sizeof(int32_t), -4};
  const std::optional<RowFormat> format = RowFormat::parse("%d;", {backwards});
  std::string text;
  for (uint64_t row = 0; row < 3; ++row) format->append_row(row, text);
  EXPECT_EQ(text, "3;-2;1;");
}

}  // namespace
}  // namespace torchnpy
