// AWS credentials: the configuration files, the places where credentials are looked for and
// how long they last. The rules are botocore's.
#pragma once

#include <chrono>
#include <exception>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "transport/client.h"
#include "transport/metrics.h"

namespace torchnpy {

struct Credentials {
  std::string access_key_id;
  std::string secret_access_key;
  std::string session_token;  // "" for none
  // Empty: they last as long as the process.
  std::optional<std::chrono::system_clock::time_point> expiration;
};

// Sections of an INI file: names to keys (in lower case) to values. The keys of an indented
// block are "block.key".
using IniSection = std::map<std::string, std::string>;
using IniFile = std::map<std::string, IniSection>;
// `name` is for messages, which never show a line: it may hold a secret. Throws FormatError.
IniFile parse_ini(std::string_view text, std::string_view name);

// One profile of ~/.aws/config and ~/.aws/credentials (or AWS_CONFIG_FILE and
// AWS_SHARED_CREDENTIALS_FILE), as they were when it was read.
class AwsProfile {
 public:
  // `name`: else AWS_PROFILE, AWS_DEFAULT_PROFILE, "default". Files that do not exist or
  // cannot be read count as empty. Throws ArgumentError when a profile that was asked for is
  // in neither file, FormatError for a file that cannot be parsed.
  // `parameter` says in messages who named it.
  static AwsProfile read(const std::optional<std::string>& name, std::string parameter = "profile");

  const std::string& name() const { return name_; }
  // The caller named it: then it goes before the credentials of the environment.
  bool chosen_by_option() const { return chosen_by_option_; }
  // The value of `key`, the credentials file first; nullptr when it has none.
  const std::string* find(const std::string& key) const;
  // Of the files themselves.
  const std::string* find_in_credentials_file(const std::string& key) const;
  const std::string* find_in_config_file(const std::string& key) const;
  // The value of `key` ("s3.endpoint_url") in the [services] section that it names.
  const std::string* find_in_services(const std::string& key) const;
  // "~/.aws/config (no such file)": for messages.
  const std::string& credentials_file() const { return credentials_file_; }
  const std::string& config_file() const { return config_file_; }

 private:
  std::string name_;
  bool chosen_by_option_ = false;
  std::string credentials_file_;
  std::string config_file_;
  IniSection credentials_;
  IniSection config_;
  IniSection services_;
};

// A place where credentials may be. May block: not for I/O threads.
class CredentialsProvider {
 public:
  virtual ~CredentialsProvider() = default;
  // Empty when there are none here, and the next place is asked. Throws UnsupportedError,
  // TransportError or ArgumentError when there should be some.
  virtual std::optional<Credentials> read() = 0;
  // Where it looks, for the message when no place has any; "" for none.
  virtual std::string description() const = 0;
  // Reading again may give others.
  virtual bool can_refresh() const { return true; }
};

// What the services of roles are reached with.
struct CredentialsContext {
  std::string region{"us-east-1"};
  std::shared_ptr<const ClientOptions> options{};  // proxies and certificates; nullptr: defaults
};

// botocore's order: the environment (unless the caller named the profile), the profile's role,
// web identity, the credentials file, credential_process, the config file, ECS and EKS, EC2.
std::vector<std::unique_ptr<CredentialsProvider>> make_credentials_chain(
    std::shared_ptr<const AwsProfile> profile, const CredentialsContext& context = {});

// What a chain of places gave, refreshed before it expires: once, by one thread. In the last 15
// minutes (of short ones in the second half) one thread refreshes while the others go on with what
// is known; in the last 10 (a third) they wait for it. A refresh that fails is no error while the
// old ones last. Thread-safe; a forked child refreshes for itself.
class CredentialsCache : public std::enable_shared_from_this<CredentialsCache> {
 public:
  explicit CredentialsCache(std::vector<std::unique_ptr<CredentialsProvider>> chain,
                            std::shared_ptr<TransportMetrics> metrics = nullptr);
  // Those that are known and last, or new ones. May block: not for I/O threads. Throws
  // TransportError (kDenied) that lists where it looked, and what a place throws.
  std::shared_ptr<const Credentials> resolve();
  // Those of the last resolve() or refresh; never blocks. When they are about to expire, it begins
  // a refresh on a thread of its own (where a shared_ptr owns the cache).
  std::shared_ptr<const Credentials> known();
  // The store refused `refused`. True: there are others by now, or a refresh has begun, and trying
  // again makes sense. False: nothing can give others. Never blocks.
  bool invalidate(const Credentials* refused);
  // The store refused those that are known, and a refresh runs. Never blocks.
  bool awaits_others() const noexcept;

 private:
  struct Refresh;
  using Time = std::chrono::system_clock::time_point;

  bool is_due(Time now) const;
  bool must_wait(Time now) const;
  bool refreshes_now() const;
  std::shared_ptr<Refresh> begin_refresh();
  void run_refresh(const std::shared_ptr<Refresh>& refresh) noexcept;
  void start_refresh_thread(const std::shared_ptr<Refresh>& refresh) noexcept;
  std::shared_ptr<const Credentials> read_chain(bool* refreshable) const;
  void store(std::shared_ptr<const Credentials> found, bool refreshable);

  const std::vector<std::unique_ptr<CredentialsProvider>> chain_;
  const std::shared_ptr<TransportMetrics> metrics_;
  // Under process_mutex():
  std::shared_ptr<const Credentials> known_;
  bool refreshable_ = false;
  bool refused_ = false;  // by the store, whatever their expiration
  Time advisory_at_ = Time::max();
  Time mandatory_at_ = Time::max();
  Time retry_at_ = Time::min();       // after a refresh that failed
  std::shared_ptr<Refresh> refresh_;  // the one that runs; an ancestor's does not
};

// The value of an environment variable; empty when it is unset or "".
std::optional<std::string> read_env(const char* name);

// The endpoint that the environment or the profile has for a service ("s3", "sts"), unless they say
// to ignore such; `parameter` says in messages who named it.
struct ConfiguredUrl {
  std::string url;
  std::string parameter;
};
std::optional<ConfiguredUrl> find_configured_url(const AwsProfile& profile,
                                                 const std::string& service);

// The text of a small file with a token, trimmed. `parameter` says in messages who named it. Throws
// TransportError.
std::string read_secret_file(const std::string& path, std::string_view parameter);

}  // namespace torchnpy
