// Many texts as two tensors, which workers share and forks do not touch.
#pragma once

#include <pybind11/pybind11.h>

namespace torchnpy {

// Adds to _C:
// - pack_texts(items, encode) -> (blob, offsets): the texts, one behind the other, as uint8; text i
//   is blob[offsets[i]:offsets[i + 1]]. An item that is no ASCII str, or an empty one, becomes
//   encode(i, item), which is bytes or raises.
// - slice_texts(blob, offsets, positions) -> list[bytes]. Raises ValueError for a position outside
//   and for tensors that pack_texts() did not make.
void bind_texts(pybind11::module_& m);

}  // namespace torchnpy
