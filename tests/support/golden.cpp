#include "support/golden.hpp"

#include <bit>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace recops_test {

static_assert(std::endian::native == std::endian::little, "the numbers of a safetensors file are little-endian");

namespace {
std::size_t width(const std::string& type) {
  if (type == "F64" || type == "I64") return 8;
  if (type == "F32" || type == "I32") return 4;
  return type == "U8" ? 1 : 0;
}
}  // namespace

std::string golden_file(const std::string& name) { return std::string(RECOPS_TEST_GOLDEN_DIR) + "/" + name + ".safetensors"; }

Golden::Golden(const std::string& name) : name_(name) {
  std::ifstream file(golden_file(name), std::ios::binary);
  bytes_.assign(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  std::uint64_t length = 0;
  require(bytes_.size() >= 8, "is missing or too short");
  std::memcpy(&length, bytes_.data(), 8);
  require(length <= bytes_.size() - 8, "has a header longer than itself");
  const std::size_t begin = 8 + static_cast<std::size_t>(length);
  const auto header = nlohmann::json::parse(bytes_.begin() + 8, bytes_.begin() + static_cast<std::ptrdiff_t>(begin));
  std::size_t total = 0;
  for (const auto& [key, entry] : header.items()) {
    if (key == "__metadata__") continue;
    Tensor t;
    entry.at("dtype").get_to(t.type);
    entry.at("shape").get_to(t.shape);
    t.begin = begin + entry.at("data_offsets").at(0).get<std::size_t>();
    t.end = begin + entry.at("data_offsets").at(1).get<std::size_t>();
    require(width(t.type) > 0, "holds an unknown type " + t.type);
    std::size_t count = 1;
    for (const recops::Index extent : t.shape) count *= static_cast<std::size_t>(extent);
    require(t.end - t.begin == count * width(t.type), "holds a tensor whose bytes do not fit its shape: " + key);
    require(t.begin <= t.end && t.end <= bytes_.size(), "is shorter than " + key);
    total += t.end - t.begin;
    tensors_.emplace(key, std::move(t));
  }
  require(total == bytes_.size() - begin, "holds bytes that belong to no tensor");
}

double Golden::scalar(const std::string& key) const {
  const auto all = values<double>(key);
  require(all.size() == 1, "holds more than one number in " + key);
  return all[0];
}

std::pair<recops::Index, recops::Index> Golden::matrix_shape(const std::string& key) const {
  const auto& shape = tensor(key).shape;
  require(!shape.empty(), "holds no matrix " + key);
  recops::Index rows = 1;
  for (std::size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
  return {rows, shape.back()};
}

void Golden::require(bool ok, const std::string& what) const {
  if (!ok) throw std::runtime_error("golden file " + name_ + " " + what);
}

const Golden::Tensor& Golden::tensor(const std::string& key) const {
  const auto found = tensors_.find(key);
  require(found != tensors_.end(), "has no tensor " + key);
  return found->second;
}

}  // namespace recops_test
