// What the tests of archives share: their bytes, and a load with its outcome.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "archive/npz.h"
#include "base/checksum.h"
#include "base/error.h"
#include "deflated.h"
#include "memory_source.h"
#include "npy_bytes.h"
#include "zip_bytes.h"

namespace torchnpy {

inline ZipEntry stored(std::string name, std::string data) {
  ZipEntry entry{std::move(name), std::move(data)};
  entry.crc32 = crc32(as_bytes(entry.data));
  return entry;
}

inline ZipEntry compressed(std::string name, std::string_view data) {
  ZipEntry entry{std::move(name), std::string(as_text(deflated(as_bytes(data))))};
  entry.method = kZipDeflated;
  entry.crc32 = crc32(as_bytes(data));
  entry.nbytes = static_cast<uint32_t>(data.size());
  return entry;
}

// An archive whose last 64 KiB, which the first read brings, hold none of `entries`.
inline std::string before_tail(std::vector<ZipEntry> entries) {
  entries.push_back(stored("filler", std::string(kMinZipTailNbytes, 'f')));
  return zip_bytes(entries);
}

class NpzTest : public ::testing::Test {
 protected:
  using Keys = std::vector<std::string>;

  std::shared_ptr<MemorySource> make_source(std::string object) {
    source_ = std::make_shared<MemorySource>(std::move(object));
    return source_;
  }

  // What a load ends with: "" or the message of its error. The archive is opened anew.
  std::string load(NpzLoadOptions options = {}, Allocator& allocator = heap_allocator()) {
    loader_ = std::make_unique<NpzLoader>(source_, allocator, std::move(options));
    return run();
  }
  std::string load_keys(Keys keys) {
    NpzLoadOptions options;
    options.keys = std::move(keys);
    return load(std::move(options));
  }

  // Opens the archive; read() then reads in it, and reads_ are those that it asked for.
  void open() {
    ASSERT_EQ(load_keys({}), "");
    archive_ = loader_->archive();
    source_->reads.clear();
  }
  std::string read(Keys keys, NpzLoadOptions options = {}) {
    options.keys = std::move(keys);
    loader_ = std::make_unique<NpzLoader>(archive_, heap_allocator(), std::move(options));
    return run();
  }

  std::string run() {
    try {
      load_one(*loader_);
      return "";
    } catch (const Error& error) {
      return error.what();
    }
  }

  NpzEntry& entry(size_t place) { return loader_->entries().at(loader_->places().at(place)); }
  std::string data(size_t place) { return std::string(as_text(entry(place).data.bytes)); }

  // Those asked for so far, as "offset+nbytes" or "last nbytes".
  Keys reads() const {
    Keys reads;
    for (const Range& range : source_->reads) {
      reads.push_back(range.from_end ? fmt::format("last {}", range.nbytes)
                                     : fmt::format("{}+{}", range.offset, range.nbytes));
    }
    return reads;
  }
  const ZipMember& member(std::string_view key) const {
    return archive_->members()[archive_->at(key)];
  }
  // The read of all from the beginning of one member to the end of another.
  std::string from_to(std::string_view first, std::string_view last) const {
    const uint64_t begin = member(first).local_offset;
    return fmt::format("{}+{}", begin, member(last).end_offset - begin);
  }

  std::shared_ptr<MemorySource> source_;
  std::shared_ptr<const NpzArchive> archive_;
  std::unique_ptr<NpzLoader> loader_;
};

}  // namespace torchnpy
