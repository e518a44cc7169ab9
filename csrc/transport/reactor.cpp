#include "transport/reactor.h"

#include <fmt/format.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <map>
#include <mutex>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "base/fork.h"
#include "transport/http.h"

namespace torchnpy {

using Clock = Job::Clock;

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

Clock::duration to_duration(double seconds) {
  constexpr double kForever = 1e8;
  return std::chrono::duration_cast<Clock::duration>(
      std::chrono::duration<double>(std::clamp(seconds, 0.0, kForever)));
}

// libcurl's own 64 KiB take more system calls.
constexpr long kUploadBufferNbytes = 256 << 10;

long to_ms(double seconds) { return static_cast<long>(std::clamp(seconds, 0.001, 1e6) * 1000); }

std::exception_ptr interrupted() {
  return std::make_exception_ptr(InterruptedError("interrupted: the read was cancelled"));
}

int local_port_of(int descriptor) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  if (getsockname(descriptor, reinterpret_cast<sockaddr*>(&address), &length) != 0) return -1;
  if (address.ss_family == AF_INET) {
    return ntohs(reinterpret_cast<const sockaddr_in&>(address).sin_port);
  }
  return ntohs(reinterpret_cast<const sockaddr_in6&>(address).sin6_port);
}

Fault classify(CURLcode code, std::string_view detail) {
  switch (code) {
    case CURLE_OK: return Fault::kNone;
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_RESOLVE_PROXY: return Fault::kDns;
    case CURLE_COULDNT_CONNECT:
    case CURLE_PROXY: return Fault::kConnect;
    case CURLE_OPERATION_TIMEDOUT: return Fault::kTimeout;
    case CURLE_SSL_CONNECT_ERROR:
      // libcurl has one code for a handshake that fails and for a connection that breaks in it.
      return detail.find("reset") != std::string_view::npos ||
                     detail.find("SSL_ERROR_SYSCALL") != std::string_view::npos ||
                     detail.find("unexpected eof") != std::string_view::npos
                 ? Fault::kReset
                 : Fault::kTls;
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_SSL_CIPHER:
    case CURLE_SSL_ISSUER_ERROR:
    case CURLE_SSL_INVALIDCERTSTATUS:
    case CURLE_USE_SSL_FAILED: return Fault::kTls;
    case CURLE_RECV_ERROR:
    case CURLE_SEND_ERROR:
    case CURLE_HTTP2:
    case CURLE_HTTP2_STREAM:
    case CURLE_GOT_NOTHING: return Fault::kReset;
    case CURLE_PARTIAL_FILE: return Fault::kShortBody;
    case CURLE_URL_MALFORMAT:
    case CURLE_UNSUPPORTED_PROTOCOL: return Fault::kBadRequest;
    default: return Fault::kOther;
  }
}

}  // namespace

void initialise_curl() {
  if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK) {
    throw TransportError("libcurl cannot be initialised");
  }
  open_sockets = new std::map<int, ino_t>;
}

void Reactor::start() {
  multi_ = curl_multi_init();
  if (multi_ == nullptr) {
    throw std::system_error(std::make_error_code(std::errc::not_enough_memory));
  }
  curl_multi_setopt(multi_, CURLMOPT_PIPELINING, CURLPIPE_MULTIPLEX);  // where HTTP/2 is asked for
  // Signals are for the program's own threads; SIGPIPE would end it.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    thread_ = std::thread([this] { run(); });
  } catch (...) {
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    curl_multi_cleanup(multi_);
    throw;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  pthread_setname_np(thread_.native_handle(), fmt::format("torchnpy-io-{}", index_).c_str());
}

void Reactor::wake(bool attention) {
  if (attention) attention_ = true;
  if (sleeping_.exchange(false)) curl_multi_wakeup(multi_);
}

bool Reactor::prepare_sleep(const JobQueue& queue) {
  if (attention_) return false;
  const std::vector<size_t> takers = queue.takers();
  if (std::find(takers.begin(), takers.end(), index_) != takers.end()) return false;
  sleeping_ = true;
  return true;
}

void Reactor::run() noexcept {
  while (!stopping_) {
    // A slot that is free while there is work costs more than asking twice.
    if (!step() && engine_.may_sleep(*this)) sleep();
  }
  const NoForkScope scope;
  drop_jobs(true);
  clean_up();
}

// True when it may have made room for more. OpenSSL's locks are taken inside, and never waited for
// outside.
bool Reactor::step() {
  const NoForkScope scope;
  now_ = Clock::now();
  if (attention_.exchange(false)) {
    stopping_ = engine_.is_stopping();
    if (stopping_) return true;
    drop_jobs(false);
  }
  requeue_due_jobs();
  start_jobs();
  int running = 0;
  curl_multi_perform(multi_, &running);
  return collect_finished() || enforce_timeouts();
}

void Reactor::sleep() {
  Clock::time_point until = next_check_;
  for (const Delayed& delayed : delayed_) until = std::min(until, delayed.due);
  int timeout_ms = 3'600'000;
  if (until != Clock::time_point::max()) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now());
    timeout_ms = static_cast<int>(std::clamp<int64_t>(left.count(), 0, timeout_ms));
  }
  curl_multi_poll(multi_, nullptr, 0, timeout_ms, nullptr);
  sleeping_ = false;
}

void Reactor::start_jobs() {
  size_t in_flight = 0;
  while (std::unique_ptr<Job> job = engine_.take(index_, &in_flight)) {
    Slot* const slot = acquire_slot();
    if (slot == nullptr) {
      engine_.retire(*job, index_);
      job->finish(std::make_exception_ptr(TransportError("libcurl cannot make a transfer")));
      continue;
    }
    slot->job = std::move(job);
    const long buffer_nbytes = in_flight > 32 ? 64 << 10 : 256 << 10;
    if (slot->settings != slot->job->settings()) apply_settings(*slot);
    if (std::exchange(slot->buffer_nbytes, buffer_nbytes) != buffer_nbytes) {
      curl_easy_setopt(slot->easy, CURLOPT_BUFFERSIZE, buffer_nbytes);
    }
    begin_exchange(*slot);
  }
}

void Reactor::requeue_due_jobs() {
  for (size_t i = 0; i < delayed_.size();) {
    if (delayed_[i].due > now_) {
      ++i;
      continue;
    }
    if (const auto more_s = delayed_[i].job->must_wait()) {
      delayed_[i].due = now_ + to_duration(*more_s);
      continue;
    }
    std::swap(delayed_[i], delayed_.back());
    engine_.requeue(std::move(delayed_.back().job));
    delayed_.pop_back();
  }
}

bool Reactor::collect_finished() {
  bool any = false;
  int left = 0;
  while (CURLMsg* message = curl_multi_info_read(multi_, &left)) {
    if (message->msg != CURLMSG_DONE) continue;
    any = true;
    const CURLcode code = message->data.result;
    void* slot = nullptr;
    curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &slot);
    conclude(*static_cast<Slot*>(slot), code, Fault::kNone);
  }
  return any;
}

bool Reactor::enforce_timeouts() {
  if (now_ < next_check_) return false;
  next_check_ = Clock::time_point::max();
  bool any = false;
  for (const std::unique_ptr<Slot>& slot : slots_) {
    if (slot->job == nullptr) continue;
    const Clock::time_point deadline = slot->job->deadline;
    if (slot->sends_content) note_sent_bytes(*slot);
    const Clock::duration stall_timeout = to_duration(slot->settings->stall_timeout_s);
    const Clock::time_point stall = (slot->sent ? slot->last_progress : now_) + stall_timeout;
    if (deadline <= now_ || stall <= now_) {
      conclude(*slot, CURLE_OK, deadline <= now_ ? Fault::kDeadline : Fault::kStall);
      any = true;
      continue;
    }
    if (slot->job->slow_at <= now_) {
      slot->job->slow_at = Clock::time_point::max();
      if (!slot->answered) slot->job->slow();
    }
    next_check_ = std::min({next_check_, deadline, stall, slot->job->slow_at});
    if (slot->sends_content) next_check_ = std::min(next_check_, now_ + stall_timeout / 4);
  }
  return any;
}

// No callback tells that bytes have left, and libcurl has many of them in its buffer, the kernel in
// another: on a slow way either takes longer than the time-out.
void Reactor::note_sent_bytes(Slot& slot) const {
  std::pair<curl_off_t, int> mark{0, 0};
  curl_easy_getinfo(slot.easy, CURLINFO_SIZE_UPLOAD_T, &mark.first);
  if (slot.socket >= 0) ioctl(slot.socket, SIOCOUTQ, &mark.second);
  if (std::exchange(slot.sent_mark, mark) != mark) slot.last_progress = now_;
}

// Jobs that were cancelled, here and in the queue; or all.
void Reactor::drop_jobs(bool all) {
  for (std::unique_ptr<Job>& job : engine_.take_cancelled()) {
    engine_.retire(*job, std::nullopt);
    job->finish(interrupted());
  }
  for (const std::unique_ptr<Slot>& slot : slots_) {
    std::erase_if(slot->followers, [&](std::unique_ptr<Job>& job) {
      if (!all && !engine_.is_cancelled(*job)) return false;
      engine_.retire(*job, std::nullopt);
      job->finish(interrupted());
      return true;
    });
    if (slot->job == nullptr || !(all || engine_.is_cancelled(*slot->job))) continue;
    curl_multi_remove_handle(multi_, slot->easy);
    ExchangeEnd end;
    end.fault = Fault::kReset;
    for (auto& job : std::exchange(slot->followers, {})) conclude_follower(std::move(job), end);
    end_job(*slot, interrupted());
  }
  std::vector<Delayed> kept;
  for (Delayed& delayed : delayed_) {
    if (!all && !engine_.is_cancelled(*delayed.job)) {
      kept.push_back(std::move(delayed));
      continue;
    }
    engine_.retire(*delayed.job, std::nullopt);
    delayed.job->finish(interrupted());
  }
  delayed_ = std::move(kept);
}

void Reactor::clean_up() {
  for (const std::unique_ptr<Slot>& slot : slots_) curl_easy_cleanup(slot->easy);
  slots_.clear();
  curl_multi_cleanup(multi_);
}

// nullptr when libcurl has none to give.
Reactor::Slot* Reactor::acquire_slot() {
  if (idle_.empty()) {
    CURL* const easy = curl_easy_init();
    if (easy == nullptr) return nullptr;
    slots_.push_back(std::make_unique<Slot>());
    slots_.back()->reactor = this;
    slots_.back()->easy = easy;
    idle_.push_back(slots_.back().get());
  }
  Slot* slot = idle_.back();
  idle_.pop_back();
  return slot;
}

// What stays the same for all requests of a client.
void Reactor::apply_settings(Slot& slot) {
  slot.settings = slot.job->settings();
  slot.proxy = nullptr;
  slot.buffer_nbytes = 0;
  slot.is_get = true;
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
  set(CURLOPT_QUICK_EXIT, 1L);  // or cancelling waits for a name server that never answers
  set(CURLOPT_PROTOCOLS_STR, "http,https");
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

void Reactor::begin_exchange(Slot& slot) {
  // What is thrown is not held here any more when finish() hands it to another thread.
  std::exception_ptr error;
  try {
    apply_request(slot, slot.job->begin());
  } catch (...) {
    error = std::current_exception();
  }
  if (error) return end_job(slot, std::move(error));
  slot.detail[0] = '\0';
  slot.sent = slot.was_resent = slot.answered = slot.spoiled = false;
  slot.opened_sockets.clear();
  slot.socket = -1;
  slot.sent_mark = {};
  slot.stopped = false;
  slot.thrown = nullptr;
  slot.last_progress = now_;
  const Clock::duration stall_timeout = to_duration(slot.settings->stall_timeout_s);
  next_check_ = std::min({next_check_, slot.job->deadline, slot.job->slow_at,
                          now_ + (slot.sends_content ? stall_timeout / 4 : stall_timeout)});
  if (curl_multi_add_handle(multi_, slot.easy) != CURLM_OK) {
    end_job(slot, std::make_exception_ptr(TransportError("libcurl cannot start a transfer")));
  }
}

Fault Reactor::classify_end(const Slot& slot, CURLcode code, std::string_view detail) {
  if (slot.spoiled) return Fault::kReset;
  if (code == CURLE_UNSUPPORTED_PROTOCOL && slot.sent) {
    // What came is no HTTP: a server that speaks something else, or, on a connection that has
    // served before, what is left of an earlier answer.
    long connections = 0;
    curl_easy_getinfo(slot.easy, CURLINFO_NUM_CONNECTS, &connections);
    return connections == 0 ? Fault::kReset : Fault::kOther;
  }
  long tunnel_status = 0;
  curl_easy_getinfo(slot.easy, CURLINFO_HTTP_CONNECTCODE, &tunnel_status);
  // libcurl has no code of its own for a proxy that refuses; of these it will not think better.
  if (code == CURLE_RECV_ERROR && !slot.sent && tunnel_status / 100 == 4 && tunnel_status != 408 &&
      tunnel_status != 429) {
    return Fault::kOther;
  }
  return classify(code, detail);
}

void Reactor::conclude(Slot& slot, CURLcode code, Fault fault) {
  curl_multi_remove_handle(multi_, slot.easy);
  ExchangeEnd end;
  end.stopped = slot.stopped;
  if (fault == Fault::kNone && !slot.stopped && code != CURLE_OK) {
    end.detail = slot.spoiled             ? "an answer came before the request"
                 : slot.detail[0] != '\0' ? slot.detail
                                          : curl_easy_strerror(code);
    fault = classify_end(slot, code, end.detail);
  }
  end.fault = fault;
  long connections = 0;
  curl_off_t first_byte_us = 0;
  curl_off_t total_us = 0;
  curl_off_t sent_nbytes = 0;
  if (fault == Fault::kConnect) {
    long number = 0;
    curl_easy_getinfo(slot.easy, CURLINFO_OS_ERRNO, &number);
    end.system_error = static_cast<int>(number);
  }
  curl_easy_getinfo(slot.easy, CURLINFO_NUM_CONNECTS, &connections);
  curl_easy_getinfo(slot.easy, CURLINFO_STARTTRANSFER_TIME_T, &first_byte_us);
  curl_easy_getinfo(slot.easy, CURLINFO_TOTAL_TIME_T, &total_us);
  curl_easy_getinfo(slot.easy, CURLINFO_SIZE_UPLOAD_T, &sent_nbytes);
  end.connections_opened = static_cast<uint64_t>(connections);
  end.was_resent = slot.was_resent;
  end.sent_nbytes = static_cast<uint64_t>(sent_nbytes);
  end.first_byte_us = static_cast<uint64_t>(first_byte_us);
  end.total_us = static_cast<uint64_t>(total_us);
  auto followers = std::exchange(slot.followers, {});
  std::optional<double> again_s;
  std::exception_ptr error;
  try {
    end.thrown = std::move(slot.thrown);
    again_s = slot.job->ended(end);
  } catch (...) {
    error = std::current_exception();
  }
  end.thrown = nullptr;
  if (!followers.empty()) {
    // Those that want more than the leader did get it from an exchange of their own.
    if (std::exchange(end.stopped, false)) end.fault = Fault::kReset;
    end.connections_opened = 0;
    for (auto& job : followers) conclude_follower(std::move(job), end);
  }
  if (!again_s) return end_job(slot, std::move(error));
  if (*again_s <= 0) return begin_exchange(slot);
  engine_.release(index_, *slot.job);
  delayed_.push_back({now_ + to_duration(*again_s), std::move(slot.job)});
  idle_.push_back(&slot);
}

void Reactor::end_job(Slot& slot, std::exception_ptr error) {
  // The slot is free first: finish() may take its time.
  const std::unique_ptr<Job> job = std::move(slot.job);
  idle_.push_back(&slot);
  engine_.retire(*job, index_);
  job->finish(std::move(error));
}

// The first byte of an answer has come: whoever wants the same joins now or not at all.
void Reactor::take_followers(Slot& slot) {
  slot.answered = true;
  if (slot.job->share_key == 0) return;
  for (std::unique_ptr<Job>& job : engine_.take_followers(*slot.job, index_)) {
    bool follows = false;
    try {
      follows = job->follow(*slot.job);
    } catch (...) {
      ExchangeEnd end;
      end.thrown = std::current_exception();
      conclude_follower(std::move(job), end);
      continue;
    }
    if (follows) {
      slot.followers.push_back(std::move(job));
    } else {
      delayed_.push_back({now_, std::move(job)});
    }
  }
}

// What came, to the followers; one that has enough, or fails, leaves.
template <typename Call>
void Reactor::tell_followers(Slot& slot, Call call) {
  for (size_t i = 0; i < slot.followers.size();) {
    ExchangeEnd end;
    try {
      end.stopped = !call(*slot.followers[i]);
    } catch (...) {
      end.thrown = std::current_exception();
    }
    if (!end.stopped && !end.thrown) {
      ++i;
      continue;
    }
    std::unique_ptr<Job> job = std::move(slot.followers[i]);
    slot.followers.erase(slot.followers.begin() + static_cast<std::ptrdiff_t>(i));
    conclude_follower(std::move(job), end);
  }
}

void Reactor::conclude_follower(std::unique_ptr<Job> job, const ExchangeEnd& end) {
  std::optional<double> again_s;
  std::exception_ptr error;
  try {
    again_s = job->ended(end);
  } catch (...) {
    error = std::current_exception();
  }
  if (again_s) return delayed_.push_back({now_ + to_duration(*again_s), std::move(job)});
  engine_.retire(*job, std::nullopt);
  job->finish(std::move(error));
}

// Runs a callback of the job inside one of libcurl, which no exception may leave.
template <typename Call>
bool Reactor::guard(Slot& slot, Call call) {
  slot.last_progress = slot.reactor->now_;
  try {
    slot.stopped = !call(*slot.job);
  } catch (...) {
    slot.thrown = std::current_exception();
    slot.stopped = true;
  }
  return !slot.stopped;
}

size_t Reactor::on_head(char* data, size_t size, size_t count, void* context) {
  Slot& slot = *static_cast<Slot*>(context);
  const size_t nbytes = size * count;
  const std::string_view line{data, nbytes};
  if (!slot.answered) slot.reactor->take_followers(slot);
  slot.reactor->tell_followers(slot, [&](Job& job) { return job.head(line); });
  return guard(slot, [&](Job& job) { return job.head(line); }) ? nbytes : 0;
}

size_t Reactor::on_body(char* data, size_t size, size_t count, void* context) {
  Slot& slot = *static_cast<Slot*>(context);
  const size_t nbytes = size * count;
  const ByteView bytes{reinterpret_cast<const uint8_t*>(data), nbytes};
  slot.reactor->tell_followers(slot, [&](Job& job) { return job.body(bytes); });
  return nbytes == 0 || guard(slot, [&](Job& job) { return job.body(bytes); }) ? nbytes : 0;
}

size_t Reactor::on_content(char* room, size_t size, size_t count, void* context) {
  Slot& slot = *static_cast<Slot*>(context);
  return slot.content.read({reinterpret_cast<uint8_t*>(room), size * count});
}

// libcurl sends the body again by itself where a kept connection turns out to be dead.
int Reactor::on_rewind(void* context, curl_off_t offset, int origin) {
  if (origin != SEEK_SET || offset < 0) return CURL_SEEKFUNC_FAIL;
  static_cast<Slot*>(context)->content.seek(static_cast<uint64_t>(offset));
  return CURL_SEEKFUNC_OK;
}

// Which socket the request goes over: libcurl tells only its local port.
void Reactor::find_socket(Slot& slot, const char* host, int port, int local_port) {
  // One local port may serve connections to several hosts.
  const uint64_t connection =
      std::hash<std::string_view>()(host) ^
      (static_cast<uint64_t>(port) << 16 | static_cast<uint64_t>(local_port));
  for (const int descriptor : slot.opened_sockets) {
    if (local_port_of(descriptor) == local_port) sockets_[connection] = descriptor;
  }
  const auto found = sockets_.find(connection);
  slot.socket = found == sockets_.end() ? -1 : found->second;
}

// Whether the plain connection that the request is about to go over holds bytes already. They
// answer nothing that is asked now, but libcurl 7.88 takes them for the answer.
bool Reactor::has_early_answer(const Slot& slot) {
  if (slot.over_tls || !slot.opened_sockets.empty() || slot.socket < 0) return false;
  char byte = 0;
  return recv(slot.socket, &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0;
}

int Reactor::on_sent(void* context, char* host, char*, int port, int local_port) {
  Slot& slot = *static_cast<Slot*>(context);
  slot.was_resent = std::exchange(slot.sent, true);
  slot.last_progress = slot.reactor->now_;
  slot.reactor->find_socket(slot, host, port, local_port);
  slot.spoiled = has_early_answer(slot);
  return slot.spoiled ? CURL_PREREQFUNC_ABORT : CURL_PREREQFUNC_OK;
}

}  // namespace torchnpy
