#include "format/growing_header.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "base/error.h"
#include "format/text.h"

namespace torchnpy {
namespace {

// Python sees white space in both.
constexpr uint8_t kCurrent = ' ';
constexpr uint8_t kHasMore = '\t';

size_t preamble_nbytes(const NpyHeader& header) { return header.major == 1 ? 10 : 12; }

// As Python writes it, in the encoding of the header's version.
std::optional<std::string> encode_descr(const NpyHeader& header) {
  const bool is_literal = header.descr.starts_with('[') || header.descr.starts_with('(');
  std::string descr = is_literal ? header.descr : fmt::format("'{}'", header.descr);
  if (header.major == 3) return descr;
  return utf8_to_latin1(descr);
}

// A dict around its count: numpy's form, or without the blanks and with the keys in an order in
// which the slot's alignment takes less room.
struct Form {
  bool is_tight;
  std::string_view before;  // the bracket of the shape; D stands for the descr, F for the order
  std::string_view after;
};
constexpr Form kForms[] = {
    {false, "{'descr': D, 'fortran_order': F, 'shape': (", "), }"},
    {true, "{'descr':D,'fortran_order':F,'shape':(", ")}"},
    {true, "{'fortran_order':F,'shape':(", "),'descr':D}"},
    {true, "{'shape':(", "),'descr':D,'fortran_order':F}"},
};

std::string fill(std::string_view form, std::string_view descr, bool fortran_order) {
  std::string text;
  for (const char c : form) {
    if (c == 'D') {
      text += descr;
    } else if (c == 'F') {
      text += fortran_order ? "True" : "False";
    } else {
      text += c;
    }
  }
  return text;
}

// The dimensions other than the count, as they stand before or after it.
std::string format_others(const NpyHeader& header, bool is_tight) {
  const std::string_view comma = is_tight ? "," : ", ";
  const size_t axis = growing_axis(header);
  std::string text;
  for (size_t i = 0; i < header.shape.size(); ++i) {
    if (i == axis) continue;
    if (header.fortran_order) {
      text.append(std::to_string(header.shape[i])).append(comma);
    } else {
      text.append(comma).append(std::to_string(header.shape[i]));
    }
  }
  if (header.shape.size() == 1) text = ",";
  return text;
}

GrowingHeader begin_header(const NpyHeader& header, uint64_t nbytes) {
  GrowingHeader result;
  const uint64_t text_nbytes = nbytes - preamble_nbytes(header);
  result.bytes = "\x93NUMPY";
  result.bytes += static_cast<char>(header.major);
  result.bytes += static_cast<char>(header.minor);
  for (size_t i = result.bytes.size(); i < preamble_nbytes(header); ++i) {
    result.bytes += static_cast<char>(text_nbytes >> 8 * (i - 8));
  }
  return result;
}

GrowingHeader format_as(const Form& form, const NpyHeader& header, std::string_view descr,
                        uint64_t nbytes) {
  GrowingHeader result = begin_header(header, nbytes);
  std::string& bytes = result.bytes;
  const std::string others = format_others(header, form.is_tight);
  const bool is_last = header.fortran_order && header.shape.size() > 1;
  bytes += fill(form.before, descr, header.fortran_order);
  if (is_last) bytes += others;
  bytes.append(-bytes.size() % kCountSlotNbytes, ' ');
  result.slot_offset = bytes.size();
  const CountSlot slot = format_count({header.shape[growing_axis(header)], false});
  bytes.append(as_text(slot));
  if (!is_last) bytes += others;
  bytes += fill(form.after, descr, header.fortran_order);
  return result;
}

// Of the preamble and a dict of `text_nbytes`, padded as numpy does.
uint64_t padded_nbytes(const NpyHeader& header, uint64_t text_nbytes) {
  return (preamble_nbytes(header) + text_nbytes + 1) / kDataAlignment * kDataAlignment +
         kDataAlignment;
}

// What numpy takes for the header.
uint64_t numpy_nbytes(const NpyHeader& header, std::string_view descr) {
  const std::string text =
      fmt::format("{{'descr': {}, 'fortran_order': {}, 'shape': {}, }}", descr,
                  header.fortran_order ? "True" : "False", format_shape(header.shape));
  const std::string count = std::to_string(header.shape[growing_axis(header)]);
  return padded_nbytes(header, text.size() + kGrowthChars - count.size());
}

// Whether it means what it shall, also with rows in it.
bool is_right(const GrowingHeader& growing, const NpyHeader& header) {
  if (growing.bytes.size() > preamble_nbytes(header) + kMaxHeaderNbytes) return false;
  std::string with_row = growing.bytes;
  const CountSlot one = format_count({1, true});
  std::ranges::copy(one, with_row.begin() + static_cast<std::ptrdiff_t>(growing.slot_offset));
  try {
    const NpyHeader again = parse_npy_header(as_bytes(growing.bytes));
    parse_npy_header(as_bytes(with_row));
    return again.descr == header.descr && again.shape == header.shape &&
           again.fortran_order == header.fortran_order;
  } catch (const FormatError&) {
    return false;
  }
}

}  // namespace

CountSlot format_count(GrowingCount count) {
  CountSlot slot;
  slot.fill(' ');
  slot[0] = count.has_more ? kHasMore : kCurrent;
  size_t at = slot.size();
  do {
    slot[--at] = static_cast<uint8_t>('0' + count.rows % 10);
    count.rows /= 10;
  } while (count.rows > 0 && at > 1);
  return slot;
}

uint64_t row_nbytes(const NpyHeader& header) {
  uint64_t nbytes = header.dtype.itemsize;
  for (size_t i = 0; i < header.shape.size(); ++i) {
    if (i != growing_axis(header)) nbytes *= header.shape[i];  // checked when it was parsed
  }
  return nbytes;
}

bool has_growth_room(const NpyHeader& header) {
  if (header.shape.empty()) return false;
  const std::optional<std::string> descr = encode_descr(header);
  return descr && numpy_nbytes(header, *descr) <= header.data_offset &&
         format_growing_header(header, header.data_offset).has_value();
}

uint64_t growing_header_nbytes(const NpyHeader& header) {
  const std::string descr = encode_descr(header).value_or(header.descr);
  const uint64_t preamble = preamble_nbytes(header);
  const GrowingHeader wide = format_as(kForms[0], header, descr, 0);
  return std::max(numpy_nbytes(header, descr), padded_nbytes(header, wide.bytes.size() - preamble));
}

std::optional<GrowingHeader> format_growing_header(const NpyHeader& header, uint64_t nbytes) {
  const std::optional<std::string> descr = encode_descr(header);
  if (header.shape.empty() || !descr) return std::nullopt;
  if (header.shape[growing_axis(header)] > kMaxGrowingCount) return std::nullopt;
  for (const Form& form : kForms) {
    GrowingHeader growing = format_as(form, header, *descr, nbytes);
    if (growing.bytes.size() + 1 > nbytes) continue;
    growing.bytes.resize(nbytes - 1, ' ');
    growing.bytes += '\n';
    if (is_right(growing, header)) return growing;
    return std::nullopt;
  }
  return std::nullopt;
}

std::optional<FoundSlot> find_count_slot(const NpyHeader& header, ByteView bytes) {
  const auto growing = format_growing_header(header, header.data_offset);
  if (!growing || bytes.size() < growing->bytes.size()) return std::nullopt;
  FoundSlot found{growing->slot_offset, {header.shape[growing_axis(header)], false}};
  found.count.has_more = bytes[found.offset] == kHasMore;
  std::string expected = growing->bytes;
  const CountSlot slot = format_count(found.count);
  std::ranges::copy(slot, expected.begin() + static_cast<std::ptrdiff_t>(found.offset));
  if (as_text(bytes.first(expected.size())) != expected) return std::nullopt;
  return found;
}

}  // namespace torchnpy
