#include "transport/upload.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/fork.h"
#include "base/wait.h"
#include "transport/body_builder.h"
#include "transport/http_send.h"
#include "transport/multipart.h"
#include "transport/s3_upload.h"

namespace torchnpy {
namespace {

constexpr uint64_t kMaxPutNbytes = 16 << 20;

class Upload final : public Target {
 public:
  Upload(std::shared_ptr<HttpObject> object, std::shared_ptr<HttpContext> context,
         const TargetOptions& options)
      : object_(std::move(object)),
        context_(std::move(context)),
        options_(options),
        takes_parts_(object_->takes_parts()),
        builder_(takes_parts_ ? BodyBuilder::Limits{} : BodyBuilder::Limits{8 << 20, 16 << 20}) {
    begin_part();
  }

  ~Upload() override {
    // The parent's: its threads, and their locks, are not here.
    if (is_inherited()) static_cast<void>(parts_.release());
  }

  const std::string& name() const override { return object_->name(); }

  void write(SharedBytes bytes) override {
    run([&] {
      if (options_.nbytes && bytes.bytes.size() > *options_.nbytes - written_nbytes_) {
        throw ArgumentError(fmt::format(
            "expected {} bytes, as was said at the beginning, but found more", *options_.nbytes));
      }
      written_nbytes_ += bytes.bytes.size();
      if (!takes_parts_) return builder_.add(std::move(bytes));
      while (!bytes.bytes.empty()) add_to_part(bytes);
    });
  }

  void finish() override {
    run([&] {
      if (options_.nbytes && written_nbytes_ != *options_.nbytes) {
        throw ArgumentError(
            fmt::format("expected {} bytes, as was said at the beginning, but found {}",
                        *options_.nbytes, written_nbytes_));
      }
      if (!parts_) {
        put_whole();
      } else {
        if (builder_.nbytes() != 0) end_part();
        send_held();
        parts_->finish();
      }
    });
    has_ended_ = true;
  }

 private:
  // A part that is full.
  struct Held {
    HttpBody body;
    uint64_t copied_nbytes = 0;
  };

  bool is_inherited() const { return forks_ != fork_count(); }

  // What `call` throws ends the upload, and names the object.
  template <typename Call>
  void run(Call call) {
    if (is_inherited()) {
      throw TransportError(name() +
                           ": expected the process that began the upload to go on with it but this "
                           "is a fork of it");
    }
    if (has_ended_) {
      throw ArgumentError(name() + ": expected no call after the upload has ended or failed");
    }
    try {
      call();
    } catch (...) {
      has_ended_ = true;
      parts_.reset();
      held_.clear();
      builder_.clear();
      name_error();
    }
  }

  [[noreturn]] void name_error() const {
    try {
      throw;
    } catch (const InterruptedError&) {
      throw;
    } catch (Error& error) {
      if (!std::string_view(error.what()).starts_with(name())) error.add_context(name());
      throw;
    }
  }

  void begin_part() {
    if (!takes_parts_) return;
    try {
      part_nbytes_ =
          plan_part_nbytes(++part_number_, options_.nbytes, context_->options->part_nbytes);
    } catch (Error& error) {
      error.add_context(name());
      throw;
    }
    copied_nbytes_ = 0;
  }

  // Takes what fits from the front of `bytes`. With more than one PUT may hold, parts go out.
  void add_to_part(SharedBytes& bytes) {
    if (builder_.nbytes() == part_nbytes_) end_part();
    const size_t nbytes = static_cast<size_t>(
        std::min<uint64_t>(bytes.bytes.size(), part_nbytes_ - builder_.nbytes()));
    if (bytes.owner == nullptr) copied_nbytes_ += nbytes;
    builder_.add({bytes.bytes.first(nbytes), bytes.owner});
    bytes.bytes = bytes.bytes.subspan(nbytes);
    collected_nbytes_ += nbytes;
    const uint64_t max_put_nbytes = std::max(kMaxPutNbytes, part_nbytes_);
    if (options_.nbytes.value_or(collected_nbytes_) <= max_put_nbytes) return;
    if (builder_.nbytes() == part_nbytes_) end_part();
    send_held();
  }

  void end_part() {
    held_.push_back({builder_.take(), copied_nbytes_});
    begin_part();
  }

  void send_held() {
    if (held_.empty()) return;
    if (!parts_) {
      // Before all the bytes are sent in vain.
      if (options_.if_none_match) check_absent();
      parts_ = std::make_unique<MultipartUpload>(object_, context_, options_.if_none_match);
    }
    for (Held& part : held_) parts_->send(std::move(part.body), part.copied_nbytes);
    held_.clear();
  }

  // What the store does not tell now it tells at the end.
  void check_absent() {
    const SendResult result =
        send_and_wait(object_, context_, make_look(), {"looking for the object"});
    if (!result.error) fail_exists("found one");
    if (is_interruption(result.error)) std::rethrow_exception(result.error);
  }

  [[noreturn]] void fail_exists(std::string_view found) const {
    throw TransportError(
        fmt::format("{}: expected no object of that name (if_none_match) but {}", name(), found),
        TransportError::Kind::kExists);
  }

  void put_whole() {
    HttpBody content;
    for (Held& part : held_) content.append(std::move(part.body));
    held_.clear();
    content.append(builder_.take());
    const uint32_t crc = takes_parts_ ? content.crc32c() : 0;
    // Servers that know nothing of the condition would overwrite the object.
    if (!takes_parts_ && options_.if_none_match) check_absent();
    HttpCommand command = make_put(content, crc, options_.if_none_match);
    if (!takes_parts_) {
      std::erase_if(command.headers,
                    [](const auto& header) { return header.first.starts_with("x-amz-"); });
    }
    const SendResult result = send_and_wait(object_, context_, std::move(command));
    if (!result.error) return;
    try {
      std::rethrow_exception(result.error);
    } catch (const TransportError& error) {
      if (error.kind() != TransportError::Kind::kExists || !result.was_maybe_done) throw;
      if (takes_parts_ && has_content(object_, context_, describe_content(content, crc))) return;
      fail_exists("found one, which may be this very upload: the answer to an attempt was lost");
    }
  }

  const std::shared_ptr<HttpObject> object_;
  const std::shared_ptr<HttpContext> context_;
  const TargetOptions options_;
  const bool takes_parts_;
  const uint64_t forks_ = fork_count();
  BodyBuilder builder_;
  uint64_t part_number_ = 0;    // of the part that is being built; and
  uint64_t part_nbytes_ = 0;    // its size,
  uint64_t copied_nbytes_ = 0;  // and how much of it has no owner
  uint64_t collected_nbytes_ = 0;
  uint64_t written_nbytes_ = 0;
  std::vector<Held> held_;
  std::unique_ptr<MultipartUpload> parts_;
  bool has_ended_ = false;
};

}  // namespace

std::unique_ptr<Target> create_object(std::shared_ptr<HttpObject> object,
                                      std::shared_ptr<HttpContext> context,
                                      const TargetOptions& options) {
  return std::make_unique<Upload>(std::move(object), std::move(context), options);
}

}  // namespace torchnpy
