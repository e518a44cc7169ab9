// Any bytes load as an archive or give an Error; the same members with the same bytes, whether
// the source offers views or must be read.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "archive/npz.h"
#include "base/error.h"

namespace torchnpy {
namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

constexpr ZipLimits kLimits{.member_count = 1000, .total_nbytes = 1 << 20};

// The input as an object, with a view or answered in chunks of few bytes.
class InputSource final : public Source {
 public:
  InputSource(ByteView object, bool offers_view)
      : object_(object.begin(), object.end()), offers_view_(offers_view) {}

  const std::string& name() const override { return name_; }
  std::optional<uint64_t> nbytes() const override { return object_.size(); }
  std::optional<OwnedBytes> view(uint64_t offset, uint64_t nbytes) override {
    if (!offers_view_) return std::nullopt;
    require(offset <= object_.size() && nbytes <= object_.size() - offset);
    return OwnedBytes{MutableBytes(object_).subspan(offset, nbytes), nullptr};
  }
  ReadSizes read_sizes(uint64_t) const override { return {.part_nbytes = 5000}; }
  void start(Range range, Sink& sink) override {
    require(!offers_view_);
    std::exception_ptr error;
    try {
      send(range, sink);
    } catch (...) {
      error = std::current_exception();
    }
    sink.done(error);
  }
  void cancel(Sink&) override {}

 private:
  void send(Range range, Sink& sink) {
    uint64_t offset = range.offset;
    if (range.from_end) offset = object_.size() - std::min<uint64_t>(range.nbytes, object_.size());
    require(offset <= object_.size());
    const uint64_t end = offset + std::min<uint64_t>(range.nbytes, object_.size() - offset);
    require(range.from_end || end - offset == range.nbytes);
    while (offset < end) {
      const MutableBytes room = sink.room(offset, std::min<uint64_t>(kChunkNbytes, end - offset));
      if (room.empty()) return;
      require(room.size() <= end - offset);
      std::memcpy(room.data(), &object_[offset], room.size());
      sink.filled(offset, room.size());
      offset += room.size();
    }
  }

  static constexpr uint64_t kChunkNbytes = 1000;
  const std::string name_ = "input";
  std::vector<uint8_t> object_;
  const bool offers_view_;
};

// Gives no more than the limits allow: no claim of the input takes memory.
class BoundedAllocator final : public Allocator {
 public:
  explicit BoundedAllocator(uint64_t object_nbytes)
      : left_nbytes_(object_nbytes + kLimits.total_nbytes) {}
  OwnedBytes allocate(uint64_t nbytes) override {
    require(nbytes <= left_nbytes_);
    left_nbytes_ -= nbytes;
    return allocate_bytes(nbytes);
  }

 private:
  uint64_t left_nbytes_;
};

// What a load gave; entries are empty after an error.
struct Outcome {
  bool is_error = true;
  std::vector<NpzEntry> entries;
  std::shared_ptr<const NpzArchive> archive;
};

// On this thread alone, so that an input always does the same.
Outcome run(NpzLoader& loader) {
  try {
    load_one(loader, {.threads = 1});
  } catch (const Error&) {
    return {};
  }
  return {false, std::move(loader.entries()), loader.archive()};
}

Outcome open(const std::shared_ptr<InputSource>& source) {
  NpzLoadOptions options;
  options.keys.emplace();
  options.limits = kLimits;
  NpzLoader loader(source, heap_allocator(), options);
  return run(loader);
}

Outcome read(const Outcome& opened, const std::string& key, bool header_only, bool verify) {
  NpzLoadOptions options;
  options.keys = {key};
  options.header_only = header_only;
  options.verify = verify;
  NpzLoader loader(opened.archive, heap_allocator(), options);
  return run(loader);
}

bool are_equal(ByteView a, ByteView b) { return std::ranges::equal(a, b); }

void require_equal(const NpyHeader& a, const NpyHeader& b) {
  require(a.descr == b.descr && a.shape == b.shape && a.fortran_order == b.fortran_order);
  require(a.data_offset == b.data_offset && a.nbytes == b.nbytes);
}

void require_equal(const Outcome& a, const Outcome& b) {
  require(a.is_error == b.is_error && a.entries.size() == b.entries.size());
  for (size_t i = 0; i < a.entries.size(); ++i) {
    const NpzEntry& one = a.entries[i];
    const NpzEntry& other = b.entries[i];
    require(one.member == other.member && one.header.has_value() == other.header.has_value());
    require(are_equal(one.data.bytes, other.data.bytes));
    if (one.header) require_equal(*one.header, *other.header);
  }
}

// What was read with its checksum verified is what is read without; and its header, read alone,
// is the same.
void check_member(const Outcome& opened, const std::string& key, const Outcome& unverified) {
  const Outcome verified = read(opened, key, false, true);
  require(!unverified.is_error || verified.is_error);
  if (!verified.is_error) require_equal(verified, unverified);
  if (unverified.is_error) return;
  const NpzEntry& entry = unverified.entries.at(0);
  if (!entry.header) return;
  require(entry.data.bytes.size() == entry.header->nbytes);
  const Outcome header = read(opened, key, true, false);
  require(!header.is_error && header.entries.at(0).header.has_value());
  require_equal(*header.entries.at(0).header, *entry.header);
}

void check_all(ByteView object, const Outcome& expected) {
  BoundedAllocator allocator(object.size());
  NpzLoadOptions options;
  options.limits = kLimits;
  NpzLoader loader(std::make_shared<InputSource>(object, false), allocator, options);
  const Outcome all = run(loader);
  if (!all.is_error) require(all.entries.size() == expected.archive->members().size());
}

void check(ByteView object) {
  const Outcome viewed = open(std::make_shared<InputSource>(object, true));
  const Outcome opened = open(std::make_shared<InputSource>(object, false));
  require(viewed.is_error == opened.is_error);
  if (viewed.is_error) return;
  const std::vector<std::string> keys = viewed.archive->keys();
  require(keys == opened.archive->keys());
  for (size_t i = 0; i < keys.size(); ++i) {
    require(viewed.archive->at(keys[i]) == i);
    const Outcome by_view = read(viewed, keys[i], false, false);
    const Outcome by_read = read(opened, keys[i], false, false);
    require_equal(by_view, by_read);
    check_member(viewed, keys[i], by_view);
    check_member(opened, keys[i], by_read);
    require_equal(read(viewed, keys[i], true, false), read(opened, keys[i], true, false));
  }
  check_all(object, viewed);
}

// The same with its members before the first read, which holds little more than the end record.
void check_before_tail(ByteView object) {
  constexpr size_t kInTailNbytes = 80;
  std::vector<uint8_t> longer(object.begin(), object.end());
  longer.resize(longer.size() + kMinZipTailNbytes - kInTailNbytes);
  check(longer);
}

}  // namespace
}  // namespace torchnpy

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  torchnpy::check({data, size});
  torchnpy::check_before_tail({data, size});
  return 0;
}
