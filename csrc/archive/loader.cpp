#include "archive/loader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "archive/parts.h"
#include "base/error.h"

namespace torchnpy {
namespace {

class HeapAllocator final : public Allocator {
 public:
  OwnedBytes allocate(uint64_t nbytes) override { return allocate_bytes(nbytes); }
};

// Makes `header` that of rows [start, stop); returns where they begin, in bytes of data.
uint64_t slice_rows(NpyHeader& header, const RowSlice& rows) {
  if (header.shape.empty()) {
    throw ArgumentError("expected an array with rows but found one of shape (); load it whole");
  }
  if (header.fortran_order && header.shape.size() > 1) {
    throw UnsupportedError(
        "expected C order but found fortran_order: True; rows do not lie together, load the "
        "whole array");
  }
  const uint64_t count = header.shape[0];
  const auto clamp = [count](int64_t index) -> uint64_t {
    if (index >= 0) return std::min<uint64_t>(static_cast<uint64_t>(index), count);
    const uint64_t from_end = uint64_t{0} - static_cast<uint64_t>(index);
    return from_end > count ? 0 : count - from_end;
  };
  const uint64_t start = clamp(rows.start);
  const uint64_t stop = std::max(start, clamp(rows.stop));
  const uint64_t row_count = count == 0 ? 0 : header.count / count;
  const uint64_t row_nbytes = count == 0 ? 0 : header.nbytes / count;
  header.shape[0] = stop - start;
  header.count = row_count * (stop - start);
  header.nbytes = row_nbytes * (stop - start);
  return row_nbytes * start;
}

}  // namespace

Allocator& heap_allocator() {
  static HeapAllocator instance;
  return instance;
}

struct NpyLoader::State final : Sink {
  State(std::shared_ptr<Source> source_in, Allocator& allocator_in, NpyLoadOptions options_in)
      : source(std::move(source_in)), allocator(allocator_in), options(options_in) {}

  std::shared_ptr<Source> source;
  Allocator& allocator;
  const NpyLoadOptions options;
  enum class Stage { kStart, kFirstRead, kParts, kDone } stage = Stage::kStart;
  std::optional<NpyHeader> header;
  Destination destination;
  bool is_view = false;
  uint64_t filled_end = 0;  // the first read has filled the destination up to here
  Parts parts;

  // The start of the object, until the header is parsed; afterwards a place for bytes that
  // nobody wants.
  std::vector<uint8_t> scratch;
  size_t scratch_nbytes = 0;

  std::vector<Read> next() {
    switch (stage) {
      case Stage::kStart: return next_start();
      case Stage::kFirstRead: return next_parts();
      case Stage::kParts: parts.check(); [[fallthrough]];
      case Stage::kDone: stage = Stage::kDone; return {};
    }
    return {};
  }

  bool take_view() {
    const std::optional<uint64_t> nbytes = source->nbytes();
    std::optional<OwnedBytes> all = nbytes ? source->view(0, *nbytes) : std::nullopt;
    if (!all) return false;
    stage = Stage::kDone;
    is_view = true;
    read_header(all->bytes);
    destination.memory = {
        all->bytes.subspan(destination.begin, destination.end - destination.begin),
        std::move(all->owner)};
    return true;
  }

  std::vector<Read> next_start() {
    if (take_view()) return {};
    stage = Stage::kFirstRead;
    return {{Range{0, kFirstReadNbytes}, this}};
  }

  std::vector<Read> next_parts() {
    const bool has_bytes = header || scratch_nbytes != 0;
    if (!has_bytes && take_view()) return {};
    stage = Stage::kParts;
    if (!header) read_header(ByteView(scratch).first(scratch_nbytes));  // throws: it is cut short
    return parts.plan(destination, filled_end, destination.end, options.part_nbytes);
  }

  // Parses the header and finds what is wanted of the data. Nothing is allocated before the
  // size that the header declares is held against the bytes that are there.
  void read_header(ByteView bytes) {
    NpyHeader parsed = parse_npy_header(bytes);
    uint64_t begin = parsed.data_offset;
    if (options.header_only) {
      destination.begin = destination.end = begin;
      header = std::move(parsed);
      return;
    }
    const bool is_void = parsed.dtype.type == ScalarType::kVoid;
    if (!(is_void && options.allow_void)) check_npy_loadable(parsed.dtype);
    if (const std::optional<uint64_t> nbytes = source->nbytes()) {
      check_npy_data(parsed, *nbytes - std::min(*nbytes, begin));
    }
    if (options.rows) begin += slice_rows(parsed, *options.rows);
    destination.begin = begin;
    destination.end = begin + parsed.nbytes;
    header = std::move(parsed);
  }

  OwnedBytes allocate(uint64_t nbytes) {
    try {
      return allocator.allocate(nbytes);
    } catch (const std::exception& error) {
      if (source->nbytes()) throw;
      // The server did not say how much there is, so nothing spoke against the header.
      throw FormatError(fmt::format(
          "expected an array that fits into memory but found a header of {} bytes of data ({})",
          header->nbytes, error.what()));
    }
  }

  bool prefers_view() const override { return stage == Stage::kFirstRead; }

  MutableBytes room(uint64_t offset, size_t want) override {
    if (!header) {
      // A header is seldom longer than 128 bytes; what is read beyond it is copied.
      const ByteView prefix = ByteView(scratch).first(scratch_nbytes);
      scratch.resize(find_npy_data_offset(prefix).value_or(512));
      return MutableBytes(scratch).subspan(scratch_nbytes,
                                           std::min(want, scratch.size() - scratch_nbytes));
    }
    const MutableBytes wanted = destination.room(offset, want);
    if (!wanted.empty() || offset >= kFirstReadNbytes) return wanted;
    const uint64_t unwanted_end = offset < destination.begin ? destination.begin : kFirstReadNbytes;
    scratch.resize(std::min<uint64_t>(want, unwanted_end - offset));
    return scratch;
  }

  void filled(uint64_t offset, size_t nbytes) override {
    if (header) {
      if (offset >= destination.begin && offset < destination.end) filled_end = offset + nbytes;
      return;
    }
    scratch_nbytes += nbytes;
    const ByteView prefix = ByteView(scratch).first(scratch_nbytes);
    const std::optional<uint64_t> data_offset = find_npy_data_offset(prefix);
    if (!data_offset || prefix.size() < *data_offset) return;
    read_header(prefix);
    destination.memory = allocate(destination.end - destination.begin);
    filled_end = std::clamp<uint64_t>(prefix.size(), destination.begin, destination.end);
    if (filled_end > destination.begin) {
      std::memcpy(destination.memory.bytes.data(), &prefix[destination.begin],
                  filled_end - destination.begin);
    }
  }

  bool restart() override {
    header.reset();
    is_view = false;
    destination = {};
    parts = {};
    scratch_nbytes = 0;
    filled_end = 0;
    return true;
  }

  void done(std::exception_ptr) override {}
};

NpyLoader::NpyLoader(std::shared_ptr<Source> source, Allocator& allocator, NpyLoadOptions options)
    : state_(std::make_unique<State>(std::move(source), allocator, options)) {}
NpyLoader::~NpyLoader() = default;
Source& NpyLoader::source() { return *state_->source; }
std::vector<Read> NpyLoader::next() { return state_->next(); }
bool NpyLoader::restart() {
  state_->stage = State::Stage::kStart;
  return state_->restart();
}
NpyHeader& NpyLoader::header() { return *state_->header; }
OwnedBytes& NpyLoader::data() { return state_->destination.memory; }
bool NpyLoader::is_view() const { return state_->is_view; }

struct BytesLoader::State final : Sink {
  State(std::shared_ptr<Source> source_in, Allocator& allocator_in, uint64_t offset_in,
        uint64_t nbytes_in, uint64_t part_nbytes_in)
      : source(std::move(source_in)),
        allocator(allocator_in),
        offset(offset_in),
        nbytes(nbytes_in),
        part_nbytes(part_nbytes_in) {}

  std::shared_ptr<Source> source;
  Allocator& allocator;
  const uint64_t offset;
  const uint64_t nbytes;
  const uint64_t part_nbytes;
  enum class Stage { kStart, kFirstRead, kParts, kDone } stage = Stage::kStart;
  std::optional<Destination> destination;  // once the object's size is known
  uint64_t filled_end = 0;
  Parts parts;

  std::vector<Read> next() {
    switch (stage) {
      case Stage::kStart:
        if (nbytes == 0) {
          stage = Stage::kDone;
          destination.emplace(Destination{offset, offset, allocator.allocate(0)});
          return {};
        }
        stage = Stage::kFirstRead;
        return {{Range{offset, std::min(nbytes, kFirstReadNbytes)}, this}};
      case Stage::kFirstRead:
        stage = Stage::kParts;
        if (!destination) find_destination();
        return parts.plan(*destination, filled_end, destination->end, part_nbytes);
      case Stage::kParts: parts.check(); [[fallthrough]];
      case Stage::kDone: stage = Stage::kDone; return {};
    }
    return {};
  }

  void find_destination() {
    const std::optional<uint64_t> object_nbytes = source->nbytes();
    if (!object_nbytes) {
      throw UnsupportedError(
          "expected an answer that gives the object's size but found none; the server sends it "
          "in chunks of unknown total");
    }
    const uint64_t available = *object_nbytes - std::min(*object_nbytes, offset);
    const bool to_end = nbytes == Range::kToEnd;
    if (offset > *object_nbytes || (!to_end && nbytes > available)) {
      throw FormatError(fmt::format("expected {} at byte {} but the object has {} bytes",
                                    to_end ? "bytes" : fmt::format("{} bytes", nbytes), offset,
                                    *object_nbytes));
    }
    const uint64_t wanted = to_end ? available : nbytes;
    destination.emplace(Destination{offset, offset + wanted, allocator.allocate(wanted)});
    filled_end = offset;
  }

  MutableBytes room(uint64_t at, size_t want) override {
    if (!destination) find_destination();
    return destination->room(at, want);
  }
  void filled(uint64_t at, size_t filled_nbytes) override { filled_end = at + filled_nbytes; }
  bool restart() override {
    destination.reset();
    parts = {};
    return true;
  }
  void done(std::exception_ptr) override {}
};

BytesLoader::BytesLoader(std::shared_ptr<Source> source, Allocator& allocator, uint64_t offset,
                         uint64_t nbytes, uint64_t part_nbytes)
    : state_(std::make_unique<State>(std::move(source), allocator, offset, nbytes, part_nbytes)) {}
BytesLoader::~BytesLoader() = default;
Source& BytesLoader::source() { return *state_->source; }
std::vector<Read> BytesLoader::next() { return state_->next(); }
bool BytesLoader::restart() {
  state_->stage = State::Stage::kStart;
  return state_->restart();
}
OwnedBytes& BytesLoader::data() { return state_->destination->memory; }

}  // namespace torchnpy
