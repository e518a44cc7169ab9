// Any bytes as a file that grows, and as the journal beside it: what recover() accepts is an array
// that can be appended to, and nothing else is touched.
#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "archive/append_repair.h"
#include "archive/appender.h"
#include "archive/move_journal.h"
#include "base/checksum.h"
#include "base/error.h"

namespace torchnpy {
namespace {

constexpr size_t kMaxFileNbytes = 1 << 16;

void require(bool condition) {
  if (!condition) std::abort();
}

struct Disk {
  std::string file;
  std::optional<std::string> journal;
};

class MemoryFile : public GrowingFile {
 public:
  explicit MemoryFile(Disk& disk) : disk_(disk) {}
  ssize_t read(MutableBytes room, uint64_t offset) override {
    if (offset >= disk_.file.size()) return 0;
    const size_t nbytes = std::min(room.size(), disk_.file.size() - offset);
    std::memcpy(room.data(), disk_.file.data() + offset, nbytes);
    return static_cast<ssize_t>(nbytes);
  }
  int64_t nbytes() override { return static_cast<int64_t>(disk_.file.size()); }
  ssize_t write(ByteView bytes, uint64_t offset) override {
    if (bytes.size() > kMaxFileNbytes || offset > kMaxFileNbytes) return errno = ENOSPC, -1;
    if (offset + bytes.size() > disk_.file.size()) disk_.file.resize(offset + bytes.size());
    disk_.file.replace(offset, bytes.size(), as_text(bytes));
    return static_cast<ssize_t>(bytes.size());
  }
  int overwrite(ByteView bytes, uint64_t offset) override {
    require(offset + bytes.size() <= disk_.file.size());
    return write(bytes, offset) < 0 ? -1 : 0;
  }
  int store(const CountSlot& slot, uint64_t offset, const CountSlot& before) override {
    require(offset % kCountSlotNbytes == 0 && offset + slot.size() <= disk_.file.size());
    require(disk_.file.compare(offset, before.size(), as_text(before)) == 0);
    return overwrite(slot, offset);
  }
  int truncate(uint64_t nbytes) override {
    if (nbytes > kMaxFileNbytes) return errno = EFBIG, -1;
    disk_.file.resize(nbytes);
    return 0;
  }
  int sync() override { return 0; }
  std::optional<std::string> read_journal() override { return disk_.journal; }
  void put_journal(ByteView bytes) override { disk_.journal = as_text(bytes); }
  void drop_journal() override { disk_.journal.reset(); }
  const std::string& real_path() const override { return name_; }

 private:
  Disk& disk_;
  const std::string name_ = "x.npy";
};

OpenGrowingFile open_in(Disk& disk) {
  return [&disk](const std::string&, FileAccess) { return std::make_unique<MemoryFile>(disk); };
}

void check_journal(ByteView bytes) {
  try {
    const MoveJournal journal = parse_move_journal(bytes);
    require(format_move_journal(journal) == as_text(bytes));
  } catch (const FormatError&) {
  }
}

// Appends a row of what the array has.
void check_appends(Disk& disk) {
  AppenderOptions options;
  options.open = open_in(disk);
  try {
    Appender appender("x.npy", options);
    const AppendLayout& layout = *appender.layout();
    if (layout.nbytes > kMaxFileNbytes) return;
    const std::string row(layout.nbytes, '\1');
    appender.append_rows(as_bytes(row), 1);
    const NpyHeader header = parse_npy_header(as_bytes(disk.file));
    require(header.shape == appender.shape());
    require(header.data_offset + header.nbytes == disk.file.size());
    appender.close();
  } catch (const Error&) {  // objects, no axis, as many rows as there can be, a full disk
  }
}

void check_recovery(Disk disk, bool zerofill_incomplete, bool inplace) {
  RepairOptions options;
  options.open = open_in(disk);
  options.move_nbytes = 100;
  try {
    if (inplace) ensure_appendable("x.npy", true, options);
    recover("x.npy", zerofill_incomplete, options);
  } catch (const Error&) {
    return;
  }
  require(!disk.journal);
  MemoryFile file(disk);
  require(!needs_recovery(read_head(file)));
  check_appends(disk);
}

void check(ByteView bytes) {
  if (bytes.size() < 3) return;
  const bool zerofill_incomplete = (bytes[0] & 1) != 0;
  const bool inplace = (bytes[0] & 2) != 0;
  const bool has_journal = (bytes[0] & 4) != 0;
  const size_t journal_nbytes = std::min<size_t>(bytes[1] | bytes[2] << 8, bytes.size() - 3);
  std::string journal(as_text(bytes.subspan(3, journal_nbytes)));
  const std::string file(as_text(bytes.subspan(3 + journal_nbytes)));
  if (file.size() > kMaxFileNbytes / 2) return;
  check_journal(as_bytes(journal));
  if (journal.size() >=
      12) {  // the same with a checksum that is right, which mutations do not find
    const uint32_t crc = crc32(as_bytes(journal).subspan(12));
    std::memcpy(journal.data() + 8, &crc, sizeof(crc));
    check_journal(as_bytes(journal));
  }
  Disk disk{file, std::nullopt};
  if (has_journal) disk.journal = journal;
  check_recovery(std::move(disk), zerofill_incomplete, inplace);
}

}  // namespace
}  // namespace torchnpy

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  torchnpy::check({data, size});
  return 0;
}
