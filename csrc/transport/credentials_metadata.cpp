// Credentials from the metadata services of ECS, EKS and EC2.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <mutex>

#include "base/error.h"
#include "base/fork.h"
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
    const HttpResponse response =
        call_http(request, make_direct_settings(2), description(), {.timeout_s = 2, .attempts = 3});
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
};

class InstanceProvider final : public CredentialsProvider {
 public:
  std::optional<Credentials> read() override {
    if (is_disabled() || is_known_absent()) return std::nullopt;
    const double timeout_s = read_number("AWS_METADATA_SERVICE_TIMEOUT", 1, 600);
    const auto attempts =
        static_cast<int>(read_number("AWS_METADATA_SERVICE_NUM_ATTEMPTS", 1, 100));
    const Service service{endpoint(), make_direct_settings(timeout_s), {timeout_s, attempts}};
    std::optional<Credentials> found;
    try {
      found = ask(service);
      remember("", false);
    } catch (const Absent& absent) {
      remember(absent.reason, absent.is_machine_other);
    }
    return found;
  }
  std::string description() const override {
    const std::lock_guard lock(process_mutex());
    const std::string note = is_disabled() ? "AWS_EC2_METADATA_DISABLED" : note_;
    return fmt::format("{}{}{}{}", kName, note.empty() ? "" : " (", note, note.empty() ? "" : ")");
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr const char* kName = "EC2's instance metadata";

  // Why there are none: most machines are no instances.
  struct Absent {
    std::string reason;
    bool is_machine_other;  // nobody answered
  };

  struct Service {
    std::string endpoint;
    std::shared_ptr<const EngineSettings> settings;
    CallLimits limits;

    HttpResponse ask(const char* method, const std::string& path, const Headers& headers) const {
      HttpRequest request;
      request.method = method;
      request.url = endpoint + path;
      request.headers = headers;
      try {
        return call_http(request, settings, kName, limits);
      } catch (const TransportError& error) {
        std::string_view words = error.what();
        if (words.starts_with(kName)) words.remove_prefix(std::string_view(kName).size() + 2);
        throw Absent{std::string(words), true};
      }
    }
    std::string get(const std::string& path, const Headers& headers) const {
      HttpResponse response = ask("GET", path, headers);
      if (response.status == 404) throw Absent{"the instance has no role", false};
      check(response);
      return std::move(response.body);
    }
    static void check(const HttpResponse& response) {
      if (response.status == 200 && !response.body.empty()) return;
      throw Absent{fmt::format("HTTP {}", response.status), false};
    }
  };

  static Credentials ask(const Service& service) {
    const HttpResponse token = service.ask("PUT", "/latest/api/token",
                                           {{"x-aws-ec2-metadata-token-ttl-seconds", "21600"}});
    if (token.status == 403 || token.status == 404 || token.status == 405) {
      throw Absent{fmt::format("HTTP {} to the PUT for a token: expected IMDSv2, for version 1 is "
                               "not supported",
                               token.status),
                   false};
    }
    Service::check(token);
    if (token.body.find_first_of("\r\n") != std::string::npos) {
      throw Absent{"its token has line breaks", false};
    }
    const Headers headers{{"x-aws-ec2-metadata-token", token.body}};
    const std::string path = "/latest/meta-data/iam/security-credentials/";
    const std::string roles = service.get(path, headers);
    const std::string credentials =
        service.get(path + roles.substr(0, roles.find_first_of("\r\n")), headers);
    // It answers 200 with a Code and a Message when the role cannot be assumed.
    const std::string problem = parse_json_error(credentials);
    if (!problem.empty() && !problem.starts_with("Success")) {
      throw TransportError(fmt::format("{}: {}", kName, problem), Kind::kDenied);
    }
    return parse_credentials_json(credentials, "Token", kName);
  }

  // Where it has ever answered, the next one who asks may have more luck.
  bool is_known_absent() const {
    const std::lock_guard lock(process_mutex());
    return !has_answered_ && Clock::now() < absent_until_;
  }
  void remember(const std::string& note, bool is_machine_other) {
    constexpr std::chrono::minutes kAbsence{1};
    const std::lock_guard lock(process_mutex());
    note_ = note;
    if (is_machine_other) absent_until_ = Clock::now() + kAbsence;
    has_answered_ = has_answered_ || !is_machine_other;
  }

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

  // Under process_mutex().
  std::string note_;  // why the last read() found none
  bool has_answered_ = false;
  Clock::time_point absent_until_ = Clock::time_point::min();
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
