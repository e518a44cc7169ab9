#include "format/text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <iterator>

#include "base/error.h"
#include "base/text.h"

namespace torchnpy {
namespace {

uint8_t byte_at(std::string_view text, size_t i) { return static_cast<uint8_t>(text[i]); }

// Bytes of the UTF-8 sequence at `i`; 0 when it is not one.
size_t utf8_sequence_nbytes(std::string_view text, size_t i) {
  const uint8_t lead = byte_at(text, i);
  const size_t nbytes = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  const bool is_lead = lead < 0x80 || (lead >= 0xC2 && lead <= 0xF4);
  if (!is_lead || nbytes > text.size() - i) return 0;
  for (size_t k = 1; k < nbytes; ++k) {
    if ((byte_at(text, i + k) & 0xC0) != 0x80) return 0;
  }
  if (nbytes < 3) return nbytes;
  // Overlong forms, surrogates and what lies above U+10FFFF show in the second byte.
  const uint8_t second = byte_at(text, i + 1);
  const uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  return second >= low && second <= high ? nbytes : 0;
}

}  // namespace

size_t find_invalid_utf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    uint64_t word;
    if (text.size() - i >= sizeof(word)) {
      std::memcpy(&word, text.data() + i, sizeof(word));
      if ((word & 0x8080808080808080) == 0) {
        i += sizeof(word);
        continue;
      }
    }
    const size_t nbytes = utf8_sequence_nbytes(text, i);
    if (nbytes == 0) return i;
    i += nbytes;
  }
  return std::string_view::npos;
}

void append_utf8(std::string& text, uint32_t code_point) {
  const auto tail = [&](int shift) {
    text += static_cast<char>(0x80 | ((code_point >> shift) & 0x3F));
  };
  if (code_point < 0x80) {
    text += static_cast<char>(code_point);
  } else if (code_point < 0x800) {
    text += static_cast<char>(0xC0 | (code_point >> 6));
    tail(0);
  } else if (code_point < 0x10000) {
    text += static_cast<char>(0xE0 | (code_point >> 12));
    tail(6);
    tail(0);
  } else {
    text += static_cast<char>(0xF0 | (code_point >> 18));
    tail(12);
    tail(6);
    tail(0);
  }
}

std::string latin1_to_utf8(std::string_view text) {
  if (is_ascii(text)) return std::string(text);
  std::string utf8;
  for (const char c : text) append_utf8(utf8, static_cast<uint8_t>(c));
  return utf8;
}

std::optional<std::string> utf8_to_latin1(std::string_view text) {
  std::string latin1;
  latin1.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    const auto lead = static_cast<uint8_t>(text[i]);
    if (lead < 0x80) {
      latin1 += text[i];
    } else if (lead == 0xC2 || lead == 0xC3) {
      const auto tail = static_cast<uint8_t>(text[++i]);
      latin1 += static_cast<char>((lead & 3) << 6 | (tail & 0x3F));
    } else {
      return std::nullopt;
    }
  }
  return latin1;
}

void throw_format_error(std::string_view expected, std::string_view found, uint64_t offset,
                        std::string_view advice) {
  throw FormatError(
      fmt::format("expected {} but found {} at byte {}; {}", expected, found, offset, advice));
}

std::string format_snippet(std::string_view text) {
  constexpr size_t kMaxNbytes = 40;
  std::string snippet = "`";
  for (const char c : text.substr(0, kMaxNbytes)) {
    if (c >= ' ' && c <= '~') {
      snippet += c;
    } else {
      fmt::format_to(std::back_inserter(snippet), "\\x{:02x}", static_cast<uint8_t>(c));
    }
  }
  snippet += text.size() > kMaxNbytes ? "...`" : "`";
  return snippet;
}

std::string format_name(std::string_view name) {
  constexpr size_t kMaxNbytes = 100;
  std::string result;
  for (size_t i = 0; i < name.size(); ++i) {
    const auto byte = static_cast<uint8_t>(name[i]);
    const bool begins = byte < 0x80 || byte >= 0xC0;
    if (begins && i >= kMaxNbytes) return result + "...";
    // U+0080 to U+009F, too, control terminals.
    const bool is_c1 =
        byte == 0xC2 && i + 1 < name.size() && static_cast<uint8_t>(name[i + 1]) < 0xA0;
    if (byte < ' ' || byte == 0x7F) {
      fmt::format_to(std::back_inserter(result), "\\x{:02x}", byte);
    } else if (is_c1) {
      fmt::format_to(std::back_inserter(result), "\\x{:02x}", static_cast<uint8_t>(name[++i]));
    } else {
      result += name[i];
    }
  }
  return result;
}

}  // namespace torchnpy
