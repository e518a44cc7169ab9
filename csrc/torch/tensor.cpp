#include "torch/tensor.h"

#include <ATen/EmptyTensor.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/error.h"

namespace torchnpy {
namespace {

// Bytes of a unit that is swapped as one: of a complex number, each part.
size_t swap_width(const Dtype& dtype) {
  switch (dtype.type) {
    case ScalarType::kComplex32:
    case ScalarType::kComplex64:
    case ScalarType::kComplex128: return dtype.itemsize / 2;
    default: return dtype.itemsize;
  }
}

at::Tensor tensor_over(c10::Storage storage, at::ScalarType type, at::IntArrayRef sizes,
                       at::IntArrayRef strides, int64_t storage_offset) {
  at::Tensor tensor = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU),
      c10::scalarTypeToTypeMeta(type));
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(sizes, strides, storage_offset);
  return tensor;
}

using Sizes = c10::SmallVector<int64_t, 8>;

// Strides in elements; the innermost step is `step`.
Sizes make_strides(at::IntArrayRef sizes, bool fortran_order, int64_t step) {
  Sizes strides(sizes.size());
  for (size_t i = 0; i < sizes.size(); ++i) {
    const size_t axis = fortran_order ? i : sizes.size() - 1 - i;
    strides[axis] = step;
    step *= std::max<int64_t>(sizes[axis], 1);
  }
  return strides;
}

Sizes to_sizes(const std::vector<uint64_t>& shape) { return Sizes(shape.begin(), shape.end()); }

// Whether some array loads as `type`; quantized types, for example, need more than bits.
bool is_loaded(at::ScalarType type) {
  for (int i = 0; i < static_cast<int>(ScalarType::kStructured); ++i) {
    Dtype dtype;
    dtype.type = static_cast<ScalarType>(i);
    if (find_scalar_type(dtype) == type) return true;
  }
  return false;
}

bool is_aligned(const void* data, uint64_t nbytes) {
  return reinterpret_cast<uintptr_t>(data) % nbytes == 0;
}

at::Tensor make_plain(const NpyHeader& header, c10::Storage storage, bool exclusive,
                      std::optional<at::ScalarType> wanted) {
  const Dtype& dtype = header.dtype;
  const at::ScalarType type = resolve_type(dtype, wanted);
  const Sizes sizes = to_sizes(header.shape);
  if (header.count == 0) return at::Tensor(at::detail::empty_cpu(sizes, type));
  const bool misplaced = !is_aligned(storage.data(), dtype.itemsize);
  const bool foreign = (dtype.big_endian && swap_width(dtype) > 1) ||
                       (type == at::kBool && !are_bools(bytes_of(storage)));
  if (misplaced || (foreign && !exclusive)) storage = copy_storage(storage);
  if (foreign) make_native(bytes_of(storage), dtype, type);
  return tensor_over(std::move(storage), type, sizes, make_strides(sizes, header.fortran_order, 1),
                     0);
}

// One field of an array of records: shape of the array, then of the field.
struct FieldLayout {
  const Dtype& dtype;
  at::ScalarType type;
  Sizes sizes;
  uint64_t offset;        // bytes from the start of a record
  uint64_t field_nbytes;  // in one record
  int64_t field_count;    // elements in one record
};

// Copies a field out of each record, in the order in which the records lie.
at::Tensor gather_field(const NpyHeader& header, const c10::Storage& storage,
                        const FieldLayout& field, at::IntArrayRef strides) {
  c10::Storage copy = allocate_storage(header.count * field.field_nbytes);
  const uint8_t* from = bytes_of(storage).data() + field.offset;
  uint8_t* to = bytes_of(copy).data();
  for (uint64_t i = 0; i < header.count; ++i) {
    std::memcpy(to, from, field.field_nbytes);
    from += header.dtype.itemsize;
    to += field.field_nbytes;
  }
  make_native(bytes_of(copy), field.dtype, field.type);
  return tensor_over(copy, field.type, field.sizes, strides, 0);
}

bool holds_only_bools(const NpyHeader& header, const c10::Storage& storage,
                      const FieldLayout& field) {
  const ByteView bytes = bytes_of(storage);
  for (uint64_t i = 0; i < header.count; ++i) {
    if (!are_bools(bytes.subspan(i * header.dtype.itemsize + field.offset, field.field_nbytes))) {
      return false;
    }
  }
  return true;
}

at::Tensor make_field(const NpyHeader& header, const c10::Storage& storage,
                      const FieldLayout& field) {
  if (header.count == 0 || field.field_count == 0)
    return at::Tensor(at::detail::empty_cpu(field.sizes, field.type));
  const uint64_t element_nbytes = field.dtype.itemsize;
  // Steps of a tensor are whole elements; a record may be no multiple of them.
  const bool steps = field.offset % element_nbytes == 0 &&
                     header.dtype.itemsize % element_nbytes == 0 &&
                     is_aligned(storage.data(), element_nbytes);
  const bool native =
      !(field.dtype.big_endian && swap_width(field.dtype) > 1) &&
      (field.dtype.type != ScalarType::kBool || holds_only_bools(header, storage, field));
  const size_t record_dims = header.shape.size();
  const at::IntArrayRef sizes(field.sizes);
  const int64_t record_step = steps && native
                                  ? static_cast<int64_t>(header.dtype.itemsize / element_nbytes)
                                  : field.field_count;
  Sizes strides = make_strides(sizes.slice(0, record_dims), header.fortran_order, record_step);
  strides.append(make_strides(sizes.slice(record_dims), false, 1));
  if (!steps || !native) return gather_field(header, storage, field, strides);
  return tensor_over(storage, field.type, sizes, strides,
                     static_cast<int64_t>(field.offset / element_nbytes));
}

// Adds the tensors of `fields`, which lie `offset` bytes into each record.
void add_fields(const NpyHeader& header, const c10::Storage& storage,
                const std::vector<Field>& fields, const std::string& prefix, uint64_t offset,
                std::vector<NamedTensor>& tensors) {
  for (const Field& field : fields) {
    const std::string name = prefix + field.name;
    if (field.dtype.type == ScalarType::kStructured) {
      if (!field.shape.empty()) {
        throw UnsupportedError(fmt::format(
            "expected a plain field but found field '{}', a sub-array of records of shape {}; save "
            "its fields as arrays of their own",
            name, format_shape(field.shape)));
      }
      add_fields(header, storage, field.dtype.fields, name + ".", offset + field.offset, tensors);
      continue;
    }
    const std::optional<at::ScalarType> type = find_scalar_type(field.dtype);
    if (!type) {
      try {
        check_npy_loadable(field.dtype);
      } catch (Error& error) {
        error.add_context(fmt::format("field '{}'", name));
        throw;
      }
    }
    Sizes sizes = to_sizes(header.shape);
    int64_t count = 1;
    for (const uint64_t dim : field.shape) {
      sizes.push_back(static_cast<int64_t>(dim));
      count *= static_cast<int64_t>(dim);
    }
    if (std::ranges::any_of(tensors, [&](const NamedTensor& t) { return t.name == name; })) {
      throw UnsupportedError(fmt::format(
          "expected fields of different names but found '{}' twice: once nested, as outer.inner; "
          "save the array with other names",
          name));
    }
    const uint64_t nbytes = static_cast<uint64_t>(count) * field.dtype.itemsize;
    tensors.push_back(
        {name, make_field(header, storage,
                          {field.dtype, *type, sizes, offset + field.offset, nbytes, count})});
  }
}

}  // namespace

std::optional<at::ScalarType> find_scalar_type(const Dtype& dtype) {
  switch (dtype.type) {
    case ScalarType::kBool: return at::kBool;
    case ScalarType::kInt8: return at::kChar;
    case ScalarType::kInt16: return at::kShort;
    case ScalarType::kInt32: return at::kInt;
    case ScalarType::kInt64:
    case ScalarType::kDatetime64:
    case ScalarType::kTimedelta64: return at::kLong;
    case ScalarType::kUInt8: return at::kByte;
    case ScalarType::kUInt16: return at::kUInt16;
    case ScalarType::kUInt32: return at::kUInt32;
    case ScalarType::kUInt64: return at::kUInt64;
    case ScalarType::kFloat16: return at::kHalf;
    case ScalarType::kFloat32: return at::kFloat;
    case ScalarType::kFloat64: return at::kDouble;
    case ScalarType::kComplex32: return at::kComplexHalf;
    case ScalarType::kComplex64: return at::kComplexFloat;
    case ScalarType::kComplex128: return at::kComplexDouble;
    case ScalarType::kBFloat16: return at::kBFloat16;
    case ScalarType::kFloat8E4M3FN: return at::kFloat8_e4m3fn;
    case ScalarType::kFloat8E4M3FNUZ: return at::kFloat8_e4m3fnuz;
    case ScalarType::kFloat8E5M2: return at::kFloat8_e5m2;
    case ScalarType::kFloat8E5M2FNUZ: return at::kFloat8_e5m2fnuz;
    case ScalarType::kFloat8E8M0FNU: return at::kFloat8_e8m0fnu;
    case ScalarType::kStructured:
    case ScalarType::kVoid:
    case ScalarType::kBytes:
    case ScalarType::kUnicode:
    case ScalarType::kLongDouble:
    case ScalarType::kObject: return std::nullopt;
  }
  return std::nullopt;
}

at::ScalarType resolve_type(const Dtype& dtype, std::optional<at::ScalarType> wanted) {
  const std::optional<at::ScalarType> named = find_scalar_type(dtype);
  if (!wanted) {
    if (!named) check_npy_loadable(dtype);  // throws
    return *named;
  }
  const std::string wanted_name = c10::toString(*wanted);
  if (named) {
    if (*named == *wanted) return *named;
    throw ArgumentError(fmt::format(
        "expected dtype={} but found {}; dtype= does not cast: use .to() to convert or .view() to "
        "reinterpret the tensor",
        wanted_name, format_dtype(dtype)));
  }
  if (dtype.type != ScalarType::kVoid) check_npy_loadable(dtype);  // throws
  if (!is_loaded(*wanted)) {
    throw ArgumentError(
        fmt::format("expected a dtype of plain numbers but found dtype={}", wanted_name));
  }
  if (c10::elementSize(*wanted) != dtype.itemsize) {
    throw ArgumentError(fmt::format("expected items of {} bytes (dtype={}) but found {} bytes ({})",
                                    c10::elementSize(*wanted), wanted_name, dtype.itemsize,
                                    format_dtype(dtype)));
  }
  return *wanted;
}

void make_native(MutableBytes bytes, const Dtype& dtype, at::ScalarType type) {
  if (dtype.big_endian && swap_width(dtype) > 1) swap_bytes(bytes, swap_width(dtype));
  if (type == at::kBool && !are_bools(bytes)) normalize_bools(bytes);
}

at::Tensor make_tensor(c10::Storage storage, at::ScalarType type,
                       const std::vector<uint64_t>& shape) {
  const Sizes sizes = to_sizes(shape);
  return tensor_over(std::move(storage), type, sizes, make_strides(sizes, false, 1), 0);
}

at::Tensor make_bytes(c10::Storage storage) {
  const auto count = static_cast<int64_t>(storage.nbytes());
  return tensor_over(std::move(storage), at::kByte, {count}, {1}, 0);
}

Array make_array(const NpyHeader& header, c10::Storage storage, bool exclusive,
                 std::optional<at::ScalarType> dtype) {
  if (header.dtype.type != ScalarType::kStructured) {
    return make_plain(header, std::move(storage), exclusive, dtype);
  }
  if (dtype) {
    throw ArgumentError(fmt::format("expected no dtype= for a structured array but found dtype={}",
                                    c10::toString(*dtype)));
  }
  std::vector<NamedTensor> tensors;
  add_fields(header, storage, header.dtype.fields, "", 0, tensors);
  return tensors;
}

}  // namespace torchnpy
