#include "transport/cache_entry.h"

#include <algorithm>
#include <cstring>

#include "base/checksum.h"
#include "base/error.h"

namespace torchnpy {
namespace {

constexpr std::string_view kMagic = "TNPCACH1";
constexpr size_t kCheckedOffset = 12;  // what the page's own CRC-32 covers, to its end
constexpr size_t kExtentsOffset = 512;
constexpr size_t kExtentNbytes = 24;
// Offsets in the file fit into off_t.
constexpr uint64_t kMaxObjectNbytes = uint64_t{1} << 62;

static_assert(kExtentsOffset + kMaxExtents * kExtentNbytes <= kEntryDataOffset);

class PageWriter {
 public:
  explicit PageWriter(MutableBytes page) : page_(page) {}
  void seek(size_t offset) { offset_ = offset; }
  void put(ByteView bytes) {
    if (!bytes.empty()) std::memcpy(&page_[offset_], bytes.data(), bytes.size());
    offset_ += bytes.size();
  }
  template <typename T>
  void put_integer(T value) {
    std::memcpy(&page_[offset_], &value, sizeof(T));
    offset_ += sizeof(T);
  }

 private:
  MutableBytes page_;
  size_t offset_ = 0;
};

template <size_t kNbytes>
std::array<uint8_t, kNbytes> read_array(Cursor& cursor) {
  std::array<uint8_t, kNbytes> bytes;
  std::ranges::copy(cursor.read_bytes(kNbytes), bytes.begin());
  return bytes;
}

uint16_t read_u16_at_most(Cursor& cursor, size_t most) {
  const uint16_t value = cursor.read_u16();
  if (value > most) throw FormatError("too long");
  return value;
}

CacheEntryHeader parse(ByteView page) {
  if (page.size() != kEntryDataOffset || !as_text(page).starts_with(kMagic)) {
    throw FormatError("no entry of a cache");
  }
  Cursor cursor(page);
  cursor.skip(kMagic.size());
  if (cursor.read_u32() != crc32(page.subspan(kCheckedOffset))) {
    throw FormatError("torn");
  }
  const uint32_t extent_count = cursor.read_u32();
  CacheEntryHeader header;
  header.key = read_array<32>(cursor);
  header.boot = read_array<16>(cursor);
  header.version.nbytes = cursor.read_u64();
  header.checked_ns = static_cast<int64_t>(cursor.read_u64());
  const uint16_t etag_nbytes = read_u16_at_most(cursor, kMaxValidatorNbytes);
  const uint16_t modified_nbytes = read_u16_at_most(cursor, kMaxValidatorNbytes - etag_nbytes);
  cursor.skip(4);
  header.version.etag = as_text(cursor.read_bytes(etag_nbytes));
  header.version.modified = as_text(cursor.read_bytes(modified_nbytes));
  if (header.version.nbytes > kMaxObjectNbytes || extent_count > kMaxExtents) {
    throw FormatError("too large");
  }
  cursor.skip(kExtentsOffset - cursor.offset());
  for (uint32_t i = 0; i < extent_count; ++i) {
    CacheExtent extent;
    extent.begin = cursor.read_u64();
    extent.end = cursor.read_u64();
    extent.crc32 = cursor.read_u32();
    cursor.skip(4);
    const bool is_sorted = header.extents.empty() || header.extents.back().begin < extent.begin;
    if (extent.begin >= extent.end || extent.end > header.version.nbytes || !is_sorted) {
      throw FormatError("bytes outside the object");
    }
    header.extents.push_back(extent);
  }
  return header;
}

}  // namespace

bool CacheVersion::operator==(const CacheVersion& other) const {
  return nbytes == other.nbytes && etag == other.etag &&
         (has_strong_etag() || modified == other.modified);
}

bool CacheEntryHeader::covers(uint64_t begin, uint64_t end) const {
  for (const CacheExtent& extent : extents) {  // sorted; they may overlap
    if (begin >= end || extent.begin > begin) break;
    begin = std::max(begin, extent.end);
  }
  return begin >= end;
}

bool CacheEntryHeader::add(const CacheExtent& extent) {
  if (extent.begin >= extent.end) return true;
  const auto contains = [](const CacheExtent& outer, const CacheExtent& inner) {
    return outer.begin <= inner.begin && inner.end <= outer.end;
  };
  std::vector<CacheExtent> merged;
  for (const CacheExtent& other : extents) {
    if (contains(other, extent)) return true;
    if (!contains(extent, other)) merged.push_back(other);
  }
  const auto place = std::ranges::find_if(
      merged, [&](const CacheExtent& other) { return other.begin > extent.begin; });
  merged.insert(place, extent);
  // Neighbours become one; those that overlap do not, for their CRC-32 would have to be computed.
  for (size_t i = 0; i + 1 < merged.size();) {
    CacheExtent& left = merged[i];
    const CacheExtent& right = merged[i + 1];
    if (left.end != right.begin) {
      ++i;
      continue;
    }
    left.crc32 = static_cast<uint32_t>(
        combine_crcs(ChecksumKind::kCrc32, left.crc32, right.crc32, right.end - right.begin));
    left.end = right.end;
    merged.erase(merged.begin() + static_cast<std::ptrdiff_t>(i) + 1);
  }
  if (merged.size() > kMaxExtents) return false;
  extents = std::move(merged);
  return true;
}

std::optional<CacheEntryHeader> parse_entry_header(ByteView page) {
  try {
    return parse(page);
  } catch (const FormatError&) {
    return std::nullopt;
  }
}

std::array<uint8_t, kEntryDataOffset> format_entry_header(const CacheEntryHeader& header) {
  std::array<uint8_t, kEntryDataOffset> page{};
  PageWriter writer(page);
  writer.put(as_bytes(kMagic));
  writer.seek(kCheckedOffset);
  writer.put_integer(static_cast<uint32_t>(header.extents.size()));
  writer.put(header.key);
  writer.put(header.boot);
  writer.put_integer(header.version.nbytes);
  writer.put_integer(header.checked_ns);
  writer.put_integer(static_cast<uint16_t>(header.version.etag.size()));
  writer.put_integer(static_cast<uint16_t>(header.version.modified.size()));
  writer.put_integer(uint32_t{0});
  writer.put(as_bytes(header.version.etag));
  writer.put(as_bytes(header.version.modified));
  writer.seek(kExtentsOffset);
  for (const CacheExtent& extent : header.extents) {
    writer.put_integer(extent.begin);
    writer.put_integer(extent.end);
    writer.put_integer(extent.crc32);
    writer.put_integer(uint32_t{0});
  }
  writer.seek(kMagic.size());
  writer.put_integer(crc32(ByteView(page).subspan(kCheckedOffset)));
  return page;
}

}  // namespace torchnpy
