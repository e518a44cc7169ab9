#include "format/zip.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <functional>
#include <limits>
#include <utility>

#include "base/checksum.h"
#include "base/error.h"
#include "base/text.h"
#include "format/text.h"
#include "format/zip_words.h"

namespace torchnpy {
namespace {

constexpr std::string_view kLocalSignature = "PK\3\4";
constexpr uint64_t kCentralNbytes = 46;
constexpr uint16_t kZip64Extra = 0x0001;
constexpr uint16_t kUnicodePathExtra = 0x7075;
constexpr uint16_t kEncrypted = 1 << 0;
constexpr uint16_t kPatched = 1 << 5;
constexpr uint16_t kDiskInZip64 = std::numeric_limits<uint16_t>::max();

// Code page 437 from 0x80 on.
constexpr std::array<uint16_t, 128> kCp437 = {
    0x00C7, 0x00FC, 0x00E9, 0x00E2, 0x00E4, 0x00E0, 0x00E5, 0x00E7, 0x00EA, 0x00EB, 0x00E8, 0x00EF,
    0x00EE, 0x00EC, 0x00C4, 0x00C5, 0x00C9, 0x00E6, 0x00C6, 0x00F4, 0x00F6, 0x00F2, 0x00FB, 0x00F9,
    0x00FF, 0x00D6, 0x00DC, 0x00A2, 0x00A3, 0x00A5, 0x20A7, 0x0192, 0x00E1, 0x00ED, 0x00F3, 0x00FA,
    0x00F1, 0x00D1, 0x00AA, 0x00BA, 0x00BF, 0x2310, 0x00AC, 0x00BD, 0x00BC, 0x00A1, 0x00AB, 0x00BB,
    0x2591, 0x2592, 0x2593, 0x2502, 0x2524, 0x2561, 0x2562, 0x2556, 0x2555, 0x2563, 0x2551, 0x2557,
    0x255D, 0x255C, 0x255B, 0x2510, 0x2514, 0x2534, 0x252C, 0x251C, 0x2500, 0x253C, 0x255E, 0x255F,
    0x255A, 0x2554, 0x2569, 0x2566, 0x2560, 0x2550, 0x256C, 0x2567, 0x2568, 0x2564, 0x2565, 0x2559,
    0x2558, 0x2552, 0x2553, 0x256B, 0x256A, 0x2518, 0x250C, 0x2588, 0x2584, 0x258C, 0x2590, 0x2580,
    0x03B1, 0x00DF, 0x0393, 0x03C0, 0x03A3, 0x03C3, 0x00B5, 0x03C4, 0x03A6, 0x0398, 0x03A9, 0x03B4,
    0x221E, 0x03C6, 0x03B5, 0x2229, 0x2261, 0x00B1, 0x2265, 0x2264, 0x2320, 0x2321, 0x00F7, 0x2248,
    0x00B0, 0x2219, 0x00B7, 0x221A, 0x207F, 0x00B2, 0x25A0, 0x00A0,
};

std::string cp437_to_utf8(std::string_view text) {
  std::string utf8;
  for (const char c : text) {
    const auto byte = static_cast<uint8_t>(c);
    append_utf8(utf8, byte < 0x80 ? byte : kCp437[byte - 0x80]);
  }
  return utf8;
}

void check_signature(std::string_view expected, ByteView header, std::string_view what,
                     uint64_t offset) {
  const std::string_view found = as_text(header).substr(0, expected.size());
  if (found == expected) return;
  throw_format_error(fmt::format("the {}'s {}", what, format_snippet(expected)),
                     format_snippet(found), offset, kCorrupt);
}

// Those of an entry's extra fields (APPNOTE 4.5) that matter here; empty when they are not there.
struct ExtraFields {
  std::optional<ByteView> zip64;
  std::optional<ByteView> unicode_path;
};

ExtraFields parse_extra_fields(ByteView bytes, uint64_t offset) {
  constexpr uint64_t kFieldHeaderNbytes = 4;
  ExtraFields fields;
  Cursor cursor(bytes);
  // Some writers pad with up to three bytes, too few for a field.
  while (cursor.remaining() >= kFieldHeaderNbytes) {
    const uint64_t field_offset = offset + cursor.offset();
    const uint16_t id = cursor.read_u16();
    const uint16_t nbytes = cursor.read_u16();
    if (nbytes > cursor.remaining()) {
      throw_format_error(fmt::format("an extra field of at most {} bytes", cursor.remaining()),
                         std::to_string(nbytes), field_offset, kCorrupt);
    }
    const ByteView data = cursor.read_bytes(nbytes);
    if (id == kZip64Extra && !fields.zip64) fields.zip64 = data;
    if (id == kUnicodePathExtra && !fields.unicode_path) fields.unicode_path = data;
  }
  return fields;
}

// Reads an archive's directory entry by entry.
class DirectoryParser {
 public:
  DirectoryParser(ByteView bytes, const ZipEnd& end) : cursor_(bytes), end_(end) {}

  std::vector<ZipMember> parse();

 private:
  ZipMember parse_entry();
  void parse_zip64(const std::optional<ByteView>& field, ZipMember& member, uint64_t& disk,
                   uint64_t offset) const;
  // Bytes from the start of the object.
  uint64_t offset() const { return end_.directory_offset + cursor_.offset(); }

  Cursor cursor_;
  const ZipEnd& end_;
};

void check_name_text(std::string_view name, uint64_t offset) {
  const size_t nul = name.find('\0');
  if (nul != std::string_view::npos) {
    throw_format_error("a name without NUL", format_snippet(name), offset + nul, kCorrupt);
  }
}

void check_name(std::string_view name, uint64_t offset) {
  const size_t invalid = find_invalid_utf8(name);
  if (invalid != std::string_view::npos) {
    throw_format_error("a name in UTF-8", format_snippet(name.substr(invalid, 1)), offset + invalid,
                       kCorrupt);
  }
}

// The name in Info-ZIP's Unicode path field (APPNOTE 4.6.9), if it is of this name: a program
// that knows nothing of the field may have changed the name.
std::optional<std::string_view> parse_unicode_path(ByteView field, std::string_view raw_name) {
  constexpr uint64_t kFixedNbytes = 5;
  if (field.size() <= kFixedNbytes || raw_name.empty()) return std::nullopt;
  Cursor cursor(field);
  const uint8_t version = cursor.read_u8();
  const uint32_t name_crc32 = cursor.read_u32();
  if (version != 1 || name_crc32 != crc32(as_bytes(raw_name))) return std::nullopt;
  return as_text(cursor.read_bytes(cursor.remaining()));
}

void set_name(ZipMember& member, std::string_view raw_name,
              const std::optional<ByteView>& unicode_path, uint64_t offset) {
  check_name_text(raw_name, offset);
  if ((member.flags & kUtf8) != 0) {
    check_name(raw_name, offset);
    member.name = raw_name;
    return;
  }
  std::optional<std::string_view> path;
  if (unicode_path) path = parse_unicode_path(*unicode_path, raw_name);
  if (path) {
    check_name_text(*path, offset);
    check_name(*path, offset);
    member.name = *path;
  } else {
    member.name = is_ascii(raw_name) ? std::string(raw_name) : cp437_to_utf8(raw_name);
  }
  if (member.name != raw_name) member.raw_name = raw_name;
}

// Fields that are all ones stand in the ZIP64 field, in this order, and only they (APPNOTE 4.5.3).
// Where there is no such field the ones are the value.
void DirectoryParser::parse_zip64(const std::optional<ByteView>& field, ZipMember& member,
                                  uint64_t& disk, uint64_t offset) const {
  if (!field) return;
  const uint64_t wanted_nbytes =
      8 * (uint64_t{member.nbytes == kInZip64} + uint64_t{member.compressed_nbytes == kInZip64} +
           uint64_t{member.local_offset == kInZip64}) +
      4 * uint64_t{disk == kDiskInZip64};
  if (wanted_nbytes > field->size()) {
    throw_format_error(fmt::format("a ZIP64 extra field of {} bytes", wanted_nbytes),
                       std::to_string(field->size()), offset, kCorrupt);
  }
  Cursor cursor(*field);
  if (member.nbytes == kInZip64) member.nbytes = cursor.read_u64();
  if (member.compressed_nbytes == kInZip64) member.compressed_nbytes = cursor.read_u64();
  if (member.local_offset == kInZip64) member.local_offset = cursor.read_u64();
  if (disk == kDiskInZip64) disk = cursor.read_u32();
}

ZipMember DirectoryParser::parse_entry() {
  const uint64_t entry_offset = offset();
  if (cursor_.remaining() < kCentralNbytes) {
    throw_format_error(
        fmt::format("a directory of {} members", end_.member_count),
        fmt::format("{} bytes for one that takes {}", cursor_.remaining(), kCentralNbytes),
        entry_offset, kCorrupt);
  }
  const ByteView fixed = cursor_.read_bytes(kCentralNbytes);
  check_signature(kCentralSignature, fixed, "directory entry", entry_offset);
  Cursor cursor(fixed);
  cursor.skip(8);  // the signature, the versions of the writer and of the reader
  ZipMember member;
  member.flags = cursor.read_u16();
  member.method = cursor.read_u16();
  cursor.skip(4);  // date and time
  member.crc32 = cursor.read_u32();
  member.compressed_nbytes = cursor.read_u32();
  member.nbytes = cursor.read_u32();
  const uint64_t name_nbytes = cursor.read_u16();
  const uint64_t extra_nbytes = cursor.read_u16();
  const uint64_t comment_nbytes = cursor.read_u16();
  uint64_t disk = cursor.read_u16();
  cursor.skip(6);  // attributes
  member.local_offset = cursor.read_u32();
  const uint64_t rest_nbytes = name_nbytes + extra_nbytes + comment_nbytes;
  if (rest_nbytes > cursor_.remaining()) {
    throw_format_error(
        fmt::format("at most {} bytes of name, extra fields and comment", cursor_.remaining()),
        std::to_string(rest_nbytes), entry_offset, kCorrupt);
  }
  const uint64_t name_offset = offset();
  const std::string_view raw_name = as_text(cursor_.read_bytes(name_nbytes));
  const uint64_t extra_offset = offset();
  const ExtraFields extra = parse_extra_fields(cursor_.read_bytes(extra_nbytes), extra_offset);
  cursor_.skip(comment_nbytes);
  parse_zip64(extra.zip64, member, disk, extra_offset);
  if (disk != 0) {
    throw_format_error("an archive in one file", fmt::format("a member in part {}", disk + 1),
                       entry_offset, "the archive is split: join its parts");
  }
  if (!checked_add(member.local_offset, end_.prefix_nbytes, &member.local_offset)) {
    throw_format_error("a local header in the archive",
                       fmt::format("the offset {}", member.local_offset), entry_offset, kCorrupt);
  }
  set_name(member, raw_name, extra.unicode_path, name_offset);
  return member;
}

std::vector<ZipMember> DirectoryParser::parse() {
  std::vector<ZipMember> members;
  members.reserve(std::min(end_.member_count, cursor_.remaining() / kCentralNbytes));
  for (uint64_t i = 0; i < end_.member_count; ++i) members.push_back(parse_entry());
  if (cursor_.remaining() != 0) {
    throw_format_error(fmt::format("the directory to end after {} members", end_.member_count),
                       fmt::format("{} more bytes", cursor_.remaining()), offset(), kCorrupt);
  }
  return members;
}

// The bytes that a member takes at least: its local header, up to the name's end, and its data.
// False when they are too many for an integer.
bool measure(const ZipMember& member, uint64_t* nbytes) {
  return checked_add(kZipLocalHeaderNbytes + member.name_in_file().size(), member.compressed_nbytes,
                     nbytes);
}

// Sets end_offset. Members that overlap make a small archive inflate to any size.
void separate(std::vector<ZipMember>& members, uint64_t directory_offset) {
  std::vector<ZipMember*> sorted;
  sorted.reserve(members.size());
  for (ZipMember& member : members) sorted.push_back(&member);
  const auto precedes = [](const ZipMember* a, const ZipMember* b) {
    return a->local_offset < b->local_offset;
  };
  if (!std::is_sorted(sorted.begin(), sorted.end(), precedes)) {
    std::sort(sorted.begin(), sorted.end(), precedes);
  }
  for (size_t i = 0; i < sorted.size(); ++i) {
    ZipMember& member = *sorted[i];
    const bool is_last = i + 1 == sorted.size();
    member.end_offset = is_last ? directory_offset : sorted[i + 1]->local_offset;
    const uint64_t room = member.end_offset - std::min(member.end_offset, member.local_offset);
    uint64_t nbytes;
    if (measure(member, &nbytes) && nbytes <= room) continue;
    const std::string next = is_last ? "the directory" : format_snippet(sorted[i + 1]->name);
    throw_format_error(fmt::format("{} to end before {} at byte {}", format_snippet(member.name),
                                   next, member.end_offset),
                       fmt::format("a header and {} bytes of data", member.compressed_nbytes),
                       member.local_offset, "members overlap: the archive is corrupt or hostile");
  }
}

// Leaves the last of the members of one name.
void drop_hidden(std::vector<ZipMember>& members) {
  const std::vector<size_t> hidden = ZipIndex(members).hidden();
  if (hidden.empty()) return;
  std::vector<bool> is_hidden(members.size());
  for (const size_t place : hidden) is_hidden[place] = true;
  size_t kept = 0;
  for (size_t i = 0; i < members.size(); ++i) {
    if (is_hidden[i]) continue;
    if (kept != i) members[kept] = std::move(members[i]);
    ++kept;
  }
  members.resize(kept);
}

void check_total_nbytes(const std::vector<ZipMember>& members, const ZipLimits& limits) {
  uint64_t total_nbytes = 0;
  for (const ZipMember& member : members) {
    if (member.method != kZipDeflated) continue;
    if (checked_add(total_nbytes, member.nbytes, &total_nbytes) &&
        total_nbytes <= limits.total_nbytes) {
      continue;
    }
    throw FormatError(
        fmt::format("expected members that inflate to at most {} bytes but found more up to {}, "
                    "of {} bytes; raise limits.total_nbytes if you trust the archive",
                    limits.total_nbytes, format_snippet(member.name), member.nbytes));
  }
}

void check_expansion(const ZipMember& member, const ZipLimits& limits) {
  constexpr uint64_t kSlackNbytes = 1032;
  uint64_t most_nbytes;
  if (!checked_multiply(limits.expansion, member.compressed_nbytes, &most_nbytes) ||
      !checked_add(most_nbytes, kSlackNbytes, &most_nbytes) || member.nbytes <= most_nbytes) {
    return;
  }
  throw FormatError(
      fmt::format("expected at most {} bytes inflated of {} compressed ones (limits.expansion is "
                  "{}) but found {}; the archive is corrupt or hostile",
                  most_nbytes, member.compressed_nbytes, limits.expansion, member.nbytes));
}

}  // namespace

ZipIndex::ZipIndex(const std::vector<ZipMember>& members) : members_(members) {
  keys_.reserve(members.size());
  for (size_t i = 0; i < members.size(); ++i) {
    keys_.push_back({std::hash<std::string_view>()(members[i].name), i});
  }
  std::ranges::sort(keys_, [this](const Key& a, const Key& b) {
    if (a.hash != b.hash) return a.hash < b.hash;
    const int order = name(a).compare(name(b));
    return order != 0 ? order < 0 : a.place < b.place;
  });
}

std::optional<size_t> ZipIndex::find(std::string_view wanted) const {
  const uint64_t hash = std::hash<std::string_view>()(wanted);
  // The first key behind all of that name.
  const auto end = std::ranges::partition_point(keys_, [&](const Key& key) {
    return key.hash != hash ? key.hash < hash : name(key) <= wanted;
  });
  if (end == keys_.begin() || name(*std::prev(end)) != wanted) return std::nullopt;
  return std::prev(end)->place;
}

std::vector<size_t> ZipIndex::hidden() const {
  std::vector<size_t> places;
  for (size_t i = 1; i < keys_.size(); ++i) {
    const Key& earlier = keys_[i - 1];
    if (earlier.hash == keys_[i].hash && name(earlier) == name(keys_[i])) {
      places.push_back(earlier.place);
    }
  }
  return places;
}

std::vector<ZipMember> parse_zip_directory(ByteView bytes, const ZipEnd& end,
                                           const ZipLimits& limits) {
  std::vector<ZipMember> members = DirectoryParser(bytes, end).parse();
  separate(members, end.directory_offset);
  drop_hidden(members);
  check_total_nbytes(members, limits);
  return members;
}

void check_zip_member(const ZipMember& member, const ZipLimits& limits) {
  if ((member.flags & kEncrypted) != 0) {
    throw UnsupportedError(
        "expected a member as it is but found an encrypted one; decrypt the archive first");
  }
  const bool is_readable = member.method == kZipStored || member.method == kZipDeflated;
  if (!is_readable || (member.flags & kPatched) != 0) {
    throw UnsupportedError(
        fmt::format("expected a stored (0) or deflated (8) member but found {}method {}; save the "
                    "archive again with numpy.savez or numpy.savez_compressed",
                    is_readable ? "a patch by " : "", member.method));
  }
  if (member.method == kZipDeflated) return check_expansion(member, limits);
  if (member.nbytes != member.compressed_nbytes) {
    throw FormatError(
        fmt::format("expected {} bytes of a stored member but found {}; the archive is corrupt",
                    member.nbytes, member.compressed_nbytes));
  }
}

std::optional<uint64_t> find_zip_data(ByteView prefix, const ZipMember& member) {
  if (prefix.size() < kZipLocalHeaderNbytes) return std::nullopt;
  check_signature(kLocalSignature, prefix, "local header", member.local_offset);
  constexpr uint64_t kNameLengthOffset = 26;
  Cursor cursor(prefix);
  cursor.skip(kNameLengthOffset);
  const uint64_t name_nbytes = cursor.read_u16();
  const uint64_t extra_nbytes = cursor.read_u16();
  const uint64_t header_nbytes = kZipLocalHeaderNbytes + name_nbytes + extra_nbytes;
  // parse_zip_directory() has seen that the data alone fits.
  const uint64_t room = member.end_offset - member.local_offset - member.compressed_nbytes;
  if (header_nbytes > room) {
    throw_format_error(fmt::format("a local header of at most {} bytes", room),
                       std::to_string(header_nbytes), member.local_offset, kCorrupt);
  }
  return header_nbytes;
}

void check_zip_local_header(ByteView header, const ZipMember& member) {
  Cursor cursor(header);
  cursor.skip(6);  // the signature, the version of the reader
  const uint16_t flags = cursor.read_u16();
  const uint16_t method = cursor.read_u16();
  cursor.skip(16);  // date, time, CRC and sizes
  const uint16_t name_nbytes = cursor.read_u16();
  cursor.skip(2);  // the length of the extra fields
  const std::string_view name = as_text(cursor.read_bytes(name_nbytes));
  if (name != member.name_in_file()) {
    throw_format_error(fmt::format("the directory's name {} in the local header",
                                   format_snippet(member.name_in_file())),
                       format_snippet(name), member.local_offset, kCorrupt);
  }
  if (method != member.method) {
    throw_format_error(fmt::format("the directory's method {} in the local header", member.method),
                       std::to_string(method), member.local_offset, kCorrupt);
  }
  if (((flags ^ member.flags) & kEncrypted) != 0) {
    throw_format_error("the directory's flag for encryption in the local header", "the opposite",
                       member.local_offset, kCorrupt);
  }
}

}  // namespace torchnpy
