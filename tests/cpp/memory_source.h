// Sources for the tests of loaders: bytes in memory, handed out as a test wants them.
#pragma once

#include <algorithm>
#include <cstring>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "base/error.h"
#include "transport/source.h"

namespace torchnpy {

// Answers each read inside start(), in chunks, and remembers what was asked.
class MemorySource final : public Source {
 public:
  explicit MemorySource(std::string object) : object_(std::move(object)) {}

  size_t chunk_nbytes = 16 << 10;  // at most so many bytes at once, as libcurl
  bool size_known = true;          // nbytes() is known once a read has begun
  bool ignores_ranges = false;     // goes on past the end of a range
  bool offers_view = false;
  size_t ends_at = std::string::npos;  // the object ends there, whatever its size says
  std::exception_ptr fault;            // of every read but the first
  std::exception_ptr later_fault;      // instead, of every read but the first two
  bool changes_once = false;           // the first read is restarted half way
  std::string changes_to;              // what the object is after forget()
  ReadSizes sizes;
  std::optional<Checksum> stored;  // the store's
  std::vector<Range> reads;

  ReadSizes read_sizes(uint64_t) const override { return sizes; }
  const std::string& name() const override { return name_; }
  std::optional<uint64_t> nbytes() const override {
    if (!size_known || (!offers_view && reads.empty())) return std::nullopt;
    return object_.size();
  }
  std::optional<OwnedBytes> view(uint64_t offset, uint64_t nbytes) override {
    if (!offers_view) return std::nullopt;
    return OwnedBytes{{reinterpret_cast<uint8_t*>(object_.data()) + offset, nbytes}, nullptr};
  }
  void start(Range range, Sink& sink) override {
    reads.push_back(range);
    std::exception_ptr error = reads.size() > 1 ? fault : nullptr;
    if (reads.size() > 2 && later_fault) error = later_fault;
    if (!error) {
      try {
        send(range, sink);
      } catch (...) {
        error = std::current_exception();
      }
    }
    sink.done(error);
  }
  void cancel(Sink&) override {}
  void forget() override {
    object_ = changes_to;
    fault = nullptr;
    later_fault = nullptr;
  }
  bool asks_checksum() const override { return stored.has_value(); }
  std::optional<Checksum> checksum() const override { return stored; }

 private:
  void send(Range range, Sink& sink) {
    if (range.from_end && !ignores_ranges) {
      range.offset = object_.size() - std::min<uint64_t>(range.nbytes, object_.size());
    }
    const uint64_t object_end = std::min<uint64_t>(object_.size(), ends_at);
    const uint64_t end = ignores_ranges || range.nbytes > object_end
                             ? object_end
                             : std::min(object_end, range.offset + range.nbytes);
    uint64_t offset = range.offset;
    while (offset < end) {
      if (changes_once && offset > range.offset) {
        changes_once = false;
        if (!sink.restart()) throw TransportError("memory: changed while it was read");
        offset = range.offset;
      }
      const MutableBytes room = sink.room(offset, std::min<uint64_t>(chunk_nbytes, end - offset));
      if (room.empty()) return;
      std::memcpy(room.data(), &object_[offset], room.size());
      sink.filled(offset, room.size());
      offset += room.size();
    }
  }

  std::string name_ = "memory";
  std::string object_;
};

// Never answers; reads end when they are cancelled, on a thread of its own as an engine's do.
class StalledSource final : public Source {
 public:
  ~StalledSource() override {
    for (std::thread& thread : threads_) thread.join();
  }
  const std::string& name() const override { return name_; }
  std::optional<uint64_t> nbytes() const override { return std::nullopt; }
  std::optional<OwnedBytes> view(uint64_t, uint64_t) override { return std::nullopt; }
  void start(Range, Sink& sink) override {
    const std::lock_guard lock(mutex_);
    waiting_.insert(&sink);
  }
  void cancel(Sink& sink) override {
    const std::lock_guard lock(mutex_);
    if (waiting_.erase(&sink) == 0) return;
    threads_.emplace_back(
        [&sink] { sink.done(std::make_exception_ptr(InterruptedError("cancelled"))); });
  }

 private:
  std::string name_ = "stalled";
  std::mutex mutex_;
  std::set<Sink*> waiting_;
  std::vector<std::thread> threads_;
};

}  // namespace torchnpy
