// Making files fit to be appended to, and whole again after a crash.
#pragma once

#include <cstdint>
#include <string>

#include "archive/growing_file.h"
#include "archive/move_journal.h"
#include "format/npy.h"

namespace torchnpy {

// A file up to its data.
struct FileHead {
  NpyHeader header;
  std::string bytes;
  uint64_t file_nbytes = 0;
  uint64_t data_nbytes() const { return file_nbytes - header.data_offset; }
};
// Throws FormatError, without the file's name.
FileHead read_head(GrowingFile& file);

// Whether the bytes behind the header are not those that it says; never of objects, a pickle.
bool needs_recovery(const FileHead& head);

// Puts `header`, as long as the file's own, in the place of `before`, so that a crash at any moment
// leaves the one or the other, or a journal. Throws TransportError.
void rewrite_header(GrowingFile& file, const std::string& before, const GrowingHeader& header);

// For tests.
struct RepairOptions {
  OpenGrowingFile open = open_growing_file;
  uint64_t move_nbytes = kMaxMoveNbytes;  // of data that moves at once
};

// The four functions of npy-append-array, with their answers. All throw TransportError, FormatError
// and, where they write, LockError, with the file's name.

// Whether there is room for the count to grow. False where ensure_appendable() was cut
// short.
bool is_appendable(const std::string& path);
// Whether a file must be recovered before it can be appended to, or was left so by
// ensure_appendable().
bool needs_recovery(const std::string& path);
// Gives the file a longer header where it needs one: in a new file that takes the place of the old
// one, or inside the file, which then needs no room on the disk but nobody can read it meanwhile; a
// crash leaves that to recover(). Throws ArgumentError for an array without an axis.
void ensure_appendable(const std::string& path, bool inplace, const RepairOptions& options = {});
// Finishes what ensure_appendable() began. Makes the header count the rows that are there; the
// last, incomplete one is cut off, or filled with zeros. Throws ArgumentError where
// ensure_appendable() must come first.
void recover(const std::string& path, bool zerofill_incomplete, const RepairOptions& options = {});

}  // namespace torchnpy
