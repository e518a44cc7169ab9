// The library's log records (base/log.h), for Python's logging. CPython only, no pybind11.
#pragma once

namespace torchnpy {

// Hands what there is to torchnpy.log.emit(), whose handlers run here. With the GIL, and no lock of
// ours: handlers are the program's code, and may load. Cheap when there is nothing, and does
// nothing inside a handler that it called. Ctrl-C is raised soon afterwards, other errors are
// unraisable.
void drain_log() noexcept;

// Drains when it goes. Where it goes the GIL must be held.
class LogDrain {
 public:
  LogDrain() = default;
  ~LogDrain() { drain_log(); }
  LogDrain(const LogDrain&) = delete;
  LogDrain& operator=(const LogDrain&) = delete;
};

}  // namespace torchnpy
