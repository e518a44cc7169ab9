// AWS credentials: the configuration files, the places where credentials are looked for and
// how long they last. The rules are botocore's.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

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
  static AwsProfile read(const std::optional<std::string>& name);

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
  // Where it looks, for the message when no place has any.
  virtual std::string description() const = 0;
};

// The environment (unless the caller named the profile), the credentials file, the config file.
std::vector<std::unique_ptr<CredentialsProvider>> make_credentials_chain(
    std::shared_ptr<const AwsProfile> profile);

// What a chain of places gave. Thread-safe; usable in a forked child.
class CredentialsCache {
 public:
  explicit CredentialsCache(std::vector<std::unique_ptr<CredentialsProvider>> chain);
  // Those that are known, or, when there are none yet or they expire within five minutes,
  // new ones. May block. Throws TransportError (kDenied) that lists where it looked.
  std::shared_ptr<const Credentials> resolve();
  // Those of the last resolve(); never blocks.
  std::shared_ptr<const Credentials> known() const;

 private:
  const std::vector<std::unique_ptr<CredentialsProvider>> chain_;
  std::shared_ptr<const Credentials> known_;  // under process_mutex()
};

// The value of an environment variable; empty when it is unset or "".
std::optional<std::string> read_env(const char* name);

}  // namespace torchnpy
