// Every metric as a service that evaluates a billion rows uses it: shards, each in a thread of its own and fed piece by piece, merged in
// any order, say what one pass over everything says. Oracle: that one pass.
#include <recops/metrics/auc.hpp>
#include <recops/metrics/calibration.hpp>
#include <recops/metrics/coverage.hpp>
#include <recops/metrics/gauc.hpp>
#include <recops/metrics/intra_list.hpp>
#include <recops/metrics/log_loss.hpp>
#include <recops/metrics/ndcg.hpp>
#include <recops/metrics/novelty.hpp>
#include <recops/metrics/retrieval.hpp>

#include <thread>

#include "metrics/cases.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;
using namespace metric_cases;

namespace {

/// All accumulators there are.
struct All {
  GroupMean gauc, ndcg, recall, hit_rate, precision, mrr, map, distance, least_distance, categories, novelty;
  LogLoss logits, probabilities;
  Pcoc pcoc[3];  ///< by segment: a grouped PCOC
  CalibrationBins bins{20};
  AucHistogram auc{18};
  ExposureCounts exposure{50};

  static constexpr auto means() {
    return std::array{&All::gauc, &All::ndcg,     &All::recall,         &All::hit_rate,   &All::precision, &All::mrr,
                      &All::map,  &All::distance, &All::least_distance, &All::categories, &All::novelty};
  }
  void merge(const All& other) {
    for (const auto mean : means()) (this->*mean).merge(other.*mean);
    logits.merge(other.logits);
    probabilities.merge(other.probabilities);
    for (int k = 0; k < 3; ++k) pcoc[k].merge(other.pcoc[k]);
    bins.merge(other.bins);
    auc.merge(other.auc);
    exposure.merge(other.exposure);
  }
  std::vector<double> values() const {
    std::vector<double> v;
    for (const auto mean : means()) {
      const GroupResult r = (this->*mean).result();
      v.insert(v.end(), {r.value, r.coverage, static_cast<double>(r.valid_groups), static_cast<double>(r.skipped_groups)});
      CHECK(r.valid);
    }
    v.insert(v.end(), {logits.result().value, logits.result().normalised_entropy, probabilities.result().value});
    for (const Pcoc& p : pcoc) v.push_back(p.result().value);
    v.insert(v.end(), {bins.result().value, auc.result().value, auc.result().error_bound});
    v.insert(v.end(), {exposure.coverage().value, exposure.entropy().value, static_cast<double>(exposure.total())});
    return v;
  }
};

struct Rows {
  Scored<float> c;
  std::vector<float> probabilities, popularity;
  std::vector<std::int32_t> items, category_of;
  Matrix<float> features;

  explicit Rows(Random& random) : features(random_matrix<float>(50, 6, random)) {
    std::vector<Index> sizes;
    for (int g = 0; g < 240; ++g) sizes.push_back(random.below(12));
    c = scored<float>(sizes, 0, 0.3, 991);
    for (const float s : c.scores) {
      probabilities.push_back(1 / (1 + std::exp(-s)));
      items.push_back(random.chance(0.1) ? -1 : static_cast<std::int32_t>(random.below(50)));
    }
    for (int i = 0; i < 50; ++i) {
      popularity.push_back(static_cast<float>(random.uniform(0.01, 1)));
      category_of.push_back(static_cast<std::int32_t>(random.below(7)));
    }
  }
  Index groups() const { return static_cast<Index>(c.offsets.size()) - 1; }

  /// Adds groups first .. last - 1.
  void add(Index first, Index last, All& to, Workspace& ws) const {
    const std::size_t a = static_cast<std::size_t>(first), b = static_cast<std::size_t>(last);
    const Index begin = c.offsets[a], n = c.offsets[b] - begin;
    std::vector<std::int32_t> offsets;
    for (std::size_t g = a; g <= b; ++g) offsets.push_back(c.offsets[g] - c.offsets[a]);
    const VectorView<const float> s(c.scores.data() + begin, n), rel(c.relevance.data() + begin, n),
        p(probabilities.data() + begin, n);
    const VectorView<const std::uint8_t> y(c.labels.data() + begin, n);
    const IndexView shown(items.data() + begin, n);
    add_gauc<float>(s, y, offsets, {}, to.gauc, ws);
    add_ndcg<float>(s, rel, offsets, {.k = 4}, to.ndcg, ws);
    add_recall_at_k<float>(s, y, offsets, {.k = 3}, to.recall, ws);
    add_hit_rate_at_k<float>(s, y, offsets, {.k = 3}, to.hit_rate, ws);
    add_precision_at_k<float>(s, y, offsets, {.k = 3}, to.precision, ws);
    add_mrr<float>(s, y, offsets, {.k = 5}, to.mrr, ws);
    add_map_at_k<float>(s, y, offsets, {.k = 5, .ties = Ties::stable}, to.map, ws);
    add_intra_list_distance<float>(features, shown, offsets, {}, to.distance, ws);
    add_intra_list_min_distance<float>(features, shown, offsets, {}, to.least_distance, ws);
    add_category_coverage(category_of, 7, shown, offsets, to.categories, ws);
    add_novelty<float>(shown, offsets, popularity, to.novelty, ws);
    to.logits.add_logits<float>(s, y);
    to.probabilities.add_probabilities<float>(p, y);
    for (Index i = 0; i < n; ++i) to.pcoc[(begin + i) % 3].add<float>(p.segment(i, 1), y.segment(i, 1));
    to.bins.add<float>(p, y);
    to.auc.add<float>(s, y);
    to.exposure.add(shown);
  }
};

}  // namespace

TEST_CASE("shards of every metric, in threads and in any order, merge to the whole", "[metrics][shards]") {
  Random random = random_stream(991);
  const Rows rows(random);
  Workspace ws;
  All whole;
  rows.add(0, rows.groups(), whole, ws);
  const std::vector<double> expected = whole.values();

  constexpr std::size_t count = 6;
  std::vector<Index> cuts{0, rows.groups()};
  while (cuts.size() < count + 1) cuts.push_back(random.below(rows.groups()));
  std::sort(cuts.begin(), cuts.end());
  std::vector<All> shards(count);
  std::vector<std::thread> threads;
  for (std::size_t k = 0; k < count; ++k) {
    threads.emplace_back([&, k] {
      Workspace own;
      for (Index g = cuts[k]; g < cuts[k + 1]; g += 7) rows.add(g, std::min(g + 7, cuts[k + 1]), shards[k], own);
    });
  }
  for (std::thread& t : threads) t.join();

  std::vector<std::size_t> order{0, 1, 2, 3, 4, 5};
  for (int round = 0; round < 10; ++round) {
    for (std::size_t i = order.size(); i > 1; --i)
      std::swap(order[i - 1], order[static_cast<std::size_t>(random.below(static_cast<Index>(i)))]);
    All merged;
    for (const std::size_t k : order) merged.merge(shards[k]);
    const std::vector<double> got = merged.values();
    for (std::size_t v = 0; v < got.size(); ++v) {
      CAPTURE(v, round);
      CHECK(std::abs(got[v] - expected[v]) <= 1e-15 * std::abs(expected[v]));
    }
  }
  // The histogram's bound holds.
  const AucEstimate estimate = whole.auc.result();
  CHECK(std::abs(estimate.value - recops::auc<float>(rows.c.scores, rows.c.labels, ws).value) <= estimate.error_bound);
}
