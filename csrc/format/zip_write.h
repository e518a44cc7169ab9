// What a ZIP archive consists of besides its members' data, as bytes. Pure: no I/O. Equal members
// give equal bytes: all are dated 1980-01-01, as numpy dates them.
//
// A writer puts, for each member: local header, data, and a descriptor if kZipHasDescriptor is
// set; then an entry for each member, and the end.
#pragma once

#include <cstdint>
#include <string>

#include "format/zip.h"

namespace torchnpy {

// A flag of a member: its sizes and CRC-32 follow its data, in a descriptor (APPNOTE 4.3.9).
inline constexpr uint16_t kZipHasDescriptor = 1 << 3;

// The longest name of a member, in bytes of UTF-8.
inline constexpr uint64_t kMaxZipNameNbytes = 65535;

// Of `member`: name, flags, method and local_offset, and nbytes; without kZipHasDescriptor also
// crc32 and compressed_nbytes. Where it ends, and the data begins, is a multiple of
// `data_alignment`, which is at most 32768, in the archive.
std::string format_zip_local_header(const ZipMember& member, uint16_t data_alignment = 1);

std::string format_zip_descriptor(const ZipMember& member);

// Of the directory.
std::string format_zip_entry(const ZipMember& member);

// What follows the directory.
std::string format_zip_end(const ZipEnd& end);

}  // namespace torchnpy
