// One HTTP exchange whose answer is wanted in memory: token services, metadata, uploads.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "transport/http.h"
#include "transport/settings.h"

namespace torchnpy {

struct CallLimits {
  double timeout_s = 10;                 // from the request to the last byte of the answer
  int attempts = 1;                      // while none answers, or with 5xx; each may take timeout_s
  size_t max_response_nbytes = 1 << 20;  // of the answer's body
};

// Sends `request` and waits for the whole answer, whatever its status; follows no redirect; pauses
// between attempts. Blocks, so that Ctrl-C and the end of the process reach it (base/wait.h): not
// for I/O threads. `name` stands for the URL in messages. Throws TransportError (kTimeout where it
// was too late) when no whole answer came, InterruptedError.
HttpResponse call_http(const HttpRequest& request, std::shared_ptr<const EngineSettings> settings,
                       const std::string& name, const CallLimits& limits = {});

}  // namespace torchnpy
