#include "format/text_reader.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "error_of.h"
#include "format/number.h"

namespace torchnpy {
namespace {

using Doubles = std::vector<double>;

TextLayout doubles() { return {true, {{ScalarType::kFloat64, 0}}, sizeof(double)}; }

Doubles take_doubles(TextReader& reader) {
  const OwnedBytes elements = reader.take_elements();
  Doubles values(elements.bytes.size() / sizeof(double));
  if (!values.empty()) std::memcpy(values.data(), elements.bytes.data(), elements.bytes.size());
  return values;
}

Doubles read(std::string_view text, const TextRules& rules = {},
             size_t piece_nbytes = std::string_view::npos) {
  TextReader reader(rules, doubles());
  for (; !text.empty(); text.remove_prefix(std::min(piece_nbytes, text.size()))) {
    reader.feed(text.substr(0, piece_nbytes));
  }
  reader.finish();
  return take_doubles(reader);
}

TextRules rules_of(std::string delimiter, std::vector<std::string> comments = {"#"},
                   std::string quote = "") {
  TextRules rules;
  rules.delimiter = std::move(delimiter);
  rules.comments = std::move(comments);
  rules.quote = std::move(quote);
  return rules;
}

TEST(TextReaderTest, TextCutAnywhereGivesTheSame) {
  const std::string text =
      "\xEF\xBB\xBF# x\n1\xE2\x82\xAC\"2\r\n\"\xE2\x82\xAC"
      "3\r\r\n4\xE2\x82\xAC"
      "5\xE2\x82\xAC\"6\"\"\"\n7\xE2\x82\xAC"
      "8\xE2\x82\xAC"
      "9";
  const TextRules rules = rules_of("\xE2\x82\xAC", {"#"}, "\"");
  for (size_t piece = 1; piece <= text.size(); ++piece) {
    const std::string error = error_of([&] { read(text, rules, piece); });
    EXPECT_NE(error.find("\"6\"\" at line 5, column 3"), std::string::npos) << error;
  }
  std::string valid = text;
  valid.erase(valid.find("\"\"\""), 2);
  for (size_t piece = 1; piece <= valid.size(); ++piece) {
    EXPECT_EQ(read(valid, rules, piece), (Doubles{1, 2, 3, 4, 5, 6, 7, 8, 9})) << piece;
  }
}

TEST(TextReaderTest, ALongLineInManyPiecesIsReadOnce) {
  std::string text;
  for (int i = 0; i < 20000; ++i) text += "1 ";
  EXPECT_EQ(read(text, {}, 3).size(), 20000u);
  EXPECT_EQ(read("\"" + std::string(100000, ' ') + "7\"", rules_of("", {}, "\""), 5), Doubles{7});
}

TEST(TextReaderTest, RowsBeyondThoseWantedAreNotLookedAt) {
  TextRules rules;
  rules.max_rows = 2;
  TextReader reader(rules, doubles());
  reader.feed("1 2\n\n3 4\n5 x\n");
  EXPECT_TRUE(reader.is_done());
  reader.feed("y");
  reader.finish();
  EXPECT_EQ(reader.rows(), 2u);
  EXPECT_EQ(take_doubles(reader), (Doubles{1, 2, 3, 4}));
}

TEST(TextReaderTest, NoRowsHaveOneColumn) {
  TextReader reader(rules_of(""), doubles());
  reader.feed("# nothing\n\n");
  reader.finish();
  EXPECT_EQ(reader.rows(), 0u);
  EXPECT_EQ(reader.columns(), 1u);
  EXPECT_TRUE(reader.take_elements().bytes.empty());
}

TEST(TextReaderTest, KeptTextIsStoredLater) {
  TextRules rules;
  rules.text_columns = {-1};
  TextReader reader(rules, doubles());
  reader.feed("1 a\n2 b\n");
  reader.finish();
  ASSERT_EQ(reader.texts().size(), 2u);
  EXPECT_EQ(reader.texts()[1].text, "b");
  EXPECT_EQ(reader.texts()[1].line, 2u);
  EXPECT_EQ(reader.texts()[1].field, 2u);
  reader.store(1, "7");
  EXPECT_EQ(error_of([&] { reader.store(0, "x"); }),
            "expected a float64 but found \"x\" at line 1, column 2");
  EXPECT_EQ(take_doubles(reader), (Doubles{1, 0, 2, 7}));
}

TEST(TextReaderTest, RecordsAreFilledFieldByField) {
  Dtype inner;
  inner.type = ScalarType::kUInt8;
  inner.itemsize = 1;
  Dtype record;
  record.type = ScalarType::kStructured;
  record.itemsize = 8;
  record.fields = {{"a", inner, 1, {2}}, {"b", inner, 7, {}}};
  TextReader reader({}, make_text_layout(record));
  reader.feed("1 2 3\n4 5 6");
  reader.finish();
  const OwnedBytes elements = reader.take_elements();
  ASSERT_EQ(elements.bytes.size(), 16u);
  EXPECT_EQ(elements.bytes[1], 1);
  EXPECT_EQ(elements.bytes[2], 2);
  EXPECT_EQ(elements.bytes[7], 3);
  EXPECT_EQ(elements.bytes[15], 6);
}

TEST(TextReaderTest, WhatIsNoNumberIsRefusedAsADtype) {
  Dtype text;
  text.type = ScalarType::kBytes;
  EXPECT_THROW(make_text_layout(text), UnsupportedError);
}

TEST(TextReaderTest, BrokenUtf8IsNoNumberAndNoBlank) {
  for (const std::string_view text : {"1 \xC2", "1 \xFF", "1 \xE2\x80", "1 \xF4\x90\x80\x80"}) {
    EXPECT_THROW(read(text), FormatError) << text;
  }
  EXPECT_EQ(read("1 2 # \xFF", rules_of("")), (Doubles{1, 2}));
  EXPECT_EQ(read("1\xC2\xA0"
                 "2\xE3\x80\x80"),
            (Doubles{1, 2}));
}

TEST(NumberTest, NumbersBeyondTheRangeOfDoublesAreInfiniteOrZero) {
  EXPECT_EQ(parse_double("1e400"), std::numeric_limits<double>::infinity());
  EXPECT_EQ(parse_double("-1e400"), -std::numeric_limits<double>::infinity());
  EXPECT_EQ(parse_double("1e-400"), 0.0);
  EXPECT_TRUE(std::signbit(*parse_double("-1e-400")));
  EXPECT_EQ(parse_double("5e-324"), std::numeric_limits<double>::denorm_min());
  for (const char* const text : {"", " ", "+", "-", ".", "+-1", "1 2", "nan(1)", "0x1p3", "1_0"}) {
    EXPECT_EQ(parse_double(text), std::nullopt) << text;
  }
}

TEST(NumberTest, EveryHalfSurvivesTheWayThroughDouble) {
  for (unsigned bits = 0; bits <= 0xFFFF; ++bits) {
    const double value = half_to_double(static_cast<uint16_t>(bits));
    if (std::isnan(value)) continue;
    EXPECT_EQ(double_to_half(value), bits);
  }
}

TEST(NumberTest, HalvesAreRoundedOnceAndToEven) {
  EXPECT_EQ(double_to_half(1 + 0x1p-11), 0x3C00);            // a tie
  EXPECT_EQ(double_to_half(1 + 0x1p-11 + 0x1p-40), 0x3C01);  // by way of float it would be one
  EXPECT_EQ(double_to_half(1 + 3 * 0x1p-11), 0x3C02);
  EXPECT_EQ(double_to_half(0x1p-25), 0);
  EXPECT_EQ(double_to_half(0x1.8p-25), 1);
  EXPECT_EQ(double_to_half(65519.999), 0x7BFF);
  EXPECT_EQ(double_to_half(-65520), 0xFC00);
}

}  // namespace
}  // namespace torchnpy
