// The part of a cache that is in a directory, shared by the processes of a machine. All state is in
// the files: nothing is scanned at the beginning, and any process may die at any moment.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "base/bytes.h"
#include "base/descriptor.h"
#include "transport/cache_entry.h"

namespace torchnpy {

// An entry that was found, open. Stays whole when it is evicted or replaced meanwhile.
class DiskEntry {
 public:
  const CacheEntryHeader& header() const { return header_; }
  bool covers(uint64_t begin, uint64_t end) const { return header_.covers(begin, end); }
  // Bytes of the object that the entry covers. Fewer than asked for, or none, where the disk fails.
  size_t read(uint64_t offset, MutableBytes room) const;
  // The same as memory of their own: mapped copy-on-write where there are many, else read. Empty
  // where the disk or the system's limits do not allow it.
  std::optional<OwnedBytes> view(uint64_t offset, uint64_t nbytes) const;

 private:
  friend class DiskCache;
  DiskEntry(Descriptor fd, CacheEntryHeader header)
      : fd_(std::move(fd)), header_(std::move(header)) {}
  Descriptor fd_;
  CacheEntryHeader header_;
};

class DiskCache;

// Puts bytes of one read into an entry. Not for two threads at once. What is not committed does
// not count.
class DiskWriter {
 public:
  ~DiskWriter();
  // Bytes that follow those before, the first time from `begin` on. No effect after a failure.
  void write(ByteView bytes);
  // They are there, for all processes, from now on.
  void commit();

 private:
  friend class DiskCache;
  DiskWriter(std::shared_ptr<DiskCache> cache, Descriptor fd, CacheEntryHeader header,
             uint64_t begin)
      : cache_(std::move(cache)), fd_(std::move(fd)), header_(std::move(header)) {
    written_ = {begin, begin, 0};
  }
  bool reserve(uint64_t end);

  const std::shared_ptr<DiskCache> cache_;
  const Descriptor fd_;
  const CacheEntryHeader header_;
  CacheExtent written_;
  uint64_t reserved_nbytes_ = 0;
  bool has_failed_ = false;
};

// No member throws but bad_alloc, or blocks for longer than the disk does: a cache that fails is
// one that has nothing. The user is warned once, of what failed first.
class DiskCache : public std::enable_shared_from_this<DiskCache> {
 public:
  // Opens nothing yet.
  DiskCache(std::string dir, uint64_t max_nbytes);
  ~DiskCache();
  DiskCache(const DiskCache&) = delete;
  DiskCache& operator=(const DiskCache&) = delete;

  // nullptr when there is none. What is broken is removed; an entry of before the machine was
  // started again is compared with its checksums.
  std::unique_ptr<DiskEntry> find(const CacheKey& key);
  // Of an entry of that version, which is made where there is none; another version's is replaced.
  // nullptr when nothing can be written. The object is smaller than `max_nbytes`.
  std::unique_ptr<DiskWriter> write(const CacheKey& key, const CacheVersion& version,
                                    uint64_t begin);
  // The store says that the version is what it has.
  void renew(const CacheKey& key, const CacheVersion& version);
  void drop(const CacheKey& key, const CacheVersion& version);
  // Of all processes, roughly.
  uint64_t used_nbytes() const;
  uint64_t max_nbytes() const { return max_nbytes_; }

 private:
  friend class DiskWriter;
  static constexpr size_t kShards = 256;
  // What each subfolder holds: in a file that the processes share.
  struct Usage {
    std::atomic<int64_t> nbytes[kShards];
  };
  struct Victim;

  std::string path_of(const CacheKey& key) const;
  bool prepare();
  bool map_usage();
  void remove_leftovers();
  Descriptor make_entry(const CacheKey& key, const CacheEntryHeader& header);
  bool publish(const std::string& made, const std::string& path, const CacheEntryHeader& header,
               Descriptor& fd);
  bool reserve(const CacheKey& key, uint64_t nbytes);
  void add_usage(const CacheKey& key, int64_t nbytes);
  void evict(uint64_t most_nbytes, const std::string& kept_path);
  void scan_shard(size_t shard, std::vector<Victim>& found);
  void remove(const std::string& path, const CacheKey& key);
  void fail(const char* action, int error);
  bool may_write();

  const std::string dir_;  // absolute
  const uint64_t max_nbytes_;
  const BootId boot_;
  std::atomic<Usage*> usage_{nullptr};  // mapped; nullptr before prepare()
  std::atomic<bool> has_warned_{false};
  std::atomic<int64_t> no_writes_until_ns_{0};  // after a failure; of the steady clock
};

}  // namespace torchnpy
