// A client: how objects are reached. Options, credentials and regions; counts what it does.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "transport/source.h"
#include "transport/target.h"

namespace torchnpy {

enum class Addressing { kAuto, kPath, kVirtual };

class CredentialsProvider;

// Where objects that were read are kept: in memory, on a disk, or both.
struct CacheOptions {
  uint64_t ram_nbytes = 0;   // 0: not in memory
  std::string dir;           // "": not on a disk; else absolute
  uint64_t disk_nbytes = 0;  // with `dir`
  double fresh_s = 0;        // for so long after a check the store is not asked again
};

// What the user passed. Holds no resolved credentials.
struct ClientOptions {
  std::optional<std::string>
      endpoint;  // "http://127.0.0.1:9000"; else AWS_ENDPOINT_URL(_S3), profile, AWS
  std::optional<std::string> region;   // else AWS_REGION, AWS_DEFAULT_REGION, profile, us-east-1
  std::optional<std::string> profile;  // else AWS_PROFILE, "default"
  Addressing addressing = Addressing::kAuto;
  bool anonymous = false;  // S3 requests are not signed
  // The only place to take credentials from, where given; asked again when they expire.
  std::shared_ptr<CredentialsProvider> credentials;
  std::vector<std::pair<std::string, std::string>>
      headers;  // sent with each request to the first host
  bool requester_pays = false;
  std::optional<std::string>
      ca_bundle;  // else AWS_CA_BUNDLE, SSL_CERT_FILE, CURL_CA_BUNDLE, the system's
  bool verify_tls = true;
  std::optional<std::string> proxy;  // else HTTPS_PROXY, HTTP_PROXY, NO_PROXY; "" for none
  // The client's requests start while fewer than this many of the process are in flight.
  int max_in_flight = 64;
  int io_threads = 2;  // how many of the process's I/O threads the client's requests use
  uint64_t part_nbytes = 8 << 20;  // of a part of a large object, at most
  // Ranges with gaps of no more bytes between them share a request; else docs/transport.md's rule.
  std::optional<uint64_t> coalesce_nbytes;
  bool http2 = false;      // where the server has it, by TLS's ALPN
  bool hedge = false;      // a second request when an answer is later than 95 % of them
  bool checksums = false;  // ask for the store's checksums and compare them
  std::optional<CacheOptions> cache;
  double connect_timeout_s = 5;
  double stall_timeout_s = 30;       // no byte for so long
  std::optional<double> deadline_s;  // of one read, all attempts together
  int retries = 10;                  // attempts in all
  double retry_timeout_s = 180;      // no new attempt after
  double backoff_s = 0.1;            // before the first retry, at least
};

struct ObjectInfo {
  std::string url;
  uint64_t nbytes = 0;
  std::string etag;      // without quotes
  std::string modified;  // ISO 8601, as the store gives it
};

// One page of a listing, in the store's order, and where the next begins ("": it was the last).
struct ObjectPage {
  std::vector<ObjectInfo> objects;
  std::string continuation;
};

class Client : public std::enable_shared_from_this<Client> {
 public:
  // Throws ArgumentError for an option that is wrong. Reads no file and opens no connection.
  static std::shared_ptr<Client> make(ClientOptions options);
  // What ops and datasets use when no client is given; made at first use.
  static std::shared_ptr<Client> default_client();
  static void set_default_client(std::shared_ptr<Client> client);

  virtual ~Client() = default;
  virtual const ClientOptions& options() const = 0;
  // "s3://bucket/key", "http(s)://...", "file://..." or a path. Opens files; sends nothing.
  // `mmap`: a large file is mapped, else read. Throws ArgumentError for a URL that is none,
  // TransportError for a file that cannot be opened or credentials that cannot be found.
  virtual std::shared_ptr<Source> open(const std::string& url, bool mmap = true) = 0;
  // The same names; begins a new object there. Throws as open().
  virtual std::unique_ptr<Target> create(const std::string& url, const TargetOptions& options) = 0;
  // Blocks. S3 (ListObjectsV2): objects whose URL begins with `prefix`. UnsupportedError for
  // HTTP, and for files.
  virtual ObjectPage list(const std::string& prefix, const std::string& continuation) = 0;
  // Counts since the client was made: requests, retries, bytes, errors, connections...
  virtual std::map<std::string, double> metrics() const = 0;
};

// What messages call the object at `url`: no query, fragment and userinfo of http(s) URLs.
std::string display_name(const std::string& url);

}  // namespace torchnpy
