// What is told of a read: counters of its client, and lines of the log.
#include <fmt/format.h>

#include <algorithm>
#include <exception>

#include "base/log.h"
#include "transport/http_read.h"

namespace torchnpy {

std::optional<double> HttpRead::ended(const ExchangeEnd& end) {
  if (!follows_) count_exchange(end);
  if (method_.empty() || !log_enabled()) return conclude(end);
  retry_reason_.clear();
  const std::string line = format_exchange(end);  // before a retry forgets it
  try {
    const std::optional<double> again_s = conclude(end);
    log_debug(retry_reason_.empty()
                  ? line
                  : fmt::format("{}; again in {:.3f} s: {}", line, *again_s, retry_reason_));
    return again_s;
  } catch (const std::exception& error) {
    log_debug(fmt::format("{}; failed: {}", line, error.what()));
    throw;
  }
}

void HttpRead::count_exchange(const ExchangeEnd& end) {
  TransportMetrics& metrics = source_->metrics();
  on_wire_ = false;
  metrics.in_flight.add(-1);
  metrics.bytes_received.fetch_add(body_nbytes_, std::memory_order_relaxed);
  metrics.connections_opened.fetch_add(end.connections_opened, std::memory_order_relaxed);
  if (end.first_byte_us == 0) return;
  // It had an answer: over a connection of before, unless it opened one.
  if (end.connections_opened == 0) {
    metrics.connections_reused.fetch_add(1, std::memory_order_relaxed);
  }
  metrics.first_byte_us.fetch_add(end.first_byte_us, std::memory_order_relaxed);
  metrics.first_byte.add(end.first_byte_us);
  source_->experience().saw_answer(end.first_byte_us, body_nbytes_,
                                   end.total_us - std::min(end.total_us, end.first_byte_us));
}

// One line for people, without secrets: neither headers nor a query.
std::string HttpRead::format_exchange(const ExchangeEnd& end) const {
  std::string line = fmt::format("{} {}", method_, source_->name());
  if (redirected_to_) line += fmt::format(" at {}", redirected_to_->display());
  if (ranged_) line += fmt::format(" {}", asked_range_);
  line += head_complete_ ? fmt::format(": HTTP {}", head_.status) : ": no answer";
  line += fmt::format(", {} bytes", body_nbytes_);
  if (end.first_byte_us != 0) {
    line += fmt::format(", {} connection, first byte {:.1f} ms",
                        end.connections_opened == 0 ? "known" : "new",
                        static_cast<double>(end.first_byte_us) * 1e-3);
  }
  const std::chrono::duration<double, std::milli> total = Clock::now() - sent_;
  return line + fmt::format(", total {:.1f} ms, attempt {}", total.count(), attempts_);
}

void HttpRead::count_retry(TransportMetrics::Counter& counter, const std::string& reason) {
  source_->metrics().retries.fetch_add(1, std::memory_order_relaxed);
  counter.fetch_add(1, std::memory_order_relaxed);
  if (log_enabled()) retry_reason_ = reason;
}

}  // namespace torchnpy
