#include "archive/array_bytes.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <utility>

#include "base/error.h"
#include "format/npy.h"

namespace torchnpy {
namespace {

constexpr uint64_t kCacheLineNbytes = 64;

uint64_t magnitude(int64_t stride) {
  return stride < 0 ? 0 - static_cast<uint64_t>(stride) : static_cast<uint64_t>(stride);
}

// Axes of one step are contiguous whatever their stride, as in numpy.
bool is_contiguous(const ArrayView& array, bool fortran_order) {
  uint64_t step = array.itemsize;
  for (size_t i = 0; i < array.shape.size(); ++i) {
    const size_t axis = fortran_order ? i : array.shape.size() - 1 - i;
    if (array.shape[axis] == 1) continue;
    if (array.strides[axis] < 0 || static_cast<uint64_t>(array.strides[axis]) != step) return false;
    step *= array.shape[axis];
  }
  return true;
}

template <typename Unit>
void copy_units(const uint8_t* from, int64_t stride, uint64_t count, uint8_t* out) {
  for (uint64_t i = 0; i < count; ++i) {
    std::memcpy(out + i * sizeof(Unit), from, sizeof(Unit));
    from += stride;
  }
}

struct Unit16 {
  uint64_t words[2];
};

// `count` pieces of `nbytes`, `stride` apart, one after the other.
void copy_strided(const uint8_t* from, int64_t stride, uint64_t nbytes, uint64_t count,
                  uint8_t* out) {
  switch (nbytes) {
    case 1: return copy_units<uint8_t>(from, stride, count, out);
    case 2: return copy_units<uint16_t>(from, stride, count, out);
    case 4: return copy_units<uint32_t>(from, stride, count, out);
    case 8: return copy_units<uint64_t>(from, stride, count, out);
    case 16: return copy_units<Unit16>(from, stride, count, out);
    default:
      for (uint64_t i = 0; i < count; ++i) {
        std::memcpy(out, from, nbytes);
        from += stride;
        out += nbytes;
      }
  }
}

}  // namespace

// A place among the runs of all axes from `begin` on but the last, and its memory.
class ArrayBytes::Walk {
 public:
  Walk(const std::vector<Axis>& axes, size_t begin, const uint8_t* from, uint64_t row)
      : axes_(axes), begin_(begin), at_(from) {
    for (size_t i = axes_.size() - 1; i-- > begin_;) {
      index_[i] = row % axes_[i].count;
      row /= axes_[i].count;
      at_ += static_cast<int64_t>(index_[i]) * axes_[i].stride;
    }
  }
  const uint8_t* row() const { return at_; }
  void next_row() {
    for (size_t i = axes_.size() - 1; i-- > begin_;) {
      at_ += axes_[i].stride;
      if (++index_[i] < axes_[i].count) return;
      at_ -= static_cast<int64_t>(axes_[i].count) * axes_[i].stride;
      index_[i] = 0;
    }
  }

 private:
  const std::vector<Axis>& axes_;
  const size_t begin_;
  const uint8_t* at_;
  std::array<uint64_t, kMaxDims> index_;
};

ArrayBytes::ArrayBytes(ArrayView array, std::optional<bool> fortran_order)
    : array_(std::move(array)), fortran_order_(fortran_order.value_or(false)) {
  constexpr uint64_t kMaxNbytes = std::numeric_limits<int64_t>::max();
  const bool is_known =
      array_.shape.size() == array_.strides.size() && array_.shape.size() <= kMaxDims;
  bool fits = is_known;
  nbytes_ = array_.itemsize;
  const bool is_empty = std::ranges::find(array_.shape, 0u) != array_.shape.end();
  if (is_empty) nbytes_ = 0;
  for (const uint64_t count : array_.shape) {
    if (!is_empty) fits = fits && checked_multiply(nbytes_, count, &nbytes_);
  }
  if (!fits || nbytes_ > kMaxNbytes) {
    throw ArgumentError(fmt::format(
        "expected an array of at most {} bytes and {} dimensions but found shape {} of {} bytes "
        "each",
        kMaxNbytes, kMaxDims, format_shape(array_.shape), array_.itemsize));
  }
  if (nbytes_ == 0) return;
  if (!fortran_order) {
    fortran_order_ = !is_contiguous(array_, false) && is_contiguous(array_, true);
  }
  lay_out();
}

void ArrayBytes::lay_out() {
  const size_t dims = array_.shape.size();
  for (size_t i = 0; i < dims; ++i) {
    const size_t axis = fortran_order_ ? dims - 1 - i : i;
    const uint64_t count = array_.shape[axis];
    const int64_t stride = array_.strides[axis];
    if (count == 1) continue;
    const bool continues =
        !axes_.empty() && axes_.back().stride == static_cast<int64_t>(count) * stride;
    if (continues) {
      axes_.back().count *= count;
      axes_.back().stride = stride;
    } else {
      axes_.push_back({count, stride});
    }
  }
  run_nbytes_ = array_.itemsize;
  if (!axes_.empty() && axes_.back().stride == static_cast<int64_t>(run_nbytes_)) {
    run_nbytes_ *= axes_.back().count;
    axes_.pop_back();
  }
  for (size_t i = axes_.size(); i-- > 1;) axes_[i - 1].below = axes_[i].below * axes_[i].count;
  find_tiled_axis();
}

void ArrayBytes::find_tiled_axis() {
  if (axes_.size() < 2 || run_nbytes_ >= kCacheLineNbytes) return;
  uint64_t closest = magnitude(axes_.back().stride);
  if (closest < kCacheLineNbytes) return;
  for (size_t i = 0; i + 1 < axes_.size(); ++i) {
    const uint64_t stride = magnitude(axes_[i].stride);
    if (stride == 0 || stride >= closest) continue;
    closest = stride;
    tiled_axis_ = i;
  }
}

std::optional<SharedBytes> ArrayBytes::whole() const {
  if (!axes_.empty()) return std::nullopt;
  return SharedBytes{ByteView(array_.data, nbytes_), array_.owner};
}

void ArrayBytes::copy(uint64_t offset, MutableBytes out) const {
  if (out.empty()) return;
  if (axes_.empty()) {
    std::memcpy(out.data(), array_.data + offset, out.size());
    return;
  }
  const auto find_run = [this](uint64_t index) {
    const uint64_t row = index / axes_.back().count;
    const auto step = static_cast<int64_t>(index % axes_.back().count);
    return Walk(axes_, 0, array_.data, row).row() + step * axes_.back().stride;
  };
  uint64_t run = offset / run_nbytes_;
  if (const uint64_t begun = offset % run_nbytes_; begun != 0) {
    const size_t nbytes = std::min<uint64_t>(run_nbytes_ - begun, out.size());
    std::memcpy(out.data(), find_run(run++) + begun, nbytes);
    out = out.subspan(nbytes);
  }
  const uint64_t count = out.size() / run_nbytes_;
  copy_runs(run, count, out.data());
  out = out.subspan(count * run_nbytes_);
  if (!out.empty()) std::memcpy(out.data(), find_run(run + count), out.size());
}

void ArrayBytes::copy_runs(uint64_t first, uint64_t count, uint8_t* out) const {
  const Axis& last = axes_.back();
  while (count > 0) {
    // Up to where the tiled axis begins a step, and from there on all whole steps at once.
    uint64_t rows_until = count;
    if (tiled_axis_) {
      const Axis& tiled = axes_[*tiled_axis_];
      const uint64_t begun = first % tiled.below;
      const uint64_t steps =
          std::min(count / tiled.below, tiled.count - first / tiled.below % tiled.count);
      if (begun == 0 && steps > 1) {
        const Walk walk(axes_, 0, array_.data, first / last.count);
        copy_steps(walk.row(), steps, out);
        first += steps * tiled.below;
        count -= steps * tiled.below;
        out += steps * tiled.below * run_nbytes_;
        continue;
      }
      rows_until = std::min(count, tiled.below - begun);
    }
    count -= rows_until;
    Walk walk(axes_, 0, array_.data, first / last.count);
    for (; rows_until > 0; walk.next_row()) {
      const uint64_t begun = first % last.count;
      const uint64_t runs = std::min(last.count - begun, rows_until);
      copy_strided(walk.row() + static_cast<int64_t>(begun) * last.stride, last.stride, run_nbytes_,
                   runs, out);
      first += runs;
      rows_until -= runs;
      out += runs * run_nbytes_;
    }
  }
}

// `steps` whole steps of the tiled axis from `from` on, in tiles that stay in the cache.
void ArrayBytes::copy_steps(const uint8_t* from, uint64_t steps, uint8_t* out) const {
  constexpr uint64_t kTile = 32;
  const Axis& tiled = axes_[*tiled_axis_];
  const Axis& last = axes_.back();
  const uint64_t rows = tiled.below / last.count;
  Walk walk(axes_, *tiled_axis_ + 1, from, 0);
  for (uint64_t row = 0; row < rows; ++row, walk.next_row()) {
    for (uint64_t step = 0; step < steps; step += kTile) {
      const uint64_t step_end = std::min(steps, step + kTile);
      for (uint64_t i = 0; i < last.count; i += kTile) {
        const uint64_t runs = std::min(last.count - i, kTile);
        for (uint64_t k = step; k < step_end; ++k) {
          copy_strided(walk.row() + static_cast<int64_t>(k) * tiled.stride +
                           static_cast<int64_t>(i) * last.stride,
                       last.stride, run_nbytes_, runs,
                       out + (k * tiled.below + row * last.count + i) * run_nbytes_);
        }
      }
    }
  }
}

}  // namespace torchnpy
