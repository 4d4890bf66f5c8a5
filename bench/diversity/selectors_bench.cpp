/// MSD and SSD, and MMR with bfloat16 and int8 features: N candidates of D = 64 features (random unit rows), relevance uniform, k picks.
///
///     scripts/bench --filter 'diversity/(msd|ssd|mmr/(bf16|i8))'
///
/// Requests take turns. Ours includes packing. Peers: `eigen` is one matrix-vector product per pick with preallocated vectors, float
/// (for ssd the published residual matrix, projected pick by pick); `eager` is ours without bounds. Storage cases begin with features
/// that are stored so and are packed in order of relevance.
#include <recops/core/random.hpp>
#include <recops/diversity/mmr.hpp>
#include <recops/diversity/msd.hpp>
#include <recops/diversity/ssd.hpp>

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
  Index items;
  Rotation<float> features, relevance;
  Rotation<BFloat16> halves;
  Rotation<std::int8_t> codes;
  Rotation<float> steps;
  Vector<std::int32_t> picks;
  Vector<float> scores;
  Panels<float> panels;
  Workspace ws;

  Data(Index n, Index k) : items(n), picks(k), scores(k) {
    Random random(1);
    const Index copies = n > 2000 ? 3 : 8;
    features = Rotation<float>(n * cols, copies);
    relevance = Rotation<float>(n, copies);
    halves = Rotation<BFloat16>(n * cols, copies);
    codes = Rotation<std::int8_t>(n * cols, copies);
    steps = Rotation<float>(n, copies);
    for (Index c = 0; c < copies; ++c) {
      float* const x = features[c];
      for (Index i = 0; i < n * cols; ++i) x[i] = static_cast<float>(random.normal());
      for (Index i = 0; i < n; ++i) relevance[c][i] = static_cast<float>(random.uniform());
      const MatrixView<float> rows(x, n, cols);
      normalize_rows<float>(rows, rows);
      simd::convert<BFloat16>(x, halves[c], n * cols);
      simd::quantize_rows(rows, 0, MatrixView<std::int8_t>(codes[c], n, cols), MatrixView<float>(steps[c], n, 1));
    }
#ifdef WITH_EIGEN
    similarity.resize(n);
    penalty.resize(n);
    base.resize(n);
    residual.resize(n, cols);
#endif
  }
  MatrixView<const float> features_of(Index c) const { return MatrixView<const float>(features[c], items, cols); }
  VectorView<const float> relevance_of(Index c) const { return VectorView<const float>(relevance[c], items); }
  void run(const std::string& name, SelectionEvaluation e, Index c) {
    if (name == "msd") msd<float>(relevance_of(c), features_of(c), {.normalize = true, .evaluation = e}, picks, scores, ws);
    if (name == "ssd")
      ssd<float>(relevance_of(c), features_of(c), {.gamma = 0.5, .normalize = true, .evaluation = e}, picks, scores, ws);
    if (name == "ssd/window:10")
      ssd<float>(relevance_of(c), features_of(c), {.gamma = 0.5, .window = 10, .normalize = true, .evaluation = e}, picks, scores,
                 ws);
    if (name == "mmr/bf16") {
      panels.pack(MatrixView<const BFloat16>(halves[c], items, cols), {.normalize = true, .storage = PanelStorage::bfloat16},
                  relevance_of(c));
      mmr<float>(relevance_of(c), panels, {.evaluation = e}, picks, scores, ws);
    }
    if (name == "mmr/i8") {
      const QuantizedView x{MatrixView<const std::int8_t>(codes[c], items, cols), MatrixView<const float>(steps[c], items, 1), 0};
      panels.pack(x, {.normalize = true, .storage = PanelStorage::int8}, relevance_of(c));
      mmr<float>(relevance_of(c), panels, {.evaluation = e}, picks, scores, ws);
    }
  }

#ifdef WITH_EIGEN
  Eigen::VectorXf similarity, penalty, base;
  Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> residual;
  void eigen(const std::string& name, Index c) {
    const auto x = as_eigen(features_of(c));
    const auto r = as_eigen(relevance_of(c));
    const bool by_ssd = name.rfind("ssd", 0) == 0;
    Eigen::Index best;
    r.maxCoeff(&best);
    base = (by_ssd ? 1.0f : 0.5f) * r;
    scores[0] = base[best];
    if (by_ssd) residual = x;
    for (Index t = 0;; ++t) {
      picks[t] = static_cast<std::int32_t>(best);
      base[best] = -std::numeric_limits<float>::infinity();
      if (t + 1 == picks.size()) return;
      if (by_ssd) {
        const Eigen::RowVectorXf u = residual.row(best).normalized();
        similarity.noalias() = residual * u.transpose();
        residual.noalias() -= similarity * u;
        scores[t + 1] = (base + 0.5f * residual.rowwise().norm()).maxCoeff(&best);
        continue;
      }
      similarity.noalias() = x * x.row(best).transpose();
      if (name == "msd") {
        penalty =
            t == 0 ? Eigen::VectorXf(1.0f - similarity.array()) : Eigen::VectorXf(penalty.array() + 1.0f - similarity.array());
        scores[t + 1] = (base + 0.5f / static_cast<float>(t + 1) * penalty).maxCoeff(&best);
      } else {
        if (t == 0) {
          penalty = similarity;
        } else {
          penalty = penalty.cwiseMax(similarity);
        }
        scores[t + 1] = (base - 0.5f * penalty).maxCoeff(&best);
      }
    }
  }
#endif
};

void add(const std::string& name, Index n, Index k) {
  const bool compact = name.rfind("mmr", 0) == 0;
  register_case<float>(
      "diversity/" + name + (compact ? "" : "/f32") + "/N:" + std::to_string(n) + "/k:" + std::to_string(k),
      [=] {
        const auto data = std::make_shared<Data>(n, k);
        Case<float> c;
        c.kernel = [data, name](Index copy) { data->run(name, SelectionEvaluation::lazy, copy); };
        c.copies = data->features.copies();
        c.bytes = static_cast<double>(n * cols) * sizeof(float);
        c.data = [data](Index copy) { return data->features[copy]; };
        c.peers.push_back({"eager", [data, name](Index copy) { data->run(name, SelectionEvaluation::eager, copy); }});
#ifdef WITH_EIGEN
        if (name != "ssd/window:10") c.peers.push_back({"eigen", [data, name](Index copy) { data->eigen(name, copy); }});
#endif
        return c;
      },
      n > 2000 ? 60 : 200);
}

}  // namespace

int main(int argc, char** argv) {
  for (const char* const name : {"msd", "ssd", "ssd/window:10"}) {
    for (const Index n : {200, 1000, 10000}) add(name, n, 50);
  }
  for (const Index k : {10, 50}) {
    add("mmr/bf16", 10000, k);
    add("mmr/i8", 10000, k);
  }
  return recops_bench::run_registered(argc, argv);
}
