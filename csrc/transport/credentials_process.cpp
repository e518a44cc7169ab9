// Credentials that a program prints: credential_process.
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <system_error>
#include <thread>
#include <utility>

#include "base/error.h"
#include "base/fork.h"
#include "base/wait.h"
#include "transport/credentials_parse.h"
#include "transport/credentials_providers.h"
#include "transport/words.h"

namespace torchnpy {
namespace {

using Clock = std::chrono::steady_clock;

struct Pipe {
  Pipe() = default;
  ~Pipe() {
    close_end(0);
    close_end(1);
  }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;
  void open() {
    if (pipe2(ends.data(), O_CLOEXEC) != 0) {
      throw TransportError("credential_process: no pipe: " + std::system_category().message(errno));
    }
  }
  void close_end(size_t end) {
    if (const int descriptor = std::exchange(ends[end], -1); descriptor >= 0) close(descriptor);
  }
  std::array<int, 2> ends{-1, -1};
};

// A program that runs. Killed when it is not waited for to its end.
class Child {
 public:
  Child(const std::vector<std::string>& words, const Pipe& out, const Pipe& err) {
    std::vector<char*> argv;
    for (const std::string& word : words) argv.push_back(const_cast<char*>(word.c_str()));
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, out.ends[1], STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions, err.ends[1], STDERR_FILENO);
    // The calling thread may block signals, and Python ignores SIGPIPE.
    posix_spawnattr_t attributes;
    posix_spawnattr_init(&attributes);
    sigset_t none;
    sigset_t defaults;
    sigemptyset(&none);
    sigemptyset(&defaults);
    sigaddset(&defaults, SIGPIPE);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &defaults);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    const int error = posix_spawnp(&pid_, argv[0], &actions, &attributes, argv.data(), environ);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    if (error != 0) {
      throw TransportError(fmt::format("\"{}\" was not started: {}", words[0],
                                       std::system_category().message(error)),
                           TransportError::Kind::kDenied);
    }
  }
  ~Child() {
    if (ended_) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  // The exit status (negative: a signal), or empty while it runs.
  std::optional<int> poll_end() {
    int status = 0;
    const pid_t found = waitpid(pid_, &status, WNOHANG);
    if (found == 0 || (found < 0 && errno == EINTR)) return std::nullopt;
    ended_ = true;
    if (found < 0) return 0;  // somebody else has waited for it: its words count
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

 private:
  pid_t pid_ = -1;
  bool ended_ = false;
};

struct CommandOutput {
  int status = 0;
  std::string out;
  std::string err;
};

CommandOutput run(const std::vector<std::string>& words) {
  constexpr std::chrono::seconds kLimit{60};
  constexpr size_t kMaxNbytes = 1 << 20;
  Pipe pipes[2];
  std::optional<Child> child;
  {
    // A worker forked in between would keep the written ends, and the output would never end.
    const NoForkScope no_fork;
    for (Pipe& pipe : pipes) pipe.open();
    child.emplace(words, pipes[0], pipes[1]);
    for (Pipe& pipe : pipes) pipe.close_end(1);
  }
  CommandOutput output;
  std::string* const texts[2] = {&output.out, &output.err};
  const Clock::time_point deadline = Clock::now() + kLimit;
  const auto check = [&] {
    if (Clock::now() > deadline) {
      throw TransportError(
          fmt::format("\"{}\" took longer than {} s and was ended", words[0], kLimit.count()),
          TransportError::Kind::kTimeout);
    }
    if (WaitScope::must_stop()) throw InterruptedError("interrupted: credential_process was ended");
  };
  while (pipes[0].ends[0] >= 0 || pipes[1].ends[0] >= 0) {
    pollfd polled[2] = {{pipes[0].ends[0], POLLIN, 0}, {pipes[1].ends[0], POLLIN, 0}};
    poll(polled, 2, 50);
    for (size_t i = 0; i < 2; ++i) {
      if (polled[i].revents == 0) continue;
      std::array<char, 4096> buffer;
      const ssize_t nbytes = read(polled[i].fd, buffer.data(), buffer.size());
      if (nbytes < 0 && (errno == EINTR || errno == EAGAIN)) continue;
      if (nbytes <= 0) {
        pipes[i].close_end(0);
      } else if (texts[i]->size() < kMaxNbytes) {
        texts[i]->append(buffer.data(), static_cast<size_t>(nbytes));
      }
    }
    check();
  }
  std::optional<int> status;
  while (!(status = child->poll_end())) {
    check();
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  output.status = *status;
  return output;
}

class ProcessProvider final : public CredentialsProvider {
 public:
  explicit ProcessProvider(std::shared_ptr<const AwsProfile> profile)
      : profile_(std::move(profile)) {}

  std::optional<Credentials> read() override {
    const std::string* const command = profile_->find("credential_process");
    if (command == nullptr) return std::nullopt;
    const auto words = split_words(*command, description());
    if (words.empty()) throw ArgumentError(description() + ": expected a program but found none");
    try {
      const CommandOutput output = run(words);
      if (output.status != 0) {
        throw TransportError(
            fmt::format("\"{}\" ended with status {}: {}", words[0], output.status,
                        output.err.empty() ? "it said nothing" : clean_words(output.err)),
            TransportError::Kind::kDenied);
      }
      return parse_process_output(output.out, description());
    } catch (TransportError& error) {
      if (!std::string_view(error.what()).starts_with(description())) {
        error.add_context(description());
      }
      throw;
    }
  }
  std::string description() const override {
    return fmt::format("credential_process of profile \"{}\"", profile_->name());
  }

 private:
  const std::shared_ptr<const AwsProfile> profile_;
};

}  // namespace

Provider make_process_provider(std::shared_ptr<const AwsProfile> profile) {
  return std::make_unique<ProcessProvider>(std::move(profile));
}

}  // namespace torchnpy
