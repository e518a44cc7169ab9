// What a client keeps of the objects that it read: in memory, on a disk, or both. Knows nothing of
// HTTP. The rules are in docs/cache.md.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "base/bytes.h"
#include "transport/cache_entry.h"
#include "transport/client.h"
#include "transport/disk_cache.h"
#include "transport/ram_cache.h"

namespace torchnpy {

// Puts bytes of one read into the cache. Not for two threads at once.
class CacheWriter {
 public:
  CacheWriter(std::unique_ptr<RamWriter> ram, std::unique_ptr<DiskWriter> disk)
      : ram_(std::move(ram)), disk_(std::move(disk)) {}
  // Bytes that follow those before.
  void write(ByteView bytes);
  // Without it nothing was written.
  void commit();

 private:
  std::unique_ptr<RamWriter> ram_;    // or nullptr, as
  std::unique_ptr<DiskWriter> disk_;  // is this
};

// Bytes of one version of an object that do not go away.
class CachedBytes {
 public:
  CachedBytes(std::shared_ptr<const RamEntry> ram, std::unique_ptr<DiskEntry> disk)
      : ram_(std::move(ram)), disk_(std::move(disk)) {}
  // Of what was asked for; fewer where the disk fails.
  size_t read(uint64_t offset, MutableBytes room) const;

 private:
  std::shared_ptr<const RamEntry> ram_;  // or nullptr; then there is
  std::unique_ptr<DiskEntry> disk_;
};

// Thread-safe, also across fork().
class Cache {
 public:
  // Opens nothing.
  explicit Cache(const CacheOptions& options);

  struct Known {
    CacheVersion version;
    bool is_fresh = false;  // the store need not be asked
  };
  std::optional<Known> find(const CacheKey& key);
  // The bytes [begin, end), where all of them are here.
  std::optional<CachedBytes> open(const CacheKey& key, const CacheVersion& version, uint64_t begin,
                                  uint64_t end);
  // The same as memory that is the caller's; only from disk.
  std::optional<OwnedBytes> view(const CacheKey& key, const CacheVersion& version, uint64_t begin,
                                 uint64_t end);
  // Begins at byte `begin`. Empty when the object is not to be kept.
  std::optional<CacheWriter> write(const CacheKey& key, const CacheVersion& version,
                                   uint64_t begin);
  // The store says that the version is what it has.
  void renew(const CacheKey& key, const CacheVersion& version);
  void drop(const CacheKey& key, const CacheVersion& version);

  uint64_t ram_nbytes() const { return ram_ ? ram_->used_nbytes() : 0; }
  uint64_t disk_nbytes() const { return disk_ ? disk_->used_nbytes() : 0; }

 private:
  const double fresh_s_;
  std::shared_ptr<RamCache> ram_;    // or nullptr, as
  std::shared_ptr<DiskCache> disk_;  // is this
};

}  // namespace torchnpy
