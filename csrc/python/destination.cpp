#include "python/destination.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/wait.h"
#include "python/calls.h"
#include "python/convert.h"

namespace torchnpy {
namespace {

class UrlDestination final : public Destination {
 public:
  UrlDestination(std::shared_ptr<Client> client, std::string url, bool sync, bool if_none_match)
      : client_(std::move(client)), url_(std::move(url)) {
    options_.sync = sync;
    options_.if_none_match = if_none_match;
  }

  std::string name() const override { return display_name(url_); }

  std::unique_ptr<Target> create(std::optional<uint64_t> nbytes) const override {
    TargetOptions options = options_;
    options.nbytes = nbytes;
    return client_->create(url_, options);
  }

 private:
  const std::shared_ptr<Client> client_;
  const std::string url_;
  TargetOptions options_;
};

// A reference that may be dropped without the GIL.
std::shared_ptr<PyObject> share_object(const py::object& object) {
  return {py::object(object).release().ptr(), release_object};
}

class StreamTarget final : public Target {
 public:
  StreamTarget(std::string name, std::shared_ptr<PyObject> write, bool lends)
      : name_(std::move(name)), write_(std::move(write)), lends_(lends) {}

  const std::string& name() const override { return name_; }

  void write(SharedBytes bytes) override {
    constexpr size_t kMaxPieceNbytes = 16 << 20;  // at once without a look at signals; numpy's, too
    for (ByteView rest = bytes.bytes; !rest.empty();) {
      const ByteView piece = rest.first(std::min(rest.size(), kMaxPieceNbytes));
      if (is_main_thread()) {
        write_here(piece);
      } else {
        write_on_thread(piece);
      }
      rest = rest.subspan(piece.size());
    }
  }

  void finish() override {}

 private:
  void write_here(ByteView piece) const {
    const TakenGil gil;
    if (!gil.entered()) throw InterruptedError("interrupted: the process is ending");
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    const py::handle write = write_.get();
    if (!lends_) {
      write(copy(piece));
      return;
    }
    const py::memoryview lent =
        py::memoryview::from_memory(piece.data(), static_cast<py::ssize_t>(piece.size()));
    try {
      write(lent);
    } catch (const py::error_already_set&) {
      // The error's traceback may keep it, and what is lent does not last.
      py::reinterpret_steal<py::object>(PyObject_CallMethod(lent.ptr(), "release", nullptr));
      PyErr_Clear();
      throw;
    }
    lent.attr("release")();
  }

  void write_on_thread(ByteView piece) const {
    std::shared_ptr<PyObject> call;
    {
      const TakenGil gil;
      if (!gil.entered()) throw InterruptedError("interrupted: the process is ending");
      call = share_object(
          py::module_::import("functools").attr("partial")(py::handle(write_.get()), copy(piece)));
    }
    call_on_thread(call.get(), [](const py::object&, const py::object& error) {
      if (error.is_none()) return;
      PyErr_SetObject(py::type::of(error).ptr(), error.ptr());
      throw py::error_already_set();
    });
  }

  static py::bytes copy(ByteView piece) {
    return py::bytes(reinterpret_cast<const char*>(piece.data()), piece.size());
  }

  const std::string name_;
  const std::shared_ptr<PyObject> write_;
  const bool lends_;
};

// An open file of any kind.
class StreamDestination final : public Destination {
 public:
  // `write` takes all of the bytes that it is given. `lends`: it keeps none of them, so that they
  // need not be copied for it.
  StreamDestination(std::string name, const py::object& write, bool lends)
      : name_(std::move(name)), write_(share_object(write)), lends_(lends) {}

  std::string name() const override { return name_; }

  std::unique_ptr<Target> create(std::optional<uint64_t>) const override {
    return std::make_unique<StreamTarget>(name_, write_, lends_);
  }

 private:
  const std::string name_;
  const std::shared_ptr<PyObject> write_;
  const bool lends_;
};

}  // namespace

void bind_destinations(py::module_& m) {
  py::class_<Destination>(m, "Destination")
      .def_property_readonly("name", [](const Destination& to) { return wrap_text(to.name()); });
  py::class_<UrlDestination, Destination>(m, "UrlDestination")
      .def(py::init<std::shared_ptr<Client>, std::string, bool, bool>());
  py::class_<StreamDestination, Destination>(m, "StreamDestination")
      .def(py::init<std::string, const py::object&, bool>());
}

}  // namespace torchnpy
