// What must still be done to a file whose header becomes longer, or is written anew over more than
// a sector, so that it can be done after a crash. The layout is in docs/append.md. Pure: no I/O.
#pragma once

#include <cstdint>
#include <string>

#include "base/bytes.h"

namespace torchnpy {

struct MoveJournal {
  std::string old_header;    // of the file before: its bytes up to the data
  std::string new_header;    // not shorter
  uint64_t data_nbytes = 0;  // behind the header
  // Data from here on, counted from its begin, is in its new place once `chunk`, which belongs
  // there, has been written.
  uint64_t moved_from = 0;
  std::string chunk;
};

// Bytes of data that move at once.
inline constexpr uint64_t kMaxMoveNbytes = 16 << 20;

std::string format_move_journal(const MoveJournal& journal);
// Throws FormatError for bytes that format_move_journal() did not write.
MoveJournal parse_move_journal(ByteView bytes);

}  // namespace torchnpy
