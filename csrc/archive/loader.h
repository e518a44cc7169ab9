// How a load runs. A loader is a small state machine for one object: it declares the reads
// it needs and performs none (sans I/O), so the same code decodes a byte string, a mapped
// file and an S3 object, and is tested with no network.
#pragma once

#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "format/npy.h"
#include "transport/source.h"

namespace torchnpy {

// Where the bytes of arrays end up: the caller's choice.
class Allocator {
 public:
  virtual ~Allocator() = default;
  // Memory for `nbytes` of data of the array that `header` describes; alignment at least
  // 16. May be called on an I/O thread. Throws what shall end the load.
  virtual OwnedBytes allocate(const NpyHeader& header, uint64_t nbytes) = 0;
};

// Plain memory, aligned to 64.
Allocator& heap_allocator();

struct Read {
  Range range;
  Sink* sink;
};

class Loader {
 public:
  virtual ~Loader() = default;
  virtual Source& source() = 0;
  // The reads that are needed now, to be started at once; an empty list: done. Called again
  // when all reads given out have ended without an error. Throws what ends the load.
  virtual std::vector<Read> next() = 0;
  // The first error among the reads given out; empty while there is none.
  virtual std::exception_ptr error() const = 0;
};

// Runs any number of loaders at once and waits; the results are in the loaders. Elements of
// the answer: what ended that load, nullptr for one that is done. With `fail_fast` the first
// failure ends the others (InterruptedError). Throws InterruptedError itself when the
// waiting thread was interrupted, after no read can write to memory any more.
std::vector<std::exception_ptr> load_all(std::span<Loader* const> loaders, bool fail_fast = true);
