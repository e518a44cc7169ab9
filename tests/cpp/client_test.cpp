#include "transport/client.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "aws_environment.h"
#include "base/error.h"
#include "fault_server.h"
#include "transport/http.h"

namespace torchnpy {
namespace {

struct BadOption {
  const char* parameter;
  const char* found;
  std::function<void(ClientOptions&)> set;
};

class OptionTest : public ::testing::TestWithParam<BadOption> {};

TEST_P(OptionTest, IsRefusedByNameAndValue) {
  ClientOptions options;
  GetParam().set(options);
  EXPECT_TRUE(has(message_of<ArgumentError>([&] { Client::make(options); }),
                  {std::string(GetParam().parameter) + ": expected ",
                   std::string("but found ") + GetParam().found},
                  {"SECRET"}));
}

INSTANTIATE_TEST_SUITE_P(
    Client, OptionTest,
    ::testing::Values(
        BadOption{"max_in_flight", "0", [](auto& o) { o.max_in_flight = 0; }},
        BadOption{"io_threads", "-1", [](auto& o) { o.io_threads = -1; }},
        BadOption{"part_nbytes", "7", [](auto& o) { o.part_nbytes = 7; }},
        BadOption{"connect_timeout_s", "0", [](auto& o) { o.connect_timeout_s = 0; }},
        BadOption{"stall_timeout_s", "nan", [](auto& o) { o.stall_timeout_s = std::nan(""); }},
        BadOption{"deadline_s", "-1", [](auto& o) { o.deadline_s = -1; }},
        BadOption{"retry_timeout_s", "inf", [](auto& o) { o.retry_timeout_s = INFINITY; }},
        BadOption{"retries", "0", [](auto& o) { o.retries = 0; }},
        BadOption{"profile", "\"\"", [](auto& o) { o.profile = ""; }},
        BadOption{"ca_bundle", "\"\"", [](auto& o) { o.ca_bundle = ""; }},
        BadOption{"region", "\"\"", [](auto& o) { o.region = ""; }},
        BadOption{"endpoint", "no scheme", [](auto& o) { o.endpoint = "h:1"; }},
        BadOption{"headers", "\"a b\"", [](auto& o) { o.headers = {{"a b", "SECRET"}}; }},
        BadOption{"headers", "such a byte", [](auto& o) { o.headers = {{"a", "SECRET\r\nb: c"}}; }},
        BadOption{"headers", "\"Range\"", [](auto& o) { o.headers = {{"Range", "SECRET"}}; }},
        BadOption{"headers", "\"a\" twice",
                  [](auto& o) { o.headers = {{"a", "1"}, {"A", "2"}}; }}));

class ClientTest : public AwsEnvironment {
 protected:
  std::string name(const std::string& url) { return Client::make({})->open(url)->name(); }
};

TEST_F(ClientTest, OpensPathsAndFileUrls) {
  const std::string path = write("a b%.npy", "x");
  const std::string encoded = home_ / "a%20b%25.npy";
  EXPECT_EQ(name(path), path);
  EXPECT_EQ(name("file://" + encoded), path);
  EXPECT_EQ(name("FILE://LocalHost" + encoded), path);
}

TEST_F(ClientTest, RefusesFileUrlsThatAreNone) {
  for (const char* const bad : {"file://host/p", "file://", "file:///%zz", "file:///a%2"}) {
    EXPECT_TRUE(has(message_of<ArgumentError>([&] { name(bad); }), {bad}));
  }
}

TEST_F(ClientTest, RefusesOtherSchemesAndNamesTheAllowed) {
  EXPECT_TRUE(has(message_of<ArgumentError>([&] { name("gs://b/k?SECRET"); }),
                  {"gs://: expected s3://, http://, https://, file:// or a path"}, {"SECRET"}));
}

TEST_F(ClientTest, RefusesPathsThatAreNone) {
  EXPECT_TRUE(has(message_of<ArgumentError>([&] { name(""); }), {"empty"}));
  EXPECT_TRUE(has(message_of<ArgumentError>([&] { name(std::string("a\0b", 3)); }), {"NUL"}));
  EXPECT_TRUE(has(message_of<ArgumentError>([&] { name("file:///a%00b"); }), {"NUL"}));
}

TEST_F(ClientTest, TakesAColonInAPathForAPath) {
  for (const char* const path : {"./no such:/b", "no such:b", "./http:/b", "https", "s3"}) {
    EXPECT_TRUE(has(message_of<TransportError>([&] { name(path); }),
                    {std::string(path) + ": cannot open"}));
  }
}

TEST_F(ClientTest, RefusesTypingErrorsInUrlsWithoutTheirSecrets) {
  struct {
    const char* url;
    const char* name;
  } const cases[] = {
      {" https://h/x?X-Amz-Signature=SECRET", " https://h/x: "},
      {"\thttps://u:SECRET@h/x", "?https://h/x: "},
      {"https:/h/x?SECRET", "https:/h/x: "},
      {"HTTP:h?SECRET", "HTTP:h: "},
      {"  s3:b/k", "  s3:b/k: "},
      {"://h/x?SECRET", "://h/x: "},
      {"ht tps://h/x?SECRET", "ht tps://h/x: "},
      {"https:/u:SECRET@h/x", "https:/h/x: "},
      {"x?https://SECRET", "x: "},
  };
  for (const auto& [url, expected] : cases) {
    const std::string message = message_of<ArgumentError>([&, bad = url] { name(bad); });
    EXPECT_TRUE(starts_with(message, expected));
    EXPECT_TRUE(has(message, {"expected s3://, http://, https://, file:// or a path"}, {"SECRET"}));
  }
}

TEST_F(ClientTest, OpensS3WithoutSendingAnything) {
  set("AWS_ACCESS_KEY_ID", "a");
  set("AWS_SECRET_ACCESS_KEY", "b");
  const auto client = Client::make({});
  EXPECT_EQ(client->open("s3://bucket/k")->name(), "s3://bucket/k");
  EXPECT_EQ(client->metrics().at("requests"), 0);
}

TEST_F(ClientTest, SaysWhereItLookedForCredentials) {
  const std::string message = message_of<TransportError>([&] { name("s3://bucket/k"); });
  EXPECT_TRUE(has(message, {"credentials=\"anonymous\""}));
  EXPECT_TRUE(starts_with(message, "s3://bucket/k: expected credentials"));
  EXPECT_TRUE(
      starts_with(message_of<TransportError>([&] { Client::make({})->list("s3://bucket/p", ""); }),
                  "s3://bucket/p: expected credentials"));
  EXPECT_TRUE(starts_with(message_of<ArgumentError>([&] { name("s3://bucket"); }),
                          "s3://bucket: expected s3://bucket/key"));
}

TEST_F(ClientTest, NamesUrlsThatAreNoneWithoutTheirSecrets) {
  struct {
    const char* url;
    const char* name;
  } const cases[] = {
      {"https://h:0/x?SECRET", "https://h:0/x: expected a port"},
      {"https://u:SECRET@h:0/x#SECRET", "https://h:0/x: expected a port"},
      {"https://u:SECRET/SECRET@h/x", "https://u: expected a port"},
      {"https://u:SECRET?SECRET@h/x", "https://u: expected a port"},
      {"https://h/a\tb?SECRET", "https://h/a?b: expected a URL without spaces"},
      {"https:///x", "https:///x: expected a host"},
  };
  for (const auto& [url, expected] : cases) {
    const std::string message = message_of<ArgumentError>([&, bad = url] { name(bad); });
    EXPECT_TRUE(starts_with(message, expected));
    EXPECT_TRUE(has(message, {}, {"SECRET"}));
  }
}

TEST_F(ClientTest, ListsOnlyS3) {
  const auto client = Client::make({});
  EXPECT_TRUE(has(message_of<UnsupportedError>([&] { client->list("https://h/p?SECRET", ""); }),
                  {"HTTP has no listings"}, {"SECRET"}));
  EXPECT_TRUE(has(message_of<UnsupportedError>([&] { client->list("folder", ""); }), {"a path"}));
}

TEST_F(ClientTest, KeepsOneDefaultUntilAnotherIsSet) {
  const auto first = Client::default_client();
  EXPECT_EQ(Client::default_client(), first);
  const auto other = Client::make({});
  Client::set_default_client(other);
  EXPECT_EQ(Client::default_client(), other);
  Client::set_default_client(nullptr);
  EXPECT_NE(Client::default_client(), other);
}

// S3 over a real connection.
class S3ClientTest : public AwsEnvironment {
 protected:
  using Server = ::torchnpy::testing::FaultServer;
  using Step = ::torchnpy::testing::Step;

  S3ClientTest() {
    set("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE");
    set("AWS_SECRET_ACCESS_KEY", "SECRET");
  }
  static std::shared_ptr<Client> connect(const Server& server) {
    ClientOptions options;
    options.endpoint = server.url("");
    options.backoff_s = 0.001;
    options.proxy = "";
    return Client::make(options);
  }
  static std::string load(Client& client, const std::string& url) {
    return read_all(*client.open(url), 1 << 20);
  }
  static Step error(const std::string& status, const std::string& code,
                    const std::string& headers = "") {
    Step step;
    step.status = status;
    step.headers = headers;
    step.error_body = "<Error><Code>" + code + "</Code><Message>Words.</Message></Error>";
    return step;
  }
  static Step listing(const std::string& content) {
    Step step;
    step.status = "200 OK";
    step.error_body = "<ListBucketResult>" + content + "</ListBucketResult>";
    return step;
  }
};

TEST_F(S3ClientTest, FindsTheRegionOnceForABucket) {
  Server server("content", {error("301 Moved Permanently", "PermanentRedirect",
                                  "x-amz-bucket-region: eu-west-3\r\n"),
                            Step{}});
  const auto client = connect(server);
  EXPECT_EQ(load(*client, "s3://b/k"), "content");
  EXPECT_EQ(load(*client, "s3://b/l"), "content");
  const auto requests = server.requests();
  ASSERT_EQ(requests.size(), 3u);
  EXPECT_TRUE(has(requests[0].other, {"/us-east-1/s3/"}));
  EXPECT_TRUE(has(requests[1].other, {"/eu-west-3/s3/"}));
  EXPECT_TRUE(has(requests[2].other, {"/eu-west-3/s3/"}));
  EXPECT_EQ(requests[2].target, "/b/l");
}

TEST_F(S3ClientTest, GivesUpWhenTheRegionDoesNotHelp) {
  Server server("content", {error("400 Bad Request", "AuthorizationHeaderMalformed",
                                  "x-amz-bucket-region: us-east-1\r\n")});
  EXPECT_TRUE(has(message_of<TransportError>([&] { load(*connect(server), "s3://b/k?x"); }),
                  {"s3://b/k?x: HTTP 400 (AuthorizationHeaderMalformed: Words.)"},
                  {"SECRET", "AKIDEXAMPLE"}));
  EXPECT_EQ(server.requests().size(), 4u);
}

TEST_F(S3ClientTest, SignsWithTheClockOfTheServer) {
  Server server("content", {error("403 Forbidden", "RequestTimeTooSkewed",
                                  "Date: Tue, 27 Mar 2007 19:36:42 GMT\r\n"),
                            Step{}});
  EXPECT_EQ(load(*connect(server), "s3://b/k"), "content");
  EXPECT_TRUE(has(server.requests().at(1).other, {"/20070327/us-east-1/s3/"}));
}

TEST_F(S3ClientTest, TriesAgainWhenTheServerAsksToSlowDown) {
  Server server("content", {error("503 Slow Down", "SlowDown"),
                            error("400 Bad Request", "RequestTimeout"), Step{}});
  EXPECT_EQ(load(*connect(server), "s3://b/k"), "content");
  EXPECT_EQ(server.requests().size(), 3u);
}

TEST_F(S3ClientTest, ListsPageAfterPage) {
  Server server("", {listing("<IsTruncated>true</IsTruncated><NextContinuationToken>t/1"
                             "</NextContinuationToken><Contents><Key>p/a</Key><Size>3</Size>"
                             "</Contents>"),
                     listing("<Contents><Key>p/b</Key><Size>4</Size></Contents>")});
  const auto client = connect(server);
  const ObjectPage first = client->list("s3://b/p/", "");
  const ObjectPage second = client->list("s3://b/p/", first.continuation);
  EXPECT_EQ(first.objects.at(0).url, "s3://b/p/a");
  EXPECT_EQ(second.objects.at(0).nbytes, 4u);
  EXPECT_EQ(second.continuation, "");
  EXPECT_EQ(server.requests().at(1).target,
            "/b?continuation-token=t%2F1&encoding-type=url&list-type=2&prefix=p%2F");
  EXPECT_EQ(server.ranges().at(0), "whole");
}

TEST_F(S3ClientTest, ADeniedListingNamesThePrefix) {
  Server server("", {error("403 Forbidden", "AccessDenied")});
  try {
    connect(server)->list("s3://b/p/", "");
    FAIL();
  } catch (const TransportError& thrown) {
    EXPECT_EQ(thrown.kind(), TransportError::Kind::kDenied);
    EXPECT_TRUE(starts_with(thrown.what(), "s3://b/p/: HTTP 403 (AccessDenied: Words.)"));
  }
}

}  // namespace
}  // namespace torchnpy
