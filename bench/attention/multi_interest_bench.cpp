/// Interests of B users with L behaviours each of D = 64: K = 4 self-attentive interests with 256 hidden units, and dynamic routing.
///
///     taskset -c 1 build/bench/bench/recops_bench_attention_multi_interest
///
/// Cases: `serve` the frozen form, `train` forward and backward of the layer. of_peak: share of the speed of multiply-adds. Peers: `torch`
/// the same in PyTorch on padded batches without masks (all users have L behaviours), the faster of eager and traced for serving, autograd
/// for training.
#include <recops/attention/multi_interest.hpp>

#include <memory>

#include "support/paired.hpp"

using namespace recops;
using namespace recops_bench;

namespace {

constexpr Index cols = 64, interests = 4, hidden = 256;

struct Users {
  SelfAttentiveInterests<float> layer, gradient;
  FrozenSelfAttentiveInterests<float> frozen;
  SelfAttentiveInterests<float>::Saved saved;
  DynamicRouting<float> routing, routing_gradient;
  DynamicRouting<float>::Saved routed;
  Matrix<float> x, z, dz, dx;
  std::vector<std::int64_t> offsets{0};
  Workspace ws;

  Users(Index b, Index l) : x(b * l, cols), z(b * interests, cols), dz(b * interests, cols, 0.1f), dx(b * l, cols, 0.0f) {
    Random random(1);
    layer = SelfAttentiveInterests<float>(cols, interests, hidden, l, random);
    routing = DynamicRouting<float>(cols, interests, l, random);
    gradient = make_gradient(layer);
    routing_gradient = make_gradient(routing);
    frozen = freeze(layer);
    for (Index i = 0; i < x.rows() * cols; ++i) x.data()[i] = static_cast<float>(random.normal());
    for (Index u = 1; u <= b; ++u) offsets.push_back(u * l);
  }
  JaggedView<const float> rows() const { return {x.view(), offsets}; }
};

void add(const std::string& what, Index b, Index l) {
  register_case<float>(
      "attention/multi_interest/" + what + "/f32/B:" + std::to_string(b) + "/L:" + std::to_string(l) + "/D:64/K:4", [=] {
        auto u = std::make_shared<Users>(b, l);
        Case<float> c;
        const double rows = static_cast<double>(b * l);
        const double once = what.find("routing") != std::string::npos
                                ? 2 * rows * (cols * cols + 6.0 * interests * cols)
                                : 2 * rows * (cols * hidden + hidden * interests + interests * cols);
        c.flops = what.find("train") != std::string::npos ? 3 * once : once;
        if (what == "serve") c.kernel = [=](Index) { u->frozen.forward(u->rows(), {}, u->z, u->ws); };
        if (what == "serve_routing") c.kernel = [=](Index) { u->routing.forward(u->rows(), {}, u->z, u->ws); };
        if (what == "train") {
          c.kernel = [=](Index) {
            u->layer.forward(u->rows(), {}, u->z, u->saved, {}, u->ws);
            u->layer.backward(u->rows(), {}, u->dz, u->saved, u->dx, u->gradient, u->ws);
          };
        }
        c.peers.push_back(python_peer("torch",
                                      what == "train"   ? "interests_train"
                                      : what == "serve" ? "interests"
                                                        : "interests_routing",
                                      "{\"batch\": " + std::to_string(b) + ", \"length\": " + std::to_string(l) +
                                          ", \"width\": 64, \"hidden\": 256, \"interests\": 4}"));
        return c;
      });
}

}  // namespace

int main(int argc, char** argv) {
  for (const char* what : {"serve", "serve_routing"})
    for (const Index b : {1, 64}) add(what, b, 50);
  add("serve", 64, 200);
  add("train", 128, 50);
  return run_registered(argc, argv);
}
