// Objects of S3 and plain HTTP servers as targets: one PUT, or a multipart upload.
#pragma once

#include <memory>

#include "transport/http.h"
#include "transport/target.h"

namespace torchnpy {

// Begins a new object. Sends nothing yet.
std::unique_ptr<Target> create_object(std::shared_ptr<HttpObject> object,
                                      std::shared_ptr<HttpContext> context,
                                      const TargetOptions& options);

}  // namespace torchnpy
