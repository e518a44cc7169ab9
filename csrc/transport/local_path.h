// Paths of files that no source or target stands for.
#pragma once

#include <string>

namespace torchnpy {

// The path that "file://..." or a path means, as Client takes it. Throws ArgumentError for an
// object of a server and what is neither.
std::string local_path(const std::string& url);

}  // namespace torchnpy
