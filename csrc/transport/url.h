// http(s) URLs, taken apart and put together (RFC 3986). Percent-encoding is left as it is.
#pragma once

#include <string>
#include <string_view>

namespace torchnpy {

struct Url {
  std::string scheme;    // "http" or "https"
  std::string userinfo;  // before the @; "" when there is none
  std::string host;      // lower case, with an IPv6 address's brackets
  std::string port;      // "" when it is not given
  std::string path;      // begins with a slash
  std::string query;     // begins with "?"; "" when there is none

  // The host, and the port where it is not the scheme's own: the Host header.
  std::string authority() const;
  // With the query, without the userinfo.
  std::string request() const;
  // For messages: neither query nor userinfo.
  std::string display() const;
  bool same_origin(const Url& other) const;
};

// Drops the fragment. Throws ArgumentError, without the URL's secrets.
Url parse_url(std::string_view text);

// What a Location header's `reference` means in an answer to `base` (RFC 3986, 5.2). Userinfo in it
// is dropped. Throws ArgumentError for another scheme than http and https, too.
Url resolve_reference(const Url& base, std::string_view reference);

// "%41" to "A"; a percent sign that begins no escape stays.
std::string percent_decode(std::string_view text);

}  // namespace torchnpy
