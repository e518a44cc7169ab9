#include "transport/http_head.h"

#include <strings.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <string>

namespace torchnpy {
namespace {

std::string_view trim_header(std::string_view text) {
  const auto is_blank = [](char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; };
  while (!text.empty() && is_blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_blank(text.back())) text.remove_suffix(1);
  return text;
}

// Calls `use(name, value)` for each header after the status line.
template <typename Use>
void for_each_header(std::string_view text, Use use) {
  text.remove_prefix(std::min(text.find('\n'), text.size() - 1) + 1);
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(line.size() + 1, text.size()));
    const size_t colon = line.find(':');
    if (colon != std::string_view::npos)
      use(line.substr(0, colon), trim_header(line.substr(colon + 1)));
  }
}

bool equal_ignoring_case(std::string_view a, std::string_view b) {
  return a.size() == b.size() && strncasecmp(a.data(), b.data(), a.size()) == 0;
}

struct KnownHeader {
  std::string_view name;
  std::string_view HttpHead::* member;
};
constexpr std::array kKnownHeaders = {
    KnownHeader{"content-encoding", &HttpHead::content_encoding},
    KnownHeader{"content-length", &HttpHead::content_length},
    KnownHeader{"content-range", &HttpHead::content_range},
    KnownHeader{"date", &HttpHead::date},
    KnownHeader{"etag", &HttpHead::etag},
    KnownHeader{"last-modified", &HttpHead::last_modified},
    KnownHeader{"location", &HttpHead::location},
    KnownHeader{"retry-after", &HttpHead::retry_after},
};

}  // namespace

std::string_view HttpResponse::header(std::string_view name) const {
  for (const auto& [key, value] : headers) {
    if (key == name) return value;
  }
  return {};
}

HttpHead parse_head(std::string_view text) {
  HttpHead head;
  const std::string_view line = trim_header(text.substr(0, text.find('\n')));
  const size_t space = line.find(' ');
  if (space != std::string_view::npos) {
    const std::string_view status = line.substr(space + 1, 3);
    std::from_chars(status.data(), status.data() + status.size(), head.status);
    head.reason = trim_header(line.substr(std::min(space + 1 + status.size(), line.size())));
  }
  bool is_chunked = false;
  for_each_header(text, [&](std::string_view name, std::string_view value) {
    is_chunked = is_chunked || equal_ignoring_case(name, "transfer-encoding");
    for (const KnownHeader& known : kKnownHeaders) {
      if (equal_ignoring_case(name, known.name)) head.*known.member = value;
    }
  });
  if (is_chunked) head.content_length = {};  // RFC 9112, 6.3
  return head;
}

Headers parse_headers(std::string_view text) {
  Headers headers;
  for_each_header(text, [&](std::string_view name, std::string_view value) {
    std::string key(name);
    for (char& c : key) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
    headers.emplace_back(std::move(key), value);
  });
  return headers;
}

std::optional<int64_t> parse_http_date(std::string_view text) {
  static constexpr std::string_view kMonths = "JanFebMarAprMayJunJulAugSepOctNovDec";
  int day = 0;
  int year = 0;
  int hour = 0;
  int minute = 0;
  int second = 0;
  char month[4] = {};
  const std::string copy(text);
  if (std::sscanf(copy.c_str(), "%*3s, %2d %3s %4d %2d:%2d:%2d GMT", &day, month, &year, &hour,
                  &minute, &second) != 6) {
    return std::nullopt;
  }
  const size_t at = kMonths.find(month);
  if (at == std::string_view::npos || at % 3 != 0) return std::nullopt;
  const std::chrono::year_month_day date{std::chrono::year(year),
                                         std::chrono::month(static_cast<unsigned>(at / 3 + 1)),
                                         std::chrono::day(static_cast<unsigned>(day))};
  if (!date.ok()) return std::nullopt;
  const int64_t days = std::chrono::sys_days(date).time_since_epoch().count();
  return ((days * 24 + hour) * 60 + minute) * 60 + second;
}

std::optional<uint64_t> parse_decimal(std::string_view text) {
  uint64_t value = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end) return std::nullopt;
  return value;
}

std::optional<ContentRange> parse_content_range(std::string_view text) {
  if (text.size() < 6 || !equal_ignoring_case(text.substr(0, 6), "bytes ")) return std::nullopt;
  text = trim_header(text.substr(6));
  const size_t slash = text.find('/');
  if (slash == std::string_view::npos) return std::nullopt;
  ContentRange range;
  const std::string_view total = text.substr(slash + 1);
  range.total = parse_decimal(total);
  if (!range.total && total != "*") return std::nullopt;
  const std::string_view span = text.substr(0, slash);
  if (span == "*") return range;
  const size_t dash = span.find('-');
  if (dash == std::string_view::npos) return std::nullopt;
  const std::optional<uint64_t> first = parse_decimal(span.substr(0, dash));
  const std::optional<uint64_t> last = parse_decimal(span.substr(dash + 1));
  if (!first || !last || *first > *last || (range.total && *last >= *range.total)) {
    return std::nullopt;
  }
  range.satisfied = true;
  range.first = *first;
  range.last = *last;
  return range;
}

std::optional<double> parse_retry_after(std::string_view text, std::string_view date) {
  if (const std::optional<uint64_t> seconds = parse_decimal(text)) {
    return static_cast<double>(*seconds);
  }
  const std::optional<int64_t> until = parse_http_date(text);
  if (!until) return std::nullopt;
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const int64_t from =
      parse_http_date(date).value_or(std::chrono::duration_cast<std::chrono::seconds>(now).count());
  return static_cast<double>(std::max<int64_t>(0, *until - from));
}

}  // namespace torchnpy
