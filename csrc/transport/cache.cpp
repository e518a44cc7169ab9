#include "transport/cache.h"

#include <algorithm>
#include <chrono>
#include <cstring>

namespace torchnpy {

void CacheWriter::write(ByteView bytes) {
  if (ram_) ram_->write(bytes);
  if (disk_) disk_->write(bytes);
}

void CacheWriter::commit() {
  if (ram_) ram_->commit();
  if (disk_) disk_->commit();
}

size_t CachedBytes::read(uint64_t offset, MutableBytes room) const {
  if (disk_) return disk_->read(offset, room);
  std::memcpy(room.data(), ram_->bytes(offset, offset + room.size()).data(), room.size());
  return room.size();
}

Cache::Cache(const CacheOptions& options) : fresh_s_(options.fresh_s) {
  if (options.ram_nbytes != 0) ram_ = std::make_shared<RamCache>(options.ram_nbytes);
  if (!options.dir.empty()) {
    disk_ = std::make_shared<DiskCache>(options.dir, options.disk_nbytes);
  }
}

std::optional<Cache::Known> Cache::find(const CacheKey& key) {
  const auto make_known = [this](const CacheVersion& version, int64_t checked_ns) {
    const auto now = std::chrono::system_clock::now().time_since_epoch();
    const std::chrono::duration<double> age = now - std::chrono::nanoseconds(checked_ns);
    // One that was checked in the future was so by another clock.
    return Known{version, age.count() >= 0 && age.count() < fresh_s_};
  };
  std::optional<Known> in_ram;
  if (ram_) {
    if (const auto entry = ram_->find(key)) {
      in_ram = make_known(entry->version(), entry->checked_ns());
      if (in_ram->is_fresh || !disk_ || fresh_s_ == 0) return in_ram;
    }
  }
  if (!disk_) return in_ram;
  // Another process may have asked the store since.
  const auto entry = disk_->find(key);
  if (!entry) return in_ram;
  const Known on_disk = make_known(entry->header().version, entry->header().checked_ns);
  return in_ram && !on_disk.is_fresh ? in_ram : on_disk;
}

std::optional<CachedBytes> Cache::open(const CacheKey& key, const CacheVersion& version,
                                       uint64_t begin, uint64_t end) {
  if (ram_) {
    auto entry = ram_->find(key);
    if (entry && entry->version() == version && entry->covers(begin, end)) {
      return CachedBytes(std::move(entry), nullptr);
    }
  }
  if (!disk_) return std::nullopt;
  auto entry = disk_->find(key);
  if (!entry || !(entry->header().version == version) || !entry->covers(begin, end)) {
    return std::nullopt;
  }
  return CachedBytes(nullptr, std::move(entry));
}

std::optional<OwnedBytes> Cache::view(const CacheKey& key, const CacheVersion& version,
                                      uint64_t begin, uint64_t end) {
  if (!disk_ || begin >= end) return std::nullopt;
  const auto entry = disk_->find(key);
  if (!entry || !(entry->header().version == version) || !entry->covers(begin, end)) {
    return std::nullopt;
  }
  return entry->view(begin, end - begin);
}

std::optional<CacheWriter> Cache::write(const CacheKey& key, const CacheVersion& version,
                                        uint64_t begin) {
  if (begin >= version.nbytes) return std::nullopt;
  std::unique_ptr<RamWriter> ram;
  std::unique_ptr<DiskWriter> disk;
  if (ram_ && version.nbytes <= ram_->max_nbytes()) ram = ram_->write(key, version, begin);
  if (disk_ && version.nbytes < disk_->max_nbytes()) disk = disk_->write(key, version, begin);
  if (!ram && !disk) return std::nullopt;
  return std::make_optional<CacheWriter>(std::move(ram), std::move(disk));
}

void Cache::renew(const CacheKey& key, const CacheVersion& version) {
  if (fresh_s_ == 0) return;  // nobody will ask when
  if (ram_) ram_->renew(key, version);
  if (disk_) disk_->renew(key, version);
}

void Cache::drop(const CacheKey& key, const CacheVersion& version) {
  if (ram_) ram_->drop(key, version);
  if (disk_) disk_->drop(key, version);
}

}  // namespace torchnpy
