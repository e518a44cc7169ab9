// The file of a cached object: its first page says which object it is and which of its bytes are
// there; the object's byte i is at kEntryDataOffset + i. Pure: no I/O. docs/cache.md has the
// layout.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/bytes.h"

namespace torchnpy {

// SHA-256 of what names the object: where it is, not which version.
using CacheKey = std::array<uint8_t, 32>;

// Which content of an object it is. Cached are only those that a strong ETag, or a Last-Modified,
// tells from others.
struct CacheVersion {
  uint64_t nbytes = 0;
  std::string etag;      // as the store sent it, with its quotes
  std::string modified;  // Last-Modified

  bool has_strong_etag() const { return etag.starts_with('"'); }
  // The ETag alone decides where it is strong.
  bool operator==(const CacheVersion& other) const;
};

// Bytes [begin, end) of an object, and their CRC-32.
struct CacheExtent {
  uint64_t begin = 0;
  uint64_t end = 0;
  uint32_t crc32 = 0;
};

using BootId = std::array<uint8_t, 16>;

struct CacheEntryHeader {
  CacheKey key{};
  BootId boot{};  // in which the extents were written, or verified
  CacheVersion version;
  int64_t checked_ns = 0;  // when the store was asked last; since 1970
  std::vector<CacheExtent> extents;

  // That the object's bytes [begin, end) are all there.
  bool covers(uint64_t begin, uint64_t end) const;
  // False, and nothing changed, when there are too many pieces already.
  bool add(const CacheExtent& extent);
};

inline constexpr size_t kEntryDataOffset = 4096;
inline constexpr size_t kMaxExtents = 149;
// Of ETag and Last-Modified together.
inline constexpr size_t kMaxValidatorNbytes = 424;

// Empty when it is no such page, is torn, or does not make sense.
std::optional<CacheEntryHeader> parse_entry_header(ByteView page);
// `header` has at most kMaxExtents and kMaxValidatorNbytes.
std::array<uint8_t, kEntryDataOffset> format_entry_header(const CacheEntryHeader& header);

}  // namespace torchnpy
