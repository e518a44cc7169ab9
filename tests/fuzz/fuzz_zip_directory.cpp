// Any bytes give the members of an archive or a FormatError, and members agree with the object
// and with each other.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "format/text.h"
#include "format/zip.h"

namespace torchnpy {
namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

void check_names(const std::vector<ZipMember>& members) {
  std::set<std::string> names;
  for (const ZipMember& member : members) {
    require(find_invalid_utf8(member.name) == std::string_view::npos);
    require(member.name.find('\0') == std::string::npos);
    require(names.insert(member.name).second);
  }
}

// Leaves `members` sorted by offset.
void check_places(std::vector<ZipMember>& members, const ZipEnd& end) {
  std::sort(members.begin(), members.end(),
            [](const ZipMember& a, const ZipMember& b) { return a.local_offset < b.local_offset; });
  uint64_t offset = end.prefix_nbytes;
  for (const ZipMember& member : members) {
    require(member.local_offset >= offset && member.end_offset <= end.directory_offset);
    offset = member.end_offset;
    uint64_t nbytes = kZipLocalHeaderNbytes + member.name_in_file().size();
    require(checked_add(nbytes, member.compressed_nbytes, &nbytes));
    require(member.end_offset > member.local_offset);
    require(nbytes <= member.end_offset - member.local_offset);
  }
}

void check_local_header(ByteView object, const ZipMember& member) {
  const ByteView room =
      object.subspan(member.local_offset, member.end_offset - member.local_offset);
  try {
    require(!find_zip_data(room.first(kZipLocalHeaderNbytes - 1), member));
    const uint64_t header_nbytes = find_zip_data(room, member).value();
    require(header_nbytes <= room.size() - member.compressed_nbytes);
    check_zip_local_header(room.first(header_nbytes), member);
    check_zip_member(member, {});
  } catch (const FormatError&) {
  } catch (const UnsupportedError&) {
  }
}

// The last bytes at hand of an object that is longer by `missing_nbytes`.
void read(ByteView tail, uint64_t missing_nbytes) {
  const uint64_t object_nbytes = missing_nbytes + tail.size();
  const ZipLimits limits{.member_count = 1000};
  const std::variant<ZipEnd, ZipEndNeeds> found = find_zip_end(tail, object_nbytes, limits);
  if (const auto* needs = std::get_if<ZipEndNeeds>(&found)) {
    require(needs->offset < missing_nbytes);
    require(object_nbytes - needs->offset <= 4 * kMinZipTailNbytes);
    return;
  }
  const ZipEnd& end = std::get<ZipEnd>(found);
  require(end.directory_offset <= object_nbytes);
  require(end.directory_nbytes <= object_nbytes - end.directory_offset);
  require(end.prefix_nbytes <= end.directory_offset);
  require(end.member_count <= limits.member_count);
  require(end.member_count != 0 || end.directory_offset == 0);
  if (end.directory_offset < missing_nbytes) return;
  const ByteView directory =
      tail.subspan(end.directory_offset - missing_nbytes, end.directory_nbytes);
  std::vector<ZipMember> members = parse_zip_directory(directory, end, limits);
  require(members.size() <= end.member_count && members.empty() == (end.member_count == 0));
  check_names(members);
  check_places(members, end);
  if (missing_nbytes != 0) return;
  for (const ZipMember& member : members) check_local_header(tail, member);
}

void read_all_and_tail(ByteView object) {
  try {
    read(object, 0);
  } catch (const FormatError&) {
  }
  // The same at the end of a large object, cut so that the front of the input is missing.
  const size_t kept_nbytes = object.size() - object.size() / 4;
  std::vector<uint8_t> tail(kMinZipTailNbytes - std::min(kept_nbytes, kMinZipTailNbytes));
  const ByteView kept = object.last(std::min(kept_nbytes, kMinZipTailNbytes));
  tail.insert(tail.end(), kept.begin(), kept.end());
  try {
    read(tail, uint64_t{1} << 33);
  } catch (const FormatError&) {
  }
}

}  // namespace
}  // namespace torchnpy

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  torchnpy::read_all_and_tail({data, size});
  return 0;
}
