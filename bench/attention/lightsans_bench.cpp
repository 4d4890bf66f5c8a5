/// LightSANs attention of one user with L behaviours, D = 64, 2 heads, k = 16 interests.
///
///     taskset -c 1 build/bench/bench/recops_bench_attention_lightsans
///
/// Cases: `serve` the frozen layer, `places` with positions, `train` forward and backward. Flops are those of the form that projects
/// before it pools, so that of_peak may pass what the machine can do. Peers: `torch` that form, the faster of eager and traced; `self`
/// our frozen multi-head self-attention of the same width.
#include <recops/attention/lightsans.hpp>

#include <memory>

#include "support/paired.hpp"

using namespace recops;
using namespace recops_bench;

namespace {

constexpr Index width = 64, interests = 16;

struct Data {
  LightSans<float> layer, gradient;
  FrozenLightSans<float> frozen;
  FrozenMultiheadAttention<float> self;
  LightSans<float>::Saved saved;
  Matrix<float> x, y, dx;
  Workspace ws;
  Data(Index l, bool places, Random random)
      : layer(width, {.heads = 2, .interests = interests, .max_length = places ? l : 0}, random),
        gradient(make_gradient(layer)),
        frozen(freeze(layer)),
        self(freeze(MultiheadAttention<float>(width, 2, random))),
        x(l, width),
        y(l, width),
        dx(l, width, 0.0f) {
    for (Index i = 0; i < l * width; ++i) x.data()[i] = static_cast<float>(random.normal());
  }
};

void add(const std::string& what, Index l) {
  register_case<float>(
      "attention/lightsans/" + what + "/f32/L:" + std::to_string(l) + "/D:64/H:2/k:16",
      [=] {
        const auto data = std::make_shared<Data>(l, what == "places", Random(1));
        Case<float> c;
        const double n = static_cast<double>(l);
        const double once = 8 * n * width * width + 12 * n * width * interests + (what == "places" ? 4 * n * n * width : 0);
        c.flops = what == "train" ? 3 * once : once;
        if (what == "train") {
          c.kernel = [=](Index) {
            data->layer.forward(data->x, data->y, data->saved, {}, data->ws);
            data->layer.backward(data->x, data->y, data->saved, data->dx, data->gradient, data->ws);
          };
        } else {
          c.kernel = [=](Index) { data->frozen.forward(data->x, data->y, data->ws); };
          c.peers.push_back({"self", [=](Index) { data->self.forward(data->x, data->y, data->ws); }});
        }
        c.peers.push_back(python_peer(
            "torch", "lightsans",
            "{\"length\": " + std::to_string(l) + ", \"width\": 64, \"heads\": 2, \"interests\": 16, \"places\": " +
                (what == "places" ? "true" : "false") + ", \"train\": " + (what == "train" ? "true" : "false") + "}"));
        return c;
      },
      60);
}

}  // namespace

int main(int argc, char** argv) {
  for (const Index l : {200, 1000, 4096}) add("serve", l);
  add("places", 200);
  add("train", 1000);
  return run_registered(argc, argv);
}
