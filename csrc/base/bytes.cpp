#include "base/bytes.h"

#include <fmt/format.h>

#include <bit>
#include <cstdlib>
#include <cstring>
#include <new>

#include "base/error.h"

namespace torchnpy {

static_assert(std::endian::native == std::endian::little, "big-endian hosts are not supported");

OwnedBytes allocate_bytes(size_t nbytes) {
  constexpr std::align_val_t kAlignment{64};
  auto* data = static_cast<uint8_t*>(::operator new(nbytes, kAlignment));
  std::shared_ptr<void> owner(data, [](void* p) { ::operator delete(p, kAlignment); });
  return {MutableBytes(data, nbytes), std::move(owner)};
}

ByteView Cursor::read_bytes(uint64_t nbytes) {
  if (nbytes > remaining()) {
    throw FormatError(
        fmt::format("expected {} more bytes at byte {} but found {}; the data is truncated", nbytes,
                    offset_, remaining()));
  }
  const ByteView slice = bytes_.subspan(offset_, nbytes);
  offset_ += nbytes;
  return slice;
}

void Cursor::skip(uint64_t nbytes) { read_bytes(nbytes); }

namespace {
template <typename T>
T read_integer(Cursor& cursor) {
  T value;
  std::memcpy(&value, cursor.read_bytes(sizeof(T)).data(), sizeof(T));
  return value;
}

template <typename T>
void swap_units(MutableBytes bytes) {
  for (size_t i = 0; i + sizeof(T) <= bytes.size(); i += sizeof(T)) {
    T value;
    std::memcpy(&value, &bytes[i], sizeof(T));
    if constexpr (sizeof(T) == 2) {
      value = __builtin_bswap16(value);
    } else if constexpr (sizeof(T) == 4) {
      value = __builtin_bswap32(value);
    } else {
      value = __builtin_bswap64(value);
    }
    std::memcpy(&bytes[i], &value, sizeof(T));
  }
}
}  // namespace

uint8_t Cursor::read_u8() { return read_integer<uint8_t>(*this); }
uint16_t Cursor::read_u16() { return read_integer<uint16_t>(*this); }
uint32_t Cursor::read_u32() { return read_integer<uint32_t>(*this); }
uint64_t Cursor::read_u64() { return read_integer<uint64_t>(*this); }

void swap_bytes(MutableBytes bytes, size_t width) {
  switch (width) {
    case 2: return swap_units<uint16_t>(bytes);
    case 4: return swap_units<uint32_t>(bytes);
    case 8: return swap_units<uint64_t>(bytes);
    default: throw ArgumentError(fmt::format("swap_bytes: width {} is not 2, 4 or 8", width));
  }
}

}  // namespace torchnpy
