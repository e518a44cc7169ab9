#include "transport/s3_account.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/fork.h"
#include "base/text.h"

namespace torchnpy {
namespace {

std::optional<std::string> copy_of(const std::string* value) {
  return value != nullptr ? std::optional(*value) : std::nullopt;
}

std::optional<Endpoint> find_endpoint(const ClientOptions& options, const AwsProfile& profile) {
  if (options.endpoint) return parse_endpoint(*options.endpoint, "endpoint");
  const auto found = find_configured_url(profile, "s3");
  if (!found) return std::nullopt;
  return parse_endpoint(found->url, found->parameter);
}

void check_region(const std::string& region, std::string_view parameter) {
  if (is_region(region)) return;
  throw ArgumentError(fmt::format("{}: expected a region such as \"eu-west-1\" but found \"{}\"",
                                  parameter, region));
}

std::string find_region(const ClientOptions& options, const AwsProfile& profile) {
  std::string parameter = "region";
  std::optional<std::string> region = options.region;
  for (const char* const variable : {"AWS_REGION", "AWS_DEFAULT_REGION"}) {
    if (region) break;
    region = read_env(variable);
    parameter = variable;
  }
  if (!region) {
    region = copy_of(profile.find("region"));
    parameter = fmt::format("region of profile \"{}\"", profile.name());
  }
  if (!region) return "us-east-1";
  check_region(*region, parameter);
  return *region;
}

Addressing find_addressing(const ClientOptions& options, const AwsProfile& profile) {
  if (options.addressing != Addressing::kAuto) return options.addressing;
  const std::string* const style = profile.find("s3.addressing_style");
  if (style != nullptr && *style == "path") return Addressing::kPath;
  if (style != nullptr && *style == "virtual") return Addressing::kVirtual;
  return Addressing::kAuto;
}

// The client's own, of which it keeps a share.
class SharedProvider final : public CredentialsProvider {
 public:
  explicit SharedProvider(std::shared_ptr<CredentialsProvider> provider)
      : provider_(std::move(provider)) {}
  std::optional<Credentials> read() override { return provider_->read(); }
  std::string description() const override { return provider_->description(); }
  bool can_refresh() const override { return provider_->can_refresh(); }

 private:
  const std::shared_ptr<CredentialsProvider> provider_;
};

std::shared_ptr<const S3Settings> read_settings(
    const std::shared_ptr<const ClientOptions>& client_options,
    const std::shared_ptr<TransportMetrics>& metrics) {
  const ClientOptions& options = *client_options;
  auto profile = std::make_shared<const AwsProfile>(AwsProfile::read(options.profile));
  auto settings = std::make_shared<S3Settings>();
  settings->endpoint = find_endpoint(options, *profile);
  settings->region = find_region(options, *profile);
  settings->addressing = find_addressing(options, *profile);
  if (!options.anonymous) {
    std::vector<std::unique_ptr<CredentialsProvider>> chain;
    if (options.credentials != nullptr) {
      chain.push_back(std::make_unique<SharedProvider>(options.credentials));
    } else {
      chain = make_credentials_chain(profile, {settings->region, client_options});
    }
    settings->credentials = std::make_shared<CredentialsCache>(std::move(chain), metrics);
  }
  return settings;
}

// A header's value as it is signed: trimmed, with single spaces.
std::string canonical_value(std::string_view value) {
  std::string result;
  for (const char c : value) {
    const bool space = c == ' ' || c == '\t';
    if (space && (result.empty() || result.back() == ' ')) continue;
    result += space ? ' ' : c;
  }
  if (result.ends_with(' ')) result.pop_back();
  return result;
}

// The user's headers as they are sent with each request.
Headers make_own_headers(const ClientOptions& options) {
  Headers headers;
  for (const auto& [name, value] : options.headers) {
    const std::string key = lower(name);
    if (key == "x-amz-request-payer" && options.requester_pays) continue;
    headers.emplace_back(key, canonical_value(value));
  }
  if (options.requester_pays) headers.emplace_back("x-amz-request-payer", "requester");
  return headers;
}

// Of a header of the user's: whether it belongs to the request that makes an object and to no
// other, where S3 refuses it.
bool describes_object(std::string_view name) {
  if (name.starts_with("x-amz-server-side-encryption")) {
    return !name.starts_with("x-amz-server-side-encryption-customer-");
  }
  for (const std::string_view prefix :
       {"x-amz-acl", "x-amz-grant-", "x-amz-meta-", "x-amz-object-lock-", "x-amz-storage-class",
        "x-amz-tagging", "x-amz-website-redirect-location", "cache-control", "content-",
        "expires"}) {
    if (name.starts_with(prefix)) return true;
  }
  return false;
}

// Of what is sent in bulk no hash is signed, also over plain HTTP: SHA-256 takes longer than the
// network. Its CRC is signed, with the headers.
std::string hash_payload(const HttpRequest& request) {
  if (request.content != nullptr && request.content->nbytes() != 0) return "UNSIGNED-PAYLOAD";
  return request.body.empty() ? std::string(kEmptySha256) : format_hex(sha256(request.body));
}

// "?b=2&a" as the signature wants it: "a=&b=2".
std::string sort_query(std::string_view query) {
  std::vector<std::pair<std::string, std::string>> parameters;
  while (!query.empty()) {
    query.remove_prefix(1);
    const std::string_view parameter = query.substr(0, query.find('&'));
    query.remove_prefix(parameter.size());
    if (parameter.empty()) continue;
    const size_t equals = std::min(parameter.find('='), parameter.size());
    const std::string_view value = parameter.substr(std::min(equals + 1, parameter.size()));
    parameters.emplace_back(encode_uri(percent_decode(parameter.substr(0, equals)), Slash::kEncode),
                            encode_uri(percent_decode(value), Slash::kEncode));
  }
  std::ranges::sort(parameters);
  std::string result;
  for (const auto& [name, value] : parameters) {
    result.append(result.empty() ? "" : "&").append(name).append("=").append(value);
  }
  return result;
}

// Not when the client is made: for plain HTTP the same headers are right.
void check_own_headers(const ClientOptions& options) {
  if (options.anonymous) return;
  for (const auto& [name, value] : options.headers) {
    const std::string key = lower(name);
    const bool ours = key == "x-amz-date" || key == "x-amz-content-sha256" ||
                      key == "x-amz-security-token" || key == "authorization";
    if (!ours) continue;
    throw ArgumentError(
        fmt::format("headers: expected none that signing sets but found \"{}\"; pass "
                    "credentials=\"anonymous\" to sign by yourself",
                    name));
  }
}

}  // namespace

S3Account::S3Account(std::shared_ptr<const ClientOptions> options,
                     std::shared_ptr<TransportMetrics> metrics)
    : options_(std::move(options)),
      metrics_(std::move(metrics)),
      own_headers_(make_own_headers(*options_)) {
  if (options_->endpoint) parse_endpoint(*options_->endpoint, "endpoint");
  if (options_->region) check_region(*options_->region, "region");
}

void S3Account::prepare(const std::string& bucket) {
  check_own_headers(*options_);
  std::shared_ptr<const S3Settings> settings;
  {
    const std::lock_guard lock(process_mutex());
    settings = settings_;
  }
  if (settings == nullptr) {
    settings = read_settings(options_, metrics_);
    const std::lock_guard lock(process_mutex());
    if (settings_ == nullptr) settings_ = settings;
    settings = settings_;
  }
  if (settings->credentials != nullptr) settings->credentials->resolve();
  site_of(bucket);
}

std::string S3Account::service() const {
  if (settings_->endpoint) {
    const Endpoint& endpoint = *settings_->endpoint;
    return fmt::format("{}://{}{}", endpoint.scheme, endpoint.host, endpoint.path);
  }
  // AWS has one set of buckets for each partition.
  for (const std::string_view partition : {"cn-", "us-gov-", "us-iso", "eu-isoe-"}) {
    if (settings_->region.starts_with(partition)) return std::string(partition);
  }
  return "aws";
}

HttpRequest S3Account::assemble(std::string url, HttpCommand command) const {
  HttpRequest request{std::move(url), std::move(command.headers), std::move(command.method),
                      std::move(command.body), command.content};
  if (request.method == "GET" || command.creates) {
    add_own_headers(request.headers, own_headers_);
    return request;
  }
  Headers own = own_headers_;
  std::erase_if(own, [](const auto& header) { return describes_object(header.first); });
  add_own_headers(request.headers, own);
  return request;
}

HttpRequest S3Account::make_request(const std::string& bucket, std::string_view key_path,
                                    HttpCommand command) {
  const auto site = site_of(bucket);
  const std::string query = std::move(command.query);
  std::string path(key_path.empty() ? site->list_path : site->path);
  path += key_path;
  std::string url;
  url.append(site->scheme).append("://").append(site->host).append(path);
  if (!query.empty()) url.append("?").append(query);
  HttpRequest request = assemble(std::move(url), std::move(command));
  if (settings_->credentials != nullptr) sign(site->region, site->host, path, query, request);
  return request;
}

std::optional<HttpRequest> S3Account::make_request_at(const std::string& bucket, const Url& url,
                                                      HttpCommand command) {
  const bool is_presigned = url.query.find("Signature=") != std::string::npos;
  const auto region = find_own_region(settings_->endpoint, bucket, region_of(bucket), url);
  if (is_presigned || !region) return std::nullopt;
  // Sent as it is signed: servers differ in what they make of other spellings.
  const std::string path = encode_uri(percent_decode(url.path), Slash::kKeep);
  const std::string query = sort_query(url.query);
  const std::string host = url.authority();
  HttpRequest request = assemble(
      fmt::format("{}://{}{}{}{}", url.scheme, host, path, query.empty() ? "" : "?", query),
      std::move(command));
  if (settings_->credentials != nullptr) sign(*region, host, path, query, request);
  return request;
}

void S3Account::learn_region(const std::string& bucket, const std::string& region) {
  const auto site = std::make_shared<const S3Site>(
      make_s3_site(settings_->endpoint, settings_->addressing, bucket, region));
  const std::lock_guard lock(process_mutex());
  sites_[bucket] = site;
}

bool S3Account::refresh_credentials(const std::shared_ptr<const void>& made_with) {
  return settings_->credentials != nullptr &&
         settings_->credentials->invalidate(static_cast<const Credentials*>(made_with.get()));
}

void S3Account::learn_time(std::chrono::sys_seconds server) {
  skew_s_ =
      (server - std::chrono::floor<std::chrono::seconds>(std::chrono::system_clock::now())).count();
}

std::shared_ptr<const S3Site> S3Account::site_of(const std::string& bucket) {
  {
    const std::lock_guard lock(process_mutex());
    const auto found = sites_.find(bucket);
    if (found != sites_.end()) return found->second;
  }
  const auto site = std::make_shared<const S3Site>(
      make_s3_site(settings_->endpoint, settings_->addressing, bucket, settings_->region));
  const std::lock_guard lock(process_mutex());
  return sites_.emplace(bucket, site).first->second;
}

std::shared_ptr<const S3Account::DayKey> S3Account::day_key(
    const std::string& region, std::string_view date,
    const std::shared_ptr<const Credentials>& credentials) {
  {
    const std::lock_guard lock(process_mutex());
    const auto found = keys_.find(region);
    if (found != keys_.end() && found->second->credentials == credentials &&
        found->second->key.date == date) {
      return found->second;
    }
  }
  auto made = std::make_shared<const DayKey>(
      DayKey{credentials, derive_signing_key(credentials->access_key_id,
                                             credentials->secret_access_key, date, region, "s3")});
  const std::lock_guard lock(process_mutex());
  keys_[region] = made;
  return made;
}

void S3Account::sign(const std::string& region, std::string_view host, std::string_view path,
                     std::string_view query, HttpRequest& request) {
  Headers& headers = request.headers;
  const auto credentials = settings_->credentials->known();
  request.made_with = credentials;
  const auto now = std::chrono::floor<std::chrono::seconds>(std::chrono::system_clock::now());
  const std::string amz_date = format_amz_date(now + std::chrono::seconds(skew_s_.load()));
  const auto day = day_key(region, std::string_view(amz_date).substr(0, 8), credentials);
  headers.reserve(headers.size() + 4);
  const std::string payload_hash = hash_payload(request);
  headers.emplace_back("x-amz-content-sha256", payload_hash);
  headers.emplace_back("x-amz-date", amz_date);
  if (!credentials->session_token.empty()) {
    headers.emplace_back("x-amz-security-token", credentials->session_token);
  }
  CanonicalRequest canonical;
  canonical.method = request.method;
  canonical.payload_hash = payload_hash;
  canonical.path = path;
  canonical.query = query;
  canonical.headers.reserve(headers.size() + 1);
  canonical.headers.emplace_back("host", host);
  for (const auto& [name, value] : headers) {
    if (name.starts_with("x-amz-") || name == "content-type") {
      canonical.headers.emplace_back(name, value);
    }
  }
  std::ranges::sort(canonical.headers);
  headers.emplace_back("authorization", format_authorization(canonical, amz_date, day->key));
}

}  // namespace torchnpy
