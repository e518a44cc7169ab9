#include "transport/s3_upload.h"

#include <fmt/format.h>
#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <pugixml.hpp>
#include <utility>

#include "base/checksum.h"
#include "base/error.h"
#include "base/text.h"
#include "transport/base64.h"
#include "transport/http_head.h"
#include "transport/s3_checksum.h"
#include "transport/sigv4.h"

namespace torchnpy {
namespace {

constexpr uint64_t kMaxPartCount = 10'000;
constexpr uint64_t kMinPartNbytes = 5 << 20;  // but of the last
constexpr uint64_t kMaxPartNbytes = uint64_t{5} << 30;
// Parts are alike up to here; then every so many are twice as large as those before.
constexpr uint64_t kAlikeCount = 5'000;
constexpr uint64_t kStepCount = 400;

// Of an object that is given no type.
const std::pair<std::string, std::string> kContentType{"content-type", "application/octet-stream"};

std::string format_crc32c(uint32_t crc) {
  const std::array<char, 4> bytes{static_cast<char>(crc >> 24), static_cast<char>(crc >> 16),
                                  static_cast<char>(crc >> 8), static_cast<char>(crc)};
  return encode_base64({bytes.data(), bytes.size()});
}

std::string escape_xml(std::string_view text) {
  std::string escaped;
  for (const char c : text) {
    switch (c) {
      case '&': escaped += "&amp;"; break;
      case '<': escaped += "&lt;"; break;
      case '>': escaped += "&gt;"; break;
      case '"': escaped += "&quot;"; break;
      default: escaped += c;
    }
  }
  return escaped;
}

uint32_t combine_parts(const std::vector<S3Part>& parts) {
  uint64_t crc = 0;
  for (const S3Part& part : parts) {
    crc = combine_crcs(ChecksumKind::kCrc32c, crc, part.crc32c, part.nbytes);
  }
  return static_cast<uint32_t>(crc);
}

int md5_digit(char c) {
  if (is_digit(c)) return c - '0';
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

// The sixteen bytes of an MD5 in hexadecimal and in quotes; "" of what is none.
std::string parse_md5(std::string_view etag) {
  constexpr size_t kDigitCount = 32;
  if (etag.size() != kDigitCount + 2) return {};
  std::string bytes;
  for (size_t i = 1; i <= kDigitCount; i += 2) {
    const int high = md5_digit(etag[i]);
    const int low = md5_digit(etag[i + 1]);
    if (high < 0 || low < 0) return {};
    bytes += static_cast<char>(high * 16 + low);
  }
  return bytes;
}

// S3's tag of an object in parts: the MD5 of their MD5s, and how many they are. "" where it is made
// in another way, as of encrypted parts, or where OpenSSL has no MD5.
std::string find_etag(const std::vector<S3Part>& parts) {
  std::string digests;
  for (const S3Part& part : parts) {
    const std::string digest = parse_md5(part.etag);
    if (digest.empty()) return {};
    digests += digest;
  }
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  size_t nbytes = 0;
  if (EVP_Q_digest(nullptr, "MD5", nullptr, digests.data(), digests.size(), digest.data(),
                   &nbytes) != 1) {
    return {};
  }
  std::string etag = "\"";
  for (size_t i = 0; i < nbytes; ++i) etag += fmt::format("{:02x}", digest[i]);
  return etag + fmt::format("-{}\"", parts.size());
}

}  // namespace

uint64_t plan_part_nbytes(uint64_t number, std::optional<uint64_t> total, uint64_t wanted_nbytes) {
  uint64_t nbytes = std::clamp(wanted_nbytes, kMinPartNbytes, kMaxPartNbytes);
  if (total) {
    if (*total > kMaxPartCount * kMaxPartNbytes) {
      throw UnsupportedError(
          fmt::format("expected at most {} bytes ({} parts of 5 GiB, S3's limit) but found {}",
                      kMaxPartCount * kMaxPartNbytes, kMaxPartCount, *total));
    }
    const uint64_t least = (*total + kMaxPartCount - 1) / kMaxPartCount;
    return std::max(nbytes, least);
  }
  if (number > kMaxPartCount) {
    throw UnsupportedError(
        fmt::format("expected at most {} parts (S3's limit) but found more bytes; say at the "
                    "beginning how many there will be",
                    kMaxPartCount));
  }
  if (number > kAlikeCount) {
    const uint64_t doublings = (number - kAlikeCount - 1) / kStepCount + 1;
    nbytes = doublings > 32 ? kMaxPartNbytes : std::min(kMaxPartNbytes, nbytes << doublings);
  }
  return nbytes;
}

HttpCommand make_put(const HttpBody& content, uint32_t crc32c, bool if_none_match) {
  HttpCommand command{{kContentType, {"x-amz-checksum-crc32c", format_crc32c(crc32c)}}, "PUT"};
  if (if_none_match) command.headers.emplace_back("If-None-Match", "*");
  command.content = &content;
  command.creates = true;
  return command;
}

HttpCommand make_upload_begin() {
  HttpCommand command{{kContentType,
                       {"x-amz-checksum-algorithm", "CRC32C"},
                       {"x-amz-checksum-type", "FULL_OBJECT"}},
                      "POST"};
  command.query = "uploads=";
  command.creates = true;
  return command;
}

S3Upload parse_upload_begun(const HttpResponse& response) {
  pugi::xml_document document;
  document.load_buffer(response.body.data(), response.body.size());
  S3Upload upload;
  upload.id = document.child("InitiateMultipartUploadResult").child_value("UploadId");
  if (upload.id.empty()) {
    throw TransportError(
        "expected the UploadId of a multipart upload but found none; is the "
        "endpoint an S3 server?");
  }
  upload.wants_checksums = response.header("x-amz-checksum-algorithm") == "CRC32C";
  upload.keeps_whole_checksum =
      upload.wants_checksums && response.header("x-amz-checksum-type") == "FULL_OBJECT";
  return upload;
}

HttpCommand make_part_put(const S3Upload& upload, uint64_t number, const HttpBody& content,
                          uint32_t crc32c) {
  HttpCommand command{{{"x-amz-checksum-crc32c", format_crc32c(crc32c)}}, "PUT"};
  command.content = &content;
  command.query =
      fmt::format("partNumber={}&uploadId={}", number, encode_uri(upload.id, Slash::kEncode));
  return command;
}

S3Part parse_part_put(const S3Upload& upload, const HttpResponse& response, uint32_t crc32c,
                      uint64_t nbytes) {
  S3Part part{
      std::string(response.header("etag")), crc32c, nbytes,
      upload.wants_checksums || response.header("x-amz-checksum-crc32c") == format_crc32c(crc32c)};
  if (part.etag.empty()) {
    throw TransportError(
        "expected the ETag of a part but found none; is the endpoint an S3 server?");
  }
  return part;
}

HttpCommand make_upload_end(const S3Upload& upload, const std::vector<S3Part>& parts,
                            bool if_none_match) {
  HttpCommand command{{{"content-type", "application/xml"}}, "POST"};
  command.body = "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">";
  for (size_t i = 0; i < parts.size(); ++i) {
    command.body += fmt::format("<Part><PartNumber>{}</PartNumber><ETag>{}</ETag>", i + 1,
                                escape_xml(parts[i].etag));
    if (parts[i].has_checksum) {
      command.body +=
          fmt::format("<ChecksumCRC32C>{}</ChecksumCRC32C>", format_crc32c(parts[i].crc32c));
    }
    command.body += "</Part>";
  }
  command.body += "</CompleteMultipartUpload>";
  if (upload.keeps_whole_checksum) {
    command.headers.emplace_back("x-amz-checksum-type", "FULL_OBJECT");
    command.headers.emplace_back("x-amz-checksum-crc32c", format_crc32c(combine_parts(parts)));
  }
  if (if_none_match) command.headers.emplace_back("If-None-Match", "*");
  command.query = "uploadId=" + encode_uri(upload.id, Slash::kEncode);
  return command;
}

bool holds_upload_error(const HttpResponse& response) {
  pugi::xml_document document;
  document.load_buffer(response.body.data(), response.body.size());
  return !document.child("CompleteMultipartUploadResult");
}

HttpCommand make_upload_abort(const S3Upload& upload) {
  HttpCommand command{{}, "DELETE"};
  command.query = "uploadId=" + encode_uri(upload.id, Slash::kEncode);
  return command;
}

HttpCommand make_look() { return {{{"x-amz-checksum-mode", "ENABLED"}}, "HEAD"}; }

S3Content describe_content(const HttpBody& content, uint32_t crc32c) {
  return {content.nbytes(), crc32c, ""};
}

S3Content describe_content(const std::vector<S3Part>& parts) {
  S3Content content{0, combine_parts(parts), find_etag(parts)};
  for (const S3Part& part : parts) content.nbytes += part.nbytes;
  return content;
}

bool is_content(const HttpResponse& response, const S3Content& content) {
  if (parse_decimal(response.header("content-length")) != content.nbytes) return false;
  if (!content.etag.empty() && response.header("etag") == content.etag) return true;
  return parse_s3_checksum(response) == Checksum{ChecksumKind::kCrc32c, content.crc32c};
}

}  // namespace torchnpy
