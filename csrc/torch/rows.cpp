#include "torch/rows.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>
#include <mutex>
#include <numeric>
#include <unordered_map>
#include <utility>

#include "archive/header_loader.h"
#include "archive/rows.h"
#include "archive/runs.h"
#include "base/error.h"
#include "base/fork.h"
#include "torch/npz.h"
#include "torch/storage.h"

namespace torchnpy {
namespace {

// One object of a column.
struct ObjectId {
  size_t column = 0;
  size_t place = 0;  // in RowColumn::urls
};

c10::Storage allocate_batch(uint64_t nbytes, bool shared) {
  return shared && nbytes != 0 ? allocate_shared_storage(nbytes) : allocate_storage(nbytes);
}

// Whether elements are stored alike.
bool is_same(const Dtype& a, const Dtype& b) {
  const auto is_same_field = [](const Field& x, const Field& y) {
    return x.name == y.name && x.offset == y.offset && x.shape == y.shape &&
           is_same(x.dtype, y.dtype);
  };
  return a.type == b.type && a.itemsize == b.itemsize && a.big_endian == b.big_endian &&
         a.unit == b.unit && std::ranges::equal(a.fields, b.fields, is_same_field);
}

bool has_same_rows(const NpyHeader& a, const NpyHeader& b) {
  return is_same(a.dtype, b.dtype) &&
         std::ranges::equal(std::span(a.shape).subspan(1), std::span(b.shape).subspan(1));
}

// "float32 (3, 4)"; with the descr where dtypes of one name differ in their byte order or fields.
std::string describe_rows(const NpyHeader& header, bool with_descr) {
  return (with_descr ? header.descr : format_dtype(header.dtype)) + " " +
         format_shape({header.shape.begin() + 1, header.shape.end()});
}

// The header of `row_count` such rows.
NpyHeader make_rows_header(const NpyHeader& header, uint64_t row_count) {
  NpyHeader rows = header;
  const uint64_t count = header.shape[0];
  rows.shape[0] = row_count;
  rows.count = count == 0 ? 0 : header.count / count * row_count;
  if (count == 0 || !checked_multiply(header.nbytes / count, row_count, &rows.nbytes)) {
    if (row_count != 0) throw std::bad_alloc();
    rows.nbytes = 0;
  }
  return rows;
}

[[noreturn]] void throw_changed(const TransportError& error) {
  throw TransportError(std::string(error.what()) +
                           "; the rows read so far are of the version before: make the dataset "
                           "anew to read this one",
                       error.kind(), error.http_status());
}

}  // namespace

// What the headers say. Does not change.
struct RowTable {
  struct Column {
    NpyHeader header;              // of an object with rows, where there is one
    std::string head;              // its bytes
    std::vector<uint64_t> starts;  // the first row of each object; then the number of all rows
    std::vector<uint64_t> data_offsets;
    std::vector<std::string> versions;

    uint64_t count() const { return starts.back(); }
    RowLayout layout(size_t place) const {
      const uint64_t row_nbytes = header.shape[0] == 0 ? 0 : header.nbytes / header.shape[0];
      return {data_offsets[place], row_nbytes, starts[place + 1] - starts[place]};
    }
    void add(uint64_t row_count, uint64_t data_offset, std::string version) {
      if (starts.empty()) starts.push_back(0);
      starts.push_back(starts.back() + row_count);
      data_offsets.push_back(data_offset);
      versions.push_back(std::move(version));
    }
  };
  std::vector<Column> columns;
};

namespace {

// What was read of an object before its data.
struct Head {
  NpyHeader header;
  std::string bytes;
  std::string version;
  std::string object;  // its name
};

Head take_head(NpyHeaderLoader& load) {
  Head head;
  head.bytes = as_text(load.bytes());
  head.header = std::move(load.header());
  head.version = load.source().version_name();
  head.object = load.source().name();
  return head;
}

// Throws what speaks against rows of an array, and names it.
void check_array(const Head& head, std::optional<at::ScalarType> dtype) {
  try {
    find_rows(head.header);
    make_array(make_rows_header(head.header, 0), c10::Storage(), /*exclusive=*/true, dtype);
  } catch (Error& error) {
    error.add_context(head.object);
    throw;
  }
}

// `first`: of the column's first object.
void check_same_rows(const Head& head, const Head& first) {
  if (has_same_rows(head.header, first.header)) return;
  const bool with_descr = format_dtype(head.header.dtype) == format_dtype(first.header.dtype) &&
                          !is_same(head.header.dtype, first.header.dtype);
  throw ArgumentError(
      fmt::format("{}: expected rows of {}, as in {}, but found {}; the arrays of a column need "
                  "rows of equal shape and dtype",
                  head.object, describe_rows(first.header, with_descr), first.object,
                  describe_rows(head.header, with_descr)));
}

void check_lengths(const std::vector<RowColumn>& columns, const RowTable& table) {
  const uint64_t count = table.columns[0].count();
  for (size_t i = 1; i < columns.size(); ++i) {
    if (table.columns[i].count() == count) continue;
    throw ArgumentError(
        fmt::format("columns: expected as many rows in '{}' as in '{}', {}, but found {}; a sample "
                    "takes one row of each",
                    columns[i].name, columns[0].name, count, table.columns[i].count()));
  }
}

// What a batch wants of one object.
struct ObjectRows {
  ObjectId id;
  RowLayout layout;
  std::vector<RowTarget> targets;
};

// Adds what is wanted of a column: row order[i] of `rows` for each i, sorted by row. Row k of
// `rows` goes to the k-th place of `memory`.
void add_wanted(const RowTable::Column& table, size_t column, std::span<const uint64_t> rows,
                std::span<const size_t> order, uint8_t* memory, std::vector<ObjectRows>& wanted) {
  for (size_t i = 0; i < order.size();) {
    const auto after = std::ranges::upper_bound(table.starts, rows[order[i]]);
    const auto place = static_cast<size_t>(after - table.starts.begin() - 1);
    const uint64_t start = table.starts[place];
    ObjectRows object{{column, place}, table.layout(place), {}};
    for (; i < order.size() && rows[order[i]] < *after; ++i) {
      object.targets.push_back(
          {rows[order[i]] - start, memory + order[i] * object.layout.row_nbytes});
    }
    wanted.push_back(std::move(object));
  }
}

}  // namespace

// The objects that are open: those used last.
class RowReader::OpenObjects {
 public:
  // nullptr when it is not open.
  std::shared_ptr<Source> find(const ObjectId& id) {
    const std::lock_guard lock(process_mutex());
    const auto found = open_.find(key(id));
    if (found == open_.end()) return nullptr;
    found->second.used = ++clock_;
    return found->second.source;
  }

  void keep(const ObjectId& id, std::shared_ptr<Source> source) {
    std::shared_ptr<Source> closed;  // without the lock
    const std::lock_guard lock(process_mutex());
    if (open_.size() >= kMaxOpen && !open_.contains(key(id))) {
      const auto oldest =
          std::ranges::min_element(open_, {}, [](const auto& entry) { return entry.second.used; });
      closed = std::move(oldest->second.source);
      open_.erase(oldest);
    }
    Entry& entry = open_[key(id)];
    std::swap(entry.source, source);
    entry.used = ++clock_;
  }

 private:
  struct Entry {
    std::shared_ptr<Source> source;
    uint64_t used = 0;
  };
  static uint64_t key(const ObjectId& id) { return uint64_t{id.column} << 40 | id.place; }

  std::unordered_map<uint64_t, Entry> open_;  // under process_mutex(), as is
  uint64_t clock_ = 0;
};

RowReader::RowReader(std::shared_ptr<Client> client, std::vector<RowColumn> columns,
                     std::optional<at::ScalarType> dtype)
    : client_(std::move(client)),
      columns_(std::move(columns)),
      dtype_(dtype),
      open_(std::make_unique<OpenObjects>()) {}
RowReader::~RowReader() = default;

uint64_t RowReader::count() { return table()->columns[0].count(); }

std::shared_ptr<const RowTable> RowReader::known_table() const {
  const std::lock_guard lock(process_mutex());
  return table_;
}

std::shared_ptr<const RowTable> RowReader::table() {
  if (auto known = known_table()) return known;
  std::shared_ptr<const RowTable> table = read_table();
  const std::lock_guard lock(process_mutex());
  if (!table_) table_ = std::move(table);
  return table_;
}

std::shared_ptr<const RowTable> RowReader::read_table() {
  std::vector<ObjectId> ids;
  for (size_t column = 0; column < columns_.size(); ++column) {
    for (size_t place = 0; place < columns_[column].urls.size(); ++place) {
      ids.push_back({column, place});
    }
  }
  auto table = std::make_shared<RowTable>();
  table->columns.resize(columns_.size());
  Head first;
  for (size_t begin = 0; begin < ids.size(); begin += kMaxOpen) {
    const auto wave = std::span(ids).subspan(begin, std::min(kMaxOpen, ids.size() - begin));
    std::deque<NpyHeaderLoader> loads;
    std::vector<Loader*> loaders;
    for (const ObjectId& id : wave) {
      std::shared_ptr<Source> source = client_->open(columns_[id.column].urls[id.place], false);
      open_->keep(id, source);
      loaders.push_back(&loads.emplace_back(std::move(source), /*check_data=*/true));
    }
    run_all(loaders);
    for (size_t i = 0; i < wave.size(); ++i) {
      RowTable::Column& column = table->columns[wave[i].column];
      Head head = take_head(loads[i]);
      check_array(head, dtype_of(head.header));
      if (wave[i].place == 0) first = head;
      check_same_rows(head, first);
      column.add(head.header.shape[0], head.header.data_offset, std::move(head.version));
      if (wave[i].place != 0 && column.header.shape[0] != 0) continue;
      column.head = std::move(head.bytes);
      column.header = std::move(head.header);
    }
  }
  check_lengths(columns_, *table);
  return table;
}

std::optional<at::ScalarType> RowReader::dtype_of(const NpyHeader& header) const {
  const bool heeds = columns_.size() == 1 || header.dtype.type == ScalarType::kVoid;
  return heeds ? dtype_ : std::nullopt;
}

std::shared_ptr<Source> RowReader::open(const RowTable& table, size_t column, size_t place) {
  if (auto source = open_->find({column, place})) return source;
  const RowTable::Column& known = table.columns[column];
  std::shared_ptr<Source> source = client_->open(columns_[column].urls[place], false);
  if (!known.versions[place].empty()) {
    source->expect_version(known.versions[place]);
  } else {
    // A file: it may have grown, nothing else.
    NpyHeaderLoader load(source, /*check_data=*/true);
    load_one(load);
    const NpyHeader& header = load.header();
    const RowLayout layout = known.layout(place);
    if (!has_same_rows(header, known.header) || header.shape[0] < layout.row_count ||
        header.data_offset != layout.data_offset) {
      throw TransportError(
          source->name() + ": expected the object to stay the same but its header changed",
          TransportError::Kind::kChanged);
    }
  }
  open_->keep({column, place}, source);
  return source;
}

std::vector<Array> RowReader::read(std::span<const uint64_t> rows, bool shared) {
  const std::shared_ptr<const RowTable> table = this->table();
  std::vector<size_t> order(rows.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(order, {}, [rows](size_t i) { return rows[i]; });
  std::vector<NpyHeader> headers;
  std::vector<c10::Storage> batches;
  std::vector<ObjectRows> wanted;
  for (const RowTable::Column& column : table->columns) {
    headers.push_back(make_rows_header(column.header, rows.size()));
    batches.push_back(allocate_batch(headers.back().nbytes, shared));
    auto* const memory = static_cast<uint8_t*>(batches.back().mutable_data());
    add_wanted(column, headers.size() - 1, rows, order, memory, wanted);
  }
  const uint64_t free_gap_nbytes = kFreeGapNbytes / std::max<size_t>(wanted.size(), 1);
  try {
    for (size_t begin = 0; begin < wanted.size(); begin += kMaxOpen) {
      std::deque<RowsLoader> loads;
      std::vector<Loader*> loaders;
      for (size_t i = begin; i < std::min(begin + kMaxOpen, wanted.size()); ++i) {
        const ObjectId& id = wanted[i].id;
        loaders.push_back(&loads.emplace_back(open(*table, id.column, id.place), wanted[i].layout,
                                              std::move(wanted[i].targets), free_gap_nbytes));
      }
      run_all(loaders, run_options());
    }
  } catch (const TransportError& error) {
    if (error.kind() == TransportError::Kind::kChanged) throw_changed(error);
    throw;
  }
  std::vector<Array> arrays;
  for (size_t i = 0; i < headers.size(); ++i) {
    arrays.push_back(
        make_array(headers[i], std::move(batches[i]), /*exclusive=*/true, dtype_of(headers[i])));
  }
  return arrays;
}

std::vector<RowColumnState> RowReader::state() const {
  std::vector<RowColumnState> state;
  const std::shared_ptr<const RowTable> table = known_table();
  if (!table) return state;
  for (const RowTable::Column& column : table->columns) {
    RowColumnState& one = state.emplace_back();
    one.head = column.head;
    for (size_t place = 0; place < column.versions.size(); ++place) {
      one.row_counts.push_back(column.layout(place).row_count);
    }
    one.data_offsets = column.data_offsets;
    one.versions = column.versions;
  }
  return state;
}

void RowReader::set_state(const std::vector<RowColumnState>& state) {
  if (state.empty()) return;
  auto table = std::make_shared<RowTable>();
  for (const RowColumnState& one : state) {
    const size_t index = table->columns.size();
    if (state.size() != columns_.size() || one.row_counts.size() != columns_[index].urls.size()) {
      throw ArgumentError("expected the state of a dataset of the same columns but found another");
    }
    RowTable::Column& column = table->columns.emplace_back();
    column.head = one.head;
    column.header = parse_npy_header(as_bytes(one.head));
    for (size_t place = 0; place < one.row_counts.size(); ++place) {
      column.add(one.row_counts[place], one.data_offsets.at(place), one.versions.at(place));
    }
  }
  check_lengths(columns_, *table);
  const std::lock_guard lock(process_mutex());
  table_ = std::move(table);
}

}  // namespace torchnpy
