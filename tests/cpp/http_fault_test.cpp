// The table of faults. Each row: what the server does to a read, what comes of it, and the requests
// that it saw.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "aws_environment.h"
#include "http_testing.h"
#include "transport/s3.h"

namespace torchnpy {
namespace {

using namespace testing;
using std::chrono::milliseconds;

enum class Over {
  kHttp,
  kTls,
  kNobody,  // listens on the port
  kProxy,   // the server is one, for http
  kTunnel,  // and for https
  kS3,
};

// One read of "0123456789" (or what a step puts in its place).
struct Row {
  const char* name;
  Range range;
  std::vector<Step> steps;
  // The bytes; or "error: " and the message after the object's name, up to its end or with "..."
  // for what is not compared. {other} is the URL of a second server, of the same object, here and
  // in the headers of steps.
  std::string expected;
  Texts requests;  // range, condition, S3's region
  Over over = Over::kHttp;
  double stall_timeout_s = 30;
  std::optional<Range> then{};  // a second read of the same source, after a moment
  std::string greeting{};       // of the server, to each connection
  Texts elsewhere{};            // the requests that the second server saw
};

void PrintTo(const Row& row, std::ostream* out) { *out << row.name; }

std::string name_of(const ::testing::TestParamInfo<Row>& row) { return row.param.name; }

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  return at == std::string::npos ? text : text.replace(at, from.size(), to);
}

// Whether `text` is what `pattern` says, in which "..." stands for anything.
bool matches(std::string_view text, std::string_view pattern) {
  const size_t gap = pattern.find("...");
  if (gap == std::string_view::npos) return text.starts_with(pattern);
  if (!text.starts_with(pattern.substr(0, gap))) return false;
  pattern.remove_prefix(gap + 3);
  for (size_t at = gap; at <= text.size(); ++at) {
    if (matches(text.substr(at), pattern)) return true;
  }
  return false;
}

std::string describe(const FaultServer::Request& request) {
  if (request.other.starts_with("CONNECT")) return "CONNECT " + request.target;
  std::string text = request.range.empty() ? "whole" : request.range;
  if (!request.if_match.empty()) text += " if " + request.if_match;
  // "AWS4-HMAC-SHA256 Credential=id/date/region/s3/aws4_request, ..."
  const size_t begin = request.other.find("authorization: ");
  if (begin == std::string::npos) return text;
  const size_t date = request.other.find('/', begin);
  const size_t region = request.other.find('/', date + 1);
  const size_t end = request.other.find('/', region + 1);
  text += " in " + request.other.substr(region + 1, end - region - 1);
  if (request.other.compare(date, 5, "/2031") == 0) text += " of 2031";
  return text;
}

Texts describe(const FaultServer& server) {
  Texts texts;
  for (const FaultServer::Request& request : server.requests()) texts.push_back(describe(request));
  return texts;
}

class HttpFault : public AwsEnvironment, public ::testing::WithParamInterface<Row> {
 protected:
  HttpFault() {
    set("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE");
    set("AWS_SECRET_ACCESS_KEY", "SECRET");
    client_.options->stall_timeout_s = GetParam().stall_timeout_s;
  }

  std::shared_ptr<Source> open(const FaultServer& server) {
    client_.options->ca_bundle = server.ca_bundle().empty()
                                     ? std::optional<std::string>()
                                     : std::optional<std::string>(server.ca_bundle());
    switch (GetParam().over) {
      case Over::kProxy:
      case Over::kTunnel:
        client_.options->proxy = server.url("");
        return client_.open(GetParam().over == Over::kProxy ? "http://object.example/x.npy"
                                                            : "https://object.example/x.npy");
      case Over::kS3:
        client_.options->endpoint = server.url("");
        return open_http(make_s3_object("s3://bucket/x.npy", make_s3_account(client_.options)),
                         client_.context());
      default: return client_.open(server.url());
    }
  }

  std::string read(Source& source, Range range) {
    TestSink sink;
    source.start(range, sink);
    return replaced(sink.wait(), source.name() + ": ", "");
  }

  TestClient client_;
};

TEST_P(HttpFault, EndsAsTheRowSays) {
  const Row& row = GetParam();
  FaultServer other("0123456789");
  std::vector<Step> steps = row.steps;
  for (Step& step : steps) step.headers = replaced(step.headers, "{other}", other.url());
  std::optional<FaultServer> server(std::in_place, "0123456789", steps, row.over == Over::kTls,
                                    row.greeting);
  const std::shared_ptr<Source> source = open(*server);
  if (row.over == Over::kNobody) server.reset();
  std::string result = read(*source, row.range);
  if (row.then) {
    std::this_thread::sleep_for(milliseconds(50));
    result += " then " + read(*source, *row.then);
  }
  const std::string expected = replaced(row.expected, "{other}", other.url());
  if (expected.find("error: ") == std::string::npos) {
    EXPECT_EQ(result, expected);
  } else {
    EXPECT_PRED2(matches, result, expected);
  }
  // An answer may come before its request has been read.
  for (int i = 0; i < 5000 && server && server->requests().size() < row.requests.size(); ++i) {
    std::this_thread::sleep_for(milliseconds(1));
  }
  EXPECT_EQ(server ? describe(*server) : Texts(), row.requests);
  EXPECT_EQ(describe(other), row.elsewhere);
  EXPECT_EQ(client_.metrics->in_flight.value(), 0);
}

constexpr Range kLast4{0, 4, true};

INSTANTIATE_TEST_SUITE_P(
    Ranges, HttpFault,
    ::testing::Values(
        Row{"Middle", kMiddle, {kGood}, "234567", {"bytes=2-7"}},
        Row{"Whole", {}, {kGood}, "0123456789", {"whole"}},
        Row{"FromOffset", {7}, {kGood}, "789", {"bytes=7-"}},
        Row{"PastTheEndIsClamped", {7, 65536}, {kGood}, "789", {"bytes=7-65542"}},
        Row{"OutsideIsEmpty", {10, 5}, {kGood}, "", {"bytes=10-14"}},
        Row{"NothingSendsNothing", {3, 0}, {kGood}, "", {}},
        Row{"Overflow", {8, Range::kToEnd - 1}, {kGood}, "89", {"bytes=8-"}},
        Row{"Suffix", kLast4, {kGood}, "6789", {"bytes=-4"}},
        Row{"SuffixLongerThanTheObject", {0, 99, true}, {kGood}, "0123456789", {"bytes=-99"}},
        Row{"RangeIgnored", kMiddle, {{.ignore_range = true}}, "23456789", {"bytes=2-7"}},
        Row{"RangeIgnoredChunked",
            kMiddle,
            {{.ignore_range = true, .chunked = true}},
            "23456789",
            {"bytes=2-7"}},
        Row{"RangeIgnoredOutside", {12, 5}, {{.ignore_range = true}}, "", {"bytes=12-16"}},
        Row{"SuffixIgnored", kLast4, {{.ignore_range = true}}, "0123456789", {"bytes=-4"}},
        Row{"SuffixIgnoredOfUnknownLength",
            kLast4,
            {{.ignore_range = true, .chunked = true}},
            "0123456789",
            {"bytes=-4"}},
        Row{"Chunked", kMiddle, {{.chunked = true}}, "234567", {"bytes=2-7"}},
        Row{"TotalUnknown", kMiddle, {{.content_range = "bytes 2-7/*"}}, "234567", {"bytes=2-7"}},
        Row{"SuffixOfUnknownTotal",
            kLast4,
            {{.content_range = "bytes 6-9/*"}},
            "6789",
            {"bytes=-4"}},
        Row{"RefusedWithoutSizeAsksForTheWhole",
            {0, 5},
            {{.status = "416 Range Not Satisfiable"}, kGood},
            "01234",
            {"bytes=0-4", "whole"}},
        Row{"RefusedInsideTheObject",
            kMiddle,
            {{.status = "416 Range Not Satisfiable", .headers = "Content-Range: bytes */10\r\n"}},
            "error: HTTP 416 (Range Not Satisfiable) for bytes=2-7 after 1 attempt",
            {"bytes=2-7"}}),
    name_of);

INSTANTIATE_TEST_SUITE_P(
    WrongAnswers, HttpFault,
    ::testing::Values(
        Row{"OtherRange",
            kMiddle,
            {{.content_range = "bytes 3-8/10"}},
            "error: expected a Content-Range for bytes=2-7 but found \"bytes 3-8/10\"",
            {"bytes=2-7"}},
        Row{"ShorterRange",
            kMiddle,
            {{.content_range = "bytes 2-6/10"}},
            "error: expected a Content-Range for bytes=2-7 but found \"bytes 2-6/10\"",
            {"bytes=2-7"}},
        Row{"NoContentRange",
            kMiddle,
            {{.content_range = "-"}},
            "error: expected a Content-Range for bytes=2-7 but found HTTP 206 with Content-Range "
            "\"\"",
            {"bytes=2-7"}},
        Row{"MalformedContentRange",
            kMiddle,
            {{.content_range = "bytes 7-2/10"}},
            "error: expected a Content-Range for bytes=2-7 but found HTTP 206 with Content-Range "
            "\"bytes 7-2/10\"",
            {"bytes=2-7"}},
        Row{"PartOfTheWhole",
            {},
            {{.status = "206 Partial Content", .headers = "Content-Range: bytes 0-4/10\r\n"}},
            "error: expected the whole object but found HTTP 206",
            {"whole"}},
        Row{"LengthUnlikeTheRange",
            kMiddle,
            {{.claim_nbytes = 5}},
            "error: expected a Content-Length of 6 bytes but found 5",
            {"bytes=2-7"}},
        Row{"MoreBytesThanTheRange",
            kMiddle,
            {{.chunked = true, .content_range = "bytes 2-7/10", .extra_nbytes = 3}},
            "error: expected a body of 6 bytes but found more",
            {"bytes=2-7"}},
        Row{"Gzip",
            kMiddle,
            {{.headers = "Content-Encoding: gzip\r\n"}},
            "error: expected bytes as they are but found Content-Encoding gzip",
            {"bytes=2-7"}},
        Row{"NoContent",
            kMiddle,
            {{.status = "204 No Content"}},
            "error: HTTP 204 (No Content) after 1 attempt",
            {"bytes=2-7"}},
        Row{"NotFoundIsNotRetried",
            kMiddle,
            {{.status = "404 Not Found"}},
            "error: HTTP 404 (Not Found) after 1 attempt in ",
            {"bytes=2-7"}},
        Row{"XmlErrorOfAStore",
            kMiddle,
            {{.status = "403 Forbidden",
              .error_body = "<Error><Code>AccessDenied</Code><Message>Request has "
                            "expired</Message><StringToSign>s3cret</StringToSign></Error>"}},
            "error: HTTP 403 (AccessDenied: Request has expired) after 1 attempt in ",
            {"bytes=2-7"}},
        Row{"TextErrorWithAQuery",
            kMiddle,
            {{.status = "400 Bad Request",
              .headers = "Content-Type: text/plain\r\n",
              .error_body = "no http://me:pw@host/x?token=s3cret here\nnor there"}},
            "error: HTTP 400 (no http://host/x? here) after 1 attempt",
            {"bytes=2-7"}}),
    name_of);

INSTANTIATE_TEST_SUITE_P(
    Retries, HttpFault,
    ::testing::Values(
        Row{"Unavailable",
            kMiddle,
            {{.status = "503 Service Unavailable"}, {.status = "500 Internal Server Error"}, kGood},
            "234567",
            {"bytes=2-7", "bytes=2-7", "bytes=2-7"}},
        Row{"UnavailableForEver",
            kMiddle,
            {{.status = "503 Slow Down"}},
            "error: HTTP 503 (Slow Down) after 3 attempts in ",
            {"bytes=2-7", "bytes=2-7", "bytes=2-7"}},
        Row{"RetryAfterBeyondTheTimeoutIsNotAwaited",
            kMiddle,
            {{.status = "503 Service Unavailable", .headers = "Retry-After: 3600\r\n"}},
            "error: HTTP 503 (Service Unavailable) after 1 attempt in ",
            {"bytes=2-7"}},
        Row{"RetryAfterADateIsComparedWithTheServersClock",
            kMiddle,
            {{.status = "429 Too Many Requests",
              .headers = "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
                         "Retry-After: Sun, 06 Nov 1994 08:49:37 GMT\r\n"},
             {.status = "429 Too Many Requests",
              .headers = "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
                         "Retry-After: Sun, 06 Nov 1994 09:49:37 GMT\r\n"}},
            "error: HTTP 429 (Too Many Requests) after 2 attempts in ",
            {"bytes=2-7", "bytes=2-7"}},
        Row{"ResetBeforeTheHead",
            kMiddle,
            {{.reset_at = SIZE_MAX}, kGood},
            "234567",
            {"bytes=2-7", "bytes=2-7"}},
        Row{"ClosedBeforeTheHead",
            kMiddle,
            {{.close_at = SIZE_MAX}, kGood},
            "234567",
            {"bytes=2-7", "bytes=2-7"}},
        Row{"ResetInTheBodyResumes",
            kMiddle,
            {{.reset_at = 2}, kGood},
            "234567",
            {"bytes=2-7", "bytes=4-7 if \"v1\""}},
        Row{"ShortBodyResumes",
            kMiddle,
            {{.close_at = 5}, kGood},
            "234567",
            {"bytes=2-7", "bytes=7-7 if \"v1\""}},
        Row{"ShortBodyForEver",
            {},
            {{.close_at = 1}},
            "error: expected a body of 8 bytes but found 1 after 3 attempts in ",
            {"whole", "bytes=1-9 if \"v1\"", "bytes=2-9 if \"v1\""}},
        Row{"ShortChunkedBodyResumes",
            {},
            {{.chunked = true, .close_at = 5}, kGood},
            "0123456789",
            {"whole", "bytes=2- if \"v1\""}},
        Row{"ShortBodyOfASuffixResumes",
            kLast4,
            {{.close_at = 1}, kGood},
            "6789",
            {"bytes=-4", "bytes=7-9 if \"v1\""}},
        Row{"ResumeWithoutRangesSkips",
            {},
            {{.reset_at = 4}, {.ignore_range = true}},
            "0123456789",
            {"whole", "bytes=4-9 if \"v1\""}}),
    name_of);

const std::string kNew = "ABCDEFGHIJ";
const char* const kChanged =
    "error: expected the object to stay the same but it changed while it was read; load it again "
    "after 2 attempts in ";

INSTANTIATE_TEST_SUITE_P(
    Versions, HttpFault,
    ::testing::Values(
        Row{"ChangedBeforeAByteWasReadBeginsAgain",
            kMiddle,
            {{.reset_at = 0}, {.object = kNew, .etag = "\"v2\""}},
            "CDEFGH",
            {"bytes=2-7", "bytes=2-7 if \"v1\"", "bytes=2-7"}},
        Row{"ChangedInTheBody",
            kMiddle,
            {{.reset_at = 3}, {.object = kNew, .etag = "\"v2\""}},
            kChanged,
            {"bytes=2-7", "bytes=5-7 if \"v1\""}},
        Row{"ChangedWithWeakTags",
            kMiddle,
            {{.etag = "W/\"v1\"", .reset_at = 3}, {.object = kNew, .etag = "W/\"v2\""}},
            kChanged,
            {"bytes=2-7", "bytes=5-7"}},
        Row{"ETagChangedBetweenParts",
            {0, 4},
            {kGood, {.object = kNew, .etag = "\"v2\""}},
            "0123 then error: expected the object to stay the same but it changed while it was "
            "read; load it again after 1 attempt in ",
            {"bytes=0-3", "bytes=4-7 if \"v1\""},
            Over::kHttp,
            30,
            Range{4, 4}},
        Row{"WeakETagChangedBetweenParts",
            {0, 4},
            {{.etag = "W/\"v1\""}, {.object = kNew, .etag = "W/\"v2\""}},
            "0123 then error: expected the object to stay the same but it changed while it was "
            "read; load it again after 1 attempt in ",
            {"bytes=0-3", "bytes=4-7"},
            Over::kHttp,
            30,
            Range{4, 4}},
        Row{"SameWeakTagResumes",
            kMiddle,
            {{.etag = "W/\"v1\"", .reset_at = 3}, {.etag = "W/\"v1\""}},
            "234567",
            {"bytes=2-7", "bytes=5-7"}},
        Row{"ChangedDateWithoutTags",
            kMiddle,
            {{.headers = "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n",
              .etag = "",
              .reset_at = 3},
             {.headers = "Last-Modified: Sun, 06 Nov 1994 08:49:38 GMT\r\n", .etag = ""}},
            kChanged,
            {"bytes=2-7", "bytes=5-7"}},
        Row{"ChangedSizeWithoutValidators",
            kMiddle,
            {{.etag = "", .reset_at = 3}, {.object = "0123456789+", .etag = ""}},
            kChanged,
            {"bytes=2-7", "bytes=5-7"}},
        Row{"AnotherObjectsBytesWithAnotherETag",
            kMiddle,
            {{.reset_at = 3},
             {.status = "206 Partial Content",
              .headers = "Content-Range: bytes 5-7/10\r\nETag: \"v2\"\r\n",
              .error_body = "FGH"}},
            kChanged,
            {"bytes=2-7", "bytes=5-7 if \"v1\""}}),
    name_of);

// Of faults that may pass: twice, then the server is well.
std::vector<Row> make_passing_rows() {
  std::vector<Row> rows;
  const auto add = [&](const char* name, const char* status, const char* headers) {
    const Step busy{.status = status, .headers = headers};
    rows.push_back(
        Row{name, kMiddle, {busy, busy, kGood}, "234567", {"bytes=2-7", "bytes=2-7", "bytes=2-7"}});
  };
  add("Twice408", "408 Request Timeout", "");
  add("Twice429", "429 Too Many Requests", "");
  add("Twice429WithRetryAfterInSeconds", "429 Too Many Requests", "Retry-After: 0\r\n");
  add("Twice500", "500 Internal Server Error", "");
  add("Twice502", "502 Bad Gateway", "");
  add("Twice503", "503 Service Unavailable", "");
  add("Twice503WithRetryAfterInSeconds", "503 Service Unavailable", "Retry-After: 0\r\n");
  add("Twice503WithRetryAfterADate", "503 Service Unavailable",
      "Retry-After: Sun, 06 Nov 1994 08:49:37 GMT\r\n");
  add("Twice503WithANonsensicalRetryAfter", "503 Service Unavailable", "Retry-After: -1e9\r\n");
  add("Twice504", "504 Gateway Timeout", "");
  return rows;
}
INSTANTIATE_TEST_SUITE_P(Passing, HttpFault, ::testing::ValuesIn(make_passing_rows()), name_of);

// Of answers that stay as they are.
std::vector<Row> make_final_rows() {
  std::vector<Row> rows;
  const auto add = [&](const char* name, const char* status) {
    rows.push_back(Row{name,
                       kMiddle,
                       {{.status = status}},
                       fmt::format("error: HTTP {} ({}) after 1 attempt in ",
                                   std::string_view(status).substr(0, 3), status + 4),
                       {"bytes=2-7"}});
  };
  add("Final304", "304 Not Modified");
  add("Final400", "400 Bad Request");
  add("Final401", "401 Unauthorized");
  add("Final403", "403 Forbidden");
  add("Final404", "404 Not Found");
  add("Final405", "405 Method Not Allowed");
  add("Final412WithoutIfMatch", "412 Precondition Failed");
  add("Final501", "501 Not Implemented");
  add("Final505", "505 HTTP Version Not Supported");
  rows.push_back(Row{"Final416OfTheMiddle",
                     kMiddle,
                     {{.status = "416 Range Not Satisfiable"}},
                     "error: HTTP 416 (Range Not Satisfiable) for bytes=2-7 after 1 attempt in ",
                     {"bytes=2-7"}});
  return rows;
}
INSTANTIATE_TEST_SUITE_P(Final, HttpFault, ::testing::ValuesIn(make_final_rows()), name_of);

INSTANTIATE_TEST_SUITE_P(
    Connections, HttpFault,
    ::testing::Values(
        Row{"Refuse",
            kMiddle,
            {},
            "error: Connection refused (... after 3 attempts in ",
            {},
            Over::kNobody},
        Row{"AcceptAndSayNothing",
            kMiddle,
            {{.stall_at = SIZE_MAX}, kGood},
            "234567",
            {"bytes=2-7", "bytes=2-7"},
            Over::kHttp,
            0.3},
        Row{"AcceptAndSayNothingForEver",
            kMiddle,
            {{.stall_at = SIZE_MAX}},
            "error: stalled: no byte for 0.1 s after 3 attempts in ",
            {"bytes=2-7", "bytes=2-7", "bytes=2-7"},
            Over::kHttp,
            0.1},
        Row{"StallInMidHeader",
            kMiddle,
            {{.head_nbytes = 30, .stall_at = 0}, kGood},
            "234567",
            {"bytes=2-7", "bytes=2-7"},
            Over::kHttp,
            0.3},
        Row{"StallInMidBody",
            kMiddle,
            {{.stall_at = 3}, kGood},
            "234567",
            {"bytes=2-7", "bytes=5-7 if \"v1\""},
            Over::kHttp,
            0.3},
        Row{"ResetInMidHeader",
            kMiddle,
            {{.head_nbytes = 30, .reset_at = 0}, kGood},
            "234567",
            {"bytes=2-7", "bytes=2-7"}},
        Row{"EndInMidHeader",
            kMiddle,
            {{.head_nbytes = 30, .close_at = 0}, kGood},
            "234567",
            {"bytes=2-7", "bytes=2-7"}},
        Row{"ResetAtByte0",
            kMiddle,
            {{.reset_at = 0}, kGood},
            "234567",
            {"bytes=2-7", "bytes=2-7 if \"v1\""}},
        Row{"ResetAtByte1",
            kMiddle,
            {{.reset_at = 1}, kGood},
            "234567",
            {"bytes=2-7", "bytes=3-7 if \"v1\""}},
        Row{"ResetAtTheLastByte",
            kMiddle,
            {{.reset_at = 5}, kGood},
            "234567",
            {"bytes=2-7", "bytes=7-7 if \"v1\""}},
        Row{"ResetAfterTheLastByte", kMiddle, {{.reset_at = 6}}, "234567", {"bytes=2-7"}},
        Row{"StaleKeepAliveIsNoRetry",
            {0, 4},
            {{.close_after = true}, kGood},
            "0123 then 4567",
            {"bytes=0-3", "bytes=4-7 if \"v1\""},
            Over::kHttp,
            30,
            Range{4, 4}},
        // libcurl asks again by itself: nothing was answered, and the connection was an old one.
        Row{"KeepAliveThatDiesOfTheNextRequest",
            {0, 4},
            {kGood, {.reset_at = SIZE_MAX}, kGood},
            "0123 then 4567",
            {"bytes=0-3", "bytes=4-7 if \"v1\"", "bytes=4-7 if \"v1\""},
            Over::kHttp,
            30,
            Range{4, 4}},
        Row{"SlowTrickle",
            {},
            {{.pause = milliseconds(15)}},
            "0123456789",
            {"whole"},
            Over::kHttp,
            1},
        Row{"DribbledHeaders",
            kMiddle,
            {{.headers = "X-Padding: " + std::string(100, 'x') + "\r\n", .pause = milliseconds(5)}},
            "234567",
            {"bytes=2-7"},
            Over::kHttp,
            1},
        Row{"ProxyDies",
            kMiddle,
            {{.reset_at = SIZE_MAX}, {.reset_at = 2}, kGood},
            "234567",
            {"bytes=2-7", "bytes=2-7", "bytes=4-7 if \"v1\""},
            Over::kProxy},
        Row{"ProxyDiesForEver",
            kMiddle,
            {{.close_at = SIZE_MAX}},
            "error: the connection was lost (... after 3 attempts in ",
            {"bytes=2-7", "bytes=2-7", "bytes=2-7"},
            Over::kProxy},
        Row{"TunnelDies",
            kMiddle,
            {{.close_at = SIZE_MAX}},
            "error: ... after 3 attempts in ",
            {"CONNECT object.example:443", "CONNECT object.example:443",
             "CONNECT object.example:443"},
            Over::kTunnel},
        Row{"TunnelDiesInTheHandshake",
            kMiddle,
            {{.status = "200 Connection established", .close_after = true}},
            "error: the connection was lost (... after 3 attempts in ",
            {"CONNECT object.example:443", "CONNECT object.example:443",
             "CONNECT object.example:443"},
            Over::kTunnel},
        Row{"TunnelIsRefused",
            kMiddle,
            {{.status = "403 Forbidden"}},
            "error: ... 403... after 1 attempt in ",
            {"CONNECT object.example:443"},
            Over::kTunnel},
        Row{"TunnelIsBusy",
            kMiddle,
            {{.status = "503 Service Unavailable"}},
            "error: ... 503... after 3 attempts in ",
            {"CONNECT object.example:443", "CONNECT object.example:443",
             "CONNECT object.example:443"},
            Over::kTunnel}),
    name_of);

// What no server that works sends.
INSTANTIATE_TEST_SUITE_P(
    Nonsense, HttpFault,
    ::testing::Values(
        Row{"MoreBytesThanContentLength",
            {0, 4},
            {{.extra_nbytes = 3}, kGood},
            "0123 then 4567",
            {"bytes=0-3", "bytes=4-7 if \"v1\""},
            Over::kHttp,
            30,
            Range{4, 4}},
        Row{"Http10", kMiddle, {{.version = "HTTP/1.0"}}, "234567", {"bytes=2-7"}},
        Row{"Http10WithoutLengthAndRanges",
            {},
            {{.ignore_range = true, .version = "HTTP/1.0", .no_length = true}},
            "0123456789",
            {"whole"}},
        Row{"Http10EndsARangeEarly",
            kMiddle,
            {{.version = "HTTP/1.0", .no_length = true, .close_at = 2}, kGood},
            "234567",
            {"bytes=2-7", "bytes=4-7 if \"v1\""}},
        Row{"InvalidChunking",
            {},
            {{.raw = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n0123"}, kGood},
            "0123456789",
            {"whole", "whole"}},
        Row{"InvalidChunkingForEver",
            {},
            {{.raw = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-4\r\n0123\r\n"}},
            "error: the connection was lost (... after 3 attempts in ",
            {"whole", "whole", "whole"}},
        Row{"ChunkLargerThanAnyObject",
            {},
            {{.raw = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                     "ffffffffffffffff\r\n0123",
              .close_after = true}},
            "error: ... after 3 attempts in ",
            {"whole", "whole", "whole"}},
        Row{"NegativeContentLength",
            {},
            {{.headers = "Content-Length: -1\r\n", .no_length = true}},
            "error: ...Content-Length... after 1 attempt in ",
            {"whole"}},
        Row{"OverflowingContentLength",
            {},
            {{.headers = "Content-Length: 99999999999999999999\r\n", .no_length = true}},
            "error: expected a Content-Length but found \"99999999999999999999\" after 1 attempt",
            {"whole"}},
        Row{"ContentLengthThatIsNoNumber",
            {},
            {{.headers = "Content-Length: ten\r\n", .no_length = true}},
            "error: ...Content-Length... after 1 attempt in ",
            {"whole"}},
        Row{"OverflowingContentRange",
            kMiddle,
            {{.content_range = "bytes 2-7/99999999999999999999"}},
            "error: expected a Content-Range for bytes=2-7 but found HTTP 206 with Content-Range "
            "\"bytes 2-7/99999999999999999999\" after 1 attempt",
            {"bytes=2-7"}},
        Row{"NoHttpAtAll",
            kMiddle,
            {{.raw = "SSH-2.0-OpenSSH_9.2\r\n", .close_after = true}},
            "error: the transfer failed (... after 1 attempt in ",
            {"bytes=2-7"}},
        Row{"AnswerBeforeTheRequest",
            {0, 4},
            {kGood},
            "error: expected a Content-Range for bytes=0-3 but found \"bytes 5-5/10\" after 1",
            {"bytes=0-3"},
            Over::kHttp,
            30,
            std::nullopt,
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 5-5/10\r\nContent-Length: "
            "1\r\n\r\nX"},
        // It lies in the socket when the next request is to be sent, and looks like its answer.
        Row{"AnswerTooMany",
            {0, 4},
            {{.late = "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 4-7/10\r\n"
                      "ETag: \"v1\"\r\nContent-Length: 4\r\n\r\nXXXX"},
             kGood},
            "0123 then 4567",
            {"bytes=0-3", "bytes=4-7 if \"v1\""},
            Over::kHttp,
            30,
            Range{4, 4}},
        Row{"GarbageAfterAnAnswer",
            {0, 4},
            {{.late = "XXXX"}, kGood},
            "0123 then 4567",
            {"bytes=0-3", "bytes=4-7 if \"v1\""},
            Over::kHttp,
            30,
            Range{4, 4}},
        // Or the server's bytes would be headers of the next request.
        Row{"HeaderInjectionByAnETag",
            kMiddle,
            {{.etag = "\"v1\rX-Evil: 1\"", .reset_at = 2}, {.etag = "\"v1\rX-Evil: 1\""}},
            "234567",
            {"bytes=2-7", "bytes=4-7"}},
        Row{"HeaderWithANul",
            kMiddle,
            {{.headers = std::string("X-Nul: a\0b\r\n", 13)}},
            "error: the transfer failed (... after 1 attempt in ",
            {"bytes=2-7"}},
        Row{"HeaderWithoutAColon",
            kMiddle,
            {{.headers = "garbage\r\n"}},
            "error: the transfer failed (Header without colon) after 1 attempt in ",
            {"bytes=2-7"}}),
    name_of);

// Servers that never end: each is left as soon as it is known.
INSTANTIATE_TEST_SUITE_P(
    Endless, HttpFault,
    ::testing::Values(
        Row{"HugeHeaders",
            kMiddle,
            {{.headers = "X-Huge: " + std::string(90'000, 'x') +
                         "\r\nX-Huge: " + std::string(90'000, 'x') +
                         "\r\nX-Huge: " + std::string(90'000, 'x') + "\r\n"}},
            "error: expected a head of at most 262144 bytes but found more after 1 attempt in ",
            {"bytes=2-7"}},
        Row{"HugeHeader",
            kMiddle,
            {{.headers = "X-Huge: " + std::string(1 << 20, 'x') + "\r\n"}},
            "error: the transfer failed (... after 1 attempt in ",
            {"bytes=2-7"}},
        Row{"LargeHeaders",
            kMiddle,
            {{.headers = "X-Large: " + std::string(60'000, 'x') + "\r\n"}},
            "234567",
            {"bytes=2-7"}},
        Row{"EndlessHeaders",
            kMiddle,
            {{.raw = "HTTP/1.1 206 Partial Content\r\n",
              .endless = "X-More: " + std::string(100, '1') + "\r\n"}},
            "error: expected a head of at most 262144 bytes but found more after 1 attempt in ",
            {"bytes=2-7"}},
        Row{"EndlessInterimAnswers",
            kMiddle,
            {{.endless = "HTTP/1.1 100 Continue\r\n\r\n"}},
            "error: expected a head of at most 262144 bytes but found more after 1 attempt in ",
            {"bytes=2-7"}},
        Row{"EndlessTrailers",
            {},
            {{.raw = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n0123\r\n0\r\n",
              .endless = "X-More: " + std::string(100, '1') + "\r\n"}},
            "error: expected a head of at most 262144 bytes but found more after 1 attempt in ",
            {"whole"}},
        Row{"EndlessStatusLine",
            kMiddle,
            {{.raw = "HTTP/1.1 206 ", .endless = "Partial Content "}},
            "error: the transfer failed (... after 1 attempt in ",
            {"bytes=2-7"}},
        Row{"EndlessBodyOfAnError",
            kMiddle,
            {{.raw = "HTTP/1.1 404 Not Found\r\n\r\n", .endless = std::string(1000, 'x')}},
            "error: HTTP 404 (Not Found) after 1 attempt in ",
            {"bytes=2-7"}},
        Row{"EndlessBodyOfARedirect",
            kMiddle,
            {{.raw = "HTTP/1.1 302 Found\r\nLocation: /y.npy\r\n\r\n",
              .endless = std::string(1000, 'x')},
             kGood},
            "234567",
            {"bytes=2-7", "bytes=2-7"}},
        Row{"EndlessBodyOfARange",
            kMiddle,
            {{.raw = "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 2-7/10\r\n\r\n",
              .endless = std::string(1000, 'x')}},
            "error: expected a body of 6 bytes but found more after 1 attempt in ",
            {"bytes=2-7"}},
        Row{"EndlessBodyOfAChangedObject",
            kMiddle,
            {{.reset_at = 3},
             {.raw = "HTTP/1.1 200 OK\r\nETag: \"v2\"\r\n\r\n", .endless = std::string(1000, 'x')}},
            "error: expected the object to stay the same but it changed while it was read; load it "
            "again after 2 attempts in ",
            {"bytes=2-7", "bytes=5-7 if \"v1\""}}),
    name_of);

Step redirect_to(const std::string& location) {
  return {.status = "302 Found", .headers = "Location: " + location + "\r\n"};
}

INSTANTIATE_TEST_SUITE_P(
    Redirects, HttpFault,
    ::testing::Values(
        Row{"RedirectLoop",
            kMiddle,
            {redirect_to("/x.npy")},
            "error: expected at most 10 redirects but found more after 1 attempt in ",
            Texts(11, "bytes=2-7")},
        Row{"RedirectToAnotherHost",
            kMiddle,
            {redirect_to("{other}")},
            "234567",
            {"bytes=2-7"},
            Over::kHttp,
            30,
            std::nullopt,
            "",
            {"bytes=2-7"}},
        Row{"ResumeIsRedirectedAgain",
            kMiddle,
            {{.reset_at = 2}, redirect_to("{other}")},
            "234567",
            {"bytes=2-7", "bytes=4-7 if \"v1\""},
            Over::kHttp,
            30,
            std::nullopt,
            "",
            {"bytes=4-7 if \"v1\""}},
        Row{"RedirectFromHttpsToHttp",
            kMiddle,
            {redirect_to("{other}")},
            "error: HTTP 302 from https to {other}, which is not followed after 1 attempt in ",
            {"bytes=2-7"},
            Over::kTls}),
    name_of);

Step s3_error(const std::string& status, const std::string& code, const std::string& headers = "",
              const std::string& more = "") {
  return {.status = status,
          .headers = "Content-Type: application/xml\r\n" + headers,
          .error_body =
              "<Error><Code>" + code + "</Code><Message>So it is.</Message>" + more + "</Error>"};
}

INSTANTIATE_TEST_SUITE_P(
    S3, HttpFault,
    ::testing::Values(
        Row{"SlowDownTwice",
            kMiddle,
            {s3_error("503 Slow Down", "SlowDown"), s3_error("503 Slow Down", "SlowDown"), kGood},
            "234567",
            {"bytes=2-7 in us-east-1", "bytes=2-7 in us-east-1", "bytes=2-7 in us-east-1"},
            Over::kS3},
        Row{"SlowDownForEver",
            kMiddle,
            {s3_error("503 Slow Down", "SlowDown", "Retry-After: 0\r\n")},
            "error: HTTP 503 (SlowDown: So it is.) after 3 attempts in ",
            {"bytes=2-7 in us-east-1", "bytes=2-7 in us-east-1", "bytes=2-7 in us-east-1"},
            Over::kS3},
        Row{"SlowDownReadOfMinio",
            kMiddle,
            {s3_error("503 Service Unavailable", "SlowDownRead"), kGood},
            "234567",
            {"bytes=2-7 in us-east-1", "bytes=2-7 in us-east-1"},
            Over::kS3},
        Row{"WrongRegion301",
            kMiddle,
            {s3_error("301 Moved Permanently", "PermanentRedirect",
                      "x-amz-bucket-region: eu-north-1\r\n"),
             kGood},
            "234567",
            {"bytes=2-7 in us-east-1", "bytes=2-7 in eu-north-1"},
            Over::kS3},
        Row{"WrongRegion400",
            kMiddle,
            {s3_error("400 Bad Request", "AuthorizationHeaderMalformed", "",
                      "<Region>eu-north-1</Region>"),
             kGood},
            "234567",
            {"bytes=2-7 in us-east-1", "bytes=2-7 in eu-north-1"},
            Over::kS3},
        Row{"WrongRegionThatIsNotNamed",
            kMiddle,
            {s3_error("301 Moved Permanently", "PermanentRedirect")},
            "error: HTTP 301 (PermanentRedirect: So it is.; the bucket is in another region, which "
            "the server does not name: pass region to Client) after 1 attempt in ",
            {"bytes=2-7 in us-east-1"},
            Over::kS3},
        Row{"ExpiredToken",
            kMiddle,
            {s3_error("400 Bad Request", "ExpiredToken")},
            "error: HTTP 400 (ExpiredToken: So it is.; ... after 1 attempt in ",
            {"bytes=2-7 in us-east-1"},
            Over::kS3},
        Row{"RequestTimeTooSkewed",
            kMiddle,
            {s3_error("403 Forbidden", "RequestTimeTooSkewed",
                      "Date: Wed, 01 Jan 2031 10:00:00 GMT\r\n"),
             kGood},
            "234567",
            {"bytes=2-7 in us-east-1", "bytes=2-7 in us-east-1 of 2031"},
            Over::kS3},
        Row{"RequestTimeTooSkewedForEver",
            kMiddle,
            {s3_error("403 Forbidden", "RequestTimeTooSkewed",
                      "Date: Wed, 01 Jan 2031 10:00:00 GMT\r\n")},
            "error: HTTP 403 (RequestTimeTooSkewed: So it is.) after 4 attempts in ",
            {"bytes=2-7 in us-east-1", "bytes=2-7 in us-east-1 of 2031",
             "bytes=2-7 in us-east-1 of 2031", "bytes=2-7 in us-east-1 of 2031"},
            Over::kS3},
        Row{"RequestTimeout400",
            kMiddle,
            {s3_error("400 Bad Request", "RequestTimeout"), kGood},
            "234567",
            {"bytes=2-7 in us-east-1", "bytes=2-7 in us-east-1"},
            Over::kS3},
        Row{"ResumeIsSignedAnew",
            kMiddle,
            {{.reset_at = 4}, kGood},
            "234567",
            {"bytes=2-7 in us-east-1", "bytes=6-7 if \"v1\" in us-east-1"},
            Over::kS3},
        Row{"ErrorInABodyThatIsNoXml",
            kMiddle,
            {{.status = "502 Bad Gateway", .error_body = "<html>"}, kGood},
            "234567",
            {"bytes=2-7 in us-east-1", "bytes=2-7 in us-east-1"},
            Over::kS3}),
    name_of);

}  // namespace
}  // namespace torchnpy
