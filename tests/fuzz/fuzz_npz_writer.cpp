// Arrays of any strides under any names are read back as they were, mapped and not; or the name is
// refused.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "archive/array_bytes.h"
#include "archive/npz.h"
#include "archive/npz_writer.h"
#include "base/error.h"
#include "format/deflate.h"
#include "transport/file.h"

namespace torchnpy {
namespace {

using Bytes = std::vector<uint8_t>;

void require(bool condition) {
  if (!condition) std::abort();
}

class MemoryTarget final : public Target {
 public:
  const std::string& name() const override { return name_; }
  void write(SharedBytes bytes) override {
    object.insert(object.end(), bytes.bytes.begin(), bytes.bytes.end());
  }
  void finish() override { is_finished = true; }

  Bytes object;
  bool is_finished = false;

 private:
  const std::string name_ = "output";
};

struct Named {
  std::string name;
  ArrayView array;
};

// Two axes over `memory`, with steps of either sign, or of none.
ArrayView make_array(Cursor& cursor, ByteView memory) {
  ArrayView array;
  array.descr = "'|u1'";
  array.itemsize = 1;
  array.data = memory.data();
  if (memory.empty()) {
    array.shape = {0, 3};
    array.strides = {3, 1};
    return array;
  }
  uint64_t last = memory.size() - 1;  // the byte that may be reached yet
  for (int i = 0; i < 2; ++i) {
    const uint64_t count = 1 + cursor.read_u8();
    const uint64_t step = count == 1 ? 1 : std::min<uint64_t>(cursor.read_u8(), last / (count - 1));
    const bool is_backwards = cursor.read_u8() % 2 == 1;
    last -= step * (count - 1);
    if (is_backwards) array.data += step * (count - 1);
    array.shape.push_back(count);
    array.strides.push_back(is_backwards ? -static_cast<int64_t>(step)
                                         : static_cast<int64_t>(step));
  }
  return array;
}

std::vector<Named> make_arrays(Cursor& cursor, ByteView memory) {
  std::vector<Named> arrays(cursor.read_u8() % 5);
  for (Named& named : arrays) {
    named.name = as_text(cursor.read_bytes(cursor.read_u8() % 16));
    named.array = make_array(cursor, memory);
  }
  return arrays;
}

void require_equal(const NpzEntry& entry, const ArrayView& array) {
  const ArrayBytes expected(array);
  Bytes bytes(expected.nbytes());
  expected.copy(0, bytes);
  require(entry.header->shape == array.shape);
  require(entry.header->fortran_order == expected.fortran_order());
  require(std::ranges::equal(entry.data.bytes, bytes));
}

void check(const std::vector<Named>& arrays, int level) {
  MemoryTarget target;
  NpzWriter writer(target, {.level = level, .threads = 2});
  try {
    for (const Named& named : arrays) writer.add(named.name, named.array);
  } catch (const ArgumentError&) {  // a name
    return;
  }
  writer.finish();
  require(target.is_finished);
  NpzLoader loader(make_memory_source("object", {target.object, nullptr}), heap_allocator(), {});
  load_one(loader, {.threads = 1});
  require(loader.entries().size() == arrays.size());
  for (size_t i = 0; i < arrays.size(); ++i) {
    const NpzEntry& entry = loader.entries()[i];
    require(loader.archive()->members()[i].name == arrays[i].name + ".npy");
    require(entry.is_view == (level == 0));
    require_equal(entry, arrays[i].array);
    if (!entry.is_view) continue;
    require(static_cast<size_t>(entry.data.bytes.data() - target.object.data()) % 64 == 0);
  }
}

}  // namespace
}  // namespace torchnpy

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace torchnpy;
  Cursor cursor({data, size});
  try {
    const int level = cursor.read_u8() % (kMaxDeflateLevel + 1);
    check(make_arrays(cursor, {data, size}), level);
  } catch (const FormatError&) {  // the input is too short
  }
  return 0;
}
