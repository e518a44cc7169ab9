#include "format/literal.h"

#include <fmt/format.h>

#include <array>
#include <cstring>
#include <optional>

#include "base/bytes.h"
#include "format/python_string.h"
#include "format/text.h"

namespace torchnpy {
namespace {

enum CharClass : uint8_t {
  kWord = 1,      // of names and numbers
  kOrdinary = 2,  // stands for itself in any string
  kBlank = 4,     // may begin what stands between two tokens
};

constexpr std::array<uint8_t, 256> kCharClasses = [] {
  std::array<uint8_t, 256> classes{};
  for (size_t c = 0; c < classes.size(); ++c) {
    const bool is_digit = c >= '0' && c <= '9';
    const bool is_letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (is_digit || is_letter || c == '_' || c >= 0x80) classes[c] |= kWord;
    const bool is_special = c == '\'' || c == '"' || c == '\\';
    if (c >= ' ' && c <= '~' && !is_special) classes[c] |= kOrdinary;
    const bool is_space = c == ' ' || c == '\t' || c == '\f' || c == '\n' || c == '\r';
    if (is_space || c == '#' || c == '\\') classes[c] |= kBlank;
  }
  return classes;
}();

bool is_word(char c) { return (kCharClasses[static_cast<uint8_t>(c)] & kWord) != 0; }
bool is_ordinary(char c) { return (kCharClasses[static_cast<uint8_t>(c)] & kOrdinary) != 0; }
bool is_newline(char c) { return c == '\n' || c == '\r'; }
bool is_quote(char c) { return c == '\'' || c == '"'; }

// The integer literals of Python 3: no leading zeros, single underscores between digits.
struct Integer {
  bool fits = true;  // into 64 bits
  uint64_t value = 0;
};
std::optional<Integer> parse_integer(std::string_view word) {
  uint32_t base = 10;
  if (word.size() > 2 && word[0] == '0') {
    const char mark = static_cast<char>(word[1] | 0x20);
    base = mark == 'x' ? 16 : mark == 'o' ? 8 : mark == 'b' ? 2 : 10;
  }
  if (base != 10) word.remove_prefix(word[2] == '_' ? 3 : 2);
  if (word.empty() || word.back() == '_') return std::nullopt;
  Integer integer;
  bool after_digit = false;
  for (const char c : word) {
    if (c == '_' && after_digit) {
      after_digit = false;
      continue;
    }
    const uint32_t digit = digit_value(c);
    if (digit >= base) return std::nullopt;
    after_digit = true;
    integer.fits = integer.fits && checked_multiply(integer.value, base, &integer.value) &&
                   checked_add(integer.value, digit, &integer.value);
  }
  const bool leading_zero = base == 10 && word[0] == '0' && (integer.value != 0 || !integer.fits);
  if (leading_zero) return std::nullopt;
  return integer;
}

class Parser {
 public:
  Parser(std::string_view source, size_t start, LiteralRules rules, LiteralArena& arena)
      : source_(source), start_(start), position_(start), rules_(rules), arena_(arena) {}

  const Literal& parse() {
    check_no_nul();
    skip_blanks();
    check_indent();
    size_t parentheses = 0;
    while (next_is('(')) {
      open_bracket();
      ++parentheses;
      skip_blanks();
    }
    if (!next_is('{')) fail("a dict");
    const Literal* dict = parse_dict();
    for (; parentheses > 0; --parentheses) {
      skip_blanks();
      if (!next_is(')')) fail("`)`");
      close_bracket();
    }
    skip_blanks();
    if (position_ != source_.size()) fail("the end of the header");
    return *dict;
  }

 private:
  // Python's compiler refuses it everywhere, comments and strings included.
  void check_no_nul() {
    const std::string_view text = source_.substr(start_);
    const void* nul = std::memchr(text.data(), 0, text.size());
    if (nul == nullptr) return;
    position_ = static_cast<size_t>(static_cast<const char*>(nul) - source_.data());
    fail("text");
  }

  // Blanks at the front of the first line are stripped by ast.literal_eval; on a later line
  // they are an unexpected indent.
  void check_indent() {
    const std::string_view skipped = source_.substr(start_, position_ - start_);
    if (skipped.find_first_of("\r\n") == std::string_view::npos) return;
    if (skipped.back() == ' ' || skipped.back() == '\t') fail("a dict at the start of its line");
  }

  // The next byte; NUL, which the source does not hold, at the end.
  char peek(size_t ahead = 0) const {
    return ahead < source_.size() - position_ ? source_[position_ + ahead] : '\0';
  }
  bool next_is(char c) const { return peek() == c; }
  bool next_is_string() const {
    switch (peek()) {
      case '\'':
      case '"': return true;
      case 'u':
      case 'U':
      case 'r':
      case 'R': return is_quote(peek(1));
      default: return false;
    }
  }

  [[noreturn]] void fail(std::string_view expected) const {
    if (position_ >= source_.size())
      throw_format_error(expected, "the end of the header", position_);
    size_t end = position_;
    while (end < source_.size() && (is_word(source_[end]) || source_[end] == '.')) ++end;
    const size_t length = end == position_ ? 1 : end - position_;
    throw_format_error(expected, format_snippet(source_.substr(position_, length)), position_);
  }

  void skip_comment() {
    while (position_ < source_.size() && !is_newline(source_[position_])) ++position_;
  }

  // A backslash that joins two lines.
  void skip_joined_line() {
    const size_t after = position_ + 1;
    if (after >= source_.size() || !is_newline(source_[after])) fail("a literal");
    position_ = after + (source_.substr(after, 2) == "\r\n" ? 2 : 1);
    if (position_ >= source_.size()) fail("a line after the backslash");
  }

  void skip_blanks() {
    if (next_is(' ')) ++position_;
    if ((kCharClasses[static_cast<uint8_t>(peek())] & kBlank) != 0) skip_more_blanks();
  }

  void skip_more_blanks() {
    for (; position_ < source_.size(); ++position_) {
      switch (source_[position_]) {
        case ' ':
        case '\t':
        case '\f':
        case '\n':
        case '\r': continue;
        case '#':
          skip_comment();
          --position_;
          continue;
        case '\\':
          skip_joined_line();
          --position_;
          continue;
        default: return;
      }
    }
  }

  void open_bracket() {
    if (++depth_ > kMaxLiteralDepth) {
      throw_format_error(fmt::format("at most {} nested brackets", kMaxLiteralDepth), "one more",
                         position_);
    }
    ++position_;
  }
  void close_bracket() {
    --depth_;
    ++position_;
  }

  Literal* make_literal(Literal::Kind kind, size_t begin, size_t end) {
    Literal* literal = arena_.make();
    literal->kind = kind;
    set_source(literal, begin, end);
    return literal;
  }
  void set_source(Literal* literal, size_t begin, size_t end) const {
    literal->source = source_.substr(begin, end - begin);
    literal->offset = begin;
  }

  // Adds items to a container, in order.
  struct Appender {
    Literal* container;
    Literal* last = nullptr;
    void append(Literal* item) {
      (last == nullptr ? container->items : last->next) = item;
      last = item;
      ++container->count;
    }
  };

  const Literal* parse_dict() {
    Literal* dict = make_literal(Literal::Kind::kDict, position_, position_);
    Appender items{dict};
    open_bracket();
    skip_blanks();
    while (!next_is('}')) {
      items.append(parse_value());
      skip_blanks();
      if (!next_is(':')) fail("`:`");
      ++position_;
      skip_blanks();
      items.append(parse_value());
      skip_blanks();
      if (next_is('}')) break;
      if (!next_is(',')) fail("`,` or `}`");
      ++position_;
      skip_blanks();
    }
    close_bracket();
    set_source(dict, dict->offset, position_);
    return dict;
  }

  Literal* parse_value() {
    switch (peek()) {
      case '(': return parse_sequence(Literal::Kind::kTuple, ')');
      case '[': return parse_sequence(Literal::Kind::kList, ']');
      case '+':
      case '-': return parse_signed();
      case '\0': fail("a value");
      default: break;
    }
    if (digit_value(peek()) < 10) return parse_unsigned();
    if (next_is_string()) return parse_string();
    return parse_name();
  }

  Literal* parse_sequence(Literal::Kind kind, char closing) {
    Literal* sequence = make_literal(kind, position_, position_);
    Appender items{sequence};
    bool has_comma = false;
    open_bracket();
    skip_blanks();
    while (!next_is(closing)) {
      items.append(parse_value());
      skip_blanks();
      if (next_is(closing)) break;
      if (!next_is(',')) fail(closing == ')' ? "`,` or `)`" : "`,` or `]`");
      has_comma = true;
      ++position_;
      skip_blanks();
    }
    close_bracket();
    set_source(sequence, sequence->offset, position_);
    const bool is_parenthesised = kind == Literal::Kind::kTuple && items.last && !has_comma;
    return is_parenthesised ? items.last : sequence;
  }

  Literal* parse_name() {
    size_t end = position_;
    while (end < source_.size() && (is_word(source_[end]) || source_[end] == '.')) ++end;
    const std::string_view name = source_.substr(position_, end - position_);
    Literal::Kind kind;
    if (name == "True") {
      kind = Literal::Kind::kTrue;
    } else if (name == "False") {
      kind = Literal::Kind::kFalse;
    } else if (name == "None") {
      kind = Literal::Kind::kNone;
    } else {
      fail("a string, an integer, True, False, None, a tuple or a list");
    }
    Literal* literal = make_literal(kind, position_, end);
    position_ = end;
    return literal;
  }

  // Python allows one sign, and parentheses after it.
  Literal* parse_signed() {
    const size_t begin = position_;
    const bool is_negative = source_[position_++] == '-';
    skip_blanks();
    size_t parentheses = 0;
    for (; next_is('('); ++parentheses) {
      open_bracket();
      skip_blanks();
    }
    if (digit_value(peek()) >= 10) fail("an integer");
    Literal* literal = parse_unsigned();
    for (; parentheses > 0; --parentheses) {
      skip_blanks();
      if (!next_is(')')) fail("`)`");
      close_bracket();
    }
    if (is_negative && literal->integer != 0) literal->kind = Literal::Kind::kOutsizedInteger;
    set_source(literal, begin, position_);
    return literal;
  }

  Literal* parse_unsigned() {
    // The usual one: few enough decimal digits that they fit.
    size_t digits = position_;
    uint64_t value = 0;
    for (; digits < source_.size() && digits < position_ + 18; ++digits) {
      const uint32_t digit = static_cast<uint32_t>(source_[digits] - '0');
      if (digit > 9) break;
      value = value * 10 + digit;
    }
    const bool is_usual = source_[position_] != '0' && digits < source_.size() &&
                          (source_[digits] == ',' || source_[digits] == ')');
    if (is_usual) {
      Literal* literal = make_literal(Literal::Kind::kInteger, position_, digits);
      literal->integer = value;
      position_ = digits;
      return literal;
    }
    return parse_unusual_unsigned();
  }

  Literal* parse_unusual_unsigned() {
    size_t end = position_;
    while (end < source_.size() && (is_word(source_[end]) || source_[end] == '.')) ++end;
    std::string_view word = source_.substr(position_, end - position_);
    if (rules_.longs && word.back() == 'L') word.remove_suffix(1);
    const std::optional<Integer> integer = parse_integer(word);
    if (!integer) fail("an integer");
    Literal* literal = make_literal(
        integer->fits ? Literal::Kind::kInteger : Literal::Kind::kOutsizedInteger, position_, end);
    literal->integer = integer->value;
    position_ = end;
    if (rules_.longs) skip_long_marks();
    return literal;
  }

  // numpy drops each word `L` that follows an integer in its line, blanks between or not.
  void skip_long_marks() {
    for (size_t at = position_; at < source_.size(); ++at) {
      const char c = source_[at];
      if (c == 'L' && (at + 1 >= source_.size() || !is_word(source_[at + 1]))) {
        position_ = at + 1;
      } else if (c == '\\' && at + 1 < source_.size() && is_newline(source_[at + 1])) {
        at += source_.substr(at + 1, 2) == "\r\n" ? 2 : 1;
      } else if (c != ' ' && c != '\t' && c != '\f') {
        return;
      }
    }
  }

  // Strings that follow each other are one.
  Literal* parse_string() {
    const size_t begin = position_;
    std::string_view text = read_string();
    size_t end = position_;
    for (skip_blanks(); next_is_string(); skip_blanks()) {
      text = arena_.keep(std::string(text).append(read_string()));
      end = position_;
    }
    Literal* literal = make_literal(Literal::Kind::kString, begin, end);
    literal->text = text;
    return literal;
  }

  void skip_ordinary() {
    size_t at = position_;
    while (at < source_.size() && is_ordinary(source_[at])) ++at;
    position_ = at;
  }

  // One string token. The body is a view of the source where it stands there as it is.
  std::string_view read_string() {
    const char prefix = source_[position_];
    const bool is_raw = prefix == 'r' || prefix == 'R';
    if (!is_quote(prefix)) ++position_;
    const char quote = source_[position_];
    const bool is_triple = position_ + 2 < source_.size() && source_[position_ + 1] == quote &&
                           source_[position_ + 2] == quote;
    const size_t quote_length = is_triple ? 3 : 1;
    const size_t opening = position_;
    position_ += quote_length;
    const size_t body = position_;
    bool is_plain = true;
    for (;; ++position_) {
      skip_ordinary();
      if (position_ >= source_.size() || (!is_triple && is_newline(source_[position_]))) {
        const std::string opened = format_snippet(source_.substr(opening));
        throw_format_error(fmt::format("`{}` to end the string {}", quote, opened),
                           position_ >= source_.size() ? "the end of the header" : "a new line",
                           position_);
      }
      const char c = source_[position_];
      if (c == '\\') {
        is_plain = false;
        position_ += source_.substr(position_ + 1, 2) == "\r\n" ? 2 : 1;
      } else if (c == '\r' || (rules_.latin1 && static_cast<unsigned char>(c) >= 0x80)) {
        is_plain = false;
      } else if (c == quote &&
                 (!is_triple || (source_.substr(position_, 3) == source_.substr(opening, 3)))) {
        break;
      }
    }
    const size_t end = position_;
    position_ += quote_length;
    const std::string_view text = source_.substr(body, end - body);
    if (is_plain) return text;
    return arena_.keep(decode_python_string(text, body, {is_raw, rules_.latin1}));
  }

  std::string_view source_;
  size_t start_;
  size_t position_;
  size_t depth_ = 0;
  LiteralRules rules_;
  LiteralArena& arena_;
};

}  // namespace

void throw_literal_error(std::string_view expected, const Literal& found) {
  throw_format_error(expected, format_snippet(found.source), found.offset);
}

const Literal& parse_literal_dict(std::string_view source, size_t start, LiteralRules rules,
                                  LiteralArena& arena) {
  return Parser(source, start, rules, arena).parse();
}

}  // namespace torchnpy
