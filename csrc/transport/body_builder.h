// Bytes that are written one after the other, gathered into bodies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "base/bytes.h"
#include "base/descriptor.h"
#include "transport/http_body.h"

namespace torchnpy {

// Keeps what has an owner where it is, and copies what has none into chunks of memory, which are
// used again when the bodies that hold them are gone; beyond a limit into a file without a name.
// For one thread, which also destroys the bodies.
class BodyBuilder {
 public:
  struct Limits {
    size_t chunk_nbytes = 1 << 20;
    uint64_t memory_nbytes = UINT64_MAX;  // of copies; the rest goes to the file
  };
  explicit BodyBuilder(Limits limits) : limits_(limits), chunks_(std::make_shared<Chunks>()) {}

  // Throws TransportError, without the object's name, when the file cannot be written.
  void add(SharedBytes bytes);
  uint64_t nbytes() const { return body_.nbytes() + staged_nbytes_; }
  // All since the last call.
  HttpBody take();
  // Forgets that.
  void clear();

 private:
  using Chunks = std::vector<OwnedBytes>;

  void copy(ByteView bytes);
  void flush();
  SharedBytes spool(ByteView bytes);

  const Limits limits_;
  const std::shared_ptr<Chunks> chunks_;  // free ones
  HttpBody body_;
  OwnedBytes stage_;  // what is copied now
  size_t staged_nbytes_ = 0;
  uint64_t memory_nbytes_ = 0;
  std::optional<Descriptor> file_;
  uint64_t file_nbytes_ = 0;
};

}  // namespace torchnpy
