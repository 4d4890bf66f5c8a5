/// DIN's activation unit, d = 64, hidden layers of 80 and 40: N candidates of a user over L behaviours, and training batches.
///
///     taskset -c 1 build/bench/bench/recops_bench_attention_din
///
/// Cases: `first` the first layer of all pairs before its activation, `serve` the frozen unit (sigmoid as in the authors' code, or Dice),
/// `train` forward and backward of B users with one candidate each. of_peak: share of the speed of multiply-adds of the fused form's flops
/// (a quarter of the concatenation's in the first layer). Peers: `concat` the concatenation [q, e, q - e, q * e] and our own packed
/// product; `eigen` the concatenation with Eigen's product; `torch` the unit in PyTorch (the faster of eager and traced; autograd).
#include <recops/attention/din.hpp>

#include <memory>
#include <vector>

#include "support/paired.hpp"

#if __has_include(<Eigen/Core>)
#define WITH_EIGEN
#include <Eigen/Core>
#include <recops/core/eigen.hpp>
#endif

using namespace recops;
using namespace recops_bench;

namespace {

constexpr Index width = 64, h1 = 80, h2 = 40;

template <class Hidden>
struct Data {
  Index users, n, l;
  Din<float, Hidden> layer, gradient;
  FrozenDin<float, Hidden> frozen;
  FrozenDense<float> packed;
  typename Din<float, Hidden>::Saved saved;
  Matrix<float> q, e, y, dy, dq, de, s, rows;
  std::vector<std::int64_t> of_q{0}, of_e{0};
  Workspace ws;
  Data(Index b, Index candidates, Index length)
      : users(b),
        n(candidates),
        l(length),
        q(b * n, width),
        e(b * l, width),
        y(b * n, width),
        dy(b * n, width, 0.1f),
        dq(b * n, width, 0.0f),
        de(b * l, width, 0.0f) {
    Random random(1);
    Hidden activation;
    if constexpr (std::is_same_v<Hidden, Activate<float>>) activation.activation = Activation::sigmoid;
    layer = Din<float, Hidden>(width, {h1, h2}, random, activation);
    gradient = make_gradient(layer);
    frozen = freeze(layer);
    packed = freeze(layer.linears[0]);
    for (Index i = 0; i < q.rows() * width; ++i) q.data()[i] = static_cast<float>(random.normal());
    for (Index i = 0; i < e.rows() * width; ++i) e.data()[i] = static_cast<float>(random.normal());
    for (Index u = 1; u <= b; ++u) {
      of_q.push_back(u * n);
      of_e.push_back(u * l);
    }
  }
  JaggedView<const float> who() const { return {q.view(), of_q}; }
  JaggedView<const float> what() const { return {e.view(), of_e}; }
  void concatenate() {
    for (Index i = 0; i < n; ++i)
      for (Index j = 0; j < l; ++j) {
        const float *const a = q.row(i), *const b = e.row(j);
        float* const x = rows.row(i * l + j);
        for (Index c = 0; c < width; ++c) {
          x[c] = a[c];
          x[width + c] = b[c];
          x[2 * width + c] = a[c] - b[c];
          x[3 * width + c] = a[c] * b[c];
        }
      }
  }
};

template <class Hidden>
void add(const std::string& what, Index users, Index n, Index l) {
  register_case<float>(
      "attention/din/" + what + "/f32/B:" + std::to_string(users) + "/N:" + std::to_string(n) + "/L:" + std::to_string(l), [=] {
        auto d = std::make_shared<Data<Hidden>>(users, n, l);
        Case<float> c;
        const double pairs = static_cast<double>(users * n * l);
        const std::string shape =
            "{\"users\": " + std::to_string(users) + ", \"n\": " + std::to_string(n) + ", \"l\": " + std::to_string(l) + "}";
        if (what == "first") {
          c.flops = 2 * pairs * width * h1;
          d->s.resize(n * l, h1);
          d->rows.resize(n * l, 4 * width);
          c.kernel = [=](Index) {
            din_first_layer<float>(d->who(), d->what(), d->layer.linears[0].weight, d->layer.linears[0].bias, d->s, d->ws);
          };
          c.peers.push_back({"concat", [=](Index) {
                               d->concatenate();
                               d->packed.forward(d->rows, d->s, d->ws);
                             }});
#ifdef WITH_EIGEN
          c.peers.push_back({"eigen", [=](Index) {
                               d->concatenate();
                               const auto bias = Eigen::Map<const Eigen::RowVectorXf>(d->layer.linears[0].bias.data(), h1);
                               auto s = as_eigen(d->s);
                               s.noalias() = as_eigen(d->rows) * as_eigen(d->layer.linears[0].weight).transpose();
                               s.rowwise() += bias;
                             }});
#endif
          c.peers.push_back(python_peer("torch", "din_first", shape));
        } else if (what.find("serve") == 0) {
          c.flops = 2 * pairs * (width * h1 + h1 * h2 + h2 + width);
          c.kernel = [=](Index) { d->frozen.forward(d->who(), d->what(), d->y, d->ws); };
          c.peers.push_back(python_peer("torch", what == "serve" ? "din" : "din_dice", shape));
        } else {
          c.flops = 6 * pairs * (width * h1 + h1 * h2 + h2 + width);
          c.kernel = [=](Index) {
            d->layer.forward(d->who(), d->what(), d->y, d->saved, {}, d->ws);
            d->layer.backward(d->who(), d->what(), d->dy, d->saved, d->dq, d->de, d->gradient, d->ws);
          };
          c.peers.push_back(python_peer("torch", "din_train", shape));
        }
        return c;
      });
}

}  // namespace

int main(int argc, char** argv) {
  using Sigmoid = Activate<float>;
  add<Sigmoid>("first", 1, 32, 200);
  for (const Index n : {1, 32}) add<Sigmoid>("serve", 1, n, 200);
  add<Dice<float>>("serve_dice", 1, 32, 200);
  add<Sigmoid>("train", 64, 1, 100);
  return run_registered(argc, argv);
}
