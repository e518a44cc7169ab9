#include "python/text_tables.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "archive/ordered_jobs.h"
#include "base/error.h"
#include "base/helpers.h"
#include "base/wait.h"
#include "format/descr.h"
#include "format/gzip.h"
#include "format/literal.h"
#include "format/row_format.h"
#include "format/text_reader.h"
#include "python/convert.h"
#include "torch/load.h"

namespace torchnpy {
namespace {

// Between two of them it is seen whether the thread shall stop.
constexpr size_t kPieceNbytes = 1 << 20;

void make_native_order(Dtype& dtype) {
  dtype.big_endian = false;
  for (Field& field : dtype.fields) make_native_order(field.dtype);
}

// As it stands in a header: "'<f8'", or the list of fields.
Dtype parse_text_dtype(const std::string& descr) {
  LiteralArena arena;
  const std::string source = "{'descr': " + descr + "}";
  const Literal& dict = parse_literal_dict(source, 0, {}, arena);
  Dtype dtype = parse_descr(*dict.items->next).dtype;
  make_native_order(dtype);
  return dtype;
}

void check_not_stopped() {
  if (WaitScope::must_stop()) throw InterruptedError("interrupted: the text was given up");
}

template <typename Work>
void in_pieces(ByteView bytes, Work work) {
  const WaitScope scope;
  for (; !bytes.empty(); bytes = bytes.subspan(std::min(bytes.size(), kPieceNbytes))) {
    check_not_stopped();
    work(bytes.first(std::min(bytes.size(), kPieceNbytes)));
  }
}

// The bytes of a tensor of bytes, or of what exports a buffer; released with the GIL.
class Exported {
 public:
  explicit Exported(const py::object& data) {
    if (is_tensor(data)) {
      bytes_ = bytes_of(unwrap(data));
    } else {
      view_ = export_buffer(data.ptr());
      bytes_ = bytes_of(view_);
    }
  }
  ByteView bytes() const { return bytes_; }

 private:
  Buffer view_;
  ByteView bytes_;
};

// A TextReader with the name of what it reads, which may be compressed, and its dtype.
class NamedReader {
 public:
  NamedReader(std::string name, const std::string& descr, TextRules rules, bool is_gzip)
      : name_(std::move(name)),
        dtype_(parse_text_dtype(descr)),
        reader_(std::move(rules), make_text_layout(dtype_)) {
    if (is_gzip) gzip_ = std::make_unique<GzipReader>();
  }

  void feed(const py::object& data) {
    const Exported exported(data);
    run([&] {
      in_pieces(exported.bytes(), [&](ByteView piece) {
        if (reader_.is_done()) return;
        if (gzip_ == nullptr) return reader_.feed(as_text(piece));
        gzip_->feed(piece, [&](ByteView text) {
          check_not_stopped();  // a piece can inflate to a thousand
          reader_.feed(as_text(text));
        });
      });
    });
  }

  void end() {
    run([&] {
      if (gzip_ != nullptr && !reader_.is_done()) gzip_->finish();
      reader_.finish();
    });
  }

  // (column of the result, text, kind of the element, line, column of the line) of each field kept
  // as text.
  py::list texts() const {
    py::list texts;
    for (const KeptText& kept : reader_.texts()) {
      const char kind[] = {kind_of(kept.type), 0};
      texts.append(py::make_tuple(kept.column, py::bytes(kept.text), kind, kept.line, kept.field));
    }
    return texts;
  }

  // Stores what the text at that index was converted to.
  void store(size_t index, const std::string& value) {
    try {
      reader_.store(index, value);
    } catch (Error& error) {
      error.add_context(name_);
      throw;
    }
  }

  // All that was read: of shape (rows, columns), of records (rows,). To be called once.
  py::object take() {
    NpyHeader header;
    header.dtype = dtype_;
    header.shape = {reader_.rows()};
    header.count = reader_.rows();
    if (dtype_.type != ScalarType::kStructured) {
      header.shape.push_back(reader_.columns());
      header.count *= reader_.columns();
    }
    header.nbytes = header.count * dtype_.itemsize;
    return wrap(without_gil([&] {
      return make_array(header, share_bytes(reader_.take_elements()), /*exclusive=*/true);
    }));
  }

  bool is_done() const { return reader_.is_done(); }
  uint64_t rows() const { return reader_.rows(); }
  uint64_t columns() const { return reader_.columns(); }

 private:
  static char kind_of(ScalarType type) {
    if (type == ScalarType::kBool) return 'b';
    if (type < ScalarType::kFloat16) return 'i';
    return type <= ScalarType::kFloat64 ? 'f' : 'c';
  }

  template <typename Work>
  void run(Work work) {
    try {
      without_gil(work);
    } catch (Error& error) {
      error.add_context(name_);
      throw;
    }
  }

  const std::string name_;
  const Dtype dtype_;
  TextReader reader_;
  std::unique_ptr<GzipReader> gzip_;
};

std::unique_ptr<NamedReader> make_text_reader(std::string name, const std::string& descr,
                                              std::string delimiter,
                                              std::vector<std::string> comments, std::string quote,
                                              uint64_t skip_lines, std::optional<uint64_t> max_rows,
                                              std::optional<std::vector<int64_t>> columns,
                                              std::optional<std::vector<int64_t>> text_columns,
                                              bool is_gzip) {
  TextRules rules;
  rules.delimiter = std::move(delimiter);
  rules.comments = std::move(comments);
  rules.quote = std::move(quote);
  rules.skip_lines = skip_lines;
  rules.max_rows = max_rows;
  rules.columns = std::move(columns);
  rules.all_as_text = !text_columns;
  if (text_columns) rules.text_columns = std::move(*text_columns);
  return std::make_unique<NamedReader>(std::move(name), descr, std::move(rules), is_gzip);
}

// What rows are printed of. Jobs on any thread read it.
struct PrintedTable {
  RowFormat format;
  std::vector<at::Tensor> columns;  // keeps their memory
  uint64_t rows = 0;
  bool joins_signs = false;  // "+-" becomes "-"
};

class PrintJob final : public OrderedJobs::Job {
 public:
  PrintJob(const PrintedTable& table, uint64_t first, uint64_t last)
      : table_(table), first_(first), last_(last) {}

  void run() override {
    for (uint64_t row = first_; row < last_; ++row) {
      const size_t begin = text_.size();
      table_.format.append_row(row, text_);
      if (table_.joins_signs) join_signs(begin);
      // Rows are about as long as the first.
      if (row == first_) text_.reserve((text_.size() + text_.size() / 16) * (last_ - first_));
    }
  }

  std::string take_text() { return std::move(text_); }

 private:
  void join_signs(size_t begin) {
    for (size_t at = text_.find("+-", begin); at != std::string::npos; at = text_.find("+-", at)) {
      text_.erase(at, 1);
    }
  }

  const PrintedTable& table_;
  const uint64_t first_;
  const uint64_t last_;
  std::string text_;
};

// The rows of 1-D tensors of the same length, one a column, as text; by all CPUs.
class TextWriter {
 public:
  explicit TextWriter(PrintedTable table) : table_(std::move(table)), jobs_(kMaxThreads) {
    rows_per_job_ = std::max<uint64_t>(kNumbersPerJob / (table_.columns.size() + 1), 1);
  }

  // The next rows, some hundred kilobytes; empty after the last.
  py::bytes next() {
    std::string text;
    without_gil([&] {
      for (; row_ < table_.rows && jobs_begun_ - jobs_done_ < 2 * kMaxThreads; ++jobs_begun_) {
        const uint64_t last = row_ + std::min(rows_per_job_, table_.rows - row_);
        jobs_.push(std::make_unique<PrintJob>(table_, row_, last), kNumbersPerJob * kNumberNs);
        row_ = last;
      }
      if (jobs_.is_empty()) return;
      text = static_cast<PrintJob&>(*jobs_.pop()).take_text();
      ++jobs_done_;
    });
    return text;
  }

 private:
  static constexpr uint64_t kNumbersPerJob = 1 << 13;
  static constexpr uint64_t kNumberNs = 80;

  const PrintedTable table_;
  OrderedJobs jobs_;
  uint64_t rows_per_job_ = 1;
  uint64_t row_ = 0;
  uint64_t jobs_begun_ = 0;
  uint64_t jobs_done_ = 0;
};

std::optional<ScalarType> text_type(at::ScalarType type) {
  for (int i = 0; i <= static_cast<int>(ScalarType::kFloat64); ++i) {
    Dtype dtype;
    dtype.type = static_cast<ScalarType>(i);
    if (find_scalar_type(dtype) == type) return dtype.type;
  }
  return std::nullopt;
}

// None where Python must format: a dtype or a specifier that RowFormat does not know.
std::unique_ptr<TextWriter> make_writer(const std::string& format, uint64_t rows,
                                        const std::vector<py::object>& objects, bool joins_signs) {
  std::vector<at::Tensor> tensors;
  std::vector<TextColumn> columns;
  for (const py::object& object : objects) {
    const at::Tensor& tensor = unwrap(object);
    const std::optional<ScalarType> type = text_type(tensor.scalar_type());
    if (!type) return nullptr;
    TORCH_INTERNAL_ASSERT(tensor.device().is_cpu() && tensor.dim() == 1 &&
                          static_cast<uint64_t>(tensor.numel()) == rows);
    columns.push_back({*type, static_cast<const uint8_t*>(tensor.const_data_ptr()),
                       tensor.stride(0) * static_cast<int64_t>(tensor.element_size())});
    tensors.push_back(tensor);
  }
  std::optional<RowFormat> parsed = RowFormat::parse(format, std::move(columns));
  if (!parsed) return nullptr;
  return std::make_unique<TextWriter>(
      PrintedTable{*std::move(parsed), std::move(tensors), rows, joins_signs});
}

py::bytes compress_piece(GzipWriter& gzip, const py::object& data) {
  const Exported exported(data);
  std::string out;
  without_gil(
      [&] { in_pieces(exported.bytes(), [&](ByteView piece) { gzip.write(piece, out); }); });
  return out;
}

py::bytes finish_gzip(GzipWriter& gzip) {
  std::string out;
  without_gil([&] { gzip.finish(out); });
  return out;
}

}  // namespace

void bind_text_tables(py::module_& m) {
  py::class_<NamedReader>(m, "TextReader")
      .def(py::init(&make_text_reader), py::kw_only(), py::arg("name"), py::arg("descr"),
           py::arg("delimiter"), py::arg("comments"), py::arg("quote"), py::arg("skip_lines"),
           py::arg("max_rows"), py::arg("columns"), py::arg("text_columns"), py::arg("is_gzip"))
      .def("feed", &NamedReader::feed)
      .def("end", &NamedReader::end)
      .def("texts", &NamedReader::texts)
      .def("store", &NamedReader::store)
      .def("take", &NamedReader::take)
      .def_property_readonly("is_done", &NamedReader::is_done)
      .def_property_readonly("rows", &NamedReader::rows)
      .def_property_readonly("columns", &NamedReader::columns);
  py::class_<TextWriter>(m, "TextWriter").def("next", &TextWriter::next);
  m.def("make_text_writer", &make_writer);
  py::class_<GzipWriter>(m, "GzipWriter")
      .def(py::init())
      .def("write", &compress_piece)
      .def("finish", &finish_gzip);
  m.def("read_object", [](Client& client, const std::string& url) {
    return wrap(without_gil([&] { return fetch(client, url, 0); }));
  });
}

}  // namespace torchnpy
