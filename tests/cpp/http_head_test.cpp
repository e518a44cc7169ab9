#include "transport/http_head.h"

#include <gtest/gtest.h>

#include <string>

#include "base/error.h"
#include "transport/url.h"

namespace torchnpy {
namespace {

TEST(HttpHead, KnownHeadersAreFoundInAnyCase) {
  const HttpHead head = parse_head(
      "HTTP/1.1 206 Partial Content\r\nCONTENT-range:bytes 0-9/10\r\nETag:  \"a b\" \r\n"
      "X-Etag: no\r\nbroken line\r\nContent-Length: 10\r\n\r\n");
  EXPECT_EQ(head.status, 206);
  EXPECT_EQ(head.reason, "Partial Content");
  EXPECT_EQ(head.content_range, "bytes 0-9/10");
  EXPECT_EQ(head.etag, "\"a b\"");
  EXPECT_EQ(head.content_length, "10");
  EXPECT_EQ(head.location, "");
}

TEST(HttpHead, LengthOfAChunkedBodyDoesNotCount) {
  const HttpHead head =
      parse_head("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nContent-Length: 10\r\n\r\n");
  EXPECT_EQ(head.content_length, "");
}

TEST(HttpHead, StrangeStatusLinesAreNoStatus) {
  for (const char* text : {"", "HTTP/1.1", "HTTP/1.1 ", "HTTP/1.1 abc\r\n\r\n", "\r\n"}) {
    EXPECT_EQ(parse_head(text).status, 0) << text;
  }
  EXPECT_EQ(parse_head("HTTP/2 200\r\n\r\n").status, 200);
}

TEST(HttpHead, HeadersComeInLowerCase) {
  const std::string text =
      "HTTP/1.1 200 OK\r\nDate: now\r\nX-Amz-Id: 1\r\nServer: x\r\nX-Am: 2\r\n\r\n";
  EXPECT_EQ(parse_headers(text),
            (Headers{{"date", "now"}, {"x-amz-id", "1"}, {"server", "x"}, {"x-am", "2"}}));
}

std::string show(std::string_view text) {
  const auto range = parse_content_range(text);
  if (!range) return "none";
  return (range->satisfied ? std::to_string(range->first) + "-" + std::to_string(range->last)
                           : "*") +
         "/" + (range->total ? std::to_string(*range->total) : "*");
}

TEST(HttpHead, ContentRangeIsParsedOrRefused) {
  EXPECT_EQ(show("bytes 0-9/10"), "0-9/10");
  EXPECT_EQ(show("Bytes 5-5/*"), "5-5/*");
  EXPECT_EQ(show("bytes */0"), "*/0");
  EXPECT_EQ(show("bytes 0-18446744073709551614/18446744073709551615"),
            "0-18446744073709551614/18446744073709551615");
  for (const char* text : {"", "bytes", "bytes ", "bytes 0-9", "bytes 9-0/10", "bytes 0-10/10",
                           "bytes -9/10", "bytes 0-/10", "bytes 0-9/", "bytes 0-9/1x",
                           "bytes 0-9/18446744073709551616", "bytes +0-9/10", "items 0-9/10"}) {
    EXPECT_EQ(show(text), "none") << text;
  }
}

TEST(HttpHead, RetryAfterIsSecondsOrADate) {
  const char* const now = "Sun, 06 Nov 1994 08:49:37 GMT";
  EXPECT_EQ(parse_retry_after("120", ""), 120);
  EXPECT_EQ(parse_retry_after("Sun, 06 Nov 1994 08:51:37 GMT", now), 120);
  EXPECT_EQ(parse_retry_after("Mon, 07 Nov 1994 08:49:37 GMT", now), 86400);
  EXPECT_EQ(parse_retry_after("Sun, 06 Nov 1994 08:00:00 GMT", now), 0);
  EXPECT_EQ(parse_retry_after("Sun, 06 Nov 1994 08:00:00 GMT", ""), 0);
  for (const char* text : {"", "soon", "-1", "1.5", "Sun, 32 Nov 1994 08:00:00 GMT",
                           "Sun, 06 ovD 1994 08:00:00 GMT"}) {
    EXPECT_EQ(parse_retry_after(text, now), std::nullopt) << text;
  }
}

TEST(Url, PartsArePutTogetherAgain) {
  const Url url = parse_url("HTTPS://me:p%40w@Host.Example:8443/a/../b%2F?x=1&y#z");
  EXPECT_EQ(url.userinfo, "me:p%40w");
  EXPECT_EQ(url.request(), "https://host.example:8443/a/../b%2F?x=1&y");
  EXPECT_EQ(url.display(), "https://host.example:8443/a/../b%2F");
  EXPECT_EQ(parse_url("http://[::1]:80?q").request(), "http://[::1]:80/?q");
  EXPECT_EQ(parse_url("http://[::1]").request(), "http://[::1]/");
}

TEST(Url, OriginIsSchemeHostAndPort) {
  const Url url = parse_url("http://host/x");
  EXPECT_TRUE(url.same_origin(parse_url("http://HOST:80/y")));
  EXPECT_FALSE(url.same_origin(parse_url("https://host/x")));
  EXPECT_FALSE(url.same_origin(parse_url("http://host:81/x")));
  EXPECT_FALSE(url.same_origin(parse_url("http://host.evil/x")));
}

// RFC 3986, 5.4, as far as it is about http.
TEST(Url, ReferencesAreResolved) {
  const Url base = parse_url("http://a/b/c/d;p?q");
  const auto resolve = [&](std::string_view reference) {
    return resolve_reference(base, reference).request();
  };
  EXPECT_EQ(resolve("g"), "http://a/b/c/g");
  EXPECT_EQ(resolve("./g"), "http://a/b/c/g");
  EXPECT_EQ(resolve("g/"), "http://a/b/c/g/");
  EXPECT_EQ(resolve("/g"), "http://a/g");
  EXPECT_EQ(resolve("//g"), "http://g/");
  EXPECT_EQ(resolve("?y"), "http://a/b/c/d;p?y");
  EXPECT_EQ(resolve("g?y"), "http://a/b/c/g?y");
  EXPECT_EQ(resolve("#s"), "http://a/b/c/d;p?q");
  EXPECT_EQ(resolve("g#s"), "http://a/b/c/g");
  EXPECT_EQ(resolve(""), "http://a/b/c/d;p?q");
  EXPECT_EQ(resolve("."), "http://a/b/c/");
  EXPECT_EQ(resolve(".."), "http://a/b/");
  EXPECT_EQ(resolve("../g"), "http://a/b/g");
  EXPECT_EQ(resolve("../.."), "http://a/");
  EXPECT_EQ(resolve("../../../g"), "http://a/g");
  EXPECT_EQ(resolve("./g/."), "http://a/b/c/g/");
  EXPECT_EQ(resolve("g/./h"), "http://a/b/c/g/h");
  EXPECT_EQ(resolve("g/../h"), "http://a/b/c/h");
  EXPECT_EQ(resolve("g..h"), "http://a/b/c/g..h");
  EXPECT_EQ(resolve("https://u:p@other/x y?z#f"), "https://other/x%20y?z");
  EXPECT_EQ(resolve("/\xC3\xA9"), "http://a/%C3%A9");
  EXPECT_THROW(resolve("file:///etc/passwd"), ArgumentError);
  EXPECT_THROW(resolve("javascript:x"), ArgumentError);
}

TEST(Url, EscapesAreDecoded) {
  EXPECT_EQ(percent_decode("a%40b%2fc%"), "a@b/c%");
  EXPECT_EQ(percent_decode("%zz%4"), "%zz%4");
}

}  // namespace
}  // namespace torchnpy
