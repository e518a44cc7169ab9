// HTTP objects: how they are asked for, and their reads, which are range requests, redirects,
// retries that resume, validators. The policy is in docs/transport.md; requests run on the engine.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/checksum.h"
#include "transport/client.h"
#include "transport/http_body.h"
#include "transport/source.h"
#include "transport/url.h"

namespace torchnpy {

using Headers = std::vector<std::pair<std::string, std::string>>;

// What an object is asked, or told.
struct HttpCommand {
  Headers headers{};  // beside the object's own
  std::string method{"GET"};
  std::string body{};                 // sent with any method but GET and HEAD
  const HttpBody* content = nullptr;  // sent in its place
  std::string query{};                // of S3: percent-encoded, sorted by name
  bool creates = false;               // the object: what its client's headers say of it goes along
};

struct HttpRequest {
  std::string url;  // as sent: percent-encoded, query included
  Headers headers;
  std::string method{"GET"};
  std::string body{};                 // sent with any method but GET and HEAD
  const HttpBody* content = nullptr;  // sent in its place, and read until the exchange has ended
  // What the object made it with; comes back with an answer that is judged.
  std::shared_ptr<const void> made_with{};
};

struct HttpResponse {
  int status = 0;
  Headers headers;                          // of the final answer, names in lower case
  std::string body;                         // where it is kept: at most its first 64 KiB
  std::shared_ptr<const void> made_with{};  // of the request
  // The first value of the header `name` (lower case); "" when there is none.
  std::string_view header(std::string_view name) const;
};

// What an error answer means to the kind of object that was asked for.
struct Verdict {
  enum class Action {
    kDefault,   // the HTTP layer's own rule
    kRetry,     // as a fault that may pass: with a back-off
    kRetryNow,  // something was learnt (a region, a clock): at once; at most three times a read
  };
  Action action = Action::kDefault;
  std::string message;  // the server's own words for the error, empty when it had none
};

// How an object is asked for: HTTP as it is, S3 by signing. Thread-safe.
class HttpObject {
 public:
  virtual ~HttpObject() = default;
  // The URL as the user knows it, without query and credentials.
  virtual const std::string& name() const = 0;
  // Equal for two objects of one client only if they are the same object; never shown.
  virtual const std::string& identity() const { return name(); }
  // What tells the object from all others, whoever asks; "" when it is not to be cached. May hold
  // secrets: for hashing only.
  virtual std::string cache_key() const { return {}; }
  // The request of one attempt. Called on an I/O thread for each attempt: never blocks. Throws
  // Error.
  virtual HttpRequest make_request(HttpCommand command) = 0;
  // The same at `url`, where a redirect led. Empty: that is not the object's own server, which
  // alone may see the user's headers and a signature.
  virtual std::optional<HttpRequest> make_request_at(const Url&, const HttpCommand&) {
    return std::nullopt;
  }
  // Whether it can be sent in parts, as S3's can (s3_upload.h).
  virtual bool takes_parts() const { return false; }
  // Judges an answer that is neither good nor a redirect that is followed.
  virtual Verdict judge(const HttpResponse& response) = 0;
  // A request that is made now would be refused, but what it needs is on its way: retries wait.
  virtual bool must_wait() const noexcept { return false; }
  // Whether requests without a range ask for the store's checksum of the object, and which one a
  // good answer to such a request has.
  virtual bool asks_checksum() const { return false; }
  virtual std::optional<Checksum> find_checksum(const HttpResponse&) const { return std::nullopt; }
};

// Adds the user's own headers, which stand in place of ours of the same names (in lower case).
void add_own_headers(Headers& headers, const Headers& own);

// Counters of a client; bumped by I/O threads. See Client::metrics.
struct TransportMetrics;

// What the objects of one client share; see http_source.h.
class HttpContext;
std::shared_ptr<HttpContext> make_http_context(std::shared_ptr<const ClientOptions> options,
                                               std::shared_ptr<TransportMetrics> metrics);

std::shared_ptr<Source> open_http(std::shared_ptr<HttpObject> object,
                                  std::shared_ptr<HttpContext> context);

// "http(s)://..." as the user gave it, with the client's own headers.
std::shared_ptr<HttpObject> make_plain_object(const std::string& url,
                                              std::shared_ptr<const ClientOptions> options);

// Reads all of `source` into memory; blocks. For listings and the like.
std::string read_all(Source& source, uint64_t max_nbytes);

}  // namespace torchnpy
