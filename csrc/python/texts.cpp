#include "python/texts.h"

#include <ATen/EmptyTensor.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "python/convert.h"

namespace torchnpy {
namespace {

template <typename T>
at::Tensor make_tensor(const std::vector<T>& values, at::ScalarType type) {
  at::Tensor tensor(at::detail::empty_cpu({static_cast<int64_t>(values.size())}, type));
  if (!values.empty()) std::memcpy(tensor.data_ptr(), values.data(), values.size() * sizeof(T));
  return tensor;
}

py::tuple pack_texts(const py::iterable& items, const py::function& encode) {
  std::vector<uint8_t> blob;
  std::vector<int64_t> offsets = {0};
  for (const py::handle item : items) {
    PyObject* const text = item.ptr();
    if (PyUnicode_CheckExact(text) && PyUnicode_IS_ASCII(text) && PyUnicode_GET_LENGTH(text) > 0) {
      // No bytes object, and no UTF-8 kept with the str: this runs a million times.
      const Py_UCS1* const begin = PyUnicode_1BYTE_DATA(text);
      blob.insert(blob.end(), begin, begin + PyUnicode_GET_LENGTH(text));
    } else {
      const auto encoded = encode(offsets.size() - 1, item).cast<py::bytes>();
      const std::string_view bytes = encoded;
      blob.insert(blob.end(), bytes.begin(), bytes.end());
    }
    offsets.push_back(static_cast<int64_t>(blob.size()));
  }
  return py::make_tuple(wrap(make_tensor(blob, at::kByte)), wrap(make_tensor(offsets, at::kLong)));
}

const at::Tensor& check_tensor(const py::handle& value, const char* name, at::ScalarType type) {
  if (is_tensor(value)) {
    const at::Tensor& tensor = unwrap(value);
    if (tensor.scalar_type() == type && tensor.dim() == 1 && tensor.device().is_cpu() &&
        tensor.is_contiguous()) {
      return tensor;
    }
  }
  throw ArgumentError(std::string(name) + ": expected a contiguous vector of " +
                      c10::toString(type) + " on the CPU but found another object");
}

py::list slice_texts(const py::handle& blob, const py::handle& offsets,
                     const py::iterable& positions) {
  const at::Tensor& bytes = check_tensor(blob, "blob", at::kByte);
  const at::Tensor& bounds = check_tensor(offsets, "offsets", at::kLong);
  const auto* const text = static_cast<const char*>(bytes.const_data_ptr());
  const auto* const bound = static_cast<const int64_t*>(bounds.const_data_ptr());
  py::list found;
  for (const py::handle item : positions) {
    const auto position = item.cast<int64_t>();
    if (position < 0 || position >= bounds.numel() - 1) {
      throw ArgumentError("positions: expected 0 to " + std::to_string(bounds.numel() - 2) +
                          " but found " + std::to_string(position));
    }
    const int64_t begin = bound[position];
    const int64_t end = bound[position + 1];
    // They may come from a pickle, which anybody can write.
    if (begin < 0 || end < begin || end > bytes.numel()) {
      throw ArgumentError("offsets: expected ascending offsets up to " +
                          std::to_string(bytes.numel()) + " but found " + std::to_string(begin) +
                          " and " + std::to_string(end) + " at " + std::to_string(position));
    }
    found.append(py::bytes(text + begin, static_cast<size_t>(end - begin)));
  }
  return found;
}

}  // namespace

void bind_texts(py::module_& m) {
  m.def("pack_texts", &pack_texts);
  m.def("slice_texts", &slice_texts);
}

}  // namespace torchnpy
