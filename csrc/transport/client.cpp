#include "transport/client.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/fork.h"
#include "base/text.h"
#include "transport/cached_source.h"
#include "transport/file.h"
#include "transport/file_target.h"
#include "transport/http.h"
#include "transport/local_path.h"
#include "transport/metrics.h"
#include "transport/s3.h"
#include "transport/upload.h"

namespace torchnpy {
namespace {

// A page of a listing holds 1000 keys of at most 1024 bytes, each three times as long when
// it is percent-encoded.
constexpr uint64_t kMaxListingNbytes = 16 << 20;

// "s3" of "S3://bucket/key"; "" of a path.
std::string find_scheme(std::string_view url) {
  const size_t end = url.find("://");
  if (end == std::string_view::npos || end == 0) return {};
  const std::string_view scheme = url.substr(0, end);
  const bool valid = std::ranges::all_of(
      scheme, [](char c) { return is_alphanumeric(c) || c == '+' || c == '-' || c == '.'; });
  return valid ? lower(scheme) : "";
}

// The URL for a message, also where it is none: without query, fragment and userinfo.
std::string display(std::string_view url) {
  const size_t separator = url.find("://");
  const size_t colon = separator == std::string_view::npos ? url.find(':') : separator;
  const size_t begin = std::min(url.find_first_not_of('/', colon + 1), url.size());
  if (url.find_first_of("?#") < begin) return display(url.substr(0, url.find_first_of("?#")));
  const size_t end = std::min(url.find_first_of("/?#", begin), url.size());
  std::string_view authority = url.substr(begin, end - begin);
  std::string_view path = url.substr(end, url.find_first_of("?#", end) - end);
  if (const size_t at = authority.rfind('@'); at != std::string_view::npos) {
    authority.remove_prefix(at + 1);
  } else if (url.find('@', end) != std::string_view::npos &&
             authority.find(':') != std::string_view::npos) {
    // What follows the colon may be the begin of a password with a slash or a question mark.
    authority = authority.substr(0, authority.find(':'));
    path = {};
  }
  std::string result = fmt::format("{}{}{}", url.substr(0, begin), authority, path);
  std::ranges::replace_if(
      result, [](char c) { return static_cast<unsigned char>(c) < ' ' || c == 0x7F; }, '?');
  return result;
}

// A typing error in a URL, which as the name of a file would show its secrets.
bool looks_like_url(std::string_view text) {
  const size_t begin = std::min(text.find_first_not_of(" \t\r\n\v\f"), text.size());
  const std::string start = lower(text.substr(begin, std::string_view("https:").size()));
  return start.starts_with("http:") || start.starts_with("https:") || start.starts_with("s3:") ||
         text.find("://") != std::string_view::npos;
}

// Runs `call`; its errors then begin with the object's name.
template <typename Call>
auto with_name(const std::string& name, Call call) {
  try {
    return call();
  } catch (const InterruptedError&) {
    throw;
  } catch (Error& error) {
    if (!std::string_view(error.what()).starts_with(name)) error.add_context(name);
    throw;
  }
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// RFC 8089: file:///path, file://localhost/path.
std::string parse_file_url(const std::string& url) {
  const std::string_view rest = std::string_view(url).substr(std::string_view("file://").size());
  const size_t slash = std::min(rest.find('/'), rest.size());
  const std::string host = lower(rest.substr(0, slash));
  if ((!host.empty() && host != "localhost") || slash == rest.size()) {
    throw ArgumentError(fmt::format("{}: expected file:///path but found the host \"{}\"", url,
                                    rest.substr(0, slash)));
  }
  std::string path;
  for (size_t i = slash; i < rest.size(); ++i) {
    if (rest[i] != '%') {
      path += rest[i];
      continue;
    }
    const int high = i + 1 < rest.size() ? hex_digit(rest[i + 1]) : -1;
    const int low = i + 2 < rest.size() ? hex_digit(rest[i + 2]) : -1;
    if (high < 0 || low < 0) {
      throw ArgumentError(
          fmt::format("{}: expected two hexadecimal digits after % at byte {}; write % as %25", url,
                      rest.data() + i - url.data()));
    }
    path += static_cast<char>(high * 16 + low);
    i += 2;
  }
  return path;
}

template <typename T>
void check(const char* parameter, T value, bool allowed, std::string_view expected) {
  if (allowed) return;
  throw ArgumentError(fmt::format("{}: expected {} but found {}", parameter, expected, value));
}

void check_seconds(const char* parameter, double value) {
  // Above a year it is a mistake, and overflows clocks.
  constexpr double kMaxSeconds = 366 * 86400;
  check(parameter, value, value > 0 && value <= kMaxSeconds, "seconds above 0 and at most a year");
}

void check_headers(const Headers& headers) {
  std::vector<std::string> names;
  for (const auto& [name, value] : headers) {
    const bool token = !name.empty() && std::ranges::all_of(name, [](char c) {
      return is_alphanumeric(c) ||
             std::string_view("!#$%&'*+-.^_`|~").find(c) != std::string_view::npos;
    });
    check("headers", '"' + name + '"', token, "names of letters, digits and \"-\"");
    // The value may be a secret.
    const bool line =
        std::ranges::none_of(value, [](char c) { return c == '\r' || c == '\n' || c == '\0'; });
    check("headers", "such a byte in that of \"" + name + '"', line,
          "values without line breaks and NUL");
    names.push_back(lower(name));
    for (const char* const ours :
         {"range", "if-match", "if-none-match", "if-modified-since", "accept-encoding", "host",
          "content-length", "transfer-encoding", "connection"}) {
      check("headers", '"' + name + '"', names.back() != ours, "none that the transport sets");
    }
  }
  std::ranges::sort(names);
  const auto twice = std::ranges::adjacent_find(names);
  if (twice != names.end()) check("headers", '"' + *twice + "\" twice", false, "each name once");
}

void check_cache(const CacheOptions& options) {
  constexpr uint64_t kMaxNbytes = uint64_t{1} << 60;
  constexpr uint64_t kMinDiskNbytes = 64 << 10;
  if (options.ram_nbytes == 0 && options.disk_nbytes == 0 && options.dir.empty()) {
    throw ArgumentError("cache: expected ram_nbytes, or dir and disk_nbytes, but found neither");
  }
  check("cache.ram_nbytes", options.ram_nbytes, options.ram_nbytes <= kMaxNbytes, "at most 1 EiB");
  if (options.dir.empty()) {
    check("cache.disk_nbytes", options.disk_nbytes, options.disk_nbytes == 0,
          "0 (no disk) without cache.dir");
  } else {
    check("cache.dir", '"' + options.dir + '"',
          options.dir.front() == '/' && options.dir.find('\0') == std::string::npos,
          "an absolute path");
    check("cache.disk_nbytes", options.disk_nbytes,
          options.disk_nbytes >= kMinDiskNbytes && options.disk_nbytes <= kMaxNbytes,
          "64 KiB to 1 EiB with cache.dir");
  }
  // Infinite is fine: objects that never change.
  check("cache.fresh_s", options.fresh_s, options.fresh_s >= 0, "seconds, 0 or more");
}

void check_options(const ClientOptions& options) {
  constexpr uint64_t kMaxPartNbytes = uint64_t{5} << 30;
  check("max_in_flight", options.max_in_flight,
        options.max_in_flight >= 1 && options.max_in_flight <= 4096, "1 to 4096");
  check("io_threads", options.io_threads, options.io_threads >= 1 && options.io_threads <= 64,
        "1 to 64");
  check("part_nbytes", options.part_nbytes,
        options.part_nbytes >= 1024 && options.part_nbytes <= kMaxPartNbytes, "1 KiB to 5 GiB");
  check_seconds("connect_timeout_s", options.connect_timeout_s);
  check_seconds("stall_timeout_s", options.stall_timeout_s);
  check_seconds("retry_timeout_s", options.retry_timeout_s);
  check_seconds("backoff_s", options.backoff_s);
  if (options.deadline_s) check_seconds("deadline_s", *options.deadline_s);
  check("retries", options.retries, options.retries >= 1 && options.retries <= 1000,
        "1 to 1000 attempts in all");
  if (options.profile) {
    check("profile", "\"\"", !options.profile->empty(), "the name of a profile");
  }
  if (options.ca_bundle) {
    check("ca_bundle", "\"\"", !options.ca_bundle->empty(), "the path of a file of certificates");
  }
  if (options.proxy) {
    const std::string scheme = find_scheme(*options.proxy);
    const bool known = scheme.empty() || scheme == "http" || scheme == "https" ||
                       scheme == "socks4" || scheme == "socks4a" || scheme == "socks5" ||
                       scheme == "socks5h";
    // The rest of it may hold a password.
    check("proxy", scheme + "://", known, "http://, https:// or socks5://");
  }
  check_headers(options.headers);
  if (options.cache) check_cache(*options.cache);
}

class ClientImpl : public Client {
 public:
  explicit ClientImpl(ClientOptions options)
      : options_(std::make_shared<const ClientOptions>(std::move(options))),
        metrics_(std::make_shared<TransportMetrics>()),
        account_(make_s3_account(options_, metrics_)),
        context_(make_http_context(options_, metrics_)),
        cache_(options_->cache ? std::make_shared<Cache>(*options_->cache) : nullptr) {}

  const ClientOptions& options() const override { return *options_; }

  std::shared_ptr<Source> open(const std::string& url, bool mmap) override {
    Place place = locate(url);
    if (place.object != nullptr) return open_object(std::move(place.object), mmap);
    return open_file(place.path, mmap);
  }

  std::unique_ptr<Target> create(const std::string& url, const TargetOptions& options) override {
    Place place = locate(url);
    if (place.object != nullptr) return create_object(std::move(place.object), context_, options);
    return create_file(place.path, options);
  }

  ObjectPage list(const std::string& prefix, const std::string& continuation) override {
    const std::string scheme = find_scheme(prefix);
    if (scheme != "s3") {
      throw UnsupportedError(fmt::format("expected s3://bucket/prefix to list but found {}; {}",
                                         scheme.empty() ? "a path" : scheme + "://",
                                         scheme == "http" || scheme == "https"
                                             ? "HTTP has no listings: pass the URLs themselves"
                                             : "list files with pathlib or glob"));
    }
    return with_name(prefix, [&] {
      return list_s3(prefix, continuation, account_, [this](std::shared_ptr<HttpObject> object) {
        // Never from the cache: what a prefix has changes without a word.
        return read_all(*open_http(std::move(object), context_), kMaxListingNbytes);
      });
    });
  }

  std::map<std::string, double> metrics() const override {
    std::map<std::string, double> values = metrics_->snapshot();
    values["cache_ram_nbytes"] = cache_ ? static_cast<double>(cache_->ram_nbytes()) : 0;
    values["cache_disk_nbytes"] = cache_ ? static_cast<double>(cache_->disk_nbytes()) : 0;
    return values;
  }

 private:
  // An object of a server, or the path of a file.
  struct Place {
    std::shared_ptr<HttpObject> object;
    std::string path;
  };

  Place locate(const std::string& url) const {
    const std::string scheme = find_scheme(url);
    if (scheme == "s3") return {with_name(url, [&] { return make_s3_object(url, account_); }), {}};
    if (scheme == "http" || scheme == "https") {
      return {with_name(display(url), [&] { return make_plain_object(url, options_); }), {}};
    }
    return {nullptr, local_path(url)};
  }

  std::shared_ptr<Source> open_object(std::shared_ptr<HttpObject> object, bool mmap) {
    if (cache_) return open_cached(std::move(object), context_, cache_, mmap);
    return open_http(std::move(object), context_);
  }

  const std::shared_ptr<const ClientOptions> options_;
  const std::shared_ptr<TransportMetrics> metrics_;
  const std::shared_ptr<S3Account> account_;
  const std::shared_ptr<HttpContext> context_;
  const std::shared_ptr<Cache> cache_;  // nullptr: none
};

// Under process_mutex(). Leaked: threads may use it while the process ends.
std::shared_ptr<Client>& default_slot() {
  static auto* const slot = new std::shared_ptr<Client>;
  return *slot;
}

}  // namespace

std::string display_name(const std::string& url) {
  const std::string scheme = find_scheme(url);
  const bool has_no_secrets = scheme == "s3" || scheme == "file";
  return has_no_secrets || (scheme.empty() && !looks_like_url(url)) ? url : display(url);
}

std::string local_path(const std::string& url) {
  const std::string scheme = find_scheme(url);
  if (scheme == "s3" || scheme == "http" || scheme == "https") {
    throw ArgumentError(fmt::format(
        "{}: expected a local file but found an object of a server, which is written whole",
        display_name(url)));
  }
  if (!scheme.empty() && scheme != "file") {
    throw ArgumentError(fmt::format(
        "{}://: expected s3://, http://, https://, file:// or a path; write a path that looks "
        "like a URL as ./{}:/...",
        scheme, scheme));
  }
  if (scheme.empty() && looks_like_url(url)) {
    throw ArgumentError(fmt::format(
        "{}: expected s3://, http://, https://, file:// or a path but found something like a "
        "URL; write a path a://b as ./a:/b",
        display(url)));
  }
  std::string path = scheme == "file" ? parse_file_url(url) : url;
  if (path.empty()) throw ArgumentError("expected a URL or a path but found an empty string");
  if (path.find('\0') != std::string::npos) {
    throw ArgumentError("expected a path but found one with a NUL byte");
  }
  return path;
}

std::shared_ptr<Client> Client::make(ClientOptions options) {
  check_options(options);
  return std::make_shared<ClientImpl>(std::move(options));
}

std::shared_ptr<Client> Client::default_client() {
  {
    const std::lock_guard lock(process_mutex());
    if (default_slot() != nullptr) return default_slot();
  }
  auto client = make({});
  const std::lock_guard lock(process_mutex());
  if (default_slot() == nullptr) default_slot() = std::move(client);
  return default_slot();
}

void Client::set_default_client(std::shared_ptr<Client> client) {
  // The one before is released after the mutex.
  const std::lock_guard lock(process_mutex());
  default_slot().swap(client);
}

}  // namespace torchnpy
