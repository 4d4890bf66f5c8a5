// The recops side of the PyTorch model in golden/safetensors_files.py, shared by the tests of this folder.
#pragma once
#include <recops/gating/expert_bank.hpp>
#include <recops/io/safetensors.hpp>
#include <recops/nn/batch_norm.hpp>
#include <recops/nn/dense.hpp>
#include <recops/nn/embedding_bag.hpp>
#include <recops/nn/multihead_attention.hpp>
#include <recops/nn/sequential.hpp>

#include "examples/temporary_folder.hpp"
#include "io/bytes.hpp"
#include "support/catch.hpp"

namespace recops_test {

template <class T>
struct Ranker {
  recops::EmbeddingBag<T> items;
  recops::MultiheadAttention<T> attention;
  recops::LayerNorm<T> norm;
  recops::ExpertBank<T> experts;
  recops::BatchNorm<T> batch_norm;
  recops::Sequential<T, recops::Dense<T>, recops::Linear<T>> tower;

  explicit Ranker(std::uint64_t seed) : Ranker(recops::Random(seed)) {}
  explicit Ranker(recops::Random random)
      : items(7, 4, 0.1, random),
        attention(4, 2, random),
        norm(4),
        experts({.inputs = 4, .experts = 3, .outputs = 3, .hidden = {6}}, random),
        batch_norm(3),
        tower(recops::sequential<T>(recops::Dense<T>(3, 5, recops::Activation::relu, random), recops::Linear<T>(5, 1, random))) {}

  static constexpr auto fields() {
    return std::tuple{recops::layer("items", &Ranker::items),
                      recops::layer("attention", &Ranker::attention),
                      recops::layer("norm", &Ranker::norm),
                      recops::layer("experts", &Ranker::experts),
                      recops::layer("batch_norm", &Ranker::batch_norm),
                      recops::layer("tower", &Ranker::tower)};
  }
};

/// How the PyTorch model names what is named otherwise here.
inline std::vector<recops::NameRule> torch_names() {
  return {{"experts.hidden.0", {"experts.0.0", "experts.1.0", "experts.2.0"}},
          {"experts", {"experts.0.2", "experts.1.2", "experts.2.2"}},
          {"tower.0.linear", {"tower.0"}},
          {"tower.1", {"tower.2"}}};
}

/// All numbers of a layer in the order of its fields.
template <class L>
std::vector<double> all_numbers(const L& layer) {
  std::vector<double> all;
  recops::visit(
      [&](const recops::FieldPath&, const auto& leaf) {
        for (const auto x : recops::leaf_values(leaf)) all.push_back(static_cast<double>(x));
      },
      layer);
  return all;
}

}  // namespace recops_test
