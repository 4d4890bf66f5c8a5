/// A training step (gradients zeroed, forward, binary cross-entropy, backward, Adam) of an MLP, against the speed of multiply-adds.
///
///     taskset -c 1 build/bench/bench/recops_bench_nn_mlp
///
///   nn/mlp_train/f32/B:batch/widths:...     one step; ReLU between the layers, no gradient of the input
///   nn/mlp/f32/B:batch/widths:...           inference of the frozen MLP
///
/// Peer: `torch`, the same step in eager mode, with whichever of its forms of Adam is fastest.
#include <memory>
#include <recops/nn/loss.hpp>
#include <recops/nn/mlp.hpp>
#include <recops/train/adam.hpp>

#include "support/paired.hpp"

using namespace recops;
using namespace recops_bench;

namespace {

struct Training {
  Random random{1};
  Mlp<float> mlp;
  Mlp<float> gradient;
  Adam<Mlp<float>> adam;
  Mlp<float>::Saved saved;
  Matrix<float> x, labels, logits, dlogits;
  Workspace ws;
  std::uint64_t number = 0;

  Training(VectorView<const Index> widths, Index batch)
      : mlp(widths, {}, random),
        gradient(make_gradient(mlp)),
        adam(mlp),
        x(batch, widths[0]),
        labels(batch, 1),
        logits(batch, 1),
        dlogits(batch, 1) {
    for (float& v : leaf_values(x)) v = static_cast<float>(random.normal());
    for (float& v : leaf_values(labels)) v = random.uniform() < 0.5 ? 0.0f : 1.0f;
  }
  void step() {
    zero_gradient(gradient);
    dlogits.fill(0);
    mlp.forward(x, logits, saved, Step{.seed = 1, .number = number++}, ws);
    benchmark::DoNotOptimize(bce_with_logits_value_and_grad<float>(logits, labels, {}, {}, dlogits));
    mlp.backward(x, dlogits, saved, {}, gradient, ws);
    adam.step(mlp, gradient);
  }
};

void add(Index batch, std::vector<Index> widths) {
  std::string name, list;
  double products = 0;
  for (std::size_t i = 0; i < widths.size(); ++i) {
    name += (i > 0 ? "-" : "") + std::to_string(widths[i]);
    list += (i > 0 ? ", " : "") + std::to_string(widths[i]);
    if (i > 0) products += static_cast<double>(widths[i - 1] * widths[i]);
  }
  const std::string tail = "/f32/B:" + std::to_string(batch) + "/widths:" + name;
  const double rows = static_cast<double>(batch), first = static_cast<double>(widths[0] * widths[1]);
  register_case<float>("nn/mlp_train" + tail, [=] {
    const auto d = std::make_shared<Training>(VectorView<const Index>(widths.data(), static_cast<Index>(widths.size())), batch);
    Case<float> c;
    c.flops = 2 * rows * (3 * products - first);
    c.kernel = [=] { d->step(); };
    const std::string arguments = R"({"batch": )" + std::to_string(batch) + R"(, "widths": [)" + list + "]}";
    for (const char* torch : {"torch", "torch_new"}) c.peers.push_back(python_peer(torch, "mlp_train", arguments));
    return c;
  });
  register_case<float>("nn/mlp" + tail, [=] {
    const auto d = std::make_shared<Training>(VectorView<const Index>(widths.data(), static_cast<Index>(widths.size())), batch);
    Case<float> c;
    c.flops = 2 * rows * products;
    c.kernel = [d, frozen = freeze(d->mlp)] { frozen.forward(d->x, d->logits, d->ws); };
    return c;
  });
}

}  // namespace

int main(int argc, char** argv) {
  add(512, {512, 256, 128, 1});
  add(64, {512, 256, 128, 1});
  return run_registered(argc, argv);
}
