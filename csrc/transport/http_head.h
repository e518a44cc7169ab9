// The head of an HTTP answer. Pure: text in, structs out.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "transport/http.h"

namespace torchnpy {

// The parts of a head that reads need, as views into its text; "" for what it lacks.
struct HttpHead {
  int status = 0;
  std::string_view reason;
  std::string_view content_encoding;
  std::string_view content_length;
  std::string_view content_range;
  std::string_view date;
  std::string_view etag;
  std::string_view last_modified;
  std::string_view location;
  std::string_view retry_after;
};

// `text` begins with the status line.
HttpHead parse_head(std::string_view text);

// All headers, names in lower case.
Headers parse_headers(std::string_view text);

// "bytes 0-99/1000", "bytes 0-99/*", "bytes */1000".
struct ContentRange {
  bool satisfied = false;  // has a first and a last byte
  uint64_t first = 0;
  uint64_t last = 0;  // at least `first`
  std::optional<uint64_t> total;
};
std::optional<ContentRange> parse_content_range(std::string_view text);

std::optional<uint64_t> parse_decimal(std::string_view text);

// "Sun, 06 Nov 1994 08:49:37 GMT" (RFC 9110, 5.6.7): seconds since 1970.
std::optional<int64_t> parse_http_date(std::string_view text);

// Seconds to wait: a number, or a date that is compared with the answer's own Date, so that the
// clocks need not agree. Never negative; empty when it is neither.
std::optional<double> parse_retry_after(std::string_view text, std::string_view date);

}  // namespace torchnpy
