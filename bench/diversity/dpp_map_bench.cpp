/// Greedy MAP of a DPP at re-ranking and pre-ranking shapes: N candidates of D = 64 features (random unit rows), qualities exp(0.5 z), k
/// picks. Ours includes packing.
///
///     scripts/bench --filter diversity/dpp_map
///
/// Requests take turns, so that no branch is learnt by heart. Peers: `numpy` and `eigen` are the published fast greedy with kernel rows
/// made from the features (never a whole kernel), preallocated; `eager` is ours without bounds. `dense` is eager from packed panels;
/// of_passes compares it with reading the panels k - 1 times. `kernel` begins with the whole kernel given, ours and Eigen's. `flat`
/// has equal qualities, so that little can be skipped.
#include <recops/core/random.hpp>
#include <recops/diversity/dpp_map.hpp>

#include <algorithm>
#include <memory>

#include "support/paired.hpp"
#if defined(RECOPS_BENCH_EIGEN) || __has_include(<Eigen/Core>)
#include <recops/core/eigen.hpp>
#define WITH_EIGEN 1
#endif

using namespace recops;
using namespace recops_bench;

namespace {

constexpr Index cols = 64;

struct Data {
  Index items, places;
  Rotation<float> features, quality, kernel;
  Vector<std::int32_t> picks;
  Vector<float> scores;
  Panels<float> panels;
  Workspace ws;
  std::vector<Matrix<float>> weighted;  // diag(q) X, what the peers begin with

  Data(Index n, Index k, double spread, bool whole) : items(n), places(k), picks(k), scores(k) {
    Random random(1);
    const Index copies = n > 2000 ? 3 : 8;
    features = Rotation<float>(n * cols, copies);
    quality = Rotation<float>(n, copies);
    if (whole) kernel = Rotation<float>(n * n, copies);
    for (Index c = 0; c < copies; ++c) {
      float* const x = features[c];
      for (Index i = 0; i < n * cols; ++i) x[i] = static_cast<float>(random.normal());
      const MatrixView<float> rows(x, n, cols);
      normalize_rows<float>(rows, rows);
      weighted.emplace_back(n, cols);
      for (Index i = 0; i < n; ++i) {
        quality[c][i] = static_cast<float>(std::exp(spread * random.normal()));
        for (Index d = 0; d < cols; ++d) weighted.back()(i, d) = quality[c][i] * x[i * cols + d];
      }
      for (Index i = 0; whole && i < n; ++i) {
        for (Index j = 0; j < n; ++j) kernel[c][i * n + j] = simd::dot(weighted.back().row(i), weighted.back().row(j), cols);
      }
    }
    panels.pack(MatrixView<const float>(features[0], n, cols), true);
#ifdef WITH_EIGEN
    factors.resize(n, k);
    e.resize(n);
    d2.resize(n);
#endif
  }
  VectorView<const float> quality_of(Index c) const { return VectorView<const float>(quality[c], items); }
  MatrixView<const float> kernel_of(Index c) const { return MatrixView<const float>(kernel[c], items, items); }
  void run(SelectionEvaluation evaluation, Index c) {
    dpp_map<float>(quality_of(c), MatrixView<const float>(features[c], items, cols),
                   {.normalize = true, .evaluation = evaluation}, picks, scores, ws);
  }
  void dense() { dpp_map<float>(quality_of(0), panels, {.evaluation = SelectionEvaluation::eager}, picks, scores, ws); }
  void by_kernel(Index c) { dpp_map_kernel<float>(kernel_of(c), {}, nullptr, {}, picks, scores, ws); }

#ifdef WITH_EIGEN
  Eigen::MatrixXf factors;  // [N, k], columns contiguous
  Eigen::VectorXf e, d2;
  template <class Row>
  void eigen(Row&& row) {
    for (Index t = 0;; ++t) {
      Eigen::Index best;
      const float most = d2.maxCoeff(&best);
      picks[t] = static_cast<std::int32_t>(best);
      scores[t] = std::log(most);
      if (t + 1 == places) return;
      row(best);
      if (t > 0) e.noalias() -= factors.leftCols(t) * factors.row(best).head(t).transpose();
      factors.col(t) = e / std::sqrt(most);
      d2.array() -= factors.col(t).array().square();
      d2[best] = -std::numeric_limits<float>::infinity();
    }
  }
  void eigen_features(Index c) {
    const auto v = as_eigen(weighted[static_cast<std::size_t>(c)].view());
    d2 = v.rowwise().squaredNorm();
    eigen([&](Eigen::Index j) { e.noalias() = v * v.row(j).transpose(); });
  }
  void eigen_kernel(Index c) {
    const auto l = as_eigen(kernel_of(c));
    d2 = l.diagonal();
    eigen([&](Eigen::Index j) { e = l.row(j).transpose(); });
  }
#endif
};

void add(const std::string& kind, Index n, Index k) {
  const std::string form = kind == "lazy" ? "" : kind + "/";
  register_case<float>(
      "diversity/dpp_map/f32/" + form + "N:" + std::to_string(n) + "/D:64/k:" + std::to_string(k),
      [=] {
        const auto data = std::make_shared<Data>(n, k, kind == "flat" ? 0.0 : 0.5, kind == "kernel");
        Case<float> c;
        c.copies = data->features.copies();
        c.bytes = static_cast<double>(n * cols) * sizeof(float);
        c.data = [data](Index copy) { return data->features[copy]; };
        if (kind == "kernel") {
          c.kernel = [data](Index copy) { data->by_kernel(copy); };
#ifdef WITH_EIGEN
          c.peers.push_back({"eigen", [data](Index copy) { data->eigen_kernel(copy); }});
#endif
          return c;
        }
        if (kind == "dense") {
          c.kernel = [data](Index) { data->dense(); };
          const float* const at = data->panels.view().data;
          const Index bytes = n * cols * Index{sizeof(float)};
          c.floors.push_back({"passes", [at, bytes, k] {
                                for (Index t = 1; t < k; ++t) limits<float>().read(at, bytes);
                              }});
          return c;
        }
        c.kernel = [data](Index copy) { data->run(SelectionEvaluation::lazy, copy); };
        c.peers.push_back({"eager", [data](Index copy) { data->run(SelectionEvaluation::eager, copy); }});
#ifdef WITH_EIGEN
        c.peers.push_back({"eigen", [data](Index copy) { data->eigen_features(copy); }});
#endif
        if (kind == "lazy")
          c.peers.push_back(python_peer("numpy", "dpp_fast_greedy",
                                        "{\"n\": " + std::to_string(n) + ", \"d\": 64, \"k\": " + std::to_string(k) + "}"));
        return c;
      },
      n > 2000 ? 60 : 200);
}

}  // namespace

int main(int argc, char** argv) {
  for (const Index n : {200, 1000, 10000}) {
    for (const Index k : {10, 50}) add("lazy", n, k);
    add("flat", n, 50);
  }
  add("dense", 10000, 50);
  for (const Index n : {200, 1000}) {
    for (const Index k : {10, 50}) add("kernel", n, k);
  }
  return recops_bench::run_registered(argc, argv);
}
