#include "transport/reactor.h"

#include <fmt/format.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <mutex>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "base/fork.h"
#include "transport/http.h"

namespace torchnpy {

using Clock = Job::Clock;

namespace {

Clock::duration to_duration(double seconds) {
  constexpr double kForever = 1e8;
  return std::chrono::duration_cast<Clock::duration>(
      std::chrono::duration<double>(std::clamp(seconds, 0.0, kForever)));
}

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
                     detail.find("Broken pipe") != std::string_view::npos ||
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

void Reactor::start() {
  multi_ = curl_multi_init();
  if (multi_ == nullptr) {
    throw std::system_error(std::make_error_code(std::errc::not_enough_memory));
  }
  curl_multi_setopt(multi_, CURLMOPT_PIPELINING, CURLPIPE_MULTIPLEX);  // where HTTP/2 is asked for
#if LIBCURL_VERSION_NUM >= 0x081400  // whose resolver's threads are the multi handle's
  curl_multi_setopt(multi_, CURLMOPT_QUICK_EXIT, 1L);  // as CURLOPT_QUICK_EXIT
#endif
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
  // libcurl has no code of its own for a proxy that refuses, and another one in newer releases; of
  // these statuses the proxy will not think better.
  if ((code == CURLE_RECV_ERROR || code == CURLE_COULDNT_CONNECT) && !slot.sent &&
      tunnel_status / 100 == 4 && tunnel_status != 408 && tunnel_status != 429) {
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
