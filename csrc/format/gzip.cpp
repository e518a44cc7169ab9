#include "format/gzip.h"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <limits>
#include <new>
#include <string_view>
#include <utility>
#include <vector>

#include "base/checksum.h"
#include "base/error.h"
#include "format/deflate.h"

namespace torchnpy {
namespace {

constexpr size_t kPieceNbytes = 256 << 10;
constexpr int kLevel = 6;

// zlib counts in 32 bits.
ByteView first_slice(ByteView bytes) {
  return bytes.first(std::min<size_t>(bytes.size(), std::numeric_limits<uInt>::max()));
}

void append_u32(uint32_t value, std::string& out) {
  for (int shift = 0; shift < 32; shift += 8) out += static_cast<char>(value >> shift & 0xFF);
}

}  // namespace

void GzipWriter::write(ByteView bytes, std::string& out) {
  const uint64_t block_nbytes = deflate_block_nbytes(kLevel);
  crc_ = crc32(bytes, crc_);
  nbytes_ += bytes.size();
  while (!bytes.empty()) {
    const size_t room = block_nbytes - block_.size();
    const ByteView part = bytes.first(std::min(room, bytes.size()));
    block_.append(as_text(part));
    bytes = bytes.subspan(part.size());
    if (block_.size() == block_nbytes) compress_block(/*is_last=*/false, out);
  }
}

void GzipWriter::finish(std::string& out) {
  compress_block(/*is_last=*/true, out);
  append_u32(crc_, out);
  append_u32(static_cast<uint32_t>(nbytes_), out);  // modulo 2^32, as it is defined
}

void GzipWriter::compress_block(bool is_last, std::string& out) {
  // RFC 1952 2.3: deflate, no flags, no time; an unknown system.
  constexpr std::string_view kHeader("\x1F\x8B\x08\0\0\0\0\0\0\xFF", 10);
  if (!std::exchange(has_begun_, true)) out.append(kHeader);
  std::vector<uint8_t> room(deflate_bound(block_.size()));
  const size_t nbytes = deflate_block(as_bytes(block_), is_last, kLevel, room);
  out.append(as_text(ByteView(room).first(nbytes)));
  block_.clear();
}

struct GzipReader::State {
  z_stream stream{};
  std::vector<uint8_t> piece = std::vector<uint8_t>(kPieceNbytes);
  uint64_t consumed_nbytes = 0;
  bool in_member = false;
  bool after_member = false;

  // Of the slice that zlib has; how much of it is done with then.
  void inflate_member(const Sink& sink) {
    do {
      stream.next_out = piece.data();
      stream.avail_out = static_cast<uInt>(piece.size());
      const uInt before = stream.avail_in;
      const int code = ::inflate(&stream, Z_NO_FLUSH);
      consumed_nbytes += before - stream.avail_in;
      check(code);
      const size_t found = piece.size() - stream.avail_out;
      if (found > 0) sink(ByteView(piece).first(found));
      if (code == Z_STREAM_END) {
        in_member = false;
        after_member = true;
        inflateReset(&stream);
        return;
      }
      if (code == Z_BUF_ERROR) return;  // all that it has is out
    } while (stream.avail_in > 0 || stream.avail_out == 0);
  }

  void check(int code) const {
    if (code == Z_MEM_ERROR) throw std::bad_alloc();
    if (code == Z_OK || code == Z_STREAM_END || code == Z_BUF_ERROR) return;
    throw FormatError(fmt::format(
        "expected gzip data but found a broken stream ({}) at byte {}; the data is corrupt",
        stream.msg == nullptr ? "no reason given" : stream.msg, consumed_nbytes));
  }
};

GzipReader::GzipReader() : state_(std::make_unique<State>()) {
  constexpr int kGzipMaxWindow = 15 + 16;
  if (inflateInit2(&state_->stream, kGzipMaxWindow) != Z_OK) throw std::bad_alloc();
}

GzipReader::~GzipReader() { inflateEnd(&state_->stream); }

void GzipReader::feed(ByteView compressed, const Sink& sink) {
  State& state = *state_;
  while (!compressed.empty()) {
    if (!state.in_member && state.after_member && compressed[0] == 0) {
      ++state.consumed_nbytes;
      compressed = compressed.subspan(1);
      continue;
    }
    state.in_member = true;
    const ByteView slice = first_slice(compressed);
    state.stream.next_in = const_cast<Bytef*>(slice.data());
    state.stream.avail_in = static_cast<uInt>(slice.size());
    state.inflate_member(sink);
    compressed = compressed.subspan(slice.size() - state.stream.avail_in);
  }
}

void GzipReader::finish() const {
  if (!state_->in_member) return;
  throw FormatError(fmt::format(
      "expected the end of the gzip data but found none up to byte {}; the data is truncated",
      state_->consumed_nbytes));
}

}  // namespace torchnpy
