#include <cstdio>
#include <recops/io/safetensors.hpp>
#include <recops/nn/dense.hpp>
#include <recops/nn/embedding_bag.hpp>
#include <recops/nn/sequential.hpp>

using namespace recops;

struct Ranker {
  EmbeddingBag<float> items;
  Sequential<float, Dense<float>, Linear<float>> tower;

  explicit Ranker(Random random)
      : items(100, 8, 0.1, random), tower(sequential<float>(Dense<float>(8, 16, Activation::relu, random), Linear<float>(16, 1, random))) {}
  static constexpr auto fields() { return std::tuple{layer("items", &Ranker::items), layer("tower", &Ranker::tower)}; }
};

int main() {
  // torch.nn.Sequential(Linear, ReLU, Linear) counts the activation: its layers are 0 and 2.
  const std::vector<NameRule> names = {{"tower.0.linear", {"tower.0"}}, {"tower.1", {"tower.2"}}};

  Ranker trained(Random(1)), served(Random(2));
  save(trained, "/tmp/ranker.safetensors", {.names = names, .dtype = Dtype::bf16});
  const LoadReport report = load(served, "/tmp/ranker.safetensors", {.names = names});
  std::printf("%td fields, the first weight %s\n", report.loaded,
              served.items.weight.values(0, 0) == static_cast<float>(BFloat16(trained.items.weight.values(0, 0))) ? "rounded to bf16" : "lost");

  // All that is wrong comes in one message, and nothing has been written.
  const std::string reason = try_load(served, "/tmp/ranker.safetensors");
  std::printf("%s\n", reason.c_str());
  std::remove("/tmp/ranker.safetensors");
}
