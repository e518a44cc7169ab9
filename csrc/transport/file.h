// Local files as sources: mapped copy-on-write, or read. Memory as a source.
#pragma once

#include <memory>
#include <string>

#include "transport/source.h"

namespace torchnpy {

// Opens `path`. With `mmap` a file of at least 256 KiB is mapped (MAP_PRIVATE: writes to a
// view never reach the file); smaller ones, and those that cannot be mapped, are read. A
// file that is truncated while it is mapped raises SIGBUS on access: pass mmap = false for
// files that others truncate. Throws TransportError with the system's reason.
std::shared_ptr<Source> open_file(const std::string& path, bool mmap);

// `content` as an object of that name.
std::shared_ptr<Source> make_memory_source(std::string name, OwnedBytes content);

}  // namespace torchnpy
