// Archives for Python.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <memory>

#include "archive/npz.h"

namespace torchnpy {

// An open archive as Python holds it.
struct ArchiveHandle {
  std::shared_ptr<const NpzArchive> archive;
  uint64_t part_nbytes;  // of the client that opened it
};

// Members, total_nbytes and expansion of torchnpy.NpzLimits.
using LimitValues = std::array<uint64_t, 3>;
ZipLimits make_limits(const LimitValues& values);

// Adds the class NpzArchive and its functions to _C.
void bind_npz(pybind11::module_& m);

}  // namespace torchnpy
