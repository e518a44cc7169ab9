// Batches of rows of arrays that are seen as one table: columns of rows of equal number, each of
// one array or of several, one behind the other.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "torch/load.h"

namespace torchnpy {

struct RowColumn {
  std::string name;  // for messages; "" where it is the only one
  std::vector<std::string> urls;
};

// What is known of a column once its headers were read: enough for another process to go on with
// the same versions of the objects, without reading them again.
struct RowColumnState {
  std::string head;  // the first object's bytes in front of its data
  // Of each object:
  std::vector<uint64_t> row_counts;
  std::vector<uint64_t> data_offsets;
  std::vector<std::string> versions;  // Source::version_name()
};

struct RowTable;

// Reads rows. Any number of threads may use it at once, and it survives fork(). Nothing is opened
// before it is needed; then at most kMaxOpen objects stay open. All calls block, can be interrupted
// and throw as those of torch/load.h do.
class RowReader {
 public:
  static constexpr size_t kMaxOpen = 128;

  // `dtype`: of elements of a void dtype; with one column also checked against other dtypes.
  RowReader(std::shared_ptr<Client> client, std::vector<RowColumn> columns,
            std::optional<at::ScalarType> dtype);
  ~RowReader();

  // Rows of each column. Reads all headers, concurrently, at the first call of this or read().
  // Throws ArgumentError when the arrays of a column differ in the shape or dtype of their rows,
  // or columns in length.
  uint64_t count();
  // Rows `rows` of each column, below count(), in that order: all that is needed is in flight at
  // once. `shared`: in shared memory, for another process.
  std::vector<Array> read(std::span<const uint64_t> rows, bool shared);

  // Of each column; empty before the headers were read.
  std::vector<RowColumnState> state() const;
  // As if the headers had been read, with that outcome. Before the first call of count() or read().
  void set_state(const std::vector<RowColumnState>& state);

 private:
  class OpenObjects;

  std::shared_ptr<const RowTable> known_table() const;  // nullptr before the headers were read
  std::shared_ptr<const RowTable> table();
  std::shared_ptr<const RowTable> read_table();
  std::shared_ptr<Source> open(const RowTable& table, size_t column, size_t place);
  // What elements of a column are, as the caller says.
  std::optional<at::ScalarType> dtype_of(const NpyHeader& header) const;

  const std::shared_ptr<Client> client_;
  const std::vector<RowColumn> columns_;
  const std::optional<at::ScalarType> dtype_;
  const std::unique_ptr<OpenObjects> open_;
  std::shared_ptr<const RowTable> table_;  // under process_mutex()
};

}  // namespace torchnpy
