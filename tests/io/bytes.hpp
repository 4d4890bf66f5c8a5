/// @file   tests/io/bytes.hpp
/// @brief  Files as bytes, and where those of the Python package are.
#pragma once
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "support/golden.hpp"

namespace recops_test {

inline std::vector<unsigned char> file_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::vector<unsigned char>(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}
/// tests/golden/safetensors_files/NAME.safetensors
inline std::string python_file(const std::string& name) { return golden_file("safetensors_files/" + name); }

}  // namespace recops_test
