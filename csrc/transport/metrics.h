// What a client did, counted by the I/O threads that do it.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
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
    uint64_t wanted;
    do {
      wanted = pack(static_cast<uint32_t>(unpack(seen)) + static_cast<uint32_t>(change));
    } while (!packed_.compare_exchange_weak(seen, wanted, std::memory_order_relaxed));
    raise_max(wanted);
  }
  int32_t value() const { return unpack(packed_.load(std::memory_order_relaxed)); }
  // The most that there were at once.
  int32_t max() const { return unpack(max_.load(std::memory_order_relaxed)); }

 private:
  static uint64_t pack(uint32_t count) { return fork_count() << 32 | count; }
  static int32_t unpack(uint64_t packed) {
    return packed >> 32 == (fork_count() & 0xFFFFFFFF) ? static_cast<int32_t>(packed) : 0;
  }
  // A later generation's is the greater one.
  void raise_max(uint64_t packed) {
    uint64_t seen = max_.load(std::memory_order_relaxed);
    while (seen < packed && !max_.compare_exchange_weak(seen, packed, std::memory_order_relaxed)) {
    }
  }
  std::atomic<uint64_t> packed_{0};
  std::atomic<uint64_t> max_{0};
};

// How often durations of each length occurred, to about 12 %.
class Histogram {
 public:
  void add(uint64_t us) { buckets_[bucket_of(us)].fetch_add(1, std::memory_order_relaxed); }
  uint64_t count() const;
  // The duration that `share` of them (0 to 1) do not exceed, in microseconds; 0 when there are
  // none yet.
  uint64_t quantile_us(double share) const;

 private:
  // Eight buckets for each power of two.
  static constexpr size_t kBucketCount = 8 * 38;
  static size_t bucket_of(uint64_t us);
  static uint64_t upper_end(size_t bucket);
  std::array<std::atomic<uint64_t>, kBucketCount> buckets_{};
};

// Counters of a client. A forked child goes on from the parent's counts in its own copy.
struct TransportMetrics {
  using Counter = std::atomic<uint64_t>;
  Counter requests{0};            // sent: attempts and redirects followed
  Counter retries{0};             // attempts after a read's first; the sum of these reasons:
  Counter retries_status{0};      // 500, 503, ...
  Counter retries_connection{0};  // not resolved, refused, lost, cut short
  Counter retries_timeout{0};     // connecting, stalled
  Counter retries_changed{0};     // the object changed
  Counter retries_checksum{0};    // what was read is not what the store has a checksum of
  Counter retries_learnt{0};      // a region, a clock, new credentials
  Counter redirects{0};           // followed
  Counter errors{0};          // reads and uploads that ended with an error, but for the cancelled
  Counter bytes_received{0};  // of bodies
  Counter bytes_sent{0};      // of bodies
  Counter connections_opened{0};
  Counter connections_reused{0};   // requests over a connection that was there
  Counter hedges{0};               // second requests for the slow tail
  Counter hedges_won{0};           // that answered first
  Counter reads_shared{0};         // that another read's request answered
  Counter cache_hits{0};           // reads that the cache answered
  Counter cache_misses{0};         // reads that the store answered
  Counter cache_revalidations{0};  // 304
  Counter credentials_refreshes{0};
  Counter first_byte_us{0};  // from request to first byte, summed
  Histogram first_byte;      // of requests
  Histogram total;           // of reads, from start() to done(), retries included
  Gauge in_flight;           // requests on the wire

  // By name, as Client::metrics documents them.
  std::map<std::string, double> snapshot() const;
};

}  // namespace torchnpy
