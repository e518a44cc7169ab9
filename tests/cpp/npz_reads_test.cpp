// The reads that NpzLoader asks for, and what it does when they give less or other bytes.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <exception>
#include <random>
#include <string>
#include <vector>

#include "npz_testing.h"

namespace torchnpy {
namespace {

using NpzReads = NpzTest;

std::exception_ptr changed() {
  return std::make_exception_ptr(TransportError("memory: changed", TransportError::Kind::kChanged));
}

// Whose members are 30 + 5 bytes longer than `nbytes`, with their local headers.
ZipEntry member_of(std::string name, size_t nbytes) {
  return stored(std::move(name), std::string(nbytes, 'm'));
}
constexpr size_t kLocalNbytes = 30 + 5;

// Does not compress.
std::string make_noise(size_t nbytes) {
  std::string noise(nbytes, '\0');
  std::minstd_rand random(7);
  for (char& c : noise) c = static_cast<char>(random() >> 8);
  return noise;
}

TEST_F(NpzReads, SmallArchiveTakesOneRead) {
  const std::string npy = make_npy(10, 100);
  make_source(zip_bytes({stored("a.npy", npy), compressed("b.npy", npy)}));
  EXPECT_EQ(load(), "");
  EXPECT_EQ(data(0), npy.substr(kHeaderNbytes));
  EXPECT_EQ(data(1), npy.substr(kHeaderNbytes));
  EXPECT_EQ(reads(), Keys{"last 65536"});
}

TEST_F(NpzReads, DirectoryBeforeTheTailTakesAnotherRead) {
  std::vector<ZipEntry> entries;
  for (int i = 0; i < 2000; ++i) entries.push_back(stored(fmt::format("{:04}.npy", i), "x"));
  const std::string object = zip_bytes(entries);
  const uint64_t directory_offset = zip_body(entries).end.directory_offset;
  make_source(object);
  EXPECT_EQ(load_keys({}), "");
  EXPECT_EQ(loader_->archive()->members().size(), 2000U);
  EXPECT_EQ(reads(), (Keys{"last 65536", fmt::format("{}+{}", directory_offset,
                                                     object.size() - 65536 - directory_offset)}));
}

TEST_F(NpzReads, LongDirectoryComesInParts) {
  std::vector<ZipEntry> entries;
  for (int i = 0; i < 2000; ++i) entries.push_back(stored(fmt::format("{:04}", i), "x"));
  make_source(zip_bytes(entries));
  NpzLoadOptions options;
  source_->sizes.part_nbytes = 10'000;
  options.keys = {"0000", "1999"};
  EXPECT_EQ(load(options), "");
  EXPECT_EQ(data(0) + data(1), "xx");
  EXPECT_EQ(source_->reads.size(), 1U + 4U + 2U);
}

TEST_F(NpzReads, NearMembersComeInOneRead) {
  const std::string npy = make_npy(1000, 100);
  make_source(before_tail({stored("a.npy", npy), member_of("x.bin", 2000), stored("b.npy", npy),
                           member_of("y.bin", 300'000), compressed("c.npy", npy)}));
  open();
  EXPECT_EQ(read({"a", "b", "c"}), "");
  for (size_t place = 0; place < 3; ++place) EXPECT_EQ(data(place), npy.substr(kHeaderNbytes));
  EXPECT_EQ(reads(), (Keys{from_to("a", "b"), from_to("c", "c")}));
}

// And 64 KiB, where the tail was read before.
TEST_F(NpzReads, GapsAreReadUpToATwentiethOfWhatIsWanted) {
  for (const size_t excess : {0, 1}) {
    make_source(before_tail({member_of("a.bin", 100'000 - kLocalNbytes),
                             member_of("x.bin", 10'000 + 65'536 + excess - kLocalNbytes),
                             member_of("b.bin", 100'000 - kLocalNbytes)}));
    open();
    EXPECT_EQ(read({"a.bin", "b.bin"}), "");
    const Keys together{from_to("a.bin", "b.bin")};
    const Keys apart{from_to("a.bin", "a.bin"), from_to("b.bin", "b.bin")};
    EXPECT_EQ(reads(), excess == 0 ? together : apart);
  }
}

TEST_F(NpzReads, SmallestGapsAreReadFirst) {
  make_source(before_tail({member_of("a.bin", 60'000), member_of("x.bin", 70'000),
                           member_of("b.bin", 60'000), member_of("y.bin", 5000),
                           member_of("c.bin", 60'000)}));
  open();
  EXPECT_EQ(read({"a.bin", "b.bin", "c.bin"}), "");
  EXPECT_EQ(reads(), (Keys{from_to("a.bin", "a.bin"), from_to("b.bin", "c.bin")}));
}

TEST_F(NpzReads, OneReadIsNoLongerThanAPart) {
  make_source(before_tail(
      {member_of("a.bin", 40'000), member_of("b.bin", 40'000), member_of("c.bin", 40'000)}));
  open();
  NpzLoadOptions options;
  source_->sizes.part_nbytes = 100'000;
  EXPECT_EQ(read({"c.bin", "b.bin", "a.bin"}, options), "");
  EXPECT_EQ(reads(), (Keys{from_to("a.bin", "b.bin"), from_to("c.bin", "c.bin")}));
}

TEST_F(NpzReads, LargeMemberComesInPartsAfterItsHead) {
  const std::string npy = make_npy(3000, 100);
  make_source(before_tail({stored("a.npy", npy), compressed("b.npy", npy)}));
  open();
  NpzLoadOptions options;
  source_->sizes.part_nbytes = 100'000;
  EXPECT_EQ(read({"a"}, options), "");
  EXPECT_EQ(data(0), npy.substr(kHeaderNbytes));
  const uint64_t head_nbytes = kLocalNbytes + 96 + kFirstReadNbytes;
  const uint64_t end = kLocalNbytes + npy.size();
  EXPECT_EQ(reads(),
            (Keys{fmt::format("0+{}", head_nbytes), fmt::format("{}+100000", head_nbytes),
                  fmt::format("{}+100000", head_nbytes + 100'000),
                  fmt::format("{}+{}", head_nbytes + 200'000, end - head_nbytes - 200'000)}));
}

TEST_F(NpzReads, LargeDeflatedMemberComesInPartsAfterItsHead) {
  const std::string noise = make_noise(300'000);
  make_source(before_tail({compressed("a.bin", noise)}));
  open();
  NpzLoadOptions options;
  source_->sizes.part_nbytes = 100'000;
  EXPECT_EQ(read({"a.bin"}, options), "");
  EXPECT_EQ(data(0), noise);
  EXPECT_EQ(source_->reads.size(), 4U);
}

TEST_F(NpzReads, LongLocalExtraFieldsTakeAnotherRead) {
  ZipEntry entry = member_of("a.bin", 1000);
  entry.local_extra = extra_field(0xCAFE, std::string(5000, 'e'));
  make_source(before_tail({entry}));
  open();
  EXPECT_EQ(read({"a.bin"}), "");
  EXPECT_EQ(data(0), std::string(1000, 'm'));
  const uint64_t guess = kLocalNbytes + 96 + 1000;
  EXPECT_EQ(reads(), (Keys{fmt::format("0+{}", guess),
                           fmt::format("{}+{}", guess, kLocalNbytes + 5004 + 1000 - guess)}));
}

TEST_F(NpzReads, AnyChunkingGivesTheSameBytes) {
  const std::string npy = make_npy(30, 100);
  ZipEntry extra = stored("b.npy", npy);
  extra.local_extra = extra_field(0xCAFE, std::string(60, 'e'));
  const std::string object =
      before_tail({compressed("a.npy", npy), extra, member_of("x.bin", 100), stored("c.npy", npy)});
  for (const size_t chunk : {1, 7, 29, 30, 31, 1000, 16384}) {
    make_source(object)->chunk_nbytes = chunk;
    ASSERT_EQ(load_keys({"a", "b", "c"}), "") << chunk;
    for (size_t place = 0; place < 3; ++place) {
      EXPECT_EQ(data(place), npy.substr(kHeaderNbytes)) << chunk;
    }
  }
}

TEST_F(NpzReads, MemberPartlyInTheTailIsReadUpToIt) {
  const std::string npy = make_npy(1000, 100);
  const std::string object = zip_bytes({stored("a.npy", npy)});
  make_source(object);
  EXPECT_EQ(load(), "");
  EXPECT_EQ(data(0), npy.substr(kHeaderNbytes));
  EXPECT_EQ(reads(), (Keys{"last 65536", fmt::format("0+{}", object.size() - 65536)}));
}

TEST_F(NpzReads, TailMayBeginAnywhereInAMember) {
  const std::string npy = make_npy(20, 10);
  const std::vector<ZipEntry> entries{compressed("a.npy", npy), stored("b.npy", npy)};
  for (size_t cut = 0; cut < zip_body(entries).end.directory_offset; ++cut) {
    std::string object = zip_bytes(entries);
    const size_t after_nbytes = object.size() - cut;
    object = zip_bytes(entries, std::string(65536 - after_nbytes, 'c'));
    make_source(object);
    ASSERT_EQ(load(), "") << cut;
    EXPECT_EQ(data(0), npy.substr(kHeaderNbytes)) << cut;
    EXPECT_EQ(data(1), npy.substr(kHeaderNbytes)) << cut;
  }
}

class NpzHeaderReads : public NpzTest {
 protected:
  std::string read_header(const std::string& key) {
    NpzLoadOptions options;
    options.header_only = true;
    return read({key}, options);
  }
};

TEST_F(NpzHeaderReads, HeaderTakesTheFirstBytesOfTheMember) {
  const std::string npy = npy_bytes(
      "{'descr': '|u1', 'fortran_order': False, 'shape': (3000, 100), }", make_noise(300'000));
  make_source(before_tail({stored("a.npy", npy), compressed("b.npy", npy)}));
  open();
  for (const char* key : {"a", "b"}) {
    source_->reads.clear();
    EXPECT_EQ(read_header(key), "");
    EXPECT_EQ(entry(0).header.value().shape, (std::vector<uint64_t>{3000, 100}));
    EXPECT_TRUE(entry(0).data.bytes.empty());
    EXPECT_EQ(reads(),
              Keys{fmt::format("{}+{}", member(key).local_offset, kLocalNbytes + 96 + 4096)});
  }
}

TEST_F(NpzHeaderReads, HeaderInTheTailTakesNoRead) {
  make_source(zip_bytes({stored("a.npy", make_npy(10, 10))}));
  open();
  EXPECT_TRUE(archive_->is_local(0));
  EXPECT_EQ(read_header("a"), "");
  EXPECT_EQ(entry(0).header.value().count, 100U);
  EXPECT_EQ(reads(), Keys{});
}

// Of as many fields as numpy reads, whose names do not compress.
std::string make_long_header() {
  std::minstd_rand random(7);
  std::string descr;
  for (int i = 0; i < 250; ++i) {
    std::string name;
    for (int j = 0; j < 24; ++j) name += static_cast<char>('!' + 2 + random() % 4 + random() % 50);
    std::erase(name, '\'');
    std::erase(name, '\\');
    descr += fmt::format("('{}{}', '|u1'), ", name, i);
  }
  return npy_bytes(
      fmt::format("{{'descr': [{}], 'fortran_order': False, 'shape': (2000,), }}", descr),
      std::string(2000 * 250, 'x'));
}

TEST_F(NpzHeaderReads, LongHeaderTakesOneMoreRead) {
  const std::string npy = make_long_header();
  make_source(before_tail({stored("a.npy", npy), compressed("b.npy", npy)}));
  open();
  const uint64_t head = kLocalNbytes + 96 + 4096;
  EXPECT_EQ(read_header("a"), "");
  EXPECT_EQ(entry(0).header.value().dtype.fields.size(), 250U);
  EXPECT_EQ(reads(),
            (Keys{fmt::format("0+{}", head),
                  fmt::format("{}+{}", head, kLocalNbytes + 2 * kMaxHeaderNbytes - head)}));
  source_->reads.clear();
  EXPECT_EQ(read_header("b"), "");
  EXPECT_EQ(entry(0).header.value().dtype.fields.size(), 250U);
  EXPECT_EQ(source_->reads.size(), 2U);
}

TEST_F(NpzReads, ServerThatIgnoresRangesIsReadOnce) {
  const std::string npy = make_npy(3000, 100);
  make_source(before_tail({stored("a.npy", npy), compressed("b.npy", npy)}))->ignores_ranges = true;
  EXPECT_EQ(load(), "");
  EXPECT_EQ(data(0), npy.substr(kHeaderNbytes));
  EXPECT_EQ(data(1), npy.substr(kHeaderNbytes));
  EXPECT_EQ(reads(), Keys{"last 65536"});
}

TEST_F(NpzReads, LargeObjectOfAServerThatIgnoresRangesIsNotKept) {
  const std::string npy = make_npy(1000, 100);
  make_source(before_tail({stored("a.npy", npy), stored("b.bin", std::string(64 << 20, '\0'))}));
  source_->ignores_ranges = true;
  source_->chunk_nbytes = 1 << 20;
  EXPECT_EQ(load_keys({"a"}), "");
  EXPECT_EQ(data(0), npy.substr(kHeaderNbytes));
  EXPECT_EQ(loader_->archive()->tail().content.bytes.size(), 65536U);
  EXPECT_EQ(source_->reads.size(), 2U);
}

TEST_F(NpzReads, UnknownSizeIsNoHindrance) {
  const std::string npy = make_npy(1000, 100);
  for (const bool ignores_ranges : {false, true}) {
    make_source(zip_bytes({compressed("a.npy", npy)}))->size_known = false;
    source_->ignores_ranges = ignores_ranges;
    EXPECT_EQ(load(), "");
    EXPECT_EQ(data(0), npy.substr(kHeaderNbytes));
  }
}

TEST_F(NpzReads, ObjectThatChangesInTheFirstReadIsReadAnew) {
  const std::string npy = make_npy(300, 100);
  make_source(zip_bytes({stored("a.npy", npy)}))->changes_once = true;
  EXPECT_EQ(load(), "");
  EXPECT_EQ(data(0), npy.substr(kHeaderNbytes));
  EXPECT_FALSE(source_->changes_once);
}

TEST_F(NpzReads, ObjectThatChangesLaterIsLoadedAnew) {
  const std::string npy = make_npy(300, 100);
  make_source(before_tail({stored("a.npy", make_npy(1000, 100)), member_of("x.bin", 10)}));
  source_->changes_to = before_tail({stored("b.npy", npy)});
  source_->fault = changed();
  EXPECT_EQ(load(), "");
  EXPECT_EQ(loader_->archive()->keys(), (Keys{"b", "filler"}));
  EXPECT_EQ(data(0), npy.substr(kHeaderNbytes));
}

TEST_F(NpzReads, OpenArchiveWhoseObjectChangedFails) {
  make_source(before_tail({stored("a.npy", make_npy(1000, 100))}));
  open();
  source_->reads.resize(1);
  source_->fault = changed();
  EXPECT_EQ(read({"a"}), "memory: changed");
  EXPECT_EQ(source_->reads.size(), 2U);
  NpzLoader loader(archive_, heap_allocator(), {});
  EXPECT_THROW(load_one(loader), TransportError);
  EXPECT_FALSE(loader.restart());
}

TEST_F(NpzReads, ObjectThatEndsEarlyNamesTheMemberAndTheByte) {
  make_source(before_tail({member_of("a.bin", 200'000)}));
  source_->ends_at = 100;
  EXPECT_EQ(load(), "memory: expected the end of the object but found less of it");

  source_->ends_at = std::string::npos;
  open();
  for (const uint64_t ends_at : {0, 20, 100}) {
    source_->ends_at = ends_at;
    EXPECT_EQ(read({"a.bin"}),
              fmt::format("memory[a.bin]: expected {} more bytes at byte {} but the object ends "
                          "there",
                          kLocalNbytes + 200'000 - ends_at, ends_at));
  }
  source_->ends_at = 150'000;
  NpzLoadOptions options;
  source_->sizes.part_nbytes = 90'000;
  const uint64_t second_part = kLocalNbytes + 96 + 65536;
  EXPECT_EQ(read({"a.bin"}, options),
            fmt::format("memory[a.bin]: expected {} more bytes at byte 150000 but the object ends "
                        "there",
                        second_part + 90'000 - 150'000));
}

TEST_F(NpzReads, FaultInAReadEndsTheLoad) {
  make_source(before_tail({member_of("a.bin", 1000)}));
  source_->fault = std::make_exception_ptr(TransportError("memory: gone"));
  EXPECT_EQ(load(), "memory: gone");
}

}  // namespace
}  // namespace torchnpy
