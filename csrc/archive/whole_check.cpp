#include "archive/whole_check.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"

namespace torchnpy {
namespace {

constexpr size_t kPieceNbytes = 4 << 20;
// An I/O thread does so much on the side.
constexpr size_t kMaxAtOnceNbytes = 256 << 10;

// CRC-32 takes instructions made for it, the others tables.
uint64_t cost_ns(ChecksumKind kind, uint64_t nbytes) {
  return kind == ChecksumKind::kCrc32 ? nbytes / 16 : nbytes / 2;
}

}  // namespace

bool WholeCheck::start(ByteView rest, Workers* workers) {
  if (workers == nullptr || rest.size() <= kMaxAtOnceNbytes) {
    crc_ = compute_crc(expected_.kind, rest, crc_);
    return false;
  }
  rest_ = rest;
  pieces_.resize((rest.size() + kPieceNbytes - 1) / kPieceNbytes);
  for (size_t i = 0; i < pieces_.size(); ++i) {
    const ByteView all = rest_.subspan(i * kPieceNbytes);
    const ByteView piece = all.first(std::min(all.size(), kPieceNbytes));
    workers->run([this, i, piece] { pieces_[i] = compute_crc(expected_.kind, piece); },
                 cost_ns(expected_.kind, piece.size()));
  }
  return true;
}

void WholeCheck::compare(const std::string& name) const {
  uint64_t crc = crc_;
  uint64_t left = rest_.size();
  for (const uint64_t piece : pieces_) {
    const uint64_t nbytes = std::min<uint64_t>(left, kPieceNbytes);
    crc = combine_crcs(expected_.kind, crc, piece, nbytes);
    left -= nbytes;
  }
  if (crc == expected_.value) return;
  throw TransportError(
      fmt::format("{}: expected {} but found 0x{:0{}x}; the data was damaged on its way", name,
                  format_checksum(expected_), crc,
                  expected_.kind == ChecksumKind::kCrc64Nvme ? 16 : 8),
      TransportError::Kind::kDamaged);
}

}  // namespace torchnpy
