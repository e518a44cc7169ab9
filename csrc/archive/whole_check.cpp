#include "archive/whole_check.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"

namespace torchnpy {
namespace {

constexpr size_t kPieceNbytes = 4 << 20;
// An I/O thread does so much on the side.
constexpr size_t kMaxAtOnceNbytes = 256 << 10;

}  // namespace

bool WholeCheck::start(ByteView middle, ByteView tail, Workers* workers) {
  const bool at_once = workers == nullptr || middle.size() + tail.size() <= kMaxAtOnceNbytes;
  for (ByteView bytes : {middle, tail}) {
    if (at_once) crc_ = compute_crc(expected_.kind, bytes, crc_);
    while (!at_once && !bytes.empty()) {
      pieces_.push_back({bytes.first(std::min(bytes.size(), kPieceNbytes))});
      bytes = bytes.subspan(pieces_.back().bytes.size());
    }
  }
  for (Piece& piece : pieces_) {  // there are no more: their addresses stay
    workers->run([this, &piece] { piece.crc = compute_crc(expected_.kind, piece.bytes); },
                 /*cost_ns=*/piece.bytes.size() / 8);
  }
  return !at_once;
}

void WholeCheck::compare(const std::string& name) const {
  uint64_t crc = crc_;
  for (const Piece& piece : pieces_) {
    crc = combine_crcs(expected_.kind, crc, piece.crc, piece.bytes.size());
  }
  if (crc == expected_.value) return;
  throw TransportError(
      fmt::format("{}: expected {} but found 0x{:0{}x}; the data was damaged on its way", name,
                  format_checksum(expected_), crc,
                  expected_.kind == ChecksumKind::kCrc64Nvme ? 16 : 8),
      TransportError::Kind::kDamaged);
}

}  // namespace torchnpy
