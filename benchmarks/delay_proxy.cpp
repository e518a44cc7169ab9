// A TCP proxy that delays what passes through it: a link's latency, without root or netem.
//
//   delay_proxy UPSTREAM_PORT DELAY_MS   listens on a free port of 127.0.0.1, prints the port,
//                                        forwards to 127.0.0.1:UPSTREAM_PORT, ends with stdin
//
// Data and ends of streams leave DELAY_MS after they came, in each direction; a round trip takes
// twice that. Connecting itself is not delayed.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <stdexcept>
#include <string>
#include <system_error>
#include <unordered_map>
#include <utility>

namespace {

using Clock = std::chrono::steady_clock;

// Bytes on their way in one direction of a connection; above it the sender is not read, so that
// TCP slows it down. 10 ms at 1.6 GB/s.
constexpr size_t kPipeNbytes = 16 << 20;
constexpr size_t kReadNbytes = 256 << 10;

int check(int result, const char* what) {
  if (result < 0) {
    throw std::system_error(errno, std::generic_category(), what);
  }
  return result;
}

// One direction: what was read from its source and has not been written yet.
struct Pipe {
  std::deque<std::string> chunks;  // in the order read; an empty one is the end of the stream
  size_t nbytes = 0;
  size_t due = 0;         // how many of the first chunks have served their delay
  size_t written = 0;     // bytes of the first chunk that are written
  bool ended = false;     // the source has ended
  bool finished = false;  // and the destination knows
};

struct Connection {
  std::array<int, 2> fds{-1, -1};  // client, upstream
  std::array<Pipe, 2> pipes;       // pipes[i] reads fds[i] and writes fds[1 - i]
  std::array<uint32_t, 2> interest{0, 0};
};

class Proxy {
 public:
  Proxy(uint16_t upstream_port, std::chrono::nanoseconds delay)
      : upstream_port_(upstream_port), delay_(delay) {
    listener_ = check(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), "socket");
    sockaddr_in address = loopback(0);
    check(bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof address), "bind");
    check(listen(listener_, 1024), "listen");
    epoll_ = check(epoll_create1(0), "epoll_create1");
    timer_ = check(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK), "timerfd_create");
    watch(listener_, kListener);
    watch(timer_, kTimer);
    watch(STDIN_FILENO, kInput);
  }

  uint16_t port() const {
    sockaddr_in address{};
    socklen_t nbytes = sizeof address;
    check(getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &nbytes), "getsockname");
    return ntohs(address.sin_port);
  }

  // Returns when standard input ends.
  void run() {
    std::array<epoll_event, 256> events;
    for (;;) {
      int count = epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), -1);
      if (count < 0 && errno == EINTR) {
        continue;
      }
      check(count, "epoll_wait");
      for (int i = 0; i < count; ++i) {
        const uint64_t tag = events[static_cast<size_t>(i)].data.u64;
        if (tag == kInput) {
          char byte = 0;
          if (read(STDIN_FILENO, &byte, 1) <= 0) {
            return;
          }
        } else if (tag == kListener) {
          accept_all();
        } else if (tag == kTimer) {
          uint64_t expirations = 0;
          [[maybe_unused]] const ssize_t n = read(timer_, &expirations, sizeof expirations);
        } else {
          handle(tag >> 1, tag & 1, events[static_cast<size_t>(i)].events);
        }
      }
      deliver_due();
    }
  }

 private:
  // What an event is about: one of these, or connection id * 2 + side. Ids are never used
  // twice, so that an event of a connection closed meanwhile finds nothing.
  enum Tag : uint64_t { kListener, kTimer, kInput, kFirstConnection };

  struct Delivery {
    Clock::time_point due;
    uint64_t id;
    size_t side;
  };

  static sockaddr_in loopback(uint16_t port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(port);
    return address;
  }

  void watch(int fd, uint64_t tag) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = tag;
    check(epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event), "epoll_ctl");
  }

  void accept_all() {
    for (;;) {
      const int client = accept4(listener_, nullptr, nullptr, SOCK_NONBLOCK);
      if (client < 0) {
        return;
      }
      const int upstream = check(socket(AF_INET, SOCK_STREAM, 0), "socket");
      const sockaddr_in address = loopback(upstream_port_);
      if (connect(upstream, reinterpret_cast<const sockaddr*>(&address), sizeof address) < 0) {
        close(client);
        close(upstream);
        continue;
      }
      check(fcntl(upstream, F_SETFL, O_NONBLOCK), "fcntl");
      const uint64_t id = next_id_++;
      Connection& connection = connections_[id];
      connection.fds = {client, upstream};
      for (size_t side : {0, 1}) {
        const int on = 1;
        setsockopt(connection.fds[side], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        connection.interest[side] = EPOLLIN;
        watch(connection.fds[side], id * 2 + side);
      }
    }
  }

  void handle(uint64_t id, size_t side, uint32_t events) {
    const auto found = connections_.find(id);
    if (found == connections_.end()) {
      return;
    }
    Connection& connection = found->second;
    const bool ok = !(events & EPOLLERR) &&
                    (!(events & (EPOLLIN | EPOLLHUP)) || read_from(id, connection, side)) &&
                    (!(events & EPOLLOUT) || write_due(connection, 1 - side));
    settle(id, connection, ok);
  }

  // False: the connection is broken.
  bool read_from(uint64_t id, Connection& connection, size_t side) {
    Pipe& pipe = connection.pipes[side];
    while (!pipe.ended && pipe.nbytes < kPipeNbytes) {
      const ssize_t n = read(connection.fds[side], buffer_.data(), buffer_.size());
      if (n < 0) {
        return errno == EAGAIN || errno == EINTR;
      }
      pipe.ended = n == 0;
      pipe.nbytes += static_cast<size_t>(n);
      pipe.chunks.emplace_back(buffer_.data(), static_cast<size_t>(n));
      deliveries_.push_back({Clock::now() + delay_, id, side});
    }
    return true;
  }

  // Writes the chunks that have served their delay. False: the connection is broken.
  bool write_due(Connection& connection, size_t side) {
    Pipe& pipe = connection.pipes[side];
    const int fd = connection.fds[1 - side];
    while (pipe.due > 0) {
      const std::string& chunk = pipe.chunks.front();
      if (chunk.empty()) {
        shutdown(fd, SHUT_WR);
        pipe.finished = true;
      } else {
        const ssize_t n =
            send(fd, chunk.data() + pipe.written, chunk.size() - pipe.written, MSG_NOSIGNAL);
        if (n < 0) {
          return errno == EAGAIN || errno == EINTR;
        }
        pipe.written += static_cast<size_t>(n);
        pipe.nbytes -= static_cast<size_t>(n);
        if (pipe.written < chunk.size()) {
          continue;
        }
      }
      pipe.chunks.pop_front();
      pipe.written = 0;
      --pipe.due;
    }
    return true;
  }

  // The delay is the same for all, so that what came first is due first.
  void deliver_due() {
    const auto now = Clock::now();
    while (!deliveries_.empty() && deliveries_.front().due <= now) {
      const Delivery delivery = deliveries_.front();
      deliveries_.pop_front();
      const auto found = connections_.find(delivery.id);
      if (found == connections_.end()) {
        continue;
      }
      ++found->second.pipes[delivery.side].due;
      settle(delivery.id, found->second, write_due(found->second, delivery.side));
    }
    set_timer();
  }

  void set_timer() {
    itimerspec when{};
    if (!deliveries_.empty()) {
      const int64_t ns = deliveries_.front().due.time_since_epoch() / std::chrono::nanoseconds(1);
      when.it_value.tv_sec = ns / 1'000'000'000;
      when.it_value.tv_nsec = ns % 1'000'000'000;
    }
    check(timerfd_settime(timer_, TFD_TIMER_ABSTIME, &when, nullptr), "timerfd_settime");
  }

  // Closes a connection that is broken or finished, else says what to wait for.
  void settle(uint64_t id, Connection& connection, bool ok) {
    const auto& pipes = connection.pipes;
    if (!ok || (pipes[0].finished && pipes[1].finished)) {
      close(connection.fds[0]);
      close(connection.fds[1]);
      connections_.erase(id);
      return;
    }
    for (size_t side : {0, 1}) {
      const bool wants_more = !pipes[side].ended && pipes[side].nbytes < kPipeNbytes;
      const bool has_due = pipes[1 - side].due > 0;
      epoll_event event{};
      event.events = (wants_more ? EPOLLIN : 0u) | (has_due ? EPOLLOUT : 0u);
      event.data.u64 = id * 2 + side;
      if (event.events != connection.interest[side]) {
        connection.interest[side] = event.events;
        check(epoll_ctl(epoll_, EPOLL_CTL_MOD, connection.fds[side], &event), "epoll_ctl");
      }
    }
  }

  uint16_t upstream_port_;
  std::chrono::nanoseconds delay_;
  int listener_ = -1;
  int epoll_ = -1;
  int timer_ = -1;
  uint64_t next_id_ = kFirstConnection;
  std::unordered_map<uint64_t, Connection> connections_;
  std::deque<Delivery> deliveries_;  // in the order of their time
  std::string buffer_ = std::string(kReadNbytes, '\0');
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s UPSTREAM_PORT DELAY_MS\n", argv[0]);
    return 2;
  }
  try {
    const std::chrono::duration<double, std::milli> delay(std::stod(argv[2]));
    Proxy proxy(static_cast<uint16_t>(std::stoul(argv[1])),
                std::chrono::duration_cast<std::chrono::nanoseconds>(delay));
    std::printf("%u\n", proxy.port());
    std::fflush(stdout);
    proxy.run();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
