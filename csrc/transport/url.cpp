#include "transport/url.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "base/error.h"
#include "base/text.h"

namespace torchnpy {
namespace {

bool is_scheme(std::string_view text) {
  const auto is_letter = [](char c) { return (c | 32) >= 'a' && (c | 32) <= 'z'; };
  return !text.empty() && is_letter(text[0]) && std::all_of(text.begin(), text.end(), [&](char c) {
    return is_letter(c) || (c >= '0' && c <= '9') || c == '+' || c == '-' || c == '.';
  });
}

// Empty when the reference is relative.
std::string_view scheme_of(std::string_view reference) {
  const size_t colon = reference.find(':');
  if (colon == std::string_view::npos || !is_scheme(reference.substr(0, colon))) return {};
  return reference.substr(0, colon);
}

void split_target(std::string_view target, Url* url) {
  target = target.substr(0, target.find('#'));
  const size_t question = target.find('?');
  url->path = target.substr(0, question);
  if (url->path.empty()) url->path = "/";
  url->query = question == std::string_view::npos ? "" : target.substr(question);
}

void split_authority(std::string_view authority, Url* url) {
  const size_t at = authority.rfind('@');
  if (at != std::string_view::npos) {
    url->userinfo = authority.substr(0, at);
    authority.remove_prefix(at + 1);
  }
  const size_t bracket = authority.rfind(']');
  const size_t colon = authority.find(':', bracket == std::string_view::npos ? 0 : bracket);
  url->host = lower(authority.substr(0, colon));
  if (colon != std::string_view::npos) url->port = authority.substr(colon + 1);
  unsigned port = 1;
  const char* const end = url->port.data() + url->port.size();
  if (!url->port.empty()) {
    const auto [stop, error] = std::from_chars(url->port.data(), end, port);
    if (error != std::errc() || stop != end || port == 0 || port > 65535) {
      // Not shown: with a slash in a password it is a part of that.
      throw ArgumentError("expected a port from 1 to 65535 in the URL but found another text");
    }
  }
  if (url->host.empty()) throw ArgumentError("expected a host in the URL but found none");
}

// RFC 3986, 5.2.4.
std::string remove_dot_segments(std::string_view path) {
  std::string result;
  while (!path.empty()) {
    const std::string_view segment = path.substr(0, path.find('/', 1));
    path.remove_prefix(segment.size());
    if (segment == "/.." || segment == "/.") {
      if (segment == "/..") result.erase(std::min(result.rfind('/'), result.size()));
      if (path.empty()) result += '/';
    } else {
      result += segment;
    }
  }
  return result;
}

std::string_view effective_port(const Url& url) {
  if (!url.port.empty()) return url.port;
  return url.scheme == "https" ? "443" : "80";
}

}  // namespace

std::string Url::authority() const {
  const bool has_port = effective_port(*this) != (scheme == "https" ? "443" : "80");
  return host + (has_port ? ":" : "") + (has_port ? port : "");
}

std::string Url::request() const {
  return scheme + "://" + host + (port.empty() ? "" : ":") + port + path + query;
}

std::string Url::display() const {
  return scheme + "://" + host + (port.empty() ? "" : ":") + port + path;
}

bool Url::same_origin(const Url& other) const {
  return scheme == other.scheme && host == other.host &&
         effective_port(*this) == effective_port(other);
}

Url parse_url(std::string_view text) {
  for (size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte <= ' ' || byte == 0x7F) {
      throw ArgumentError(fmt::format(
          "expected a URL without spaces and control characters but found 0x{:02X} at byte {}; "
          "percent-encode it",
          byte, i));
    }
  }
  Url url;
  url.scheme = lower(scheme_of(text));
  const std::string_view rest = text.substr(url.scheme.size());
  if ((url.scheme != "http" && url.scheme != "https") || !rest.starts_with("://")) {
    throw ArgumentError("expected a URL that begins with http:// or https:// but found \"" +
                        url.scheme + "\"");
  }
  const size_t end = std::min(rest.find_first_of("/?#", 3), rest.size());
  split_authority(rest.substr(3, end - 3), &url);
  split_target(rest.substr(end), &url);
  return url;
}

Url resolve_reference(const Url& base, std::string_view reference) {
  std::string encoded;  // servers send raw spaces and UTF-8
  for (const char c : reference) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte == ' ' || byte >= 0x80) {
      encoded += fmt::format("%{:02X}", byte);
    } else {
      encoded += c;
    }
  }
  Url url = base;
  if (!scheme_of(encoded).empty()) {
    url = parse_url(encoded);
  } else if (encoded.starts_with("//")) {
    url = parse_url(base.scheme + ":" + encoded);
  } else {
    const std::string origin =
        base.scheme + "://" + base.host + (base.port.empty() ? "" : ":") + base.port;
    if (encoded.starts_with('/')) {
      url = parse_url(origin + encoded);
    } else if (encoded.starts_with('?')) {
      url = parse_url(origin + base.path + encoded);
    } else if (!encoded.empty() && !encoded.starts_with('#')) {
      url = parse_url(origin + base.path.substr(0, base.path.rfind('/') + 1) + encoded);
      url.path = remove_dot_segments(url.path);
    }
  }
  url.userinfo.clear();
  return url;
}

std::string percent_decode(std::string_view text) {
  std::string result;
  for (size_t i = 0; i < text.size(); ++i) {
    unsigned value = 0;
    if (text[i] == '%' && text.size() - i > 2) {
      const char* const digits = text.data() + i + 1;
      if (std::from_chars(digits, digits + 2, value, 16).ptr == digits + 2) {
        result += static_cast<char>(value);
        i += 2;
        continue;
      }
    }
    result += text[i];
  }
  return result;
}

}  // namespace torchnpy
