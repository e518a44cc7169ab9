#include "transport/experience.h"

#include <algorithm>
#include <bit>
#include <limits>

namespace torchnpy {
namespace {

// Of several updates at once some may be lost: it is an estimate.
void average(std::atomic<uint64_t>& mean, uint64_t value) {
  const uint64_t before = mean.load(std::memory_order_relaxed);
  const uint64_t after = before == 0 ? value : before - before / 8 + value / 8;
  mean.store(std::max<uint64_t>(after, 1), std::memory_order_relaxed);
}

}  // namespace

void Experience::saw_object(uint64_t nbytes) {
  const uint64_t number = seen_count_.fetch_add(1, std::memory_order_relaxed);
  sizes_[number % kSizeCount].store(nbytes, std::memory_order_relaxed);
  const uint64_t count = number + 1;
  if (count % 8 != 0) return;
  std::array<uint64_t, kSizeCount> sizes{};
  const size_t known = std::min<size_t>(count, kSizeCount);
  for (size_t i = 0; i < known; ++i) sizes[i] = sizes_[i].load(std::memory_order_relaxed);
  // Large ones come in parts in any case.
  const auto end = std::partition(sizes.begin(), sizes.begin() + known,
                                  [](uint64_t size) { return size <= kMaxFirstNbytes; });
  const auto small = static_cast<size_t>(end - sizes.begin());
  if (small * 2 < known) return first_nbytes_.store(kMinFirstNbytes, std::memory_order_relaxed);
  const auto nth = sizes.begin() + static_cast<std::ptrdiff_t>((small * 9 - 1) / 10);
  std::nth_element(sizes.begin(), nth, end);
  first_nbytes_.store(std::bit_ceil(std::max(*nth, kMinFirstNbytes)), std::memory_order_relaxed);
}

void Experience::saw_answer(uint64_t first_byte_us, uint64_t body_nbytes, uint64_t body_us) {
  // A body that came with its head tells nothing of the rate.
  constexpr uint64_t kTellingNbytes = 256 << 10;
  average(first_byte_us_, first_byte_us);
  saw_first_byte(first_byte_us);
  if (body_nbytes < kTellingNbytes) return;
  average(nbytes_per_s_, body_nbytes * 1'000'000 / std::max<uint64_t>(body_us, 1));
}

void Experience::saw_first_byte(uint64_t us) {
  const uint64_t number = answer_count_.fetch_add(1, std::memory_order_relaxed);
  answers_us_[number % kAnswerCount].store(us, std::memory_order_relaxed);
  const uint64_t count = number + 1;
  if (count % 32 != 0) return;
  std::array<uint64_t, kAnswerCount> answers{};
  const size_t known = std::min<size_t>(count, kAnswerCount);
  for (size_t i = 0; i < known; ++i) answers[i] = answers_us_[i].load(std::memory_order_relaxed);
  const auto end = answers.begin() + static_cast<std::ptrdiff_t>(known);
  const auto nth = end - static_cast<std::ptrdiff_t>(known / 20 + 1);
  std::nth_element(answers.begin(), nth, end);
  late_us_.store(std::max<uint64_t>(*nth, 1), std::memory_order_relaxed);
}

std::optional<uint64_t> Experience::late_us() const {
  const uint64_t late = late_us_.load(std::memory_order_relaxed);
  return late == 0 ? std::nullopt : std::optional(late);
}

uint64_t Experience::part_nbytes(uint64_t wanted_nbytes, uint64_t max_nbytes) const {
  constexpr uint64_t kPartCount = 16;
  constexpr uint64_t kMinPartNbytes = 1 << 20;
  const uint64_t rate = nbytes_per_s_.load(std::memory_order_relaxed);
  const uint64_t first_byte_us = first_byte_us_.load(std::memory_order_relaxed);
  const auto worth =
      static_cast<uint64_t>(static_cast<double>(rate) * 1e-6 * static_cast<double>(first_byte_us));
  const uint64_t least = std::max(kMinPartNbytes, worth);
  return std::min(max_nbytes, std::max(least, (wanted_nbytes - 1) / kPartCount + 1));
}

size_t Experience::parts_in_flight(int io_threads) const {
  constexpr uint64_t kNear_us = 5000;
  constexpr size_t kPerThread = 8;
  if (first_byte_us_.load(std::memory_order_relaxed) > kNear_us) {
    return std::numeric_limits<size_t>::max();
  }
  return kPerThread * static_cast<size_t>(io_threads);
}

}  // namespace torchnpy
