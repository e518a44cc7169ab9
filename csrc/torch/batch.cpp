#include "torch/batch.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <utility>

#include "base/error.h"
#include "torch/batch_column.h"

namespace torchnpy {
namespace {

// Whether one object is to blame: another may well load.
bool is_of_object(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const FormatError&) {
  } catch (const UnsupportedError&) {
  } catch (const TransportError&) {
  } catch (const KeyError&) {
  } catch (...) {
    return false;
  }
  return true;
}

// The loads of a batch: begun, run, and counted out. `Load` has a `loader` and a constructor of
// (Source, the batch, the sample's index).
template <typename Load, typename Batch>
class Loads {
 public:
  Loads(Client& client, const std::vector<std::string>& urls, bool mmap, Batch& batch,
        const BatchOptions& options)
      : keep_going_(options.keep_going), loads_(urls.size()) {
    for (size_t i = 0; i < urls.size(); ++i) {
      attempt(i, [&] { loads_[i].emplace(client.open(urls[i], mmap), batch, i); });
    }
  }

  void run() {
    std::vector<Loader*> loaders;
    std::vector<size_t> samples;
    for (size_t i = 0; i < loads_.size(); ++i) {
      if (!loads_[i]) continue;
      loaders.push_back(&loads_[i]->loader);
      samples.push_back(i);
    }
    RunOptions options = run_options();
    options.fail_fast = !keep_going_;
    if (!keep_going_) return run_all(loaders, options);
    const std::vector<std::exception_ptr> errors = load_all(loaders, options);
    for (size_t i = 0; i < errors.size(); ++i) {
      if (errors[i]) fail(samples[i], errors[i]);
    }
  }

  // Calls `work`, which concerns a sample that has not failed.
  template <typename Work>
  void attempt(size_t sample, Work work) {
    try {
      work();
    } catch (...) {
      fail(sample, std::current_exception());
    }
  }

  Load& operator[](size_t sample) { return *loads_[sample]; }

  // Those that have not failed.
  std::vector<size_t> samples() const {
    std::vector<size_t> samples;
    for (size_t i = 0; i < loads_.size(); ++i) {
      if (loads_[i]) samples.push_back(i);
    }
    return samples;
  }

  // In the order of the samples.
  std::vector<Failure> take_failures() {
    std::ranges::sort(failures_, {}, &Failure::index);
    return std::move(failures_);
  }

 private:
  void fail(size_t sample, const std::exception_ptr& error) {
    if (!keep_going_ || !is_of_object(error)) std::rethrow_exception(error);
    loads_[sample].reset();
    failures_.push_back({sample, error});
  }

  const bool keep_going_;
  std::deque<std::optional<Load>> loads_;  // neither moved nor copied
  std::vector<Failure> failures_;
};

struct NpyBatchMemory {
  std::optional<at::ScalarType> dtype;
  std::optional<BatchColumn> column;  // when the samples shall lie side by side
};

// One array on its way into its row, or into memory of its own.
struct RowLoad final : public Allocator {
  RowLoad(std::shared_ptr<Source> source, NpyBatchMemory& batch, size_t index_in)
      : memory(batch), index(index_in), loader(std::move(source), *this, options_of(batch)) {}

  static NpyLoadOptions options_of(const NpyBatchMemory& batch) {
    NpyLoadOptions options;
    options.allow_void = batch.dtype.has_value();
    return options;
  }

  void attach(Workers& workers_in) override { workers = &workers_in; }

  OwnedBytes allocate(uint64_t nbytes) override {
    const std::optional<MutableBytes> row = find_row(workers);
    in_row = row.has_value();
    return in_row ? OwnedBytes{*row, nullptr} : own.allocate(nbytes);
  }

  std::optional<MutableBytes> find_row(Workers* helpers) {
    if (!memory.column) return std::nullopt;
    return memory.column->row(index, loader.header(), helpers);
  }

  // A view, of the cache or of a small file, goes into its row when all is there, and the workers
  // are gone.
  void copy_view() {
    if (!loader.is_view()) return;
    const std::optional<MutableBytes> row = find_row(nullptr);
    if (!row) return;
    const ByteView data = loader.data().bytes;
    if (!data.empty()) std::memcpy(row->data(), data.data(), data.size());
  }

  Array take_array() {
    if (in_row) return memory.column->copy_out(index, loader.header());
    const bool is_view = loader.is_view();
    return make_array(loader.header(), is_view ? share_bytes(loader.data()) : own.take(), !is_view,
                      memory.dtype);
  }

  // Calls `work`; its errors name the object.
  template <typename Work>
  void name_errors(Work work) {
    try {
      work();
    } catch (Error& error) {
      error.add_context(loader.source().name());
      throw;
    }
  }

  NpyBatchMemory& memory;
  const size_t index;
  StorageAllocator own;
  Workers* workers = nullptr;  // while the loads run
  bool in_row = false;
  NpyLoader loader;
};

struct NpzBatchMemory {
  const NpzKeys& keys;
  const NpzOptions& npz_options;
  const BatchOptions& options;
  const size_t count;
  std::mutex mutex;
  std::map<std::string, BatchColumn, std::less<>> columns;  // by member; never erased

  BatchColumn& column(std::string_view member) {
    const std::lock_guard lock(mutex);
    const auto found = columns.find(member);
    if (found != columns.end()) return found->second;
    return columns.try_emplace(std::string(member), count, std::nullopt, options.shared)
        .first->second;
  }
};

// One archive, whose members go into their rows as soon as each is decoded.
struct ArchiveLoad {
  ArchiveLoad(std::shared_ptr<Source> source, NpzBatchMemory& batch, size_t index_in)
      : memory(batch), index(index_in), loader(std::move(source), torch_allocator(), options()) {}

  NpzLoadOptions options() {
    NpzLoadOptions result = make_load_options(memory.keys, memory.npz_options);
    if (memory.options.together) {
      result.decoded = [this](NpzEntry& decoded, Workers* workers) { place(decoded, workers); };
    }
    return result;
  }

  BatchColumn& column_of(const NpzEntry& entry) {
    return memory.column(loader.archive()->key(entry.member));
  }

  NpzEntry& entry(size_t key) { return loader.entries()[loader.places()[key]]; }

  // On the thread that decoded it.
  void place(NpzEntry& decoded, Workers* workers) {
    BatchColumn& column = column_of(decoded);
    if (!decoded.header) return column.refuse();
    const std::optional<MutableBytes> row = column.row(index, *decoded.header, workers);
    if (!row) return;
    if (!row->empty()) std::memcpy(row->data(), decoded.data.bytes.data(), row->size());
    decoded.data = {*row, nullptr};
    decoded.is_view = false;
  }

  // Gives the entry memory of its own.
  void move_out(NpzEntry& decoded) {
    if (!column_of(decoded).holds(decoded.data.bytes)) return;
    OwnedBytes own = torch_allocator().allocate(decoded.data.bytes.size());
    std::ranges::copy(decoded.data.bytes, own.bytes.begin());
    decoded.data = std::move(own);
  }

  // The array of a key, in memory of its own. Once for each entry.
  Array take_array(size_t key) {
    move_out(entry(key));
    return take_entry(loader, loader.places()[key], memory.npz_options);
  }

  std::vector<NamedArray> take_arrays() {
    for (NpzEntry& decoded : loader.entries()) move_out(decoded);
    return take_entries(loader, memory.keys, memory.npz_options);
  }

  NpzBatchMemory& memory;
  const size_t index;
  NpzLoader loader;
};

using ArchiveLoads = Loads<ArchiveLoad, NpzBatchMemory>;

std::vector<std::string> keys_of(const ArchiveLoad& load) {
  return load.memory.keys ? *load.memory.keys : load.loader.archive()->keys();
}

// The place among the keys of the first one that leads to the same member.
size_t first_use(const ArchiveLoad& load, size_t key) {
  const std::vector<size_t>& places = load.loader.places();
  return static_cast<size_t>(std::ranges::find(places, places[key]) - places.begin());
}

// The column whose rows are the arrays of `key` of all `samples`; nullptr when there is none.
BatchColumn* find_column(ArchiveLoads& loads, std::span<const size_t> samples, size_t key) {
  BatchColumn* const column = &loads[samples.front()].column_of(loads[samples.front()].entry(key));
  const bool is_of_all = std::ranges::all_of(samples, [&](size_t sample) {
    return &loads[sample].column_of(loads[sample].entry(key)) == column;
  });
  return is_of_all && column->agrees() ? column : nullptr;
}

Column take_column(ArchiveLoads& loads, std::span<const size_t> samples, size_t key,
                   const std::vector<NamedColumn>& earlier) {
  Column result;
  // Each key has an array of its own, though two may lead to one member.
  const size_t first = first_use(loads[samples.front()], key);
  if (BatchColumn* const column = find_column(loads, samples, key)) {
    result.rows = first < key ? earlier[first].column.rows.clone() : column->take(samples);
    return result;
  }
  for (size_t i = 0; i < samples.size(); ++i) {
    ArchiveLoad& load = loads[samples[i]];
    const size_t used = first_use(load, key);
    result.arrays.push_back(used < key ? clone(earlier[used].column.arrays[i])
                                       : load.take_array(key));
  }
  return result;
}

}  // namespace

NpyBatch load_batch(Client& client, const std::vector<std::string>& urls,
                    std::optional<at::ScalarType> dtype, const BatchOptions& options) {
  NpyBatchMemory memory;
  memory.dtype = dtype;
  if (options.together) memory.column.emplace(urls.size(), dtype, options.shared);
  // Mapped files would be copied page by page.
  Loads<RowLoad, NpyBatchMemory> loads(client, urls, /*mmap=*/!options.together, memory, options);
  loads.run();
  NpyBatch batch;
  if (options.together) {
    for (const size_t i : loads.samples()) {
      loads.attempt(i, [&] { loads[i].name_errors([&] { loads[i].copy_view(); }); });
    }
  }
  if (options.together && memory.column->agrees() && !loads.samples().empty()) {
    batch.column.rows = memory.column->take(loads.samples());
  } else {
    for (const size_t i : loads.samples()) {
      loads.attempt(i, [&] {
        loads[i].name_errors([&] { batch.column.arrays.push_back(loads[i].take_array()); });
      });
    }
  }
  batch.failures = loads.take_failures();
  return batch;
}

NpzBatch load_npz_batch(Client& client, const std::vector<std::string>& urls, const NpzKeys& keys,
                        const NpzOptions& npz_options, const BatchOptions& options) {
  NpzBatchMemory memory{keys, npz_options, options, urls.size(), {}, {}};
  ArchiveLoads loads(client, urls, /*mmap=*/true, memory, options);
  loads.run();
  NpzBatch batch;
  const std::vector<size_t> samples = loads.samples();
  const bool is_table =
      options.together && !samples.empty() && std::ranges::all_of(samples, [&](size_t i) {
        return keys_of(loads[i]) == keys_of(loads[samples.front()]);
      });
  if (is_table) {
    for (const std::string& key : keys_of(loads[samples.front()])) {
      Column column = take_column(loads, samples, batch.columns.size(), batch.columns);
      batch.columns.push_back({key, std::move(column)});
    }
  } else {
    for (const size_t i : samples) {
      loads.attempt(i, [&] { batch.archives.push_back(loads[i].take_arrays()); });
    }
  }
  batch.failures = loads.take_failures();
  return batch;
}

}  // namespace torchnpy
