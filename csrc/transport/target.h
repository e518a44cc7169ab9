// Where the bytes of a new object go: a file, or an object of a store.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "base/bytes.h"

namespace torchnpy {

// Bytes that are only read, valid while `owner` lives.
struct SharedBytes {
  ByteView bytes;
  std::shared_ptr<const void> owner;
};

struct TargetOptions {
  // Of the whole object, where it is known: write() will get so many.
  std::optional<uint64_t> nbytes;
  // A file, and its name in its folder, are on the disk when finish() returns. No meaning for a
  // store: it answers once it has the object.
  bool sync = false;
  // Fails with TransportError (kExists) where there is an object of that name, now or at finish().
  bool if_none_match = false;
};

// One object that is being written, from one thread at a time. Nothing of it is seen under its name
// before finish() has returned; until then what was there before is whole. Calls block, can be
// interrupted (base/wait.h) and throw TransportError with the object's name; after an error only
// the destructor may follow.
class Target {
 public:
  // Abandons what was not finished, and leaves nothing of it behind. Never throws.
  virtual ~Target() = default;
  // For messages: the URL without its query and without credentials, or the path.
  virtual const std::string& name() const = 0;
  // Adds bytes at the end. With an owner they may be written later, and the owner is held until
  // then; without one they are written, or copied, when this returns.
  virtual void write(SharedBytes bytes) = 0;
  // Makes the object visible. Nothing may be written after it.
  virtual void finish() = 0;
};

}  // namespace torchnpy
