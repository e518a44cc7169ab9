#include "python/rows.h"

#include <fmt/format.h>
#include <pybind11/stl.h>

#include <string>
#include <utility>
#include <vector>

#include "python/convert.h"
#include "torch/rows.h"

namespace torchnpy {
namespace {

using ColumnValues = std::pair<std::string, std::vector<std::string>>;
// The members of RowColumnState.
using StateValues =
    std::tuple<py::bytes, std::vector<uint64_t>, std::vector<uint64_t>, std::vector<py::bytes>>;

std::unique_ptr<RowReader> make_row_reader(std::shared_ptr<Client> client,
                                           std::vector<ColumnValues> values,
                                           const py::object& dtype) {
  std::vector<RowColumn> columns;
  columns.reserve(values.size());
  for (ColumnValues& value : values) {
    columns.push_back({std::move(value.first), std::move(value.second)});
  }
  return std::make_unique<RowReader>(std::move(client), std::move(columns), parse_dtype(dtype));
}

// Row numbers of anything that Python takes as indices.
std::vector<uint64_t> parse_rows(const py::iterable& indices, uint64_t count) {
  const auto limit = static_cast<int64_t>(count);
  std::vector<uint64_t> rows;
  rows.reserve(py::len_hint(indices));
  for (const py::handle index : indices) {
    const int64_t value = PyNumber_AsSsize_t(index.ptr(), PyExc_IndexError);
    if (value == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
    if (value < -limit || value >= limit) {
      throw py::index_error(
          count == 0 ? fmt::format("expected no index, there are no rows, but found {}", value)
                     : fmt::format("expected an index from {} to {} but found {}", -limit,
                                   limit - 1, value));
    }
    rows.push_back(static_cast<uint64_t>(value < 0 ? value + limit : value));
  }
  return rows;
}

py::list read_rows(RowReader& reader, const py::iterable& indices, bool shared) {
  const uint64_t count = without_gil([&] { return reader.count(); });
  const std::vector<uint64_t> rows = parse_rows(indices, count);
  py::list result;
  for (const Array& array : without_gil([&] { return reader.read(rows, shared); })) {
    result.append(wrap(array));
  }
  return result;
}

std::vector<StateValues> get_state(const RowReader& reader) {
  std::vector<StateValues> values;
  for (const RowColumnState& column : reader.state()) {
    values.emplace_back(py::bytes(column.head), column.row_counts, column.data_offsets,
                        std::vector<py::bytes>(column.versions.begin(), column.versions.end()));
  }
  return values;
}

void set_state(RowReader& reader, const std::vector<StateValues>& values) {
  std::vector<RowColumnState> state;
  for (const auto& [head, row_counts, data_offsets, versions] : values) {
    state.push_back({head, row_counts, data_offsets, {versions.begin(), versions.end()}});
  }
  reader.set_state(state);
}

}  // namespace

void bind_rows(py::module_& m) {
  py::class_<RowReader>(m, "RowReader")
      .def(py::init(&make_row_reader))
      .def("count", [](RowReader& reader) { return without_gil([&] { return reader.count(); }); })
      .def("read", &read_rows)
      .def("state", &get_state)
      .def("set_state", &set_state);
}

}  // namespace torchnpy
