#include "format/deflate.h"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <new>

#include "base/error.h"

#ifdef TORCHNPY_LIBDEFLATE
#include <libdeflate.h>
#endif

namespace torchnpy {
namespace {

// A raw DEFLATE stream that zlib reads piece by piece. Where zlib has a size_t, it is for the
// checksums only: what goes in and out is counted in 32 bits, so it is handed over in slices.
class ZlibStream {
 public:
  explicit ZlibStream(ByteView compressed) : compressed_(compressed) {
    constexpr int kRawMaxWindow = -15;
    if (inflateInit2(&stream_, kRawMaxWindow) != Z_OK) throw std::bad_alloc();
  }
  ~ZlibStream() { inflateEnd(&stream_); }
  ZlibStream(const ZlibStream&) = delete;
  ZlibStream& operator=(const ZlibStream&) = delete;

  bool has_ended() const { return has_ended_; }
  uint64_t consumed_nbytes() const { return consumed_nbytes_; }

  // Until `out` is full, the stream ends or the input does. The bytes that `out` got. When it has
  // no room, looks for the end of the stream all the same.
  size_t read(MutableBytes out) {
    size_t filled = 0;
    do {
      if (!advance(out, filled)) break;
    } while (!has_ended_ && filled < out.size());
    return filled;
  }

 private:
  // False when nothing more can be done with what is there.
  bool advance(MutableBytes out, size_t& filled) {
    constexpr size_t kMaxSlice = std::numeric_limits<uInt>::max();
    uint8_t no_room = 0;  // zlib wants an address even where nothing may be written
    const ByteView in = compressed_.subspan(consumed_nbytes_);
    const MutableBytes room = out.subspan(filled);
    const auto in_slice = static_cast<uInt>(std::min(in.size(), kMaxSlice));
    const auto out_slice = static_cast<uInt>(std::min(room.size(), kMaxSlice));
    stream_.next_in = const_cast<Bytef*>(in.data());
    stream_.avail_in = in_slice;
    stream_.next_out = room.empty() ? &no_room : room.data();
    stream_.avail_out = out_slice;
    const int code = ::inflate(&stream_, Z_NO_FLUSH);
    consumed_nbytes_ += in_slice - stream_.avail_in;
    filled += out_slice - stream_.avail_out;
    if (code == Z_MEM_ERROR) throw std::bad_alloc();
    if (code != Z_OK && code != Z_STREAM_END && code != Z_BUF_ERROR) {
      throw FormatError(fmt::format(
          "expected DEFLATE data but found a broken stream ({}) at byte {} of it; the data is "
          "corrupt",
          stream_.msg == nullptr ? "no reason given" : stream_.msg, consumed_nbytes_));
    }
    has_ended_ = code == Z_STREAM_END;
    return code != Z_BUF_ERROR;
  }

  const ByteView compressed_;
  uint64_t consumed_nbytes_ = 0;
  bool has_ended_ = false;
  z_stream stream_{};
};

void inflate_with_zlib(ByteView compressed, MutableBytes out) {
  ZlibStream stream(compressed);
  const size_t found = stream.read(out);
  uint8_t extra;
  if (!stream.has_ended() && stream.read({&extra, 1}) != 0) {
    throw FormatError(fmt::format(
        "expected {} bytes of inflated data but found more; the data is corrupt", out.size()));
  }
  if (!stream.has_ended()) {
    throw FormatError(
        fmt::format("expected {} bytes of inflated data but found {} before the compressed data "
                    "ended, at byte {} of it; the data is truncated",
                    out.size(), found, compressed.size()));
  }
  if (found != out.size()) {
    throw FormatError(fmt::format(
        "expected {} bytes of inflated data but found {}; the data is corrupt", out.size(), found));
  }
  if (stream.consumed_nbytes() != compressed.size()) {
    throw FormatError(
        fmt::format("expected the compressed data to end at byte {} but found {} more bytes; the "
                    "data is corrupt",
                    stream.consumed_nbytes(), compressed.size() - stream.consumed_nbytes()));
  }
}

#ifdef TORCHNPY_LIBDEFLATE

struct FreeDecompressor {
  void operator()(libdeflate_decompressor* decompressor) const {
    libdeflate_free_decompressor(decompressor);
  }
};

// False when it could not, whatever the reason.
bool inflate_with_libdeflate(ByteView compressed, MutableBytes out) {
  // Tables of some 10 KiB, which each stream fills anew.
  thread_local std::unique_ptr<libdeflate_decompressor, FreeDecompressor> decompressor;
  if (decompressor == nullptr) decompressor.reset(libdeflate_alloc_decompressor());
  if (decompressor == nullptr) throw std::bad_alloc();
  size_t consumed = 0;
  const libdeflate_result result =
      libdeflate_deflate_decompress_ex(decompressor.get(), compressed.data(), compressed.size(),
                                       out.data(), out.size(), &consumed, nullptr);
  return result == LIBDEFLATE_SUCCESS && consumed == compressed.size();
}

#endif

}  // namespace

#ifdef TORCHNPY_LIBDEFLATE

constinit const Codec kDefaultCodec = Codec::kLibdeflate;

void inflate(ByteView compressed, MutableBytes out, Codec codec) {
  if (codec == Codec::kLibdeflate && inflate_with_libdeflate(compressed, out)) return;
  // libdeflate does not tell what is wrong, nor where; zlib does.
  inflate_with_zlib(compressed, out);
}

#else

constinit const Codec kDefaultCodec = Codec::kZlib;

void inflate(ByteView compressed, MutableBytes out, Codec codec) {
  if (codec != Codec::kZlib) {
    throw UnsupportedError("expected a build with libdeflate but found one without; use zlib");
  }
  inflate_with_zlib(compressed, out);
}

#endif

size_t inflate_prefix(ByteView compressed, MutableBytes out) {
  if (out.empty()) return 0;
  return ZlibStream(compressed).read(out);
}

std::map<std::string, std::string> codec_library_versions() {
  std::map<std::string, std::string> versions{{"zlib", zlibVersion()}};
#ifdef TORCHNPY_LIBDEFLATE
  versions["libdeflate"] = LIBDEFLATE_VERSION_STRING;
#endif
  return versions;
}

}  // namespace torchnpy
