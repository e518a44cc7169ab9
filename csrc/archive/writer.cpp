#include "archive/writer.h"

#include <algorithm>
#include <utility>

#include "format/npy.h"

namespace torchnpy {

NpyWriter::NpyWriter(ArrayView array)
    : data_(std::move(array)),
      header_(format_npy_header(data_.array().descr, data_.fortran_order(), data_.array().shape)) {}

void NpyWriter::write(Target& target) const {
  target.write({as_bytes(header_), nullptr});
  if (std::optional<SharedBytes> whole = data_.whole()) {
    target.write(*std::move(whole));
    return;
  }
  // Large enough for the tiles of ArrayBytes, small enough for a cache.
  constexpr uint64_t kPieceNbytes = 2 << 20;
  const OwnedBytes piece = allocate_bytes(std::min(kPieceNbytes, data_.nbytes()));
  for (uint64_t offset = 0; offset < data_.nbytes();) {
    const MutableBytes bytes =
        piece.bytes.first(std::min<uint64_t>(piece.bytes.size(), data_.nbytes() - offset));
    data_.copy(offset, bytes);
    target.write({bytes, nullptr});
    offset += bytes.size();
  }
}

}  // namespace torchnpy
