// An object behind an http(s) URL that the user gave.
#include <fmt/format.h>
#include <strings.h>

#include <algorithm>
#include <string>

#include "base/error.h"
#include "transport/base64.h"
#include "transport/http.h"
#include "transport/url.h"

namespace torchnpy {
namespace {

// The text between <tag> and </tag>; "" when there is none.
std::string_view find_element(std::string_view xml, std::string_view tag) {
  const std::string open = fmt::format("<{}>", tag);
  const size_t begin = xml.find(open);
  if (begin == std::string_view::npos) return {};
  xml.remove_prefix(begin + open.size());
  const size_t end = xml.find(fmt::format("</{}>", tag));
  return end == std::string_view::npos ? std::string_view() : xml.substr(0, end);
}

bool is_line(std::string_view text) {
  return text.find_first_of(std::string_view("\r\n\0", 3)) == std::string_view::npos;
}

class PlainObject final : public HttpObject {
 public:
  PlainObject(const Url& url, std::shared_ptr<const ClientOptions> options)
      : options_(std::move(options)), name_(url.display()), url_(url.request()) {
    bool has_authorization = false;
    for (const auto& [name, value] : options_->headers) {
      if (name.empty() || name.find_first_of(": \t") != std::string::npos || !is_line(name) ||
          !is_line(value)) {
        throw ArgumentError("headers: expected names and values of one line each but found \"" +
                            name.substr(0, name.find_first_of("\r\n: ")) + "\"");
      }
      has_authorization = has_authorization || strcasecmp(name.c_str(), "authorization") == 0;
    }
    if (!url.userinfo.empty() && !has_authorization) {
      authorization_ = "Basic " + encode_base64(percent_decode(url.userinfo));
    }
  }

  const std::string& name() const override { return name_; }
  const std::string& identity() const override { return url_; }
  // A query may be what selects the object; of a presigned URL it is part of who asks, but that
  // cannot be told apart safely.
  std::string cache_key() const override { return "http\n" + url_; }

  HttpRequest make_request(HttpCommand command) override {
    Headers headers = std::move(command.headers);
    add_own_headers(headers, options_->headers);
    if (!authorization_.empty()) headers.emplace_back("Authorization", authorization_);
    return {url_, std::move(headers), std::move(command.method), std::move(command.body),
            command.content};
  }

  std::optional<HttpRequest> make_request_at(const Url& url, const HttpCommand& command) override {
    if (!url.same_origin(parse_url(url_))) return std::nullopt;
    HttpRequest request = make_request(command);
    request.url = url.request();
    return request;
  }

  // Stores answer presigned URLs with XML; others may send a line of text.
  Verdict judge(const HttpResponse& response) override {
    Verdict verdict;
    const std::string_view code = find_element(response.body, "Code");
    const std::string_view message = find_element(response.body, "Message");
    if (!code.empty()) {
      verdict.message = fmt::format("{}{}{}", code, message.empty() ? "" : ": ", message);
    } else if (response.header("content-type").starts_with("text/plain")) {
      verdict.message = response.body.substr(0, response.body.find_first_of("\r\n"));
    }
    return verdict;
  }

 private:
  const std::shared_ptr<const ClientOptions> options_;
  const std::string name_;
  const std::string url_;
  std::string authorization_;
};

}  // namespace

std::shared_ptr<HttpObject> make_plain_object(const std::string& url,
                                              std::shared_ptr<const ClientOptions> options) {
  return std::make_shared<PlainObject>(parse_url(url), std::move(options));
}

}  // namespace torchnpy
