// Random faults in random order over loads of many parts: what comes is one version of the object,
// or an error, and never bytes of two.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "archive/loader.h"
#include "http_testing.h"
#include "npy_bytes.h"

namespace torchnpy {
namespace {

using namespace testing;

constexpr size_t kRowNbytes = 1000;
constexpr size_t kRowCount = 300;

// A server's life: what it does to each request, and the arrays that its object was meanwhile.
class Story {
 public:
  explicit Story(uint32_t seed) : random_(seed), validator_(draw(3)) {
    change_object();
    const size_t step_count = 4 + draw(12);
    for (size_t i = 0; i < step_count; ++i) steps.push_back(make_step());
    steps.push_back(make_good_step());
  }

  // Which of the arrays it is; npos: none of them.
  size_t find_version(std::string_view data) const {
    const auto found = std::ranges::find(versions, data);
    return found == versions.end() ? std::string::npos
                                   : static_cast<size_t>(found - versions.begin());
  }

  size_t draw(size_t end) { return std::uniform_int_distribution<size_t>(0, end - 1)(random_); }

  std::string object;  // the first
  std::vector<Step> steps;
  std::vector<std::string> versions;

 private:
  void change_object() {
    std::string data(kRowCount * kRowNbytes, '\0');
    for (size_t i = 0; i < data.size(); ++i) {
      data[i] = static_cast<char>(i * (2 * versions.size() + 31) >> 3);
    }
    versions.push_back(data);
    changed_ =
        npy_bytes(fmt::format("{{'descr': '|u1', 'fortran_order': False, 'shape': ({}, {}), }}",
                              kRowCount, kRowNbytes),
                  data);
    if (object.empty()) object = std::exchange(changed_, "");
  }

  Step make_good_step() {
    Step step;
    step.object = std::exchange(changed_, "");
    const size_t version = versions.size();
    step.etag = validator_ == 0   ? fmt::format("\"v{}\"", version)
                : validator_ == 1 ? fmt::format("W/\"v{}\"", version)
                                  : "";
    step.headers = fmt::format("Last-Modified: Sun, 06 Nov 1994 08:49:{:02} GMT\r\n", version);
    return step;
  }

  Step make_step() {
    // A version in five requests: some loads meet one change, some two.
    if (draw(5) == 0) change_object();
    Step step = make_good_step();
    const size_t at = draw(2) == 0 ? draw(200) : draw(120'000);
    switch (draw(14)) {
      case 0: step.reset_at = at; break;
      case 1: step.close_at = at; break;
      case 2: step.reset_at = SIZE_MAX; break;
      case 3: step.close_at = SIZE_MAX; break;
      case 4: step.status = "503 Service Unavailable"; break;
      case 5: step.status = "429 Too Many Requests"; break;
      case 6: step.ignore_range = true; break;
      case 7:
        step.ignore_range = step.chunked = true;
        step.close_at = at;
        break;
      case 8:
        step.chunked = true;
        step.reset_at = at;
        break;
      case 9: step.head_nbytes = draw(60), step.close_at = 0; break;
      case 10: step.close_after = true; break;
      case 11: step.late = "XXX"; break;
      case 12: step.content_range = draw(6) == 0 ? "bytes 0-9/10" : ""; break;
      default: break;
    }
    return step;
  }

  std::minstd_rand random_;
  const size_t validator_;  // a strong tag, a weak one, a date
  std::string changed_;     // the object that the next step brings
};

TEST(FaultSequences, NeverMixVersions) {
  size_t loaded = 0;
  size_t restarted = 0;
  size_t failed = 0;
  for (uint32_t seed = 0; seed < 120; ++seed) {
    Story story(seed);
    FaultServer server(story.object, story.steps);
    TestClient client;
    client.options->retries = 4;
    client.options->backoff_s = 0.0005;
    client.options->max_in_flight = static_cast<int>(1 + story.draw(6));
    client.options->part_nbytes = 20'000 + story.draw(100'000);
    NpyLoader loader(client.open(server.url()), heap_allocator());
    try {
      load_one(loader);
      const size_t version = story.find_version(as_text(loader.data().bytes));
      ASSERT_NE(version, std::string::npos) << "seed " << seed;
      ++loaded;
      restarted += version > 0 ? 1 : 0;
    } catch (const TransportError& error) {
      ASSERT_TRUE(std::string_view(error.what()).starts_with(server.url() + ": ")) << error.what();
      ++failed;
    }
    ASSERT_EQ(client.metrics->in_flight.value(), 0) << "seed " << seed;
  }
  // Else it would show nothing.
  EXPECT_GT(loaded, 20);
  EXPECT_GT(restarted, 20);
  EXPECT_GT(failed, 5);
}

}  // namespace
}  // namespace torchnpy
