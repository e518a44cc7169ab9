// torch.ops.npy: the library's verbs over strings, for eager code, scripted models and C++.
//
// Alias analysis is CONSERVATIVE: TorchScript would otherwise fold, merge or drop a load with
// a literal URL. The fakes are in torchnpy/_ops.py: a Meta kernel of an op without tensor
// arguments is never reached.
#include <torch/library.h>

#include <cstring>
#include <tuple>
#include <utility>

#include "base/error.h"
#include "torch/append.h"
#include "torch/load.h"
#include "torch/npz.h"
#include "torch/save.h"
#include "torch/torchnpy.h"

namespace torchnpy {

void use_ops() {}

namespace {

// An op gives tensors, not dicts.
LoadOptions single_options() {
  LoadOptions options;
  options.single = true;
  return options;
}

at::Tensor load_op(const std::string& url) {
  return single_tensor(load(*Client::default_client(), url, single_options()));
}

at::Tensor load_rows_op(const std::string& url, int64_t start, int64_t stop) {
  LoadOptions options = single_options();
  options.rows = RowSlice{start, stop};
  return single_tensor(load(*Client::default_client(), url, options));
}

std::vector<at::Tensor> load_many_op(at::ArrayRef<std::string> urls) {
  std::vector<at::Tensor> tensors;
  tensors.reserve(urls.size());
  for (Array& array : load_many(*Client::default_client(), urls.vec(), single_options())) {
    tensors.push_back(single_tensor(std::move(array)));
  }
  return tensors;
}

// An op gives tensors, not dicts.
NpzOptions single_npz_options() {
  NpzOptions options;
  options.single = true;
  return options;
}

std::vector<NamedArray> load_members(const std::string& url, const NpzKeys& keys) {
  return load_npz(Client::default_client()->open(url), keys, single_npz_options());
}

c10::Dict<std::string, at::Tensor> load_npz_op(const std::string& url) {
  c10::Dict<std::string, at::Tensor> tensors;
  for (NamedArray& member : load_members(url, std::nullopt)) {
    tensors.insert(std::move(member.key), single_tensor(std::move(member.array)));
  }
  return tensors;
}

std::vector<at::Tensor> load_npz_keys_op(const std::string& url, at::ArrayRef<std::string> keys) {
  std::vector<at::Tensor> tensors;
  for (NamedArray& member : load_members(url, keys.vec())) {
    tensors.push_back(single_tensor(std::move(member.array)));
  }
  return tensors;
}

std::vector<std::string> npz_keys_op(const std::string& url) {
  const std::shared_ptr<Client> client = Client::default_client();
  return open_npz(client->open(url), single_npz_options())->keys();
}

std::tuple<std::string, std::vector<int64_t>, bool, int64_t> header_op(const std::string& url) {
  const NpyHeader header = read_header(*Client::default_client(), url);
  return {header.descr, std::vector<int64_t>(header.shape.begin(), header.shape.end()),
          header.fortran_order, static_cast<int64_t>(header.data_offset)};
}

at::Tensor fetch_op(const std::string& url, int64_t offset, int64_t nbytes) {
  if (offset < 0) {
    throw ArgumentError("offset: expected 0 or more but found " + std::to_string(offset));
  }
  if (nbytes < -1) {
    throw ArgumentError("nbytes: expected -1 (to the end) or more but found " +
                        std::to_string(nbytes));
  }
  return fetch(*Client::default_client(), url, static_cast<uint64_t>(offset),
               nbytes == -1 ? Range::kToEnd : static_cast<uint64_t>(nbytes));
}

at::Tensor decode_op(const at::Tensor& data) {
  if (data.scalar_type() != at::kByte || !data.device().is_cpu()) {
    throw ArgumentError(std::string("data: expected a uint8 tensor on the CPU but found ") +
                        c10::toString(data.scalar_type()) + " on " + data.device().str());
  }
  const at::Tensor flat = data.contiguous();
  const ByteView bytes(flat.const_data_ptr<uint8_t>(), flat.nbytes());
  // Copied: an output that aliases an input is not allowed in a custom op.
  const auto copy = [](ByteView part) {
    StorageAllocator allocator;
    const OwnedBytes memory = allocator.allocate(part.size());
    if (!part.empty()) std::memcpy(memory.bytes.data(), part.data(), part.size());
    return allocator.take();
  };
  try {
    return single_tensor(decode(bytes, std::nullopt, copy));
  } catch (Error& error) {
    error.add_context("<bytes>");
    throw;
  }
}

void save_op(const std::string& url, const at::Tensor& array) {
  save(*Client::default_client(), url, array);
}

void append_op(const std::string& path, const at::Tensor& rows) { append(path, rows); }

}  // namespace

TORCH_LIBRARY(npy, m) {
  const auto define = [&m](const char* schema, std::vector<at::Tag> tags) {
    tags.push_back(at::Tag::nondeterministic_seeded);
    m.def(torch::schema(schema, c10::AliasAnalysisKind::CONSERVATIVE), std::as_const(tags));
  };
  constexpr at::Tag kDynamicShape = at::Tag::dynamic_output_shape;
  define("load(str url) -> Tensor", {kDynamicShape});
  define("load_rows(str url, int start, int stop) -> Tensor", {kDynamicShape});
  define("load_many(str[] urls) -> Tensor[]", {kDynamicShape});
  define("load_npz(str url) -> Dict(str, Tensor)", {kDynamicShape});
  define("load_npz_keys(str url, str[] keys) -> Tensor[]", {kDynamicShape});
  define("npz_keys(str url) -> str[]", {at::Tag::data_dependent_output});
  define("header(str url) -> (str descr, int[] shape, bool fortran_order, int data_offset)",
         {at::Tag::data_dependent_output});
  define("fetch(str url, int offset=0, int nbytes=-1) -> Tensor", {});
  define("decode(Tensor data) -> Tensor", {kDynamicShape});
  // For torch.compile, which drops a call without a result from a graph but keeps out of graphs
  // what depends on data.
  define("save(str url, Tensor array) -> ()", {at::Tag::data_dependent_output});
  define("append(str path, Tensor rows) -> ()", {at::Tag::data_dependent_output});
}

TORCH_LIBRARY_IMPL(npy, CompositeExplicitAutograd, m) {
  m.impl("load", load_op);
  m.impl("load_rows", load_rows_op);
  m.impl("load_many", load_many_op);
  m.impl("load_npz", load_npz_op);
  m.impl("load_npz_keys", load_npz_keys_op);
  m.impl("npz_keys", npz_keys_op);
  m.impl("header", header_op);
  m.impl("fetch", fetch_op);
  m.impl("decode", decode_op);
  m.impl("save", save_op);
  m.impl("append", append_op);
}

}  // namespace torchnpy
