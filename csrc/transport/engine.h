// Runs HTTP exchanges on a few I/O threads of the process, never on the caller's. The only
// user of libcurl.
//
// The engine begins at first use and lives as long as the process. A forked child gets its
// own at its first use: what the parent had begun stays the parent's.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <limits>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/bytes.h"
#include "transport/settings.h"

namespace torchnpy {

struct HttpRequest;

// What ended a transfer before its time.
enum class Fault {
  kNone,
  kDns,
  kConnect,     // refused, unreachable
  kTimeout,     // while connecting
  kStall,       // no byte, of the request or of the answer, for stall_timeout_s
  kDeadline,    // Job::deadline passed
  kTls,         // certificate, protocol
  kReset,       // the connection broke
  kShortBody,   // it ended before Content-Length
  kBadRequest,  // the URL or a header cannot be sent
  kOther,
};

// How one exchange ended.
struct ExchangeEnd {
  Fault fault = Fault::kNone;
  std::string_view detail;    // libcurl's words
  int system_error = 0;       // errno of a connection that failed
  std::exception_ptr thrown;  // by head() or body()
  bool stopped = false;       // head() or body() returned false
  uint64_t connections_opened = 0;
  uint64_t sent_nbytes = 0;    // of the request's body
  bool was_resent = false;     // over another connection, for the first had died without an answer
  uint64_t first_byte_us = 0;  // from the request to the first byte; 0 when none came
  uint64_t total_us = 0;       // from the request to the end
};

// Work for an I/O thread: exchanges of one client, one after the other, until it is done.
// All calls come from one I/O thread at a time, without a lock.
class Job {
 public:
  using Clock = std::chrono::steady_clock;

  // `owner` and `key` are what cancel() knows the job by.
  Job(std::shared_ptr<const EngineSettings> settings, const void* owner, const void* key)
      : settings_(std::move(settings)), owner_(owner), key_(key) {}
  virtual ~Job() = default;
  Job(const Job&) = delete;
  Job& operator=(const Job&) = delete;

  // The next exchange; what it throws ends the job.
  virtual HttpRequest begin() = 0;
  // In place of begin(): the exchange of `leader`, which has begun, answers this job, too: what
  // comes is given to both. False: the job wants an exchange of its own. Asked where both have
  // the same share_key.
  virtual bool follow(const Job& leader) {
    static_cast<void>(leader);
    return false;
  }
  // One line of an answer's head, its line break included; the last is a bare line break. Lines of
  // interim answers and trailers come, too. False ends the transfer.
  virtual bool head(std::string_view line) = 0;
  // The next bytes of the body. False ends the transfer.
  virtual bool body(ByteView bytes) = 0;
  // The exchange is over. Empty: the job is done. Else it begins again after so many
  // seconds, without waiting for a slot when they are 0. What it throws ends the job.
  virtual std::optional<double> ended(const ExchangeEnd& end) = 0;
  // Asked when a delay of ended() is over, on the I/O thread: to wait so many seconds more, for
  // something that is under way elsewhere.
  virtual std::optional<double> must_wait() noexcept { return std::nullopt; }
  // The job is over, and destroyed after this; `error` when the job did not end by itself. Not
  // preceded by ended() when an exchange was cut off.
  virtual void finish(std::exception_ptr error) noexcept = 0;

  // No byte of an answer has come at slow_at. Once for each time that is set.
  virtual void slow() {}

  // When slow() is to be called, set by begin().
  Clock::time_point slow_at = Clock::time_point::max();
  // When the job gives up, whatever it does; may be set by begin().
  Clock::time_point deadline = Clock::time_point::max();
  // It starts while fewer jobs of its owner than this are in flight. Not changed once submitted.
  size_t owner_limit = std::numeric_limits<size_t>::max();
  // It starts before all other jobs of its client.
  bool urgent = false;
  // shutdown_engine() waits for it, though not for long. Not changed once submitted.
  bool is_farewell = false;
  // Jobs with the same may be answered by one exchange; 0: by none but its own. Not changed once
  // submitted.
  uint64_t share_key = 0;

  const std::shared_ptr<const EngineSettings>& settings() const { return settings_; }

 private:
  friend class JobQueue;
  friend class Engine;
  friend class Reactor;
  static constexpr size_t kNoReactor = static_cast<size_t>(-1);

  const std::shared_ptr<const EngineSettings> settings_;
  const void* const owner_;
  const void* const key_;
  // Under the engine's mutex.
  Job* previous_ = nullptr;  // of the live jobs of the same owner and key
  Job* next_ = nullptr;
  std::list<std::unique_ptr<Job>>::iterator place_;  // while it is queued; and
  uint64_t round_ = 0;                               // of its client; or it is
  bool held_ = false;                                // because of owner_limit
  size_t reactor_ = kNoReactor;  // where it runs or waits for its next attempt; else it is queued,
  bool follows_ = false;         // or waits for the answer to another
  bool cancelled_ = false;
};

// Queues `job`. Throws InterruptedError after shutdown_engine(), TransportError when no
// thread can be started; then finish() is not called.
void submit_job(std::unique_ptr<Job> job);

// Ends the jobs of `owner` and `key`, but for `spared`, with InterruptedError, soon and on an I/O
// thread.
void cancel_jobs(const void* owner, const void* key, const Job* spared = nullptr);

// `hook` is called when shutdown_engine() begins, to submit farewells. Once for each.
void add_shutdown_hook(void (*hook)() noexcept);

// Ends all jobs with InterruptedError and joins the I/O threads, for the end of the process.
// Farewells have two seconds before. Idempotent. Also registered with std::atexit; call it earlier
// where finish() needs more than C++ (an interpreter). Does nothing for an engine that was
// inherited by fork().
void shutdown_engine();

// libcurl's version and those of the libraries that it was linked with, for bug reports: "libcurl",
// "tls" ("OpenSSL/3.0.17") and "nghttp2", which is absent where libcurl has no HTTP/2. Starts
// nothing.
std::map<std::string, std::string> http_library_versions();

}  // namespace torchnpy
