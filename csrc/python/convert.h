// Values between Python and the library. All with the GIL.
#pragma once

#include <ATen/core/Tensor.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/bytes.h"
#include "format/npy.h"
#include "python/gil.h"
#include "python/log.h"
#include "torch/npz.h"
#include "torch/tensor.h"

namespace torchnpy {

namespace py = pybind11;

// Here alone is torch's own header for this, which takes as long to compile as all others.
bool is_tensor(const py::handle& object);
// Of what is_tensor().
const at::Tensor& unwrap(const py::handle& tensor);
py::object wrap(const at::Tensor& tensor);
// A tensor, or a dict of them.
py::object wrap(const Array& array);
// A dict of arrays.
py::dict wrap_members(const std::vector<NamedArray>& members);
// Names of objects and members need not be UTF-8: surrogates stand for what is not.
py::str wrap_text(std::string_view text);
// The arguments of torchnpy.NpyHeader.
py::tuple wrap_header(const NpyHeader& header);

// A torch.dtype or None.
std::optional<at::ScalarType> parse_dtype(const py::handle& dtype);

// A contiguous buffer of any object that exports one, held for as long as this lives.
struct ReleaseBuffer {
  void operator()(Py_buffer* view) const { release_buffer(view); }
};
using Buffer = std::unique_ptr<Py_buffer, ReleaseBuffer>;
Buffer export_buffer(PyObject* data);
MutableBytes bytes_of(const Buffer& view);

// The bytes of a contiguous tensor of bytes on the CPU. Throws ArgumentError for another.
MutableBytes bytes_of(const at::Tensor& data);
// What keeps them alive; the tensor can be resized no more.
std::shared_ptr<void> share_tensor(const at::Tensor& data);

// Runs `work`, which may wait for I/O, without the GIL; hands out what it left for the log.
template <typename Work>
auto without_gil(Work work) {
  drain_released_buffers();
  const LogDrain drain;
  const ReleasedGil released;
  return work();
}

}  // namespace torchnpy
