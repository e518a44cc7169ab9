#include "base/warnings.h"

#include <atomic>
#include <exception>
#include <mutex>
#include <utility>

#include "base/fork.h"

namespace torchnpy {
namespace {

constexpr size_t kMaxWarnings = 100;

// Under process_mutex(). Never destroyed: threads may outlive statics.
auto* const warnings = new std::vector<std::string>;
std::atomic<bool> has_warnings{false};

}  // namespace

void add_warning(std::string text) noexcept {
  const std::lock_guard lock(process_mutex());
  if (warnings->size() >= kMaxWarnings) return;
  try {
    warnings->push_back(std::move(text));
    has_warnings = true;
  } catch (const std::exception&) {  // no memory: then that is what the user will hear of
  }
}

std::vector<std::string> take_warnings() {
  if (!has_warnings.load(std::memory_order_relaxed)) return {};
  const std::lock_guard lock(process_mutex());
  has_warnings = false;
  return std::exchange(*warnings, {});
}

}  // namespace torchnpy
