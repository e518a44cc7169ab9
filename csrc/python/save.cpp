#include "python/save.h"

#include <ATen/Parallel.h>
#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "archive/npz_writer.h"
#include "archive/writer.h"
#include "base/error.h"
#include "format/deflate.h"
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

// Runs `make` without the GIL; its errors then begin with `name`.
template <typename Make>
ArrayView make_view(const std::string& name, Make make) {
  try {
    return without_gil(make);
  } catch (Error& error) {
    error.add_context(name);
    throw;
  }
}

ArrayView view_object(const py::object& object, const std::string& name) {
  const at::Tensor& tensor = unpack(object);
  return make_view(name, [&] { return view_tensor(tensor); });
}

ArrayView copy_fields(const py::dict& dict, const std::string& name) {
  std::vector<RecordField> fields;
  for (const auto& [key, tensor] : dict) {
    fields.push_back({py::repr(key).cast<std::string>(), unpack(tensor)});
  }
  return make_view(name, [&] { return copy_record(fields); });
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

// `level`: nullopt for the default.
void save_archive(const Destination& destination,
                  const std::vector<std::pair<std::string, ArrayView>>& members,
                  std::optional<int> level) {
  without_gil([&] {
    NpzWriterOptions options;
    options.level = level.value_or(kDefaultDeflateLevel);
    options.threads = std::clamp(at::get_num_threads(), 1, kMaxThreads);
    const std::unique_ptr<Target> target = destination.create(std::nullopt);
    NpzWriter writer(*target, options);
    for (const auto& [name, array] : members) writer.add(name, array);
    writer.finish();
  });
}

}  // namespace

void bind_save(py::module_& m) {
  py::class_<ArrayView>(m, "ArrayView");
  m.def("view_tensor", &view_object);
  m.def("copy_record", &copy_fields);
  m.def("view_memory", &view_memory);
  m.def("save", &save_view);
  m.def("savez", &save_archive);
}

}  // namespace torchnpy
