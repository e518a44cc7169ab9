// A stretch of an object on its way into memory, in parts; for the loaders.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "archive/loader.h"
#include "base/bytes.h"
#include "transport/source.h"

namespace torchnpy {

// Bytes [begin, end) of the object, and the memory that they go to.
struct Destination {
  uint64_t begin = 0;
  uint64_t end = 0;
  OwnedBytes memory;

  // Memory for the byte at `offset` and what follows, at most `want`; empty outside.
  MutableBytes room(uint64_t offset, size_t want) const;
};

// Throws FormatError: `nbytes` from `offset` on should have come.
[[noreturn]] void throw_cut_short(uint64_t nbytes, uint64_t offset);

// The parts of a destination. It must outlive the reads.
class Parts {
 public:
  // The reads of [begin, end), which lies in the destination, in parts as `source` wants them.
  std::vector<Read> plan(const Destination& destination, uint64_t begin, uint64_t end,
                         const Source& source);
  // When the reads have ended: throws FormatError when the object ended before a part did.
  void check() const;

 private:
  class PartSink;
  std::vector<std::shared_ptr<PartSink>> sinks_;
};

}  // namespace torchnpy
