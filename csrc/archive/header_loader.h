// The header of a .npy, and nothing else of it.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "archive/loader.h"
#include "format/npy.h"

namespace torchnpy {

// The first read: seldom is a header longer than 128 bytes.
inline constexpr uint64_t kHeaderReadNbytes = 4 << 10;

// Reads a header, also of an array that cannot be loaded.
class NpyHeaderLoader final : public Loader {
 public:
  // `check_data`: a FormatError where the object's length, which is known then, is too short for
  // the data that the header declares.
  explicit NpyHeaderLoader(std::shared_ptr<Source> source, bool check_data = false);
  ~NpyHeaderLoader() override;
  Source& source() override;
  std::vector<Read> next() override;
  bool restart() override;

  // When done: the header, and the bytes that it was parsed from, all in front of the data.
  NpyHeader& header();
  ByteView bytes() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace torchnpy
