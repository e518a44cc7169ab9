#include "transport/credentials_parse.h"

#include <fmt/format.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/text.h"
#include "transport/words.h"

namespace torchnpy {
namespace {

using Json = nlohmann::json;

[[noreturn]] void fail(std::string_view source, std::string_view problem) {
  throw TransportError(fmt::format("{}: {}", source, problem), TransportError::Kind::kDenied);
}

Json parse_object(std::string_view text, std::string_view source) {
  // The library's own message shows the text.
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) fail(source, "expected a JSON object but found something else");
  return json;
}

// "" when it is missing or null.
std::string find_text(const Json& json, const char* key, std::string_view source) {
  const auto found = json.find(key);
  if (found == json.end() || found->is_null()) return {};
  if (!found->is_string()) fail(source, fmt::format("expected a string as {}", key));
  return found->get<std::string>();
}

Credentials read_credentials(const Json& json, const char* token_key, std::string_view source) {
  Credentials credentials;
  credentials.access_key_id = find_text(json, "AccessKeyId", source);
  credentials.secret_access_key = find_text(json, "SecretAccessKey", source);
  credentials.session_token = find_text(json, token_key, source);
  for (const auto& [key, value] : {std::pair{"AccessKeyId", &credentials.access_key_id},
                                   std::pair{"SecretAccessKey", &credentials.secret_access_key}}) {
    if (value->empty()) fail(source, fmt::format("expected {} in the JSON but found none", key));
  }
  const std::string expiration = find_text(json, "Expiration", source);
  if (expiration.empty()) return credentials;
  credentials.expiration = parse_iso8601(expiration);
  if (!credentials.expiration) fail(source, "expected an ISO 8601 time as Expiration");
  return credentials;
}

}  // namespace

std::optional<std::chrono::system_clock::time_point> parse_iso8601(std::string_view text) {
  const std::string copy(text);
  int year = 0;
  unsigned month = 0;
  unsigned day = 0;
  int hour = 0;
  int minute = 0;
  int second = 0;
  int used = 0;
  char separator = 0;
  if (std::sscanf(copy.c_str(), "%4d-%2u-%2u%c%2d:%2d:%2d%n", &year, &month, &day, &separator,
                  &hour, &minute, &second, &used) != 7 ||
      (separator != 'T' && separator != ' ')) {
    return std::nullopt;
  }
  const std::chrono::year_month_day date{std::chrono::year(year), std::chrono::month(month),
                                         std::chrono::day(day)};
  if (!date.ok() || hour < 0 || hour > 23 || minute < 0 || minute > 59 || second < 0 ||
      second > 60) {
    return std::nullopt;
  }
  std::string_view rest = text.substr(static_cast<size_t>(used));
  if (rest.starts_with('.')) {
    rest.remove_prefix(1);
    while (!rest.empty() && is_digit(rest[0])) rest.remove_prefix(1);
  }
  int offset_minutes = 0;
  if (rest == "Z" || rest == "z") rest = {};
  if (!rest.empty()) {
    int hours = 0;
    int minutes = 0;
    char sign = 0;
    const std::string zone(rest);
    if (std::sscanf(zone.c_str(), "%c%2d:%2d", &sign, &hours, &minutes) != 3 &&
        std::sscanf(zone.c_str(), "%c%2d%2d", &sign, &hours, &minutes) != 3) {
      return std::nullopt;
    }
    if ((sign != '+' && sign != '-') || hours > 23 || minutes > 59) return std::nullopt;
    offset_minutes = (hours * 60 + minutes) * (sign == '-' ? -1 : 1);
  }
  return std::chrono::sys_days(date) + std::chrono::hours(hour) +
         std::chrono::minutes(minute - offset_minutes) + std::chrono::seconds(second);
}

Credentials parse_credentials_json(std::string_view text, const char* token_key,
                                   std::string_view source) {
  return read_credentials(parse_object(text, source), token_key, source);
}

Credentials parse_process_output(std::string_view text, std::string_view source) {
  const Json json = parse_object(text, source);
  const auto version = json.find("Version");
  if (version == json.end() || !version->is_number_integer() || *version != 1) {
    fail(source, "expected \"Version\": 1 in the JSON but found another or none");
  }
  return read_credentials(json, "SessionToken", source);
}

std::string parse_json_error(std::string_view text) {
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return {};
  std::string words;
  for (const char* const key : {"Code", "code", "Message", "message"}) {
    const auto found = json.find(key);
    if (found == json.end() || !found->is_string()) continue;
    if (!words.empty()) words += ": ";
    words += found->get<std::string>();
  }
  return clean_words(words);
}

std::vector<std::string> split_words(std::string_view command, std::string_view parameter) {
  std::vector<std::string> words;
  char quote = 0;
  bool in_word = false;
  for (size_t i = 0; i < command.size(); ++i) {
    const char c = command[i];
    const bool is_blank = c == ' ' || c == '\t' || c == '\n' || c == '\r';
    if (quote == 0 && is_blank) {
      in_word = false;
      continue;
    }
    if (!std::exchange(in_word, true)) words.emplace_back();
    if (c == quote) {
      quote = 0;
    } else if (quote == 0 && (c == '\'' || c == '"')) {
      quote = c;
    } else if (c == '\\' && quote != '\'') {
      if (++i == command.size()) {
        throw ArgumentError(fmt::format(
            "{}: expected a character after the backslash at its end but found none", parameter));
      }
      const bool escapes = quote == 0 || command[i] == '"' || command[i] == '\\';
      if (!escapes) words.back() += c;
      words.back() += command[i];
    } else {
      words.back() += c;
    }
  }
  if (quote != 0) {
    throw ArgumentError(fmt::format("{}: expected a closing {} but found none", parameter, quote));
  }
  return words;
}

}  // namespace torchnpy
