#include "archive/appender.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <limits>
#include <thread>
#include <utility>

#include "archive/append_repair.h"
#include "archive/array_bytes.h"
#include "base/error.h"
#include "base/fork.h"
#include "base/log.h"
#include "base/wait.h"
#include "transport/file_target.h"

namespace torchnpy {
namespace {

// Of one system call, so that a write can be interrupted.
constexpr size_t kMaxWriteNbytes = 8 << 20;
// Smaller rows are collected before they are written.
constexpr size_t kCollectedNbytes = 256 << 10;
// What is gathered from an array that does not lie together at once.
constexpr size_t kGatheredNbytes = 4 << 20;
constexpr auto kBetweenChecks = std::chrono::milliseconds(50);

// Whether the elements are the same bytes with the same meaning, names of fields included.
bool is_same(const Dtype& a, const Dtype& b) {
  if (a.type != b.type || a.itemsize != b.itemsize || a.unit != b.unit) return false;
  if (a.big_endian != b.big_endian && a.itemsize > 1) return false;
  return std::ranges::equal(a.fields, b.fields, [](const Field& x, const Field& y) {
    return x.name == y.name && x.offset == y.offset && x.shape == y.shape &&
           is_same(x.dtype, y.dtype);
  });
}

// The header that numpy gives an empty array of that dtype, order and row.
NpyHeader make_header(const ArrayView& array, bool fortran_order) {
  std::vector<uint64_t> shape = array.shape;
  if (!shape.empty()) shape[fortran_order ? shape.size() - 1 : 0] = 0;
  return parse_npy_header(as_bytes(format_npy_header(array.descr, fortran_order, shape)));
}

void check_has_axis(const std::vector<uint64_t>& shape) {
  if (!shape.empty()) return;
  throw ArgumentError(
      "expected an array with an axis that grows but found shape (); append it with shape (1,)");
}

void check_appendable(const NpyHeader& header) {
  if (header.dtype.type == ScalarType::kObject) {
    throw UnsupportedError(
        "expected numbers but found objects, which are pickles; save them with a plain dtype");
  }
  check_has_axis(header.shape);
}

}  // namespace

// The one thread that works on the file.
class Appender::Busy {
 public:
  explicit Busy(Appender& appender) : appender_(appender) {
    std::unique_lock lock(appender_.mutex_);
    if (appender_.busy_) {
      check_is_other();
      lock.unlock();
      WaitScope scope;  // does not return where the process ends, and must not keep the mutex then
      lock.lock();
      if (!scope.wait(lock, appender_.freed_, [&] { return !appender_.busy_; })) {
        throw InterruptedError(appender_.path_ + ": interrupted while another thread appended");
      }
    }
    appender_.busy_ = true;
    appender_.worker_ = std::this_thread::get_id();
  }
  ~Busy() {
    {
      const std::lock_guard lock(appender_.mutex_);
      appender_.busy_ = false;
    }
    appender_.freed_.notify_one();
  }
  Busy(const Busy&) = delete;
  Busy& operator=(const Busy&) = delete;

 private:
  // Or it would wait for itself.
  void check_is_other() const {
    if (appender_.worker_ != std::this_thread::get_id()) return;
    throw ArgumentError(
        appender_.path_ +
        ": expected a call after append() has returned but found one by a signal handler inside "
        "it; raise an exception there, or set a flag");
  }

  Appender& appender_;
};

// Bytes on their way behind the rows. What is there when it dies without finish() is cut off.
class Appender::Append {
 public:
  Append(Appender& appender, uint64_t nbytes)
      : appender_(appender), begin_(appender.data_end()), wanted_nbytes_(nbytes) {
    if (wanted_nbytes_ <= kMaxWriteNbytes) return;
    scope_.emplace();
    checked_ = std::chrono::steady_clock::now();
  }
  ~Append() {
    if (is_finished_ || (written_nbytes_ == 0 && !is_cut_)) return;
    appender_.has_tail_ = appender_.file_->truncate(begin_) != 0;
  }
  Append(const Append&) = delete;
  Append& operator=(const Append&) = delete;

  void add(ByteView bytes) {
    if (bytes.size() < kCollectedNbytes && written_nbytes_ + bytes.size() < wanted_nbytes_) {
      collect(bytes);
      return;
    }
    flush();
    write(bytes);
  }
  void add(const ArrayView& array, bool fortran_order) {
    const ArrayBytes bytes(array, fortran_order);
    if (bytes.nbytes() == 0) return;
    if (const auto whole = bytes.whole()) {
      add(whole->bytes);
      return;
    }
    std::vector<uint8_t> gathered(std::min<uint64_t>(bytes.nbytes(), kGatheredNbytes));
    for (uint64_t offset = 0; offset < bytes.nbytes(); offset += gathered.size()) {
      gathered.resize(std::min<uint64_t>(gathered.size(), bytes.nbytes() - offset));
      bytes.copy(offset, gathered);
      add(gathered);
    }
  }
  void flush() {
    write(collected_);
    collected_.clear();
  }
  void finish() { is_finished_ = true; }

  [[noreturn]] void fail(std::string_view verb, int error) const {
    throw TransportError(
        fmt::format("{}: expected to {} {} bytes at byte {} but {} were written: {}; the file "
                    "keeps its {} rows",
                    appender_.path_, verb, wanted_nbytes_, begin_, written_nbytes_,
                    std::strerror(error), appender_.rows_.load()));
  }

 private:
  void collect(ByteView bytes) {
    collected_.insert(collected_.end(), bytes.begin(), bytes.end());
    if (collected_.size() >= kCollectedNbytes) flush();
  }
  void write(ByteView bytes) {
    while (!bytes.empty()) {
      check_interrupt();
      const ssize_t nbytes = appender_.file_->write(
          bytes.first(std::min(bytes.size(), kMaxWriteNbytes)), begin_ + written_nbytes_);
      if (nbytes < 0) {
        is_cut_ = true;
        fail("append", errno);
      }
      written_nbytes_ += static_cast<uint64_t>(nbytes);
      bytes = bytes.subspan(static_cast<size_t>(nbytes));
    }
  }
  void check_interrupt() {
    if (!scope_) return;
    const auto now = std::chrono::steady_clock::now();
    if (now - checked_ < kBetweenChecks) return;
    checked_ = now;
    if (WaitScope::must_stop()) {
      throw InterruptedError(appender_.path_ + ": interrupted while rows were appended");
    }
  }

  Appender& appender_;
  const uint64_t begin_;  // in the file
  const uint64_t wanted_nbytes_;
  uint64_t written_nbytes_ = 0;
  bool is_cut_ = false;
  bool is_finished_ = false;
  std::vector<uint8_t> collected_;
  std::optional<WaitScope> scope_;
  std::chrono::steady_clock::time_point checked_;
};

Appender::Appender(std::string path, AppenderOptions options)
    : path_(std::move(path)), options_(std::move(options)), forks_(fork_count()) {
  try {
    if (options_.delete_if_exists) {
      remove();
    } else {
      open();
    }
  } catch (const TransportError& error) {
    if (error.kind() != TransportError::Kind::kNotFound) throw;
    return;  // the first append makes it
  }
}

Appender::~Appender() {
  try {
    close();
  } catch (const std::exception& error) {
    log_warning(error.what());
  }
}

std::vector<uint64_t> Appender::shape() const {
  std::vector<uint64_t> shape = header_.shape;
  shape[growing_axis(header_)] = rows_.load(std::memory_order_relaxed);
  return shape;
}

bool Appender::append(std::span<const ArrayView> arrays) {
  check_process();
  const Busy busy(*this);
  return with_file_name(path_, [&] {
    check_open();
    if (arrays.empty()) return true;
    if (file_ == nullptr) create(arrays.front());
    if (!std::ranges::all_of(arrays, [&](const ArrayView& array) { return has_dtype(array); })) {
      return false;
    }
    uint64_t count = 0;
    for (const ArrayView& array : arrays) {
      if (!checked_add(count, count_rows(array), &count)) count = UINT64_MAX;
    }
    write_rows(count, [&](Append& append) {
      for (const ArrayView& array : arrays) append.add(array, header_.fortran_order);
    });
    return true;
  });
}

void Appender::append_rows(ByteView rows, uint64_t count) {
  check_process();
  const Busy busy(*this);
  with_file_name(path_, [&] {
    check_open();
    write_rows(count, [&](Append& append) { append.add(rows); });
  });
}

void Appender::update_header() {
  check_process();
  const Busy busy(*this);
  with_file_name(path_, [&] { check_open(); });
  if (file_ != nullptr) store_rows({rows_, options_.header_every != 1});
}

void Appender::close() {
  if (forks_ != fork_count()) return;  // the parent goes on, and its lock may be held for ever here
  const Busy busy(*this);
  if (std::exchange(is_closed_, true) || file_ == nullptr) return;
  try {
    store_rows({rows_, false});
  } catch (...) {
    file_.reset();
    throw;
  }
  file_.reset();
}

void Appender::check_process() const {
  if (forks_ == fork_count()) return;
  throw LockError(path_ +
                  ": expected the process that opened the file but found a child that it forked; "
                  "append in one process");
}

void Appender::check_open() const {
  if (is_closed_) {
    throw ArgumentError("expected an open file but found a closed one; open it again");
  }
}

void Appender::remove() {
  const std::unique_ptr<GrowingFile> file = options_.open(path_, FileAccess::kAppend);
  if (file->read_journal()) file->drop_journal();
  if (::unlink(path_.c_str()) != 0) throw_system_error(path_, "remove", errno);
}

void Appender::open() {
  std::unique_ptr<GrowingFile> file = options_.open(path_, FileAccess::kAppend);
  with_file_name(path_, [&] {
    if (file->read_journal()) {
      throw ArgumentError(
          "expected a whole file but found a change of its header that was cut short; call "
          "recover() first");
    }
    FileHead head = read_head(*file);
    check_appendable(head.header);
    auto slot = find_count_slot(head.header, as_bytes(head.bytes));
    if (!slot && !has_growth_room(head.header)) {
      throw ArgumentError(
          "expected a header with room for its count but found none; call ensure_appendable() "
          "first");
    }
    if (needs_recovery(head)) cut_tail(*file, head, slot);
    if (!slot) slot = adopt(*file, head);
    begin(std::move(file), head, *slot);
  });
}

// What an append that did not return has left, which the header does not count.
void Appender::cut_tail(GrowingFile& file, const FileHead& head,
                        const std::optional<FoundSlot>& slot) const {
  const NpyHeader& header = head.header;
  if (!slot || slot->count.has_more || head.data_nbytes() < header.nbytes) {
    throw ArgumentError(fmt::format(
        "expected {} bytes of data ({}, shape {}) but found {}; call recover() first",
        header.nbytes, format_dtype(header.dtype), format_shape(header.shape), head.data_nbytes()));
  }
  if (file.truncate(header.data_offset + header.nbytes) != 0) {
    throw_system_error(path_, "truncate", errno);
  }
}

// Gives the file a header of our form.
FoundSlot Appender::adopt(GrowingFile& file, const FileHead& head) const {
  const GrowingHeader growing = *format_growing_header(head.header, head.header.data_offset);
  rewrite_header(file, head.bytes, growing);
  if (options_.sync != AppenderOptions::Sync::kNever && file.sync() != 0) {
    throw_system_error(path_, "sync", errno);
  }
  return {growing.slot_offset, {head.header.shape[growing_axis(head.header)], false}};
}

void Appender::begin(std::unique_ptr<GrowingFile> file, const FileHead& head,
                     const FoundSlot& slot) {
  file_ = std::move(file);
  header_ = head.header;
  slot_offset_ = slot.offset;
  stored_ = slot.count;
  rows_ = slot.count.rows;
  known_layout_ = {header_.dtype, header_.fortran_order, header_.shape, row_nbytes(header_)};
  known_layout_.shape.erase(known_layout_.shape.begin() +
                            static_cast<std::ptrdiff_t>(growing_axis(header_)));
  layout_.store(&known_layout_, std::memory_order_release);
  // Else what a killed append left behind would count as rows.
  if (stored_.has_more) store_rows({rows_, false});
}

void Appender::create(const ArrayView& array) {
  check_has_axis(array.shape);
  const NpyHeader header = make_header(array, ArrayBytes(array).fortran_order());
  check_appendable(header);
  const auto growing = format_growing_header(header, growing_header_nbytes(header));
  if (!growing) {
    throw UnsupportedError(
        fmt::format("expected a plain dtype but found {}; save the array whole", header.descr));
  }
  try {
    TargetOptions target_options;
    target_options.if_none_match = true;
    target_options.sync = options_.sync != AppenderOptions::Sync::kNever;
    const std::unique_ptr<Target> target = create_file(path_, target_options);
    target->write({as_bytes(growing->bytes), nullptr});
    target->finish();
  } catch (const TransportError& error) {
    if (error.kind() != TransportError::Kind::kExists) throw;  // another was faster
  }
  open();
}

bool Appender::has_dtype(const ArrayView& array) {
  if (array.descr == known_descr_) return true;
  ArrayView any = array;
  any.shape = {0};
  if (!is_same(make_header(any, false).dtype, header_.dtype)) return false;
  known_descr_ = array.descr;
  return true;
}

uint64_t Appender::count_rows(const ArrayView& array) const {
  check_has_axis(array.shape);
  const size_t axis = growing_axis(header_);
  bool fits = array.shape.size() == header_.shape.size();
  for (size_t i = 0; fits && i < array.shape.size(); ++i) {
    fits = i == axis || array.shape[i] == header_.shape[i];
  }
  if (fits) return array.shape[axis];
  throw ArgumentError(fmt::format(
      "expected an array of shape {}, of which only the {} axis may differ, but found {}",
      format_shape(shape()), header_.fortran_order ? "last" : "first", format_shape(array.shape)));
}

template <typename Add>
void Appender::write_rows(uint64_t count, Add add) {
  constexpr uint64_t kMaxFileNbytes = std::numeric_limits<int64_t>::max();
  const uint64_t row = known_layout_.nbytes;
  uint64_t nbytes = 0;
  if (count > kMaxGrowingCount - rows_ || !checked_multiply(count, row, &nbytes) ||
      nbytes > kMaxFileNbytes - data_end()) {
    throw ArgumentError(fmt::format(
        "expected at most {} rows and {} bytes but found {} rows of {} bytes more than {}",
        kMaxGrowingCount, kMaxFileNbytes, count, row, rows_.load()));
  }
  if (count == 0) return;
  if (has_tail_ && file_->truncate(data_end()) != 0) throw_system_error(path_, "truncate", errno);
  has_tail_ = false;
  const bool is_deferred = options_.header_every != 1;
  if (is_deferred && !stored_.has_more) store_rows({stored_.rows, true});
  const bool is_due = options_.header_every != 0 && appends_ + 1 >= options_.header_every;

  Append append(*this, nbytes);
  add(append);
  append.flush();
  using Sync = AppenderOptions::Sync;
  if (options_.sync == Sync::kAlways || (options_.sync == Sync::kHeader && is_due)) {
    if (file_->sync() != 0) append.fail("sync", errno);
  }
  if (is_due) {
    if (nbytes == 0) check_length();
    const GrowingCount before = stored_;
    store_count({rows_ + count, is_deferred});
    if (options_.sync == Sync::kAlways && file_->sync() != 0) {
      const int error = errno;
      if (!try_store(before)) append.finish();  // the header counts them
      append.fail("sync", error);
    }
  }
  append.finish();
  rows_ += count;
  appends_ = is_due ? 0 : appends_ + 1;
}

// With rows that were written before.
void Appender::store_rows(GrowingCount count) {
  if (count.rows == stored_.rows && count.has_more == stored_.has_more) return;
  check_length();
  const bool must_sync = options_.sync != AppenderOptions::Sync::kNever;
  if (must_sync && count.rows != stored_.rows && file_->sync() != 0) {
    throw_system_error(path_, "sync", errno);
  }
  store_count(count);
  if (count.rows == rows_) appends_ = 0;
  if (options_.sync == AppenderOptions::Sync::kAlways && file_->sync() != 0) {
    throw_system_error(path_, "sync", errno);
  }
}

// The store into a file that became shorter would kill the process.
void Appender::check_length() const {
  const int64_t nbytes = file_->nbytes();
  if (nbytes < 0) throw_system_error(path_, "stat", errno);
  if (static_cast<uint64_t>(nbytes) >= data_end()) return;
  throw TransportError(fmt::format(
      "{}: expected the {} bytes that were written but found {}; another program made the file "
      "shorter",
      path_, data_end(), nbytes));
}

bool Appender::try_store(GrowingCount count) {
  if (file_->store(format_count(count), slot_offset_, format_count(stored_)) != 0) return false;
  stored_ = count;
  return true;
}

void Appender::store_count(GrowingCount count) {
  if (try_store(count)) return;
  if (errno != ESTALE) throw_system_error(path_, "write the header", errno);
  throw TransportError(fmt::format(
      "{}: expected the count {} at byte {} but found another; another program wrote to the file",
      path_, stored_.rows, slot_offset_));
}

uint64_t Appender::data_end() const { return header_.data_offset + rows_ * known_layout_.nbytes; }

}  // namespace torchnpy
