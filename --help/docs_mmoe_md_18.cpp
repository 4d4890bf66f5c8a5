#include <cmath>
#include <cstdio>
#include <recops/gating/mmoe.hpp>
#include <recops/train/adam.hpp>

using namespace recops;

struct Ranker {
  Mmoe<float> mixture;
  std::vector<Linear<float>> towers;  // one per task
  static constexpr auto fields() { return std::tuple{layer("mixture", &Ranker::mixture), layers("towers", &Ranker::towers)}; }
};

int main() {
  const Index rows = 256, inputs = 8, width = 16, tasks = 2;
  Random random(7);
  Ranker model{Mmoe<float>({.inputs = inputs, .experts = 4, .outputs = width, .tasks = tasks}, random), {}};
  for (Index t = 0; t < tasks; ++t) model.towers.emplace_back(width, 1, random);

  Matrix<float> x(rows, inputs), labels(rows, tasks);  // task 0: is x_0 x_1 > 0?   task 1: is x_2 > 0?
  for (float& v : leaf_values(x)) v = static_cast<float>(random.normal());
  for (Index r = 0; r < rows; ++r) {
    labels(r, 0) = x(r, 0) * x(r, 1) > 0 ? 1.0f : 0.0f;
    labels(r, 1) = x(r, 2) > 0 ? 1.0f : 0.0f;
  }

  Workspace ws;  // scratch of all calls; nothing is allocated once it has grown
  Ranker gradient = make_gradient(model);
  Adam adam(model, {.learning_rate = 0.01});
  Mmoe<float>::Saved saved;
  Matrix<float> mixed(rows, tasks * width), dmixed(rows, tasks * width), logits(rows, tasks), dlogits(rows, tasks);
  for (std::uint64_t step = 0; step < 300; ++step) {
    zero_gradient(gradient);
    dmixed.fill(0);
    model.mixture.forward(x, mixed, saved, Step{.seed = 7, .number = step}, ws);
    for (Index r = 0; r < rows; ++r) {  // mean binary cross-entropy: the gradient of a logit is (sigmoid - label) / rows
      for (Index t = 0; t < tasks; ++t) {
        const Linear<float>& tower = model.towers[static_cast<std::size_t>(t)];
        logits(r, t) = tower.bias[0] + simd::dot(mixed.row(r) + t * width, tower.weight.data(), width);
        dlogits(r, t) = (1 / (1 + std::exp(-logits(r, t))) - labels(r, t)) / static_cast<float>(rows);
      }
    }
    for (Index t = 0; t < tasks; ++t) {
      const auto at = static_cast<std::size_t>(t);
      model.towers[at].backward(mixed.view().middle_cols(t * width, width), dlogits.view().middle_cols(t, 1), {},
                                dmixed.view().middle_cols(t * width, width), gradient.towers[at], ws);
    }
    model.mixture.backward(x, dmixed, saved, {}, gradient.mixture, ws);  // {}: no gradient for x wanted
    model.mixture.update(saved);                                         // running statistics, with batch norm
    adam.step(model, gradient);
  }

  const FrozenMmoe<float> served = freeze(model.mixture);  // packed; threads may share it
  Matrix<float> gates(rows, tasks * 4);
  served.forward(x, mixed, gates, ws);
  Index right = 0;
  for (Index r = 0; r < rows; ++r)
    for (Index t = 0; t < tasks; ++t) {
      const Linear<float>& tower = model.towers[static_cast<std::size_t>(t)];
      const float logit = tower.bias[0] + simd::dot(mixed.row(r) + t * width, tower.weight.data(), width);
      right += (logit > 0) == (labels(r, t) > 0);
    }
  std::printf("%s\n", right > 480 ? "more than 480 of 512 right" : "something is wrong");
}
