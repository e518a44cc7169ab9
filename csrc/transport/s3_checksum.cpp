#include "transport/s3_checksum.h"

#include <string_view>

#include "base/text.h"

namespace torchnpy {
namespace {

int base64_digit(char c) {
  if (is_upper(c)) return c - 'A';
  if (is_lower(c)) return c - 'a' + 26;
  if (is_digit(c)) return c - '0' + 52;
  return c == '+' ? 62 : c == '/' ? 63 : -1;
}

// The big-endian integer of `nbytes` in base64 (RFC 4648); "-7" at its end, which says that it is
// over the checksums of seven parts, makes it none.
std::optional<uint64_t> parse_base64_integer(std::string_view text, size_t nbytes) {
  const size_t digit_count = (nbytes * 8 + 5) / 6;
  if (text.size() != (nbytes + 2) / 3 * 4) return std::nullopt;
  if (text.find_first_not_of('=', digit_count) != std::string_view::npos) return std::nullopt;
  uint64_t value = 0;
  for (const char c : text.substr(0, digit_count - 1)) {
    const int digit = base64_digit(c);
    if (digit < 0) return std::nullopt;
    value = value << 6 | static_cast<uint64_t>(digit);
  }
  // The last digit's lowest bits are beyond the integer.
  const int last = base64_digit(text[digit_count - 1]);
  const size_t extra_bits = digit_count * 6 - nbytes * 8;
  if (last < 0 || (last & ((1 << extra_bits) - 1)) != 0) return std::nullopt;
  return value << (6 - extra_bits) | static_cast<uint64_t>(last >> extra_bits);
}

}  // namespace

std::optional<Checksum> parse_s3_checksum(const HttpResponse& response) {
  struct Header {
    std::string_view name;
    ChecksumKind kind;
    size_t nbytes;
  };
  static constexpr Header kHeaders[] = {
      {"x-amz-checksum-crc32", ChecksumKind::kCrc32, 4},
      {"x-amz-checksum-crc32c", ChecksumKind::kCrc32c, 4},
      {"x-amz-checksum-crc64nvme", ChecksumKind::kCrc64Nvme, 8},
  };
  // Stores that know but one type do not name it.
  const std::string_view type = response.header("x-amz-checksum-type");
  if (!type.empty() && type != "FULL_OBJECT") return std::nullopt;
  for (const Header& header : kHeaders) {
    if (const auto value = parse_base64_integer(response.header(header.name), header.nbytes)) {
      return Checksum{header.kind, *value};
    }
  }
  return std::nullopt;
}

}  // namespace torchnpy
