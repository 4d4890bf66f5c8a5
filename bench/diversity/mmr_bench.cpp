/// MMR at re-ranking and pre-ranking shapes: N candidates of D = 64 features (random unit rows), k picks. Ours includes packing.
///
///     taskset -c 1 build/bench/bench/recops_bench_diversity_mmr
///
/// Cases: `uniform` has relevance from [0, 1) and lambda 0.5; `normal` relevance from a normal distribution, rows normalised while
/// packing; `flat` equal relevances, so that nothing can be skipped (the worst case of lazy evaluation); `window` the last 9 picks.
/// Several requests take turns, so that no branch is learnt by heart. of_bandwidth: share of the speed of reading the features once.
/// Peers: `eigen`, where it was found, is one matrix-vector product per pick with preallocated vectors; `eager` is ours without bounds.
#include <recops/core/random.hpp>
#include <recops/diversity/mmr.hpp>

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
  struct Request {
    Vector<T> relevance;
    Matrix<T> features;
  };
  std::vector<Request> requests;
  MmrOptions options;
  Vector<std::int32_t> picks;
  Vector<T> scores;
  Workspace ws;
  std::size_t turn = 0;

  Data(const std::string& kind, Index n, Index k) : picks(k), scores(k) {
    Random random(1);
    requests.resize(n > 2000 ? 3 : 8);
    for (Request& q : requests) {
      q.relevance.resize(n);
      q.features.resize(n, cols);
      for (T& r : q.relevance) r = static_cast<T>(kind == "normal" ? random.normal() : kind == "flat" ? 0.5 : random.uniform());
      for (Index i = 0; i < n * cols; ++i) q.features.data()[i] = static_cast<T>(random.normal());
      normalize_rows<T>(q.features, q.features);
    }
    options.normalize = kind == "normal";
    options.window = kind == "window" ? 10 : 0;
#ifdef WITH_EIGEN
    similarity.resize(n);
    penalty.resize(n);
    base.resize(n);
#endif
  }
  const Request& next() { return requests[turn = (turn + 1) % requests.size()]; }
  void run(MmrEvaluation evaluation) {
    const Request& q = next();
    options.evaluation = evaluation;
    mmr<T>(VectorView<const T>(q.relevance), MatrixView<const T>(q.features), options, picks, scores, ws);
  }

#ifdef WITH_EIGEN
  Eigen::Matrix<T, Eigen::Dynamic, 1> similarity, penalty, base;
  void eigen() {
    const Request& q = next();
    const auto x = as_eigen(q.features);
    const auto r = as_eigen(q.relevance);
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
  const std::string name =
      "mmr/" + kind + (sizeof(T) == 4 ? "/f32/N:" : "/f64/N:") + std::to_string(n) + "/k:" + std::to_string(k);
  register_case<T>(
      name,
      [=] {
        const auto data = std::make_shared<Data<T>>(kind, n, k);
        Case<T> c;
        c.kernel = [data] { data->run(MmrEvaluation::lazy); };
        c.bytes = static_cast<double>(n * cols) * sizeof(T);
        if (kind != "window") {
          c.peers.push_back({"eager", [data] { data->run(MmrEvaluation::eager); }});
#ifdef WITH_EIGEN
          c.peers.push_back({"eigen", [data] { data->eigen(); }});
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
  return recops_bench::run_registered(argc, argv);
}
