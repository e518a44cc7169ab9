// Local files as sources: mapped copy-on-write, or read. Memory as a source.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "transport/source.h"

namespace torchnpy {

// Opens `path`. With `mmap` a file of at least 256 KiB is mapped (MAP_PRIVATE: writes to a
// view never reach the file); smaller ones, and those that cannot be mapped, are read. A
// file that is truncated while it is mapped raises SIGBUS on access: pass mmap = false for
// files that others truncate. Throws TransportError with the system's reason.
std::shared_ptr<Source> open_file(const std::string& path, bool mmap);

// Below it a read is cheaper than a mapping: a page fault for each 4 KiB, and the unmapping.
inline constexpr uint64_t kMinMappedNbytes = 256 << 10;

// Throws what a system call on the file at `path` failed with: `error` is an errno, `what` a verb,
// `advice` follows the system's reason.
[[noreturn]] void throw_file_error(const std::string& path, std::string_view what, int error,
                                   std::string_view advice = "");

// `content` as an object of that name.
std::shared_ptr<Source> make_memory_source(std::string name, OwnedBytes content);

}  // namespace torchnpy
