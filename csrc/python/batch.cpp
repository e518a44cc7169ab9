#include "python/batch.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <utility>

#include "python/convert.h"
#include "python/errors.h"
#include "torch/batch.h"

namespace torchnpy {
namespace {

// One tensor with a row a sample, or a list of arrays.
py::object wrap_column(const Column& column) {
  if (column.rows.defined()) return wrap(column.rows);
  py::list arrays;
  for (const Array& array : column.arrays) arrays.append(wrap(array));
  return arrays;
}

py::list wrap_failures(const std::vector<Failure>& failures) {
  py::list result;
  for (const Failure& failure : failures) {
    result.append(py::make_tuple(failure.index, make_exception(failure.error)));
  }
  return result;
}

py::tuple load_arrays(Client& client, const std::vector<std::string>& urls, const py::object& dtype,
                      const BatchOptions& options) {
  const std::optional<at::ScalarType> type = parse_dtype(dtype);
  const NpyBatch batch = without_gil([&] { return load_batch(client, urls, type, options); });
  return py::make_tuple(wrap_column(batch.column), wrap_failures(batch.failures));
}

// A dict of columns, or a list of dicts.
py::tuple load_archives(Client& client, const std::vector<std::string>& urls, const NpzKeys& keys,
                        bool verify, const BatchOptions& options) {
  NpzOptions npz_options;
  npz_options.verify = verify;
  const NpzBatch batch =
      without_gil([&] { return load_npz_batch(client, urls, keys, npz_options, options); });
  const py::list failures = wrap_failures(batch.failures);
  if (!batch.columns.empty()) {
    py::dict columns;
    for (const NamedColumn& one : batch.columns)
      columns[wrap_text(one.key)] = wrap_column(one.column);
    return py::make_tuple(columns, failures);
  }
  py::list archives;
  for (const std::vector<NamedArray>& members : batch.archives) {
    archives.append(wrap_members(members));
  }
  return py::make_tuple(archives, failures);
}

// Views of each index of the first axis, of the class `row_class`: a subclass of torch.Tensor in
// Python that adds nothing to its layout. As torch.unbind() and as_subclass() would make them, but
// without their dispatch, which takes longer than to fetch a small sample.
py::list split_rows(const py::object& batch, const py::object& row_class) {
  const at::Tensor& tensor = unwrap(batch);
  py::list rows(static_cast<size_t>(tensor.size(0)));
  for (int64_t i = 0; i < tensor.size(0); ++i) {
    at::Tensor view = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(tensor.storage()),
                                                               tensor.key_set(), tensor.dtype());
    view.unsafeGetTensorImpl()->set_sizes_and_strides(
        tensor.sizes().slice(1), tensor.strides().slice(1),
        tensor.storage_offset() + i * tensor.stride(0));
    py::object row = wrap(view);
    row.attr("__class__") = row_class;
    rows[static_cast<size_t>(i)] = std::move(row);
  }
  return rows;
}

// Whether `samples` are the rows of `batch`, all and in order.
bool are_rows(const py::object& batch, const py::sequence& samples, const py::object& row_class) {
  const at::Tensor& tensor = unwrap(batch);
  if (static_cast<int64_t>(samples.size()) != tensor.size(0) || tensor.numel() == 0) return false;
  const uint64_t row_nbytes = tensor.nbytes() / samples.size();
  const auto* expected = static_cast<const uint8_t*>(tensor.const_data_ptr());
  for (const py::handle sample : samples) {
    if (reinterpret_cast<PyObject*>(Py_TYPE(sample.ptr())) != row_class.ptr()) return false;
    const at::Tensor& row = unwrap(sample);
    if (row.const_data_ptr() != expected || row.nbytes() != row_nbytes) return false;
    expected += row_nbytes;
  }
  return true;
}

// Of bytes. Not with torch's operator, whose threads a forked child lacks.
int64_t count_nonzero(const py::object& bytes) {
  const ByteView view = bytes_of(unwrap(bytes));
  return std::ranges::count_if(view, [](uint8_t byte) { return byte != 0; });
}

}  // namespace

void bind_batches(py::module_& m) {
  py::class_<BatchOptions>(m, "BatchOptions")
      .def(py::init([](bool together, bool shared, bool keep_going) {
             return BatchOptions{together, shared, keep_going};
           }),
           py::kw_only(), py::arg("together"), py::arg("shared"), py::arg("keep_going"));
  m.def("allocate_shared",
        [](uint64_t nbytes) { return wrap(make_bytes(allocate_shared_storage(nbytes))); });
  m.def("split_rows", &split_rows);
  m.def("are_rows", &are_rows);
  m.def("count_nonzero", &count_nonzero);
  m.def("load_batch", &load_arrays);
  m.def("load_npz_batch", &load_archives);
}

}  // namespace torchnpy
