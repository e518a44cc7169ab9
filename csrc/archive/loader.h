// How a load runs. A loader is a small state machine for one object: it declares the reads
// it needs and performs none (sans I/O), so the same code decodes a byte string, a mapped
// file and an S3 object, and is tested with no network.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/helpers.h"
#include "format/npy.h"
#include "transport/source.h"

namespace torchnpy {

// Who does a loader's CPU work.
class Workers {
 public:
  virtual ~Workers() = default;
  // `work` will run once, on any thread; of much work the dearest runs first. `cost_ns`: the time
  // that it takes, roughly. What it throws ends the load.
  virtual void run(std::function<void()> work, uint64_t cost_ns) = 0;
};

// Where the bytes of arrays end up: the caller's choice.
class Allocator {
 public:
  virtual ~Allocator() = default;
  // Comes before allocate(), which may ask `workers`, as the loader may.
  virtual void attach(Workers&) {}
  // Memory for `nbytes`, alignment at least 16. Called once an array, or again when its load
  // starts anew; by any number of threads at once, I/O threads among them. Throws what shall
  // end the load.
  virtual OwnedBytes allocate(uint64_t nbytes) = 0;
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
  // Comes before next(). The loader may ask `workers` in next() and while its reads are filled.
  virtual void attach(Workers&) {}
  // The reads that are needed now, to be started at once; an empty list, and no work for the
  // workers: done. Called again when all reads and all work given out have ended without an
  // error. Throws what ends the load.
  virtual std::vector<Read> next() = 0;
  // The object changed while it was loaded: begins again, as if next() had never been called.
  // All reads and work given out have ended. False: cannot, and the load fails.
  virtual bool restart() = 0;
};

// Runs any number of loaders at once and waits; the results are in the loaders. Element i of
// the answer is what ended loader i, nullptr when it is done. A load whose object changes
// meanwhile, or comes damaged, begins again, once. With `fail_fast` the first
// failure ends the others (their element is an InterruptedError). Throws InterruptedError
// itself when the waiting thread was interrupted. Either way no read can write to memory
// any more when it returns. CPU work is done by the waiting thread and by the process's
// helpers (base/helpers.h), at most `threads` in all.
struct RunOptions {
  bool fail_fast = true;
  int threads = kMaxThreads;
};
std::vector<std::exception_ptr> load_all(std::span<Loader* const> loaders, RunOptions options = {});

// load_all() for one.
void load_one(Loader& loader, RunOptions options = {});

// Rows [start, stop) of the first axis, as Python slices them: negative ones count from the
// end, and what lies outside is cut off.
struct RowSlice {
  int64_t start = 0;
  int64_t stop = std::numeric_limits<int64_t>::max();
};

struct NpyLoadOptions {
  std::optional<RowSlice> rows;
  bool allow_void = false;  // the caller will say what the bits of a void dtype are
};

// The first read, of the header and what follows it, where not all of the object is wanted.
inline constexpr uint64_t kFirstReadNbytes = 64 << 10;

// Loads one .npy: the first bytes -> header -> destination -> the rest, in parts, into it. A
// source that offers a view is not copied, however its data is aligned. An array that is all of its
// object is compared with the store's checksum where the source asks for one: the first read is
// then of the whole object, and given up where parts get the rest sooner.
class NpyLoader final : public Loader {
 public:
  // `allocator` must outlive the loader.
  NpyLoader(std::shared_ptr<Source> source, Allocator& allocator, NpyLoadOptions options = {});
  ~NpyLoader() override;
  Source& source() override;
  void attach(Workers& workers) override;
  std::vector<Read> next() override;
  bool restart() override;

  // When done. With `rows` the shape, count and nbytes are those of the slice.
  NpyHeader& header();
  // The array's bytes as stored: byte order not changed.
  OwnedBytes& data();
  // True when data() shares the source's memory, false when the allocator gave it.
  bool is_view() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Loads bytes [offset, offset + nbytes) of any object; to its end with Range::kToEnd.
// FormatError when the object is shorter.
class BytesLoader final : public Loader {
 public:
  BytesLoader(std::shared_ptr<Source> source, Allocator& allocator, uint64_t offset,
              uint64_t nbytes = Range::kToEnd);
  ~BytesLoader() override;
  Source& source() override;
  std::vector<Read> next() override;
  bool restart() override;
  OwnedBytes& data();  // when done

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace torchnpy
