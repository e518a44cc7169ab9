// The Python literal that an NPY header is: one dict of strings, integers, booleans, None,
// tuples and lists, read as ast.literal_eval reads it. Syntax only; npy.cpp gives it meaning.
// Left out, since no header needs them: floats, complex numbers, bytes, sets, dicts inside
// the dict, `...` and the \N{name} escape.
#pragma once

#include <cstddef>
#include <cstdint>
#include <forward_list>
#include <new>
#include <string>
#include <string_view>
#include <utility>

namespace torchnpy {

struct Literal {
  enum class Kind : uint8_t {
    kString,
    kInteger,          // 0 to 2^64 - 1
    kOutsizedInteger,  // any other
    kTrue,
    kFalse,
    kNone,
    kTuple,
    kList,
    kDict,  // its items alternate: key, value, key, value
  };
  Kind kind = Kind::kNone;
  uint64_t integer = 0;
  std::string_view text;           // kString: the value, UTF-8
  std::string_view source;         // as it stands in the source, without parentheses around it
  size_t offset = 0;               // of `source` in the source
  const Literal* items = nullptr;  // containers: the first
  const Literal* next = nullptr;   // in the container that holds this
  size_t count = 0;                // of items
};

// Holds literals, and the strings that do not stand in the source as they are. Enough of them
// inside itself that the header of a plain array calls no allocator.
class LiteralArena {
 public:
  LiteralArena() = default;
  LiteralArena(const LiteralArena&) = delete;
  LiteralArena& operator=(const LiteralArena&) = delete;
  Literal* make() {
    if (used_ == kFirst) return &more_.emplace_front();
    return new (first_ + sizeof(Literal) * used_++) Literal{};
  }
  std::string_view keep(std::string text) { return texts_.emplace_front(std::move(text)); }

 private:
  static constexpr size_t kFirst = 24;
  alignas(Literal) std::byte first_[kFirst * sizeof(Literal)];
  size_t used_ = 0;
  std::forward_list<Literal> more_;
  std::forward_list<std::string> texts_;
};

struct LiteralRules {
  bool latin1 = false;  // the source is latin-1; else UTF-8, already validated
  bool longs = false;   // integers of Python 2, `3L`, are fine
};

// The brackets that may be open at once, as in Python's own tokenizer.
inline constexpr size_t kMaxLiteralDepth = 200;

// Parses source[start..] as one dict, with blanks and comments around it. What it returns
// lives in `arena`, and refers to `source`. Offsets count from source[0]. Throws FormatError.
const Literal& parse_literal_dict(std::string_view source, size_t start, LiteralRules rules,
                                  LiteralArena& arena);

// Throws FormatError: `expected` should stand where `found` does.
[[noreturn]] void throw_literal_error(std::string_view expected, const Literal& found);

}  // namespace torchnpy
