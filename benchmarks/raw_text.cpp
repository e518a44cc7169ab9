// The limit of benchmarks/text.py: numbers to text and back by the standard library, in memory. The
// shape is given, one blank stands between numbers, nothing is checked. Called through ctypes.
#include <charconv>
#include <cstdint>

// Prints count doubles as %.18e, `columns` a line; the bytes of the text.
extern "C" uint64_t print_numbers(const double* values, uint64_t count, uint64_t columns,
                                  char* text, uint64_t nbytes) {
  constexpr int kPrecision = 18;
  char* at = text;
  for (uint64_t i = 0; i < count; ++i) {
    at = std::to_chars(at, text + nbytes, values[i], std::chars_format::scientific, kPrecision).ptr;
    *at++ = (i + 1) % columns == 0 ? '\n' : ' ';
  }
  return static_cast<uint64_t>(at - text);
}

// Reads count doubles.
extern "C" void parse_numbers(const char* text, uint64_t nbytes, double* values, uint64_t count) {
  const char* at = text;
  for (uint64_t i = 0; i < count; ++i) {
    at = std::from_chars(at, text + nbytes, values[i]).ptr + 1;
  }
}
