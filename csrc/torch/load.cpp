#include "torch/load.h"

#include <deque>

#include "archive/header_loader.h"
#include "base/error.h"

namespace torchnpy {
namespace {

// One load and the memory that it fills.
struct ArrayLoad {
  ArrayLoad(std::shared_ptr<Source> source, const NpyLoadOptions& options)
      : loader(std::move(source), allocator, options) {}

  StorageAllocator allocator;
  NpyLoader loader;

  Array finish(const LoadOptions& options) {
    try {
      const bool shared = loader.is_view();
      Array array = make_array(loader.header(),
                               shared ? share_bytes(std::move(loader.data())) : allocator.take(),
                               !shared, options.dtype);
      if (options.single) return single_tensor(std::move(array));
      return array;
    } catch (Error& error) {
      error.add_context(loader.source().name());
      throw;
    }
  }
};

NpyLoadOptions make_npy_options(const LoadOptions& options) {
  NpyLoadOptions result;
  result.rows = options.rows;
  result.allow_void = options.dtype.has_value();
  return result;
}

}  // namespace

Array load(Client& client, const std::string& url, const LoadOptions& options) {
  return load(client.open(url, options.mmap), options);
}

Array load(std::shared_ptr<Source> source, const LoadOptions& options) {
  ArrayLoad one(std::move(source), make_npy_options(options));
  load_one(one.loader);
  return one.finish(options);
}

void run_all(const std::vector<Loader*>& loaders, const RunOptions& options) {
  std::exception_ptr ended;
  for (const std::exception_ptr& error : load_all(loaders, options)) {
    if (!error) continue;
    try {
      std::rethrow_exception(error);
    } catch (const InterruptedError&) {
      ended = error;
    }
  }
  if (ended) std::rethrow_exception(ended);
}

std::vector<Array> load_many(Client& client, const std::vector<std::string>& urls,
                             const LoadOptions& options) {
  return load_many_rows(client, urls, std::vector(urls.size(), options.rows), options);
}

std::vector<Array> load_many_rows(Client& client, const std::vector<std::string>& urls,
                                  const std::vector<std::optional<RowSlice>>& rows,
                                  const LoadOptions& options) {
  NpyLoadOptions npy_options = make_npy_options(options);
  std::deque<ArrayLoad> loads;  // neither moved nor copied as it grows
  std::vector<Loader*> loaders;
  loaders.reserve(urls.size());
  for (size_t i = 0; i < urls.size(); ++i) {
    npy_options.rows = rows.at(i);
    loaders.push_back(&loads.emplace_back(client.open(urls[i], options.mmap), npy_options).loader);
  }
  run_all(loaders);
  std::vector<Array> arrays;
  arrays.reserve(urls.size());
  for (ArrayLoad& one : loads) arrays.push_back(one.finish(options));
  return arrays;
}

NpyHeader read_header(Client& client, const std::string& url) {
  return std::move(read_headers(client, {url}).front());
}

std::vector<NpyHeader> read_headers(Client& client, const std::vector<std::string>& urls) {
  std::deque<NpyHeaderLoader> headers;  // neither moved nor copied as it grows
  std::vector<Loader*> loaders;
  loaders.reserve(urls.size());
  for (const std::string& url : urls) {
    loaders.push_back(&headers.emplace_back(client.open(url, /*mmap=*/false)));
  }
  run_all(loaders);
  std::vector<NpyHeader> result;
  result.reserve(urls.size());
  for (NpyHeaderLoader& one : headers) result.push_back(std::move(one.header()));
  return result;
}

at::Tensor fetch(Client& client, const std::string& url, uint64_t offset, uint64_t nbytes) {
  StorageAllocator allocator;
  BytesLoader loader(client.open(url, /*mmap=*/false), allocator, offset, nbytes);
  load_one(loader);
  return make_bytes(allocator.take());
}

at::Tensor single_tensor(Array array) {
  if (at::Tensor* tensor = std::get_if<at::Tensor>(&array)) return std::move(*tensor);
  throw UnsupportedError(
      "expected one tensor but found a structured array; load it with torchnpy.load(), which "
      "gives a dict");
}

}  // namespace torchnpy
