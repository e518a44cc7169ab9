#include "transport/credentials.h"

#include <gtest/gtest.h>

#include "aws_environment.h"
#include "base/error.h"
#include "transport/credentials_parse.h"
#include "transport/credentials_providers.h"
#include "transport/words.h"

namespace torchnpy {
namespace {

TEST(ParseIni, ReadsSectionsKeysAndValues) {
  const IniFile file = parse_ini(
      "# comment\r\n"
      "[default]\r\n"
      "Region = eu-west-1\r\n"
      "key=a=b#c ; d\r\n"
      "\r\n"
      "; comment\r\n"
      "[profile x]\r\n"
      "colon: value\r\n",
      "config");
  EXPECT_EQ(file, (IniFile{{"default", {{"key", "a=b#c ; d"}, {"region", "eu-west-1"}}},
                           {"profile x", {{"colon", "value"}}}}));
}

TEST(ParseIni, NamesTheKeysOfAnIndentedBlockAfterIt) {
  const IniFile file = parse_ini(
      "[default]\n"
      "s3 =\n"
      "  addressing_style = path\n"
      "  # comment\n"
      "  endpoint_url=http://host:1/\n"
      "region = us-west-2\n",
      "config");
  EXPECT_EQ(file.at("default"), (IniSection{{"region", "us-west-2"},
                                            {"s3", ""},
                                            {"s3.addressing_style", "path"},
                                            {"s3.endpoint_url", "http://host:1/"}}));
}

TEST(ParseIni, TakesAnIndentedFirstKey) {
  EXPECT_EQ(parse_ini("[a]\n  k = v\n  l = w\n", "config").at("a").at("l"), "w");
}

TEST(ParseIni, NamesTheLineButDoesNotShowIt) {
  const std::string message =
      message_of<FormatError>([] { parse_ini("[a]\nk = v\nSECRET\n", "/h/config"); });
  EXPECT_TRUE(has(message, {"/h/config", "line 3"}, {"SECRET"}));
}

TEST(ParseIni, RefusesAKeyBeforeTheFirstSection) {
  EXPECT_TRUE(has(message_of<FormatError>([] { parse_ini("k = v\n", "f"); }), {"line 1"}));
}

class CredentialsTest : public AwsEnvironment {
 protected:
  Credentials find(const std::optional<std::string>& profile = std::nullopt) {
    CredentialsCache cache(
        make_credentials_chain(std::make_shared<const AwsProfile>(AwsProfile::read(profile))));
    return *cache.resolve();
  }
};

TEST_F(CredentialsTest, ComeFromTheEnvironment) {
  set("AWS_ACCESS_KEY_ID", "id");
  set("AWS_SECRET_ACCESS_KEY", "secret");
  set("AWS_SESSION_TOKEN", "token");
  write(".aws/credentials", "[default]\naws_access_key_id=other\naws_secret_access_key=other\n");
  const Credentials found = find();
  EXPECT_EQ(found.access_key_id, "id");
  EXPECT_EQ(found.secret_access_key, "secret");
  EXPECT_EQ(found.session_token, "token");
}

TEST_F(CredentialsTest, OfHalfAnEnvironmentAreAnError) {
  set("AWS_ACCESS_KEY_ID", "id");
  EXPECT_TRUE(has(message_of<TransportError>([&] { find(); }), {"AWS_SECRET_ACCESS_KEY is not"}));
}

TEST_F(CredentialsTest, ComeFromTheCredentialsFileBeforeTheConfigFile) {
  write(".aws/credentials", "[default]\naws_access_key_id=a\naws_secret_access_key=b\n");
  write(".aws/config", "[default]\naws_access_key_id=c\naws_secret_access_key=d\n");
  EXPECT_EQ(find().access_key_id, "a");
}

TEST_F(CredentialsTest, ComeFromTheConfigFile) {
  write(".aws/config",
        "[profile \"two words\"]\naws_access_key_id=c\naws_secret_access_key=d\n"
        "aws_session_token = t\n");
  set("AWS_PROFILE", "two words");
  EXPECT_EQ(find().session_token, "t");
}

TEST_F(CredentialsTest, OfAProfileThatTheCallerNamesGoBeforeTheEnvironment) {
  set("AWS_ACCESS_KEY_ID", "id");
  set("AWS_SECRET_ACCESS_KEY", "secret");
  write(".aws/credentials", "[p]\naws_access_key_id=a\naws_secret_access_key=b\n");
  EXPECT_EQ(find("p").access_key_id, "a");
  set("AWS_PROFILE", "p");
  EXPECT_EQ(find().access_key_id, "id");
}

TEST_F(CredentialsTest, ComeFromFilesThatTheEnvironmentNames) {
  set("AWS_SHARED_CREDENTIALS_FILE",
      write("c", "[default]\naws_access_key_id=a\naws_secret_access_key=b\n").c_str());
  EXPECT_EQ(find().access_key_id, "a");
  set("AWS_SHARED_CREDENTIALS_FILE", "~/c");
  EXPECT_EQ(find().access_key_id, "a");
}

TEST_F(CredentialsTest, MissingEverywhereListsThePlaces) {
  try {
    find();
    FAIL();
  } catch (const TransportError& error) {
    EXPECT_EQ(error.kind(), TransportError::Kind::kDenied);
    EXPECT_TRUE(
        has(error.what(), {"AWS_ACCESS_KEY_ID", home_ / ".aws/credentials", home_ / ".aws/config",
                           "no such file", "credentials=\"anonymous\""}));
  }
}

TEST_F(CredentialsTest, OfAnUnknownProfileNameThoseThatExist) {
  write(".aws/credentials", "[one]\n");
  write(".aws/config", "[profile two]\n[preview]\n");
  EXPECT_TRUE(has(message_of<ArgumentError>([&] { find("three"); }),
                  {"profile: ", "\"three\"", "one, two", home_ / ".aws/config"}, {"preview"}));
  set("AWS_PROFILE", "four");
  EXPECT_TRUE(has(message_of<ArgumentError>([&] { find(); }), {"AWS_PROFILE: ", "\"four\""}));
}

TEST_F(CredentialsTest, OfSingleSignOnAreRefusedByName) {
  write(".aws/config", "[profile p]\nsso_account_id = 1\nsso_role_name = r\n");
  EXPECT_TRUE(has(message_of<UnsupportedError>([&] { find("p"); }), {"\"p\"", "sso_account_id"}));
}

TEST_F(CredentialsTest, OfTheFileGoBeforeAProcess) {
  write(".aws/config", "[default]\ncredential_process = /nowhere/x\n");
  write(".aws/credentials", "[default]\naws_access_key_id=a\naws_secret_access_key=b\n");
  EXPECT_EQ(find().access_key_id, "a");
}

TEST_F(CredentialsTest, OfARoleComeFromTheEndpointThatIsConfiguredUnlessItIsToBeIgnored) {
  set("AWS_ENDPOINT_URL", "http://all");
  set("AWS_ENDPOINT_URL_S3", "http://s3");
  const AwsProfile profile = AwsProfile::read(std::nullopt);
  EXPECT_EQ(find_configured_url(profile, "s3")->url, "http://s3");
  EXPECT_EQ(find_configured_url(profile, "sts")->url, "http://all");
  set("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true");
  EXPECT_FALSE(find_configured_url(profile, "s3"));
  EXPECT_FALSE(find_configured_url(profile, "sts"));
}

TEST(CleanWords, AreOneLineWithoutQueriesAndUserinfo) {
  EXPECT_EQ(clean_words(" a\r\n b\t"), "a b");
  EXPECT_EQ(clean_words("at 'http://u:p@h/k?X=1&Y' (why? so)"), "at 'http://h/k?' (why? so)");
  EXPECT_EQ(clean_words(std::string(400, 'x')).size(), 300);
}

// The words are those of Python's shlex.split().
TEST(SplitWords, TakesQuotesAndBackslashesAsPythonDoes) {
  EXPECT_EQ(split_words(R"(a "b\$c\`\"\\" 'd\e' \$f)", "p"),
            (std::vector<std::string>{"a", R"(b\$c\`"\)", R"(d\e)", "$f"}));
  for (const char* const bad : {"a \\", "a \"b\\"}) {
    EXPECT_TRUE(has(message_of<ArgumentError>([&] { split_words(bad, "p"); }), {"backslash"}));
  }
  EXPECT_EQ(split_words("a  'b c' \"d\\\"\\n\" e\\ f ''", "p"),
            (std::vector<std::string>{"a", "b c", "d\"\\n", "e f", ""}));
  EXPECT_TRUE(has(message_of<ArgumentError>([] { split_words("a 'b", "p"); }), {"closing '"}));
}

TEST(ParseIso8601, TakesZonesAndFractions) {
  const auto time = std::chrono::sys_days(std::chrono::year(2030) / 1 / 2) + std::chrono::hours(3);
  EXPECT_EQ(parse_iso8601("2030-01-02T03:00:00Z"), time);
  EXPECT_EQ(parse_iso8601("2030-01-02T03:00:00.25+00:00"), time);
  EXPECT_EQ(parse_iso8601("2030-01-02 04:30:00+01:30"), time);
  EXPECT_EQ(parse_iso8601("2030-13-02T03:00:00Z"), std::nullopt);
  EXPECT_EQ(parse_iso8601("2030-01-02T03:00:00?"), std::nullopt);
  EXPECT_EQ(parse_iso8601("soon"), std::nullopt);
}

TEST(CheckContainerUrl, AllowsHttpsLoopbackAndTheServices) {
  for (const char* const url : {"https://any.example/x", "http://127.0.0.2:1/", "http://[::1]/",
                                "http://169.254.170.23/v1", "http://[fd00:ec2::23]/v1"}) {
    EXPECT_NO_THROW(check_container_url(url, "p")) << url;
  }
  for (const char* const url : {"http://127.0.0.1.example/", "http://169.254.169.254/"}) {
    EXPECT_THROW(check_container_url(url, "p"), ArgumentError) << url;
  }
}

TEST_F(CredentialsTest, WithALineBreakAreRefusedUnshown) {
  write(".aws/credentials",
        "[default]\naws_access_key_id=a\naws_secret_access_key=SECRET\n  MORE\n");
  EXPECT_TRUE(has(message_of<ArgumentError>([&] { find(); }), {"control"}, {"SECRET", "MORE"}));
}

TEST_F(CredentialsTest, OfAFileThatIsADirectoryAreNone) {
  set("AWS_CONFIG_FILE", home_.c_str());
  EXPECT_TRUE(has(message_of<TransportError>([&] { find(); }), {"(Is a directory)"}));
}

// Gives what it has, and counts how often it is asked.
class Provider : public CredentialsProvider {
 public:
  Provider(std::optional<Credentials> credentials, int* reads)
      : credentials_(std::move(credentials)), reads_(reads) {}
  std::optional<Credentials> read() override {
    ++*reads_;
    return credentials_;
  }
  std::string description() const override { return "a place"; }

 private:
  std::optional<Credentials> credentials_;
  int* reads_;
};

int count_reads_of_two_resolves(std::optional<std::chrono::system_clock::time_point> expiration) {
  int reads = 0;
  std::vector<std::unique_ptr<CredentialsProvider>> chain;
  chain.push_back(std::make_unique<Provider>(Credentials{"a", "b", "", expiration}, &reads));
  CredentialsCache cache(std::move(chain));
  cache.resolve();
  const auto found = cache.resolve();
  EXPECT_EQ(found, cache.known());
  return reads;
}

TEST(CredentialsCache, KeepsThemUntilTheyAreAboutToExpire) {
  const auto now = std::chrono::system_clock::now();
  EXPECT_EQ(count_reads_of_two_resolves(std::nullopt), 1);
  EXPECT_EQ(count_reads_of_two_resolves(now + std::chrono::hours(1)), 1);
}

TEST(CredentialsCache, RefusesThoseThatHaveExpired) {
  EXPECT_TRUE(has(message_of<TransportError>(
                      [] { count_reads_of_two_resolves(std::chrono::system_clock::now()); }),
                  {"a place", "expired"}));
}

TEST(CredentialsCache, FindsOthersOnceTheStoreRefusedThem) {
  int reads = 0;
  std::vector<std::unique_ptr<CredentialsProvider>> chain;
  chain.push_back(std::make_unique<Provider>(Credentials{"a", "b", "", std::nullopt}, &reads));
  CredentialsCache cache(std::move(chain));
  const auto first = cache.resolve();
  EXPECT_TRUE(cache.invalidate(first.get()));
  const auto second = cache.resolve();
  EXPECT_EQ(reads, 2);
  EXPECT_TRUE(cache.invalidate(first.get()));    // is not the one known any more
  EXPECT_FALSE(cache.invalidate(second.get()));  // the same again: there are no others
}

}  // namespace
}  // namespace torchnpy
