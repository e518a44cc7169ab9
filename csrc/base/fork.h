// What survives fork(2). DataLoader forks its workers, at any moment.
#pragma once

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

}  // namespace torchnpy
