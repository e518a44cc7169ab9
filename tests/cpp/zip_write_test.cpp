#include "format/zip_write.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "format/zip.h"

namespace torchnpy {
namespace {

constexpr uint64_t k4GiB = uint64_t{1} << 32;

ZipMember stored(std::string name, uint64_t nbytes, uint64_t local_offset = 0) {
  ZipMember member;
  member.name = std::move(name);
  member.crc32 = 0x12345678;
  member.nbytes = member.compressed_nbytes = nbytes;
  member.local_offset = local_offset;
  return member;
}

ZipMember streamed(std::string name, uint64_t nbytes, uint64_t compressed_nbytes) {
  ZipMember member = stored(std::move(name), nbytes);
  member.compressed_nbytes = compressed_nbytes;
  member.method = kZipDeflated;
  member.flags = kZipHasDescriptor;
  return member;
}

std::string hex(std::string_view bytes) {
  std::string text;
  for (const char c : bytes) text += fmt::format("{:02x}", static_cast<uint8_t>(c));
  return text;
}

// As our own reader finds the members in an archive that ends in these bytes.
std::vector<ZipMember> parse(const std::vector<ZipMember>& members, uint64_t directory_offset) {
  std::string directory;
  for (const ZipMember& member : members) directory += format_zip_entry(member);
  const uint64_t directory_nbytes = directory.size();
  std::string tail(std::min(directory_offset, kMinZipTailNbytes), 'd');
  tail += directory + format_zip_end({.directory_offset = directory_offset,
                                      .directory_nbytes = directory_nbytes,
                                      .member_count = members.size()});
  ZipLimits limits;
  limits.total_nbytes = uint64_t{1} << 50;
  const uint64_t before_nbytes = directory_offset - std::min(directory_offset, kMinZipTailNbytes);
  const auto found = find_zip_end(as_bytes(tail), before_nbytes + tail.size(), limits);
  const ZipEnd& end = std::get<ZipEnd>(found);
  EXPECT_EQ(end.directory_offset, directory_offset);
  EXPECT_EQ(end.prefix_nbytes, 0u);
  return parse_zip_directory(as_bytes(directory), end, limits);
}

ZipMember parse_one(const ZipMember& member) {
  const uint64_t end = member.local_offset + member.compressed_nbytes + 1000;
  ZipMember found = parse({member}, end).at(0);
  const std::string header = format_zip_local_header(member, 64);
  EXPECT_EQ(find_zip_data(as_bytes(header), found), header.size());
  check_zip_local_header(as_bytes(header), found);
  return found;
}

// As Python's zipfile writes it, but for the version that made it.
TEST(ZipWriteTest, LocalHeaderOfAStoredMember) {
  EXPECT_EQ(hex(format_zip_local_header(stored("x.npy", 0x0102))),
            "504b0304"  // signature
            "1400"
            "0000"
            "0000"  // version, flags, method
            "0000"
            "2100"      // midnight, 1980-01-01
            "78563412"  // CRC-32
            "02010000"
            "02010000"  // sizes
            "0500"
            "0000"  // lengths
            "782e6e7079");
}

TEST(ZipWriteTest, DirectoryEntryHasUnixAttributes) {
  EXPECT_EQ(hex(format_zip_entry(stored("x.npy", 0x0102, 0x40))),
            "504b0102"
            "1403"
            "1400"
            "0000"
            "0000"
            "0000"
            "2100"
            "78563412"
            "02010000"
            "02010000"
            "0500"
            "0000"
            "0000"
            "0000"
            "0000"
            "00008001"
            "40000000"
            "782e6e7079");
}

TEST(ZipWriteTest, DescriptorFollowsWhatIsNotKnownBefore) {
  const ZipMember member = streamed("x.npy", 0x0200, 0x0102);
  EXPECT_EQ(hex(format_zip_local_header(member)),
            "504b0304"
            "1400"
            "0800"
            "0800"
            "0000"
            "2100"
            "00000000"
            "00000000"
            "00000000"
            "0500"
            "0000"
            "782e6e7079");
  EXPECT_EQ(hex(format_zip_descriptor(member)),
            "504b0708"
            "78563412"
            "02010000"
            "00020000");
}

TEST(ZipWriteTest, DescriptorOf64BitsIsAnnouncedByTheZip64Field) {
  const ZipMember member = streamed("x", k4GiB, 5);
  EXPECT_EQ(hex(format_zip_local_header(member)),
            "504b0304"
            "2d00"
            "0800"
            "0800"
            "0000"
            "2100"
            "00000000"
            "ffffffff"
            "ffffffff"
            "0100"
            "1400"
            "78"
            "0100"
            "1000"
            "0000000000000000"
            "0000000000000000");
  EXPECT_EQ(hex(format_zip_descriptor(member)),
            "504b0708"
            "78563412"
            "0500000000000000"
            "0000000001000000");
}

// What does not shrink grows by what stored blocks take.
TEST(ZipWriteTest, DescriptorHas64BitsWhereTheStreamMayNeedThem) {
  const ZipMember member = streamed("x", k4GiB - 1000, k4GiB + 1000);
  EXPECT_EQ(format_zip_descriptor(member).size(), 24u);
  EXPECT_EQ(parse_one(member).compressed_nbytes, k4GiB + 1000);
}

TEST(ZipWriteTest, DataIsAlignedByAWellFormedField) {
  for (uint64_t offset = 0; offset < 130; ++offset) {
    for (const size_t name_nbytes : {1, 33, 34, 35, 100}) {
      const ZipMember member = stored(std::string(name_nbytes, 'n'), 10, offset);
      const std::string header = format_zip_local_header(member, 64);
      EXPECT_EQ((offset + header.size()) % 64, 0u);
      const std::string extra = header.substr(30 + name_nbytes);
      EXPECT_LT(extra.size(), 70u);
      if (extra.empty()) continue;
      EXPECT_EQ(hex(extra.substr(0, 6)), fmt::format("35d9{:02x}004000", extra.size() - 4));
      EXPECT_EQ(extra.find_first_not_of('\0', 6), std::string::npos);
    }
  }
}

TEST(ZipWriteTest, FlagSaysThatANameIsUtf8OnlyWhereItMustBe) {
  EXPECT_EQ(parse_one(stored("na\xc3\xafve", 1)).flags, 1 << 11);
  EXPECT_EQ(parse_one(stored("na\xc3\xafve", 1)).name, "na\xc3\xafve");
  EXPECT_EQ(parse_one(stored("naive", 1)).flags, 0);
}

TEST(ZipWriteTest, SizesAndOffsetsOf4GiBAreReadBack) {
  for (const uint64_t nbytes : {k4GiB - 2, k4GiB - 1, k4GiB, 3 * k4GiB}) {
    for (const uint64_t offset : {uint64_t{0}, k4GiB - 2, k4GiB - 1, k4GiB, 5 * k4GiB}) {
      const ZipMember found = parse_one(stored("x.npy", nbytes, offset));
      EXPECT_EQ(found.nbytes, nbytes);
      EXPECT_EQ(found.compressed_nbytes, nbytes);
      EXPECT_EQ(found.local_offset, offset);
      EXPECT_EQ(found.crc32, 0x12345678u);
    }
  }
}

TEST(ZipWriteTest, OneSizeOf4GiBIsReadBack) {
  ZipMember member = stored("x.npy", 3 * k4GiB);
  member.compressed_nbytes = 100;
  member.method = kZipDeflated;
  const ZipMember found = parse_one(member);
  EXPECT_EQ(found.nbytes, 3 * k4GiB);
  EXPECT_EQ(found.compressed_nbytes, 100u);
}

TEST(ZipWriteTest, AsManyMembersAsDoNotFitIn16Bits) {
  for (const size_t count : {0, 1, 65534, 65535, 65536}) {
    std::vector<ZipMember> members;
    for (size_t i = 0; i < count; ++i) members.push_back(stored(std::to_string(i), 1, 100 * i));
    EXPECT_EQ(parse(members, 100 * count).size(), count);
  }
}

TEST(ZipWriteTest, EndIsPlainWhereItSuffices) {
  EXPECT_EQ(hex(format_zip_end({.directory_offset = 5, .directory_nbytes = 6, .member_count = 7})),
            "504b0506"
            "0000"
            "0000"
            "0700"
            "0700"
            "06000000"
            "05000000"
            "0000");
}

}  // namespace
}  // namespace torchnpy
