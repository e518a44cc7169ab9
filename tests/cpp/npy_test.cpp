#include "format/npy.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace torchnpy {
namespace {

std::string header_text(std::string_view descr, std::string_view shape = "(2, 3)") {
  return fmt::format("{{'descr': {}, 'fortran_order': False, 'shape': {}, }}", descr, shape);
}

// The file up to its data.
std::string file(std::string_view header, int major = 1) {
  std::string bytes = "\x93NUMPY";
  bytes += static_cast<char>(major);
  bytes += '\0';
  const size_t length_nbytes = major == 1 ? 2 : 4;
  for (size_t i = 0; i < length_nbytes; ++i) bytes += static_cast<char>(header.size() >> (8 * i));
  return bytes.append(header);
}

NpyHeader parse(std::string_view header, int major = 1) {
  return parse_npy_header(as_bytes(file(header, major)));
}
Dtype dtype_of(std::string_view descr) { return parse(header_text(descr, "(2,)")).dtype; }

std::string error_of(std::string_view header, int major = 1) {
  try {
    parse(header, major);
  } catch (const FormatError& error) {
    return error.what();
  }
  return "no error";
}

std::string unsupported_error_of(std::string_view descr) {
  try {
    check_npy_loadable(dtype_of(descr));
  } catch (const UnsupportedError& error) {
    return error.what();
  }
  return "no error";
}

using Shape = std::vector<uint64_t>;

TEST(FindNpyDataOffset, IsEmptyUntilThePrefixIsLongEnough) {
  const std::string one = file(header_text("'<f4'"), 1);
  const std::string two = file(header_text("'<f4'"), 2);
  for (size_t n = 0; n < 10; ++n) EXPECT_FALSE(find_npy_data_offset(as_bytes(one).first(n)));
  for (size_t n = 0; n < 12; ++n) EXPECT_FALSE(find_npy_data_offset(as_bytes(two).first(n)));
  EXPECT_EQ(find_npy_data_offset(as_bytes(one).first(10)), one.size());
  EXPECT_EQ(find_npy_data_offset(as_bytes(two).first(12)), two.size());
}

TEST(FindNpyDataOffset, WrongMagicShowsAtOnce) {
  EXPECT_THROW(find_npy_data_offset(as_bytes("P")), FormatError);
  EXPECT_THROW(find_npy_data_offset(as_bytes("\x93NUMPX")), FormatError);
}

TEST(FindNpyDataOffset, LongestHeaderIsFine) {
  EXPECT_EQ(parse(header_text("'<f4'") + std::string(10000 - 59, ' ')).data_offset, 10010U);
  EXPECT_EQ(parse(header_text("'<f4'") + std::string(10000 - 59, ' '), 3).data_offset, 10012U);
}

struct Row {
  const char* name;
  std::string header;
  int major;
  const char* message;  // how it begins
};

void PrintTo(const Row& row, std::ostream* stream) { *stream << row.name; }

class BadHeader : public testing::TestWithParam<Row> {};

TEST_P(BadHeader, IsRefusedWithThisMessage) {
  const Row& row = GetParam();
  const std::string error = error_of(row.header, row.major);
  EXPECT_EQ(error.substr(0, std::string_view(row.message).size()), row.message);
}

std::string with_shape(std::string_view shape) { return header_text("'<f4'", shape); }

const Row kCorpus[] = {
    {"NoHeader", "", 1, "expected a dict but found the end of the header at byte 10;"},
    {"Over10000", std::string(10001, ' '), 1, "expected a header of at most 10000 bytes but"},
    {"Over10000Characters", std::string(10000, ' ') + "\xc3\xa9", 3,
     "expected a header of at most 10000 characters but found 10001 at byte 12;"},
    {"DuplicateKey", "{'descr': '<f4', 'descr': '<f4'}", 1,
     "expected the keys 'descr', 'fortran_order' and 'shape', once each, but found a second "
     "`'descr'` at byte 27;"},
    {"ExtraKey", "{'x': 1}", 1,
     "expected the keys 'descr', 'fortran_order' and 'shape', once each, but found `'x'` at byte "
     "11;"},
    {"MissingKey", "{'descr': '<f4'}", 1,
     "expected the keys 'descr', 'fortran_order' and 'shape', once each, but found no "
     "'fortran_order' in the dict at byte 10;"},
    {"Garbage", with_shape("()") + ";", 1, "expected the end of the header but found `;` at"},
    {"Nul", with_shape("()") + std::string(1, '\0'), 1, "expected text but found `\\x00` at"},
    {"CutShort", "{'descr'", 1, "expected `:` but found the end of the header at byte 18;"},
    {"LongInVersion3", with_shape("(3L,)"), 3, "expected an integer but found `3L` at byte 63;"},
    {"LeadingZero", with_shape("(03,)"), 1, "expected an integer but found `03` at byte 61;"},
    {"Float", with_shape("(3.0,)"), 1, "expected an integer but found `3.0` at byte 61;"},
    {"True", with_shape("(True,)"), 1,
     "expected a dimension from 0 to 9223372036854775807 but found `True` at byte 61;"},
    {"NotATuple", with_shape("(12)"), 1, "expected a shape: a tuple but found `12` at byte 61;"},
    {"NpInt64", with_shape("(np.int64(3),)"), 1,
     "expected a string, an integer, True, False, None, a tuple or a list but found `np.int64`"},
    {"Negative", with_shape("(-1,)"), 1,
     "expected a dimension from 0 to 9223372036854775807 but found `-1` at byte 61;"},
    {"TwoTo64", with_shape("(18446744073709551616,)"), 1,
     "expected a dimension from 0 to 9223372036854775807 but found `18446744073709551616`"},
    {"Wraps", with_shape("(4, 4611686018427387907)"), 1,
     "expected a shape of at most 9223372036854775807 bytes of float32 but found `(4, "
     "4611686018427387907)` at byte 60;"},
    {"ZeroHidesNothing", with_shape("(0, 4611686018427387904)"), 1,
     "expected a shape of at most 9223372036854775807 bytes of float32 but"},
    {"Dimensions",
     with_shape("(1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,"
                "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1)"),
     1, "expected at most 64 dimensions but found 65 at byte 60;"},
    {"Deep", std::string(201, '('), 1, "expected at most 200 nested brackets but found one more"},
    {"Utf8", with_shape("()") + "#\xed\xa0\x80", 3, "expected UTF-8 but found `\\xed` at byte 68;"},
    {"Indented", "\n " + with_shape("()"), 1, "expected a dict at the start of its line but"},
    {"NewlineInString", "{'de\nscr'", 1, "expected `'` to end the string `'de\\x0ascr'` but found"},
    {"Set", "{'descr'}", 1, "expected `:` but found `}` at byte 18;"},
    {"Bytes", "{b'descr'", 1, "expected a string, an integer,"},
    {"Surrogate", "{'\\ud800'", 1, "expected a Unicode character but found `\\ud800` at byte 12;"},
    {"BadEscape", "{'\\x3'", 1, "expected 2 hexadecimal digits but found `\\x3` at byte 12;"},
    {"TwoSigns", with_shape("(--1,)"), 1, "expected an integer but found `-` at byte 62;"},
    {"BackslashAtTheEnd", with_shape("()") + "\\\n", 1, "expected a line after the backslash but"},
    {"Subarray", header_text("('<f4', (2,))"), 1,
     "expected a dtype of one element but found a sub-array of shape (2,) at byte 20;"},
    {"SecondTitle", header_text("[(('t', 'a'), 'f4'), ('t', 'f4')]"), 1,
     "expected each name and title of a field once but found `'t'` at byte 42;"},
    {"SubarrayOfTooManyBytes", header_text("[('a', '<f4', (536870912,))]"), 1,
     "expected an element of at most 2147483647 bytes but found `'<f4'` at byte 27;"},
};

INSTANTIATE_TEST_SUITE_P(Corpus, BadHeader, testing::ValuesIn(kCorpus),
                         [](const auto& row) { return std::string(row.param.name); });

TEST(ParseNpyHeader, TruncationSaysHowManyBytes) {
  const std::string bytes = file(header_text("'<f4'"));
  const auto error = [&](size_t nbytes) {
    try {
      parse_npy_header(as_bytes(bytes).first(nbytes));
    } catch (const FormatError& caught) {
      return std::string(caught.what());
    }
    return std::string("no error");
  };
  EXPECT_EQ(error(6),
            "expected 10 bytes of magic, version and header length but found 6; the file is "
            "truncated");
  EXPECT_EQ(error(68),
            "expected 69 bytes up to the end of the header but found 68; the file is truncated");
  EXPECT_EQ(error(69), "no error");
}

TEST(ParseNpyHeader, EachSpellingIsTheSameHeader) {
  for (const std::string_view header : {
           R"({'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), })",
           R"({"shape":(2,3),"descr":"<f4","fortran_order":False})",
           R"({'descr' : '<' 'f4' , u'fortran_order':(False), r'shape':((0x2),0b1_1)})",
           "# one\n{ # 'shape': (9,)\n'''descr''': '\\x3cf4',\\\n'fortran_order'\t:\r\nFalse,\f"
           "'shape': (+2, 3,),}  \n\n # two",
           "(({'descr': '\\74f\\u0034', 'fortran_order': False, 'shape': (2L, 3 L)}))",
       }) {
    SCOPED_TRACE(header);
    const NpyHeader parsed = parse(header);
    EXPECT_EQ(parsed.descr, "<f4");
    EXPECT_EQ(parsed.dtype.type, ScalarType::kFloat32);
    EXPECT_FALSE(parsed.fortran_order);
    EXPECT_EQ(parsed.shape, (Shape{2, 3}));
    EXPECT_EQ(parsed.count, 6U);
    EXPECT_EQ(parsed.nbytes, 24U);
    EXPECT_EQ(parsed.data_offset, 10 + header.size());
  }
}

TEST(ParseNpyHeader, EmptyAxisAndNoAxisCount) {
  EXPECT_EQ(parse(with_shape("(0, 3)")).nbytes, 0U);
  EXPECT_EQ(parse(with_shape("()")).nbytes, 4U);
}

struct Spelling {
  std::string_view descr;
  std::string_view name;
  bool big_endian = false;
};

TEST(Descr, EachSpellingGivesItsDtype) {
  for (const Spelling& row : std::vector<Spelling>{
           {"|b1", "bool"},
           {"?", "bool"},
           {"|i1", "int8"},
           {"<i2", "int16"},
           {"i4", "int32"},
           {"=i8", "int64"},
           {"|u1", "uint8"},
           {"<u2", "uint16"},
           {">u4", "uint32", true},
           {"|u8", "uint64"},
           {"<f2", "float16"},
           {">f4", "float32", true},
           {"<f8", "float64"},
           {"<c4", "complex32"},
           {"<c8", "complex64"},
           {">c16", "complex128", true},
           {"<f1", "float8_e5m2"},
           {">f1", "float8_e5m2"},
           {"float32", "float32"},
           {"d", "float64"},
           {"bfloat16", "bfloat16"},
           {"float8_e4m3fn", "float8_e4m3fn"},
           {"float8_e4m3fnuz", "float8_e4m3fnuz"},
           {"float8_e5m2", "float8_e5m2"},
           {"float8_e5m2fnuz", "float8_e5m2fnuz"},
           {"float8_e8m0fnu", "float8_e8m0fnu"},
           {"<M8[ns]", "datetime64[ns]"},
           {">M8[25s]", "datetime64[25s]", true},
           {"datetime64[D]", "datetime64[D]"},
           {"<m8", "timedelta64"},
           {"m8[generic]", "timedelta64"},
           {"m8[1us]", "timedelta64[us]"},
           {"|V2", "void16"},
           {"|S5", "bytes40"},
           {"a3", "bytes24"},
           {">U5", "str160", true},
           {"g", "float128"},
           {"<f12", "float96"},
           {"<c24", "complex192"},
           {"|O", "object"},
       }) {
    SCOPED_TRACE(row.descr);
    const Dtype dtype = dtype_of(fmt::format("'{}'", row.descr));
    EXPECT_EQ(format_dtype(dtype), row.name);
    EXPECT_EQ(dtype.big_endian, row.big_endian);
  }
}

TEST(Descr, UnknownDtypeIsRefused) {
  for (const std::string_view descr :
       {"", "<", "f3", "<float32", "Float32", "f4 ", "M8[", "M8[]", "M8[x]", "M8[-1s]", "M4", "T",
        "S-1", "U536870912", "S2147483648", "x", "f4,i4", "2f4", "M8[D/24]"}) {
    SCOPED_TRACE(descr);
    EXPECT_NE(error_of(header_text(fmt::format("'{}'", descr))), "no error");
  }
}

TEST(Descr, RecordHasOffsetsWithoutItsPadding) {
  const Dtype dtype = dtype_of("[('a', '|u1'), ('', '|V3'), (('title', 'b'), '>f8', (2, 1))]");
  EXPECT_EQ(format_dtype(dtype), "{a: uint8, b: float64 (2, 1)}");
  EXPECT_EQ(dtype.itemsize, 20U);
  ASSERT_EQ(dtype.fields.size(), 2U);
  EXPECT_EQ(dtype.fields[1].offset, 4U);
  EXPECT_EQ(dtype.fields[1].shape, (Shape{2, 1}));
  EXPECT_TRUE(dtype.fields[1].dtype.big_endian);
}

TEST(Descr, RecordsNestAndSubarraysJoin) {
  const Dtype dtype = dtype_of("[('a', [('b', ('<i2', 2), (3,))], [4])]");
  EXPECT_EQ(format_dtype(dtype), "{a: {b: int16 (3, 2)} (4,)}");
  EXPECT_EQ(dtype.itemsize, 48U);
}

TEST(Descr, FieldNameIsUtf8InEachVersion) {
  const std::string latin1 = header_text("[('\xe9\\u20ac', 'f4')]");
  const std::string utf8 = header_text("[('\xc3\xa9\xe2\x82\xac', 'f4')]");
  EXPECT_EQ(parse(latin1, 1).dtype.fields[0].name, "\xc3\xa9\xe2\x82\xac");
  EXPECT_EQ(parse(utf8, 3).dtype.fields[0].name, "\xc3\xa9\xe2\x82\xac");
  EXPECT_EQ(parse(latin1, 1).descr, "[('\xc3\xa9\\u20ac', 'f4')]");
}

TEST(CheckNpyData, ShortDataNamesDtypeAndShape) {
  const NpyHeader header = parse(with_shape("(10, 100)"));
  check_npy_data(header, 4000);
  check_npy_data(header, 4001);
  try {
    check_npy_data(header, 3996);
    FAIL();
  } catch (const FormatError& error) {
    EXPECT_STREQ(error.what(),
                 "expected 4000 bytes of data (float32, shape (10, 100)) but found 3996; the file "
                 "is truncated");
  }
}

TEST(CheckNpyLoadable, WhatTorchLacksIsUnsupported) {
  EXPECT_EQ(unsupported_error_of("'<f4'"), "no error");
  EXPECT_EQ(unsupported_error_of("[('a', '<f4'), ('', 'V4')]"), "no error");
  EXPECT_EQ(unsupported_error_of("[('a', [('b', 'O')])]"),
            "expected a dtype that torch has but found object in the field 'a.b'; it is a pickle, "
            "which can run code when it is read, and is never loaded: save the values with a "
            "numeric dtype");
  EXPECT_EQ(unsupported_error_of("'V2'"),
            "expected a dtype that torch has but found void16; the file cannot name these bits: "
            "pass dtype= to say what they are");
  EXPECT_EQ(unsupported_error_of("'<U2'"),
            "expected a dtype that torch has but found str64; torch has no text: save numbers, or "
            "take the raw bytes as uint8 from the header's data_offset on");
  EXPECT_EQ(unsupported_error_of("[('a', 'V4')]"),
            "expected a dtype that torch has but found void32 in the field 'a'; the file cannot "
            "name these bits: save the field with a numeric dtype");
  EXPECT_EQ(unsupported_error_of("'g'"),
            "expected a dtype that torch has but found float128; torch has no long double: save "
            "it as float64 or complex128");
}

TEST(FormatShape, IsPython) {
  EXPECT_EQ(format_shape({}), "()");
  EXPECT_EQ(format_shape({3}), "(3,)");
  EXPECT_EQ(format_shape({3, 0}), "(3, 0)");
}

TEST(Bools, OtherBytesAreFoundAnywhereAndBecomeOne) {
  for (const size_t nbytes : {1, 4096, 10000}) {
    std::vector<uint8_t> bytes(nbytes, 1);
    EXPECT_TRUE(are_bools(bytes));
    bytes.back() = 0x80;
    EXPECT_FALSE(are_bools(bytes));
    normalize_bools(bytes);
    EXPECT_TRUE(are_bools(bytes));
    EXPECT_EQ(bytes.back(), 1);
  }
  EXPECT_TRUE(are_bools({}));
}

}  // namespace
}  // namespace torchnpy
