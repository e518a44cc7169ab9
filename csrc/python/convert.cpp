#include "python/convert.h"

#include <torch/csrc/Dtype.h>
#include <torch/csrc/DynamicTypes.h>
#include <torch/csrc/autograd/python_variable.h>

#include "base/error.h"

namespace torchnpy {
namespace {

// A torch.dtype; a dict of them for a structured dtype; None where torch has none.
py::object wrap_dtype(const Dtype& dtype) {
  if (dtype.type == ScalarType::kStructured) {
    py::dict fields;
    for (const Field& field : dtype.fields) fields[py::str(field.name)] = wrap_dtype(field.dtype);
    return fields;
  }
  const std::optional<at::ScalarType> type = find_scalar_type(dtype);
  if (!type) return py::none();
  return py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(torch::getTHPDtype(*type)));
}

}  // namespace

bool is_tensor(const py::handle& object) { return THPVariable_Check(object.ptr()); }

const at::Tensor& unwrap(const py::handle& tensor) { return THPVariable_Unpack(tensor.ptr()); }

py::object wrap(const at::Tensor& tensor) {
  return py::reinterpret_steal<py::object>(THPVariable_Wrap(tensor));
}

py::object wrap(const Array& array) {
  if (const at::Tensor* tensor = std::get_if<at::Tensor>(&array)) return wrap(*tensor);
  py::dict fields;
  for (const NamedTensor& field : std::get<std::vector<NamedTensor>>(array)) {
    fields[py::str(field.name)] = wrap(field.tensor);
  }
  return fields;
}

std::optional<at::ScalarType> parse_dtype(const py::handle& dtype) {
  if (dtype.is_none()) return std::nullopt;
  if (!THPDtype_Check(dtype.ptr())) {
    throw py::type_error("dtype: expected a torch.dtype or None but found " +
                         py::repr(dtype).cast<std::string>());
  }
  return reinterpret_cast<THPDtype*>(dtype.ptr())->scalar_type;
}

py::str wrap_text(std::string_view text) {
  return py::reinterpret_steal<py::str>(
      PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "surrogateescape"));
}

py::dict wrap_members(const std::vector<NamedArray>& members) {
  py::dict result;
  for (const NamedArray& member : members) result[wrap_text(member.key)] = wrap(member.array);
  return result;
}

py::tuple wrap_header(const NpyHeader& header) {
  return py::make_tuple(header.descr, wrap_dtype(header.dtype), py::tuple(py::cast(header.shape)),
                        header.fortran_order, header.data_offset, header.nbytes,
                        py::make_tuple(header.major, header.minor), header.dtype.unit);
}

MutableBytes bytes_of(const at::Tensor& data) {
  if (data.element_size() != 1 || !data.device().is_cpu() || !data.is_contiguous()) {
    throw ArgumentError(
        "data: expected a contiguous tensor of bytes (torch.uint8) on the CPU but found " +
        std::string(c10::toString(data.scalar_type())) + " on " + data.device().str() +
        (data.is_contiguous() ? "" : ", not contiguous"));
  }
  return {static_cast<uint8_t*>(const_cast<void*>(data.const_data_ptr())), data.nbytes()};
}

Buffer export_buffer(PyObject* data) {
  Buffer view(new Py_buffer{});
  if (PyObject_GetBuffer(data, view.get(), PyBUF_SIMPLE) != 0) throw py::error_already_set();
  return view;
}

MutableBytes bytes_of(const Buffer& view) {
  return {static_cast<uint8_t*>(view->buf), static_cast<size_t>(view->len)};
}

std::shared_ptr<void> share_tensor(const at::Tensor& data) {
  // The storage, not the tensor: to drop a tensor that Python knows takes the GIL.
  auto owner = std::make_shared<c10::Storage>(data.storage());
  // A resize would free the memory but not the storage.
  owner->unsafeGetStorageImpl()->set_resizable(false);
  return owner;
}

}  // namespace torchnpy
