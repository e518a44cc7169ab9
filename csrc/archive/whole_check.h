// Compares what was read of an object with the checksum that its store keeps of all of it; for the
// loaders.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "archive/loader.h"
#include "base/bytes.h"
#include "base/checksum.h"

namespace torchnpy {

class WholeCheck {
 public:
  // `front`: the bytes of the object before those of start().
  WholeCheck(const Checksum& expected, ByteView front)
      : expected_(expected), crc_(compute_crc(expected.kind, front)) {}
  // Computes over the object's other bytes, which must stay until `workers` have run. False when it
  // is done already.
  bool start(ByteView middle, ByteView tail, Workers* workers);
  // Throws TransportError (kDamaged); `name`: the object's.
  void compare(const std::string& name) const;

 private:
  struct Piece {
    ByteView bytes;
    uint64_t crc = 0;
  };
  const Checksum expected_;
  uint64_t crc_;  // of what comes before the pieces
  std::vector<Piece> pieces_;
};

}  // namespace torchnpy
