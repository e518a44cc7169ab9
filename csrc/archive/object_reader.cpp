#include "archive/object_reader.h"

#include <algorithm>
#include <vector>

#include "archive/loader.h"
#include "archive/parts.h"
#include "base/error.h"

namespace torchnpy {
namespace {

class PieceLoader final : public Loader, Sink {
 public:
  PieceLoader(std::shared_ptr<Source> source, uint64_t offset, MutableBytes room)
      : source_(std::move(source)),
        destination_{offset, offset + room.size(), {room, nullptr}},
        filled_end_(offset) {}

  Source& source() override { return *source_; }

  std::vector<Read> next() override {
    if (is_planned_ || destination_.begin == destination_.end) {
      parts_.check();
      return {};
    }
    const std::optional<uint64_t> object_nbytes = source_->nbytes();
    if (!object_nbytes && !has_read_) {
      has_read_ = true;
      const uint64_t wanted = destination_.end - destination_.begin;
      const uint64_t part_nbytes = source_->read_sizes(wanted).part_nbytes;
      return {
          {Range{destination_.begin, std::min(wanted, std::max<uint64_t>(part_nbytes, 1))}, this}};
    }
    if (!object_nbytes) {
      throw UnsupportedError(
          "expected an answer that gives the object's size but found none; the server sends it "
          "in chunks of unknown total");
    }
    is_planned_ = true;
    destination_.end = std::clamp(*object_nbytes, destination_.begin, destination_.end);
    return parts_.plan(destination_, filled_end_, destination_.end, *source_);
  }

  // What was read before is of this version.
  bool restart() override { return false; }

  uint64_t nbytes() const { return destination_.end - destination_.begin; }

 private:
  MutableBytes room(uint64_t offset, size_t want) override {
    return destination_.room(offset, want);
  }
  void filled(uint64_t offset, size_t nbytes) override { filled_end_ = offset + nbytes; }
  void done(std::exception_ptr) override {}

  const std::shared_ptr<Source> source_;
  Destination destination_;
  uint64_t filled_end_;
  bool has_read_ = false;
  bool is_planned_ = false;
  Parts parts_;
};

}  // namespace

uint64_t ObjectReader::read(uint64_t offset, MutableBytes room) {
  if (room.size() > Range::kToEnd - offset) throw ArgumentError("offset: expected less");
  PieceLoader loader(source_, offset, room);
  load_one(loader);
  return loader.nbytes();
}

}  // namespace torchnpy
