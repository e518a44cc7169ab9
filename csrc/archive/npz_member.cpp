#include "archive/npz_member.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "archive/header_loader.h"
#include "base/checksum.h"
#include "base/error.h"
#include "format/deflate.h"

namespace torchnpy {
namespace {

// What local headers may have beyond what the directory tells: numpy writes 20 bytes, writers
// that align data up to 64 or so. Longer ones take another read.
constexpr uint64_t kLikelyExtraNbytes = 96;
// The longest header of a member, where a usual read did not hold it.
constexpr uint64_t kLongHeaderReadNbytes = 2 * kMaxHeaderNbytes;

}  // namespace

MemberRead::MemberRead(const NpzArchive& archive, size_t member, Allocator& allocator,
                       const NpzLoadOptions& options)
    : archive_(archive),
      member_(member),
      zip_(archive.members()[member]),
      allocator_(allocator),
      options_(options),
      next_offset_(zip_.local_offset),
      wanted_nbytes_(options.header_only ? std::min(zip_.compressed_nbytes, kHeaderReadNbytes)
                                         : zip_.compressed_nbytes) {
  check_zip_member(zip_, archive.limits());
}

uint64_t MemberRead::wanted_end() const {
  if (has_header_) return data_.end;
  const bool is_known = header_.size() > kZipLocalHeaderNbytes;
  const uint64_t header_nbytes =
      is_known ? header_.size()
               : kZipLocalHeaderNbytes + zip_.name_in_file().size() + kLikelyExtraNbytes;
  // A large member's data comes in parts, once it is known where it begins.
  const uint64_t data_nbytes =
      wanted_nbytes_ > archive_.source().read_sizes(Range::kToEnd).part_nbytes ? kFirstReadNbytes
                                                                               : wanted_nbytes_;
  return zip_.local_offset +
         std::min(header_nbytes + data_nbytes, zip_.end_offset - zip_.local_offset);
}

MutableBytes MemberRead::room(size_t want) {
  if (has_header_) return data_.room(next_offset_, want);
  if (header_.empty()) header_.resize(kZipLocalHeaderNbytes);
  const size_t filled_nbytes = next_offset_ - zip_.local_offset;
  return MutableBytes(header_).subspan(filled_nbytes,
                                       std::min(want, header_.size() - filled_nbytes));
}

void MemberRead::filled(size_t nbytes) {
  next_offset_ += nbytes;
  if (has_header_ || next_offset_ - zip_.local_offset < header_.size()) return;
  if (header_.size() == kZipLocalHeaderNbytes) {
    const uint64_t header_nbytes = find_zip_data(header_, zip_).value();
    header_.resize(header_nbytes);
    if (header_nbytes > kZipLocalHeaderNbytes) return;
  }
  check_zip_local_header(header_, zip_);
  begin_data();
}

OwnedBytes MemberRead::allocate(uint64_t nbytes) const {
  try {
    return allocator_.allocate(nbytes);
  } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    throw FormatError(
        fmt::format("expected a member that fits into memory but found one of {} bytes ({})",
                    nbytes, std::string_view(error.what()).substr(0, 200)));
  }
}

void MemberRead::begin_data() {
  has_header_ = true;
  data_.begin = next_offset_;
  data_.end = next_offset_ + wanted_nbytes_;
  if (is_view_) return;
  // A stored array is where it is to be as soon as it is here.
  const bool is_final = is_stored() && !options_.header_only;
  data_.memory = is_final ? allocate(wanted_nbytes_) : allocate_bytes(wanted_nbytes_);
}

void MemberRead::take_from_tail() {
  const NpzArchive::Tail& tail = archive_.tail();
  is_view_ = tail.is_view;
  if (is_view_) wanted_nbytes_ = zip_.compressed_nbytes;
  const uint64_t tail_end = tail.offset + tail.content.bytes.size();
  while (!is_complete() && next_offset_ >= tail.offset && next_offset_ < tail_end) {
    const MutableBytes there = tail.content.bytes.subspan(next_offset_ - tail.offset);
    if (has_header_ && is_view_) {
      data_.memory = {there.first(wanted_nbytes_), tail.content.owner};
      next_offset_ = data_.end;
      return;
    }
    const MutableBytes here = room(there.size());
    std::memcpy(here.data(), there.data(), here.size());
    filled(here.size());
  }
}

std::optional<NpzEntry> MemberRead::read_header() {
  ByteView data = data_.memory.bytes;
  // More gives no header: a stream need not give a byte in any number of its own.
  const bool is_long = data.size() >= kLongHeaderReadNbytes;
  if (is_long) data = data.first(kLongHeaderReadNbytes);
  NpzEntry entry{member_, std::nullopt, {}, false};
  // Most headers take 128 bytes: the longest room is asked for when they do not.
  std::vector<uint8_t> inflated;
  for (const uint64_t room_nbytes : {uint64_t{512}, 12 + kMaxHeaderNbytes}) {
    ByteView prefix = data;
    if (!is_stored()) {
      inflated.resize(std::min(room_nbytes, zip_.nbytes));
      prefix = ByteView(inflated).first(inflate_prefix(data, inflated));
    }
    const std::optional<uint64_t> data_offset = find_npy_data_offset(prefix);
    const bool is_all =
        is_long || prefix.size() == zip_.nbytes || data.size() == zip_.compressed_nbytes;
    const bool is_long_enough = data_offset && *data_offset <= prefix.size();
    if (!is_long_enough && !(is_all && room_nbytes > 512)) continue;
    entry.header = parse_npy_header(prefix);
    return entry;
  }
  wanted_nbytes_ = std::min(kLongHeaderReadNbytes, zip_.compressed_nbytes);
  data_.end = data_.begin + wanted_nbytes_;
  OwnedBytes memory = allocate_bytes(wanted_nbytes_);
  if (!data.empty()) std::memcpy(memory.bytes.data(), data.data(), data.size());
  data_.memory = std::move(memory);
  return std::nullopt;
}

uint64_t MemberRead::decoding_cost_ns() const {
  // Inflating gives about 0.5 GB/s; the CRC-32 of what is there takes 10.
  if (!is_stored()) return 2 * zip_.nbytes;
  const bool is_checked = options_.verify && !(is_view_ && archive_.is_verified(member_));
  return is_checked ? zip_.nbytes / 10 : 0;
}

NpzEntry MemberRead::decode() {
  NpzEntry entry{member_, std::nullopt, {}, is_view_ && is_stored()};
  if (is_stored()) {
    entry.data = std::move(data_.memory);
  } else {
    entry.data = allocate(zip_.nbytes);
    inflate(data_.memory.bytes, entry.data.bytes);
    data_.memory = {};
  }
  // A view that was verified once may have been written to since: by its owner's leave.
  if (options_.verify && !(entry.is_view && archive_.is_verified(member_))) {
    const uint32_t found = crc32(entry.data.bytes);
    if (found != zip_.crc32) {
      throw FormatError(fmt::format(
          "expected CRC-32 0x{:08x} but found 0x{:08x}; the data is corrupt", zip_.crc32, found));
    }
    if (entry.is_view) archive_.set_verified(member_);
  }
  if (options_.as_bytes) return entry;
  if (!begins_as_npy(entry.data.bytes) && !zip_.name.ends_with(".npy")) return entry;
  NpyHeader header = parse_npy_header(entry.data.bytes);
  const bool is_void = header.dtype.type == ScalarType::kVoid;
  if (!(is_void && options_.allow_void)) check_npy_loadable(header.dtype);
  check_npy_data(header, entry.data.bytes.size() - header.data_offset);
  entry.data.bytes = entry.data.bytes.subspan(header.data_offset, header.nbytes);
  entry.header = std::move(header);
  return entry;
}

}  // namespace torchnpy
