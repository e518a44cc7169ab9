// Each row: what the server does to one read, what comes of it, and the requests that it saw.
#include <gtest/gtest.h>

#include <ostream>
#include <string>
#include <vector>

#include "http_testing.h"

namespace torchnpy {
namespace {

using namespace testing;

// One read of "0123456789" (or what a step puts in its place).
struct Row {
  const char* name;
  Range range;
  std::vector<Step> steps;
  std::string expected;  // the bytes; "error: " and the message's begin after the object's name
  Texts requests;
};

void PrintTo(const Row& row, std::ostream* out) { *out << row.name; }

std::string name_of(const ::testing::TestParamInfo<Row>& row) { return row.param.name; }

class HttpFault : public ::testing::TestWithParam<Row> {};

TEST_P(HttpFault, EndsAsTheRowSays) {
  const Row& row = GetParam();
  FaultServer server("0123456789", row.steps);
  TestClient client;
  TestSink sink;
  client.open(server.url())->start(row.range, sink);
  const std::string result = sink.wait();
  if (row.expected.starts_with("error: ")) {
    const std::string expected =
        "error: " + server.url() + ": " + row.expected.substr(sizeof "error: " - 1);
    EXPECT_EQ(result.substr(0, expected.size()), expected) << result;
  } else {
    EXPECT_EQ(result, row.expected);
  }
  EXPECT_EQ(server.ranges(), row.requests);
  EXPECT_EQ(client.metrics->in_flight.value(), 0);
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
            "error: HTTP 404 (Not Found) after 1 attempt in 0.",
            {"bytes=2-7"}},
        Row{"XmlErrorOfAStore",
            kMiddle,
            {{.status = "403 Forbidden",
              .error_body = "<Error><Code>AccessDenied</Code><Message>Request has "
                            "expired</Message><StringToSign>s3cret</StringToSign></Error>"}},
            "error: HTTP 403 (AccessDenied: Request has expired) after 1 attempt in 0.",
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
            "error: HTTP 503 (Slow Down) after 3 attempts in 0.",
            {"bytes=2-7", "bytes=2-7", "bytes=2-7"}},
        Row{"RetryAfterBeyondTheTimeoutIsNotAwaited",
            kMiddle,
            {{.status = "503 Service Unavailable", .headers = "Retry-After: 3600\r\n"}},
            "error: HTTP 503 (Service Unavailable) after 1 attempt in 0.",
            {"bytes=2-7"}},
        Row{"RetryAfterADateIsComparedWithTheServersClock",
            kMiddle,
            {{.status = "429 Too Many Requests",
              .headers = "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
                         "Retry-After: Sun, 06 Nov 1994 08:49:37 GMT\r\n"},
             {.status = "429 Too Many Requests",
              .headers = "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n"
                         "Retry-After: Sun, 06 Nov 1994 09:49:37 GMT\r\n"}},
            "error: HTTP 429 (Too Many Requests) after 2 attempts in 0.",
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
            "error: expected a body of 8 bytes but found 1 after 3 attempts in 0.",
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
    "after 2 attempts in 0.";

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
        Row{"ServerWithoutIfMatchIsCompared",
            kMiddle,
            {{.reset_at = 3},
             {.status = "206 Partial Content",
              .headers = "Content-Range: bytes 5-7/10\r\nETag: \"v2\"\r\n",
              .error_body = "FGH"}},
            kChanged,
            {"bytes=2-7", "bytes=5-7 if \"v1\""}}),
    name_of);

}  // namespace
}  // namespace torchnpy
