// An upload to S3 in parts, several on their way at once.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "transport/http_body.h"
#include "transport/http_source.h"
#include "transport/s3_upload.h"

namespace torchnpy {

// For one thread. Its calls wait as base/wait.h has it. What they throw ends the upload: then, and
// when it is destroyed, nothing reads the parts any more, and the store is told to forget them; as
// it is when the process ends, if not by a signal.
class MultipartUpload {
 public:
  // Begins it: asks the store.
  MultipartUpload(std::shared_ptr<HttpObject> object, std::shared_ptr<HttpContext> context,
                  bool if_none_match);
  ~MultipartUpload() { abandon(); }
  MultipartUpload(const MultipartUpload&) = delete;
  MultipartUpload& operator=(const MultipartUpload&) = delete;

  // The next part. Returns when there is room for another: as many are on their way as the client
  // lets, and of `copied_nbytes` (in all, of memory that is only there for the upload) 64 MiB. A
  // part is destroyed on this thread.
  void send(HttpBody part, uint64_t copied_nbytes);
  // Waits for the parts and makes the object of them.
  void finish();
  void abandon() noexcept;

 private:
  struct Part {
    HttpBody body;
    uint64_t copied_nbytes = 0;
    uint32_t crc32c = 0;
  };
  struct State;

  static void abandon_all() noexcept;
  template <typename Ready>
  void wait(Ready ready);
  void settle();
  void submit(size_t index);
  void complete();

  const std::shared_ptr<HttpObject> object_;
  const std::shared_ptr<HttpContext> context_;
  const bool if_none_match_;
  const std::shared_ptr<State> state_;
  size_t max_in_flight_ = 1;
  std::vector<std::unique_ptr<Part>> sending_;  // by number; nullptr: it is there
  size_t sending_count_ = 0;
  uint64_t copied_nbytes_ = 0;  // of those
  std::vector<S3Part> parts_;
};

// Whether the object has this content: asks the store. False where it does not tell.
bool has_content(const std::shared_ptr<HttpObject>& object,
                 const std::shared_ptr<HttpContext>& context, const S3Content& content);

}  // namespace torchnpy
