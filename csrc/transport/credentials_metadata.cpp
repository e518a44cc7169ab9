// Credentials from the metadata services of ECS, EKS and EC2.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>

#include "base/error.h"
#include "base/text.h"
#include "transport/credentials_parse.h"
#include "transport/credentials_providers.h"
#include "transport/http_call.h"
#include "transport/url.h"

namespace torchnpy {
namespace {

using Kind = TransportError::Kind;

// A proxy is elsewhere: it would ask its own machine's service, or nobody's. Certificates are
// looked for as usual.
std::shared_ptr<const EngineSettings> make_direct_settings(double timeout_s) {
  auto settings = std::make_shared<EngineSettings>(*make_engine_settings(ClientOptions{}));
  settings->http_proxy.clear();
  settings->https_proxy.clear();
  settings->connect_timeout_s = timeout_s;
  return settings;
}

bool is_loopback(std::string_view host) {
  return host == "localhost" || host == "[::1]" ||
         (host.starts_with("127.") && std::ranges::count(host, '.') == 3 &&
          std::ranges::all_of(host, [](char c) { return is_digit(c) || c == '.'; }));
}

class ContainerProvider final : public CredentialsProvider {
 public:
  std::optional<Credentials> read() override {
    const auto relative = read_env("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI");
    const auto full = read_env("AWS_CONTAINER_CREDENTIALS_FULL_URI");
    if (!relative && !full) return std::nullopt;
    HttpRequest request;
    request.url = relative ? "http://169.254.170.2" + *relative : *full;
    check_container_url(request.url, relative ? "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"
                                              : "AWS_CONTAINER_CREDENTIALS_FULL_URI");
    request.headers.emplace_back("Accept", "application/json");
    if (std::string token = read_token(); !token.empty()) {
      request.headers.emplace_back("Authorization", std::move(token));
    }
    const HttpResponse response = ask(request);
    if (response.status != 200) {
      const std::string words = parse_json_error(response.body);
      throw TransportError(fmt::format("{}: HTTP {}{}{}{}", description(), response.status,
                                       words.empty() ? "" : " (", words, words.empty() ? "" : ")"),
                           Kind::kDenied, response.status);
    }
    return parse_credentials_json(response.body, "Token", description());
  }
  std::string description() const override { return "the container's credentials service"; }

 private:
  static std::string read_token() {
    constexpr size_t kMaxNbytes = 64 << 10;
    std::string token = read_env("AWS_CONTAINER_AUTHORIZATION_TOKEN").value_or("");
    if (const auto path = read_env("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")) {
      token = read_secret_file(*path, "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE");
    }
    if (token.size() > kMaxNbytes || token.find_first_of("\r\n") != std::string::npos) {
      throw ArgumentError(
          "AWS_CONTAINER_AUTHORIZATION_TOKEN: expected one line but found a line break in it");
    }
    return token;
  }

  HttpResponse ask(const HttpRequest& request) const {
    constexpr int kAttempts = 3;
    const auto settings = make_direct_settings(2);
    for (int attempt = 1;; ++attempt) {
      try {
        HttpResponse response = call_http(request, settings, description(), {.timeout_s = 2});
        if (response.status < 500 || attempt == kAttempts) return response;
      } catch (const TransportError& error) {
        if (attempt == kAttempts) throw;
      }
    }
  }
};

class InstanceProvider final : public CredentialsProvider {
 public:
  std::optional<Credentials> read() override {
    if (is_disabled()) return std::nullopt;
    const double timeout_s = read_number("AWS_METADATA_SERVICE_TIMEOUT", 1, 600);
    const auto attempts =
        static_cast<int>(read_number("AWS_METADATA_SERVICE_NUM_ATTEMPTS", 1, 100));
    const Service service{endpoint(), make_direct_settings(timeout_s), timeout_s, attempts};
    const auto token = service.ask("PUT", "/latest/api/token",
                                   {{"x-aws-ec2-metadata-token-ttl-seconds", "21600"}});
    if (!token || token->find_first_of("\r\n") != std::string::npos) return std::nullopt;
    const Headers headers{{"x-aws-ec2-metadata-token", *token}};
    const std::string path = "/latest/meta-data/iam/security-credentials/";
    const auto roles = service.ask("GET", path, headers);
    if (!roles) return std::nullopt;
    const std::string role = roles->substr(0, roles->find_first_of("\r\n"));
    const auto credentials = service.ask("GET", path + role, headers);
    if (!credentials) return std::nullopt;
    // It answers 200 with a Code and a Message when the role cannot be assumed.
    const std::string problem = parse_json_error(*credentials);
    if (!problem.empty() && !problem.starts_with("Success")) {
      throw TransportError(fmt::format("{}: {}", description(), problem), Kind::kDenied);
    }
    return parse_credentials_json(*credentials, "Token", description());
  }
  std::string description() const override {
    return is_disabled() ? "EC2's instance metadata (AWS_EC2_METADATA_DISABLED)"
                         : "EC2's instance metadata";
  }

 private:
  struct Service {
    std::string endpoint;
    std::shared_ptr<const EngineSettings> settings;
    double timeout_s;
    int attempts;

    // Empty where there is no such service, or no such thing: most machines are no instances.
    std::optional<std::string> ask(const char* method, const std::string& path,
                                   const Headers& headers) const {
      HttpRequest request;
      request.method = method;
      request.url = endpoint + path;
      request.headers = headers;
      for (int attempt = 1; attempt <= attempts; ++attempt) {
        try {
          HttpResponse response =
              call_http(request, settings, "EC2's instance metadata", {.timeout_s = timeout_s});
          if (response.status == 200 && !response.body.empty()) return std::move(response.body);
          if (response.status < 500) return std::nullopt;
        } catch (const TransportError&) {  // nobody there, mostly
        }
      }
      return std::nullopt;
    }
  };

  static bool is_disabled() {
    return lower(read_env("AWS_EC2_METADATA_DISABLED").value_or("")) == "true";
  }

  static double read_number(const char* variable, double fallback, double maximum) {
    const auto text = read_env(variable);
    if (!text) return fallback;
    char* end = nullptr;
    const double value = std::strtod(text->c_str(), &end);
    if (*end == '\0' && value > 0 && value <= maximum) return std::max(value, 0.001);
    throw ArgumentError(fmt::format("{}: expected a number above 0 and at most {} but found \"{}\"",
                                    variable, maximum, *text));
  }

  static std::string endpoint() {
    if (auto url = read_env("AWS_EC2_METADATA_SERVICE_ENDPOINT")) {
      while (url->ends_with('/')) url->pop_back();
      return *url;
    }
    const bool ipv6 =
        lower(read_env("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE").value_or("")) == "ipv6";
    return ipv6 ? "http://[fd00:ec2::254]" : "http://169.254.169.254";
  }
};

}  // namespace

void check_container_url(const std::string& text, std::string_view parameter) {
  const Url url = parse_url(text);
  if (url.scheme == "https" || is_loopback(url.host) || url.host == "169.254.170.2" ||
      url.host == "169.254.170.23" || url.host == "[fd00:ec2::23]") {
    return;
  }
  throw ArgumentError(
      fmt::format("{}: expected https, a loopback address, 169.254.170.2, 169.254.170.23 or "
                  "fd00:ec2::23 but found http to \"{}\"",
                  parameter, url.host));
}

Provider make_container_provider() { return std::make_unique<ContainerProvider>(); }
Provider make_instance_provider() { return std::make_unique<InstanceProvider>(); }

}  // namespace torchnpy
