// Bytes of ZIP archives, with any field as a test wants it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace torchnpy {

// The low bytes of `value`, little-endian.
inline std::string little(uint64_t value, size_t nbytes) {
  std::string bytes;
  for (size_t i = 0; i < nbytes; ++i) bytes += static_cast<char>(i < 8 ? value >> (8 * i) : 0);
  return bytes;
}

inline std::string extra_field(uint16_t id, std::string_view data) {
  return little(id, 2) + little(data.size(), 2) + std::string(data);
}

// What is not set follows from the others.
struct ZipEntry {
  std::string name;
  std::string data;  // as stored
  uint16_t flags = 0;
  uint16_t method = 0;
  uint32_t crc32 = 0;
  std::string extra = {};    // in the directory
  std::string comment = {};  // in the directory
  uint16_t disk = 0;
  std::optional<uint32_t> nbytes = {};
  std::optional<uint32_t> compressed_nbytes = {};
  std::optional<uint32_t> local_offset = {};
  std::optional<uint16_t> extra_nbytes = {};
  std::string local_extra = {};  // in the local header
};

inline std::string local_header(const ZipEntry& entry) {
  return "PK\3\4" + little(45, 2) + little(entry.flags, 2) + little(entry.method, 2) +
         little(0, 4) + little(entry.crc32, 4) +
         little(entry.compressed_nbytes.value_or(entry.data.size()), 4) +
         little(entry.nbytes.value_or(entry.data.size()), 4) + little(entry.name.size(), 2) +
         little(entry.local_extra.size(), 2) + entry.name + entry.local_extra;
}

inline std::string central_header(const ZipEntry& entry, uint64_t local_offset) {
  return "PK\1\2" + little(45, 2) + little(45, 2) + little(entry.flags, 2) +
         little(entry.method, 2) + little(0, 4) + little(entry.crc32, 4) +
         little(entry.compressed_nbytes.value_or(entry.data.size()), 4) +
         little(entry.nbytes.value_or(entry.data.size()), 4) + little(entry.name.size(), 2) +
         little(entry.extra_nbytes.value_or(entry.extra.size()), 2) +
         little(entry.comment.size(), 2) + little(entry.disk, 2) + little(0, 6) +
         little(entry.local_offset.value_or(local_offset), 4) + entry.name + entry.extra +
         entry.comment;
}

struct EndFields {
  uint64_t member_count = 0;
  uint64_t directory_nbytes = 0;
  uint64_t directory_offset = 0;
  uint32_t disk = 0;
  std::string comment = {};
  std::optional<uint16_t> comment_nbytes = {};
};

inline std::string end_record(const EndFields& end) {
  return "PK\5\6" + little(end.disk, 2) + little(end.disk, 2) + little(end.member_count, 2) +
         little(end.member_count, 2) + little(end.directory_nbytes, 4) +
         little(end.directory_offset, 4) +
         little(end.comment_nbytes.value_or(end.comment.size()), 2) + end.comment;
}

inline std::string zip64_record(const EndFields& end, std::string_view extensible = "") {
  return "PK\6\6" + little(44 + extensible.size(), 8) + little(45, 2) + little(45, 2) +
         little(end.disk, 4) + little(end.disk, 4) + little(end.member_count, 8) +
         little(end.member_count, 8) + little(end.directory_nbytes, 8) +
         little(end.directory_offset, 8) + std::string(extensible);
}

inline std::string zip64_locator(uint64_t record_offset, uint32_t disk_count = 1) {
  return "PK\6\7" + little(0, 4) + little(record_offset, 8) + little(disk_count, 4);
}

// An end record that leaves all to the ZIP64 one.
inline std::string all_ones_end_record() {
  return end_record(
      {.member_count = 0xFFFF, .directory_nbytes = 0xFFFFFFFF, .directory_offset = 0xFFFFFFFF});
}

// The members with their local headers, and then the directory; without an end record.
struct ZipBody {
  std::string bytes;
  EndFields end;
};

inline ZipBody zip_body(const std::vector<ZipEntry>& entries) {
  ZipBody body;
  std::string directory;
  for (const ZipEntry& entry : entries) {
    directory += central_header(entry, body.bytes.size());
    body.bytes += local_header(entry) + entry.data;
  }
  body.end = {.member_count = entries.size(),
              .directory_nbytes = directory.size(),
              .directory_offset = body.bytes.size()};
  body.bytes += directory;
  return body;
}

inline std::string zip_bytes(const std::vector<ZipEntry>& entries, std::string_view comment = "") {
  ZipBody body = zip_body(entries);
  body.end.comment = comment;
  return body.bytes + end_record(body.end);
}

inline std::string zip64_bytes(const std::vector<ZipEntry>& entries,
                               std::string_view extensible = "") {
  const ZipBody body = zip_body(entries);
  return body.bytes + zip64_record(body.end, extensible) + zip64_locator(body.bytes.size()) +
         all_ones_end_record();
}

}  // namespace torchnpy
