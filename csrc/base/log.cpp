#include "base/log.h"

#include <fmt/format.h>
#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <new>
#include <utility>

namespace torchnpy {

std::atomic<bool> log_debug_wanted{false};

namespace {

struct Entry {
  LogRecord record;
  Entry* next = nullptr;
};

// A list, the last one left first, that is only ever taken as a whole.
std::atomic<Entry*> newest{nullptr};
std::atomic<int64_t> count{0};
std::atomic<uint64_t> dropped{0};

std::vector<LogRecord> take_entries() {
  std::vector<LogRecord> records;
  std::unique_ptr<Entry> entry(newest.exchange(nullptr, std::memory_order_acquire));
  while (entry != nullptr) {
    records.push_back(std::move(entry->record));
    entry.reset(entry->next);
  }
  count.fetch_sub(static_cast<int64_t>(records.size()), std::memory_order_relaxed);
  std::ranges::reverse(records);
  return records;
}

// What the parent has not taken yet is the parent's. Registered when the library is loaded, as in
// base/fork.cpp. A thread that was leaving a line does not exist in the child: so the counts are
// set, not changed.
[[maybe_unused]] const int registered_for_forks = pthread_atfork(nullptr, nullptr, [] {
  take_entries();
  count = 0;
  dropped = 0;
});

double now_s() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

void leave(LogLevel level, std::string text) noexcept {
  if (count.fetch_add(1, std::memory_order_relaxed) >= kMaxLogRecords) {
    count.fetch_sub(1, std::memory_order_relaxed);
    dropped.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  std::ranges::replace_if(
      text, [](char c) { return static_cast<unsigned char>(c) < ' ' || c == 0x7F; }, '?');
  auto* const entry = new (std::nothrow) Entry{{level, now_s(), std::move(text)}};
  if (entry == nullptr) {
    count.fetch_sub(1, std::memory_order_relaxed);
    dropped.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  entry->next = newest.load(std::memory_order_relaxed);
  while (!newest.compare_exchange_weak(entry->next, entry, std::memory_order_release,
                                       std::memory_order_relaxed)) {
  }
}

}  // namespace

void log_debug(std::string text) noexcept { leave(LogLevel::kDebug, std::move(text)); }
void log_warning(std::string text) noexcept { leave(LogLevel::kWarning, std::move(text)); }

bool has_log_records() { return newest.load(std::memory_order_relaxed) != nullptr; }

std::vector<LogRecord> take_log_records() {
  std::vector<LogRecord> records = take_entries();
  if (const uint64_t lost = dropped.exchange(0, std::memory_order_relaxed); lost != 0) {
    records.push_back({LogLevel::kWarning, now_s(),
                       fmt::format("{} log records were dropped: nobody took them", lost)});
  }
  return records;
}

}  // namespace torchnpy
