// libFuzzer target for everything that reads safetensors files: built and run by scripts/fuzz. Whatever the bytes are, they are
// refused with a reason or read whole, as a second reader on somebody else's parser (safetensors_oracle.hpp) agrees; a layer is
// filled or untouched; what was read is written and read again.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <recops/io/safetensors.hpp>

#include "safetensors_oracle.hpp"

using namespace recops;

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace {

struct Net {
  Matrix<float> weight = Matrix<float>(2, 3, 1.0f);
  Vector<double> bias = Vector<double>(2, 2.0);
  Table<BFloat16> table{Matrix<BFloat16>(2, 2, BFloat16(3.0f)), {}, false};
  Vector<std::int64_t> steps{4};
  static constexpr auto fields() {
    return std::tuple{parameter("weight", &Net::weight), parameter("bias", &Net::bias), parameter("table", &Net::table),
                      buffer("steps", &Net::steps)};
  }
  bool is_untouched() const {
    return std::all_of(weight.data(), weight.data() + 6, [](float x) { return x == 1.0f; }) && bias[0] == 2.0 && bias[1] == 2.0 &&
           std::all_of(table.values.data(), table.values.data() + 4, [](BFloat16 x) { return x.bits == 0x4040; }) && steps[0] == 4;
  }
};

void require(bool ok, const char* what) {
  if (ok) return;
  std::fprintf(stderr, "safetensors_fuzz: %s\n", what);
  std::abort();
}

template <class T>
void rewrite(SafetensorsWriter& writer, const StoredTensor& t, std::vector<Vector<T>>& kept) {
  kept.emplace_back(t.size());
  convert_numbers(t.dtype, t.bytes, dtype_of<T>(), kept.back().data(), t.size());
  writer.add(t.name, t.shape, VectorView<const T>(kept.back()), t.dtype);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Safetensors file;
  const std::string reason = file.parse(data, size);
  require(reason.empty() == recops_test::is_sound_safetensors(data, size), "the two readers disagree");
  require(reason.empty() || (reason.rfind("expected ", 0) == 0 && file.tensors().empty()), "no reason, or half a file");
  if (!reason.empty()) return 0;

  SafetensorsWriter writer;
  writer.metadata = file.metadata();
  std::vector<Vector<double>> floats;
  std::vector<Vector<std::int64_t>> integers;
  floats.reserve(file.tensors().size());
  integers.reserve(file.tensors().size());
  bool all = true;
  for (const StoredTensor& t : file.tensors()) {
    require(file.find(t.name) == &t, "a tensor is not found");
    require(t.bytes >= data + 8 && t.bytes + (t.end - t.begin) <= data + size, "a tensor lies outside");
    const bool floating = is_convertible(t.dtype, Dtype::f64), integer = is_convertible(t.dtype, Dtype::i64) && t.dtype != Dtype::boolean;
    if (floating) {
      rewrite(writer, t, floats);
    } else if (integer && first_misfit(t.dtype, t.bytes, Dtype::i64, t.size()) < 0) {
      rewrite(writer, t, integers);
    } else {
      all = false;
    }
  }
  std::vector<unsigned char> bytes;
  require(writer.try_write(bytes).empty(), "what was read cannot be written");
  Safetensors again;
  require(again.parse(bytes.data(), bytes.size()).empty(), "what was written cannot be read");
  require(!all || (again.tensors().size() == file.tensors().size() && again.metadata() == file.metadata()), "something was lost");
  for (const StoredTensor& t : again.tensors()) {
    const StoredTensor* before = file.find(t.name);
    require(before && before->dtype == t.dtype && before->shape == t.shape, "a tensor became another");
    if (!is_convertible(t.dtype, Dtype::f64))  // those may hold NaNs, of which only that they are NaNs is kept
      require(t.begin == t.end || std::memcmp(t.bytes, before->bytes, t.end - t.begin) == 0, "a number became another");
  }

  for (const bool strict : {true, false}) {
    Net net;
    LoadReport report;
    const std::string refused = try_load(net, file, {.names = {{"table", {"rows.0", "rows.1"}}}, .strict = strict}, &report);
    require(refused.empty() || (net.is_untouched() && report.loaded == 0), "a layer is half loaded");
    require(!refused.empty() || report.loaded > 0 || net.is_untouched(), "a layer changed without being loaded");
    require(!refused.empty() || !strict || report.loaded == 4, "a layer is not wholly loaded");
  }
  return 0;
}

/// Mostly changes the header alone and keeps its length right: else nearly all inputs would die at the first check.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned int seed) {
  std::uint64_t length = 0;
  if (size >= 8) std::memcpy(&length, data, 8);
  if (seed % 4 == 0 || size < 8 || length > size - 8 || max_size < size) return LLVMFuzzerMutate(data, size, max_size);
  const size_t header = static_cast<size_t>(length), numbers = size - 8 - header;
  const std::vector<uint8_t> tail(data + 8 + header, data + size);
  const size_t longest = max_size - 8 - numbers;
  if (longest == 0) return LLVMFuzzerMutate(data, size, max_size);
  const size_t mutated = LLVMFuzzerMutate(data + 8, std::min(header, longest), longest);
  length = mutated;
  std::memcpy(data, &length, 8);
  if (numbers > 0) std::memcpy(data + 8 + mutated, tail.data(), numbers);
  return 8 + mutated + numbers;
}
