// Where an archive ends, and so where its directory begins.
#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "format/text.h"
#include "format/zip.h"
#include "format/zip_words.h"

namespace torchnpy {
namespace {

constexpr std::string_view kEndSignature = "PK\5\6";
constexpr std::string_view kZip64EndSignature = "PK\6\6";
constexpr std::string_view kZip64LocatorSignature = "PK\6\7";
constexpr uint64_t kEndNbytes = 22;
constexpr uint64_t kZip64LocatorNbytes = 20;
constexpr uint64_t kZip64EndNbytes = 56;
constexpr uint64_t kMinCentralNbytes = 46;
// Of what may follow in the ZIP64 end record (APPNOTE 4.3.14): nobody is known to write any, and
// it must not make us fetch without end.
constexpr uint64_t kMaxExtensibleNbytes = kMaxZipTailNbytes - kMaxZipEndNbytes;
constexpr uint64_t kMaxDirectoryNbytes = 256 << 20;

// An end record, with what the ZIP64 end record adds.
struct EndRecord {
  uint64_t offset = 0;
  uint64_t disk = 0;
  uint64_t directory_disk = 0;
  uint64_t disk_member_count = 0;
  uint64_t member_count = 0;
  uint64_t directory_nbytes = 0;
  uint64_t directory_offset = 0;
  uint64_t comment_nbytes = 0;
};

// A field of the end record too small for its value is all ones (APPNOTE 4.4.1.4).
template <typename T>
void widen(uint64_t& narrow, uint64_t wide, std::string_view what, uint64_t offset) {
  if (narrow != std::numeric_limits<T>::max() && narrow != wide) {
    throw_format_error(fmt::format("the {} {} of the end record", what, narrow),
                       fmt::format("{} in the ZIP64 end record", wide), offset, kCorrupt);
  }
  narrow = wide;
}

class EndFinder {
 public:
  EndFinder(ByteView tail, uint64_t object_nbytes)
      : tail_(tail), object_nbytes_(object_nbytes), tail_offset_(object_nbytes - tail.size()) {}

  std::variant<ZipEnd, ZipEndNeeds> find();

 private:
  std::vector<uint64_t> find_signatures(uint64_t window_nbytes) const;
  std::optional<ZipEnd> find_exact(uint64_t window_nbytes);
  std::optional<ZipEnd> find_followed(uint64_t window_nbytes);
  std::optional<ZipEnd> try_judge(uint64_t offset);
  std::optional<ZipEnd> judge(uint64_t offset);
  EndRecord parse_end_record(uint64_t offset) const;
  std::optional<uint64_t> find_zip64_record(uint64_t end_offset);
  std::optional<uint64_t> find_far_zip64_record(uint64_t locator_offset, uint64_t offset);
  void widen_record(EndRecord& record, uint64_t zip64_offset) const;
  ZipEnd locate_directory(const EndRecord& record, uint64_t directory_end) const;

  // Says no, and remembers it, when the object is needed from an earlier byte on.
  bool has(uint64_t offset) {
    if (offset < tail_offset_) needed_offset_ = offset;
    return offset >= tail_offset_;
  }
  // `offset` must be in the tail.
  ByteView from(uint64_t offset) const { return tail_.subspan(offset - tail_offset_); }
  bool has_signature(uint64_t offset, std::string_view signature) const {
    return as_text(from(offset)).starts_with(signature);
  }

  const ByteView tail_;
  const uint64_t object_nbytes_;
  const uint64_t tail_offset_;
  std::optional<uint64_t> needed_offset_;
  std::optional<FormatError> problem_;  // of the best record that is not good enough
};

// Where end records may begin, the last one first.
std::vector<uint64_t> EndFinder::find_signatures(uint64_t window_nbytes) const {
  std::vector<uint64_t> offsets;
  const uint64_t begin = object_nbytes_ - window_nbytes;
  const std::string_view window = as_text(from(begin));
  for (size_t i = window.find(kEndSignature); i != std::string_view::npos;
       i = window.find(kEndSignature, i + 1)) {
    if (window.size() - i >= kEndNbytes) offsets.push_back(begin + i);
  }
  std::reverse(offsets.begin(), offsets.end());
  return offsets;
}

EndRecord EndFinder::parse_end_record(uint64_t offset) const {
  Cursor cursor(from(offset));
  cursor.skip(kEndSignature.size());
  EndRecord record;
  record.offset = offset;
  record.disk = cursor.read_u16();
  record.directory_disk = cursor.read_u16();
  record.disk_member_count = cursor.read_u16();
  record.member_count = cursor.read_u16();
  record.directory_nbytes = cursor.read_u32();
  record.directory_offset = cursor.read_u32();
  record.comment_nbytes = cursor.read_u16();
  return record;
}

// Where the ZIP64 end record is; empty when there is none, or when more bytes are needed.
std::optional<uint64_t> EndFinder::find_zip64_record(uint64_t end_offset) {
  if (end_offset < kZip64LocatorNbytes) return std::nullopt;
  const uint64_t locator_offset = end_offset - kZip64LocatorNbytes;
  if (!has(locator_offset)) return std::nullopt;
  if (!has_signature(locator_offset, kZip64LocatorSignature)) return std::nullopt;
  Cursor cursor(from(locator_offset));
  cursor.skip(kZip64LocatorSignature.size());
  const uint32_t disk = cursor.read_u32();
  const uint64_t offset = cursor.read_u64();
  const uint32_t disk_count = cursor.read_u32();
  if (disk != 0 || disk_count > 1) {
    throw_format_error("an archive in one file", fmt::format("one of {} parts", disk_count),
                       locator_offset, "the archive is split: join its parts");
  }
  if (locator_offset < kZip64EndNbytes) return find_far_zip64_record(locator_offset, offset);
  // What is said of its place is off when bytes precede the archive.
  const uint64_t near_offset = locator_offset - kZip64EndNbytes;
  if (!has(near_offset)) return std::nullopt;
  if (has_signature(near_offset, kZip64EndSignature)) return near_offset;
  return find_far_zip64_record(locator_offset, offset);
}

std::optional<uint64_t> EndFinder::find_far_zip64_record(uint64_t locator_offset, uint64_t offset) {
  const bool is_before = offset <= locator_offset && locator_offset - offset >= kZip64EndNbytes;
  if (!is_before || locator_offset - offset > kZip64EndNbytes + kMaxExtensibleNbytes) {
    throw_format_error("a ZIP64 end record just before its locator",
                       fmt::format("the place {}", offset), locator_offset, kCorrupt);
  }
  if (!has(offset)) return std::nullopt;
  if (!has_signature(offset, kZip64EndSignature)) {
    throw_format_error(fmt::format("the ZIP64 end record's {}", format_snippet(kZip64EndSignature)),
                       format_snippet(as_text(from(offset)).substr(0, 4)), offset, kCorrupt);
  }
  return offset;
}

void EndFinder::widen_record(EndRecord& record, uint64_t zip64_offset) const {
  constexpr uint64_t kUncountedNbytes = 12;  // the signature and the length itself
  const uint64_t nbytes = record.offset - kZip64LocatorNbytes - zip64_offset;
  Cursor cursor(from(zip64_offset));
  cursor.skip(kZip64EndSignature.size());
  const uint64_t declared_nbytes = cursor.read_u64();
  if (declared_nbytes != nbytes - kUncountedNbytes) {
    throw_format_error(
        fmt::format("a ZIP64 end record of {} bytes up to its locator", nbytes - kUncountedNbytes),
        std::to_string(declared_nbytes), zip64_offset, kCorrupt);
  }
  cursor.skip(4);  // versions
  widen<uint16_t>(record.disk, cursor.read_u32(), "disk", zip64_offset);
  widen<uint16_t>(record.directory_disk, cursor.read_u32(), "disk", zip64_offset);
  widen<uint16_t>(record.disk_member_count, cursor.read_u64(), "member count", zip64_offset);
  widen<uint16_t>(record.member_count, cursor.read_u64(), "member count", zip64_offset);
  widen<uint32_t>(record.directory_nbytes, cursor.read_u64(), "directory size", zip64_offset);
  widen<uint32_t>(record.directory_offset, cursor.read_u64(), "directory offset", zip64_offset);
}

ZipEnd EndFinder::locate_directory(const EndRecord& record, uint64_t directory_end) const {
  ZipEnd end;
  end.directory_nbytes = record.directory_nbytes;
  end.member_count = record.member_count;
  if (record.directory_nbytes > directory_end) {
    throw_format_error(fmt::format("a directory of at most {} bytes", directory_end),
                       std::to_string(record.directory_nbytes), record.offset, kCorrupt);
  }
  end.directory_offset = directory_end - record.directory_nbytes;
  if (record.directory_offset > end.directory_offset) {
    throw_format_error(fmt::format("a directory of {} bytes at byte {} or before",
                                   record.directory_nbytes, end.directory_offset),
                       fmt::format("the offset {}", record.directory_offset), record.offset,
                       "the front of the archive is missing, or it is corrupt");
  }
  end.prefix_nbytes = end.directory_offset - record.directory_offset;
  if (record.member_count > record.directory_nbytes / kMinCentralNbytes) {
    throw_format_error(
        fmt::format("at most {} members in a directory of {} bytes",
                    record.directory_nbytes / kMinCentralNbytes, record.directory_nbytes),
        std::to_string(record.member_count), record.offset, kCorrupt);
  }
  if (record.member_count == 0 && directory_end != 0) {
    // It would be easy to take a stray end record, or one in a comment, for an empty archive.
    throw_format_error("an archive without members to begin at byte 0",
                       fmt::format("{} bytes before its end record", directory_end), record.offset,
                       kCorrupt);
  }
  // Only where every reader has it at hand: what is found must not depend on more.
  const bool is_near = object_nbytes_ - end.directory_offset <= kMinZipTailNbytes;
  if (record.member_count != 0 && is_near &&
      !has_signature(end.directory_offset, kCentralSignature)) {
    throw_format_error(fmt::format("the directory's {}", format_snippet(kCentralSignature)),
                       format_snippet(as_text(from(end.directory_offset)).substr(0, 4)),
                       end.directory_offset, kCorrupt);
  }
  return end;
}

// Throws FormatError when the record at `offset` is of no archive; empty when more bytes are
// needed.
std::optional<ZipEnd> EndFinder::judge(uint64_t offset) {
  EndRecord record = parse_end_record(offset);
  const std::optional<uint64_t> zip64_offset = find_zip64_record(offset);
  if (needed_offset_) return std::nullopt;
  if (zip64_offset) widen_record(record, *zip64_offset);
  if (record.disk != 0 || record.directory_disk != 0 ||
      record.disk_member_count != record.member_count) {
    throw_format_error("an archive in one file", fmt::format("part {} of several", record.disk + 1),
                       record.offset, "the archive is split: join its parts");
  }
  return locate_directory(record, zip64_offset.value_or(offset));
}

// Empty as well, with the problem remembered, when it is of no archive.
std::optional<ZipEnd> EndFinder::try_judge(uint64_t offset) {
  try {
    return judge(offset);
  } catch (FormatError& error) {
    if (!problem_) problem_ = std::move(error);
    return std::nullopt;
  }
}

// The archive that ends exactly where the object does; empty when there is none, or when more
// bytes are needed.
std::optional<ZipEnd> EndFinder::find_exact(uint64_t window_nbytes) {
  std::optional<ZipEnd> found;
  uint64_t found_offset = 0;
  for (const uint64_t offset : find_signatures(window_nbytes)) {
    const uint64_t rest_nbytes = object_nbytes_ - offset - kEndNbytes;
    if (parse_end_record(offset).comment_nbytes != rest_nbytes) continue;
    const std::optional<ZipEnd> end = try_judge(offset);
    if (needed_offset_) return std::nullopt;
    if (!end) continue;
    if (found) {
      throw FormatError(
          fmt::format("expected one end record but found two, at bytes {} and {}; one may be part "
                      "of a comment, and nothing tells which",
                      offset, found_offset));
    }
    found = end;
    found_offset = offset;
  }
  return found;
}

// The last archive that other bytes follow.
std::optional<ZipEnd> EndFinder::find_followed(uint64_t window_nbytes) {
  for (const uint64_t offset : find_signatures(window_nbytes)) {
    const std::optional<ZipEnd> end = try_judge(offset);
    if (needed_offset_) return std::nullopt;
    if (end && end->member_count != 0) return end;
  }
  return std::nullopt;
}

std::variant<ZipEnd, ZipEndNeeds> EndFinder::find() {
  using Find = std::optional<ZipEnd> (EndFinder::*)(uint64_t);
  struct Step {
    uint64_t window_nbytes;
    Find find;
  };
  // Always the same windows, so that what is found does not depend on how much is at hand.
  constexpr Step kSteps[] = {{kMinZipTailNbytes, &EndFinder::find_exact},
                             {kMaxZipEndNbytes, &EndFinder::find_exact},
                             {kMaxZipEndNbytes, &EndFinder::find_followed}};
  uint64_t window_nbytes = 0;
  for (const Step& step : kSteps) {
    window_nbytes = std::min(step.window_nbytes, object_nbytes_);
    if (!has(object_nbytes_ - window_nbytes)) return ZipEndNeeds{*needed_offset_};
    const std::optional<ZipEnd> end = (this->*step.find)(window_nbytes);
    if (needed_offset_) return ZipEndNeeds{*needed_offset_};
    if (end) return *end;
  }
  if (problem_) throw FormatError(std::move(*problem_));
  throw FormatError(
      fmt::format("expected a ZIP archive but found no end record in its last {} bytes; it is "
                  "truncated, or no archive",
                  window_nbytes));
}

}  // namespace

std::variant<ZipEnd, ZipEndNeeds> find_zip_end(ByteView tail, uint64_t object_nbytes,
                                               const ZipLimits& limits) {
  std::variant<ZipEnd, ZipEndNeeds> answer = EndFinder(tail, object_nbytes).find();
  const auto* end = std::get_if<ZipEnd>(&answer);
  if (end == nullptr) return answer;
  if (end->member_count > limits.member_count) {
    throw FormatError(
        fmt::format("expected at most {} members but found {}; raise limits.members if you trust "
                    "the archive",
                    limits.member_count, end->member_count));
  }
  if (end->directory_nbytes > kMaxDirectoryNbytes) {
    throw FormatError(
        fmt::format("expected a directory of at most {} bytes but found {}; make several archives "
                    "of it",
                    kMaxDirectoryNbytes, end->directory_nbytes));
  }
  return answer;
}

}  // namespace torchnpy
