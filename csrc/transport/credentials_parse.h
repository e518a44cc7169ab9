// What the services and programs that hand out credentials answer. Pure functions.
#pragma once

#include <chrono>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "transport/credentials.h"

namespace torchnpy {

// "2030-01-02T03:04:05Z"; also with a fraction of seconds, and +01:00 for Z. A time without a zone
// is UTC. Empty when it is no time.
std::optional<std::chrono::system_clock::time_point> parse_iso8601(std::string_view text);

// A JSON object with AccessKeyId, SecretAccessKey and Expiration; the session token's key is
// `token_key`. `source` begins messages, which never show what was parsed. Throws TransportError
// (kDenied).
Credentials parse_credentials_json(std::string_view text, const char* token_key,
                                   std::string_view source);
// The same of a credential_process, with "Version": 1.
Credentials parse_process_output(std::string_view text, std::string_view source);
// What a service says of its failure: "Code: Message" of a JSON object; "" when it says nothing.
std::string parse_json_error(std::string_view text);

// Words as Python's shlex.split() makes them: quotes and backslashes, and nothing else of a shell.
// Inside double quotes a backslash escapes only a double quote and a backslash. Throws
// ArgumentError for a quote that is not closed and for a backslash at the end.
std::vector<std::string> split_words(std::string_view command, std::string_view parameter);

}  // namespace torchnpy
