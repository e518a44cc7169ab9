#include "transport/http_body.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/checksum.h"

namespace torchnpy {

void HttpBody::append(SharedBytes piece) {
  if (piece.bytes.empty()) return;
  nbytes_ += piece.bytes.size();
  if (!pieces_.empty()) {
    SharedBytes& last = pieces_.back();
    const bool adjoins = last.bytes.data() + last.bytes.size() == piece.bytes.data();
    if (adjoins && last.owner == piece.owner) {
      last.bytes = {last.bytes.data(), last.bytes.size() + piece.bytes.size()};
      return;
    }
  }
  pieces_.push_back(std::move(piece));
}

void HttpBody::append(HttpBody&& other) {
  for (SharedBytes& piece : other.pieces_) append(std::move(piece));
  other = {};
}

uint32_t HttpBody::crc32c() const {
  uint64_t crc = 0;
  for (const SharedBytes& piece : pieces_) {
    crc = compute_crc(ChecksumKind::kCrc32c, piece.bytes, crc);
  }
  return static_cast<uint32_t>(crc);
}

size_t HttpBodyCursor::read(MutableBytes room) {
  size_t filled = 0;
  while (filled < room.size() && piece_ < body_->pieces().size()) {
    const ByteView left = body_->pieces()[piece_].bytes.subspan(offset_);
    const size_t nbytes = std::min(left.size(), room.size() - filled);
    std::memcpy(room.data() + filled, left.data(), nbytes);
    filled += nbytes;
    offset_ += nbytes;
    if (nbytes < left.size()) break;
    ++piece_;
    offset_ = 0;
  }
  return filled;
}

void HttpBodyCursor::seek(uint64_t offset) {
  piece_ = offset_ = 0;
  for (const SharedBytes& piece : body_->pieces()) {
    if (offset < piece.bytes.size()) break;
    offset -= piece.bytes.size();
    ++piece_;
  }
  offset_ = static_cast<size_t>(offset);
}

}  // namespace torchnpy
