// Any text gives rows or a FormatError, the same however it is cut; what is printed of the numbers
// is read as the same numbers.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "format/row_format.h"
#include "format/text_reader.h"

namespace torchnpy {
namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

struct Table {
  std::string error;
  uint64_t rows = 0;
  uint64_t columns = 0;
  std::vector<uint8_t> elements;

  bool operator==(const Table&) const = default;
};

Table read(std::string_view text, const TextRules& rules, ScalarType type, size_t nbytes,
           size_t piece_nbytes) {
  Table table;
  try {
    TextReader reader(rules, {true, {{type, 0}}, nbytes});
    for (; !text.empty(); text.remove_prefix(std::min(piece_nbytes, text.size()))) {
      reader.feed(text.substr(0, piece_nbytes));
    }
    reader.finish();
    table.rows = reader.rows();
    table.columns = reader.columns();
    const OwnedBytes elements = reader.take_elements();
    table.elements.assign(elements.bytes.begin(), elements.bytes.end());
    require(table.elements.size() == table.rows * table.columns * nbytes);
  } catch (const FormatError& error) {
    table.error = error.what();
  } catch (const ArgumentError& error) {
    table.error = error.what();
  }
  return table;
}

double double_at(const Table& table, uint64_t index) {
  double value;
  std::memcpy(&value, table.elements.data() + index * sizeof(value), sizeof(value));
  return value;
}

void check_printed(const Table& table, std::string_view specifier) {
  std::string format;
  std::vector<TextColumn> columns;
  for (uint64_t i = 0; i < table.columns; ++i) {
    format.append(specifier).append(" ");
    columns.push_back({ScalarType::kFloat64, table.elements.data() + i * sizeof(double),
                       static_cast<int64_t>(table.columns * sizeof(double))});
  }
  const std::optional<RowFormat> rows = RowFormat::parse(format + "\n", columns);
  require(rows.has_value());
  std::string text;
  for (uint64_t row = 0; row < table.rows; ++row) rows->append_row(row, text);
  const Table again = read(text, {}, ScalarType::kFloat64, sizeof(double), text.size());
  require(again.rows == table.rows && again.columns == table.columns);
  for (uint64_t i = 0; i < table.rows * table.columns; ++i) {
    const double before = double_at(table, i);
    const double after = double_at(again, i);
    require(std::isnan(before) ? std::isnan(after)
                               : std::bit_cast<uint64_t>(before) == std::bit_cast<uint64_t>(after));
  }
}

// The first bytes choose the rules.
void check(std::string_view input) {
  if (input.size() < 4) return;
  const auto choice = static_cast<uint8_t>(input[0]);
  TextRules rules;
  rules.delimiter = choice & 1 ? "," : choice & 2 ? "\xE2\x82\xAC" : "";
  if (choice & 4) rules.quote = "\"";
  if (choice & 8) rules.comments = {"#"};
  if (choice & 16) rules.comments.push_back("//");
  if (choice & 32) rules.columns = {0, -1};
  rules.skip_lines = choice >> 6;
  if (input[1] & 1) rules.max_rows = static_cast<uint8_t>(input[1]) >> 1;
  const size_t piece_nbytes = static_cast<uint8_t>(input[2]) + 1;
  const std::string_view text = input.substr(3);

  const Table whole = read(text, rules, ScalarType::kFloat64, sizeof(double), text.size());
  require(whole == read(text, rules, ScalarType::kFloat64, sizeof(double), piece_nbytes));
  if (whole.rows > 0) {
    check_printed(whole, "%.17g");
    check_printed(whole, "%.18e");
    check_printed(whole, "%s");
  }
  for (const ScalarType type : {ScalarType::kInt8, ScalarType::kUInt64, ScalarType::kComplex128}) {
    const size_t nbytes = type == ScalarType::kInt8 ? 1 : type == ScalarType::kUInt64 ? 8 : 16;
    require(read(text, rules, type, nbytes, text.size()) ==
            read(text, rules, type, nbytes, piece_nbytes));
  }
}

}  // namespace
}  // namespace torchnpy

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  torchnpy::check(torchnpy::as_text({data, size}));
  return 0;
}
