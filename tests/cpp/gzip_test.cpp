#include "format/gzip.h"

#include <gtest/gtest.h>

#include <random>
#include <string>

#include "base/error.h"
#include "error_of.h"

namespace torchnpy {
namespace {

std::string noise(size_t nbytes) {
  std::minstd_rand random(1);
  std::string text(nbytes, ' ');
  for (char& c : text) c = static_cast<char>('0' + random() % 10);
  return text;
}

std::string compressed(std::string_view text, size_t piece_nbytes = 10000) {
  GzipWriter writer;
  std::string out;
  for (; !text.empty(); text.remove_prefix(std::min(piece_nbytes, text.size()))) {
    writer.write(as_bytes(text.substr(0, piece_nbytes)), out);
  }
  writer.finish(out);
  return out;
}

std::string inflated(std::string_view bytes, size_t piece_nbytes = std::string_view::npos) {
  GzipReader reader;
  std::string text;
  for (; !bytes.empty(); bytes.remove_prefix(std::min(piece_nbytes, bytes.size()))) {
    reader.feed(as_bytes(bytes.substr(0, piece_nbytes)),
                [&](ByteView part) { text.append(as_text(part)); });
  }
  reader.finish();
  return text;
}

TEST(GzipTest, WhatIsCompressedInflatesHoweverItIsCut) {
  const std::string text = noise(1 << 20);
  const std::string bytes = compressed(text);
  EXPECT_LT(bytes.size(), text.size() / 2);
  EXPECT_EQ(inflated(bytes), text);
  EXPECT_EQ(inflated(bytes, 1000), text);
  EXPECT_EQ(inflated(compressed("abc"), 1), "abc");
  EXPECT_EQ(inflated(compressed("")), "");
  EXPECT_EQ(inflated(""), "");
}

TEST(GzipTest, MembersFollowEachOtherAndZerosTheLast) {
  const std::string bytes = compressed("one ") + compressed("") + compressed("two");
  for (size_t piece = 1; piece <= bytes.size(); ++piece) {
    EXPECT_EQ(inflated(bytes + std::string(9, '\0'), piece), "one two");
  }
}

TEST(GzipTest, ATruncatedMemberIsFoundAtEachByte) {
  const std::string bytes = compressed("one") + compressed("two");
  const size_t first = compressed("one").size();
  for (size_t nbytes = 1; nbytes < bytes.size(); ++nbytes) {
    if (nbytes == first) continue;
    EXPECT_NE(error_of([&] {
                inflated(std::string_view(bytes).substr(0, nbytes));
              }).find("the data is truncated"),
              std::string::npos);
  }
}

TEST(GzipTest, DamageIsFoundInEachByteThatMatters) {
  const std::string bytes = compressed(noise(50));
  const size_t last_of_data = bytes.size() - 9;  // ends in bits that no code uses
  for (size_t at = 0; at < bytes.size(); ++at) {
    // Flags, by which other fields follow; the time, and what compressed it where.
    if ((at >= 3 && at < 10) || at == last_of_data) continue;
    std::string damaged = bytes;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x10);
    EXPECT_THROW(inflated(damaged), FormatError) << at;
  }
  EXPECT_NE(error_of([&] { inflated(bytes + "garbage"); }).find("header check"), std::string::npos);
}

}  // namespace
}  // namespace torchnpy
