// Lines of text as fields, split as numpy.loadtxt() splits them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

namespace torchnpy {

// Bytes of the first line of `text`, its end included: "\n", "\r\n" or "\r". 0 when it goes on
// behind the text, which it cannot when that `is_last`.
size_t find_line_end(std::string_view text, bool is_last);

class LineSplitter {
 public:
  // `delimiter` is one code point, or empty for blanks, of which those around a line count for
  // nothing; `comments` begin what is ignored up to the line's end; a field that begins with
  // `quote`, a code point or empty, ends at the next one, but two of them stand for one. Throws
  // ArgumentError when they cannot be told from each other or from line ends.
  LineSplitter(std::string delimiter, std::vector<std::string> comments, std::string quote);

  // The fields of the first line of `text`, or of several where a line end is quoted; its bytes,
  // as find_line_end() counts them. The fields refer to `text` and to this. None for a line that
  // is empty but for a comment.
  size_t split(std::string_view text, bool is_last, std::vector<std::string_view>& fields);
  // Of the line that was split last: how many lines it has.
  uint64_t count_lines() const { return lines_; }

 private:
  // What a byte may begin; of most nothing.
  enum Mark : uint8_t { kLineEnd = 1, kComment = 2, kGap = 4 };  // kGap: a delimiter or a blank

  uint8_t marks_at(std::string_view text, size_t at) const {
    return marks_[static_cast<uint8_t>(text[at])];
  }
  // Bytes of the blank at `at`; 0 for none. Line ends are not.
  size_t blank_nbytes(std::string_view text, size_t at) const;
  bool is_comment(std::string_view text, size_t at) const;
  bool begins_comment(std::string_view text, size_t at) const {
    return (marks_at(text, at) & kComment) != 0 && is_comment(text, at);
  }
  // A line end or a comment.
  bool ends_fields(std::string_view text, size_t at) const {
    return (marks_at(text, at) & kLineEnd) != 0 || begins_comment(text, at);
  }
  size_t skip_blanks(std::string_view text, size_t at) const;
  size_t find_field_end(std::string_view text, size_t at) const;
  size_t read_quoted(std::string_view text, size_t at, std::vector<std::string_view>& fields);

  const std::string delimiter_;
  const std::vector<std::string> comments_;
  const std::string quote_;
  std::array<uint8_t, 256> marks_{};
  std::deque<std::string> unquoted_;  // fields that do not stand in the text as they are
  uint64_t lines_ = 1;
};

}  // namespace torchnpy
