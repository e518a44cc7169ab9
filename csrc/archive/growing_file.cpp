#include "archive/growing_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/descriptor.h"
#include "base/error.h"
#include "base/fork.h"
#include "transport/file_target.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace torchnpy {
namespace {

constexpr uint64_t kPageNbytes = 4096;

// 16 bytes that one instruction stores: x86-64 with AVX and arm64 with LSE2 let nobody see half.
using Words = long long __attribute__((vector_size(kCountSlotNbytes)));

void store_at_once(uint8_t* to, const CountSlot& slot) {
  Words words;
  std::memcpy(&words, slot.data(), sizeof(words));
  *reinterpret_cast<volatile Words*>(to) = words;
}

// The page of a slot, shared with the file.
class MappedSlot {
 public:
  MappedSlot() = default;
  MappedSlot(const MappedSlot&) = delete;
  MappedSlot& operator=(const MappedSlot&) = delete;
  ~MappedSlot() {
    if (page_ != nullptr) ::munmap(page_, kPageNbytes);
  }
  // Null where the file system does not allow it.
  uint8_t* at(int fd, uint64_t offset) {
    const uint64_t begin = offset / kPageNbytes * kPageNbytes;
    if (!was_tried_) {
      was_tried_ = true;
      void* const page = ::mmap(nullptr, kPageNbytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
                                static_cast<off_t>(begin));
      if (page != MAP_FAILED) page_ = static_cast<uint8_t*>(page);
      needs_room_ = !overwrites_in_place(fd);
    }
    return page_ == nullptr ? nullptr : page_ + (offset - begin);
  }
  // Makes the page writable. Where a file system writes what is overwritten in another place, a
  // full disk would else kill the process at the store (SIGBUS).
  int prepare() { return needs_room_ ? ::madvise(page_, kPageNbytes, MADV_POPULATE_WRITE) : 0; }

 private:
  static bool overwrites_in_place(int fd) {
    struct statfs system;
    if (::fstatfs(fd, &system) != 0) return false;
    return system.f_type == EXT4_SUPER_MAGIC || system.f_type == TMPFS_MAGIC;
  }

  uint8_t* page_ = nullptr;
  bool was_tried_ = false;
  bool needs_room_ = true;
};

Descriptor open_path(const std::string& path, FileAccess access) {
  const int flags = (access == FileAccess::kRead ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOCTTY;
  for (;;) {
    // Without O_NONBLOCK the open of a FIFO waits for its other end.
    const int fd = ::open(path.c_str(), flags | O_NONBLOCK);
    if (fd >= 0) return Descriptor(fd);
    if (errno != EINTR) throw_system_error(path, "open", errno);
  }
}

void check_regular(const std::string& path, const struct stat& status) {
  if (S_ISREG(status.st_mode)) return;
  if (S_ISDIR(status.st_mode)) throw_system_error(path, "append", EISDIR);
  throw UnsupportedError(path +
                         ": expected a regular file but found a pipe, socket or device; append to "
                         "a file on a disk");
}

std::string find_real_path(const std::string& path) {
  char* const found = ::realpath(path.c_str(), nullptr);
  if (found == nullptr) throw_system_error(path, "find", errno);
  std::string result = found;
  ::free(found);
  return result;
}

std::string journal_of(const std::string& real_path) { return real_path + ".journal"; }

class PosixFile : public GrowingFile {
 public:
  PosixFile(std::string real_path, Descriptor fd, FileAccess access)
      : real_path_(std::move(real_path)),
        fd_(std::move(fd)),
        is_locked_(access == FileAccess::kAppend) {
    rlimit limit{};
    if (::getrlimit(RLIMIT_FSIZE, &limit) == 0) max_nbytes_ = limit.rlim_cur;
  }
  // Unlocked, not only closed: a child that was forked meanwhile has the open file, and with it the
  // lock, for as long as it lives. Not by the child, whose parent goes on.
  ~PosixFile() override {
    if (is_locked_ && forks_ == fork_count()) ::flock(fd_.get(), LOCK_UN);
  }

  ssize_t read(MutableBytes room, uint64_t offset) override {
    size_t filled = 0;
    while (filled < room.size()) {
      const ssize_t nbytes = ::pread(fd_.get(), room.data() + filled, room.size() - filled,
                                     static_cast<off_t>(offset + filled));
      if (nbytes < 0 && errno == EINTR) continue;
      if (nbytes < 0) return -1;
      if (nbytes == 0) break;
      filled += static_cast<size_t>(nbytes);
    }
    return static_cast<ssize_t>(filled);
  }

  int64_t nbytes() override {
    struct stat status;
    return ::fstat(fd_.get(), &status) == 0 ? status.st_size : -1;
  }

  ssize_t write(ByteView bytes, uint64_t offset) override {
    // Past the limit the kernel sends a signal that ends most programs.
    const uint64_t most = max_nbytes_ - std::min(offset, max_nbytes_);
    if (most == 0) {
      errno = EFBIG;
      return -1;
    }
    for (;;) {
      const ssize_t nbytes = ::pwrite(fd_.get(), bytes.data(), std::min(bytes.size(), most),
                                      static_cast<off_t>(offset));
      if (nbytes >= 0 || errno != EINTR) return nbytes;
    }
  }

  // The kernel copies into a page at once, and looks for signals between pages.
  int overwrite(ByteView bytes, uint64_t offset) override {
    const ssize_t nbytes = write(bytes, offset);
    if (nbytes == static_cast<ssize_t>(bytes.size())) return 0;
    if (nbytes >= 0) errno = EIO;
    return -1;
  }

  int store(const CountSlot& slot, uint64_t offset, const CountSlot& before) override {
    uint8_t* const to = slot_.at(fd_.get(), offset);
    if (to == nullptr) return overwrite(slot, offset);
    if (slot_.prepare() != 0) {
      // Kernels before 5.14 do not know how.
      return errno == EINVAL ? overwrite(slot, offset) : -1;
    }
    if (std::memcmp(to, before.data(), before.size()) != 0) {
      errno = ESTALE;
      return -1;
    }
    store_at_once(to, slot);
    return 0;
  }

  int truncate(uint64_t nbytes) override {
    for (;;) {
      const int result = ::ftruncate(fd_.get(), static_cast<off_t>(nbytes));
      if (result == 0 || errno != EINTR) return result;
    }
  }

  int sync() override {
    for (;;) {
      const int result = ::fdatasync(fd_.get());
      if (result == 0 || errno != EINTR) return result;
    }
  }

  std::optional<std::string> read_journal() override {
    const std::string path = journal_of(real_path_);
    const Descriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (!fd && errno == ENOENT) return std::nullopt;
    if (!fd) throw_system_error(path, "open", errno);
    std::string content;
    char block[64 << 10];
    for (;;) {
      const ssize_t nbytes = ::read(fd.get(), block, sizeof(block));
      if (nbytes < 0 && errno == EINTR) continue;
      if (nbytes < 0) throw_system_error(path, "read", errno);
      if (nbytes == 0) break;
      content.append(block, static_cast<size_t>(nbytes));
    }
    if (content.empty()) return std::nullopt;  // nothing was begun
    return content;
  }

  void put_journal(ByteView bytes) override {
    const std::string path = journal_of(real_path_);
    // It holds what the file holds, and shall be read by nobody else: a file that is replaced keeps
    // its mode.
    struct stat status;
    if (::fstat(fd_.get(), &status) != 0) throw_system_error(real_path_, "stat", errno);
    const Descriptor created(
        ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, status.st_mode & 0666));
    if (!created && errno != EEXIST) throw_system_error(path, "create", errno);
    TargetOptions options;
    options.nbytes = bytes.size();
    options.sync = true;
    const std::unique_ptr<Target> target = create_file(path, options);
    target->write({bytes, nullptr});
    target->finish();
  }

  void drop_journal() override {
    const std::string path = journal_of(real_path_);
    if (::unlink(path.c_str()) != 0) throw_system_error(path, "remove", errno);
    // Else it may be there again after a power failure, for a file that has changed since.
    const std::string folder = path.substr(0, path.rfind('/') + 1);
    const Descriptor fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!fd || (::fsync(fd.get()) != 0 && errno != EINVAL)) throw_system_error(path, "sync", errno);
  }

  const std::string& real_path() const override { return real_path_; }

 private:
  const std::string real_path_;
  const Descriptor fd_;
  const bool is_locked_;
  const uint64_t forks_ = fork_count();
  uint64_t max_nbytes_ = RLIM_INFINITY;
  MappedSlot slot_;
};

}  // namespace

void throw_system_error(const std::string& path, std::string_view what, int error) {
  using Kind = TransportError::Kind;
  Kind kind = Kind::kOther;
  if (error == ENOENT || error == ENOTDIR) kind = Kind::kNotFound;
  if (error == EACCES || error == EPERM || error == EROFS) kind = Kind::kDenied;
  throw TransportError(fmt::format("{}: cannot {}: {}", path, what, std::strerror(error)), kind);
}

std::unique_ptr<GrowingFile> open_growing_file(const std::string& path, FileAccess access) {
  for (;;) {
    Descriptor fd = open_path(path, access);
    struct stat opened;
    if (::fstat(fd.get(), &opened) != 0) throw_system_error(path, "stat", errno);
    check_regular(path, opened);
    if (access == FileAccess::kRead) {
      return std::make_unique<PosixFile>(find_real_path(path), std::move(fd), access);
    }
    if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno == EINTR) continue;
      if (errno != EWOULDBLOCK) throw_system_error(path, "lock", errno);
      throw LockError(
          path +
          ": expected a file that nobody else appends to but found it locked by another "
          "writer; close that one first");
    }
    auto file = std::make_unique<PosixFile>(find_real_path(path), std::move(fd), access);
    // Another may have replaced the file meanwhile.
    struct stat named;
    if (::stat(path.c_str(), &named) != 0) throw_system_error(path, "stat", errno);
    if (named.st_ino == opened.st_ino && named.st_dev == opened.st_dev) return file;
  }
}

}  // namespace torchnpy
