#include "transport/upload.h"

#include "base/error.h"

namespace torchnpy {

std::unique_ptr<Target> create_object(std::shared_ptr<HttpObject> object,
                                      std::shared_ptr<HttpContext>, const TargetOptions&) {
  throw UnsupportedError(object->name() + ": objects cannot be written yet");
}

}  // namespace torchnpy
