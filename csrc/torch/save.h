// Tensors as arrays that can be written.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "archive/array_view.h"
#include "transport/client.h"

namespace torchnpy {

// The tensor's memory; a copy of a tensor of another device, or of one that torch conjugates or
// negates when it is read. Throws UnsupportedError for a tensor that is no plain array in memory
// (sparse, quantized, meta...) or has a dtype that numpy lacks; the message says what to call.
ArrayView view_tensor(const at::Tensor& tensor);

struct RecordField {
  std::string quoted_name;  // as Python prints it
  at::Tensor tensor;
};

// A structured array: a copy. The dimensions that all fields begin with are its shape, what follows
// makes a field a sub-array. Throws as view_tensor(), also for bfloat16 and most of float8: the
// header does not name them.
ArrayView copy_record(const std::vector<RecordField>& fields);

// Saves the tensor at `url` as a .npy. Blocks, can be interrupted (base/wait.h), and throws the
// errors of base/error.h with the object's name in the message. `options.nbytes` has no meaning.
void save(Client& client, const std::string& url, const at::Tensor& tensor,
          TargetOptions options = {});

}  // namespace torchnpy
