#include "format/zip_write.h"

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <string_view>

#include "format/zip_words.h"

namespace torchnpy {
namespace {

constexpr uint16_t kDate = 1 << 5 | 1;  // of 1980-01-01
constexpr uint16_t kVersion = 20;       // directories and DEFLATE
constexpr uint16_t kZip64Version = 45;
constexpr uint16_t kUnix = 3 << 8;  // whose attributes they are
// As Python's zipfile gives those that it is told no mode of: rw-------.
constexpr uint32_t kAttributes = uint32_t{0600} << 16;
constexpr uint64_t kCountInZip64 = std::numeric_limits<uint16_t>::max();

// Appends little-endian integers.
class Writer {
 public:
  Writer& text(std::string_view text) {
    bytes_ += text;
    return *this;
  }
  Writer& u16(uint64_t value) { return integer(value, 2); }
  Writer& u32(uint64_t value) { return integer(value, 4); }
  Writer& u64(uint64_t value) { return integer(value, 8); }
  std::string take() { return std::move(bytes_); }

 private:
  Writer& integer(uint64_t value, int nbytes) {
    for (int i = 0; i < nbytes; ++i) bytes_ += static_cast<char>(value >> (8 * i));
    return *this;
  }

  std::string bytes_;
};

uint64_t in_32_bits(uint64_t value) { return std::min(value, kInZip64); }

// The extra field of those values, if there are any.
std::string format_zip64(std::initializer_list<uint64_t> values) {
  if (values.size() == 0) return {};
  Writer field;
  field.u16(0x0001).u16(8 * values.size());
  for (const uint64_t value : values) field.u64(value);
  return field.take();
}

// The field that apksig and zipalign align data with: the alignment, and then zeros.
std::string format_padding(uint64_t header_end, uint16_t data_alignment) {
  constexpr uint64_t kEmptyNbytes = 6;
  uint64_t nbytes = (data_alignment - header_end % data_alignment) % data_alignment;
  if (nbytes == 0) return {};
  while (nbytes < kEmptyNbytes) nbytes += data_alignment;
  std::string field = Writer().u16(0xD935).u16(nbytes - 4).u16(data_alignment).take();
  field.resize(nbytes);
  return field;
}

bool has_descriptor(const ZipMember& member) { return (member.flags & kZipHasDescriptor) != 0; }

// Whether the local header and the descriptor have sizes of 64 bits. They must agree, and of what
// a descriptor follows only the one size is known in time: the other may be larger by what stored
// blocks take, 320 KiB in 4 GiB.
bool is_zip64(const ZipMember& member) {
  constexpr uint64_t kSlackNbytes = 1 << 20;
  if (has_descriptor(member)) return member.nbytes >= kInZip64 - kSlackNbytes;
  return member.nbytes >= kInZip64 || member.compressed_nbytes >= kInZip64;
}

// In the plainest encoding there is, as Python's zipfile does it.
uint16_t flags(const ZipMember& member) {
  const bool is_ascii = std::ranges::all_of(member.name, [](char c) { return (c & 0x80) == 0; });
  return is_ascii ? member.flags : member.flags | kUtf8;
}

}  // namespace

std::string format_zip_local_header(const ZipMember& member, uint16_t data_alignment) {
  // What only the descriptor tells is zero here (APPNOTE 4.4.4).
  const bool is_known = !has_descriptor(member);
  const uint64_t nbytes = is_known ? member.nbytes : 0;
  const uint64_t compressed_nbytes = is_known ? member.compressed_nbytes : 0;
  // Both sizes or neither (APPNOTE 4.5.3). That the field is there says how long those of the
  // descriptor are.
  const bool zip64 = is_zip64(member);
  std::string extra = zip64 ? format_zip64({nbytes, compressed_nbytes}) : std::string();
  extra += format_padding(
      member.local_offset + kZipLocalHeaderNbytes + member.name.size() + extra.size(),
      data_alignment);
  return Writer()
      .text("PK\3\4")
      .u16(zip64 ? kZip64Version : kVersion)
      .u16(flags(member))
      .u16(member.method)
      .u16(0)
      .u16(kDate)
      .u32(is_known ? member.crc32 : 0)
      .u32(zip64 ? kInZip64 : compressed_nbytes)
      .u32(zip64 ? kInZip64 : nbytes)
      .u16(member.name.size())
      .u16(extra.size())
      .text(member.name)
      .text(extra)
      .take();
}

std::string format_zip_descriptor(const ZipMember& member) {
  Writer descriptor;
  descriptor.text("PK\7\10").u32(member.crc32);
  if (is_zip64(member)) {
    descriptor.u64(member.compressed_nbytes).u64(member.nbytes);
  } else {
    descriptor.u32(member.compressed_nbytes).u32(member.nbytes);
  }
  return descriptor.take();
}

std::string format_zip_entry(const ZipMember& member) {
  // Both sizes, as Python's zipfile writes them, where one is too large: readers that take the
  // field for a fixed struct find it so.
  const bool sizes = member.nbytes >= kInZip64 || member.compressed_nbytes >= kInZip64;
  const bool offset = member.local_offset >= kInZip64;
  std::string extra;
  if (sizes && offset) {
    extra = format_zip64({member.nbytes, member.compressed_nbytes, member.local_offset});
  } else if (sizes) {
    extra = format_zip64({member.nbytes, member.compressed_nbytes});
  } else if (offset) {
    extra = format_zip64({member.local_offset});
  }
  const uint16_t version = is_zip64(member) || offset ? kZip64Version : kVersion;
  return Writer()
      .text("PK\1\2")
      .u16(kUnix | version)
      .u16(version)
      .u16(flags(member))
      .u16(member.method)
      .u16(0)
      .u16(kDate)
      .u32(member.crc32)
      .u32(sizes ? kInZip64 : member.compressed_nbytes)
      .u32(sizes ? kInZip64 : member.nbytes)
      .u16(member.name.size())
      .u16(extra.size())
      .u16(0)  // no comment
      .u16(0)  // in this file
      .u16(0)
      .u32(kAttributes)
      .u32(in_32_bits(member.local_offset))
      .text(member.name)
      .text(extra)
      .take();
}

std::string format_zip_end(const ZipEnd& end) {
  Writer bytes;
  if (end.member_count >= kCountInZip64 || end.directory_nbytes >= kInZip64 ||
      end.directory_offset >= kInZip64) {
    bytes.text("PK\6\6").u64(44).u16(kUnix | kZip64Version).u16(kZip64Version);
    bytes.u32(0).u32(0).u64(end.member_count).u64(end.member_count);
    bytes.u64(end.directory_nbytes).u64(end.directory_offset);
    bytes.text("PK\6\7").u32(0).u64(end.directory_offset + end.directory_nbytes).u32(1);
  }
  const uint64_t count = std::min(end.member_count, kCountInZip64);
  bytes.text("PK\5\6").u16(0).u16(0).u16(count).u16(count);
  bytes.u32(in_32_bits(end.directory_nbytes)).u32(in_32_bits(end.directory_offset)).u16(0);
  return bytes.take();
}

}  // namespace torchnpy
