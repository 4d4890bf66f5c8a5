/// MMR at re-ranking and pre-ranking shapes: N candidates of D = 64 features (random unit rows), k picks. Ours includes packing.
///
///     taskset -c 1 build/bench/bench/recops_bench_diversity_mmr
///
/// Cases: `uniform` has relevance from [0, 1) and lambda 0.5; `normal` relevance from a normal distribution, rows normalised
/// while packing; `flat` equal relevances, so that nothing can be skipped (the worst case of lazy evaluation); `window` the last
/// 9 picks; `held` panels of BFloat16 with rows of length 1 that were packed before, as a service holds them. Requests take turns, so
/// that no branch is learnt by heart; so many that the features come from memory when one has more than four times L2. of_bandwidth:
/// share of the speed of reading the features once. Peers: `eigen`, where it was found, is one matrix-vector product per pick with
/// preallocated vectors; `eager` is ours without bounds.
#include <recops/core/random.hpp>
#include <recops/diversity/mmr.hpp>

#include <algorithm>
#include <limits>
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

template <class T>
struct Data {
  Rotation<T> features, relevance;
  std::vector<Panels<T>> held;
  Index items;
  MmrOptions options;
  Vector<std::int32_t> picks;
  Vector<T> scores;
  Workspace ws;

  Data(const std::string& kind, Index n, Index k) : items(n), picks(k), scores(k) {
    Random random(1);
    const Index different = n > 2000 ? 3 : 8, copies = std::max(copies_for(feature_bytes(n)), different);
    features = Rotation<T>(n * cols, copies);
    relevance = Rotation<T>(n, copies);
    for (Index c = 0; c < copies; ++c) {
      T *const x = features[c], *const r = relevance[c];
      if (c >= different) {
        std::copy_n(features[c % different], n * cols, x);
        std::copy_n(relevance[c % different], n, r);
        continue;
      }
      for (Index i = 0; i < n; ++i)
        r[i] = static_cast<T>(kind == "normal" ? random.normal() : kind == "flat" ? 0.5 : random.uniform());
      for (Index i = 0; i < n * cols; ++i) x[i] = static_cast<T>(random.normal());
      const MatrixView<T> rows(x, n, cols);
      normalize_rows<T>(rows, rows);
    }
    if (kind == "held") {
      held.resize(static_cast<std::size_t>(copies));
      for (Index c = 0; c < copies; ++c)
        held[static_cast<std::size_t>(c)].pack(features_of(c), {.normalize = true, .storage = PanelStorage::bfloat16},
                                               relevance_of(c));
    }
    options.normalize = kind == "normal";
    options.window = kind == "window" ? 10 : 0;
#ifdef WITH_EIGEN
    similarity.resize(n);
    penalty.resize(n);
    base.resize(n);
#endif
  }
  static double feature_bytes(Index n) { return static_cast<double>(n * cols) * sizeof(T); }
  MatrixView<const T> features_of(Index copy) const { return MatrixView<const T>(features[copy], items, cols); }
  VectorView<const T> relevance_of(Index copy) const { return VectorView<const T>(relevance[copy], items); }
  void run(MmrEvaluation evaluation, Index copy) {
    options.evaluation = evaluation;
    if (!held.empty()) {
      mmr<T>(relevance_of(copy), held[static_cast<std::size_t>(copy)], options, picks, scores, ws);
      return;
    }
    mmr<T>(relevance_of(copy), features_of(copy), options, picks, scores, ws);
  }

#ifdef WITH_EIGEN
  Eigen::Matrix<T, Eigen::Dynamic, 1> similarity, penalty, base;
  void eigen(Index copy) {
    const auto x = as_eigen(features_of(copy));
    const auto r = as_eigen(relevance_of(copy));
    const T lambda = static_cast<T>(options.lambda);
    Eigen::Index best;
    r.maxCoeff(&best);
    base = lambda * r;
    scores[0] = base[best];
    for (Index t = 0;; ++t) {
      picks[t] = static_cast<std::int32_t>(best);
      base[best] = -std::numeric_limits<T>::infinity();
      if (t + 1 == picks.size()) return;
      similarity.noalias() = x * x.row(best).transpose();
      if (t == 0) {
        penalty = similarity;
      } else {
        penalty = penalty.cwiseMax(similarity);
      }
      scores[t + 1] = (base - (T(1) - lambda) * penalty).maxCoeff(&best);
    }
  }
#endif
};

template <class T>
void add(const std::string& kind, Index n, Index k) {
  const std::string name = std::string("diversity/mmr/") + type_name<T>() + "/relevance:" + kind + "/N:" + std::to_string(n) +
                           "/k:" + std::to_string(k);
  register_case<T>(
      name,
      [=] {
        const auto data = std::make_shared<Data<T>>(kind, n, k);
        Case<T> c;
        c.kernel = [data](Index copy) { data->run(MmrEvaluation::lazy, copy); };
        c.copies = data->features.copies();
        c.bytes = data->feature_bytes(n);
        c.data = [data](Index copy) { return data->features[copy]; };
        if (kind != "window") {
          c.peers.push_back({"eager", [data](Index copy) { data->run(MmrEvaluation::eager, copy); }});
#ifdef WITH_EIGEN
          c.peers.push_back({"eigen", [data](Index copy) { data->eigen(copy); }});
#endif
        }
        return c;
      },
      n > 2000 ? 100 : 300);
}

}  // namespace

int main(int argc, char** argv) {
  for (const Index n : {200, 1000, 10000}) {
    for (const Index k : {10, 50}) add<float>("uniform", n, k);
    add<double>("uniform", n, 50);
  }
  for (const Index n : {200, 1000, 10000}) {
    add<float>("normal", n, 50);
    add<float>("flat", n, 50);
    add<float>("window", n, 50);
  }
  for (const Index k : {10, 50}) add<float>("held", 10000, k);
  return recops_bench::run_registered(argc, argv);
}
