#include "torch/storage.h"

#include <ATen/MapAllocator.h>
#include <c10/core/CPUAllocator.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/descriptor.h"
#include "base/error.h"

namespace torchnpy {
namespace {

constexpr uint64_t kPageNbytes = 4 << 10;
constexpr uint64_t kHugePageNbytes = 2 << 20;
// Less is touched by who fills it.
constexpr uint64_t kWorthTouchingNbytes = 256 << 10;
// Of one call, after which the caller may notice an interrupt.
constexpr uint64_t kTouchNbytes = 1 << 20;
constexpr uint64_t kTouchCost_ns = 100'000;

// The whole pages of so many bytes inside of `bytes`; may be none.
MutableBytes whole_pages(MutableBytes bytes, uint64_t page_nbytes) {
  const auto address = reinterpret_cast<uintptr_t>(bytes.data());
  const uint64_t skipped = (page_nbytes - address % page_nbytes) % page_nbytes;
  if (skipped >= bytes.size()) return {};
  const uint64_t nbytes = (bytes.size() - skipped) / page_nbytes * page_nbytes;
  return bytes.subspan(skipped, nbytes);
}

// The kernel's clearing of fresh 4 KiB pages takes half the time of a large load.
void ask_for_huge_pages(MutableBytes bytes) {
  const MutableBytes pages = whole_pages(bytes, kHugePageNbytes);
  if (!pages.empty()) ::madvise(pages.data(), pages.size(), MADV_HUGEPAGE);
}

at::DataPtr allocate_memory(uint64_t nbytes) {
  at::DataPtr memory = c10::GetCPUAllocator()->allocate(nbytes);
  ask_for_huge_pages({static_cast<uint8_t*>(memory.mutable_get()), nbytes});
  return memory;
}

class TorchAllocator final : public Allocator {
 public:
  OwnedBytes allocate(uint64_t nbytes) override {
    auto memory = std::make_shared<at::DataPtr>(allocate_memory(nbytes));
    auto* const data = static_cast<uint8_t*>(memory->mutable_get());
    return {{data, nbytes}, std::move(memory)};
  }
};
TorchAllocator the_torch_allocator;

[[noreturn]] void fail_shared(uint64_t nbytes, std::string_view call, int error) {
  throw MemoryError(fmt::format(
      "expected {} bytes of shared memory for a batch but {} failed: {}; a smaller batch_size, "
      "prefetch_factor or num_workers takes less memory and fewer open files (ulimit -n)",
      nbytes, call, std::strerror(error)));
}

}  // namespace

c10::Storage allocate_storage(uint64_t nbytes) {
  return c10::Storage(c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), c10::SymInt(static_cast<int64_t>(nbytes)),
      allocate_memory(nbytes), c10::GetCPUAllocator(), /*resizable=*/true));
}

c10::Storage allocate_shared_storage(uint64_t nbytes) {
  if (nbytes == 0) return allocate_storage(0);
  // As torch's own shared storages, but over a memfd instead of a file in /dev/shm: containers give
  // that 64 MiB, and beyond them a write ends in a SIGBUS.
  Descriptor fd(::memfd_create("torchnpy-batch", MFD_CLOEXEC));
  if (!fd) fail_shared(nbytes, "memfd_create", errno);
  if (::ftruncate(fd.get(), static_cast<off_t>(nbytes)) != 0) {
    fail_shared(nbytes, "ftruncate", errno);
  }
  constexpr int kFlags = at::ALLOCATOR_MAPPED_SHAREDMEM | at::ALLOCATOR_MAPPED_NOCREATE |
                         at::ALLOCATOR_MAPPED_KEEPFD | at::ALLOCATOR_MAPPED_FROMFD;
  at::DataPtr memory = at::MapAllocator::makeDataPtr(at::WITH_FD, "torchnpy-batch", fd.get(),
                                                     kFlags, nbytes, nullptr);
  fd.release();  // the memory's owner closes it
  ask_for_huge_pages({static_cast<uint8_t*>(memory.mutable_get()), nbytes});
  return c10::Storage(c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), c10::SymInt(static_cast<int64_t>(nbytes)),
      std::move(memory), /*allocator=*/nullptr, /*resizable=*/false));
}

void touch_ahead(const c10::Storage& storage, Workers& workers,
                 const std::atomic<bool>& is_wanted) {
  if (storage.nbytes() < kWorthTouchingNbytes) return;
  const MutableBytes pages = whole_pages(bytes_of(storage), kPageNbytes);
  for (uint64_t offset = 0; offset < pages.size(); offset += kTouchNbytes) {
    const MutableBytes step = pages.subspan(offset, std::min(kTouchNbytes, pages.size() - offset));
    // The dearest work is done first: the start of the storage.
    const uint64_t steps_left = (pages.size() - offset) / kTouchNbytes;
    workers.run(
        [storage, step, &is_wanted] {
          if (!is_wanted) return;
          // Where the kernel does not know this (before Linux 5.14), who fills it touches it.
          ::madvise(step.data(), step.size(), MADV_POPULATE_WRITE);
        },
        kTouchCost_ns + steps_left);
  }
}

MutableBytes bytes_of(const c10::Storage& storage) {
  return {static_cast<uint8_t*>(storage.mutable_data()), storage.nbytes()};
}

c10::Storage share_bytes(MutableBytes bytes, void* context, c10::DeleterFnPtr deleter) {
  return c10::Storage(c10::make_intrusive<c10::StorageImpl>(
      c10::StorageImpl::use_byte_size_t(), c10::SymInt(static_cast<int64_t>(bytes.size())),
      c10::DataPtr(bytes.data(), context, deleter, at::kCPU), /*allocator=*/nullptr,
      /*resizable=*/false));
}

c10::Storage share_bytes(OwnedBytes bytes) {
  auto* owner = new std::shared_ptr<void>(std::move(bytes.owner));
  return share_bytes(bytes.bytes, owner,
                     [](void* p) { delete static_cast<std::shared_ptr<void>*>(p); });
}

c10::Storage copy_storage(const c10::Storage& storage) {
  c10::Storage copy = allocate_storage(storage.nbytes());
  if (storage.nbytes() > 0) std::memcpy(copy.mutable_data(), storage.data(), storage.nbytes());
  return copy;
}

OwnedBytes StorageAllocator::allocate(uint64_t nbytes) {
  storage_ = allocate_storage(nbytes);
  return {bytes_of(storage_), nullptr};  // the storage owns them
}

Allocator& torch_allocator() { return the_torch_allocator; }

}  // namespace torchnpy
