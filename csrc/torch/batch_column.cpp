#include "torch/batch_column.h"

#include <cstring>
#include <new>

#include "base/error.h"

namespace torchnpy {

// Empty for what is no row: records, which are several tensors, and Fortran order.
std::optional<BatchColumn::Layout> BatchColumn::find_layout(const NpyHeader& header) const {
  if (header.dtype.type == ScalarType::kStructured) return std::nullopt;
  if (header.fortran_order && header.shape.size() > 1) return std::nullopt;
  return Layout{resolve_type(header.dtype, dtype_), header.shape, header.nbytes};
}

std::optional<MutableBytes> BatchColumn::row(size_t index, const NpyHeader& header,
                                             Workers* workers) {
  const std::lock_guard lock(mutex_);
  if (!agrees_) return std::nullopt;
  const std::optional<Layout> layout = find_layout(header);
  if (layout && !layout_) begin(*layout, workers);
  agrees_ = layout_ && layout && layout->type == layout_->type && layout->shape == layout_->shape;
  if (!agrees_) return std::nullopt;
  dtypes_[index] = header.dtype;
  return bytes_of_row(index);
}

void BatchColumn::begin(const Layout& layout, Workers* workers) {
  uint64_t nbytes = 0;
  if (!checked_multiply(count_, layout.nbytes, &nbytes)) return;  // they do not fit side by side
  try {
    storage_ = shared_ ? allocate_shared_storage(nbytes) : allocate_storage(nbytes);
  } catch (const c10::Error&) {
    return;  // too large for one; the others may be smaller than the first
  } catch (const std::bad_alloc&) {
    return;
  }
  layout_ = layout;
  dtypes_.resize(count_);
  if (workers != nullptr) touch_ahead(storage_, *workers, agrees_);
}

void BatchColumn::refuse() { agrees_ = false; }

bool BatchColumn::holds(ByteView bytes) const {
  if (!layout_) return false;
  const ByteView all = bytes_of(storage_);
  return bytes.data() >= all.data() && bytes.data() < all.data() + all.size();
}

at::Tensor BatchColumn::take(std::span<const size_t> samples) {
  size_t place = 0;
  for (const size_t sample : samples) {
    const MutableBytes row = bytes_of_row(place);
    if (sample != place++) std::memmove(row.data(), bytes_of_row(sample).data(), row.size());
    make_native(row, dtypes_[sample], layout_->type);
  }
  std::vector<uint64_t> shape{samples.size()};
  shape.insert(shape.end(), layout_->shape.begin(), layout_->shape.end());
  return make_tensor(std::move(storage_), layout_->type, shape);
}

Array BatchColumn::copy_out(size_t index, const NpyHeader& header) const {
  c10::Storage copy = copy_storage(share_bytes(OwnedBytes{bytes_of_row(index), nullptr}));
  return make_array(header, std::move(copy), /*exclusive=*/true, dtype_);
}

}  // namespace torchnpy
