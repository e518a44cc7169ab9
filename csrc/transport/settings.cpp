#include "transport/settings.h"

#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <initializer_list>
#include <string>
#include <system_error>
#include <utility>

#include "base/text.h"

namespace torchnpy {
namespace {

std::atomic<const std::string*> fallback_ca_bundle{nullptr};  // never freed: it is set once

// The first of the variables that is set to something.
std::string read_environment(std::initializer_list<const char*> names) {
  for (const char* name : names) {
    const char* value = std::getenv(name);
    if (value != nullptr && *value != '\0') return value;
  }
  return {};
}

bool is_directory(const std::string& path) {
  struct stat status;
  return stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

bool exists(const std::string& path) {
  struct stat status;
  return stat(path.c_str(), &status) == 0;
}

// Whether OpenSSL finds certificates in the folder, by the hash of a name: 5ed36f99.0. Debian's
// package openssl makes an empty one.
bool has_certificates(const std::string& directory) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(directory, error)) {
    const std::string name = entry.path().filename().string();
    constexpr size_t kHashNbytes = 8;
    if (name.size() > kHashNbytes + 1 && name.find('.') == kHashNbytes &&
        is_digit(name[kHashNbytes + 1])) {
      return true;
    }
  }
  return false;
}

CaBundle as_bundle(const std::string& path) {
  return is_directory(path) ? CaBundle{"", path} : CaBundle{path, ""};
}

}  // namespace

CaBundle find_ca_bundle(const ClientOptions& options) {
  if (options.ca_bundle) return as_bundle(*options.ca_bundle);
  const std::string named = read_environment({"AWS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE"});
  if (!named.empty()) return as_bundle(named);
  const std::string directory = read_environment({"SSL_CERT_DIR"});
  if (!directory.empty()) return {"", directory};
  for (const char* path : {
           "/etc/ssl/certs/ca-certificates.crt",                 // Debian, Arch, Gentoo
           "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  // Fedora, RHEL 7 and later
           "/etc/pki/tls/certs/ca-bundle.crt",                   // RHEL, Amazon Linux
           "/etc/ssl/ca-bundle.pem",                             // SUSE
           "/var/lib/ca-certificates/ca-bundle.pem",             // SUSE
           "/etc/ssl/cert.pem",                                  // Alpine, BSD, macOS
       }) {
    if (exists(path)) return {path, ""};
  }
  for (const char* path : {"/etc/ssl/certs", "/etc/pki/tls/certs"}) {
    if (has_certificates(path)) return {"", path};
  }
  const std::string* const fallback = fallback_ca_bundle;
  return {fallback != nullptr ? *fallback : "", ""};
}

void set_fallback_ca_bundle(std::string path) {
  fallback_ca_bundle = new std::string(std::move(path));
}

std::shared_ptr<const EngineSettings> make_engine_settings(const ClientOptions& options) {
  auto settings = std::make_shared<EngineSettings>();
  settings->max_in_flight = std::max(1, options.max_in_flight);
  settings->io_threads = std::max(1, options.io_threads);
  settings->connect_timeout_s = options.connect_timeout_s;
  settings->stall_timeout_s = options.stall_timeout_s;
  settings->verify_tls = options.verify_tls;
  settings->http2 = options.http2;
  CaBundle bundle = find_ca_bundle(options);
  settings->ca_file = std::move(bundle.file);
  settings->ca_directory = std::move(bundle.directory);
  if (options.proxy) {
    settings->http_proxy = settings->https_proxy = *options.proxy;
    return settings;
  }
  // In a CGI program HTTP_PROXY is a header of the request: whoever sends it would choose the
  // proxy.
  const bool is_cgi = std::getenv("REQUEST_METHOD") != nullptr;
  settings->http_proxy =
      is_cgi ? read_environment({"http_proxy", "all_proxy", "ALL_PROXY"})
             : read_environment({"http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"});
  settings->https_proxy =
      read_environment({"https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"});
  settings->no_proxy = read_environment({"no_proxy", "NO_PROXY"});
  return settings;
}

}  // namespace torchnpy
