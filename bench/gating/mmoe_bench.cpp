/// MMoE, HoME and the monitor of experts at production shapes.
///
///     taskset -c 1 build/bench/bench/recops_bench_gating_mmoe --benchmark_filter=gating/mmoe/f32/B:8/D:512
///
///   gating/mmoe/TYPE/...         the frozen layer; TYPE f32, f64, or bf16 and int8 weights (vs_f32: our own float)
///   gating/mmoe_train/TYPE/...   a training forward and the whole backward
///   gating/home/f32/...          frozen HoME, D = 512, two categories of three tasks: `bare` has no feature and self gates
///   gating/monitor/f32/...       ExpertMonitor on the outputs and gates of a batch; vs_forward: what the forward takes
///
/// Peers. `eigen`: by hand with care, one wide product for all experts; `eigen_each` one product per expert; bias and relu in one
/// pass, softmax row by row, the mix as a small product per row; all buffers preallocated, weights laid out column-major
/// beforehand, nothing aliased. `openblas`, `onednn` (weights reordered beforehand, relu fused): their two products, then the same
/// softmax and mix. `torch`, `onnxruntime`: the fastest of several ways to write it, in a process of their own. Weights of more
/// than four times L2 take turns, so that they come from memory.
#include <recops/gating/diagnostics.hpp>
#include <recops/gating/home.hpp>
#include <recops/gating/mmoe.hpp>

#include <algorithm>
#include <memory>
#include <vector>

#include "peers/onednn.hpp"
#include "peers/openblas.hpp"
#include "support/paired.hpp"
#if defined(RECOPS_BENCH_EIGEN) || __has_include(<Eigen/Core>)
#include <recops/core/eigen.hpp>
#define WITH_EIGEN 1
#endif

using namespace recops;
using namespace recops_bench;

namespace {

struct Shape {
  Index d, e, h, t;
  std::string name(Index batch) const {
    const auto part = [](const char* key, Index value) { return std::string("/") + key + ":" + std::to_string(value); };
    return part("B", batch) + part("D", d) + part("E", e) + part("H", h) + part("T", t);
  }
  /// Arguments of the peers in Python.
  std::string arguments(Index batch, Index copies, const char* type) const {
    const auto part = [](const char* key, Index value) {
      return std::string("\"") + key + "\": " + std::to_string(value) + ", ";
    };
    return "{" + part("batch", batch) + part("inputs", d) + part("experts", e) + part("outputs", h) + part("tasks", t) +
           (*type ? std::string("\"type\": \"") + type + "\", " : std::string()) + "\"copies\": " + std::to_string(copies) + "}";
  }
};

template <class S>
const char* weight_name() {
  return std::is_same_v<S, double>        ? "f64"
         : std::is_same_v<S, BFloat16>    ? "bf16"
         : std::is_same_v<S, std::int8_t> ? "int8"
                                          : "f32";
}

template <class T, class S = T>
struct Data {
  Shape s;
  Index batch;
  Mmoe<T> layer;
  std::vector<Mmoe<T>> layers, gradients;  // what takes turns, training
  std::vector<FrozenMmoe<T, S>> served;    // or serving
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
      served.assign(copies, FrozenMmoe<T, S>(layer));
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
    if (std::is_same_v<S, T>) {
      weights.assign(copies, as_eigen(layer.experts.weight).transpose());
      gate_weights.assign(copies, as_eigen(layer.gates.weight).transpose());
    }
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
  double weight_bytes() const { return static_cast<double>(s.d * (s.e * s.h + s.t * s.e)) * sizeof(S); }
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
    softmax_and_mix(experts);
  }
  void softmax_and_mix(RowMajor<T>& experts) {
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

/// Two products of another library, then what Eigen's form does with their results.
template <class T, class S>
void add_products([[maybe_unused]] Case<T>& c, [[maybe_unused]] const std::shared_ptr<Data<T, S>>& data,
                  [[maybe_unused]] const Peer& experts, [[maybe_unused]] const Peer& gates, [[maybe_unused]] bool relu) {
#ifdef WITH_EIGEN
  if (!experts.run || !gates.run) {
    c.peers.push_back(experts);
    return;
  }
  Peer peer;
  peer.name = experts.name;
  peer.run = [=](Index copy) {
    experts.run(copy);
    if (!relu) data->a = (data->a.rowwise() + as_eigen(data->layer.experts.bias).transpose()).cwiseMax(T(0));
    gates.run(copy);
    data->softmax_and_mix(data->a);
  };
  c.peers.push_back(std::move(peer));
#endif
}

template <class T, class S = T>
void add(const Shape& shape, Index batch, bool train) {
  const double work = static_cast<double>(batch) * static_cast<double>(shape.d * shape.e * shape.h) * (train ? 3 : 1);
  register_case<T>(
      std::string("gating/mmoe") + (train ? "_train/" : "/") + weight_name<S>() + shape.name(batch),
      [=] {
        const auto data = std::make_shared<Data<T, S>>(shape, batch, train);
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
        if constexpr (!std::is_same_v<S, T>) {
          const auto own = std::make_shared<Data<T>>(shape, batch, false);
          c.peers.push_back({"f32", [own](Index copy) { own->serve(copy % own->copies()); }});
          if (std::is_same_v<S, BFloat16>)
            c.peers.push_back(python_peer("torch", "mmoe", shape.arguments(batch, c.copies, "bf16")));
          return c;
        }
#ifdef WITH_EIGEN
        if (train) {
          c.peers.push_back({"eigen", [data](Index copy) { data->eigen_train(copy); }});
        } else {
          c.peers.push_back({"eigen", [data](Index copy) { data->eigen(copy); }});
          c.peers.push_back({"eigen_each", [data](Index copy) { data->eigen_each(copy); }});
        }
#endif
        if constexpr (std::is_same_v<T, float>) {
          if (train) {
            c.peers.push_back(python_peer("torch", "mmoe_train", shape.arguments(batch, c.copies, "")));
          } else {
            const Index n = shape.e * shape.h, gates = shape.t * shape.e;
            add_products(c, data, openblas_gemm<float>(batch, n, shape.d, c.copies),
                         openblas_gemm<float>(batch, gates, shape.d, c.copies), false);
            add_products(c, data, onednn_linear(batch, n, shape.d, true, c.copies),
                         onednn_linear(batch, gates, shape.d, false, c.copies), true);
            c.peers.push_back(python_peer("torch", "mmoe", shape.arguments(batch, c.copies, "f32")));
            c.peers.push_back(python_peer("onnxruntime", "mmoe", shape.arguments(batch, c.copies, "")));
          }
        }
        return c;
      },
      work > 1e9   ? 25
      : work > 1e8 ? 100
                   : 300);
}

/// Multiply-adds of a row, counted by its parameters: every weight is used once; mixtures besides.
template <class L>
double flops_of(const L& layer, double mixed, Index batch) {
  return 2 * static_cast<double>(batch) * (static_cast<double>(parameter_count(layer)) + mixed);
}

void add_home(Index batch, bool bare) {
  register_case<float>("gating/home/f32/" + std::string(bare ? "bare" : "full") + "/B:" + std::to_string(batch), [=] {
    struct Home6 {
      std::vector<FrozenHome<float>> served;
      Matrix<float> x, y;
      Workspace ws;
      double flops;
    };
    Random random(1);
    const HomeSpec spec{.inputs = 512,
                        .meta_outputs = 256,
                        .outputs = 128,
                        .categories = {0, 0, 0, 1, 1, 1},
                        .feature_gates = !bare,
                        .self_gates = !bare};
    const Home<float> layer(spec, random);
    const double bytes = static_cast<double>(parameter_count(layer)) * sizeof(float);
    const auto d = std::make_shared<Home6>();
    d->served.assign(static_cast<std::size_t>(copies_for(bytes)), freeze(layer));
    d->x = Matrix<float>(batch, 512);
    for (float& v : leaf_values(d->x)) v = static_cast<float>(random.normal());
    d->y = Matrix<float>(batch, 768);
    Case<float> c;
    c.flops = flops_of(layer, static_cast<double>(256 * layer.meta.map.size() + 128 * layer.task.map.size()), batch);
    c.copies = static_cast<Index>(d->served.size());
    c.working_set = bytes;
    if (batch == 1) c.bytes = bytes;
    c.kernel = [d](Index copy) { d->served[static_cast<std::size_t>(copy)].forward(d->x, d->y, d->ws); };
    c.peers.push_back(python_peer("torch", "home",
                                  "{\"batch\": " + std::to_string(batch) + ", \"bare\": " + (bare ? "true" : "false") +
                                      ", \"copies\": " + std::to_string(std::min(c.copies, Index{16})) + "}"));
    return c;
  });
}

void add_monitor(Index batch) {
  register_case<float>("gating/monitor/f32/B:" + std::to_string(batch) + "/E:8/H:256/T:6", [=] {
    const Shape shape{512, 8, 256, 6};
    struct Watched {
      Matrix<float> a, g;
      ExpertMonitor monitor;
    };
    Random random(1);
    const auto d = std::make_shared<Watched>(
        Watched{Matrix<float>(batch, 2048), Matrix<float>(batch, 48, 0.125f), ExpertMonitor(GateMap(6, 8), 256)});
    for (float& v : leaf_values(d->a)) v = std::max(0.0f, static_cast<float>(random.normal()));
    const auto own = std::make_shared<Data<float>>(shape, batch, false);
    Case<float> c;
    c.bytes = static_cast<double>(batch * 2048) * sizeof(float);
    c.kernel = [d](Index) { d->monitor.add<float>(d->a, d->g); };
    c.peers.push_back({"forward", [own](Index copy) { own->serve(copy % own->copies()); }});
    return c;
  });
}

}  // namespace

int main(int argc, char** argv) {
  const Shape w4{512, 8, 256, 6}, small{512, 8, 128, 2}, prod{3072, 6, 256, 24};
  for (const Index batch : {1, 8, 32, 512}) {
    add<float>(w4, batch, false);
    add<float, BFloat16>(w4, batch, false);
    add<float, std::int8_t>(w4, batch, false);
  }
  for (const Index batch : {1, 8, 32, 64, 256}) add<float>(small, batch, false);
  for (const Index batch : {1, 8, 32, 64, 256}) add<float>(prod, batch, false);
  for (const Index batch : {32, 512}) add<double>(w4, batch, false);
  for (const Index batch : {32, 512}) add<float>(w4, batch, true);
  add<float>(small, 256, true);
  add<float>(prod, 256, true);
  for (const Index batch : {1, 64, 512})
    for (const bool bare : {true, false}) add_home(batch, bare);
  add_monitor(64);
  return recops_bench::run_registered(argc, argv);
}
