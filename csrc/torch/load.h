// The verbs of the library on tensors. The ops and the Python module are thin over these.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "torch/tensor.h"
#include "transport/client.h"

namespace torchnpy {

// What messages call bytes that have no name.
constexpr char kBytesName[] = "<bytes>";

struct LoadOptions {
  bool mmap = true;  // map large local files
  std::optional<RowSlice> rows;
  std::optional<at::ScalarType> dtype;  // see make_array()
  bool single = false;                  // refuse structured arrays, which are several tensors
};

// All of these block until the data is there, can be interrupted (base/wait.h), and throw the
// errors of base/error.h with the object's name in the message.
Array load(Client& client, const std::string& url, const LoadOptions& options = {});
// The same of an object that is open.
Array load(std::shared_ptr<Source> source, const LoadOptions& options);
// Concurrently, in the order of `urls`. The first failure ends the others and is thrown.
std::vector<Array> load_many(Client& client, const std::vector<std::string>& urls,
                             const LoadOptions& options = {});
// The same of rows: `rows` has one element a URL, nullopt for the whole array, and takes the place
// of options.rows.
std::vector<Array> load_many_rows(Client& client, const std::vector<std::string>& urls,
                                  const std::vector<std::optional<RowSlice>>& rows,
                                  const LoadOptions& options = {});
NpyHeader read_header(Client& client, const std::string& url);
// As load_many().
std::vector<NpyHeader> read_headers(Client& client, const std::vector<std::string>& urls);
// Bytes of any object, as a uint8 tensor.
at::Tensor fetch(Client& client, const std::string& url, uint64_t offset,
                 uint64_t nbytes = Range::kToEnd);

// load_all(); of several errors throws the one that began it, not those of the loads that it
// ended.
void run_all(const std::vector<Loader*>& loaders, const RunOptions& options = {});

// The array in `bytes`, its data shared with them unless it must be copied (make_array()).
// `share` makes the storage of the data's part of `bytes`; not called when the array is refused.
// Errors do not name the bytes.
template <typename Share>
Array decode(ByteView bytes, std::optional<at::ScalarType> dtype, Share share) {
  const NpyHeader header = parse_npy_header(bytes);
  if (!dtype || header.dtype.type != ScalarType::kVoid) check_npy_loadable(header.dtype);
  check_npy_data(header, bytes.size() - header.data_offset);
  const ByteView data = bytes.subspan(header.data_offset, header.nbytes);
  return make_array(header, share(data), /*exclusive=*/false, dtype);
}

// The only tensor of `array`. Throws UnsupportedError for a structured one.
at::Tensor single_tensor(Array array);

}  // namespace torchnpy
