// How the requests for a bucket are addressed: endpoints, regions and the two styles of URL.
// Pure functions.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "transport/client.h"
#include "transport/url.h"

namespace torchnpy {

// "http://host:9000/path" in its parts.
struct Endpoint {
  std::string scheme;  // "http" or "https"
  std::string host;    // with a port that is not the scheme's own; as the Host header has it
  std::string path;    // "" or "/path"
};
// `parameter` names where `url` comes from. Throws ArgumentError.
Endpoint parse_endpoint(std::string_view url, std::string_view parameter);

// "s3://bucket/key" in its parts; the key is raw.
struct S3Url {
  std::string bucket;
  std::string key;
};
// Throws ArgumentError, and UnsupportedError for the kinds of buckets that need other
// requests: S3 Express, ARNs.
S3Url parse_s3_url(std::string_view url);

// "amazonaws.com", or that of the region's partition.
std::string_view aws_dns_suffix(std::string_view region);

// Whether it may stand in a host name and in a signature's scope. AWS's are in lower case, others
// need not be ("RegionOne").
bool is_region(std::string_view region);

// Where the requests for a bucket go.
struct S3Site {
  std::string region;
  std::string scheme;
  std::string host;       // as the Host header has it
  std::string path;       // before "/key": "/base/bucket", "/base", ""
  std::string list_path;  // of requests for the bucket itself
};
// Without `endpoint`: AWS in `region`. Throws ArgumentError.
S3Site make_s3_site(const std::optional<Endpoint>& endpoint, Addressing addressing,
                    const std::string& bucket, const std::string& region);

// A redirect of a request for the bucket, which is in `region`, led to `url`. The region to sign
// for there: the one that the host names, else `region`. Empty when the host is not surely the
// store's: it must not see a signature.
std::optional<std::string> find_own_region(const std::optional<Endpoint>& endpoint,
                                           const std::string& bucket, const std::string& region,
                                           const Url& url);

}  // namespace torchnpy
