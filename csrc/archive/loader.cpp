#include "archive/loader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "archive/parts.h"
#include "archive/whole_check.h"
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
  enum class Stage { kStart, kFirstRead, kParts, kCheck, kDone } stage = Stage::kStart;
  std::optional<NpyHeader> header;
  Destination destination;
  bool is_view = false;
  uint64_t first_nbytes = 0;  // of the first read, which
  uint64_t filled_end = 0;    // has filled the destination up to here
  Parts parts;
  Workers* workers = nullptr;
  std::optional<WholeCheck> check;  // where the store has a checksum of what is loaded
  Destination tail;                 // with a check: what comes after the array

  // The start of the object, until the header is parsed; afterwards a place for bytes that
  // nobody wants.
  std::vector<uint8_t> scratch;
  size_t scratch_nbytes = 0;

  std::vector<Read> next() {
    switch (stage) {
      case Stage::kStart: return next_start();
      case Stage::kFirstRead: return next_parts();
      case Stage::kParts: return next_check();
      case Stage::kCheck: check->compare(source->name()); [[fallthrough]];
      case Stage::kDone: stage = Stage::kDone; return {};
    }
    return {};
  }

  bool wants_checksum() const { return source->asks_checksum() && !options.rows; }

  std::vector<Read> next_check() {
    parts.check();
    stage = check ? Stage::kCheck : Stage::kDone;
    if (!check) return {};
    if (check->start(destination.memory.bytes, tail.memory.bytes, workers)) return {};
    return next();
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
    const bool is_whole = !options.rows;
    first_nbytes = is_whole ? source->read_sizes(0).first_nbytes : kFirstReadNbytes;
    // Stores send the checksum only with an answer that was asked for without a range.
    return {{wants_checksum() ? Range{} : Range{0, first_nbytes}, this}};
  }

  std::vector<Read> next_parts() {
    const bool has_bytes = header || scratch_nbytes != 0;
    if (!has_bytes && take_view()) return {};
    stage = Stage::kParts;
    if (!header) read_header(ByteView(scratch).first(scratch_nbytes));  // throws: it is cut short
    auto reads = parts.plan(destination, filled_end, destination.end, *source);
    if (check) {
      const uint64_t begin = std::max(filled_end, tail.begin);
      reads = parts.plan(tail, begin, tail.end, *source);  // those before, too
    }
    return reads.empty() ? next() : reads;
  }

  // Parses the header and finds what is wanted of the data. Nothing is allocated before the
  // size that the header declares is held against the bytes that are there.
  void read_header(ByteView bytes) {
    NpyHeader parsed = parse_npy_header(bytes);
    uint64_t begin = parsed.data_offset;
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
    const uint64_t end = check ? tail.end : destination.end;
    if (offset >= first_nbytes && wants_checksum() && offset < end &&
        end - offset > source->read_sizes(Range::kToEnd).part_nbytes) {
      return {};  // the parts come over many connections
    }
    MutableBytes wanted = destination.room(offset, want);
    if (wanted.empty() && check) wanted = tail.room(offset, want);
    if (!wanted.empty() || offset >= first_nbytes) return wanted;
    const uint64_t unwanted_end = offset < destination.begin ? destination.begin : first_nbytes;
    scratch.resize(std::min<uint64_t>(want, unwanted_end - offset));
    return scratch;
  }

  void filled(uint64_t offset, size_t nbytes) override {
    if (header) {
      const uint64_t end = check ? tail.end : destination.end;
      if (offset >= destination.begin && offset < end) filled_end = offset + nbytes;
      return;
    }
    scratch_nbytes += nbytes;
    const ByteView prefix = ByteView(scratch).first(scratch_nbytes);
    const std::optional<uint64_t> data_offset = find_npy_data_offset(prefix);
    if (!data_offset || prefix.size() < *data_offset) return;
    read_header(prefix);
    begin_check(prefix.first(*data_offset));
    destination.memory = allocate(destination.end - destination.begin);
    filled_end = std::clamp<uint64_t>(prefix.size(), destination.begin, destination.end);
    if (filled_end > destination.begin) {
      std::memcpy(destination.memory.bytes.data(), &prefix[destination.begin],
                  filled_end - destination.begin);
    }
    if (check && prefix.size() > tail.begin) {
      filled_end = std::min<uint64_t>(prefix.size(), tail.end);
      std::memcpy(tail.memory.bytes.data(), &prefix[tail.begin], filled_end - tail.begin);
    }
  }

  // `front`: what is before the array. What is after it is read for the checksum alone: that there
  // is something may be the damage.
  void begin_check(ByteView front) {
    constexpr uint64_t kMaxTailNbytes = 64 << 20;
    if (!wants_checksum()) return;
    const std::optional<uint64_t> nbytes = source->nbytes();
    const std::optional<Checksum> expected = source->checksum();
    if (!nbytes || !expected || *nbytes - destination.end > kMaxTailNbytes) return;
    tail = {destination.end, *nbytes, allocate_bytes(*nbytes - destination.end)};
    check.emplace(*expected, front);
  }

  bool restart() override {
    check.reset();
    tail = {};
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
void NpyLoader::attach(Workers& workers) {
  state_->workers = &workers;
  state_->allocator.attach(workers);
}
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
        uint64_t nbytes_in)
      : source(std::move(source_in)),
        allocator(allocator_in),
        offset(offset_in),
        nbytes(nbytes_in) {}

  std::shared_ptr<Source> source;
  Allocator& allocator;
  const uint64_t offset;
  const uint64_t nbytes;
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
        return {{Range{offset, std::min(nbytes, source->read_sizes(0).first_nbytes)}, this}};
      case Stage::kFirstRead:
        stage = Stage::kParts;
        if (!destination) find_destination();
        return parts.plan(*destination, filled_end, destination->end, *source);
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
                         uint64_t nbytes)
    : state_(std::make_unique<State>(std::move(source), allocator, offset, nbytes)) {}
BytesLoader::~BytesLoader() = default;
Source& BytesLoader::source() { return *state_->source; }
std::vector<Read> BytesLoader::next() { return state_->next(); }
bool BytesLoader::restart() {
  state_->stage = State::Stage::kStart;
  return state_->restart();
}
OwnedBytes& BytesLoader::data() { return state_->destination->memory; }

}  // namespace torchnpy
