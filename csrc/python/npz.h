// Archives for Python.
#pragma once

#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <memory>

#include "torch/npz.h"

namespace torchnpy {

// An open archive as Python holds it.
struct ArchiveHandle {
  std::shared_ptr<const NpzArchive> archive;
  NpzOptions options;  // that members are read with
};

// Members, total_nbytes and expansion of torchnpy.NpzLimits.
using LimitValues = std::array<uint64_t, 3>;
NpzOptions make_npz_options(const LimitValues& limits, bool verify);

// Adds the class NpzArchive and its functions to _C.
void bind_npz(pybind11::module_& m);

}  // namespace torchnpy
