// One member of an archive on its way from the object to an entry; for npz.cpp.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "archive/npz.h"
#include "archive/parts.h"

namespace torchnpy {

class MemberRead {
 public:
  // `allocator` gives the memory of stored members, and of inflated ones.
  MemberRead(const NpzArchive& archive, size_t member, Allocator& allocator,
             const NpzLoadOptions& options);

  const ZipMember& zip() const { return zip_; }
  size_t member() const { return member_; }

  // The next byte of the object that is wanted, and where what is wanted ends, as far as that
  // is known: a local header tells its own length.
  uint64_t next_offset() const { return next_offset_; }
  uint64_t wanted_end() const;
  bool is_complete() const { return has_header_ && next_offset_ == data_.end; }

  // Memory for the bytes at next_offset(), at most `want`; then that they are there.
  MutableBytes room(size_t want);
  void filled(size_t nbytes);
  // Takes what the archive's tail has; all of it without a copy when the tail is a view.
  void take_from_tail();

  // When the local header is there: the data's place, which may be filled by other ways, up to
  // `offset` of the object.
  bool has_header() const { return has_header_; }
  const Destination& data() const { return data_; }
  void set_filled(uint64_t offset) { next_offset_ = offset; }

  // When complete and options.header_only: the array's header; empty when it takes more bytes,
  // which are wanted now.
  std::optional<NpzEntry> read_header();
  // When complete: inflates, verifies and parses. Once; on any thread.
  NpzEntry decode();
  // What decode() takes, roughly.
  uint64_t decoding_cost_ns() const;

 private:
  OwnedBytes allocate(uint64_t nbytes) const;
  void begin_data();
  bool is_stored() const { return zip_.method == kZipStored; }

  const NpzArchive& archive_;
  const size_t member_;
  const ZipMember& zip_;
  Allocator& allocator_;
  const NpzLoadOptions& options_;

  uint64_t next_offset_;
  std::vector<uint8_t> header_;  // the local header, as far as it is known to reach
  bool has_header_ = false;
  uint64_t wanted_nbytes_;  // of the data
  Destination data_;        // the member's bytes as they are in the archive
  bool is_view_ = false;
};

}  // namespace torchnpy
