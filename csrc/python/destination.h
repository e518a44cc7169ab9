// Where Python wants an array to go: a URL, or an open file of any kind.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>
#include <optional>
#include <string>

#include "transport/client.h"

namespace torchnpy {

// As torchnpy/destinations.py makes it.
class Destination {
 public:
  virtual ~Destination() = default;
  // For messages.
  virtual std::string name() const = 0;
  // Begins what shall be written there; `nbytes` in all, where that is known. Without the GIL.
  // Throws as Client::create().
  virtual std::unique_ptr<Target> create(std::optional<uint64_t> nbytes) const = 0;
};

// Adds the classes UrlDestination and StreamDestination to _C.
void bind_destinations(pybind11::module_& m);

}  // namespace torchnpy
