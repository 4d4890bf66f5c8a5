// Oracle: the definition in long double; closed forms for constant predictions.
#include <recops/metrics/log_loss.hpp>

#include "metrics/cases.hpp"

using namespace recops;
using metric_cases::kept;
using metric_cases::same;
using metric_cases::scored;

namespace {
template <class T>
std::vector<T> sigmoid(const std::vector<T>& z) {
  std::vector<T> p;
  for (const T x : z) p.push_back(1 / (1 + std::exp(-x)));
  return p;
}
}  // namespace

TEMPLATE_TEST_CASE("log loss from logits and from probabilities", "[metrics][log_loss]", float, double) {
  using T = TestType;
  for (const Index n : {1, 2, 17, 1000}) {
    const auto c = scored<T>({n}, 0, 0.3, static_cast<std::uint64_t>(50 + n));
    for (const bool weighted : {false, true}) {
      long double loss = 0, weight = 0, positive = 0;
      for (std::size_t i = 0; i < c.size(); ++i) {
        const long double w = weighted ? c.weights[i] : T(1), z = c.scores[i], p = 1 / (1 + std::exp(-z));
        loss -= w * std::log(c.labels[i] ? p : 1 - p);
        weight += w;
        positive += c.labels[i] ? w : 0;
      }
      const VectorView<const T> weights = weighted ? VectorView<const T>(c.weights) : VectorView<const T>();
      const LogLossResult logits = log_loss_from_logits<T>(c.scores, c.labels, weights);
      const LogLossResult probabilities = log_loss_from_probabilities<T>(kept(sigmoid(c.scores)), c.labels, weights);
      REQUIRE(logits.valid == (weight > 0));
      if (!logits.valid) continue;
      CHECK(same(logits.value, double(loss / weight), 1e-13));
      CHECK(same(probabilities.value, double(loss / weight), sizeof(T) == 4 ? 1e-5 : 1e-12));
      const double rate = double(positive / weight);
      CHECK(logits.normalised_valid == (rate > 0 && rate < 1));
      if (logits.normalised_valid)
        CHECK(same(logits.normalised_entropy, double(loss / weight) / (-rate * std::log(rate) - (1 - rate) * std::log(1 - rate)),
                   1e-12));
    }
  }
}

TEMPLATE_TEST_CASE("predicting the mean rate has a normalised entropy of 1", "[metrics][log_loss]", float, double) {
  using T = TestType;
  std::vector<std::uint8_t> y(64, 0);
  for (std::size_t i = 0; i < 16; ++i) y[4 * i] = 1;
  const std::vector<T> p(64, T(0.25));
  const LogLossResult r = log_loss_from_probabilities<T>(p, y);
  CHECK((r.valid && r.normalised_valid && same(r.normalised_entropy, 1.0)));
  CHECK(same(log_loss_from_logits<T>(kept(std::vector<T>(64, 0)), y).value, std::log(2.0)));
}

TEMPLATE_TEST_CASE("log loss at the edges", "[metrics][log_loss]", float, double) {
  using T = TestType;
  using V = std::vector<T>;
  using Y = std::vector<std::uint8_t>;
  const T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  CHECK(!log_loss_from_logits<T>(kept(V{}), kept(Y{})).valid);
  CHECK(!log_loss_from_logits<T>(kept(V{1}), kept(Y{1}), kept(V{0})).valid);
  CHECK(log_loss_from_logits<T>(kept(V{inf, -inf}), kept(Y{1, 0})).value == 0);
  CHECK(log_loss_from_logits<T>(kept(V{inf, -inf}), kept(Y{1, 1})).value == std::numeric_limits<double>::infinity());
  CHECK(same(log_loss_from_logits<T>(kept(V{1000}), kept(Y{0})).value, 1000.0));
  const double most = sizeof(T) == 4 ? -std::log(1e-7) : -std::log(1e-15);
  CHECK(same(log_loss_from_probabilities<T>(kept(V{0}), kept(Y{1})).value, most));
  CHECK(same(log_loss_from_probabilities<T>(kept(V{1}), kept(Y{0})).value, most, 1e-2));
  CHECK(log_loss_from_probabilities<T>(kept(V{0, 1}), kept(Y{0, 1})).value < 2e-7);
  const LogLossResult poisoned = log_loss_from_logits<T>(kept(V{1, nan}), kept(Y{1, 0}));
  CHECK((!poisoned.valid && std::isnan(poisoned.value) && !poisoned.normalised_valid));
  CHECK(std::isnan(log_loss_from_probabilities<T>(kept(V{nan}), kept(Y{0})).value));
  CHECK(log_loss_from_logits<T>(kept(V{0, nan}), kept(Y{1, 0}), kept(V{1, 0})).valid);  // weight 0: not read
  CHECK(log_loss_from_probabilities<T>(kept(V{T(0.5), 2}), kept(Y{1, 0}), kept(V{1, 0})).valid);
  const LogLossResult one_class = log_loss_from_logits<T>(kept(V{1, 2}), kept(Y{1, 1}));
  CHECK((one_class.valid && !one_class.normalised_valid));
  CHECK_THROWS_WITH(log_loss_from_probabilities<T>(kept(V{T(1.5)}), kept(Y{1})),
                    "LogLoss::add_probabilities: probabilities: expected 0 <= p <= 1, got 1.5");
  CHECK_THROWS_AS(log_loss_from_logits<T>(kept(V{1}), kept(Y{3})), Error);
  CHECK_THROWS_AS(log_loss_from_logits<T>(kept(V{1, 2}), kept(Y{1})), Error);
}

TEMPLATE_TEST_CASE("log loss merges over shards", "[metrics][log_loss]", float, double) {
  using T = TestType;
  const auto c = scored<T>({300, 500, 200}, 0, 0.2, 51);
  LogLoss whole, merged;
  whole.add_logits<T>(c.scores, c.labels, c.weights);
  const VectorView<const T> z = c.scores, w = c.weights;
  const VectorView<const std::uint8_t> y = c.labels;
  for (const auto& [begin, n] : {std::pair<Index, Index>{800, 200}, {0, 300}, {300, 500}}) {
    LogLoss shard;
    shard.add_logits<T>(z.segment(begin, n), y.segment(begin, n), w.segment(begin, n));
    merged.merge(shard);
  }
  CHECK(same(merged.result().value, whole.result().value, 1e-15));
  CHECK(same(merged.result().normalised_entropy, whole.result().normalised_entropy, 1e-15));
}
