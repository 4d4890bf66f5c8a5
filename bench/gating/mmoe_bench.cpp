/// MMoE at production shapes: `w4` is 512 -> 8 experts of 256, 6 tasks; `small` 512 -> 8 x 128, 2 tasks; `prod` 3072 -> 6 x 256,
/// 24 tasks.
///
///     taskset -c 1 build/bench/bench/recops_bench_gating_mmoe
///
/// `serve` is the frozen layer, `train` a training forward and the whole backward. Peers, where Eigen was found, are what one
/// writes by hand with care: `eigen` one wide product for all experts, `eigen_each` one product per expert; bias and relu in one
/// pass, softmax row by row, the mix as a small product per row; all buffers preallocated, weights laid out column-major
/// beforehand, nothing aliased. Weights of more than four times L2 take turns, so that they come from memory.
#include <recops/gating/mmoe.hpp>

#include <algorithm>
#include <memory>
#include <vector>

#include "support/paired.hpp"
#if defined(RECOPS_BENCH_EIGEN) || __has_include(<Eigen/Core>)
#include <recops/core/eigen.hpp>
#define WITH_EIGEN 1
#endif

using namespace recops;
using namespace recops_bench;

namespace {

struct Shape {
  const char* name;
  Index d, e, h, t;
};

template <class T>
struct Data {
  Shape s;
  Index batch;
  Mmoe<T> layer;
  std::vector<Mmoe<T>> layers, gradients;  // what takes turns, training
  std::vector<FrozenMmoe<T>> served;       // or serving
  Matrix<T> x, y, dy, dx;
  typename Mmoe<T>::Saved saved;
  Workspace ws;

  static Mmoe<T> make(const Shape& s) {
    Random random(1);
    return Mmoe<T>({.inputs = s.d, .experts = s.e, .outputs = s.h, .tasks = s.t}, random);
  }
  Data(const Shape& shape, Index rows, bool training) : s(shape), batch(rows), layer(make(shape)) {
    const std::size_t copies = static_cast<std::size_t>(copies_for(working_set(training)));
    if (training) {
      layers.assign(copies, layer);
      gradients.assign(copies, make_gradient(layer));
    } else {
      served.assign(copies, freeze(layer));
    }
    Random random(2);
    const auto fill = [&](Matrix<T>& m, Index cols) {
      m.resize(rows, cols);
      for (Index i = 0; i < rows * cols; ++i) m.data()[i] = static_cast<T>(random.uniform(-1.7, 1.7));
    };
    fill(x, s.d);
    fill(dy, s.t * s.h);
    y.resize(rows, s.t * s.h);
    dx = Matrix<T>(rows, s.d, T(0));
#ifdef WITH_EIGEN
    weights.assign(copies, as_eigen(layer.experts.weight).transpose());
    gate_weights.assign(copies, as_eigen(layer.gates.weight).transpose());
    z.resize(rows, s.e * s.h);
    a.resize(rows, s.e * s.h);
    da.resize(rows, s.e * s.h);
    g.resize(rows, s.e * s.t);
    dg.resize(rows, s.e * s.t);
    if (training) {
      dweights.assign(copies, RowMajor<T>::Zero(s.e * s.h, s.d));
      dgate_weights.assign(copies, RowMajor<T>::Zero(s.e * s.t, s.d));
    }
    dbias = Eigen::Matrix<T, 1, Eigen::Dynamic>::Zero(s.e * s.h);
#endif
  }
  double flops() const {
    return 2.0 * static_cast<double>(batch) * static_cast<double>(s.d * (s.e * s.h + s.t * s.e) + s.t * s.e * s.h);
  }
  double weight_bytes() const { return static_cast<double>(s.d * (s.e * s.h + s.t * s.e)) * sizeof(T); }
  double working_set(bool training) const { return weight_bytes() * (training ? 2 : 1); }
  Index copies() const { return static_cast<Index>(std::max(layers.size(), served.size())); }

  void serve(Index copy) { served[static_cast<std::size_t>(copy)].forward(x, y, ws); }
  void train(Index copy) {
    const std::size_t c = static_cast<std::size_t>(copy);
    layers[c].forward(x, y, saved, Step{}, ws);
    layers[c].backward(x, dy, saved, dx, gradients[c], ws);
  }

#ifdef WITH_EIGEN
  std::vector<Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic>> weights, gate_weights;  // [D, E H], [D, T E]
  std::vector<RowMajor<T>> dweights, dgate_weights;
  RowMajor<T> z, a, da, g, dg;
  Eigen::Matrix<T, 1, Eigen::Dynamic> dbias;
  using Small = Eigen::Map<RowMajor<T>>;

  void gates_and_mix(RowMajor<T>& experts, std::size_t copy) {
    g.noalias() = as_eigen(x) * gate_weights[copy];
    auto out = as_eigen(y);
    for (Index r = 0; r < batch; ++r) {
      for (Index t = 0; t < s.t; ++t) {
        auto row = g.row(r).segment(t * s.e, s.e).array();
        row = (row - row.maxCoeff()).exp();
        row /= row.sum();
      }
      Small(y.row(r), s.t, s.h).noalias() =
          Small(g.data() + r * s.e * s.t, s.t, s.e).lazyProduct(Small(experts.data() + r * s.e * s.h, s.e, s.h));
    }
    benchmark::DoNotOptimize(out.data());
  }
  void eigen(Index copy) {
    const std::size_t c = static_cast<std::size_t>(copy);
    a.noalias() = as_eigen(x) * weights[c];
    a = (a.rowwise() + as_eigen(layer.experts.bias).transpose()).cwiseMax(T(0));
    gates_and_mix(a, c);
  }
  void eigen_each(Index copy) {
    const std::size_t c = static_cast<std::size_t>(copy);
    for (Index e = 0; e < s.e; ++e) {
      auto own = a.middleCols(e * s.h, s.h);
      own.noalias() = as_eigen(x) * weights[c].middleCols(e * s.h, s.h);
      own = (own.rowwise() + as_eigen(layer.experts.bias).transpose().segment(e * s.h, s.h)).cwiseMax(T(0));
    }
    gates_and_mix(a, c);
  }
  void eigen_train(Index copy) {
    const std::size_t c = static_cast<std::size_t>(copy);
    eigen(copy);
    for (Index r = 0; r < batch; ++r) {
      const Small up(dy.row(r), s.t, s.h), own(a.data() + r * s.e * s.h, s.e, s.h), gates(g.data() + r * s.e * s.t, s.t, s.e);
      Small dgates(dg.data() + r * s.e * s.t, s.t, s.e);
      Small(da.data() + r * s.e * s.h, s.e, s.h).noalias() = gates.transpose().lazyProduct(up);
      dgates.noalias() = up.lazyProduct(own.transpose());
      for (Index t = 0; t < s.t; ++t) {
        const T mean = gates.row(t).dot(dgates.row(t));
        dgates.row(t).array() = gates.row(t).array() * (dgates.row(t).array() - mean);
      }
    }
    da = (a.array() > T(0)).select(da, T(0));
    auto down = as_eigen(dx);
    down.noalias() += da * weights[c].transpose();
    down.noalias() += dg * gate_weights[c].transpose();
    dweights[c].noalias() += da.transpose() * as_eigen(x);
    dgate_weights[c].noalias() += dg.transpose() * as_eigen(x);
    dbias += da.colwise().sum();
  }
#endif
};

template <class T>
void add(const Shape& shape, Index batch, bool train) {
  const std::string name = std::string("gating/mmoe") + (train ? "_train/" : "/") + type_name<T>() + "/shape:" + shape.name +
                           "/batch:" + std::to_string(batch);
  const double work = static_cast<double>(batch) * static_cast<double>(shape.d * shape.e * shape.h) * (train ? 3 : 1);
  register_case<T>(
      name,
      [=] {
        const auto data = std::make_shared<Data<T>>(shape, batch, train);
        Case<T> c;
        c.flops = data->flops() * (train ? 3 : 1);
        c.copies = data->copies();
        c.working_set = data->working_set(train);
        if (batch == 1 && !train) c.bytes = data->weight_bytes();
        if (train) {
          c.kernel = [data](Index copy) { data->train(copy); };
        } else {
          c.kernel = [data](Index copy) { data->serve(copy); };
        }
#ifdef WITH_EIGEN
        if (train) {
          c.peers.push_back({"eigen", [data](Index copy) { data->eigen_train(copy); }});
        } else {
          c.peers.push_back({"eigen", [data](Index copy) { data->eigen(copy); }});
          c.peers.push_back({"eigen_each", [data](Index copy) { data->eigen_each(copy); }});
        }
#endif
        return c;
      },
      work > 1e9   ? 25
      : work > 1e8 ? 100
                   : 300);
}

}  // namespace

int main(int argc, char** argv) {
  const Shape w4{"w4", 512, 8, 256, 6}, small{"small", 512, 8, 128, 2}, prod{"prod", 3072, 6, 256, 24};
  for (const Index batch : {1, 8, 32, 512}) add<float>(w4, batch, false);
  for (const Index batch : {1, 8, 32, 64, 256}) add<float>(small, batch, false);
  for (const Index batch : {1, 8, 32, 64, 256}) add<float>(prod, batch, false);
  for (const Index batch : {32, 512}) add<double>(w4, batch, false);
  for (const Index batch : {32, 512}) add<float>(w4, batch, true);
  add<float>(small, 256, true);
  add<float>(prod, 256, true);
  return recops_bench::run_registered(argc, argv);
}
