// The least that appending takes: for each append one pwrite of the rows, and one store of the
// count into the mapped header.
//
// usage: raw_append PATH NBYTES COUNT; prints the seconds of wall time and of CPU for all appends
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

using Slot = long long __attribute__((vector_size(16)));

static double cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) { return time.tv_sec + 1e-6 * time.tv_usec; };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const size_t nbytes = strtoull(argv[2], nullptr, 10);
  const size_t count = strtoull(argv[3], nullptr, 10);
  constexpr size_t kHeaderNbytes = 128;
  const int fd = open(argv[1], O_RDWR | O_CREAT | O_TRUNC, 0666);
  if (fd < 0 || ftruncate(fd, kHeaderNbytes) != 0) return 1;
  void* const page = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (page == MAP_FAILED) return 1;
  auto* const slot = reinterpret_cast<volatile Slot*>(static_cast<char*>(page) + 64);
  const std::vector<char> rows(nbytes, 1);

  const double cpu = cpu_seconds();
  const auto start = std::chrono::steady_clock::now();
  off_t end = kHeaderNbytes;
  for (size_t i = 0; i < count; ++i) {
    if (pwrite(fd, rows.data(), nbytes, end) != static_cast<ssize_t>(nbytes)) return 1;
    end += static_cast<off_t>(nbytes);
    char text[17];
    snprintf(text, sizeof(text), "%16zu", i);
    Slot value;
    memcpy(&value, text, sizeof(value));
    *slot = value;
  }
  const std::chrono::duration<double> wall = std::chrono::steady_clock::now() - start;
  printf("%.9f %.9f\n", wall.count(), cpu_seconds() - cpu);
}
