#include "transport/sigv4.h"

#include <gtest/gtest.h>

namespace torchnpy {
namespace {

using Headers = std::vector<std::pair<std::string_view, std::string_view>>;

// RFC 4231, test case 2.
TEST(HmacSha256, MatchesTheRfcForAShortKey) {
  EXPECT_EQ(format_hex(hmac_sha256("Jefe", "what do ya want for nothing?")),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
}

// RFC 4231, test case 6.
TEST(HmacSha256, MatchesTheRfcForAKeyLongerThanABlock) {
  EXPECT_EQ(format_hex(hmac_sha256(std::string(131, '\xaa'),
                                   "Test Using Larger Than Block-Size Key - Hash Key First")),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
}

TEST(Sha256, OfNothingIsTheConstant) { EXPECT_EQ(format_hex(sha256("")), kEmptySha256); }

// The example of "Deriving the signing key" in AWS's General Reference.
TEST(SigningKey, MatchesTheExampleOfAws) {
  const SigningKey key = derive_signing_key(
      "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "20150830", "us-east-1", "iam");
  EXPECT_EQ(format_hex(key.key),
            "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9");
  EXPECT_EQ(key.scope, "20150830/us-east-1/iam/aws4_request");
}

TEST(AmzDate, IsBasicIso8601) {
  EXPECT_EQ(format_amz_date(std::chrono::sys_seconds(std::chrono::seconds(1369353600))),
            "20130524T000000Z");
  EXPECT_EQ(format_amz_date(std::chrono::sys_seconds(std::chrono::seconds(1709251199))),
            "20240229T235959Z");
}

TEST(EncodeUri, KeepsOnlyUnreservedBytes) {
  EXPECT_EQ(encode_uri("a=b/c d+e%2F\xc3\xbc.npy", Slash::kKeep), "a%3Db/c%20d%2Be%252F%C3%BC.npy");
  EXPECT_EQ(encode_uri("a/b", Slash::kEncode), "a%2Fb");
  EXPECT_EQ(encode_uri("-_.~AZaz09", Slash::kEncode), "-_.~AZaz09");
  EXPECT_EQ(encode_uri(std::string_view("\0\x7f\xff", 3), Slash::kKeep), "%00%7F%FF");
}

struct Vector {
  const char* name;
  const char* method;
  const char* path;
  const char* query;
  const char* signature;
};

// The aws-sig-v4-test-suite: service "service", headers host and x-amz-date.
constexpr Vector kSuite[] = {
    {"get_vanilla", "GET", "/", "",
     "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"},
    {"get_utf8", "GET", "/%E1%88%B4", "",
     "8318018e0b0f223aa2bbf98705b62bb787dc9c0e678f255a891fd03141be5d85"},
    {"get_unreserved", "GET", "/-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
     "", "07ef7494c76fa4850883e2b006601f940f8a34d404d0cfa977f52a65bbf5f24f"},
    {"get_vanilla_query_order", "GET", "/", "Param1=value1&Param2=value2",
     "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500"},
    {"post_vanilla", "POST", "/", "",
     "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"},
};

class Suite : public ::testing::TestWithParam<Vector> {};

TEST_P(Suite, SignatureMatches) {
  const SigningKey key =
      derive_signing_key("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "20150830",
                         "us-east-1", "service");
  CanonicalRequest request;
  request.method = GetParam().method;
  request.path = GetParam().path;
  request.query = GetParam().query;
  request.headers = Headers{{"host", "example.amazonaws.com"}, {"x-amz-date", "20150830T123600Z"}};
  EXPECT_EQ(format_authorization(request, "20150830T123600Z", key),
            std::string("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/"
                        "aws4_request, SignedHeaders=host;x-amz-date, Signature=") +
                GetParam().signature);
}

INSTANTIATE_TEST_SUITE_P(Aws, Suite, ::testing::ValuesIn(kSuite),
                         [](const auto& row) { return std::string(row.param.name); });

class S3Example : public ::testing::Test {
 protected:
  std::string sign(std::string_view path, std::string_view query, Headers more) {
    request_.path = path;
    request_.query = query;
    request_.headers = Headers{{"host", "examplebucket.s3.amazonaws.com"}};
    request_.headers.insert(request_.headers.end(), more.begin(), more.end());
    const std::string text = format_authorization(request_, "20130524T000000Z", key_);
    return text.substr(text.find("Signature=") + 10);
  }

  CanonicalRequest request_;
  const SigningKey key_ =
      derive_signing_key("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
                         "20130524", "us-east-1", "s3");
};

// The examples of "Authenticating Requests: Using the Authorization Header" in S3's API Reference.
TEST_F(S3Example, GetObjectMatches) {
  EXPECT_EQ(sign("/test.txt", "",
                 {{"range", "bytes=0-9"},
                  {"x-amz-content-sha256", kEmptySha256},
                  {"x-amz-date", "20130524T000000Z"}}),
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41");
}

TEST_F(S3Example, GetBucketLifecycleMatches) {
  EXPECT_EQ(sign("/", "lifecycle=",
                 {{"x-amz-content-sha256", kEmptySha256}, {"x-amz-date", "20130524T000000Z"}}),
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543");
}

TEST_F(S3Example, ListObjectsMatches) {
  EXPECT_EQ(sign("/", "max-keys=2&prefix=J",
                 {{"x-amz-content-sha256", kEmptySha256}, {"x-amz-date", "20130524T000000Z"}}),
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7");
}

}  // namespace
}  // namespace torchnpy
