// NPZ archives, written to any target while they are made: nothing but the directory, what is in
// flight (some 32 MiB) and the arrays themselves is held in memory. What they look like is in
// docs/format.md. Equal arrays give equal bytes, whatever the number of threads.
#pragma once

#include <memory>
#include <string_view>

#include "archive/array_view.h"
#include "base/helpers.h"
#include "transport/target.h"

namespace torchnpy {

struct NpzWriterOptions {
  // 0: members are stored, and mapped or downloaded later without a copy. Else deflated, at
  // the levels of format/deflate.h.
  int level = 0;
  // At most so many compress and take checksums, the caller's among them.
  int threads = kMaxThreads;
};

// To be used from one thread, as its target, and not in a forked child. After an error only the
// destructor may follow.
class NpzWriter {
 public:
  // `target` must outlive the writer. Throws ArgumentError for the level.
  NpzWriter(Target& target, NpzWriterOptions options);
  // Returns when no thread reads from an array any more. Writes nothing.
  ~NpzWriter();

  // Adds the member "<name>.npy". The array's data must stay as it is until finish() returns, and
  // there without an owner. Throws ArgumentError: the name is empty, taken, no UTF-8, holds a NUL
  // or is too long; TransportError, InterruptedError: as the target's write().
  void add(std::string_view name, ArrayView array);

  // Writes what is left, and the directory; finishes the target.
  void finish();

 private:
  class State;
  std::unique_ptr<State> state_;
};

}  // namespace torchnpy
