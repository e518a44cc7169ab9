#include "python/append.h"

#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "archive/append_repair.h"
#include "python/convert.h"
#include "python/errors.h"
#include "torch/append.h"
#include "transport/local_path.h"

namespace torchnpy {
namespace {

// An Appender, and how the objects look whose memory it takes as it is.
struct AppendHandle {
  AppendHandle(const std::string& path, AppenderOptions options, Casting cast)
      : appender(path, std::move(options)), casting(cast) {}

  Appender appender;
  const Casting casting;
  std::optional<at::ScalarType> tensor_type;
  // Of an array: not owned, and compared only.
  const PyTypeObject* array_class = nullptr;
  std::string array_format;  // of its buffer
};

struct Rows {
  ByteView bytes;
  uint64_t count = 0;
};

// The sizes of all axes are the file's, but that of the one that grows, which is returned.
template <typename Size>
std::optional<uint64_t> count_rows(const AppendLayout& layout, const Size* sizes, size_t dims) {
  if (dims != layout.shape.size() + 1) return std::nullopt;
  const Size* const others = layout.fortran_order ? sizes : sizes + 1;
  for (size_t i = 0; i < layout.shape.size(); ++i) {
    if (static_cast<uint64_t>(others[i]) != layout.shape[i]) return std::nullopt;
  }
  return static_cast<uint64_t>(layout.fortran_order ? sizes[dims - 1] : sizes[0]);
}

// Empty for a tensor that is not in memory as the file is.
std::optional<Rows> find_rows(const AppendHandle& handle, const at::Tensor& tensor) {
  const AppendLayout& layout = *handle.appender.layout();
  const bool is_plain = tensor.scalar_type() == handle.tensor_type && tensor.is_cpu() &&
                        tensor.has_storage() && tensor.layout() == c10::kStrided &&
                        !tensor.is_conj() && !tensor.is_neg() &&
                        !tensor.unsafeGetTensorImpl()->is_python_dispatch() &&
                        !layout.fortran_order && tensor.is_contiguous();
  if (!is_plain) return std::nullopt;
  const at::IntArrayRef sizes = tensor.sizes();
  const auto count = count_rows(layout, sizes.data(), sizes.size());
  if (!count) return std::nullopt;
  return Rows{{static_cast<const uint8_t*>(tensor.const_data_ptr()), tensor.nbytes()}, *count};
}

std::optional<Rows> find_rows(const AppendHandle& handle, const Py_buffer& view) {
  const AppendLayout& layout = *handle.appender.layout();
  // The format does not name the bytes behind the last field of a record.
  if (view.format == nullptr || handle.array_format != view.format ||
      static_cast<uint64_t>(view.itemsize) != layout.dtype.itemsize ||
      PyBuffer_IsContiguous(&view, layout.fortran_order ? 'F' : 'C') == 0) {
    return std::nullopt;
  }
  const auto count = count_rows(layout, view.shape, static_cast<size_t>(view.ndim));
  if (!count) return std::nullopt;
  return Rows{{static_cast<const uint8_t*>(view.buf), static_cast<size_t>(view.len)}, *count};
}

struct HeldBuffer {
  explicit HeldBuffer(PyObject* object) {
    is_held = PyObject_GetBuffer(object, &view, PyBUF_RECORDS_RO) == 0;
    if (!is_held) PyErr_Clear();
  }
  ~HeldBuffer() {
    if (is_held) PyBuffer_Release(&view);
  }
  HeldBuffer(const HeldBuffer&) = delete;
  HeldBuffer& operator=(const HeldBuffer&) = delete;
  Py_buffer view{};
  bool is_held = false;
};

// False for rows that must be looked at more closely.
bool append_as_they_are(AppendHandle& handle, PyObject* object) {
  if (handle.appender.layout() == nullptr) return false;
  const auto append = [&handle](const std::optional<Rows>& rows) {
    if (!rows) return false;
    without_gil([&] { handle.appender.append_rows(rows->bytes, rows->count); });
    return true;
  };
  if (is_tensor(object)) {
    const at::Tensor tensor = unwrap(object);  // kept while others may run
    return append(find_rows(handle, tensor));
  }
  if (handle.array_class != Py_TYPE(object)) return false;
  const HeldBuffer buffer(object);
  return buffer.is_held && append(find_rows(handle, buffer.view));
}

constexpr char kAppendDoc[] = R"(append($self, rows, /)
--

Appends rows: along the first axis, in Fortran order along the last.

When it returns the file has them, and its header says so (but see ``header_every`` and
``rewrite_header_on_append``): a process that is killed loses nothing. May be called from many
threads at once.

Args:
    rows: A tensor or a numpy array, of the file's shape but for the axis that grows; or a list of
        them without that axis, one a row, which is appended as a whole. The first fixes dtype,
        order and shape of a new file; the dtype of later ones is cast, as ``casting`` allows.

Raises:
    ValueError: The shape does not fit; the file was closed.
    UnsupportedError: Objects; tensors and dtypes that cannot be saved.
    TypeError: The dtype does not cast to the file's.
    LockError: Another writer has the file, or this process was forked from the one that opened it.
    TransportError: Not all could be written (a full disk): the file keeps the rows that it had,
        and append() may be called again.
)";

// A function of CPython itself: pybind11's dispatch takes as long as the system call.
PyObject* append_rows(PyObject* self, PyObject* object) noexcept {
  return answer_python([&] {
    auto* const instance = reinterpret_cast<py::detail::instance*>(self);
    auto* const handle = static_cast<AppendHandle*>(instance->get_value_and_holder().value_ptr());
    if (handle == nullptr) throw py::type_error("expected that __init__() was called");
    if (!append_as_they_are(*handle, object)) py::handle(self).attr("_append")(py::handle(object));
    return py::none();
  });
}

PyMethodDef append_method = {"append", append_rows, METH_O, kAppendDoc};

// From now on objects that look like `rows`, which the file holds as they are, are taken so.
void learn(AppendHandle& handle, const py::object& rows) {
  if (is_tensor(rows)) {
    const at::ScalarType type = unwrap(rows).scalar_type();
    if (holds(handle.appender, type)) handle.tensor_type = type;
    return;
  }
  const HeldBuffer buffer(rows.ptr());
  if (!buffer.is_held || buffer.view.format == nullptr) return;
  handle.array_class = Py_TYPE(rows.ptr());
  handle.array_format = buffer.view.format;
}

std::unique_ptr<AppendHandle> make_handle(const std::string& path, bool delete_if_exists,
                                          uint64_t header_every, AppenderOptions::Sync sync,
                                          Casting casting) {
  AppenderOptions options;
  options.delete_if_exists = delete_if_exists;
  options.header_every = header_every;
  options.sync = sync;
  return without_gil([&] {
    return std::make_unique<AppendHandle>(local_path(path), std::move(options), casting);
  });
}

ArrayView view_for(const AppendHandle& handle, const py::object& object) {
  const at::Tensor tensor = unwrap(object);
  return without_gil([&] {
    return with_file_name(handle.appender.path(),
                          [&] { return view_rows(handle.appender, tensor, handle.casting); });
  });
}

// The descr, the torch dtype, the shape and whether it is in Fortran order; None before there is a
// file.
py::object describe(const AppendHandle& handle) {
  const AppendLayout* const layout = handle.appender.layout();
  if (layout == nullptr) return py::none();
  NpyHeader header;
  header.descr = handle.appender.descr();
  header.dtype = layout->dtype;
  const py::tuple values = wrap_header(header);
  return py::make_tuple(values[0], values[1], py::tuple(py::cast(handle.appender.shape())),
                        layout->fortran_order);
}

void bind_appender(py::module_& m) {
  py::enum_<AppenderOptions::Sync>(m, "AppendSync")
      .value("never", AppenderOptions::Sync::kNever)
      .value("header", AppenderOptions::Sync::kHeader)
      .value("always", AppenderOptions::Sync::kAlways);
  py::enum_<Casting>(m, "Casting")
      .value("no", Casting::kNo)
      .value("equiv", Casting::kEquiv)
      .value("safe", Casting::kSafe)
      .value("same_kind", Casting::kSameKind)
      .value("unsafe", Casting::kUnsafe);
  py::class_<AppendHandle> type(m, "Appender");
  type.def(py::init(&make_handle))
      .def("_append_views",
           [](AppendHandle& handle, const std::vector<ArrayView>& views) {
             return without_gil([&] { return handle.appender.append(views); });
           })
      .def("_view_tensor", &view_for)
      .def("_learn", &learn)
      .def("_describe", &describe)
      .def("_update_header",
           [](AppendHandle& handle) { without_gil([&] { handle.appender.update_header(); }); })
      .def("_close", [](AppendHandle& handle) { without_gil([&] { handle.appender.close(); }); });
  type.attr("append") = py::reinterpret_steal<py::object>(
      PyDescr_NewMethod(reinterpret_cast<PyTypeObject*>(type.ptr()), &append_method));
}

}  // namespace

void bind_append(py::module_& m) {
  bind_appender(m);
  m.def("can_cast", [](const py::object& from, const py::object& to, Casting casting) {
    return can_cast(*parse_dtype(from), *parse_dtype(to), casting);
  });
  m.def("is_appendable", [](const std::string& path) {
    return without_gil([&] { return is_appendable(local_path(path)); });
  });
  m.def("needs_recovery", [](const std::string& path) {
    return without_gil([&] { return needs_recovery(local_path(path)); });
  });
  m.def("ensure_appendable", [](const std::string& path, bool inplace) {
    without_gil([&] { ensure_appendable(local_path(path), inplace); });
  });
  m.def("recover", [](const std::string& path, bool zerofill_incomplete) {
    without_gil([&] { recover(local_path(path), zerofill_incomplete); });
  });
}

}  // namespace torchnpy
