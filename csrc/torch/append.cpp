#include "torch/append.h"

#include <fmt/format.h>

#include <optional>
#include <string_view>

#include "torch/save.h"
#include "torch/tensor.h"
#include "transport/local_path.h"

namespace torchnpy {
namespace {

// What a dtype can hold exactly.
struct Capacity {
  int kind;      // bool, unsigned, signed, float, complex: numpy's order
  int digits;    // bits of the largest integer up to which it has all
  int exponent;  // bits; of an integer 0
};

std::optional<Capacity> find_range(at::ScalarType type) {
  switch (type) {
    case at::kBool: return Capacity{0, 1, 0};
    case at::kByte: return Capacity{1, 8, 0};
    case at::kUInt16: return Capacity{1, 16, 0};
    case at::kUInt32: return Capacity{1, 32, 0};
    case at::kUInt64: return Capacity{1, 64, 0};
    case at::kChar: return Capacity{2, 7, 0};
    case at::kShort: return Capacity{2, 15, 0};
    case at::kInt: return Capacity{2, 31, 0};
    case at::kLong: return Capacity{2, 63, 0};
    case at::kFloat8_e4m3fn:
    case at::kFloat8_e4m3fnuz: return Capacity{3, 4, 4};
    case at::kFloat8_e5m2:
    case at::kFloat8_e5m2fnuz: return Capacity{3, 3, 5};
    case at::kFloat8_e8m0fnu: return Capacity{3, 1, 8};
    case at::kBFloat16: return Capacity{3, 8, 8};
    case at::kHalf: return Capacity{3, 11, 5};
    case at::kFloat: return Capacity{3, 24, 8};
    case at::kDouble: return Capacity{3, 53, 11};
    case at::kComplexHalf: return Capacity{4, 11, 5};
    case at::kComplexFloat: return Capacity{4, 24, 8};
    case at::kComplexDouble: return Capacity{4, 53, 11};
    default: return std::nullopt;
  }
}

bool is_safe(const Capacity& from, const Capacity& to) {
  constexpr int kFloat = 3;
  if (from.kind > to.kind) return false;
  if (to.kind < kFloat || from.kind >= kFloat) {
    return from.digits <= to.digits && from.exponent <= to.exponent;
  }
  // numpy calls the widest float safe for all integers.
  return from.digits <= to.digits || to.digits == 53;
}

CastError cast_error(const Appender& appender, at::ScalarType from, std::string_view advice) {
  return CastError(fmt::format("expected rows of {} but found {}; {}",
                               format_dtype(appender.layout()->dtype), c10::toString(from),
                               advice));
}

bool is_swapped(const Dtype& dtype) { return dtype.big_endian && dtype.itemsize > 1; }

}  // namespace

bool can_cast(at::ScalarType from, at::ScalarType to, Casting casting) {
  if (from == to || casting == Casting::kUnsafe) return true;
  const std::optional<Capacity> a = find_range(from);
  const std::optional<Capacity> b = find_range(to);
  if (!a || !b || casting == Casting::kNo || casting == Casting::kEquiv) return false;
  return is_safe(*a, *b) || (casting == Casting::kSameKind && a->kind <= b->kind);
}

bool holds(const Appender& appender, at::ScalarType type) {
  const Dtype& dtype = appender.layout()->dtype;
  return find_scalar_type(dtype) == type && !is_swapped(dtype);
}

ArrayView view_rows(const Appender& appender, const at::Tensor& rows, Casting casting) {
  ArrayView view = view_tensor(rows);
  const AppendLayout* const layout = appender.layout();
  if (layout == nullptr) return view;
  const Dtype& dtype = layout->dtype;
  const std::optional<at::ScalarType> type = find_scalar_type(dtype);
  if (!type) {
    // Bits that a file cannot name: those that save() writes so.
    const bool is_void = dtype.type == ScalarType::kVoid && view.itemsize == dtype.itemsize &&
                         view.descr.starts_with("'<V");
    if (is_void) return view;
    throw cast_error(appender, rows.scalar_type(), "no tensor has this dtype: append numpy arrays");
  }
  if (!holds(appender, rows.scalar_type())) {
    if (!can_cast(rows.scalar_type(), *type, casting)) {
      throw cast_error(appender, rows.scalar_type(),
                       "cast them, or pass casting=\"unsafe\" to lose what does not fit");
    }
    at::Tensor cast = rows.detach().cpu().to(*type, /*non_blocking=*/false, /*copy=*/true);
    if (is_swapped(dtype)) {
      cast = cast.contiguous();
      make_native(bytes_of(cast.storage()), dtype, *type);  // to the other order, as back from it
    }
    view = view_tensor(cast);
  }
  view.descr = fmt::format("'{}'", appender.descr());
  return view;
}

void append(const std::string& path, const at::Tensor& rows) {
  const std::string local = local_path(path);
  Appender appender(local, {});
  ArrayView view;
  do {  // again when another made the file meanwhile: then its dtype counts
    view = with_file_name(local, [&] { return view_rows(appender, rows, Casting::kSameKind); });
  } while (!appender.append({&view, 1}));
  appender.close();
}

}  // namespace torchnpy
