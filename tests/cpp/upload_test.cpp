// Uploads: the table of faults of one PUT, what belongs to parts, and who keeps memory how long.
// tests/test_upload.py has the uploads to S3 as a whole.
#include "transport/upload.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <atomic>
#include <ostream>
#include <thread>

#include "aws_environment.h"
#include "base/checksum.h"
#include "base/wait.h"
#include "http_testing.h"
#include "transport/body_builder.h"
#include "transport/s3.h"
#include "transport/s3_upload.h"

namespace torchnpy {
namespace {

using namespace testing;
using std::chrono::milliseconds;

const Step kMade{.status = "201 Created"};

SharedBytes own(const std::string& text) {
  const auto owner = std::make_shared<const std::string>(text);
  return {as_bytes(*owner), owner};
}

// How an upload ended: "done", or "error: " and the message.
std::string put(TestClient& client, const std::string& url, const std::string& content,
                const TargetOptions& options = {}) {
  try {
    const auto target =
        create_object(make_plain_object(url, client.options), client.context(), options);
    target->write(own(content));
    target->finish();
    return "done";
  } catch (const Error& error) {
    return std::string("error: ") + error.what();
  }
}

Texts bodies_of(const FaultServer& server) {
  Texts bodies;
  for (const FaultServer::Request& request : server.requests()) bodies.push_back(request.body);
  return bodies;
}

// One PUT of "0123456789".
struct Row {
  const char* name;
  std::vector<Step> steps;
  // "done", or how the message goes on after the object's name.
  std::string expected;
  Texts bodies;  // that the server got
  double stall_timeout_s = 30;
};

void PrintTo(const Row& row, std::ostream* out) { *out << row.name; }

class PutFault : public ::testing::TestWithParam<Row> {};

TEST_P(PutFault, EndsAs) {
  const Row& row = GetParam();
  FaultServer server("", row.steps);
  TestClient client;
  client.options->stall_timeout_s = row.stall_timeout_s;
  const std::string url = server.url("/x?secret=1");
  std::string ended = put(client, url, "0123456789");
  const std::string prefix = "error: " + server.url("/x") + ": ";
  if (ended.starts_with(prefix)) ended.erase(0, prefix.size());
  EXPECT_TRUE(ended.starts_with(row.expected)) << ended;
  EXPECT_EQ(bodies_of(server), row.bodies);
  EXPECT_EQ(client.metrics->in_flight.value(), 0);
  EXPECT_EQ(client.metrics->requests, row.bodies.size());
  EXPECT_EQ(client.metrics->errors, row.expected == "done" ? 0 : 1);
}

const std::string kAll = "0123456789";

const Row kRows[] = {
    {"Created", {kMade}, "done", {kAll}},
    {"Ok", {{.status = "200 OK", .error_body = "thanks"}}, "done", {kAll}},
    {"NoContent", {{.raw = "HTTP/1.1 204 No Content\r\n\r\n"}}, "done", {kAll}},
    {"AfterInterimAnswers",
     {{.raw = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"}},
     "done",
     {kAll}},
    {"RetriedAfter503", {{.status = "503 Slow Down"}, kMade}, "done", {kAll, kAll}},
    {"RetriedAfterRetryAfter",
     {{.status = "429 Too Many Requests", .headers = "Retry-After: 0\r\n"}, kMade},
     "done",
     {kAll, kAll}},
    {"AttemptsEnd",
     {{.status = "502 Bad Gateway"}},
     "HTTP 502 (Bad Gateway) after 3 attempts in ",
     {kAll, kAll, kAll}},
    {"ResetInTheBody", {{.request_reset_at = 4}, kMade}, "done", {kAll, kAll}},
    {"StalledInTheBody", {{.request_stall_at = 4}, kMade}, "done", {"", kAll}, 0.1},
    {"StalledForGood",
     {{.stall_at = SIZE_MAX}},
     "stalled: no byte for 0.1 s after 3 attempts",
     {kAll, kAll, kAll},
     0.1},
    {"ResetBeforeTheAnswer", {{.reset_at = SIZE_MAX}, kMade}, "done", {kAll, kAll}},
    {"ClosedBeforeTheAnswer", {{.close_at = SIZE_MAX}, kMade}, "done", {kAll, kAll}},
    {"AnswerCutShort",
     {{.status = "200 OK", .error_body = "abcdef", .close_at = 3}, kMade},
     "done",
     {kAll, kAll}},
    {"Denied",
     {{.status = "403 Forbidden",
       .headers = "Content-Type: text/plain\r\n",
       .error_body = "not you"}},
     "HTTP 403 (not you) after 1 attempt in ",
     {kAll}},
    {"TooLarge",
     {{.status = "413 Content Too Large"}},
     "HTTP 413 (Content Too Large) after 1 attempt in ",
     {kAll}},
    {"RedirectedWithTheBody",
     {{.status = "307 Temporary Redirect", .headers = "Location: /y\r\n"}, kMade},
     "done",
     {kAll, kAll}},
    {"RedirectedForEver",
     {{.status = "308 Permanent Redirect", .headers = "Location: /y\r\n"}},
     "expected at most 10 redirects but found more after 1 attempt",
     Texts(11, kAll)},
    {"SeeOther",
     {{.status = "303 See Other", .headers = "Location: /y\r\n"}},
     "HTTP 303 (See Other) after 1 attempt",
     {kAll}},
    {"NoHttp", {{.raw = "hello\r\n"}}, "the transfer failed (", {kAll}},
    {"TooLongAnswer",
     {{.status = "200 OK", .error_body = std::string(70'000, 'x')}},
     "expected a shorter answer after 1 attempt",
     {kAll}},
};

INSTANTIATE_TEST_SUITE_P(Table, PutFault, ::testing::ValuesIn(kRows),
                         [](const auto& row) { return std::string(row.param.name); });

TEST(Put, AnAnswerThatComesBeforeTheBodyHasGoneEndsIt) {
  FaultServer server("", {{.status = "403 Forbidden", .request_answered_at = 1 << 20}});
  TestClient client;
  const std::string ended = put(client, server.url(), std::string(50 << 20, 'x'));
  EXPECT_TRUE(ended.find(": HTTP 403 (Forbidden) after 1 attempt") != std::string::npos) << ended;
  EXPECT_LT(client.metrics->bytes_sent, 50 << 20);
}

TEST(Put, ABodyThatMovesSlowlyIsNotStalled) {
  // Three seconds, of which each sees a quarter of what fits between the two.
  FaultServer server("", {{.status = "201 Created", .request_pause = milliseconds(15)}});
  TestClient client;
  client.options->stall_timeout_s = 1;
  EXPECT_EQ(put(client, server.url(), std::string(10 << 20, 'x')), "done");
  EXPECT_EQ(client.metrics->requests, 1);
}

TEST(Put, TheDeadlineIsTold) {
  FaultServer server("", {{.request_stall_at = 4}});
  TestClient client;
  client.options->deadline_s = 0.05;
  const std::string ended = put(client, server.url(), "0123456789");
  EXPECT_NE(ended.find(": not done within the deadline of 0.05 s after 1 attempt"),
            std::string::npos)
      << ended;
}

TEST(Put, AKeptConnectionThatDiedIsNoAttempt) {
  FaultServer server("", {{.status = "201 Created", .close_after = true}, kMade});
  TestClient client;
  EXPECT_EQ(put(client, server.url(), "0123"), "done");
  EXPECT_EQ(put(client, server.url(), "4567"), "done");
  EXPECT_EQ(server.requests().back().body, "4567");
  EXPECT_EQ(client.metrics->retries, 0);
}

TEST(Put, GetsAfterItHaveNoBody) {
  FaultServer server("0123456789", {kMade, kGood});
  TestClient client;
  EXPECT_EQ(put(client, server.url(), "0123"), "done");
  TestSink sink;
  client.open(server.url())->start(kMiddle, sink);
  EXPECT_EQ(sink.wait(), "234567");
  EXPECT_EQ(server.requests().back().other.substr(0, 3), "GET");
  EXPECT_EQ(server.requests().back().other.find("Content-Length"), std::string::npos);
}

TEST(Put, TheOwnerIsKeptUntilNothingReadsTheBytes) {
  FaultServer server("", {{.request_stall_at = 1 << 20}});
  TestClient client;
  const auto owner = std::make_shared<const std::string>(20 << 20, 'x');
  std::atomic<bool> stop{false};
  std::thread stopper([&] {
    server.wait_for_requests(1);
    stop = true;
  });
  const auto target =
      create_object(make_plain_object(server.url(), client.options), client.context(), {});
  target->write({as_bytes(*owner), owner});
  EXPECT_EQ(owner.use_count(), 2);
  {
    const StopScope scope(stop);
    EXPECT_THROW(target->finish(), InterruptedError);
  }
  EXPECT_EQ(owner.use_count(), 1);
  EXPECT_EQ(client.metrics->in_flight.value(), 0);
  stopper.join();
}

class Multipart : public AwsEnvironment {
 protected:
  Multipart() {
    set("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE");
    set("AWS_SECRET_ACCESS_KEY", "SECRET");
  }
  std::unique_ptr<Target> create(const FaultServer& server, const TargetOptions& options = {}) {
    client_.options->endpoint = server.url("");
    return create_object(make_s3_object("s3://bucket/x", make_s3_account(client_.options)),
                         client_.context(), options);
  }
  std::string upload(const FaultServer& server, const std::string& content) {
    try {
      const auto target = create(server);
      target->write(own(content));
      target->finish();
      return "done";
    } catch (const Error& error) {
      return error.what();
    }
  }

  TestClient client_;
  const std::string large_ = std::string((16 << 20) + 1, 'x');
};

const Step kBegun{.status = "200 OK",
                  .error_body =
                      "<InitiateMultipartUploadResult><UploadId>a&amp;/b</UploadId>"
                      "</InitiateMultipartUploadResult>"};
const Step kPart{.status = "200 OK", .headers = "ETag: \"<1>\"\r\n"};
const Step kEnded{.status = "200 OK", .error_body = "<CompleteMultipartUploadResult/>"};

TEST_F(Multipart, NamesItsPartsAsTheStoreDid) {
  client_.options->max_in_flight = 1;
  FaultServer server("", {kBegun, kPart, kPart, kPart, kEnded});
  EXPECT_EQ(upload(server, large_), "done");
  const auto requests = server.requests();
  ASSERT_EQ(requests.size(), 5);
  EXPECT_EQ(requests[0].target, "/bucket/x?uploads=");
  EXPECT_EQ(requests[2].target, "/bucket/x?partNumber=2&uploadId=a%26%2Fb");
  EXPECT_EQ(requests[4].target, "/bucket/x?uploadId=a%26%2Fb");
  EXPECT_EQ(requests[4].body,
            "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">"
            "<Part><PartNumber>1</PartNumber><ETag>&quot;&lt;1&gt;&quot;</ETag></Part>"
            "<Part><PartNumber>2</PartNumber><ETag>&quot;&lt;1&gt;&quot;</ETag></Part>"
            "<Part><PartNumber>3</PartNumber><ETag>&quot;&lt;1&gt;&quot;</ETag></Part>"
            "</CompleteMultipartUpload>");
}

TEST_F(Multipart, ABodyIsSentAgainWholeWhereAKeptConnectionDied) {
  client_.options->max_in_flight = client_.options->io_threads = 1;
  FaultServer server("", {kBegun, {.close_at = SIZE_MAX}, kPart, kPart, kPart, kEnded});
  EXPECT_EQ(upload(server, large_), "done");
  EXPECT_EQ(server.requests().at(2).body, std::string(8 << 20, 'x'));
  EXPECT_EQ(client_.metrics->retries, 0);
}

TEST_F(Multipart, AnswersOfNoS3AreErrors) {
  client_.options->max_in_flight = 1;
  FaultServer web("", {kMade});
  EXPECT_EQ(upload(web, large_),
            "s3://bucket/x: expected the UploadId of a multipart upload but found none; is the "
            "endpoint an S3 server?");
  FaultServer tagless("", {kBegun, {.status = "200 OK"}});
  EXPECT_EQ(upload(tagless, large_),
            "s3://bucket/x: expected the ETag of a part but found none; is the endpoint an S3 "
            "server?");
  tagless.wait_for_requests(3);
  FaultServer endless("", {kBegun, kPart, kPart, kPart, {.status = "200 OK"}});
  EXPECT_TRUE(upload(endless, large_).starts_with("s3://bucket/x: ending the upload: HTTP 200"));
}

TEST_F(Multipart, AFailedPartEndsTheOthersAndThenTheUpload) {
  FaultServer server("", {kBegun, {.status = "403 Forbidden"}, {.request_stall_at = 1}});
  client_.options->max_in_flight = 2;
  const auto owner = std::make_shared<const std::string>(40 << 20, 'x');
  const auto target = create(server);
  EXPECT_THROW(
      {
        target->write({as_bytes(*owner), owner});
        target->finish();
      },
      TransportError);
  EXPECT_EQ(owner.use_count(), 1);
  const auto is_abort = [](const FaultServer::Request& request) {
    return request.other.starts_with("DELETE /bucket/x?uploadId=a%26%2Fb ");
  };
  while (!is_abort(server.requests().back())) std::this_thread::sleep_for(milliseconds(1));
  EXPECT_THROW(target->write(own("x")), ArgumentError);
}

TEST(Parts, AreAlikeWhereTheTotalIsKnownAndAtMostTenThousand) {
  constexpr uint64_t kMiB = 1 << 20;
  EXPECT_EQ(plan_part_nbytes(1, 100 * kMiB, 8 * kMiB), 8 * kMiB);
  EXPECT_EQ(plan_part_nbytes(1, 100 * kMiB, 1024), 5 * kMiB);
  for (const uint64_t total : {80'000 * kMiB, 80'000 * kMiB + 1, 10'000 * (5120 * kMiB)}) {
    const uint64_t nbytes = plan_part_nbytes(7, total, 8 * kMiB);
    EXPECT_LE((total + nbytes - 1) / nbytes, 10'000) << total;
    EXPECT_LE(nbytes, 5120 * kMiB);
  }
  EXPECT_THROW(plan_part_nbytes(1, 10'000 * (5120 * kMiB) + 1, 8 * kMiB), UnsupportedError);
}

TEST(Parts, GrowWhereTheTotalIsNot) {
  constexpr uint64_t kTiB = uint64_t{1} << 40;
  for (const uint64_t wanted : {uint64_t{1024}, uint64_t{8} << 20, uint64_t{5} << 30}) {
    uint64_t total = 0;
    uint64_t before = 0;
    for (uint64_t number = 1; number <= 10'000; ++number) {
      const uint64_t nbytes = plan_part_nbytes(number, std::nullopt, wanted);
      EXPECT_GE(nbytes, before);
      EXPECT_LE(nbytes, uint64_t{5} << 30);
      EXPECT_TRUE(number > 5000 || nbytes == std::max(wanted, uint64_t{5} << 20));
      before = nbytes;
      total += nbytes;
    }
    EXPECT_GE(total, 5 * kTiB);
  }
  EXPECT_THROW(plan_part_nbytes(10'001, std::nullopt, 8 << 20), UnsupportedError);
}

TEST(Parts, TellTheObjectsTagAndChecksum) {
  // The MD5s of "a" and "b"; S3's rule gives the tag.
  const std::vector<S3Part> parts{
      {"\"0cc175b9c0f1b6a831c399e269772661\"", 0xC1D04330, 1},
      {"\"92eb5ffee6ae2fec3ad71c777531578f\"", 0xD280B0C4, 1},
  };
  const S3Content content = describe_content(parts);
  EXPECT_EQ(content.etag, "\"96e024ba2074fe77e8e965ba43a704be-2\"");
  EXPECT_EQ(content.nbytes, 2);
  EXPECT_EQ(content.crc32c, compute_crc(ChecksumKind::kCrc32c, as_bytes("ab")));
  HttpResponse response{200, {{"content-length", "2"}, {"etag", content.etag}}, ""};
  EXPECT_TRUE(is_content(response, content));
  response.headers[0].second = "3";
  EXPECT_FALSE(is_content(response, content));
  EXPECT_EQ(describe_content(std::vector<S3Part>{{"\"opaque\"", 1, 1}}).etag, "");
}

TEST(Body, IsReadFromAnyPlace) {
  HttpBody body;
  for (const char* const piece : {"0", "12", "", "345678", "9"}) body.append(own(piece));
  EXPECT_EQ(body.nbytes(), 10);
  for (uint64_t begin = 0; begin <= 10; ++begin) {
    for (size_t step = 1; step <= 11; ++step) {
      HttpBodyCursor cursor(&body);
      cursor.seek(begin);
      std::string text;
      std::vector<uint8_t> room(step);
      while (const size_t nbytes = cursor.read(room)) {
        text += as_text({room.data(), nbytes});
        EXPECT_TRUE(nbytes == step || text.size() == 10 - begin);
      }
      EXPECT_EQ(text, std::string("0123456789").substr(begin));
    }
  }
  EXPECT_EQ(body.crc32c(), compute_crc(ChecksumKind::kCrc32c, as_bytes("0123456789")));
}

std::string text_of(const HttpBody& body) {
  std::string text;
  for (const SharedBytes& piece : body.pieces()) text += as_text(piece.bytes);
  return text;
}

TEST(BodyBuilder, KeepsOwnersAndUsesChunksAgain) {
  BodyBuilder builder({.chunk_nbytes = 8});
  const SharedBytes owned = own("owned");
  builder.add({as_bytes("abc"), nullptr});
  builder.add(owned);
  builder.add({as_bytes("0123456789"), nullptr});
  EXPECT_EQ(builder.nbytes(), 18);
  std::vector<const uint8_t*> chunks;
  {
    const HttpBody body = builder.take();
    EXPECT_EQ(text_of(body), "abcowned0123456789");
    ASSERT_EQ(body.pieces().size(), 4);
    EXPECT_EQ(body.pieces()[1].bytes.data(), owned.bytes.data());
    for (const size_t i : {0, 2, 3}) chunks.push_back(body.pieces()[i].bytes.data());
  }
  EXPECT_EQ(builder.nbytes(), 0);
  builder.add({as_bytes("again"), nullptr});
  const HttpBody body = builder.take();
  EXPECT_NE(std::ranges::find(chunks, body.pieces()[0].bytes.data()), chunks.end());
}

TEST(BodyBuilder, PutsWhatIsTooMuchForMemoryIntoAFile) {
  constexpr size_t kChunk = 1 << 20;
  const std::string object = make_object(5 * kChunk + 100'001);
  BodyBuilder builder({.chunk_nbytes = kChunk, .memory_nbytes = kChunk});
  for (size_t at = 0; at < object.size(); at += 7'777) {
    builder.add({as_bytes(std::string_view(object).substr(at, 7'777)), nullptr});
  }
  const HttpBody body = builder.take();
  EXPECT_EQ(text_of(body), object);
}

}  // namespace
}  // namespace torchnpy
