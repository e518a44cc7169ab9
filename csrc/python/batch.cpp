#include "python/batch.h"

#include <pybind11/stl.h>

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

}  // namespace

void bind_batches(py::module_& m) {
  py::class_<BatchOptions>(m, "BatchOptions")
      .def(py::init([](bool together, bool shared, bool keep_going) {
             return BatchOptions{together, shared, keep_going};
           }),
           py::kw_only(), py::arg("together"), py::arg("shared"), py::arg("keep_going"));
  m.def("allocate_shared",
        [](uint64_t nbytes) { return wrap(make_bytes(allocate_shared_storage(nbytes))); });
  m.def("load_batch", &load_arrays);
  m.def("load_npz_batch", &load_archives);
}

}  // namespace torchnpy
