// The bytes that a request sends, where they lie.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "transport/target.h"

namespace torchnpy {

// Pieces one after the other, each kept alive by its owner.
class HttpBody {
 public:
  uint64_t nbytes() const { return nbytes_; }
  const std::vector<SharedBytes>& pieces() const { return pieces_; }
  void append(SharedBytes piece);
  void append(HttpBody&& other);
  // Over all the bytes.
  uint32_t crc32c() const;

 private:
  std::vector<SharedBytes> pieces_;  // none is empty
  uint64_t nbytes_ = 0;
};

// Goes through a body, which outlives it.
class HttpBodyCursor {
 public:
  explicit HttpBodyCursor(const HttpBody* body = nullptr) : body_(body) {}
  // Copies the next bytes; how many: 0 at the end.
  size_t read(MutableBytes room);
  // Goes on at `offset`, which lies inside the body or at its end.
  void seek(uint64_t offset);

 private:
  const HttpBody* body_;
  size_t piece_ = 0;
  size_t offset_ = 0;  // in the piece
};

}  // namespace torchnpy
