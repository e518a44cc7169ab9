// The limit of benchmarks/write.py: the codec's work alone. Blocks are compressed and their
// checksums taken; the output is memory that is reused, nothing is written. Called through ctypes.
#include <isa-l/crc.h>
#include <isa-l/igzip_lib.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

constexpr uint64_t kBlockNbytes = 1 << 20;

}  // namespace

// The compressed length of `data` at ISA-L's level 2, on `thread_count` threads; 0 when it fails.
extern "C" uint64_t deflate_blocks(const unsigned char* data, uint64_t nbytes, int thread_count) {
  std::atomic<uint64_t> next = 0;
  std::atomic<uint64_t> total = 0;
  std::atomic<bool> ok = true;
  const auto work = [&] {
    std::vector<unsigned char> symbols(ISAL_DEF_LVL2_DEFAULT);
    std::vector<unsigned char> out(kBlockNbytes + kBlockNbytes / 8);
    for (uint64_t i = next++; i * kBlockNbytes < nbytes; i = next++) {
      unsigned char* block = const_cast<unsigned char*>(data) + i * kBlockNbytes;
      isal_zstream stream;
      isal_deflate_stateless_init(&stream);
      stream.level = 2;
      stream.level_buf = symbols.data();
      stream.level_buf_size = symbols.size();
      stream.flush = FULL_FLUSH;
      stream.next_in = block;
      stream.avail_in = std::min(kBlockNbytes, nbytes - i * kBlockNbytes);
      stream.next_out = out.data();
      stream.avail_out = out.size();
      // Not for its value: that it is not 0 keeps the compiler from leaving it out.
      if (crc32_gzip_refl(0, block, stream.avail_in) == 0) ok = false;
      if (isal_deflate_stateless(&stream) != COMP_OK) ok = false;
      total += stream.total_out;
    }
  };
  std::vector<std::thread> threads;
  for (int i = 1; i < thread_count; ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  return ok ? total.load() : 0;
}
