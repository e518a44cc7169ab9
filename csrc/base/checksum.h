// Cyclic redundancy checks: of ZIP members, and those that S3 keeps of objects. Pure functions,
// on any number of threads at once.
#pragma once

#include <cstdint>
#include <string>

#include "base/bytes.h"

namespace torchnpy {

enum class ChecksumKind {
  kCrc32,      // ISO-HDLC: ZIP, gzip
  kCrc32c,     // Castagnoli: iSCSI (RFC 3720)
  kCrc64Nvme,  // NVM Express; the default of S3
};

struct Checksum {
  ChecksumKind kind = ChecksumKind::kCrc32;
  uint64_t value = 0;
  bool operator==(const Checksum&) const = default;
};

// "CRC-32C 0xe3069283".
std::string format_checksum(const Checksum& checksum);

// Of what `crc` is of, followed by `bytes`; of no bytes it is 0.
uint32_t crc32(ByteView bytes, uint32_t crc = 0);
uint64_t compute_crc(ChecksumKind kind, ByteView bytes, uint64_t crc = 0);

// Of the bytes that `first` is of, followed by the `second_nbytes` that `second` is of.
uint64_t combine_crcs(ChecksumKind kind, uint64_t first, uint64_t second, uint64_t second_nbytes);

}  // namespace torchnpy
