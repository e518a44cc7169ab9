// The server of the uploads in benchmarks/write.py: takes what is sent and throws it away, speaking
// as much S3 as clients ask for. Prints its port; ends with its standard input.
//
// It takes as little of the machine as a server can: the kernel drops the bodies without copying
// them. A thread a connection.
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>

namespace {

bool send_all(int connection, const std::string& text) {
  for (size_t sent = 0; sent < text.size();) {
    const ssize_t count = send(connection, text.data() + sent, text.size() - sent, MSG_NOSIGNAL);
    if (count <= 0) return false;
    sent += static_cast<size_t>(count);
  }
  return true;
}

// Of `head`, whose names are in lower case; "" for none.
std::string find_header(const std::string& head, const std::string& name) {
  const size_t at = head.find("\r\n" + name + ':');
  if (at == std::string::npos) return {};
  const size_t begin = head.find_first_not_of(' ', at + name.size() + 3);
  return head.substr(begin, head.find("\r\n", begin) - begin);
}

std::string make_answer(const std::string& request_line) {
  std::string body;
  if (request_line.starts_with("POST")) {
    const std::string kind = request_line.find("uploadId=") != std::string::npos
                                 ? "CompleteMultipartUploadResult"
                                 : "InitiateMultipartUploadResult";
    body = "<" + kind + " xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Bucket>bkt</Bucket>" +
           "<Key>k</Key><UploadId>1</UploadId><ETag>\"1-1\"</ETag></" + kind + ">";
  }
  return "HTTP/1.1 200 OK\r\nETag: \"0123456789abcdef0123456789abcdef\"\r\n"
         "Content-Type: application/xml\r\nContent-Length: " +
         std::to_string(body.size()) + "\r\n\r\n" + body;
}

bool discard(int connection, size_t nbytes) {
  while (nbytes > 0) {
    const ssize_t count = recv(connection, nullptr, nbytes, MSG_TRUNC);
    if (count <= 0) return false;
    nbytes -= static_cast<size_t>(count);
  }
  return true;
}

void serve(int connection) {
  char buffer[65536];
  std::string head;
  while (true) {
    const size_t end = head.find("\r\n\r\n");
    if (end == std::string::npos) {
      const ssize_t count = recv(connection, buffer, sizeof buffer, 0);
      if (count <= 0) break;
      head.append(buffer, static_cast<size_t>(count));
      continue;
    }
    std::string rest = head.substr(end + 4);
    head.resize(end + 2);
    const std::string request_line = head.substr(0, head.find("\r\n"));
    std::transform(head.begin(), head.end(), head.begin(),
                   [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
    const std::string length = find_header(head, "content-length");
    const size_t nbytes = length.empty() ? 0 : std::strtoull(length.c_str(), nullptr, 10);
    if (!find_header(head, "expect").empty() &&
        !send_all(connection, "HTTP/1.1 100 Continue\r\n\r\n")) {
      break;
    }
    const size_t here = std::min(nbytes, rest.size());
    if (!discard(connection, nbytes - here) || !send_all(connection, make_answer(request_line))) {
      break;
    }
    head = rest.substr(here);
  }
  close(connection);
}

}  // namespace

int main() {
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  if (bind(listener, reinterpret_cast<sockaddr*>(&address), length) != 0 ||
      listen(listener, 128) != 0 ||
      getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    std::perror("listen");
    return 1;
  }
  std::printf("%d\n", ntohs(address.sin_port));
  std::fflush(stdout);
  std::thread([] {
    char byte = 0;
    while (read(STDIN_FILENO, &byte, 1) > 0) {
    }
    _exit(0);
  }).detach();
  while (true) {
    const int connection = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (connection < 0) continue;
    const int on = 1;
    setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    std::thread(serve, connection).detach();
  }
}
