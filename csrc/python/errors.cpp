#include "python/errors.h"

#include <string_view>

#include "base/error.h"
#include "python/gil.h"
#include "torch/append.h"

namespace torchnpy {
namespace {

namespace py = pybind11;

const char* transport_class(const TransportError& error) {
  switch (error.kind()) {
    case TransportError::Kind::kNotFound: return "ObjectNotFoundError";
    case TransportError::Kind::kDenied: return "AccessDeniedError";
    case TransportError::Kind::kTimeout: return "TransportTimeoutError";
    case TransportError::Kind::kExists: return "ObjectExistsError";
    case TransportError::Kind::kChanged:
    case TransportError::Kind::kDamaged:
    case TransportError::Kind::kOther: break;
  }
  return "TransportError";
}

// Messages hold names of files and words of servers, which need not be UTF-8.
void raise_text(PyObject* type, std::string_view text) {
  const auto message = py::reinterpret_steal<py::object>(
      PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "surrogateescape"));
  if (message) PyErr_SetObject(type, message.ptr());
}

void translate(std::exception_ptr error) {
  const auto raise = [](const char* name, const Error& e) {
    raise_text(py::module_::import("torchnpy.errors").attr(name).ptr(), e.what());
  };
  try {
    std::rethrow_exception(error);
  } catch (const InterruptedError&) {
    raise_interrupt();
  } catch (const TransportError& e) {
    raise(transport_class(e), e);
  } catch (const FormatError& e) {
    raise("FormatError", e);
  } catch (const UnsupportedError& e) {
    raise("UnsupportedError", e);
  } catch (const KeyError& e) {
    raise_text(PyExc_KeyError, e.what());
  } catch (const LockError& e) {
    raise("LockError", e);
  } catch (const MemoryError& e) {
    raise_text(PyExc_MemoryError, e.what());
  } catch (const ArgumentError& e) {
    raise_text(PyExc_ValueError, e.what());
  } catch (const CastError& e) {
    raise_text(PyExc_TypeError, e.what());
  }
}

}  // namespace

void register_errors() { py::register_exception_translator(translate); }

void raise_python(const std::exception_ptr& error) {
  try {
    translate(error);
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& e) {
    raise_text(PyExc_RuntimeError, e.what());
  }
}

py::object make_exception(const std::exception_ptr& error) {
  raise_python(error);
  return py::reinterpret_borrow<py::object>(py::error_already_set().value());
}

}  // namespace torchnpy
