#include "transport/disk_cache.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <random>
#include <vector>

#include "base/checksum.h"
#include "base/fork.h"
#include "base/log.h"
#include "transport/file.h"

namespace torchnpy {
namespace {

constexpr uint64_t kPageNbytes = 4096;
constexpr uint64_t kVerifiedAtOnceNbytes = 256 << 10;
// Room is reserved in steps: each takes a look at the usage of all.
constexpr uint64_t kReservedAtOnceNbytes = 8 << 20;
// Used entries are touched; not more often, for it makes the inode dirty.
constexpr int64_t kTouched_ns = 100'000'000;
constexpr int64_t kSecond_ns = 1'000'000'000;
constexpr int64_t kPause_ns = 30 * kSecond_ns;
constexpr int64_t kLeftover_ns = 3600 * kSecond_ns;
// Of the entries that are looked at to find the ones used longest ago.
constexpr size_t kSampleCount = 1024;
// A little more than needed is evicted, so that it need not be done for each object.
constexpr uint64_t kSpareShare = 64;

int64_t to_ns(const timespec& time) { return time.tv_sec * kSecond_ns + time.tv_nsec; }

int64_t clock_ns(clockid_t clock) {
  timespec now{};
  ::clock_gettime(clock, &now);
  return to_ns(now);
}

uint64_t round_to_page(uint64_t nbytes) {
  return (nbytes + kPageNbytes - 1) / kPageNbytes * kPageNbytes;
}

int64_t allocated_nbytes(const struct stat& status) {
  return static_cast<int64_t>(status.st_blocks) * 512;
}

Descriptor open_file_at(const std::string& path, int flags) {
  for (;;) {
    const int fd = ::open(path.c_str(), flags | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd >= 0 || errno != EINTR) return Descriptor(fd);
  }
}

// All of `room`, unless the file ends or the disk fails.
size_t read_at(int fd, MutableBytes room, uint64_t offset) {
  size_t filled = 0;
  while (filled < room.size()) {
    const ssize_t nbytes = ::pread(fd, room.data() + filled, room.size() - filled,
                                   static_cast<off_t>(offset + filled));
    if (nbytes < 0 && errno == EINTR) continue;
    if (nbytes <= 0) break;
    filled += static_cast<size_t>(nbytes);
  }
  return filled;
}

bool write_at(int fd, ByteView bytes, uint64_t offset) {
  while (!bytes.empty()) {
    const ssize_t nbytes = ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (nbytes < 0 && errno == EINTR) continue;
    if (nbytes < 0) return false;
    bytes = bytes.subspan(static_cast<size_t>(nbytes));
    offset += static_cast<uint64_t>(nbytes);
  }
  return true;
}

// Nobody waits long for it, also where its owner was stopped. Unlocked, not only closed: a child
// that was forked meanwhile has the open file, and with it the lock, for as long as it lives.
class FileLock {
 public:
  explicit FileLock(int fd, int attempts = 100) : fd_(fd) {
    for (int i = 0; i < attempts && !is_held_; ++i) {
      constexpr timespec kWait{0, 100'000};
      if (i != 0) ::nanosleep(&kWait, nullptr);
      is_held_ = ::flock(fd_, LOCK_EX | LOCK_NB) == 0;
    }
  }
  ~FileLock() {
    if (is_held_) ::flock(fd_, LOCK_UN);
  }
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;
  bool is_held() const { return is_held_; }

 private:
  const int fd_;
  bool is_held_ = false;
};

std::optional<CacheEntryHeader> read_header(int fd) {
  std::array<uint8_t, kEntryDataOffset> page;
  // One that is being written may look torn.
  constexpr int kAttempts = 3;
  for (int i = 0; i < kAttempts; ++i) {
    if (read_at(fd, page, 0) != page.size()) break;
    if (auto header = parse_entry_header(page)) return header;
    constexpr timespec kWait{0, 200'000};
    ::nanosleep(&kWait, nullptr);
  }
  return std::nullopt;
}

bool write_header(int fd, const CacheEntryHeader& header) {
  return write_at(fd, format_entry_header(header), 0);
}

// The same for as long as the machine has not been started again.
BootId read_boot_id() {
  BootId id{};
  std::array<uint8_t, 36> text{};
  const Descriptor fd = open_file_at("/proc/sys/kernel/random/boot_id", O_RDONLY);
  if (fd && read_at(fd.get(), text, 0) == text.size()) {
    size_t digits = 0;
    for (const uint8_t c : text) {
      if (c == '-' || digits == 2 * id.size()) continue;
      const auto value = static_cast<uint8_t>(c >= 'a' ? c - 'a' + 10 : c - '0');
      id[digits / 2] = static_cast<uint8_t>(id[digits / 2] << 4 | (value & 15));
      ++digits;
    }
    return id;
  }
  // Nothing is trusted that another process wrote.
  std::random_device random;
  for (uint8_t& byte : id) byte = static_cast<uint8_t>(random());
  return id;
}

bool is_verified(int fd, const CacheEntryHeader& header) {
  std::vector<uint8_t> bytes(kVerifiedAtOnceNbytes);
  for (const CacheExtent& extent : header.extents) {
    uint32_t crc32 = 0;
    for (uint64_t offset = extent.begin; offset < extent.end;) {
      const MutableBytes room =
          MutableBytes(bytes).first(std::min<uint64_t>(bytes.size(), extent.end - offset));
      if (read_at(fd, room, kEntryDataOffset + offset) != room.size()) return false;
      crc32 = torchnpy::crc32(room, crc32);
      offset += room.size();
    }
    if (crc32 != extent.crc32) return false;
  }
  return true;
}

// Trusts the extents that are there, and says so.
void stamp(int fd, const BootId& boot) {
  const FileLock lock(fd);
  std::optional<CacheEntryHeader> header = lock.is_held() ? read_header(fd) : std::nullopt;
  if (!header) return;
  header->boot = boot;
  write_header(fd, *header);
}

bool make_folder(const std::string& path) {
  for (size_t slash = path.find('/', 1);; slash = path.find('/', slash + 1)) {
    const std::string part = path.substr(0, slash);
    if (::mkdir(part.c_str(), 0700) != 0 && errno != EEXIST) {
      const int error = errno;
      struct stat status;
      // Above ours there may be folders that one cannot make and need not.
      if (::stat(part.c_str(), &status) != 0) {
        errno = error;
        return false;
      }
    }
    if (slash == std::string::npos) return true;
  }
}

// Empty where it cannot be read.
class Folder {
 public:
  explicit Folder(const std::string& path) : dir_(::opendir(path.c_str())) {}
  ~Folder() {
    if (dir_ != nullptr) ::closedir(dir_);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  // The next file; nullptr at the end.
  const char* next(struct stat& status) {
    while (dir_ != nullptr) {
      const dirent* const entry = ::readdir(dir_);
      if (entry == nullptr) break;
      if (::fstatat(::dirfd(dir_), entry->d_name, &status, AT_SYMLINK_NOFOLLOW) == 0 &&
          S_ISREG(status.st_mode)) {
        return entry->d_name;
      }
    }
    return nullptr;
  }

 private:
  DIR* const dir_;
};

constexpr size_t shard_of(const CacheKey& key) { return key[0]; }

std::atomic<uint64_t> temporary_count{0};

}  // namespace

size_t DiskEntry::read(uint64_t offset, MutableBytes room) const {
  return read_at(fd_.get(), room, kEntryDataOffset + offset);
}

std::optional<OwnedBytes> DiskEntry::view(uint64_t offset, uint64_t nbytes) const {
  if (nbytes < kMinMappedNbytes) {
    OwnedBytes bytes = allocate_bytes(nbytes);
    if (read(offset, bytes.bytes) != nbytes) return std::nullopt;
    return bytes;
  }
  const uint64_t begin = (kEntryDataOffset + offset) / kPageNbytes * kPageNbytes;
  const uint64_t skipped = kEntryDataOffset + offset - begin;
  const size_t mapped = skipped + nbytes;
  void* const data = ::mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE,
                            fd_.get(), static_cast<off_t>(begin));
  if (data == MAP_FAILED) return std::nullopt;
  std::shared_ptr<void> owner(data, [mapped](void* p) { ::munmap(p, mapped); });
  return OwnedBytes{MutableBytes(static_cast<uint8_t*>(data) + skipped, nbytes), std::move(owner)};
}

DiskCache::DiskCache(std::string dir, uint64_t max_nbytes)
    : dir_(std::move(dir)), max_nbytes_(max_nbytes), boot_(read_boot_id()) {}

DiskCache::~DiskCache() {
  if (Usage* const usage = usage_) ::munmap(usage, sizeof(Usage));
}

std::string DiskCache::path_of(const CacheKey& key) const {
  std::string path = fmt::format("{}/v1/{:02x}/", dir_, shard_of(key));
  for (size_t i = 1; i < 20; ++i) fmt::format_to(std::back_inserter(path), "{:02x}", key[i]);
  return path;
}

void DiskCache::fail(const char* action, int error) {
  // That this process has too many files open says nothing about the disk.
  if (error == EMFILE || error == ENFILE) return;
  no_writes_until_ns_ = clock_ns(CLOCK_MONOTONIC) + kPause_ns;
  if (has_warned_.exchange(true)) return;
  log_warning(fmt::format("{}: the cache cannot {}: {}; objects are read past it", dir_, action,
                          std::strerror(error)));
}

bool DiskCache::may_write() {
  return no_writes_until_ns_ <= clock_ns(CLOCK_MONOTONIC) && prepare();
}

bool DiskCache::prepare() {
  if (usage_ != nullptr) return true;
  if (!make_folder(dir_ + "/v1/new")) {
    fail("make its folder", errno);
    return false;
  }
  if (!map_usage()) {
    fail("make its files", errno);
    return false;
  }
  remove_leftovers();
  return true;
}

bool DiskCache::map_usage() {
  static_assert(std::atomic<int64_t>::is_always_lock_free);
  const std::string path = dir_ + "/v1/usage";
  Descriptor fd = open_file_at(path, O_RDWR);
  struct stat status{};
  if (!fd || ::fstat(fd.get(), &status) != 0 ||
      status.st_size != static_cast<off_t>(sizeof(Usage))) {
    // Zeros that are on the disk: a hole could fail when it is written to, and kill the process.
    const std::string made =
        fmt::format("{}/v1/new/usage-{}-{}", dir_, ::getpid(), ++temporary_count);
    fd = open_file_at(made, O_RDWR | O_CREAT | O_EXCL);
    if (!fd) return false;
    const std::array<uint8_t, sizeof(Usage)> zeros{};
    const bool is_made = write_at(fd.get(), zeros, 0) && ::rename(made.c_str(), path.c_str()) == 0;
    const int error = errno;
    if (!is_made) ::unlink(made.c_str());
    errno = error;
    if (!is_made) return false;
  }
  void* const data =
      ::mmap(nullptr, sizeof(Usage), PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (data == MAP_FAILED) return false;
  Usage* none = nullptr;
  if (!usage_.compare_exchange_strong(none, static_cast<Usage*>(data))) {
    ::munmap(data, sizeof(Usage));
  }
  return true;
}

// Of processes that were killed while they made an entry.
void DiskCache::remove_leftovers() {
  const std::string path = dir_ + "/v1/new";
  Folder folder(path);
  struct stat status;
  while (const char* const name = folder.next(status)) {
    // usage-<pid>-<n>, <pid>-<n>
    const char* const digits = std::strpbrk(name, "0123456789");
    const int pid = digits == nullptr ? 0 : std::atoi(digits);
    const bool is_dead = pid <= 0 || (::kill(pid, 0) != 0 && errno == ESRCH);
    const bool is_old = clock_ns(CLOCK_REALTIME) - to_ns(status.st_mtim) > kLeftover_ns;
    if (is_dead || is_old) ::unlink(fmt::format("{}/{}", path, name).c_str());
  }
}

uint64_t DiskCache::used_nbytes() const {
  const Usage* const usage = usage_;
  if (usage == nullptr) return 0;
  int64_t nbytes = 0;
  for (const auto& shard : usage->nbytes) {
    nbytes += std::max<int64_t>(0, shard.load(std::memory_order_relaxed));
  }
  return static_cast<uint64_t>(nbytes);
}

void DiskCache::add_usage(const CacheKey& key, int64_t nbytes) {
  Usage* const usage = usage_;
  if (usage != nullptr) usage->nbytes[shard_of(key)].fetch_add(nbytes, std::memory_order_relaxed);
}

bool DiskCache::reserve(const CacheKey& key, uint64_t nbytes) {
  if (nbytes > max_nbytes_) return false;
  uint64_t used = used_nbytes();
  if (used > max_nbytes_ - nbytes) {
    const uint64_t most = max_nbytes_ - nbytes;
    evict(most - std::min(most, max_nbytes_ / kSpareShare), path_of(key));
    used = used_nbytes();
    if (used > most) return false;
  }
  add_usage(key, static_cast<int64_t>(nbytes));
  return true;
}

struct DiskCache::Victim {
  std::string path;
  size_t shard;
  int64_t used_ns;
  int64_t nbytes;
};

// Sets right what is known of the shard's usage, too: a killed process may have left it wrong.
void DiskCache::scan_shard(size_t shard, std::vector<Victim>& found) {
  const std::string path = fmt::format("{}/v1/{:02x}", dir_, shard);
  Folder folder(path);
  struct stat status;
  int64_t nbytes = 0;
  while (const char* const name = folder.next(status)) {
    nbytes += allocated_nbytes(status);
    found.push_back(
        {fmt::format("{}/{}", path, name), shard, to_ns(status.st_mtim), allocated_nbytes(status)});
  }
  usage_.load()->nbytes[shard].store(nbytes, std::memory_order_relaxed);
}

// Removes what was used longest ago, until `most_nbytes` are used: of all entries where they are
// few, else of a sample. Not the entry that the room is for, which would then be written in vain.
void DiskCache::evict(uint64_t most_nbytes, const std::string& kept_path) {
  const Descriptor fd = open_file_at(dir_ + "/v1/lock", O_RDWR | O_CREAT);
  const FileLock lock(fd.get(), 1);
  if (!lock.is_held()) return;  // who holds it makes room
  size_t shard = static_cast<size_t>(clock_ns(CLOCK_MONOTONIC) / 1000) % kShards;
  for (size_t scanned = 0; scanned < kShards && used_nbytes() > most_nbytes;) {
    std::vector<Victim> sample;
    for (; scanned < kShards && sample.size() < kSampleCount; ++scanned) {
      scan_shard(shard, sample);
      shard = (shard + 1) % kShards;
    }
    // The most that may go: those used of late may lie in other shards.
    const bool is_all = scanned == kShards && sample.size() < kSampleCount;
    const size_t most = is_all ? sample.size() : (sample.size() + 3) / 4;
    std::ranges::sort(sample, {}, &Victim::used_ns);
    for (size_t i = 0; i < most && used_nbytes() > most_nbytes; ++i) {
      if (sample[i].path == kept_path || ::unlink(sample[i].path.c_str()) != 0) continue;
      usage_.load()->nbytes[sample[i].shard].fetch_sub(sample[i].nbytes, std::memory_order_relaxed);
    }
  }
}

void DiskCache::remove(const std::string& path, const CacheKey& key) {
  struct stat status{};
  const bool is_there = ::stat(path.c_str(), &status) == 0;
  if (::unlink(path.c_str()) == 0 && is_there) add_usage(key, -allocated_nbytes(status));
}

std::unique_ptr<DiskEntry> DiskCache::find(const CacheKey& key) {
  const std::string path = path_of(key);
  Descriptor fd = open_file_at(path, O_RDONLY | O_NOCTTY | O_NONBLOCK);
  struct stat status{};
  if (!fd) {
    if (errno != ENOENT && errno != ENOTDIR) fail("open a file", errno);
    return nullptr;
  }
  if (::fstat(fd.get(), &status) != 0 || !S_ISREG(status.st_mode)) return nullptr;
  std::optional<CacheEntryHeader> header = read_header(fd.get());
  // A mapping beyond the file's end would kill the process.
  const bool is_whole =
      header && header->key == key &&
      static_cast<uint64_t>(status.st_size) == kEntryDataOffset + header->version.nbytes;
  if (!is_whole || (header->boot != boot_ && !is_verified(fd.get(), *header))) {
    remove(path, key);
    return nullptr;
  }
  if (header->boot != boot_) {
    const Descriptor writable = open_file_at(path, O_RDWR);
    if (writable) stamp(writable.get(), boot_);
  }
  if (clock_ns(CLOCK_REALTIME) - to_ns(status.st_mtim) > kTouched_ns) {
    ::futimens(fd.get(), nullptr);
  }
  return std::unique_ptr<DiskEntry>(new DiskEntry(std::move(fd), std::move(*header)));
}

// Moves a new entry to its place. Where another process was faster with the same version, `fd`
// becomes that one.
bool DiskCache::publish(const std::string& made, const std::string& path,
                        const CacheEntryHeader& header, Descriptor& fd) {
  if (::renameat2(AT_FDCWD, made.c_str(), AT_FDCWD, path.c_str(), RENAME_NOREPLACE) == 0) {
    return true;
  }
  if (errno == EEXIST) {
    Descriptor other = open_file_at(path, O_RDWR);
    struct stat status{};
    const std::optional<CacheEntryHeader> found =
        other && ::fstat(other.get(), &status) == 0 ? read_header(other.get()) : std::nullopt;
    if (found && found->boot == header.boot && found->key == header.key &&
        found->version == header.version &&
        static_cast<uint64_t>(status.st_size) == kEntryDataOffset + header.version.nbytes) {
      ::unlink(made.c_str());
      fd = std::move(other);
      return true;
    }
    add_usage(header.key, -allocated_nbytes(status));
  }
  return ::rename(made.c_str(), path.c_str()) == 0;
}

// Valid from the beginning, with nothing of the object's bytes.
Descriptor DiskCache::make_entry(const CacheKey& key, const CacheEntryHeader& header) {
  const std::string path = path_of(key);
  const std::string folder = path.substr(0, path.rfind('/'));
  const std::string made = fmt::format("{}/v1/new/{}-{}", dir_, ::getpid(), ++temporary_count);
  Descriptor fd = open_file_at(made, O_RDWR | O_CREAT | O_EXCL);
  if (!fd && errno == ENOENT) {  // somebody removed the folder
    if (make_folder(dir_ + "/v1/new")) fd = open_file_at(made, O_RDWR | O_CREAT | O_EXCL);
  }
  if (!fd) return fd;
  const auto size = static_cast<off_t>(kEntryDataOffset + header.version.nbytes);
  bool is_made = write_header(fd.get(), header) && ::ftruncate(fd.get(), size) == 0;
  if (is_made && !publish(made, path, header, fd)) {
    is_made = errno == ENOENT && make_folder(folder) && publish(made, path, header, fd);
  }
  if (is_made) return fd;
  const int error = errno;
  ::unlink(made.c_str());
  errno = error;
  return Descriptor();
}

std::unique_ptr<DiskWriter> DiskCache::write(const CacheKey& key, const CacheVersion& version,
                                             uint64_t begin) {
  if (!may_write()) return nullptr;
  CacheEntryHeader header;
  header.key = key;
  header.boot = boot_;
  header.version = version;
  header.checked_ns = clock_ns(CLOCK_REALTIME);
  Descriptor fd = open_file_at(path_of(key), O_RDWR);
  if (fd) {
    struct stat status{};
    const std::optional<CacheEntryHeader> found = read_header(fd.get());
    const bool is_ours = found && ::fstat(fd.get(), &status) == 0 && found->key == key &&
                         found->boot == boot_ && found->version == version &&
                         static_cast<uint64_t>(status.st_size) == kEntryDataOffset + version.nbytes;
    if (!is_ours) {
      remove(path_of(key), key);
      fd = Descriptor();
    }
  }
  if (!fd) {
    if (!reserve(key, kEntryDataOffset)) return nullptr;
    fd = make_entry(key, header);
    if (!fd) {
      const int error = errno;
      add_usage(key, -static_cast<int64_t>(kEntryDataOffset));
      fail("make a file", error);
      return nullptr;
    }
  }
  return std::unique_ptr<DiskWriter>(
      new DiskWriter(shared_from_this(), std::move(fd), std::move(header), begin));
}

DiskWriter::~DiskWriter() {
  // Of what was reserved, what is in the file stays counted.
  const uint64_t used = round_to_page(written_.end - written_.begin);
  if (reserved_nbytes_ > used) {
    cache_->add_usage(header_.key, -static_cast<int64_t>(reserved_nbytes_ - used));
  }
}

bool DiskWriter::reserve(uint64_t end) {
  const uint64_t wanted = round_to_page(end - written_.begin);
  if (wanted <= reserved_nbytes_) return true;
  const uint64_t most = round_to_page(header_.version.nbytes - written_.begin);
  const uint64_t more =
      std::min(most, std::max(wanted, reserved_nbytes_ + kReservedAtOnceNbytes)) - reserved_nbytes_;
  if (!cache_->reserve(header_.key, more)) return false;
  reserved_nbytes_ += more;
  return true;
}

void DiskWriter::write(ByteView bytes) {
  if (has_failed_) return;
  if (bytes.size() > header_.version.nbytes - written_.end ||
      !reserve(written_.end + bytes.size())) {
    has_failed_ = true;
    return;
  }
  if (!write_at(fd_.get(), bytes, kEntryDataOffset + written_.end)) {
    has_failed_ = true;
    cache_->fail("write a file", errno);
    return;
  }
  written_.crc32 = crc32(bytes, written_.crc32);
  written_.end += bytes.size();
}

// Also what was written before a failure.
void DiskWriter::commit() {
  if (written_.begin == written_.end) return;
  const FileLock lock(fd_.get());
  std::optional<CacheEntryHeader> header = lock.is_held() ? read_header(fd_.get()) : std::nullopt;
  if (!header || !header->add(written_)) return;
  header->checked_ns = std::max(header->checked_ns, header_.checked_ns);
  if (!write_header(fd_.get(), *header)) cache_->fail("write a file", errno);
}

void DiskCache::renew(const CacheKey& key, const CacheVersion& version) {
  if (!may_write()) return;
  const Descriptor fd = open_file_at(path_of(key), O_RDWR);
  if (!fd) return;
  const FileLock lock(fd.get());
  std::optional<CacheEntryHeader> header = lock.is_held() ? read_header(fd.get()) : std::nullopt;
  if (!header || !(header->version == version)) return;
  header->checked_ns = clock_ns(CLOCK_REALTIME);
  write_header(fd.get(), *header);
}

void DiskCache::drop(const CacheKey& key, const CacheVersion& version) {
  const std::string path = path_of(key);
  const Descriptor fd = open_file_at(path, O_RDONLY);
  const std::optional<CacheEntryHeader> header = fd ? read_header(fd.get()) : std::nullopt;
  if (header && header->version == version) remove(path, key);
}

}  // namespace torchnpy
