// One I/O thread with its connections: a libcurl multi handle in a loop. With reactor*.cpp the only
// user of libcurl; for engine.cpp alone.
#pragma once

#include <curl/curl.h>

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "transport/engine.h"
#include "transport/engine_state.h"
#include "transport/http_body.h"
#include "transport/job_queue.h"

namespace torchnpy {

// Makes libcurl ready; once in a process, under process_mutex(). Throws TransportError.
void initialise_curl();

// One I/O thread with its connections.
class Reactor {
 public:
  Reactor(Engine& engine, size_t index) : engine_(engine), index_(index) {}
  // Throws std::system_error.
  void start();
  std::thread take_thread() { return std::move(thread_); }
  // From any thread, under the engine's mutex. `attention`: there are cancelled jobs, or
  // the engine stops.
  void wake(bool attention);
  // Under the engine's mutex: false when there is something to do first.
  bool prepare_sleep(const JobQueue& queue);

 private:
  // A place for one exchange: an easy handle that is used again and again.
  struct Slot {
    Reactor* reactor = nullptr;
    CURL* easy = nullptr;
    std::unique_ptr<Job> job;
    std::vector<std::unique_ptr<Job>> followers;     // that the exchange answers, too
    std::shared_ptr<const EngineSettings> settings;  // that `easy` is set up for
    const std::string* proxy = nullptr;              // of `settings`, likewise
    long buffer_nbytes = 0;
    bool is_get = true;       // `easy` is set to plain GETs
    bool has_target = false;  // `easy` is set to a path as it was given
    std::string header_text;
    std::vector<curl_slist> headers;
    char detail[CURL_ERROR_SIZE] = {};
    bool sent = false;  // else still connecting, which libcurl times
    bool was_resent = false;
    HttpBodyCursor content;  // what is sent next
    bool sends_content = false;
    int socket = -1;                       // that the request goes over, where it is known
    std::pair<curl_off_t, int> sent_mark;  // changes when bytes have left
    std::vector<int> opened_sockets;       // by this exchange
    bool over_tls = false;                 // the bytes on the socket are not the server's own
    bool spoiled = false;   // the connection held an answer that nobody had asked for
    bool answered = false;  // a byte of an answer has come
    Job::Clock::time_point last_progress;
    std::exception_ptr thrown;
    bool stopped = false;
  };
  struct Delayed {
    Job::Clock::time_point due;
    std::unique_ptr<Job> job;
  };

  void run() noexcept;
  bool step();
  void sleep();
  void start_jobs();
  void requeue_due_jobs();
  bool collect_finished();
  bool enforce_timeouts();
  void drop_jobs(bool all);
  void clean_up();

  Slot* acquire_slot();
  void apply_settings(Slot& slot);
  void apply_request(Slot& slot, const HttpRequest& request);
  static void apply_method(Slot& slot, const HttpRequest& request);
  void begin_exchange(Slot& slot);
  void note_sent_bytes(Slot& slot) const;
  static Fault classify_end(const Slot& slot, CURLcode code, std::string_view detail);
  void conclude(Slot& slot, CURLcode code, Fault fault);
  void end_job(Slot& slot, std::exception_ptr error);
  void take_followers(Slot& slot);
  template <typename Call>
  void tell_followers(Slot& slot, Call call);
  void conclude_follower(std::unique_ptr<Job> job, const ExchangeEnd& end);

  template <typename Call>
  static bool guard(Slot& slot, Call call);
  static size_t on_head(char* data, size_t size, size_t count, void* context);
  static size_t on_body(char* data, size_t size, size_t count, void* context);
  static size_t on_content(char* room, size_t size, size_t count, void* context);
  static int on_rewind(void* context, curl_off_t offset, int origin);
  void find_socket(Slot& slot, const char* host, int port, int local_port);
  static bool has_early_answer(const Slot& slot);
  static int on_sent(void* context, char*, char*, int, int);

  Engine& engine_;
  const size_t index_;
  std::thread thread_;
  CURLM* multi_ = nullptr;
  std::atomic<bool> sleeping_{false};
  std::atomic<bool> attention_{false};
  // The rest belongs to the thread.
  std::vector<std::unique_ptr<Slot>> slots_;
  std::vector<Slot*> idle_;
  std::vector<Delayed> delayed_;
  Job::Clock::time_point now_;
  Job::Clock::time_point next_check_ = Job::Clock::time_point::max();  // of stalls and deadlines
  long max_connections_ = 0;
  // Of connections that have served, also of some that are closed: those are not met again.
  std::unordered_map<uint64_t, int> sockets_;
  bool stopping_ = false;
};

}  // namespace torchnpy
