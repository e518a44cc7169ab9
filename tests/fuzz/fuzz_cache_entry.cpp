// Any page gives the header of a cache's entry or nothing; a header is written as it was read, and
// stays one when it learns of more bytes.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <optional>

#include "base/checksum.h"
#include "transport/cache_entry.h"

namespace torchnpy {
namespace {

constexpr size_t kCrcOffset = 8;
constexpr size_t kCheckedOffset = 12;

using Page = std::array<uint8_t, kEntryDataOffset>;

void require(bool condition) {
  if (!condition) std::abort();
}

bool operator==(const CacheExtent& a, const CacheExtent& b) {
  return a.begin == b.begin && a.end == b.end && a.crc32 == b.crc32;
}

void check_header(const CacheEntryHeader& header) {
  const CacheVersion& version = header.version;
  require(version.etag.size() + version.modified.size() <= kMaxValidatorNbytes);
  require(header.extents.size() <= kMaxExtents);
  require(!header.covers(0, version.nbytes + 1));
  const CacheExtent* before = nullptr;
  for (const CacheExtent& extent : header.extents) {
    require(extent.begin < extent.end && extent.end <= version.nbytes);
    require(before == nullptr || before->begin < extent.begin);
    require(header.covers(extent.begin, extent.end));
    before = &extent;
  }
}

void check_round_trip(const CacheEntryHeader& header) {
  const std::optional<CacheEntryHeader> again = parse_entry_header(format_entry_header(header));
  require(again.has_value());
  require(again->key == header.key && again->boot == header.boot);
  require(again->version.nbytes == header.version.nbytes);
  require(again->version.etag == header.version.etag);
  require(again->version.modified == header.version.modified);
  require(again->checked_ns == header.checked_ns);
  require(std::ranges::equal(again->extents, header.extents,
                             [](const auto& a, const auto& b) { return a == b; }));
}

// Some bytes of the object more, which the key says.
void check_growth(const CacheEntryHeader& header) {
  if (header.version.nbytes == 0) return;
  uint64_t begin = 0;
  uint64_t nbytes = 0;
  std::memcpy(&begin, header.key.data(), sizeof(begin));
  std::memcpy(&nbytes, header.key.data() + sizeof(begin), sizeof(nbytes));
  begin %= header.version.nbytes;
  nbytes = 1 + nbytes % (header.version.nbytes - begin);
  CacheEntryHeader grown = header;
  const bool is_added = grown.add({begin, begin + nbytes, 0});
  require(is_added || header.extents.size() == kMaxExtents);
  require(!is_added || grown.covers(begin, begin + nbytes));
  for (const CacheExtent& extent : header.extents) {
    require(grown.covers(extent.begin, extent.end));
  }
  check_header(grown);
  check_round_trip(grown);
}

void check_page(ByteView page) {
  const std::optional<CacheEntryHeader> header = parse_entry_header(page);
  if (!header) return;
  check_header(*header);
  check_round_trip(*header);
  check_growth(*header);
}

void check(ByteView bytes) {
  check_page(bytes);
  // The same as a page whose checksum is right, which mutations do not find.
  Page page{};
  std::ranges::copy(bytes.first(std::min(bytes.size(), page.size())), page.begin());
  const uint32_t crc = crc32(ByteView(page).subspan(kCheckedOffset));
  std::memcpy(page.data() + kCrcOffset, &crc, sizeof(crc));
  check_page(page);
}

}  // namespace
}  // namespace torchnpy

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  torchnpy::check({data, size});
  return 0;
}
