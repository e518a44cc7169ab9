// Credentials of roles: AWS Security Token Service.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <pugixml.hpp>
#include <utility>

#include "base/error.h"
#include "transport/credentials_parse.h"
#include "transport/credentials_providers.h"
#include "transport/http_call.h"
#include "transport/s3_site.h"
#include "transport/sigv4.h"
#include "transport/words.h"

namespace torchnpy {
namespace {

using Kind = TransportError::Kind;
using Parameters = std::vector<std::pair<std::string, std::string>>;

Endpoint find_endpoint(const AwsProfile& profile, const std::string& region) {
  if (const auto found = find_configured_url(profile, "sts")) {
    return parse_endpoint(found->url, found->parameter);
  }
  return {"https", fmt::format("sts.{}.{}", region, aws_dns_suffix(region)), ""};
}

void sign(HttpRequest& request, const Endpoint& endpoint, const Credentials& credentials,
          const std::string& region) {
  const std::string date =
      format_amz_date(std::chrono::floor<std::chrono::seconds>(std::chrono::system_clock::now()));
  request.headers.emplace_back("x-amz-date", date);
  if (!credentials.session_token.empty()) {
    request.headers.emplace_back("x-amz-security-token", credentials.session_token);
  }
  const std::string path = endpoint.path + '/';
  const std::string payload_hash = format_hex(sha256(request.body));
  CanonicalRequest canonical;
  canonical.method = request.method;
  canonical.path = path;
  canonical.payload_hash = payload_hash;
  canonical.headers.emplace_back("host", endpoint.host);
  for (const auto& [name, value] : request.headers) canonical.headers.emplace_back(name, value);
  std::ranges::sort(canonical.headers);
  const SigningKey key =
      derive_signing_key(credentials.access_key_id, credentials.secret_access_key,
                         std::string_view(date).substr(0, 8), region, "sts");
  request.headers.emplace_back("authorization", format_authorization(canonical, date, key));
}

Credentials parse_answer(const HttpResponse& response, const std::string& action,
                         const std::string& name) {
  pugi::xml_document document;
  document.load_buffer(response.body.data(), response.body.size());
  if (response.status != 200) {
    const pugi::xml_node error = document.document_element().child("Error");
    const std::string words =
        clean_words(fmt::format("{}: {}", error.child_value("Code"), error.child_value("Message")));
    throw TransportError(fmt::format("{}: HTTP {} ({})", name, response.status, words),
                         Kind::kDenied, response.status);
  }
  const pugi::xml_node node = document.child((action + "Response").c_str())
                                  .child((action + "Result").c_str())
                                  .child("Credentials");
  Credentials credentials{node.child_value("AccessKeyId"), node.child_value("SecretAccessKey"),
                          node.child_value("SessionToken"),
                          parse_iso8601(node.child_value("Expiration"))};
  if (credentials.access_key_id.empty() || credentials.secret_access_key.empty() ||
      !credentials.expiration) {
    throw TransportError(name +
                             ": expected credentials with an expiration in the answer but "
                             "found none; is the endpoint an STS server?",
                         Kind::kDenied);
  }
  return credentials;
}

// `signer`: nullptr for the action that the token itself authorizes.
Credentials call_sts(const std::string& action, const Parameters& parameters,
                     const Credentials* signer, const AwsProfile& profile,
                     const CredentialsContext& context, const std::string& name) {
  const Endpoint endpoint = find_endpoint(profile, context.region);
  HttpRequest request;
  request.method = "POST";
  request.url = fmt::format("{}://{}{}/", endpoint.scheme, endpoint.host, endpoint.path);
  request.body = "Action=" + action + "&Version=2011-06-15";
  for (const auto& [key, value] : parameters) {
    request.body += '&' + key + '=' + encode_uri(value, Slash::kEncode);
  }
  request.headers.emplace_back("content-type", "application/x-www-form-urlencoded");
  const auto settings =
      make_engine_settings(context.options != nullptr ? *context.options : ClientOptions{});
  if (signer != nullptr) sign(request, endpoint, *signer, context.region);
  return parse_answer(call_http(request, settings, name, {.timeout_s = 20, .attempts = 3}), action,
                      name);
}

std::string make_session_name() {
  return fmt::format("torchnpy-session-{}", std::chrono::duration_cast<std::chrono::seconds>(
                                                std::chrono::system_clock::now().time_since_epoch())
                                                .count());
}

class RoleProvider final : public CredentialsProvider {
 public:
  RoleProvider(std::shared_ptr<const AwsProfile> profile, CredentialsContext context)
      : profile_(std::move(profile)), context_(std::move(context)) {}

  std::optional<Credentials> read() override {
    if (!has_role(*profile_)) return std::nullopt;
    return assume(profile_, {profile_->name()});
  }
  std::string description() const override {
    return fmt::format("role_arn of profile \"{}\"", profile_->name());
  }

 private:
  using Profile = std::shared_ptr<const AwsProfile>;

  static bool has_role(const AwsProfile& profile) {
    return profile.find("role_arn") != nullptr &&
           profile.find("web_identity_token_file") == nullptr;
  }
  static bool has_keys(const AwsProfile& profile) {
    return profile.find("aws_access_key_id") != nullptr ||
           profile.find("aws_secret_access_key") != nullptr;
  }
  [[noreturn]] static void fail(const AwsProfile& profile, std::string_view problem) {
    throw ArgumentError(fmt::format("profile \"{}\": {}", profile.name(), problem));
  }

  Credentials assume(const Profile& profile, std::vector<std::string> visited) const {
    if (profile->find("mfa_serial") != nullptr) {
      throw UnsupportedError(
          fmt::format("profile \"{}\" asks for an MFA code (mfa_serial), which is not supported; "
                      "pass credentials= a callable that returns botocore's credentials",
                      profile->name()));
    }
    const Credentials source = find_source(profile, std::move(visited));
    Parameters parameters{{"RoleArn", *profile->find("role_arn")}};
    const std::string* const session = profile->find("role_session_name");
    parameters.emplace_back("RoleSessionName", session ? *session : make_session_name());
    for (const auto& [key, parameter] : {std::pair{"external_id", "ExternalId"},
                                         std::pair{"duration_seconds", "DurationSeconds"}}) {
      if (const std::string* const value = profile->find(key)) {
        parameters.emplace_back(parameter, *value);
      }
    }
    return call_sts("AssumeRole", parameters, &source, *profile, context_,
                    fmt::format("AssumeRole for profile \"{}\"", profile->name()));
  }

  Credentials find_source(const Profile& profile, std::vector<std::string> visited) const {
    const std::string* const source = profile->find("source_profile");
    const std::string* const place = profile->find("credential_source");
    if ((source != nullptr) == (place != nullptr)) {
      fail(*profile, "expected source_profile or credential_source beside role_arn, and not both");
    }
    if (place != nullptr) return read_place(*profile, *place);
    const bool is_itself = *source == profile->name();
    const auto parent =
        is_itself ? profile
                  : std::make_shared<const AwsProfile>(AwsProfile::read(
                        *source, fmt::format("source_profile of profile \"{}\"", profile->name())));
    if (std::ranges::find(visited, *source) != visited.end() && !(is_itself && has_keys(*parent))) {
      fail(*profile, fmt::format("expected source_profile to end but found a loop: {} -> {}",
                                 fmt::join(visited, " -> "), *source));
    }
    visited.push_back(*source);
    if (has_role(*parent) && !has_keys(*parent)) return assume(parent, std::move(visited));
    for (const Provider& provider : make_profile_chain(parent, context_, false)) {
      if (auto found = provider->read()) return std::move(*found);
    }
    fail(*profile,
         fmt::format("expected source_profile \"{}\" to have credentials but found none", *source));
  }

  static Credentials read_place(const AwsProfile& profile, const std::string& place) {
    Provider provider;
    if (place == "Environment") provider = make_environment_provider();
    if (place == "Ec2InstanceMetadata") provider = make_instance_provider();
    if (place == "EcsContainer") provider = make_container_provider();
    if (provider == nullptr) {
      fail(profile, fmt::format("expected Environment, Ec2InstanceMetadata or EcsContainer as "
                                "credential_source but found \"{}\"",
                                place));
    }
    if (auto found = provider->read()) return std::move(*found);
    throw TransportError(fmt::format("profile \"{}\": expected credentials in its "
                                     "credential_source but found none in {}",
                                     profile.name(), provider->description()),
                         Kind::kDenied);
  }

  const Profile profile_;
  const CredentialsContext context_;
};

class WebIdentityProvider final : public CredentialsProvider {
 public:
  WebIdentityProvider(std::shared_ptr<const AwsProfile> profile, CredentialsContext context,
                      bool use_environment)
      : profile_(std::move(profile)),
        context_(std::move(context)),
        use_environment_(use_environment) {}

  std::optional<Credentials> read() override {
    const auto path = find("AWS_WEB_IDENTITY_TOKEN_FILE", "web_identity_token_file");
    if (!path) return std::nullopt;
    const auto role = find("AWS_ROLE_ARN", "role_arn");
    if (!role) {
      throw ArgumentError(
          "AWS_ROLE_ARN: expected a role with AWS_WEB_IDENTITY_TOKEN_FILE (or "
          "role_arn with web_identity_token_file) but found none");
    }
    // Anew each time: Kubernetes renews it.
    const std::string token = read_secret_file(*path, "AWS_WEB_IDENTITY_TOKEN_FILE");
    const Parameters parameters{
        {"RoleArn", *role},
        {"RoleSessionName",
         find("AWS_ROLE_SESSION_NAME", "role_session_name").value_or(make_session_name())},
        {"WebIdentityToken", token}};
    return call_sts("AssumeRoleWithWebIdentity", parameters, nullptr, *profile_, context_,
                    "AssumeRoleWithWebIdentity");
  }
  std::string description() const override {
    return "a web identity (AWS_WEB_IDENTITY_TOKEN_FILE)";
  }

 private:
  std::optional<std::string> find(const char* variable, const char* key) const {
    if (use_environment_) {
      if (auto value = read_env(variable)) return value;
    }
    const std::string* const value = profile_->find(key);
    return value != nullptr ? std::optional(*value) : std::nullopt;
  }

  const std::shared_ptr<const AwsProfile> profile_;
  const CredentialsContext context_;
  const bool use_environment_;
};

}  // namespace

Provider make_role_provider(std::shared_ptr<const AwsProfile> profile, CredentialsContext context) {
  return std::make_unique<RoleProvider>(std::move(profile), std::move(context));
}

Provider make_web_identity_provider(std::shared_ptr<const AwsProfile> profile,
                                    CredentialsContext context, bool use_environment) {
  return std::make_unique<WebIdentityProvider>(std::move(profile), std::move(context),
                                               use_environment);
}

}  // namespace torchnpy
