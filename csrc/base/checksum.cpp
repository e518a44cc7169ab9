#include "base/checksum.h"

#include <fmt/format.h>

#include <array>
#include <bit>
#include <cstring>

#ifdef __x86_64__
#include <immintrin.h>
#endif
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

// Eight bytes at a time (Kounavis and Berry, 2005). `remainder`: of what came before.
template <typename Word, Word kPolynomial>
Word divide(ByteView bytes, Word remainder) {
  static constexpr auto kTables = make_tables(kPolynomial);
  for (; bytes.size() >= 8; bytes = bytes.subspan(8)) {
    uint64_t word;
    std::memcpy(&word, bytes.data(), sizeof word);
    word ^= remainder;
    remainder = 0;
    for (size_t i = 0; i < 8; ++i) remainder ^= kTables[7 - i][word >> (8 * i) & 0xFF];
  }
  for (const uint8_t byte : bytes) {
    remainder = (remainder >> 8) ^ kTables[0][(remainder ^ byte) & 0xFF];
  }
  return remainder;
}

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

#ifdef __x86_64__

// Sixteen bytes with the remainder that they have, `kDistance` bytes further on: by products
// without carry (Gopal et al., Fast CRC Computation Using PCLMULQDQ, 2009). The product of two
// reflected words is one bit short, hence the -1.
template <typename Word, Word kPolynomial, uint64_t kDistance>
__attribute__((target("pclmul"))) __m128i shift(__m128i bytes) {
  constexpr int kWidth = 8 * sizeof(Word);
  constexpr Field kField{kWidth, kPolynomial};
  constexpr uint64_t kFirst = kField.power_of_x(8 * kDistance + 64 - 1) << (64 - kWidth);
  constexpr uint64_t kSecond = kField.power_of_x(8 * kDistance - 1) << (64 - kWidth);
  const __m128i factors =
      _mm_set_epi64x(static_cast<int64_t>(kSecond), static_cast<int64_t>(kFirst));
  return _mm_xor_si128(_mm_clmulepi64_si128(bytes, factors, 0x00),
                       _mm_clmulepi64_si128(bytes, factors, 0x11));
}

// As divide(), several times as fast, for 64 bytes or more on a CPU that has the instruction.
template <typename Word, Word kPolynomial>
__attribute__((target("pclmul"))) Word fold(ByteView bytes, Word remainder) {
  const auto load = [&bytes](size_t i) __attribute__((target("pclmul"))) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes.data() + 16 * i));
  };
  __m128i lanes[4] = {load(0), load(1), load(2), load(3)};
  lanes[0] = _mm_xor_si128(lanes[0], _mm_set_epi64x(0, static_cast<int64_t>(remainder)));
  for (bytes = bytes.subspan(64); bytes.size() >= 64; bytes = bytes.subspan(64)) {
    for (size_t i = 0; i < 4; ++i) {
      lanes[i] = _mm_xor_si128(shift<Word, kPolynomial, 64>(lanes[i]), load(i));
    }
  }
  __m128i all = lanes[0];
  for (size_t i = 1; i < 4; ++i) {
    all = _mm_xor_si128(shift<Word, kPolynomial, 16>(all), lanes[i]);
  }
  uint8_t left[16];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(left), all);
  return divide<Word, kPolynomial>(bytes, divide<Word, kPolynomial>(left, Word{0}));
}

const bool can_fold = __builtin_cpu_supports("pclmul") != 0;

#endif

template <typename Word, Word kPolynomial>
Word update(ByteView bytes, Word crc) {
#ifdef __x86_64__
  if (can_fold && bytes.size() >= 64) {
    return ~fold<Word, kPolynomial>(bytes, static_cast<Word>(~crc));
  }
#endif
  return ~divide<Word, kPolynomial>(bytes, static_cast<Word>(~crc));
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
    case ChecksumKind::kCrc32c:
      return update<uint32_t, kCrc32cPolynomial>(bytes, static_cast<uint32_t>(crc));
    case ChecksumKind::kCrc64Nvme: break;
  }
  return update<uint64_t, kCrc64NvmePolynomial>(bytes, crc);
}

uint64_t combine_crcs(ChecksumKind kind, uint64_t first, uint64_t second, uint64_t second_nbytes) {
  const Field field = field_of(kind);
  // Eight times, not a product: that overflows from 2 EiB on.
  uint64_t shift = field.power_of_x(second_nbytes);
  for (int i = 0; i < 3; ++i) shift = field.multiply(shift, shift);
  return field.multiply(shift, first) ^ second;
}

}  // namespace torchnpy
