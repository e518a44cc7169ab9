#include "transport/s3.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <chrono>

#include "aws_environment.h"
#include "base/error.h"
#include "transport/s3_site.h"

namespace torchnpy {
namespace {

using Action = Verdict::Action;

class S3Test : public AwsEnvironment {
 protected:
  S3Test() {
    set("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE");
    set("AWS_SECRET_ACCESS_KEY", "SECRET");
  }
  void make_account() {
    account_ = make_s3_account(std::make_shared<const ClientOptions>(options_));
  }
  std::shared_ptr<HttpObject> object(const std::string& url) {
    if (account_ == nullptr) make_account();
    return make_s3_object(url, account_);
  }
  HttpRequest request(const std::string& url) { return object(url)->make_request({}); }
  std::string url(const std::string& s3_url) { return request(s3_url).url; }
  static std::string value(const HttpRequest& request, const std::string& name) {
    for (const auto& [key, value] : request.headers) {
      if (key == name) return value;
    }
    return {};
  }
  static HttpResponse error(int status, const std::string& code, const std::string& message,
                            Headers headers = {}, const std::string& more = "") {
    return {status, std::move(headers),
            fmt::format("<?xml version=\"1.0\"?>\n<Error><Code>{}</Code><Message>{}</Message>{}"
                        "<Resource>/k</Resource></Error>",
                        code, message, more)};
  }

  ClientOptions options_;
  std::shared_ptr<S3Account> account_;
};

TEST_F(S3Test, AwsIsAddressedByVirtualHost) {
  EXPECT_EQ(url("s3://bucket/a/b.npy"), "https://bucket.s3.us-east-1.amazonaws.com/a/b.npy");
}

TEST_F(S3Test, BucketsThatNoHostCanHaveAreAddressedByPath) {
  EXPECT_EQ(url("s3://my.bucket/k"), "https://s3.us-east-1.amazonaws.com/my.bucket/k");
  EXPECT_EQ(url("s3://My_bucket/k"), "https://s3.us-east-1.amazonaws.com/My_bucket/k");
}

TEST_F(S3Test, PartitionsHaveTheirOwnDomains) {
  options_.region = "cn-north-1";
  EXPECT_EQ(url("s3://b/k"), "https://b.s3.cn-north-1.amazonaws.com.cn/k");
  account_ = nullptr;
  options_.region = "us-gov-west-1";
  EXPECT_EQ(url("s3://b/k"), "https://b.s3.us-gov-west-1.amazonaws.com/k");
}

TEST_F(S3Test, EndpointsAreAddressedByPathWithTheirPortAndPath) {
  options_.endpoint = "HTTP://Host.example:9000/base/";
  EXPECT_EQ(url("s3://b/k"), "http://host.example:9000/base/b/k");
  account_ = nullptr;
  options_.addressing = Addressing::kVirtual;
  EXPECT_EQ(url("s3://b/k"), "http://b.host.example:9000/base/k");
}

TEST_F(S3Test, EndpointsLoseThePortThatTheHostHeaderLeavesOut) {
  options_.endpoint = "https://host:443";
  EXPECT_EQ(url("s3://b/k"), "https://host/b/k");
  account_ = nullptr;
  options_.endpoint = "http://[::1]:80/";
  EXPECT_EQ(url("s3://b/k"), "http://[::1]/b/k");
  account_ = nullptr;
  options_.endpoint = "http://host:443";
  EXPECT_EQ(url("s3://b/k"), "http://host:443/b/k");
}

TEST(FindOwnRegion, KnowsTheHostsOfAStoreFromThoseOfItsCustomers) {
  struct Row {
    const char* endpoint;  // "" for AWS
    const char* url;
    const char* region;  // "" where it is not the store's
  };
  const Row rows[] = {
      {"", "https://b.s3.us-east-1.amazonaws.com/k", "us-east-1"},
      {"", "https://b.s3.amazonaws.com/k", "eu-west-1"},
      {"", "https://b.s3-us-west-2.amazonaws.com:443/k", "us-west-2"},
      {"", "https://s3.dualstack.us-gov-west-1.amazonaws.com/b/k", "us-gov-west-1"},
      {"", "http://b.s3.us-east-1.amazonaws.com/k", ""},
      {"", "https://b.s3.us-east-1.amazonaws.com:8443/k", ""},
      {"", "https://other.s3.us-east-1.amazonaws.com/k", ""},
      {"", "https://b.b.s3.us-east-1.amazonaws.com/k", ""},
      {"", "https://ec2-1-2-3-4.compute-1.amazonaws.com/k", ""},
      {"", "https://s3.compute-1.amazonaws.com/k", ""},
      {"", "https://b.s3-website-eu-west-1.amazonaws.com/k", ""},
      {"", "https://b.s3-accelerate.amazonaws.com/k", ""},
      {"", "https://s3.eu-west-1.amazonaws.com.evil.example/k", ""},
      {"", "https://s3.eu-west-1.evilamazonaws.com/k", ""},
      {"", "https://s3.cn-north-1.amazonaws.com.cn/k", ""},
      {"http://store:9000", "http://store:9000/x", "eu-west-1"},
      {"http://store:9000", "http://n1.store:9000/x", "eu-west-1"},
      {"http://store:9000", "https://b.store:9000/x", "eu-west-1"},
      {"http://store", "https://b.store/x", "eu-west-1"},
      {"https://store", "http://store/x", ""},
      {"http://store:9000", "http://store:9001/x", ""},
      {"http://store:9000", "http://store/x", ""},
      {"http://store", "http://evilstore/x", ""},
      {"http://10.0.0.1", "http://1.10.0.0.1/x", ""},
      {"http://[::1]:9000", "http://[::1]:9000/x", "eu-west-1"},
  };
  for (const Row& row : rows) {
    const auto endpoint =
        *row.endpoint == 0 ? std::nullopt : std::optional(parse_endpoint(row.endpoint, "endpoint"));
    EXPECT_EQ(find_own_region(endpoint, "b", "eu-west-1", parse_url(row.url)).value_or(""),
              row.region)
        << row.endpoint << " " << row.url;
  }
}

TEST_F(S3Test, ARedirectWithinTheStoreIsSignedForItsHost) {
  const auto made =
      object("s3://b/a b")
          ->make_request_at(parse_url("https://b.s3-eu-west-1.amazonaws.com/a%20b?x-id=G%2f&a"),
                            {{{"Range", "bytes=0-1"}}});
  ASSERT_TRUE(made);
  EXPECT_EQ(made->url, "https://b.s3-eu-west-1.amazonaws.com/a%20b?a=&x-id=G%2F");
  EXPECT_NE(value(*made, "authorization").find("/eu-west-1/s3/"), std::string::npos);
  EXPECT_EQ(value(*made, "Range"), "bytes=0-1");
}

TEST_F(S3Test, ARedirectThatIsPresignedIsNotSignedTwice) {
  EXPECT_FALSE(
      object("s3://b/k")
          ->make_request_at(parse_url("https://b.s3.amazonaws.com/k?X-Amz-Signature=0"), {}));
}

TEST_F(S3Test, VirtualHostsOfAnAddressAreRefused) {
  options_.endpoint = "http://127.0.0.1:9000";
  options_.addressing = Addressing::kVirtual;
  EXPECT_TRUE(has(message_of<ArgumentError>([&] { url("s3://b/k"); }), {"addressing: "}));
}

TEST_F(S3Test, EndpointsThatAreNoneAreRefusedWithoutShowingSecrets) {
  for (const char* const bad :
       {"127.0.0.1:9000", "ftp://h", "http://", "http://h:0", "http://h:70000", "http://h:1x",
        "http://h/?q=SECRET", "http://user:SECRET@h", "http://h#SECRET", "http://a b", "http://:1",
        "http://h/a b"}) {
    options_.endpoint = bad;
    EXPECT_TRUE(has(message_of<ArgumentError>([&] { make_account(); }),
                    {"endpoint: expected http://"}, {"SECRET"}))
        << bad;
  }
}

TEST_F(S3Test, TheEndpointOfTheServiceGoesBeforeTheGlobalOne) {
  set("AWS_ENDPOINT_URL", "http://all:1");
  EXPECT_EQ(url("s3://b/k"), "http://all:1/b/k");
  account_ = nullptr;
  set("AWS_ENDPOINT_URL_S3", "http://s3:2");
  EXPECT_EQ(url("s3://b/k"), "http://s3:2/b/k");
  account_ = nullptr;
  set("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true");
  EXPECT_EQ(url("s3://b/k"), "https://b.s3.us-east-1.amazonaws.com/k");
  account_ = nullptr;
  options_.endpoint = "http://option:3";
  EXPECT_EQ(url("s3://b/k"), "http://option:3/b/k");
}

TEST_F(S3Test, ProfilesHaveRegionEndpointServicesAndStyle) {
  write(".aws/config",
        "[default]\nregion = eu-west-1\n"
        "[profile e]\nendpoint_url = http://e:1\n"
        "[profile s]\nendpoint_url = http://e:1\nservices = sv\n"
        "[services sv]\ns3 =\n  endpoint_url = http://sv:2\n"
        "[profile p]\ns3 =\n  addressing_style = path\n");
  EXPECT_EQ(url("s3://b/k"), "https://b.s3.eu-west-1.amazonaws.com/k");
  for (const auto& [profile, expected] :
       std::map<const char*, const char*>{{"e", "http://e:1/b/k"},
                                          {"s", "http://sv:2/b/k"},
                                          {"p", "https://s3.us-east-1.amazonaws.com/b/k"}}) {
    account_ = nullptr;
    set("AWS_PROFILE", profile);
    EXPECT_EQ(url("s3://b/k"), expected);
  }
}

TEST_F(S3Test, TheRegionIsTheOptionThenTheEnvironment) {
  set("AWS_DEFAULT_REGION", "r-3");
  EXPECT_TRUE(has(url("s3://b/k"), {"s3.r-3."}));
  account_ = nullptr;
  set("AWS_REGION", "r-2");
  EXPECT_TRUE(has(url("s3://b/k"), {"s3.r-2."}));
  account_ = nullptr;
  options_.region = "r-1";
  EXPECT_TRUE(has(url("s3://b/k"), {"s3.r-1."}));
  account_ = nullptr;
  options_.region = "evil.example/";
  EXPECT_TRUE(has(message_of<ArgumentError>([&] { url("s3://b/k"); }), {"region: "}));
}

struct KeyRow {
  const char* url;
  const char* sent;
};

TEST_F(S3Test, KeysAreRaw) {
  options_.endpoint = "http://h";
  for (const KeyRow& row : {
           KeyRow{"s3://b/a=b/c d+e%2F\xc3\xbc.npy", "/a%3Db/c%20d%2Be%252F%C3%BC.npy"},
           KeyRow{"s3://b//lead", "//lead"},
           KeyRow{"s3://b/a//b/", "/a//b/"},
           KeyRow{"s3://b/a/../b/./c", "/a/../b/./c"},
           KeyRow{"s3://b/\xc3\xa4?x#y", "/%C3%A4%3Fx%23y"},
           KeyRow{"s3://b/100%", "/100%25"},
           KeyRow{"S3://b/k:@&,;'()*!$[]", "/k%3A%40%26%2C%3B%27%28%29%2A%21%24%5B%5D"},
           KeyRow{"s3://b/\xf0\x9f\x98\x80", "/%F0%9F%98%80"},
       }) {
    const auto made = object(row.url);
    EXPECT_EQ(made->make_request({}).url, std::string("http://h/b") + row.sent);
    EXPECT_EQ(made->name(), row.url);
  }
}

TEST_F(S3Test, UrlsWithoutBucketOrKeyAreRefused) {
  for (const char* const bad : {"s3://", "s3:///k", "s3://b", "s3://b/"}) {
    EXPECT_TRUE(has(message_of<ArgumentError>([&] { object(bad); }),
                    {"expected s3://bucket/key but found no "}))
        << bad;
  }
  for (const char* const bad : {"s3://b@h/k", "s3://b:1/k", "s3://b?q/k", "s3://.b/k"}) {
    EXPECT_TRUE(has(message_of<ArgumentError>([&] { object(bad); }), {"expected a bucket"}));
  }
}

TEST_F(S3Test, ArnsAndDirectoryBucketsAreUnsupported) {
  EXPECT_TRUE(has(
      message_of<UnsupportedError>([&] { object("s3://arn:aws:s3:us-west-2:1:accesspoint/p/k"); }),
      {"ARN"}));
  EXPECT_TRUE(has(message_of<UnsupportedError>([&] { object("s3://b--usw2-az1--x-s3/k"); }),
                  {"S3 Express"}));
}

TEST_F(S3Test, RequestsAreSignedWithTheTokenAndTheUsersAmzHeaders) {
  set("AWS_SESSION_TOKEN", "TOKEN");
  options_.requester_pays = true;
  options_.headers = {{"X-Amz-Meta-B", "  two   words "}, {"X-Other", "v"}};
  const HttpRequest made = object("s3://b/k")->make_request({{{"Range", "bytes=0-9"}}});
  EXPECT_EQ(made.headers.front(), (std::pair<std::string, std::string>("Range", "bytes=0-9")));
  EXPECT_EQ(value(made, "x-amz-security-token"), "TOKEN");
  EXPECT_EQ(value(made, "x-amz-request-payer"), "requester");
  EXPECT_EQ(value(made, "x-amz-meta-b"), "two words");
  EXPECT_EQ(value(made, "x-other"), "v");
  const std::string date = value(made, "x-amz-date");
  EXPECT_TRUE(starts_with(
      value(made, "authorization"),
      fmt::format("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/{}/us-east-1/s3/aws4_request, "
                  "SignedHeaders=host;x-amz-content-sha256;x-amz-date;x-amz-meta-b;"
                  "x-amz-request-payer;x-amz-security-token, Signature=",
                  date.substr(0, 8))));
}

TEST_F(S3Test, AnonymousRequestsAreNotSigned) {
  options_.anonymous = true;
  set("AWS_ACCESS_KEY_ID", nullptr);
  const HttpRequest made = request("s3://b/k");
  EXPECT_TRUE(made.headers.empty());
}

TEST_F(S3Test, HeadersThatSigningSetsAreRefused) {
  options_.headers = {{"Authorization", "SECRET"}};
  EXPECT_TRUE(
      has(message_of<ArgumentError>([&] { object("s3://b/k"); }), {"Authorization"}, {"SECRET"}));
  options_.anonymous = true;
  make_account();
  EXPECT_EQ(value(request("s3://b/k"), "authorization"), "SECRET");
}

TEST_F(S3Test, AWrongRegionIsLearntForTheBucket) {
  const auto made = object("s3://b/k");
  const Verdict verdict = made->judge(
      error(301, "PermanentRedirect", "Elsewhere.", {{"x-amz-bucket-region", "eu-central-1"}}));
  EXPECT_EQ(verdict.action, Action::kRetryNow);
  EXPECT_EQ(made->make_request({}).url, "https://b.s3.eu-central-1.amazonaws.com/k");
  EXPECT_TRUE(has(value(made->make_request({}), "authorization"), {"/eu-central-1/s3/"}));
  EXPECT_EQ(url("s3://b/other"), "https://b.s3.eu-central-1.amazonaws.com/other");
  EXPECT_EQ(url("s3://c/k"), "https://c.s3.us-east-1.amazonaws.com/k");
}

TEST_F(S3Test, AWrongRegionKeepsTheEndpoint) {
  options_.endpoint = "http://h:1";
  const auto made = object("s3://b/k");
  const Verdict verdict = made->judge(error(400, "AuthorizationHeaderMalformed", "Wrong region.",
                                            {}, "<Region>eu-west-3</Region>"));
  EXPECT_EQ(verdict.action, Action::kRetryNow);
  EXPECT_EQ(made->make_request({}).url, "http://h:1/b/k");
  EXPECT_TRUE(has(value(made->make_request({}), "authorization"), {"/eu-west-3/s3/"}));
}

TEST_F(S3Test, ARegionThatIsNoneIsNotLearnt) {
  const auto made = object("s3://b/k");
  const Verdict verdict = made->judge(
      error(301, "PermanentRedirect", "Elsewhere.", {{"x-amz-bucket-region", "evil.example/"}}));
  EXPECT_EQ(verdict.action, Action::kDefault);
  EXPECT_TRUE(has(verdict.message, {"PermanentRedirect: Elsewhere.", "pass region to Client"}));
  EXPECT_TRUE(has(made->make_request({}).url, {"us-east-1"}));
}

TEST_F(S3Test, ADeniedRequestInTheRightRegionIsNotTriedAgain) {
  const Verdict verdict = object("s3://b/k")
                              ->judge(error(403, "AccessDenied", "Access Denied",
                                            {{"x-amz-bucket-region", "us-east-1"}}));
  EXPECT_EQ(verdict.action, Action::kDefault);
  EXPECT_EQ(verdict.message, "AccessDenied: Access Denied");
}

TEST_F(S3Test, ADeniedAnonymousRequestSaysThatItWas) {
  options_.anonymous = true;
  EXPECT_EQ(object("s3://b/k")->judge(error(403, "AccessDenied", "Access Denied")).message,
            "AccessDenied: Access Denied; the request was anonymous");
  EXPECT_EQ(object("s3://b/k")->judge({403, {}, ""}).message,
            "Forbidden; the request was anonymous");
}

TEST_F(S3Test, AClockThatIsWrongIsCorrected) {
  const auto made = object("s3://b/k");
  const Verdict verdict = made->judge(error(403, "RequestTimeTooSkewed", "Too large.",
                                            {{"date", "Tue, 27 Mar 2007 19:36:42 GMT"}}));
  EXPECT_EQ(verdict.action, Action::kRetryNow);
  EXPECT_TRUE(starts_with(value(made->make_request({}), "x-amz-date"), "20070327T193"));
  EXPECT_TRUE(has(value(made->make_request({}), "authorization"), {"/20070327/"}));
}

TEST_F(S3Test, ADateThatIsNoneIsNotLearnt) {
  const auto made = object("s3://b/k");
  for (const char* const date : {"", "now", "Tue, 99 Mar 2007 19:36:42 GMT",
                                 "Tue, 27 arA 2007 19:36:42 GMT", "Tue, 27 Mar 2007"}) {
    EXPECT_EQ(made->judge(error(403, "RequestTimeTooSkewed", "", {{"date", date}})).action,
              Action::kDefault)
        << date;
  }
}

TEST_F(S3Test, FaultsThatPassAreTriedAgain) {
  EXPECT_EQ(object("s3://b/k")->judge(error(400, "RequestTimeout", "Idle.")).action,
            Action::kRetry);
  EXPECT_EQ(object("s3://b/k")->judge(error(503, "SlowDown", "Reduce.")).action, Action::kRetry);
}

TEST_F(S3Test, ExpiredTokensSayWhatToDo) {
  HttpResponse response = error(400, "ExpiredToken", "It has expired.");
  response.made_with = request("s3://b/k").made_with;
  EXPECT_EQ(object("s3://b/k")->judge(response).message,
            "ExpiredToken: It has expired.; get new credentials and make a new Client");
}

TEST_F(S3Test, BodiesThatAreNoXmlHaveNoMessage) {
  for (const char* const body : {"", "<html>", "not <xml", "<Error>"}) {
    const Verdict verdict = object("s3://b/k")->judge({500, {}, body});
    EXPECT_EQ(verdict.action, Action::kDefault);
    EXPECT_EQ(verdict.message, "") << body;
  }
}

TEST_F(S3Test, MessagesAreOneLine) {
  EXPECT_EQ(object("s3://b/k")->judge(error(404, "NoSuchKey", "a\nb\x1b[31m")).message,
            "NoSuchKey: a b [31m");
}

class ListTest : public S3Test {
 protected:
  ObjectPage list(const std::string& prefix, const std::string& body,
                  const std::string& continuation = "") {
    if (account_ == nullptr) make_account();
    return list_s3(prefix, continuation, account_, [&](std::shared_ptr<HttpObject> object) {
      request_ = object->make_request({{{"Range", "bytes=0-9"}, {"Accept-Encoding", "identity"}}});
      return body;
    });
  }
  static std::string page(const std::string& content) {
    return "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult "
           "xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">" +
           content + "</ListBucketResult>";
  }

  HttpRequest request_;
};

TEST_F(ListTest, AsksForOnePageOfThePrefix) {
  list("s3://b/a b/&", page(""), "t/k=");
  EXPECT_EQ(request_.url,
            "https://b.s3.us-east-1.amazonaws.com/?continuation-token=t%2Fk%3D&encoding-type=url"
            "&list-type=2&prefix=a%20b%2F%26");
  EXPECT_NE(value(request_, "authorization"), "");
  EXPECT_EQ(value(request_, "Range"), "");
  EXPECT_EQ(value(request_, "Accept-Encoding"), "identity");
  account_ = nullptr;
  options_.endpoint = "http://h:1/base";
  list("s3://b", page(""));
  EXPECT_EQ(request_.url, "http://h:1/base/b?encoding-type=url&list-type=2&prefix=");
}

TEST_F(ListTest, ReadsTheEntries) {
  const ObjectPage found = list(
      "s3://b/", page("<EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>"
                      "<Contents><Key>a%3D1/x+y%25%C3%BC.npy</Key><LastModified>2026-01-02T03:04:"
                      "05.000Z</LastModified><ETag>&quot;abc-2&quot;</ETag><Size>12345678901</Size>"
                      "</Contents><Contents><Key>b</Key><Size>0</Size></Contents>"
                      "<NextContinuationToken>next</NextContinuationToken>"));
  ASSERT_EQ(found.objects.size(), 2u);
  EXPECT_EQ(found.objects[0].url, "s3://b/a=1/x y%\xc3\xbc.npy");
  EXPECT_EQ(found.objects[0].nbytes, 12345678901u);
  EXPECT_EQ(found.objects[0].etag, "abc-2");
  EXPECT_EQ(found.objects[0].modified, "2026-01-02T03:04:05.000Z");
  EXPECT_EQ(found.objects[1].url, "s3://b/b");
  EXPECT_EQ(found.continuation, "next");
}

TEST_F(ListTest, KeysOfServersThatDoNotEncodeAreTakenAsTheyAre) {
  const ObjectPage found =
      list("s3://b/", page("<Contents><Key>a+b%20&amp;</Key><Size>1</Size></Contents>"
                           "<Contents><Key>  </Key><Size>1</Size></Contents>"));
  EXPECT_EQ(found.objects.at(0).url, "s3://b/a+b%20&");
  EXPECT_EQ(found.objects.at(1).url, "s3://b/  ");
  EXPECT_EQ(found.continuation, "");
}

TEST_F(ListTest, AnswersThatAreNoListingAreRefused) {
  const std::string truncated = "<IsTruncated>true</IsTruncated>";
  const std::string encoding = "<EncodingType>url</EncodingType>";
  for (const std::string& bad :
       {std::string(), std::string("<ListBucketResult>"), std::string("<html></html>"),
        page(truncated), page(truncated + "<NextContinuationToken>t</NextContinuationToken>"),
        page("<Contents><Size>1</Size></Contents>"), page("<Contents><Key>k</Key></Contents>"),
        page("<Contents><Key>k</Key><Size>-1</Size></Contents>"),
        page("<Contents><Key>k</Key><Size>99999999999999999999</Size></Contents>"),
        page(encoding + "<Contents><Key>a%2</Key><Size>1</Size></Contents>"),
        page(encoding + "<Contents><Key>a%-1</Key><Size>1</Size></Contents>")}) {
    EXPECT_TRUE(starts_with(message_of<FormatError>([&] { list("s3://b/p", bad, "t"); }),
                            "s3://b/p: expected "))
        << bad;
  }
}

TEST_F(ListTest, AnErrorWithinAGoodAnswerIsAnError) {
  EXPECT_EQ(message_of<TransportError>([&] {
              list("s3://b/p",
                   "<Error><Code>InternalError</Code><Message>Try again.</Message></Error>");
            }),
            "s3://b/p: InternalError: Try again.");
}

TEST_F(S3Test, WordsOfTheServerAreCutBetweenCharacters) {
  const std::string words = std::string(399, 'x') + "\u00e9";
  EXPECT_EQ(object("s3://b/k")->judge(error(400, "Code", words)).message,
            "Code: " + std::string(399, 'x'));
}

}  // namespace
}  // namespace torchnpy
