#include "transport/http.h"

#include <condition_variable>
#include <map>
#include <mutex>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/fork.h"
#include "base/wait.h"
#include "transport/engine.h"
#include "transport/http_read.h"
#include "transport/http_source.h"

namespace torchnpy {

bool Version::matches(const VersionSeen& seen) const {
  if (nbytes && seen.nbytes && *nbytes != *seen.nbytes) return false;
  if (!etag.empty() && !seen.etag.empty()) return etag == seen.etag;
  return modified.empty() || seen.modified.empty() || modified == seen.modified;
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

HttpSource::HttpSource(std::shared_ptr<HttpObject> object,
                       std::shared_ptr<const ClientOptions> options,
                       std::shared_ptr<const EngineSettings> settings,
                       std::shared_ptr<TransportMetrics> metrics)
    : object_(std::move(object)),
      options_(std::move(options)),
      settings_(std::move(settings)),
      metrics_(std::move(metrics)) {}

std::optional<uint64_t> HttpSource::nbytes() const {
  const std::lock_guard lock(process_mutex());
  return version_ == nullptr ? std::nullopt : version_->nbytes;
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

void HttpSource::start(Range range, Sink& sink) {
  const std::optional<uint64_t> known = nbytes();
  const bool is_empty = range.nbytes == 0 || (known && (*known == 0 || range.offset >= *known));
  if (is_empty) return sink.done(nullptr);
  try {
    submit_job(std::make_unique<HttpRead>(shared_from_this(), range, sink));
  } catch (...) {
    sink.done(add_name(std::current_exception(), name()));
  }
}

void HttpSource::cancel(Sink& sink) { cancel_jobs(this, &sink); }

namespace {

struct SettingsEntry {
  std::weak_ptr<const ClientOptions> options;
  std::shared_ptr<const EngineSettings> settings;
};
// Under process_mutex(). Made when the library is loaded, for a fork may hit a function's static
// in the middle of being made; never destroyed, for threads may outlive statics.
auto* const settings_of_options = new std::map<const ClientOptions*, SettingsEntry>;

// One for each set of options that lives: the environment and the CA bundle are looked up
// once, and the engine tells clients apart by them.
std::shared_ptr<const EngineSettings> settings_of(
    const std::shared_ptr<const ClientOptions>& options) {
  {
    const std::lock_guard lock(process_mutex());
    const auto found = settings_of_options->find(options.get());
    // Another object may live at the address now.
    if (found != settings_of_options->end() && found->second.options.lock() == options) {
      return found->second.settings;
    }
  }
  std::shared_ptr<const EngineSettings> made = make_engine_settings(*options);
  const std::lock_guard lock(process_mutex());
  std::erase_if(*settings_of_options,
                [](const auto& entry) { return entry.second.options.expired(); });
  return settings_of_options->try_emplace(options.get(), SettingsEntry{options, std::move(made)})
      .first->second.settings;
}

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
      changed_.wait(lock, [this] { return done_; });
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

std::shared_ptr<Source> open_http(std::shared_ptr<HttpObject> object,
                                  std::shared_ptr<const ClientOptions> options,
                                  std::shared_ptr<TransportMetrics> metrics) {
  std::shared_ptr<const EngineSettings> settings = settings_of(options);
  return std::make_shared<HttpSource>(std::move(object), std::move(options), std::move(settings),
                                      std::move(metrics));
}

std::string read_all(Source& source, uint64_t max_nbytes) {
  WaitScope scope;
  TextSink sink(source, max_nbytes);
  source.start(Range{}, sink);
  return sink.wait(source, scope);
}

}  // namespace torchnpy
