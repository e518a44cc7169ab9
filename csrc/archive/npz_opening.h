// How an archive is opened: the object's end -> the end record -> the directory; for npz.cpp.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "archive/npz.h"
#include "archive/parts.h"

namespace torchnpy {

class Opening {
 public:
  Opening(std::shared_ptr<Source> source, const ZipLimits& limits)
      : source_(std::move(source)), limits_(limits) {}

  // As Loader::next().
  std::vector<Read> next();
  // When done; once.
  std::shared_ptr<const NpzArchive> take();

 private:
  // The first read: the object's last bytes, or all of it from a server that knows no ranges.
  class TailSink;
  enum class Stage { kStart, kTail, kMore };

  bool take_view();
  std::vector<Read> locate();
  std::vector<Read> read_from(uint64_t offset);
  void parse_directory();

  const std::shared_ptr<Source> source_;
  const ZipLimits limits_;
  Stage stage_ = Stage::kStart;
  std::shared_ptr<TailSink> tail_sink_;
  NpzArchive::Tail tail_;
  uint64_t object_nbytes_ = 0;
  // What lies before the tail that is here, when it does not hold all of the directory.
  Destination more_;
  Parts parts_;
  std::optional<ZipEnd> end_;
  std::vector<ZipMember> members_;
};

}  // namespace torchnpy
