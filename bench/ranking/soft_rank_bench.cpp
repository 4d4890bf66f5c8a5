/// Soft ranks, forward and backward, beside the sort of (score, position) that they begin with, on fresh data: more than a hundred
/// arrays take turns, or the branch predictors learn the only one by heart.
#include <algorithm>
#include <recops/core/random.hpp>
#include <recops/ranking/smooth_rank.hpp>
#include <recops/ranking/soft_rank.hpp>
#include <utility>

#include "support/paired.hpp"

using namespace recops;
using namespace recops_bench;

namespace {

Index arrays_of(Index n) {
  const double bytes = 4.0 * static_cast<double>(n);
  return std::max(n <= 1000 ? Index{1000} : Index{128}, copies_for(bytes));
}

std::shared_ptr<Rotation<float>> normal_arrays(Index n, Index copies) {
  auto x = std::make_shared<Rotation<float>>(n, copies);
  Random random(1);
  for (Index c = 0; c < copies; ++c)
    for (Index i = 0; i < n; ++i) (*x)[c][i] = static_cast<float>(random.normal());
  return x;
}

Peer std_sort(std::shared_ptr<Rotation<float>> x, Index n) {
  const auto pairs = std::make_shared<Vector<std::pair<float, std::uint32_t>>>(n);
  return {"std_sort", [=](Index copy) {
            const float* const from = (*x)[copy];
            auto* const p = pairs->data();
            for (Index i = 0; i < n; ++i) p[i] = {from[i], static_cast<std::uint32_t>(i)};
            std::sort(p, p + n);
            benchmark::DoNotOptimize(p);
          }};
}

void add_soft_rank(Index n, SoftRankRegularization regularization) {
  const std::string name = regularization == SoftRankRegularization::kl ? "soft_rank_kl" : "soft_rank";
  register_case<float>("ranking/" + name + "/f32/n:" + std::to_string(n), [=] {
    const Index copies = arrays_of(n);
    const auto x = normal_arrays(n, copies);
    const auto u = normal_arrays(n, 1);
    const auto ranks = std::make_shared<Vector<float>>(n);
    const auto gradient = std::make_shared<Vector<float>>(n, 0.0f);
    const auto saved = std::make_shared<SoftRankSaved>();
    const auto ws = std::make_shared<Workspace>();
    Case<float> c;
    c.copies = copies;
    c.elements = static_cast<double>(n);
    c.working_set = 4.0 * static_cast<double>(n);
    c.kernel = [=](Index copy) {
      soft_rank<float>(VectorView<const float>((*x)[copy], n), {}, {.regularization = regularization}, *ranks, *saved, *ws);
      soft_rank_backward<float>(*ranks, *saved, VectorView<const float>((*u)[0], n), *gradient, *ws);
    };
    c.peers.push_back(std_sort(x, n));
    return c;
  });
}

/// All pairs of n scores: ns_each is the time of a pair, so 0.1 are ten thousand million pairs a second.
void add_sigmoid_rank(Index n, bool backward) {
  register_case<float>("ranking/sigmoid_rank" + std::string(backward ? "_backward" : "") + "/f32/n:" + std::to_string(n), [=] {
    const Index copies = arrays_of(n);
    const auto x = normal_arrays(n, copies);
    const auto u = normal_arrays(n, 1);
    const auto out = std::make_shared<Vector<float>>(n, 0.0f);
    const auto ws = std::make_shared<Workspace>();
    Case<float> c;
    c.copies = copies;
    c.elements = static_cast<double>(n) * static_cast<double>(n);
    c.flops = (backward ? 10 : 5) * c.elements;  // a sum, a Newton step; a product of three, a difference, a sum
    c.working_set = 4.0 * static_cast<double>(n);
    c.kernel = [=](Index copy) {
      const VectorView<const float> scores((*x)[copy], n);
      if (backward)
        sigmoid_rank_backward<float>(scores, {}, {}, VectorView<const float>((*u)[0], n), *out, *ws);
      else
        sigmoid_rank<float>(scores, {}, {}, *out, *ws);
    };
    return c;
  });
}

}  // namespace

int main(int argc, char** argv) {
  for (const Index n : {100, 1000, 10000, 100000, 1000000}) add_soft_rank(n, SoftRankRegularization::quadratic);
  add_soft_rank(1000, SoftRankRegularization::kl);
  for (const bool backward : {false, true}) add_sigmoid_rank(1008, backward);
  return run_registered(argc, argv);
}
