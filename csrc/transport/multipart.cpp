#include "transport/multipart.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <list>
#include <mutex>
#include <utility>

#include "base/error.h"
#include "base/fork.h"
#include "base/log.h"
#include "base/wait.h"
#include "transport/http_send.h"

namespace torchnpy {
namespace {

constexpr uint64_t kMaxCopiedNbytes = 64 << 20;
constexpr double kAbortLimit_s = 10;

template <typename Parse>
auto parse_named(const HttpObject& object, Parse parse) {
  try {
    return parse();
  } catch (TransportError& error) {
    error.add_context(object.name());
    throw;
  }
}

}  // namespace

// What is shared with the jobs, and with who ends the process.
struct MultipartUpload::State {
  struct Answer {
    size_t index = 0;
    SendResult result;
  };

  // Not twice, and not where it is the parent's.
  void abort() noexcept;

  std::shared_ptr<HttpObject> object;
  std::shared_ptr<HttpContext> context;
  S3Upload upload;
  const uint64_t forks = fork_count();
  std::atomic<bool> has_ended{false};
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<Answer> answers;  // that nobody has looked at

  // Those under way, under process_mutex(). Leaked: they may outlive statics.
  static std::list<std::weak_ptr<State>>& all() {
    static auto* const states = new std::list<std::weak_ptr<State>>;
    return *states;
  }
};

// Nobody waits for it but the end of the process.
void MultipartUpload::State::abort() noexcept try {
  if (forks != fork_count() || has_ended.exchange(true)) return;
  cancel_jobs(this, this);
  SendOptions options{"abandoning the upload"};
  options.limit_s = kAbortLimit_s;
  options.is_farewell = true;
  const auto warn = [](const SendResult& result) {
    if (!result.error) return;
    try {
      std::rethrow_exception(result.error);
    } catch (const TransportError& error) {
      // It is done, or was never begun.
      if (error.kind() == TransportError::Kind::kNotFound) return;
      log_warning(
          fmt::format("{}; its parts stay until a rule of the bucket removes them", error.what()));
    } catch (...) {
    }
  };
  submit_job(std::make_unique<HttpSend>(object, context, make_upload_abort(upload),
                                        std::move(options), nullptr, warn));
} catch (...) {  // the process ends: a rule of the bucket removes the parts
}

void MultipartUpload::abandon_all() noexcept {
  std::list<std::weak_ptr<State>> states;
  {
    const std::lock_guard lock(process_mutex());
    states.swap(State::all());
  }
  for (const std::weak_ptr<State>& state : states) {
    if (const auto alive = state.lock()) alive->abort();
  }
}

MultipartUpload::MultipartUpload(std::shared_ptr<HttpObject> object,
                                 std::shared_ptr<HttpContext> context, bool if_none_match)
    : object_(std::move(object)),
      context_(std::move(context)),
      if_none_match_(if_none_match),
      state_(std::make_shared<State>()) {
  const auto begun = std::chrono::steady_clock::now();
  const SendResult result =
      send_and_wait(object_, context_, make_upload_begin(), {"beginning the upload"});
  if (result.error) std::rethrow_exception(result.error);
  state_->object = object_;
  state_->context = context_;
  state_->upload = parse_named(*object_, [&] { return parse_upload_begun(result.response); });
  add_shutdown_hook(abandon_all);
  {
    const std::lock_guard lock(process_mutex());
    State::all().remove_if([](const auto& state) { return state.expired(); });
    State::all().push_back(state_);
  }
  // As for reads: more at once cost CPU time nearby and bring nothing.
  constexpr std::chrono::milliseconds kNear(5);
  constexpr int kPerThread = 4;
  const ClientOptions& options = *context_->options;
  const bool is_near = std::chrono::steady_clock::now() - begun < kNear;
  max_in_flight_ =
      static_cast<size_t>(is_near ? std::min(options.max_in_flight, kPerThread * options.io_threads)
                                  : options.max_in_flight);
}

// Until `ready()`, asked after the answers so far were looked at.
template <typename Ready>
void MultipartUpload::wait(Ready ready) {
  WaitScope scope;
  while (true) {
    settle();
    if (ready()) return;
    std::unique_lock lock(state_->mutex);
    if (scope.wait(lock, state_->changed, [this] { return !state_->answers.empty(); })) continue;
    throw InterruptedError("interrupted: the upload was given up");
  }
}

// Looks at the answers: those parts are let go. Throws what one failed with.
void MultipartUpload::settle() {
  std::vector<State::Answer> answers;
  {
    const std::lock_guard lock(state_->mutex);
    answers.swap(state_->answers);
  }
  std::exception_ptr error;
  for (State::Answer& answer : answers) {
    const std::unique_ptr<Part> part = std::move(sending_[answer.index]);
    --sending_count_;
    copied_nbytes_ -= part->copied_nbytes;
    if (!answer.result.error) {
      try {
        parts_[answer.index] = parse_named(*object_, [&] {
          return parse_part_put(state_->upload, answer.result.response, part->crc32c,
                                part->body.nbytes());
        });
        continue;
      } catch (const Error&) {
        answer.result.error = std::current_exception();
      }
    }
    if (!error) error = std::move(answer.result.error);
  }
  if (error) std::rethrow_exception(error);
}

void MultipartUpload::submit(size_t index) {
  const Part& part = *sending_[index];
  HttpCommand command = make_part_put(state_->upload, index + 1, part.body, part.crc32c);
  SendOptions options{fmt::format("part {}", index + 1)};
  options.owner_limit = max_in_flight_;
  submit_job(std::make_unique<HttpSend>(object_, context_, std::move(command), std::move(options),
                                        state_.get(), [state = state_, index](SendResult result) {
                                          const std::lock_guard lock(state->mutex);
                                          state->answers.push_back({index, std::move(result)});
                                          state->changed.notify_all();
                                        }));
}

void MultipartUpload::send(HttpBody body, uint64_t copied_nbytes) try {
  // One that waits for its turn, so that no connection does.
  wait([&] {
    return sending_count_ <= max_in_flight_ &&
           (sending_count_ == 0 || copied_nbytes_ + copied_nbytes <= kMaxCopiedNbytes);
  });
  auto part = std::make_unique<Part>(Part{std::move(body), copied_nbytes, 0});
  part->crc32c = part->body.crc32c();
  parts_.emplace_back();
  sending_.push_back(std::move(part));
  try {
    submit(sending_.size() - 1);
  } catch (...) {
    sending_.pop_back();
    throw;
  }
  ++sending_count_;
  copied_nbytes_ += copied_nbytes;
} catch (...) {
  abandon();
  throw;
}

void MultipartUpload::finish() try {
  wait([this] { return sending_count_ == 0; });
  complete();
  state_->has_ended = true;
} catch (...) {
  abandon();
  throw;
}

void MultipartUpload::complete() {
  SendOptions options{"ending the upload"};
  options.holds_error = holds_upload_error;
  const SendResult result =
      send_and_wait(object_, context_, make_upload_end(state_->upload, parts_, if_none_match_),
                    std::move(options));
  if (!result.error) return;
  try {
    std::rethrow_exception(result.error);
  } catch (const TransportError& error) {
    // An answer that was lost may have been the good one: then there is no such upload any more,
    // and an object.
    const bool is_gone = error.kind() == TransportError::Kind::kNotFound ||
                         error.kind() == TransportError::Kind::kExists;
    if (!is_gone || !result.was_maybe_done) throw;
    if (!has_content(object_, context_, describe_content(parts_))) throw;
  }
}

void MultipartUpload::abandon() noexcept {
  state_->abort();
  // Until they have ended, their memory is read.
  while (sending_count_ != 0) {
    std::vector<State::Answer> answers;
    {
      std::unique_lock lock(state_->mutex);
      wait_until_ready(lock, state_->changed, [this] { return !state_->answers.empty(); });
      answers.swap(state_->answers);
    }
    for (const State::Answer& answer : answers) sending_[answer.index] = nullptr;
    sending_count_ -= answers.size();
  }
}

bool has_content(const std::shared_ptr<HttpObject>& object,
                 const std::shared_ptr<HttpContext>& context, const S3Content& content) {
  const SendResult result = send_and_wait(object, context, make_look(), {"looking for the object"});
  if (result.error && is_interruption(result.error)) std::rethrow_exception(result.error);
  return !result.error && is_content(result.response, content);
}

}  // namespace torchnpy
