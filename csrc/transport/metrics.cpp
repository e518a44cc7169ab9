#include "transport/metrics.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace torchnpy {

size_t Histogram::bucket_of(uint64_t us) {
  if (us < 8) return static_cast<size_t>(us);
  const int exponent = std::bit_width(us) - 4;  // us >> exponent is in [8, 16)
  const auto bucket = static_cast<size_t>(exponent) * 8 + static_cast<size_t>(us >> exponent);
  return std::min(bucket, kBucketCount - 1);
}

uint64_t Histogram::upper_end(size_t bucket) {
  if (bucket < 16) return bucket;
  const size_t exponent = bucket / 8 - 1;
  return ((uint64_t{8} + bucket % 8 + 1) << exponent) - 1;
}

uint64_t Histogram::count() const {
  uint64_t count = 0;
  for (const auto& bucket : buckets_) count += bucket.load(std::memory_order_relaxed);
  return count;
}

uint64_t Histogram::quantile_us(double share) const {
  const auto rank = static_cast<uint64_t>(std::ceil(share * static_cast<double>(count())));
  uint64_t seen = 0;
  for (size_t i = 0; rank != 0 && i < kBucketCount; ++i) {
    seen += buckets_[i].load(std::memory_order_relaxed);
    if (seen >= rank) return upper_end(i);
  }
  return 0;
}

std::map<std::string, double> TransportMetrics::snapshot() const {
  const auto seconds = [](uint64_t us) { return static_cast<double>(us) * 1e-6; };
  std::map<std::string, double> values{
      {"first_byte_s", seconds(first_byte_us)},
      {"reads", static_cast<double>(total.count())},
      {"in_flight", static_cast<double>(in_flight.value())},
      {"in_flight_max", static_cast<double>(in_flight.max())},
  };
  const auto add = [&values](const char* name, const Counter& counter) {
    values[name] = static_cast<double>(counter.load(std::memory_order_relaxed));
  };
  add("requests", requests);
  add("retries", retries);
  add("retries_status", retries_status);
  add("retries_connection", retries_connection);
  add("retries_timeout", retries_timeout);
  add("retries_changed", retries_changed);
  add("retries_checksum", retries_checksum);
  add("retries_learnt", retries_learnt);
  add("redirects", redirects);
  add("errors", errors);
  add("bytes_received", bytes_received);
  add("bytes_sent", bytes_sent);
  add("connections_opened", connections_opened);
  add("connections_reused", connections_reused);
  add("hedges", hedges);
  add("hedges_won", hedges_won);
  add("reads_shared", reads_shared);
  add("cache_hits", cache_hits);
  add("cache_misses", cache_misses);
  add("cache_revalidations", cache_revalidations);
  add("credentials_refreshes", credentials_refreshes);
  const auto add_quantiles = [&](const std::string& name, const Histogram& histogram) {
    for (const int percent : {50, 95, 99}) {
      values[name + "_p" + std::to_string(percent) + "_s"] =
          seconds(histogram.quantile_us(percent / 100.0));
    }
  };
  add_quantiles("first_byte", first_byte);
  add_quantiles("total", total);
  return values;
}

}  // namespace torchnpy
