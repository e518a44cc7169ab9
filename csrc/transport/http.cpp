#include "transport/http.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <condition_variable>
#include <mutex>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/fork.h"
#include "base/log.h"
#include "base/text.h"
#include "base/wait.h"
#include "transport/engine.h"
#include "transport/hedged_read.h"
#include "transport/http_read.h"
#include "transport/http_source.h"

namespace torchnpy {

// RFC 9110, 8.8.3. Another byte could end the line in our next request.
bool Version::has_strong_etag() const {
  return etag.size() >= 2 && etag.front() == '"' && etag.back() == '"' &&
         std::all_of(etag.begin() + 1, etag.end() - 1, [](char c) {
           const auto byte = static_cast<unsigned char>(c);
           return byte > ' ' && byte != '"' && byte != 0x7F;
         });
}

bool Version::matches(const VersionSeen& seen) const {
  if (nbytes && seen.nbytes && *nbytes != *seen.nbytes) return false;
  if (!etag.empty() && !seen.etag.empty()) return etag == seen.etag;
  return modified.empty() || seen.modified.empty() || modified == seen.modified;
}

void add_own_headers(Headers& headers, const Headers& own) {
  for (const auto& [name, value] : own) {
    std::erase_if(headers, [key = lower(name)](const auto& header) { return header.first == key; });
    headers.emplace_back(name, value);
  }
}

// "nbytes\netag\nmodified": no header has a line break.
std::string Version::format() const {
  return fmt::format("{}\n{}\n{}", nbytes ? std::to_string(*nbytes) : "", etag, modified);
}

Version Version::parse(std::string_view text) {
  const auto take_line = [&text] {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    return line;
  };
  Version version;
  const std::string_view digits = take_line();
  uint64_t nbytes = 0;
  const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), nbytes);
  if (parsed.ec == std::errc{}) version.nbytes = nbytes;
  version.etag = take_line();
  version.modified = take_line();
  return version;
}

std::exception_ptr add_name(std::exception_ptr error, const std::string& name) noexcept {
  try {
    try {
      std::rethrow_exception(error);
    } catch (const TransportError& thrown) {
      if (std::string_view(thrown.what()).starts_with(name)) return error;
      TransportError named = thrown;  // others may hold the one thrown
      named.add_context(name);
      return std::make_exception_ptr(std::move(named));
    }
  } catch (...) {  // another error, or no memory for the name
  }
  return error;
}

std::shared_ptr<const EngineSettings> HttpContext::settings() {
  {
    const std::lock_guard lock(process_mutex());
    if (settings_ != nullptr) return settings_;
  }
  std::shared_ptr<const EngineSettings> made = make_engine_settings(*options);
  const std::lock_guard lock(process_mutex());
  if (settings_ == nullptr) settings_ = std::move(made);
  return settings_;
}

HttpSource::HttpSource(std::shared_ptr<HttpObject> object, std::shared_ptr<HttpContext> context)
    : object_(std::move(object)), context_(std::move(context)), settings_(context_->settings()) {}

ReadSizes HttpSource::read_sizes(uint64_t wanted_nbytes) const {
  const Experience& experience = context_->experience;
  return {experience.first_nbytes(), experience.part_nbytes(wanted_nbytes, options().part_nbytes),
          options().coalesce_nbytes.value_or(0)};
}

std::optional<uint64_t> HttpSource::nbytes() const {
  const std::lock_guard lock(process_mutex());
  return version_ == nullptr ? std::nullopt : version_->nbytes;
}

std::optional<Checksum> HttpSource::checksum() const {
  const std::lock_guard lock(process_mutex());
  return version_ == nullptr ? std::nullopt : version_->checksum;
}

std::shared_ptr<const Version> HttpSource::version() const {
  const std::lock_guard lock(process_mutex());
  return version_;
}

std::shared_ptr<const Version> HttpSource::pin(const VersionSeen& seen, bool first) {
  const std::lock_guard lock(process_mutex());
  if (version_ == nullptr) {
    version_ = std::make_shared<const Version>(
        Version{seen.nbytes, std::string(seen.etag), std::string(seen.modified)});
    pinned_reads_ = 0;
  } else if (!version_->matches(seen)) {
    return nullptr;
  } else if (!version_->nbytes && seen.nbytes) {
    Version known = *version_;
    known.nbytes = seen.nbytes;
    version_ = std::make_shared<const Version>(std::move(known));
  }
  if (first) ++pinned_reads_;
  return version_;
}

void HttpSource::learn_checksum(const Checksum& checksum) {
  const std::lock_guard lock(process_mutex());
  if (version_ == nullptr) return;
  Version known = *version_;
  known.checksum = checksum;
  version_ = std::make_shared<const Version>(std::move(known));
}

bool HttpSource::unpin(bool pinned) {
  const std::lock_guard lock(process_mutex());
  if (pinned_reads_ > (pinned ? 1 : 0)) return false;
  version_ = nullptr;
  pinned_reads_ = 0;
  return true;
}

void HttpSource::forget() {
  const std::lock_guard lock(process_mutex());
  version_ = nullptr;
  pinned_reads_ = 0;
  offered_ = nullptr;
  is_unchanged_ = false;
}

std::string HttpSource::version_name() const {
  const std::shared_ptr<const Version> pinned = version();
  return pinned == nullptr ? std::string{} : pinned->format();
}

void HttpSource::expect_version(const std::string& version_name) {
  auto expected = std::make_shared<const Version>(Version::parse(version_name));
  const std::lock_guard lock(process_mutex());
  version_ = std::move(expected);
  pinned_reads_ = 1;  // another source's: no read may unpin it
}

bool HttpSource::offer(std::shared_ptr<const Version> version, bool trusted) {
  const std::lock_guard lock(process_mutex());
  if (offered_ || version_) return false;
  offered_ = std::move(version);
  if (trusted) {
    version_ = offered_;
    pinned_reads_ = 1;  // the one that the bytes were handed out by: no other may unpin it
  }
  return true;
}

std::shared_ptr<const Version> HttpSource::offered() const {
  const std::lock_guard lock(process_mutex());
  return offered_;
}

bool HttpSource::is_unchanged() const {
  const std::lock_guard lock(process_mutex());
  return is_unchanged_;
}

void HttpSource::set_unchanged() {
  const std::lock_guard lock(process_mutex());
  is_unchanged_ = true;
}

void HttpSource::discard() {
  metrics().retries.fetch_add(1, std::memory_order_relaxed);
  metrics().retries_checksum.fetch_add(1, std::memory_order_relaxed);
  if (log_enabled())
    log_debug(fmt::format("{}: again from its first byte: its checksum does not match", name()));
  forget();
}

void HttpSource::count_read(std::chrono::steady_clock::time_point started,
                            const std::exception_ptr& error) {
  const auto elapsed = std::chrono::steady_clock::now() - started;
  metrics().total.add(static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::microseconds>(elapsed).count()));
  if (error && !is_interruption(error)) metrics().errors.fetch_add(1, std::memory_order_relaxed);
}

void HttpSource::start(Range range, Sink& sink) {
  const std::optional<uint64_t> known = nbytes();
  const bool is_empty = range.nbytes == 0 || (known && (*known == 0 || range.offset >= *known));
  if (is_empty) return sink.done(nullptr);
  try {
    if (options().hedge) return HedgedRead::start(shared_from_this(), range, sink);
    submit_job(std::make_unique<HttpRead>(shared_from_this(), range, sink, &sink));
  } catch (...) {
    sink.done(add_name(std::current_exception(), name()));
  }
}

void HttpSource::cancel(Sink& sink) { cancel_jobs(this, &sink); }

namespace {

class TextSink final : public Sink {
 public:
  TextSink(const Source& source, uint64_t max_nbytes)
      : name_(source.name()), max_nbytes_(max_nbytes) {}

  MutableBytes room(uint64_t offset, size_t want) override {
    if (want > max_nbytes_ - offset) {
      throw TransportError(name_ + ": expected at most " + std::to_string(max_nbytes_) +
                           " bytes but found more");
    }
    text_.resize(offset + want);
    return {reinterpret_cast<uint8_t*>(text_.data()) + offset, want};
  }
  void filled(uint64_t, size_t) override {}
  bool restart() override {
    text_.clear();
    return true;
  }
  void done(std::exception_ptr error) override {
    const std::lock_guard lock(mutex_);
    error_ = std::move(error);
    done_ = true;
    changed_.notify_all();  // under the lock: the waiter destroys this
  }

  std::string wait(Source& source, WaitScope& scope) {
    std::unique_lock lock(mutex_);
    if (!scope.wait(lock, changed_, [this] { return done_; })) {
      lock.unlock();
      source.cancel(*this);
      lock.lock();
      wait_until_ready(lock, changed_, [this] { return done_; });
      throw InterruptedError("interrupted: the read was given up");
    }
    if (error_) std::rethrow_exception(error_);
    return std::move(text_);
  }

 private:
  const std::string& name_;
  const uint64_t max_nbytes_;
  std::string text_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool done_ = false;
  std::exception_ptr error_;
};

}  // namespace

std::shared_ptr<HttpContext> make_http_context(std::shared_ptr<const ClientOptions> options,
                                               std::shared_ptr<TransportMetrics> metrics) {
  return std::make_shared<HttpContext>(std::move(options), std::move(metrics));
}

std::shared_ptr<Source> open_http(std::shared_ptr<HttpObject> object,
                                  std::shared_ptr<HttpContext> context) {
  return std::make_shared<HttpSource>(std::move(object), std::move(context));
}

std::string read_all(Source& source, uint64_t max_nbytes) {
  WaitScope scope;
  TextSink sink(source, max_nbytes);
  source.start(Range{}, sink);
  return sink.wait(source, scope);
}

}  // namespace torchnpy
