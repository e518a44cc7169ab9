// What a call says that must fail.
#pragma once

#include <string>

#include "base/error.h"

namespace torchnpy {

// The message of the FormatError that `function` throws.
template <typename Function>
std::string error_of(Function function) {
  try {
    function();
  } catch (const FormatError& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace torchnpy
