#include "transport/client.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "aws_environment.h"
#include "base/error.h"

namespace torchnpy {
namespace {

struct BadOption {
  const char* parameter;
  const char* found;
  std::function<void(ClientOptions&)> set;
};

class OptionTest : public testing::TestWithParam<BadOption> {};

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
    testing::Values(
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
  EXPECT_TRUE(has(message_of<TransportError>([&] { name("no such/a://b"); }),
                  {"no such/a://b: cannot open"}));
}

TEST_F(ClientTest, OpensS3WithoutSendingAnything) {
  set("AWS_ACCESS_KEY_ID", "a");
  set("AWS_SECRET_ACCESS_KEY", "b");
  const auto client = Client::make({});
  EXPECT_EQ(client->open("s3://bucket/k")->name(), "s3://bucket/k");
  EXPECT_EQ(client->metrics().at("requests"), 0);
}

TEST_F(ClientTest, SaysWhereItLookedForCredentials) {
  EXPECT_TRUE(has(message_of<TransportError>([&] { name("s3://bucket/k"); }),
                  {"credentials=\"anonymous\""}));
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

}  // namespace
}  // namespace torchnpy
