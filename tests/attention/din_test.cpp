/// Oracles: vectors made with PyTorch (golden/user_interest.py), the concatenation written out in double, central differences.
#include <recops/attention/din.hpp>

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
template <class T>
MatrixView<const T> row(const Vector<T>& v) {
  return MatrixView<const T>(v.data(), 1, v.size());
}

Vector<float>* slopes(PRelu<float>& a) { return &a.weight; }
Vector<double>* slopes(PRelu<double>& a) { return &a.weight; }
Vector<float>* slopes(Dice<float>& a) { return &a.alpha; }
Vector<double>* slopes(Dice<double>& a) { return &a.alpha; }
template <class T>
Vector<T>* slopes(Activate<T>&) {
  return nullptr;
}

template <class T, class Hidden>
void check_golden(const std::string& name, const Hidden& activation) {
  const double tolerance = std::is_same_v<T, float> ? 2e-5 : 1e-11;
  const Golden golden("user_interest");
  const auto history_offsets = golden.values<std::int64_t>("history_offsets"),
             candidate_offsets = golden.values<std::int64_t>("candidate_offsets");
  const Matrix<T> e = golden.matrix<T>("history"), q = golden.matrix<T>("candidates"), g = golden.matrix<T>("cotangent");
  Padded<T> history(e.view()), candidates(q.view()), dout(g.view());
  const JaggedView<const T> what(history.view(), history_offsets), who(candidates.view(), candidate_offsets);
  Workspace ws;
  Random random(1);
  Din<T, Hidden> layer(5, {7, 4}, random, activation);
  for (std::size_t k = 0; k < 3; ++k) {
    layer.linears[k].weight = golden.matrix<T>("din." + name + ".weight" + std::to_string(k));
    layer.linears[k].bias = vector_of<T>(golden, "din." + name + ".bias" + std::to_string(k));
  }
  for (std::size_t k = 0; k < 2; ++k)
    if (Vector<T>* a = slopes(layer.activations[k])) *a = vector_of<T>(golden, "din." + name + ".alpha" + std::to_string(k));
  for (const DinWeights weights : {DinWeights::plain, DinWeights::softmax}) {
    layer.weights = weights;
    const std::string key = "din." + name + (weights == DinWeights::plain ? ".plain." : ".softmax.");
    CAPTURE(key);
    Din<T, Hidden> gradient = zeros_like(layer);
    typename Din<T, Hidden>::Saved saved;
    Padded<T> y(q.rows(), 5, T(9)), served(q.rows(), 5, T(9)), packed(q.rows(), 5, T(9)), dc(q.rows(), 5), dh(e.rows(), 5);
    const auto frozen = freeze(layer);
    const auto all = [&] {
      layer.forward(who, what, y, saved, {}, ws);
      layer.backward(who, what, dout, saved, dc, dh, gradient, ws);
      layer.forward(who, what, served, ws);
      frozen.forward(who, what, packed, ws);
    };
    all();
    CHECK(max_difference(y.view(), golden.matrix<double>(key + "out").view()) <= tolerance);
    CHECK(max_difference(dc.view(), golden.matrix<double>(key + "dcandidates").view()) <= 10 * tolerance);
    CHECK(max_difference(dh.view(), golden.matrix<double>(key + "dhistory").view()) <= 10 * tolerance);
    for (std::size_t k = 0; k < 3; ++k) {
      CAPTURE(k);
      CHECK(max_difference(gradient.linears[k].weight.view(),
                           golden.matrix<double>(key + "dweight" + std::to_string(k)).view()) <= 20 * tolerance);
      CHECK(max_difference(row(gradient.linears[k].bias), row(vector_of<double>(golden, key + "dbias" + std::to_string(k)))) <=
            20 * tolerance);
      if (k == 2) continue;
      if (const Vector<T>* a = slopes(gradient.activations[k]))
        CHECK(max_difference(row(*a), row(vector_of<double>(golden, key + "dalpha" + std::to_string(k)))) <= 20 * tolerance);
    }
    if (name != "dice") {  // Dice serves with running statistics
      CHECK(max_difference(served.view(), y.view()) <= tolerance);
    }
    CHECK(max_difference(served.view(), packed.view()) <= tolerance);
    CHECK((y.intact() && served.intact() && packed.intact() && dc.intact() && dh.intact()));
    CHECK(count_allocations(all) == 0);
  }
}

}  // namespace

TEMPLATE_TEST_CASE("din agrees with PyTorch", "[attention][din][golden]", float, double) {
  using T = TestType;
  check_golden<T>("prelu", PRelu<T>{});
  check_golden<T>("dice", Dice<T>{});
  check_golden<T>("sigmoid", Activate<T>{Activation::sigmoid});
}

TEMPLATE_TEST_CASE("the first layer is that of the concatenation", "[attention][din]", float, double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 1e-4 : 1e-12;
  Random random = random_stream(660);
  Workspace ws;
  Threads threads{3};
  Workspace parallel(make_executor(threads, 3));
  const std::vector<std::int64_t> rows{0, 1, 1, 34, 39}, keys{0, 70, 75, 77, 77};
  for (const Index d : {1, 3, 16, recops_test::sanitized ? 17 : 530})
    for (const Index h : {1, 17, 32}) {
      CAPTURE(d, h);
      const Index n = rows.back(), l = keys.back();
      const Matrix<T> e = random_matrix<T>(l, d, random), q = random_matrix<T>(n, d, random);
      Matrix<T> w = random_matrix<T>(h, 4 * d, random);
      for (Index i = 0; i < h * 4 * d; ++i) w.data()[i] /= std::sqrt(static_cast<T>(d));
      const Vector<T> bias = random_vector<T>(h, random);
      const JaggedView<const T> who(q.view(), rows), what(e.view(), keys);
      const Index pairs = detail::pair_count(who, what);
      CHECK(pairs == 70 + 66);
      const Matrix<T> ds = random_matrix<T>(pairs, h, random);
      Padded<T> s(pairs, h, T(9)), dq(n, d, T(1)), de(l, d), dw(h, 4 * d);
      Vector<T> db(h, T(0));
      din_first_layer<T>(who, what, w, bias, s, ws);
      din_first_layer_backward<T>(who, what, w, ds, dq, de, dw, db, ws);
      Matrix<double> want(pairs, h, 0.0), wq(n, d, 1.0), we(l, d, 0.0), ww(h, 4 * d, 0.0);
      Vector<double> wb(h, 0.0);
      std::vector<double> x(static_cast<std::size_t>(4 * d)), dx = x;
      Index p = 0;
      for (std::size_t b = 0; b + 1 < rows.size(); ++b)
        for (Index i = rows[b]; i < rows[b + 1]; ++i)
          for (Index j = keys[b]; j < keys[b + 1]; ++j, ++p) {
            for (Index c = 0; c < d; ++c) {
              const double a = double(q(i, c)), o = double(e(j, c));
              x[static_cast<std::size_t>(c)] = a;
              x[static_cast<std::size_t>(d + c)] = o;
              x[static_cast<std::size_t>(2 * d + c)] = a - o;
              x[static_cast<std::size_t>(3 * d + c)] = a * o;
            }
            std::fill(dx.begin(), dx.end(), 0);
            for (Index r = 0; r < h; ++r) {
              want(p, r) = double(bias[r]);
              wb[r] += double(ds(p, r));
              for (Index c = 0; c < 4 * d; ++c) {
                want(p, r) += double(w(r, c)) * x[static_cast<std::size_t>(c)];
                ww(r, c) += double(ds(p, r)) * x[static_cast<std::size_t>(c)];
                dx[static_cast<std::size_t>(c)] += double(ds(p, r)) * double(w(r, c));
              }
            }
            const auto part = [&](Index block, Index c) { return dx[static_cast<std::size_t>(block * d + c)]; };
            for (Index c = 0; c < d; ++c) {
              wq(i, c) += part(0, c) + part(2, c) + part(3, c) * double(e(j, c));
              we(j, c) += part(1, c) - part(2, c) + part(3, c) * double(q(i, c));
            }
          }
      CHECK(max_difference(s.view(), want.view()) <= tolerance);
      CHECK(max_difference(dq.view(), wq.view()) <= 10 * tolerance);
      CHECK(max_difference(de.view(), we.view()) <= 10 * tolerance);
      CHECK(max_difference(dw.view(), ww.view()) <= 10 * tolerance);
      CHECK(max_difference(row(db), row(wb)) <= 10 * tolerance);
      CHECK((s.intact() && dq.intact() && de.intact() && dw.intact()));

      Matrix<T> again(pairs, h), one(h, 4 * d, T(0)), three(h, 4 * d, T(0));
      din_first_layer<T>(who, what, w, bias, again, parallel);
      din_first_layer_backward<T>(who, what, w, ds, {}, {}, one, {}, ws);
      din_first_layer_backward<T>(who, what, w, ds, {}, {}, three, {}, parallel);
      CHECK(max_difference(s.view(), again.view()) == 0);
      CHECK(max_difference(one.view(), three.view()) == 0);
    }
}

TEST_CASE("din's gradients agree with central differences", "[attention][din]") {
  Random random = random_stream(661);
  Workspace ws;
  const std::vector<int> rows{0, 2, 3}, keys{0, 4, 9};
  const auto check_layer = [&](auto layer) {
    using L = decltype(layer);
    for (const DinWeights weights : {DinWeights::plain, DinWeights::softmax}) {
      layer.weights = weights;
      Matrix<double> q = random_matrix<double>(3, 3, random), e = random_matrix<double>(9, 3, random), y(3, 3), dq(3, 3, 0.0),
                     de(9, 3, 0.0);
      const Matrix<double> g = random_matrix<double>(3, 3, random);
      const JaggedView<const double> who(q.view(), rows), what(e.view(), keys);
      typename L::Saved saved;
      L gradient = zeros_like(layer);
      layer.forward(who, what, y, saved, {}, ws);
      layer.backward(who, what, g, saved, dq, de, gradient, ws);
      const auto loss = [&] {
        typename L::Saved other;
        layer.forward(who, what, y, other, {}, ws);
        double sum = 0;
        for (Index i = 0; i < 9; ++i) sum += y.data()[i] * g.data()[i];
        return sum;
      };
      GradientReport report;
      check_gradient("candidates", VectorView<double>(q.data(), 9), VectorView<const double>(dq.data(), 9), loss, report);
      check_gradient("history", VectorView<double>(e.data(), 27), VectorView<const double>(de.data(), 27), loss, report);
      visit(
          [&](const FieldPath& path, auto& leaf, const auto& d) {
            if constexpr (std::is_convertible_v<decltype(leaf_values(leaf)), VectorView<double>>)
              if (path.kind == FieldKind::parameter) check_gradient(path.str(), leaf_values(leaf), leaf_values(d), loss, report);
          },
          layer, gradient);
      CAPTURE(report.where, report.numeric, report.analytic);
      CHECK(report.worst < 1e-6);
    }
  };
  check_layer(Din<double, Activate<double>>(3, {6, 4}, random, {Activation::sigmoid}));
  Din<double, Dice<double>> dice(3, {5}, random);
  for (auto& a : dice.activations) {
    a.bn.options.epsilon = 1e-3;
    for (double& x : a.alpha) x = random.normal();
  }
  check_layer(dice);
}

TEST_CASE("what a history given twice, in another order, or summed tells", "[attention][din]") {
  Random random = random_stream(662);
  Workspace ws;
  Din<double> layer(6, {8, 5}, random);
  const Matrix<double> q = random_matrix<double>(4, 6, random), e = random_matrix<double>(300, 6, random);
  Matrix<double> twice(600, 6), turned(300, 6), y(4, 6), y2(4, 6), y3(4, 6);
  for (Index j = 0; j < 600; ++j) std::copy_n(e.row(j % 300), 6, twice.row(j));
  for (Index j = 0; j < 300; ++j) std::copy_n(e.row(299 - j), 6, turned.row(j));
  for (const DinWeights weights : {DinWeights::plain, DinWeights::softmax}) {
    layer.weights = weights;
    layer.forward(q, e, y, ws);
    layer.forward(q, twice, y2, ws);
    layer.forward(q, turned, y3, ws);
    for (Index i = 0; i < 24; ++i) y.data()[i] *= weights == DinWeights::plain ? 2 : 1;
    CHECK(max_difference(y.view(), y2.view()) < 1e-11);
    for (Index i = 0; i < 24; ++i) y.data()[i] /= weights == DinWeights::plain ? 2 : 1;
    CHECK(max_difference(y.view(), y3.view()) < 1e-11);
  }
  // Weights of zero and a last bias of one: the sum of the history.
  layer.weights = DinWeights::plain;
  for (auto& l : layer.linears) {
    l.weight.fill(0);
    l.bias.fill(0);
  }
  layer.linears.back().bias.fill(1);
  layer.forward(q, e, y, ws);
  for (Index c = 0; c < 6; ++c) {
    double sum = 0;
    for (Index j = 0; j < 300; ++j) sum += e(j, c);
    for (Index i = 0; i < 4; ++i) CHECK(std::abs(y(i, c) - sum) < 1e-11);
  }
}

TEMPLATE_TEST_CASE("a NaN in din stays with its candidate, or with its user", "[attention][din]", float, double) {
  using T = TestType;
  Random random = random_stream(664);
  Workspace ws;
  Din<T> layer(5, {7, 4}, random);
  Matrix<T> q = random_matrix<T>(7, 5, random), e = random_matrix<T>(40, 5, random);
  const std::vector<int> qo{0, 2, 5, 7}, eo{0, 11, 31, 40};
  Matrix<T> y(7, 5), spoilt(7, 5), served(7, 5);
  for (const DinWeights weights : {DinWeights::plain, DinWeights::softmax}) {
    layer.weights = weights;
    const auto frozen = freeze(layer);
    layer.forward({q.view(), qo}, {e.view(), eo}, y, ws);
    const auto same_outside = [&](Index first, Index last) {
      layer.forward({q.view(), qo}, {e.view(), eo}, spoilt, ws);
      frozen.forward({q.view(), qo}, {e.view(), eo}, served, ws);
      for (Index i = 0; i < 7; ++i)
        for (Index c = 0; c < 5; ++c) {
          if (i < first || i >= last) {
            CHECK(spoilt(i, c) == y(i, c));
            CHECK(std::abs(served(i, c) - y(i, c)) < T(1e-4));
          } else if (c == 3) {  // the other columns only if the weights spread it
            CHECK((std::isnan(spoilt(i, c)) && std::isnan(served(i, c))));
          }
        }
    };
    const T kept = std::exchange(e(20, 3), std::numeric_limits<T>::quiet_NaN());
    same_outside(2, 5);
    e(20, 3) = kept;
    const T candidate = std::exchange(q(3, 3), std::numeric_limits<T>::quiet_NaN());
    same_outside(3, 4);
    q(3, 3) = candidate;
  }
}

TEST_CASE("din names what is wrong and writes nothing", "[attention][din][errors]") {
  Random random = random_stream(663);
  Workspace ws;
  Din<float> layer(4, {3}, random), broken = layer, gradient = make_gradient(layer);
  Matrix<float> q(2, 4, 1.0f), e(5, 4, 1.0f), narrow(5, 3, 1.0f), y(2, 4, 9.0f);
  typename Din<float>::Saved saved;
  CHECK_THAT(error_of([&] { layer.forward(q, narrow, y, ws); }), contains("Din: history: expected shape [_, 4], got [5, 3]"));
  broken.linears[1].weight.resize(2, 3);
  CHECK_THAT(error_of([&] { broken.forward(q, e, y, ws); }), contains("Din: linears.weight: expected shape [1, 3], got [2, 3]"));
  CHECK_THAT(error_of([&] { layer.backward(q, e, y, saved, {}, {}, gradient, ws); }), contains("Din::backward: saved"));
  CHECK_THAT(error_of([&] { layer.update(saved); }), contains("Din::update: saved: expected what a training forward"));
  Matrix<float> w(3, 15), s(10, 3, 9.0f);
  CHECK_THAT(error_of([&] { din_first_layer<float>(q, e, w, {}, s, ws); }),
             contains("din_first_layer: weight: expected 4 d columns"));
  for (Index i = 0; i < 8; ++i) CHECK(y.data()[i] == 9.0f);
}
