// An HTTP object whose bytes come from a cache where they are there, and go to it where not.
#pragma once

#include <memory>

#include "transport/cache.h"
#include "transport/http.h"
#include "transport/source.h"

namespace torchnpy {

// As open_http(). `offers_views`: bytes of the disk cache are handed out without a copy
// (docs/lifetimes.md).
std::shared_ptr<Source> open_cached(std::shared_ptr<HttpObject> object,
                                    std::shared_ptr<HttpContext> context,
                                    std::shared_ptr<Cache> cache, bool offers_views);

}  // namespace torchnpy
