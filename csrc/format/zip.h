// ZIP archives (PKWARE APPNOTE 6.3.10): their directory and the headers of their members.
// Pure: no I/O. Safe on any bytes: every error is a FormatError that says what was expected,
// what was found and at which byte of the archive. The layout is in docs/format.md.
//
// A reader takes these steps, each on bytes that it fetches itself:
//   find_zip_end(tail) -> parse_zip_directory(directory) -> find_zip_data(prefix)
//   -> check_zip_local_header(header)
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/bytes.h"

namespace torchnpy {

// What an archive may claim. Exceeding one is a FormatError that names the limit as Python does:
// limits.members, limits.total_nbytes, limits.expansion.
struct ZipLimits {
  uint64_t member_count = 500'000;
  // Of all deflated members, inflated. Stored ones are no larger than the object.
  uint64_t total_nbytes = uint64_t{64} << 30;
  // Inflated bytes for each compressed byte of a member. DEFLATE cannot give more than 1032.
  uint64_t expansion = 1032;
};

// The tail that find_zip_end() wants at least, of an object that has it.
inline constexpr uint64_t kMinZipTailNbytes = 64 << 10;
// The longest end of an archive that it looks at: the end record with the longest comment, the
// ZIP64 locator and the ZIP64 end record before it.
inline constexpr uint64_t kMaxZipEndNbytes = 22 + 65535 + 20 + 56;
// The longest tail that it ever asks for: the ZIP64 end record may hold 64 KiB of further data.
inline constexpr uint64_t kMaxZipTailNbytes = kMaxZipEndNbytes + (64 << 10);

// Where the directory lies.
struct ZipEnd {
  uint64_t directory_offset = 0;  // bytes from the start of the object
  uint64_t directory_nbytes = 0;
  uint64_t member_count = 0;
  // Bytes before the archive (of a self-extractor): what the archive's own offsets lack.
  uint64_t prefix_nbytes = 0;
};

// The answer to a tail that is too short to tell: the object from here on is needed.
struct ZipEndNeeds {
  uint64_t offset = 0;
};

// Finds the end record in `tail`, the last bytes of an object of `object_nbytes`. Comments may be
// of any length and hold anything; what precedes the archive, or follows it, is ignored. An archive
// without members begins at byte 0: anywhere else a stray end record would pass for one. Throws
// FormatError: there is no archive, it is split over several files, a record is broken, two end
// records are equally good, or a limit is exceeded (a directory is at most 256 MiB).
std::variant<ZipEnd, ZipEndNeeds> find_zip_end(ByteView tail, uint64_t object_nbytes,
                                               const ZipLimits& limits);

struct ZipMember {
  std::string name;      // in UTF-8
  std::string raw_name;  // as it stands in the file where that differs from `name`; else empty
  uint16_t flags = 0;
  uint16_t method = 0;
  uint32_t crc32 = 0;
  uint64_t compressed_nbytes = 0;
  uint64_t nbytes = 0;        // inflated
  uint64_t local_offset = 0;  // of the local header: bytes from the start of the object
  // Where something else begins: the next member or the directory. No byte of this one lies there.
  uint64_t end_offset = 0;

  std::string_view name_in_file() const { return raw_name.empty() ? name : raw_name; }
};

// Finds members by name. Sorted by hash and only then by name, so that names made to collide
// cost no more than others.
class ZipIndex {
 public:
  // `members` must outlive the index and stay as they are.
  explicit ZipIndex(const std::vector<ZipMember>& members);
  // Where in the members the last one of that name is.
  std::optional<size_t> find(std::string_view name) const;
  // Where those are that a later member of the same name hides.
  std::vector<size_t> hidden() const;

 private:
  struct Key {
    uint64_t hash;
    size_t place;
  };
  std::string_view name(const Key& key) const { return members_[key.place].name; }

  const std::vector<ZipMember>& members_;
  std::vector<Key> keys_;
};

inline constexpr uint16_t kZipStored = 0;
inline constexpr uint16_t kZipDeflated = 8;

// Parses the whole directory: `bytes` are the `end.directory_nbytes` at `end.directory_offset`.
// The members in the archive's order; of members with one name only the last. Throws FormatError:
// an entry is broken, their number differs from the end record's, a name is no text or holds a
// NUL, members overlap or lie outside of the object, or limits.total_nbytes is exceeded.
std::vector<ZipMember> parse_zip_directory(ByteView bytes, const ZipEnd& end,
                                           const ZipLimits& limits);

// Throws unless the member can be read: UnsupportedError for encryption and for methods other
// than stored and deflated; FormatError for a stored member of two sizes, and for one that claims
// to expand beyond limits.expansion.
void check_zip_member(const ZipMember& member, const ZipLimits& limits);

// The length of the fixed part of a local header.
inline constexpr uint64_t kZipLocalHeaderNbytes = 30;

// The length of the local header at the front of `prefix`, once `prefix` is long enough to tell
// (kZipLocalHeaderNbytes); empty while it is not. Throws FormatError for a wrong signature, and
// when header and data do not end before something else begins.
std::optional<uint64_t> find_zip_data(ByteView prefix, const ZipMember& member);

// Checks the local header against the directory's entry: name, method and encryption. `header` is
// as long as find_zip_data() says. Sizes and CRC are the directory's: local headers need not have
// them. Throws FormatError.
void check_zip_local_header(ByteView header, const ZipMember& member);

}  // namespace torchnpy
