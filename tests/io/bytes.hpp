/// @file   tests/io/bytes.hpp
/// @brief  Files as bytes, and where those of the Python package are.
#pragma once
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace recops_test {

inline std::vector<unsigned char> file_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::vector<unsigned char>(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}
/// tests/golden/safetensors_files/NAME.safetensors
inline std::string python_file(const std::string& name) {
  return std::string(RECOPS_TEST_GOLDEN_DIR) + "/safetensors_files/" + name + ".safetensors";
}

}  // namespace recops_test
