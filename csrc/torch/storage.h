// Storages: the memory that tensors lie in.
#pragma once

#include <c10/core/Storage.h>

#include <atomic>
#include <cstdint>

#include "archive/loader.h"
#include "base/bytes.h"

namespace torchnpy {

// `nbytes` of torch's CPU allocator, uninitialised.
c10::Storage allocate_storage(uint64_t nbytes);

// `nbytes`, zeros, that other processes can map: torch hands the storage to another process
// by its file descriptor, without a copy. It is anonymous memory, so /dev/shm does not limit it.
// Throws MemoryError when the process may have no more files, c10::Error when memory is exhausted.
c10::Storage allocate_shared_storage(uint64_t nbytes);

// Has `workers` touch the pages of `storage`, from its start on, so that who fills it does not wait
// for the kernel to clear them. Keeps the storage until that is done, and ends when `is_wanted` is
// no longer true; that must live as long as the load.
void touch_ahead(const c10::Storage& storage, Workers& workers, const std::atomic<bool>& is_wanted);

// The bytes of `storage`.
MutableBytes bytes_of(const c10::Storage& storage);

// A storage over bytes that live as long as `owner`. The deleter never takes the GIL.
c10::Storage share_bytes(OwnedBytes bytes);
// The same with a context and its deleter, for owners that are no shared_ptr.
c10::Storage share_bytes(MutableBytes bytes, void* context, c10::DeleterFnPtr deleter);

// A copy of `storage` in memory of torch's CPU allocator.
c10::Storage copy_storage(const c10::Storage& storage);

// Memory of torch's CPU allocator. Take the storage when the load is done.
class StorageAllocator final : public Allocator {
 public:
  OwnedBytes allocate(uint64_t nbytes) override;
  c10::Storage take() { return std::move(storage_); }

 private:
  c10::Storage storage_;
};

// Memory of torch's CPU allocator, whose owner is all that keeps it.
Allocator& torch_allocator();

}  // namespace torchnpy
