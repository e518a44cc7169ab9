#include "base/checksum.h"

#include <fmt/format.h>
#include <isa-l/crc.h>

#include <algorithm>
#include <boost/crc.hpp>
#include <climits>

#ifdef TORCHNPY_LIBDEFLATE
#include <libdeflate.h>
#else
#include <zlib.h>
#endif

namespace torchnpy {
namespace {

// The polynomials with the coefficient of the highest power in the lowest bit, without x^width.
// All three begin with all ones and are inverted at the end.
constexpr uint32_t kCrc32Polynomial = 0xEDB88320;
constexpr uint32_t kCrc32cPolynomial = 0x82F63B78;
constexpr uint64_t kCrc64NvmePolynomial = 0x9A6C9329AC4BC9B5;

// The remainders modulo a polynomial, which is of the degree `width`.
struct Field {
  int width;
  uint64_t polynomial;

  constexpr uint64_t one() const { return uint64_t{1} << (width - 1); }

  // a times b, modulo the polynomial.
  constexpr uint64_t multiply(uint64_t a, uint64_t b) const {
    uint64_t product = 0;
    for (uint64_t bit = one(); bit != 0 && a != 0; bit >>= 1) {
      if ((a & bit) != 0) product ^= b;
      a &= ~bit;
      b = (b >> 1) ^ ((b & 1) != 0 ? polynomial : 0);
    }
    return product;
  }

  // x^exponent.
  constexpr uint64_t power_of_x(uint64_t exponent) const {
    uint64_t result = one();
    for (uint64_t power = one() >> 1; exponent != 0; exponent >>= 1) {
      if ((exponent & 1) != 0) result = multiply(result, power);
      power = multiply(power, power);
    }
    return result;
  }
};

uint32_t crc32c(ByteView bytes, uint32_t crc) {
  while (!bytes.empty()) {
    const ByteView piece = bytes.first(std::min<size_t>(bytes.size(), INT_MAX));
    // It does not write, whatever its signature says.
    crc = ~crc32_iscsi(const_cast<uint8_t*>(piece.data()), static_cast<int>(piece.size()), ~crc);
    bytes = bytes.subspan(piece.size());
  }
  return crc;
}

Field field_of(ChecksumKind kind) {
  switch (kind) {
    case ChecksumKind::kCrc32: return {32, kCrc32Polynomial};
    case ChecksumKind::kCrc32c: return {32, kCrc32cPolynomial};
    case ChecksumKind::kCrc64Nvme: break;
  }
  return {64, kCrc64NvmePolynomial};
}

}  // namespace

std::string format_checksum(const Checksum& checksum) {
  switch (checksum.kind) {
    case ChecksumKind::kCrc32: return fmt::format("CRC-32 0x{:08x}", checksum.value);
    case ChecksumKind::kCrc32c: return fmt::format("CRC-32C 0x{:08x}", checksum.value);
    case ChecksumKind::kCrc64Nvme: break;
  }
  return fmt::format("CRC-64/NVME 0x{:016x}", checksum.value);
}

uint32_t crc32(ByteView bytes, uint32_t crc) {
  if (bytes.empty()) return crc;  // to the libraries no address means: begin anew
#ifdef TORCHNPY_LIBDEFLATE
  return libdeflate_crc32(crc, bytes.data(), bytes.size());
#else
  return static_cast<uint32_t>(crc32_z(crc, bytes.data(), bytes.size()));
#endif
}

uint64_t compute_crc(ChecksumKind kind, ByteView bytes, uint64_t crc) {
  switch (kind) {
    case ChecksumKind::kCrc32: return crc32(bytes, static_cast<uint32_t>(crc));
    case ChecksumKind::kCrc32c: return crc32c(bytes, static_cast<uint32_t>(crc));
    case ChecksumKind::kCrc64Nvme: break;
  }
  // The polynomial as the specification has it: the highest power in the highest bit.
  boost::crc_optimal<64, 0xAD93D23594C93659, ~uint64_t{0}, ~uint64_t{0}, true, true> state;
  state.process_bytes(bytes.data(), bytes.size());
  return combine_crcs(kind, crc, state.checksum(), bytes.size());
}

uint64_t combine_crcs(ChecksumKind kind, uint64_t first, uint64_t second, uint64_t second_nbytes) {
  const Field field = field_of(kind);
  // Eight times, not a product: that overflows from 2 EiB on.
  uint64_t shift = field.power_of_x(second_nbytes);
  for (int i = 0; i < 3; ++i) shift = field.multiply(shift, shift);
  return field.multiply(shift, first) ^ second;
}

}  // namespace torchnpy
