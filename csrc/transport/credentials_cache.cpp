// The credentials of a client over time: who refreshes them, and who waits.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <pthread.h>

#include <algorithm>
#include <condition_variable>
#include <csignal>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "base/error.h"
#include "base/fork.h"
#include "base/log.h"
#include "base/wait.h"
#include "transport/credentials.h"
#include "transport/credentials_providers.h"
#include "transport/words.h"

namespace torchnpy {
namespace {

using WallClock = std::chrono::system_clock;

// Copies, for other threads may add their object's name to the one thrown.
[[noreturn]] void throw_copy(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const TransportError& thrown) {
    throw TransportError(thrown);
  } catch (const UnsupportedError& thrown) {
    throw UnsupportedError(thrown);
  } catch (const ArgumentError& thrown) {
    throw ArgumentError(thrown);
  } catch (const FormatError& thrown) {
    throw FormatError(thrown);
  }
}

std::string format_warning(const std::exception_ptr& error, std::chrono::seconds retry_delay) {
  try {
    std::rethrow_exception(error);
  } catch (const InterruptedError&) {
    return {};
  } catch (const std::exception& thrown) {
    return fmt::format("credentials were not refreshed, which is tried again in {} s: {}",
                       retry_delay.count(), clean_words(thrown.what()));
  }
}

}  // namespace

// One refresh and those who wait for it.
struct CredentialsCache::Refresh {
  const uint64_t forks = fork_count();
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
  std::exception_ptr error;
};

CredentialsCache::CredentialsCache(std::vector<Provider> chain,
                                   std::shared_ptr<TransportMetrics> metrics)
    : chain_(std::move(chain)), metrics_(std::move(metrics)) {}

// The rest of these, to store(), under process_mutex().
bool CredentialsCache::is_due(Time now) const {
  return known_ == nullptr || refused_ || (now >= advisory_at_ && now >= retry_at_);
}

bool CredentialsCache::must_wait(Time now) const {
  return known_ == nullptr || refused_ || (now >= mandatory_at_ && now >= retry_at_);
}

bool CredentialsCache::refreshes_now() const {
  return refresh_ != nullptr && refresh_->forks == fork_count();
}

std::shared_ptr<CredentialsCache::Refresh> CredentialsCache::begin_refresh() {
  if (refresh_ != nullptr) {
    // Of the parent, whose threads may wait for it: to destroy it would wait for them, too.
    new std::shared_ptr<Refresh>(std::move(refresh_));
  }
  refresh_ = std::make_shared<Refresh>();
  return refresh_;
}

void CredentialsCache::store(std::shared_ptr<const Credentials> found, bool refreshable) {
  const Time now = WallClock::now();
  const bool same = known_ != nullptr && known_->access_key_id == found->access_key_id &&
                    known_->session_token == found->session_token;
  if (known_ != nullptr && metrics_ != nullptr) metrics_->credentials_refreshes.fetch_add(1);
  // The same again after they were refused: asking once more will not help.
  refreshable_ = refreshable && !(refused_ && same);
  refused_ = false;
  retry_at_ = Time::min();
  advisory_at_ = mandatory_at_ = Time::max();
  if (found->expiration && refreshable) {
    const auto lifetime = *found->expiration - now;
    advisory_at_ =
        *found->expiration - std::min<WallClock::duration>(std::chrono::minutes(15), lifetime / 2);
    mandatory_at_ =
        *found->expiration - std::min<WallClock::duration>(std::chrono::minutes(10), lifetime / 3);
  }
  known_ = std::move(found);
}

std::shared_ptr<const Credentials> CredentialsCache::read_chain(bool* refreshable) const {
  std::vector<std::string> looked_in;
  for (const Provider& provider : chain_) {
    if (auto found = provider->read()) {
      check_printable(*found);
      if (found->expiration && *found->expiration <= WallClock::now()) {
        throw TransportError(
            fmt::format("expected credentials that last but those of {} have expired",
                        provider->description()),
            TransportError::Kind::kDenied);
      }
      *refreshable = provider->can_refresh();
      return std::make_shared<const Credentials>(std::move(*found));
    }
    if (std::string place = provider->description(); !place.empty()) {
      looked_in.push_back(std::move(place));
    }
  }
  throw TransportError(
      fmt::format("expected credentials for S3 but found none in {}; for public objects pass "
                  "credentials=\"anonymous\" to Client",
                  fmt::join(looked_in, ", ")),
      TransportError::Kind::kDenied);
}

void CredentialsCache::run_refresh(const std::shared_ptr<Refresh>& refresh) noexcept {
  constexpr std::chrono::seconds kRetryDelay{10};
  std::shared_ptr<const Credentials> found;
  std::exception_ptr error;
  std::string warning;
  bool refreshable = false;
  try {
    found = read_chain(&refreshable);
  } catch (...) {
    error = std::current_exception();
    warning = format_warning(error, kRetryDelay);
  }
  bool is_silent = false;
  {
    const std::lock_guard lock(process_mutex());
    if (found != nullptr) {
      store(std::move(found), refreshable);
    } else {
      retry_at_ = WallClock::now() + kRetryDelay;
      is_silent = known_ != nullptr;
    }
    if (refresh_ == refresh) refresh_ = nullptr;
  }
  // While the old ones last nobody is told otherwise.
  if (is_silent && !warning.empty()) log_warning(std::move(warning));
  const std::lock_guard lock(refresh->mutex);
  refresh->error = std::move(error);
  refresh->done = true;
  refresh->changed.notify_all();
}

// Detached: at the end of the process it sleeps where it waits (base/wait.h).
void CredentialsCache::start_refresh_thread(const std::shared_ptr<Refresh>& refresh) noexcept {
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    std::thread([self = shared_from_this(), refresh] {
      pthread_setname_np(pthread_self(), "torchnpy-keys");
      self->run_refresh(refresh);
    }).detach();
  } catch (const std::system_error&) {  // no thread to have: whoever waits next refreshes
    const std::lock_guard lock(process_mutex());
    if (refresh_ == refresh) refresh_ = nullptr;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

std::shared_ptr<const Credentials> CredentialsCache::known() {
  std::shared_ptr<const Credentials> known;
  std::shared_ptr<Refresh> begun;
  {
    const std::lock_guard lock(process_mutex());
    known = known_;
    const bool is_wanted = known_ != nullptr && refreshable_ && is_due(WallClock::now());
    if (is_wanted && !refreshes_now() && weak_from_this().lock() != nullptr)
      begun = begin_refresh();
  }
  if (begun != nullptr) start_refresh_thread(begun);
  return known;
}

bool CredentialsCache::invalidate(const Credentials* refused) {
  std::shared_ptr<Refresh> begun;
  {
    const std::lock_guard lock(process_mutex());
    if (known_ == nullptr || known_.get() != refused) return true;
    if (!refreshable_) return false;
    refused_ = true;
    if (!refreshes_now() && weak_from_this().lock() != nullptr) begun = begin_refresh();
  }
  if (begun != nullptr) start_refresh_thread(begun);
  return true;
}

bool CredentialsCache::awaits_others() const noexcept {
  const std::lock_guard lock(process_mutex());
  return refused_ && refreshes_now();
}

std::shared_ptr<const Credentials> CredentialsCache::resolve() {
  while (true) {
    std::shared_ptr<Refresh> refresh;
    bool is_mine = false;
    {
      const std::lock_guard lock(process_mutex());
      const Time now = WallClock::now();
      if (!is_due(now)) return known_;
      if (refreshes_now()) {
        if (!must_wait(now)) return known_;
        refresh = refresh_;
      } else {
        refresh = begin_refresh();
        is_mine = true;
      }
    }
    if (is_mine) {
      run_refresh(refresh);
    } else {
      WaitScope scope;
      std::unique_lock lock(refresh->mutex);
      if (!scope.wait(lock, refresh->changed, [&] { return refresh->done; })) {
        throw InterruptedError("interrupted: waiting for credentials was given up");
      }
    }
    if (!refresh->error) continue;
    if (is_interruption(refresh->error)) {
      if (is_mine) std::rethrow_exception(refresh->error);
      continue;  // the thread that refreshed was interrupted, not this one
    }
    {
      const std::lock_guard lock(process_mutex());
      const bool lasts = known_ != nullptr && !refused_ &&
                         (!known_->expiration || *known_->expiration > WallClock::now());
      if (lasts) return known_;
    }
    throw_copy(refresh->error);
  }
}

}  // namespace torchnpy
