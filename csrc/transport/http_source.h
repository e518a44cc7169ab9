// What the reads of one HTTP object share; for http.cpp and http_read.cpp alone.
#pragma once

#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

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

  // False where both say something and it differs.
  bool matches(const VersionSeen& seen) const;
  // A weak tag in If-Match never matches (RFC 9110, 13.1.1).
  bool has_strong_etag() const { return etag.starts_with('"'); }
};

// A TransportError that does not say which object it is about, with the object's name; another
// error as it is.
std::exception_ptr add_name(std::exception_ptr error, const std::string& name) noexcept;

class HttpSource final : public Source, public std::enable_shared_from_this<HttpSource> {
 public:
  HttpSource(std::shared_ptr<HttpObject> object, std::shared_ptr<const ClientOptions> options,
             std::shared_ptr<const EngineSettings> settings,
             std::shared_ptr<TransportMetrics> metrics);

  const std::string& name() const override { return object_->name(); }
  std::optional<uint64_t> nbytes() const override;
  std::optional<OwnedBytes> view(uint64_t, uint64_t) override { return std::nullopt; }
  void start(Range range, Sink& sink) override;
  void cancel(Sink& sink) override;
  void forget() override;

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
  const ClientOptions& options() const { return *options_; }
  const std::shared_ptr<const EngineSettings>& settings() const { return settings_; }
  TransportMetrics& metrics() const { return *metrics_; }

  // nullptr before the first answer.
  std::shared_ptr<const Version> version() const;
  // Pins the version that the first answer shows. The pinned version, or nullptr when
  // `seen` is another one. `first`: the caller's first answer.
  std::shared_ptr<const Version> pin(const VersionSeen& seen, bool first);
  // Forgets the version; false when other reads than the caller's rest on it. `pinned`: the
  // caller's does.
  bool unpin(bool pinned);

 private:
  const std::shared_ptr<HttpObject> object_;
  const std::shared_ptr<const ClientOptions> options_;
  const std::shared_ptr<const EngineSettings> settings_;
  const std::shared_ptr<TransportMetrics> metrics_;
  // Under process_mutex().
  std::shared_ptr<const Version> version_;
  uint64_t pinned_reads_ = 0;  // that have had an answer of version_
  std::shared_ptr<const Version> offered_;
  bool is_unchanged_ = false;
};

}  // namespace torchnpy
