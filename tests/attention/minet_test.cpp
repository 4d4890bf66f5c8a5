/// Oracles: vectors made with PyTorch (golden/user_interest.py), DIN's own first layer, central differences.
#include <recops/attention/minet.hpp>

#include <recops/train/gradient_check.hpp>
#include <vector>

#include "support/allocations.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {

template <class T>
Vector<T> vector_of(const Golden& golden, const std::string& key) {
  const auto values = golden.values<T>(key);
  Vector<T> v(static_cast<Index>(values.size()));
  std::copy(values.begin(), values.end(), v.begin());
  return v;
}

/// A tensor of the golden file, or three of them one below the other.
template <class T>
Matrix<T> stack(const Golden& golden, const std::string& before, const std::string& after) {
  Matrix<T> all;
  std::vector<T> values;
  Index cols = 0;
  for (int k = 0; k < 3; ++k) {
    const std::string key = before + std::to_string(k) + after;
    const auto part = golden.values<T>(key);
    cols = golden.shape(key).back();
    values.insert(values.end(), part.begin(), part.end());
  }
  all.resize(static_cast<Index>(values.size()) / cols, cols);
  std::copy(values.begin(), values.end(), all.data());
  return all;
}

}  // namespace

TEMPLATE_TEST_CASE("minet agrees with PyTorch", "[attention][minet][golden]", float, double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 1e-4 : 1e-11;
  const Golden golden("user_interest");
  const auto of_history = golden.values<std::int64_t>("history_offsets"),
             of_candidates = golden.values<std::int64_t>("candidate_offsets"),
             of_source = golden.values<std::int64_t>("source_offsets");
  const Matrix<T> e = golden.matrix<T>("history"), q = golden.matrix<T>("candidates"), c = golden.matrix<T>("minet.source"),
                  u = golden.matrix<T>("minet.user"), g = golden.matrix<T>("minet.cotangent");
  Padded<T> history(e.view()), candidates(q.view()), other(c.view()), users(u.view()), dout(g.view());
  const JaggedView<const T> who(candidates.view(), of_candidates), own(history.view(), of_history),
      across(other.view(), of_source);
  Workspace ws;
  Random random(1);
  MiNet<T> layer(5, 3, 6, 4, 3, 2, random);
  layer.target.weight = golden.matrix<T>("minet.target.weight");
  layer.target.score = vector_of<T>(golden, "minet.target.score");
  layer.source.weight = golden.matrix<T>("minet.source.weight");
  layer.source.score = vector_of<T>(golden, "minet.source.score");
  layer.source.down = golden.matrix<T>("minet.source.down");
  layer.source.up = golden.matrix<T>("minet.source.up");
  layer.gates.weight = stack<T>(golden, "minet.gate", ".weight");
  layer.gates.score = stack<T>(golden, "minet.gate", ".score");
  for (int k = 0; k < 3; ++k) layer.gates.bias[k] = static_cast<T>(golden.scalar("minet.gate" + std::to_string(k) + ".bias"));
  MiNet<T> gradient = zeros_like(layer);
  typename MiNet<T>::Saved saved;
  Padded<T> y(q.rows(), 19, T(9)), served(q.rows(), 19), dc(q.rows(), 5), du(u.rows(), 3), dh(e.rows(), 5), ds(c.rows(), 6);
  const auto all = [&] {
    layer.forward(who, users, own, across, y, saved, {}, ws);
    layer.backward(who, users, own, across, dout, saved, dc, du, dh, ds, gradient, ws);
    layer.forward(who, users, own, across, served, ws);
  };
  all();
  CHECK(max_difference(y.view(), golden.matrix<double>("minet.out").view()) <= tolerance);
  CHECK(max_difference(served.view(), golden.matrix<double>("minet.out").view()) <= tolerance);
  const auto check = [&](MatrixView<const T> got, const std::string& key) {
    CAPTURE(key);
    CHECK(max_difference(got, golden.matrix<double>("minet." + key).view()) <= 10 * tolerance);
  };
  check(dc.view(), "dcandidates");
  check(du.view(), "duser");
  check(dh.view(), "dhistory");
  check(ds.view(), "dsource");
  check(gradient.target.weight, "dtarget.weight");
  check(MatrixView<const T>(gradient.target.score.data(), 1, 4), "dtarget.score");
  check(gradient.source.weight, "dsource.weight");
  check(MatrixView<const T>(gradient.source.score.data(), 1, 4), "dsource.score");
  check(gradient.source.down, "dsource.down");
  check(gradient.source.up, "dsource.up");
  CHECK(max_difference(gradient.gates.weight.view(), stack<double>(golden, "minet.dgate", ".weight").view()) <= 10 * tolerance);
  CHECK(max_difference(gradient.gates.score.view(), stack<double>(golden, "minet.dgate", ".score").view()) <= 10 * tolerance);
  for (int k = 0; k < 3; ++k)
    CHECK(std::abs(static_cast<double>(gradient.gates.bias[k]) - golden.scalar("minet.dgate" + std::to_string(k) + ".bias")) <=
          10 * tolerance);
  CHECK((y.intact() && served.intact() && dc.intact() && du.intact() && dh.intact() && ds.intact()));
  CHECK(count_allocations(all) == 0);
}

TEMPLATE_TEST_CASE("item attention: blocks, order, threads, and a transfer that changes nothing", "[attention][minet]", float,
                   double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 1e-5 : 1e-13;
  Random random = random_stream(670);
  Workspace ws;
  Threads threads{3};
  Workspace parallel(make_executor(threads, 3));
  const std::vector<int> rows{0, 2, 2, 21, 24}, keys{0, 5, 5, 300, 300};
  const Index d = 6;
  ItemAttention<T> own(d, 2, d, 9, 0, random), across(d, 2, d, 9, d, random);
  // With down and up the identity the transfer is none.
  across.weight = own.weight;
  across.score = own.score;
  across.down.fill(T(0));
  across.up.fill(T(0));
  for (Index i = 0; i < d; ++i) across.down(i, i) = across.up(i, i) = T(1);
  const Matrix<T> q = random_matrix<T>(24, d, random), u = random_matrix<T>(4, 2, random), c = random_matrix<T>(300, d, random),
                  g = random_matrix<T>(24, d, random);
  Matrix<T> turned(300, d);
  for (Index j = 0; j < 300; ++j) std::copy_n(c.row(j < 5 ? 4 - j : 304 - j), d, turned.row(j));
  const JaggedView<const T> who(q.view(), rows), what(c.view(), keys), back(turned.view(), keys);
  Matrix<T> y(24, d, T(9)), y2(24, d), y3(24, d), y4(24, d), trained(24, d), dq(24, d, T(0)), dq2(24, d, T(0)), dc(300, d, T(0)),
      dc2(300, d, T(0)), du(4, 2, T(0)), du2(4, 2, T(0));
  typename ItemAttention<T>::Saved saved, saved_across;
  ItemAttention<T> grad = zeros_like(own), grad_across = zeros_like(across), again = zeros_like(own);
  own.forward(who, u, what, y, ws);
  own.forward(who, u, back, y2, ws);
  across.forward(who, u, what, y3, ws);
  own.forward(who, u, what, y4, parallel);
  own.forward(who, u, what, trained, saved, {}, ws);
  across.forward(who, u, what, y2, saved_across, {}, ws);
  own.backward(who, u, what, g, saved, dq, du, dc, grad, ws);
  across.backward(who, u, what, g, saved_across, dq2, du2, dc2, grad_across, ws);
  own.backward(who, u, what, g, saved, {}, {}, {}, again, parallel);
  CHECK(max_difference(y.view(), y3.view()) < tolerance);
  CHECK(max_difference(y.view(), y2.view()) < tolerance);
  CHECK(max_difference(y.view(), y4.view()) == 0);
  CHECK(max_difference(y.view(), trained.view()) == 0);
  CHECK(max_difference(dq.view(), dq2.view()) < 100 * tolerance);
  CHECK(max_difference(dc.view(), dc2.view()) < 100 * tolerance);
  CHECK(max_difference(du.view(), du2.view()) < 100 * tolerance);
  CHECK(max_difference(grad.weight.view(), grad_across.weight.view()) < 1000 * tolerance);
  CHECK(max_difference(grad.weight.view(), again.weight.view()) == 0);
  for (Index i = 21; i < 24; ++i)
    for (Index k = 0; k < d; ++k) CHECK(y(i, k) == 0);  // a user without clicks
}

TEMPLATE_TEST_CASE("across domains equal candidates have equal bits, wherever they stand", "[attention][minet]", float, double) {
  using T = TestType;
  Random random = random_stream(672);
  Workspace ws;
  Threads threads{3};
  Workspace parallel(make_executor(threads, 3));
  for (const Index rank : {1, 2, 4, 10})
    for (const Index n : {2, 9, 11, 17}) {
      const ItemAttention<T> across(16, 3, 16, 16, rank, random);
      Matrix<T> q = random_matrix<T>(n, 16, random), u = random_matrix<T>(1, 3, random), c = random_matrix<T>(5, 16, random);
      std::copy_n(q.row(0), 16, q.row(n - 1));
      const std::vector<int> rows{0, static_cast<int>(n)}, keys{0, 5};
      const JaggedView<const T> who(q.view(), rows), what(c.view(), keys);
      Matrix<T> y(n, 16), y2(n, 16);
      across.forward(who, u, what, y, ws);
      across.forward(who, u, what, y2, parallel);
      CAPTURE(rank, n);
      CHECK(max_difference(y.view(), y2.view()) == 0);
      for (Index k = 0; k < 16; ++k) CHECK(y(n - 1, k) == y(0, k));
    }
}

TEST_CASE("minet's gradients agree with central differences", "[attention][minet]") {
  Random random = random_stream(671);
  Workspace ws;
  const std::vector<int> rows{0, 2, 3}, keys{0, 4, 7}, others{0, 3, 8};
  MiNet<double> layer(3, 2, 4, 6, 3, 2, random), gradient = zeros_like(layer);
  Matrix<double> q = random_matrix<double>(3, 3, random), u = random_matrix<double>(2, 2, random),
                 e = random_matrix<double>(7, 3, random), c = random_matrix<double>(8, 4, random), y(3, 12), dq(3, 3, 0.0),
                 du(2, 2, 0.0), de(7, 3, 0.0), dc(8, 4, 0.0);
  const Matrix<double> g = random_matrix<double>(3, 12, random);
  const JaggedView<const double> who(q.view(), rows), own(e.view(), keys), across(c.view(), others);
  MiNet<double>::Saved saved;
  layer.forward(who, u, own, across, y, saved, {}, ws);
  layer.backward(who, u, own, across, g, saved, dq, du, de, dc, gradient, ws);
  const auto loss = [&] {
    layer.forward(who, u, own, across, y, ws);
    double sum = 0;
    for (Index i = 0; i < 36; ++i) sum += y.data()[i] * g.data()[i];
    return sum;
  };
  GradientReport report;
  const auto check = [&](const char* name, Matrix<double>& x, const Matrix<double>& dx) {
    check_gradient(name, VectorView<double>(x.data(), x.rows() * x.cols()),
                   VectorView<const double>(dx.data(), x.rows() * x.cols()), loss, report);
  };
  check("candidates", q, dq);
  check("users", u, du);
  check("target_clicks", e, de);
  check("source_clicks", c, dc);
  visit(
      [&](const FieldPath& path, auto& leaf, const auto& d) {
        if constexpr (std::is_convertible_v<decltype(leaf_values(leaf)), VectorView<double>>)
          check_gradient(path.str(), leaf_values(leaf), leaf_values(d), loss, report);
      },
      layer, gradient);
  CAPTURE(report.where, report.numeric, report.analytic);
  CHECK(report.worst < 1e-5);  // relu has kinks
}

TEST_CASE("gates: exp, held within limits; zero gates are a concatenation", "[attention][minet]") {
  Random random = random_stream(672);
  Workspace ws;
  static_assert(RowLayer<InterestGates<float>, float>);
  InterestGates<double> layer({2, 1, 3}, 4, random);
  Matrix<double> z = random_matrix<double>(5, 6, random), y(5, 6);
  CHECK(gradient_check(layer, z.view()).worst < 1e-6);
  layer.score.fill(0);
  layer.forward(z, y, ws);
  CHECK(max_difference(y.view(), z.view()) == 0);
  layer.bias[0] = 1000;
  layer.bias[1] = -1000;
  layer.forward(z, y, ws);
  for (Index i = 0; i < 5; ++i) {
    CHECK(y(i, 2) == Approx(std::exp(30.0) * z(i, 2)));
    CHECK(y(i, 3) == Approx(std::exp(-30.0) * z(i, 3)));
  }
  InterestGates<double>::Saved saved;
  InterestGates<double> gradient = zeros_like(layer);
  layer.forward(z, y, saved, {}, ws);
  layer.backward(z, z, saved, {}, gradient, ws);
  CHECK((gradient.bias[0] == 0 && gradient.bias[1] == 0));
  z(3, 0) = std::numeric_limits<double>::quiet_NaN();
  layer.score.fill(1);
  layer.forward(z, y, ws);
  CHECK((y(3, 3) != y(3, 3) && y(2, 3) == y(2, 3)));
}

TEST_CASE("a hidden unit of minet at exactly 0 gets no gradient, as in PyTorch", "[attention][minet]") {
  Random random = random_stream(675);
  Workspace ws;
  MiNet<double> layer(3, 2, 4, 2, 1, 2, random);
  const auto zero_first = [](Matrix<double>& w) { std::fill_n(w.row(0), w.cols(), 0.0); };
  zero_first(layer.target.weight);
  zero_first(layer.source.weight);
  zero_first(layer.gates.weight);
  const Matrix<double> q = random_matrix<double>(4, 3, random), u = random_matrix<double>(1, 2, random),
                       e = random_matrix<double>(5, 3, random), c = random_matrix<double>(6, 4, random),
                       dy = random_matrix<double>(4, 12, random);
  Matrix<double> y(4, 12);
  MiNet<double>::Saved saved;
  MiNet<double> gradient = zeros_like(layer);
  layer.forward(q, u, e, c, y, saved, {}, ws);
  layer.backward(q, u, e, c, dy, saved, {}, {}, {}, {}, gradient, ws);
  for (const Matrix<double>* of : {&gradient.target.weight, &gradient.source.weight, &gradient.gates.weight})
    for (Index i = 0; i < of->cols(); ++i) CHECK((*of)(0, i) == 0);
}

TEST_CASE("gradients of minet keep their digits over a large batch", "[attention][minet]") {
  // B times the same user: B times the gradient.
  constexpr Index users = 1 << 15;
  Random random = random_stream(674);
  Workspace ws;
  const MiNet<float> layer(3, 2, 2, 4, 3, 2, random);
  const Matrix<float> q = random_matrix<float>(1, 3, random), u = random_matrix<float>(1, 2, random),
                      e = random_matrix<float>(2, 3, random), c = random_matrix<float>(2, 2, random),
                      dy = random_matrix<float>(1, 10, random);
  const auto gradient_of = [&](Index times) {
    const auto repeated = [&](const Matrix<float>& m) {
      Matrix<float> all(times * m.rows(), m.cols());
      for (Index i = 0; i < all.rows(); ++i) std::copy_n(m.row(i % m.rows()), m.cols(), all.row(i));
      return all;
    };
    std::vector<std::int32_t> ones, twos;
    for (std::int32_t b = 0; b <= times; ++b) ones.push_back(b), twos.push_back(2 * b);
    const Matrix<float> qs = repeated(q), us = repeated(u), es = repeated(e), cs = repeated(c), dys = repeated(dy);
    const JaggedView<const float> candidates(qs, ones), target(es, twos), source(cs, twos);
    Matrix<float> y(times, 10);
    MiNet<float>::Saved saved;
    MiNet<float> gradient = make_gradient(layer);
    layer.forward(candidates, us, target, source, y, saved, Step{}, ws);
    layer.backward(candidates, us, target, source, dys, saved, {}, {}, {}, {}, gradient, ws);
    return gradient;
  };
  const MiNet<float> one = gradient_of(1), all = gradient_of(users);
  visit(
      [&](const FieldPath& path, const auto& a, const auto& b) {
        const auto want = leaf_values(a), got = leaf_values(b);
        CAPTURE(path.str());
        float most = 0;
        for (Index i = 0; i < want.size(); ++i) most = std::max(most, std::abs(want[i]));
        for (Index i = 0; i < want.size(); ++i) CHECK(std::abs(got[i] / static_cast<float>(users) - want[i]) <= 2e-5f * most);
      },
      one, all);
}

TEST_CASE("minet names what is wrong and writes nothing", "[attention][minet][errors]") {
  Random random = random_stream(673);
  Workspace ws;
  MiNet<float> layer(4, 2, 3, 5, 3, 2, random), broken = layer;
  Matrix<float> q(2, 4, 1.0f), u(1, 2, 1.0f), e(5, 4, 1.0f), c(6, 3, 1.0f), y(2, 13, 9.0f), two(2, 2, 1.0f);
  CHECK_THAT(error_of([&] { layer.forward(q, two, e, c, y, ws); }), contains("MiNet: users: expected shape [1, _], got [2, 2]"));
  CHECK_THAT(error_of([&] { layer.forward(q, u, c, c, y, ws); }),
             contains("MiNet: target_clicks: expected shape [_, 4], got [6, 3]"));
  broken.source.up.resize(4, 1);
  CHECK_THAT(error_of([&] { broken.forward(q, u, e, c, y, ws); }), contains("MiNet: up: expected shape [4, 2], got [4, 1]"));
  broken = layer;
  broken.gates.widths[1] = 1;
  CHECK_THAT(error_of([&] { broken.forward(q, u, e, c, y, ws); }), contains("MiNet: gates.widths"));
  for (Index i = 0; i < 26; ++i) CHECK(y.data()[i] == 9.0f);
}
