// Tensors as rows of a file that grows.
#pragma once

#include <ATen/ATen.h>

#include <string>

#include "archive/appender.h"
#include "archive/array_view.h"
#include "base/error.h"

namespace torchnpy {

// A dtype does not become another one without loss. TypeError.
class CastError : public Error {
  using Error::Error;
};

// Which casts are allowed, as numpy's `casting` has it.
enum class Casting { kNo, kEquiv, kSafe, kSameKind, kUnsafe };
bool can_cast(at::ScalarType from, at::ScalarType to, Casting casting);

// The tensor in the dtype of the file, cast where it must be; before there is one, as it is. Throws
// CastError for a cast that is not allowed and a dtype that no tensor has, and as view_tensor().
// Errors do not name the file.
ArrayView view_rows(const Appender& appender, const at::Tensor& rows, Casting casting);

// Whether the file holds elements of `type` as a tensor does.
bool holds(const Appender& appender, at::ScalarType type);

// Opens or makes the file, appends the rows and closes it. Throws as Appender and view_rows() do;
// casts within a kind are allowed.
void append(const std::string& path, const at::Tensor& rows);

}  // namespace torchnpy
