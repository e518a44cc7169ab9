// What the reads of one HTTP object share, and what the objects of one client do; for http*.cpp
// alone.
#pragma once

#include <chrono>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "transport/experience.h"
#include "transport/http.h"
#include "transport/metrics.h"
#include "transport/settings.h"

namespace torchnpy {

// What an answer says about the version of the object that it is from.
struct VersionSeen {
  std::optional<uint64_t> nbytes;
  std::string_view etag;
  std::string_view modified;
};

// The version that the reads of a source are pinned to.
struct Version {
  std::optional<uint64_t> nbytes;
  std::string etag;
  std::string modified;
  std::optional<Checksum> checksum{};

  // False where both say something and it differs.
  bool matches(const VersionSeen& seen) const;
  // As text, and back; without the checksum.
  std::string format() const;
  static Version parse(std::string_view text);
  // A weak tag in If-Match never matches (RFC 9110, 13.1.1).
  bool has_strong_etag() const;
};

// A TransportError that does not say which object it is about, with the object's name; another
// error as it is.
std::exception_ptr add_name(std::exception_ptr error, const std::string& name) noexcept;

// What the sources of one client share.
class HttpContext {
 public:
  HttpContext(std::shared_ptr<const ClientOptions> client_options,
              std::shared_ptr<TransportMetrics> client_metrics)
      : options(std::move(client_options)), metrics(std::move(client_metrics)) {}

  const std::shared_ptr<const ClientOptions> options;
  const std::shared_ptr<TransportMetrics> metrics;
  Experience experience;

  // The environment and the CA bundle as they were at the first call; the engine tells clients
  // apart by them.
  std::shared_ptr<const EngineSettings> settings();

 private:
  std::shared_ptr<const EngineSettings> settings_;  // under process_mutex()
};

class HttpSource final : public Source, public std::enable_shared_from_this<HttpSource> {
 public:
  HttpSource(std::shared_ptr<HttpObject> object, std::shared_ptr<HttpContext> context);

  const std::string& name() const override { return object_->name(); }
  std::optional<uint64_t> nbytes() const override;
  ReadSizes read_sizes(uint64_t wanted_nbytes) const override;
  std::optional<OwnedBytes> view(uint64_t, uint64_t) override { return std::nullopt; }
  void start(Range range, Sink& sink) override;
  void cancel(Sink& sink) override;
  void forget() override;
  std::string version_name() const override;
  void expect_version(const std::string& version_name) override;
  bool asks_checksum() const override { return object_->asks_checksum(); }
  std::optional<Checksum> checksum() const override;
  void discard() override;

  // For a cache. Before a version is pinned, and once: `version` is one that the caller has the
  // bytes of. Reads ask for the object if it is another; those that are answered that it is not
  // (304) pin it and end without bytes. `trusted`: it is pinned now, for bytes of it were handed
  // out. False, and no effect, when a version is pinned or was offered already.
  bool offer(std::shared_ptr<const Version> version, bool trusted);
  std::shared_ptr<const Version> offered() const;
  // A read was answered that the version offered is the object's. Until forget().
  bool is_unchanged() const;
  void set_unchanged();

  HttpObject& object() const { return *object_; }
  const std::shared_ptr<HttpObject>& shared_object() const { return object_; }
  const std::shared_ptr<HttpContext>& context() const { return context_; }
  const ClientOptions& options() const { return *context_->options; }
  const std::shared_ptr<const EngineSettings>& settings() const { return settings_; }
  TransportMetrics& metrics() const { return *context_->metrics; }
  Experience& experience() const { return context_->experience; }

  // A read that began at `started` has ended.
  void count_read(std::chrono::steady_clock::time_point started, const std::exception_ptr& error);

  // nullptr before the first answer.
  std::shared_ptr<const Version> version() const;
  // Pins the version that the first answer shows. The pinned version, or nullptr when
  // `seen` is another one. `first`: the caller's first answer.
  std::shared_ptr<const Version> pin(const VersionSeen& seen, bool first);
  // The checksum that an answer of the pinned version has.
  void learn_checksum(const Checksum& checksum);
  // Forgets the version; false when other reads than the caller's rest on it. `pinned`: the
  // caller's does.
  bool unpin(bool pinned);

 private:
  const std::shared_ptr<HttpObject> object_;
  const std::shared_ptr<HttpContext> context_;
  const std::shared_ptr<const EngineSettings> settings_;
  // Under process_mutex().
  std::shared_ptr<const Version> version_;
  uint64_t pinned_reads_ = 0;  // that have had an answer of version_
  std::shared_ptr<const Version> offered_;
  bool is_unchanged_ = false;
};

}  // namespace torchnpy
