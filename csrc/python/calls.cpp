#include "python/calls.h"

#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <utility>

#include "base/error.h"
#include "base/wait.h"
#include "python/gil.h"

namespace torchnpy {
namespace {

namespace py = pybind11;

struct Answer {
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
  std::exception_ptr error;
};

}  // namespace

void call_on_thread(py::handle call,
                    std::function<void(const py::object&, const py::object&)> take) {
  const auto answer = std::make_shared<Answer>();
  {
    const TakenGil gil;
    if (!gil.entered()) throw InterruptedError("interrupted: the process is ending");
    const auto done = [answer, take = std::move(take)](const py::object& found,
                                                       const py::object& error) {
      std::exception_ptr thrown;
      try {
        take(found, error);
      } catch (...) {
        thrown = std::current_exception();
      }
      const std::lock_guard lock(answer->mutex);
      answer->error = thrown;
      answer->done = true;
      answer->changed.notify_all();
    };
    py::module_::import("torchnpy.client").attr("_call_on_thread")(call, py::cpp_function(done));
  }
  WaitScope scope;
  std::unique_lock lock(answer->mutex);
  if (!scope.wait(lock, answer->changed, [&] { return answer->done; })) {
    throw InterruptedError("interrupted: waiting for a call of Python was given up");
  }
  if (answer->error) std::rethrow_exception(answer->error);
}

}  // namespace torchnpy
