/// HSTU attention of one user with L behaviours, 2 heads of 32, and the layer around it (D = 64).
///
///     taskset -c 1 build/bench/bench/recops_bench_attention_hstu
///
/// Cases: `attention` (causal, `full` without the mask, `bias` with position and time terms) and `backward`; `layer` the frozen layer on a
/// whole sequence, `step` one further behaviour from cached keys and values. Flops are those of visible pairs. Peers: `torch` the same with
/// dense matrices (the faster of eager and in place), `eigen` in blocks of 64 queries, `softmax` our streaming softmax attention of the
/// same shape, `full` the same without the causal mask, `recompute` the layer on the whole sequence.
#include <recops/attention/hstu.hpp>
#include <recops/nn/scaled_dot_product_attention.hpp>

#include <memory>

#include "support/paired.hpp"
#if defined(RECOPS_BENCH_EIGEN) || __has_include(<Eigen/Core>)
#include <recops/core/eigen.hpp>
#define WITH_EIGEN 1
#endif

using namespace recops;
using namespace recops_bench;

namespace {

constexpr Index heads = 2, width = 64;

struct Data {
  Index length;
  Matrix<float> q, k, v, out, dout, dq, dk, dv, lse;
  Vector<float> position, time, dposition, dtime;
  std::vector<std::int64_t> times;
  Workspace ws;

  explicit Data(Index l) : length(l), lse(l, heads), position(2 * l - 1), time(129), dposition(2 * l - 1), dtime(129) {
    Random random(1);
    for (Matrix<float>* m : {&q, &k, &v, &out, &dout, &dq, &dk, &dv}) {
      m->resize(l, width);
      for (Index i = 0; i < l * width; ++i) m->data()[i] = static_cast<float>(random.uniform(-1, 1));
    }
    for (Vector<float>* x : {&position, &time})
      for (float& w : *x) w = static_cast<float>(random.uniform(-0.1, 0.1));
    std::int64_t now = 0;
    for (Index i = 0; i < l; ++i) times.push_back(now += static_cast<std::int64_t>(std::exp(random.uniform(2, 12))));
  }
  HstuAttentionOptions options(bool causal) const { return {.heads = heads, .max_length = length, .causal = causal}; }
  HstuBias<float> bias(bool with) const { return with ? HstuBias<float>{position, time, times, {}} : HstuBias<float>{}; }
  void forward(bool causal, bool with) {
    hstu_attention<float>(q.view(), k.view(), v.view(), bias(with), options(causal), out, ws);
  }
  void softmax() {
    scaled_dot_product_attention<float>(q.view(), k.view(), v.view(), {}, {.heads = heads, .causal = true}, out, lse, ws);
  }
#if defined(WITH_EIGEN)
  /// Blocks of 64 queries, whose scores stay in the caches; what no query of a block sees is skipped.
  void eigen(bool causal) {
    const auto Q = as_eigen(q), K = as_eigen(k), V = as_eigen(v);
    auto O = as_eigen(out);
    const float share = 1 / static_cast<float>(length);
    for (Index i = 0; i < length; i += 64) {
      const Index n = std::min(Index{64}, length - i), seen = causal ? i + n : length;
      for (Index h = 0; h < heads; ++h) {
        const Index at = h * (width / heads), d = width / heads;
        auto s = scores.topLeftCorner(n, seen);
        s.noalias() = Q.block(i, at, n, d) * K.block(0, at, seen, d).transpose();
        s.array() *= share / (1 + (-s.array()).exp());
        if (causal) s.rightCols(n).template triangularView<Eigen::StrictlyUpper>().setZero();
        O.block(i, at, n, d).noalias() = s * V.block(0, at, seen, d);
      }
    }
  }
  Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> scores{64, length};
#endif
  void backward(bool with) {
    hstu_attention_backward<float>(q.view(), k.view(), v.view(), bias(with), options(true), dout, dq, dk, dv,
                                   with ? HstuBiasGradient<float>{dposition, dtime} : HstuBiasGradient<float>{}, ws);
  }
};

void add(const std::string& what, Index l, bool causal, bool with, bool backward) {
  const double pairs = static_cast<double>(l) * static_cast<double>(causal ? l + 1 : 2 * l) / 2, once = 4 * pairs * width;
  register_case<float>(
      "attention/hstu/" + what + "/f32/H:2/d:32/L:" + std::to_string(l),
      [=] {
        const auto data = std::make_shared<Data>(l);
        Case<float> c;
        c.flops = backward ? 2.5 * once : once;
        if (backward) {
          c.kernel = [=](Index) { data->backward(with); };
        } else {
          c.kernel = [=](Index) { data->forward(causal, with); };
#if defined(WITH_EIGEN)
          if (!with && l <= 2048) c.peers.push_back({"eigen", [=](Index) { data->eigen(causal); }});
#endif
          if (causal && !with) {
            c.peers.push_back({"full", [=](Index) { data->forward(false, false); }});
            c.peers.push_back({"softmax", [=](Index) { data->softmax(); }});
          }
        }
        if (l <= 2048)
          c.peers.push_back(python_peer(
              "torch", "hstu_attention",
              "{\"length\": " + std::to_string(l) + ", \"heads\": 2, \"width\": 32, \"causal\": " + (causal ? "true" : "false") +
                  ", \"bias\": " + (with ? "true" : "false") + ", \"train\": " + (backward ? "true" : "false") + "}"));
        return c;
      },
      l > 2048 ? 15 : 60);
}

void add_layer(Index l, bool step) {
  register_case<float>(
      std::string("attention/hstu/") + (step ? "step" : "layer") + "/f32/D:64/H:2/L:" + std::to_string(l),
      [=] {
        struct Layer {
          FrozenHstu<float> frozen;
          HstuState<float> state;
          Matrix<float> x, y;
          std::vector<std::int64_t> times;
          Workspace ws;
          Layer(Index length, Random random)
              : frozen(freeze(Hstu<float>(width, {.heads = heads, .max_length = length, .time_buckets = 129}, random))),
                state(frozen.make_state()),
                x(length, width),
                y(length, width) {
            for (Index i = 0; i < length * width; ++i) x.data()[i] = static_cast<float>(random.normal());
            std::int64_t now = 0;
            for (Index i = 0; i < length; ++i) times.push_back(now += static_cast<std::int64_t>(std::exp(random.uniform(2, 12))));
            rows(0, length - 1);
          }
          void rows(Index first, Index n) {
            state.length = first;
            frozen.extend(x.view().middle_rows(first, n), IndexView(times).segment(first, n), {}, state,
                          y.view().middle_rows(first, n), ws);
          }
          void whole() { frozen.forward(x, {.times = times}, y, ws); }
        };
        const auto layer = std::make_shared<Layer>(l, Random(1));
        Case<float> c;
        const double n = static_cast<double>(l), pairs = step ? n : n * (n + 1) / 2, rows = step ? 1 : n;
        c.flops = 4 * pairs * width + rows * 2 * width * 5 * width;
        if (step) {
          c.bytes = 2 * n * width * 4;
          c.kernel = [=](Index) { layer->rows(l - 1, 1); };
          c.peers.push_back({"recompute", [=](Index) { layer->whole(); }});
        } else {
          c.kernel = [=](Index) { layer->whole(); };
        }
        return c;
      },
      step ? 15 : 40);
}

}  // namespace

int main(int argc, char** argv) {
  for (const Index l : {200, 2048, 8192}) {
    add("attention", l, true, false, false);
    add("bias", l, true, true, false);
  }
  add("full", 2048, false, false, false);
  for (const Index l : {200, 2048}) {
    add("backward", l, true, false, true);
    add("backward_bias", l, true, true, true);
  }
  add_layer(2048, false);
  for (const Index l : {1024, 2048, 4096, 8192}) add_layer(l, true);
  return run_registered(argc, argv);
}
