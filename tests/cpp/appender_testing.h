// Arrays, files and a file layer with faults, for the tests of files that grow.
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "archive/appender.h"
#include "format/npy.h"

namespace torchnpy::testing {

// `count` rows of `row` uint16, counting up from `first`: each value says where it belongs.
inline ArrayView make_rows(uint64_t first, uint64_t count, uint64_t row = 3) {
  auto values = std::make_shared<std::vector<uint16_t>>();
  for (uint64_t i = 0; i < count * row; ++i) {
    values->push_back(static_cast<uint16_t>(first * row + i));
  }
  ArrayView array;
  array.descr = "'<u2'";
  array.itemsize = 2;
  array.shape = {count, row};
  array.strides = {static_cast<int64_t>(2 * row), 2};
  array.data = reinterpret_cast<const uint8_t*>(values->data());
  array.owner = values;
  return array;
}

inline ByteView bytes_of(const ArrayView& array) {
  uint64_t nbytes = array.itemsize;
  for (const uint64_t count : array.shape) nbytes *= count;
  return {array.data, nbytes};
}

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

struct Content {
  NpyHeader header;
  std::string data;  // of as many rows as the header says
};

// What a reader finds; throws FormatError when that is no whole array.
inline Content load_file(const std::string& path) {
  const std::string bytes = read_file(path);
  Content content{parse_npy_header(as_bytes(bytes)), {}};
  check_npy_data(content.header, bytes.size() - content.header.data_offset);
  content.data = bytes.substr(content.header.data_offset, content.header.nbytes);
  return content;
}

inline std::string expected_data(uint64_t count, uint64_t row = 3) {
  return std::string(as_text(bytes_of(make_rows(0, count, row))));
}

// What goes wrong at one step of those that change a file.
enum class Fault {
  kFail,         // it fails, and nothing of it happens
  kCut,          // half of it is written, and it fails
  kCrashBefore,  // the process ends before it
  kCrashAmid,    // the process ends when half of it is written
  kCrashAfter,
};
inline constexpr Fault kFaults[] = {Fault::kFail, Fault::kCut, Fault::kCrashBefore,
                                    Fault::kCrashAmid, Fault::kCrashAfter};

// A folder where a sync takes no time, if the machine has one; else `fallback`.
class FastFolder {
 public:
  explicit FastFolder(const std::filesystem::path& fallback) : path_(fallback) {
    std::string name = "/dev/shm/torchnpy-XXXXXX";
    if (mkdtemp(name.data()) != nullptr) path_ = made_ = name;
  }
  ~FastFolder() {
    if (!made_.empty()) std::filesystem::remove_all(made_);
  }
  FastFolder(const FastFolder&) = delete;
  FastFolder& operator=(const FastFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  std::filesystem::path made_;
};

struct FaultPlan {
  Fault fault = Fault::kFail;
  int at_step = -1;  // counted from 0
  int steps = 0;     // that were made
  bool is_dead = false;
  bool was_reached() const { return at_step >= 0 && steps > at_step; }
};

class FaultyFile : public GrowingFile {
 public:
  FaultyFile(std::unique_ptr<GrowingFile> file, std::shared_ptr<FaultPlan> plan)
      : file_(std::move(file)), plan_(std::move(plan)) {}

  ssize_t read(MutableBytes room, uint64_t offset) override { return file_->read(room, offset); }
  int64_t nbytes() override { return file_->nbytes(); }
  const std::string& real_path() const override { return file_->real_path(); }
  std::optional<std::string> read_journal() override { return file_->read_journal(); }

  ssize_t write(ByteView bytes, uint64_t offset) override {
    const ssize_t all = static_cast<ssize_t>(bytes.size());
    const auto half = [&] {
      return bytes.size() < 2 ? 0 : file_->write(bytes.first(bytes.size() / 2), offset);
    };
    if (is_cut_) return is_cut_ = false, errno = ENOSPC, -1;
    if (is_now(Fault::kCut)) {
      const ssize_t written = half();
      is_cut_ = written > 0;
      if (!is_cut_) errno = ENOSPC;
      return is_cut_ ? written : -1;
    }
    return step([&] { return file_->write(bytes, offset) == all ? all : -1; }, half);
  }
  int overwrite(ByteView bytes, uint64_t offset) override {
    return step([&] { return file_->overwrite(bytes, offset); });
  }
  int store(const CountSlot& slot, uint64_t offset, const CountSlot& before) override {
    return step([&] { return file_->store(slot, offset, before); });
  }
  int truncate(uint64_t nbytes) override {
    return step([&] { return file_->truncate(nbytes); });
  }
  int sync() override {
    return step([&] { return file_->sync(); });
  }
  void put_journal(ByteView bytes) override {
    if (step([&] { return file_->put_journal(bytes), 0; }) != 0) fail();
  }
  void drop_journal() override {
    if (step([&] { return file_->drop_journal(), 0; }) != 0) fail();
  }

 private:
  bool is_now(Fault fault) const {
    return !plan_->is_dead && plan_->fault == fault && plan_->steps == plan_->at_step;
  }
  template <typename Step>
  auto step(Step run) -> decltype(run()) {
    return step(run, [] { return 0; });
  }
  // A dead process does nothing more.
  template <typename Step, typename Half>
  auto step(Step run, Half half) -> decltype(run()) {
    if (plan_->is_dead) return errno = EIO, -1;
    if (plan_->steps++ != plan_->at_step) return run();
    switch (plan_->fault) {
      case Fault::kFail:
      case Fault::kCut: return errno = ENOSPC, -1;
      case Fault::kCrashBefore: break;
      case Fault::kCrashAmid: half(); break;
      case Fault::kCrashAfter: run(); break;
    }
    plan_->is_dead = true;
    return errno = EIO, -1;
  }
  [[noreturn]] void fail() const { throw_system_error(real_path(), "write the journal", errno); }

  const std::unique_ptr<GrowingFile> file_;
  const std::shared_ptr<FaultPlan> plan_;
  bool is_cut_ = false;
};

inline OpenGrowingFile open_with(const std::shared_ptr<FaultPlan>& plan) {
  return [plan](const std::string& path, FileAccess access) -> std::unique_ptr<GrowingFile> {
    return std::make_unique<FaultyFile>(open_growing_file(path, access), plan);
  };
}

}  // namespace torchnpy::testing
