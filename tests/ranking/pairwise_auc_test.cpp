// Oracle: the double loop over pairs; gradients of the smooth surrogates against central differences.
#include <recops/ranking/aucm.hpp>
#include <recops/ranking/hardest_pair.hpp>
#include <recops/ranking/pairwise_auc.hpp>

#include "ranking/group_cases.hpp"

using namespace recops;
using namespace recops_test;

namespace {

struct Phi {
  double value, slope;
};

double soft_plus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }
double logistic(double x) { return 1 / (1 + std::exp(-x)); }

Phi phi(AucSurrogate surrogate, double d, double sigma, double margin) {
  const double left = margin - d, open = std::max(left, 0.0), p = logistic(-sigma * d);
  switch (surrogate) {
    case AucSurrogate::logistic:
      return {soft_plus(-sigma * d), -sigma * p};
    case AucSurrogate::sigmoid:
      return {p, -sigma * p * (1 - p)};
    case AucSurrogate::squared:
      return {left * left, -2 * left};
    case AucSurrogate::squared_hinge:
      return {open * open, -2 * open};
    case AucSurrogate::hinge:
      return {open, left > 0 ? -1.0 : 0.0};
    default:
      return {std::exp(-d), -std::exp(-d)};
  }
}

// One group by the double loop; the aucm and logarithmic forms follow from it.
template <class T>
GroupReference by_pairs(const GroupCase<T>& c, AucSurrogate surrogate, double sigma, double margin) {
  return [=, &c](const std::vector<double>& s, Index begin, std::vector<double>& d) {
    const auto n = static_cast<Index>(s.size());
    double sum = 0, pairs = 0, high = 0, low = 0, positives = 0;
    for (Index i = 0; i < n; ++i) {
      const double x = s[static_cast<std::size_t>(i)];
      (c.label(begin + i) ? high : low) += x;
      positives += c.label(begin + i) ? 1 : 0;
      for (Index j = 0; j < n; ++j) {
        if (!c.label(begin + i) || c.label(begin + j)) continue;
        const Phi p = phi(surrogate == AucSurrogate::aucm ? AucSurrogate::squared : surrogate, x - s[static_cast<std::size_t>(j)],
                          sigma, margin);
        ++pairs;
        sum += p.value;
        d[static_cast<std::size_t>(i)] += p.slope;
        d[static_cast<std::size_t>(j)] -= p.slope;
      }
    }
    if (pairs == 0) return std::nan("");
    for (double& x : d) x /= pairs;
    if (surrogate == AucSurrogate::log_exponential) {
      for (double& x : d) x *= pairs / sum;
      return std::log(sum / pairs);
    }
    const double negatives = static_cast<double>(n) - positives, miss = margin - high / positives + low / negatives;
    if (surrogate == AucSurrogate::aucm && miss < 0) {
      for (Index i = 0; i < n; ++i)
        d[static_cast<std::size_t>(i)] += c.label(begin + i) ? 2 * miss / positives : -2 * miss / negatives;
      return sum / pairs - miss * miss;
    }
    return sum / pairs;
  };
}

template <class T>
LossOfScores<T> loss_of(const GroupCase<T>& c, PairwiseAucOptions<T> o) {
  return [&c, o](VectorView<const T> s, const GroupLossOptions<T>& groups, VectorView<T> d, Workspace& ws) {
    PairwiseAucOptions<T> options = o;
    options.groups = groups;
    return d.empty() ? pairwise_auc_loss<T>(s, c.labels, c.offsets, options, ws)
                     : pairwise_auc_loss_value_and_grad<T>(s, c.labels, c.offsets, options, d, ws);
  };
}

constexpr AucSurrogate every[] = {AucSurrogate::logistic,    AucSurrogate::sigmoid,        AucSurrogate::squared,
                                  AucSurrogate::aucm,        AucSurrogate::hinge,          AucSurrogate::squared_hinge,
                                  AucSurrogate::exponential, AucSurrogate::log_exponential};

}  // namespace

TEMPLATE_TEST_CASE("the AUC surrogates equal the double loop over pairs", "[ranking][pairwise_auc]", float, double) {
  using T = TestType;
  Random random = random_stream(901);
  for (const double spread : {1.0, 12.0}) {  // the second is beyond what products of exponentials hold in float
    const GroupCase<T> c(group_sizes(), random, spread);
    for (const AucSurrogate surrogate : every) {
      if (spread > 1 && surrogate == AucSurrogate::exponential) continue;
      CAPTURE(static_cast<int>(surrogate), spread);
      for (const double margin : {1.0, -0.5}) {
        check_against<T>(c, loss_of<T>(c, {.surrogate = surrogate, .sigma = 1.5, .margin = margin}),
                         by_pairs(c, surrogate, 1.5, margin), std::is_same_v<T, float> ? 4e-6 : 1e-12);
      }
    }
  }
}

TEST_CASE("gradients of the AUC surrogates agree with central differences", "[ranking][pairwise_auc]") {
  Random random = random_stream(902);
  const GroupCase<double> c({5, 0, 17, 3}, random);
  for (const AucSurrogate surrogate : every) {
    CAPTURE(static_cast<int>(surrogate));
    check_differences(c, loss_of<double>(c, {.surrogate = surrogate, .sigma = 2, .margin = 0.7}));
  }
}

TEST_CASE("the AUC surrogates have the habits of group losses", "[ranking][pairwise_auc]") {
  Random random = random_stream(903);
  GroupCase<float> c(group_sizes(), random);
  for (Index g = 0; g < c.groups(); ++g)  // so that the group that is spoiled has a loss
    if (c.end(g) > c.begin(g)) c.labels[static_cast<std::size_t>(c.begin(g))] = 1;
  for (const AucSurrogate surrogate :
       {AucSurrogate::logistic, AucSurrogate::squared, AucSurrogate::hinge, AucSurrogate::exponential})
    check_habits<float>(c, loss_of<float>(c, {.surrogate = surrogate}));
}

TEST_CASE("the numbers of the worked example", "[ranking][pairwise_auc]") {
  const Vector<double> s{0.3, -1.2, 0.3, 2.0, 0.7, -0.4};
  const std::vector<std::uint8_t> y{1, 0, 0, 1, 0, 1};
  Workspace ws;
  const auto value = [&](AucSurrogate surrogate) {
    return pairwise_auc_loss<double>(s, y, {}, {.surrogate = surrogate}, ws).value;
  };
  CHECK(value(AucSurrogate::logistic) == Approx(0.568660619).margin(1e-9));
  CHECK(value(AucSurrogate::squared) == Approx(1.774444444).margin(1e-9));
  CHECK(value(AucSurrogate::aucm) == Approx(1.774444444).margin(1e-9));
  CHECK(value(AucSurrogate::exponential) == Approx(0.96424223).margin(1e-8));
  CHECK(value(AucSurrogate::squared_hinge) == Approx(1.144444444).margin(1e-9));
  Vector<double> d(6, 0.0);
  pairwise_auc_loss_value_and_grad<double>(s, y, {}, {}, d, ws);
  const double logistic_gradient[] = {-0.142345909, 0.059068529, 0.146961449, -0.045310667, 0.173679198, -0.1920526};
  for (Index i = 0; i < 6; ++i) CHECK(d[i] == Approx(logistic_gradient[i]).margin(1e-9));
}

TEST_CASE("the sigmoid surrogate becomes 1 - AUC as it sharpens, and far scores stay finite", "[ranking][pairwise_auc]") {
  const Vector<float> s{3, 1, 2, 1, -400, 5};
  const std::vector<std::uint8_t> y{1, 0, 0, 1, 1, 0};  // won 2 of 9 and one tie
  Workspace ws;
  CHECK(pairwise_auc_loss<float>(s, y, {}, {.surrogate = AucSurrogate::sigmoid, .sigma = 1e4}, ws).value ==
        Approx(1 - 2.5 / 9).epsilon(1e-6));
  Vector<float> d(6, 0.0f);
  CHECK(pairwise_auc_loss_value_and_grad<float>(s, y, {}, {}, d, ws).value == Approx((401.0 + 402 + 405) / 9).epsilon(0.01));
  for (const float x : d) CHECK(std::isfinite(x));
}

TEST_CASE("max_negatives pairs a seeded sample of the negatives", "[ranking][pairwise_auc]") {
  Random random = random_stream(904);
  const GroupCase<double> c({300}, random);
  Workspace ws;
  const auto touched = [&](std::uint64_t seed) {
    Vector<double> d(300, 0.0);
    pairwise_auc_loss_value_and_grad<double>(c.scores, c.labels, {}, {.max_negatives = 10, .seed = seed}, d, ws);
    std::vector<Index> negatives;
    for (Index i = 0; i < 300; ++i)
      if (d[i] != 0 && !c.label(i)) negatives.push_back(i);
    return negatives;
  };
  CHECK(touched(1).size() == 10);
  CHECK(touched(1) == touched(1));
  CHECK(touched(1) != touched(2));
  double mean = 0;  // on average the sample says what all pairs say
  for (std::uint64_t seed = 0; seed < 400; ++seed)
    mean += pairwise_auc_loss<double>(c.scores, c.labels, {}, {.max_negatives = 10, .seed = seed}, ws).value / 400;
  CHECK(mean == Approx(pairwise_auc_loss<double>(c.scores, c.labels, {}, {}, ws).value).epsilon(0.03));
}

TEST_CASE("bad input of the AUC surrogates", "[ranking][pairwise_auc]") {
  const Vector<float> s{1, 2, 3};
  const std::vector<std::uint8_t> y{0, 1, 2}, sound{0, 1, 0};
  const std::vector<std::int32_t> falls{0, 2, 1, 3};
  Workspace ws;
  CHECK_THAT(error_of([&] { pairwise_auc_loss<float>(s, y, {}, {}, ws); }), contains("labels that are 0 or 1"));
  CHECK_THAT(error_of([&] { pairwise_auc_loss<float>(s, sound, falls, {}, ws); }), contains("offsets that never fall"));
  CHECK_THAT(error_of([&] { pairwise_auc_loss<float>(s, sound, {}, {.sigma = 0}, ws); }), contains("sigma"));
  CHECK_THAT(error_of([&] { pairwise_auc_loss<float>(s, sound, {}, {.margin = std::nan("")}, ws); }), contains("margin"));
  CHECK_THAT(error_of([&] { pairwise_auc_loss<float>(s, sound, {}, {.max_negatives = -1}, ws); }), contains("max_negatives"));
  CHECK_THAT(error_of([&] { hardest_pair_loss<float>(s, sound, {}, {.beta = -1}, ws); }), contains("beta"));
  CHECK_THAT(error_of([&] { aucm_loss<float>(s, y, {}); }), contains("labels"));
  const GroupLoss none = pairwise_auc_loss<float>({}, {}, {}, {}, ws);
  CHECK((none.value == 0 && !none.valid() && none.skipped_groups == 1));
}

TEMPLATE_TEST_CASE("the hardest pair, and its soft form", "[ranking][hardest_pair]", float, double) {
  using T = TestType;
  Random random = random_stream(905);
  const GroupCase<T> c(group_sizes(), random);
  for (const double beta : {0.0, 3.0}) {
    CAPTURE(beta);
    const LossOfScores<T> loss = [&](VectorView<const T> s, const GroupLossOptions<T>& groups, VectorView<T> d, Workspace& ws) {
      const HardestPairOptions<T> o{.beta = beta, .margin = 0.4, .groups = groups};
      return d.empty() ? hardest_pair_loss<T>(s, c.labels, c.offsets, o, ws)
                       : hardest_pair_loss_value_and_grad<T>(s, c.labels, c.offsets, o, d, ws);
    };
    const GroupReference reference = [&](const std::vector<double>& s, Index begin, std::vector<double>& d) {
      std::vector<std::size_t> p, q;
      for (std::size_t i = 0; i < s.size(); ++i) (c.label(begin + static_cast<Index>(i)) ? p : q).push_back(i);
      if (p.empty() || q.empty()) return std::nan("");
      if (beta == 0) {
        std::size_t worst = p[0], best = q[0];
        for (const std::size_t i : p) worst = s[i] < s[worst] ? i : worst;
        for (const std::size_t i : q) best = s[i] > s[best] ? i : best;
        const double l = std::exp(s[best] - s[worst]);
        d[worst] -= l;
        d[best] += l;
        return l;
      }
      double low = 0, high = 0;
      for (const std::size_t i : p) low += std::exp(-beta * s[i]);
      for (const std::size_t i : q) high += std::exp(beta * s[i]);
      const double x = std::log(high) / beta + std::log(low) / beta + 0.4;
      for (const std::size_t i : p) d[i] -= logistic(x) * std::exp(-beta * s[i]) / low;
      for (const std::size_t i : q) d[i] += logistic(x) * std::exp(beta * s[i]) / high;
      return soft_plus(x);
    };
    check_against<T>(c, loss, reference, std::is_same_v<T, float> ? 4e-6 : 1e-12);
    if constexpr (std::is_same_v<T, double>) check_differences(c, loss, 1e-6);
  }
}

TEMPLATE_TEST_CASE("aucm equals its definition, its differences and, at its optimum, the closed form", "[ranking][aucm]", float,
                   double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 1e-5 : 1e-12;
  Random random = random_stream(906);
  GroupCase<T> c({57}, random);
  c.scores[4] = 0;  // an ordinary score
  const AucmState<T> state{T(0.3), T(-0.2), T(0.7)};
  const auto by_the_book = [&](const AucmState<double>& st, const Vector<T>& scores) {
    double high = 0, low = 0, high_mean = 0, low_mean = 0, positives = 0;
    for (Index i = 0; i < 57; ++i) {
      const double s = static_cast<double>(scores[i]), up = s - st.a, down = s - st.b;
      c.label(i) ? (high += up * up, high_mean += s, ++positives) : (low += down * down, low_mean += s);
    }
    const double negatives = 57 - positives;
    return high / positives + low / negatives + 2 * st.alpha * (1.3 + low_mean / negatives - high_mean / positives) -
           st.alpha * st.alpha;
  };
  const AucmState<double> wide{static_cast<double>(state.a), static_cast<double>(state.b), static_cast<double>(state.alpha)};
  Vector<T> d(57, T(2));
  AucmState<T> ds{T(1), T(1), T(1)};
  const GroupLoss got = aucm_loss_value_and_grad<T>(c.scores, c.labels, state, {.margin = 1.3}, d, ds);
  CHECK(got.value == Approx(by_the_book(wide, c.scores)).epsilon(tolerance));
  CHECK(aucm_loss<T>(c.scores, c.labels, state, {.margin = 1.3}).value == got.value);
  const double h = 1e-5;
  const auto slope = [&](double AucmState<double>::*field) {
    AucmState<double> up = wide, down = wide;
    up.*field += h;
    down.*field -= h;
    return (by_the_book(up, c.scores) - by_the_book(down, c.scores)) / (2 * h);
  };
  CHECK(static_cast<double>(ds.a) - 1 == Approx(slope(&AucmState<double>::a)).margin(1e-5));
  CHECK(static_cast<double>(ds.b) - 1 == Approx(slope(&AucmState<double>::b)).margin(1e-5));
  CHECK(static_cast<double>(ds.alpha) - 1 == Approx(slope(&AucmState<double>::alpha)).margin(1e-5));
  if constexpr (std::is_same_v<T, double>) {
    for (Index i = 0; i < 57; ++i) {
      Vector<T> moved(57);
      for (Index k = 0; k < 57; ++k) moved[k] = c.scores[k];
      moved[i] += h;
      const double up = by_the_book(wide, moved);
      moved[i] -= 2 * h;
      CHECK(d[i] - 2 == Approx((up - by_the_book(wide, moved)) / (2 * h)).margin(1e-8));
    }
  }
  // Where a, b and alpha are best: the state-free form.
  AucmState<T> best;
  double high = 0, low = 0, positives = 0;
  for (Index i = 0; i < 57; ++i)
    c.label(i) ? (high += static_cast<double>(c.scores[i]), ++positives) : low += static_cast<double>(c.scores[i]);
  best.a = static_cast<T>(high / positives);
  best.b = static_cast<T>(low / (57 - positives));
  best.alpha = static_cast<T>(std::max(0.0, 1.3 + low / (57 - positives) - high / positives));
  Workspace ws;
  const double closed = pairwise_auc_loss<T>(c.scores, c.labels, {}, {.surrogate = AucSurrogate::aucm, .margin = 1.3}, ws).value;
  CHECK(aucm_loss<T>(c.scores, c.labels, best, {.margin = 1.3}).value == Approx(closed).epsilon(tolerance));
  const double p = positives / 57;
  CHECK(aucm_loss<T>(c.scores, c.labels, best, {.margin = 1.3, .weighted = true}).value ==
        Approx(p * (1 - p) * closed).epsilon(tolerance));
  const std::vector<std::uint8_t> ones(57, 1);
  CHECK(!aucm_loss_value_and_grad<T>(c.scores, ones, state, {}, d, ds).valid());
}
