// Any object, piece by piece into the caller's memory: for copies, in bounded memory.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "base/bytes.h"
#include "transport/source.h"

namespace torchnpy {

// From one thread at a time.
class ObjectReader {
 public:
  explicit ObjectReader(std::shared_ptr<Source> source) : source_(std::move(source)) {}

  const std::string& name() const { return source_->name(); }
  // Bytes in the object; empty until a read has told.
  std::optional<uint64_t> nbytes() const { return source_->nbytes(); }
  // See Source.
  std::string version_name() const { return source_->version_name(); }
  void expect_version(const std::string& version_name) { source_->expect_version(version_name); }

  // Fills `room` with the bytes from `offset` on, in parts side by side where it is long. Returns
  // their number: less than the room only where the object ends. All pieces are of one version:
  // throws TransportError (kChanged) where the object is no longer that of the first read or of
  // expect_version(). Blocks, can be interrupted, and throws as loads do.
  uint64_t read(uint64_t offset, MutableBytes room);

 private:
  const std::shared_ptr<Source> source_;
};

}  // namespace torchnpy
