// DEFLATE (RFC 1951, no zlib or gzip framing). With base/checksum.cpp the only user of the codec
// libraries. All functions may run on any number of threads at once.
#pragma once

#include <cstddef>
#include <cstdint>

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

}  // namespace torchnpy
