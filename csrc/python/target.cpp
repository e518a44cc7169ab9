#include "python/target.h"

#include <pybind11/stl.h>

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "base/error.h"
#include "python/convert.h"
#include "transport/client.h"

namespace torchnpy {
namespace {

// One target, which several threads of Python may call.
class TargetHandle {
 public:
  TargetHandle(Client& client, const std::string& url, std::optional<uint64_t> nbytes, bool sync,
               bool if_none_match) {
    TargetOptions options;
    options.nbytes = nbytes;
    options.sync = sync;
    options.if_none_match = if_none_match;
    target_ = without_gil([&] { return client.create(url, options); });
  }
  ~TargetHandle() {
    // Only in a forked child somebody may be inside: a thread of the parent.
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (lock) {
      without_gil([this] { target_ = nullptr; });
    } else {
      static_cast<void>(target_.release());
    }
  }
  TargetHandle(const TargetHandle&) = delete;
  TargetHandle& operator=(const TargetHandle&) = delete;

  // Bytes that nobody can change are held, others copied.
  void write(const py::object& data) {
    Buffer view = export_buffer(data.ptr());
    const ByteView bytes = bytes_of(view);
    std::shared_ptr<const void> owner;
    if (view->readonly != 0) owner = std::shared_ptr<Py_buffer>(view.release(), ReleaseBuffer());
    call([&](Target& target) { target.write({bytes, std::move(owner)}); });
  }

  void finish() {
    call([](Target& target) { target.finish(); });
    abandon();
  }

  void abandon() {
    without_gil([&] {
      const std::lock_guard lock(mutex_);
      target_ = nullptr;
    });
  }

 private:
  template <typename Call>
  void call(Call call) {
    without_gil([&] {
      const std::unique_lock lock(mutex_, std::try_to_lock);
      if (!lock) throw ArgumentError("expected one thread to write at a time but found two");
      if (target_ == nullptr)
        throw ArgumentError("expected a target that is open but found one that is closed");
      call(*target_);
    });
  }

  std::mutex mutex_;
  std::unique_ptr<Target> target_;  // nullptr: finished, or abandoned
};

}  // namespace

void bind_targets(py::module_& m) {
  py::class_<TargetHandle>(m, "Target")
      .def("write", &TargetHandle::write)
      .def("finish", &TargetHandle::finish)
      .def("abandon", &TargetHandle::abandon);
  m.def("create", [](Client& client, const std::string& url, std::optional<uint64_t> nbytes,
                     bool sync, bool if_none_match) {
    return std::make_unique<TargetHandle>(client, url, nbytes, sync, if_none_match);
  });
}

}  // namespace torchnpy
