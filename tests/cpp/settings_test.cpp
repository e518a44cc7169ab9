#include "transport/settings.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <initializer_list>
#include <string>
#include <vector>

#include "http_testing.h"

namespace torchnpy {
namespace {

using namespace testing;

// Sets variables, and puts all that matter back at the end.
class Environment {
 public:
  Environment(std::initializer_list<std::pair<const char*, std::string>> values) {
    for (const char* name : {"http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy",
                             "ALL_PROXY", "no_proxy", "NO_PROXY", "REQUEST_METHOD", "AWS_CA_BUNDLE",
                             "SSL_CERT_FILE", "CURL_CA_BUNDLE", "SSL_CERT_DIR"}) {
      const char* value = std::getenv(name);
      before_.emplace_back(name, value == nullptr ? "" : value);
      unsetenv(name);
    }
    for (const auto& [name, value] : values) setenv(name, value.c_str(), 1);
  }
  ~Environment() {
    for (const auto& [name, value] : before_) {
      value.empty() ? unsetenv(name.c_str()) : setenv(name.c_str(), value.c_str(), 1);
    }
  }

 private:
  std::vector<std::pair<std::string, std::string>> before_;
};

TEST(Settings, ProxiesComeFromTheEnvironment) {
  const Environment environment{
      {"HTTPS_PROXY", "http://secure:1"}, {"ALL_PROXY", "http://all:2"}, {"NO_PROXY", "localhost"}};
  const auto settings = make_engine_settings({});
  EXPECT_EQ(settings->https_proxy, "http://secure:1");
  EXPECT_EQ(settings->http_proxy, "http://all:2");
  EXPECT_EQ(settings->no_proxy, "localhost");
}

TEST(Settings, ClientsProxyComesFirst) {
  const Environment environment{{"HTTPS_PROXY", "http://secure:1"}, {"NO_PROXY", "*"}};
  ClientOptions options;
  options.proxy = "http://mine:3";
  EXPECT_EQ(make_engine_settings(options)->https_proxy, "http://mine:3");
  EXPECT_EQ(make_engine_settings(options)->no_proxy, "");
  options.proxy = "";
  EXPECT_EQ(make_engine_settings(options)->https_proxy, "");
}

TEST(Settings, CgiProgramsIgnoreAHeaderThatLooksLikeAProxy) {
  const Environment environment{{"HTTP_PROXY", "http://evil:1"}, {"REQUEST_METHOD", "GET"}};
  EXPECT_EQ(make_engine_settings({})->http_proxy, "");
}

TEST(Settings, CaBundleIsTheFirstThatIsNamed) {
  ClientOptions options;
  {
    const Environment environment{{"CURL_CA_BUNDLE", "/curl.pem"}, {"SSL_CERT_DIR", "/certs"}};
    EXPECT_EQ(find_ca_bundle(options).file, "/curl.pem");
  }
  {
    const Environment environment{{"SSL_CERT_DIR", "/certs"}};
    EXPECT_EQ(find_ca_bundle(options).file, "");
    EXPECT_EQ(find_ca_bundle(options).directory, "/certs");
  }
  const Environment environment{{"SSL_CERT_FILE", "/file.pem"}, {"AWS_CA_BUNDLE", "/aws.pem"}};
  EXPECT_EQ(find_ca_bundle(options).file, "/aws.pem");
  options.ca_bundle = "/tmp";
  EXPECT_EQ(find_ca_bundle(options).file, "");
  EXPECT_EQ(find_ca_bundle(options).directory, "/tmp");
}

TEST(Settings, RequestsGoThroughTheProxy) {
  FaultServer proxy("0123456789");
  TestClient client;
  client.options->proxy = proxy.url("");
  TestSink sink;
  client.open("http://no-such-host.invalid/x.npy")->start(kMiddle, sink);
  EXPECT_EQ(sink.wait(), "234567");
  EXPECT_EQ(proxy.requests().at(0).target, "http://no-such-host.invalid/x.npy");
}

TEST(Settings, ProxyOfTheEnvironmentIsAskedAndBypassed) {
  FaultServer proxy("0123456789");
  FaultServer server("ABCDEFGHIJ");
  const Environment environment{{"http_proxy", proxy.url("")}, {"no_proxy", "127.0.0.1"}};
  TestClient client;
  client.options->proxy.reset();
  TestSink proxied;
  client.open("http://no-such-host.invalid/x.npy")->start(kMiddle, proxied);
  EXPECT_EQ(proxied.wait(), "234567");
  TestSink direct;
  client.open(server.url())->start(kMiddle, direct);
  EXPECT_EQ(direct.wait(), "CDEFGH");
}

}  // namespace
}  // namespace torchnpy
