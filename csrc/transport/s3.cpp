#include "transport/s3.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <pugixml.hpp>
#include <utility>

#include "base/error.h"
#include "base/text.h"
#include "transport/http_head.h"
#include "transport/s3_account.h"
#include "transport/s3_checksum.h"
#include "transport/s3_site.h"
#include "transport/sigv4.h"
#include "transport/utf8.h"

namespace torchnpy {
namespace {

// What S3 says in the body of an error.
struct S3Error {
  std::string code;
  std::string message;
  std::string region;
};

// For people: one line, not too long.
std::string clean(std::string_view text) {
  constexpr size_t kMaxNbytes = 400;
  std::string result(cut_utf8(text, kMaxNbytes));
  for (char& c : result) {
    if (static_cast<unsigned char>(c) < ' ' || c == 0x7f) c = ' ';
  }
  return result;
}

S3Error read_error(const pugi::xml_document& document) {
  pugi::xml_node node = document.child("Error");
  if (!node) node = document.document_element().child("Error");
  return {clean(node.child_value("Code")), clean(node.child_value("Message")),
          node.child_value("Region")};
}

std::string format_error(const S3Error& error) {
  return error.message.empty() ? error.code : error.code + ": " + error.message;
}

bool is_one_of(std::string_view code, std::initializer_list<std::string_view> codes) {
  return std::ranges::find(codes, code) != codes.end();
}

bool is_checksum(std::string_view header) {
  return header.starts_with("x-amz-checksum-") && header != "x-amz-checksum-mode";
}

class S3Object : public HttpObject {
 public:
  // `key_path`: "/" and the encoded key; "" for the bucket itself, with a `query`.
  S3Object(std::string name, std::string bucket, std::string key_path, std::string query,
           std::shared_ptr<S3Account> account)
      : name_(std::move(name)),
        bucket_(std::move(bucket)),
        key_path_(std::move(key_path)),
        query_(std::move(query)),
        listing_(query_.empty() ? "" : fmt::format("{}?{}", name_, query_)),
        account_(std::move(account)) {
    account_->prepare(bucket_);
  }

  const std::string& name() const override { return name_; }
  const std::string& identity() const override { return query_.empty() ? name_ : listing_; }
  std::string cache_key() const override {
    return fmt::format("s3\n{}\n{}{}", account_->service(), bucket_, key_path_);
  }

  HttpRequest make_request(HttpCommand command) override {
    if (command.query.empty()) command.query = query_;
    adapt(command);
    return account_->make_request(bucket_, key_path_, std::move(command));
  }

  std::optional<HttpRequest> make_request_at(const Url& url, const HttpCommand& command) override {
    HttpCommand adapted = command;
    adapt(adapted);
    return account_->make_request_at(bucket_, url, std::move(adapted));
  }

  bool takes_parts() const override { return true; }

  bool must_wait() const noexcept override { return account_->awaits_credentials(); }

  bool asks_checksum() const override {
    return account_->options().checksums && !key_path_.empty();
  }

  std::optional<Checksum> find_checksum(const HttpResponse& response) const override {
    return asks_checksum() ? parse_s3_checksum(response) : std::nullopt;
  }

  Verdict judge(const HttpResponse& response) override {
    pugi::xml_document document;
    document.load_buffer(response.body.data(), response.body.size());
    const S3Error error = read_error(document);
    Verdict verdict{Verdict::Action::kDefault, format_error(error)};
    if (judge_region(response, error, verdict) || judge_time(response, error, verdict) ||
        judge_checksum(response, error, verdict)) {
      return verdict;
    }
    if (is_one_of(error.code, {"RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable",
                               "Throttling", "ThrottlingException", "RequestThrottled",
                               "RequestLimitExceeded", "BandwidthLimitExceeded", "TooManyRequests",
                               // Of what was sent: damaged on its way, or another writer was at it.
                               "BadDigest", "XAmzContentChecksumMismatch",
                               "ConditionalRequestConflict", "OperationAborted"})) {
      verdict.action = Verdict::Action::kRetry;
    } else if (is_one_of(error.code, {"ExpiredToken", "ExpiredTokenException",
                                      "TokenRefreshRequired", "InvalidToken"})) {
      if (account_->refresh_credentials(response.made_with)) {
        verdict.action = Verdict::Action::kRetry;
      } else {
        verdict.message += "; get new credentials and make a new Client";
      }
    } else if (response.status == 403 && account_->anonymous()) {
      if (verdict.message.empty()) verdict.message = "Forbidden";
      verdict.message += "; the request was anonymous";
    }
    return verdict;
  }

 private:
  // What is asked of S3 beside the signature.
  void adapt(HttpCommand& command) const {
    Headers& headers = command.headers;
    if (command.method != "GET") {
      if (account_->refuses_checksums()) {
        std::erase_if(headers, [](const auto& header) { return is_checksum(header.first); });
      }
      return;
    }
    // A listing has neither ranges nor an ETag.
    if (key_path_.empty()) {
      std::erase_if(headers, [](const auto& header) { return header.first != "Accept-Encoding"; });
    }
    const bool is_whole =
        std::ranges::none_of(headers, [](const auto& header) { return header.first == "Range"; });
    if (is_whole && asks_checksum()) headers.emplace_back("x-amz-checksum-mode", "ENABLED");
  }

  bool judge_region(const HttpResponse& response, const S3Error& error, Verdict& verdict) {
    std::string region(response.header("x-amz-bucket-region"));
    const bool other_region = is_region(region) && region != account_->region_of(bucket_);
    const bool wrong_region =
        response.status == 301 || response.status == 307 ||
        is_one_of(error.code, {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException",
                               "PermanentRedirect", "TemporaryRedirect"}) ||
        (other_region && (response.status == 400 || response.status == 403));
    if (region.empty()) region = error.region;
    if (!wrong_region) return false;
    if (!is_region(region)) {
      if (!verdict.message.empty()) verdict.message += "; ";
      verdict.message +=
          "the bucket is in another region, which the server does not name: pass region to Client";
      return false;
    }
    account_->learn_region(bucket_, region);
    verdict.action = Verdict::Action::kRetryNow;
    return true;
  }

  bool judge_time(const HttpResponse& response, const S3Error& error, Verdict& verdict) {
    if (error.code != "RequestTimeTooSkewed") return false;
    const std::optional<int64_t> time_s = parse_http_date(response.header("date"));
    if (!time_s) return false;
    account_->learn_time(std::chrono::sys_seconds(std::chrono::seconds(*time_s)));
    verdict.action = Verdict::Action::kRetryNow;
    return true;
  }

  // Stores that know no checksums ignore them, but for some that say so.
  bool judge_checksum(const HttpResponse& response, const S3Error& error, Verdict& verdict) {
    if (response.status != 501 || lower(error.message).find("checksum") == std::string::npos) {
      return false;
    }
    if (!account_->refuse_checksums()) return false;
    verdict.action = Verdict::Action::kRetryNow;
    return true;
  }

  const std::string name_;
  const std::string bucket_;
  const std::string key_path_;
  const std::string query_;
  const std::string listing_;  // which page of which listing; "" for an object
  const std::shared_ptr<S3Account> account_;
};

// What quote_plus of Python makes, and S3 with encoding-type=url.
std::string decode_key(std::string_view text, const std::string& name) {
  std::string key;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      key += text[i] == '+' ? ' ' : text[i];
      continue;
    }
    uint8_t byte = 0;
    const char* const end = text.data() + std::min(i + 3, text.size());
    const auto parsed = std::from_chars(text.data() + i + 1, end, byte, 16);
    if (parsed.ec != std::errc() || parsed.ptr != text.data() + i + 3) {
      throw FormatError(
          fmt::format("{}: expected two hexadecimal digits after % in a listed key but found "
                      "\"{}\"",
                      name, clean(text)));
    }
    key += static_cast<char>(byte);
    i += 2;
  }
  return key;
}

ObjectInfo read_entry(const pugi::xml_node& node, const std::string& bucket, bool encoded,
                      const std::string& name) {
  const pugi::xml_node key = node.child("Key");
  const std::string_view nbytes = node.child_value("Size");
  std::string_view etag = node.child_value("ETag");
  if (etag.size() >= 2 && etag.front() == '"' && etag.back() == '"') {
    etag = etag.substr(1, etag.size() - 2);
  }
  ObjectInfo info;
  const auto parsed = std::from_chars(nbytes.data(), nbytes.data() + nbytes.size(), info.nbytes);
  if (!key || parsed.ec != std::errc() || parsed.ptr != nbytes.data() + nbytes.size()) {
    throw FormatError(
        fmt::format("{}: expected a key and a size in each entry of the listing but found an entry "
                    "without them (Size \"{}\")",
                    name, clean(nbytes)));
  }
  const std::string_view text = key.child_value();
  info.url =
      fmt::format("s3://{}/{}", bucket, encoded ? decode_key(text, name) : std::string(text));
  info.etag = etag;
  info.modified = node.child_value("LastModified");
  return info;
}

ObjectPage parse_listing(std::string_view body, const std::string& bucket,
                         const std::string& continuation, const std::string& name) {
  pugi::xml_document document;
  // Keys may be nothing but blanks where the server does not encode them.
  const auto parsed = document.load_buffer(body.data(), body.size(),
                                           pugi::parse_default | pugi::parse_ws_pcdata_single);
  if (!parsed) {
    throw FormatError(fmt::format("{}: expected the XML of a listing but found {} at byte {}", name,
                                  parsed.description(), parsed.offset));
  }
  // S3 may find out that it fails after it sent 200.
  if (document.child("Error")) {
    throw TransportError(fmt::format("{}: {}", name, format_error(read_error(document))));
  }
  const pugi::xml_node root = document.child("ListBucketResult");
  if (!root) {
    throw FormatError(
        fmt::format("{}: expected a ListBucketResult but found <{}>; is the endpoint "
                    "an S3 server?",
                    name, clean(document.document_element().name())));
  }
  const bool encoded = std::string_view(root.child_value("EncodingType")) == "url";
  ObjectPage page;
  for (const pugi::xml_node& node : root.children("Contents")) {
    page.objects.push_back(read_entry(node, bucket, encoded, name));
  }
  if (std::string_view(root.child_value("IsTruncated")) != "true") return page;
  page.continuation = root.child_value("NextContinuationToken");
  if (page.continuation.empty() || page.continuation == continuation) {
    throw FormatError(fmt::format(
        "{}: expected a new NextContinuationToken in a listing that goes on but found {}", name,
        page.continuation.empty() ? "none" : "the one before"));
  }
  return page;
}

}  // namespace

std::shared_ptr<S3Account> make_s3_account(std::shared_ptr<const ClientOptions> options,
                                           std::shared_ptr<TransportMetrics> metrics) {
  return std::make_shared<S3Account>(std::move(options), std::move(metrics));
}

std::shared_ptr<HttpObject> make_s3_object(const std::string& url,
                                           std::shared_ptr<S3Account> account) {
  S3Url parsed = parse_s3_url(url);
  if (parsed.key.empty()) {
    throw ArgumentError(fmt::format("{}: expected s3://bucket/key but found no key", url));
  }
  return std::make_shared<S3Object>(url, std::move(parsed.bucket),
                                    '/' + encode_uri(parsed.key, Slash::kKeep), "",
                                    std::move(account));
}

ObjectPage list_s3(const std::string& prefix, const std::string& continuation,
                   std::shared_ptr<S3Account> account,
                   const std::function<std::string(std::shared_ptr<HttpObject>)>& fetch) {
  const S3Url parsed = parse_s3_url(prefix);
  std::string query;  // sorted by name: the signature wants it so
  if (!continuation.empty()) {
    query = "continuation-token=" + encode_uri(continuation, Slash::kEncode) + '&';
  }
  query += "encoding-type=url&list-type=2&prefix=" + encode_uri(parsed.key, Slash::kEncode);
  const auto object =
      std::make_shared<S3Object>(prefix, parsed.bucket, "", query, std::move(account));
  return parse_listing(fetch(object), parsed.bucket, continuation, prefix);
}

}  // namespace torchnpy
