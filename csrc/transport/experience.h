// What the requests of a client have shown of its objects and of the way to them.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "transport/source.h"

namespace torchnpy {

// Thread-safe; a forked child goes on with its parent's.
class Experience {
 public:
  // An object of so many bytes was read from its beginning.
  void saw_object(uint64_t nbytes);
  // A request was answered after `first_byte_us`, with a body that took `body_us` after that.
  void saw_answer(uint64_t first_byte_us, uint64_t body_nbytes, uint64_t body_us);

  // What one in twenty of the last answers was later than; empty while they are too few to say.
  std::optional<uint64_t> late_us() const;
  // The first read of the next object: nine of ten small objects came whole with it.
  uint64_t first_nbytes() const { return first_nbytes_.load(std::memory_order_relaxed); }
  // The parts of a stretch: about sixteen, so that they come side by side, but none so small that
  // it takes longer to be asked for than to come.
  uint64_t part_nbytes(uint64_t wanted_nbytes, uint64_t max_nbytes) const;
  // How many parts of one object shall be in flight at once: where answers come at once, more cost
  // time and bring no bytes earlier.
  size_t parts_in_flight(int io_threads) const;

 private:
  void saw_first_byte(uint64_t us);

  static constexpr uint64_t kMinFirstNbytes = 64 << 10;
  static constexpr uint64_t kMaxFirstNbytes = 1 << 20;
  static constexpr size_t kSizeCount = 32;
  static constexpr size_t kAnswerCount = 256;

  std::array<std::atomic<uint64_t>, kSizeCount> sizes_{};  // of the last objects
  std::atomic<uint64_t> seen_count_{0};
  std::atomic<uint64_t> first_nbytes_{kMinFirstNbytes};
  // Averages in which an answer counts for an eighth; 0 before the first.
  std::atomic<uint64_t> first_byte_us_{0};
  std::atomic<uint64_t> nbytes_per_s_{0};                         // of one connection
  std::array<std::atomic<uint64_t>, kAnswerCount> answers_us_{};  // the first bytes of the last
  std::atomic<uint64_t> answer_count_{0};
  std::atomic<uint64_t> late_us_{0};  // 0: not known
};

}  // namespace torchnpy
