// DEFLATE (RFC 1951, no zlib or gzip framing). With base/checksum.cpp the only user of the codec
// libraries. All functions may run on any number of threads at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

#include "base/bytes.h"

namespace torchnpy {

enum class Codec {
  kLibdeflate,  // whole buffers only, and the fastest; absent from builds without the library
  kZlib,
};
// kLibdeflate where the build has it.
extern const Codec kDefaultCodec;

// Inflates all of `compressed` into all of `out`. Throws FormatError when the stream is broken,
// when it gives fewer or more bytes than out has, and when bytes follow the stream; `out` then
// holds anything.
void inflate(ByteView compressed, MutableBytes out, Codec codec = kDefaultCodec);

// Inflates from the front of `compressed`, which may be cut anywhere, until `out` is full, the
// stream ends or the input does. Returns the number of bytes that `out` got. Throws FormatError
// for a broken stream.
size_t inflate_prefix(ByteView compressed, MutableBytes out);

// How hard to compress: 1 (fastest) to kMaxDeflateLevel (smallest). 1 to 3 are ISA-L's 1, 2 and 2;
// 4 to 7 libdeflate's 1, 5, 6 and 7; 8 and 9 its 10 and 12. Without libdeflate 4 to 9 are zlib's.
// Chosen by what they give of arrays (docs/format.md): ISA-L's 3 and libdeflate's 8 and 9 take
// longer than their neighbours and give no less.
inline constexpr int kDefaultDeflateLevel = 2;
inline constexpr int kMaxDeflateLevel = 9;

// Into how large blocks to divide what is to be compressed at that level: such that one takes well
// below 100 ms, and larger ones would give no smaller streams to speak of.
uint64_t deflate_block_nbytes(int level);

// The most bytes that deflate_block() gives.
uint64_t deflate_bound(uint64_t block_nbytes);

// Compresses `block` into the front of `out`, which has room for deflate_bound(). Returns how many
// bytes it takes there. The outcomes for several blocks, the last of them with `is_last`, joined
// are one stream; none needs the others. What does not shrink is stored.
size_t deflate_block(ByteView block, bool is_last, int level, MutableBytes out);

// The versions of the libraries that inflate and deflate, for bug reports: "zlib", the one that is
// loaded; "libdeflate", the one whose header was compiled, absent where it is not used.
std::map<std::string, std::string> codec_library_versions();

}  // namespace torchnpy
