// The limit of benchmarks/npz.py: the codec's work alone. The members' places are given, the
// output is memory that is reused, nothing is parsed or checked. Called through ctypes.
#include <libdeflate.h>

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

struct Member {
  const unsigned char* data;
  uint64_t compressed_nbytes;
  unsigned char* out;  // null: the member is stored
  uint64_t nbytes;
};

namespace {

bool read_member(const Member& member, libdeflate_decompressor* decompressor) {
  const unsigned char* content = member.data;
  if (member.out != nullptr) {
    if (libdeflate_deflate_decompress(decompressor, member.data, member.compressed_nbytes,
                                      member.out, member.nbytes, nullptr) != LIBDEFLATE_SUCCESS) {
      return false;
    }
    content = member.out;
  }
  // Not for its value: that it is not 0 keeps the compiler from leaving it out.
  return libdeflate_crc32(0, content, member.nbytes) != 0;
}

}  // namespace

// Inflates the members and takes their checksums, on `thread_count` threads; false when one fails.
extern "C" bool read_members(const Member* members, uint64_t count, int thread_count) {
  std::atomic<uint64_t> next = 0;
  std::atomic<bool> ok = true;
  const auto work = [&] {
    libdeflate_decompressor* decompressor = libdeflate_alloc_decompressor();
    for (uint64_t i = next++; i < count; i = next++) {
      if (!read_member(members[i], decompressor)) ok = false;
    }
    libdeflate_free_decompressor(decompressor);
  };
  std::vector<std::thread> threads;
  for (int i = 1; i < thread_count; ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  return ok;
}
