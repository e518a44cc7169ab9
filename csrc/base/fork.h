// What survives fork(2). DataLoader forks its workers, at any moment.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>

namespace torchnpy {

// Guards the small shared state of clients (regions, credentials, the default client).
// fork() takes it first, so a child never inherits it locked nor the state half changed.
// Held for a few instructions: no I/O and no call into Python under it.
std::mutex& process_mutex();

// How many forks lie between this process and the one that loaded the library. State made
// under another count belongs to an ancestor: its threads do not exist here, and its
// sockets are shared with it.
uint64_t fork_count();

// Work that fork() must not cut in two: that of libraries whose locks a child would inherit
// locked, for ever. fork() waits until no thread is inside, a second at most, and threads that
// want to enter wait until the fork is done.
class NoForkScope {
 public:
  NoForkScope();
  ~NoForkScope();
  NoForkScope(const NoForkScope&) = delete;
  NoForkScope& operator=(const NoForkScope&) = delete;
};

// Counts threads that are inside something. Those of the parent do not exist in a forked
// child, which starts from zero.
class ThreadCount {
 public:
  void enter() { add(+1); }
  void leave() { add(-1); }
  bool is_zero() const;

 private:
  void add(int64_t change);
  // The fork_count() in its upper half.
  std::atomic<uint64_t> state_{0};
};

}  // namespace torchnpy
