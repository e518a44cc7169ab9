// torchnpy._C: the library for Python. Thin: arguments in, torch/load.h, results out.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "base/error.h"
#include "base/log.h"
#include "base/wait.h"
#include "format/deflate.h"
#include "python/append.h"
#include "python/batch.h"
#include "python/convert.h"
#include "python/credentials.h"
#include "python/destination.h"
#include "python/errors.h"
#include "python/gil.h"
#include "python/npz.h"
#include "python/objects.h"
#include "python/rows.h"
#include "python/save.h"
#include "python/target.h"
#include "python/text_tables.h"
#include "python/texts.h"
#include "torch/load.h"
#include "torch/npz.h"
#include "transport/engine.h"
#include "transport/settings.h"

namespace torchnpy {
namespace {

MutableBytes as_mutable(ByteView bytes) {
  return {const_cast<uint8_t*>(bytes.data()), bytes.size()};
}

Array decode_tensor(const at::Tensor& data, bool copy, std::optional<at::ScalarType> dtype) {
  return decode(bytes_of(data), dtype, [&](ByteView part) {
    if (!copy) return share_bytes({as_mutable(part), share_tensor(data)});
    return copy_storage(share_bytes({as_mutable(part), nullptr}));
  });
}

Array decode_object(PyObject* data, std::string_view name, bool copy,
                    std::optional<at::ScalarType> dtype) {
  try {
    if (is_tensor(data)) return decode_tensor(unwrap(data), copy, dtype);
    Buffer view = export_buffer(data);
    return decode(bytes_of(view), dtype, [&](ByteView part) {
      c10::Storage shared = share_bytes(as_mutable(part), view.release(), [](void* context) {
        release_buffer(static_cast<Py_buffer*>(context));
      });
      return copy ? copy_storage(shared) : shared;
    });
  } catch (Error& error) {
    error.add_context(name);
    throw;
  }
}

py::object load_named(const py::object& data, const std::string& name, const py::object& dtype) {
  return wrap(decode_object(data.ptr(), name, /*copy=*/false, parse_dtype(dtype)));
}

// Calls `read` on the bytes of `data`.
template <typename Read>
auto read_bytes(const py::object& data, const std::string& name, Read read) {
  try {
    if (is_tensor(data)) return read(ByteView(bytes_of(unwrap(data))));
    return read(ByteView(bytes_of(export_buffer(data.ptr()))));
  } catch (Error& error) {
    error.add_context(name);
    throw;
  }
}

py::tuple parse_header(const py::object& data, const std::string& name) {
  return read_bytes(data, name,
                    [](ByteView bytes) { return wrap_header(parse_npy_header(bytes)); });
}

std::optional<uint64_t> find_data_offset(const py::object& data, const std::string& name) {
  return read_bytes(data, name, find_npy_data_offset);
}

// An array, or the handle of an archive.
py::object load_object(Client& client, const std::string& url, bool mmap, const py::object& dtype,
                       const LimitValues& limits, bool verify) {
  LoadOptions options;
  options.mmap = mmap;
  options.dtype = parse_dtype(dtype);
  NpzOptions npz_options = make_npz_options(limits, verify);
  npz_options.dtype = options.dtype;
  Content content = without_gil([&] { return load_any(client, url, options, npz_options); });
  if (const Array* array = std::get_if<Array>(&content)) return wrap(*array);
  return py::cast(
      ArchiveHandle{std::get<std::shared_ptr<const NpzArchive>>(std::move(content)), npz_options});
}

py::object load_object_rows(Client& client, const std::string& url, int64_t start, int64_t stop,
                            const py::object& dtype) {
  LoadOptions options;
  options.rows = RowSlice{start, stop};
  options.dtype = parse_dtype(dtype);
  return wrap(without_gil([&] { return load(client, url, options); }));
}

py::list load_objects(Client& client, const std::vector<std::string>& urls,
                      const py::object& dtype) {
  LoadOptions options;
  options.dtype = parse_dtype(dtype);
  py::list result;
  for (const Array& array : without_gil([&] { return load_many(client, urls, options); })) {
    result.append(wrap(array));
  }
  return result;
}

// Rows [start, stop), or the whole array.
using PythonSlice = std::optional<std::pair<int64_t, int64_t>>;

py::list load_object_slices(Client& client, const std::vector<std::string>& urls,
                            const std::vector<PythonSlice>& slices, const py::object& dtype,
                            const StopFlag& stop) {
  LoadOptions options;
  options.mmap = false;  // who reads ahead wants the bytes, not a promise of them
  options.dtype = parse_dtype(dtype);
  std::vector<std::optional<RowSlice>> rows;
  rows.reserve(slices.size());
  for (const PythonSlice& slice : slices) {
    rows.push_back(slice ? std::optional(RowSlice{slice->first, slice->second}) : std::nullopt);
  }
  py::list result;
  for (const Array& array : without_gil([&] {
         const StopScope scope(stop.wanted);
         return load_many_rows(client, urls, rows, options);
       })) {
    result.append(wrap(array));
  }
  return result;
}

py::list read_object_headers(Client& client, const std::vector<std::string>& urls) {
  py::list result;
  for (const NpyHeader& header : without_gil([&] { return read_headers(client, urls); })) {
    result.append(wrap_header(header));
  }
  return result;
}

std::shared_ptr<Client> make_client(const py::kwargs& kwargs) {
  ClientOptions options;
  const auto set = [&kwargs](const char* name, auto& field) {
    if (!kwargs.contains(name)) return;
    const py::object value = kwargs[name];
    try {
      field = value.cast<std::decay_t<decltype(field)>>();
    } catch (const py::cast_error&) {
      // Headers and proxies may hold secrets.
      const bool is_number = PyLong_Check(value.ptr()) != 0;
      const std::string found = is_number ? py::repr(value).cast<std::string>()
                                          : std::string(Py_TYPE(value.ptr())->tp_name);
      const std::string message =
          std::string(name) + ": expected a value of its type and range but found " + found;
      if (is_number) throw ArgumentError(message);
      throw py::type_error(message);
    }
  };
  set("endpoint", options.endpoint);
  set("region", options.region);
  set("profile", options.profile);
  set("anonymous", options.anonymous);
  set("headers", options.headers);
  set("requester_pays", options.requester_pays);
  set("ca_bundle", options.ca_bundle);
  set("verify_tls", options.verify_tls);
  set("proxy", options.proxy);
  set("addressing", options.addressing);
  set("max_in_flight", options.max_in_flight);
  set("io_threads", options.io_threads);
  set("part_nbytes", options.part_nbytes);
  set("coalesce_nbytes", options.coalesce_nbytes);
  set("http2", options.http2);
  set("hedge", options.hedge);
  set("checksums", options.checksums);
  set("connect_timeout_s", options.connect_timeout_s);
  set("stall_timeout_s", options.stall_timeout_s);
  set("deadline_s", options.deadline_s);
  set("retries", options.retries);
  set("retry_timeout_s", options.retry_timeout_s);
  if (kwargs.contains("credentials")) {
    options.credentials = make_callable_provider(kwargs["credentials"]);
  }
  if (kwargs.contains("cache.fresh_s")) {
    CacheOptions& cache = options.cache.emplace();
    set("cache.ram_nbytes", cache.ram_nbytes);
    set("cache.dir", cache.dir);
    set("cache.disk_nbytes", cache.disk_nbytes);
    set("cache.fresh_s", cache.fresh_s);
  }
  return Client::make(std::move(options));
}

py::tuple list_objects(Client& client, const std::string& prefix, const std::string& continuation) {
  const ObjectPage page = without_gil([&] { return client.list(prefix, continuation); });
  py::list objects;
  for (const ObjectInfo& object : page.objects) {
    objects.append(py::make_tuple(object.url, object.nbytes, object.etag, object.modified));
  }
  return py::make_tuple(objects, page.continuation);
}

std::map<std::string, std::string> library_versions() {
  auto versions = http_library_versions();
  versions.merge(codec_library_versions());
  return versions;
}

// A file or a folder; "" where there is none.
py::str name_ca_bundle() {
  const CaBundle bundle = find_ca_bundle({});
  return wrap_text(bundle.file.empty() ? bundle.directory : bundle.file);
}

constexpr char kLoadNpyDoc[] = R"(load_npy(data, *, copy=False, dtype=None)
--

Decodes the ``.npy`` in ``data`` without copying it.

The tensor keeps ``data`` alive and shares its memory, also that of immutable ``bytes``: write
to it only if nobody else reads them. A bytearray cannot be resized while the tensor lives. Data
that is not aligned for its dtype, is big-endian, or holds bools other than 0 and 1 is copied.

Args:
    data: bytes, bytearray, memoryview, mmap, a numpy array or a torch.uint8 tensor, contiguous.
        What follows the array is ignored.
    copy: Always copy; the result then owns its memory.
    dtype: What the items are, where the file cannot say (``V1``, ``V2``): their bits are
        reinterpreted. Never casts.

Returns:
    A tensor of the array's shape; in Fortran order as strides.

Raises:
    FormatError: ``data`` breaks the format, or is truncated.
    UnsupportedError: Object arrays (a pickle), text, long double, void without ``dtype``.
    ValueError: ``dtype`` is neither what the file says nor of the size of its items.
)";

struct LoadNpyArguments {
  PyObject* data = nullptr;
  bool copy = false;
  std::optional<at::ScalarType> dtype;
};

LoadNpyArguments parse_arguments(PyObject* const* args, Py_ssize_t count, PyObject* names) {
  LoadNpyArguments parsed;
  if (count > 1) {
    throw py::type_error("load_npy: expected data and keywords but found " + std::to_string(count) +
                         " positional arguments");
  }
  if (count == 1) parsed.data = args[0];
  const Py_ssize_t keywords = names == nullptr ? 0 : PyTuple_GET_SIZE(names);
  for (Py_ssize_t i = 0; i < keywords; ++i) {
    PyObject* const value = args[count + i];
    const char* const name_text = PyUnicode_AsUTF8(PyTuple_GET_ITEM(names, i));
    if (name_text == nullptr) throw py::error_already_set();
    const std::string_view name = name_text;
    if (name == "copy") {
      const int truth = PyObject_IsTrue(value);
      if (truth < 0) throw py::error_already_set();
      parsed.copy = truth != 0;
    } else if (name == "dtype") {
      parsed.dtype = parse_dtype(value);
    } else if (name == "data" && parsed.data == nullptr) {
      parsed.data = value;
    } else {
      throw py::type_error("load_npy: expected data, copy and dtype, once each, but found " +
                           std::string(name));
    }
  }
  if (parsed.data == nullptr) throw py::type_error("load_npy: expected data but found none");
  return parsed;
}

// A function of CPython itself: pybind11's dispatch takes longer than the decoding.
PyObject* load_npy(PyObject*, PyObject* const* args, Py_ssize_t count, PyObject* names) noexcept {
  return answer_python([&] {
    drain_released_buffers();
    const LoadNpyArguments parsed = parse_arguments(args, count, names);
    return wrap(decode_object(parsed.data, kBytesName, parsed.copy, parsed.dtype));
  });
}

PyMethodDef load_npy_method = {
    "load_npy", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(load_npy)),
    METH_FASTCALL | METH_KEYWORDS, kLoadNpyDoc};

}  // namespace

PYBIND11_MODULE(_C, m) {
  register_errors();
  install_interrupt_check();
  py::module_::import("atexit").attr("register")(py::cpp_function(end_python));

  py::enum_<Addressing>(m, "Addressing")
      .value("auto", Addressing::kAuto)
      .value("path", Addressing::kPath)
      .value("virtual", Addressing::kVirtual);
  py::class_<Client, std::shared_ptr<Client>>(m, "Client")
      .def(py::init(&make_client))
      .def("list", &list_objects)
      .def("metrics", &Client::metrics);
  m.def("log_requests", [](bool wanted) { log_debug_wanted = wanted; });
  m.def("default_client", &Client::default_client);
  m.def("set_default_client", &Client::set_default_client);

  m.add_object("load_npy", PyCFunction_NewEx(&load_npy_method, nullptr, py::str("torchnpy").ptr()));
  m.def("load", &load_object);
  m.def("load_rows", &load_object_rows);
  m.def("load_many", &load_objects);
  m.def("load_slices", &load_object_slices);
  m.def("headers", &read_object_headers);
  m.def("header", [](Client& client, const std::string& url) {
    return wrap_header(without_gil([&] { return read_header(client, url); }));
  });
  m.def("fetch", [](Client& client, const std::string& url) {
    const at::Tensor data = without_gil([&] { return fetch(client, url, 0); });
    return py::bytes(static_cast<const char*>(data.const_data_ptr()), data.nbytes());
  });
  m.def("library_versions", &library_versions);
  m.def("ca_bundle", &name_ca_bundle);
  m.def("set_fallback_ca_bundle", &set_fallback_ca_bundle);
  m.def("display_name", [](const std::string& url) { return wrap_text(display_name(url)); });
  bind_objects(m);
  bind_npz(m);
  bind_batches(m);
  bind_rows(m);
  bind_append(m);
  bind_texts(m);
  bind_destinations(m);
  bind_save(m);
  bind_text_tables(m);
  bind_targets(m);
  m.def("begins_as_zip", [](const py::object& data, const std::string& name) {
    return read_bytes(data, name, begins_as_zip);
  });
  m.def("load_named", &load_named);
  m.def("parse_header", &parse_header);
  m.def("find_data_offset", &find_data_offset);
}

}  // namespace torchnpy
