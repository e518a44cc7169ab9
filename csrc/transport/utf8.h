// Text for messages that a server sent.
#pragma once

#include <cstddef>
#include <string_view>

namespace torchnpy {

// The first bytes of `text`, at most `max_nbytes`, without a part of a UTF-8 character at the end:
// Python takes messages for UTF-8.
inline std::string_view cut_utf8(std::string_view text, size_t max_nbytes) {
  if (text.size() <= max_nbytes) return text;
  const auto continues = [&](size_t at) {
    return (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80;
  };
  size_t end = max_nbytes;
  while (end > 0 && continues(end)) --end;
  // A character has at most three such bytes: with more of them it is not UTF-8.
  return text.substr(0, max_nbytes - end > 3 ? max_nbytes : end);
}

}  // namespace torchnpy
