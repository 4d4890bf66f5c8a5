// Oracles: the definition in double, pair by pair; PyTorch (tests/golden/cdm.py); central differences.
#include <recops/attention/contrastive_attention.hpp>
#include <recops/train/gradient_check.hpp>
#include <vector>

#include "support/allocations.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {

/// One side of the definition: sign +1 looks at what is alike, -1 at what is not.
template <class T>
Matrix<double> reference(const ContrastiveInput<T>& in, double scale, double sign) {
  Matrix<double> out(in.queries.values().rows(), in.values.cols(), 0);
  for (Index b = 0; b < in.queries.size(); ++b) {
    const auto q = in.queries[b], k = in.keys[b], v = in.values[b];
    for (Index i = 0; i < q.rows(); ++i) {
      std::vector<double> a(static_cast<std::size_t>(k.rows()));
      double most = -1e300, sum = 0;
      const auto weight = [&](Index j) {
        if (!in.self.empty() && in.self[in.queries.begin(b) + i] == j) return 0.0;
        return in.weights.empty() ? 1.0 : static_cast<double>(in.weights[in.keys.begin(b) + j]);
      };
      for (Index j = 0; j < k.rows(); ++j) {
        double s = 0;
        for (Index c = 0; c < q.cols(); ++c) s += static_cast<double>(q(i, c)) * static_cast<double>(k(j, c));
        a[static_cast<std::size_t>(j)] = sign * scale * s;
        if (weight(j) > 0) most = std::max(most, sign * scale * s);
      }
      for (Index j = 0; j < k.rows(); ++j) {
        double& x = a[static_cast<std::size_t>(j)];
        x = weight(j) > 0 ? weight(j) * std::exp(x - most) : 0;
        sum += x;
      }
      for (Index j = 0; j < k.rows() && sum > 0; ++j)
        for (Index c = 0; c < v.cols(); ++c)
          out(in.queries.begin(b) + i, c) += a[static_cast<std::size_t>(j)] / sum * static_cast<double>(v(j, c));
    }
  }
  return out;
}

template <class T>
struct Case {
  std::vector<std::int64_t> rows{0}, pool{0};
  std::vector<std::int32_t> self;
  Matrix<T> q, k, v;
  Vector<T> w;

  Case(std::vector<std::pair<Index, Index>> sizes, Index d, Index e, Random& random) {
    for (const auto& [n, m] : sizes) {
      rows.push_back(rows.back() + n);
      pool.push_back(pool.back() + m);
      for (Index i = 0; i < n; ++i) self.push_back(static_cast<std::int32_t>(random.below(m + 1)) - 1);
    }
    q = random_matrix<T>(rows.back(), d, random);
    k = random_matrix<T>(pool.back(), d, random);
    v = random_matrix<T>(pool.back(), e, random);
    w = Vector<T>(pool.back());
    for (T& x : w) x = static_cast<T>(random.chance(0.2) ? 0 : random.uniform(0.2, 2));
  }
  ContrastiveInput<T> input(bool weighted) const {
    return {.queries = JaggedView<const T>(q.view(), rows),
            .keys = JaggedView<const T>(k.view(), pool),
            .values = JaggedView<const T>(v.view(), pool),
            .self = self,
            .weights = weighted ? VectorView<const T>(w) : VectorView<const T>()};
  }
};

}  // namespace

TEMPLATE_TEST_CASE("contrastive attention as defined", "[attention][contrastive]", float, double) {
  using T = TestType;
  Random random = random_stream(7101);
  Workspace ws;
  Threads threads{3};
  Workspace parallel(make_executor(threads, 3));
  for (const Index d : {1, 6, 17}) {
    const Case<T> c({{5, 3}, {0, 4}, {3, 0}, {67, 19}, {1, 1}}, d, d + 2, random);
    for (const bool weighted : {false, true}) {
      const auto in = c.input(weighted);
      Padded<T> p(c.q.rows(), d + 2), n(c.q.rows(), d + 2);
      Matrix<T> sums(c.q.rows(), 2), p2(c.q.rows(), d + 2), n2(c.q.rows(), d + 2);
      contrastive_attention<T>(in, {.scale = 0.4}, p, n, sums, ws);
      const double bound = std::is_same_v<T, float> ? 3e-5 : 1e-13;
      CHECK(max_difference(p.view(), reference(in, 0.4, 1).view()) < bound);
      CHECK(max_difference(n.view(), reference(in, 0.4, -1).view()) < bound);
      CHECK((p.intact() && n.intact()));
      CHECK(sums(5, 0) == -std::numeric_limits<T>::infinity());  // of the request without keys
      contrastive_attention<T>(in, {.scale = 0.4}, p2, n2, {}, parallel);
      CHECK((max_difference(p.view(), p2.view()) == 0 && max_difference(n.view(), n2.view()) == 0));
    }
    Matrix<T> p(c.q.rows(), d + 2), n(c.q.rows(), d + 2);
    contrastive_attention<T>(c.input(true), {.scale = 0}, p, n, {}, ws);  // nothing alike, nothing unlike: two equal means
    CHECK(max_difference(p.view(), n.view()) == 0);
  }
  const Case<T> c({{40, 9}}, 4, 4, random);
  Matrix<T> p(40, 4), n(40, 4);
  const auto call = [&] { contrastive_attention<T>(c.input(true), {}, p, n, {}, ws); };
  call();
  CHECK(count_allocations(call) == 0);
}

TEST_CASE("contrastive attention against PyTorch", "[attention][contrastive]") {
  const Golden golden("cdm");
  const auto get = [&](const char* name) { return golden.matrix<double>(std::string("attention.") + name); };
  const Matrix<double> q = get("q"), k = get("k"), v = get("v"), dp = get("dp"), dn = get("dn");
  const auto self = golden.values<std::int32_t>("attention.self");
  const auto w = golden.values<double>("attention.w");
  const ContrastiveInput<double> in{.queries = q.view(), .keys = k.view(), .values = v.view(), .self = self, .weights = w};
  Workspace ws;
  Matrix<double> p(13, 3), n(13, 3), dq(13, 5, 1), dk(7, 5, 1), dv(7, 3, 1);
  Vector<double> dw(7, 1);
  contrastive_attention<double>(in, {.scale = 0.7}, p, n, {}, ws);
  CHECK(max_difference(p.view(), get("p").view()) < 1e-14);
  CHECK(max_difference(n.view(), get("n").view()) < 1e-14);
  contrastive_attention_backward<double>(in, {.scale = 0.7}, dp, dn, {.queries = dq, .keys = dk, .values = dv, .weights = dw},
                                         ws);
  const auto added = [](MatrixView<const double> g) {  // backward adds to the ones that were there
    Matrix<double> m(g.rows(), g.cols());
    for (Index i = 0; i < g.rows(); ++i)
      for (Index j = 0; j < g.cols(); ++j) m(i, j) = g(i, j) - 1;
    return m;
  };
  CHECK(max_difference(added(dq).view(), get("dq").view()) < 1e-13);
  CHECK(max_difference(added(dk).view(), get("dk").view()) < 1e-13);
  CHECK(max_difference(added(dv).view(), get("dv").view()) < 1e-13);
  CHECK(max_difference(added(MatrixView<double>(dw.data(), 1, 7)).view(), get("dw").view()) < 1e-13);
}

TEST_CASE("the gradient of contrastive attention by differences", "[attention][contrastive]") {
  Random random = random_stream(7102);
  Workspace ws;
  Case<double> c({{70, 6}, {2, 3}, {4, 0}, {1, 1}}, 3, 2, random);
  const Matrix<double> dp = random_matrix<double>(77, 2, random), dn = random_matrix<double>(77, 2, random);
  const ContrastiveOptions options{.scale = 1.3};
  const auto loss = [&] {
    Matrix<double> p(77, 2), n(77, 2);
    contrastive_attention<double>(c.input(true), options, p, n, {}, ws);
    return simd::dot(p.data(), dp.data(), 154) + simd::dot(n.data(), dn.data(), 154);
  };
  Matrix<double> dq(77, 3, 0), dk(10, 3, 0), dv(10, 2, 0);
  Vector<double> dw(10, 0);
  const auto backward = [&] {
    contrastive_attention_backward<double>(c.input(true), options, dp, dn,
                                           {.queries = dq, .keys = dk, .values = dv, .weights = dw}, ws);
  };
  backward();
  const Vector<double> once = dw;
  CHECK(count_allocations(backward) == 0);
  for (Index j = 0; j < 10; ++j) CHECK(std::abs(dw[j] - 2 * once[j]) < 1e-12);
  for (auto* m : {&dq, &dk, &dv})
    for (Index i = 0; i < m->rows() * m->cols(); ++i) m->data()[i] /= 2;
  GradientReport report;
  check_gradient("queries", leaf_values(c.q), leaf_values(dq), loss, report, {.most = 60});
  check_gradient("keys", leaf_values(c.k), leaf_values(dk), loss, report);
  check_gradient("values", leaf_values(c.v), leaf_values(dv), loss, report);
  for (Index j = 0; j < 10; ++j) {
    if (c.w[j] > 0) check_gradient("weight", VectorView<double>(&c.w[j], 1), VectorView<const double>(&once[j], 1), loss, report);
    if (c.w[j] == 0) CHECK(once[j] == 0);
  }
  CAPTURE(report.where, report.numeric, report.analytic);
  CHECK(report.worst < 1e-7);
}

TEST_CASE("errors of contrastive attention leave the outputs alone; a NaN stays in its request", "[attention][contrastive]") {
  Random random = random_stream(7103);
  Workspace ws;
  Case<float> c({{4, 3}, {5, 2}}, 3, 3, random);
  Matrix<float> p(9, 3, -5), n(9, 3, -5), narrow(9, 2, -5);
  const auto error = [&](ContrastiveInput<float> in) {
    return error_of([&] { contrastive_attention<float>(in, {}, p, n, {}, ws); });
  };
  auto in = c.input(true);
  const std::vector<std::int32_t> self{0, 1, 2, 3, 0, 0, 0, 0, 0};
  in.self = self;
  CHECK(error(in) == "contrastive_attention: self: expected -1 or places below 3, got 3 at position 3");
  in = c.input(true);
  c.w[2] = -1;
  CHECK(error(in) == "contrastive_attention: weights: expected weights >= 0, got -1");
  c.w[2] = 1;
  const std::vector<std::int64_t> other{0, 2, 5};
  in.values = JaggedView<const float>(c.v.view(), other);
  CHECK(error(in).find("values") != std::string::npos);
  in = c.input(true);
  CHECK(error_of([&] { contrastive_attention<float>(in, {}, p, narrow, {}, ws); }) ==
        "contrastive_attention: negative: expected shape [9, 3], got [9, 2]");
  CHECK(error_of([&] { contrastive_attention_backward<float>(in, {}, p, narrow, {}, ws); }).find("dnegative") !=
        std::string::npos);
  for (const Matrix<float>* m : {&p, &n, &narrow})
    for (Index i = 0; i < m->rows() * m->cols(); ++i) CHECK(m->data()[i] == -5);
  c.k(0, 1) = std::numeric_limits<float>::quiet_NaN();
  c.w.fill(1);
  contrastive_attention<float>(c.input(true), {}, p, n, {}, ws);
  for (Index i = 4; i < 9; ++i) CHECK((std::isfinite(p(i, 0)) && std::isfinite(n(i, 2))));
}
