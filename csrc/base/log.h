// What happens, for a log that somebody else keeps: lines that any thread leaves and that whoever
// keeps the log takes (csrc/python/log.cpp). To leave one takes no lock and waits for nobody.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

namespace torchnpy {

enum class LogLevel { kDebug, kWarning };

struct LogRecord {
  LogLevel level = LogLevel::kDebug;
  double created_s = 0;  // since 1970
  std::string text;      // one line; may be other than UTF-8
};

// Whether somebody wants to know of each request: whoever leaves a debug line asks first, for to
// make it takes time. Warnings are always wanted.
extern std::atomic<bool> log_debug_wanted;
inline bool log_enabled() { return log_debug_wanted.load(std::memory_order_relaxed); }

// `text` names no secret and no query string; its control characters become question marks. Lines
// that nobody takes are dropped and counted from the kMaxLogRecords-th on. Never throw.
inline constexpr int64_t kMaxLogRecords = 4096;
void log_debug(std::string text) noexcept;
void log_warning(std::string text) noexcept;

// Cheap.
bool has_log_records();
// All there are, in order, no longer kept here; at their end a warning that says how many were
// dropped. A forked child begins with none.
std::vector<LogRecord> take_log_records();

}  // namespace torchnpy
