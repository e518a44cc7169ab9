// The part of a cache that is in this process's memory. A forked child reads on in its copy.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <vector>

#include "base/bytes.h"
#include "transport/cache_entry.h"

namespace torchnpy {

// Stays whole, for those who hold it, when it is evicted.
class RamEntry {
 public:
  const CacheVersion& version() const { return version_; }
  int64_t checked_ns() const;  // as CacheEntryHeader
  bool covers(uint64_t begin, uint64_t end) const;
  // Of a covered range. Nobody writes to it any more.
  ByteView bytes(uint64_t begin, uint64_t end) const {
    return ByteView(memory_.bytes).subspan(begin, end - begin);
  }

 private:
  friend class RamCache;
  friend class RamWriter;
  explicit RamEntry(const CacheVersion& version);

  const CacheVersion version_;
  const OwnedBytes memory_;  // of the whole object; the system gives pages as they are written
  // Under process_mutex(), as is all that follows: disjoint ranges, by where they begin.
  std::map<uint64_t, uint64_t> filled_;
  std::map<uint64_t, uint64_t> claimed_;  // filled, or a writer's
  uint64_t fork_count_;                   // of the claims: an ancestor's writers do not exist here
  int64_t checked_ns_ = 0;
  uint64_t charged_nbytes_ = 0;
};

class RamCache;

// Puts bytes of one read into an entry: those that no other has, or puts there meanwhile. Not for
// two threads at once. What is not committed does not count.
class RamWriter {
 public:
  ~RamWriter();
  // Bytes that follow those before, the first time from `begin` on.
  void write(ByteView bytes);
  void commit();

 private:
  friend class RamCache;
  RamWriter(std::shared_ptr<RamCache> cache, std::shared_ptr<RamEntry> entry, CacheKey key,
            uint64_t begin, int64_t checked_ns);
  struct Claim {
    uint64_t begin;
    uint64_t end;
  };

  const std::shared_ptr<RamCache> cache_;
  const std::shared_ptr<RamEntry> entry_;
  const CacheKey key_;
  const int64_t checked_ns_;
  const uint64_t fork_count_;
  uint64_t offset_;
  std::vector<Claim> claims_;  // sorted; what was written to
};

// Least recently used entries go. Thread-safe.
class RamCache : public std::enable_shared_from_this<RamCache> {
 public:
  explicit RamCache(uint64_t max_nbytes) : max_nbytes_(max_nbytes) {}

  // nullptr when there is none.
  std::shared_ptr<const RamEntry> find(const CacheKey& key);
  // Of an entry of that version, which is made where there is none; another version's is replaced.
  // nullptr when there is no memory. The object is not larger than `max_nbytes`.
  std::unique_ptr<RamWriter> write(const CacheKey& key, const CacheVersion& version,
                                   uint64_t begin);
  void renew(const CacheKey& key, const CacheVersion& version);
  void drop(const CacheKey& key, const CacheVersion& version);
  uint64_t used_nbytes() const;
  uint64_t max_nbytes() const { return max_nbytes_; }

 private:
  friend class RamWriter;
  struct Item {
    CacheKey key;
    std::shared_ptr<RamEntry> entry;
  };
  using Items = std::list<Item>;

  // With process_mutex() held. What is taken out goes to `removed`, to be freed without it.
  void charge(const CacheKey& key, RamEntry& entry, uint64_t nbytes, Items& removed);
  void take_out(Items::iterator item, Items& removed);

  const uint64_t max_nbytes_;
  Items items_;  // the one used last is in front
  std::map<CacheKey, Items::iterator> places_;
  uint64_t used_nbytes_ = 0;
};

}  // namespace torchnpy
