// A file that grows, step by step: what tests replace to fail, cut or crash at each step.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/bytes.h"
#include "base/error.h"
#include "format/growing_header.h"

namespace torchnpy {

// From one thread at a time. What returns an int or ssize_t does so as the system call that it is
// named after: -1, and errno says why.
class GrowingFile {
 public:
  virtual ~GrowingFile() = default;

  // Read from `offset` on; fewer than asked for at the end of the file only.
  virtual ssize_t read(MutableBytes room, uint64_t offset) = 0;
  // Of the file now.
  virtual int64_t nbytes() = 0;

  // At least one of the bytes, which may be fewer than all.
  virtual ssize_t write(ByteView bytes, uint64_t offset) = 0;
  // All or nothing, also for a reader and when the process is killed: `bytes` lie in one page.
  virtual int overwrite(ByteView bytes, uint64_t offset) = 0;
  // The same of a slot, with one store. The file must reach behind the slot. Fails with ESTALE
  // where there is another slot than `before`: somebody else wrote it.
  virtual int store(const CountSlot& slot, uint64_t offset, const CountSlot& before) = 0;
  virtual int truncate(uint64_t nbytes) = 0;
  // The data, and what is needed to find it, are on the disk.
  virtual int sync() = 0;

  // The journal beside the file (archive/move_journal.h), replaced as a whole and synced. These
  // throw TransportError.
  virtual std::optional<std::string> read_journal() = 0;
  virtual void put_journal(ByteView bytes) = 0;
  virtual void drop_journal() = 0;

  // The name without symbolic links.
  virtual const std::string& real_path() const = 0;
};

enum class FileAccess {
  kRead,
  kAppend,  // locked against all others that open it so, until this dies
};

// Throws LockError where another writer has the file, TransportError with the system's reason,
// UnsupportedError for what is no regular file.
std::unique_ptr<GrowingFile> open_growing_file(const std::string& path, FileAccess access);
using OpenGrowingFile =
    std::function<std::unique_ptr<GrowingFile>(const std::string& path, FileAccess access)>;

// Runs `run`, and names the file in what it throws; errors of the system and of locks name it.
template <typename Run>
auto with_file_name(const std::string& path, Run run) {
  try {
    return run();
  } catch (const TransportError&) {
    throw;
  } catch (const LockError&) {
    throw;
  } catch (const InterruptedError&) {
    throw;
  } catch (Error& error) {
    error.add_context(path);
    throw;
  }
}

// Throws TransportError: "<path>: cannot <what>: <the reason of errno>".
[[noreturn]] void throw_system_error(const std::string& path, std::string_view what, int error);

}  // namespace torchnpy
