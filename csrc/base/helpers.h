// Threads of the process that help callers with CPU work, such as inflating.
//
// They start when there is work for them and live as long as the process. A forked child starts
// its own.
#pragma once

#include <cstdint>
#include <functional>

namespace torchnpy {

// With more threads one caller's memory, not its CPUs, is what it waits for.
inline constexpr int kMaxThreads = 8;

// To wake a thread and to move work to it takes about as long: smaller work is not worth it.
inline constexpr uint64_t kWorthHelp_ns = 50'000;

// Calls `help` on a helper again and again until it returns false; later, when all helpers are
// busy. There are as many as the process has CPUs, and at most kMaxThreads, less one: the caller
// works, too. False when there is none, or after shutdown_helpers(). `help` must not throw.
bool ask_for_help(std::function<bool()> help);

// For the end of the process: returns when no helper calls anything any more.
void shutdown_helpers();

}  // namespace torchnpy
