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
  // Computes over `rest`, the object's other bytes, which must stay until compare(). False when it
  // is done already; else `workers` will have done it when they have run.
  bool start(ByteView rest, Workers* workers);
  // Throws TransportError (kDamaged); `name`: the object's.
  void compare(const std::string& name) const;

 private:
  const Checksum expected_;
  uint64_t crc_;
  ByteView rest_;
  std::vector<uint64_t> pieces_;  // checksums, of kPieceNbytes each but the last
};

}  // namespace torchnpy
