/// @file   tests/support/selectors.hpp
/// @brief  What tests of the selectors share: requests, a greedy oracle from a score, checks of batches, NaN and gradients.
#pragma once
#include <recops/core/random.hpp>
#include <recops/diversity/selection_backward.hpp>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

namespace recops_test {

using recops::Index;

template <class T>
struct Request {
  recops::Vector<T> relevance;
  recops::Matrix<T> features, history;
  recops::Vector<std::uint8_t> allowed;
  recops::SelectionInput<T> input() const { return {relevance, features, {}, history, allowed, nullptr}; }
};

/// Multiples of 1/4 in [-1, 1] for features, of 1/64 for relevance: products and sums are exact in float.
template <class T>
Request<T> exact_request(recops::Random& random, Index n, Index d, Index m) {
  Request<T> q;
  q.relevance.resize(n);
  for (T& r : q.relevance) r = static_cast<T>(random.below(257) - 128) / T(64);
  q.features.resize(n, d);
  q.history.resize(m, d);
  for (recops::Matrix<T>* x : {&q.features, &q.history}) {
    for (Index i = 0; i < x->rows() * d; ++i) x->data()[i] = static_cast<T>(random.below(9) - 4) / T(4);
  }
  return q;
}

template <class T>
Request<T> normal_request(recops::Random& random, Index n, Index d, Index m) {
  Request<T> q = exact_request<T>(random, n, d, m);
  for (T& r : q.relevance) r = static_cast<T>(random.normal());
  for (recops::Matrix<T>* x : {&q.features, &q.history}) {
    for (Index i = 0; i < x->rows() * d; ++i) x->data()[i] = static_cast<T>(random.normal());
  }
  return q;
}

struct Picks {
  std::vector<std::int32_t> items;
  std::vector<double> scores;
  bool operator==(const Picks&) const = default;
};

template <class T, class F>
Picks collect(Index k, F&& select) {
  recops::Workspace ws;
  recops::Vector<std::int32_t> picks(k, 77);
  recops::Vector<T> scores(k, T(77));
  const recops::Selection s = select(recops::VectorView<std::int32_t>(picks), recops::VectorView<T>(scores), ws);
  CHECK((s.status == recops::SelectionStatus::ok) == (s.count == k));
  Picks out;
  for (Index t = 0; t < k; ++t) {
    if (t < s.count) {
      out.items.push_back(picks[t]);
      out.scores.push_back(static_cast<double>(scores[t]));
    } else {
      CHECK((picks[t] == -1 && scores[t] == -std::numeric_limits<T>::infinity()));
    }
  }
  return out;
}

/// A request with a history of 6 rows of which one is not finite, and the same without it: a selector makes no difference.
inline std::pair<Request<double>, Request<double>> broken_history(recops::Random& random) {
  auto with = normal_request<double>(random, 30, 6, 6);
  auto without = with;
  std::fill_n(with.history.row(4), 6, std::numeric_limits<double>::quiet_NaN());
  without.history.resize(5, 6);
  std::copy_n(with.history.row(5), 6, without.history.row(4));
  return {with, without};
}

/// Inner product or cosine of item i with what stands at `place` of history and picks, in double.
template <class T>
double similarity(const Request<T>& q, bool normalize, const std::vector<std::int32_t>& picks, Index place, Index i) {
  const Index m = q.history.rows();
  double dot = 0, a = 0, b = 0;
  for (Index d = 0; d < q.features.cols(); ++d) {
    const double x = q.features(i, d),
                 y = place < m ? q.history(place, d) : q.features(picks[static_cast<std::size_t>(place - m)], d);
    dot += x * y;
    a += x * x;
    b += y * y;
  }
  return !normalize ? dot : a > 0 && b > 0 ? dot / std::sqrt(a) / std::sqrt(b) : 0;
}

/// `value(picks, i, reported)`: what is compared, and the score that goes with it.
template <class T, class F>
Picks greedy(const Request<T>& q, Index k, F&& value) {
  Picks out;
  while (static_cast<Index>(out.items.size()) < k) {
    Index best = -1;
    double most = -1e300, reported = 0;
    for (Index i = 0; i < q.relevance.size(); ++i) {
      if ((!q.allowed.empty() && q.allowed[i] == 0) || std::count(out.items.begin(), out.items.end(), i) > 0) continue;
      double score = 0;
      if (const double v = value(out.items, i, score); v > most) {
        most = v;
        reported = score;
        best = i;
      }
    }
    if (best < 0) break;
    out.items.push_back(static_cast<std::int32_t>(best));
    out.scores.push_back(reported);
  }
  return out;
}

/// Every pick is, up to rounding, the best by definition, and has its score.
template <class T, class F>
void check_best(const Request<T>& q, const Picks& got, double tolerance, F&& value) {
  std::vector<std::int32_t> before;
  for (std::size_t t = 0; t < got.items.size(); ++t) {
    double best = -1e300, mine = 0, score = 0;
    for (Index i = 0; i < q.relevance.size(); ++i) {
      if ((!q.allowed.empty() && q.allowed[i] == 0) || std::count(before.begin(), before.end(), i) > 0) continue;
      double reported = 0;
      const double v = value(before, i, reported);
      best = std::max(best, v);
      if (i == got.items[t]) mine = v, score = reported;
    }
    CAPTURE(t, got.items[t]);
    REQUIRE(mine >= best - tolerance * (1 + std::abs(best)));
    REQUIRE(got.scores[t] == Approx(score).margin(tolerance * (1 + std::abs(score))));
    before.push_back(got.items[t]);
  }
}

/// Items that are not finite are as if they were not allowed. `select(input, k)` returns the picks.
template <class T, class F>
void check_unsound_items(F&& select) {
  const T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  recops::Random random(seed(), 9);
  auto masked = normal_request<T>(random, 130, 9, 0), dirty = masked;
  masked.allowed = recops::Vector<std::uint8_t>(130, 1);
  dirty.relevance[3] = nan;
  dirty.relevance[4] = inf;
  dirty.relevance[5] = -inf;
  dirty.features(6, 0) = nan;
  dirty.features(7, 8) = -inf;
  dirty.features(8, 4) = std::numeric_limits<T>::max();
  for (const Index i : {6, 7, 8}) dirty.relevance[i] = T(100);  // tempting
  for (const Index i : {3, 4, 5, 6, 7, 8}) masked.allowed[i] = 0;
  dirty.history = recops::Matrix<T>(1, 9, nan);
  const auto expected = select(masked.input(), Index{130});
  CHECK(expected.size() == 124);
  CHECK(select(dirty.input(), Index{130}) == expected);
  dirty.relevance.fill(nan);
  CHECK(select(dirty.input(), Index{3}).empty());
  CHECK(select(Request<T>{}.input(), Index{3}).empty());
  CHECK(select(masked.input(), Index{0}).empty());
}

/// A batch gives what its requests give alone, on any threads.
template <class T, class F, class G>
void check_batch(F&& many, G&& one) {
  recops::Random random(seed(), 10);
  const auto q = normal_request<T>(random, 200, 6, 3);
  const std::vector<std::int32_t> offsets{0, 70, 70, 200}, seen{0, 2, 2, 3};
  const recops::SelectionBatch<T> batch{.relevance = q.relevance,
                                        .features = recops::JaggedView<const T>(q.features, offsets),
                                        .history = recops::JaggedView<const T>(q.history, seen)};
  Threads threads{3};
  recops::Workspace ws(recops::make_executor(threads, 3)), own;
  recops::Matrix<std::int32_t> picks(3, 12);
  recops::Matrix<T> scores(3, 12);
  recops::Vector<std::int32_t> counts(3), alone(12);
  recops::Vector<T> alone_scores(12);
  many(batch, recops::MatrixView<std::int32_t>(picks), recops::MatrixView<T>(scores), recops::VectorView<std::int32_t>(counts),
       ws);
  for (Index b = 0; b < 3; ++b) {
    const auto s = one(recops::detail::selection_request(batch, b), recops::VectorView<std::int32_t>(alone),
                       recops::VectorView<T>(alone_scores), own);
    CHECK(counts[b] == static_cast<std::int32_t>(s.count));
    CHECK(std::equal(alone.begin(), alone.end(), picks.row(b)));
    CHECK(std::equal(alone_scores.begin(), alone_scores.end(), scores.row(b)));
  }
}

/// Rows that are further apart than they are long give what rows side by side give, and the gaps are left alone; so are scores that are
/// not wanted, whatever they point to. `one(input, picks, scores, ws)`, `many(batch, picks, scores, ws)`,
/// `backward(input, picks, dscores, gradient, ws)`.
template <class T, class One, class Many, class Backward>
void check_strided(One&& one, Many&& many, Backward&& backward) {
  using recops::JaggedView, recops::Matrix, recops::MatrixView, recops::Vector, recops::VectorView;
  recops::Random random(seed(), 12);
  const auto q = normal_request<T>(random, 90, 7, 4);
  Padded<T> features(q.features.view()), history(q.history.view());
  const recops::SelectionInput<T> packed = q.input();
  recops::SelectionInput<T> strided = packed;
  strided.features = features;
  strided.history = history;
  recops::Workspace ws;
  Vector<std::int32_t> picks(10), picks2(10);
  Vector<T> scores(10), scores2(10);
  one(packed, VectorView<std::int32_t>(picks), VectorView<T>(scores), ws);
  one(strided, VectorView<std::int32_t>(picks2), VectorView<T>(scores2), ws);
  CHECK(std::equal(picks.begin(), picks.end(), picks2.begin()));
  CHECK(std::equal(scores.begin(), scores.end(), scores2.begin()));
  scores2.fill(T(7));
  one(strided, VectorView<std::int32_t>(picks2), VectorView<T>(scores2.data(), 0), ws);
  CHECK(std::count(scores2.begin(), scores2.end(), T(7)) == 10);

  const std::vector<std::int32_t> offsets{0, 40, 90};
  Padded<std::int32_t> lists(2, 6);
  Padded<T> values(2, 6);
  Matrix<std::int32_t> lists2(2, 6);
  Matrix<T> values2(2, 6);
  many({.relevance = q.relevance, .features = JaggedView<const T>(features.view(), offsets)}, lists.view(), values.view(), ws);
  many({.relevance = q.relevance, .features = JaggedView<const T>(q.features, offsets)}, lists2.view(), values2.view(), ws);
  CHECK(max_difference(lists.view(), lists2.view()) == 0);
  CHECK(max_difference(values.view(), values2.view()) == 0);

  Padded<T> dx(90, 7), dh(4, 7);
  Matrix<T> dx2(90, 7, T(0)), dh2(4, 7, T(0));
  const VectorView<const std::int32_t> chosen = picks;
  const Vector<T> g = random_vector<T>(10, random);
  backward(strided, chosen, VectorView<const T>(g), recops::SelectionGradient<T>{.features = dx, .history = dh}, ws);
  backward(packed, chosen, VectorView<const T>(g), recops::SelectionGradient<T>{.features = dx2, .history = dh2}, ws);
  CHECK(max_difference(dx.view(), dx2.view()) == 0);
  CHECK(max_difference(dh.view(), dh2.view()) == 0);
  CHECK((features.intact() && history.intact() && lists.intact() && values.intact() && dx.intact() && dh.intact()));
}

/// Scratch grows with the items, not with the places. `select(input, picks, ws)`.
template <class F>
void check_many_places(F&& select) {
  recops::Random random(seed(), 13);
  auto q = normal_request<float>(random, 3, 8, 0);
  for (float& r : q.relevance) r = std::abs(r);  // of use as qualities
  recops::Vector<std::int32_t> picks(100000);
  recops::Workspace ws;
  CHECK(select(q.input(), recops::VectorView<std::int32_t>(picks), ws).count == 3);
  CHECK((picks[2] >= 0 && picks[3] == -1));
  CHECK(ws.high_water() < 100000);
}

/// Central differences of sum_t g_t score(picks before t, pick t). `q` is what the callables look at.
template <class Forward, class Backward, class Score>
void check_backward(Request<double>& q, Index k, Forward&& forward, Backward&& backward, Score&& score) {
  recops::Random random(seed(), 11);
  recops::Workspace ws;
  recops::Vector<std::int32_t> picks(k);
  recops::Vector<double> scores(k), g(k);
  forward(recops::VectorView<std::int32_t>(picks), recops::VectorView<double>(scores), ws);
  for (double& v : g) v = random.normal();
  const Index n = q.relevance.size(), d = q.features.cols(), m = q.history.rows();
  recops::Vector<double> dr(n, 1.0);
  recops::Matrix<double> dx(n, d, 2.0), dh(m, d, 3.0);
  backward(recops::VectorView<const std::int32_t>(picks), recops::VectorView<const double>(g),
           recops::SelectionGradient<double>{.relevance = dr, .features = dx, .history = dh}, ws);
  const auto loss = [&] {
    double sum = 0;
    std::vector<std::int32_t> before;
    for (Index t = 0; t < k && picks[t] >= 0; ++t) {
      sum += g[t] * score(before, picks[t]);
      before.push_back(picks[t]);
    }
    return sum;
  };
  const auto check = [&](double* x, const double* dxs, Index count, double was) {
    for (Index i = 0; i < count; ++i) {
      const double old = x[i], step = 1e-6;
      x[i] = old + step;
      const double up = loss();
      x[i] = old - step;
      const double down = loss();
      x[i] = old;
      CHECK(dxs[i] - was == Approx((up - down) / (2 * step)).margin(1e-6).epsilon(1e-6));
    }
  };
  check(q.relevance.data(), dr.data(), n, 1);
  check(q.features.data(), dx.data(), n * d, 2);
  check(q.history.data(), dh.data(), m * d, 3);
}

/// relevance, features, history and allowed of a golden case.
inline void read(const Golden& golden, const std::string& name, Request<double>& q) {
  const auto vector = [&](const char* key, auto& to) {
    using V = typename std::remove_reference_t<decltype(to)>::value_type;
    const auto from = golden.values<V>(name + key);
    to.resize(static_cast<Index>(from.size()));
    std::copy(from.begin(), from.end(), to.begin());
  };
  vector("relevance", q.relevance);
  vector("allowed", q.allowed);
  q.features = golden.matrix<double>(name + "features");
  q.history = golden.matrix<double>(name + "history");
}

}  // namespace recops_test
