/// Labels of an MMR teacher for one request: N candidates of D = 64 features (random unit rows), relevance uniform, k picks.
///
///     taskset -c 1 build/bench/bench/recops_bench_diversity_mmr_labels
///
///   diversity/mmr_labels/hard/f32/N:candidates/k:picks        diversity/mmr_labels/soft/f32/...
///
/// Requests take turns, so that no branch is learnt by heart. Flops of soft labels are 2 N D k for the similarities (of_peak), its elements
/// the N k exponentials (ns_each); bytes are the features, read once (of_bandwidth). Peer: `eigen`, where it was found, is one
/// matrix-vector product per pick with preallocated vectors, and for soft labels array expressions.
#include <recops/core/random.hpp>
#include <recops/diversity/mmr_labels.hpp>

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
  Index items;
  MmrLabelOptions options;
  Rotation<float> features, relevance;
  Vector<float> labels;
  Workspace ws;

  Data(bool soft, Index n, Index k)
      : items(n),
        options{.picks = k, .labels = soft ? TeacherLabels::soft : TeacherLabels::hard},
        features(n * cols, 8),
        relevance(n, 8),
        labels(n) {
    Random random(1);
    for (Index c = 0; c < features.copies(); ++c) {
      for (Index i = 0; i < n * cols; ++i) features[c][i] = static_cast<float>(random.normal());
      for (Index i = 0; i < n; ++i) relevance[c][i] = static_cast<float>(random.uniform());
      const MatrixView<float> rows(features[c], n, cols);
      normalize_rows<float>(rows, rows);
    }
#ifdef WITH_EIGEN
    for (auto* v : {&base, &penalty, &similarity, &p, &kept}) v->resize(n);
#endif
  }
  MatrixView<const float> x(Index copy) const { return MatrixView<const float>(features[copy], items, cols); }
  VectorView<const float> r(Index copy) const { return VectorView<const float>(relevance[copy], items); }
  void run(Index copy) { mmr_labels<float>(MmrInput<float>{.relevance = r(copy), .features = x(copy)}, options, labels, ws); }

#ifdef WITH_EIGEN
  Eigen::VectorXf base, penalty, similarity, p, kept;
  void eigen(Index copy) {
    const auto rows = as_eigen(x(copy));
    auto y = as_eigen(VectorView<float>(labels));
    const bool soft = options.labels == TeacherLabels::soft;
    base = as_eigen(r(copy));
    y.setZero();
    kept.setZero();
    for (Index t = 0; t < options.picks; ++t) {
      Eigen::Index best;
      p = t == 0 ? base : Eigen::VectorXf(base - 0.5f * penalty);
      const float top = p.maxCoeff(&best);
      if (soft) {
        p = ((p.array() - top) / static_cast<float>(options.temperature)).exp();
        p /= p.sum();
        kept.array() += (-p.array().min(1 - 1e-7f)).log1p();
      }
      y[best] = soft ? -std::expm1(kept[best]) : 1.0f;
      base[best] = -std::numeric_limits<float>::infinity();
      if (t == 0) base *= 0.5f;
      similarity.noalias() = rows * rows.row(best).transpose();
      penalty = t == 0 ? similarity : Eigen::VectorXf(penalty.cwiseMax(similarity));
    }
    for (Index i = 0; soft && i < items; ++i)
      if (y[i] == 0) y[i] = -std::expm1(kept[i]);
  }
#endif
};

void add(bool soft, Index n, Index k) {
  register_case<float>(std::string("diversity/mmr_labels/") + (soft ? "soft" : "hard") + "/f32/N:" + std::to_string(n) +
                           "/k:" + std::to_string(k),
                       [=] {
                         const auto data = std::make_shared<Data>(soft, n, k);
                         Case<float> c;
                         c.kernel = [data](Index copy) { data->run(copy); };
                         c.copies = data->features.copies();
                         c.bytes = static_cast<double>(n * cols) * sizeof(float);
                         c.data = [data](Index copy) { return data->features[copy]; };
                         if (soft) c.flops = 2.0 * static_cast<double>(n * cols * k), c.elements = static_cast<double>(n * k);
#ifdef WITH_EIGEN
                         c.peers.push_back({"eigen", [data](Index copy) { data->eigen(copy); }});
#endif
                         return c;
                       });
}

}  // namespace

int main(int argc, char** argv) {
  for (const bool soft : {false, true}) {
    add(soft, 200, 10);
    add(soft, 1000, 10);
    add(soft, 1000, 50);
  }
  return run_registered(argc, argv);
}
