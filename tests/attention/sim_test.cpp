/// Oracles: vectors made with PyTorch (golden/history_search.py), plain loops in double, central differences.
#include <recops/attention/sim.hpp>

#include <recops/train/gradient_check.hpp>
#include <vector>

#include "support/allocations.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

TEMPLATE_TEST_CASE("the soft search agrees with PyTorch", "[attention][sim][golden]", float, double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 1e-4 : 1e-11;
  const Golden golden("history_search");
  const auto history_offsets = golden.values<std::int64_t>("history_offsets"),
             candidate_offsets = golden.values<std::int64_t>("candidate_offsets");
  const Matrix<T> e = golden.matrix<T>("history"), q = golden.matrix<T>("candidates"), g = golden.matrix<T>("cotangent");
  Padded<T> history(e.view()), candidates(q.view()), dout(g.view());
  const JaggedView<const T> what(history.view(), history_offsets), who(candidates.view(), candidate_offsets);
  Workspace ws;
  Random random(1);
  SoftSearch<T> layer(8, 8, 5, random);
  layer.query.weight = golden.matrix<T>("sim.query");
  layer.key.weight = golden.matrix<T>("sim.key");
  SoftSearch<T> gradient = make_gradient(layer);
  Padded<T> y(q.rows(), 8, T(9)), dc(q.rows(), 8), dh(e.rows(), 8);
  Matrix<T> keys(e.rows(), 5), scores(q.rows(), 30);
  Matrix<std::int32_t> indices(q.rows(), 30);
  const auto all = [&] {
    layer.pooled(who, what, y, ws);
    layer.pooled_backward(who, what, dout, dc, dh, gradient, ws);
    layer.project_keys(history, keys, ws);
    layer.search(who, {keys.view(), history_offsets}, indices, scores, ws);
  };
  all();
  CHECK(max_difference(y.view(), golden.matrix<double>("sim.pooled").view()) <= tolerance);
  CHECK(max_difference(dc.view(), golden.matrix<double>("sim.dcandidates").view()) <= 10 * tolerance);
  CHECK(max_difference(dh.view(), golden.matrix<double>("sim.dhistory").view()) <= 10 * tolerance);
  CHECK(max_difference(gradient.query.weight.view(), golden.matrix<double>("sim.dquery").view()) <= 10 * tolerance);
  CHECK(max_difference(gradient.key.weight.view(), golden.matrix<double>("sim.dkey").view()) <= 10 * tolerance);
  CHECK((y.intact() && dc.intact() && dh.intact()));
  // Each candidate's scores in falling order, each the score of its position.
  const auto want = golden.values<double>("sim.scores");
  std::size_t at = 0;
  for (std::size_t b = 0; b + 1 < history_offsets.size(); ++b) {
    const Index length = history_offsets[b + 1] - history_offsets[b];
    for (Index i = candidate_offsets[b]; i < candidate_offsets[b + 1]; ++i, at += static_cast<std::size_t>(length)) {
      for (Index j = 0; j < 30; ++j) {
        if (j >= length) {
          CHECK(indices(i, j) == -1);
          continue;
        }
        CHECK(std::abs(static_cast<double>(scores(i, j)) - want[at + static_cast<std::size_t>(indices(i, j))]) < tolerance);
        CHECK((j == 0 || scores(i, j) <= scores(i, j - 1)));
      }
    }
  }
  CHECK(count_allocations(all) == 0);
}

TEMPLATE_TEST_CASE("Gram matrices, made or kept, and products with behaviours give one answer", "[attention][sim]", float,
                   double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 3e-5 : 1e-13;
  Random random = random_stream(650);
  Workspace ws;
  Threads threads{3};
  Workspace parallel(make_executor(threads, 3));
  // Users for whom either form is the cheaper one; none without candidates or behaviours is left out.
  const std::vector<std::int64_t> rows{0, 1, 41, 41, 44, 64}, keys{0, 700, 1300, 1310, 1310, 1311};
  for (const Index d : {3, 16}) {
    const Index dq = d + 1, da = 5, n = rows.back(), l = keys.back();
    const Matrix<T> q = random_matrix<T>(n, dq, random), wq = random_matrix<T>(da, dq, random),
                    wk = random_matrix<T>(da, d, random), g = random_matrix<T>(n, d, random);
    Matrix<T> e = random_matrix<T>(l, d, random);
    for (Index i = 0; i < l * d; ++i) e.data()[i] /= T(25);  // so that sums over behaviours are of size 1
    const JaggedView<const T> who(q.view(), rows), what(e.view(), keys);
    Matrix<double> want(n, d, 0.0), dh(l, d, 0.0), dw(n, d, 0.0), dq_want(n, dq, 0.0), dwq(da, dq, 0.0), dwk(da, d, 0.0);
    for (std::size_t b = 0; b + 1 < rows.size(); ++b)
      for (Index i = rows[b]; i < rows[b + 1]; ++i) {
        std::vector<double> kq(static_cast<std::size_t>(da), 0), w(static_cast<std::size_t>(d), 0), dkq = kq;
        for (Index a = 0; a < da; ++a)
          for (Index c = 0; c < dq; ++c) kq[static_cast<std::size_t>(a)] += double(wq(a, c)) * double(q(i, c));
        for (Index c = 0; c < d; ++c)
          for (Index a = 0; a < da; ++a) w[static_cast<std::size_t>(c)] += double(wk(a, c)) * kq[static_cast<std::size_t>(a)];
        for (Index j = keys[b]; j < keys[b + 1]; ++j) {
          double r = 0, dr = 0;
          for (Index c = 0; c < d; ++c)
            r += double(e(j, c)) * w[static_cast<std::size_t>(c)], dr += double(e(j, c)) * double(g(i, c));
          for (Index c = 0; c < d; ++c) {
            want(i, c) += r * double(e(j, c));
            dh(j, c) += r * double(g(i, c)) + dr * w[static_cast<std::size_t>(c)];
            dw(i, c) += dr * double(e(j, c));
          }
        }
        for (Index a = 0; a < da; ++a)
          for (Index c = 0; c < d; ++c) {
            dwk(a, c) += kq[static_cast<std::size_t>(a)] * dw(i, c);
            dkq[static_cast<std::size_t>(a)] += double(wk(a, c)) * dw(i, c);
          }
        for (Index a = 0; a < da; ++a)
          for (Index c = 0; c < dq; ++c) {
            dwq(a, c) += dkq[static_cast<std::size_t>(a)] * double(q(i, c));
            dq_want(i, c) += dkq[static_cast<std::size_t>(a)] * double(wq(a, c));
          }
      }
    Matrix<T> grams((static_cast<Index>(rows.size()) - 1) * d, d);
    soft_search_grams<T>(what, grams, ws);
    for (const bool kept : {false, true}) {
      CAPTURE(d, kept);
      const MatrixView<const T> given = kept ? MatrixView<const T>(grams) : MatrixView<const T>();
      Matrix<T> y(n, d, T(9)), again(n, d), gq(n, dq, T(0)), gh(l, d, T(0)), gwq(da, dq, T(0)), gwk(da, d, T(0)),
          gh_again(l, d, T(0));
      soft_search_pooled<T>(who, what, wq, wk, given, y, ws);
      soft_search_pooled_backward<T>(who, what, wq, wk, given, g, gq, gh, gwq, gwk, ws);
      CHECK(max_difference(y.view(), want.view()) <= 10 * tolerance);
      CHECK(max_difference(gh.view(), dh.view()) <= 100 * tolerance);
      CHECK(max_difference(gq.view(), dq_want.view()) <= 100 * tolerance);
      CHECK(max_difference(gwq.view(), dwq.view()) <= 1000 * tolerance);
      CHECK(max_difference(gwk.view(), dwk.view()) <= 1000 * tolerance);
      soft_search_pooled<T>(who, what, wq, wk, given, again, parallel);
      soft_search_pooled_backward<T>(who, what, wq, wk, given, g, {}, gh_again, {}, {}, parallel);
      CHECK(max_difference(y.view(), again.view()) == 0);
      CHECK(max_difference(gh.view(), gh_again.view()) == 0);
    }
  }
}

TEST_CASE("the gradient of the pooled vector agrees with central differences", "[attention][sim]") {
  Random random = random_stream(651);
  Workspace ws;
  const std::vector<int> rows{0, 2, 5}, keys{0, 4, 11};
  SoftSearch<double> layer(4, 3, 2, random), gradient = zeros_like(layer);
  Matrix<double> q = random_matrix<double>(5, 4, random), e = random_matrix<double>(11, 3, random), y(5, 3), dq(5, 4, 0.0),
                 de(11, 3, 0.0);
  const Matrix<double> g = random_matrix<double>(5, 3, random);
  const JaggedView<const double> who(q.view(), rows), what(e.view(), keys);
  layer.pooled_backward(who, what, g, dq, de, gradient, ws);
  const auto loss = [&] {
    layer.pooled(who, what, y, ws);
    double sum = 0;
    for (Index i = 0; i < 15; ++i) sum += y.data()[i] * g.data()[i];
    return sum;
  };
  GradientReport report;
  const auto check = [&](const char* name, Matrix<double>& x, const Matrix<double>& dx) {
    check_gradient(name, VectorView<double>(x.data(), x.rows() * x.cols()),
                   VectorView<const double>(dx.data(), x.rows() * x.cols()), loss, report);
  };
  check("candidates", q, dq);
  check("history", e, de);
  check("query", layer.query.weight, gradient.query.weight);
  check("key", layer.key.weight, gradient.key.weight);
  CAPTURE(report.where, report.numeric, report.analytic);
  CHECK(report.worst < 1e-6);
}

TEST_CASE("hard search keeps the latest of the category", "[attention][sim]") {
  Random random = random_stream(652);
  Workspace ws;
  CategoryIndex index;
  for (const Index kinds : {1, 3, 300, 100000})
    for (int round = 0; round < 3; ++round) {
      const std::vector<std::int64_t> offsets{0, 40, 40, 41, 1500}, rows{0, 3, 5, 7, 60};
      std::vector<std::int32_t> category(1500), wanted(60);
      const auto draw = [&] {
        const Index c = random.below(kinds);
        return static_cast<std::int32_t>(c % 2 == 0 ? c : -c * 20000);  // negative ones too, and some of every size
      };
      for (auto& c : category) c = draw();
      for (auto& c : wanted) c = draw();
      index.build(category, offsets, ws);
      for (const Index k : {0, 1, 20}) {
        Matrix<std::int32_t> indices(60, k, 7);
        index.search(wanted, rows, indices);
        Index wrong = 0;
        for (std::size_t b = 0; b + 1 < rows.size(); ++b)
          for (Index i = rows[b]; i < rows[b + 1]; ++i) {
            Index found = 0;
            for (Index j = offsets[b + 1] - 1; j >= offsets[b] && found < k; --j)
              if (category[static_cast<std::size_t>(j)] == wanted[static_cast<std::size_t>(i)])
                wrong += indices(i, found++) != static_cast<std::int32_t>(j - offsets[b]);
            for (; found < k; ++found) wrong += indices(i, found) != -1;
          }
        CHECK(wrong == 0);
      }
      CHECK(count_allocations([&] { index.build(category, offsets, ws); }) == 0);
    }
}

TEMPLATE_TEST_CASE("the exact unit agrees with PyTorch", "[attention][sim][golden]", float, double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 1e-5 : 1e-12;
  const Golden golden("history_search");
  const auto history_offsets = golden.values<std::int64_t>("history_offsets"),
             candidate_offsets = golden.values<std::int64_t>("candidate_offsets"),
             times = golden.values<std::int64_t>("esu.times"), now = golden.values<std::int64_t>("esu.now");
  const Matrix<T> e = golden.matrix<T>("history"), q = golden.matrix<T>("candidates"), g = golden.matrix<T>("cotangent");
  const Matrix<std::int32_t> indices = golden.matrix<std::int32_t>("eta.indices");
  Padded<T> history(e.view()), candidates(q.view()), dout(g.view());
  const JaggedView<const T> what(history.view(), history_offsets), who(candidates.view(), candidate_offsets);
  Workspace ws;
  Random random(1);
  ExactSearchUnit<T> layer(8, 8, 2, 6, 3, 60, random);
  const auto vector = [&](const std::string& key) {
    const auto values = golden.values<T>(key);
    Vector<T> v(static_cast<Index>(values.size()));
    std::copy(values.begin(), values.end(), v.begin());
    return v;
  };
  layer.time.weight.values = golden.matrix<T>("esu.table");
  layer.attention.q_proj_weight = golden.matrix<T>("esu.q_proj_weight");
  layer.attention.k_proj_weight = golden.matrix<T>("esu.k_proj_weight");
  layer.attention.v_proj_weight = golden.matrix<T>("esu.v_proj_weight");
  layer.attention.in_proj_bias = vector("esu.in_proj_bias");
  layer.attention.out_proj.weight = golden.matrix<T>("esu.out_proj.weight");
  layer.attention.out_proj.bias = vector("esu.out_proj.bias");
  ExactSearchUnit<T> gradient = zeros_like(layer);
  const FrozenExactSearchUnit<T> frozen = freeze(layer);
  typename ExactSearchUnit<T>::Saved saved;
  Padded<T> y(q.rows(), 8, T(9)), served(q.rows(), 8), packed(q.rows(), 8), dc(q.rows(), 8), dh(e.rows(), 8);
  const auto all = [&] {
    layer.forward(who, what, times, now, indices, y, saved, {}, ws);
    layer.backward(who, what, dout, saved, dc, dh, gradient, ws);
    layer.forward(who, what, times, now, indices, served, ws);
    frozen.forward(who, what, times, now, indices, packed, ws);
  };
  all();
  CHECK(max_difference(y.view(), golden.matrix<double>("esu.out").view()) <= tolerance);
  CHECK(max_difference(served.view(), golden.matrix<double>("esu.out").view()) <= tolerance);
  CHECK(max_difference(packed.view(), golden.matrix<double>("esu.out").view()) <= tolerance);
  CHECK(max_difference(dc.view(), golden.matrix<double>("esu.dcandidates").view()) <= 10 * tolerance);
  CHECK(max_difference(dh.view(), golden.matrix<double>("esu.dhistory").view()) <= 10 * tolerance);
  CHECK(max_difference(gradient.time.weight.values.view(), golden.matrix<double>("esu.dtable").view()) <= 10 * tolerance);
  CHECK(max_difference(gradient.attention.k_proj_weight.view(), golden.matrix<double>("esu.dk_proj_weight").view()) <=
        20 * tolerance);
  CHECK(max_difference(gradient.attention.out_proj.weight.view(), golden.matrix<double>("esu.dout_proj.weight").view()) <=
        20 * tolerance);
  CHECK((y.intact() && served.intact() && packed.intact() && dc.intact() && dh.intact()));
  CHECK(count_allocations(all) == 0);
}

TEST_CASE("an exact unit without ages needs no times", "[attention][sim]") {
  Random random = random_stream(653);
  Workspace ws;
  const ExactSearchUnit<double> layer(4, 6, 2, 0, 0, 1, random);
  const Matrix<double> q = random_matrix<double>(3, 4, random), e = random_matrix<double>(9, 6, random);
  Matrix<std::int32_t> indices(3, 9);
  for (Index i = 0; i < 27; ++i) indices.data()[i] = static_cast<std::int32_t>(i % 9);
  Matrix<double> y(3, 4), whole(3, 4);
  layer.forward(q, e, {}, {}, indices, y, ws);
  layer.attention.forward(q, e, whole, ws);
  CHECK(max_difference(y.view(), whole.view()) < 1e-14);
}

TEMPLATE_TEST_CASE("a NaN in sim stays with its user; the soft search ranks it last", "[attention][sim]", float, double) {
  using T = TestType;
  Random random = random_stream(654);
  Workspace ws;
  const SoftSearch<T> soft(4, 4, 3, random);
  const ExactSearchUnit<T> unit(4, 4, 2, 0, 0, 1, random);
  Matrix<T> q = random_matrix<T>(6, 4, random), e = random_matrix<T>(30, 4, random), keys(30, 3), scores(6, 10);
  const std::vector<int> qo{0, 2, 4, 6}, eo{0, 10, 20, 30};
  Matrix<std::int32_t> indices(6, 10);
  Matrix<T> y(6, 4), pooled(6, 4), bad_y(6, 4), bad_pooled(6, 4);
  const auto all = [&](MatrixView<T> out, MatrixView<T> sums) {
    soft.project_keys(e, keys, ws);
    soft.search({q.view(), qo}, {keys.view(), eo}, indices, scores, ws);
    unit.forward({q.view(), qo}, {e.view(), eo}, {}, {}, indices, out, ws);
    soft.pooled({q.view(), qo}, {e.view(), eo}, sums, ws);
  };
  all(y, pooled);
  e(14, 2) = std::numeric_limits<T>::quiet_NaN();
  all(bad_y, bad_pooled);
  for (const Index i : {2, 3}) {
    CHECK(indices(i, 9) == 4);
    CHECK(std::isnan(scores(i, 9)));
    for (Index j = 0; j < 9; ++j) CHECK(!std::isnan(scores(i, j)));
  }
  for (const Index i : {0, 1, 4, 5})
    for (Index c = 0; c < 4; ++c) {
      CHECK(bad_y(i, c) == y(i, c));
      CHECK(bad_pooled(i, c) == pooled(i, c));
    }
}

TEST_CASE("sim names what is wrong and writes nothing", "[attention][sim][errors]") {
  Random random = random_stream(654);
  Workspace ws;
  SoftSearch<float> soft(4, 4, 2, random);
  ExactSearchUnit<float> unit(4, 4, 2, 5, 2, 60, random);
  Matrix<float> q(2, 4, 1.0f), e(5, 4, 1.0f), narrow(5, 3, 1.0f), y(2, 4, 9.0f), grams(3, 4);
  Matrix<std::int32_t> indices(2, 3, 4);
  const std::vector<std::int64_t> times{1, 2, 3, 4, 5}, now{6}, none;
  CHECK_THAT(error_of([&] { soft.pooled(q, narrow, y, ws); }),
             contains("soft_search_pooled: key: expected shape [2, 3], got [2, 4]"));
  CHECK_THAT(error_of([&] { soft_search_pooled<float>(q, e, soft.query.weight, soft.key.weight, grams, y, ws); }),
             contains("soft_search_pooled: grams: expected shape [4, 4], got [3, 4]"));
  CHECK_THAT(error_of([&] { unit.forward(q, e, none, now, indices, y, ws); }),
             contains("ExactSearchUnit: times: expected size 5, got 0"));
  indices(1, 2) = 5;
  CHECK_THAT(error_of([&] { unit.forward(q, e, times, now, indices, y, ws); }), contains("ExactSearchUnit: indices"));
  // A gradient whose last part does not fit: the first ones are not touched either.
  indices(1, 2) = 4;
  ExactSearchUnit<float>::Saved saved;
  ExactSearchUnit<float> gradient = zeros_like(unit);
  gradient.time.weight.values.resize(4, 2);
  Matrix<float> read(2, 4), dq(2, 4, 0.0f);
  unit.forward(q, e, times, now, indices, read, saved, {}, ws);
  CHECK_THAT(error_of([&] { unit.backward(q, e, q, saved, dq, {}, gradient, ws); }),
             contains("ExactSearchUnit::backward: gradient of time.weight: expected shape [5, 2], got [4, 2]"));
  for (Index i = 0; i < 8; ++i) CHECK(dq.data()[i] == 0);
  for (Index i = 0; i < 4; ++i) CHECK(gradient.attention.out_proj.bias[i] == 0);
  CategoryIndex index;
  const std::vector<std::int32_t> of{1, 2}, too_many{1};
  const std::vector<int> two{0, 2}, more{0, 1, 1};
  index.build(of, two, ws);
  CHECK_THAT(error_of([&] { index.search(too_many, more, indices); }),
             contains("CategoryIndex::search: offsets: expected as many users as the index has, got 2"));
  for (Index i = 0; i < 8; ++i) CHECK(y.data()[i] == 9.0f);
}
