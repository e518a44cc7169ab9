// Local files as targets.
#pragma once

#include <memory>
#include <string>

#include "transport/target.h"

namespace torchnpy {

// Begins a new file at `path`. Throws TransportError with the system's reason.
std::unique_ptr<Target> create_file(const std::string& path, const TargetOptions& options);

}  // namespace torchnpy
