// UTF-8, and pieces of a file in messages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace torchnpy {

// Where `text` first breaks UTF-8 (RFC 3629), or std::string_view::npos.
size_t find_invalid_utf8(std::string_view text);

// Appends a code point, which must be neither a surrogate nor above U+10FFFF.
void append_utf8(std::string& text, uint32_t code_point);

std::string latin1_to_utf8(std::string_view text);
// Empty where a character of `text`, which is UTF-8, is not latin-1.
std::optional<std::string> utf8_to_latin1(std::string_view text);

inline constexpr std::string_view kSaveAgain =
    "the header is not as NumPy writes it; save the array again";

// Throws FormatError("expected <expected> but found <found> at byte <offset>; <advice>").
[[noreturn]] void throw_format_error(std::string_view expected, std::string_view found,
                                     uint64_t offset, std::string_view advice = kSaveAgain);

// A piece of a file for a message: in backticks, printable ASCII, cut to 40 bytes.
std::string format_snippet(std::string_view text);

// A name in UTF-8 for a message: control characters escaped, cut to some 100 bytes.
std::string format_name(std::string_view name);

}  // namespace torchnpy
