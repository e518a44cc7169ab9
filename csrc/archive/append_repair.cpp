#include "archive/append_repair.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "base/wait.h"
#include "transport/file_target.h"

namespace torchnpy {
namespace {

// What a disk writes at once, also when the power fails.
constexpr uint64_t kSectorNbytes = 512;

void write_all(GrowingFile& file, ByteView bytes, uint64_t offset) {
  while (!bytes.empty()) {
    const ssize_t nbytes = file.write(bytes, offset);
    if (nbytes < 0) throw_system_error(file.real_path(), "write", errno);
    bytes = bytes.subspan(static_cast<size_t>(nbytes));
    offset += static_cast<uint64_t>(nbytes);
  }
}

void sync(GrowingFile& file) {
  if (file.sync() != 0) throw_system_error(file.real_path(), "sync", errno);
}

void truncate(GrowingFile& file, uint64_t nbytes) {
  if (file.truncate(nbytes) != 0) throw_system_error(file.real_path(), "truncate", errno);
}

std::string read_all(GrowingFile& file, uint64_t nbytes, uint64_t offset) {
  std::string bytes(nbytes, '\0');
  const ssize_t got =
      file.read(MutableBytes(reinterpret_cast<uint8_t*>(bytes.data()), bytes.size()), offset);
  if (got < 0) throw_system_error(file.real_path(), "read", errno);
  bytes.resize(static_cast<size_t>(got));
  return bytes;
}

uint64_t file_nbytes(GrowingFile& file) {
  const int64_t nbytes = file.nbytes();
  if (nbytes < 0) throw_system_error(file.real_path(), "stat", errno);
  return static_cast<uint64_t>(nbytes);
}

void check_interrupt(const GrowingFile& file) {
  if (WaitScope::must_stop()) {
    throw InterruptedError(file.real_path() + ": interrupted while its header was made longer");
  }
}

// Writes the journal's chunk, moves what is left and puts the header before it. Data moves from its
// end, so that none is overwritten before it has moved; each chunk is in the journal first.
void finish_move(GrowingFile& file, MoveJournal journal, uint64_t move_nbytes) {
  const WaitScope scope;
  const uint64_t old_offset = journal.old_header.size();
  const uint64_t new_offset = journal.new_header.size();
  for (;;) {
    write_all(file, as_bytes(journal.chunk), new_offset + journal.moved_from);
    sync(file);
    if (journal.moved_from == 0) break;
    check_interrupt(file);
    const uint64_t nbytes = std::min(journal.moved_from, move_nbytes);
    journal.moved_from -= nbytes;
    journal.chunk = read_all(file, nbytes, old_offset + journal.moved_from);
    file.put_journal(as_bytes(format_move_journal(journal)));
  }
  write_all(file, as_bytes(journal.new_header), 0);
  sync(file);
  file.drop_journal();
}

void move(GrowingFile& file, MoveJournal journal, uint64_t move_nbytes) {
  // Where nothing moves, the loop would write no journal.
  file.put_journal(as_bytes(format_move_journal(journal)));
  finish_move(file, std::move(journal), move_nbytes);
}

// Whether `found`, in the file from `offset` on, is `before`, or `after` as far as that was
// written: each sector is written from its begin on.
bool is_between(std::string_view found, std::string_view before, std::string_view after,
                uint64_t offset) {
  for (size_t begin = 0; begin < found.size();) {
    const uint64_t sector_nbytes = kSectorNbytes - (offset + begin) % kSectorNbytes;
    const size_t end = std::min<uint64_t>(found.size(), begin + sector_nbytes);
    size_t at = begin;
    while (at < end && found[at] == after[at]) ++at;
    if (found.substr(at, end - at) != before.substr(at, end - at)) return false;
    begin = end;
  }
  return true;
}

// Whether the file has the old header, and the chunk in its old place, as far as neither was
// overwritten: the chunk by itself in its new place, and both by the new header, which is last.
bool is_content_of(GrowingFile& file, const MoveJournal& journal) {
  const std::string& chunk = journal.chunk;
  const uint64_t shift = journal.new_header.size() - journal.old_header.size();
  const bool is_last = journal.moved_from == 0;
  const uint64_t under_header = is_last ? std::min<uint64_t>(shift, chunk.size()) : 0;
  const std::string head = journal.old_header + chunk.substr(0, under_header);
  const std::string found_head = read_all(file, head.size(), 0);
  if (found_head.size() != head.size() ||
      !is_between(found_head, head, is_last ? journal.new_header : head, 0)) {
    return false;
  }
  const uint64_t offset = journal.old_header.size() + journal.moved_from + under_header;
  const std::string before = chunk.substr(under_header);
  const std::string after = (chunk.substr(0, shift) + chunk).substr(under_header, before.size());
  const std::string found = read_all(file, before.size(), offset);
  return found.size() == before.size() && is_between(found, before, after, offset);
}

// The file may have been replaced since: then to go on would destroy it.
void check_belongs(GrowingFile& file, const MoveJournal& journal) {
  const uint64_t old_nbytes = journal.old_header.size() + journal.data_nbytes;
  const uint64_t new_nbytes = journal.new_header.size() + journal.data_nbytes;
  const uint64_t unmoved = journal.moved_from + journal.chunk.size();
  const uint64_t least = unmoved == journal.data_nbytes ? old_nbytes : new_nbytes;
  const uint64_t most = journal.moved_from == journal.data_nbytes ? old_nbytes : new_nbytes;
  const uint64_t nbytes = file_nbytes(file);
  if (nbytes >= least && nbytes <= most && is_content_of(file, journal)) return;
  throw FormatError(fmt::format(
      "expected the file of {} to {} bytes that its journal, {}.journal, is of but found another "
      "of {}; if it was replaced since, remove the journal",
      least, most, file.real_path(), nbytes));
}

void replay_journal(GrowingFile& file, uint64_t move_nbytes) {
  const std::optional<std::string> bytes = file.read_journal();
  if (!bytes) return;
  MoveJournal journal;
  try {
    journal = parse_move_journal(as_bytes(*bytes));
  } catch (FormatError& error) {
    error.add_context(file.real_path() + ".journal");
    throw;
  }
  check_belongs(file, journal);
  finish_move(file, std::move(journal), move_nbytes);
}

void check_has_axis(const NpyHeader& header) {
  if (!header.shape.empty()) return;
  throw ArgumentError(
      "expected an array with an axis that can grow but found shape (); save it with shape (1,)");
}

// Into a new file, which takes the name.
void copy_with(GrowingFile& file, const FileHead& head, const std::string& new_header) {
  TargetOptions options;
  options.nbytes = new_header.size() + head.data_nbytes();
  options.sync = true;
  const std::unique_ptr<Target> target = create_file(file.real_path(), options);
  target->write({as_bytes(new_header), nullptr});
  uint64_t offset = head.header.data_offset;
  while (offset < head.file_nbytes) {
    const std::string chunk =
        read_all(file, std::min(kMaxMoveNbytes, head.file_nbytes - offset), offset);
    if (chunk.empty()) break;
    target->write({as_bytes(chunk), nullptr});
    offset += chunk.size();
  }
  target->finish();
}

// Rows that are there, when the file holds `nbytes` of data.
uint64_t count_rows(const NpyHeader& header, uint64_t nbytes) {
  const uint64_t row = row_nbytes(header);
  return row == 0 ? header.shape[growing_axis(header)] : nbytes / row;
}

// How many bytes of what is behind the header are rows.
uint64_t find_data_nbytes(GrowingFile& file, const FileHead& head) {
  const auto slot = find_count_slot(head.header, as_bytes(head.bytes));
  const bool is_longer = head.data_nbytes() > head.header.nbytes;
  // A file of ours says when what follows the rows are rows: else it is what a killed process left
  // of an append that did not return.
  if (is_longer && slot && !slot->count.has_more) return head.header.nbytes;
  const uint64_t end = head.header.data_offset + head.header.nbytes;
  if (is_longer && begins_as_npy(as_bytes(read_all(file, 8, end)))) {
    throw FormatError(fmt::format(
        "expected rows but found another array at byte {}; load them one by one from the open file",
        end));
  }
  return head.data_nbytes();
}

void recover_rows(GrowingFile& file, bool zerofill_incomplete) {
  FileHead head = read_head(file);
  if (!needs_recovery(head)) return;
  check_has_axis(head.header);
  if (!has_growth_room(head.header)) {
    throw ArgumentError(
        "expected a header with room for its count but found none; call ensure_appendable() first");
  }
  uint64_t data_nbytes = find_data_nbytes(file, head);
  const uint64_t row = row_nbytes(head.header);
  const uint64_t incomplete = row == 0 ? data_nbytes : data_nbytes % row;
  data_nbytes -= incomplete;
  if (row != 0 && incomplete != 0 && zerofill_incomplete) data_nbytes += row;
  truncate(file, head.header.data_offset + data_nbytes);  // or extends it, with zeros
  sync(file);
  head.header.shape[growing_axis(head.header)] = count_rows(head.header, data_nbytes);
  const auto growing = format_growing_header(head.header, head.header.data_offset);
  if (!growing) {
    throw ArgumentError(fmt::format("expected at most {} rows but found {}", kMaxGrowingCount,
                                    head.header.shape[growing_axis(head.header)]));
  }
  rewrite_header(file, head.bytes, *growing);
  sync(file);
}

}  // namespace

FileHead read_head(GrowingFile& file) {
  constexpr uint64_t kFirstNbytes = 512;
  FileHead head;
  head.bytes = read_all(file, kFirstNbytes, 0);
  const std::optional<uint64_t> data_offset = find_npy_data_offset(as_bytes(head.bytes));
  if (data_offset && *data_offset > head.bytes.size()) head.bytes = read_all(file, *data_offset, 0);
  head.header = parse_npy_header(as_bytes(head.bytes));
  head.bytes.resize(head.header.data_offset);
  // After the header, so that what a writer adds meanwhile is no shortage.
  head.file_nbytes = file_nbytes(file);
  return head;
}

bool needs_recovery(const FileHead& head) {
  return head.header.dtype.type != ScalarType::kObject && head.data_nbytes() != head.header.nbytes;
}

void rewrite_header(GrowingFile& file, const std::string& before, const GrowingHeader& header) {
  const auto [was, is] = std::ranges::mismatch(before, header.bytes);
  if (was == before.end()) return;
  const auto first = static_cast<uint64_t>(was - before.begin());
  uint64_t end = before.size();
  while (before[end - 1] == header.bytes[end - 1]) --end;
  if (first / kSectorNbytes == (end - 1) / kSectorNbytes) {
    if (file.overwrite(as_bytes(header.bytes).subspan(first, end - first), first) != 0) {
      throw_system_error(file.real_path(), "write the header", errno);
    }
    return;
  }
  move(file, {before, header.bytes, file_nbytes(file) - before.size(), 0, ""}, kMaxMoveNbytes);
}

bool is_appendable(const std::string& path) {
  return with_file_name(path, [&] {
    const auto file = open_growing_file(path, FileAccess::kRead);
    if (file->read_journal()) return false;
    return has_growth_room(read_head(*file).header);
  });
}

bool needs_recovery(const std::string& path) {
  return with_file_name(path, [&] {
    const auto file = open_growing_file(path, FileAccess::kRead);
    return file->read_journal().has_value() || needs_recovery(read_head(*file));
  });
}

void ensure_appendable(const std::string& path, bool inplace, const RepairOptions& options) {
  with_file_name(path, [&] {
    const auto file = options.open(path, FileAccess::kAppend);
    replay_journal(*file, options.move_nbytes);
    const FileHead head = read_head(*file);
    check_has_axis(head.header);
    if (has_growth_room(head.header)) return;
    const auto growing = format_growing_header(head.header, growing_header_nbytes(head.header));
    if (!growing) {
      throw ArgumentError(fmt::format(
          "expected an array of a plain dtype with at most {} rows but found dtype {} and shape {}",
          kMaxGrowingCount, head.header.descr, format_shape(head.header.shape)));
    }
    if (!inplace) return copy_with(*file, head, growing->bytes);
    move(*file, {head.bytes, growing->bytes, head.data_nbytes(), head.data_nbytes(), ""},
         options.move_nbytes);
  });
}

void recover(const std::string& path, bool zerofill_incomplete, const RepairOptions& options) {
  with_file_name(path, [&] {
    const auto file = options.open(path, FileAccess::kAppend);
    replay_journal(*file, options.move_nbytes);
    recover_rows(*file, zerofill_incomplete);
  });
}

}  // namespace torchnpy
