// The header of a file that grows: its count stands in a slot that one store replaces, so that no
// reader sees half of it (docs/append.md has the layout). Pure: no I/O.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "format/npy.h"

namespace torchnpy {

inline constexpr size_t kCountSlotNbytes = 16;
// One character of the slot says whether there is more behind the rows that it counts.
inline constexpr uint64_t kMaxGrowingCount = 999'999'999'999'999;

// The bytes of a slot: the count, right-aligned.
using CountSlot = std::array<uint8_t, kCountSlotNbytes>;
struct GrowingCount {
  uint64_t rows = 0;  // at most kMaxGrowingCount
  bool has_more =
      false;  // rows may follow that are not counted yet: a crash leaves them to recover()
};
CountSlot format_count(GrowingCount count);

struct GrowingHeader {
  std::string bytes;         // of the file up to its data
  uint64_t slot_offset = 0;  // in the file; a multiple of kCountSlotNbytes
};

// The axis that grows: the first, in Fortran order the last. The array must have one.
inline size_t growing_axis(const NpyHeader& header) {
  return header.fortran_order ? header.shape.size() - 1 : 0;
}
// Bytes of one step along it; 0 where another axis has none.
uint64_t row_nbytes(const NpyHeader& header);

// Whether the header has the room that numpy leaves for its count to grow; false for shape ().
// Such a header can be written anew as one that grows, in its place.
bool has_growth_room(const NpyHeader& header);
// The least bytes that make has_growth_room() true: a multiple of 64. The array must have an axis.
uint64_t growing_header_nbytes(const NpyHeader& header);
// The header of that version, dtype, order and shape as one that grows, `nbytes` long. Empty where
// that is not enough, and for a dtype that only an empty array can have.
std::optional<GrowingHeader> format_growing_header(const NpyHeader& header, uint64_t nbytes);

// What the slot says, where `bytes`, which `header` was parsed from, are in the form of
// format_growing_header(); else empty.
struct FoundSlot {
  uint64_t offset = 0;
  GrowingCount count;
};
std::optional<FoundSlot> find_count_slot(const NpyHeader& header, ByteView bytes);

}  // namespace torchnpy
