#include "archive/parts.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"

namespace torchnpy {

MutableBytes Destination::room(uint64_t offset, size_t want) const {
  if (offset < begin || offset >= end) return {};
  return memory.bytes.subspan(offset - begin, std::min<uint64_t>(want, end - offset));
}

void throw_cut_short(uint64_t nbytes, uint64_t offset) {
  throw FormatError(
      fmt::format("expected {} more bytes at byte {} but the object ends there", nbytes, offset));
}

class Parts::PartSink final : public Sink {
 public:
  PartSink(const Destination& destination, uint64_t begin, uint64_t end)
      : destination_(destination), offset_(begin), end_(end) {}
  MutableBytes room(uint64_t offset, size_t want) override {
    if (offset >= end_) return {};
    return destination_.room(offset, std::min<uint64_t>(want, end_ - offset));
  }
  void filled(uint64_t offset, size_t nbytes) override { offset_ = offset + nbytes; }
  void done(std::exception_ptr) override {}
  Range range() const { return {offset_, end_ - offset_}; }
  uint64_t missing_nbytes() const { return end_ - offset_; }
  uint64_t end() const { return end_; }

 private:
  const Destination& destination_;
  uint64_t offset_;  // of the next byte
  uint64_t end_;
};

std::vector<Read> Parts::plan(const Destination& destination, uint64_t begin, uint64_t end,
                              const Source& source) {
  const uint64_t part_nbytes = begin < end ? source.read_sizes(end - begin).part_nbytes : 0;
  while (begin < end) {
    const uint64_t nbytes = std::min(std::max<uint64_t>(part_nbytes, 1), end - begin);
    sinks_.push_back(std::make_shared<PartSink>(destination, begin, begin + nbytes));
    begin += nbytes;
  }
  std::vector<Read> reads;
  for (const auto& sink : sinks_) reads.push_back({sink->range(), sink.get()});
  return reads;
}

void Parts::check() const {
  for (const auto& sink : sinks_) {
    if (sink->missing_nbytes() == 0) continue;
    throw_cut_short(sink->missing_nbytes(), sink->end() - sink->missing_nbytes());
  }
}

}  // namespace torchnpy
