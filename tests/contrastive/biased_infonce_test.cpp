// Oracles: PyTorch (golden/contrastive.py); the formula in double (reference.hpp); central differences; what holds of any softmax.
#include <recops/contrastive/biased_infonce.hpp>
#include <recops/train/gradient_check.hpp>

#include <numeric>

#include "contrastive/reference.hpp"
#include "support/allocations.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {

/// Gradients of one call, in memory with gaps.
template <class T>
struct Gradients {
  Padded<T> du, dv, dbias;
  Vector<T> dcolumn_bias;
  double dlog_scale = 0;
  Gradients(Index b, Index k, Index d) : du(b, d), dv(k, d), dbias(b, k), dcolumn_bias(k, T(0)) {}
  InfoNceGradient<T> all(double upstream = 1) {
    return {.du = du, .dv = dv, .dcolumn_bias = dcolumn_bias, .dbias = dbias, .dlog_scale = &dlog_scale, .upstream = upstream};
  }
};

template <class T>
double column_difference(const Vector<T>& got, const std::vector<double>& want) {
  double most = 0;
  for (Index j = 0; j < got.size(); ++j)
    most = std::max(most, std::abs(static_cast<double>(got[j]) - want[static_cast<std::size_t>(j)]));
  return most;
}

constexpr double inf = std::numeric_limits<double>::infinity();

}  // namespace

TEMPLATE_TEST_CASE("biased InfoNCE is PyTorch's, with every option", "[contrastive][golden]", float, double) {
  using T = TestType;
  const Golden golden("contrastive");
  Workspace ws;
  const double bound = std::is_same_v<T, float> ? 1e-5 : 1e-12, log_scale = 0.7;
  const Matrix<T> u = golden.matrix<T>("u"), v = golden.matrix<T>("v"), b = golden.matrix<T>("b"), q = golden.matrix<T>("q");
  const auto c = golden.values<T>("c"), w = golden.values<T>("w");
  const auto pos = golden.values<std::int64_t>("pos"), ids = golden.values<std::int64_t>("ids"),
             none = std::vector<std::int64_t>(), row_labels = golden.values<std::int64_t>("row_labels"),
             column_labels = golden.values<std::int64_t>("column_labels");
  const Matrix<std::uint8_t> exclude = golden.matrix<std::uint8_t>("exclude");
  std::vector<std::int64_t> row_ids;
  for (const std::int64_t p : pos) row_ids.push_back(ids[static_cast<std::size_t>(p)]);
  InfoNceOptions<T> labels{.log_scale = log_scale, .row_labels = row_labels, .column_labels = column_labels}, inside = labels;
  inside.multi_positive = MultiPositive::inside_log;
  const struct {
    std::string name;
    InfoNceOptions<T> options;
  } cases[] = {{"plain", {.log_scale = log_scale}},
               {"all",
                {.log_scale = log_scale,
                 .weights = w,
                 .column_bias = c,
                 .bias = b,
                 .exclude = exclude,
                 .row_ids = row_ids,
                 .column_ids = ids}},
               {"soft", {.log_scale = log_scale, .column_bias = c, .exclude = exclude, .targets = q}},
               {"outside", labels},
               {"inside", inside},
               {"margin", {.log_scale = log_scale, .margin = 0.5}}};
  for (const auto& each : cases) {
    const std::string& name = each.name;
    const InfoNceOptions<T>& options = each.options;
    CAPTURE(name);
    const bool one = options.targets.empty() && options.row_labels.empty();
    const IndexView positives = one ? IndexView(pos) : IndexView(none);
    Gradients<T> g(u.rows(), v.rows(), u.cols());
    const double loss = biased_infonce_value_and_grad<T>(u, v, positives, options, g.all(), ws);
    CHECK(std::abs(loss - golden.scalar(name + ".loss")) < bound);
    CHECK(max_difference(g.du.view(), golden.matrix<double>(name + ".du").view()) < bound);
    CHECK(max_difference(g.dv.view(), golden.matrix<double>(name + ".dv").view()) < bound);
    CHECK(std::abs(g.dlog_scale - golden.scalar(name + ".dls")) < bound);
    if (!options.column_bias.empty()) CHECK(column_difference(g.dcolumn_bias, golden.values<double>(name + ".dc")) < bound);
    if (!options.bias.empty()) CHECK(max_difference(g.dbias.view(), golden.matrix<double>(name + ".db").view()) < bound);
    CHECK((g.du.intact() && g.dv.intact() && g.dbias.intact()));
    CHECK(biased_infonce<T>(u, v, positives, options, ws) == loss);
    // The second call adds; it allocates nothing; the upstream gradient multiplies.
    CHECK(count_allocations([&] { biased_infonce_value_and_grad<T>(u, v, positives, options, g.all(-2), ws); }) == 0);
    CHECK(std::abs(static_cast<double>(g.du(1, 0)) + golden.matrix<double>(name + ".du")(1, 0)) < 3 * bound);
    CHECK(std::abs(g.dlog_scale + golden.scalar(name + ".dls")) < 3 * bound);
  }
}

TEMPLATE_TEST_CASE("blocks, kept or made again, by any number of threads", "[contrastive]", float, double) {
  using T = TestType;
  Random random = random_stream(901);
  const double bound = std::is_same_v<T, float> ? 2e-5 : 1e-12;
  Workspace ws;
  Threads threads{3};
  for (const auto& [rows, cols, width] : {std::array<Index, 3>{1, 1, 1}, {5, 2, 3}, {3, 257, 17}, {121, 300, 4}, {250, 9, 8}}) {
    CAPTURE(rows, cols, width);
    Matrix<double> u = random_matrix<double>(rows, width, random), v = random_matrix<double>(cols, width, random);
    std::vector<std::int32_t> positives, row_ids, column_ids;
    std::vector<std::uint8_t> candidates;
    std::vector<T> weights, bias;
    for (Index i = 0; i < rows; ++i) {
      positives.push_back(static_cast<std::int32_t>(random.below(cols + 1) - 1));
      row_ids.push_back(static_cast<std::int32_t>(random.below(5)));
      weights.push_back(random.chance(0.2) ? T(0) : static_cast<T>(1 + random.below(3)));
    }
    for (Index j = 0; j < cols; ++j) {
      column_ids.push_back(static_cast<std::int32_t>(random.below(5)));
      candidates.push_back(random.chance(0.8));
      bias.push_back(static_cast<T>(static_cast<float>(random.normal())));
    }
    const auto at = [](const auto& list, Index i) { return list[static_cast<std::size_t>(i)]; };
    const auto rule = [](Index row, Index first, VectorView<std::uint8_t> excluded) {
      for (Index j = 0; j < excluded.size(); ++j) excluded[j] |= (row + first + j) % 7 == 3;
    };
    const auto want = infonce_reference(
        u, v, 0.4, [&](Index, Index j) { return static_cast<double>(at(bias, j)); },
        [&](Index i, Index j) {
          if (!at(candidates, j) || i == j) return true;
          return (at(row_ids, i) == at(column_ids, j) || (i + j) % 7 == 3) && j != at(positives, i);
        },
        [&](Index i, Index j) { return j == at(positives, i) ? 1.0 : 0.0; },
        [&](Index i) { return static_cast<double>(at(weights, i)); });
    Matrix<T> x(rows, width), y(cols, width);
    for (Index i = 0; i < rows * width; ++i) x.data()[i] = static_cast<T>(u.data()[i]);
    for (Index j = 0; j < cols; ++j)  // nobody reads what is nobody's candidate
      for (Index d = 0; d < width; ++d)
        y(j, d) = at(candidates, j) ? static_cast<T>(v(j, d)) : std::numeric_limits<T>::quiet_NaN();
    InfoNceOptions<T> options{.log_scale = 0.4,
                              .weights = weights,
                              .column_bias = bias,
                              .candidates = candidates,
                              .exclude_diagonal = true,
                              .row_ids = row_ids,
                              .column_ids = column_ids,
                              .rule = make_exclude_rule(rule)};
    Gradients<T> kept(rows, cols, width), again(rows, cols, width), shared(rows, cols, width);
    const double loss = biased_infonce_value_and_grad<T>(Padded<T>(x), Padded<T>(y), positives, options, kept.all(), ws);
    CHECK(std::abs(loss - want.loss) < bound);
    CHECK(max_difference(kept.du.view(), want.du.view()) < bound);
    CHECK(max_difference(kept.dv.view(), want.dv.view()) < bound);
    CHECK(max_difference(kept.dbias.view(), want.r.view()) < bound);
    CHECK(std::abs(kept.dlog_scale - want.dlog_scale) < 10 * bound);
    // No difference at all between kept and made again, one thread and several.
    options.kept_bytes = 0;
    CHECK(biased_infonce_value_and_grad<T>(x, y, positives, options, again.all(), ws) == loss);
    Workspace many(make_executor(threads, 3));
    CHECK(biased_infonce_value_and_grad<T>(x, y, positives, options, shared.all(), many) == loss);
    for (Gradients<T>* other : {&again, &shared}) {
      CHECK(max_difference(other->du.view(), kept.du.view()) == 0);
      CHECK(max_difference(other->dv.view(), kept.dv.view()) == 0);
      CHECK(max_difference(other->dbias.view(), kept.dbias.view()) == 0);
      CHECK(std::equal(other->dcolumn_bias.begin(), other->dcolumn_bias.end(), kept.dcolumn_bias.begin()));
      CHECK(other->dlog_scale == kept.dlog_scale);
    }
    // One side alone; the other is left as it is.
    Padded<T> only(rows, width);
    biased_infonce_value_and_grad<T>(x, y, positives, options, {.du = only}, ws);
    CHECK(max_difference(only.view(), kept.du.view()) == 0);
  }
}

TEST_CASE("the gradient of biased InfoNCE by central differences", "[contrastive]") {
  Random random = random_stream(902);
  Workspace ws;
  Matrix<double> u = random_matrix<double>(5, 3, random), v = random_matrix<double>(9, 3, random),
                 b = random_matrix<double>(5, 9, random), q(5, 9, 0.0);
  b(0, 4) = -inf;
  for (Index i = 0; i < 4; ++i) q(i, 2 * i) = 0.5, q(i, i + 1) += random.uniform();
  const std::vector<int> positives{0, 8, -1, 4, 4}, none, row_labels{1, 2, 1, 7, 0}, column_labels{1, 1, 2, 0, 3, 2, 1, 0, 0};
  for (const int kind : {0, 1, 2, 3}) {
    CAPTURE(kind);
    double log_scale = 0.3;
    const auto options = [&] {
      InfoNceOptions<double> o{.log_scale = log_scale, .bias = b};
      if (kind == 1) o.targets = q;
      if (kind >= 2) o.row_labels = row_labels, o.column_labels = column_labels;
      if (kind == 3) o.multi_positive = MultiPositive::inside_log;
      return o;
    };
    const IndexView right = kind == 0 ? IndexView(positives) : IndexView(none);
    const auto loss = [&] { return biased_infonce<double>(u, v, right, options(), ws); };
    Matrix<double> du(5, 3, 0.0), dv(9, 3, 0.0), db(5, 9, 0.0);
    Vector<double> dscale(1, 0.0);
    biased_infonce_value_and_grad<double>(u, v, right, options(), {.du = du, .dv = dv, .dbias = db, .dlog_scale = dscale.data()},
                                          ws);
    GradientReport report;
    check_gradient("u", leaf_values(u), leaf_values(std::as_const(du)), loss, report);
    check_gradient("v", leaf_values(v), leaf_values(std::as_const(dv)), loss, report);
    CHECK(db(0, 4) == 0);
    b(0, 4) = -1e9;  // a difference of infinities says nothing
    check_gradient("bias", leaf_values(b), leaf_values(std::as_const(db)), loss, report);
    b(0, 4) = -inf;
    check_gradient("log_scale", VectorView<double>(&log_scale, 1), VectorView<const double>(dscale), loss, report);
    CAPTURE(report.where, report.numeric, report.analytic);
    CHECK(report.worst < 1e-7);
    for (Index i = 0; i < 5; ++i) CHECK(std::abs(std::accumulate(db.row(i), db.row(i) + 9, 0.0)) < 1e-15);  // a softmax's
  }
}

TEMPLATE_TEST_CASE("what holds of a softmax, and its edges", "[contrastive]", float, double) {
  using T = TestType;
  Random random = random_stream(903);
  Workspace ws;
  const Matrix<T> u = random_matrix<T>(4, 6, random), v = random_matrix<T>(7, 6, random), zeros(4, 6, T(0)),
                  one = random_matrix<T>(1, 6, random);
  const std::vector<int> positives{0, 3, 6, 2}, first{0, 0, 0, 0}, left{-1, -1, -1, -1}, none;
  const double bound = std::is_same_v<T, float> ? 1e-5 : 1e-12, loss = biased_infonce<T>(u, v, positives, {}, ws);
  CHECK(loss > 0);
  const std::vector<T> same(7, T(3));  // a bias that all columns have
  CHECK(std::abs(biased_infonce<T>(u, v, positives, {.column_bias = same}, ws) - loss) < bound);
  CHECK(std::abs(biased_infonce<T>(zeros, v, positives, {}, ws) - std::log(7.0)) < bound);              // all logits equal
  CHECK(std::abs(biased_infonce<T>(u, v, positives, {.log_scale = -60}, ws) - std::log(7.0)) < bound);  // infinite temperature
  Matrix<T> du(4, 6, T(0)), dv(1, 6, T(0));
  CHECK(biased_infonce_value_and_grad<T>(u, one, first, {}, {.du = du, .dv = dv}, ws) == 0);  // the only candidate
  CHECK(biased_infonce_value_and_grad<T>(u, one, left, {}, {.du = du, .dv = dv}, ws) == 0);   // nothing that counts
  for (Index i = 0; i < 4; ++i) CHECK(std::all_of(du.row(i), du.row(i) + 6, [](T x) { return x == 0; }));
  const Matrix<T> no_rows(0, 6), no_columns(0, 6);
  CHECK(biased_infonce<T>(no_rows, v, none, {}, ws) == 0);
  CHECK(biased_infonce<T>(u, no_columns, left, {}, ws) == 0);
  // A scale beyond 100 is 100, and has no gradient.
  double dscale = 0;
  const double clamped = biased_infonce_value_and_grad<T>(u, v, positives, {.log_scale = 5}, {.dlog_scale = &dscale}, ws);
  CHECK(dscale == 0);
  CHECK(clamped == biased_infonce<T>(u, v, positives, {.log_scale = std::log(100.0)}, ws));
  // Extreme logits, all but the positive left out, and everything at -infinity.
  Matrix<T> large = u;
  for (T& x : leaf_values(large)) x *= T(1e4);
  Matrix<T> dlarge(4, 6, T(0));
  CHECK(std::isfinite(biased_infonce_value_and_grad<T>(large, v, positives, {}, {.du = dlarge}, ws)));
  for (const T x : leaf_values(dlarge)) CHECK(std::isfinite(x));
  const Matrix<std::uint8_t> all(4, 7, 1);
  CHECK(biased_infonce<T>(u, v, positives, {.exclude = all}, ws) == 0);
  const Matrix<T> nothing(4, 7, -std::numeric_limits<T>::infinity());
  CHECK(biased_infonce<T>(u, v, positives, {.bias = nothing}, ws) == 0);
  // Positives far below the maximum have their gradient even so.
  const std::vector<int> labels{1, 0}, rows{1};
  const Matrix<T> far{{T(-100)}, {T(100)}}, unit{{T(1)}};
  Matrix<T> dunit(1, 1, T(0));
  const double inside = biased_infonce_value_and_grad<T>(
      unit, far, none, {.row_labels = rows, .column_labels = labels, .multi_positive = MultiPositive::inside_log}, {.du = dunit},
      ws);
  CHECK(std::abs(inside - 200) < 1e-4);
  CHECK(std::abs(static_cast<double>(dunit(0, 0)) - 200) < 1e-3);
}

TEST_CASE("what there is to watch", "[contrastive]") {
  Workspace ws;
  const Matrix<double> u{{1, 0}, {0, 1}, {1, 0}}, v{{2, 0}, {0, 1}, {0, 3}};
  const std::vector<int> positives{0, 1, -1};
  const std::vector<double> weights{1, 3, 1};
  InfoNceStatistics s;
  Matrix<double> du(3, 2, 0.0);
  const double loss = biased_infonce_value_and_grad<double>(u, v, positives, {.weights = weights}, {.du = du}, s, ws);
  CHECK(std::abs(s.accuracy - 0.25) < 1e-15);              // row 1 finds column 2 better
  CHECK(std::abs(s.hardest_negative - 0.75 * 3) < 1e-15);  // 0 and 3
  const double p0 = std::exp(2) / (std::exp(2) + 2), p1 = std::exp(1) / (1 + std::exp(1) + std::exp(3));
  CHECK(std::abs(s.positive_probability - (p0 + 3 * p1) / 4) < 1e-15);
  InfoNceStatistics again;
  CHECK(biased_infonce<double>(u, v, positives, {.weights = weights}, again, ws) == loss);
  CHECK(again.accuracy == s.accuracy);
  const std::vector<int> none;
  const Matrix<double> q(3, 3, 1.0);
  CHECK(error_of([&] { biased_infonce<double>(u, v, none, {.targets = q}, s, ws); }).find("statistics") != std::string::npos);
}

TEMPLATE_TEST_CASE("a row that is not finite keeps to itself", "[contrastive]", float, double) {
  using T = TestType;
  Random random = random_stream(904);
  Workspace ws;
  Matrix<T> u = random_matrix<T>(3, 4, random);
  const Matrix<T> v = random_matrix<T>(5, 4, random);
  const std::vector<int> positives{0, 1, 2}, without{0, -1, 2};
  for (const T bad : {std::numeric_limits<T>::quiet_NaN(), std::numeric_limits<T>::infinity()}) {
    for (const Index kept : {Index{0}, Index{1} << 20}) {
      u(1, 2) = bad;
      Gradients<T> g(3, 5, 4), h(3, 5, 4);
      CHECK(std::isnan(biased_infonce_value_and_grad<T>(u, v, positives, {.kept_bytes = kept}, g.all(3), ws)));
      biased_infonce_value_and_grad<T>(u, v, without, {.kept_bytes = kept}, h.all(2), ws);  // two of three rows, so 2 for 3
      CHECK(max_difference(g.dv.view(), h.dv.view()) < 1e-5);
      CHECK(max_difference(g.du.view().middle_rows(0, 1), h.du.view().middle_rows(0, 1)) < 1e-5);
      CHECK(std::isnan(g.du(1, 0)));
      CHECK(std::abs(g.dlog_scale - h.dlog_scale) < 1e-5);
    }
  }
}

TEMPLATE_TEST_CASE("a candidate that is not finite is unseen by rows it is left out for", "[contrastive]", float, double) {
  using T = TestType;
  constexpr T never = -std::numeric_limits<T>::infinity();
  Random random = random_stream(905);
  Workspace ws;
  const Matrix<T> u = random_matrix<T>(2, 4, random);
  Matrix<T> v = random_matrix<T>(3, 4, random);
  const MatrixView<const T> others = std::as_const(v).view().middle_rows(0, 2);
  const std::vector<int> positives{0, 1}, row_ids{7, 7}, column_ids{1, 2, 7};
  const Vector<T> column_bias{T(0), T(0), never};
  const Matrix<T> bias{{T(0), T(0), never}, {T(0), T(0), never}};
  for (const T bad : {std::numeric_limits<T>::quiet_NaN(), std::numeric_limits<T>::infinity()}) {
    v(2, 1) = bad;
    for (const Index kept : {Index{0}, Index{1} << 20}) {
      for (const InfoNceOptions<T>& o : {InfoNceOptions<T>{.row_ids = row_ids, .column_ids = column_ids, .kept_bytes = kept},
                                         InfoNceOptions<T>{.column_bias = column_bias, .kept_bytes = kept},
                                         InfoNceOptions<T>{.bias = bias, .kept_bytes = kept}}) {
        Gradients<T> g(2, 3, 4), h(2, 2, 4);
        const double loss = biased_infonce_value_and_grad<T>(u, v, positives, o, g.all(), ws);
        CHECK(std::abs(loss - biased_infonce_value_and_grad<T>(u, others, positives, {}, h.all(), ws)) < 1e-5);
        CHECK(max_difference(g.du.view(), h.du.view()) < 1e-5);
        CHECK(max_difference(g.dv.view().middle_rows(0, 2), h.dv.view()) < 1e-5);
        CHECK(g.dv(2, 0) == 0);
        CHECK(std::abs(g.dlog_scale - h.dlog_scale) < 1e-5);
      }
    }
  }
}

TEST_CASE("errors of biased InfoNCE leave the gradients as they were", "[contrastive]") {
  Workspace ws;
  const Matrix<float> u(3, 4, 1.0f), v(5, 4, 1.0f), narrow(5, 3, 1.0f), q(3, 5, 0.2f);
  const std::vector<int> positives{0, 1, 2}, beyond{0, 5, 2}, two{0, 1}, none;
  const std::vector<float> negative{1, -1, 1};
  Matrix<float> du(3, 4, 7.0f), wrong(5, 5);
  const auto message = [&](MatrixView<const float> candidates, IndexView p, const InfoNceOptions<float>& o,
                           const InfoNceGradient<float>& g) {
    return error_of([&] { biased_infonce_value_and_grad<float>(u, candidates, p, o, g, ws); });
  };
  const std::string name = "biased_infonce_value_and_grad: ";
  CHECK(message(narrow, positives, {}, {.du = du}) == name + "v: expected shape [_, 4], got [5, 3]");
  CHECK(message(v, beyond, {}, {.du = du}) == name + "positives: expected -1 or columns from 0 to below 5, got 5 at position 1");
  CHECK(message(v, two, {}, {.du = du}) == name + "positives: expected size 3, got 2");
  CHECK(message(v, positives, {.targets = q}, {.du = du}) == name + "positives: expected size 0, got 3");
  CHECK(message(v, positives, {.weights = negative}, {.du = du}) == name + "weights: expected weights >= 0, got -1");
  CHECK(message(v, positives, {.log_scale = inf}, {.du = du}) == name + "log_scale: expected a finite number, got inf");
  CHECK(message(v, positives, {.row_ids = positives}, {.du = du}) == name + "column_ids: expected size 5, got 0");
  CHECK(message(v, none, {.targets = q, .row_labels = positives, .column_labels = two}, {.du = du}) ==
        name + "targets: expected either targets or labels, got 2");
  CHECK(message(v, positives, {}, {.du = du, .dv = wrong}) == name + "dv: expected shape [5, 4], got [5, 5]");
  CHECK(message(v, none, {.margin = 0, .targets = q}, {.du = du}).find("margin") != std::string::npos);
  CHECK(std::all_of(du.row(0), du.row(0) + 12, [](float x) { return x == 7; }));
}
