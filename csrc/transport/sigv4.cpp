#include "transport/sigv4.h"

#include <openssl/evp.h>

#include <atomic>
#include <memory>
#include <new>

#include "base/text.h"

namespace torchnpy {
namespace {

// OpenSSL 3 looks an algorithm up by name in each EVP call unless it was fetched before:
// that costs more than the hash. Leaked: threads may sign while the process ends. No
// function static: a child forked while another thread makes one would wait for it.
std::atomic<EVP_MD*> fetched_sha256{nullptr};

const EVP_MD* sha256_algorithm() {
  EVP_MD* algorithm = fetched_sha256.load(std::memory_order_acquire);
  if (algorithm != nullptr) return algorithm;
  EVP_MD* const made = EVP_MD_fetch(nullptr, "SHA256", nullptr);
  if (made == nullptr) throw std::bad_alloc();
  if (fetched_sha256.compare_exchange_strong(algorithm, made)) return made;
  EVP_MD_free(made);
  return algorithm;
}

EVP_MD_CTX* hash_context() {
  struct Free {
    void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
  };
  thread_local const std::unique_ptr<EVP_MD_CTX, Free> context(EVP_MD_CTX_new());
  return context.get();
}

Digest hash(std::string_view first, std::string_view second) {
  EVP_MD_CTX* const context = hash_context();
  Digest digest;
  const bool ok = context != nullptr &&
                  EVP_DigestInit_ex2(context, sha256_algorithm(), nullptr) == 1 &&
                  EVP_DigestUpdate(context, first.data(), first.size()) == 1 &&
                  EVP_DigestUpdate(context, second.data(), second.size()) == 1 &&
                  EVP_DigestFinal_ex(context, digest.data(), nullptr) == 1;
  // With a fetched algorithm these calls fail only when memory is short.
  if (!ok) throw std::bad_alloc();
  return digest;
}

std::string_view as_text(const Digest& digest) {
  return {reinterpret_cast<const char*>(digest.data()), digest.size()};
}

void append_hex(std::string& text, const Digest& digest) {
  for (const uint8_t byte : digest) {
    text += "0123456789abcdef"[byte >> 4];
    text += "0123456789abcdef"[byte & 15];
  }
}

void append_signed_headers(std::string& text, const CanonicalRequest& request) {
  for (size_t i = 0; i < request.headers.size(); ++i) {
    if (i != 0) text += ';';
    text += request.headers[i].first;
  }
}

bool is_unreserved(char c) {
  return is_alphanumeric(c) || c == '-' || c == '_' || c == '.' || c == '~';
}

void append_decimal(std::string& text, unsigned value, int digits) {
  const size_t end = text.size() + digits;
  text.resize(end);
  for (int i = 1; i <= digits; ++i, value /= 10)
    text[end - i] = static_cast<char>('0' + value % 10);
}

}  // namespace

Digest sha256(std::string_view text) { return hash(text, {}); }

// RFC 2104, over two plain hashes: EVP_MAC takes 0.3 us more to set a key, and OpenSSL 3.0.2
// cannot start again with the key it has.
Digest hmac_sha256(std::string_view key, std::string_view text) {
  constexpr size_t kBlockNbytes = 64;
  Digest short_key;
  if (key.size() > kBlockNbytes) {
    short_key = sha256(key);
    key = as_text(short_key);
  }
  std::array<char, kBlockNbytes> inner;
  std::array<char, kBlockNbytes> outer;
  for (size_t i = 0; i < kBlockNbytes; ++i) {
    const char byte = i < key.size() ? key[i] : '\0';
    inner[i] = static_cast<char>(byte ^ 0x36);
    outer[i] = static_cast<char>(byte ^ 0x5c);
  }
  const Digest digest = hash({inner.data(), inner.size()}, text);
  return hash({outer.data(), outer.size()}, as_text(digest));
}

std::string format_hex(const Digest& digest) {
  std::string text;
  append_hex(text, digest);
  return text;
}

std::string encode_uri(std::string_view text, Slash slash) {
  std::string encoded;
  encoded.reserve(text.size() + 16);
  for (const char c : text) {
    if (is_unreserved(c) || (c == '/' && slash == Slash::kKeep)) {
      encoded += c;
    } else {
      const auto byte = static_cast<uint8_t>(c);
      encoded += '%';
      encoded += "0123456789ABCDEF"[byte >> 4];
      encoded += "0123456789ABCDEF"[byte & 15];
    }
  }
  return encoded;
}

std::string format_amz_date(std::chrono::sys_seconds time) {
  const auto day = std::chrono::floor<std::chrono::days>(time);
  const std::chrono::year_month_day date(day);
  const std::chrono::hh_mm_ss clock(time - day);
  std::string text;
  text.reserve(16);
  append_decimal(text, static_cast<unsigned>(static_cast<int>(date.year())), 4);
  append_decimal(text, static_cast<unsigned>(date.month()), 2);
  append_decimal(text, static_cast<unsigned>(date.day()), 2);
  text += 'T';
  append_decimal(text, static_cast<unsigned>(clock.hours().count()), 2);
  append_decimal(text, static_cast<unsigned>(clock.minutes().count()), 2);
  append_decimal(text, static_cast<unsigned>(clock.seconds().count()), 2);
  text += 'Z';
  return text;
}

SigningKey derive_signing_key(std::string access_key_id, std::string_view secret_access_key,
                              std::string_view date, std::string_view region,
                              std::string_view service) {
  Digest key = hmac_sha256("AWS4" + std::string(secret_access_key), date);
  std::string scope(date);
  for (const std::string_view part : {region, service, std::string_view("aws4_request")}) {
    key = hmac_sha256(as_text(key), part);
    scope += '/';
    scope += part;
  }
  return {std::move(access_key_id), std::string(date), std::move(scope), key};
}

std::string format_canonical_request(const CanonicalRequest& request) {
  std::string text;
  text.reserve(512 + request.path.size() + request.query.size());
  text.append(request.method).append("\n");
  text.append(request.path).append("\n");
  text.append(request.query).append("\n");
  for (const auto& [name, value] : request.headers) {
    text.append(name).append(":").append(value).append("\n");
  }
  text += '\n';
  append_signed_headers(text, request);
  text.append("\n").append(request.payload_hash);
  return text;
}

std::string format_string_to_sign(const CanonicalRequest& request, std::string_view amz_date,
                                  const SigningKey& key) {
  std::string text;
  text.reserve(192);
  text.append("AWS4-HMAC-SHA256\n").append(amz_date).append("\n").append(key.scope).append("\n");
  append_hex(text, sha256(format_canonical_request(request)));
  return text;
}

std::string format_authorization(const CanonicalRequest& request, std::string_view amz_date,
                                 const SigningKey& key) {
  std::string text;
  text.reserve(384);
  text.append("AWS4-HMAC-SHA256 Credential=").append(key.access_key_id).append("/");
  text.append(key.scope).append(", SignedHeaders=");
  append_signed_headers(text, request);
  text.append(", Signature=");
  append_hex(text, hmac_sha256(as_text(key.key), format_string_to_sign(request, amz_date, key)));
  return text;
}

}  // namespace torchnpy
