#include "format/text_lines.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "format/number.h"
#include "format/text.h"

namespace torchnpy {
namespace {

bool is_line_end(char c) { return c == '\n' || c == '\r'; }

// `word` is not empty; mostly it is one byte.
bool begins_at(std::string_view text, size_t at, std::string_view word) {
  return at < text.size() && text[at] == word[0] &&
         (word.size() == 1 || text.substr(at, word.size()) == word);
}

// Blanks beyond ASCII begin with one of these.
bool may_begin_blank(uint8_t lead) {
  return lead == 0xC2 || lead == 0xE1 || lead == 0xE2 || lead == 0xE3;
}

bool is_blank(std::string_view mark) {
  return !mark.empty() && is_space(read_code_point(mark).value);
}

bool has_line_end(std::string_view mark) {
  return std::any_of(mark.begin(), mark.end(), is_line_end);
}

void check_marks(std::string_view delimiter, const std::vector<std::string>& comments,
                 std::string_view quote) {
  const auto refuse = [](std::string_view name, std::string_view expected, std::string_view found) {
    throw ArgumentError(
        fmt::format("{}: expected {} but found \"{}\"", name, expected, format_name(found)));
  };
  if (has_line_end(delimiter)) refuse("delimiter", "no line end", delimiter);
  if (has_line_end(quote)) refuse("quotechar", "no line end", quote);
  if (!quote.empty() && quote == delimiter) refuse("quotechar", "not the delimiter", quote);
  if (delimiter.empty() && is_blank(quote)) refuse("quotechar", "no blank, a delimiter", quote);
  for (const std::string& comment : comments) {
    if (comment.empty()) refuse("comments", "None for no comments", comment);
    if (has_line_end(comment)) refuse("comments", "no line end", comment);
    if (comment == delimiter) refuse("comments", "not the delimiter", comment);
    if (!quote.empty() && comment == quote) refuse("comments", "not the quotechar", comment);
    if (delimiter.empty() && is_blank(comment) && comment.size() == 1) {
      refuse("comments", "no blank, a delimiter", comment);
    }
  }
}

}  // namespace

size_t find_line_end(std::string_view text, bool is_last) {
  const size_t end = text.find_first_of("\r\n");
  if (end == std::string_view::npos) return is_last ? text.size() : 0;
  if (text[end] == '\n') return end + 1;
  // The other half of "\r\n" may still come.
  if (end + 1 == text.size()) return is_last ? end + 1 : 0;
  return text[end + 1] == '\n' ? end + 2 : end + 1;
}

LineSplitter::LineSplitter(std::string delimiter, std::vector<std::string> comments,
                           std::string quote)
    : delimiter_(std::move(delimiter)), comments_(std::move(comments)), quote_(std::move(quote)) {
  check_marks(delimiter_, comments_, quote_);
  const auto mark = [this](char c, Mark what) { marks_[static_cast<uint8_t>(c)] |= what; };
  for (const std::string& comment : comments_) mark(comment.front(), kComment);
  if (!delimiter_.empty()) mark(delimiter_.front(), kGap);
  for (unsigned c = 0; delimiter_.empty() && c < marks_.size(); ++c) {
    if (c < 0x80 ? is_space(c) : may_begin_blank(static_cast<uint8_t>(c))) marks_[c] |= kGap;
  }
  marks_['\n'] = kLineEnd;
  marks_['\r'] = kLineEnd;
}

size_t LineSplitter::split(std::string_view text, bool is_last,
                           std::vector<std::string_view>& fields) {
  fields.clear();
  unquoted_.clear();
  lines_ = 1;
  size_t at = 0;
  bool ends_empty = false;  // with a field that is
  while (true) {
    if (delimiter_.empty()) at = skip_blanks(text, at);
    const bool is_quoted = !quote_.empty() && begins_at(text, at, quote_);
    if (is_quoted) {
      at = read_quoted(text, at, fields);
    } else {
      const size_t end = find_field_end(text, at);
      fields.push_back(text.substr(at, end - at));
      at = end;
    }
    ends_empty = !is_quoted && fields.back().empty();
    if (at == text.size()) {
      if (!is_last) return 0;
      break;
    }
    if (ends_fields(text, at)) break;
    at += delimiter_.empty() ? blank_nbytes(text, at) : delimiter_.size();
  }
  if (ends_empty && (delimiter_.empty() || fields.size() == 1)) fields.pop_back();
  const size_t rest = find_line_end(text.substr(at), is_last);
  return at == text.size() ? at : rest == 0 ? 0 : at + rest;
}

size_t LineSplitter::blank_nbytes(std::string_view text, size_t at) const {
  if ((marks_at(text, at) & kGap) == 0) return 0;
  const CodePoint found = read_code_point(text.substr(at, 4));
  return is_space(found.value) ? found.nbytes : 0;
}

bool LineSplitter::is_comment(std::string_view text, size_t at) const {
  return std::any_of(comments_.begin(), comments_.end(),
                     [&](const std::string& comment) { return begins_at(text, at, comment); });
}

size_t LineSplitter::skip_blanks(std::string_view text, size_t at) const {
  while (at < text.size()) {
    const size_t nbytes = blank_nbytes(text, at);
    if (nbytes == 0 || begins_comment(text, at)) break;
    at += nbytes;
  }
  return at;
}

size_t LineSplitter::find_field_end(std::string_view text, size_t at) const {
  constexpr size_t kStep = 4;  // four bytes at once: most of the time goes here
  for (; at < text.size(); ++at) {
    while (text.size() - at > kStep && (marks_at(text, at) | marks_at(text, at + 1) |
                                        marks_at(text, at + 2) | marks_at(text, at + 3)) == 0) {
      at += kStep;
    }
    if (marks_at(text, at) == 0) continue;
    if (ends_fields(text, at)) break;
    if (delimiter_.empty() ? blank_nbytes(text, at) > 0 : begins_at(text, at, delimiter_)) break;
  }
  return at;
}

// Where the field ends. What follows the closing quote belongs to it, too.
size_t LineSplitter::read_quoted(std::string_view text, size_t at,
                                 std::vector<std::string_view>& fields) {
  std::string& field = unquoted_.emplace_back();
  at += quote_.size();
  while (true) {
    const size_t end = std::min(text.find(quote_, at), text.size());
    const std::string_view part = text.substr(at, end - at);
    lines_ += static_cast<uint64_t>(std::count(part.begin(), part.end(), '\n'));
    field.append(part);
    at = std::min(end + quote_.size(), text.size());
    if (at == text.size() || !begins_at(text, at, quote_)) break;
    field.append(quote_);
    at += quote_.size();
  }
  const size_t end = find_field_end(text, at);
  field.append(text.substr(at, end - at));
  fields.push_back(field);
  return end;
}

}  // namespace torchnpy
