// Oracle: determinants from scratch in long double after every pick (support/dpp_reference.hpp).
#include <recops/core/random.hpp>
#include <recops/diversity/dpp_map.hpp>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/dpp_reference.hpp"
#include "support/golden.hpp"
#include "support/selectors.hpp"
#include "support/threads.hpp"

using namespace recops;
using recops_test::DppReference;

namespace {

template <class T>
struct Request {
  Vector<T> quality, diagonal;
  Matrix<T> features, history;
  Vector<std::uint8_t> allowed;
  DppInput<T> input() const { return {quality, features, {}, history, allowed, diagonal, nullptr}; }
};

template <class T>
struct Picks {
  std::vector<std::int32_t> items;
  std::vector<T> scores;
  SelectionStatus status;
  bool operator==(const Picks&) const = default;
};

template <class T, class F>
Picks<T> collect(Index k, F&& select) {
  Vector<std::int32_t> picks(k, 77);
  Vector<T> scores(k, T(77));
  const Selection s = select(VectorView<std::int32_t>(picks), VectorView<T>(scores));
  CHECK((s.status == SelectionStatus::ok) == (s.count == k));
  for (Index t = s.count; t < k; ++t) CHECK((picks[t] == -1 && scores[t] == -std::numeric_limits<T>::infinity()));
  return {{picks.begin(), picks.begin() + s.count}, {scores.begin(), scores.begin() + s.count}, s.status};
}

template <class T, class A = simd::DefaultArch>
Picks<T> run(const DppInput<T>& in, const DppOptions& o, Index k) {
  Workspace scratch;
  return collect<T>(k, [&](auto picks, auto scores) { return dpp_map<T, A>(in, o, picks, scores, scratch); });
}

template <class T>
Picks<T> run_kernel(MatrixView<const T> kernel, VectorView<const std::uint8_t> allowed, const DppOptions& o, Index k) {
  Workspace scratch;
  return collect<T>(
      k, [&](auto picks, auto scores) { return dpp_map_kernel<T>(kernel, allowed, nullptr, o, picks, scores, scratch); });
}

/// Every pick is the best by the reference, up to rounding; it ends where the reference has nothing left.
template <class T>
void check_greedy(const DppReference& ref, const Picks<T>& got, Index k, const std::vector<bool>& twin) {
  const long double tolerance = std::is_same_v<T, float> ? 3e-5L : 1e-9L;
  std::vector<std::int32_t> before;
  for (std::size_t t = 0; t < got.items.size(); ++t) {
    const auto d2 = ref.volumes(before);
    const auto pick = static_cast<std::size_t>(got.items[t]);
    const auto best = *std::max_element(d2.begin(), d2.end());
    long double largest = 0;
    for (Index i = 0; i < ref.items(); ++i) largest = std::max(largest, ref.at(ref.history + i, ref.history + i));
    CAPTURE(t, pick, static_cast<double>(d2[pick]), static_cast<double>(best));
    REQUIRE(d2[pick] >= best * (1 - tolerance) - largest * tolerance);
    if (d2[pick] > 100 * tolerance * largest)
      CHECK(static_cast<double>(got.scores[t]) ==
            Approx(static_cast<double>(std::log(d2[pick]))).margin(std::is_same_v<T, float> ? 1e-2 : 1e-7));
    if (twin[pick]) REQUIRE(std::count(before.begin(), before.end(), got.items[t] - 1) == 1);  // its equal has the lower index
    before.push_back(got.items[t]);
  }
  if (static_cast<Index>(got.items.size()) == k) return;
  for (const long double d2 : ref.volumes(before)) CHECK(d2 <= tolerance * 10);
  const bool left = static_cast<std::size_t>(std::count(ref.usable.begin(), ref.usable.end(), true)) > before.size();
  CHECK(got.status == (left ? SelectionStatus::rank_exhausted : SelectionStatus::exhausted));
}

/// Features with entries in {-1, -1/2 ... 1}; some rows repeat the row before them, with its quality: `twin`.
template <class T>
Request<T> small_request(Random& random, Index n, Index d, Index m, std::vector<bool>& twin) {
  Request<T> q;
  q.quality.resize(n);
  q.features.resize(n, d);
  q.history.resize(m, d);
  twin.assign(static_cast<std::size_t>(n), false);
  for (Index i = 0; i < n; ++i) {
    q.quality[i] = static_cast<T>(std::exp(0.5 * random.normal()));
    for (Index c = 0; c < d; ++c)
      q.features(i, c) = static_cast<T>(random.below(5) - 2) / T(2) + static_cast<T>(random.below(2)) / T(8);
    if (i > 0 && random.chance(0.15)) {
      q.quality[i] = q.quality[i - 1];
      std::copy_n(q.features.row(i - 1), d, q.features.row(i));
      twin[static_cast<std::size_t>(i)] = true;
    } else if (random.chance(0.05)) {
      std::fill_n(q.features.row(i), d, T(0));
    }
  }
  for (Index i = 0; i < m * d; ++i) q.history.data()[i] = static_cast<T>(random.normal());
  return q;
}

template <class T>
Request<T> normal_request(Random& random, Index n, Index d, double spread) {
  Request<T> q;
  q.quality.resize(n);
  q.features.resize(n, d);
  for (auto& v : q.quality) v = static_cast<T>(std::exp(spread * random.normal()));
  for (Index i = 0; i < n * d; ++i) q.features.data()[i] = static_cast<T>(random.normal());
  return q;
}

/// q_i <x_i, x_j> q_j in T.
template <class T>
Matrix<T> kernel_of(const DppReference& ref) {
  Matrix<T> k(ref.items(), ref.items());
  for (Index a = 0; a < ref.items(); ++a) {
    for (Index b = 0; b < ref.items(); ++b) k(a, b) = static_cast<T>(ref.at(ref.history + a, ref.history + b));
  }
  return k;
}

}  // namespace

TEMPLATE_TEST_CASE("dpp_map picks the largest determinant, however it is asked", "[diversity][dpp]", float, double) {
  using T = TestType;
  Random random(recops_test::seed(), 1);
  for (int trial = 0; trial < 1200; ++trial) {
    const Index n = 1 + random.below(16), d = 1 + random.below(8), m = random.chance(0.3) ? random.below(4) : 0;
    const Index k = 1 + random.below(std::min(n + 2, Index{9}));
    std::vector<bool> twin;
    auto q = small_request<T>(random, n, d, m, twin);
    DppOptions o{.window = random.chance(0.4) ? 1 + random.below(6) : 0, .normalize = random.chance(0.5)};
    if (random.chance(0.3)) o.alpha = static_cast<double>(random.below(5)) / 5;
    if (random.chance(0.2)) {
      q.allowed.resize(n);
      for (auto& a : q.allowed) a = random.chance(0.7);
      twin.assign(static_cast<std::size_t>(n), false);
    }
    if (random.chance(0.2)) {
      q.diagonal.resize(n);
      for (auto& v : q.diagonal) v = static_cast<T>(random.uniform());
      twin.assign(static_cast<std::size_t>(n), false);
    }
    CAPTURE(trial, n, d, m, k, o.window, o.normalize, o.alpha, q.diagonal.empty());
    const auto ref = recops_test::dpp_reference<T>(q.input(), q.features, o);
    o.evaluation = SelectionEvaluation::eager;
    const auto expected = run<T>(q.input(), o, k);
    check_greedy(ref, expected, k, twin);
    o.evaluation = SelectionEvaluation::lazy;
    CHECK(run<T>(q.input(), o, k) == expected);
    if (m == 0) {
      o.alpha = 1;
      const auto kernel = kernel_of<T>(ref);
      check_greedy(ref, run_kernel<T>(kernel, q.allowed, o, k), k, twin);
    }
  }
}

TEMPLATE_TEST_CASE("dpp_map: a window is the determinant of the last picks, for as long as the list is", "[diversity][dpp]",
                   float, double) {
  using T = TestType;
  Random random(recops_test::seed(), 2);
  for (const Index w : {1, 2, 3, 7}) {
    for (const double alpha : {1.0, 0.7}) {
      const auto q = normal_request<T>(random, 150, 9, 0.3);
      const DppOptions o{.window = w, .normalize = true, .alpha = alpha};
      const auto ref = recops_test::dpp_reference<T>(q.input(), q.features, o);
      CAPTURE(w, alpha);
      const std::vector<bool> none(150, false);
      check_greedy(ref, run<T>(q.input(), o, 110), 110, none);
      const auto kernel = kernel_of<T>(ref);
      if (alpha == 1) check_greedy(ref, run_kernel<T>(kernel, {}, o, 110), 110, none);
    }
  }
}

TEMPLATE_TEST_CASE("dpp_map: lazy and eager, packed and not, kernel rows given or computed: the same bits", "[diversity][dpp]",
                   float, double) {
  using T = TestType;
  Random random(recops_test::seed(), 3);
  for (const double spread : {0.0, 0.3, 2.0}) {
    for (const Index window : {0, 6}) {
      auto q = normal_request<T>(random, 700, 20, spread);
      for (Index i = 100; i < 400; ++i) {  // many equals
        std::copy_n(q.features.row(i - 100), 20, q.features.row(i));
        q.quality[i] = q.quality[i - 100];
      }
      DppOptions o{.window = window, .normalize = true, .evaluation = SelectionEvaluation::eager};
      CAPTURE(spread, window);
      const auto expected = run<T>(q.input(), o, 30);
      Panels<T> panels;
      for (const bool sorted : {false, true}) {
        panels.pack(q.features, {.normalize = true}, sorted ? VectorView<const T>(q.quality) : VectorView<const T>());
        DppInput<T> packed = q.input();
        packed.features = {};
        packed.panels = panels;
        for (const auto evaluation : {SelectionEvaluation::eager, SelectionEvaluation::lazy}) {
          o.evaluation = evaluation;
          CHECK(run<T>(q.input(), o, 30) == expected);
          CHECK(run<T>(packed, o, 30) == expected);
        }
      }
      const auto ref = kernel_of<T>(recops_test::dpp_reference<T>(q.input(), q.features, o));
      o.evaluation = SelectionEvaluation::eager;
      const auto by_kernel = run_kernel<T>(ref, {}, o, 30);
      o.evaluation = SelectionEvaluation::lazy;
      CHECK(run_kernel<T>(ref, {}, o, 30) == by_kernel);
      Vector<T> diagonal(700);
      for (Index i = 0; i < 700; ++i) diagonal[i] = ref(i, i);
      Workspace scratch;
      const auto rows = [&](Index j, VectorView<T> out) { std::copy_n(ref.row(j), 700, out.begin()); };
      CHECK(collect<T>(30, [&](auto picks, auto scores) {
              return dpp_map_kernel<T>(VectorView<const T>(diagonal), rows, {}, nullptr, o, picks, scores, scratch);
            }) == by_kernel);
    }
  }
}

TEST_CASE("dpp_map: qualities so small that their squares vanish, lazy and eager", "[diversity][dpp]") {
  Random random(recops_test::seed(), 9);
  auto q = normal_request<float>(random, 300, 12, 0);
  for (Index i = 0; i < 300; ++i) q.quality[i] = static_cast<float>(std::exp(-0.5 * static_cast<double>(i)));
  for (const Index window : {0, 3}) {
    const auto eager = run<float>(q.input(), {.window = window, .alpha = 0.7, .evaluation = SelectionEvaluation::eager}, 200);
    CHECK(eager.items.size() == 200);
    CHECK(run<float>(q.input(), {.window = window, .alpha = 0.7}, 200) == eager);
  }
}

TEMPLATE_TEST_CASE("dpp_map: a diagonal beside qualities whose squares vanish", "[diversity][dpp]", float, double) {
  using T = TestType;
  const T tiny = std::is_same_v<T, float> ? T(1e-25) : T(1e-200);
  Matrix<T> features(4, 3, T(1));
  const Vector<T> diagonal{T(0.5), T(2), T(0.125), std::numeric_limits<T>::infinity()};
  for (const T best : {T(1), tiny}) {
    const Vector<T> quality{best, tiny / 1024, tiny, tiny};
    for (const auto evaluation : {SelectionEvaluation::lazy, SelectionEvaluation::eager}) {
      Vector<std::int32_t> picks(4);
      Vector<T> scores(4);
      Workspace ws;
      const Selection s = dpp_map<T>({.quality = quality, .features = features, .diagonal = diagonal}, {.evaluation = evaluation},
                                     picks, scores, ws);
      const double first = best == T(1) ? 3.5 : 0.5;  // its features have length sqrt(3)
      REQUIRE(s.count == 3);
      CHECK((picks[0] == (best == T(1) ? 0 : 1) && picks[1] == (best == T(1) ? 1 : 0) && picks[2] == 2));
      CHECK(static_cast<double>(scores[picks[0] == 0 ? 0 : 1]) == Approx(std::log(first)).epsilon(1e-5));
      CHECK(static_cast<double>(scores[picks[0] == 0 ? 1 : 0]) == Approx(std::log(2.0)).epsilon(1e-5));
      CHECK(static_cast<double>(scores[2]) == Approx(std::log(0.125)).epsilon(1e-5));
    }
  }
}

TEMPLATE_TEST_CASE("dpp_map: a large diagonal beside features that are as large", "[diversity][dpp]", float, double) {
  using T = TestType;
  const T unit = std::is_same_v<T, float> ? T(1e10) : T(1e80);
  Matrix<T> features(2, 1);
  features(0, 0) = unit;
  features(1, 0) = 3 * unit;
  const Vector<T> quality{1, 1}, diagonal{unit * unit, 0};
  Vector<std::int32_t> picks(2);
  Vector<T> scores(2);
  Workspace ws;
  const Selection s = dpp_map<T>({.quality = quality, .features = features, .diagonal = diagonal}, {}, picks, scores, ws);
  REQUIRE(s.count == 2);
  CHECK((picks[0] == 1 && picks[1] == 0));
  const double length = 2 * std::log(static_cast<double>(unit));
  CHECK(static_cast<double>(scores[0]) == Approx(length + std::log(9.0)).epsilon(1e-6));
  CHECK(std::abs(static_cast<double>(scores[1]) - length) < 1e-3);  // 2 - 1, times unit^2
}

TEMPLATE_TEST_CASE("dpp_map_backward: small qualities beside a diagonal", "[diversity][dpp]", float, double) {
  using T = TestType;
  const Matrix<T> features(1, 3, T(1));
  const Vector<T> diagonal{T(2)}, dscores{T(1)};
  const Vector<std::int32_t> picks{0};
  Workspace ws;
  for (const double q : {1e-1, 1e-3, 1e-10, 1e-25, 1e-110, 1e-200}) {
    if (std::is_same_v<T, float> && q < 1e-30) continue;
    const Vector<T> quality{static_cast<T>(q)};
    Vector<T> drelevance{T(0)};
    Matrix<T> dfeatures(1, 3, T(0));
    dpp_map_backward<T>({.quality = quality, .features = features, .diagonal = diagonal}, {}, picks, dscores,
                        {.relevance = drelevance, .features = dfeatures}, ws);
    CAPTURE(q);
    const double expected = 6 * q / (3 * q * q + 2);                 // of log(3 q^2 + 2)
    const double least = std::is_same_v<T, float> ? 1e-13 : 1e-100;  // where the diagonal dwarfs all else
    CHECK(std::abs(static_cast<double>(drelevance[0]) - expected) <= 1e-5 * expected + (q < 1e-14 ? least : 0));
    CHECK(std::abs(static_cast<double>(dfeatures(0, 0)) - 2 * q * q / (3 * q * q + 2)) <= 1e-5 * q * q + (q < 1e-14 ? least : 0));
  }
}

TEST_CASE("dpp_map: a kernel's window that holds redundant items is that of features", "[diversity][dpp]") {
  Random random(recops_test::seed(), 41);
  Workspace ws;
  for (int trial = 0; trial < 20; ++trial) {
    const Index n = 14, k = 10, d = 2;  // of four items in a window two are redundant
    Matrix<double> x = recops_test::random_matrix<double>(n, d, random), kernel(n, n);
    Vector<double> quality(n);
    for (Index i = 0; i < n; ++i) {
      quality[i] = random.uniform(0.5, 2);
      simd::scale(1 / std::sqrt(simd::dot(x.row(i), x.row(i), d)), x.row(i), x.row(i), d);
    }
    for (Index i = 0; i < n; ++i)
      for (Index j = 0; j < n; ++j) kernel(i, j) = quality[i] * quality[j] * (i == j ? 1 : simd::dot(x.row(i), x.row(j), d));
    Vector<std::int32_t> by_features(k), by_kernel(k);
    const DppOptions o{.window = 5, .normalize = true, .fill = DppFill::by_quality};
    CHECK(dpp_map<double>(quality, x, o, by_features, {}, ws).count == k);
    CHECK(dpp_map_kernel<double>(kernel.view(), {}, nullptr, o, by_kernel, {}, ws).count == k);
    CAPTURE(trial, std::vector<std::int32_t>(by_kernel.begin(), by_kernel.end()),
            std::vector<std::int32_t>(by_features.begin(), by_features.end()));
    CHECK(std::equal(by_kernel.begin(), by_kernel.end(), by_features.begin()));
  }
}

TEST_CASE("dpp_map with rounded features is dpp_map of the rounded features", "[diversity][dpp]") {
  Random random(recops_test::seed(), 4);
  auto q = normal_request<float>(random, 200, 12, 0.5);
  std::copy_n(q.features.row(3), 12, q.features.row(150));  // a duplicate stays one
  const std::vector<bool> none(200, false);
  for (const auto storage : {PanelStorage::bfloat16, PanelStorage::int8}) {
    Panels<float> panels;
    panels.pack(q.features, {.normalize = true, .storage = storage}, VectorView<const float>(q.quality));
    const detail::Candidates<float, simd::DefaultArch> rows = [&] {
      static Workspace keep;
      return detail::Candidates<float, simd::DefaultArch>({}, panels, 200, true, false, nullptr, keep);
    }();
    Matrix<float> rounded(200, 12);
    for (Index i = 0; i < 200; ++i) rows.row(i, rounded.row(rows.item(i)));
    double off = 0, unit = 0;
    for (Index i = 0; i < 200; ++i) {
      double length = 0, square = 0;
      for (Index d = 0; d < 12; ++d) length += static_cast<double>(q.features(i, d)) * static_cast<double>(q.features(i, d));
      for (Index d = 0; d < 12; ++d) {
        off = std::max(off,
                       std::abs(static_cast<double>(q.features(i, d)) / std::sqrt(length) - static_cast<double>(rounded(i, d))));
        square += static_cast<double>(rounded(i, d)) * static_cast<double>(rounded(i, d));
      }
      unit = std::max(unit, std::abs(square - 1));
    }
    CHECK(off < 0.01);
    CHECK(off > 1e-5);
    CHECK(unit < 1e-6);
    DppInput<float> packed{.quality = q.quality, .panels = panels};
    for (const Index window : {0, 5}) {
      DppOptions o{.window = window, .normalize = true};
      const auto lazy = run<float>(packed, o, 15);
      o.evaluation = SelectionEvaluation::eager;
      CHECK(run<float>(packed, o, 15) == lazy);
      check_greedy(recops_test::dpp_reference<float>(q.input(), rounded, o), lazy, 15, none);
    }
    const auto all = run<float>(packed, {}, 20);
    CHECK(all.items.size() == 12);
    CHECK(all.status == SelectionStatus::rank_exhausted);
  }
}

TEST_CASE("dpp_map: a duplicate is redundant, however many columns it has", "[diversity][dpp]") {
  Request<float> q;
  q.quality = Vector<float>(2, 1.0f);
  q.features = Matrix<float>(2, 1024, 0.0f);
  for (Index i = 0; i < 2; ++i) {
    q.features(i, 0) = 1;
    for (Index d = 1; d < 1024; d += 2) q.features(i, d) = 0x1p-13f;  // the square of each is lost beside 1, all of them are not
  }
  const auto got = run<float>(q.input(), {}, 2);
  CHECK(got.items.size() == 1);
  CHECK(got.status == SelectionStatus::rank_exhausted);
}

TEMPLATE_TEST_CASE("dpp_map: rank, filling, equal lengths, invariance", "[diversity][dpp]", float, double) {
  using T = TestType;
  Random random(recops_test::seed(), 5);
  auto q = normal_request<T>(random, 90, 8, 0.4);
  const auto all = run<T>(q.input(), {.normalize = true}, 20);
  CHECK(all.items.size() == 8);
  CHECK(all.status == SelectionStatus::rank_exhausted);
  const auto filled = run<T>(q.input(), {.normalize = true, .fill = DppFill::by_quality}, 20);
  REQUIRE(filled.items.size() == 20);
  CHECK(std::equal(all.items.begin(), all.items.end(), filled.items.begin()));
  std::vector<std::int32_t> order(90);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return q.quality[a] > q.quality[b]; });
  std::erase_if(order, [&](auto i) { return std::count(all.items.begin(), all.items.end(), i) > 0; });
  CHECK(std::equal(filled.items.begin() + 8, filled.items.end(), order.begin()));
  for (std::size_t t = 8; t < 20; ++t) CHECK(filled.scores[t] == -std::numeric_limits<T>::infinity());
  CHECK(run<T>(q.input(), {.normalize = true, .alpha = 0.9}, 20).items.size() == 20);

  auto scaled = q;
  for (auto& v : scaled.quality) v *= T(64);
  CHECK(run<T>(scaled.input(), {.normalize = true}, 8).items == all.items);
  auto equal = q;
  equal.quality.fill(T(1));
  CHECK(run<T>(equal.input(), {.normalize = true}, 3).items.front() == 0);
  Request<T> orthogonal;
  orthogonal.quality = {T(1), T(3), T(2), T(3)};
  orthogonal.features = {{T(1), T(0), T(0), T(0)}, {T(0), T(1), T(0), T(0)}, {T(0), T(0), T(1), T(0)}, {T(0), T(0), T(0), T(1)}};
  CHECK(run<T>(orthogonal.input(), {}, 4).items == std::vector<std::int32_t>{1, 3, 2, 0});
  CHECK(run<T>(q.input(), {.window = 1}, 90).items.size() == 90);  // nothing but the candidate: by q |x|

  // sum of scores = log det of the picks
  const auto ref = recops_test::dpp_reference<T>(q.input(), q.features, {.normalize = true});
  long double sum = 0;
  std::vector<std::int32_t> before;
  for (std::size_t t = 0; t < 5; ++t) {
    sum += std::log(ref.volumes(before)[static_cast<std::size_t>(all.items[t])]);
    before.push_back(all.items[t]);
  }
  CHECK(std::accumulate(all.scores.begin(), all.scores.begin() + 5, 0.0) == Approx(static_cast<double>(sum)).margin(1e-4));

  // theta: the exchange rate of relevance
  Vector<T> r{T(0.5), T(2), std::numeric_limits<T>::quiet_NaN()}, quality(3);
  dpp_quality<T>(r, 0.5, quality);
  CHECK(static_cast<double>(quality[0]) == Approx(std::exp(-0.75)));
  CHECK((quality[1] == T(1) && quality[2] == T(0)));
}

TEMPLATE_TEST_CASE("dpp_map leaves out what is not finite, and it harms nothing else", "[diversity][dpp]", float, double) {
  using T = TestType;
  const T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  Random random(recops_test::seed(), 6);
  const auto clean = normal_request<T>(random, 130, 6, 0.5);
  auto masked = clean, dirty = clean;
  masked.allowed = Vector<std::uint8_t>(130, 1);
  dirty.quality[3] = nan;
  dirty.quality[4] = inf;
  dirty.quality[5] = T(-2);
  dirty.quality[9] = T(0);
  dirty.features(6, 0) = nan;
  dirty.features(7, 3) = -inf;
  dirty.features(8, 5) = std::numeric_limits<T>::max();
  for (const Index i : {6, 7, 8}) dirty.quality[i] = T(50);  // tempting
  for (const Index i : {3, 4, 5, 6, 7, 8, 9}) masked.allowed[i] = 0;
  dirty.history = {{T(1), nan, T(0), T(0), T(0), T(0)}};
  for (const Index window : {0, 4}) {
    for (const auto evaluation : {SelectionEvaluation::eager, SelectionEvaluation::lazy}) {
      for (const bool normalize : {false, true}) {
        const DppOptions o{.window = window, .normalize = normalize, .fill = DppFill::by_quality, .evaluation = evaluation};
        const auto expected = run<T>(masked.input(), o, 20);
        const auto got = run<T>(dirty.input(), o, 20);
        CHECK(got.items == expected.items);
      }
    }
    Matrix<T> kernel = kernel_of<T>(recops_test::dpp_reference<T>(clean.input(), clean.features, {}));
    const auto before = run_kernel<T>(kernel, masked.allowed, {.window = window}, 6);
    for (Index i = 0; i < 130; ++i) kernel(i, 5) = kernel(5, i) = kernel(i, 8) = nan;
    kernel(8, 8) = inf;
    CHECK(run_kernel<T>(kernel, masked.allowed, {.window = window}, 6) == before);
    CHECK(run_kernel<T>(kernel, {}, {.window = window, .fill = DppFill::by_quality}, 130).items.size() >= 100);
  }
  Request<T> hopeless;
  hopeless.quality = Vector<T>(40, nan);
  hopeless.features = Matrix<T>(40, 3, T(1));
  CHECK(run<T>(hopeless.input(), {}, 3).status == SelectionStatus::exhausted);
  CHECK(run<T>(Request<T>{}.input(), {}, 3).status == SelectionStatus::exhausted);
  CHECK(run<T>(clean.input(), {}, 0).items.empty());
  hopeless.quality.fill(T(1));
  hopeless.features = Matrix<T>(40, 0);
  CHECK(run<T>(hopeless.input(), {}, 3).status == SelectionStatus::rank_exhausted);
}

TEMPLATE_TEST_CASE("dpp_map on every instruction set, in a batch, on threads, without allocating", "[diversity][dpp]", float,
                   double) {
  using T = TestType;
  Random random(recops_test::seed(), 7);
  const auto q = normal_request<T>(random, 190, 17, 0.5);
  for (const Index window : {0, 4}) {
    const DppOptions o{.window = window, .normalize = true};
    const auto expected = run<T>(q.input(), o, 12);
    const auto check = [&](auto arch) {
      const auto got = run<T, decltype(arch)>(q.input(), o, 12);
      CHECK(got.items == expected.items);
      for (std::size_t t = 0; t < 12; ++t) CHECK(got.scores[t] == Approx(expected.scores[t]).margin(1e-4));
    };
    std::apply([&](auto... arch) { (check(arch), ...); }, simd::Architectures{});
  }
  const std::vector<std::int32_t> offsets{0, 70, 70, 190};
  const SelectionBatch<T> batch{.relevance = q.quality, .features = JaggedView<const T>(q.features, offsets)};
  Matrix<std::int32_t> picks(3, 12);
  Matrix<T> scores(3, 12);
  Vector<std::int32_t> counts(3);
  recops_test::Threads threads{3};
  Workspace scratch(make_executor(threads, 3));
  dpp_map<T>(batch, {.normalize = true}, picks, scores, counts, scratch);
  for (Index b = 0; b < 3; ++b) {
    const Index first = batch.features.begin(b), n = batch.features.length(b);
    const auto alone =
        run<T>({.quality = batch.relevance.segment(first, n), .features = batch.features[b]}, {.normalize = true}, 12);
    REQUIRE(counts[b] == static_cast<std::int32_t>(alone.items.size()));
    CHECK(std::equal(alone.items.begin(), alone.items.end(), picks.row(b)));
    CHECK(std::equal(alone.scores.begin(), alone.scores.end(), scores.row(b)));
  }
  const auto kernel = kernel_of<T>(recops_test::dpp_reference<T>(q.input(), q.features, {}));
  Workspace own;
  const auto everything = [&] {
    for (const Index window : {0, 5}) {
      const DppOptions o{.window = window, .fill = DppFill::by_quality};
      dpp_map<T>(q.input(), o, VectorView<std::int32_t>(picks.row(0), 12), VectorView<T>(scores.row(0), 12), own);
      dpp_map_kernel<T>(kernel, {}, nullptr, o, VectorView<std::int32_t>(picks.row(0), 12), VectorView<T>(scores.row(0), 12),
                        own);
    }
  };
  everything();
  const recops_test::AllocationCounter counter;
  everything();
  CHECK(counter.count() == 0);
}

TEST_CASE("dpp_map: a history row that is not finite takes no place in the window", "[diversity][dpp]") {
  Random random(recops_test::seed(), 73);
  Matrix<double> x(30, 6), history(6, 6), finite(5, 6);
  Vector<double> quality(30);
  for (double& v : quality) v = std::exp(0.3 * random.normal());
  for (Matrix<double>* m : {&x, &history})
    for (Index i = 0; i < m->rows() * 6; ++i) m->data()[i] = random.normal();
  std::copy_n(history.row(0), 24, finite.row(0));
  std::copy_n(history.row(5), 6, finite.row(4));
  history(4, 2) = std::numeric_limits<double>::quiet_NaN();
  const DppInput<double> with{.quality = quality, .features = x, .history = history},
      without{.quality = quality, .features = x, .history = finite};
  for (const Index window : {0, 1, 2, 3, 4, 20}) {
    const DppOptions o{.window = window, .alpha = 0.9};
    const auto picks = run<double>(without, o, 8);
    CHECK(run<double>(with, o, 8) == picks);
    Workspace ws;  // and the backward pass takes the same rows for shown
    Matrix<double> a(30, 6, 0.0), b(30, 6, 0.0);
    const Vector<double> up(8, 1.0);
    Vector<std::int32_t> items(8);
    std::copy(picks.items.begin(), picks.items.end(), items.begin());
    dpp_map_backward<double>(with, o, items, up, {.features = a}, ws);
    dpp_map_backward<double>(without, o, items, up, {.features = b}, ws);
    CHECK(std::equal(a.data(), a.data() + 180, b.data()));
  }
}

TEST_CASE("dpp_map_backward agrees with central differences and adds", "[diversity][dpp]") {
  Random random(recops_test::seed(), 9);
  for (int trial = 0; trial < 12; ++trial) {
    auto q = recops_test::normal_request<double>(random, 12, 8, trial % 3);
    for (auto& v : q.relevance) v = std::exp(0.3 * v);
    Vector<double> diagonal(trial % 4 == 3 ? 12 : 0, 0.5);
    const DppOptions o{.window = trial % 2 == 0 ? 0 : 4, .normalize = trial % 5 != 0, .alpha = trial % 3 == 1 ? 0.8 : 1.0};
    const auto input = [&] {
      return DppInput<double>{.quality = q.relevance, .features = q.features, .history = q.history, .diagonal = diagonal};
    };
    CAPTURE(trial, o.window, o.alpha);
    recops_test::check_backward(
        q, 5, [&](auto picks, auto scores, Workspace& ws) { dpp_map<double>(input(), o, picks, scores, ws); },
        [&](auto picks, auto g, const SelectionGradient<double>& to, Workspace& ws) {
          dpp_map_backward<double>(input(), o, picks, g, to, ws);
        },
        [&](const std::vector<std::int32_t>& before, Index i) {
          const auto d2 = recops_test::dpp_reference<double>(input(), q.features, o).volumes(before);
          return static_cast<double>(std::log(d2[static_cast<std::size_t>(i)]));
        });
  }
}

TEST_CASE("dpp_map agrees with the published fast greedy and with slogdet", "[diversity][dpp]") {
  const recops_test::Golden golden("list_selectors");
  for (Index number = 0; number < static_cast<Index>(golden.scalar("dpp.cases")); ++number) {
    const std::string name = "dpp." + std::to_string(number) + ".";
    const auto values = golden.values<double>(name + "relevance"), option = golden.values<double>(name + "options");
    const auto features = golden.matrix<double>(name + "features"), history = golden.matrix<double>(name + "history");
    Vector<double> quality(static_cast<Index>(values.size()));
    std::copy(values.begin(), values.end(), quality.begin());
    const DppOptions o{.window = static_cast<Index>(option[1]), .normalize = option[3] != 0, .alpha = option[2]};
    const auto got =
        run<double>({.quality = quality, .features = features, .history = history}, o, static_cast<Index>(option[0]));
    CAPTURE(number);
    CHECK(got.items == golden.values<std::int32_t>(name + "picks"));
    const auto scores = golden.values<double>(name + "scores");
    for (std::size_t t = 0; t < scores.size(); ++t) CHECK(got.scores[t] == Approx(scores[t]).margin(1e-9));
  }
}

TEST_CASE("dpp_map says what is wrong and touches nothing", "[diversity][dpp]") {
  using recops_test::contains;
  Random random(recops_test::seed(), 8);
  const auto q = normal_request<float>(random, 20, 5, 0.5);
  Workspace scratch;
  Vector<std::int32_t> picks(4, 7);
  Vector<float> scores(4, 7.0f), few(3, 1.0f);
  const auto attempt = [&](const DppInput<float>& in, const DppOptions& o = {}) {
    dpp_map<float>(in, o, picks, scores, scratch);
  };
  auto in = q.input();
  in.quality = few;
  CHECK_THROWS_WITH(attempt(in), contains("dpp_map: features: expected shape [3, _]"));
  in = q.input();
  in.diagonal = few;
  CHECK_THROWS_WITH(attempt(in), contains("dpp_map: diagonal"));
  const Matrix<float> narrow(2, 4, 0.0f), square(19, 20, 0.0f);
  in = q.input();
  in.history = narrow;
  CHECK_THROWS_WITH(attempt(in), contains("dpp_map: history"));
  CHECK_THROWS_WITH(attempt(q.input(), {.window = -1}), contains("window"));
  CHECK_THROWS_WITH(attempt(q.input(), {.alpha = 1.5}), contains("0 <= alpha <= 1"));
  CHECK_THROWS_WITH(attempt(q.input(), {.eps = 1}), contains("eps"));
  CHECK_THROWS_WITH(dpp_map<float>(q.input(), {}, picks, few, scratch), contains("scores"));
  CHECK_THROWS_WITH(dpp_map_kernel<float>(square, {}, nullptr, {}, picks, scores, scratch), contains("dpp_map_kernel: kernel"));
  CHECK_THROWS_WITH(dpp_quality<float>(few, 1, few), contains("theta"));
  const std::vector<std::int32_t> offsets{0, 12, 21};
  Matrix<std::int32_t> many(2, 3, 7);
  CHECK_THROWS_WITH(
      dpp_map<float>(SelectionBatch<float>{.relevance = q.quality, .features = JaggedView<const float>(q.features, offsets)}, {},
                     many, {}, {}, scratch),
      contains("offsets"));
  CHECK(std::count(picks.begin(), picks.end(), 7) == 4);
  CHECK(std::count(scores.begin(), scores.end(), 7.0f) == 4);
}

TEST_CASE("dpp_map: scratch of a kernel grows with its items, not with the places", "[diversity][dpp]") {
  const Matrix<float> kernel = [] {
    Matrix<float> m(10, 10, 0.0f);
    for (Index i = 0; i < 10; ++i) m(i, i) = 1;
    return m;
  }();
  for (const Index window : {0, 1, 4, 10, 20}) {
    Vector<std::int32_t> picks(100000);
    Workspace scratch;
    const Selection done = dpp_map_kernel<float>(kernel, {}, nullptr, {.window = window}, picks, {}, scratch);
    CHECK((done.count == 10 && done.status == SelectionStatus::exhausted));
    for (Index t = 0; t < 12; ++t) CHECK(picks[t] == (t < 10 ? t : -1));
  }
}

TEMPLATE_TEST_CASE("dpp_map: strided rows, scores that are not wanted, more places than items", "[diversity][dpp]", float,
                   double) {
  using T = TestType;
  const auto request = []<class S>(const SelectionInput<S>& in) {
    return DppInput<S>{in.relevance, in.features, {}, in.history, in.allowed, {}, in.constraints};
  };
  for (const Index window : {0, 4}) {
    const DppOptions o{.window = window};
    recops_test::check_strided<T>([&](const SelectionInput<T>& in, auto picks, auto scores,
                                      Workspace& ws) { dpp_map<T>(request(in), o, picks, scores, ws); },
                                  [&](const SelectionBatch<T>& batch, auto picks, auto scores, Workspace& ws) {
                                    dpp_map<T>(batch, o, picks, scores, {}, ws);
                                  },
                                  [&](const SelectionInput<T>& in, auto picks, auto g, const SelectionGradient<T>& to,
                                      Workspace& ws) { dpp_map_backward<T>(request(in), o, picks, g, to, ws); });
    // A kernel with gaps.
    Random random(recops_test::seed(), 14);
    const auto q = normal_request<T>(random, 70, 12, 0.3);
    const Matrix<T> kernel = kernel_of<T>(recops_test::dpp_reference<T>(q.input(), q.features, o));
    recops_test::Padded<T> strided(kernel.view());
    CHECK(run_kernel<T>(strided, {}, o, 8) == run_kernel<T>(kernel, {}, o, 8));
  }
  for (const Index window : {0, 4, 50000}) {
    recops_test::check_many_places([&](const SelectionInput<float>& in, auto picks, Workspace& ws) {
      return dpp_map<float>(request(in), {.window = window}, picks, {}, ws);
    });
  }
}
