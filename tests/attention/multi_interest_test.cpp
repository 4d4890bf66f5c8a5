/// Oracle: both operators written from their formulas in double, user by user; PyTorch (golden/multi_interest.py); central differences.
#include <recops/attention/multi_interest.hpp>
#include <recops/train/gradient_check.hpp>

#include <vector>

#include "support/allocations.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {

using Rows = std::vector<std::vector<double>>;

double inner(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}
std::vector<double> softmax_of(std::vector<double> x) {
  double most = -1e300, sum = 0;
  for (const double v : x) most = std::max(most, v);
  for (double& v : x) sum += v = std::exp(v - most);
  for (double& v : x) v /= sum;
  return x;
}
template <class T>
Rows rows_of(MatrixView<const T> m, Index first, Index last, VectorView<const std::uint8_t> mask = {}) {
  Rows out;
  for (Index i = first; i < last; ++i)
    if (mask.empty() || mask[i] != 0) out.emplace_back(m.row(i), m.row(i) + m.cols());
  return out;
}
Rows weighted(const Rows& weights, const Rows& values, std::size_t cols) {
  Rows out(weights.size(), std::vector<double>(cols));
  for (std::size_t k = 0; k < weights.size(); ++k)
    for (std::size_t l = 0; l < values.size(); ++l)
      for (std::size_t d = 0; d < cols; ++d) out[k][d] += weights[k][l] * values[l][d];
  return out;
}

Rows self_attentive(const Rows& keys, const Rows& values, const Rows& w1, const Rows& w2, std::size_t cols) {
  Rows scores(w2.size(), std::vector<double>(keys.size()));
  for (std::size_t l = 0; l < keys.size(); ++l) {
    std::vector<double> h;
    for (const auto& w : w1) h.push_back(std::tanh(inner(w, keys[l])));
    for (std::size_t k = 0; k < w2.size(); ++k) scores[k][l] = inner(w2[k], h);
  }
  for (auto& s : scores) s = softmax_of(s);
  return weighted(scores, values, cols);
}

Rows routed(const Rows& x, const Rows& s, Rows b, Index iterations) {
  Rows u;
  for (const auto& row : x) {
    u.emplace_back();
    for (const auto& w : s) u.back().push_back(inner(w, row));
  }
  Rows z;
  for (Index it = 0; it < iterations; ++it) {
    Rows c = b;
    for (std::size_t l = 0; l < u.size(); ++l) {
      std::vector<double> column;
      for (const auto& row : b) column.push_back(row[l]);
      column = softmax_of(column);
      for (std::size_t k = 0; k < b.size(); ++k) c[k][l] = column[k];
    }
    z = weighted(c, u, s.size());
    for (std::size_t k = 0; k < b.size(); ++k) {
      const double square = inner(z[k], z[k]);
      for (double& v : z[k]) v *= std::sqrt(square) / (1 + square);
      for (std::size_t l = 0; l < u.size(); ++l) b[k][l] += inner(z[k], u[l]);
    }
  }
  return z;
}

std::vector<std::int32_t> offsets_of(std::initializer_list<int> lengths) {
  std::vector<std::int32_t> o{0};
  for (const int l : lengths) o.push_back(o.back() + l);
  return o;
}

}  // namespace

TEMPLATE_TEST_CASE("interests are those of the formulas", "[attention][multi_interest]", float, double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 2e-5 : 1e-13;
  Random random = random_stream(41);
  Threads threads{3};
  Workspace ws, threaded(make_executor(threads, 3));
  struct Shape {
    Index width, hidden, interests;
  };
  for (const Shape s : {Shape{1, 1, 1}, Shape{8, 32, 4}, Shape{13, 7, 9}, Shape{16, 5, 2}}) {
    for (const bool masked : {false, true}) {
      CAPTURE(s.width, s.hidden, s.interests, masked);
      const auto offsets = offsets_of({3, 0, 1, 17, 64, 2, 0, 33});
      const Index total = offsets.back(), users = static_cast<Index>(offsets.size()) - 1;
      Padded<T> x(random_matrix<T>(total, s.width, random).view()), keys(random_matrix<T>(total, s.width, random).view());
      const Matrix<T> w1 = random_matrix<T>(s.hidden, s.width, random), w2 = random_matrix<T>(s.interests, s.hidden, random);
      const Matrix<T> weight = random_matrix<T>(s.width + 2, s.width, random), logits = random_matrix<T>(s.interests, 70, random);
      std::vector<std::uint8_t> mask;
      if (masked) {
        for (Index i = 0; i < total; ++i) mask.push_back(random.chance(0.7) ? 1 : 0);
        mask[3] = 0;  // user 2 has nothing left
        for (Index i = 0; i < total; ++i)
          if (mask[static_cast<std::size_t>(i)] == 0) x(i, 0) = keys(i, 0) = std::numeric_limits<T>::quiet_NaN();
      }
      Padded<T> z(users * s.interests, s.width, T(9)), routes(users * s.interests, s.width + 2, T(9));
      Matrix<T> hidden(total, s.hidden), attention(s.interests, total);
      const JaggedView<const T> values(x.view(), offsets), key_rows(keys.view(), offsets);
      const auto both = [&](Workspace& with) {
        self_attentive_interests<T>(key_rows, values, w1, w2, mask, z, hidden, attention, with);
        dynamic_routing<T>(values, weight, logits, mask, {}, routes, {}, {}, with);
      };
      both(ws);
      for (Index u = 0; u < users; ++u) {
        const Index first = offsets[static_cast<std::size_t>(u)], last = offsets[static_cast<std::size_t>(u) + 1];
        const Rows own = rows_of<T>(x.view(), first, last, mask);
        const Rows want = self_attentive(rows_of<T>(keys.view(), first, last, mask), own, rows_of<T>(w1, 0, s.hidden),
                                         rows_of<T>(w2, 0, s.interests), static_cast<std::size_t>(s.width));
        Rows start(static_cast<std::size_t>(s.interests));
        for (Index k = 0; k < s.interests; ++k)
          for (Index l = first; l < last; ++l)
            if (!masked || mask[static_cast<std::size_t>(l)] != 0)
              start[static_cast<std::size_t>(k)].push_back(logits(k, 70 - (last - first) + l - first));
        const Rows caps = routed(own, rows_of<T>(weight, 0, s.width + 2), start, 3);
        double off = 0, off_routes = 0;
        for (Index k = 0; k < s.interests; ++k) {
          const auto at = static_cast<std::size_t>(k);
          for (Index d = 0; d < s.width; ++d)
            off = std::max(off, std::abs(static_cast<double>(z(u * s.interests + k, d)) - want[at][static_cast<std::size_t>(d)]));
          for (Index d = 0; d < s.width + 2; ++d)
            off_routes = std::max(off_routes, std::abs(static_cast<double>(routes(u * s.interests + k, d)) -
                                                       caps[at][static_cast<std::size_t>(d)]));
        }
        CAPTURE(u);
        CHECK(off <= tolerance);
        CHECK(off_routes <= 40 * tolerance);  // routing feeds rounding back
      }
      CHECK((z.intact() && routes.intact()));
      // The same bits on threads, and no memory the second time.
      const Matrix<T> once = [&] {
        Matrix<T> m(z.view().rows(), s.width);
        for (Index i = 0; i < m.rows(); ++i) std::copy_n(z.view().row(i), s.width, m.row(i));
        return m;
      }();
      CHECK(count_allocations([&] { both(ws); }) == 0);
      both(threaded);
      CHECK(max_difference(MatrixView<const T>(z.view()), once.view()) == 0);
    }
  }
}

TEMPLATE_TEST_CASE("multi-interest layers against PyTorch", "[attention][multi_interest][golden]", float, double) {
  using T = TestType;
  const Golden golden("multi_interest");
  const double tolerance = std::is_same_v<T, float> ? 1e-5 : 1e-12;
  const Matrix<T> x = golden.matrix<T>("x"), dz = golden.matrix<T>("dz");
  const auto mask = golden.values<std::uint8_t>("mask");
  const auto offsets = golden.values<std::int64_t>("offsets");
  const JaggedView<const T> rows(x, offsets);
  Workspace ws;
  Matrix<T> z(dz.rows(), dz.cols()), dx(x.rows(), x.cols(), T(0)), served = z;
  const auto compare = [&](const Matrix<T>& got, const std::string& name, double times) {
    Matrix<double> scaled(got.rows(), got.cols());
    for (Index i = 0; i < got.rows() * got.cols(); ++i) scaled.data()[i] = static_cast<double>(got.data()[i]) / times;
    INFO(name);
    CHECK(max_difference(scaled.view(), golden.matrix<double>(name).view()) <= tolerance);
  };
  {
    SelfAttentiveInterests<T> layer;
    layer.positions.weight = golden.matrix<T>("sa.positions");
    layer.linear1.weight = golden.matrix<T>("sa.w1");
    layer.linear2.weight = golden.matrix<T>("sa.w2");
    auto gradient = make_gradient(layer);
    typename SelfAttentiveInterests<T>::Saved saved;
    layer.forward(rows, mask, z, saved, {}, ws);
    for (int twice = 0; twice < 2; ++twice) layer.backward(rows, mask, dz, saved, dx, gradient, ws);
    compare(z, "sa.z", 1);
    compare(dx, "sa.dx", 2);
    compare(gradient.positions.weight, "sa.dpositions", 2);
    compare(gradient.linear1.weight, "sa.dw1", 2);
    compare(gradient.linear2.weight, "sa.dw2", 2);
    freeze(layer).forward(rows, mask, served, ws);
    CHECK(max_difference(served.view(), z.view()) <= (std::is_same_v<T, float> ? 1e-6 : 1e-15));
    layer.forward(rows, mask, served, ws);
    CHECK(max_difference(served.view(), z.view()) == 0);
    if constexpr (std::is_same_v<T, float>) {
      freeze(layer, Weights<BFloat16>()).forward(rows, mask, served, ws);
      CHECK(max_difference(served.view(), z.view()) <= 0.1);
      freeze(layer, Weights<std::int8_t>()).forward(rows, mask, served, ws);
      CHECK(max_difference(served.view(), z.view()) <= 0.1);
    }
    gradient.linear1.weight = {};  // not wanted
    layer.backward(rows, mask, dz, saved, {}, gradient, ws);
    CHECK(count_allocations([&] {
            layer.forward(rows, mask, z, saved, {}, ws);
            layer.backward(rows, mask, dz, saved, dx, gradient, ws);
          }) == 0);
  }
  dx.fill(0);
  DynamicRouting<T> layer;
  layer.bilinear.weight = golden.matrix<T>("dr.weight");
  layer.initial_logits = golden.matrix<T>("dr.logits");
  auto gradient = make_gradient(layer);
  typename DynamicRouting<T>::Saved saved;
  layer.forward(rows, mask, z, saved, {}, ws);
  for (int twice = 0; twice < 2; ++twice) layer.backward(rows, mask, dz, saved, dx, gradient, ws);
  compare(z, "dr.z", 1);
  compare(dx, "dr.dx", 2);
  compare(gradient.bilinear.weight, "dr.dweight", 2);
  freeze(layer).forward(rows, mask, served, ws);
  CHECK(max_difference(served.view(), z.view()) == 0);
  CHECK(count_allocations([&] { layer.backward(rows, mask, dz, saved, dx, gradient, ws); }) == 0);
}

TEST_CASE("gradients of interests are central differences", "[attention][multi_interest]") {
  Random random = random_stream(43);
  const auto offsets = offsets_of({4, 0, 1, 6});
  const Index total = 11, users = 4, k = 3;
  SelfAttentiveInterests<double> layer(5, k, 6, 7, random);
  Matrix<double> x = random_matrix<double>(total, 5, random), z(users * k, 5), dx(total, 5, 0.0);
  const Matrix<double> g = random_matrix<double>(users * k, 5, random);
  const std::vector<std::uint8_t> mask{1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 1};
  auto gradient = make_gradient(layer);
  SelfAttentiveInterests<double>::Saved saved;
  Workspace ws;
  const JaggedView<const double> rows(x, offsets);
  layer.forward(rows, mask, z, saved, {}, ws);
  layer.backward(rows, mask, g, saved, dx, gradient, ws);
  const auto loss = [&] {
    layer.forward(rows, mask, z, ws);
    double sum = 0;
    for (Index i = 0; i < z.rows() * z.cols(); ++i) sum += z.data()[i] * g.data()[i];
    return sum;
  };
  GradientReport report;
  check_gradient("x", leaf_values(x), leaf_values(dx), loss, report);
  visit([&](const FieldPath& path, auto& leaf,
            const auto& d) { check_gradient(path.str(), leaf_values(leaf), leaf_values(d), loss, report); },
        layer, gradient);
  INFO(report.where);
  CHECK(report.worst < 1e-7);

  // One iteration of routing has no fixed part but its start: its gradient is the whole one.
  DynamicRouting<double> routing(5, k, 7, random, {.iterations = 1});
  auto droute = make_gradient(routing);
  DynamicRouting<double>::Saved kept;
  dx.fill(0);
  routing.forward(rows, mask, z, kept, {}, ws);
  routing.backward(rows, mask, g, kept, dx, droute, ws);
  const auto routed_loss = [&] {
    routing.forward(rows, mask, z, ws);
    double sum = 0;
    for (Index i = 0; i < z.rows() * z.cols(); ++i) sum += z.data()[i] * g.data()[i];
    return sum;
  };
  GradientReport second;
  check_gradient("x", leaf_values(x), leaf_values(dx), routed_loss, second);
  check_gradient("bilinear", leaf_values(routing.bilinear.weight), leaf_values(droute.bilinear.weight), routed_loss, second);
  CHECK(second.worst < 1e-7);
}

TEST_CASE("what interests do not depend on", "[attention][multi_interest]") {
  Random random = random_stream(44);
  Workspace ws;
  SelfAttentiveInterests<float> layer(8, 4, 16, 0, random);
  // The order of behaviours, without positions.
  Matrix<float> x = random_matrix<float>(6, 8, random), y = x, a(4, 8), b(4, 8);
  for (Index i = 0; i < 6; ++i) std::copy_n(x.row(i), 8, y.row(5 - i));
  layer.forward(x, {}, a, ws);
  layer.forward(y, {}, b, ws);
  CHECK(max_difference(a.view(), b.view()) < 1e-6);
  // One behaviour is every interest.
  layer.forward(MatrixView<const float>(x.data(), 1, 8), {}, a, ws);
  for (Index k = 0; k < 4; ++k)
    for (Index d = 0; d < 8; ++d) CHECK(a(k, d) == x(0, d));
  // A user's bits: alone, or behind others; a NaN of somebody else.
  Matrix<float> more(600, 8);
  for (Index i = 0; i < 600; ++i) std::copy_n(x.row(i % 6), 8, more.row(i));
  more(0, 3) = std::numeric_limits<float>::quiet_NaN();
  std::vector<std::int64_t> offsets;
  for (Index i = 0; i <= 100; ++i) offsets.push_back(6 * i);
  Matrix<float> all(400, 8);
  layer.forward(x, {}, a, ws);
  layer.forward(JaggedView<const float>(more, offsets), {}, all, ws);
  CHECK(max_difference(all.view().middle_rows(396, 4), a.view()) == 0);
  CHECK(max_difference(all.view().middle_rows(4, 4), a.view()) == 0);
  CHECK(std::isnan(all(0, 3)));
  // As many interests as take another way through a product, where a user's few behaviours would not.
  const SelfAttentiveInterests<float> nine(8, 9, 16, 0, random);
  const std::vector<std::int64_t> threes{0, 3, 6};
  Matrix<float> nines(18, 8), own(9, 8);
  nine.forward(JaggedView<const float>(x.view(), threes), {}, nines, ws);
  nine.forward(MatrixView<const float>(x.row(3), 3, 8), {}, own, ws);
  CHECK(max_difference(nines.view().middle_rows(9, 9), own.view()) == 0);
  // A long history of one kind is that kind: one sum, behaviour after behaviour, would be off by a hundredth.
  const Matrix<float> life(1000000, 1, 0.1f), flat(1, 1, 0.0f);
  Matrix<float> typical(1, 1);
  self_attentive_interests<float>(life.view(), life.view(), flat, flat, {}, typical, {}, {}, ws);
  CHECK(std::abs(typical(0, 0) - 0.1f) < 1e-6f);
  constexpr Index length = 1 << 17;
  const Matrix<float> one(1, 1, 1.0f), logits(1, length, 0.0f);
  Matrix<float> coupling(1, length), sums(1, 1);
  dynamic_routing<float>(life.view().middle_rows(0, length), one, logits, {}, {.iterations = 1}, typical, coupling, sums, ws);
  CHECK(std::abs(sums(0, 0) / (0.1f * static_cast<float>(length)) - 1) < 3e-5f);
  // An empty batch.
  const std::vector<std::int32_t> none{0};
  layer.forward(JaggedView<const float>(MatrixView<const float>(nullptr, 0, 8), none), {}, MatrixView<float>(nullptr, 0, 8), ws);

  Vector<std::int32_t> choice(2);
  choose_interest<float>(Matrix<float>{{1, 0}, {0, 1}, {2, 2}, {2, 2}}.view(), Matrix<float>{{1, 3}, {1, 1}}.view(), choice);
  CHECK((choice[0] == 1 && choice[1] == 0));
}

TEST_CASE("gradients of interests where nothing is left, or nothing is shown", "[attention][multi_interest]") {
  Random random = random_stream(46);
  Workspace ws;
  // Behaviours that are zeros sum to nothing, of which no length can be taken.
  DynamicRouting<double> routing(4, 2, 3, random), moved = make_gradient(routing);
  Matrix<double> x(3, 4, 0.0), z(2, 4), dx(3, 4, 0.0);
  const Matrix<double> dz = random_matrix<double>(2, 4, random);
  DynamicRouting<double>::Saved kept;
  routing.forward(x, {}, z, kept, {}, ws);
  routing.backward(x, {}, dz, kept, dx, moved, ws);
  for (const double v : leaf_values(dx)) CHECK(v == 0);
  // What is hidden has no gradient, be that of the interests a NaN.
  SelfAttentiveInterests<double> layer(4, 2, 6, 3, random), gradient = make_gradient(layer);
  const Matrix<double> rows = random_matrix<double>(3, 4, random);
  Matrix<double> broken = dz;
  broken(1, 2) = std::numeric_limits<double>::quiet_NaN();
  const std::vector<std::uint8_t> mask{1, 0, 1};
  SelfAttentiveInterests<double>::Saved saved;
  dx.fill(0);
  layer.forward(rows, mask, z, saved, {}, ws);
  layer.backward(rows, mask, broken, saved, dx, gradient, ws);
  for (Index d = 0; d < 4; ++d) CHECK((dx(1, d) == 0 && std::isnan(dx(0, d))));
}

TEST_CASE("multi-interest errors", "[attention][multi_interest]") {
  Random random = random_stream(45);
  Workspace ws;
  SelfAttentiveInterests<float> layer(4, 2, 8, 3, random);
  DynamicRouting<float> routing(4, 2, 3, random);
  Matrix<float> x(3, 4, 1.0f), z(2, 4, 7.0f), longer(5, 4, 1.0f), wide(3, 5, 1.0f), wrong(3, 4);
  const auto untouched = [&] { return *std::max_element(z.data(), z.data() + 8) == 7.0f; };
  CHECK(error_of([&] { layer.forward(wide, {}, z, ws); }).find("x: expected shape [_, 4]") != std::string::npos);
  CHECK(error_of([&] { layer.forward(longer, {}, z, ws); }).find("at most max_length") != std::string::npos);
  CHECK(error_of([&] { layer.forward(x, {}, wrong, ws); }).find("interests: expected shape [2, 4]") != std::string::npos);
  const std::vector<std::uint8_t> mask{1, 0};
  CHECK(error_of([&] { layer.forward(x, mask, z, ws); }).find("mask: expected size 3") != std::string::npos);
  CHECK(error_of([&] { routing.forward(longer, {}, z, ws); }).find("no longer than logits") != std::string::npos);
  routing.options.iterations = 0;
  CHECK(error_of([&] { routing.forward(x, {}, z, ws); }).find("iterations >= 1") != std::string::npos);
  const std::vector<std::int32_t> bad{0, 2};
  CHECK(error_of([&] { layer.forward(JaggedView<const float>(x, bad), {}, z, ws); }).find("offsets") != std::string::npos);
  CHECK(error_of([&] { SelfAttentiveInterests<float>(4, 0, 8, 3, random); }).find("interests >= 1") != std::string::npos);
  CHECK(untouched());
}
