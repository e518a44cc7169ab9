#include "torch/save.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string_view>
#include <utility>

#include "archive/writer.h"
#include "base/error.h"
#include "format/npy.h"
#include "torch/storage.h"

namespace torchnpy {
namespace {

// What numpy writes; for bfloat16 and the 8-bit floats what it writes with ml_dtypes. Empty where
// neither has the dtype.
std::string_view find_format(at::ScalarType type) {
  switch (type) {
    case at::kBool: return "|b1";
    case at::kChar: return "|i1";
    case at::kByte: return "|u1";
    case at::kShort: return "<i2";
    case at::kInt: return "<i4";
    case at::kLong: return "<i8";
    case at::kUInt16: return "<u2";
    case at::kUInt32: return "<u4";
    case at::kUInt64: return "<u8";
    case at::kHalf: return "<f2";
    case at::kFloat: return "<f4";
    case at::kDouble: return "<f8";
    case at::kComplexFloat: return "<c8";
    case at::kComplexDouble: return "<c16";
    case at::kBFloat16: return "<V2";
    case at::kFloat8_e5m2: return "<f1";
    case at::kFloat8_e4m3fn:
    case at::kFloat8_e4m3fnuz:
    case at::kFloat8_e5m2fnuz:
    case at::kFloat8_e8m0fnu: return "<V1";
    default: return {};
  }
}

[[noreturn]] void refuse(std::string_view what, std::string_view advice) {
  throw UnsupportedError(
      fmt::format("expected a tensor that is a plain array but found {}; {}", what, advice));
}

// How an array of a dtype that numpy lacks can be saved all the same.
std::string advise(at::ScalarType type) {
  if (type == at::kComplexHalf) {
    return "call .to(torch.complex64), or torch.view_as_real() for its parts";
  }
  const bool is_whole_bytes = type == at::kFloat4_e2m1fn_x2 || type == at::kBits8 ||
                              type == at::kBits4x2 || type == at::kBits2x4 || type == at::kBits1x8;
  if (is_whole_bytes) return "save its bits: call .view(torch.uint8)";
  return "call .to() with a dtype that numpy has";
}

void check_plain(const at::Tensor& tensor) {
  const std::string type = c10::toString(tensor.scalar_type());
  if (tensor.is_nested()) {
    refuse("a nested tensor",
           "call .to_padded_tensor(0), or save the tensors of .unbind() with savez()");
  }
  if (tensor.layout() == c10::kMkldnn) refuse("a tensor in oneDNN's layout", "call .to_dense()");
  if (tensor.layout() != c10::kStrided) {
    refuse("a sparse tensor", "call .to_dense(), or save its indices and values with savez()");
  }
  if (tensor.is_quantized()) {
    refuse(fmt::format("a quantized tensor ({})", type),
           "call .dequantize(), or save .int_repr() and the scale and zero point with savez()");
  }
  if (tensor.is_meta()) refuse("a tensor on the meta device", "it has no data: make it on the CPU");
  if (find_format(tensor.scalar_type()).empty()) {
    refuse(fmt::format("dtype {}, which numpy lacks", type), advise(tensor.scalar_type()));
  }
}

// On the CPU, with the numbers in memory that torch shows.
at::Tensor materialize(const at::Tensor& tensor) {
  check_plain(tensor);
  at::Tensor plain = tensor.detach();
  if (!plain.device().is_cpu()) plain = plain.cpu();
  plain = plain.resolve_conj().resolve_neg();
  // A wrapper, as of FakeTensorMode or torch.func.vmap.
  const bool has_memory = plain.has_storage() && (plain.numel() == 0 || plain.storage().data());
  if (!has_memory) {
    refuse("one without memory of its own", "save the tensor that it stands for");
  }
  return plain;
}

// Of a field the header must name the dtype: nobody can say it when it is loaded.
void check_named(at::ScalarType type) {
  if (!find_format(type).starts_with("<V")) return;
  refuse(fmt::format("dtype {} in a dict, where the file cannot name it", c10::toString(type)),
         "save it as an array of its own, or its bits: call .view(torch.int16), of 8 bits "
         ".view(torch.uint8)");
}

// Dimensions that all fields begin with.
size_t count_shared_dims(const std::vector<at::Tensor>& tensors) {
  const at::IntArrayRef first = tensors.front().sizes();
  size_t count = first.size();
  for (const at::Tensor& tensor : tensors) {
    const at::IntArrayRef sizes = tensor.sizes();
    const auto differing = std::mismatch(first.begin(), first.begin() + static_cast<int64_t>(count),
                                         sizes.begin(), sizes.end());
    count = static_cast<size_t>(differing.first - first.begin());
  }
  return count;
}

// Puts each field's piece of each of `count` records where it belongs.
void interleave(const std::vector<at::Tensor>& fields, uint64_t count, uint64_t itemsize,
                uint8_t* records) {
  for (const at::Tensor& field : fields) {
    if (field.numel() == 0) continue;
    const uint64_t nbytes = field.nbytes() / count;
    const auto* from = static_cast<const uint8_t*>(field.const_data_ptr());
    for (uint64_t i = 0; i < count; ++i) {
      std::memcpy(records + i * itemsize, from + i * nbytes, nbytes);
    }
    records += nbytes;
  }
}

std::string quote(std::string_view format) { return fmt::format("'{}'", format); }

}  // namespace

ArrayView view_tensor(const at::Tensor& tensor) {
  const at::Tensor plain = materialize(tensor);
  ArrayView view;
  view.descr = quote(find_format(plain.scalar_type()));
  view.itemsize = plain.element_size();
  view.shape.assign(plain.sizes().begin(), plain.sizes().end());
  for (const int64_t stride : plain.strides()) {
    view.strides.push_back(stride * static_cast<int64_t>(view.itemsize));
  }
  view.data = static_cast<const uint8_t*>(plain.const_data_ptr());
  // The storage, not the tensor: to drop a tensor that Python knows takes the GIL.
  view.owner = std::make_shared<c10::Storage>(plain.storage());
  return view;
}

ArrayView copy_record(const std::vector<RecordField>& fields) {
  if (fields.empty()) {
    throw ArgumentError("expected a dict of tensors but found an empty one; a record has fields");
  }
  std::vector<at::Tensor> tensors;
  for (const RecordField& field : fields) {
    try {
      tensors.push_back(materialize(field.tensor).contiguous());
      check_named(tensors.back().scalar_type());
    } catch (Error& error) {
      error.add_context("field " + field.quoted_name);
      throw;
    }
  }
  const size_t dims = count_shared_dims(tensors);
  ArrayView view;
  view.descr = "[";
  for (size_t i = 0; i < fields.size(); ++i) {
    const at::IntArrayRef rest = tensors[i].sizes().slice(dims);
    const std::string shape = rest.empty() ? "" : ", " + format_shape({rest.begin(), rest.end()});
    view.descr += fmt::format("{}({}, {}{})", i == 0 ? "" : ", ", fields[i].quoted_name,
                              quote(find_format(tensors[i].scalar_type())), shape);
    view.itemsize += static_cast<uint64_t>(c10::multiply_integers(rest)) *
                     static_cast<uint64_t>(tensors[i].element_size());
  }
  view.descr += "]";
  const at::IntArrayRef shape = tensors.front().sizes().slice(0, dims);
  const auto count = static_cast<uint64_t>(c10::multiply_integers(shape));
  view.shape.assign(shape.begin(), shape.end());
  view.strides.resize(dims);
  auto step = static_cast<int64_t>(view.itemsize);
  for (size_t i = dims; i-- > 0; step *= shape[i]) view.strides[i] = step;
  auto memory = allocate_storage(count * view.itemsize);
  interleave(tensors, count, view.itemsize, bytes_of(memory).data());
  view.data = bytes_of(memory).data();
  view.owner = std::make_shared<c10::Storage>(std::move(memory));
  return view;
}

void save(Client& client, const std::string& url, const at::Tensor& tensor, TargetOptions options) {
  ArrayView array;
  try {
    array = view_tensor(tensor);
  } catch (Error& error) {
    error.add_context(display_name(url));
    throw;
  }
  const NpyWriter writer(std::move(array));
  options.nbytes = writer.nbytes();
  const std::unique_ptr<Target> target = client.create(url, options);
  writer.write(*target);
  target->finish();
}

}  // namespace torchnpy
