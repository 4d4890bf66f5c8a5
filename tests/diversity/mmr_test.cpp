// Oracle: the definition, candidate by candidate in double (brute force over history and window). Most inputs are multiples of a
// power of two, so that every number of the library is exact even in float and every tie is a tie: picks and scores must be equal.
#include <recops/core/random.hpp>
#include <recops/diversity/mmr.hpp>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <optional>
#include <vector>

#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/golden.hpp"
#include "support/selectors.hpp"
#include "support/threads.hpp"

using namespace recops;

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

template <class T>
struct Request {
  Vector<T> relevance;
  Matrix<T> features, history, similarity, history_similarity;
  Vector<std::uint8_t> allowed;
  Vector<std::int32_t> categories, history_categories;

  MmrInput<T> input() const {
    MmrInput<T> in;
    in.relevance = relevance;
    in.features = features;
    in.history = history;
    in.allowed = allowed;
    in.similarity = similarity;
    in.history_similarity = history_similarity;
    in.categories = categories;
    in.history_categories = history_categories;
    return in;
  }
};

struct Picks {
  std::vector<std::int32_t> items;
  std::vector<double> scores;
  bool operator==(const Picks&) const = default;
};

/// Similarity of item i to what stands at `place` of history and picks.
template <class T>
double similarity(const Request<T>& q, const MmrOptions& o, const std::vector<std::int32_t>& picks, Index place, Index i) {
  const Index m = std::max({q.history.rows(), q.history_similarity.rows(), q.history_categories.size()});
  const bool old = place < m;
  const Index j = old ? place : picks[static_cast<std::size_t>(place - m)];
  double sim = 0;
  if (q.features.rows() > 0) {
    double dot = 0, a = 0, b = 0;
    for (Index d = 0; d < q.features.cols(); ++d) {
      const double x = q.features(i, d), y = old ? q.history(j, d) : q.features(j, d);
      dot += x * y;
      a += x * x;
      b += y * y;
    }
    if (o.normalize) dot = a > 0 && b > 0 ? dot / std::sqrt(a) / std::sqrt(b) : 0;
    sim += o.feature_weight * dot;
  }
  if (!q.similarity.empty())
    sim += o.similarity_weight * static_cast<double>(old ? q.history_similarity(j, i) : q.similarity(j, i));
  if (!q.categories.empty()) {
    const std::int32_t category = old ? q.history_categories[j] : q.categories[j];
    if (category >= 0 && category == q.categories[i]) sim += o.category_weight;
  }
  return sim;
}

/// Largest similarity of item i to the last ones shown; nothing if none count.
template <class T>
std::optional<double> nearest(const Request<T>& q, const MmrOptions& o, const std::vector<std::int32_t>& picks, Index i) {
  const Index m = std::max({q.history.rows(), q.history_similarity.rows(), q.history_categories.size()});
  const Index shown = m + static_cast<Index>(picks.size());
  std::optional<double> most;
  for (Index place = o.window > 0 ? std::max(Index{0}, shown - (o.window - 1)) : 0; place < shown; ++place) {
    const double sim = similarity(q, o, picks, place, i);
    if (!most || sim > *most) most = sim;
  }
  return most;
}

template <class T>
Picks reference(const Request<T>& q, const MmrOptions& o, Index k) {
  Picks out;
  const Index n = q.relevance.size();
  std::vector<bool> gone(static_cast<std::size_t>(n));
  for (Index i = 0; i < n; ++i) gone[static_cast<std::size_t>(i)] = !q.allowed.empty() && q.allowed[i] == 0;
  while (static_cast<Index>(out.items.size()) < k) {
    Index best = -1;
    double rank = -infinity, reported = 0;
    for (Index i = 0; i < n; ++i) {
      if (gone[static_cast<std::size_t>(i)]) continue;
      const double r = static_cast<double>(q.relevance[i]);
      const auto m = nearest(q, o, out.items, i);
      const double score = o.lambda * r - (m ? (1 - o.lambda) * *m : 0);
      if (const double value = m ? score : r; value > rank) {
        rank = value;
        reported = score;
        best = i;
      }
    }
    if (best < 0) break;
    out.items.push_back(static_cast<std::int32_t>(best));
    out.scores.push_back(reported);
    gone[static_cast<std::size_t>(best)] = true;
  }
  return out;
}

template <class T, class A = simd::DefaultArch>
Picks run(const MmrInput<T>& in, const MmrOptions& o, Index k) {
  Workspace scratch;
  Vector<std::int32_t> picks(k, 77);
  Vector<T> scores(k, T(77));
  const Selection s = mmr<T, A>(in, o, picks, scores, scratch);
  CHECK((s.status == SelectionStatus::ok) == (s.count == k));
  CHECK((s.status == SelectionStatus::exhausted) == (s.count < k));
  Picks out;
  for (Index t = 0; t < k; ++t) {
    if (t < s.count) {
      out.items.push_back(picks[t]);
      out.scores.push_back(static_cast<double>(scores[t]));
    } else {
      CHECK(picks[t] == -1);
      CHECK(static_cast<double>(scores[t]) == -infinity);
    }
  }
  return out;
}

/// Multiples of 1/4 in [-1, 1] for features, of 1/64 for relevance: products and sums are exact in float.
template <class T>
Request<T> exact_request(Random& random, Index n, Index d, Index m) {
  Request<T> q;
  q.relevance.resize(n);
  for (T& r : q.relevance) r = static_cast<T>(random.below(257) - 128) / T(64);
  q.features.resize(n, d);
  q.history.resize(m, d);
  for (Matrix<T>* x : {&q.features, &q.history}) {
    for (Index i = 0; i < x->rows() * d; ++i) x->data()[i] = static_cast<T>(random.below(9) - 4) / T(4);
  }
  return q;
}

/// Rows of 1, 4 or 16 entries of the same size (or zeros): their unit rows are exact.
template <class T>
void exact_lengths(Random& random, Matrix<T>& x) {
  x.fill(T(0));
  for (Index i = 0; i < x.rows(); ++i) {
    const Index filled = std::min(x.cols() >= 16  ? Index{16}
                                  : x.cols() >= 4 ? Index{4}
                                                  : Index{1},
                                  Index{1} << (2 * random.below(3)));
    const T size = T(1) / static_cast<T>(1 + 3 * random.below(2));
    if (random.chance(0.1)) continue;
    for (Index e = 0; e < filled;) {
      T& v = x(i, random.below(x.cols()));
      if (v != T(0)) continue;
      v = random.chance(0.5) ? size : -size;
      ++e;
    }
  }
}

template <class T>
Request<T> normal_request(Random& random, Index n, Index d, Index m) {
  Request<T> q = exact_request<T>(random, n, d, m);
  for (T& r : q.relevance) r = static_cast<T>(random.uniform());
  for (Matrix<T>* x : {&q.features, &q.history}) {
    for (Index i = 0; i < x->rows() * d; ++i) x->data()[i] = static_cast<T>(random.normal());
  }
  return q;
}

}  // namespace

TEMPLATE_TEST_CASE("mmr picks what the definition picks, whatever the evaluation", "[diversity][mmr]", float, double) {
  Random random(recops_test::seed(), 1);
  for (const Index n : {1, 2, 7, 31, 32, 33, 64, 65, 100, 200, 330}) {
    for (const Index d : {0, 1, 3, 16, 17, 40}) {
      const Index m = random.below(3) == 0 ? random.below(6) : 0;
      auto q = exact_request<TestType>(random, n, d, m);
      const bool normalize = d > 0 && random.chance(0.5);
      if (normalize) {
        exact_lengths(random, q.features);
        exact_lengths(random, q.history);
        if (random.chance(0.5)) {
          for (auto& r : q.relevance) r *= TestType(8);  // so that there is something to prune
        }
      }
      if (random.chance(0.3)) std::sort(q.relevance.begin(), q.relevance.end(), std::greater<>());
      if (random.chance(0.4)) {
        q.allowed.resize(n);
        for (auto& a : q.allowed) a = random.chance(0.7);
      }
      const double lambda = static_cast<double>(random.below(9)) / 8;
      const Index k = 1 + random.below(std::min(n + 3, Index{120}));
      MmrOptions o{.lambda = lambda, .normalize = normalize, .evaluation = MmrEvaluation::eager};
      CAPTURE(n, d, m, lambda, k, normalize, q.allowed.empty());
      const Picks expected = reference(q, o, k);
      CHECK(run(q.input(), o, k) == expected);
      for (const auto evaluation : {MmrEvaluation::eager, MmrEvaluation::lazy}) {
        o.evaluation = evaluation;
        CAPTURE(static_cast<int>(evaluation));
        CHECK(run(q.input(), o, k) == expected);
        Panels<TestType> panels;
        panels.pack(q.features, normalize);
        MmrInput<TestType> packed = q.input();
        packed.features = {};
        packed.panels = panels;
        CHECK(run(packed, o, k) == expected);
      }
    }
  }
}

TEMPLATE_TEST_CASE("mmr forgets what left the window", "[diversity][mmr]", float, double) {
  Random random(recops_test::seed(), 2);
  for (const Index w : {1, 2, 3, 4, 5, 8, 11, 40}) {
    for (const Index m : {0, 1, 3, 9}) {
      const auto q = exact_request<TestType>(random, 45, 5, m);
      for (const double lambda : {0.0, 0.25, 1.0}) {
        const MmrOptions o{.lambda = lambda, .window = w};
        CAPTURE(w, m, lambda);
        CHECK(run(q.input(), o, 20) == reference(q, o, 20));
      }
    }
  }
}

TEMPLATE_TEST_CASE("mmr with given similarities, categories and their sums", "[diversity][mmr]", float, double) {
  using T = TestType;
  Random random(recops_test::seed(), 3);
  for (int trial = 0; trial < 60; ++trial) {
    const Index n = 1 + random.below(70), m = random.below(4);
    auto q = exact_request<T>(random, n, 6, m);
    if (trial % 2 == 0) {
      q.features.resize(0, 0);
      q.history.resize(0, 0);
    }
    if (trial % 3 != 0) {
      q.similarity.resize(n, n);
      q.history_similarity.resize(m, m > 0 ? n : 0);
      for (Matrix<T>* x : {&q.similarity, &q.history_similarity}) {
        for (Index i = 0; i < x->rows() * x->cols(); ++i) x->data()[i] = static_cast<T>(random.below(33) - 16) / T(8);
      }
    }
    if (trial % 5 != 0) {
      q.categories.resize(n);
      q.history_categories.resize(m);
      for (auto& c : q.categories) c = static_cast<std::int32_t>(random.below(5) - 1);
      for (auto& c : q.history_categories) c = static_cast<std::int32_t>(random.below(5) - 1);
    }
    const MmrOptions o{.lambda = static_cast<double>(random.below(5)) / 4,
                       .window = random.chance(0.5) ? 1 + random.below(7) : 0,
                       .feature_weight = static_cast<double>(random.below(5)) / 2,
                       .similarity_weight = 0.5,
                       .category_weight = 0.75};
    CAPTURE(trial, n, m, o.lambda, o.window);
    CHECK(run(q.input(), o, n) == reference(q, o, n));
  }
}

TEMPLATE_TEST_CASE("mmr picks the same on every instruction set", "[diversity][mmr]", float, double) {
  Random random(recops_test::seed(), 4);
  for (const Index n : {5, 48, 131}) {
    const auto q = exact_request<TestType>(random, n, 19, 2);
    for (const Index window : {0, 4}) {
      for (const auto evaluation : {MmrEvaluation::eager, MmrEvaluation::lazy}) {
        const MmrOptions o{.lambda = 0.75, .window = window, .evaluation = evaluation};
        const Picks expected = reference(q, o, 30);
        const auto check = [&](auto arch) { CHECK(run<TestType, decltype(arch)>(q.input(), o, 30) == expected); };
        std::apply([&](auto... arch) { (check(arch), ...); }, simd::Architectures{});
      }
    }
  }
}

TEMPLATE_TEST_CASE("mmr breaks ties by the lowest index", "[diversity][mmr]", float, double) {
  using T = TestType;
  // 150 items, three different rows, two different relevances: everything ties all the time.
  Request<T> q;
  q.relevance.resize(150);
  q.features.resize(150, 2);
  q.features.fill(T(0));
  for (Index i = 0; i < 150; ++i) {
    q.relevance[i] = i % 2 == 0 ? T(0.5) : T(1);
    q.features(i, i % 3 % 2) = T(1);
  }
  for (const double lambda : {0.0, 0.5, 1.0}) {
    const Picks expected = reference(q, {.lambda = lambda}, 150);
    for (const auto evaluation : {MmrEvaluation::eager, MmrEvaluation::lazy})
      CHECK(run(q.input(), {.lambda = lambda, .evaluation = evaluation}, 150) == expected);
  }
  const Picks picks = run(q.input(), {.lambda = 0.5}, 4);
  CHECK(picks.items == std::vector<std::int32_t>{1, 3, 5, 7});  // 1: row b; 3: row a; then all odd ones tie
  for (std::size_t t = 0; t < 4; ++t) CHECK(picks.scores[t] == (t < 2 ? 0.5 : 0));
}

TEMPLATE_TEST_CASE("mmr with lambda 1 sorts by relevance, with lambda 0 starts from the most relevant", "[diversity][mmr]", float,
                   double) {
  Random random(recops_test::seed(), 5);
  const auto q = exact_request<TestType>(random, 90, 7, 0);
  std::vector<std::int32_t> order(90);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return q.relevance[a] > q.relevance[b]; });
  for (const auto evaluation : {MmrEvaluation::eager, MmrEvaluation::lazy}) {
    CHECK(run(q.input(), {.lambda = 1, .evaluation = evaluation}, 90).items == order);
    CHECK(run(q.input(), {.lambda = 0, .evaluation = evaluation}, 5).items.front() == order.front());
  }
  CHECK(run(q.input(), {.lambda = 0.5, .window = 1}, 90).items == order);  // a window that holds nothing but the candidate
}

TEMPLATE_TEST_CASE("mmr: lazy and eager agree to the bit on any numbers", "[diversity][mmr]", float, double) {
  Random random(recops_test::seed(), 6);
  for (const double spread : {0.05, 1.0, 20.0}) {
    for (const Index m : {0, 3}) {
      auto q = normal_request<TestType>(random, 1500, 24, m);
      for (auto& r : q.relevance) r *= static_cast<TestType>(spread);
      MmrOptions o{.lambda = 0.625, .normalize = true, .evaluation = MmrEvaluation::eager};
      const Picks expected = run(q.input(), o, 40);
      o.evaluation = MmrEvaluation::lazy;
      CHECK(run(q.input(), o, 40) == expected);
      // And every pick is, up to rounding, the best by definition.
      const double tolerance = (std::is_same_v<TestType, float> ? 2e-6 : 1e-14) * (1 + spread);
      std::vector<std::int32_t> before;
      for (std::size_t t = 0; t < 10; ++t) {
        double best = -infinity;
        for (Index i = 0; i < 1500; ++i) {
          if (std::count(before.begin(), before.end(), static_cast<std::int32_t>(i)) > 0) continue;
          const auto s = nearest(q, o, before, i);
          best = std::max(best, o.lambda * static_cast<double>(q.relevance[i]) - (s ? (1 - o.lambda) * *s : 0));
        }
        CHECK(expected.scores[t] == Approx(best).margin(tolerance));
        before.push_back(expected.items[t]);
      }
    }
  }
}

TEST_CASE("mmr in float agrees with double", "[diversity][mmr]") {
  Random random(recops_test::seed(), 7);
  const auto narrow = normal_request<float>(random, 400, 32, 2);
  Request<double> wide;
  const auto copy = [](auto& to, const auto& from) { std::copy(from.data(), from.data() + 400, to.data()); };
  wide.relevance.resize(400);
  copy(wide.relevance, narrow.relevance);
  wide.features.resize(400, 32);
  std::copy_n(narrow.features.data(), 400 * 32, wide.features.data());
  wide.history.resize(2, 32);
  std::copy_n(narrow.history.data(), 2 * 32, wide.history.data());
  const MmrOptions o{.lambda = 0.5, .normalize = true};
  const Picks a = run(narrow.input(), o, 20), b = run(wide.input(), o, 20);
  for (std::size_t t = 0; t < 20; ++t) CHECK(a.scores[t] == Approx(b.scores[t]).margin(1e-5));
}

TEST_CASE("mmr agrees with numpy", "[diversity][mmr]") {
  const recops_test::Golden golden("mmr");
  const Index cases = static_cast<Index>(golden.scalar("cases"));
  REQUIRE(cases == 8);
  for (Index number = 0; number < cases; ++number) {
    const std::string name = "case_" + std::to_string(number) + ".";
    const auto vector = [&](const char* key, auto& to) {
      using V = typename std::remove_reference_t<decltype(to)>::value_type;
      const auto from = golden.template values<V>(name + key);
      to.resize(static_cast<Index>(from.size()));
      std::copy(from.begin(), from.end(), to.begin());
    };
    const auto matrix = [&](const char* key, Matrix<double>& to) { to = golden.matrix<double>(name + key); };
    Request<double> q;
    vector("relevance", q.relevance);
    vector("allowed", q.allowed);
    vector("categories", q.categories);
    vector("history_categories", q.history_categories);
    matrix("features", q.features);
    matrix("history", q.history);
    matrix("similarity", q.similarity);
    matrix("history_similarity", q.history_similarity);
    const auto option = golden.values<double>(name + "options");
    const auto picks = golden.values<std::int32_t>(name + "picks");
    const auto scores = golden.values<double>(name + "scores");
    for (const auto evaluation : {MmrEvaluation::eager, MmrEvaluation::lazy}) {
      const MmrOptions o{.lambda = option[0],
                         .window = static_cast<Index>(option[1]),
                         .normalize = option[2] != 0,
                         .feature_weight = option[3],
                         .similarity_weight = option[4],
                         .category_weight = option[5],
                         .evaluation = evaluation};
      const Picks got = run(q.input(), o, static_cast<Index>(picks.size()));
      CAPTURE(number);
      CHECK(got.items == picks);
      for (std::size_t t = 0; t < picks.size(); ++t) CHECK(got.scores[t] == Approx(scores[t]).margin(1e-13));
    }
  }
}

TEMPLATE_TEST_CASE("mmr: permuting the candidates permutes the picks", "[diversity][mmr]", float, double) {
  Random random(recops_test::seed(), 8);
  const auto q = normal_request<TestType>(random, 120, 8, 0);
  std::vector<Index> to(120);
  std::iota(to.begin(), to.end(), Index{0});
  for (std::size_t i = 119; i > 0; --i) std::swap(to[i], to[static_cast<std::size_t>(random.below(static_cast<Index>(i) + 1))]);
  auto p = q;
  for (Index i = 0; i < 120; ++i) {
    p.relevance[to[static_cast<std::size_t>(i)]] = q.relevance[i];
    std::copy_n(q.features.row(i), 8, p.features.row(to[static_cast<std::size_t>(i)]));
  }
  for (const auto evaluation : {MmrEvaluation::eager, MmrEvaluation::lazy}) {
    const MmrOptions o{.normalize = true, .evaluation = evaluation};
    Picks expected = run(q.input(), o, 30);
    for (auto& i : expected.items) i = static_cast<std::int32_t>(to[static_cast<std::size_t>(i)]);
    CHECK(run(p.input(), o, 30) == expected);
  }
}

TEMPLATE_TEST_CASE("mmr never picks what is not finite, and it harms nothing else", "[diversity][mmr]", float, double) {
  using T = TestType;
  const T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  Random random(recops_test::seed(), 9);
  const auto clean = exact_request<T>(random, 70, 9, 3);
  auto masked = clean, dirty = clean;
  masked.allowed = Vector<std::uint8_t>(70, 1);
  dirty.relevance[3] = nan;
  dirty.relevance[4] = inf;
  dirty.relevance[5] = -inf;
  dirty.features(6, 0) = nan;
  dirty.features(7, 8) = -inf;
  dirty.features(8, 4) = std::numeric_limits<T>::max();
  dirty.relevance[6] = dirty.relevance[7] = dirty.relevance[8] = T(100);  // tempting
  for (const Index i : {3, 4, 5, 6, 7, 8}) masked.allowed[i] = 0;
  for (const Index window : {0, 3}) {
    for (const auto evaluation : {MmrEvaluation::eager, MmrEvaluation::lazy}) {
      for (const double lambda : {0.0, 0.5, 1.0}) {
        const MmrOptions o{.lambda = lambda, .window = window, .evaluation = evaluation};
        const Picks expected = reference(masked, o, 70);
        REQUIRE(expected.items.size() == 64);
        CHECK(run(dirty.input(), o, 70) == expected);
        // A broken history row counts as absent.
        auto broken = dirty;
        broken.history.resize(4, 9);
        broken.history(3, 2) = nan;
        CHECK(run(broken.input(), o, 70) == expected);
      }
    }
  }
  // With normalised rows and a relevance worth pruning for.
  for (T& r : dirty.relevance) r *= T(32);
  for (T& r : masked.relevance) r *= T(32);
  const MmrOptions o{.normalize = true};
  CHECK(run(dirty.input(), o, 10).items ==
        run(masked.input(), {.normalize = true, .evaluation = MmrEvaluation::eager}, 10).items);

  // A pair without a similarity: the item is out once the other is picked.
  Request<T> pairs;
  pairs.relevance = {T(4), T(3), T(2)};
  pairs.similarity = {{T(1), nan, T(0)}, {T(0), T(1), T(0)}, {T(0), T(0), T(1)}};
  CHECK(run(pairs.input(), {}, 3).items == std::vector<std::int32_t>{0, 2});

  Request<T> hopeless;
  hopeless.relevance = Vector<T>(40, nan);
  hopeless.features = Matrix<T>(40, 3, nan);
  for (const auto evaluation : {MmrEvaluation::eager, MmrEvaluation::lazy})
    CHECK(run(hopeless.input(), {.evaluation = evaluation}, 5).items.empty());
}

TEMPLATE_TEST_CASE("mmr: nothing to pick, nothing wanted, everything masked", "[diversity][mmr]", float, double) {
  using T = TestType;
  Random random(recops_test::seed(), 10);
  auto q = exact_request<T>(random, 33, 4, 2);
  CHECK(run(q.input(), {}, 0).items.empty());
  CHECK(run(MmrInput<T>{}, {}, 3).items.empty());
  CHECK(run(MmrInput<T>{}, {}, 0).items.empty());
  auto none = exact_request<T>(random, 0, 4, 2);
  CHECK(run(none.input(), {}, 3).items.empty());
  q.allowed = Vector<std::uint8_t>(33, 0);
  for (const Index window : {0, 2}) {
    for (const auto evaluation : {MmrEvaluation::eager, MmrEvaluation::lazy})
      CHECK(run(q.input(), {.window = window, .evaluation = evaluation}, 3).items.empty());
  }
  Request<T> plain;  // neither features nor similarities: nothing resembles anything
  plain.relevance = {T(1), T(3), T(2)};
  CHECK(run(plain.input(), {}, 3) == Picks{{1, 2, 0}, {1.5, 1, 0.5}});
}

TEMPLATE_TEST_CASE("mmr reads strided, unaligned views and leaves the gaps alone", "[diversity][mmr]", float, double) {
  using T = TestType;
  Random random(recops_test::seed(), 11);
  const auto q = exact_request<T>(random, 50, 11, 3);
  Matrix<T> wide(53, 30, std::numeric_limits<T>::quiet_NaN());
  for (Index i = 0; i < 53; ++i) std::copy_n(i < 50 ? q.features.row(i) : q.history.row(i - 50), 11, wide.row(i) + 3);
  MmrInput<T> in = q.input();
  in.features = wide.view().middle_rows(0, 50).middle_cols(3, 11);
  in.history = wide.view().middle_rows(50, 3).middle_cols(3, 11);
  for (const Index window : {0, 4}) CHECK(run(in, {.window = window}, 50) == reference(q, {.window = window}, 50));

  Matrix<T> scores(4, 9, T(5));
  Matrix<std::int32_t> picks(4, 9, 5);
  Workspace scratch;
  const std::vector<std::int32_t> offsets{0, 10, 10, 50};
  const MmrBatch<T> batch{.relevance = q.relevance, .features = JaggedView<const T>(q.features, offsets)};
  mmr<T>(batch, {}, picks.view().middle_rows(0, 3).middle_cols(2, 4), scores.view().middle_rows(0, 3).middle_cols(2, 4), {},
         scratch);
  for (Index b = 0; b < 4; ++b) {
    for (Index c = 0; c < 9; ++c) {
      const bool inside = b < 3 && c >= 2 && c < 6;
      CHECK((picks(b, c) == 5 && scores(b, c) == T(5)) == !inside);
      if (b == 1 && inside) CHECK(picks(b, c) == -1);
    }
  }
}

TEMPLATE_TEST_CASE("mmr batch gives every request what it gets alone, on any number of threads", "[diversity][mmr]", float,
                   double) {
  using T = TestType;
  Random random(recops_test::seed(), 12);
  const std::vector<std::int64_t> offsets{0, 40, 40, 41, 170, 200}, seen_offsets{0, 3, 3, 5, 5, 9};
  auto q = normal_request<T>(random, 200, 13, 9);
  q.allowed.resize(200);
  for (auto& a : q.allowed) a = random.chance(0.8);
  q.categories.resize(200);
  for (auto& c : q.categories) c = static_cast<std::int32_t>(random.below(4));
  q.history_categories = Vector<std::int32_t>(9, 1);
  const Index k = 12;
  for (const bool categories : {false, true}) {
    MmrBatch<T> batch{.relevance = q.relevance,
                      .features = JaggedView<const T>(q.features, offsets),
                      .history = JaggedView<const T>(q.history, seen_offsets),
                      .allowed = q.allowed};
    if (categories) {
      batch.categories = q.categories;
      batch.history_categories = q.history_categories;
    }
    const MmrOptions o{.lambda = 0.7, .normalize = true};
    recops_test::Threads threads{3};
    Workspace serial, parallel(make_executor(threads, 3));
    for (Workspace* scratch : {&serial, &parallel}) {
      Matrix<std::int32_t> picks(5, k, 99);
      Matrix<T> scores(5, k, T(99));
      Vector<std::int32_t> counts(5);
      mmr<T>(batch, o, picks, scores, counts, *scratch);
      for (Index b = 0; b < 5; ++b) {
        const Index first = batch.features.begin(b), n = batch.features.length(b);
        MmrInput<T> in{.relevance = batch.relevance.segment(first, n),
                       .features = batch.features[b],
                       .history = batch.history[b],
                       .allowed = batch.allowed.segment(first, n)};
        if (categories) {
          in.categories = batch.categories.segment(first, n);
          in.history_categories = batch.history_categories.segment(batch.history.begin(b), batch.history.length(b));
        }
        const Picks alone = run(in, o, k);
        REQUIRE(counts[b] == static_cast<std::int32_t>(alone.items.size()));
        for (Index t = 0; t < k; ++t) {
          CHECK(picks(b, t) == (t < counts[b] ? alone.items[static_cast<std::size_t>(t)] : -1));
          CHECK(static_cast<double>(scores(b, t)) == (t < counts[b] ? alone.scores[static_cast<std::size_t>(t)] : -infinity));
        }
      }
    }
  }
}

TEST_CASE("mmr_backward agrees with central differences and adds", "[diversity][mmr]") {
  Random random(recops_test::seed(), 13);
  Workspace scratch;
  for (int trial = 0; trial < 24; ++trial) {
    const Index n = 12, d = 4, m = trial % 3 == 0 ? 0 : 3, k = 7;
    auto q = normal_request<double>(random, n, d, m);
    const bool given = trial % 4 == 1;
    if (given) {
      q.similarity.resize(n, n);
      q.history_similarity.resize(m, m > 0 ? n : 0);
      for (Matrix<double>* x : {&q.similarity, &q.history_similarity}) {
        for (Index i = 0; i < x->rows() * x->cols(); ++i) x->data()[i] = random.normal();
      }
    }
    if (trial % 4 == 2) {
      q.categories.resize(n);
      for (auto& c : q.categories) c = static_cast<std::int32_t>(random.below(4)) - 1;  // -1 is like nothing, not even itself
      q.history_categories.resize(m);
      for (auto& c : q.history_categories) c = static_cast<std::int32_t>(random.below(3)) - 1;
    }
    const MmrOptions o{.lambda = 0.625,
                       .window = trial % 2 == 0 ? 0 : 3,
                       .normalize = trial % 5 != 0,
                       .feature_weight = trial % 4 == 0 ? 1 : 0.75,
                       .similarity_weight = 1.5};
    Vector<std::int32_t> picks(k);
    Vector<double> scores(k), g(k);
    mmr<double>(q.input(), o, picks, scores, scratch);
    for (double& v : g) v = random.normal();

    Vector<double> dr(n, 1.0);
    Matrix<double> dx(n, d, 2.0), dh(m, d, 3.0), ds(given ? n : 0, given ? n : 0, 4.0),
        dhs(given ? m : 0, given && m > 0 ? n : 0, 5.0);
    mmr_backward<double>(q.input(), o, picks, g,
                         {.relevance = dr, .features = dx, .history = dh, .similarity = ds, .history_similarity = dhs}, scratch);

    const std::vector<std::int32_t> chosen(picks.begin(), picks.end());
    const auto loss = [&] {  // the scores of these picks, by definition
      double sum = 0;
      for (Index t = 0; t < k; ++t) {
        const std::vector<std::int32_t> before(chosen.begin(), chosen.begin() + t);
        const auto s = nearest(q, o, before, picks[t]);
        sum += g[t] * (o.lambda * q.relevance[picks[t]] - (s ? (1 - o.lambda) * *s : 0));
      }
      return sum;
    };
    const auto check = [&](double* x, const double* dxs, Index count, double before) {
      for (Index i = 0; i < count; ++i) {
        const double old = x[i], step = 1e-6;
        x[i] = old + step;
        const double up = loss();
        x[i] = old - step;
        const double down = loss();
        x[i] = old;
        CHECK(dxs[i] - before == Approx((up - down) / (2 * step)).margin(1e-7));
      }
    };
    CAPTURE(trial);
    check(q.relevance.data(), dr.data(), n, 1);
    check(q.features.data(), dx.data(), n * d, 2);
    check(q.history.data(), dh.data(), m * d, 3);
    if (given) {
      check(q.similarity.data(), ds.data(), n * n, 4);
      check(q.history_similarity.data(), dhs.data(), q.history_similarity.rows() * q.history_similarity.cols(), 5);
    }
    // Nothing wanted: nothing happens.
    mmr_backward<double>(q.input(), o, picks, g, {}, scratch);
  }
}

TEST_CASE("mmr_backward: a history row that is not finite shifts no gradient to another", "[diversity][mmr]") {
  Random random(recops_test::seed(), 14);
  Workspace scratch;
  for (int trial = 0; trial < 10; ++trial) {
    const Index n = 9, k = 4;
    auto with = normal_request<double>(random, n, 3, 4);
    with.similarity = recops_test::random_matrix<double>(n, n, random);
    with.history_similarity = recops_test::random_matrix<double>(4, n, random);
    with.history(1, 2) = std::nan("");
    auto without = with;
    without.history.resize(3, 3);
    without.history_similarity.resize(3, n);
    for (const Index h : {0, 2, 3}) {
      std::copy_n(with.history.row(h), 3, without.history.row(h > 0 ? h - 1 : 0));
      std::copy_n(with.history_similarity.row(h), n, without.history_similarity.row(h > 0 ? h - 1 : 0));
    }
    const MmrOptions o{.lambda = 0.3, .window = trial % 2 == 0 ? 0 : 4, .similarity_weight = 2};
    Vector<std::int32_t> picks(k), same(k);
    mmr<double>(with.input(), o, picks, {}, scratch);
    mmr<double>(without.input(), o, same, {}, scratch);
    REQUIRE(std::equal(picks.begin(), picks.end(), same.begin()));
    const Vector<double> g(k, 1.0);
    Matrix<double> a(4, n, 0.0), b(3, n, 0.0), da(4, 3, 0.0), db(3, 3, 0.0);
    mmr_backward<double>(with.input(), o, picks, g, {.history = da, .history_similarity = a}, scratch);
    mmr_backward<double>(without.input(), o, picks, g, {.history = db, .history_similarity = b}, scratch);
    for (const Index h : {0, 2, 3}) {
      CHECK(std::equal(a.row(h), a.row(h) + n, b.row(h > 0 ? h - 1 : 0)));
      CHECK(std::equal(da.row(h), da.row(h) + 3, db.row(h > 0 ? h - 1 : 0)));
    }
    CHECK(std::count(a.row(1), a.row(1) + n, 0.0) == n);
    CHECK(std::count(da.row(1), da.row(1) + 3, 0.0) == 3);
  }
}

TEST_CASE("mmr_backward gives the gradient of a tie to the earliest shown", "[diversity][mmr]") {
  Workspace scratch;
  const Vector<double> relevance{3, 2, 1};
  const Matrix<double> features{{1, 2}, {1, 2}, {1, 2}};
  const Vector<std::int32_t> picks{0, 1, 2};
  const Vector<double> g{0, 0, 4};
  Matrix<double> dx(3, 2, 0.0);
  mmr_backward<double>({.relevance = relevance, .features = features}, {.lambda = 0.5}, picks, g, {.features = dx}, scratch);
  CHECK((dx(0, 0) == -2 && dx(0, 1) == -4 && dx(1, 0) == 0 && dx(1, 1) == 0 && dx(2, 0) == -2 && dx(2, 1) == -4));
}

TEMPLATE_TEST_CASE("mmr_backward of a batch is that of its requests", "[diversity][mmr]", float, double) {
  using T = TestType;
  Random random(recops_test::seed(), 14);
  const std::vector<std::int32_t> offsets{0, 9, 9, 30}, seen_offsets{0, 2, 2, 3};
  const auto q = normal_request<T>(random, 30, 6, 3);
  const MmrBatch<T> batch{.relevance = q.relevance,
                          .features = JaggedView<const T>(q.features, offsets),
                          .history = JaggedView<const T>(q.history, seen_offsets)};
  const MmrOptions o{.lambda = 0.5, .normalize = true};
  Workspace scratch;
  Matrix<std::int32_t> picks(3, 12);
  Matrix<T> g(3, 12);
  for (Index i = 0; i < 36; ++i) g.data()[i] = static_cast<T>(random.normal());
  mmr<T>(batch, o, picks, {}, {}, scratch);
  Vector<T> dr(30, T(0)), one_dr(30, T(0));
  Matrix<T> dx(30, 6, T(0)), dh(3, 6, T(0)), one_dx(30, 6, T(0)), one_dh(3, 6, T(0));
  mmr_backward<T>(batch, o, picks, g, {.relevance = dr, .features = dx, .history = dh}, scratch);
  for (Index b = 0; b < 3; ++b) {
    const Index first = batch.features.begin(b), n = batch.features.length(b);
    const MmrInput<T> in{
        .relevance = batch.relevance.segment(first, n), .features = batch.features[b], .history = batch.history[b]};
    mmr_backward<T>(in, o, VectorView<const std::int32_t>(picks.row(b), 12), VectorView<const T>(g.row(b), 12),
                    {.relevance = VectorView<T>(one_dr).segment(first, n),
                     .features = one_dx.view().middle_rows(first, n),
                     .history = one_dh.view().middle_rows(batch.history.begin(b), batch.history.length(b))},
                    scratch);
  }
  CHECK(std::equal(dr.begin(), dr.end(), one_dr.begin()));
  CHECK(std::equal(dx.data(), dx.data() + 180, one_dx.data()));
  CHECK(std::equal(dh.data(), dh.data() + 18, one_dh.data()));
  CHECK(std::count(dx.data(), dx.data() + 180, T(0)) < 120);
}

TEMPLATE_TEST_CASE("mmr allocates nothing once warm", "[diversity][mmr]", float, double) {
  using T = TestType;
  Random random(recops_test::seed(), 15);
  const auto q = normal_request<T>(random, 300, 20, 4);
  Workspace scratch;
  Vector<std::int32_t> picks(25);
  Vector<T> scores(25), g(25, T(1)), dr(300, T(0));
  Matrix<T> dx(300, 20, T(0)), dh(4, 20, T(0));
  Panels<T> panels;
  const auto everything = [&] {
    for (const Index window : {0, 5}) {
      for (const auto evaluation : {MmrEvaluation::eager, MmrEvaluation::lazy}) {
        const MmrOptions o{.lambda = 0.9, .window = window, .normalize = true, .evaluation = evaluation};
        mmr<T>(q.input(), o, picks, scores, scratch);
        mmr_backward<T>(q.input(), o, picks, g, {.relevance = dr, .features = dx, .history = dh}, scratch);
      }
    }
    panels.pack(q.features, true);
    mmr<T>(VectorView<const T>(q.relevance), panels, {}, picks, scores, scratch);
  };
  everything();
  const recops_test::AllocationCounter counter;
  everything();
  CHECK(counter.count() == 0);
}

TEST_CASE("mmr: a weighted similarity beyond the largest number saturates", "[diversity][mmr]") {
  const Matrix<float> features{{1e18f, 0}, {1e18f, 1}, {-1e18f, 0}, {0, 1}};
  const Vector<float> relevance{4, 3, 2, 1};
  Vector<std::int32_t> picks(4);
  Vector<float> scores(4);
  Workspace scratch;
  CHECK(mmr<float>(relevance, features, {.lambda = 1, .feature_weight = 1e6}, picks, scores, scratch).count == 4);
  CHECK(std::equal(picks.begin(), picks.end(), std::begin({0, 1, 2, 3})));
  CHECK(mmr<float>(relevance, features, {.lambda = 0.5, .feature_weight = 1e6}, picks, scores, scratch).count == 4);
  CHECK(std::equal(picks.begin(), picks.end(), std::begin({0, 2, 3, 1})));
  for (const float s : scores) CHECK(std::isfinite(s));
}

TEST_CASE("mmr says what is wrong and touches nothing", "[diversity][mmr]") {
  using recops_test::contains;
  Random random(recops_test::seed(), 16);
  const auto q = exact_request<float>(random, 20, 5, 2);
  Workspace scratch;
  Vector<std::int32_t> picks(4, 7);
  Vector<float> scores(4, 7.0f);
  const auto attempt = [&](const MmrInput<float>& in, const MmrOptions& o = {}) { mmr<float>(in, o, picks, scores, scratch); };
  const auto with = [&](auto change) {
    MmrInput<float> in = q.input();
    change(in);
    return in;
  };
  const Matrix<float> other(19, 5, 0.0f), narrow(2, 4, 0.0f);
  const Vector<std::uint8_t> allowed(21, 1);
  const Vector<std::int32_t> categories(20, 1), few(3, 1);
  const Matrix<float> square(20, 20, 0.0f);
  Panels<float> panels;
  panels.pack(other, false);

  CHECK_THROWS_WITH(attempt(with([&](auto& in) { in.features = other; })), contains("mmr: features: expected shape [20, _]"));
  CHECK_THROWS_WITH(attempt(with([&](auto& in) { in.history = narrow; })), contains("mmr: history: expected shape [2, 5]"));
  CHECK_THROWS_WITH(attempt(with([&](auto& in) { in.allowed = allowed; })), contains("allowed"));
  CHECK_THROWS_WITH(attempt(with([&](auto& in) { in.categories = few; })), contains("categories"));
  CHECK_THROWS_WITH(attempt(with([&](auto& in) { in.categories = categories; })), contains("history_categories"));
  CHECK_THROWS_WITH(attempt(with([&](auto& in) { in.history_categories = few; })), contains("history"));
  CHECK_THROWS_WITH(attempt(with([&](auto& in) { in.similarity = other; })), contains("similarity"));
  CHECK_THROWS_WITH(attempt(with([&](auto& in) { in.similarity = square; })), contains("history_similarity"));
  CHECK_THROWS_WITH(attempt(with([&](auto& in) { in.panels = panels; })), contains("features"));
  CHECK_THROWS_WITH(attempt(with([&](auto& in) {
                      in.features = {};
                      in.panels = panels;
                    })),
                    contains("panels"));
  CHECK_THROWS_WITH(attempt(with([&](auto& in) { in.features = {}; })), contains("history"));
  CHECK_THROWS_WITH(attempt(with([&](auto& in) { in.features = MatrixView<const float>(nullptr, 20, 5); })), contains("null"));
  for (const double lambda : {-0.1, 1.1, std::nan("")})
    CHECK_THROWS_WITH(attempt(q.input(), {.lambda = lambda}), contains("0 <= lambda <= 1"));
  CHECK_THROWS_WITH(attempt(q.input(), {.window = -1}), contains("window"));
  CHECK_THROWS_WITH(attempt(q.input(), {.feature_weight = infinity}), contains("mmr: feature_weight"));
  CHECK_THROWS_WITH(attempt(q.input(), {.similarity_weight = -2e6}), contains("mmr: similarity_weight"));
  CHECK_THROWS_WITH(attempt(q.input(), {.category_weight = std::nan("")}), contains("mmr: category_weight"));
  const IndexView nothing(static_cast<const std::int64_t*>(nullptr), 20);
  CHECK_THROWS_WITH(attempt(with([&](auto& in) { in.categories = nothing; })), contains("mmr: categories"));
  CHECK_THROWS_WITH(attempt(with([&](auto& in) {
                      in.categories = categories;
                      in.history_categories = IndexView(static_cast<const std::int32_t*>(nullptr), 2);
                    })),
                    contains("mmr: history_categories"));
  Panels<float> sound;
  sound.pack(q.features, false);
  const auto unsound = [&](auto change) {
    PanelsView<float> view = sound;
    change(view);
    return with([&](auto& in) {
      in.features = {};
      in.panels = view;
    });
  };
  CHECK_THROWS_WITH(attempt(unsound([](auto& v) { v.data = nullptr; })), contains("mmr: panels: expected data and squares"));
  CHECK_THROWS_WITH(attempt(unsound([](auto& v) { v.squares = nullptr; })), contains("null"));
  CHECK_THROWS_WITH(attempt(unsound([](auto& v) { ++v.data; })), contains("unaligned"));
  CHECK_THROWS_WITH(attempt(unsound([](auto& v) { v.cols = -1; })), contains("mmr: panels: expected columns >= 0"));
  CHECK_THROWS_WITH(attempt(unsound([](auto& v) { v.rows = -1; })), contains("mmr: panels"));
  Vector<float> short_scores(3);
  CHECK_THROWS_WITH(mmr<float>(q.input(), {}, picks, short_scores, scratch), contains("mmr: scores: expected size 4, got 3"));
  CHECK(std::count(picks.begin(), picks.end(), 7) == 4);
  CHECK(std::count(scores.begin(), scores.end(), 7.0f) == 4);

  const std::vector<std::int32_t> offsets{0, 12, 20}, bad_offsets{0, 12, 21};
  Matrix<std::int32_t> many(2, 3, 7);
  Matrix<float> many_scores(2, 3, 7.0f);
  MmrBatch<float> batch{.relevance = q.relevance, .features = JaggedView<const float>(q.features, bad_offsets)};
  CHECK_THROWS_WITH(mmr<float>(batch, {}, many, many_scores, {}, scratch), contains("offsets"));
  batch.features = JaggedView<const float>(q.features, offsets);
  CHECK_THROWS_WITH(mmr<float>(batch, {}, many.view().middle_rows(0, 1), many_scores, {}, scratch), contains("picks"));
  CHECK_THROWS_WITH(mmr<float>(batch, {.lambda = 2}, many, many_scores, {}, scratch), contains("lambda"));
  CHECK_THROWS_WITH(mmr<float>(batch, {}, many, many_scores, VectorView<std::int32_t>(picks), scratch), contains("counts"));
  batch.history = JaggedView<const float>(q.history);
  CHECK_THROWS_WITH(mmr<float>(batch, {}, many, many_scores, {}, scratch), contains("history"));
  CHECK(std::count(many.data(), many.data() + 6, 7) == 6);

  Vector<float> g(4, 1.0f), dr(20, 0.0f), dr_short(19, 0.0f);
  const auto back = [&](std::initializer_list<std::int32_t> at, VectorView<float> relevance) {
    const Vector<std::int32_t> p(at);
    mmr_backward<float>(q.input(), {}, p, VectorView<const float>(g), {.relevance = relevance}, scratch);
  };
  CHECK_THROWS_WITH(back({0, 1, 20, -1}, dr),
                    contains("mmr_backward: picks: expected indices from 0 to below 20, got 20 at position 2"));
  CHECK_THROWS_WITH(back({0, -2, 3, -1}, dr), contains("picks"));
  CHECK_THROWS_WITH(back({0, -1, 3, -1}, dr), contains("picks"));
  CHECK_THROWS_WITH(back({0, 1, 2, 3}, dr_short), contains("gradient.relevance"));
  CHECK_THROWS_WITH(back({0, 1, 2}, dr), contains("dscores"));
  CHECK(std::count(dr.begin(), dr.end(), 0.0f) == 20);
  back({0, 1, -1, -1}, dr);
  CHECK(dr[0] == 0.5f);
}

TEST_CASE("mmr: scratch grows with the items, not with the places", "[diversity][mmr]") {
  for (const Index window : {0, 4, 50000})
    recops_test::check_many_places([&](const SelectionInput<float>& in, auto picks, Workspace& ws) {
      return mmr<float>({.relevance = in.relevance, .features = in.features}, {.window = window}, picks, {}, ws);
    });
}
