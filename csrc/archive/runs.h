// Which of the stretches that are wanted of an object are read together; for the loaders.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "transport/source.h"

namespace torchnpy {

// Bytes [begin, end) of an object.
struct Stretch {
  size_t place = 0;  // whose they are: the caller's number
  uint64_t begin = 0;
  uint64_t end = 0;
};

// What may be read for nothing beyond a twentieth of what is wanted, of all objects of a load
// together.
inline constexpr uint64_t kFreeGapNbytes = 64 << 10;

// What lies between the stretches of a run is read into so much memory, over and over.
inline constexpr size_t kGapRoomNbytes = 64 << 10;

// Makes runs of stretches, in the object's order, that lie close together: over the smallest gaps
// first, while what is read for nothing stays below a twentieth of what is wanted and
// `free_nbytes`, or the source wants it so. A run of several is no longer than a part. Returns
// where in `stretches` each ends.
std::vector<size_t> find_runs(std::span<const Stretch> stretches, uint64_t free_nbytes,
                              const ReadSizes& sizes);

}  // namespace torchnpy
