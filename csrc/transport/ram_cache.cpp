#include "transport/ram_cache.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <mutex>
#include <new>
#include <optional>
#include <utility>

#include "base/fork.h"
#include "transport/file.h"

namespace torchnpy {
namespace {

// What an entry takes beside its bytes, roughly.
constexpr uint64_t kOverheadNbytes = 512;

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

OwnedBytes allocate_object(uint64_t nbytes) {
  if (nbytes < kMinMappedNbytes) return allocate_bytes(nbytes);
  void* const data = ::mmap(nullptr, nbytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) throw std::bad_alloc();
  return {MutableBytes(static_cast<uint8_t*>(data), nbytes),
          std::shared_ptr<void>(data, [nbytes](void* p) { ::munmap(p, nbytes); })};
}

using Ranges = std::map<uint64_t, uint64_t>;  // disjoint and not adjacent: begin, end

// [begin, end) touches none of `ranges` but at its ends.
void add_range(Ranges& ranges, uint64_t begin, uint64_t end) {
  if (const auto after = ranges.find(end); after != ranges.end()) {
    end = after->second;
    ranges.erase(after);
  }
  auto before = ranges.upper_bound(begin);
  if (before != ranges.begin() && std::prev(before)->second == begin) {
    std::prev(before)->second = end;
  } else {
    ranges.emplace(begin, end);
  }
}

void remove_range(Ranges& ranges, uint64_t begin, uint64_t end) {
  const auto range = std::prev(ranges.upper_bound(begin));
  const uint64_t range_end = range->second;
  if (range->first == begin) {
    ranges.erase(range);
  } else {
    range->second = begin;
  }
  if (end < range_end) ranges.emplace(end, range_end);
}

// Where the range that holds `offset` ends; empty where none does.
std::optional<uint64_t> end_of_range(const Ranges& ranges, uint64_t offset) {
  const auto after = ranges.upper_bound(offset);
  if (after == ranges.begin() || std::prev(after)->second <= offset) return std::nullopt;
  return std::prev(after)->second;
}

// Where the first range after `offset` begins, at most `end`.
uint64_t next_range(const Ranges& ranges, uint64_t offset, uint64_t end) {
  const auto after = ranges.upper_bound(offset);
  return after == ranges.end() ? end : std::min(after->first, end);
}

}  // namespace

RamEntry::RamEntry(const CacheVersion& version)
    : version_(version), memory_(allocate_object(version.nbytes)), fork_count_(fork_count()) {}

int64_t RamEntry::checked_ns() const {
  const std::lock_guard lock(process_mutex());
  return checked_ns_;
}

bool RamEntry::covers(uint64_t begin, uint64_t end) const {
  const std::lock_guard lock(process_mutex());
  return begin >= end || end_of_range(filled_, begin).value_or(0) >= end;
}

RamWriter::RamWriter(std::shared_ptr<RamCache> cache, std::shared_ptr<RamEntry> entry, CacheKey key,
                     uint64_t begin, int64_t checked_ns)
    : cache_(std::move(cache)),
      entry_(std::move(entry)),
      key_(key),
      checked_ns_(checked_ns),
      fork_count_(fork_count()),
      offset_(begin) {}

RamWriter::~RamWriter() {
  const std::lock_guard lock(process_mutex());
  if (entry_->fork_count_ != fork_count_) return;
  for (const Claim& claim : claims_) remove_range(entry_->claimed_, claim.begin, claim.end);
}

void RamWriter::write(ByteView bytes) {
  while (!bytes.empty()) {
    const uint64_t most = offset_ + std::min(bytes.size(), entry_->memory_.bytes.size() - offset_);
    if (most == offset_) return;
    uint64_t end = most;
    bool is_mine = false;
    {
      const std::lock_guard lock(process_mutex());
      if (const auto taken = end_of_range(entry_->claimed_, offset_)) {
        end = std::min(*taken, most);
      } else {
        end = next_range(entry_->claimed_, offset_, most);
        const bool goes_on = !claims_.empty() && claims_.back().end == offset_;
        if (!goes_on) claims_.push_back({offset_, offset_});
        add_range(entry_->claimed_, offset_, end);
        claims_.back().end = end;
        is_mine = true;
      }
    }
    if (is_mine) std::memcpy(&entry_->memory_.bytes[offset_], bytes.data(), end - offset_);
    bytes = bytes.subspan(end - offset_);
    offset_ = end;
  }
}

void RamWriter::commit() {
  RamCache::Items removed;
  const std::lock_guard lock(process_mutex());
  uint64_t nbytes = 0;
  for (const Claim& claim : claims_) {
    add_range(entry_->filled_, claim.begin, claim.end);
    nbytes += claim.end - claim.begin;
  }
  claims_.clear();  // they stay the entry's
  entry_->checked_ns_ = std::max(entry_->checked_ns_, checked_ns_);
  cache_->charge(key_, *entry_, nbytes, removed);
}

std::shared_ptr<const RamEntry> RamCache::find(const CacheKey& key) {
  const std::lock_guard lock(process_mutex());
  const auto place = places_.find(key);
  if (place == places_.end()) return nullptr;
  items_.splice(items_.begin(), items_, place->second);
  return place->second->entry;
}

void RamCache::take_out(Items::iterator item, Items& removed) {
  used_nbytes_ -= item->entry->charged_nbytes_;
  item->entry->charged_nbytes_ = 0;
  places_.erase(item->key);
  removed.splice(removed.begin(), items_, item);
}

// An entry that was taken out is charged no more.
void RamCache::charge(const CacheKey& key, RamEntry& entry, uint64_t nbytes, Items& removed) {
  const auto place = places_.find(key);
  if (place == places_.end() || place->second->entry.get() != &entry) return;
  entry.charged_nbytes_ += nbytes;
  used_nbytes_ += nbytes;
  items_.splice(items_.begin(), items_, place->second);
  while (used_nbytes_ > max_nbytes_ && !items_.empty()) take_out(std::prev(items_.end()), removed);
}

std::unique_ptr<RamWriter> RamCache::write(const CacheKey& key, const CacheVersion& version,
                                           uint64_t begin) try {
  const int64_t checked_ns = now_ns();
  const auto make_writer = [&](std::shared_ptr<RamEntry> entry) {
    return std::unique_ptr<RamWriter>(
        new RamWriter(shared_from_this(), std::move(entry), key, begin, checked_ns));
  };
  // Objects of the same version may come at once: the second finds the first's entry.
  std::shared_ptr<RamEntry> made;
  Items removed;
  for (;;) {
    std::shared_ptr<RamEntry> entry;
    {
      const std::lock_guard lock(process_mutex());
      const auto place = places_.find(key);
      if (place != places_.end() && place->second->entry->version() == version) {
        entry = place->second->entry;
        if (entry->fork_count_ != fork_count()) {
          entry->claimed_ = entry->filled_;
          entry->fork_count_ = fork_count();
        }
      } else if (made) {
        if (place != places_.end()) take_out(place->second, removed);
        items_.push_front({key, made});
        places_[key] = items_.begin();
        made->checked_ns_ = checked_ns;
        charge(key, *made, kOverheadNbytes, removed);
        entry = made;
      }
    }
    if (entry) return make_writer(std::move(entry));
    made.reset(new RamEntry(version));
  }
} catch (const std::bad_alloc&) {
  return nullptr;
}

void RamCache::renew(const CacheKey& key, const CacheVersion& version) {
  const std::lock_guard lock(process_mutex());
  const auto place = places_.find(key);
  if (place == places_.end() || !(place->second->entry->version() == version)) return;
  place->second->entry->checked_ns_ = now_ns();
}

void RamCache::drop(const CacheKey& key, const CacheVersion& version) {
  Items removed;
  const std::lock_guard lock(process_mutex());
  const auto place = places_.find(key);
  if (place == places_.end() || !(place->second->entry->version() == version)) return;
  take_out(place->second, removed);
}

uint64_t RamCache::used_nbytes() const {
  const std::lock_guard lock(process_mutex());
  return used_nbytes_;
}

}  // namespace torchnpy
