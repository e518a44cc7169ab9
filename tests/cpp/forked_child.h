// Code that is tested in a forked child.
#pragma once

#include <functional>

namespace torchnpy::testing {

// How `run` ended in a forked child: its answer, or minus the signal that killed it.
int run_in_child(const std::function<int()>& run);

}  // namespace torchnpy::testing
