#include "transport/file_target.h"

#include "base/error.h"

namespace torchnpy {

std::unique_ptr<Target> create_file(const std::string& path, const TargetOptions&) {
  throw UnsupportedError(path + ": files cannot be written yet");
}

}  // namespace torchnpy
