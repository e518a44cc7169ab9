// Local files as targets.
#pragma once

#include <memory>
#include <string>

#include "transport/target.h"

namespace torchnpy {

// Begins a new file at `path`, in a temporary file beside it that finish() gives its name. So the
// file is whole or not there, and readers of the one before keep that. A temporary file that a
// killed process left is removed by the next call for the same path.
//
// As open() has it: symbolic links are followed, a new file's mode is 0666 less the umask; a file
// that is there must be writable, and keeps its mode and, where the process may give it, its owner.
// Pipes, devices and what /proc/self/fd leads to (/dev/stdout) are written as the bytes come.
//
// Throws TransportError with the system's reason.
std::unique_ptr<Target> create_file(const std::string& path, const TargetOptions& options);

}  // namespace torchnpy
