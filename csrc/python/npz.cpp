#include "python/npz.h"

#include <pybind11/stl.h>

#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "python/convert.h"
#include "torch/npz.h"
#include "transport/file.h"

namespace torchnpy {
namespace {

ZipLimits make_limits(const LimitValues& values) { return {values[0], values[1], values[2]}; }

ArchiveHandle open_archive(Client& client, const std::string& url, const LimitValues& limits,
                           bool verify) {
  const NpzOptions options = make_npz_options(limits, verify);
  return {without_gil([&] { return open_npz(client.open(url), options); }), options};
}

OwnedBytes share_data(const py::object& data) {
  if (is_tensor(data)) {
    const at::Tensor& tensor = unwrap(data);
    return {bytes_of(tensor), share_tensor(tensor)};
  }
  Buffer view = export_buffer(data.ptr());
  const MutableBytes bytes = bytes_of(view);
  return {bytes, std::shared_ptr<Py_buffer>(view.release(), ReleaseBuffer())};
}

ArchiveHandle open_archive_bytes(const py::object& data, const std::string& name, bool copy,
                                 const LimitValues& limits, bool verify, const py::object& dtype) {
  NpzOptions options;
  options.verify = verify;
  options.copy = copy;
  options.dtype = parse_dtype(dtype);
  options.limits = make_limits(limits);
  OwnedBytes bytes;
  try {
    bytes = share_data(data);
  } catch (Error& error) {
    error.add_context(name);
    throw;
  }
  return {
      without_gil([&] { return open_npz(make_memory_source(name, std::move(bytes)), options); }),
      options};
}

py::dict read_archive(const ArchiveHandle& handle, const NpzKeys& keys, const py::object& dtype) {
  NpzOptions options = handle.options;
  if (!dtype.is_none()) options.dtype = parse_dtype(dtype);
  return wrap_members(without_gil([&] { return read_npz(handle.archive, keys, options); }));
}

py::object read_archive_member(const ArchiveHandle& handle, const std::string& key) {
  const NpzKeys keys = std::vector<std::string>{key};
  return wrap(without_gil(
      [&] { return std::move(read_npz(handle.archive, keys, handle.options).front().array); }));
}

// A member's bytes, for who takes buffers.
struct MemberBytes {
  at::Tensor bytes;
};

// All of one member, whatever it is.
MemberBytes read_archive_bytes(const ArchiveHandle& handle, const std::string& key) {
  NpzOptions options = handle.options;
  options.as_bytes = true;
  const NpzKeys keys = std::vector<std::string>{key};
  return {without_gil(
      [&] { return single_tensor(read_npz(handle.archive, keys, options).front().array); })};
}

py::list read_archive_headers(const ArchiveHandle& handle, const NpzKeys& keys) {
  py::list result;
  for (const NpyHeader& header :
       without_gil([&] { return read_npz_headers(handle.archive, keys, handle.options); })) {
    result.append(wrap_header(header));
  }
  return result;
}

// What the directory says: key, name, method, CRC-32, compressed_nbytes, nbytes.
py::list list_archive(const ArchiveHandle& handle) {
  py::list result;
  const NpzArchive& archive = *handle.archive;
  for (size_t i = 0; i < archive.members().size(); ++i) {
    const ZipMember& member = archive.members()[i];
    result.append(py::make_tuple(wrap_text(archive.key(i)), wrap_text(member.name), member.method,
                                 member.crc32, member.compressed_nbytes, member.nbytes));
  }
  return result;
}

py::list describe_archive(const ArchiveHandle& handle, size_t count) {
  py::list result;
  for (const MemberDescription& member :
       without_gil([&] { return describe_npz(handle.archive, count); })) {
    result.append(py::make_tuple(wrap_text(member.key), wrap_text(member.text)));
  }
  return result;
}

}  // namespace

NpzOptions make_npz_options(const LimitValues& limits, bool verify) {
  NpzOptions options;
  options.verify = verify;
  options.limits = make_limits(limits);
  return options;
}

void bind_npz(py::module_& m) {
  py::class_<ArchiveHandle>(m, "NpzArchive")
      .def_property_readonly(
          "name",
          [](const ArchiveHandle& handle) { return wrap_text(handle.archive->source().name()); })
      .def_property_readonly(
          "nbytes", [](const ArchiveHandle& handle) { return handle.archive->source().nbytes(); })
      .def("keys",
           [](const ArchiveHandle& handle) {
             py::list keys;
             for (const std::string& key : handle.archive->keys()) keys.append(wrap_text(key));
             return keys;
           })
      .def("__len__", [](const ArchiveHandle& handle) { return handle.archive->members().size(); })
      .def("__contains__", [](const ArchiveHandle& handle, std::string_view key) {
        return handle.archive->find(key).has_value();
      });
  m.def("open_npz", &open_archive);
  m.def("open_npz_bytes", &open_archive_bytes);
  m.def("read_npz", &read_archive);
  m.def("read_npz_member", &read_archive_member);
  py::class_<MemberBytes>(m, "MemberBytes", py::buffer_protocol())
      .def_buffer([](const MemberBytes& member) {
        return py::buffer_info(static_cast<const uint8_t*>(member.bytes.const_data_ptr()),
                               static_cast<py::ssize_t>(member.bytes.nbytes()));
      });
  m.def("read_npz_bytes", &read_archive_bytes);
  m.def("list_npz", &list_archive);
  m.def("read_npz_headers", &read_archive_headers);
  m.def("describe_npz", &describe_archive);
}

}  // namespace torchnpy
