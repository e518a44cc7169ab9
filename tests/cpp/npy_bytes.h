// Bytes of .npy files.
#pragma once

#include <fmt/format.h>

#include <cstddef>
#include <string>
#include <string_view>

namespace torchnpy {

// A .npy of version 1.0 with any header.
inline std::string npy_bytes(std::string header, std::string_view data) {
  header.resize((10 + header.size() + 64) / 64 * 64 - 10 - 1, ' ');
  header += '\n';
  std::string file("\x93NUMPY\x01\x00", 8);
  file += static_cast<char>(header.size() & 0xFF);
  file += static_cast<char>(header.size() >> 8);
  return file.append(header).append(data);
}

// What make_npy() puts before the data.
inline constexpr size_t kHeaderNbytes = 128;

// A .npy of `count` uint8 rows of `row_nbytes`, whose bytes count up.
inline std::string make_npy(size_t count, size_t row_nbytes, bool fortran_order = false) {
  std::string data;
  for (size_t i = 0; i < count * row_nbytes; ++i) data += static_cast<char>(i * 31 >> 3);
  return npy_bytes(fmt::format("{{'descr': '|u1', 'fortran_order': {}, 'shape': ({}, {}), }}",
                               fortran_order ? "True" : "False", count, row_nbytes),
                   data);
}

}  // namespace torchnpy
