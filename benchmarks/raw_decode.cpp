// The limit of benchmarks/decode.py: the least that Python pays for a tensor over bytes, and for
// one from a file. A Python module; the shapes are given instead of parsed, one dtype, no checks.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <torch/csrc/autograd/python_variable.h>
#include <unistd.h>

#include <cstring>

namespace {

constexpr int64_t kHeaderNbytes = 128;

// bytes -> uint8 tensor over what follows the header's newline.
PyObject* over_bytes(PyObject*, PyObject* bytes) {
  char* data = PyBytes_AS_STRING(bytes);
  const Py_ssize_t nbytes = PyBytes_GET_SIZE(bytes);
  const auto* newline =
      static_cast<const char*>(std::memchr(data, '\n', static_cast<size_t>(nbytes)));
  const int64_t offset = newline + 1 - data;
  Py_INCREF(bytes);
  at::Tensor tensor =
      at::for_blob(data + offset, {nbytes - offset})
          .context(bytes, [](void* owner) { Py_DECREF(static_cast<PyObject*>(owner)); })
          .options(at::kByte)
          .make_tensor();
  return THPVariable_Wrap(std::move(tensor));
}

// path -> uint8 tensor that holds what follows the header.
PyObject* read_file(PyObject*, PyObject* path) {
  const int fd = open(PyUnicode_AsUTF8(path), O_RDONLY | O_CLOEXEC);
  struct stat status{};
  fstat(fd, &status);
  char header[kHeaderNbytes];
  at::Tensor tensor = at::empty({status.st_size - kHeaderNbytes}, at::kByte);
  const bool complete = pread(fd, header, kHeaderNbytes, 0) == kHeaderNbytes &&
                        pread(fd, tensor.data_ptr(), static_cast<size_t>(tensor.numel()),
                              kHeaderNbytes) == tensor.numel();
  close(fd);
  if (!complete) {
    PyErr_SetString(PyExc_OSError, "short read");
    return nullptr;
  }
  return THPVariable_Wrap(std::move(tensor));
}

struct Mapping {
  void* data;
  size_t nbytes;
};

// path -> uint8 tensor over the mapped file.
PyObject* map_file(PyObject*, PyObject* path) {
  const int fd = open(PyUnicode_AsUTF8(path), O_RDONLY | O_CLOEXEC);
  struct stat status{};
  fstat(fd, &status);
  const auto nbytes = static_cast<size_t>(status.st_size);
  void* data = mmap(nullptr, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, 0);
  close(fd);
  if (data == MAP_FAILED) {
    return PyErr_SetFromErrno(PyExc_OSError);
  }
  const auto unmap = [](void* context) {
    auto* mapping = static_cast<Mapping*>(context);
    munmap(mapping->data, mapping->nbytes);
    delete mapping;
  };
  at::Tensor tensor =
      at::for_blob(static_cast<char*>(data) + kHeaderNbytes, {status.st_size - kHeaderNbytes})
          .context(new Mapping{data, nbytes}, unmap)
          .options(at::kByte)
          .make_tensor();
  return THPVariable_Wrap(std::move(tensor));
}

PyMethodDef kMethods[] = {{"over_bytes", over_bytes, METH_O, nullptr},
                          {"read_file", read_file, METH_O, nullptr},
                          {"map_file", map_file, METH_O, nullptr},
                          {nullptr, nullptr, 0, nullptr}};
PyModuleDef kModule = {
    PyModuleDef_HEAD_INIT, "raw_decode", nullptr, -1, kMethods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit_raw_decode() { return PyModule_Create(&kModule); }
