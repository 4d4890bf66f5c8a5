/// MiNet at the paper's shapes (10 clicks in the target domain, 20 in the source domain, hidden 64, rank 10) and longer ones, widths 64.
///
///     taskset -c 1 build/bench/bench/recops_bench_attention_minet
///
/// Cases: `serve` N candidates of a user, `train` forward and backward of B users with one candidate each. of_peak: share of the speed of
/// multiply-adds of the flops that our form needs. Peers: `eigen` the concatenations with Eigen's products (serving); `torch` the same in
/// PyTorch, the faster of eager and traced; autograd for training.
#include <recops/attention/minet.hpp>

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

constexpr Index width = 64, user_width = 16, hidden = 64, rank = 10;

struct Data {
  Index users, n, lt, ls;
  MiNet<float> layer, gradient;
  MiNet<float>::Saved saved;
  Matrix<float> q, u, t, s, y, dy, dq, du, dt, ds;
  std::vector<std::int64_t> of_q{0}, of_t{0}, of_s{0};
  Workspace ws;
  Data(Index b, Index candidates, Index target, Index source) : users(b), n(candidates), lt(target), ls(source) {
    Random random(1);
    layer = MiNet<float>(width, user_width, width, hidden, hidden, rank, random);
    gradient = make_gradient(layer);
    const auto fill = [&](Matrix<float>& m, Matrix<float>& d, Index rows, Index cols) {
      m.resize(rows, cols);
      d = Matrix<float>(rows, cols, 0.0f);
      for (Index i = 0; i < rows * cols; ++i) m.data()[i] = static_cast<float>(random.normal());
    };
    fill(q, dq, b * n, width);
    fill(u, du, b, user_width);
    fill(t, dt, b * lt, width);
    fill(s, ds, b * ls, width);
    y.resize(b * n, layer.output_width());
    dy = Matrix<float>(b * n, layer.output_width(), 0.1f);
    for (Index i = 1; i <= b; ++i) {
      of_q.push_back(i * n);
      of_t.push_back(i * lt);
      of_s.push_back(i * ls);
    }
  }
  JaggedView<const float> who() const { return {q.view(), of_q}; }
  JaggedView<const float> target() const { return {t.view(), of_t}; }
  JaggedView<const float> source() const { return {s.view(), of_s}; }
#ifdef WITH_EIGEN
  using Rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  Rows x, pre, moved;
  Eigen::VectorXf a;
  /// One user.
  void eigen_items(const ItemAttention<float>& l, const Matrix<float>& clicks, Index first) {
    const Index length = clicks.rows();
    const auto c = as_eigen(clicks), w = as_eigen(l.weight);
    auto out = as_eigen(y);
    moved = l.crosses() ? Rows((c * as_eigen(l.down).transpose()) * as_eigen(l.up).transpose()) : Rows(c);
    x.resize(length, w.cols());
    for (Index i = 0; i < n; ++i) {
      const auto candidate = as_eigen(q).row(i);
      x.leftCols(width) = c;
      x.middleCols(width, width).rowwise() = candidate;
      x.middleCols(2 * width, user_width).rowwise() = as_eigen(u).row(0);
      x.rightCols(width) = moved.array().rowwise() * candidate.array();
      pre.noalias() = x * w.transpose();
      a.noalias() = pre.cwiseMax(0.0f) * Eigen::Map<const Eigen::VectorXf>(l.score.data(), hidden);
      a = (a.array() - a.maxCoeff()).exp();
      a /= a.sum();
      out.row(i).segment(first, width).noalias() = a.transpose() * c;
    }
  }
  void eigen() {
    auto out = as_eigen(y);
    out.leftCols(width) = as_eigen(q);
    out.middleCols(width, user_width).rowwise() = as_eigen(u).row(0);
    eigen_items(layer.target, t, width + user_width);
    eigen_items(layer.source, s, 2 * width + user_width);
    pre.noalias() = out * as_eigen(layer.gates.weight).transpose();
    pre = pre.cwiseMax(0.0f);
    const Index first[] = {width, width + user_width, 2 * width + user_width}, count[] = {user_width, width, width};
    for (Index g = 0; g < 3; ++g) {
      a.noalias() = pre.middleCols(g * hidden, hidden) * as_eigen(layer.gates.score).row(g).transpose();
      a = (a.array() + layer.gates.bias[g]).exp();
      out.middleCols(first[g], count[g]).array().colwise() *= a.array();
    }
  }
#endif
};

void add(const std::string& what, Index b, Index n, Index lt, Index ls) {
  register_case<float>(
      "attention/minet/" + what + "/f32/B:" + std::to_string(b) + "/N:" + std::to_string(n) + "/L:" + std::to_string(lt) + "+" +
          std::to_string(ls),
      [=] {
        auto d = std::make_shared<Data>(b, n, lt, ls);
        Case<float> c;
        const auto f = [](Index x) { return static_cast<double>(x); };
        const Index out = d->layer.output_width();
        const double once = 2.0 * f(b) *
                            (f(n * lt) * f(width * hidden + hidden + width) + f(n * ls) * f(rank * hidden + hidden + width) +
                             f(n) * f(width * rank * hidden) + f(ls) * f(width * (hidden + rank)) +
                             f(n) * f(2 * width * hidden + 3 * hidden * out));
        c.flops = what == "serve" ? once : 3 * once;
        if (what == "serve") {
          c.kernel = [=](Index) { d->layer.forward(d->who(), d->u, d->target(), d->source(), d->y, d->ws); };
#ifdef WITH_EIGEN
          c.peers.push_back({"eigen", [=](Index) { d->eigen(); }});
#endif
        } else {
          c.kernel = [=](Index) {
            d->layer.forward(d->who(), d->u, d->target(), d->source(), d->y, d->saved, {}, d->ws);
            d->layer.backward(d->who(), d->u, d->target(), d->source(), d->dy, d->saved, d->dq, d->du, d->dt, d->ds, d->gradient,
                              d->ws);
          };
        }
        c.peers.push_back(python_peer("torch", what == "serve" ? "minet" : "minet_train",
                                      "{\"users\": " + std::to_string(b) + ", \"n\": " + std::to_string(n) +
                                          ", \"lt\": " + std::to_string(lt) + ", \"ls\": " + std::to_string(ls) + "}"));
        return c;
      });
}

}  // namespace

int main(int argc, char** argv) {
  for (const Index n : {1, 64}) add("serve", 1, n, 10, 20);
  add("serve", 1, 64, 50, 200);
  add("train", 64, 1, 10, 20);
  return run_registered(argc, argv);
}
