// NpyHeaderLoader: which reads it asks for, and what it refuses.
#include "archive/header_loader.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "format/text.h"
#include "memory_source.h"
#include "npy_bytes.h"

namespace torchnpy {
namespace {

const std::string kObject = make_npy(500, 1000);

std::shared_ptr<MemorySource> source_of(std::string object) {
  return std::make_shared<MemorySource>(std::move(object));
}

TEST(HeaderLoader, TakesOneShortRead) {
  const auto source = source_of(kObject);
  NpyHeaderLoader loader(source);
  load_one(loader);
  EXPECT_EQ(loader.header().shape, (std::vector<uint64_t>{500, 1000}));
  EXPECT_EQ(as_text(loader.bytes()), kObject.substr(0, kHeaderNbytes));
  ASSERT_EQ(source->reads.size(), 1U);
  EXPECT_EQ(source->reads[0].nbytes, kHeaderReadNbytes);
}

TEST(HeaderLoader, LongHeaderTakesASecondRead) {
  const std::string spaces(9000, ' ');
  const auto source = source_of(
      npy_bytes("{'descr': '|u1', 'fortran_order': False, 'shape': (3,), }" + spaces, "abc"));
  NpyHeaderLoader loader(source);
  load_one(loader);
  EXPECT_EQ(loader.header().shape, std::vector<uint64_t>{3});
  EXPECT_EQ(source->reads.size(), 2U);
}

TEST(HeaderLoader, HeaderOfAChangedObjectIsReadAnew) {
  const auto source = source_of(kObject);
  source->changes_to = make_npy(3, 5);
  source->reads.push_back({});  // so that the next one fails
  source->fault =
      std::make_exception_ptr(TransportError("memory: changed", TransportError::Kind::kChanged));
  NpyHeaderLoader loader(source);
  load_one(loader);
  EXPECT_EQ(loader.header().shape, (std::vector<uint64_t>{3, 5}));
}

TEST(HeaderLoader, HeaderThatIsCutShortIsAnError) {
  for (const size_t nbytes : {5, 20, 100}) {
    NpyHeaderLoader loader(source_of(kObject.substr(0, nbytes)));
    EXPECT_THROW(load_one(loader), FormatError);
  }
}

TEST(HeaderLoader, HeaderThatPromisesMoreThanThereIsIsAnErrorWhereAsked) {
  const auto source = source_of(kObject.substr(0, kHeaderNbytes + 300'500));
  NpyHeaderLoader loader(source, /*check_data=*/true);
  EXPECT_THROW(load_one(loader), FormatError);
  NpyHeaderLoader lenient(source);
  load_one(lenient);
  EXPECT_EQ(lenient.header().nbytes, 500'000U);
}

}  // namespace
}  // namespace torchnpy
