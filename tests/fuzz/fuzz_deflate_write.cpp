// Any bytes, cut into any blocks, are the same again when the joined blocks are inflated by either
// codec; and no block is larger than deflate_bound() says.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "format/deflate.h"

namespace torchnpy {
namespace {

using Bytes = std::vector<uint8_t>;

void require(bool condition) {
  if (!condition) std::abort();
}

// Just what is needed: whoever reads or writes beyond is found.
Bytes deflate_exactly(ByteView block, bool is_last, int level) {
  const Bytes exact(block.begin(), block.end());
  Bytes out(deflate_bound(exact.size()));
  const size_t filled = deflate_block(exact, is_last, level, out);
  require(filled != 0 && filled <= out.size());
  out.resize(filled);
  return out;
}

void check(ByteView bytes, int level, size_t block_nbytes) {
  Bytes stream;
  size_t offset = 0;
  do {
    const ByteView block = bytes.subspan(offset, std::min(block_nbytes, bytes.size() - offset));
    offset += block.size();
    const Bytes out = deflate_exactly(block, offset == bytes.size(), level);
    stream.insert(stream.end(), out.begin(), out.end());
  } while (offset < bytes.size());
  for (const Codec codec : {Codec::kZlib, kDefaultCodec}) {
    Bytes inflated(bytes.size());
    inflate(stream, inflated, codec);
    require(std::ranges::equal(inflated, bytes));
  }
}

// The first four bytes: level, the block's length, how often the rest is repeated.
void check_input(ByteView input) {
  if (input.size() < 4) return;
  Cursor cursor(input);
  const int level = 1 + cursor.read_u8() % kMaxDeflateLevel;
  const size_t block_nbytes = 1 + cursor.read_u16();
  const size_t repeats = 1 + cursor.read_u8() % 64;
  const ByteView rest = cursor.read_bytes(cursor.remaining());
  if (repeats * rest.size() / block_nbytes > 2000) return;  // takes too long
  Bytes bytes;
  for (size_t i = 0; i < repeats; ++i) bytes.insert(bytes.end(), rest.begin(), rest.end());
  check(bytes, level, block_nbytes);
}

}  // namespace
}  // namespace torchnpy

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  torchnpy::check_input({data, size});
  return 0;
}
