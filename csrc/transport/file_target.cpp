#include "transport/file_target.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/vfs.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstdio>
#include <cstring>
#include <utility>
#include <vector>

#include "base/checksum.h"
#include "base/descriptor.h"
#include "base/error.h"
#include "base/fork.h"
#include "base/wait.h"
#include "transport/file.h"

namespace torchnpy {
namespace {

// Of one system call, so that a write can be interrupted.
constexpr size_t kMaxWriteNbytes = 4 << 20;
// Less is collected: a header goes out with what follows it.
constexpr size_t kBufferNbytes = 64 << 10;
constexpr std::chrono::milliseconds kBetweenChecks{50};

[[noreturn]] void fail_exists(const std::string& path) {
  throw TransportError(
      path + ": expected no file but found one; choose another name, or allow if_none_match=False",
      TransportError::Kind::kExists);
}

// A file, as open() finds it.
struct Place {
  Descriptor folder;     // O_PATH
  std::string name;      // in the folder; with links followed, no symbolic link
  bool is_open = false;  // a link of /proc to what a process has open
};

Place find_place(const std::string& path, bool follow) {
  constexpr int kMaxLinks = 40;  // the kernel's
  Place place;
  std::string rest = path;
  for (int links = 0; links <= kMaxLinks; ++links) {
    const size_t slash = rest.rfind('/');
    const std::string folder = slash == std::string::npos ? "." : rest.substr(0, slash + 1);
    const int base = place.folder ? place.folder.get() : AT_FDCWD;
    Descriptor next(::openat(base, folder.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (!next) throw_file_error(path, "create", errno);
    place.folder = std::move(next);
    place.name = rest.substr(slash + 1);  // npos + 1 is 0
    if (place.name.empty() || place.name == "." || place.name == "..")
      throw_file_error(path, "create", EISDIR);
    char link[PATH_MAX];
    const ssize_t nbytes =
        follow ? ::readlinkat(place.folder.get(), place.name.c_str(), link, sizeof(link)) : -1;
    if (nbytes < 0) return place;
    struct statfs system;
    if (::fstatfs(place.folder.get(), &system) == 0 && system.f_type == PROC_SUPER_MAGIC) {
      place.is_open = true;
      return place;
    }
    rest.assign(link, static_cast<size_t>(nbytes));
  }
  throw_file_error(path, "create", ELOOP);
}

// Bytes on their way to a descriptor that somebody else closes.
class Output {
 public:
  // `is_new`: a file that nothing was written to yet.
  Output(int fd, const std::string& path, const TargetOptions& options, bool is_new)
      : fd_(fd), path_(path), wanted_nbytes_(options.nbytes), sync_(options.sync), is_new_(is_new) {
    rlimit limit{};
    if (is_new && ::getrlimit(RLIMIT_FSIZE, &limit) == 0) max_nbytes_ = limit.rlim_cur;
  }

  void write(ByteView bytes) {
    if (bytes.size() < kBufferNbytes - buffer_.size()) {
      buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
    } else {
      write_out(bytes);
    }
  }

  void flush() {
    write_out({});
    // A pipe has no disk.
    if (sync_ && ::fsync(fd_) != 0 && errno != EINVAL) fail_write("sync", errno);
  }

  [[noreturn]] void fail_write(std::string_view verb, int error) const {
    const std::string wanted = wanted_nbytes_ ? fmt::format(" of {}", *wanted_nbytes_) : "";
    throw_file_error(path_, fmt::format("{} more than {}{} bytes", verb, written_nbytes_, wanted),
                     error, is_new_ ? "; what was there before is unchanged" : "");
  }

 private:
  // What was collected, and then `bytes`.
  void write_out(ByteView bytes) {
    const WaitScope scope;
    ByteView first(buffer_);
    while (!first.empty() || !bytes.empty()) {
      const size_t nbytes = write_some(first, bytes);
      const size_t of_first = std::min(nbytes, first.size());
      first = first.subspan(of_first);
      bytes = bytes.subspan(nbytes - of_first);
    }
    buffer_.clear();
  }

  // Returns how many; 0 when there was no room for now.
  size_t write_some(ByteView first, ByteView second) {
    check_interrupt();
    // Past the limit the kernel sends a signal that ends most programs.
    const size_t most = std::min<uint64_t>(kMaxWriteNbytes, max_nbytes_ - written_nbytes_);
    if (most == 0) fail_write("write", EFBIG);
    const size_t of_first = std::min(first.size(), most);
    const iovec pieces[] = {
        {const_cast<uint8_t*>(first.data()), of_first},
        {const_cast<uint8_t*>(second.data()), std::min(second.size(), most - of_first)}};
    const ssize_t nbytes = ::writev(fd_, pieces, 2);
    if (nbytes < 0 && errno == EAGAIN) {
      pollfd waiting{fd_, POLLOUT, 0};
      ::poll(&waiting, 1, kBetweenChecks.count());
    } else if (nbytes < 0 && errno != EINTR) {
      fail_write("write", errno);
    }
    if (nbytes <= 0) return 0;
    if (sync_) {
      ::sync_file_range(fd_, static_cast<off_t>(written_nbytes_), nbytes, SYNC_FILE_RANGE_WRITE);
    }
    written_nbytes_ += static_cast<uint64_t>(nbytes);
    return static_cast<size_t>(nbytes);
  }

  void check_interrupt() {
    const auto now = std::chrono::steady_clock::now();
    if (now - checked_ < kBetweenChecks) return;
    checked_ = now;
    if (WaitScope::must_stop()) throw InterruptedError(path_ + ": interrupted while it was saved");
  }

  const int fd_;
  const std::string path_;
  const std::optional<uint64_t> wanted_nbytes_;
  const bool sync_;
  const bool is_new_;
  uint64_t max_nbytes_ = RLIM_INFINITY;
  std::vector<uint8_t> buffer_;
  uint64_t written_nbytes_ = 0;
  std::chrono::steady_clock::time_point checked_ = std::chrono::steady_clock::now();
};

// A pipe or a device. What was written is gone.
class DirectTarget final : public Target {
 public:
  DirectTarget(const std::string& path, const TargetOptions& options)
      : path_(path), fd_(open(path)), output_(fd_.get(), path, options, /*is_new=*/false) {}

  const std::string& name() const override { return path_; }
  void write(SharedBytes bytes) override { output_.write(bytes.bytes); }
  void finish() override { output_.flush(); }

 private:
  // Never blocks, so that it can be interrupted: a pipe is waited for until somebody reads.
  static Descriptor open(const std::string& path) {
    constexpr int kFlags = O_WRONLY | O_CREAT | O_TRUNC | O_NONBLOCK | O_NOCTTY | O_CLOEXEC;
    const WaitScope scope;
    for (;;) {
      Descriptor fd(::open(path.c_str(), kFlags, 0666));
      if (fd) return fd;
      const int error = errno;
      struct stat status;
      const bool has_no_reader =
          error == ENXIO && ::stat(path.c_str(), &status) == 0 && S_ISFIFO(status.st_mode);
      if (!has_no_reader && error != EINTR) throw_file_error(path, "open", error);
      if (has_no_reader) ::poll(nullptr, 0, kBetweenChecks.count());
      if (WaitScope::must_stop()) throw InterruptedError(path + ": interrupted before it was read");
    }
  }

  const std::string path_;
  const Descriptor fd_;
  Output output_;
};

// The names of temporary files follow from the file's, so that a leftover is found without reading
// the folder, however full it is. Who writes one holds a lock on it; one that nobody holds is a
// leftover. Several processes may save a file at once: each has a number of its own.
std::string temporary_name(const std::string& name, int number) {
  constexpr size_t kMaxNbytes = 100;  // of 143 to 255 that file systems take
  const std::string stem = name.size() <= kMaxNbytes
                               ? name
                               : fmt::format("{:08x}-{}", crc32(as_bytes(name)), name.size());
  return fmt::format(".{}.torchnpy-{}", stem, number);
}

bool is_named(int fd, int folder, const std::string& name) {
  struct stat open;
  struct stat named;
  return ::fstat(fd, &open) == 0 &&
         ::fstatat(folder, name.c_str(), &named, AT_SYMLINK_NOFOLLOW) == 0 &&
         open.st_dev == named.st_dev && open.st_ino == named.st_ino;
}

enum class Leftover { kNone, kRemoved, kInUse };

Leftover remove_leftover(int folder, const std::string& name) {
  // For writing: over NFS such a lock needs it.
  const Descriptor fd(
      ::openat(folder, name.c_str(), O_WRONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
  if (!fd) return errno == ENOENT ? Leftover::kNone : Leftover::kInUse;
  const bool is_left = ::flock(fd.get(), LOCK_EX | LOCK_NB) == 0 &&
                       is_named(fd.get(), folder, name) && ::unlinkat(folder, name.c_str(), 0) == 0;
  return is_left ? Leftover::kRemoved : Leftover::kInUse;
}

// A new file, for writing and locked. None where the name is in use.
Descriptor create_temporary(const std::string& path, int folder, const std::string& name,
                            mode_t mode) {
  Descriptor fd(
      ::openat(folder, name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOCTTY | O_CLOEXEC, mode));
  if (!fd && errno == EEXIST) return fd;
  if (!fd) throw_file_error(path, "create a temporary file in its folder", errno);
  // Before it was locked another process may have taken it for a leftover. A file system without
  // locks keeps leftovers.
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) return Descriptor();
  if (!is_named(fd.get(), folder, name)) return Descriptor();
  return fd;
}

// Has a name for as long as it lives, or until it gets another.
class TemporaryFile {
 public:
  // Removes all leftovers, too: a gap in their numbers shows where one of several savers ended.
  TemporaryFile(const std::string& path, const Place& place, mode_t mode)
      : folder_(place.folder.get()) {
    constexpr int kMaxGap = 8;
    constexpr int kMaxNumber = 10'000;
    for (int number = 0, gap = 0; gap < kMaxGap || !fd_; ++number) {
      if (number == kMaxNumber)
        throw_file_error(path, "create a temporary file in its folder", EBUSY);
      const std::string name = temporary_name(place.name, number);
      gap = remove_leftover(folder_, name) == Leftover::kNone ? gap + 1 : 0;
      if (fd_) continue;
      fd_ = create_temporary(path, folder_, name, mode);
      if (fd_) name_ = name;
    }
  }
  // Not by a forked child, whose parent goes on with it.
  ~TemporaryFile() {
    if (!name_.empty() && forks_ == fork_count()) ::unlinkat(folder_, name_.c_str(), 0);
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  int fd() const { return fd_.get(); }

  // False, and errno set, when it cannot be. Where `replace` is false, EEXIST is one reason.
  bool rename(const std::string& name, bool replace) {
    const bool is_renamed = replace ? ::renameat(folder_, name_.c_str(), folder_, name.c_str()) == 0
                                    : rename_if_none(name);
    if (!is_renamed) return false;
    name_.clear();
    // Or a child that was forked meanwhile would hold it for as long as it lives.
    ::flock(fd_.get(), LOCK_UN);
    return true;
  }

 private:
  bool rename_if_none(const std::string& name) {
    if (::renameat2(folder_, name_.c_str(), folder_, name.c_str(), RENAME_NOREPLACE) == 0) {
      return true;
    }
    // The file system, or the kernel, does not have it.
    if (errno != EINVAL && errno != ENOSYS) return false;
    return ::linkat(folder_, name_.c_str(), folder_, name.c_str(), 0) == 0 &&
           ::unlinkat(folder_, name_.c_str(), 0) == 0;
  }

  const int folder_;
  const uint64_t forks_ = fork_count();
  Descriptor fd_;
  std::string name_;  // empty: none any more
};

// What a file that is there keeps, as if it were written in place. No error where the file system
// or the process's rights do not allow it.
void keep_owner_and_mode(int fd, const struct stat& before) {
  struct stat now;
  if (::fstat(fd, &now) != 0) return;
  mode_t mode = before.st_mode & 0777;
  const bool is_others = now.st_uid != before.st_uid || now.st_gid != before.st_gid;
  if (is_others && ::fchown(fd, before.st_uid, before.st_gid) != 0 &&
      ::fchown(fd, static_cast<uid_t>(-1), before.st_gid) != 0) {
    mode &= ~mode_t{070} | (mode & 07) << 3;  // another group gets what all others get
  }
  if (mode != (now.st_mode & 0777)) (void)::fchmod(fd, mode);
}

// A regular file, new or in the place of another.
class FileTarget final : public Target {
 public:
  // `before`: the file that is there; nullptr when there is none.
  FileTarget(const std::string& path, Place place, const struct stat* before,
             const TargetOptions& options)
      : path_(path),
        options_(options),
        place_(std::move(place)),
        temporary_(path, place_, before != nullptr ? before->st_mode & 0777 : 0666),
        output_(temporary_.fd(), path, options, /*is_new=*/true) {
    if (before != nullptr) keep_owner_and_mode(temporary_.fd(), *before);
  }

  const std::string& name() const override { return path_; }
  void write(SharedBytes bytes) override { output_.write(bytes.bytes); }

  void finish() override {
    output_.flush();
    // What a network's file system could not write it says at a close. The lock is kept.
    const int copy = ::fcntl(temporary_.fd(), F_DUPFD_CLOEXEC, 0);
    if (copy >= 0 && ::close(copy) != 0 && errno != EINTR) output_.fail_write("write", errno);
    if (!temporary_.rename(place_.name, !options_.if_none_match)) {
      if (errno == EEXIST && options_.if_none_match) fail_exists(path_);
      throw_file_error(path_, "rename its temporary file", errno);
    }
    if (options_.sync) sync_folder();
  }

 private:
  void sync_folder() const {
    const Descriptor folder(::openat(place_.folder.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!folder || ::fsync(folder.get()) != 0) throw_file_error(path_, "sync its folder", errno);
  }

  const std::string path_;
  const TargetOptions options_;
  const Place place_;
  TemporaryFile temporary_;
  Output output_;
};

}  // namespace

std::unique_ptr<Target> create_file(const std::string& path, const TargetOptions& options) {
  if (const size_t nul = path.find('\0'); nul != std::string::npos) {
    throw ArgumentError(
        fmt::format("{}: expected a path but found NUL at byte {}", path.substr(0, nul), nul));
  }
  Place place = find_place(path, /*follow=*/!options.if_none_match);
  struct stat before;
  const bool exists =
      ::fstatat(place.folder.get(), place.name.c_str(), &before, AT_SYMLINK_NOFOLLOW) == 0;
  if (!exists && errno != ENOENT) throw_file_error(path, "create", errno);
  if (exists && options.if_none_match) fail_exists(path);
  if (exists && S_ISDIR(before.st_mode)) throw_file_error(path, "create", EISDIR);
  if (exists && (place.is_open || !S_ISREG(before.st_mode))) {
    return std::make_unique<DirectTarget>(path, options);
  }
  if (exists && ::faccessat(place.folder.get(), place.name.c_str(), W_OK, AT_EACCESS) != 0) {
    throw_file_error(path, "write", errno);
  }
  return std::make_unique<FileTarget>(path, std::move(place), exists ? &before : nullptr, options);
}

}  // namespace torchnpy
