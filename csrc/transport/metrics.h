// What a client did, counted by the I/O threads that do it.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <string>

#include "base/fork.h"

namespace torchnpy {

// How many of something are under way in this process: a forked child starts from zero, for
// what the parent had begun ends in the parent. The upper half holds the fork generation.
class Gauge {
 public:
  void add(int32_t change) {
    uint64_t seen = packed_.load(std::memory_order_relaxed);
    while (!packed_.compare_exchange_weak(
        seen, pack(static_cast<uint32_t>(unpack(seen)) + static_cast<uint32_t>(change)),
        std::memory_order_relaxed)) {
    }
  }
  int32_t value() const { return unpack(packed_.load(std::memory_order_relaxed)); }

 private:
  static uint64_t pack(uint32_t count) { return fork_count() << 32 | count; }
  static int32_t unpack(uint64_t packed) {
    return packed >> 32 == (fork_count() & 0xFFFFFFFF) ? static_cast<int32_t>(packed) : 0;
  }
  std::atomic<uint64_t> packed_{0};
};

// Counters of a client. A forked child goes on from the parent's counts in its own copy.
struct TransportMetrics {
  std::atomic<uint64_t> requests{0};        // sent: attempts and redirects followed
  std::atomic<uint64_t> retries{0};         // attempts after a read's first
  std::atomic<uint64_t> redirects{0};       // followed
  std::atomic<uint64_t> errors{0};          // reads that ended with an error
  std::atomic<uint64_t> bytes_received{0};  // of bodies
  std::atomic<uint64_t> connections_opened{0};
  std::atomic<uint64_t> first_byte_us{0};  // from request to first byte, summed
  Gauge in_flight;                         // requests on the wire

  std::map<std::string, double> snapshot() const {
    return {{"requests", static_cast<double>(requests)},
            {"retries", static_cast<double>(retries)},
            {"redirects", static_cast<double>(redirects)},
            {"errors", static_cast<double>(errors)},
            {"bytes_received", static_cast<double>(bytes_received)},
            {"connections_opened", static_cast<double>(connections_opened)},
            {"first_byte_s", static_cast<double>(first_byte_us) * 1e-6},
            {"in_flight", static_cast<double>(in_flight.value())}};
  }
};

}  // namespace torchnpy
