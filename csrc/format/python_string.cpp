#include "format/python_string.h"

#include <fmt/format.h>

#include "format/text.h"

namespace torchnpy {
namespace {

// Each takes the body, the place of the escape in it and of the body in the file, appends the
// character and returns where the escape ends.
size_t decode_hex(std::string_view body, size_t at, size_t offset, size_t digits,
                  std::string& text) {
  uint64_t code_point = 0;
  const size_t first = at + 2;
  for (size_t i = first; i < first + digits; ++i) {
    const uint32_t digit = i < body.size() ? digit_value(body[i]) : 16;
    if (digit >= 16) {
      throw_format_error(fmt::format("{} hexadecimal digits", digits),
                         format_snippet(body.substr(at, i + 1 - at)), offset + at);
    }
    code_point = code_point * 16 + digit;
  }
  const bool is_surrogate = code_point >= 0xD800 && code_point <= 0xDFFF;
  if (code_point > 0x10FFFF || is_surrogate) {
    throw_format_error("a Unicode character", format_snippet(body.substr(at, digits + 2)),
                       offset + at);
  }
  append_utf8(text, static_cast<uint32_t>(code_point));
  return first + digits;
}

size_t decode_escape(std::string_view body, size_t at, size_t offset, std::string& text) {
  const char c = body[at + 1];
  switch (c) {
    case '\n': return at + 2;
    case '\r': return at + (body.substr(at + 1, 2) == "\r\n" ? 3 : 2);
    case 'a': text += '\a'; return at + 2;
    case 'b': text += '\b'; return at + 2;
    case 'f': text += '\f'; return at + 2;
    case 'n': text += '\n'; return at + 2;
    case 'r': text += '\r'; return at + 2;
    case 't': text += '\t'; return at + 2;
    case 'v': text += '\v'; return at + 2;
    case '\\':
    case '\'':
    case '"': text += c; return at + 2;
    case 'x': return decode_hex(body, at, offset, 2, text);
    case 'u': return decode_hex(body, at, offset, 4, text);
    case 'U': return decode_hex(body, at, offset, 8, text);
    case 'N':
      throw_format_error("no character by its name", "`\\N`", offset + at,
                         "write the character itself or its \\u code");
    default: break;
  }
  if (digit_value(c) >= 8) {
    text += '\\';  // Python keeps the backslash of an escape that it does not know
    return at + 1;
  }
  uint32_t code_point = 0;
  size_t next = at + 1;
  for (; next < body.size() && next < at + 4 && digit_value(body[next]) < 8; ++next) {
    code_point = code_point * 8 + digit_value(body[next]);
  }
  append_utf8(text, code_point);
  return next;
}

}  // namespace

std::string decode_python_string(std::string_view body, size_t offset, PythonStringRules rules) {
  std::string text;
  for (size_t at = 0; at < body.size();) {
    const char c = body[at];
    if (c == '\\' && !rules.raw) {
      at = decode_escape(body, at, offset, text);
    } else if (c == '\r') {  // Python ends each line of a source with \n
      text += '\n';
      at += body.substr(at, 2) == "\r\n" ? 2 : 1;
    } else {
      if (rules.latin1) {
        append_utf8(text, static_cast<uint8_t>(c));
      } else {
        text += c;
      }
      ++at;
    }
  }
  return text;
}

}  // namespace torchnpy
