#include "transport/s3_site.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "base/error.h"
#include "base/text.h"

namespace torchnpy {
namespace {

[[noreturn]] void fail_endpoint(std::string_view parameter, std::string_view found) {
  throw ArgumentError(fmt::format(
      "{}: expected http://host[:port][/path] or https://... but found {}", parameter, found));
}

// The port of "host:9000" or "[::1]:9000", without the colon.
std::string_view find_port(std::string_view authority) {
  const size_t colon = authority.rfind(':');
  if (colon == std::string_view::npos) return {};
  const size_t bracket = authority.rfind(']');
  if (bracket != std::string_view::npos && colon < bracket) return {};
  return authority.substr(colon + 1);
}

void check_authority(std::string_view authority, std::string_view parameter) {
  if (authority.find('@') != std::string_view::npos) {
    fail_endpoint(parameter, "a user name or password in it");
  }
  const bool valid =
      !authority.empty() && authority[0] != ':' && std::ranges::all_of(authority, [](char c) {
        return is_digit(c) || is_lower(c) || c == '.' || c == '-' || c == '_' || c == ':' ||
               c == '[' || c == ']';
      });
  if (!valid) fail_endpoint(parameter, "a host name that is none");
  const std::string_view port = find_port(authority);
  if (port.empty()) return;
  unsigned number = 0;
  const auto parsed = std::from_chars(port.data(), port.data() + port.size(), number);
  if (parsed.ec != std::errc() || parsed.ptr != port.data() + port.size() || number == 0 ||
      number > 65535) {
    fail_endpoint(parameter, fmt::format("port \"{}\"", port));
  }
}

bool is_address(std::string_view host) {
  if (host.starts_with('[')) return true;
  host = host.substr(0, host.find(':'));
  return std::ranges::all_of(host, [](char c) { return is_digit(c) || c == '.'; });
}

// A dot would break the wildcard of AWS's certificates, and old buckets may have names that
// no host can have.
bool is_dns_label(std::string_view bucket) {
  return bucket.size() <= 63 && bucket.front() != '-' && bucket.back() != '-' &&
         std::ranges::all_of(bucket, [](char c) { return is_lower(c) || is_digit(c) || c == '-'; });
}

std::string_view dns_suffix(std::string_view region) {
  if (region.starts_with("cn-")) return "amazonaws.com.cn";
  if (region.starts_with("eusc-")) return "amazonaws.eu";
  if (region.starts_with("us-iso-")) return "c2s.ic.gov";
  if (region.starts_with("us-isob-")) return "sc2s.sgov.gov";
  return "amazonaws.com";
}

}  // namespace

Endpoint parse_endpoint(std::string_view url, std::string_view parameter) {
  const size_t colon = url.find("://");
  if (colon == std::string_view::npos) fail_endpoint(parameter, "no scheme");
  Endpoint endpoint;
  endpoint.scheme = lower(url.substr(0, colon));
  if (endpoint.scheme != "http" && endpoint.scheme != "https") {
    fail_endpoint(parameter, "another scheme");
  }
  url.remove_prefix(colon + 3);
  if (url.find_first_of("?#") != std::string_view::npos) {
    fail_endpoint(parameter, "a query or a fragment");
  }
  const size_t slash = std::min(url.find('/'), url.size());
  endpoint.host = lower(url.substr(0, slash));
  check_authority(endpoint.host, parameter);
  // As libcurl writes the Host header, which is signed.
  const std::string_view port = find_port(endpoint.host);
  if (endpoint.host.ends_with(':') || port == (endpoint.scheme == "http" ? "80" : "443")) {
    endpoint.host.resize(endpoint.host.size() - port.size() - 1);
  }
  endpoint.path = url.substr(slash);
  while (endpoint.path.ends_with('/')) endpoint.path.pop_back();
  if (std::ranges::any_of(endpoint.path, [](char c) { return c <= ' ' || c > '~'; })) {
    fail_endpoint(parameter, "a path that is not percent-encoded");
  }
  return endpoint;
}

S3Url parse_s3_url(std::string_view url) {
  std::string_view rest = url.substr(std::min<size_t>(url.find("://") + 3, url.size()));
  const size_t slash = std::min(rest.find('/'), rest.size());
  S3Url parsed{std::string(rest.substr(0, slash)),
               std::string(rest.substr(std::min(slash + 1, rest.size())))};
  if (parsed.bucket.empty()) {
    throw ArgumentError(fmt::format("{}: expected s3://bucket/key but found no bucket", url));
  }
  if (parsed.bucket.starts_with("arn:")) {
    throw UnsupportedError(fmt::format(
        "{}: ARNs are not supported; use the bucket's name or the access point's alias", url));
  }
  if (parsed.bucket.ends_with("--x-s3")) {
    throw UnsupportedError(
        fmt::format("{}: S3 Express directory buckets are not supported; use a general purpose "
                    "bucket",
                    url));
  }
  const bool valid = std::ranges::all_of(parsed.bucket, [](char c) {
    return is_lower(c) || is_upper(c) || is_digit(c) || c == '-' || c == '_' || c == '.';
  });
  if (!valid || parsed.bucket.front() == '.') {
    throw ArgumentError(
        fmt::format("{}: expected a bucket of letters, digits, '-', '_' and '.' but found \"{}\"",
                    url, parsed.bucket));
  }
  return parsed;
}

bool is_region(std::string_view region) {
  return !region.empty() && region.size() <= 63 &&
         std::ranges::all_of(region, [](char c) { return is_alphanumeric(c) || c == '-'; });
}

S3Site make_s3_site(const std::optional<Endpoint>& endpoint, Addressing addressing,
                    const std::string& bucket, const std::string& region) {
  S3Site site;
  site.region = region;
  site.scheme = endpoint ? endpoint->scheme : "https";
  site.host = endpoint ? endpoint->host : fmt::format("s3.{}.{}", region, dns_suffix(region));
  site.path = endpoint ? endpoint->path : "";
  if (addressing == Addressing::kAuto) {
    addressing = endpoint || !is_dns_label(bucket) ? Addressing::kPath : Addressing::kVirtual;
  }
  if (addressing == Addressing::kPath) {
    site.path += '/' + bucket;
    site.list_path = site.path;
    return site;
  }
  if (is_address(site.host)) {
    throw ArgumentError(fmt::format(
        "addressing: expected \"auto\" or \"path\" with endpoint {}://{}, which is an address and "
        "no host name, but found \"virtual\"",
        site.scheme, site.host));
  }
  site.host = bucket + '.' + site.host;
  site.list_path = site.path + '/';
  return site;
}

}  // namespace torchnpy
