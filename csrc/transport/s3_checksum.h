// What S3 says of an object's checksum.
#pragma once

#include <optional>

#include "base/checksum.h"
#include "transport/http.h"

namespace torchnpy {

// The checksum of all of the object's bytes in the answer to a GET without a range that asked for
// it (x-amz-checksum-mode). Empty where there is none: the object has none, one of another kind
// (SHA-256), one over its parts' checksums (COMPOSITE), or one that is no base64.
std::optional<Checksum> parse_s3_checksum(const HttpResponse& response);

}  // namespace torchnpy
