/// @file   tests/support/golden.hpp
/// @brief  Reads golden vectors (safetensors files of tests/golden, made by other people's software). Strict, and for tests only.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <recops/core/matrix.hpp>
#include <string>
#include <vector>

namespace recops_test {

/// The path of tests/golden/NAME.safetensors.
std::string golden_file(const std::string& name);

/// `Golden g("metrics")` reads tests/golden/metrics.safetensors; whatever does not fit throws std::runtime_error. The parser is in
/// golden.cpp, compiled once: nlohmann-json takes seconds in every file that includes it.
class Golden {
 public:
  explicit Golden(const std::string& name);

  std::vector<recops::Index> shape(const std::string& key) const { return tensor(key).shape; }
  /// All numbers of a tensor, row by row, as T; the stored type must convert to T without loss of range.
  template <class T>
  std::vector<T> values(const std::string& key) const {
    const Tensor& t = tensor(key);
    if (t.type == "F64") return read<T, double>(t);
    if (t.type == "F32") return read<T, float>(t);
    if (t.type == "I64") return read<T, std::int64_t>(t);
    if (t.type == "I32") return read<T, std::int32_t>(t);
    return read<T, std::uint8_t>(t);
  }
  /// The only number of a tensor.
  double scalar(const std::string& key) const;
  /// A tensor as a matrix: the last axis is the columns, all others are the rows.
  template <class T>
  recops::Matrix<T> matrix(const std::string& key) const {
    const auto [rows, cols] = matrix_shape(key);
    recops::Matrix<T> m(rows, cols);
    const auto all = values<T>(key);
    std::copy(all.begin(), all.end(), m.data());
    return m;
  }

 private:
  struct Tensor {
    std::string type;
    std::vector<recops::Index> shape;
    std::size_t begin = 0, end = 0;  ///< in bytes_
  };
  void require(bool ok, const std::string& what) const;
  const Tensor& tensor(const std::string& key) const;
  std::pair<recops::Index, recops::Index> matrix_shape(const std::string& key) const;
  template <class T, class Stored>
  std::vector<T> read(const Tensor& t) const {
    std::vector<T> result((t.end - t.begin) / sizeof(Stored));
    for (std::size_t i = 0; i < result.size(); ++i) {
      Stored x;
      std::memcpy(&x, bytes_.data() + t.begin + i * sizeof x, sizeof x);
      result[i] = static_cast<T>(x);
    }
    return result;
  }

  std::string name_;
  std::vector<char> bytes_;
  std::map<std::string, Tensor> tensors_;
};

}  // namespace recops_test
