#include "transport/file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "base/descriptor.h"
#include "base/error.h"
#include "base/fork.h"

namespace torchnpy {
namespace {

// Of one system call, so that a cancelled read ends soon.
constexpr size_t kMaxReadNbytes = 8 << 20;
constexpr size_t kFrontNbytes = 4096;

// The first bytes of a file as they were before its size was asked for. One that grows counts in
// its header what was written before (docs/append.md): a header that is newer than the size would
// count rows that are not there yet, and one that is parsed where it is mapped may change
// meanwhile.
using Front = std::vector<uint8_t>;

Descriptor open_descriptor(const std::string& path) {
  // Without O_NONBLOCK the open of a FIFO waits for a writer.
  constexpr int kFlags = O_RDONLY | O_CLOEXEC | O_NOCTTY;
  int flags = kFlags | O_NONBLOCK;
  for (;;) {
    const int fd = ::open(path.c_str(), flags);
    if (fd >= 0) return Descriptor(fd);
    // A lease on the file (fcntl F_SETLEASE) lets only a blocking open wait.
    if (errno == EWOULDBLOCK && flags != kFlags) {
      flags = kFlags;
    } else if (errno != EINTR) {
      throw_file_error(path, "open", errno);
    }
  }
}

uint64_t check_regular(const std::string& path, int fd) {
  struct stat status;
  if (::fstat(fd, &status) != 0) throw_file_error(path, "stat", errno);
  if (S_ISDIR(status.st_mode)) throw_file_error(path, "read", EISDIR);
  if (!S_ISREG(status.st_mode)) {
    throw UnsupportedError(
        path +
        ": expected a regular file but found a pipe, socket or device; read it into memory "
        "and decode the bytes");
  }
  return static_cast<uint64_t>(status.st_size);
}

// Bytes read at `offset` into `room`, 0 at the end.
size_t read_some(const std::string& path, int fd, MutableBytes room, uint64_t offset) {
  for (;;) {
    const ssize_t nbytes =
        ::pread(fd, room.data(), std::min(room.size(), kMaxReadNbytes), static_cast<off_t>(offset));
    if (nbytes >= 0) return static_cast<size_t>(nbytes);
    if (errno != EINTR) throw_file_error(path, "read", errno);
  }
}

// Empty where it cannot be read; who reads on, or asks what it is, gets the reason.
Front read_front(int fd) {
  Front front(kFrontNbytes);
  const ssize_t nbytes = ::pread(fd, front.data(), front.size(), 0);
  front.resize(static_cast<size_t>(std::max<ssize_t>(nbytes, 0)));
  return front;
}

OwnedBytes read_whole(const std::string& path, int fd, uint64_t nbytes, const Front& front) {
  OwnedBytes content = allocate_bytes(nbytes);
  uint64_t filled = std::min<uint64_t>(front.size(), nbytes);
  std::copy_n(front.begin(), filled, content.bytes.begin());
  while (filled < nbytes) {
    const size_t got = read_some(path, fd, content.bytes.subspan(filled), filled);
    if (got == 0) break;  // truncated since fstat
    filled += got;
  }
  content.bytes = content.bytes.first(filled);
  return content;
}

// Empty when the file system or the process's limit of mappings does not allow it.
std::optional<OwnedBytes> map(int fd, uint64_t nbytes) {
  void* const data =
      ::mmap(nullptr, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, 0);
  if (data == MAP_FAILED) return std::nullopt;
  return OwnedBytes{MutableBytes(static_cast<uint8_t*>(data), nbytes),
                    std::shared_ptr<void>(data, [nbytes](void* p) { ::munmap(p, nbytes); })};
}

struct Interval {
  uint64_t offset;
  uint64_t end;
};

Interval clip(const Range& range, uint64_t nbytes) {
  if (range.from_end) return {nbytes - std::min(range.nbytes, nbytes), nbytes};
  const uint64_t offset = std::min(range.offset, nbytes);
  return {offset, offset + std::min(range.nbytes, nbytes - offset)};
}

// The whole content, in memory or mapped.
class MemorySource : public Source {
 public:
  MemorySource(std::string name, OwnedBytes content)
      : name_(std::move(name)), content_(std::move(content)) {}

  const std::string& name() const override { return name_; }
  std::optional<uint64_t> nbytes() const override { return content_.bytes.size(); }

  std::optional<OwnedBytes> view(uint64_t offset, uint64_t nbytes) override {
    return OwnedBytes{content_.bytes.subspan(offset, nbytes), content_.owner};
  }

  void start(Range range, Sink& sink) override {
    std::exception_ptr error;
    try {
      auto [offset, end] = clip(range, content_.bytes.size());
      while (offset < end) {
        const MutableBytes room = sink.room(offset, end - offset);
        if (room.empty()) break;
        const size_t nbytes = std::min<uint64_t>(room.size(), end - offset);
        std::memcpy(room.data(), &content_.bytes[offset], nbytes);
        sink.filled(offset, nbytes);
        offset += nbytes;
      }
    } catch (...) {
      error = std::current_exception();
    }
    sink.done(error);
  }

  // start() has called done().
  void cancel(Sink&) override {}

 private:
  const std::string name_;
  const OwnedBytes content_;
};

// A file that is read where it is asked for.
class FileSource : public Source {
 public:
  FileSource(std::string path, Descriptor fd, uint64_t nbytes)
      : path_(std::move(path)), fd_(std::move(fd)), nbytes_(nbytes) {}

  const std::string& name() const override { return path_; }
  std::optional<uint64_t> nbytes() const override { return largest_nbytes(); }
  std::optional<OwnedBytes> view(uint64_t, uint64_t) override { return std::nullopt; }

  std::optional<OwnedBytes> peek(uint64_t offset, uint64_t nbytes) override {
    struct stat status;
    if (::fstat(fd_.get(), &status) != 0) return std::nullopt;
    if (static_cast<uint64_t>(status.st_size) < offset + nbytes) return std::nullopt;
    std::optional<OwnedBytes> all = mapping();
    // It may have grown since it was mapped.
    if (!all || all->bytes.size() < offset + nbytes) return std::nullopt;
    return OwnedBytes{all->bytes.subspan(offset, nbytes), std::move(all->owner)};
  }

  // A disk is fastest with many requests at once; one after the other they take twenty times as
  // long. Where all is in memory, asking for each range would take as long as copying it.
  void will_read(std::span<const Range> ranges) override {
    constexpr uint64_t kMaxNbytes = 1 << 20;  // of longer ones the kernel reads ahead by itself
    if (ranges.size() < 2 || is_in_memory(ranges)) return;
    for (const Range& range : ranges) {
      if (range.nbytes > kMaxNbytes) continue;
      ::posix_fadvise(fd_.get(), static_cast<off_t>(range.offset), static_cast<off_t>(range.nbytes),
                      POSIX_FADV_WILLNEED);
    }
  }

  void start(Range range, Sink& sink) override {
    std::exception_ptr error;
    try {
      const Reading reading(*this, sink);
      auto [offset, end] = clip(range, largest_nbytes());
      while (offset < end) {
        reading.check();
        const MutableBytes room = sink.room(offset, end - offset);
        if (room.empty()) break;
        const size_t nbytes = read_some(
            path_, fd_.get(), room.first(std::min<uint64_t>(room.size(), end - offset)), offset);
        if (nbytes == 0) break;  // truncated since it was opened
        sink.filled(offset, nbytes);
        offset += nbytes;
      }
    } catch (...) {
      error = std::current_exception();
    }
    sink.done(error);
  }

  void cancel(Sink& sink) override {
    const std::lock_guard lock(process_mutex());
    std::erase(reading_, &sink);
  }

 private:
  // What a header counts, of a file that grows, is there when the header has been read. Of one that
  // becomes shorter it stays: who reads what is gone finds that the file ends early.
  uint64_t largest_nbytes() const {
    const uint64_t now = check_regular(path_, fd_.get());
    uint64_t seen = nbytes_;
    while (now > seen && !nbytes_.compare_exchange_weak(seen, now)) {
    }
    return std::max(now, seen);
  }

  // Made at first use. What is copied out of it lies anywhere: the kernel shall not read ahead.
  std::optional<OwnedBytes> mapping() {
    {
      const std::lock_guard lock(process_mutex());
      if (mapping_) return mapping_;
    }
    std::optional<OwnedBytes> made = map(fd_.get(), largest_nbytes());
    if (!made) return std::nullopt;
    ::madvise(made->bytes.data(), made->bytes.size(), MADV_RANDOM);
    const std::lock_guard lock(process_mutex());
    if (!mapping_) std::swap(mapping_, made);  // another thread may have been faster
    return mapping_;
  }

  // Goes by a few of the ranges. False also where the file system does not tell.
  bool is_in_memory(std::span<const Range> ranges) const {
    constexpr size_t kSamples = 8;
    uint8_t byte = 0;
    const iovec room{&byte, 1};
    const size_t step = std::max<size_t>(ranges.size() / kSamples, 1);
    for (size_t i = 0; i < ranges.size(); i += step) {
      const auto offset = static_cast<off_t>(ranges[i].offset);
      if (::preadv2(fd_.get(), &room, 1, offset, RWF_NOWAIT) < 0) return false;
    }
    return true;
  }

  // Keeps the sink in reading_ while its read goes on.
  class Reading {
   public:
    Reading(FileSource& source, Sink& sink) : source_(source), sink_(sink) {
      const std::lock_guard lock(process_mutex());
      source_.reading_.push_back(&sink_);
    }
    ~Reading() {
      const std::lock_guard lock(process_mutex());
      std::erase(source_.reading_, &sink_);
    }
    void check() const {
      const std::lock_guard lock(process_mutex());
      if (std::ranges::find(source_.reading_, &sink_) == source_.reading_.end()) {
        throw InterruptedError(source_.path_ + ": the read was cancelled");
      }
    }

   private:
    FileSource& source_;
    Sink& sink_;
  };

  const std::string path_;
  const Descriptor fd_;
  mutable std::atomic<uint64_t> nbytes_;
  std::vector<Sink*> reading_;         // under process_mutex(), as is
  std::optional<OwnedBytes> mapping_;  // whole; empty before peek()
};

}  // namespace

void throw_file_error(const std::string& path, std::string_view what, int error,
                      std::string_view advice) {
  using Kind = TransportError::Kind;
  Kind kind = Kind::kOther;
  if (error == ENOENT || error == ENOTDIR) kind = Kind::kNotFound;
  if (error == EACCES || error == EPERM) kind = Kind::kDenied;
  throw TransportError(fmt::format("{}: cannot {}: {}{}", path, what, std::strerror(error), advice),
                       kind);
}

std::shared_ptr<Source> open_file(const std::string& path, bool mmap) {
  Descriptor fd = open_descriptor(path);
  const Front front = read_front(fd.get());
  const uint64_t nbytes = check_regular(path, fd.get());
  if (nbytes < kMinMappedNbytes) {
    return make_memory_source(path, read_whole(path, fd.get(), nbytes, front));
  }
  if (mmap) {
    if (auto content = map(fd.get(), nbytes)) {
      std::ranges::copy(front, content->bytes.begin());  // into a page of our own
      return make_memory_source(path, std::move(*content));
    }
  }
  return std::make_shared<FileSource>(path, std::move(fd), nbytes);
}

std::shared_ptr<Source> make_memory_source(std::string name, OwnedBytes content) {
  return std::make_shared<MemorySource>(std::move(name), std::move(content));
}

}  // namespace torchnpy
