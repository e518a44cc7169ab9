// What the objects of one client share, and how their requests are signed.
#pragma once

#include <atomic>
#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "transport/client.h"
#include "transport/credentials.h"
#include "transport/http.h"
#include "transport/s3_site.h"
#include "transport/sigv4.h"
#include "transport/url.h"

namespace torchnpy {

// The client's options, with what they leave to the environment and the profile.
struct S3Settings {
  std::optional<Endpoint> endpoint;  // empty: AWS
  std::string region;
  Addressing addressing = Addressing::kAuto;
  std::shared_ptr<CredentialsCache> credentials;  // nullptr: anonymous
};

// Thread-safe; usable in a forked child. But for prepare() nothing blocks.
class S3Account {
 public:
  // Throws ArgumentError for options that are wrong.
  S3Account(std::shared_ptr<const ClientOptions> options,
            std::shared_ptr<TransportMetrics> metrics);

  // Finds settings and credentials and checks that requests for the bucket can be made; before
  // all else. May read files. Throws as make_s3_object().
  void prepare(const std::string& bucket);

  // The command with the client's own headers, signed for this moment. `key_path`: "/" and the
  // encoded key, or "" for the bucket itself.
  HttpRequest make_request(const std::string& bucket, std::string_view key_path,
                           HttpCommand command);
  // The same for `url`, where a redirect led; empty when that is not a host of the bucket's store,
  // or when the URL brings a signature of its own.
  std::optional<HttpRequest> make_request_at(const std::string& bucket, const Url& url,
                                             HttpCommand command);

  const ClientOptions& options() const { return *options_; }
  // What tells the service from others: buckets of one name may be in many.
  std::string service() const;

  bool anonymous() const { return options_->anonymous; }
  std::string region_of(const std::string& bucket) { return site_of(bucket)->region; }
  void learn_region(const std::string& bucket, const std::string& region);
  // The store says that the credentials of a request (its made_with) have expired. True: trying
  // again makes sense.
  bool refresh_credentials(const std::shared_ptr<const void>& made_with);
  // Those that are known were refused, and others are being fetched.
  bool awaits_credentials() const noexcept {
    return settings_->credentials != nullptr && settings_->credentials->awaits_others();
  }
  // The store said that it knows no checksums: none are sent from now on. False: it was known.
  bool refuse_checksums() { return !refuses_checksums_.exchange(true); }
  bool refuses_checksums() const { return refuses_checksums_; }
  // What the server's clock says now.
  void learn_time(std::chrono::sys_seconds server);

 private:
  struct DayKey {
    std::shared_ptr<const Credentials> credentials;  // that it was made of
    SigningKey key;
  };
  std::shared_ptr<const S3Site> site_of(const std::string& bucket);
  std::shared_ptr<const DayKey> day_key(const std::string& region, std::string_view date,
                                        const std::shared_ptr<const Credentials>& credentials);
  HttpRequest assemble(std::string url, HttpCommand command) const;
  void sign(const std::string& region, std::string_view host, std::string_view path,
            std::string_view query, HttpRequest& request);

  const std::shared_ptr<const ClientOptions> options_;
  const std::shared_ptr<TransportMetrics> metrics_;
  const Headers own_headers_;
  std::atomic<int64_t> skew_s_{0};  // the server's clock less ours
  std::atomic<bool> refuses_checksums_{false};
  // Set once, under process_mutex(), before the first object exists; constant after that.
  std::shared_ptr<const S3Settings> settings_;
  // Under process_mutex():
  std::map<std::string, std::shared_ptr<const S3Site>> sites_;  // by bucket
  std::map<std::string, std::shared_ptr<const DayKey>> keys_;   // by region
};

}  // namespace torchnpy
