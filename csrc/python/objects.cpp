#include "python/objects.h"

#include <pybind11/stl.h>

#include <memory>
#include <string>

#include "archive/object_reader.h"
#include "base/wait.h"
#include "python/convert.h"
#include "transport/client.h"

namespace torchnpy {
namespace {

std::unique_ptr<ObjectReader> make_object_reader(Client& client, const std::string& url) {
  return std::make_unique<ObjectReader>(
      without_gil([&] { return client.open(url, /*mmap=*/false); }));
}

uint64_t read_piece(ObjectReader& reader, uint64_t offset, const py::object& room) {
  const Buffer view = export_buffer(room.ptr());
  if (view->readonly) throw py::type_error("room: expected memory that can be written to");
  return without_gil([&] { return reader.read(offset, bytes_of(view)); });
}

}  // namespace

void bind_objects(py::module_& m) {
  py::class_<StopFlag>(m, "StopFlag").def(py::init<>()).def("set", [](StopFlag& flag) {
    flag.wanted = true;
  });
  m.def("call_until", [](const StopFlag& stop, const py::function& work) {
    const StopScope scope(stop.wanted);
    return work();
  });
  py::class_<ObjectReader>(m, "ObjectReader")
      .def(py::init(&make_object_reader))
      .def_property_readonly("name",
                             [](const ObjectReader& reader) { return wrap_text(reader.name()); })
      .def_property_readonly("nbytes", &ObjectReader::nbytes)
      .def_property_readonly(
          "version", [](const ObjectReader& reader) { return wrap_text(reader.version_name()); })
      .def("expect_version", &ObjectReader::expect_version)
      .def("read", &read_piece);
}

}  // namespace torchnpy
