#include "transport/credentials.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <pwd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <system_error>
#include <thread>
#include <utility>

#include "base/error.h"
#include "base/fork.h"
#include "base/text.h"
#include "base/wait.h"
#include "transport/credentials_parse.h"
#include "transport/credentials_providers.h"
#include "transport/words.h"

namespace torchnpy {
namespace {

constexpr std::string_view kSpace = " \t\r\f\v\n";

std::string_view trim(std::string_view text) {
  const size_t first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

// Reads as Python's configparser does, which botocore uses: a line that is indented deeper
// than its key goes on with the key's value, and only whole lines are comments.
class IniParser {
 public:
  explicit IniParser(std::string_view name) : name_(name) {}

  IniFile parse(std::string_view text) {
    while (!text.empty()) {
      const size_t end = std::min(text.find('\n'), text.size());
      ++line_;
      read_line(text.substr(0, end));
      text.remove_prefix(std::min(end + 1, text.size()));
    }
    return std::move(file_);
  }

 private:
  void read_line(std::string_view line) {
    const std::string_view content = trim(line);
    if (content.empty() || content[0] == '#' || content[0] == ';') return;
    const size_t indent = line.find_first_not_of(kSpace);
    if (value_ != nullptr && indent > indent_) return go_on(content);
    indent_ = indent;
    value_ = nullptr;
    if (content[0] == '[') return begin_section(content);
    if (section_ == nullptr) fail("a [section] before the first key");
    const size_t delimiter = content.find_first_of("=:");
    if (delimiter == std::string_view::npos) fail("`key = value` or `[section]`");
    key_ = lower(trim(content.substr(0, delimiter)));
    value_ = &(*section_)[key_];
    *value_ = trim(content.substr(delimiter + 1));
    is_block_ = value_->empty();
  }

  void begin_section(std::string_view content) {
    const size_t end = content.rfind(']');
    if (end == std::string_view::npos || end < 2) fail("a section's name between [ and ]");
    section_ = &file_[std::string(content.substr(1, end - 1))];
  }

  void go_on(std::string_view content) {
    if (!is_block_) {
      value_->append("\n").append(content);
      return;
    }
    const size_t delimiter = content.find('=');
    if (delimiter == std::string_view::npos) fail("`key = value` in an indented block");
    (*section_)[key_ + '.' + lower(trim(content.substr(0, delimiter)))] =
        trim(content.substr(delimiter + 1));
  }

  [[noreturn]] void fail(std::string_view expected) const {
    throw FormatError(
        fmt::format("{}: expected {} but found something else in line {}", name_, expected, line_));
  }

  std::string name_;
  IniFile file_;
  int line_ = 0;
  size_t indent_ = 0;
  IniSection* section_ = nullptr;
  std::string key_;
  std::string* value_ = nullptr;
  bool is_block_ = false;
};

std::string home_directory() {
  if (const auto home = read_env("HOME")) return *home;
  passwd entry{};
  passwd* found = nullptr;
  std::array<char, 4096> buffer;
  getpwuid_r(getuid(), &entry, buffer.data(), buffer.size(), &found);
  return found != nullptr ? entry.pw_dir : "";
}

// A file of settings, or why there is none.
struct SettingsFile {
  std::string path;
  IniFile sections;
  std::string problem;  // " (no such file)"
};

std::string read_text(const std::string& path, std::string* problem) {
  constexpr size_t kMaxNbytes = 4 << 20;
  errno = 0;
  const std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen(path.c_str(), "re"), &std::fclose);
  std::string text;
  std::array<char, 4096> buffer;
  size_t nbytes;
  while (file != nullptr &&
         (nbytes = std::fread(buffer.data(), 1, buffer.size(), file.get())) != 0) {
    text.append(buffer.data(), nbytes);
    if (text.size() > kMaxNbytes) throw FormatError(path + ": expected at most 4 MiB of settings");
  }
  if (file == nullptr || std::ferror(file.get()) != 0) {
    *problem = errno == ENOENT ? " (no such file)" : fmt::format(" ({})", std::strerror(errno));
  }
  return text;
}

SettingsFile read_settings(const char* variable, const char* path_in_home) {
  SettingsFile file;
  file.path = read_env(variable).value_or(path_in_home);
  if (file.path == "~" || file.path.starts_with("~/")) {
    file.path.replace(0, 1, home_directory());
  }
  const std::string text = read_text(file.path, &file.problem);
  file.sections = parse_ini(text, file.path);
  return file;
}

// "x" of a config file's section `[profile x]`, `[profile "x"]` or, for profiles, `[default]`.
std::string name_in_header(std::string_view header, std::string_view kind) {
  if (header == "default" && kind == "profile") return std::string(header);
  if (!header.starts_with(kind)) return {};
  header.remove_prefix(kind.size());
  if (header.empty() || kSpace.find(header[0]) == std::string_view::npos) return {};
  header = trim(header);
  if (header.size() >= 2 && (header[0] == '"' || header[0] == '\'') && header.back() == header[0]) {
    header = header.substr(1, header.size() - 2);
  }
  return std::string(header);
}

std::map<std::string, IniSection> sections_of_kind(const IniFile& file, std::string_view kind) {
  std::map<std::string, IniSection> named;
  for (const auto& [header, section] : file) {
    const std::string name = name_in_header(header, kind);
    if (!name.empty()) named[name] = section;
  }
  return named;
}

const std::string* find_in(const IniSection& section, const std::string& key) {
  const auto found = section.find(key);
  return found == section.end() || found->second.empty() ? nullptr : &found->second;
}

class EnvironmentProvider : public CredentialsProvider {
 public:
  std::optional<Credentials> read() override {
    const auto id = read_env("AWS_ACCESS_KEY_ID");
    if (!id) return std::nullopt;
    const auto secret = read_env("AWS_SECRET_ACCESS_KEY");
    if (!secret) {
      throw TransportError("AWS_ACCESS_KEY_ID is set but AWS_SECRET_ACCESS_KEY is not; set both",
                           TransportError::Kind::kDenied);
    }
    auto token = read_env("AWS_SESSION_TOKEN");
    if (!token) token = read_env("AWS_SECURITY_TOKEN");
    Credentials credentials{*id, *secret, token.value_or(""), std::nullopt};
    if (const auto expiration = read_env("AWS_CREDENTIAL_EXPIRATION")) {
      credentials.expiration = parse_iso8601(*expiration);
      if (!credentials.expiration) {
        throw ArgumentError("AWS_CREDENTIAL_EXPIRATION: expected an ISO 8601 time but found \"" +
                            clean_words(*expiration) + '"');
      }
    }
    return credentials;
  }
  std::string description() const override { return "the environment (AWS_ACCESS_KEY_ID)"; }
  bool can_refresh() const override { return false; }
};

// Static keys in one of the two files.
class FileProvider : public CredentialsProvider {
 public:
  enum class File { kCredentials, kConfig };
  FileProvider(std::shared_ptr<const AwsProfile> profile, File file)
      : profile_(std::move(profile)), file_(file) {}

  std::optional<Credentials> read() override {
    const std::string* const id = find("aws_access_key_id");
    if (id == nullptr) return std::nullopt;
    const std::string* const secret = find("aws_secret_access_key");
    if (secret == nullptr) {
      throw TransportError(
          fmt::format("{}: profile \"{}\" has aws_access_key_id but no aws_secret_access_key",
                      path(), profile_->name()),
          TransportError::Kind::kDenied);
    }
    const std::string* token = find("aws_session_token");
    if (token == nullptr) token = find("aws_security_token");
    return Credentials{*id, *secret, token != nullptr ? *token : "", std::nullopt};
  }
  std::string description() const override {
    return fmt::format("profile \"{}\" of {}", profile_->name(), path());
  }
  bool can_refresh() const override { return false; }

 private:
  const std::string* find(const std::string& key) const {
    return file_ == File::kCredentials ? profile_->find_in_credentials_file(key)
                                       : profile_->find_in_config_file(key);
  }
  const std::string& path() const {
    return file_ == File::kCredentials ? profile_->credentials_file() : profile_->config_file();
  }
  std::shared_ptr<const AwsProfile> profile_;
  File file_;
};

// Ways of a profile that botocore is better at: to pass them by would use another identity than
// the one that the profile asks for.
class RefusedProvider : public CredentialsProvider {
 public:
  RefusedProvider(std::shared_ptr<const AwsProfile> profile, std::vector<std::string> keys)
      : profile_(std::move(profile)), keys_(std::move(keys)) {}

  std::optional<Credentials> read() override {
    for (const std::string& key : keys_) {
      if (profile_->find(key) == nullptr) continue;
      throw UnsupportedError(
          fmt::format("profile \"{}\" takes its credentials by {}, which is not supported; pass "
                      "Client(credentials=boto3.Session(profile_name=\"{}\").get_credentials()"
                      ".get_frozen_credentials)",
                      profile_->name(), key, profile_->name()));
    }
    return std::nullopt;
  }
  std::string description() const override { return {}; }

 private:
  std::shared_ptr<const AwsProfile> profile_;
  std::vector<std::string> keys_;
};

}  // namespace

// They go into header lines and are printed nowhere.
void check_printable(const Credentials& credentials) {
  for (const std::string* value :
       {&credentials.access_key_id, &credentials.secret_access_key, &credentials.session_token}) {
    if (std::ranges::any_of(*value, [](char c) { return c <= ' ' || c == 0x7f; })) {
      throw ArgumentError(
          "credentials: expected an access key, a secret and a token without blanks and control "
          "characters, but found one with some; look for a line that was broken in two");
    }
  }
}

std::optional<std::string> read_env(const char* name) {
  const char* const value = std::getenv(name);
  if (value == nullptr || *value == '\0') return std::nullopt;
  return value;
}

IniFile parse_ini(std::string_view text, std::string_view name) {
  return IniParser(name).parse(text);
}

std::string read_secret_file(const std::string& path, std::string_view parameter) {
  std::string problem;
  const std::string text = read_text(path, &problem);
  if (!problem.empty()) {
    throw TransportError(fmt::format("{}: {}{}", parameter, path, problem),
                         TransportError::Kind::kDenied);
  }
  return std::string(trim(text));
}

AwsProfile AwsProfile::read(const std::optional<std::string>& name, std::string parameter) {
  AwsProfile profile;
  std::optional<std::string> wanted = name;
  profile.chosen_by_option_ = name.has_value();
  for (const char* const variable : {"AWS_PROFILE", "AWS_DEFAULT_PROFILE"}) {
    if (wanted) break;
    wanted = read_env(variable);
    parameter = variable;
  }
  profile.name_ = wanted.value_or("default");

  SettingsFile credentials = read_settings("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials");
  SettingsFile config = read_settings("AWS_CONFIG_FILE", "~/.aws/config");
  profile.credentials_file_ = credentials.path + credentials.problem;
  profile.config_file_ = config.path + config.problem;
  auto profiles = sections_of_kind(config.sections, "profile");
  if (wanted && !profiles.contains(*wanted) && !credentials.sections.contains(*wanted)) {
    std::set<std::string> names;
    for (const auto& [found, section] : profiles) names.insert(found);
    for (const auto& [found, section] : credentials.sections) names.insert(found);
    throw ArgumentError(
        fmt::format("{}: expected a profile of {} or {} but found \"{}\"; profiles there: {}",
                    parameter, profile.config_file_, profile.credentials_file_, *wanted,
                    names.empty() ? "none" : fmt::format("{}", fmt::join(names, ", "))));
  }
  profile.credentials_ = credentials.sections[profile.name_];
  profile.config_ = profiles[profile.name_];
  if (const std::string* const services = profile.find("services")) {
    profile.services_ = sections_of_kind(config.sections, "services")[*services];
  }
  return profile;
}

const std::string* AwsProfile::find(const std::string& key) const {
  const std::string* const value = find_in(credentials_, key);
  return value != nullptr ? value : find_in(config_, key);
}
const std::string* AwsProfile::find_in_credentials_file(const std::string& key) const {
  return find_in(credentials_, key);
}
const std::string* AwsProfile::find_in_config_file(const std::string& key) const {
  return find_in(config_, key);
}
const std::string* AwsProfile::find_in_services(const std::string& key) const {
  return find_in(services_, key);
}

Provider make_environment_provider() { return std::make_unique<EnvironmentProvider>(); }

std::vector<Provider> make_profile_chain(const std::shared_ptr<const AwsProfile>& profile,
                                         const CredentialsContext& context, bool use_environment) {
  using Keys = std::vector<std::string>;
  using File = FileProvider::File;
  std::vector<Provider> chain;
  chain.push_back(make_web_identity_provider(profile, context, use_environment));
  chain.push_back(
      std::make_unique<RefusedProvider>(profile, Keys{"sso_account_id", "sso_role_name"}));
  chain.push_back(std::make_unique<FileProvider>(profile, File::kCredentials));
  chain.push_back(std::make_unique<RefusedProvider>(profile, Keys{"login_session"}));
  chain.push_back(make_process_provider(profile));
  chain.push_back(std::make_unique<FileProvider>(profile, File::kConfig));
  return chain;
}

std::vector<Provider> make_credentials_chain(std::shared_ptr<const AwsProfile> profile,
                                             const CredentialsContext& context) {
  std::vector<Provider> chain;
  if (!profile->chosen_by_option()) chain.push_back(make_environment_provider());
  chain.push_back(make_role_provider(profile, context));
  for (Provider& provider : make_profile_chain(profile, context, !profile->chosen_by_option())) {
    chain.push_back(std::move(provider));
  }
  chain.push_back(make_container_provider());
  chain.push_back(make_instance_provider());
  return chain;
}

std::optional<ConfiguredUrl> find_configured_url(const AwsProfile& profile,
                                                 const std::string& service) {
  const std::string* const ignored = profile.find("ignore_configured_endpoint_urls");
  if (lower(read_env("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS").value_or("")) == "true" ||
      (ignored != nullptr && lower(*ignored) == "true")) {
    return std::nullopt;
  }
  const std::string own_variable = service == "s3" ? "AWS_ENDPOINT_URL_S3" : "AWS_ENDPOINT_URL_STS";
  for (const std::string& variable : {own_variable, std::string("AWS_ENDPOINT_URL")}) {
    if (auto url = read_env(variable.c_str())) return ConfiguredUrl{std::move(*url), variable};
  }
  const std::string* url = profile.find_in_services(service + ".endpoint_url");
  if (url == nullptr) url = profile.find("endpoint_url");
  if (url == nullptr) return std::nullopt;
  return ConfiguredUrl{*url, fmt::format("endpoint_url of profile \"{}\"", profile.name())};
}

}  // namespace torchnpy
