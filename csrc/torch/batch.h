// Batches of samples, as a DataLoader collates them: one tensor with a row a sample, written by the
// loads themselves.
#pragma once

#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "torch/npz.h"
#include "torch/tensor.h"
#include "transport/client.h"

namespace torchnpy {

struct BatchOptions {
  bool together = true;     // try to lay the samples side by side
  bool shared = false;      // then in memory that other processes can map
  bool keep_going = false;  // an object that cannot be loaded does not end the others
};

// The same array of each sample.
struct Column {
  at::Tensor rows;            // where they agree in dtype and shape and are in C order; else
  std::vector<Array> arrays;  // each with memory of its own
};

struct NamedColumn {
  std::string key;  // of the members, as asked for
  Column column;
};

// What ended the load of one object, if that is the object's fault and not the caller's.
struct Failure {
  size_t index = 0;  // in `urls`
  std::exception_ptr error;
};

struct NpyBatch {
  Column column;  // without the failed ones, as below
  std::vector<Failure> failures;
};

struct NpzBatch {
  std::vector<NamedColumn> columns;               // where all archives have the same keys; else
  std::vector<std::vector<NamedArray>> archives;  // each by itself
  std::vector<Failure> failures;
};

// Concurrently, in the order of `urls`. Both block, can be interrupted and throw as load_many()
// does; with keep_going only what is not an object's fault.
NpyBatch load_batch(Client& client, const std::vector<std::string>& urls,
                    std::optional<at::ScalarType> dtype, const BatchOptions& options);
NpzBatch load_npz_batch(Client& client, const std::vector<std::string>& urls, const NpzKeys& keys,
                        const NpzOptions& npz_options, const BatchOptions& options);

}  // namespace torchnpy
