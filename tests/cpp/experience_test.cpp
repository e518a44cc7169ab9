#include "transport/experience.h"

#include <gtest/gtest.h>

#include <limits>

namespace torchnpy {
namespace {

constexpr uint64_t kKiB = 1 << 10;
constexpr uint64_t kMiB = 1 << 20;

TEST(Experience, FirstReadGrowsToWhatObjectsAre) {
  Experience experience;
  EXPECT_EQ(experience.first_nbytes(), 64 * kKiB);
  for (int i = 0; i < 8; ++i) experience.saw_object(150'000);
  EXPECT_EQ(experience.first_nbytes(), 256 * kKiB);
  for (int i = 0; i < 32; ++i) experience.saw_object(1 * kMiB);
  EXPECT_EQ(experience.first_nbytes(), 1 * kMiB);
}

TEST(Experience, FirstReadStaysShortForLargeObjects) {
  Experience experience;
  for (int i = 0; i < 8; ++i) experience.saw_object(300 * kMiB);
  EXPECT_EQ(experience.first_nbytes(), 64 * kKiB);
}

TEST(Experience, FewLargeObjectsAmongSmallOnesDoNotCount) {
  Experience experience;
  for (int i = 0; i < 32; ++i) experience.saw_object(i % 4 == 0 ? 300 * kMiB : 100'000);
  EXPECT_EQ(experience.first_nbytes(), 128 * kKiB);
}

TEST(Experience, FirstReadFollowsTheLastObjects) {
  Experience experience;
  for (int i = 0; i < 32; ++i) experience.saw_object(900'000);
  for (int i = 0; i < 32; ++i) experience.saw_object(1000);
  EXPECT_EQ(experience.first_nbytes(), 64 * kKiB);
}

TEST(Experience, StretchComesInSixteenPartsOfAtLeastOneMiB) {
  const Experience experience;
  EXPECT_EQ(experience.part_nbytes(5 * kMiB, 8 * kMiB), 1 * kMiB);
  EXPECT_EQ(experience.part_nbytes(32 * kMiB, 8 * kMiB), 2 * kMiB);
  EXPECT_EQ(experience.part_nbytes(512 * kMiB, 8 * kMiB), 8 * kMiB);
  EXPECT_EQ(experience.part_nbytes(5 * kMiB, 100'000), 100'000u);
  EXPECT_EQ(experience.part_nbytes(std::numeric_limits<uint64_t>::max(), 8 * kMiB), 8 * kMiB);
}

TEST(Experience, PartsTakeAtLeastAsLongToComeAsToBeAskedFor) {
  Experience experience;
  experience.saw_answer(40'000, 8 * kMiB, 80'000);  // 100 MiB/s
  EXPECT_NEAR(static_cast<double>(experience.part_nbytes(20 * kMiB, 8 * kMiB)),
              static_cast<double>(4 * kMiB), 100.0 * kKiB);
}

TEST(Experience, LateIsWhatOneAnswerInTwentyIs) {
  Experience experience;
  for (int i = 0; i < 31; ++i) experience.saw_answer(1000, 10, 1);
  EXPECT_FALSE(experience.late_us());
  for (int i = 0; i < 225; ++i) experience.saw_answer(i % 10 == 0 ? 90'000 : 1000, 10, 1);
  EXPECT_EQ(experience.late_us(), 90'000u);
  for (int i = 0; i < 256; ++i) experience.saw_answer(i % 50 == 0 ? 90'000 : 2000, 10, 1);
  EXPECT_EQ(experience.late_us(), 2000u);
}

TEST(Experience, PartsOfOneObjectAreManyWhereAnswersAreLate) {
  Experience experience;
  EXPECT_EQ(experience.parts_in_flight(2), 16u);
  experience.saw_answer(300, 1000, 10);
  EXPECT_EQ(experience.parts_in_flight(2), 16u);
  for (int i = 0; i < 30; ++i) experience.saw_answer(30'000, 1000, 10);
  EXPECT_EQ(experience.parts_in_flight(2), std::numeric_limits<size_t>::max());
}

}  // namespace
}  // namespace torchnpy
