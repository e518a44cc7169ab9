#include "format/text_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "base/error.h"
#include "format/number.h"
#include "format/text.h"
#include "format/text_lines.h"

namespace torchnpy {
namespace {

void add_fields(const Dtype& dtype, uint64_t offset, std::vector<TextField>& fields) {
  if (dtype.type != ScalarType::kStructured) {
    if (!is_number(dtype.type)) {
      throw UnsupportedError(fmt::format(
          "dtype: expected numbers, which tensors hold, but found {}", format_dtype(dtype)));
    }
    fields.push_back({dtype.type, offset});
    return;
  }
  for (const Field& field : dtype.fields) {
    uint64_t count = 1;
    for (const uint64_t axis : field.shape) count *= axis;  // parse_descr() checked the product
    for (uint64_t i = 0; i < count; ++i) {
      add_fields(field.dtype, offset + field.offset + i * field.dtype.itemsize, fields);
    }
  }
}

// Memory that grows where it is, if the system can, so that it is never held twice.
class Elements {
 public:
  Elements() = default;
  ~Elements() { std::free(data_); }
  Elements(const Elements&) = delete;
  Elements& operator=(const Elements&) = delete;

  // Room for `nbytes` more behind what is there, uninitialised.
  uint8_t* extend(uint64_t nbytes) {
    uint64_t wanted = 0;
    if (!checked_add(nbytes_, nbytes, &wanted)) throw std::bad_alloc();
    if (wanted > capacity_) resize(std::max({wanted, capacity_ + capacity_ / 2, kMinNbytes}));
    uint8_t* const room = data_ + nbytes_;
    nbytes_ = wanted;
    return room;
  }

  uint8_t* data() { return data_; }

  OwnedBytes take() {
    if (nbytes_ == 0) return {};
    resize(nbytes_);
    uint8_t* const data = std::exchange(data_, nullptr);
    return {{data, nbytes_}, std::shared_ptr<void>(data, &std::free)};
  }

 private:
  static constexpr uint64_t kMinNbytes = 64 << 10;

  void resize(uint64_t capacity) {
    void* const data = std::realloc(data_, capacity);
    if (data == nullptr) throw std::bad_alloc();
    data_ = static_cast<uint8_t*>(data);
    capacity_ = capacity;
  }

  uint8_t* data_ = nullptr;
  uint64_t nbytes_ = 0;
  uint64_t capacity_ = 0;
};

std::string expected_number(ScalarType type) {
  Dtype dtype;
  dtype.type = type;
  const std::string name = format_dtype(dtype);
  return (name.starts_with('i') ? "an " : "a ") + name;
}

}  // namespace

TextLayout make_text_layout(const Dtype& dtype) {
  TextLayout layout;
  layout.is_plain = dtype.type != ScalarType::kStructured;
  layout.itemsize = dtype.itemsize;
  add_fields(dtype, 0, layout.fields);
  return layout;
}

class TextReader::Impl {
 public:
  Impl(TextRules rules, TextLayout layout)
      : rules_(std::move(rules)),
        layout_(std::move(layout)),
        lines_(rules_.delimiter, rules_.comments, rules_.quote),
        lines_to_skip_(rules_.skip_lines) {
    if (!layout_.is_plain) columns_ = layout_.fields.size();
    if (!rules_.columns) return;
    if (!layout_.is_plain && rules_.columns->size() != layout_.fields.size()) {
      throw ArgumentError(
          fmt::format("usecols: expected one column for each of the {} fields but "
                      "found {}",
                      layout_.fields.size(), rules_.columns->size()));
    }
    columns_ = rules_.columns->size();
  }

  void feed(std::string_view text) {
    if (carry_.empty() && has_begun_) {
      carry_ = text.substr(read_lines(text, /*is_last=*/false));
      return;
    }
    carry_.append(text);
    if (carry_.size() > kMaxLineNbytes) {
      throw FormatError(fmt::format("expected lines of at most {} bytes but found more at line {}",
                                    kMaxLineNbytes, line()));
    }
    if (!has_begun_ && carry_.size() < kMark.size()) return;
    // A line that many pieces make up is looked at each time that it has doubled, not at each.
    const bool may_have_ended = rules_.quote.empty() && text.find_first_of("\r\n") != text.npos;
    if (has_begun_ && !may_have_ended && carry_.size() < retry_nbytes_) return;
    advance(/*is_last=*/false);
    retry_nbytes_ = 2 * carry_.size();
  }

  void finish() { advance(/*is_last=*/true); }

  bool is_done() const { return rules_.max_rows && rows_ >= *rules_.max_rows; }
  uint64_t rows() const { return rows_; }
  uint64_t columns() const { return columns_.value_or(1); }
  OwnedBytes take_elements() { return elements_.take(); }
  const std::vector<KeptText>& texts() const { return texts_; }

  void store(size_t index, std::string_view value) {
    const KeptText& kept = texts_.at(index);
    store(kept.type, value, elements_.data() + kept.offset, kept.line, kept.field);
  }

 private:
  // What is compressed can claim to be a line without end.
  static constexpr size_t kMaxLineNbytes = 1 << 30;
  static constexpr std::string_view kMark = "\xEF\xBB\xBF";

  void advance(bool is_last) {
    std::string_view text = carry_;
    if (!has_begun_ && text.starts_with(kMark)) text.remove_prefix(kMark.size());
    has_begun_ = true;
    const size_t skipped = carry_.size() - text.size();
    const size_t consumed = read_lines(text, is_last);
    carry_.erase(0, skipped + consumed);
  }

  // Reads the lines that are complete; the bytes of them.
  size_t read_lines(std::string_view text, bool is_last) {
    size_t consumed = 0;
    while (!is_done() && consumed < text.size()) {
      const std::string_view rest = text.substr(consumed);
      const bool skips = lines_to_skip_ > 0;
      const size_t nbytes =
          skips ? find_line_end(rest, is_last) : lines_.split(rest, is_last, fields_);
      if (nbytes == 0) return consumed;
      if (skips) {
        --lines_to_skip_;
      } else if (!fields_.empty()) {
        read_row();
      }
      lines_read_ += skips ? 1 : lines_.count_lines();
      consumed += nbytes;
    }
    return is_done() ? text.size() : consumed;
  }

  void read_row() {
    if (!has_begun_rows_) begin_rows();
    if (!rules_.columns && fields_.size() != *columns_) {
      throw FormatError(fmt::format(
          "expected {} columns but found {} at line {}; choose columns that all lines have with "
          "usecols",
          *columns_, fields_.size(), line()));
    }
    uint8_t* const row = elements_.extend(row_nbytes_);
    for (uint64_t i = 0; i < *columns_; ++i) {
      const size_t field = rules_.columns ? find_field((*rules_.columns)[i]) : i;
      const TextField& place = layout_.fields[layout_.is_plain ? 0 : i];
      uint8_t* const element = row + (layout_.is_plain ? i * layout_.itemsize : place.offset);
      if (!keeps_text_.empty() && keeps_text_[i]) {
        const auto offset = static_cast<uint64_t>(element - elements_.data());
        std::memset(element, 0, number_nbytes(place.type));
        texts_.push_back({i, place.type, std::string(fields_[field]), line(), field + 1, offset});
      } else {
        store(place.type, fields_[field], element, line(), field + 1);
      }
    }
    ++rows_;
  }

  static void store(ScalarType type, std::string_view text, uint8_t* element, uint64_t line,
                    uint64_t column) {
    const Stored stored = store_number(type, text, element);
    if (stored == Stored::kYes) return;
    throw FormatError(fmt::format(
        "expected {}{} but found \"{}\" at line {}, column {}", expected_number(type),
        stored == Stored::kOutOfRange ? " in its range" : "", format_name(text), line, column));
  }

  size_t find_field(int64_t column) const {
    const auto count = static_cast<int64_t>(fields_.size());
    const int64_t index = column < 0 ? column + count : column;
    if (index < 0 || index >= count) {
      throw FormatError(fmt::format(
          "expected a column {} (usecols) but found {} columns at line {}", column, count, line()));
    }
    return static_cast<size_t>(index);
  }

  // With the first row it is known how many columns there are.
  void begin_rows() {
    has_begun_rows_ = true;
    if (!columns_) columns_ = fields_.size();
    const uint64_t elements = layout_.is_plain ? *columns_ : 1;
    if (!checked_multiply(elements, layout_.itemsize, &row_nbytes_)) throw std::bad_alloc();
    if (rules_.all_as_text) keeps_text_.assign(*columns_, true);
    for (const int64_t column : rules_.text_columns) keep_text(column);
  }

  void keep_text(int64_t column) {
    keeps_text_.resize(*columns_, false);
    if (rules_.columns) {
      const auto found = std::find(rules_.columns->begin(), rules_.columns->end(), column);
      if (found != rules_.columns->end()) keeps_text_[found - rules_.columns->begin()] = true;
      return;
    }
    const auto count = static_cast<int64_t>(*columns_);
    if (column < -count || column >= count) {
      throw ArgumentError(fmt::format("converters: expected columns from {} to {} but found {}",
                                      -count, count - 1, column));
    }
    keeps_text_[column < 0 ? column + count : column] = true;
  }

  // Of the row being read, from 1.
  uint64_t line() const { return lines_read_ + 1; }

  const TextRules rules_;
  const TextLayout layout_;
  LineSplitter lines_;
  uint64_t lines_to_skip_;
  uint64_t lines_read_ = 0;

  std::string carry_;  // the start of a line
  size_t retry_nbytes_ = 0;
  bool has_begun_ = false;

  std::vector<std::string_view> fields_;  // of the row being read
  bool has_begun_rows_ = false;
  std::optional<uint64_t> columns_;
  std::vector<bool> keeps_text_;  // by column; empty: none
  uint64_t row_nbytes_ = 0;
  uint64_t rows_ = 0;
  Elements elements_;
  std::vector<KeptText> texts_;
};

TextReader::TextReader(TextRules rules, TextLayout layout)
    : impl_(std::make_unique<Impl>(std::move(rules), std::move(layout))) {}
TextReader::~TextReader() = default;

void TextReader::feed(std::string_view text) { impl_->feed(text); }
void TextReader::finish() { impl_->finish(); }
bool TextReader::is_done() const { return impl_->is_done(); }
uint64_t TextReader::rows() const { return impl_->rows(); }
uint64_t TextReader::columns() const { return impl_->columns(); }
OwnedBytes TextReader::take_elements() { return impl_->take_elements(); }
const std::vector<KeptText>& TextReader::texts() const { return impl_->texts(); }
void TextReader::store(size_t index, std::string_view value) { impl_->store(index, value); }

}  // namespace torchnpy
