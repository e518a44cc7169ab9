// What a client's options and the environment say about connections.
#pragma once

#include <memory>
#include <string>

#include "transport/client.h"

namespace torchnpy {

// How the engine runs the exchanges of one client. Immutable: the environment is read when
// it is made, not for each request.
struct EngineSettings {
  int max_in_flight = 64;
  int io_threads = 2;
  double connect_timeout_s = 5;
  double stall_timeout_s = 30;
  bool verify_tls = true;
  bool http2 = false;
  std::string ca_file;  // both empty: libcurl's own default
  std::string ca_directory;
  std::string http_proxy;  // "": none
  std::string https_proxy;
  std::string no_proxy;
};

std::shared_ptr<const EngineSettings> make_engine_settings(const ClientOptions& options);

// Where the certificates of the authorities are: the client's choice, the environment's
// (AWS_CA_BUNDLE, SSL_CERT_FILE, CURL_CA_BUNDLE, SSL_CERT_DIR), or the first of the places
// where distributions keep them that exists, or the fallback.
struct CaBundle {
  std::string file;
  std::string directory;
};
CaBundle find_ca_bundle(const ClientOptions& options);
// A file of certificates for systems that have none. Of the process; for clients that are made
// afterwards.
void set_fallback_ca_bundle(std::string path);

}  // namespace torchnpy
