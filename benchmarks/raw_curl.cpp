// The limit of benchmarks/remote.py and of the uploads in write.py: GETs and PUTs with libcurl and
// nothing else. Prints one line of JSON.
//
//   raw_curl small BASE COUNT IN_FLIGHT   BASE/000000.npy ...: one thread, one multi handle
//   raw_curl large URL NBYTES THREADS HUGE   a range each, into one fresh buffer
//   raw_curl put URL NBYTES PART_NBYTES THREADS   parts of one buffer, one after the other each
//
// Over HTTPS the authority's certificate is the file that SSL_CERT_FILE names.
#include <curl/curl.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;

double cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](timeval t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

void print_result(double seconds, double cpu_s, size_t nbytes) {
  std::printf("{\"seconds\": %.6f, \"cpu_s\": %.6f, \"nbytes\": %zu}\n", seconds, cpu_s, nbytes);
}

// Where a transfer's bytes go.
struct Target {
  char* data = nullptr;
  size_t capacity = 0;
  size_t filled = 0;
};

size_t write_to_target(char* data, size_t, size_t nbytes, void* user) {
  auto* target = static_cast<Target*>(user);
  if (nbytes > target->capacity - target->filled) {
    return 0;
  }
  std::memcpy(target->data + target->filled, data, nbytes);
  target->filled += nbytes;
  return nbytes;
}

CURL* make_handle(Target* target, long buffer_nbytes) {
  CURL* handle = curl_easy_init();
  curl_easy_setopt(handle, CURLOPT_WRITEFUNCTION, write_to_target);
  curl_easy_setopt(handle, CURLOPT_WRITEDATA, target);
  curl_easy_setopt(handle, CURLOPT_PRIVATE, target);
  curl_easy_setopt(handle, CURLOPT_BUFFERSIZE, buffer_nbytes);
  curl_easy_setopt(handle, CURLOPT_FAILONERROR, 1L);
  curl_easy_setopt(handle, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(handle, CURLOPT_PROXY, "");
  if (const char* authority = std::getenv("SSL_CERT_FILE")) {
    curl_easy_setopt(handle, CURLOPT_CAINFO, authority);
  }
  return handle;
}

void require(CURLcode code) {
  if (code != CURLE_OK) {
    throw std::runtime_error(curl_easy_strerror(code));
  }
}

// Every object once; returns their bytes.
size_t fetch_all(CURLM* multi, const std::vector<CURL*>& handles,
                 const std::vector<std::string>& urls) {
  size_t next = 0;
  size_t pending = 0;
  size_t total_nbytes = 0;
  const auto start = [&](CURL* handle) {
    curl_easy_setopt(handle, CURLOPT_URL, urls[next++].c_str());
    curl_multi_add_handle(multi, handle);
    ++pending;
  };
  for (CURL* handle : handles) {
    if (next < urls.size()) {
      start(handle);
    }
  }
  while (pending > 0) {
    int running = 0;
    curl_multi_perform(multi, &running);
    int left = 0;
    while (CURLMsg* message = curl_multi_info_read(multi, &left)) {
      require(message->data.result);
      CURL* handle = message->easy_handle;
      Target* target = nullptr;
      curl_easy_getinfo(handle, CURLINFO_PRIVATE, &target);
      total_nbytes += target->filled;
      target->filled = 0;
      curl_multi_remove_handle(multi, handle);
      --pending;
      if (next < urls.size()) {
        start(handle);
      }
    }
    if (pending > 0) {
      curl_multi_poll(multi, nullptr, 0, 1000, nullptr);
    }
  }
  return total_nbytes;
}

void run_small(const std::string& base, size_t count, size_t in_flight) {
  constexpr size_t kObjectNbytes = 65536;
  std::vector<std::string> urls(count);
  for (size_t i = 0; i < count; ++i) {
    char name[32];
    std::snprintf(name, sizeof name, "/%06zu.npy", i);
    urls[i] = base + name;
  }
  std::vector<char> memory(in_flight * kObjectNbytes);
  std::vector<Target> targets(in_flight);
  std::vector<CURL*> handles(in_flight);
  CURLM* multi = curl_multi_init();
  curl_multi_setopt(multi, CURLMOPT_MAXCONNECTS, static_cast<long>(in_flight));
  for (size_t i = 0; i < in_flight; ++i) {
    targets[i] = {memory.data() + i * kObjectNbytes, kObjectNbytes, 0};
    handles[i] = make_handle(&targets[i], 65536);
    curl_easy_setopt(handles[i], CURLOPT_RANGE, "0-65535");
  }
  fetch_all(multi, handles, urls);  // connects
  const double cpu = cpu_seconds();
  const auto start = Clock::now();
  const size_t nbytes = fetch_all(multi, handles, urls);
  const std::chrono::duration<double> elapsed = Clock::now() - start;
  print_result(elapsed.count(), cpu_seconds() - cpu, nbytes);
}

void fetch_range(CURL* handle, Target* target, const std::string& url, size_t offset,
                 size_t nbytes) {
  const std::string range = std::to_string(offset) + "-" + std::to_string(offset + nbytes - 1);
  curl_easy_setopt(handle, CURLOPT_URL, url.c_str());
  curl_easy_setopt(handle, CURLOPT_RANGE, range.c_str());
  require(curl_easy_perform(handle));
  if (target->filled != nbytes) {
    throw std::runtime_error("short body");
  }
}

void run_large(const std::string& url, size_t nbytes, size_t thread_count, bool huge_pages) {
  char first = 0;
  std::vector<Target> targets(thread_count, Target{&first, 1, 0});
  std::vector<CURL*> handles;
  for (Target& target : targets) {
    handles.push_back(make_handle(&target, 262144));
    fetch_range(handles.back(), &target, url, 0, 1);  // connects
  }
  const double cpu = cpu_seconds();
  const auto start = Clock::now();
  void* memory = mmap(nullptr, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    throw std::runtime_error("no memory");
  }
  madvise(memory, nbytes, huge_pages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  const size_t part_nbytes = (nbytes + thread_count - 1) / thread_count;
  std::vector<std::thread> threads;
  for (size_t i = 0; i < thread_count; ++i) {
    const size_t offset = i * part_nbytes;
    const size_t own_nbytes = std::min(part_nbytes, nbytes - offset);
    targets[i] = {static_cast<char*>(memory) + offset, own_nbytes, 0};
    threads.emplace_back(fetch_range, handles[i], &targets[i], url, offset, own_nbytes);
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  const std::chrono::duration<double> elapsed = Clock::now() - start;
  print_result(elapsed.count(), cpu_seconds() - cpu, nbytes);
}

// What a transfer sends.
struct Origin {
  const char* data = nullptr;
  size_t left = 0;
};

size_t read_from_origin(char* room, size_t, size_t nbytes, void* user) {
  auto* origin = static_cast<Origin*>(user);
  nbytes = std::min(nbytes, origin->left);
  std::memcpy(room, origin->data, nbytes);
  origin->data += nbytes;
  origin->left -= nbytes;
  return nbytes;
}

size_t ignore_answer(char*, size_t, size_t nbytes, void*) { return nbytes; }

CURL* make_put_handle(const std::string& url, Origin* origin) {
  CURL* handle = make_handle(nullptr, 65536);
  curl_easy_setopt(handle, CURLOPT_URL, url.c_str());
  curl_easy_setopt(handle, CURLOPT_WRITEFUNCTION, ignore_answer);
  curl_easy_setopt(handle, CURLOPT_UPLOAD, 1L);
  curl_easy_setopt(handle, CURLOPT_UPLOAD_BUFFERSIZE, 262144L);
  curl_easy_setopt(handle, CURLOPT_READFUNCTION, read_from_origin);
  curl_easy_setopt(handle, CURLOPT_READDATA, origin);
  static curl_slist no_expect{const_cast<char*>("Expect:"), nullptr};
  curl_easy_setopt(handle, CURLOPT_HTTPHEADER, &no_expect);
  return handle;
}

void put(CURL* handle, Origin* origin, const char* data, size_t nbytes) {
  *origin = {data, nbytes};
  curl_easy_setopt(handle, CURLOPT_INFILESIZE_LARGE, static_cast<curl_off_t>(nbytes));
  require(curl_easy_perform(handle));
}

void run_put(const std::string& url, size_t nbytes, size_t part_nbytes, size_t thread_count) {
  std::vector<char> memory(nbytes);
  for (size_t i = 0; i < nbytes; ++i) memory[i] = static_cast<char>(i * 31);
  std::vector<Origin> origins(thread_count);
  std::vector<CURL*> handles;
  for (Origin& origin : origins) {
    handles.push_back(make_put_handle(url, &origin));
    put(handles.back(), &origin, memory.data(), 1);  // connects
  }
  const double cpu = cpu_seconds();
  const auto start = Clock::now();
  std::vector<std::thread> threads;
  for (size_t i = 0; i < thread_count; ++i) {
    threads.emplace_back([&, i] {
      for (size_t at = i * part_nbytes; at < nbytes; at += thread_count * part_nbytes) {
        put(handles[i], &origins[i], memory.data() + at, std::min(part_nbytes, nbytes - at));
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  const std::chrono::duration<double> elapsed = Clock::now() - start;
  print_result(elapsed.count(), cpu_seconds() - cpu, nbytes);
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> args(argv + 1, argv + argc);
  curl_global_init(CURL_GLOBAL_ALL);
  try {
    if (args.size() == 4 && args[0] == "small") {
      run_small(args[1], std::stoul(args[2]), std::stoul(args[3]));
    } else if (args.size() == 5 && args[0] == "large") {
      run_large(args[1], std::stoul(args[2]), std::stoul(args[3]), args[4] == "1");
    } else if (args.size() == 5 && args[0] == "put") {
      run_put(args[1], std::stoul(args[2]), std::stoul(args[3]), std::stoul(args[4]));
    } else {
      std::fprintf(stderr, "usage: see the source\n");
      return 2;
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
