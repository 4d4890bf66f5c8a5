/// Target attention at production shapes: candidates N over a history L of 64 columns, keys = values = history.
///
///     taskset -c 1 build/bench/bench/recops_bench_attention_target_attention
///
/// Stored histories (bf16, int8 with a scale per row and head, int8row with one per row) are compared with our own f32.
/// Peers: PyTorch and ONNX Runtime in the fastest of the ways in bench/peers; where Eigen was found, `eigen` is what one writes by hand
/// with care (per head one product, the softmax row by row with vectorised exp, one product, the sums divided out at the end; all buffers
/// preallocated, nothing aliased), `naive` the same in one expression per step. Histories of more than four times L2 take turns, so that
/// they come from memory.
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
    if (n * l < 10000000) gradients.resize(n, l);  // backward only
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
                           "/H:" + std::to_string(heads) + "/dk:" + std::to_string(width / heads) + "/N:" + std::to_string(n) +
                           "/L:" + std::to_string(l);
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
        const std::string shape =
            "\"n\": " + std::to_string(n) + ", \"l\": " + std::to_string(l) + ", \"heads\": " + std::to_string(heads);
        if (std::is_same_v<T, float> && backward) {
          c.peers.push_back(python_peer("torch", "target_attention_backward", "{" + shape + "}"));
        } else if (std::is_same_v<T, float>) {
          const std::string arguments = "{" + shape + ", \"copies\": " + std::to_string(c.copies) + "}";
          c.peers.push_back(python_peer("torch", "target_attention", arguments));
          c.peers.push_back(python_peer("onnxruntime", "target_attention", arguments));
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

/// `block` columns share a scale where S is int8.
template <class S>
void add_stored(const std::string& format, Index heads, Index l, Index n, Index block) {
  const double pairs = static_cast<double>(n) * static_cast<double>(l) * width;
  register_case<float>(
      "attention/target_attention/" + format + "/H:" + std::to_string(heads) + "/dk:" + std::to_string(width / heads) +
          "/N:" + std::to_string(n) + "/L:" + std::to_string(l),
      [=] {
        const auto data = std::make_shared<Data<float>>(n, l, heads);
        const Index scales = !std::is_same_v<S, std::int8_t> ? 0 : block == 0 ? 1 : width / block;
        const double bytes = static_cast<double>(l) * (width * sizeof(S) + static_cast<double>(scales) * sizeof(float));
        const Index copies = copies_for(bytes), row = width * sizeof(S) + scales * Index{sizeof(float)};
        // Rows of a copy, then their scales.
        const auto stored = std::make_shared<Rotation<char>>(l * row, copies);
        char* first = (*stored)[0];
        if constexpr (std::is_same_v<S, std::int8_t>) {
          simd::quantize_rows(data->history(0), block, MatrixView<S>(reinterpret_cast<S*>(first), l, width),
                              MatrixView<float>(reinterpret_cast<float*>(first + l * width), l, scales));
        } else {
          simd::convert(data->histories[0], reinterpret_cast<S*>(first), l * width);
        }
        stored->spread();
        Case<float> c;
        c.flops = 4 * pairs;
        c.copies = copies;
        c.working_set = bytes;
        if (n == 1) {
          c.bytes = bytes;
          c.data = [stored](Index copy) { return (*stored)[copy]; };
        }
        c.kernel = [=](Index copy) {
          const char* at = (*stored)[copy];
          const MatrixView<const S> rows(reinterpret_cast<const S*>(at), l, width);
          if constexpr (std::is_same_v<S, std::int8_t>) {
            const QuantizedHistory history{
                {rows, MatrixView<const float>(reinterpret_cast<const float*>(at + l * width), l, scales), block}};
            target_attention<float>(data->q, history, {.heads = heads}, data->out, data->lse, data->ws);
          } else {
            target_attention<float>(data->q, rows, {.heads = heads}, data->out, data->lse, data->ws);
          }
        };
        const Index floats = data->histories.copies();
        c.peers.push_back({"f32", [=](Index copy) { data->forward(copy % floats); }});
        return c;
      },
      pairs > 2e7 ? 25 : 200);
}

}  // namespace

int main(int argc, char** argv) {
  for (const Index heads : {4, 2, 1}) {
    for (const Index n : {1, 64, 512}) {
      for (const Index l : {100, 1000, 10000, 100000}) add<float>(heads, l, n, false);
    }
    for (const Index l : {1000, 10000, 100000}) {
      for (const Index n : {1, 64}) {
        add_stored<BFloat16>("bf16", heads, l, n, 0);
        add_stored<std::int8_t>("int8", heads, l, n, width / heads);
        if (heads > 1) add_stored<std::int8_t>("int8row", heads, l, n, 0);
      }
    }
    for (const Index n : {1, 64, 512}) add<float>(heads, 1000, n, true);
    for (const Index n : {1, 64}) add<double>(heads, 1000, n, false);
    add<double>(heads, 1000, 64, true);
  }
  for (const bool backward : {false, true}) add<float>(1, 2048, 2048, backward);
  return recops_bench::run_registered(argc, argv);
}
