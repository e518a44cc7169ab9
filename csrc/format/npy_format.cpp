#include <fmt/format.h>

#include <limits>
#include <optional>

#include "base/error.h"
#include "format/npy.h"
#include "format/text.h"

namespace torchnpy {
namespace {

// Empty when the header is too long for the version.
std::optional<std::string> frame(std::string_view text, uint8_t major) {
  const size_t length_nbytes = major == 1 ? 2 : 4;
  const size_t before = 8 + length_nbytes;  // magic, version, length
  const size_t with_newline = before + text.size() + 1;
  // numpy pads what is aligned already, too.
  const size_t padding = kDataAlignment - with_newline % kDataAlignment;
  const uint64_t nbytes = text.size() + padding + 1;
  if (nbytes >
      (major == 1 ? std::numeric_limits<uint16_t>::max() : std::numeric_limits<uint32_t>::max())) {
    return std::nullopt;
  }
  std::string header = "\x93NUMPY";
  header.reserve(before + nbytes);
  header += static_cast<char>(major);
  header += '\0';
  for (size_t i = 0; i < length_nbytes; ++i) header += static_cast<char>(nbytes >> (8 * i));
  header.append(text).append(padding, ' ');
  return header += '\n';
}

}  // namespace

std::string format_npy_header(std::string_view descr, bool fortran_order,
                              const std::vector<uint64_t>& shape) {
  std::string text = fmt::format("{{'descr': {}, 'fortran_order': {}, 'shape': {}, }}", descr,
                                 fortran_order ? "True" : "False", format_shape(shape));
  if (!shape.empty()) {
    const uint64_t growing = fortran_order ? shape.back() : shape.front();
    text.append(kGrowthChars - std::to_string(growing).size(), ' ');
  }
  std::optional<std::string> header;
  if (const std::optional<std::string> latin1 = utf8_to_latin1(text)) {
    header = frame(*latin1, 1);
    if (!header) header = frame(*latin1, 2);
  } else {
    header = frame(text, 3);
  }
  if (header) return *std::move(header);
  throw ArgumentError(fmt::format(
      "expected a dtype whose header has less than 4 GiB but found {} bytes; save the fields as "
      "arrays of their own",
      text.size()));
}

}  // namespace torchnpy
