// Bytes and their owners. Cursor is the only code that turns bytes into integers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

namespace torchnpy {

using ByteView = std::span<const uint8_t>;
using MutableBytes = std::span<uint8_t>;

inline ByteView as_bytes(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}
inline std::string_view as_text(ByteView bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// Memory that somebody else allocated, valid while `owner` lives.
struct OwnedBytes {
  MutableBytes bytes;
  std::shared_ptr<void> owner;
};

// `nbytes` of uninitialised memory, aligned to 64. Throws std::bad_alloc.
OwnedBytes allocate_bytes(size_t nbytes);

// Reads little-endian integers and slices from the front of a view. Every read is
// checked: past the end it throws FormatError with the offset, the bytes wanted and
// the bytes found.
class Cursor {
 public:
  explicit Cursor(ByteView bytes) : bytes_(bytes) {}
  uint64_t offset() const { return offset_; }
  uint64_t remaining() const { return bytes_.size() - offset_; }
  uint8_t read_u8();
  uint16_t read_u16();
  uint32_t read_u32();
  uint64_t read_u64();
  ByteView read_bytes(uint64_t nbytes);
  void skip(uint64_t nbytes);

 private:
  ByteView bytes_;
  uint64_t offset_ = 0;
};

// False, and *result untouched, when the result does not fit.
[[nodiscard]] inline bool checked_add(uint64_t a, uint64_t b, uint64_t* result) {
  uint64_t sum;
  if (__builtin_add_overflow(a, b, &sum)) return false;
  *result = sum;
  return true;
}
[[nodiscard]] inline bool checked_multiply(uint64_t a, uint64_t b, uint64_t* result) {
  uint64_t product;
  if (__builtin_mul_overflow(a, b, &product)) return false;
  *result = product;
  return true;
}

// Reverses the bytes of each `width`-byte unit (2, 4 or 8) in place.
void swap_bytes(MutableBytes bytes, size_t width);

}  // namespace torchnpy
