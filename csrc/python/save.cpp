#include "python/save.h"

#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_variable.h>

#include <string>
#include <utility>
#include <vector>

#include "archive/writer.h"
#include "python/convert.h"
#include "python/destination.h"
#include "torch/save.h"

namespace torchnpy {
namespace {

const at::Tensor& unpack(const py::handle& object) {
  if (!THPVariable_Check(object.ptr())) {
    throw py::type_error("expected a tensor but found " +
                         std::string(Py_TYPE(object.ptr())->tp_name));
  }
  return THPVariable_Unpack(object.ptr());
}

ArrayView view_object(const py::object& object) {
  const at::Tensor& tensor = unpack(object);
  return without_gil([&] { return view_tensor(tensor); });
}

ArrayView copy_fields(const py::dict& dict) {
  std::vector<RecordField> fields;
  for (const auto& [name, tensor] : dict) {
    fields.push_back({py::repr(name).cast<std::string>(), unpack(tensor)});
  }
  return without_gil([&] { return copy_record(fields); });
}

// The memory of an array of another library, which `owner` keeps.
ArrayView view_memory(const py::object& owner, uintptr_t address, std::string descr,
                      uint64_t itemsize, std::vector<uint64_t> shape,
                      std::vector<int64_t> strides) {
  ArrayView view;
  view.descr = std::move(descr);
  view.itemsize = itemsize;
  view.shape = std::move(shape);
  view.strides = std::move(strides);
  view.data = reinterpret_cast<const uint8_t*>(address);  // NOLINT: an address is what it is
  view.owner = std::shared_ptr<PyObject>(py::object(owner).release().ptr(), release_object);
  return view;
}

void save_view(const Destination& destination, const ArrayView& array) {
  without_gil([&] {
    const NpyWriter writer(array);
    const std::unique_ptr<Target> target = destination.create(writer.nbytes());
    writer.write(*target);
    target->finish();
  });
}

}  // namespace

void bind_save(py::module_& m) {
  py::class_<ArrayView>(m, "ArrayView");
  m.def("view_tensor", &view_object);
  m.def("copy_record", &copy_fields);
  m.def("view_memory", &view_memory);
  m.def("save", &save_view);
}

}  // namespace torchnpy
