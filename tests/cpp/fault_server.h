// A real HTTP(S) server on 127.0.0.1 that serves one object and misbehaves as told.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

struct ssl_ctx_st;
struct ssl_st;

namespace torchnpy::testing {

// What is done with one request. By default: 206 for a range, 200 without, 416 past the end.
struct Step {
  std::string status{};         // "503 Service Unavailable"; the answer's body is then `error_body`
  std::string headers{};        // added: whole lines with their line breaks
  std::string error_body{};     //
  std::string object{};         // served from now on in place of the server's, unless empty
  std::string etag = "\"v1\"";  // "": none is sent, and If-Match not looked at
  bool ignore_range = false;    // 200 with the whole object
  bool chunked = false;         // no Content-Length
  std::string content_range{};  // said in place of the true one; "-": none
  std::optional<size_t> claim_nbytes{};      // Content-Length, in place of the true one
  size_t extra_nbytes = 0;                   // zeros sent after the body
  int delay_ms = 0;                          // before the answer
  std::string version = "HTTP/1.1";          // with 1.0 the connection closes after the answer
  bool no_length = false;                    // the body ends with the connection
  std::string raw{};                         // sent in place of all the above, unless empty
  std::string endless{};                     // then sent again and again until the client goes away
  std::chrono::milliseconds pause{0};        // before each byte of head and body
  std::optional<size_t> head_nbytes{};       // so much of the head is sent, and no body
  std::string late{};                        // sent a moment after the answer
  bool close_after = false;                  // unannounced, after the answer
  std::optional<size_t> request_reset_at{};  // after so many bytes of the request's body
  std::optional<size_t> request_stall_at{};  // likewise
  std::optional<size_t> request_answered_at{};  // likewise: the answer, then no more is read
  std::chrono::milliseconds request_pause{0};   // before each 64 KiB of the request's body
  // What happens after so many bytes of the body; SIZE_MAX: before the head.
  std::optional<size_t> reset_at{};  // RST
  std::optional<size_t> close_at{};  // FIN
  std::optional<size_t> stall_at{};  // silence until the client goes away
};

class FaultServer {
 public:
  struct Request {
    std::string target;
    std::string range;
    std::string if_match;
    std::string authorization;
    std::string accept_encoding;
    std::string other;  // the head as it came
    std::string body;   // what was read of it
  };

  // `steps`: for one request each, in the order of arrival; the last is repeated. `greeting`: sent
  // to each connection before a request is read.
  explicit FaultServer(std::string object, std::vector<Step> steps = {Step{}}, bool tls = false,
                       std::string greeting = "");
  ~FaultServer();
  FaultServer(const FaultServer&) = delete;
  FaultServer& operator=(const FaultServer&) = delete;

  int port() const { return port_; }
  // "http(s)://127.0.0.1:port" + path
  std::string url(const std::string& path = "/x.npy") const;
  // The path of the certificate that the server shows, self-signed.
  const std::string& ca_bundle() const { return ca_bundle_; }
  std::vector<Request> requests() const;
  // "bytes=0-9", "whole"; with If-Match "bytes=5-9 if \"v1\"".
  std::vector<std::string> ranges() const;
  size_t connections() const { return connections_count_; }
  // Returns when `count` requests have arrived.
  void wait_for_requests(size_t count) const;

 private:
  struct Connection {
    int socket = -1;
    ssl_st* tls = nullptr;
    std::thread thread;
  };

  void accept_connections();
  void serve(Connection& connection);
  // Of head and body.
  static std::pair<std::string, std::string> make_answer(const Request& request, const Step& step);
  bool answer(Connection& connection, const Request& request, const Step& step);
  static bool send(Connection& connection, const std::string& bytes,
                   std::chrono::milliseconds pause = {});
  static bool receive(Connection& connection, std::string* bytes);
  static void reset(Connection& connection);
  Step take_step(const Request& request, size_t* number);
  bool receive_body(Connection& connection, size_t nbytes, const Step& step, std::string* received);
  void note_body(size_t number, std::string body);

  std::string object_;
  std::vector<Step> steps_;
  const std::string greeting_;
  ssl_ctx_st* tls_ = nullptr;
  std::string ca_bundle_;
  int listener_ = -1;
  int port_ = 0;
  std::atomic<bool> stopping_{false};
  std::atomic<size_t> connections_count_{0};
  mutable std::mutex mutex_;  // object_, requests_, connections_
  std::vector<Request> requests_;
  std::list<Connection> connections_;
  std::thread acceptor_;
};

}  // namespace torchnpy::testing
