#include "archive/rows.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <utility>

#include "archive/parts.h"
#include "archive/runs.h"
#include "base/error.h"

namespace torchnpy {
namespace {

// A system call that reads this much costs no more than the page faults of copying it from a
// mapping; and the kernel reads ahead by what it asks for.
constexpr uint64_t kWorthReading_nbytes = 32 << 10;
// Of one piece of copying: it cannot be interrupted.
constexpr uint64_t kCopyNbytes = 4 << 20;
constexpr uint64_t kCopiedNbytesPer_ns = 4;
// Rows that lie anywhere in memory: so many ahead are fetched into the processor's cache.
constexpr size_t kPrefetchedRows = 8;

}  // namespace

RowLayout find_rows(const NpyHeader& header) {
  if (header.shape.empty()) {
    throw ArgumentError("expected an array with rows but found one of shape (); load it whole");
  }
  if (header.fortran_order && header.shape.size() > 1) {
    throw UnsupportedError(
        "expected C order but found fortran_order: True; rows do not lie together: save the array "
        "again as numpy.ascontiguousarray() makes it, or load it whole");
  }
  RowLayout layout;
  layout.data_offset = header.data_offset;
  layout.row_count = header.shape[0];
  if (layout.row_count != 0) layout.row_nbytes = header.nbytes / layout.row_count;
  return layout;
}

struct RowsLoader::State {
  State(std::shared_ptr<Source> source_in, const RowLayout& layout_in,
        std::vector<RowTarget> targets_in, uint64_t free_gap_nbytes_in)
      : source(std::move(source_in)),
        layout(layout_in),
        free_gap_nbytes(free_gap_nbytes_in),
        targets(std::move(targets_in)) {}

  // Fills the rows that lie in one read.
  class RunSink final : public Sink {
   public:
    // `at`: the stretch that `begin` lies in.
    RunSink(const State& state, size_t at, uint64_t begin, uint64_t end)
        : state_(state), at_(at), next_(begin), end_(end) {}

    MutableBytes room(uint64_t offset, size_t want) override {
      if (offset >= end_) return {};
      const uint64_t wanted = std::min<uint64_t>(want, end_ - offset);
      while (state_.stretches[at_].end <= offset) ++at_;
      const Stretch& stretch = state_.stretches[at_];
      if (offset < stretch.begin) {
        gap_.resize(std::min<uint64_t>({wanted, stretch.begin - offset, kGapRoomNbytes}));
        return gap_;
      }
      uint8_t* const memory = state_.targets[stretch.place].memory + (offset - stretch.begin);
      return {memory, std::min<uint64_t>(wanted, stretch.end - offset)};
    }
    void filled(uint64_t offset, size_t nbytes) override { next_ = offset + nbytes; }
    void done(std::exception_ptr) override {}

    Range range() const { return {next_, end_ - next_}; }
    // When the read has ended.
    void check() const {
      if (next_ < end_) throw_cut_short(end_ - next_, next_);
    }

   private:
    const State& state_;
    size_t at_;
    uint64_t next_;  // byte to come
    const uint64_t end_;
    std::vector<uint8_t> gap_;
  };

  const std::shared_ptr<Source> source;
  const RowLayout layout;
  const uint64_t free_gap_nbytes;
  const std::vector<RowTarget> targets;
  Workers* workers = nullptr;
  bool has_begun = false;
  // Wanted, in order, no byte twice. The place is the first target that it goes to; the memory of
  // those behind it follows.
  std::vector<Stretch> stretches;
  std::deque<RunSink> sinks;

  uint64_t begin_of(uint64_t row) const { return layout.data_offset + row * layout.row_nbytes; }

  std::vector<Read> next() {
    if (std::exchange(has_begun, true)) {
      finish();
      return {};
    }
    if (targets.empty() || layout.row_nbytes == 0) return {};
    const uint64_t end = begin_of(targets.back().row + 1);
    if (const std::optional<uint64_t> nbytes = source->nbytes(); nbytes && *nbytes < end) {
      throw FormatError(
          fmt::format("expected {} bytes up to row {} but found {}; the object is truncated", end,
                      targets.back().row, *nbytes));
    }
    find_stretches();
    announce_reads();
    return copy_peeked() ? std::vector<Read>{} : plan_reads();
  }

  void find_stretches() {
    const uint64_t nbytes = layout.row_nbytes;
    for (size_t i = 0; i < targets.size(); ++i) {
      const uint64_t begin = begin_of(targets[i].row);
      if (!stretches.empty()) {
        Stretch& last = stretches.back();
        if (begin < last.end) continue;  // again: copied in the end
        uint8_t* const follows = targets[last.place].memory + (last.end - last.begin);
        if (begin == last.end && targets[i].memory == follows) {
          last.end += nbytes;
          continue;
        }
      }
      stretches.push_back({i, begin, begin + nbytes});
    }
  }

  void announce_reads() const {
    std::vector<Range> ranges;
    ranges.reserve(stretches.size());
    for (const Stretch& stretch : stretches) {
      ranges.push_back({stretch.begin, stretch.end - stretch.begin});
    }
    source->will_read(ranges);
  }

  // True when the rows are copied, or will be by the workers.
  bool copy_peeked() {
    uint64_t wanted_nbytes = 0;
    size_t run_count = 0;
    uint64_t end = 0;
    for (const Stretch& stretch : stretches) {
      wanted_nbytes += stretch.end - stretch.begin;
      if (stretch.begin != std::exchange(end, stretch.end)) ++run_count;
    }
    if (wanted_nbytes / run_count >= kWorthReading_nbytes) return false;
    const uint64_t begin = stretches.front().begin;
    const std::optional<OwnedBytes> bytes = source->peek(begin, stretches.back().end - begin);
    if (!bytes) return false;
    size_t first = 0;
    uint64_t nbytes = 0;
    for (size_t i = 0; i < stretches.size(); ++i) {
      nbytes += stretches[i].end - stretches[i].begin;
      if (nbytes < kCopyNbytes && i + 1 < stretches.size()) continue;
      auto copy = [this, owned = *bytes, begin, first, last = i + 1] {
        copy_stretches(owned.bytes.data(), begin, first, last);
      };
      const bool is_all = first == 0 && i + 1 == stretches.size();
      if (is_all) {  // next() will not be called again
        copy();
        finish();
      } else {
        workers->run(std::move(copy), nbytes / kCopiedNbytesPer_ns);
      }
      first = i + 1;
      nbytes = 0;
    }
    return true;
  }

  // `from`: the object's bytes at `offset` and behind.
  void copy_stretches(const uint8_t* from, uint64_t offset, size_t first, size_t last) const {
    for (size_t i = first; i < last; ++i) {
      if (i + kPrefetchedRows < last) {
        __builtin_prefetch(from + (stretches[i + kPrefetchedRows].begin - offset));
      }
      const Stretch& stretch = stretches[i];
      std::memcpy(targets[stretch.place].memory, from + (stretch.begin - offset),
                  stretch.end - stretch.begin);
    }
  }

  std::vector<Read> plan_reads() {
    size_t first = 0;
    const ReadSizes sizes = source->read_sizes(Range::kToEnd);
    for (const size_t last : find_runs(stretches, free_gap_nbytes, sizes)) {
      const uint64_t run_end = stretches[last - 1].end;
      uint64_t begin = stretches[first].begin;
      const uint64_t part_nbytes =
          std::max<uint64_t>(source->read_sizes(run_end - begin).part_nbytes, 1);
      for (size_t at = first; begin < run_end;) {
        const uint64_t end = begin + std::min(part_nbytes, run_end - begin);
        sinks.emplace_back(*this, at, begin, end);
        while (at < last && stretches[at].end <= end) ++at;
        begin = end;
      }
      first = last;
    }
    std::vector<Read> reads;
    reads.reserve(sinks.size());
    for (RunSink& sink : sinks) reads.push_back({sink.range(), &sink});
    return reads;
  }

  void finish() {
    for (const RunSink& sink : sinks) sink.check();
    for (size_t i = 1; i < targets.size(); ++i) {
      if (targets[i].row != targets[i - 1].row || layout.row_nbytes == 0) continue;
      std::memcpy(targets[i].memory, targets[i - 1].memory, layout.row_nbytes);
    }
  }
};

RowsLoader::RowsLoader(std::shared_ptr<Source> source, const RowLayout& layout,
                       std::vector<RowTarget> targets, uint64_t free_gap_nbytes)
    : state_(std::make_unique<State>(std::move(source), layout, std::move(targets),
                                     free_gap_nbytes)) {}
RowsLoader::~RowsLoader() = default;
Source& RowsLoader::source() { return *state_->source; }
void RowsLoader::attach(Workers& workers) { state_->workers = &workers; }
std::vector<Read> RowsLoader::next() { return state_->next(); }
bool RowsLoader::restart() { return false; }

}  // namespace torchnpy
