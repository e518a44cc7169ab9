// Any bytes inflate or give a FormatError, the same with each codec; and their front inflates to
// the front.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "format/deflate.h"

namespace torchnpy {
namespace {

using Bytes = std::vector<uint8_t>;

void require(bool condition) {
  if (!condition) std::abort();
}

// Empty when all went well.
std::string inflate_error(ByteView compressed, Bytes& out, Codec codec) {
  try {
    inflate(compressed, out, codec);
    return "";
  } catch (const FormatError& error) {
    return error.what();
  }
}

void check_codecs(ByteView compressed, size_t nbytes) {
  Bytes by_zlib(nbytes);
  Bytes by_default(nbytes);
  const std::string zlib_error = inflate_error(compressed, by_zlib, Codec::kZlib);
  const std::string default_error = inflate_error(compressed, by_default, kDefaultCodec);
  if (zlib_error.empty()) {
    require(default_error.empty() && by_default == by_zlib);
    return;
  }
  // libdeflate takes some codes that DEFLATE does not allow: what they inflate to is up to it.
  const bool is_lenient =
      default_error.empty() && zlib_error.find("a broken stream") != std::string::npos;
  require(is_lenient || default_error == zlib_error);
}

void check_prefix(ByteView compressed, size_t nbytes) {
  Bytes whole(nbytes);
  Bytes front(nbytes);
  try {
    whole.resize(inflate_prefix(compressed, whole));
    front.resize(inflate_prefix(compressed.first(compressed.size() / 2), front));
  } catch (const FormatError&) {
    return;
  }
  require(front.size() <= whole.size());
  require(std::equal(front.begin(), front.end(), whole.begin()));
  Bytes out(nbytes);
  if (inflate_error(compressed, out, Codec::kZlib).empty()) require(whole == out);
}

// The first two bytes are the size to inflate to.
void check(ByteView input) {
  if (input.size() < 2) return;
  Cursor cursor(input);
  const size_t nbytes = cursor.read_u16();
  const ByteView compressed = cursor.read_bytes(cursor.remaining());
  check_codecs(compressed, nbytes);
  check_prefix(compressed, nbytes);
}

}  // namespace
}  // namespace torchnpy

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  torchnpy::check({data, size});
  return 0;
}
