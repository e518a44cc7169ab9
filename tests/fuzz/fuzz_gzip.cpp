// Any bytes inflate or give a FormatError, the same however they are cut; what is compressed
// inflates to what it was.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "base/error.h"
#include "format/gzip.h"

namespace torchnpy {
namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

struct Inflated {
  bool failed = false;
  std::string bytes;
};

Inflated inflate_all(ByteView compressed, size_t piece_nbytes) {
  Inflated result;
  try {
    GzipReader reader;
    for (; !compressed.empty();
         compressed = compressed.subspan(std::min(piece_nbytes, compressed.size()))) {
      reader.feed(compressed.first(std::min(piece_nbytes, compressed.size())),
                  [&](ByteView piece) { result.bytes.append(as_text(piece)); });
    }
    reader.finish();
  } catch (const FormatError&) {
    result.failed = true;
  }
  return result;
}

void check(ByteView input) {
  if (input.empty()) return;
  const size_t piece_nbytes = input[0] + 1u;
  const ByteView bytes = input.subspan(1);
  const Inflated whole = inflate_all(bytes, bytes.size() + 1);
  const Inflated cut = inflate_all(bytes, piece_nbytes);
  require(whole.failed == cut.failed);
  if (!whole.failed) require(whole.bytes == cut.bytes);

  GzipWriter writer;
  std::string compressed;
  writer.write(bytes, compressed);
  writer.finish(compressed);
  const Inflated back = inflate_all(as_bytes(compressed), piece_nbytes);
  require(!back.failed && back.bytes == as_text(bytes));
}

}  // namespace
}  // namespace torchnpy

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  torchnpy::check({data, size});
  return 0;
}
