#include "archive/npz_opening.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace torchnpy {
namespace {

// The directory of a few hundred members, and all of a small archive.
constexpr uint64_t kTailNbytes = kMinZipTailNbytes;
// What a server without ranges sends is kept, for it would send it again for each member; but
// not without limit.
constexpr uint64_t kMaxKeptNbytes = 64 << 20;

}  // namespace

class Opening::TailSink final : public Sink {
 public:
  explicit TailSink(const Source& source) : source_(source) {}

  MutableBytes room(uint64_t offset, size_t want) override {
    if (offset == 0 && content_.empty()) {
      const uint64_t nbytes = source_.nbytes().value_or(0);
      begin_ = nbytes > kMaxKeptNbytes ? nbytes - kTailNbytes : 0;
    } else if (content_.empty() && offset > begin_) {
      begin_ = offset;
    }
    if (offset < begin_) {
      unwanted_.resize(std::min<uint64_t>(want, begin_ - offset));
      return unwanted_;
    }
    if (!source_.nbytes() && filled_nbytes_ + want > kMaxKeptNbytes) {
      throw UnsupportedError(fmt::format(
          "expected an answer that gives the object's size but found none in its first {} bytes; "
          "the server sends it in chunks of unknown total",
          filled_nbytes_));
    }
    content_.resize(filled_nbytes_ + want);
    return MutableBytes(content_).subspan(filled_nbytes_);
  }

  void filled(uint64_t offset, size_t nbytes) override {
    if (offset >= begin_) filled_nbytes_ += nbytes;
  }

  bool restart() override {
    content_.clear();
    filled_nbytes_ = 0;
    begin_ = 0;
    return true;
  }

  bool prefers_view() const override { return true; }
  void done(std::exception_ptr) override {}

  uint64_t begin() const { return begin_; }
  MutableBytes content() { return MutableBytes(content_).first(filled_nbytes_); }

 private:
  const Source& source_;
  uint64_t begin_ = 0;  // of content_ in the object
  std::vector<uint8_t> content_;
  size_t filled_nbytes_ = 0;
  std::vector<uint8_t> unwanted_;
};

std::vector<Read> Opening::next() {
  switch (stage_) {
    case Stage::kStart:
      if (take_view()) return locate();
      stage_ = Stage::kTail;
      tail_sink_ = std::make_shared<TailSink>(*source_);
      return {{Range{0, kTailNbytes, true}, tail_sink_.get()}};
    case Stage::kTail:
      if (tail_sink_->content().empty() && take_view()) return locate();
      tail_ = {tail_sink_->begin(), {tail_sink_->content(), tail_sink_}, false};
      object_nbytes_ = tail_.offset + tail_.content.bytes.size();
      if (const std::optional<uint64_t> nbytes = source_->nbytes(); nbytes > object_nbytes_) {
        throw FormatError("expected the end of the object but found less of it");
      }
      return locate();
    case Stage::kMore:
      parts_.check();
      tail_ = {more_.begin, std::move(more_.memory), false};
      return locate();
  }
  return {};
}

bool Opening::take_view() {
  const std::optional<uint64_t> nbytes = source_->nbytes();
  std::optional<OwnedBytes> all = nbytes ? source_->view(0, *nbytes) : std::nullopt;
  if (!all) return false;
  tail_ = {0, std::move(*all), true};
  object_nbytes_ = *nbytes;
  return true;
}

std::vector<Read> Opening::locate() {
  if (!end_) {
    const auto found = find_zip_end(tail_.content.bytes, object_nbytes_, limits_);
    if (const auto* needs = std::get_if<ZipEndNeeds>(&found)) {
      // All that it may ever need, so that it does not ask again.
      const uint64_t most = object_nbytes_ - std::min(object_nbytes_, kMaxZipTailNbytes);
      return read_from(std::min(needs->offset, most));
    }
    end_ = std::get<ZipEnd>(found);
  }
  if (end_->directory_offset < tail_.offset) return read_from(end_->directory_offset);
  parse_directory();
  return {};
}

// Makes the tail longer: from `offset` on.
std::vector<Read> Opening::read_from(uint64_t offset) {
  stage_ = Stage::kMore;
  more_ = {offset, tail_.offset, allocate_bytes(object_nbytes_ - offset)};
  const MutableBytes old = tail_.content.bytes;
  if (!old.empty()) std::memcpy(&more_.memory.bytes[tail_.offset - offset], old.data(), old.size());
  parts_ = {};
  return parts_.plan(more_, offset, tail_.offset, *source_);
}

void Opening::parse_directory() {
  const MutableBytes tail = tail_.content.bytes;
  members_ = parse_zip_directory(
      tail.subspan(end_->directory_offset - tail_.offset, end_->directory_nbytes), *end_, limits_);
  // What lies before the directory serves members.
  if (!tail_.is_view && end_->directory_offset == tail_.offset) tail_.content = {};
}

std::shared_ptr<const NpzArchive> Opening::take() {
  return std::make_shared<NpzArchive>(source_, std::move(members_), limits_, std::move(tail_));
}

}  // namespace torchnpy
