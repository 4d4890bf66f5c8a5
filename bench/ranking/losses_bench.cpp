/// Value and gradient of losses over groups: one batch of 4096 scores, 512 requests of 50 items, 32 requests of 500, and 100 000
/// scores for what is not quadratic.
///
///     taskset -c 1 build/bench/bench/recops_bench_ranking_losses
///
/// A tenth of the items are positive (AUC surrogates, softmax); relevances run from 0 to 4. The pairwise cases report of_peak: of the
/// additions and multiplications a pair must have once exponentials and divisions are shared, and ns_each a pair. Peers: `torch`, batched
/// over groups of one length, autograd; `eigen`, a vectorised row of the pairs of each positive at a time. `chorus_cvr` is all its terms
/// over rows; of_bandwidth is that of its logits, labels and gradients.
#include <recops/core/random.hpp>
#include <recops/ranking/chorus_cvr.hpp>
#include <recops/ranking/listwise.hpp>
#include <recops/ranking/pairwise_auc.hpp>
#include <recops/ranking/ranknet.hpp>

#include <memory>

#include "support/paired.hpp"
#if defined(RECOPS_BENCH_EIGEN) || __has_include(<Eigen/Core>)
#include <Eigen/Core>
#define WITH_EIGEN 1
#endif

using namespace recops;
using namespace recops_bench;

namespace {

template <class T>
struct Data {
  Index groups, n, copies;
  Rotation<T> scores, relevance, gradient;
  std::vector<std::uint8_t> labels;
  std::vector<std::int64_t> offsets{0};
  double pairs = 0;  ///< of different relevance, in one copy
  Workspace ws;

  Data(Index g, Index size)
      : groups(g),
        n(size),
        copies(8),
        scores(g * size, copies),
        relevance(g * size, copies),
        gradient(g * size, copies),
        labels(static_cast<std::size_t>(g * size), 0) {
    Random random(1);
    const Index first = std::max<Index>(1, n / 10);
    for (Index i = 0; i < g; ++i) {
      offsets.push_back((i + 1) * n);
      std::fill_n(labels.begin() + i * n, first, std::uint8_t{1});
    }
    for (Index c = 0; c < copies; ++c) {
      for (Index i = 0; i < g * n; ++i) {
        scores[c][i] = static_cast<T>(random.normal());
        relevance[c][i] = static_cast<T>(random.below(5));
      }
    }
    for (Index i = 0; i < g; ++i) {
      double count[5] = {}, same = 0;
      for (Index k = 0; k < n; ++k) ++count[static_cast<int>(relevance[0][i * n + k])];
      for (const double x : count) same += x * x;
      pairs += 0.5 * (static_cast<double>(n) * static_cast<double>(n) - same);
    }
  }
  Index total() const { return groups * n; }
  double auc_pairs() const {
    const auto first = static_cast<double>(std::max<Index>(1, n / 10));
    return static_cast<double>(groups) * first * (static_cast<double>(n) - first);
  }
  VectorView<const T> s(Index c) const { return VectorView<const T>(scores[c], total()); }
  VectorView<const T> y(Index c) const { return VectorView<const T>(relevance[c], total()); }
  VectorView<T> d(Index c) { return VectorView<T>(gradient[c], total()); }
};

// Additions and multiplications of a pair in simd/pair_sums.hpp and simd/lambda_sums.hpp, a fused pair counted as two.
constexpr double logistic_flops = 9.5, lambda_flops = 36;

template <class T, class F>
void add(const std::string& kind, Index groups, Index n, double flops_a_pair, bool by_grade, F&& run) {
  const std::string name =
      "ranking/" + kind + "/" + type_name<T>() + "/groups:" + std::to_string(groups) + "/n:" + std::to_string(n);
  register_case<T>(name, [=] {
    const auto data = std::make_shared<Data<T>>(groups, n);
    Case<T> c;
    c.kernel = [=](Index i) { benchmark::DoNotOptimize(run(*data, i)); };
    c.copies = data->copies;
    c.bytes = 4.0 * static_cast<double>(data->total()) * sizeof(T);  // scores, relevances; gradients in and out
    const double pairs = by_grade ? data->pairs : data->auc_pairs();
    c.flops = flops_a_pair * pairs;
    c.elements = flops_a_pair > 0 ? pairs : static_cast<double>(data->total());
    const std::string family = kind.substr(0, kind.find('/'));
    const std::string torch = family == "pairwise_auc" ? kind.substr(kind.find(':') + 1) : family;
    const bool fits = flops_a_pair == 0 ? torch != "squared_hinge" || n <= 4096 : n <= 4096;
    if (std::is_same_v<T, float> && fits)
      c.peers.push_back(python_peer("torch", "ranking_loss",
                                    "{\"kind\": \"" + torch + "\", \"groups\": " + std::to_string(groups) +
                                        ", \"n\": " + std::to_string(n) + ", \"copies\": 4}"));
#ifdef WITH_EIGEN
    if (torch == "logistic") {
      c.peers.push_back({"eigen", [=](Index copy) {
                           using Array = Eigen::Array<T, Eigen::Dynamic, 1>;
                           const Index first = std::max<Index>(1, n / 10), rest = n - first;
                           static thread_local Array x, e, f;
                           double loss = 0;
                           for (Index g = 0; g < groups; ++g) {
                             const Eigen::Map<const Array> low(data->scores[copy] + g * n + first, rest);
                             Eigen::Map<Array> down(data->gradient[copy] + g * n + first, rest);
                             const T unit = T(1) / static_cast<T>(first * rest);
                             for (Index i = 0; i < first; ++i) {
                               x = low - data->scores[copy][g * n + i];
                               e = (-x.abs()).exp();
                               f = (x >= T(0)).select(T(1) / (T(1) + e), e / (T(1) + e));
                               loss += static_cast<double>((x.max(T(0)) + e.log1p()).sum());
                               down += unit * f;
                               data->gradient[copy][g * n + i] -= unit * f.sum();
                             }
                           }
                           benchmark::DoNotOptimize(loss);
                         }});
    }
#endif
    return c;
  });
}

template <class T>
void add_auc(AucSurrogate surrogate, const std::string& name, Index groups, Index n) {
  add<T>("pairwise_auc/surrogate:" + name, groups, n, surrogate == AucSurrogate::logistic ? logistic_flops : 0, false,
         [=](Data<T>& x, Index i) {
           return pairwise_auc_loss_value_and_grad<T>(x.s(i), x.labels, x.offsets, {.surrogate = surrogate}, x.d(i), x.ws).value;
         });
}

template <class T>
void add_lists(Index groups, Index n) {
  add<T>("ranknet", groups, n, logistic_flops, true,
         [](Data<T>& x, Index i) { return ranknet_loss_value_and_grad<T>(x.s(i), x.y(i), x.offsets, {}, x.d(i), x.ws).value; });
  add<T>("lambdarank", groups, n, lambda_flops, true, [](Data<T>& x, Index i) {
    return lambdarank_loss_value_and_grad<T>(x.s(i), x.y(i), x.offsets, {}, x.d(i), x.ws).value;
  });
  add<T>("listnet", groups, n, 0, true,
         [](Data<T>& x, Index i) { return listnet_loss_value_and_grad<T>(x.s(i), x.y(i), x.offsets, {}, x.d(i), x.ws).value; });
  add<T>("listmle", groups, n, 0, true,
         [](Data<T>& x, Index i) { return listmle_loss_value_and_grad<T>(x.s(i), x.y(i), x.offsets, {}, x.d(i), x.ws).value; });
  add<T>("softmax", groups, n, 0, true,
         [](Data<T>& x, Index i) { return softmax_loss_value_and_grad<T>(x.s(i), x.labels, x.offsets, {}, x.d(i), x.ws).value; });
}

template <class T>
void add_chorus(Index n) {
  register_case<T>(std::string("ranking/chorus_cvr/") + type_name<T>() + "/n:" + std::to_string(n), [=] {
    struct Rows {
      Rotation<T> z, d;
      std::vector<std::uint8_t> clicks, conversions;
    };
    Case<T> c;
    c.bytes = static_cast<double>(n) * (9.0 * sizeof(T) + 2);  // three logits; three gradients in and out; two labels
    c.copies = copies_for(c.bytes);
    const auto rows = std::make_shared<Rows>(Rows{Rotation<T>(3 * n, c.copies), Rotation<T>(3 * n, c.copies), {}, {}});
    Random random(1);
    for (Index i = 0; i < 3 * n; ++i) rows->z[0][i] = static_cast<T>(random.normal());
    rows->z.spread();
    for (Index i = 0; i < n; ++i) {
      rows->clicks.push_back(random.chance(0.2) ? 1 : 0);
      rows->conversions.push_back(rows->clicks.back() && random.chance(0.1) ? 1 : 0);
    }
    c.elements = static_cast<double>(n);
    c.kernel = [=](Index i) {
      const auto z = [&](Index k) { return VectorView<const T>(rows->z[i] + k * n, n); };
      const auto d = [&](Index k) { return VectorView<T>(rows->d[i] + k * n, n); };
      benchmark::DoNotOptimize(
          chorus_cvr_loss_value_and_grad<T>(z(0), z(1), z(2), rows->clicks, rows->conversions, {}, d(0), d(1), d(2)).value);
    };
    if (std::is_same_v<T, float>) {
      const std::string arguments =
          "{\"n\": " + std::to_string(n) + ", \"copies\": " + std::to_string(std::min<Index>(c.copies, 8)) + "}";
      c.peers.push_back(python_peer("torch", "chorus_cvr", arguments));
    }
    return c;
  });
}

}  // namespace

int main(int argc, char** argv) {
  const std::pair<Index, Index> shapes[] = {{1, 4096}, {512, 50}, {32, 500}};
  for (const auto& [groups, n] : shapes) {
    add_auc<float>(AucSurrogate::logistic, "logistic", groups, n);
    add_auc<float>(AucSurrogate::squared_hinge, "squared_hinge", groups, n);
    if (groups > 1) add_lists<float>(groups, n);
  }
  add_auc<double>(AucSurrogate::logistic, "logistic", 1, 4096);
  add_auc<float>(AucSurrogate::squared_hinge, "squared_hinge", 1, 100000);
  for (const Index n : {4096, 1000000}) add_chorus<float>(n);
  return run_registered(argc, argv);
}
