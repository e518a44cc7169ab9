// What reading and writing of ZIP archives share (PKWARE APPNOTE 6.3.10); for format/zip*.cpp.
#pragma once

#include <cstdint>
#include <limits>
#include <string_view>

namespace torchnpy {

inline constexpr std::string_view kCentralSignature = "PK\1\2";
inline constexpr uint16_t kUtf8 = 1 << 11;  // the flag: the name is in UTF-8
// In a field of 32 bits: the value is in the ZIP64 field.
inline constexpr uint64_t kInZip64 = std::numeric_limits<uint32_t>::max();

// For messages.
inline constexpr std::string_view kCorrupt = "the archive is corrupt";

}  // namespace torchnpy
