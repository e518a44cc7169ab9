#include "base/checksum.h"

#include <fmt/format.h>

#include <array>
#include <bit>
#include <cstring>

#ifdef TORCHNPY_LIBDEFLATE
#include <libdeflate.h>
#else
#include <zlib.h>
#endif

namespace torchnpy {
namespace {

static_assert(std::endian::native == std::endian::little, "words are loaded as they lie");

// The polynomials with the coefficient of the highest power in the lowest bit, without x^width.
// All three begin with all ones and are inverted at the end.
constexpr uint32_t kCrc32Polynomial = 0xEDB88320;
constexpr uint32_t kCrc32cPolynomial = 0x82F63B78;
constexpr uint64_t kCrc64NvmePolynomial = 0x9A6C9329AC4BC9B5;

// Row k: what a byte that k more bytes follow does to the remainder.
template <typename Word>
constexpr std::array<std::array<Word, 256>, 8> make_tables(Word polynomial) {
  std::array<std::array<Word, 256>, 8> tables{};
  for (size_t byte = 0; byte < 256; ++byte) {
    Word remainder = byte;
    for (int bit = 0; bit < 8; ++bit) {
      remainder = (remainder >> 1) ^ ((remainder & 1) != 0 ? polynomial : Word{0});
    }
    tables[0][byte] = remainder;
  }
  for (size_t row = 1; row < 8; ++row) {
    for (size_t byte = 0; byte < 256; ++byte) {
      const Word before = tables[row - 1][byte];
      tables[row][byte] = (before >> 8) ^ tables[0][before & 0xFF];
    }
  }
  return tables;
}

// Eight bytes at a time (Kounavis and Berry, 2005).
template <typename Word, Word kPolynomial>
Word update(ByteView bytes, Word crc) {
  static constexpr auto kTables = make_tables(kPolynomial);
  crc = ~crc;
  for (; bytes.size() >= 8; bytes = bytes.subspan(8)) {
    uint64_t word;
    std::memcpy(&word, bytes.data(), sizeof word);
    word ^= crc;
    crc = 0;
    for (size_t i = 0; i < 8; ++i) crc ^= kTables[7 - i][word >> (8 * i) & 0xFF];
  }
  for (const uint8_t byte : bytes) crc = (crc >> 8) ^ kTables[0][(crc ^ byte) & 0xFF];
  return ~crc;
}

struct Field {
  int width;
  uint64_t polynomial;

  uint64_t one() const { return uint64_t{1} << (width - 1); }

  // a times b, modulo the polynomial.
  uint64_t multiply(uint64_t a, uint64_t b) const {
    uint64_t product = 0;
    for (uint64_t bit = one(); bit != 0 && a != 0; bit >>= 1) {
      if ((a & bit) != 0) product ^= b;
      a &= ~bit;
      b = (b >> 1) ^ ((b & 1) != 0 ? polynomial : 0);
    }
    return product;
  }

  // x^(8 nbytes).
  uint64_t shift(uint64_t nbytes) const {
    uint64_t result = one();
    uint64_t power = one() >> 8;  // x^8
    for (; nbytes != 0; nbytes >>= 1) {
      if ((nbytes & 1) != 0) result = multiply(result, power);
      power = multiply(power, power);
    }
    return result;
  }
};

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
    case ChecksumKind::kCrc32c:
      return update<uint32_t, kCrc32cPolynomial>(bytes, static_cast<uint32_t>(crc));
    case ChecksumKind::kCrc64Nvme: break;
  }
  return update<uint64_t, kCrc64NvmePolynomial>(bytes, crc);
}

uint64_t combine_crcs(ChecksumKind kind, uint64_t first, uint64_t second, uint64_t second_nbytes) {
  const Field field = field_of(kind);
  return field.multiply(field.shift(second_nbytes), first) ^ second;
}

}  // namespace torchnpy
