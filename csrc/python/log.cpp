#include "python/log.h"

#include <Python.h>

#include <csignal>
#include <exception>
#include <memory>
#include <vector>

#include "base/log.h"

namespace torchnpy {
namespace {

struct DropReference {
  void operator()(PyObject* object) const { Py_DECREF(object); }
};
using Reference = std::unique_ptr<PyObject, DropReference>;

// nullptr with an error of Python.
Reference wrap_records(const std::vector<LogRecord>& records) {
  Reference list(PyList_New(0));
  for (const LogRecord& record : records) {
    if (list == nullptr) break;
    // Names of objects need not be UTF-8, and handlers shall be able to write them.
    const Reference text(PyUnicode_DecodeUTF8(
        record.text.data(), static_cast<Py_ssize_t>(record.text.size()), "backslashreplace"));
    if (text == nullptr) return nullptr;
    const Reference entry(Py_BuildValue("(idO)", record.level == LogLevel::kWarning ? 1 : 0,
                                        record.created_s, text.get()));
    if (entry == nullptr || PyList_Append(list.get(), entry.get()) != 0) return nullptr;
  }
  return list;
}

bool emit(const std::vector<LogRecord>& records) {
  const Reference list = wrap_records(records);
  if (list == nullptr) return false;
  const Reference module(PyImport_ImportModule("torchnpy.log"));
  if (module == nullptr) return false;
  return Reference(PyObject_CallMethod(module.get(), "emit", "O", list.get())) != nullptr;
}

}  // namespace

void drain_log() noexcept {
  thread_local bool drains = false;
  if (drains || !has_log_records()) return;
  drains = true;
  PyObject* type = nullptr;
  PyObject* value = nullptr;
  PyObject* trace = nullptr;
  PyErr_Fetch(&type, &value, &trace);
  try {
    // One batch: what handlers cause by loading waits for the next call, or this would never end.
    if (!emit(take_log_records())) {
      if (PyErr_ExceptionMatches(PyExc_KeyboardInterrupt)) {
        PyErr_Clear();
        PyErr_SetInterruptEx(SIGINT);
      } else {
        PyErr_WriteUnraisable(nullptr);
      }
    }
  } catch (const std::exception&) {  // no memory: the records are lost
  }
  PyErr_Restore(type, value, trace);
  drains = false;
}

}  // namespace torchnpy
