#include "transport/http.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "http_testing.h"
#include "transport/utf8.h"

namespace torchnpy {
namespace {

using namespace testing;

TEST(Http, FirstAnswerTellsTheSize) {
  FaultServer server("0123456789");
  TestClient client;
  const auto source = client.open(server.url());
  EXPECT_EQ(source->nbytes(), std::nullopt);
  TestSink first;
  source->start({2, 4}, first);
  EXPECT_EQ(first.wait(), "2345");
  EXPECT_EQ(source->nbytes(), 10);
  TestSink second;
  source->start({8, 99}, second);
  EXPECT_EQ(second.wait(), "89");
  TestSink suffix;
  source->start({0, 3, true}, suffix);
  EXPECT_EQ(suffix.wait(), "789");
  TestSink outside;
  source->start({10, 1}, outside);
  EXPECT_EQ(outside.wait(), "");
  EXPECT_EQ(server.ranges(), (Texts{"bytes=2-5", "bytes=8-9 if \"v1\"", "bytes=7-9 if \"v1\""}));
  EXPECT_EQ(server.connections(), 1);
}

TEST(Http, EmptyObjectIsEmpty) {
  for (const Range range : {Range{}, Range{0, 65536}, Range{0, 65536, true}}) {
    FaultServer server("");
    TestClient client;
    const auto source = client.open(server.url());
    TestSink sink;
    source->start(range, sink);
    EXPECT_EQ(sink.wait(), "");
    EXPECT_EQ(source->nbytes(), 0);
    EXPECT_EQ(server.requests().size(), 1);
  }
}

TEST(Http, BodyOfUnknownLengthTellsTheSize) {
  FaultServer server("0123456789", {{.chunked = true}});
  TestClient client;
  const auto source = client.open(server.url());
  EXPECT_EQ(read_all(*source, 10), "0123456789");
  EXPECT_EQ(source->nbytes(), 10);
}

TEST(Http, ReadAllRefusesMoreThanItsLimit) {
  FaultServer server(make_object(100'000));
  TestClient client;
  EXPECT_EQ(read_all(*client.open(server.url()), 100'000), make_object(100'000));
  EXPECT_THROW(read_all(*client.open(server.url()), 99'999), TransportError);
}

TEST(Http, RoomInSmallPiecesIsFilledInOrder) {
  const std::string object = make_object(100'000);
  FaultServer server(object);
  TestClient client;
  TestSink sink;
  sink.room_nbytes = 7;
  client.open(server.url())->start({1, 99'000}, sink);
  EXPECT_EQ(sink.wait(), object.substr(1, 99'000));
}

TEST(Http, SinkThatWantsNoMoreEndsTheReadEarly) {
  const std::string object = make_object(1 << 20);
  FaultServer server(object);
  TestClient client;
  const auto source = client.open(server.url());
  TestSink sink;
  sink.limit = 1;
  sink.room_nbytes = 100;
  source->start({}, sink);
  EXPECT_EQ(sink.wait(), object.substr(0, 100));
}

TEST(Http, SmallRestIsReadToKeepTheConnection) {
  FaultServer server(make_object(10'000), {{.ignore_range = true}});
  TestClient client;
  for (int i = 0; i < 3; ++i) {
    TestSink sink;
    sink.limit = sink.room_nbytes = 100;
    client.open(server.url())->start({0, 100}, sink);
    EXPECT_EQ(sink.wait(), make_object(100));
  }
  EXPECT_EQ(server.connections(), 1);
}

TEST(Http, WhatASinkThrowsComesBack) {
  class ThrowingSink final : public TestSink {
    MutableBytes room(uint64_t, size_t) override { throw FormatError("no such header"); }
  };
  FaultServer server("0123456789");
  TestClient client;
  ThrowingSink sink;
  client.open(server.url())->start(kMiddle, sink);
  EXPECT_EQ(sink.wait(), "error: no such header");
}

TEST(Http, SinkThatCanRestartReadsTheNewVersion) {
  FaultServer server("0123456789", {{.reset_at = 3}, {.object = "ABCDEFGHIJ", .etag = "\"v2\""}});
  TestClient client;
  TestSink sink;
  sink.can_restart = true;
  const auto source = client.open(server.url());
  source->start(kMiddle, sink);
  EXPECT_EQ(sink.wait(), "CDEFGH");
  EXPECT_EQ(sink.restarts, 1);
  EXPECT_EQ(server.ranges(), (Texts{"bytes=2-7", "bytes=5-7 if \"v1\"", "bytes=2-7"}));
}

TEST(Http, ObjectThatChangesTwiceIsGivenUp) {
  FaultServer server("0123456789", {{.reset_at = 3},
                                    {.object = "ABCDEFGHIJ", .etag = "\"v2\""},
                                    {.etag = "\"v2\"", .reset_at = 3},
                                    {.object = "abcdefghij", .etag = "\"v3\""}});
  TestClient client;
  client.options->retries = 9;
  TestSink sink;
  sink.can_restart = true;
  client.open(server.url())->start(kMiddle, sink);
  EXPECT_NE(sink.wait().find("it changed while it was read"), std::string::npos);
  EXPECT_EQ(sink.restarts, 1);
}

TEST(Http, ReadsOfOneSourceNeverMixVersions) {
  FaultServer server("0123456789", {kGood, {.object = "ABCDEFGHIJ", .etag = "\"v2\""}});
  TestClient client;
  const auto source = client.open(server.url());
  TestSink first;
  source->start({0, 4}, first);
  EXPECT_EQ(first.wait(), "0123");
  TestSink second;
  second.can_restart = true;
  source->start({4, 4}, second);
  EXPECT_NE(second.wait().find("it changed while it was read"), std::string::npos);
  EXPECT_EQ(second.restarts, 0);
  EXPECT_EQ(server.ranges(), (Texts{"bytes=0-3", "bytes=4-7 if \"v1\""}));
}

TEST(Http, ErrorsTellTheirKind) {
  const auto kind = [](Step step) {
    FaultServer server("0123456789", {step});
    TestClient client;
    client.options->stall_timeout_s = 0.05;
    client.options->retries = 1;
    TestSink sink;
    client.open(server.url())->start({}, sink);
    const TransportError error = sink.transport_error();
    return std::pair(error.kind(), error.http_status());
  };
  using Kind = TransportError::Kind;
  EXPECT_EQ(kind({.status = "404 Not Found"}), std::pair(Kind::kNotFound, 404));
  EXPECT_EQ(kind({.status = "410 Gone"}), std::pair(Kind::kNotFound, 410));
  EXPECT_EQ(kind({.status = "401 Unauthorized"}), std::pair(Kind::kDenied, 401));
  EXPECT_EQ(kind({.status = "403 Forbidden"}), std::pair(Kind::kDenied, 403));
  EXPECT_EQ(kind({.status = "500 Internal Server Error"}), std::pair(Kind::kOther, 500));
  EXPECT_EQ(kind({.stall_at = 3}), std::pair(Kind::kTimeout, 200));
  EXPECT_EQ(kind({.reset_at = SIZE_MAX}), std::pair(Kind::kOther, 0));
}

TEST(Http, LongErrorBodiesAreCut) {
  FaultServer server("", {{.status = "400 Bad Request", .error_body = std::string(1 << 20, 'x')}});
  TestClient client;
  TestSink sink;
  client.open(server.url())->start({}, sink);
  EXPECT_NE(sink.wait().find("HTTP 400 (Bad Request) after 1 attempt"), std::string::npos);
}

TEST(Http, StallIsRetriedAndResumed) {
  FaultServer server("0123456789", {{.stall_at = 4}, kGood});
  TestClient client;
  client.options->stall_timeout_s = 0.05;
  TestSink sink;
  client.open(server.url())->start({}, sink);
  EXPECT_EQ(sink.wait(), "0123456789");
  EXPECT_EQ(server.ranges(), (Texts{"whole", "bytes=4-9 if \"v1\""}));
  EXPECT_EQ(client.metrics->retries, 1);
}

TEST(Http, StallForEverIsATimeout) {
  FaultServer server("0123456789", {{.stall_at = 0}});
  TestClient client;
  client.options->stall_timeout_s = 0.05;
  TestSink sink;
  client.open(server.url())->start({}, sink);
  EXPECT_NE(sink.wait().find(": stalled: no byte for 0.05 s after 3 attempts in "),
            std::string::npos);
}

TEST(Http, DeadlineEndsAllAttempts) {
  FaultServer server("0123456789", {{.stall_at = 4}});
  TestClient client;
  client.options->deadline_s = 0.1;
  TestSink sink;
  client.open(server.url())->start({}, sink);
  EXPECT_NE(sink.wait().find(": not done within the deadline of 0.1 s after 1 attempt in "),
            std::string::npos);
  EXPECT_EQ(sink.transport_error().kind(), TransportError::Kind::kTimeout);
}

TEST(Http, RetryAfterIsTheLeastDelay) {
  const Step busy{.status = "503 Service Unavailable", .headers = "Retry-After: 1\r\n"};
  for (const double retry_timeout_s : {0.9, 60.0}) {
    FaultServer server("0123456789", {busy, kGood});
    TestClient client;
    client.options->retry_timeout_s = retry_timeout_s;
    TestSink sink;
    client.open(server.url())->start({}, sink);
    const std::string result = sink.wait();
    if (retry_timeout_s < 1) {
      EXPECT_NE(result.find("HTTP 503 (Service Unavailable) after 1 attempt"), std::string::npos);
    } else {
      EXPECT_EQ(result, "0123456789");
    }
  }
}

TEST(Http, RefusedConnectionSaysSo) {
  int port = 0;
  {
    FaultServer server("");
    port = server.port();
  }
  TestClient client;
  TestSink sink;
  client.open("http://me:pw@127.0.0.1:" + std::to_string(port) + "/x?token=s3cret")
      ->start({}, sink);
  const std::string text = sink.wait();
  EXPECT_NE(text.find("/x: Connection refused ("), std::string::npos) << text;
  EXPECT_NE(text.find(") after 3 attempts in "), std::string::npos) << text;
  EXPECT_EQ(text.find("s3cret"), std::string::npos) << text;
  EXPECT_EQ(text.find("pw"), std::string::npos) << text;
}

TEST(Http, UnknownHostSaysSo) {
  TestClient client;
  client.options->retries = 1;
  TestSink sink;
  client.open("http://no-such-host.invalid/x")->start({}, sink);
  EXPECT_NE(sink.wait().find("http://no-such-host.invalid/x: the host name was not resolved ("),
            std::string::npos);
}

TEST(Http, PlainUrlKeepsItsQueryAndHidesIt) {
  FaultServer server("0123456789", {{.status = "404 Not Found"}});
  TestClient client;
  client.options->headers = {{"X-Mine", "1"}, {"X-Empty", ""}};
  std::string url = server.url("/a/../b%2Fc?token=s3cret#fragment");
  url.insert(sizeof "http://" - 1, "me:p%40w@");
  TestSink sink;
  client.open(url)->start({}, sink);
  EXPECT_EQ(sink.wait().find("error: " + server.url("/a/../b%2Fc") + ": HTTP 404"), 0);
  const FaultServer::Request request = server.requests().at(0);
  EXPECT_EQ(request.target, "/a/../b%2Fc?token=s3cret");
  EXPECT_EQ(request.authorization, "Basic bWU6cEB3");
  EXPECT_EQ(request.accept_encoding, "identity");
  EXPECT_NE(request.other.find("\r\nX-Mine: 1\r\n"), std::string::npos);
  EXPECT_NE(request.other.find("\r\nX-Empty:\r\n"), std::string::npos);
}

TEST(Http, WrongUrlsAreRefusedWithoutTheirSecrets) {
  const auto refusal = [](const std::string& url) -> std::string {
    try {
      make_plain_object(url, std::make_shared<ClientOptions>());
    } catch (const ArgumentError& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_EQ(refusal("http://host/a b"),
            "expected a URL without spaces and control characters but found 0x20 at byte 13; "
            "percent-encode it");
  EXPECT_EQ(refusal("ftp://host/x"),
            "expected a URL that begins with http:// or https:// but found \"ftp\"");
  EXPECT_EQ(refusal("http:///x"), "expected a host in the URL but found none");
  EXPECT_EQ(refusal("http://me:pw/rd@host/x").find("pw"), std::string::npos);
  EXPECT_EQ(refusal("http://host:70000/x"),
            "expected a port from 1 to 65535 in the URL but found another text");
}

TEST(Http, HeadersOfSeveralLinesAreRefused) {
  auto options = std::make_shared<ClientOptions>();
  options->headers = {{"X-Mine", "1\r\nX-Other: 2"}};
  EXPECT_THROW(make_plain_object("http://host/x", options), ArgumentError);
}

Step redirect_to(const std::string& location, const std::string& status = "302 Found") {
  return {.status = status, .headers = "Location: " + location + "\r\n"};
}

TEST(Http, RedirectOnTheSameHostKeepsTheHeaders) {
  FaultServer server("0123456789", {redirect_to("../b/./y.npy?k=1"), kGood});
  TestClient client;
  client.options->headers = {{"Authorization", "Bearer s3cret"}};
  TestSink sink;
  client.open(server.url("/a/x.npy"))->start(kMiddle, sink);
  EXPECT_EQ(sink.wait(), "234567");
  EXPECT_EQ(server.requests().at(1).target, "/b/y.npy?k=1");
  EXPECT_EQ(server.requests().at(1).authorization, "Bearer s3cret");
  EXPECT_EQ(client.metrics->redirects, 1);
  EXPECT_EQ(client.metrics->retries, 0);
}

TEST(Http, RedirectToAnotherHostCarriesNoSecrets) {
  FaultServer other("0123456789");
  FaultServer server("", {redirect_to(other.url("/y.npy?k=1"), "307 Temporary Redirect")});
  TestClient client;
  client.options->headers = {{"Authorization", "Bearer s3cret"}, {"X-Mine", "1"}};
  TestSink sink;
  client.open(server.url())->start(kMiddle, sink);
  EXPECT_EQ(sink.wait(), "234567");
  const FaultServer::Request request = other.requests().at(0);
  EXPECT_EQ(request.target, "/y.npy?k=1");
  EXPECT_EQ(request.range, "bytes=2-7");
  EXPECT_EQ(request.accept_encoding, "identity");
  EXPECT_EQ(request.authorization, "");
  EXPECT_EQ(request.other.find("X-Mine"), std::string::npos);
}

TEST(Http, RedirectBackFromAnotherHostCarriesNoSecrets) {
  FaultServer server("0123456789");
  FaultServer other("", {redirect_to(server.url("/chosen-by-other"))});
  FaultServer first("", {redirect_to(other.url())});
  TestClient client;
  client.options->headers = {{"Authorization", "Bearer s3cret"}};
  TestSink sink;
  client.open(first.url())->start(kMiddle, sink);
  EXPECT_EQ(sink.wait(), "234567");
  EXPECT_EQ(server.requests().at(0).authorization, "");
}

TEST(Http, FaultAfterARedirectBeginsAtTheFirstUrl) {
  FaultServer other("0123456789", {{.reset_at = 2}, kGood});
  FaultServer server("", {redirect_to(other.url())});
  TestClient client;
  TestSink sink;
  client.open(server.url())->start(kMiddle, sink);
  EXPECT_EQ(sink.wait(), "234567");
  EXPECT_EQ(server.ranges(), (Texts{"bytes=2-7", "bytes=4-7 if \"v1\""}));
  EXPECT_EQ(other.ranges(), (Texts{"bytes=2-7", "bytes=4-7 if \"v1\""}));
}

TEST(Http, EndlessRedirectsEnd) {
  FaultServer server("", {redirect_to("/again")});
  TestClient client;
  TestSink sink;
  client.open(server.url())->start({}, sink);
  EXPECT_NE(sink.wait().find("expected at most 10 redirects but found more"), std::string::npos);
  EXPECT_EQ(server.requests().size(), 11);
}

TEST(Http, RedirectToAnotherSchemeIsRefused) {
  for (const char* location : {"ftp://127.0.0.1/x?s3cret", "file:///etc/passwd", "//"}) {
    FaultServer server("", {redirect_to(location)});
    TestClient client;
    TestSink sink;
    client.open(server.url())->start({}, sink);
    const std::string text = sink.wait();
    EXPECT_NE(text.find("HTTP 302 to a Location that cannot be followed"), std::string::npos)
        << text;
    EXPECT_EQ(text.find("s3cret"), std::string::npos) << text;
  }
}

TEST(Http, RedirectFromHttpsToHttpIsRefused) {
  FaultServer plain("0123456789");
  FaultServer server("", {redirect_to(plain.url() + "?s3cret")}, true);
  TestClient client;
  client.options->ca_bundle = server.ca_bundle();
  TestSink sink;
  client.open(server.url())->start({}, sink);
  EXPECT_NE(sink.wait().find("HTTP 302 from https to " + plain.url() + ", which is not followed"),
            std::string::npos);
  EXPECT_EQ(plain.requests().size(), 0);
}

// How S3 learns a bucket's region, for one.
TEST(Http, ObjectDecidesWhatAnErrorMeans) {
  class LearningObject final : public HttpObject {
   public:
    explicit LearningObject(std::string url) : url_(std::move(url)) {}
    const std::string& name() const override { return name_; }
    HttpRequest make_request(HttpCommand command) override {
      command.headers.emplace_back("Authorization", region_);
      return {url_, std::move(command.headers)};
    }
    Verdict judge(const HttpResponse& response) override {
      region_ = response.header("x-amz-bucket-region");
      return {Verdict::Action::kRetryNow, "wrong region"};
    }

   private:
    const std::string name_ = "s3://b/k";
    const std::string url_;
    std::string region_ = "us-east-1";
  };
  FaultServer server("0123456789", {{.status = "301 Moved Permanently",
                                     .headers = "x-AMZ-Bucket-Region: eu-west-1\r\n"},
                                    {.headers = "x-amz-bucket-region: eu-west-1\r\n"}});
  TestClient client;
  client.options->retries = 1;
  const auto object = std::make_shared<LearningObject>(server.url());
  TestSink sink;
  open_http(object, client.context())->start(kMiddle, sink);
  EXPECT_EQ(sink.wait(), "234567");
  EXPECT_EQ(server.requests().at(1).authorization, "eu-west-1");

  FaultServer stubborn("", {{.status = "301 Moved Permanently"}});
  TestSink refused;
  open_http(std::make_shared<LearningObject>(stubborn.url()), client.context())
      ->start(kMiddle, refused);
  EXPECT_EQ(refused.wait().find("error: s3://b/k: HTTP 301 (wrong region) after 4 attempts in "),
            0);
}

TEST(Http, WordsOfTheServerAreCutBetweenCharacters) {
  for (size_t before = 296; before <= 300; ++before) {
    FaultServer server("", {{.status = "400 Bad Request",
                             .headers = "Content-Type: text/plain\r\n",
                             .error_body = std::string(before, 'x') + "\U0001F600 and more"}});
    TestClient client;
    TestSink sink;
    client.open(server.url())->start({}, sink);
    const std::string expected =
        '(' + std::string(before, 'x') + (before == 296 ? "\U0001F600)" : ")");
    EXPECT_NE(sink.wait().find(expected), std::string::npos) << before;
  }
}

TEST(Http, BytesThatAreNoUtf8AreCutAtTheLimit) {
  EXPECT_EQ(cut_utf8(std::string(20, '\x80'), 10).size(), 10);
  EXPECT_EQ(cut_utf8("\x80\x80\x80", 2), "");
  EXPECT_EQ(cut_utf8("ab", 2), "ab");
}

TEST(Http, ErrorsOfTheSinkAndOfTheEngineNameTheObject) {
  class RefusingSink : public TestSink {
   public:
    MutableBytes room(uint64_t, size_t) override {
      throw TransportError("no room", TransportError::Kind::kDenied, 7);
    }
  };
  FaultServer server("0123456789");
  TestClient client;
  const auto source = client.open(server.url());
  RefusingSink refusing;
  source->start({}, refusing);
  const TransportError error = refusing.transport_error();
  EXPECT_EQ(error.what(), server.url() + ": no room");
  EXPECT_EQ(error.kind(), TransportError::Kind::kDenied);
  EXPECT_EQ(error.http_status(), 7);

  const std::string long_url = server.url() + std::string(9'000'000, 'x');
  TestSink sink;
  client.open(long_url)->start({}, sink);
  EXPECT_TRUE(sink.wait().starts_with("error: " + long_url + ": expected a URL that can be sent"));

  try {
    read_all(*source, 4);
    FAIL();
  } catch (const TransportError& thrown) {
    EXPECT_EQ(thrown.what(), server.url() + ": expected at most 4 bytes but found more");
  }
}

}  // namespace
}  // namespace torchnpy
