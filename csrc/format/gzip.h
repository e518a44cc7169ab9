// Gzip (RFC 1952), piece by piece.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/bytes.h"

namespace torchnpy {

// Compresses one member, to about the size of zlib's level 9 in a fifth of its time. Its header has
// no name and no time, so that the same bytes give the same file.
class GzipWriter {
 public:
  // Appends to `out` what is ready.
  void write(ByteView bytes, std::string& out);
  // Nothing may be written after it.
  void finish(std::string& out);

 private:
  void compress_block(bool is_last, std::string& out);

  std::string block_;  // not compressed yet
  bool has_begun_ = false;
  uint32_t crc_ = 0;
  uint64_t nbytes_ = 0;
};

// Inflates members one after the other, with zeros behind the last, as gzip does. Of no bytes
// nothing is made. Checks length and CRC-32 of each.
class GzipReader {
 public:
  using Sink = std::function<void(ByteView)>;

  GzipReader();
  ~GzipReader();
  GzipReader(const GzipReader&) = delete;
  GzipReader& operator=(const GzipReader&) = delete;

  // Takes the next bytes, cut anywhere, and hands on what they inflate to, at most 256 KiB at a
  // time: that alone bounds the memory that hostile data costs. Throws FormatError.
  void feed(ByteView compressed, const Sink& sink);
  // The bytes have ended. Throws FormatError inside a member.
  void finish() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace torchnpy
