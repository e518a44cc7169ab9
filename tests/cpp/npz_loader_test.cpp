// What NpzLoader makes of an archive: members, keys, errors, and who does the work.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "npz_testing.h"

namespace torchnpy {
namespace {

using NpzLoaderTest = NpzTest;

class CountingAllocator final : public Allocator {
 public:
  OwnedBytes allocate(uint64_t nbytes) override {
    sizes.push_back(nbytes);
    return allocate_bytes(nbytes);
  }
  std::vector<uint64_t> sizes;
};

TEST_F(NpzLoaderTest, StoredMembersOfAViewAreViews) {
  const std::string npy = make_npy(10, 100);
  make_source(zip_bytes({stored("a.npy", npy), compressed("b.npy", npy)}))->offers_view = true;
  CountingAllocator allocator;
  EXPECT_EQ(load({}, allocator), "");
  EXPECT_EQ(entry(0).data.bytes.data(), source_->view(0, 1)->bytes.data() + 30 + 5 + kHeaderNbytes);
  EXPECT_TRUE(entry(0).is_view);
  EXPECT_FALSE(entry(1).is_view);
  EXPECT_EQ(data(0), npy.substr(kHeaderNbytes));
  EXPECT_EQ(data(1), npy.substr(kHeaderNbytes));
  EXPECT_EQ(allocator.sizes, std::vector<uint64_t>{npy.size()});
  EXPECT_TRUE(source_->reads.empty());
}

TEST_F(NpzLoaderTest, MembersThatAreReadAreTheAllocators) {
  const std::string npy = make_npy(10, 100);
  CountingAllocator allocator;
  for (const std::string& object :
       {zip_bytes({stored("a.npy", npy), compressed("b.npy", npy)}),
        before_tail({stored("a.npy", npy), compressed("b.npy", npy)})}) {
    allocator.sizes.clear();
    make_source(object);
    NpzLoadOptions options;
    options.keys = {"a", "b"};
    EXPECT_EQ(load(options, allocator), "");
    EXPECT_FALSE(entry(0).is_view);
    EXPECT_EQ(allocator.sizes, std::vector<uint64_t>(2, npy.size()));
  }
}

TEST_F(NpzLoaderTest, HeaderOfAViewTakesNoMemory) {
  make_source(zip_bytes({stored("a.npy", make_npy(10, 100)), compressed("b.npy", make_npy(2, 3))}));
  source_->offers_view = true;
  CountingAllocator allocator;
  NpzLoadOptions options;
  options.header_only = true;
  EXPECT_EQ(load(options, allocator), "");
  EXPECT_EQ(entry(0).header.value().count, 1000U);
  EXPECT_EQ(entry(1).header.value().count, 6U);
  EXPECT_TRUE(allocator.sizes.empty());
}

TEST_F(NpzLoaderTest, ContentTellsWhatIsAnArray) {
  make_source(zip_bytes({stored("a.npy", make_npy(2, 3)), compressed("noext", make_npy(2, 3)),
                         stored("readme.txt", "hello"), stored("dir/", "")}));
  EXPECT_EQ(load(), "");
  EXPECT_TRUE(entry(0).header);
  EXPECT_TRUE(entry(1).header);
  EXPECT_FALSE(entry(2).header);
  EXPECT_EQ(data(2), "hello");
  EXPECT_FALSE(entry(3).header);
  EXPECT_EQ(data(3), "");
}

TEST_F(NpzLoaderTest, EmptyArchiveHasNoEntries) {
  for (const bool offers_view : {false, true}) {
    make_source(zip_bytes({}))->offers_view = offers_view;
    EXPECT_EQ(load(), "");
    EXPECT_TRUE(loader_->entries().empty());
    EXPECT_TRUE(loader_->archive()->keys().empty());
  }
}

TEST_F(NpzLoaderTest, EmptyArraysHaveNoBytes) {
  for (const bool offers_view : {false, true}) {
    make_source(zip_bytes({stored("a.npy", make_npy(0, 7)), compressed("b.npy", make_npy(7, 0))}));
    source_->offers_view = offers_view;
    EXPECT_EQ(load(), "");
    EXPECT_EQ(entry(0).header.value().shape, (std::vector<uint64_t>{0, 7}));
    EXPECT_EQ(data(0) + data(1), "");
  }
}

TEST_F(NpzLoaderTest, KeysOfOneMemberShareItsEntry) {
  make_source(zip_bytes({stored("a.npy", make_npy(1, 2)), stored("b.npy", make_npy(2, 3))}));
  EXPECT_EQ(load_keys({"b", "a", "b.npy", "a.npy"}), "");
  EXPECT_EQ(loader_->entries().size(), 2U);
  EXPECT_EQ(loader_->places(), (std::vector<size_t>{0, 1, 0, 1}));
  EXPECT_EQ(entry(0).member, 1U);
  EXPECT_EQ(entry(0).header.value().count, 6U);
}

TEST_F(NpzLoaderTest, KeysLackTheSuffixUnlessAnotherMemberHasThatName) {
  make_source(zip_bytes({stored("a.npy", "1"), stored("b", "2"), stored("c.npy", "3"),
                         stored("c", "4"), stored(".npy", "5"), stored("d.npy.npy", "6")}));
  open();
  EXPECT_EQ(archive_->keys(), (Keys{"a", "b", "c.npy", "c", "", "d.npy"}));
  struct Row {
    std::string key;
    std::optional<size_t> member;
  };
  for (const Row& row : {Row{"a", 0},
                         {"a.npy", 0},
                         {"b", 1},
                         {"b.npy", std::nullopt},
                         {"c", 3},
                         {"c.npy", 2},
                         {"", 4},
                         {"d.npy", 5},
                         {"d", std::nullopt},
                         {"A", std::nullopt}}) {
    EXPECT_EQ(archive_->find(row.key), row.member) << row.key;
  }
}

TEST_F(NpzLoaderTest, LastOfMembersWithOneNameCounts) {
  make_source(zip_bytes({stored("a", "first"), stored("b", "other"), stored("a", "last!")}));
  EXPECT_EQ(load_keys({"a"}), "");
  EXPECT_EQ(data(0), "last!");
  EXPECT_EQ(loader_->archive()->members().size(), 2U);
}

TEST_F(NpzLoaderTest, MissingKeyNamesTheMembers) {
  make_source(zip_bytes({stored("a.npy", "1"), stored("b", "2")}));
  EXPECT_EQ(load_keys({"a", "c"}), "memory: expected one of its 2 members (a, b) but found 'c'");
  NpzLoadOptions options;
  options.keys = {"c"};
  NpzLoader loader(source_, heap_allocator(), options);
  EXPECT_THROW(load_one(loader), KeyError);

  std::vector<ZipEntry> many;
  for (int i = 0; i < 1000; ++i) many.push_back(stored(fmt::format("member{}", i), ""));
  make_source(zip_bytes(many));
  const std::string error = load_keys({"c"});
  EXPECT_TRUE(error.starts_with("memory: expected one of its 1000 members (member0, member1, "));
  EXPECT_TRUE(error.ends_with(", ...) but found 'c'"));
  EXPECT_LT(error.size(), 300U);
}

TEST_F(NpzLoaderTest, CorruptDataIsFoundByItsChecksum) {
  const std::string npy = make_npy(10, 100);
  for (ZipEntry bad : {stored("a.npy", npy), compressed("a.npy", npy)}) {
    const uint32_t found = bad.crc32;
    bad.crc32 = 0x1234ABCD;
    for (const bool offers_view : {false, true}) {
      make_source(zip_bytes({bad}))->offers_view = offers_view;
      EXPECT_EQ(load(), fmt::format("memory[a.npy]: expected CRC-32 0x1234abcd but found 0x{:08x}; "
                                    "the data is corrupt",
                                    found));
      NpzLoadOptions options;
      options.verify = false;
      EXPECT_EQ(load(options), "");
      EXPECT_EQ(data(0), npy.substr(kHeaderNbytes));
    }
  }
}

TEST_F(NpzLoaderTest, ViewIsVerifiedOnce) {
  make_source(zip_bytes({stored("a.npy", make_npy(10, 100)), stored("b.npy", make_npy(1, 2))}));
  source_->offers_view = true;
  open();
  NpzLoadOptions unverified;
  unverified.verify = false;
  EXPECT_EQ(read({"a"}, unverified), "");
  EXPECT_FALSE(archive_->is_verified(0));
  EXPECT_EQ(read({"a"}), "");
  EXPECT_TRUE(archive_->is_verified(0));
  EXPECT_FALSE(archive_->is_verified(1));
  entry(0).data.bytes[0] ^= 1;
  EXPECT_EQ(read({"a"}), "");
  EXPECT_NE(load(), "");
}

TEST_F(NpzLoaderTest, WhatIsCopiedIsVerifiedEachTime) {
  ZipEntry bad = stored("a.npy", make_npy(10, 100));
  make_source(zip_bytes({bad}));
  open();
  EXPECT_EQ(read({"a"}), "");
  EXPECT_FALSE(archive_->is_verified(0));
}

TEST_F(NpzLoaderTest, ErrorsNameTheObjectAndTheMember) {
  const std::string npy = make_npy(10, 10);
  ZipEntry encrypted = stored("m.npy", npy);
  encrypted.flags = 1;
  ZipEntry method = stored("m.npy", npy);
  method.method = 14;
  ZipEntry two_sizes = stored("m.npy", npy);
  two_sizes.nbytes = 7;
  ZipEntry broken = compressed("m.npy", npy);
  broken.data.assign(broken.data.size(), '\xFF');
  ZipEntry too_long = compressed("m.npy", npy);
  too_long.nbytes = *too_long.nbytes + 1;
  ZipEntry expanding = compressed("m.npy", std::string(100, 'e'));
  expanding.nbytes = 1 << 20;
  const std::string objects =
      npy_bytes("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", "pickled");
  const std::string bits =
      npy_bytes("{'descr': '|V2', 'fortran_order': False, 'shape': (1,), }", "ab");
  for (const ZipEntry& bad :
       {encrypted, method, two_sizes, broken, too_long, expanding, stored("m.npy", "no array"),
        stored("m.npy", ""), stored("m.npy", npy.substr(0, 200)), stored("m.npy", objects),
        compressed("m", objects), stored("m.npy", bits)}) {
    const std::string prefix = fmt::format("memory[{}]: expected ", bad.name);
    for (const std::string& object :
         {zip_bytes({stored("a.npy", npy), bad}), before_tail({stored("a.npy", npy), bad})}) {
      for (const bool offers_view : {false, true}) {
        make_source(object)->offers_view = offers_view;
        EXPECT_TRUE(load().starts_with(prefix)) << load();
        EXPECT_EQ(load_keys({"a"}), "");
      }
    }
  }
}

TEST_F(NpzLoaderTest, BrokenLocalHeaderNamesTheMember) {
  std::string object = before_tail({stored("a.npy", make_npy(10, 10))});
  object[0] = 'X';
  make_source(object);
  EXPECT_TRUE(load().starts_with("memory[a.npy]: expected the local header's ")) << load();
}

TEST_F(NpzLoaderTest, VoidIsReadForThoseWhoKnowItsBits) {
  make_source(zip_bytes({stored(
      "a.npy", npy_bytes("{'descr': '|V2', 'fortran_order': False, 'shape': (1,), }", "ab"))}));
  NpzLoadOptions options;
  options.allow_void = true;
  EXPECT_EQ(load(options), "");
  EXPECT_EQ(data(0), "ab");
}

TEST_F(NpzLoaderTest, NoArchiveNamesTheObject) {
  for (const bool offers_view : {false, true}) {
    for (const std::string& object : {std::string(), std::string(100'000, 'x'), make_npy(3, 3)}) {
      make_source(object)->offers_view = offers_view;
      EXPECT_TRUE(load().starts_with("memory: expected a ZIP archive")) << load();
    }
  }
}

TEST_F(NpzLoaderTest, LimitsHold) {
  make_source(zip_bytes({compressed("a", std::string(5000, 'a')), stored("b", "b")}));
  NpzLoadOptions options;
  options.limits.member_count = 1;
  EXPECT_NE(load(options).find("limits.members"), std::string::npos);
  options.limits = {.total_nbytes = 4999};
  EXPECT_NE(load(options).find("limits.total_nbytes"), std::string::npos);
  options.limits = {.expansion = 10};
  EXPECT_NE(load(options).find("limits.expansion"), std::string::npos);
  options.keys = {"b"};
  EXPECT_EQ(load(options), "");
}

TEST_F(NpzLoaderTest, WhatTheAllocatorThrowsEndsTheLoad) {
  class Refuser final : public Allocator {
   public:
    explicit Refuser(std::function<void()> refuse) : refuse_(std::move(refuse)) {}
    OwnedBytes allocate(uint64_t) override {
      refuse_();
      return {};
    }

   private:
    std::function<void()> refuse_;
  };
  Refuser no_memory([] { throw std::bad_alloc(); });
  Refuser wrong([] { throw ArgumentError("expected a batch of equal shapes but found others"); });
  const std::string data = std::string(500'000, 'x');
  for (const ZipEntry& entry : {stored("a", data), compressed("a", data)}) {
    for (const std::string& object : {zip_bytes({entry}), before_tail({entry})}) {
      make_source(object);
      NpzLoadOptions options;
      options.keys = {"a"};
      EXPECT_EQ(load(options, no_memory),
                "memory[a]: expected a member that fits into memory but found one of 500000 bytes "
                "(std::bad_alloc)");
      EXPECT_EQ(load(options, wrong),
                "memory[a]: expected a batch of equal shapes but found others");
    }
  }
}

// Keeps the work until it is told to do it.
class HeldWorkers final : public Workers {
 public:
  void run(std::function<void()> work, uint64_t cost_ns) override {
    held.push_back(std::move(work));
    costs_ns.push_back(cost_ns);
  }
  std::vector<std::function<void()>> held;
  std::vector<uint64_t> costs_ns;
};

using DoAll = std::function<void(std::vector<std::function<void()>>)>;

// Runs a loader without the driver.
void run_with(Loader& loader, HeldWorkers& workers, const DoAll& do_all) {
  loader.attach(workers);
  for (;;) {
    const std::vector<Read> reads = loader.next();
    if (reads.empty() && workers.held.empty()) return;
    for (const Read& read : reads) loader.source().start(read.range, *read.sink);
    do_all(std::exchange(workers.held, {}));
  }
}

void do_in_order(const std::vector<std::function<void()>>& all) {
  for (const auto& work : all) work();
}

class NpzWork : public NpzTest {
 protected:
  // The costs of the work that was given away.
  std::vector<uint64_t> costs_of(const ZipEntry& entry, bool verify = true) {
    NpzLoadOptions options;
    options.verify = verify;
    NpzLoader loader(make_source(zip_bytes({entry})), heap_allocator(), options);
    HeldWorkers workers;
    run_with(loader, workers, do_in_order);
    EXPECT_EQ(loader.entries().size(), 1U);
    return workers.costs_ns;
  }
};

TEST_F(NpzWork, OnlyWhatIsWorthItIsGivenAway) {
  const std::string large(2 << 20, 'x');
  const std::string small(1000, 'x');
  EXPECT_EQ(costs_of(compressed("a", large)), std::vector<uint64_t>{2 * large.size()});
  EXPECT_EQ(costs_of(stored("a", large)), std::vector<uint64_t>{large.size() / 10});
  EXPECT_EQ(costs_of(stored("a", large), false), std::vector<uint64_t>{});
  EXPECT_EQ(costs_of(compressed("a", small)), std::vector<uint64_t>{});
  EXPECT_EQ(costs_of(stored("a", small)), std::vector<uint64_t>{});
}

TEST_F(NpzWork, HeadersAreNoWork) {
  NpzLoadOptions options;
  options.header_only = true;
  NpzLoader loader(make_source(zip_bytes({compressed("a.npy", make_npy(10'000, 100))})),
                   heap_allocator(), options);
  HeldWorkers workers;
  run_with(loader, workers, do_in_order);
  EXPECT_TRUE(workers.costs_ns.empty());
}

TEST_F(NpzWork, ResultsDoNotDependOnWhoWorks) {
  std::vector<ZipEntry> entries;
  std::vector<std::string> expected;
  for (size_t i = 0; i < 20; ++i) {
    const std::string npy = make_npy(1000 * (i + 1), 17);
    const std::string name = fmt::format("{}.npy", i);
    entries.push_back(i % 3 == 0 ? stored(name, npy) : compressed(name, npy));
    expected.push_back(npy.substr(npy.size() - 17'000 * (i + 1)));
  }
  const std::string object = zip_bytes(entries);
  const auto expect_all = [&](NpzLoader& loader) {
    ASSERT_EQ(loader.entries().size(), expected.size());
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_EQ(as_text(loader.entries()[i].data.bytes), expected[i]);
      EXPECT_EQ(loader.entries()[i].member, i);
    }
  };
  const auto do_backwards = [](std::vector<std::function<void()>> all) {
    std::ranges::reverse(all);
    do_in_order(all);
  };
  const auto do_on_threads = [](std::vector<std::function<void()>> all) {
    std::vector<std::thread> threads;
    for (auto& work : all) threads.emplace_back(std::move(work));
    for (std::thread& thread : threads) thread.join();
  };
  for (const bool offers_view : {false, true}) {
    for (const DoAll& do_all : {DoAll(do_in_order), DoAll(do_backwards), DoAll(do_on_threads)}) {
      NpzLoader loader(make_source(object), heap_allocator(), {});
      source_->offers_view = offers_view;
      HeldWorkers workers;
      run_with(loader, workers, do_all);
      EXPECT_GT(workers.costs_ns.size(), 10U);
      expect_all(loader);
    }
    for (const int threads : {1, 2, kMaxThreads}) {
      NpzLoader loader(make_source(object), heap_allocator(), {});
      source_->offers_view = offers_view;
      load_one(loader, {.threads = threads});
      expect_all(loader);
    }
  }
}

TEST_F(NpzWork, OneArchiveIsReadByManyThreads) {
  const std::string npy = make_npy(10'000, 100);
  make_source(zip_bytes({stored("a.npy", npy), compressed("b.npy", npy)}))->offers_view = true;
  open();
  std::vector<std::thread> threads;
  std::vector<std::string> got(4);
  for (std::string& mine : got) {
    threads.emplace_back([&] {
      NpzLoader loader(archive_, heap_allocator(), {});
      load_one(loader);
      for (const NpzEntry& entry : loader.entries()) mine += as_text(entry.data.bytes);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::string& mine : got) {
    EXPECT_EQ(mine, npy.substr(kHeaderNbytes) + npy.substr(kHeaderNbytes));
  }
}

}  // namespace
}  // namespace torchnpy
