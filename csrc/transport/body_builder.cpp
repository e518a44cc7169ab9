#include "transport/body_builder.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <system_error>
#include <utility>

#include "base/error.h"

namespace torchnpy {
namespace {

// Copies of so few bytes are not worth a page of the file.
constexpr size_t kTinyNbytes = 64 << 10;

[[noreturn]] void fail(const std::string& folder, int error) {
  throw TransportError("a file for what is to be sent cannot be written in " + folder +
                       " (TMPDIR): " + std::system_category().message(error));
}

std::string temporary_folder() {
  const char* const folder = std::getenv("TMPDIR");
  return folder != nullptr && *folder != '\0' ? folder : "/var/tmp";  // /tmp may be memory
}

Descriptor open_unnamed(const std::string& folder) {
  const int unnamed = open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC | O_EXCL, 0600);
  if (unnamed >= 0) return Descriptor(unnamed);
  std::string path = folder + "/torchnpy-XXXXXX";  // a file system without O_TMPFILE
  const int named = mkostemp(path.data(), O_CLOEXEC);
  if (named < 0) fail(folder, errno);
  unlink(path.c_str());
  return Descriptor(named);
}

}  // namespace

void BodyBuilder::add(SharedBytes bytes) {
  if (bytes.owner == nullptr) return copy(bytes.bytes);
  flush();
  body_.append(std::move(bytes));
}

void BodyBuilder::copy(ByteView bytes) {
  while (!bytes.empty()) {
    if (stage_.bytes.empty()) {
      if (chunks_->empty()) chunks_->push_back(allocate_bytes(limits_.chunk_nbytes));
      stage_ = std::move(chunks_->back());
      chunks_->pop_back();
    }
    const size_t nbytes = std::min(bytes.size(), stage_.bytes.size() - staged_nbytes_);
    std::memcpy(stage_.bytes.data() + staged_nbytes_, bytes.data(), nbytes);
    staged_nbytes_ += nbytes;
    bytes = bytes.subspan(nbytes);
    if (staged_nbytes_ == stage_.bytes.size()) flush();
  }
}

// What is staged joins the body.
void BodyBuilder::flush() {
  if (staged_nbytes_ == 0) return;
  const ByteView staged = stage_.bytes.first(staged_nbytes_);
  if (memory_nbytes_ + staged.size() > limits_.memory_nbytes && staged.size() > kTinyNbytes) {
    body_.append(spool(staged));
    staged_nbytes_ = 0;
    return;
  }
  memory_nbytes_ += staged.size();
  staged_nbytes_ = 0;
  const auto give_back = [chunks = chunks_, chunk = stage_](const void*) {
    try {
      chunks->push_back(chunk);
    } catch (const std::bad_alloc&) {  // then it is let go
    }
  };
  const uint8_t* const data = staged.data();
  stage_ = {};
  body_.append({staged, std::shared_ptr<const void>(data, give_back)});
}

SharedBytes BodyBuilder::spool(ByteView bytes) {
  const std::string folder = temporary_folder();
  if (!file_) file_ = open_unnamed(folder);
  const uint64_t begin = file_nbytes_;
  for (size_t written = 0; written < bytes.size();) {
    const ssize_t count = pwrite(file_->get(), bytes.data() + written, bytes.size() - written,
                                 static_cast<off_t>(begin + written));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) fail(folder, count < 0 ? errno : ENOSPC);
    written += static_cast<size_t>(count);
  }
  const size_t nbytes = bytes.size();
  void* const memory =
      mmap(nullptr, nbytes, PROT_READ, MAP_PRIVATE, file_->get(), static_cast<off_t>(begin));
  if (memory == MAP_FAILED) fail(folder, errno);
  const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  file_nbytes_ = (begin + nbytes + page - 1) / page * page;  // where the next can be mapped
  return {{static_cast<const uint8_t*>(memory), nbytes},
          std::shared_ptr<const void>(
              memory, [nbytes](const void* mapped) { munmap(const_cast<void*>(mapped), nbytes); })};
}

HttpBody BodyBuilder::take() {
  flush();
  return std::exchange(body_, {});
}

void BodyBuilder::clear() {
  staged_nbytes_ = 0;
  body_ = {};
}

}  // namespace torchnpy
