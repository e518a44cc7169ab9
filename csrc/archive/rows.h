// Rows of one .npy, wherever they lie in it.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "archive/loader.h"
#include "format/npy.h"

namespace torchnpy {

// Where the rows of an array lie in its object.
struct RowLayout {
  uint64_t data_offset = 0;
  uint64_t row_nbytes = 0;
  uint64_t row_count = 0;
};

// The layout that `header` describes. Throws ArgumentError for a shape without rows,
// UnsupportedError for Fortran order with more than one axis.
RowLayout find_rows(const NpyHeader& header);

// A row that is wanted, and the row_nbytes of memory that it goes to.
struct RowTarget {
  uint64_t row = 0;
  uint8_t* memory = nullptr;
};

// Reads rows of one array, near ones together (archive/runs.h), and scatters them into their
// places. Small rows are copied out of a source that can peek. A failure leaves the memory half
// filled. Does not begin again with another version of the object: the rows that the caller read
// before are of this one.
class RowsLoader final : public Loader {
 public:
  // `targets` are sorted by row, below row_count; a row may come more than once. Their memory must
  // outlive the loader. `free_gap_nbytes`: the loader's part of kFreeGapNbytes.
  RowsLoader(std::shared_ptr<Source> source, const RowLayout& layout,
             std::vector<RowTarget> targets, uint64_t free_gap_nbytes);
  ~RowsLoader() override;
  Source& source() override;
  void attach(Workers& workers) override;
  std::vector<Read> next() override;
  bool restart() override;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace torchnpy
