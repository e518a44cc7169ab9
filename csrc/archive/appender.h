// A .npy that grows. Data first, header last: a process that is killed at any moment leaves a file
// that holds a whole number of rows, and a reader never sees anything else. docs/append.md has the
// layout and the states that a crash can leave.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "archive/append_repair.h"
#include "archive/array_view.h"
#include "archive/growing_file.h"
#include "format/npy.h"

namespace torchnpy {

struct AppenderOptions {
  enum class Sync {
    kNever,   // the kernel writes when it likes: a killed process loses nothing, a power cut may
    kHeader,  // rows are on the disk before the header counts them
    kAlways,  // rows and header are on the disk when append() returns
  };
  Sync sync = Sync::kNever;
  // Appends after which the header counts the new rows; 0: only update_header() and close() do.
  // Rows that it does not count when the process is killed are for recover() to find.
  uint64_t header_every = 1;
  bool delete_if_exists = false;
  OpenGrowingFile open = open_growing_file;
};

// What rows must be to be appended as they lie in memory.
struct AppendLayout {
  Dtype dtype;
  bool fortran_order = false;
  std::vector<uint64_t> shape;  // without the axis that grows
  uint64_t nbytes = 0;          // of one row
};

// Any number of threads may call it at once; rows of one call stay together. Every call but the
// constructor throws LockError in a forked child, whose parent has the file. Calls wait for each
// other and for the disk, and can be interrupted (base/wait.h); ArgumentError for one that an
// interrupt check makes inside another. All throw the errors of base/error.h with the file's name.
class Appender {
 public:
  // Opens and locks the file, if there is one. A header of numpy's is written anew, once, as one
  // whose count is replaced by one store. Throws LockError when another writer has the file,
  // UnsupportedError for objects, ArgumentError for a file that needs ensure_appendable() or
  // recover(), or that has no axis.
  Appender(std::string path, AppenderOptions options);
  // Closes. What fails then is a warning in the log.
  ~Appender();
  Appender(const Appender&) = delete;
  Appender& operator=(const Appender&) = delete;

  const std::string& path() const { return path_; }
  // Null before the first append to a file that is not there; the same from then on.
  const AppendLayout* layout() const { return layout_.load(std::memory_order_acquire); }
  // Of the file with the rows that were appended; layout() must not be null.
  std::vector<uint64_t> shape() const;
  // As the file names it.
  const std::string& descr() const { return header_.descr; }

  // Appends the arrays one after the other, all or none; the first fixes the dtype, the order and
  // the other axes of a new file. False, and nothing is done, when one has another dtype than the
  // file. Throws ArgumentError for one that has no axis or differs in another axis, TransportError
  // when not all could be written: the file keeps the rows that it had, and the object can go on.
  bool append(std::span<const ArrayView> arrays);
  // `count` rows that are as layout(), which must not be null, says.
  void append_rows(ByteView rows, uint64_t count);
  // Makes the header count all rows.
  void update_header();
  // The same, and gives the file up. Once is enough.
  void close();

 private:
  class Busy;
  class Append;

  void check_process() const;
  void check_open() const;
  void remove();
  void open();
  void cut_tail(GrowingFile& file, const FileHead& head,
                const std::optional<FoundSlot>& slot) const;
  FoundSlot adopt(GrowingFile& file, const FileHead& head) const;
  void begin(std::unique_ptr<GrowingFile> file, const FileHead& head, const FoundSlot& slot);
  void create(const ArrayView& array);
  bool has_dtype(const ArrayView& array);
  uint64_t count_rows(const ArrayView& array) const;
  template <typename Add>
  void write_rows(uint64_t count, Add add);
  void store_rows(GrowingCount count);
  void check_length() const;
  bool try_store(GrowingCount count);
  void store_count(GrowingCount count);
  uint64_t data_end() const;

  const std::string path_;
  const AppenderOptions options_;
  const uint64_t forks_;

  std::mutex mutex_;  // of these alone: threads wait for the disk without it
  std::condition_variable freed_;
  bool busy_ = false;
  std::thread::id worker_;  // who is busy, or was last

  // While busy:
  std::unique_ptr<GrowingFile> file_;
  bool is_closed_ = false;
  NpyHeader header_;         // as it was when the file was opened; does not change any more
  std::string known_descr_;  // of arrays that were found to have the file's dtype
  uint64_t slot_offset_ = 0;
  GrowingCount stored_;            // what the slot says
  uint64_t appends_ = 0;           // since the slot was stored
  bool has_tail_ = false;          // bytes behind the rows that could not be cut off
  std::atomic<uint64_t> rows_{0};  // in the file
  AppendLayout known_layout_;
  std::atomic<const AppendLayout*> layout_{nullptr};
};

}  // namespace torchnpy
