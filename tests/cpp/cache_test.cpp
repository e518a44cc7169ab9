// The caches themselves; that loads use them rightly is in tests/test_cache.py.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/checksum.h"
#include "base/descriptor.h"
#include "transport/cache_entry.h"
#include "transport/disk_cache.h"
#include "transport/ram_cache.h"

namespace torchnpy {
namespace {

namespace fs = std::filesystem;
using Page = std::array<uint8_t, kEntryDataOffset>;

CacheKey make_key(uint32_t number) {
  CacheKey key{};
  for (size_t i = 0; i < key.size(); ++i) key[i] = static_cast<uint8_t>(number * 37 + i);
  std::memcpy(&key[1], &number, sizeof(number));
  return key;
}

CacheVersion make_version(uint64_t nbytes, std::string etag = "\"one\"") {
  return {nbytes, std::move(etag), ""};
}

std::vector<uint8_t> make_content(uint32_t number, uint64_t nbytes) {
  std::vector<uint8_t> bytes(nbytes);
  for (size_t i = 0; i < nbytes; ++i) {
    bytes[i] = static_cast<uint8_t>((i + number * 7919u) * 2654435761u >> 13);
  }
  return bytes;
}

CacheEntryHeader make_header() {
  CacheEntryHeader header;
  header.key = make_key(1);
  header.boot.fill(9);
  header.version = {1000, "\"etag\"", "Sun, 06 Nov 1994 08:49:37 GMT"};
  header.checked_ns = 12345;
  header.extents = {{0, 10, 1}, {20, 400, 2}, {300, 1000, 3}};
  return header;
}

void sign(Page& page) {
  const uint32_t crc = crc32(ByteView(page).subspan(12));
  std::memcpy(&page[8], &crc, sizeof(crc));
}

template <typename T>
void put(Page& page, size_t offset, T value) {
  std::memcpy(&page[offset], &value, sizeof(value));
}

TEST(CacheEntry, IsReadAsItWasWritten) {
  const CacheEntryHeader header = make_header();
  const auto again = parse_entry_header(format_entry_header(header));
  ASSERT_TRUE(again);
  EXPECT_EQ(again->key, header.key);
  EXPECT_EQ(again->boot, header.boot);
  EXPECT_EQ(again->version, header.version);
  EXPECT_EQ(again->version.modified, header.version.modified);
  EXPECT_EQ(again->checked_ns, 12345);
  ASSERT_EQ(again->extents.size(), 3u);
  EXPECT_EQ(again->extents[1].begin, 20u);
  EXPECT_EQ(again->extents[1].end, 400u);
  EXPECT_EQ(again->extents[2].crc32, 3u);
}

struct Damage {
  const char* name;
  std::function<void(Page&)> inflict;
  bool is_signed = true;  // the page's checksum is right
};

class DamagedEntry : public ::testing::TestWithParam<Damage> {};

TEST_P(DamagedEntry, IsNone) {
  Page page = format_entry_header(make_header());
  GetParam().inflict(page);
  if (GetParam().is_signed) sign(page);
  EXPECT_FALSE(parse_entry_header(page));
}

constexpr size_t kFirstExtent = 512;
constexpr size_t kSecondExtent = kFirstExtent + 24;
constexpr uint64_t kHuge = ~uint64_t{0};

INSTANTIATE_TEST_SUITE_P(
    Cache, DamagedEntry,
    ::testing::Values(
        Damage{"Torn", [](Page& page) { page[4000] = 1; }, false},
        Damage{"TornInItsChecksum", [](Page& page) { page[9] ^= 1; }, false},
        Damage{"AnotherMagic", [](Page& page) { page[7] = '2'; }},
        Damage{"Zeros", [](Page& page) { page = {}; }},
        Damage{"TooManyExtents", [](Page& page) { put<uint32_t>(page, 12, kMaxExtents + 1); }},
        Damage{"HugeExtentCount", [](Page& page) { put(page, 12, ~uint32_t{0}); }},
        Damage{"HugeObject", [](Page& page) { put(page, 64, kHuge); }},
        Damage{"TooLongEtag", [](Page& page) { put<uint16_t>(page, 80, 425); }},
        Damage{"TooLongTogether", [](Page& page) { put<uint16_t>(page, 82, 424); }},
        Damage{"EmptyExtent", [](Page& page) { put<uint64_t>(page, kFirstExtent + 8, 0); }},
        Damage{"NegativeExtent", [](Page& page) { put<uint64_t>(page, kSecondExtent, 500); }},
        Damage{"ExtentOutside", [](Page& page) { put<uint64_t>(page, kSecondExtent + 8, 1001); }},
        Damage{"HugeExtent", [](Page& page) { put(page, kSecondExtent + 8, kHuge); }},
        Damage{"Unsorted", [](Page& page) { put<uint64_t>(page, kFirstExtent + 48, 15); }},
        Damage{"Doubled", [](Page& page) { put<uint64_t>(page, kSecondExtent, 0); }}),
    [](const auto& tested) { return std::string(tested.param.name); });

TEST(CacheEntry, OfAnotherLengthIsNone) {
  const Page page = format_entry_header(make_header());
  EXPECT_FALSE(parse_entry_header(ByteView(page).first(4095)));
  EXPECT_FALSE(parse_entry_header({}));
}

TEST(CacheEntry, HasRoomForTheLongestValidators) {
  CacheEntryHeader header = make_header();
  header.version.etag = '"' + std::string(kMaxValidatorNbytes - 31, 'x') + '"';
  ASSERT_EQ(header.version.etag.size() + header.version.modified.size(), kMaxValidatorNbytes);
  const auto again = parse_entry_header(format_entry_header(header));
  ASSERT_TRUE(again);
  EXPECT_EQ(again->version.etag, header.version.etag);
  EXPECT_EQ(again->version.modified, header.version.modified);
}

TEST(CacheEntry, NeighboursBecomeOneWithTheChecksumOfBoth) {
  const std::vector<uint8_t> bytes = make_content(1, 1000);
  const auto add = [&](CacheEntryHeader& header, uint64_t begin, uint64_t end) {
    return header.add({begin, end, crc32(ByteView(bytes).subspan(begin, end - begin))});
  };
  CacheEntryHeader header;
  header.version = make_version(1000);
  for (const auto& [begin, end] : {std::pair{700, 1000}, {0, 300}, {300, 700}}) {
    EXPECT_TRUE(add(header, begin, end));
  }
  ASSERT_EQ(header.extents.size(), 1u);
  EXPECT_TRUE(header.covers(0, 1000));
  EXPECT_EQ(header.extents[0].crc32, crc32(bytes));
}

TEST(CacheEntry, ExtentsThatOverlapCoverTogether) {
  const CacheEntryHeader header = make_header();
  EXPECT_TRUE(header.covers(20, 1000));
  EXPECT_TRUE(header.covers(350, 500));
  EXPECT_FALSE(header.covers(0, 11));
  EXPECT_FALSE(header.covers(10, 20));
  EXPECT_FALSE(header.covers(15, 30));
  EXPECT_FALSE(header.covers(20, 1001));
}

TEST(CacheEntry, TakesNoMorePiecesThanFitButJoinsOn) {
  CacheEntryHeader header;
  header.version = make_version(1'000'000);
  for (uint64_t i = 0; i < kMaxExtents; ++i) EXPECT_TRUE(header.add({100 * i, 100 * i + 10, 0}));
  EXPECT_FALSE(header.add({50, 60, 0}));
  EXPECT_FALSE(header.covers(50, 60));
  EXPECT_EQ(header.extents.size(), kMaxExtents);
  EXPECT_TRUE(header.add({10, 20, 0}));
  EXPECT_TRUE(header.covers(0, 20));
  EXPECT_TRUE(parse_entry_header(format_entry_header(header)));
}

// Both caches are used the same way.

template <typename C>
bool fill(C& cache, uint32_t number, uint64_t nbytes, uint64_t begin = 0, uint64_t end = ~0ull) {
  const std::vector<uint8_t> content = make_content(number, nbytes);
  const auto writer = cache.write(make_key(number), make_version(nbytes), begin);
  if (!writer) return false;
  end = std::min(end, nbytes);
  for (uint64_t offset = begin; offset < end;) {
    const uint64_t step = std::min<uint64_t>(end - offset, 5000);
    writer->write(ByteView(content).subspan(offset, step));
    offset += step;
  }
  writer->commit();
  return true;
}

TEST(RamCache, KeepsWhatWasUsedLastWithinItsLimit) {
  const auto cache = std::make_shared<RamCache>(5 * 10'000);
  for (const uint32_t number : {0u, 1u, 2u, 3u}) EXPECT_TRUE(fill(*cache, number, 10'000));
  EXPECT_TRUE(cache->find(make_key(0)));
  EXPECT_TRUE(fill(*cache, 4, 10'000));
  EXPECT_LE(cache->used_nbytes(), cache->max_nbytes());
  EXPECT_TRUE(cache->find(make_key(0)));
  EXPECT_FALSE(cache->find(make_key(1)));
  EXPECT_TRUE(cache->find(make_key(4)));
}

TEST(RamCache, BytesOutliveEviction) {
  const auto cache = std::make_shared<RamCache>(30'000);
  fill(*cache, 0, 20'000);
  const auto entry = cache->find(make_key(0));
  fill(*cache, 1, 20'000);
  EXPECT_FALSE(cache->find(make_key(0)));
  EXPECT_TRUE(std::ranges::equal(entry->bytes(0, 20'000), make_content(0, 20'000)));
}

TEST(RamCache, WhatIsNotCommittedDoesNotCountAndCanBeWrittenAgain) {
  const auto cache = std::make_shared<RamCache>(100'000);
  const std::vector<uint8_t> content = make_content(0, 20'000);
  {
    const auto writer = cache->write(make_key(0), make_version(20'000), 0);
    writer->write(ByteView(content).first(10'000));
  }
  EXPECT_FALSE(cache->find(make_key(0))->covers(0, 1));
  fill(*cache, 0, 20'000);
  EXPECT_TRUE(cache->find(make_key(0))->covers(0, 20'000));
}

class DiskCacheTest : public ::testing::Test {
 protected:
  DiskCacheTest() {
    std::string name = (fs::temp_directory_path() / "torchnpy-cache-XXXXXX").string();
    folder_ = ::mkdtemp(name.data());
  }
  ~DiskCacheTest() override { fs::remove_all(folder_); }

  std::shared_ptr<DiskCache> open(uint64_t max_nbytes = 64 << 20) const {
    return std::make_shared<DiskCache>(folder_, max_nbytes);
  }
  std::vector<fs::path> entries() const {
    std::vector<fs::path> found;
    for (const auto& file : fs::recursive_directory_iterator(folder_)) {
      const std::string parent = file.path().parent_path().filename().string();
      if (file.is_regular_file() && parent.size() == 2 && parent != "v1") found.push_back(file);
    }
    return found;
  }
  // As if it had been used so long ago.
  void age(uint32_t number, int seconds) const {
    for (const fs::path& path : entries()) {
      if (read_page(path)->key != make_key(number)) continue;
      fs::last_write_time(path, fs::file_time_type::clock::now() - std::chrono::seconds(seconds));
    }
  }
  static std::optional<CacheEntryHeader> read_page(const fs::path& path) {
    Page page{};
    std::ifstream(path, std::ios::binary).read(reinterpret_cast<char*>(page.data()), page.size());
    return parse_entry_header(page);
  }
  static void overwrite(const fs::path& path, uint64_t offset, ByteView bytes) {
    std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(static_cast<std::streamoff>(offset));
    file.write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
  }
  // As if the machine had been started again.
  static void set_boot(const fs::path& path) {
    std::optional<CacheEntryHeader> header = read_page(path);
    header->boot = {};
    overwrite(path, 0, format_entry_header(*header));
  }
  // Whether the cache has all of the object and every byte is right; what is wrong fails the test.
  static bool has(DiskCache& cache, uint32_t number, uint64_t nbytes) {
    const auto entry = cache.find(make_key(number));
    if (!entry || !entry->covers(0, nbytes)) return false;
    std::vector<uint8_t> bytes(nbytes);
    EXPECT_EQ(entry->read(0, bytes), nbytes);
    EXPECT_EQ(bytes, make_content(number, nbytes));
    return true;
  }

  std::string folder_;
};

TEST_F(DiskCacheTest, KeepsWhatWasUsedLastWithinItsLimit) {
  const auto cache = open(5 * 40'960);
  for (const uint32_t number : {0u, 1u, 2u, 3u}) {
    EXPECT_TRUE(fill(*cache, number, 30'000));
    age(number, 100 - static_cast<int>(number));
  }
  EXPECT_TRUE(has(*cache, 0, 30'000));  // used now
  for (const uint32_t number : {4u, 5u}) EXPECT_TRUE(fill(*cache, number, 30'000));
  EXPECT_LE(cache->used_nbytes(), cache->max_nbytes());
  EXPECT_TRUE(has(*cache, 0, 30'000));
  EXPECT_FALSE(has(*cache, 1, 30'000));
  EXPECT_TRUE(has(*cache, 3, 30'000));
  EXPECT_TRUE(has(*cache, 5, 30'000));
}

TEST_F(DiskCacheTest, AnEntryDoesNotMakeRoomForItself) {
  const auto cache = open(120'000);
  EXPECT_TRUE(fill(*cache, 0, 60'000, 0, 30'000));
  EXPECT_TRUE(fill(*cache, 1, 60'000));
  age(0, 100);
  EXPECT_TRUE(fill(*cache, 0, 60'000, 30'000));
  EXPECT_TRUE(has(*cache, 0, 60'000));
  EXPECT_FALSE(has(*cache, 1, 60'000));
  EXPECT_LE(cache->used_nbytes(), cache->max_nbytes());
}

TEST_F(DiskCacheTest, AnotherCacheOnTheFolderHasTheSame) {
  const auto one = open();
  const auto other = open();
  EXPECT_TRUE(fill(*one, 0, 30'000, 0, 20'000));
  EXPECT_TRUE(fill(*other, 0, 30'000, 20'000));
  EXPECT_TRUE(has(*one, 0, 30'000));
  EXPECT_TRUE(has(*other, 0, 30'000));
  EXPECT_EQ(entries().size(), 1u);
  EXPECT_EQ(one->used_nbytes(), other->used_nbytes());
  other->drop(make_key(0), make_version(30'000));
  EXPECT_FALSE(has(*one, 0, 30'000));
}

TEST_F(DiskCacheTest, AnotherVersionReplacesWithoutTouchingWhatIsOpen) {
  const auto cache = open();
  fill(*cache, 0, 30'000);
  const auto old = cache->find(make_key(0));
  const std::vector<uint8_t> content = make_content(7, 20'000);
  const auto writer = cache->write(make_key(0), make_version(20'000, "\"two\""), 0);
  writer->write(content);
  writer->commit();
  EXPECT_EQ(cache->find(make_key(0))->header().version.etag, "\"two\"");
  std::vector<uint8_t> bytes(30'000);
  EXPECT_EQ(old->read(0, bytes), 30'000u);
  EXPECT_EQ(bytes, make_content(0, 30'000));
}

TEST_F(DiskCacheTest, AWriterOfAReplacedVersionDoesNotReachTheNewOne) {
  const auto cache = open();
  const auto slow = cache->write(make_key(0), make_version(30'000, "\"old\""), 0);
  slow->write(make_content(5, 15'000));
  fill(*cache, 0, 30'000);
  slow->write(make_content(6, 15'000));
  slow->commit();
  EXPECT_TRUE(has(*cache, 0, 30'000));
}

TEST_F(DiskCacheTest, AnEntryOfAnotherBootIsVerifiedOnce) {
  const auto cache = open();
  fill(*cache, 0, 30'000);
  const fs::path path = entries().at(0);
  const BootId boot = read_page(path)->boot;
  set_boot(path);
  EXPECT_TRUE(has(*cache, 0, 30'000));
  EXPECT_EQ(read_page(path)->boot, boot);
}

TEST_F(DiskCacheTest, AnEntryWhoseDataIsTornIsDropped) {
  for (const uint64_t offset : {0u, 12'288u, 29'999u}) {
    const auto cache = open();
    fill(*cache, 0, 30'000);
    const fs::path path = entries().at(0);
    const std::vector<uint8_t> zeros(std::min<uint64_t>(4096, 30'000 - offset));
    overwrite(path, kEntryDataOffset + offset, zeros);
    set_boot(path);
    EXPECT_FALSE(cache->find(make_key(0)));
    EXPECT_FALSE(fs::exists(path));
  }
}

TEST_F(DiskCacheTest, ViewsOutliveEviction) {
  const auto cache = open(1 << 20);
  ASSERT_TRUE(fill(*cache, 0, 600'000));
  std::optional<OwnedBytes> view = cache->find(make_key(0))->view(100, 599'900);
  ASSERT_TRUE(view);
  ASSERT_TRUE(fill(*cache, 1, 600'000));
  EXPECT_FALSE(cache->find(make_key(0)));
  const std::vector<uint8_t> content = make_content(0, 600'000);
  EXPECT_TRUE(std::ranges::equal(view->bytes, ByteView(content).subspan(100)));
  view->bytes[0] ^= 1;  // to nobody else
  EXPECT_TRUE(has(*cache, 1, 600'000));
}

TEST_F(DiskCacheTest, IsForItsOwnerOnly) {
  fill(*open(), 0, 1000);
  for (const auto& file : fs::recursive_directory_iterator(folder_)) {
    const auto others = fs::perms::group_all | fs::perms::others_all;
    EXPECT_EQ(file.status().permissions() & others, fs::perms::none) << file.path();
  }
}

TEST_F(DiskCacheTest, ThreadsOfTwoCachesNeverSeeAWrongByte) {
  const std::array caches{open(400'000), open(400'000)};
  std::atomic<int> hits{0};
  std::vector<std::thread> threads;
  for (unsigned seed = 0; seed < 4; ++seed) {
    threads.emplace_back([&, seed] {
      std::mt19937 random(seed);
      DiskCache& cache = *caches[seed % 2];
      for (int i = 0; i < 150; ++i) {
        const uint32_t number = random() % 8;
        const uint64_t nbytes = 50'000 + 20'000 * number;
        if (has(cache, number, nbytes)) {
          hits.fetch_add(1);
        } else {
          const uint64_t middle = random() % nbytes;
          fill(cache, number, nbytes, 0, middle);
          fill(cache, number, nbytes, middle);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(hits.load(), 0);
}

TEST_F(DiskCacheTest, AKilledWriterLeavesNothingWrong) {
  constexpr uint32_t kCount = 6;
  constexpr uint64_t kNbytes = 100'000;
  std::mt19937 random(1);
  const auto cache = open(400'000);
  for (int turn = 0; turn < 50; ++turn) {
    const pid_t child = ::fork();
    if (child == 0) {
      const auto own = open(400'000);
      for (uint32_t i = 0;; ++i) fill(*own, i % kCount, kNbytes, i * 7919 % kNbytes);
    }
    std::this_thread::sleep_for(std::chrono::microseconds(200 + random() % 6000));
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    for (const fs::path& path : entries()) EXPECT_TRUE(read_page(path)) << path;
    for (uint32_t i = 0; i < kCount; ++i) {
      const auto entry = cache->find(make_key(i));
      if (!entry) continue;
      const std::vector<uint8_t> content = make_content(i, kNbytes);
      for (const CacheExtent& extent : entry->header().extents) {
        std::vector<uint8_t> bytes(extent.end - extent.begin);
        ASSERT_EQ(entry->read(extent.begin, bytes), bytes.size());
        ASSERT_TRUE(
            std::ranges::equal(bytes, ByteView(content).subspan(extent.begin, bytes.size())));
      }
    }
  }
  EXPECT_TRUE(fill(*cache, 0, kNbytes));
  EXPECT_TRUE(has(*cache, 0, kNbytes));
}

// A lock of flock(2) is the open file's: a child has it, too, for as long as it lives.
TEST_F(DiskCacheTest, AForkWhileOneEvictsDoesNotEndEviction) {
  const auto cache = open(200'000);
  std::atomic<bool> is_stopped{false};
  std::thread evicting([&] {
    for (uint32_t i = 0; !is_stopped; ++i) fill(*cache, i, 50'000);
  });
  std::vector<pid_t> children;
  for (int i = 0; i < 40; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    const pid_t child = ::fork();
    if (child == 0) {
      for (;;) ::pause();
    }
    children.push_back(child);
  }
  is_stopped = true;
  evicting.join();
  const Descriptor lock(::open((folder_ + "/v1/lock").c_str(), O_RDWR | O_CLOEXEC));
  EXPECT_EQ(::flock(lock.get(), LOCK_EX | LOCK_NB), 0);
  for (const pid_t child : children) {
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
  }
}

}  // namespace
}  // namespace torchnpy
