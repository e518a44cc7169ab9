#include "format/zip.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/checksum.h"
#include "base/error.h"
#include "error_of.h"
#include "zip_bytes.h"

namespace torchnpy {
namespace {

constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();

using Found = std::variant<ZipEnd, ZipEndNeeds>;

// As a reader of the last `tail_nbytes` would.
Found find_in_tail(std::string_view object, uint64_t tail_nbytes, const ZipLimits& limits = {}) {
  return find_zip_end(as_bytes(object.substr(object.size() - tail_nbytes)), object.size(), limits);
}

ZipEnd find_end(std::string_view object, const ZipLimits& limits = {}) {
  return std::get<ZipEnd>(find_in_tail(object, object.size(), limits));
}

std::string end_error(std::string_view object, const ZipLimits& limits = {}) {
  return error_of([&] { find_end(object, limits); });
}

ByteView directory_of(std::string_view object, const ZipEnd& end) {
  return as_bytes(object.substr(end.directory_offset, end.directory_nbytes));
}

std::vector<ZipMember> parse(std::string_view object, const ZipLimits& limits = {}) {
  const ZipEnd end = find_end(object, limits);
  return parse_zip_directory(directory_of(object, end), end, limits);
}

std::string parse_error(std::string_view object, const ZipLimits& limits = {}) {
  return error_of([&] { parse(object, limits); });
}

using Names = std::vector<std::string>;

Names names_of(std::string_view object) {
  Names names;
  for (const ZipMember& member : parse(object)) names.push_back(member.name);
  return names;
}

// What find_zip_data() and its kin say of the only member.
std::string local_error(std::string_view object) {
  const ZipMember member = parse(object).at(0);
  return error_of([&] {
    const std::string_view rest = object.substr(member.local_offset);
    const uint64_t header_nbytes = find_zip_data(as_bytes(rest), member).value();
    check_zip_local_header(as_bytes(rest.substr(0, header_nbytes)), member);
  });
}

ZipMember member_of(uint16_t method, uint64_t compressed_nbytes, uint64_t nbytes,
                    uint16_t flags = 0) {
  ZipMember member;
  member.flags = flags;
  member.method = method;
  member.compressed_nbytes = compressed_nbytes;
  member.nbytes = nbytes;
  return member;
}

std::string unsupported_error(const ZipMember& member) {
  try {
    check_zip_member(member, {});
  } catch (const UnsupportedError& error) {
    return error.what();
  }
  return "no error";
}

const std::vector<ZipEntry> kTwo = {{"a.npy", "first"}, {"b.npy", "second!"}};

TEST(FindZipEnd, GivesTheDirectorysPlace) {
  const std::string object = zip_bytes(kTwo);
  const ZipEnd end = find_end(object);
  EXPECT_EQ(end.member_count, 2U);
  EXPECT_EQ(end.directory_offset, 2 * (30 + 5) + 12U);
  EXPECT_EQ(end.directory_nbytes, 2 * (46 + 5U));
  EXPECT_EQ(end.prefix_nbytes, 0U);
}

TEST(FindZipEnd, EmptyArchiveHasNoMembers) {
  EXPECT_EQ(find_end(zip_bytes({})).member_count, 0U);
  EXPECT_EQ(find_end(zip_bytes({}, "nothing here")).member_count, 0U);
  EXPECT_EQ(find_end(zip64_bytes({})).member_count, 0U);
}

TEST(FindZipEnd, CommentOfAnyLengthIsSkipped) {
  for (const size_t nbytes : {1, 2, 3, 4, 5, 6, 7, 1000, 65513, 65514, 65515, 65535}) {
    const std::string object = zip_bytes(kTwo, std::string(nbytes, 'c'));
    EXPECT_EQ(find_end(object).member_count, 2U) << nbytes;
  }
}

TEST(FindZipEnd, PrefixIsMeasured) {
  const ZipEnd end = find_end("#!/bin/sh\n" + zip_bytes(kTwo));
  EXPECT_EQ(end.prefix_nbytes, 10U);
  EXPECT_EQ(find_end("#!/bin/sh\n" + zip64_bytes(kTwo)).prefix_nbytes, 10U);
}

// The later of two end records names no directory, which only a reader of the whole object sees.
TEST(FindZipEnd, RecordThatIsFoundDoesNotDependOnHowMuchIsAtHand) {
  const std::string stray = end_record({.member_count = 1, .directory_nbytes = 200});
  const std::string object = zip_bytes(kTwo) + std::string(50, 'x') + stray + std::string(65500, 0);
  const ZipEnd by_tail = std::get<ZipEnd>(find_in_tail(object, kMaxZipEndNbytes));
  EXPECT_EQ(find_end(object).directory_offset, by_tail.directory_offset);
}

TEST(FindZipEnd, TrailingJunkIsIgnored) {
  EXPECT_EQ(find_end(zip_bytes(kTwo) + "junk").member_count, 2U);
  EXPECT_EQ(find_end(zip64_bytes(kTwo) + std::string(60000, '\0')).member_count, 2U);
}

TEST(FindZipEnd, CutCommentIsIgnored) {
  std::string object = zip_bytes(kTwo, "a comment");
  object.resize(object.size() - 3);
  EXPECT_EQ(find_end(object).member_count, 2U);
}

TEST(FindZipEnd, LastOfArchivesBeforeJunkIsTaken) {
  const std::string object = zip_bytes(kTwo) + zip_bytes({{"c.npy", "3"}}) + "junk";
  EXPECT_EQ(find_end(object).member_count, 1U);
}

TEST(FindZipEnd, ShortTailNeedsMore) {
  const std::string object = zip_bytes({{"a", std::string(100'000, 'x')}});
  const uint64_t begin = object.size() - kMinZipTailNbytes;
  EXPECT_EQ(std::get<ZipEndNeeds>(find_in_tail(object, 22)).offset, begin);
  EXPECT_EQ(std::get<ZipEndNeeds>(find_in_tail(object, kMinZipTailNbytes - 1)).offset, begin);
  EXPECT_EQ(std::get<ZipEnd>(find_in_tail(object, kMinZipTailNbytes)).member_count, 1U);
}

TEST(FindZipEnd, LongestCommentNeedsMoreThanTheLeastTail) {
  const std::string object = zip_bytes({{"a", std::string(100'000, 'x')}}, std::string(65535, 'c'));
  const Found found = find_in_tail(object, kMinZipTailNbytes);
  EXPECT_EQ(std::get<ZipEndNeeds>(found).offset, object.size() - kMaxZipEndNbytes);
  EXPECT_EQ(std::get<ZipEnd>(find_in_tail(object, kMaxZipEndNbytes)).member_count, 1U);
}

TEST(FindZipEnd, Zip64RecordBeforeTheTailIsNeeded) {
  const ZipBody body = zip_body({{"a", std::string(100'000, 'x')}});
  const std::string head = body.bytes + zip64_record(body.end) + zip64_locator(body.bytes.size());
  EndFields ones = {.member_count = 0xFFFF, .directory_nbytes = 0xFFFFFFFF};
  ones.directory_offset = 0xFFFFFFFF;
  // The end record is in the tail; then its locator is as well.
  for (const size_t kept_nbytes : {22, 30, 42, 60, 97}) {
    ones.comment = std::string(kMinZipTailNbytes - kept_nbytes, 'c');
    const std::string object = head + end_record(ones);
    const Found found = find_in_tail(object, kMinZipTailNbytes);
    EXPECT_EQ(std::get<ZipEndNeeds>(found).offset,
              kept_nbytes < 42 ? head.size() - 20 : head.size() - 76)
        << kept_nbytes;
    EXPECT_EQ(std::get<ZipEnd>(find_in_tail(object, kMaxZipEndNbytes)).member_count, 1U);
  }
}

TEST(FindZipEnd, Zip64RecordWithMoreInItIsFoundByItsLocator) {
  EXPECT_EQ(find_end(zip64_bytes(kTwo, "more of it")).member_count, 2U);
}

TEST(FindZipEnd, Zip64RecordMayRepeatWhatTheEndRecordSays) {
  const ZipBody body = zip_body(kTwo);
  const std::string object =
      body.bytes + zip64_record(body.end) + zip64_locator(body.bytes.size()) + end_record(body.end);
  EXPECT_EQ(find_end(object).member_count, 2U);
}

TEST(FindZipEnd, AllOnesWithoutALocatorAreTheValue) {
  EXPECT_EQ(end_error(end_record({.member_count = 0xFFFF})),
            "expected at most 0 members in a directory of 0 bytes but found 65535 at byte 0; the "
            "archive is corrupt");
}

TEST(FindZipEnd, NoEndRecordIsAnError) {
  EXPECT_EQ(end_error(""),
            "expected a ZIP archive but found no end record in its last 0 bytes; it is truncated, "
            "or no archive");
  EXPECT_EQ(end_error(std::string(100'000, 'P')),
            "expected a ZIP archive but found no end record in its last 65633 bytes; it is "
            "truncated, or no archive");
}

TEST(FindZipEnd, EveryCutIsAnError) {
  const std::string object = zip64_bytes(kTwo);
  for (size_t n = 0; n < object.size(); ++n) {
    EXPECT_NE(end_error(object.substr(0, n)), "no error") << n;
  }
}

TEST(FindZipEnd, MissingFrontIsAnError) {
  EXPECT_EQ(end_error(zip_bytes(kTwo).substr(10)),
            "expected a directory of 102 bytes at byte 72 or before but found the offset 82 at "
            "byte 174; the front of the archive is missing, or it is corrupt");
}

TEST(FindZipEnd, DirectoryLargerThanTheObjectIsAnError) {
  EXPECT_EQ(end_error(end_record({.member_count = 1, .directory_nbytes = 0xFFFFFFF0})),
            "expected a directory of at most 0 bytes but found 4294967280 at byte 0; the archive "
            "is corrupt");
}

TEST(FindZipEnd, DirectoryOffsetThatWrapsIsAnError) {
  ZipBody body = zip_body(kTwo);
  body.end.directory_offset = kMax - 10;
  const std::string object = body.bytes + zip64_record(body.end) +
                             zip64_locator(body.bytes.size()) + all_ones_end_record();
  EXPECT_EQ(end_error(object),
            "expected a directory of 102 bytes at byte 82 or before but found the offset "
            "18446744073709551605 at byte 260; the front of the archive is missing, or it is "
            "corrupt");
}

TEST(FindZipEnd, WrongSignatureOfTheDirectoryIsAnError) {
  std::string object = zip_bytes(kTwo);
  object[82] = 'X';
  EXPECT_EQ(end_error(object),
            "expected the directory's `PK\\x01\\x02` but found `XK\\x01\\x02` at byte 82; the "
            "archive is corrupt");
}

TEST(FindZipEnd, MoreMembersThanTheDirectoryHoldsAreAnError) {
  ZipBody body = zip_body(kTwo);
  body.end.member_count = 3;
  EXPECT_EQ(end_error(body.bytes + end_record(body.end)),
            "expected at most 2 members in a directory of 102 bytes but found 3 at byte 184; the "
            "archive is corrupt");
}

TEST(FindZipEnd, SplitArchiveIsAnError) {
  ZipBody body = zip_body(kTwo);
  body.end.disk = 2;
  EXPECT_EQ(
      end_error(body.bytes + end_record(body.end)),
      "expected an archive in one file but found part 3 of several at byte 184; the archive is "
      "split: join its parts");
}

TEST(FindZipEnd, EmptyArchiveAfterOtherBytesIsAnError) {
  EXPECT_EQ(end_error("PK\3\4 and so on" + zip_bytes({})),
            "expected an archive without members to begin at byte 0 but found 14 bytes before its "
            "end record at byte 14; the archive is corrupt");
  EXPECT_NE(end_error(zip_bytes({}) + "junk"), "no error");
}

TEST(FindZipEnd, EmptyEndRecordInAnArchivesCommentDoesNotCount) {
  for (const std::string_view before : {"", "x", "some text "}) {
    const std::string comment = std::string(before) + zip_bytes({});
    EXPECT_EQ(find_end(zip_bytes(kTwo, comment)).member_count, 2U);
    EXPECT_EQ(find_end(zip_bytes(kTwo, comment + "after")).member_count, 2U);
  }
}

TEST(FindZipEnd, EndRecordOfNothingInAnArchivesCommentDoesNotCount) {
  const std::string comment = end_record({.member_count = 1, .directory_nbytes = 50});
  EXPECT_EQ(find_end(zip_bytes(kTwo, comment)).member_count, 2U);
}

TEST(FindZipEnd, ArchiveInAnArchivesCommentIsAmbiguous) {
  const std::string object = zip_bytes(kTwo, zip_bytes({{"fake", "1"}}));
  EXPECT_EQ(end_error(object),
            "expected one end record but found two, at bytes 184 and 291; one may be part of a "
            "comment, and nothing tells which");
}

TEST(FindZipEnd, SecondEndRecordOfOneDirectoryIsAmbiguous) {
  ZipBody body = zip_body(kTwo);
  EndFields other = body.end;
  other.directory_nbytes += 22;
  body.end.comment = end_record(other);
  EXPECT_NE(end_error(body.bytes + end_record(body.end)).find("found two, at bytes 184 and 206"),
            std::string::npos);
}

// A ZIP64 end with one field set; `end` is what the record would say.
std::string zip64_with(const std::string& record, const std::string& end_of_object) {
  const std::string body = zip_body(kTwo).bytes;
  return body + record + zip64_locator(body.size()) + end_of_object;
}

TEST(FindZipEnd, EndRecordThatContradictsZip64IsAnError) {
  const ZipBody body = zip_body(kTwo);
  EndFields other = body.end;
  other.member_count = 1;
  EXPECT_EQ(end_error(zip64_with(zip64_record(body.end), end_record(other))),
            "expected the member count 1 of the end record but found 2 in the ZIP64 end record at "
            "byte 184; the archive is corrupt");
}

TEST(FindZipEnd, WrongZip64SignatureIsAnError) {
  std::string record = zip64_record(zip_body(kTwo).end);
  record[0] = 'X';
  EXPECT_EQ(end_error(zip64_with(record, all_ones_end_record())),
            "expected the ZIP64 end record's `PK\\x06\\x06` but found `XK\\x06\\x06` at byte 184; "
            "the archive is corrupt");
}

TEST(FindZipEnd, WrongZip64LengthIsAnError) {
  std::string record = zip64_record(zip_body(kTwo).end);
  record.replace(4, 8, little(kMax, 8));
  EXPECT_EQ(end_error(zip64_with(record, all_ones_end_record())),
            "expected a ZIP64 end record of 44 bytes up to its locator but found "
            "18446744073709551615 at byte 184; the archive is corrupt");
}

TEST(FindZipEnd, Zip64LocatorOfAPlaceElsewhereIsAnError) {
  const std::string body = zip_body(kTwo).bytes;
  for (const uint64_t offset : {uint64_t{185}, uint64_t{0xFFFFFFF0}, kMax}) {
    EXPECT_EQ(
        end_error(body + std::string(56, '\0') + zip64_locator(offset) + all_ones_end_record()),
        fmt::format("expected a ZIP64 end record just before its locator but found the place "
                    "{} at byte 240; the archive is corrupt",
                    offset));
  }
}

TEST(FindZipEnd, Zip64LocatorDoesNotMakeUsFetchTheWholeObject) {
  const std::string object = std::string(200'000, '\0') + zip64_locator(0) + all_ones_end_record();
  EXPECT_NE(error_of([&] {
              find_in_tail(object, kMaxZipEndNbytes);
            }).find("found the place 0 at byte 200000"),
            std::string::npos);
}

TEST(FindZipEnd, SplitZip64ArchiveIsAnError) {
  const ZipBody body = zip_body(kTwo);
  EXPECT_EQ(end_error(body.bytes + zip64_record(body.end) + zip64_locator(184, 3) +
                      all_ones_end_record()),
            "expected an archive in one file but found one of 3 parts at byte 240; the archive is "
            "split: join its parts");
}

TEST(FindZipEnd, MemberCountIsLimited) {
  EXPECT_EQ(find_end(zip_bytes(kTwo), {.member_count = 2}).member_count, 2U);
  EXPECT_EQ(end_error(zip_bytes(kTwo), {.member_count = 1}),
            "expected at most 1 members but found 2; raise limits.members if you trust the "
            "archive");
}

TEST(FindZipEnd, DirectorySizeIsLimited) {
  const uint64_t object_nbytes = uint64_t{1} << 40;
  const std::string end =
      end_record({.member_count = 1, .directory_nbytes = (256 << 20) + 1, .directory_offset = 0});
  const std::string tail = std::string(kMinZipTailNbytes - end.size(), '\0') + end;
  EXPECT_EQ(error_of([&] { find_zip_end(as_bytes(tail), object_nbytes, {}); }),
            "expected a directory of at most 268435456 bytes but found 268435457; make several "
            "archives of it");
}

TEST(ParseZipDirectory, GivesWhatTheEntriesSay) {
  const std::vector<ZipMember> members =
      parse(zip_bytes({{.name = "a.npy", .data = "12345", .crc32 = 0xDEADBEEF},
                       {.name = "b.npy", .data = "678", .flags = 6, .method = 8, .nbytes = 30}}));
  ASSERT_EQ(members.size(), 2U);
  EXPECT_EQ(members[0].name, "a.npy");
  EXPECT_EQ(members[0].name_in_file(), "a.npy");
  EXPECT_EQ(members[0].method, kZipStored);
  EXPECT_EQ(members[0].crc32, 0xDEADBEEF);
  EXPECT_EQ(members[0].nbytes, 5U);
  EXPECT_EQ(members[0].local_offset, 0U);
  EXPECT_EQ(members[0].end_offset, 40U);
  EXPECT_EQ(members[1].flags, 6);
  EXPECT_EQ(members[1].method, kZipDeflated);
  EXPECT_EQ(members[1].compressed_nbytes, 3U);
  EXPECT_EQ(members[1].nbytes, 30U);
  EXPECT_EQ(members[1].local_offset, 40U);
  EXPECT_EQ(members[1].end_offset, 78U);
}

TEST(ParseZipDirectory, OffsetsAreOfTheObject) {
  const std::vector<ZipMember> members = parse("prefix" + zip_bytes(kTwo));
  EXPECT_EQ(members[0].local_offset, 6U);
  EXPECT_EQ(members[1].local_offset, 46U);
  EXPECT_EQ(members[1].end_offset, 88U);
}

TEST(ParseZipDirectory, OrderIsTheDirectorysWhateverThatOfTheData) {
  ZipBody body = zip_body(kTwo);
  const std::string directory = central_header(kTwo[1], 40) + central_header(kTwo[0], 0);
  body.bytes.replace(body.end.directory_offset, directory.size(), directory);
  const std::vector<ZipMember> members = parse(body.bytes + end_record(body.end));
  EXPECT_EQ(members[0].name, "b.npy");
  EXPECT_EQ(members[0].end_offset, 82U);
  EXPECT_EQ(members[1].end_offset, 40U);
}

TEST(ParseZipDirectory, OfOneNameTheLastWins) {
  const std::vector<ZipMember> members =
      parse(zip_bytes({{"a", "1"}, {"b", "22"}, {"a", "333"}, {"c", "4444"}, {"a", "55555"}}));
  ASSERT_EQ(members.size(), 3U);
  EXPECT_EQ(members[0].name, "b");
  EXPECT_EQ(members[1].name, "c");
  EXPECT_EQ(members[2].name, "a");
  EXPECT_EQ(members[2].nbytes, 5U);
  // The members that lost are still there.
  EXPECT_EQ(members[0].end_offset, 32 + 33U);
}

TEST(ParseZipDirectory, EmptyNameIsAName) {
  EXPECT_EQ(names_of(zip_bytes({{"", "1"}, {"../x", "2"}, {"sub/", ""}})),
            (Names{"", "../x", "sub/"}));
}

TEST(ParseZipDirectory, NameWithTheUtf8FlagIsUtf8) {
  EXPECT_EQ(names_of(zip_bytes({{.name = "\u00e9\u4e2d", .data = "", .flags = 0x800}})),
            Names{"\u00e9\u4e2d"});
}

TEST(ParseZipDirectory, NameWithTheFlagThatIsNoUtf8IsAnError) {
  EXPECT_EQ(parse_error(zip_bytes({{.name = "ab\xFF", .data = "", .flags = 0x800}})),
            "expected a name in UTF-8 but found `\\xff` at byte 81; the archive is corrupt");
}

TEST(ParseZipDirectory, NameWithoutTheFlagIsInCodePage437) {
  const std::vector<ZipMember> members = parse(zip_bytes({{"\x82\xE1\xFF.npy", ""}}));
  EXPECT_EQ(members[0].name, "\u00e9\u00df\u00a0.npy");
  EXPECT_EQ(members[0].name_in_file(), "\x82\xE1\xFF.npy");
}

std::string unicode_path(std::string_view raw_name, std::string_view name, char version = 1) {
  return extra_field(
      0x7075, std::string(1, version) + little(crc32(as_bytes(raw_name)), 4) + std::string(name));
}

TEST(ParseZipDirectory, UnicodePathIsTheName) {
  const std::vector<ZipMember> members =
      parse(zip_bytes({{.name = "#U4e2d", .data = "", .extra = unicode_path("#U4e2d", "\u4e2d")}}));
  EXPECT_EQ(members[0].name, "\u4e2d");
  EXPECT_EQ(members[0].name_in_file(), "#U4e2d");
}

TEST(ParseZipDirectory, UnicodePathOfAnotherNameIsIgnored) {
  EXPECT_EQ(names_of(zip_bytes({{.name = "new", .data = "", .extra = unicode_path("old", "o")}})),
            Names{"new"});
  EXPECT_EQ(names_of(zip_bytes({{.name = "a", .data = "", .extra = unicode_path("a", "b", 2)}})),
            Names{"a"});
  EXPECT_EQ(names_of(zip_bytes({{.name = "a", .data = "", .extra = unicode_path("a", "")}})),
            Names{"a"});
}

TEST(ParseZipDirectory, UnicodePathThatIsNoUtf8IsAnError) {
  EXPECT_EQ(parse_error(zip_bytes({{.name = "a", .data = "", .extra = unicode_path("a", "\xC3")}})),
            "expected a name in UTF-8 but found `\\xc3` at byte 77; the archive is corrupt");
}

TEST(ParseZipDirectory, NulInANameIsAnError) {
  EXPECT_EQ(parse_error(zip_bytes({{std::string("a\0b", 3), ""}})),
            "expected a name without NUL but found `a\\x00b` at byte 80; the archive is corrupt");
  EXPECT_NE(parse_error(zip_bytes({{.name = "a",
                                    .data = "",
                                    .extra = unicode_path("a", std::string_view("b\0", 2))}}))
                .find("a name without NUL"),
            std::string::npos);
}

TEST(ParseZipDirectory, Zip64FieldHoldsTheFieldsThatAreAllOnes) {
  // Each of the three alone, and all with the disk.
  const ZipEntry entry = {.name = "a", .data = "12345"};
  const auto with = [&](ZipEntry zip64, std::string_view data) {
    zip64.extra = extra_field(0xCAFE, "??") + extra_field(1, data) + std::string(3, '\0');
    ZipBody body = zip_body({entry});
    const std::string directory = central_header(zip64, 0);
    body.bytes.replace(body.end.directory_offset, std::string::npos, directory);
    body.end.directory_nbytes = directory.size();
    const ZipMember member = parse(body.bytes + end_record(body.end)).at(0);
    EXPECT_EQ(member.nbytes, 5U);
    EXPECT_EQ(member.compressed_nbytes, 5U);
    EXPECT_EQ(member.local_offset, 0U);
  };
  ZipEntry nbytes = entry;
  nbytes.nbytes = 0xFFFFFFFF;
  with(nbytes, little(5, 8));
  with(nbytes, little(5, 8) + "more");
  ZipEntry compressed_nbytes = entry;
  compressed_nbytes.compressed_nbytes = 0xFFFFFFFF;
  with(compressed_nbytes, little(5, 8));
  ZipEntry local_offset = entry;
  local_offset.local_offset = 0xFFFFFFFF;
  with(local_offset, little(0, 8));
  ZipEntry all = nbytes;
  all.compressed_nbytes = all.local_offset = 0xFFFFFFFF;
  all.disk = 0xFFFF;
  with(all, little(5, 8) + little(5, 8) + little(0, 8) + little(0, 4));
  with(entry, "");
}

TEST(ParseZipDirectory, Zip64FieldThatIsTooShortIsAnError) {
  const ZipEntry entry = {.name = "a",
                          .data = "12345",
                          .extra = extra_field(1, std::string(15, '\0')),
                          .nbytes = 0xFFFFFFFF,
                          .compressed_nbytes = 0xFFFFFFFF};
  EXPECT_EQ(parse_error(zip_bytes({entry})),
            "expected a ZIP64 extra field of 16 bytes but found 15 at byte 83; the archive is "
            "corrupt");
}

TEST(ParseZipDirectory, Zip64LocalOffsetThatWrapsIsAnError) {
  const ZipEntry entry = {.name = "a",
                          .data = "12345",
                          .extra = extra_field(1, little(kMax - 1, 8)),
                          .local_offset = 0xFFFFFFFF};
  EXPECT_EQ(parse_error("prefix" + zip_bytes({entry})),
            "expected a local header in the archive but found the offset 18446744073709551614 at "
            "byte 42; the archive is corrupt");
}

TEST(ParseZipDirectory, Zip64CompressedSizeThatWrapsIsAnError) {
  const ZipEntry entry = {.name = "a",
                          .data = "12345",
                          .extra = extra_field(1, little(kMax - 1, 8)),
                          .compressed_nbytes = 0xFFFFFFFF};
  EXPECT_EQ(parse_error(zip_bytes({entry})),
            "expected `a` to end before the directory at byte 36 but found a header and "
            "18446744073709551614 bytes of data at byte 0; members overlap: the archive is corrupt "
            "or hostile");
}

TEST(ParseZipDirectory, ExtraFieldPastTheExtraFieldsIsAnError) {
  EXPECT_EQ(
      parse_error(zip_bytes({{.name = "a",
                              .data = "",
                              .extra = std::string("\1\0\x09\0", 4) + std::string(8, '\0')}})),
      "expected an extra field of at most 8 bytes but found 9 at byte 78; the archive is "
      "corrupt");
}

TEST(ParseZipDirectory, ExtraLengthPastTheDirectoryIsAnError) {
  EXPECT_EQ(parse_error(zip_bytes({{.name = "a", .data = "", .extra_nbytes = 65535}})),
            "expected at most 1 bytes of name, extra fields and comment but found 65536 at byte "
            "31; the archive is corrupt");
}

TEST(ParseZipDirectory, WrongSignatureOfAnEntryIsAnError) {
  std::string object = zip_bytes(kTwo);
  object[82 + 51] = 'X';
  EXPECT_EQ(parse_error(object),
            "expected the directory entry's `PK\\x01\\x02` but found `XK\\x01\\x02` at byte 133; "
            "the archive is corrupt");
}

TEST(ParseZipDirectory, FewerEntriesThanCountedAreAnError) {
  ZipBody body = zip_body({{.name = "a", .data = "", .comment = std::string(60, ' ')}});
  body.end.member_count = 2;
  EXPECT_EQ(parse_error(body.bytes + end_record(body.end)),
            "expected a directory of 2 members but found 0 bytes for one that takes 46 at byte "
            "138; the archive is corrupt");
}

TEST(ParseZipDirectory, MoreEntriesThanCountedAreAnError) {
  ZipBody body = zip_body(kTwo);
  body.end.member_count = 1;
  EXPECT_EQ(parse_error(body.bytes + end_record(body.end)),
            "expected the directory to end after 1 members but found 51 more bytes at byte 133; "
            "the archive is corrupt");
}

TEST(ParseZipDirectory, MemberOnAnotherDiskIsAnError) {
  EXPECT_EQ(parse_error(zip_bytes({{.name = "a", .data = "", .disk = 1}})),
            "expected an archive in one file but found a member in part 2 at byte 31; the archive "
            "is split: join its parts");
}

TEST(ParseZipDirectory, DataPastTheDirectoryIsAnError) {
  EXPECT_EQ(parse_error(zip_bytes({{.name = "a", .data = "12345", .compressed_nbytes = 6}})),
            "expected `a` to end before the directory at byte 36 but found a header and 6 bytes of "
            "data at byte 0; members overlap: the archive is corrupt or hostile");
}

TEST(ParseZipDirectory, LocalOffsetPastTheDirectoryIsAnError) {
  EXPECT_EQ(parse_error(zip_bytes({{.name = "a", .data = "1", .local_offset = 0xFFFFFFF0}})),
            "expected `a` to end before the directory at byte 32 but found a header and 1 bytes of "
            "data at byte 4294967280; members overlap: the archive is corrupt or hostile");
}

TEST(ParseZipDirectory, OverlapIsAnError) {
  EXPECT_EQ(parse_error(zip_bytes({{.name = "a", .data = "12345", .compressed_nbytes = 6},
                                   {.name = "b", .data = "12345"}})),
            "expected `a` to end before `b` at byte 36 but found a header and 6 bytes of data at "
            "byte 0; members overlap: the archive is corrupt or hostile");
}

TEST(ParseZipDirectory, OverlapOfAMemberThatAnotherReplacesIsAnError) {
  EXPECT_NE(parse_error(zip_bytes({{.name = "a", .data = "12345"},
                                   {.name = "a", .data = "12345", .local_offset = 0}}))
                .find("members overlap"),
            std::string::npos);
}

TEST(ParseZipDirectory, TotalOfDeflatedMembersIsLimited) {
  const std::string object = zip_bytes({{.name = "a", .data = "123", .method = 8, .nbytes = 60},
                                        {.name = "b", .data = std::string(500, 'x')},
                                        {.name = "c", .data = "123", .method = 8, .nbytes = 41}});
  EXPECT_EQ(parse(object, {.total_nbytes = 101}).size(), 3U);
  EXPECT_EQ(parse_error(object, {.total_nbytes = 100}),
            "expected members that inflate to at most 100 bytes but found more up to `c`, of 41 "
            "bytes; raise limits.total_nbytes if you trust the archive");
}

TEST(ParseZipDirectory, TotalThatWrapsIsLimited) {
  const ZipEntry entry = {.name = "a",
                          .data = "1",
                          .method = 8,
                          .extra = extra_field(1, little(kMax, 8)),
                          .nbytes = 0xFFFFFFFF};
  ZipEntry other = entry;
  other.name = "b";
  EXPECT_NE(
      parse_error(zip_bytes({entry, other}), {.total_nbytes = kMax}).find("limits.total_nbytes"),
      std::string::npos);
}

TEST(ParseZipDirectory, ManyMembersComeInOrder) {
  std::vector<ZipEntry> entries;
  for (int i = 0; i < 60'000; ++i) entries.push_back({fmt::format("layer.{}.weight.npy", i), "1"});
  const std::vector<ZipMember> members = parse(zip_bytes(entries));
  ASSERT_EQ(members.size(), entries.size());
  for (size_t i = 0; i < members.size(); ++i) ASSERT_EQ(members[i].name, entries[i].name);
}

TEST(CheckZipMember, StoredAndDeflatedCanBeRead) {
  check_zip_member(member_of(kZipStored, 10, 10), {});
  check_zip_member(member_of(kZipDeflated, 1, 9, 0x808), {});
}

TEST(CheckZipMember, EncryptionIsUnsupported) {
  EXPECT_EQ(unsupported_error(member_of(99, 1, 1, 1)),
            "expected a member as it is but found an encrypted one; decrypt the archive first");
}

TEST(CheckZipMember, OtherMethodsAreUnsupported) {
  EXPECT_EQ(unsupported_error(member_of(93, 1, 1)),
            "expected a stored (0) or deflated (8) member but found method 93; save the archive "
            "again with numpy.savez or numpy.savez_compressed");
  EXPECT_EQ(unsupported_error(member_of(8, 1, 1, 0x20)),
            "expected a stored (0) or deflated (8) member but found a patch by method 8; save the "
            "archive again with numpy.savez or numpy.savez_compressed");
}

TEST(CheckZipMember, StoredMemberOfTwoSizesIsAnError) {
  const ZipMember member = member_of(kZipStored, 10, 11);
  EXPECT_EQ(error_of([&] { check_zip_member(member, {}); }),
            "expected 11 bytes of a stored member but found 10; the archive is corrupt");
}

TEST(CheckZipMember, ExpansionIsLimited) {
  ZipMember member = member_of(kZipDeflated, 10, 11 * 1032);
  EXPECT_EQ(error_of([&] { check_zip_member(member, {}); }), "no error");
  member.nbytes = 0xFFFFFFFF;
  EXPECT_EQ(error_of([&] { check_zip_member(member, {}); }),
            "expected at most 11352 bytes inflated of 10 compressed ones (limits.expansion is "
            "1032) but found 4294967295; the archive is corrupt or hostile");
  EXPECT_EQ(error_of([&] { check_zip_member(member, {.expansion = kMax}); }), "no error");
}

TEST(FindZipData, IsEmptyUntilThePrefixIsLongEnough) {
  const std::string object = zip_bytes(kTwo);
  const ZipMember member = parse(object).at(0);
  for (size_t n = 0; n < kZipLocalHeaderNbytes; ++n) {
    EXPECT_FALSE(find_zip_data(as_bytes(object).first(n), member)) << n;
  }
  EXPECT_EQ(find_zip_data(as_bytes(object).first(kZipLocalHeaderNbytes), member), 35U);
}

// An archive whose local header has `nbytes` at `at` replaced.
std::string with_local(size_t at, std::string_view bytes) {
  std::string object = zip_bytes({{"a.npy", "12345"}});
  return object.replace(at, bytes.size(), bytes);
}

TEST(LocalHeader, AgreesWithTheDirectory) {
  EXPECT_EQ(local_error(zip_bytes({{"a.npy", "12345"}})), "no error");
  EXPECT_EQ(local_error(zip_bytes({{"\x82.npy", "12345"}})), "no error");
}

TEST(LocalHeader, SizesAndCrcAreNotLookedAt) {
  EXPECT_EQ(local_error(with_local(14, std::string(12, '\xFF'))), "no error");
}

TEST(LocalHeader, WrongSignatureIsAnError) {
  EXPECT_EQ(local_error(with_local(0, "PK\1\2")),
            "expected the local header's `PK\\x03\\x04` but found `PK\\x01\\x02` at byte 0; the "
            "archive is corrupt");
}

TEST(LocalHeader, LengthThatLeavesNoRoomForTheDataIsAnError) {
  EXPECT_EQ(local_error(with_local(28, "\xFF\xFF")),
            "expected a local header of at most 35 bytes but found 65570 at byte 0; the archive is "
            "corrupt");
}

TEST(LocalHeader, OtherNameIsAnError) {
  EXPECT_EQ(local_error(with_local(30, "b")),
            "expected the directory's name `a.npy` in the local header but found `b.npy` at byte "
            "0; the archive is corrupt");
}

TEST(LocalHeader, OtherMethodIsAnError) {
  EXPECT_EQ(local_error(with_local(8, "\x08")),
            "expected the directory's method 0 in the local header but found 8 at byte 0; the "
            "archive is corrupt");
}

TEST(LocalHeader, EncryptionOnlyThereIsAnError) {
  EXPECT_EQ(local_error(with_local(6, "\x01")),
            "expected the directory's flag for encryption in the local header but found the "
            "opposite at byte 0; the archive is corrupt");
}

}  // namespace
}  // namespace torchnpy
