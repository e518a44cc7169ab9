// Tables of numbers in text, as numpy.loadtxt() reads them. Pure: text in, elements out.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "format/npy.h"

namespace torchnpy {

struct TextRules {
  std::string delimiter;              // one code point; empty: any blanks
  std::vector<std::string> comments;  // each ends its line
  std::string quote;                  // one code point; empty: none
  uint64_t skip_lines = 0;
  std::optional<uint64_t> max_rows;             // lines without fields are none
  std::optional<std::vector<int64_t>> columns;  // to read, from the end where negative; else all
  // Columns whose text is kept instead of parsed: numbers as `columns` has them.
  std::vector<int64_t> text_columns;
  bool all_as_text = false;
};

// Where a column of a row goes: an element `offset` bytes into a record.
struct TextField {
  ScalarType type = ScalarType::kFloat64;
  uint64_t offset = 0;
};

// What a row becomes. Plain: each column an element of the same type, as many as the text has.
// Structured: a record, one field a column.
struct TextLayout {
  bool is_plain = true;
  std::vector<TextField> fields;  // plain: one
  uint64_t itemsize = 0;          // bytes of an element, or of a record
};

// The layout of elements of `dtype`: nested records and sub-arrays, flat. Throws UnsupportedError
// for elements that are no numbers.
TextLayout make_text_layout(const Dtype& dtype);

// The text of a field that is kept.
struct KeptText {
  uint64_t column = 0;  // of the result
  ScalarType type = ScalarType::kFloat64;
  std::string text;
  uint64_t line = 0;    // for messages, from 1
  uint64_t field = 0;   // in its line, from 1
  uint64_t offset = 0;  // of its element in all elements, in bytes
};

// Takes text in pieces that may be cut anywhere. A byte order mark of UTF-8 at its start is
// skipped. Lines end in "\n", "\r\n" or "\r". Errors are FormatErrors with the line and the column,
// both from 1; after one the reader is of no use.
class TextReader {
 public:
  // Throws ArgumentError for rules that contradict each other.
  TextReader(TextRules rules, TextLayout layout);
  ~TextReader();
  TextReader(const TextReader&) = delete;
  TextReader& operator=(const TextReader&) = delete;

  // Holds on to nothing of `text`. What follows the last row wanted is ignored.
  void feed(std::string_view text);
  // The text has ended.
  void finish();
  // As many rows as are wanted are there.
  bool is_done() const;

  uint64_t rows() const;
  // Of a row; where there are no rows 1, or what the rules say.
  uint64_t columns() const;
  // In the order of rows and then columns. Their elements are zero until they are stored.
  const std::vector<KeptText>& texts() const;
  // Stores `value`, a number as text, in the place of a kept text. Throws FormatError.
  void store(size_t index, std::string_view value);
  // All elements, row by row, in this machine's byte order; to be taken once.
  OwnedBytes take_elements();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace torchnpy
