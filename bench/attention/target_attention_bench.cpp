/// Target attention at production shapes: candidates N over a history L of 64 columns, keys = values = history.
///
///     taskset -c 1 build/bench/recops_bench_attention_target_attention
///
/// Peers, where Eigen was found: `eigen` is what one writes by hand with care (per head one product, the softmax row by row with
/// vectorised exp, one product, the sums divided out at the end; all buffers preallocated, nothing aliased), `naive` the same in
/// one expression per step. Histories of more than four times L2 take turns, so that they come from memory.
#include <recops/attention/target_attention.hpp>
#include <recops/core/random.hpp>

#include <memory>

#include "support/paired.hpp"
#if defined(RECOPS_BENCH_EIGEN) || __has_include(<Eigen/Core>)
#include <recops/core/eigen.hpp>
#define WITH_EIGEN 1
#endif

using namespace recops;
using namespace recops_bench;

namespace {

constexpr Index width = 64;

template <class T>
struct Data {
  Index n, l, heads;
  Matrix<T> q, out, lse, dout, dq, dh;
  Rotation<T> histories;
  Workspace ws;
  Data(Index queries, Index length, Index head_count)
      : n(queries), l(length), heads(head_count), histories(length * width, copies_for(history_bytes(length))) {
    Random random(1);
    const auto fill = [&](Matrix<T>& m, Index rows) {
      m.resize(rows, width);
      for (Index i = 0; i < rows * width; ++i) m.data()[i] = static_cast<T>(random.uniform(-1.7, 1.7));
    };
    fill(q, n);
    for (Index i = 0; i < l * width; ++i) histories[0][i] = static_cast<T>(random.uniform(-1.7, 1.7));
    histories.spread();
    fill(dout, n);
    out.resize(n, width);
    lse.resize(n, heads);
    dq = Matrix<T>(n, width, T(0));
    dh = Matrix<T>(l, width, T(0));
    sums.resize(n);
    scores.resize(n, l);
    gradients.resize(n, l);
  }
  static double history_bytes(Index length) { return static_cast<double>(length) * width * sizeof(T); }
  MatrixView<const T> history(Index copy) const { return MatrixView<const T>(histories[copy], l, width); }
  void forward(Index copy) { target_attention<T>(q, history(copy), {.heads = heads}, out, lse, ws); }
  void backward(Index copy) { target_attention_backward<T>(q, history(copy), {.heads = heads}, out, lse, dout, dq, dh, ws); }

  Matrix<T> scores, gradients;  // of the peers
  Vector<T> sums;
#ifdef WITH_EIGEN
  void eigen(Index copy) {
    const Index d = width / heads;
    const T scale = T(1) / std::sqrt(static_cast<T>(d));
    auto s = as_eigen(scores), all_q = as_eigen(q), all_h = as_eigen(history(copy)), y = as_eigen(out);
    for (Index a = 0; a < heads; ++a) {
      s.noalias() = all_q.middleCols(a * d, d) * all_h.middleCols(a * d, d).transpose();
      for (Index i = 0; i < n; ++i) {
        auto row = s.row(i).array();
        const T top = row.maxCoeff();
        row = ((row - top) * scale).exp();
        sums[i] = row.sum();
      }
      y.middleCols(a * d, d).noalias() = s * all_h.middleCols(a * d, d);
      y.middleCols(a * d, d).array().colwise() /= as_eigen(sums).array();
    }
  }
  void eigen_naive(Index copy) {
    const Index d = width / heads;
    const T scale = T(1) / std::sqrt(static_cast<T>(d));
    auto all_q = as_eigen(q), all_h = as_eigen(history(copy)), y = as_eigen(out);
    for (Index a = 0; a < heads; ++a) {
      const RowMajor<T> key = all_h.middleCols(a * d, d);
      RowMajor<T> s = all_q.middleCols(a * d, d) * key.transpose() * scale;
      s = (s.colwise() - s.rowwise().maxCoeff()).array().exp();
      s = s.array().colwise() / s.rowwise().sum().array().eval();
      y.middleCols(a * d, d) = s * key;
    }
  }
  /// Weights recomputed as ours are, then the five products.
  void eigen_backward(Index copy) {
    const Index d = width / heads;
    const T scale = T(1) / std::sqrt(static_cast<T>(d));
    auto p = as_eigen(scores), g = as_eigen(gradients), all_q = as_eigen(q), all_h = as_eigen(history(copy)), y = as_eigen(out),
         dy = as_eigen(dout);
    auto dq_all = as_eigen(dq), dh_all = as_eigen(dh);
    for (Index a = 0; a < heads; ++a) {
      const auto key = all_h.middleCols(a * d, d), query = all_q.middleCols(a * d, d), dyo = dy.middleCols(a * d, d);
      p.noalias() = query * key.transpose();
      g.noalias() = dyo * key.transpose();
      for (Index i = 0; i < n; ++i) {
        const T mean = dyo.row(i).dot(y.row(i).segment(a * d, d));
        p.row(i).array() = (p.row(i).array() * scale - lse(i, a)).exp();
        g.row(i).array() = p.row(i).array() * (g.row(i).array() - mean) * scale;
      }
      dq_all.middleCols(a * d, d).noalias() += g * key;
      dh_all.middleCols(a * d, d).noalias() += g.transpose() * query;
      dh_all.middleCols(a * d, d).noalias() += p.transpose() * dyo;
    }
  }
#endif
};

template <class T>
void add(Index heads, Index l, Index n, bool backward) {
  const std::string name = std::string("attention/target_attention") + (backward ? "_backward/" : "/") + type_name<T>() +
                           "/heads:" + std::to_string(heads) + "/L:" + std::to_string(l) + "/N:" + std::to_string(n);
  const double pairs = static_cast<double>(n) * static_cast<double>(l) * width;
  const int slices = pairs > 2e8 ? 8 : pairs > 2e7 ? 25 : 200;
  register_case<T>(
      name,
      [=] {
        const auto data = std::make_shared<Data<T>>(n, l, heads);
        Case<T> c;
        data->forward(0);
        c.flops = (backward ? 10 : 4) * pairs;
        c.copies = data->histories.copies();
        c.working_set = data->history_bytes(l);
        if (n == 1 && !backward) {
          c.bytes = data->history_bytes(l);
          c.data = [data](Index copy) { return data->histories[copy]; };
        }
        if (backward) {
          c.kernel = [data](Index copy) { data->backward(copy); };
        } else {
          c.kernel = [data](Index copy) { data->forward(copy); };
        }
#ifdef WITH_EIGEN
        if (backward) {
          c.peers.push_back({"eigen", [data](Index copy) { data->eigen_backward(copy); }});
        } else {
          c.peers.push_back({"eigen", [data](Index copy) { data->eigen(copy); }});
          c.peers.push_back({"naive", [data](Index copy) { data->eigen_naive(copy); }});
        }
#endif
        return c;
      },
      slices);
}

}  // namespace

int main(int argc, char** argv) {
  for (const Index heads : {4, 1}) {
    for (const Index l : {100, 1000, 10000, 100000}) {
      for (const Index n : {1, 64, 512}) {
        if (n * l > 100000 * 64) continue;  // the scores of the peers alone would be 200 MB a head
        add<float>(heads, l, n, false);
      }
    }
    for (const Index n : {1, 64, 512}) add<float>(heads, 1000, n, true);
    for (const Index n : {1, 64}) add<double>(heads, 1000, n, false);
    add<double>(heads, 1000, 64, true);
  }
  return recops_bench::run_registered(argc, argv);
}
