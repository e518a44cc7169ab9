#include "archive/runs.h"

#include <algorithm>
#include <numeric>

namespace torchnpy {

std::vector<size_t> find_runs(std::span<const Stretch> stretches, uint64_t free_nbytes,
                              const ReadSizes& sizes) {
  constexpr uint64_t kWantedPerGapByte = 20;
  uint64_t budget = 0;
  for (const Stretch& stretch : stretches) budget += stretch.end - stretch.begin;
  budget = budget / kWantedPerGapByte + free_nbytes;
  const auto gap_after = [&](size_t i) { return stretches[i + 1].begin - stretches[i].end; };
  std::vector<size_t> gaps(stretches.empty() ? 0 : stretches.size() - 1);
  std::iota(gaps.begin(), gaps.end(), size_t{0});
  std::ranges::stable_sort(gaps, {}, gap_after);
  std::vector<bool> is_joined(stretches.size());
  for (const size_t gap : gaps) {
    const uint64_t gap_nbytes = gap_after(gap);
    if (gap_nbytes > std::max(budget, sizes.coalesce_nbytes)) break;
    budget -= std::min(budget, gap_nbytes);
    is_joined[gap] = true;
  }
  std::vector<size_t> ends;
  for (size_t i = 0; i < stretches.size(); ++i) {
    const uint64_t begin = stretches[ends.empty() ? 0 : ends.back()].begin;
    const bool goes_on = is_joined[i] && stretches[i + 1].end - begin <= sizes.part_nbytes;
    if (!goes_on) ends.push_back(i + 1);
  }
  return ends;
}

}  // namespace torchnpy
