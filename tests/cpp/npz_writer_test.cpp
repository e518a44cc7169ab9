#include "archive/npz_writer.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "archive/npz.h"
#include "base/error.h"
#include "base/wait.h"
#include "format/deflate.h"
#include "format/zip.h"
#include "format/zip_write.h"
#include "memory_source.h"

namespace {

// Of what allocate_bytes() gives: all of the library's large memory.
std::atomic<size_t> live_nbytes{0};
std::atomic<size_t> peak_nbytes{0};

constexpr size_t kSizeNbytes = 64;  // before each piece of memory

}  // namespace

void* operator new(size_t nbytes, std::align_val_t alignment) {
  void* memory =
      std::aligned_alloc(static_cast<size_t>(alignment), (kSizeNbytes + nbytes + 63) / 64 * 64);
  if (memory == nullptr || static_cast<size_t>(alignment) > kSizeNbytes) throw std::bad_alloc();
  *static_cast<size_t*>(memory) = nbytes;
  const size_t live = live_nbytes += nbytes;
  size_t peak = peak_nbytes;
  while (live > peak && !peak_nbytes.compare_exchange_weak(peak, live)) {
  }
  return static_cast<char*>(memory) + kSizeNbytes;
}

void operator delete(void* memory, std::align_val_t) noexcept {
  if (memory == nullptr) return;
  memory = static_cast<char*>(memory) - kSizeNbytes;
  live_nbytes -= *static_cast<size_t*>(memory);
  std::free(memory);
}

void operator delete(void* memory, size_t, std::align_val_t alignment) noexcept {
  operator delete(memory, alignment);
}

namespace torchnpy {
namespace {

// Keeps what a test wants of what it gets.
class MemoryTarget final : public Target {
 public:
  size_t kept_nbytes = std::string::npos;  // at the front, and as much at the end
  uint64_t fails_at = UINT64_MAX;
  std::string front;
  std::string tail;
  uint64_t nbytes = 0;
  int write_count = 0;
  bool is_finished = false;
  const void* last_owner = nullptr;

  const std::string& name() const override { return name_; }
  void write(SharedBytes bytes) override {
    EXPECT_FALSE(is_finished);
    ++write_count;
    nbytes += bytes.bytes.size();
    if (nbytes > fails_at) throw TransportError("a.npz: no space left on the device");
    if (bytes.owner) last_owner = bytes.owner.get();
    const std::string_view text = as_text(bytes.bytes);
    const std::string_view first =
        text.substr(0, kept_nbytes - std::min(kept_nbytes, front.size()));
    front += first;
    tail += text.substr(std::max(first.size(), text.size() - std::min(text.size(), kept_nbytes)));
    if (tail.size() > kept_nbytes) tail.erase(0, tail.size() - kept_nbytes);
  }
  void finish() override { is_finished = true; }

 private:
  const std::string name_ = "a.npz";
};

ArrayView view_of(const std::shared_ptr<std::string>& bytes) {
  ArrayView array;
  array.descr = "'|u1'";
  array.itemsize = 1;
  array.shape = {bytes->size()};
  array.strides = {1};
  array.data = reinterpret_cast<const uint8_t*>(bytes->data());
  array.owner = bytes;
  return array;
}

// Bytes that deflate to about a half, each time the same.
std::shared_ptr<std::string> text(size_t nbytes) {
  constexpr size_t kPeriodNbytes = 65521;  // beyond what DEFLATE looks back
  static const std::string period = [] {
    std::string bytes(kPeriodNbytes, 0);
    std::minstd_rand random(7);
    for (char& byte : bytes) byte = static_cast<char>(random() >> 8 & 0xF);
    return bytes;
  }();
  auto bytes = std::make_shared<std::string>();
  bytes->reserve(nbytes);
  while (bytes->size() < nbytes) bytes->append(period, 0, nbytes - bytes->size());
  return bytes;
}

// Every other byte of the array: they do not lie together.
ArrayView every_other(const std::shared_ptr<std::string>& bytes) {
  ArrayView array = view_of(bytes);
  array.shape = {bytes->size() / 2};
  array.strides = {2};
  return array;
}

std::string every_other(const std::string& bytes) {
  std::string taken(bytes.size() / 2, 0);
  const char* from = bytes.data();
  for (char& byte : taken) byte = *std::exchange(from, from + 2);
  return taken;
}

struct Loaded {
  std::vector<NpzEntry> entries;
  std::shared_ptr<const NpzArchive> archive;
};

// With every check that a reader makes.
Loaded load(const std::string& archive, bool offers_view = true) {
  auto source = std::make_shared<MemorySource>(archive);
  source->offers_view = offers_view;
  NpzLoader loader(source, heap_allocator(), {});
  load_one(loader);
  return {std::move(loader.entries()), loader.archive()};
}

std::string data(const NpzEntry& entry) { return std::string(as_text(entry.data.bytes)); }

class NpzWriterTest : public ::testing::TestWithParam<int> {
 protected:
  static NpzWriterOptions options(int threads = 4) {
    return {.level = GetParam(), .threads = threads};
  }

  static void write_samples(Target& target, int threads) {
    NpzWriter writer(target, options(threads));
    writer.add("small", view_of(text(10)));
    writer.add("empty", view_of(text(0)));
    writer.add("sub/large", view_of(text(9 << 20)));
    writer.add("scattered", every_other(text(3'000'000)));
    writer.add("scattered large", every_other(text(17 << 20)));
    writer.add("n\xc3\xa4me", view_of(text(3 << 20)));
    writer.finish();
  }
};

TEST_P(NpzWriterTest, WhatIsWrittenIsReadBack) {
  MemoryTarget target;
  write_samples(target, 4);
  EXPECT_TRUE(target.is_finished);
  for (const bool offers_view : {true, false}) {
    const Loaded loaded = load(target.front, offers_view);
    EXPECT_EQ(loaded.archive->keys(),
              (std::vector<std::string>{"small", "empty", "sub/large", "scattered",
                                        "scattered large", "n\xc3\xa4me"}));
    EXPECT_EQ(data(loaded.entries[0]), *text(10));
    EXPECT_EQ(data(loaded.entries[1]), "");
    EXPECT_TRUE(data(loaded.entries[2]) == *text(9 << 20));
    EXPECT_TRUE(data(loaded.entries[3]) == every_other(*text(3'000'000)));
    EXPECT_TRUE(data(loaded.entries[4]) == every_other(*text(17 << 20)));
    EXPECT_TRUE(data(loaded.entries[5]) == *text(3 << 20));
  }
}

TEST_P(NpzWriterTest, AnyNumberOfThreadsWritesTheSameBytes) {
  MemoryTarget one;
  MemoryTarget many;
  write_samples(one, 1);
  write_samples(many, 8);
  EXPECT_TRUE(one.front == many.front);
}

TEST_P(NpzWriterTest, MemoryIsBounded) {
  // The same MiB a hundred times.
  ArrayView array = view_of(text(1 << 20));
  array.shape = {100, 1 << 20};
  array.strides = {0, 1};
  MemoryTarget target;
  target.kept_nbytes = 1000;
  const size_t before = live_nbytes;
  peak_nbytes = before;
  NpzWriter writer(target, options(4));
  writer.add("x", array);
  EXPECT_GT(target.nbytes, 0u);  // it goes on while more is made
  writer.finish();
  EXPECT_LT(peak_nbytes - before, size_t{48} << 20);
}

TEST_P(NpzWriterTest, TheTargetsErrorEndsItAndNoThreadReadsOn) {
  for (const uint64_t nbytes : {0, 1000, 5'000'000}) {
    MemoryTarget target;
    target.fails_at = nbytes;
    std::string message = "no error";
    {
      auto bytes = text(12 << 20);
      NpzWriter writer(target, options());
      try {
        for (int i = 0; i < 4; ++i) writer.add(std::to_string(i), every_other(bytes));
        writer.finish();
      } catch (const TransportError& error) {
        message = error.what();
      }
    }
    EXPECT_EQ(message, "a.npz: no space left on the device");
    EXPECT_FALSE(target.is_finished);
  }
}

TEST_P(NpzWriterTest, InterruptEndsIt) {
  const std::atomic<bool> wanted{true};
  const StopScope scope(wanted);
  auto byte = std::make_shared<std::string>("x");
  ArrayView array = view_of(byte);
  array.shape = {uint64_t{1} << 40};
  array.strides = {0};
  MemoryTarget target;
  target.kept_nbytes = 1000;
  NpzWriter writer(target, options(2));
  EXPECT_THROW(writer.add("x", array), InterruptedError);
}

TEST_P(NpzWriterTest, ManySmallMembersTakeFewWrites) {
  MemoryTarget target;
  NpzWriter writer(target, options());
  constexpr int kCount = 66'000;  // more than 16 bits count
  auto bytes = text(8);
  for (int i = 0; i < kCount; ++i) writer.add(std::to_string(i), view_of(bytes));
  writer.finish();
  EXPECT_LT(target.write_count, 500);
  Loaded loaded = load(target.front);
  ASSERT_EQ(loaded.entries.size(), size_t{kCount});
  for (const NpzEntry& entry : loaded.entries) EXPECT_EQ(data(entry), *bytes);
}

TEST_P(NpzWriterTest, ArchiveWithoutMembersIsReadBack) {
  MemoryTarget target;
  NpzWriter writer(target, options());
  writer.finish();
  EXPECT_EQ(target.nbytes, 22u);
  EXPECT_TRUE(load(target.front).entries.empty());
}

INSTANTIATE_TEST_SUITE_P(Levels, NpzWriterTest, ::testing::Values(0, kDefaultDeflateLevel));

TEST(StoredNpzTest, ArraysLieAtMultiplesOf64) {
  MemoryTarget target;
  NpzWriter writer(target, {});
  for (size_t nbytes = 0; nbytes < 130; ++nbytes) {
    writer.add(std::string(nbytes + 1, 'n'), view_of(text(nbytes)));
    writer.add(fmt::format("{} scattered", nbytes), every_other(text(2 * nbytes)));
  }
  writer.finish();
  const Loaded loaded = load(target.front);
  for (const NpzEntry& entry : loaded.entries) EXPECT_TRUE(entry.is_view);
  for (const ZipMember& member : loaded.archive->members()) {
    EXPECT_EQ(member.flags & kZipHasDescriptor, 0);
    const uint64_t npy_offset =
        member.local_offset +
        find_zip_data(as_bytes(target.front).subspan(member.local_offset), member).value();
    const NpyHeader header = parse_npy_header(as_bytes(target.front).subspan(npy_offset));
    EXPECT_EQ((npy_offset + header.data_offset) % 64, 0u);
  }
}

TEST(StoredNpzTest, WhatLiesTogetherIsNotCopied) {
  const auto bytes = text(1 << 20);
  MemoryTarget target;
  NpzWriter writer(target, {});
  writer.add("x", view_of(bytes));
  writer.finish();
  EXPECT_EQ(target.last_owner, bytes.get());
}

// Its local header must be exact: readers of streams know the length from nowhere else.
TEST(StoredNpzTest, LargeScatteredMemberHasItsSizeAndChecksumBeforeItsData) {
  MemoryTarget target;
  NpzWriter writer(target, {});
  writer.add("x", every_other(text(17 << 20)));
  writer.finish();
  const Loaded loaded = load(target.front);
  const ZipMember& member = loaded.archive->members()[0];
  Cursor cursor(as_bytes(target.front).subspan(14));
  EXPECT_EQ(cursor.read_u32(), member.crc32);
  EXPECT_EQ(cursor.read_u32(), (17u << 19) + 128);
}

TEST(DeflatedNpzTest, OnlyALargeMemberHasADescriptor) {
  MemoryTarget target;
  NpzWriter writer(target, {.level = 1});
  writer.add("held", view_of(text((8 << 20) - 128)));
  writer.add("streamed", view_of(text((8 << 20) - 127)));
  writer.finish();
  const Loaded loaded = load(target.front);
  EXPECT_EQ(loaded.archive->members()[0].flags, 0);
  EXPECT_EQ(loaded.archive->members()[1].flags, kZipHasDescriptor);
}

class LargeNpzTest : public ::testing::TestWithParam<int> {};

// Zeros that take no memory.
ArrayView zeros(uint64_t nbytes) {
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* memory = mmap(nullptr, nbytes, PROT_READ, kFlags, -1, 0);
  EXPECT_NE(memory, MAP_FAILED);
  madvise(memory, nbytes, MADV_HUGEPAGE);
  ArrayView array;
  array.descr = "'|u1'";
  array.itemsize = 1;
  array.shape = {nbytes};
  array.strides = {1};
  array.data = static_cast<const uint8_t*>(memory);
  array.owner = std::shared_ptr<void>(memory, [nbytes](void* p) { munmap(p, nbytes); });
  return array;
}

TEST_P(LargeNpzTest, MembersOf4GiBAndWhatFollowsThemAreFound) {
  constexpr uint64_t kNbytes = (uint64_t{1} << 32) + 5;
  MemoryTarget target;
  target.kept_nbytes = kMinZipTailNbytes;
  NpzWriter writer(target, {.level = GetParam()});
  writer.add("large", zeros(kNbytes));
  writer.add("behind", view_of(text(100)));
  writer.finish();

  const auto end = std::get<ZipEnd>(find_zip_end(as_bytes(target.tail), target.nbytes, {}));
  const uint64_t tail_offset = target.nbytes - target.tail.size();
  const ByteView directory = as_bytes(target.tail).subspan(end.directory_offset - tail_offset);
  const auto members = parse_zip_directory(directory.first(end.directory_nbytes), end, {});
  ASSERT_EQ(members.size(), 2u);
  EXPECT_EQ(members[0].nbytes, kNbytes + 128);
  const ByteView header = as_bytes(target.front);
  check_zip_local_header(header.first(find_zip_data(header, members[0]).value()), members[0]);
  const ByteView behind = as_bytes(target.tail).subspan(members[1].local_offset - tail_offset);
  check_zip_local_header(behind.first(find_zip_data(behind, members[1]).value()), members[1]);
  if (GetParam() != 0) return;
  EXPECT_GT(members[1].local_offset, kNbytes);
}

INSTANTIATE_TEST_SUITE_P(Levels, LargeNpzTest, ::testing::Values(0, kDefaultDeflateLevel));

// The message of the ArgumentError for that name.
std::string error_of_name(const std::string& name) {
  MemoryTarget target;
  NpzWriter writer(target, {});
  try {
    writer.add("taken", view_of(text(1)));
    writer.add(name, view_of(text(1)));
  } catch (const ArgumentError& error) {
    return error.what();
  }
  return "";
}

TEST(NpzNamesTest, OddOnesAreNamesAndNoPaths) {
  for (const char* name : {"../x", "/x", "a/b", "a\\b", "x.npy", " ", "\n", "\xe2\x82\xac"}) {
    EXPECT_EQ(error_of_name(name), "") << name;
  }
  EXPECT_EQ(error_of_name(std::string(65531, 'n')), "");
}

TEST(NpzNamesTest, ThoseThatNoArchiveCanHaveAreRefused) {
  EXPECT_EQ(error_of_name(""),
            "a.npz: expected a name that is not empty but found ``; give the "
            "array another");
  EXPECT_EQ(error_of_name(std::string("a\0b", 3)),
            "a.npz: expected a name without NUL but found `a\\x00b`; give the array another");
  EXPECT_EQ(error_of_name("\xff"),
            "a.npz: expected a name in UTF-8 but found `\\xff`; give the array another");
  EXPECT_EQ(error_of_name("taken"),
            "a.npz: expected names that differ but found taken twice; rename one");
  EXPECT_EQ(error_of_name(std::string(65532, 'n')).substr(0, 79),
            "a.npz: expected a name of at most 65531 bytes but found one of 65532; shorten n");
}

TEST(NpzLevelTest, OutsideOf0To9IsRefused) {
  MemoryTarget target;
  for (const int level : {-1, 10}) {
    try {
      NpzWriter writer(target, {.level = level});
      FAIL();
    } catch (const ArgumentError& error) {
      EXPECT_EQ(std::string(error.what()),
                fmt::format("level: expected 0 to 9 but found {}; the default is 2", level));
    }
  }
}

}  // namespace
}  // namespace torchnpy
