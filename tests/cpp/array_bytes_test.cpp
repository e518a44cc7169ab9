#include "archive/array_bytes.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <thread>

#include "aws_environment.h"
#include "base/error.h"

namespace torchnpy {
namespace {

// An array over memory of its own, and the bytes that a file of it holds, found one by one.
struct Sample {
  ArrayView array;
  std::shared_ptr<std::vector<uint8_t>> memory;
  std::string expected(bool fortran_order) const {
    std::vector<size_t> axes(array.shape.size());
    std::iota(axes.begin(), axes.end(), 0);
    if (!fortran_order) std::ranges::reverse(axes);  // the one that moves first
    std::string bytes;
    const uint64_t count =
        std::accumulate(array.shape.begin(), array.shape.end(), uint64_t{1}, std::multiplies<>());
    for (uint64_t i = 0; i < count; ++i) {
      const uint8_t* at = array.data;
      uint64_t rest = i;
      for (const size_t axis : axes) {
        at += static_cast<int64_t>(rest % array.shape[axis]) * array.strides[axis];
        rest /= array.shape[axis];
      }
      bytes.append(reinterpret_cast<const char*>(at), array.itemsize);
    }
    return bytes;
  }
};

// C order.
Sample contiguous(std::vector<uint64_t> shape, uint64_t itemsize) {
  Sample sample;
  sample.array.itemsize = itemsize;
  sample.array.strides.resize(shape.size());
  uint64_t step = itemsize;
  for (size_t i = shape.size(); i-- > 0; step *= shape[i]) {
    sample.array.strides[i] = static_cast<int64_t>(step);
  }
  sample.array.shape = std::move(shape);
  sample.memory = std::make_shared<std::vector<uint8_t>>(step);
  std::mt19937 random(step);
  for (uint8_t& byte : *sample.memory) byte = static_cast<uint8_t>(random());
  sample.array.data = sample.memory->data();
  sample.array.owner = sample.memory;
  return sample;
}

void permute(ArrayView& array, const std::vector<size_t>& axes) {
  const ArrayView before = array;
  for (size_t i = 0; i < axes.size(); ++i) {
    array.shape[i] = before.shape[axes[i]];
    array.strides[i] = before.strides[axes[i]];
  }
}

// array[begin::step] of one axis, with step < 0 from the end.
void slice(ArrayView& array, size_t axis, int64_t step) {
  const uint64_t count = array.shape[axis];
  if (step < 0 && count > 0) array.data += static_cast<int64_t>(count - 1) * array.strides[axis];
  const uint64_t magnitude = static_cast<uint64_t>(step < 0 ? -step : step);
  array.shape[axis] = (count + magnitude - 1) / magnitude;
  array.strides[axis] *= step;
}

std::string copied(const ArrayBytes& bytes, uint64_t offset, uint64_t nbytes) {
  std::string out(nbytes, '\0');
  bytes.copy(offset, MutableBytes(reinterpret_cast<uint8_t*>(out.data()), out.size()));
  return out;
}

TEST(ArrayBytes, AContiguousArrayIsWholeAndSharesItsOwner) {
  const Sample sample = contiguous({3, 4}, 4);
  const ArrayBytes bytes(sample.array);
  EXPECT_FALSE(bytes.fortran_order());
  EXPECT_EQ(bytes.nbytes(), 48u);
  const auto whole = bytes.whole();
  ASSERT_TRUE(whole);
  EXPECT_EQ(whole->bytes.data(), sample.array.data);
  EXPECT_EQ(whole->owner, sample.memory);
  EXPECT_EQ(copied(bytes, 7, 20), sample.expected(false).substr(7, 20));
}

TEST(ArrayBytes, AFortranContiguousArrayIsWhole) {
  Sample sample = contiguous({3, 4, 1}, 4);
  permute(sample.array, {1, 2, 0});
  const ArrayBytes bytes(sample.array);
  EXPECT_TRUE(bytes.fortran_order());
  ASSERT_TRUE(bytes.whole());
  EXPECT_EQ(as_text(bytes.whole()->bytes), sample.expected(true));
}

TEST(ArrayBytes, WhatIsBothIsInCOrder) {
  for (const std::vector<uint64_t>& shape :
       {std::vector<uint64_t>{}, {5}, {1, 5, 1}, {0, 3}, {3, 0}}) {
    Sample sample = contiguous(shape, 8);
    for (size_t i = 0; i < shape.size(); ++i) {
      if (shape[i] == 1) sample.array.strides[i] = 12345;  // what one step means nobody knows
    }
    const ArrayBytes bytes(sample.array);
    EXPECT_FALSE(bytes.fortran_order());
    ASSERT_TRUE(bytes.whole());
    EXPECT_EQ(as_text(bytes.whole()->bytes), sample.expected(false));
  }
}

TEST(ArrayBytes, EveryPieceOfAnyArrayIsCopied) {
  std::mt19937 random(7);
  const auto below = [&](uint64_t limit) { return random() % limit; };
  const uint64_t itemsizes[] = {1, 2, 3, 4, 8, 12, 16, 20};
  for (int round = 0; round < 400; ++round) {
    const size_t dims = 1 + below(5);
    std::vector<uint64_t> shape(dims);
    for (uint64_t& count : shape) count = 1 + below(dims < 3 ? 90 : 9);
    Sample sample = contiguous(shape, itemsizes[below(std::size(itemsizes))]);
    std::vector<size_t> axes(dims);
    std::iota(axes.begin(), axes.end(), 0);
    std::ranges::shuffle(axes, random);
    permute(sample.array, axes);
    for (size_t axis = 0; axis < dims; ++axis) {
      const int64_t steps[] = {1, 1, 1, 2, -1, -3};
      slice(sample.array, axis, steps[below(std::size(steps))]);
      if (below(8) == 0) sample.array.strides[axis] = 0;  // broadcast
    }
    std::optional<bool> order;
    if (below(2) == 0) order = below(2) == 0;
    const ArrayBytes bytes(sample.array, order);
    ASSERT_EQ(bytes.fortran_order(), order.value_or(bytes.fortran_order()));
    const std::string expected = sample.expected(bytes.fortran_order());
    ASSERT_EQ(bytes.nbytes(), expected.size());
    ASSERT_TRUE(copied(bytes, 0, expected.size()) == expected) << "round " << round;
    for (int piece = 0; piece < 10; ++piece) {
      const uint64_t offset = below(expected.size() + 1);
      const uint64_t nbytes = below(expected.size() - offset + 1);
      ASSERT_TRUE(copied(bytes, offset, nbytes) == expected.substr(offset, nbytes))
          << "round " << round << ", " << nbytes << " bytes at " << offset;
    }
  }
}

TEST(ArrayBytes, TransposesAreCopiedInTiles) {
  for (const uint64_t itemsize : {1, 4, 16}) {
    Sample sample = contiguous({3, 150, 70}, itemsize);
    permute(sample.array, {2, 0, 1});
    slice(sample.array, 2, 2);
    const ArrayBytes bytes(sample.array);
    const std::string expected = sample.expected(false);
    EXPECT_TRUE(copied(bytes, 0, expected.size()) == expected);
    EXPECT_TRUE(copied(bytes, 5, expected.size() - 9) == expected.substr(5, expected.size() - 9));
  }
}

TEST(ArrayBytes, ThreadsCopyAtOnce) {
  Sample sample = contiguous({200, 300}, 4);
  permute(sample.array, {1, 0});
  slice(sample.array, 0, -2);
  const ArrayBytes bytes(sample.array);
  const std::string expected = sample.expected(false);
  std::string out(expected.size(), '\0');
  constexpr size_t kThreads = 4;
  std::vector<std::thread> threads;
  for (size_t i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      const size_t begin = out.size() * i / kThreads;
      const size_t end = out.size() * (i + 1) / kThreads;
      bytes.copy(begin, MutableBytes(reinterpret_cast<uint8_t*>(&out[begin]), end - begin));
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(out == expected);
}

TEST(ArrayBytes, ThatNoMemoryHoldsAreRefused) {
  ArrayView array;
  array.itemsize = 8;
  array.shape = {uint64_t{1} << 32, uint64_t{1} << 32};
  array.strides = {0, 0};
  EXPECT_EQ(message_of<ArgumentError>([&] { ArrayBytes{array}; }),
            "expected an array of at most 9223372036854775807 bytes and 64 dimensions but found "
            "shape (4294967296, 4294967296) of 8 bytes each");
}

}  // namespace
}  // namespace torchnpy
