// How libcurl is set up: for a process, for the requests of a client, for one request.
#include <fmt/format.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/fork.h"
#include "base/text.h"
#include "transport/http.h"
#include "transport/reactor.h"

namespace torchnpy {
namespace {

// The sockets of this process's connections with their inodes, under process_mutex(): opening,
// closing and noting it are one step for fork(). Some are closed already: libcurl 7.88 calls no
// CURLOPT_CLOSESOCKETFUNCTION for one that was still connecting.
std::map<int, ino_t>* open_sockets = nullptr;

ino_t inode_of(int descriptor) {
  struct stat status;
  return fstat(descriptor, &status) == 0 ? status.st_ino : 0;
}

// A child that keeps its parent's sockets open keeps the parent's connections half alive.
// Only close(2): libcurl's own clean-up would end the parent's TLS sessions on the wire.
void close_inherited_sockets() {
  if (open_sockets == nullptr) return;
  for (const auto& [descriptor, inode] : *open_sockets) {
    // The number may be another file's by now.
    if (inode_of(descriptor) == inode) close(descriptor);
  }
  open_sockets->clear();
}

// Registered when the library is loaded, as in fork.cpp.
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, close_inherited_sockets);

// `opened`: a vector of int, of the sockets of one exchange.
curl_socket_t open_socket(void* opened, curlsocktype, curl_sockaddr* address) {
  const std::lock_guard lock(process_mutex());
  const int descriptor =
      socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
  if (descriptor < 0) return CURL_SOCKET_BAD;
  open_sockets->insert_or_assign(descriptor, inode_of(descriptor));
  static_cast<std::vector<int>*>(opened)->push_back(descriptor);
  return descriptor;
}

int close_socket(void*, curl_socket_t descriptor) {
  const std::lock_guard lock(process_mutex());
  open_sockets->erase(descriptor);
  return close(descriptor);
}

// libcurl's own 64 KiB take more system calls.
constexpr long kUploadBufferNbytes = 256 << 10;

long to_ms(double seconds) { return static_cast<long>(std::clamp(seconds, 0.001, 1e6) * 1000); }

// The path and query of a URL with escapes in lower case, such as %2f; else "". A request has no
// bytes beyond ASCII: they are escaped, as libcurl does.
std::string find_lower_target(std::string_view url) {
  const size_t path = url.find('/', url.find("://") + 3);
  if (path == std::string_view::npos) return {};
  const std::string_view target = url.substr(path);
  bool has_lower = false;
  std::string escaped;
  for (size_t at = 0; at < target.size(); ++at) {
    const auto byte = static_cast<unsigned char>(target[at]);
    if (byte == '%') has_lower |= std::ranges::any_of(target.substr(at + 1, 2), is_lower);
    if (byte < 0x80) {
      escaped += target[at];
    } else {
      fmt::format_to(std::back_inserter(escaped), "%{:02x}", byte);
    }
  }
  return has_lower ? escaped : "";
}

}  // namespace

void initialise_curl() {
  if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK) {
    throw TransportError("libcurl cannot be initialised");
  }
  open_sockets = new std::map<int, ino_t>;
}

// What stays the same for all requests of a client.
void Reactor::apply_settings(Slot& slot) {
  slot.settings = slot.job->settings();
  slot.proxy = nullptr;
  slot.buffer_nbytes = 0;
  slot.is_get = true;
  slot.has_target = false;
  const EngineSettings& settings = *slot.settings;
  CURL* const easy = slot.easy;
  curl_easy_reset(easy);
  const auto set = [easy](CURLoption option, auto value) { curl_easy_setopt(easy, option, value); };
  set(CURLOPT_PRIVATE, &slot);
  set(CURLOPT_ERRORBUFFER, slot.detail);
  set(CURLOPT_HEADERFUNCTION, &Reactor::on_head);
  set(CURLOPT_HEADERDATA, &slot);
  set(CURLOPT_WRITEFUNCTION, &Reactor::on_body);
  set(CURLOPT_WRITEDATA, &slot);
  set(CURLOPT_READFUNCTION, &Reactor::on_content);
  set(CURLOPT_READDATA, &slot);
  set(CURLOPT_SEEKFUNCTION, &Reactor::on_rewind);
  set(CURLOPT_SEEKDATA, &slot);
  set(CURLOPT_UPLOAD_BUFFERSIZE, kUploadBufferNbytes);
  set(CURLOPT_PREREQFUNCTION, &Reactor::on_sent);
  set(CURLOPT_PREREQDATA, &slot);
  set(CURLOPT_OPENSOCKETFUNCTION, &open_socket);
  set(CURLOPT_OPENSOCKETDATA, &slot.opened_sockets);
  set(CURLOPT_CLOSESOCKETFUNCTION, &close_socket);
  set(CURLOPT_NOSIGNAL, 1L);
#if LIBCURL_VERSION_NUM >= 0x075700  // 7.87
  // Or cancelling waits for a name server that never answers.
  set(CURLOPT_QUICK_EXIT, 1L);
  set(CURLOPT_PROTOCOLS_STR, "http,https");
#else
  set(CURLOPT_PROTOCOLS, static_cast<long>(CURLPROTO_HTTP | CURLPROTO_HTTPS));
#endif
  set(CURLOPT_FOLLOWLOCATION, 0L);  // libcurl would carry signed headers to the new host
  set(CURLOPT_DISALLOW_USERNAME_IN_URL, 1L);
  set(CURLOPT_PATH_AS_IS, 1L);  // "a/../b" is a key of its own
  set(CURLOPT_HTTP_VERSION,
      static_cast<long>(settings.http2 ? CURL_HTTP_VERSION_2TLS : CURL_HTTP_VERSION_1_1));
  set(CURLOPT_PIPEWAIT, settings.http2 ? 1L : 0L);  // for a connection that can be shared
  set(CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
  set(CURLOPT_USERAGENT, "torchnpy");
  set(CURLOPT_TCP_NODELAY, 1L);
  set(CURLOPT_TCP_KEEPALIVE, 1L);
  set(CURLOPT_DNS_SHUFFLE_ADDRESSES, 1L);  // a store's front ends share the load
  set(CURLOPT_CONNECTTIMEOUT_MS, to_ms(settings.connect_timeout_s));
  set(CURLOPT_NOPROXY, settings.no_proxy.c_str());
  set(CURLOPT_SSL_VERIFYPEER, settings.verify_tls ? 1L : 0L);
  set(CURLOPT_SSL_VERIFYHOST, settings.verify_tls ? 2L : 0L);
  if (!settings.ca_file.empty() || !settings.ca_directory.empty()) {
    const auto text = [](const std::string& path) { return path.empty() ? nullptr : path.c_str(); };
    set(CURLOPT_CAINFO, text(settings.ca_file));
    set(CURLOPT_CAPATH, text(settings.ca_directory));
    set(CURLOPT_PROXY_CAINFO, text(settings.ca_file));
    set(CURLOPT_PROXY_CAPATH, text(settings.ca_directory));
  }
  if (settings.max_in_flight > max_connections_) {
    // Pinned: the floating default closes warm connections when fewer are in use.
    max_connections_ = std::max(64, settings.max_in_flight);
    curl_multi_setopt(multi_, CURLMOPT_MAXCONNECTS, max_connections_);
  }
}

void Reactor::apply_request(Slot& slot, const HttpRequest& request) {
  // The list's nodes point into one string: libcurl only reads them.
  slot.header_text.clear();
  std::vector<size_t> starts;
  starts.reserve(request.headers.size() + 1);
  for (const auto& [name, value] : request.headers) {
    starts.push_back(slot.header_text.size());
    slot.header_text += name;
    slot.header_text += value.empty() ? ";" : ": ";  // libcurl's way to write an empty value
    slot.header_text += value;
    slot.header_text += '\0';
  }
  // Else libcurl waits up to a second for the server's consent to bodies of more than 1 MiB.
  if (request.method != "GET") {
    starts.push_back(slot.header_text.size());
    slot.header_text.append("Expect:").push_back('\0');
  }
  slot.headers.resize(starts.size());
  for (size_t i = 0; i < starts.size(); ++i) {
    slot.headers[i] = {slot.header_text.data() + starts[i],
                       i + 1 < starts.size() ? &slot.headers[i + 1] : nullptr};
  }
  const std::string& proxy =
      request.url.starts_with("https:") ? slot.settings->https_proxy : slot.settings->http_proxy;
  slot.over_tls = request.url.starts_with("https:") || proxy.starts_with("https:");
  if (std::exchange(slot.proxy, &proxy) != &proxy) {
    curl_easy_setopt(slot.easy, CURLOPT_PROXY, proxy.c_str());  // "" also hides the environment
  }
  curl_easy_setopt(slot.easy, CURLOPT_HTTPHEADER,
                   slot.headers.empty() ? nullptr : slot.headers.data());
  // Newer releases of libcurl write escapes of the path in upper case, but what a URL names, and a
  // signature that it carries, may be of the bytes that were given. A proxy wants the whole URL.
  const bool is_direct = request.url.starts_with("https:") || proxy.empty();
  const std::string target = is_direct ? find_lower_target(request.url) : "";
  if (!target.empty() || slot.has_target) {
    curl_easy_setopt(slot.easy, CURLOPT_REQUEST_TARGET, target.empty() ? nullptr : target.c_str());
    slot.has_target = !target.empty();
  }
  apply_method(slot, request);
  if (curl_easy_setopt(slot.easy, CURLOPT_URL, request.url.c_str()) != CURLE_OK) {
    throw TransportError("expected a URL that can be sent but found one that is too long");
  }
}

void Reactor::apply_method(Slot& slot, const HttpRequest& request) {
  const auto set = [&](CURLoption option, auto value) {
    curl_easy_setopt(slot.easy, option, value);
  };
  const bool is_get = request.method == "GET";
  slot.sends_content = request.content != nullptr && request.content->nbytes() != 0;
  slot.content = HttpBodyCursor(request.content);
  if (!std::exchange(slot.is_get, is_get)) {
    set(CURLOPT_CUSTOMREQUEST, nullptr);
    set(CURLOPT_COPYPOSTFIELDS, nullptr);  // or what is read is never rewound
    set(CURLOPT_HTTPGET, 1L);
  }
  if (is_get) return;
  if (request.method == "HEAD") return set(CURLOPT_NOBODY, 1L);
  if (slot.sends_content) {
    set(CURLOPT_UPLOAD, 1L);
    set(CURLOPT_INFILESIZE_LARGE, static_cast<curl_off_t>(request.content->nbytes()));
  } else {
    // Any method with a body; the size comes first, for COPYPOSTFIELDS copies so much.
    set(CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(request.body.size()));
    set(CURLOPT_COPYPOSTFIELDS, request.body.data());
  }
  set(CURLOPT_CUSTOMREQUEST, request.method.c_str());
}

}  // namespace torchnpy
