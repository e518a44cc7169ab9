#include "transport/words.h"

#include "transport/utf8.h"

namespace torchnpy {

std::string clean_words(std::string_view text) {
  constexpr size_t kMaxNbytes = 300;
  std::string result;
  bool in_query = false;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    const bool is_blank = byte <= ' ' || byte == 0x7F;
    if (is_blank || c == '"' || c == '\'' || c == '<' || c == ')') in_query = false;
    if (in_query || (is_blank && (result.empty() || result.back() == ' '))) continue;
    in_query = c == '?';
    result += is_blank ? ' ' : c;
    if (const size_t scheme = result.rfind("://");
        c == '@' && scheme != std::string::npos &&
        result.find_first_of(" /", scheme + 3) == std::string::npos) {
      result.erase(scheme + 3);
    }
    if (result.size() > kMaxNbytes) break;
  }
  result = cut_utf8(result, kMaxNbytes);
  if (result.ends_with(' ')) result.pop_back();
  return result;
}

}  // namespace torchnpy
