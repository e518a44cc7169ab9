// AWS Signature Version 4, for requests whose body is known or empty. Pure functions.
// The steps are those of "Create a signed AWS API request" in the IAM User Guide.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace torchnpy {

using Digest = std::array<uint8_t, 32>;
Digest sha256(std::string_view text);
Digest hmac_sha256(std::string_view key, std::string_view text);
std::string format_hex(const Digest& digest);

// Percent-encodes all but A-Z a-z 0-9 - _ . ~, and `/` where it separates (keys do not encode
// it, query values do).
enum class Slash { kKeep, kEncode };
std::string encode_uri(std::string_view text, Slash slash);

// "20130524T000000Z": x-amz-date. Its first 8 characters are the date of the scope.
std::string format_amz_date(std::chrono::sys_seconds time);

// SHA-256 of no bytes, in hex: the x-amz-content-sha256 of a request without a body.
inline constexpr std::string_view kEmptySha256 =
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

// What signs the requests of one day, region and service. Deriving it takes four times as
// long as a signature: keep it.
struct SigningKey {
  std::string access_key_id;
  std::string date;   // "20130524"
  std::string scope;  // "20130524/us-east-1/s3/aws4_request"
  Digest key{};
};
SigningKey derive_signing_key(std::string access_key_id, std::string_view secret_access_key,
                              std::string_view date, std::string_view region,
                              std::string_view service);

// The parts of a request that the signature covers.
struct CanonicalRequest {
  std::string_view method = "GET";
  std::string_view path;   // as sent: percent-encoded
  std::string_view query;  // percent-encoded, sorted by name
  // Names in lower case, sorted; values trimmed. `host` is one of them.
  std::vector<std::pair<std::string_view, std::string_view>> headers;
  std::string_view payload_hash = kEmptySha256;
};

std::string format_canonical_request(const CanonicalRequest& request);
std::string format_string_to_sign(const CanonicalRequest& request, std::string_view amz_date,
                                  const SigningKey& key);
// The value of the Authorization header.
std::string format_authorization(const CanonicalRequest& request, std::string_view amz_date,
                                 const SigningKey& key);

}  // namespace torchnpy
