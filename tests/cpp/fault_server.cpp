#include "fault_server.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

namespace torchnpy::testing {
namespace {

std::string find_header(const std::string& head, const std::string& name) {
  const size_t at = head.find("\r\n" + name + ": ");
  if (at == std::string::npos) return {};
  const size_t begin = at + name.size() + 4;
  return head.substr(begin, head.find("\r\n", begin) - begin);
}

// A server context with a fresh certificate for 127.0.0.1, which is written to *path.
SSL_CTX* make_tls(std::string* path) {
  EVP_PKEY* key = EVP_EC_gen("P-256");
  X509* certificate = X509_new();
  X509_set_version(certificate, X509_VERSION_3);
  ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1);
  X509_gmtime_adj(X509_getm_notBefore(certificate), -3600);
  X509_gmtime_adj(X509_getm_notAfter(certificate), 3600);
  X509_set_pubkey(certificate, key);
  X509_NAME* name = X509_get_subject_name(certificate);
  const auto* words = reinterpret_cast<const unsigned char*>("fault server");
  X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, words, -1, -1, 0);
  X509_set_issuer_name(certificate, name);
  X509_EXTENSION* alternative =
      X509V3_EXT_conf_nid(nullptr, nullptr, NID_subject_alt_name, "IP:127.0.0.1");
  X509_add_ext(certificate, alternative, -1);
  X509_EXTENSION_free(alternative);
  X509_sign(certificate, key, EVP_sha256());

  char file_name[] = "/tmp/fault_server_XXXXXX";
  FILE* file = fdopen(mkstemp(file_name), "w");
  PEM_write_X509(file, certificate);
  fclose(file);
  *path = file_name;

  SSL_CTX* context = SSL_CTX_new(TLS_server_method());
  SSL_CTX_use_certificate(context, certificate);
  SSL_CTX_use_PrivateKey(context, key);
  X509_free(certificate);
  EVP_PKEY_free(key);
  return context;
}

}  // namespace

FaultServer::FaultServer(std::string object, std::vector<Step> steps, bool tls,
                         std::string greeting)
    : object_(std::move(object)), steps_(std::move(steps)), greeting_(std::move(greeting)) {
  signal(SIGPIPE, SIG_IGN);
  if (tls) tls_ = make_tls(&ca_bundle_);
  listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  if (bind(listener_, reinterpret_cast<sockaddr*>(&address), length) != 0 ||
      listen(listener_, 128) != 0 ||
      getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    throw std::runtime_error("the fault server cannot listen");
  }
  port_ = ntohs(address.sin_port);
  acceptor_ = std::thread([this] { accept_connections(); });
}

FaultServer::~FaultServer() {
  stopping_ = true;
  shutdown(listener_, SHUT_RDWR);
  acceptor_.join();
  close(listener_);
  {
    const std::lock_guard lock(mutex_);
    for (Connection& connection : connections_) shutdown(connection.socket, SHUT_RDWR);
  }
  for (Connection& connection : connections_) {
    connection.thread.join();
    SSL_free(connection.tls);
    close(connection.socket);
  }
  SSL_CTX_free(tls_);
  if (!ca_bundle_.empty()) unlink(ca_bundle_.c_str());
}

std::string FaultServer::url(const std::string& path) const {
  return fmt::format("{}://127.0.0.1:{}{}", tls_ != nullptr ? "https" : "http", port_, path);
}

std::vector<FaultServer::Request> FaultServer::requests() const {
  const std::lock_guard lock(mutex_);
  return requests_;
}

std::vector<std::string> FaultServer::ranges() const {
  std::vector<std::string> ranges;
  for (const Request& request : requests()) {
    ranges.push_back((request.range.empty() ? "whole" : request.range) +
                     (request.if_match.empty() ? "" : " if " + request.if_match));
  }
  return ranges;
}

void FaultServer::wait_for_requests(size_t count) const {
  while (requests().size() < count) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

void FaultServer::accept_connections() {
  while (!stopping_) {
    const int accepted = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    if (accepted < 0) continue;
    const int on = 1;  // or a body that is sent after its head waits for the client's next packet
    setsockopt(accepted, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    ++connections_count_;
    const std::lock_guard lock(mutex_);
    Connection& connection = connections_.emplace_back();
    connection.socket = accepted;
    connection.thread = std::thread([this, &connection] { serve(connection); });
  }
}

void FaultServer::serve(Connection& connection) {
  if (tls_ != nullptr) {
    connection.tls = SSL_new(tls_);
    SSL_set_fd(connection.tls, connection.socket);
    if (SSL_accept(connection.tls) != 1) return reset(connection);
  }
  if (!send(connection, greeting_)) return;
  std::string received;
  while (!stopping_) {
    const size_t end = received.find("\r\n\r\n");
    if (end == std::string::npos) {
      if (!receive(connection, &received)) break;
      continue;
    }
    Request request;
    request.other = received.substr(0, end + 2);
    received.erase(0, end + 4);
    const size_t space = request.other.find(' ');
    request.target =
        request.other.substr(space + 1, request.other.find(' ', space + 1) - space - 1);
    request.range = find_header(request.other, "Range");
    request.if_match = find_header(request.other, "If-Match");
    request.authorization = find_header(request.other, "Authorization");
    request.accept_encoding = find_header(request.other, "Accept-Encoding");
    size_t number = 0;
    const Step step = take_step(request, &number);
    const std::string length = find_header(request.other, "Content-Length");
    if (!length.empty()) {
      const size_t nbytes = std::stoull(length);
      const bool is_whole = receive_body(connection, nbytes, step, &received);
      note_body(number, received.substr(0, nbytes));
      if (!is_whole) break;
      received.erase(0, nbytes);
    }
    if (!answer(connection, request, step)) break;
  }
  shutdown(connection.socket, SHUT_RDWR);
}

// Until `received` begins with the whole body; false when the connection is over.
bool FaultServer::receive_body(Connection& connection, size_t nbytes, const Step& step,
                               std::string* received) {
  const std::optional<size_t> stop = step.request_reset_at   ? step.request_reset_at
                                     : step.request_stall_at ? step.request_stall_at
                                                             : step.request_answered_at;
  const size_t wanted = std::min(nbytes, stop.value_or(nbytes));
  size_t paused_at = 0;
  while (received->size() < wanted) {
    if (received->size() >= paused_at) {
      std::this_thread::sleep_for(step.request_pause);
      paused_at += 64 << 10;
    }
    if (!receive(connection, received)) return false;
  }
  if (step.request_reset_at) reset(connection);
  if (step.request_answered_at) {
    const auto [head, body] = make_answer({}, step);
    send(connection, head + body);
    shutdown(connection.socket, SHUT_WR);
  }
  std::string ignored;
  while (stop && !step.request_reset_at && !stopping_) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    if (step.request_answered_at && !receive(connection, &ignored)) break;
  }
  return !stop;
}

void FaultServer::note_body(size_t number, std::string body) {
  const std::lock_guard lock(mutex_);
  requests_[number].body = std::move(body);
}

Step FaultServer::take_step(const Request& request, size_t* number) {
  const std::lock_guard lock(mutex_);
  *number = requests_.size();
  Step step = steps_[std::min(requests_.size(), steps_.size() - 1)];
  requests_.push_back(request);
  if (!step.object.empty()) object_ = step.object;
  step.object = object_;
  return step;
}

std::pair<std::string, std::string> FaultServer::make_answer(const Request& request,
                                                             const Step& step) {
  if (!step.raw.empty() || !step.endless.empty()) return {step.raw, ""};
  const std::string& object = step.object;
  const size_t total = object.size();
  std::string status = step.status;
  std::string body = step.error_body;
  std::string headers = step.headers;
  if (status.empty() && !step.etag.empty() && !request.if_match.empty() &&
      request.if_match != step.etag) {
    status = "412 Precondition Failed";
  }
  if (status.empty()) {
    size_t first = 0;
    size_t end = total;
    const bool is_ranged = !request.range.empty() && !step.ignore_range;
    if (is_ranged) {
      const std::string span = request.range.substr(6);
      const size_t dash = span.find('-');
      if (dash == 0) {
        first = total - std::min<size_t>(total, std::stoull(span.substr(1)));
      } else {
        first = std::stoull(span);
        if (dash + 1 < span.size())
          end = std::min<size_t>(total, std::stoull(span.substr(dash + 1)) + 1);
      }
    }
    const bool is_outside = is_ranged && first >= total;
    status = is_outside  ? "416 Range Not Satisfiable"
             : is_ranged ? "206 Partial Content"
                         : "200 OK";
    body = is_outside ? "" : object.substr(first, end - first);
    std::string content_range = is_outside ? fmt::format("bytes */{}", total)
                                           : fmt::format("bytes {}-{}/{}", first, end - 1, total);
    if (!step.content_range.empty()) content_range = step.content_range;
    if (is_ranged && content_range != "-") headers += "Content-Range: " + content_range + "\r\n";
    if (!step.etag.empty()) headers += "ETag: " + step.etag + "\r\n";
  }
  std::string head = step.version + ' ' + status + "\r\n" + headers;
  if (step.chunked) {
    body.append(step.extra_nbytes, '\0');
    head += "Transfer-Encoding: chunked\r\n";
    body = body.empty() ? "0\r\n\r\n" : fmt::format("{:x}\r\n{}\r\n0\r\n\r\n", body.size(), body);
  } else if (!step.no_length) {
    head += fmt::format("Content-Length: {}\r\n", step.claim_nbytes.value_or(body.size()));
    body.append(step.extra_nbytes, '\0');
  }
  return {head + "\r\n", body};
}

// False when the connection is over.
bool FaultServer::answer(Connection& connection, const Request& request, const Step& step) {
  for (int waited_ms = 0; waited_ms < step.delay_ms && !stopping_; ++waited_ms) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  if (step.reset_at == SIZE_MAX) return reset(connection), false;
  if (step.close_at == SIZE_MAX) return false;
  const auto [head, body] = make_answer(request, step);
  const bool has_head = step.stall_at != SIZE_MAX;
  const size_t head_nbytes = has_head ? step.head_nbytes.value_or(head.size()) : 0;
  if (!send(connection, head.substr(0, head_nbytes), step.pause)) return false;
  const std::optional<size_t> cut = step.reset_at   ? step.reset_at
                                    : step.close_at ? step.close_at
                                                    : step.stall_at;
  const size_t body_nbytes = head_nbytes < head.size() ? 0 : cut.value_or(body.size());
  if (!send(connection, body.substr(0, body_nbytes), step.pause)) return false;
  while (!step.endless.empty() && send(connection, step.endless)) {
  }
  if (!step.late.empty()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    if (!send(connection, step.late)) return false;
  }
  if (step.reset_at) {
    // Else the client's kernel drops what it has received when the RST arrives.
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    reset(connection);
  }
  std::string ignored;
  while (step.stall_at && receive(connection, &ignored)) {
  }
  return !cut && step.version == "HTTP/1.1" && !step.no_length && !step.close_after;
}

bool FaultServer::send(Connection& connection, const std::string& bytes,
                       std::chrono::milliseconds pause) {
  const size_t step = pause.count() == 0 ? bytes.size() : 1;
  for (size_t sent = 0; sent < bytes.size();) {
    std::this_thread::sleep_for(pause);
    const char* const data = bytes.data() + sent;
    const size_t left = std::min(step, bytes.size() - sent);
    const auto count = connection.tls != nullptr
                           ? SSL_write(connection.tls, data, static_cast<int>(left))
                           : ::send(connection.socket, data, left, MSG_NOSIGNAL);
    if (count <= 0) return false;
    sent += static_cast<size_t>(count);
  }
  return true;
}

bool FaultServer::receive(Connection& connection, std::string* bytes) {
  char buffer[4096];
  const auto count = connection.tls != nullptr ? SSL_read(connection.tls, buffer, sizeof buffer)
                                               : recv(connection.socket, buffer, sizeof buffer, 0);
  if (count <= 0) return false;
  bytes->append(buffer, static_cast<size_t>(count));
  return true;
}

// An RST instead of a FIN.
void FaultServer::reset(Connection& connection) {
  const linger now{1, 0};
  setsockopt(connection.socket, SOL_SOCKET, SO_LINGER, &now, sizeof now);
  // connect() to nowhere dissolves the association at once and keeps the descriptor.
  sockaddr nowhere{};
  nowhere.sa_family = AF_UNSPEC;
  connect(connection.socket, &nowhere, sizeof nowhere);
}

}  // namespace torchnpy::testing
