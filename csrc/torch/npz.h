// Archives as arrays of tensors. The ops and the Python module are thin over these.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "archive/npz.h"
#include "torch/load.h"

namespace torchnpy {

struct NpzOptions {
  bool verify = true;                   // check each CRC-32
  std::optional<at::ScalarType> dtype;  // of members of a void dtype; others do not heed it
  bool copy = false;                    // views, too, become memory of their own
  bool single = false;                  // refuse structured members, which are several tensors
  bool as_bytes = false;                // no member is an array: all are given as bytes
  ZipLimits limits;                     // to open with
};

// Keys of members; empty optional: all of them, in the archive's order.
using NpzKeys = std::optional<std::vector<std::string>>;

struct NamedArray {
  std::string key;  // as asked for
  Array array;      // of a member that is no array its bytes, as uint8
};

// All of these block, can be interrupted and throw as those of torch/load.h do; KeyError for a key
// of no member. Members are inflated by at most at::get_num_threads() threads.
std::shared_ptr<const NpzArchive> open_npz(std::shared_ptr<Source> source,
                                           const NpzOptions& options);
std::vector<NamedArray> read_npz(const std::shared_ptr<const NpzArchive>& archive,
                                 const NpzKeys& keys, const NpzOptions& options);
std::vector<NpyHeader> read_npz_headers(const std::shared_ptr<const NpzArchive>& archive,
                                        const NpzKeys& keys, const NpzOptions& options);
struct MemberDescription {
  std::string key;
  std::string text;  // "float32 (3, 4)"; "120 bytes" where it is no array or is not here
};
// Of the first `count` members. Fetches nothing.
std::vector<MemberDescription> describe_npz(const std::shared_ptr<const NpzArchive>& archive,
                                            size_t count);
// Opens and reads an archive, in one load.
std::vector<NamedArray> load_npz(std::shared_ptr<Source> source, const NpzKeys& keys,
                                 const NpzOptions& options);

// Parts of these, for batches. Inflating is given to so many threads:
RunOptions run_options();
NpzLoadOptions make_load_options(const NpzKeys& keys, const NpzOptions& options);
// What a loader that is done has read: the array of one of its entries, once; or all, by key.
Array take_entry(NpzLoader& loader, size_t place, const NpzOptions& options);
std::vector<NamedArray> take_entries(NpzLoader& loader, const NpzKeys& keys,
                                     const NpzOptions& options);
Array clone(const Array& array);

// An array or an archive, told by its content; the name says which end is read first.
using Content = std::variant<Array, std::shared_ptr<const NpzArchive>>;
Content load_any(Client& client, const std::string& url, const LoadOptions& options,
                 const NpzOptions& npz_options);

// Whether `bytes` begin as archives without a prefix do.
bool begins_as_zip(ByteView bytes);

}  // namespace torchnpy
