/// @file   tests/support/golden.hpp
/// @brief  Reads golden vectors (safetensors files of tests/golden, made by other people's software). Strict, and for tests only.
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <recops/core/matrix.hpp>
#include <stdexcept>
#include <string>
#include <vector>

namespace recops_test {

static_assert(std::endian::native == std::endian::little, "the numbers of a safetensors file are little-endian");

/// `Golden g("metrics")` reads tests/golden/metrics.safetensors; whatever does not fit throws std::runtime_error.
class Golden {
 public:
  explicit Golden(const std::string& name) : name_(name) {
    std::ifstream file(std::string(RECOPS_TEST_GOLDEN_DIR) + "/" + name + ".safetensors", std::ios::binary);
    bytes_.assign(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    std::uint64_t length = 0;
    require(bytes_.size() >= 8, "is missing or too short");
    std::memcpy(&length, bytes_.data(), 8);
    require(length <= bytes_.size() - 8, "has a header longer than itself");
    begin_ = 8 + static_cast<std::size_t>(length);
    header_ = nlohmann::json::parse(bytes_.begin() + 8, bytes_.begin() + static_cast<std::ptrdiff_t>(begin_));
    std::size_t total = 0;
    for (const auto& [key, entry] : header_.items()) {
      if (key == "__metadata__") continue;
      const std::size_t size = entry.at("data_offsets").at(1).get<std::size_t>() - entry["data_offsets"].at(0).get<std::size_t>();
      std::size_t count = 1;
      for (const auto& extent : entry.at("shape")) count *= extent.get<std::size_t>();
      require(size == count * width(entry), "holds a tensor whose bytes do not fit its shape: " + key);
      require(entry["data_offsets"][1].get<std::size_t>() <= bytes_.size() - begin_, "is shorter than " + key);
      total += size;
    }
    require(total == bytes_.size() - begin_, "holds bytes that belong to no tensor");
  }

  std::vector<recops::Index> shape(const std::string& key) const {
    return entry(key).at("shape").get<std::vector<recops::Index>>();
  }
  /// All numbers of a tensor, row by row, as T; the stored type must convert to T without loss of range.
  template <class T>
  std::vector<T> values(const std::string& key) const {
    const auto& e = entry(key);
    const std::string type = e.at("dtype");
    if (type == "F64") return read<T, double>(e);
    if (type == "F32") return read<T, float>(e);
    if (type == "I64") return read<T, std::int64_t>(e);
    if (type == "I32") return read<T, std::int32_t>(e);
    return read<T, std::uint8_t>(e);
  }
  /// The only number of a tensor.
  double scalar(const std::string& key) const {
    const auto all = values<double>(key);
    require(all.size() == 1, "holds more than one number in " + key);
    return all[0];
  }
  /// A tensor as a matrix: the last axis is the columns, all others are the rows.
  template <class T>
  recops::Matrix<T> matrix(const std::string& key) const {
    const auto extents = shape(key);
    require(!extents.empty(), "holds no matrix " + key);
    recops::Index rows = 1;
    for (std::size_t i = 0; i + 1 < extents.size(); ++i) rows *= extents[i];
    recops::Matrix<T> m(rows, extents.back());
    const auto all = values<T>(key);
    std::copy(all.begin(), all.end(), m.data());
    return m;
  }

 private:
  void require(bool ok, const std::string& what) const {
    if (!ok) throw std::runtime_error("golden file " + name_ + " " + what);
  }
  std::size_t width(const nlohmann::json& e) const {
    const std::string type = e.at("dtype");
    if (type == "F64" || type == "I64") return 8;
    if (type == "F32" || type == "I32") return 4;
    require(type == "U8", "holds an unknown type " + type);
    return 1;
  }
  const nlohmann::json& entry(const std::string& key) const {
    require(header_.contains(key), "has no tensor " + key);
    return header_[key];
  }
  template <class T, class Stored>
  std::vector<T> read(const nlohmann::json& e) const {
    const std::size_t begin = begin_ + e["data_offsets"][0].get<std::size_t>();
    const std::size_t end = begin_ + e["data_offsets"][1].get<std::size_t>();
    std::vector<T> result;
    result.reserve((end - begin) / sizeof(Stored));
    for (std::size_t at = begin; at < end; at += sizeof(Stored)) {
      Stored x;
      std::memcpy(&x, bytes_.data() + at, sizeof x);
      result.push_back(static_cast<T>(x));
    }
    return result;
  }

  std::string name_;
  std::vector<char> bytes_;
  nlohmann::json header_;
  std::size_t begin_ = 0;
};

}  // namespace recops_test
