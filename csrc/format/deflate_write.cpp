// Compressing. Each block of a stream is by itself and ends at a byte, so that any number of
// threads make them; all but the last end in an empty stored block, as zlib's full flush does it.
#include <isa-l/igzip_lib.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "format/deflate.h"

#ifdef TORCHNPY_LIBDEFLATE
#include <libdeflate.h>
#endif

namespace torchnpy {
namespace {

constexpr uint64_t kMaxStoredNbytes = 65535;
constexpr uint64_t kStoredHeaderNbytes = 5;

// Up to this level ISA-L compresses.
constexpr int kMaxIsalLevel = 3;

size_t store(ByteView block, bool is_last, MutableBytes out) {
  size_t filled = 0;
  do {
    const ByteView piece = block.first(std::min(block.size(), kMaxStoredNbytes));
    block = block.subspan(piece.size());
    const auto nbytes = static_cast<uint16_t>(piece.size());
    const auto complement = static_cast<uint16_t>(~nbytes);
    out[filled] = is_last && block.empty() ? 1 : 0;
    std::memcpy(&out[filled + 1], &nbytes, 2);
    std::memcpy(&out[filled + 3], &complement, 2);
    filled += kStoredHeaderNbytes;
    if (!piece.empty()) std::memcpy(&out[filled], piece.data(), piece.size());
    filled += piece.size();
  } while (!block.empty());
  return filled;
}

// Those that follow compress `block` into `out` and give 0 when it has no room for the outcome.

size_t deflate_with_isal(ByteView block, bool is_last, int level, MutableBytes out) {
  // The smaller the buffer of symbols is, the better each part's codes fit; below this size what
  // the codes themselves take outweighs that.
  thread_local std::vector<uint8_t> symbols(ISAL_DEF_LVL2_LARGE);
  static_assert(ISAL_DEF_LVL2_LARGE >= ISAL_DEF_LVL1_LARGE);
#ifdef __aarch64__
  // Its code for this processor looks ahead beyond the block's end, where no memory may be.
  thread_local std::vector<uint8_t> padded;
  padded.resize(block.size() + ISAL_LOOK_AHEAD);
  std::ranges::copy(block, padded.begin());
  block = ByteView(padded).first(block.size());
#endif
  isal_zstream stream;
  isal_deflate_stateless_init(&stream);
  stream.level = static_cast<uint32_t>(std::min(level, 2));
  stream.level_buf = symbols.data();
  stream.level_buf_size = static_cast<uint32_t>(symbols.size());
  stream.end_of_stream = is_last ? 1 : 0;
  stream.flush = is_last ? NO_FLUSH : FULL_FLUSH;
  stream.next_in = const_cast<uint8_t*>(block.data());
  stream.avail_in = static_cast<uint32_t>(block.size());
  stream.next_out = out.data();
  stream.avail_out = static_cast<uint32_t>(out.size());
  if (isal_deflate_stateless(&stream) != COMP_OK || stream.avail_in != 0) return 0;
  return stream.total_out;
}

#ifdef TORCHNPY_LIBDEFLATE

struct FreeCompressor {
  void operator()(libdeflate_compressor* compressor) const {
    libdeflate_free_compressor(compressor);
  }
};

// Of a stream, in bits: where its last block begins and ends.
struct LastBlock {
  uint64_t begin = 0;
  uint64_t end = 0;
};

// zlib tells where blocks end, at the price of inflating them.
LastBlock find_last_block(ByteView whole) {
  constexpr int kRawMaxWindow = -15;
  constexpr int kInLast = 64;
  constexpr int kAtBlockEnd = 128;
  std::array<uint8_t, 32 << 10> unused;
  z_stream stream{};
  if (inflateInit2(&stream, kRawMaxWindow) != Z_OK) throw std::bad_alloc();
  const std::unique_ptr<z_stream, int (*)(z_stream*)> ending(&stream, inflateEnd);
  stream.next_in = const_cast<Bytef*>(whole.data());
  stream.avail_in = static_cast<uInt>(whole.size());
  LastBlock last;
  while ((stream.data_type & kInLast) == 0 || (stream.data_type & kAtBlockEnd) == 0) {
    stream.next_out = unused.data();
    stream.avail_out = unused.size();
    if (::inflate(&stream, Z_BLOCK) != Z_OK) throw std::bad_alloc();
    if ((stream.data_type & kAtBlockEnd) == 0) continue;
    last.begin = last.end;
    last.end = 8 * stream.total_in - (stream.data_type & 7);
  }
  return last;
}

// libdeflate ends its streams: takes that back, and adds the empty stored block (000 in bits, as
// many zeros as the byte still needs, the lengths 0 and ~0). The new number of bytes.
size_t reopen(MutableBytes out, size_t filled) {
  const LastBlock last = find_last_block(out.first(filled));
  out[last.begin / 8] &= static_cast<uint8_t>(~(1U << (last.begin % 8)));
  const size_t lengths = (last.end + 3 + 7) / 8;
  constexpr std::array<uint8_t, 4> kLengths = {0, 0, 0xFF, 0xFF};
  if (lengths > filled) out[filled] = 0;
  std::ranges::copy(kLengths, &out[lengths]);
  return lengths + kLengths.size();
}

size_t deflate_hard(ByteView block, bool is_last, int level, MutableBytes out) {
  constexpr std::array<int, kMaxDeflateLevel + 1> kLevels = {0, 0, 0, 0, 1, 5, 6, 7, 10, 12};
  constexpr size_t kReopenNbytes = 5;
  // Some 100 KiB, from level 8 on 9 MiB.
  thread_local std::unique_ptr<libdeflate_compressor, FreeCompressor> compressor;
  thread_local int compressor_level = 0;
  if (compressor == nullptr || compressor_level != level) {
    compressor.reset(libdeflate_alloc_compressor(kLevels.at(static_cast<size_t>(level))));
    if (compressor == nullptr) throw std::bad_alloc();
    compressor_level = level;
  }
  if (out.size() < kReopenNbytes) return 0;
  const size_t filled =
      libdeflate_deflate_compress(compressor.get(), block.data(), block.size(), out.data(),
                                  out.size() - (is_last ? 0 : kReopenNbytes));
  return filled == 0 || is_last ? filled : reopen(out, filled);
}

#else

size_t deflate_hard(ByteView block, bool is_last, int level, MutableBytes out) {
  constexpr int kRawMaxWindow = -15;
  constexpr int kDefaultMemory = 8;
  z_stream stream{};
  if (deflateInit2(&stream, level, Z_DEFLATED, kRawMaxWindow, kDefaultMemory, Z_DEFAULT_STRATEGY) !=
      Z_OK) {
    throw std::bad_alloc();
  }
  const std::unique_ptr<z_stream, int (*)(z_stream*)> ending(&stream, deflateEnd);
  stream.next_in = const_cast<Bytef*>(block.data());
  stream.avail_in = static_cast<uInt>(block.size());
  stream.next_out = out.data();
  stream.avail_out = static_cast<uInt>(out.size());
  const int code = deflate(&stream, is_last ? Z_FINISH : Z_FULL_FLUSH);
  // A flush that has filled all of the room may not have been complete.
  if (is_last ? code != Z_STREAM_END : code != Z_OK || stream.avail_out == 0) return 0;
  return stream.total_out;
}

#endif

}  // namespace

uint64_t deflate_block_nbytes(int level) {
  if (level <= kMaxIsalLevel) return 1 << 20;
  return level < 8 ? 512 << 10 : 256 << 10;
}

uint64_t deflate_bound(uint64_t block_nbytes) {
  const uint64_t count =
      std::max<uint64_t>(1, (block_nbytes + kMaxStoredNbytes - 1) / kMaxStoredNbytes);
  return block_nbytes + count * kStoredHeaderNbytes;
}

size_t deflate_block(ByteView block, bool is_last, int level, MutableBytes out) {
  const size_t stored_nbytes = deflate_bound(block.size());
  const MutableBytes room = out.first(stored_nbytes);
  size_t filled = 0;
  if (!block.empty()) {
    filled = level <= kMaxIsalLevel ? deflate_with_isal(block, is_last, level, room)
                                    : deflate_hard(block, is_last, level, room);
  }
  return filled == 0 ? store(block, is_last, room) : filled;
}

}  // namespace torchnpy
