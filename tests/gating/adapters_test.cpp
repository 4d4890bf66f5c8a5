// lhuc.hpp, film.hpp, lora_linear.hpp, adapters.hpp, gated_adapters.hpp, group_gated_ffn.hpp. Oracles: PyTorch's vectors, the
// specification's golden numbers, the formulas in double, central differences, algebra (adapters of 0, merged weights).
#include <recops/gating/film.hpp>
#include <recops/gating/gated_adapters.hpp>
#include <recops/gating/group_gated_ffn.hpp>
#include <recops/gating/lhuc.hpp>
#include <recops/gating/lora_linear.hpp>

#include "gating/golden_parts.hpp"
#include "support/allocations.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {

std::vector<std::int64_t> ids_of(const Golden& golden, const std::string& key) { return golden.values<std::int64_t>(key); }

/// Rows of a gradient by rows against the dense one; rows it does not hold must be 0 there.
bool same_table(const Table<double>& by_rows, const Table<double>& dense) {
  Matrix<double> all(dense.values.rows(), dense.values.cols(), 0.0);
  for (Index i = 0; i < by_rows.rows.size(); ++i) std::copy_n(by_rows.values.row(i), all.cols(), all.row(by_rows.rows[i]));
  return max_difference(all.view(), dense.values.view()) == 0;
}

}  // namespace

TEST_CASE("Lhuc equals PyTorch; its gradient by rows too", "[gating][adapters]") {
  const Golden golden("pepnet");
  Workspace ws;
  Lhuc<double> layer(6, 9);
  set_parameters<double>(golden, "lhuc.", layer);
  const auto ids = ids_of(golden, "lhuc.ids");
  const auto x = golden.matrix<double>("lhuc.x"), dy = golden.matrix<double>("lhuc.dy");
  Padded<double> y(7, 9), dx(7, 9);
  auto dense = zeros_like(layer), rows = make_gradient(layer), none = Lhuc<double>();
  layer.forward(x, ids, y, ws);
  layer.backward(x, ids, dy, dx, dense, ws);
  layer.backward(x, ids, dy, dx, rows, ws);
  layer.backward(x, ids, dy, {}, none, ws);
  CHECK(distance<double>(golden, "lhuc.y", y) < 1e-14);
  CHECK(distance<double>(golden, "lhuc.dx", dx, 2) < 1e-14);
  CHECK(gradient_distance(golden, "lhuc.", dense, 1) < 1e-13);
  CHECK(std::vector<Index>(rows.weight.rows.begin(), rows.weight.rows.end()) == std::vector<Index>{0, 3, 5});
  CHECK(same_table(rows.weight, dense.weight));
  CHECK((y.intact() && dx.intact() && none.weight.values.empty()));
  layer.backward(x, ids, dy, {}, rows, ws);
  const AllocationCounter counter;
  zero_gradient(rows);
  layer.forward(x, ids, y, ws);
  layer.backward(x, ids, dy, dx, rows, ws);
  CHECK(counter.count() == 0);
}

TEMPLATE_TEST_CASE("Lhuc: a new table is the identity, factors lie in (0, 2), bad ids are named", "[gating][adapters]", float,
                   double) {
  using T = TestType;
  Random random = random_stream(411);
  Workspace ws;
  for (const Index h : {1, 7, 33}) {
    Lhuc<T> layer(3, h);
    const Matrix<T> x = random_matrix<T>(4, h, random);
    Matrix<T> y(4, h, T(5));
    const std::int32_t ids[] = {2, -1, 0, 2};
    const IndexView some(ids, 4);
    layer.forward(x, some, y, ws);
    CHECK(max_difference(x.view(), y.view()) == 0);
    layer.weight.values = random_matrix<T>(3, h, random);
    layer.forward(x, some, y, ws);
    for (Index b = 0; b < 4; ++b)
      for (Index j = 0; j < h; ++j) {
        const double r = ids[b] < 0 ? 0 : static_cast<double>(layer.weight.values(ids[b], j));
        CHECK(static_cast<double>(y(b, j)) ==
              Approx(static_cast<double>(x(b, j)) * 2 / (1 + std::exp(-r))).epsilon(1e-6).margin(1e-30));
      }
    const std::int32_t wrong[] = {0, 1, 3, 0}, low[] = {0, -2, 1, 1};
    y.fill(T(9));
    CHECK(error_of([&] { layer.forward(x, IndexView(wrong, 4), y, ws); }).find("at position 2") != std::string::npos);
    CHECK(error_of([&] { layer.forward(x, IndexView(low, 4), y, ws); }).find("at position 1") != std::string::npos);
    CHECK(error_of([&] { layer.forward(x, IndexView(wrong, 3), y, ws); }).find("ids") != std::string::npos);
    for (const T v : leaf_values(y)) CHECK(v == T(9));
  }
}

TEMPLATE_TEST_CASE("Film equals PyTorch; a new one is the identity; frozen", "[gating][adapters]", float, double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 2e-5 : 1e-13;
  const Golden golden("pepnet");
  Random random = random_stream(412);
  Workspace ws;
  for (const std::string name : {"film", "film_plain"}) {
    Film<T> layer(7, 4, random, {.plus_one = name == "film"});
    const auto x = golden.matrix<T>(name + ".x"), z = golden.matrix<T>(name + ".z"), dy = golden.matrix<T>(name + ".dy");
    Padded<T> y(6, 7), dx(6, 7), dz(6, 4), s(6, 7);
    layer.forward(x, z, y, ws);
    if (layer.options.plus_one) CHECK(max_difference(y.view(), x.view()) == 0);
    set_parameters<T>(golden, name + ".", layer);
    typename Film<T>::Saved saved;
    auto gradient = make_gradient(layer);
    layer.forward(x, z, y, saved, Step{}, ws);
    for (int twice = 0; twice < 2; ++twice) layer.backward(x, z, dy, saved, dx, dz, gradient, ws);
    freeze(layer).forward(x, z, s, ws);
    CHECK(distance<T>(golden, name + ".y", y) < tolerance);
    CHECK(distance<T>(golden, name + ".y", s) < tolerance);
    CHECK(distance<T>(golden, name + ".dx", dx, 2) < tolerance);
    CHECK(distance<T>(golden, name + ".dz", dz, 2) < tolerance);
    CHECK(gradient_distance(golden, name + ".", gradient, 2) < tolerance);
    CHECK((y.intact() && dx.intact() && dz.intact() && s.intact()));
    const AllocationCounter counter;
    layer.forward(x, z, y, saved, Step{}, ws);
    layer.backward(x, z, dy, saved, dx, dz, gradient, ws);
    CHECK(counter.count() == 0);
    CHECK(error_of([&] { layer.forward(x, x, y, ws); }).find("z: expected") != std::string::npos);
  }
}

TEMPLATE_TEST_CASE("LoraLinear equals PyTorch; merged it is the same; a frozen base learns nothing", "[gating][adapters]", float,
                   double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 3e-5 : 1e-12;
  const Golden golden("pepnet");
  Random random = random_stream(413);
  Workspace ws;
  LoraLinear<T> layer(Linear<T>(9, 7, random), 3, 6.0, random);
  static_assert(RowLayer<LoraLinear<T>, T>);
  const auto x = golden.matrix<T>("lora.x");
  Matrix<T> y(6, 7), z(6, 7);
  layer.forward(x, y, ws);
  layer.base_layer.forward(x, z, ws);
  CHECK(max_difference(y.view(), z.view()) == 0);
  CHECK(distance_to_golden<T>(golden, "lora", layer) < tolerance);
  layer.forward(x, y, ws);
  freeze(layer).forward(x, z, ws);
  CHECK(max_difference(y.view(), z.view()) < tolerance);
  auto gradient = make_gradient(layer);
  gradient.base_layer = Linear<T>();
  typename LoraLinear<T>::Saved saved;
  Matrix<T> dx(6, 9, T(0));
  layer.forward(x, y, saved, Step{}, ws);
  layer.backward(x, golden.matrix<T>("lora.dy").view(), saved, dx, gradient, ws);
  CHECK(gradient.base_layer.weight.empty());
  CHECK(distance<T>(golden, "lora.dx", MatrixView<const T>(dx)) < tolerance);
  gradient.down = Matrix<T>();
  const AllocationCounter counter;
  layer.forward(x, y, saved, Step{}, ws);
  layer.backward(x, y, saved, {}, gradient, ws);
  CHECK(counter.count() == 0);
  if constexpr (std::is_same_v<T, double>) {
    Matrix<double> in = random_matrix<double>(5, 9, random);
    const GradientReport report = gradient_check(layer, in.view());
    CAPTURE(report.where);
    CHECK(report.worst < 1e-6);
    // Both parts 0: no gradient at all, as the page says.
    layer.down.fill(0);
    layer.up.fill(0);
    auto dead = make_gradient(layer);
    layer.forward(x, y, saved, Step{}, ws);
    layer.backward(x, y, saved, {}, dead, ws);
    for (const double v : leaf_values(dead.down)) CHECK(v == 0);
    for (const double v : leaf_values(dead.up)) CHECK(v == 0);
  }
  layer.up = Matrix<T>(6, 3, T(0));
  CHECK(error_of([&] { layer.forward(x, y, ws); }).find("lora_B") != std::string::npos);
}

TEST_CASE("GatedAdapters equal PyTorch: outputs, gates, every gradient, serving", "[gating][adapters]") {
  const Golden golden("pepnet");
  Random random(1);
  Workspace ws;
  GatedAdapters<double> layer({.inputs = 6, .outputs = 5, .adapters = {4, 3}, .rank = 2, .alpha = 0.5}, random);
  set_parameters<double>(golden, "adapters.", layer);
  auto ids = ids_of(golden, "adapters.users");
  const auto groups = ids_of(golden, "adapters.groups");
  ids.insert(ids.end(), groups.begin(), groups.end());
  const auto x = golden.matrix<double>("adapters.x"), dy = golden.matrix<double>("adapters.dy");
  Padded<double> y(7, 5), dx(7, 6), s(7, 5);
  GatedAdapters<double>::Saved saved;
  auto dense = zeros_like(layer), rows = make_gradient(layer);
  layer.forward(x, ids, y, saved, Step{}, ws);
  layer.backward(x, ids, dy, saved, dx, dense, ws);
  layer.backward(x, ids, dy, saved, dx, rows, ws);
  CHECK(distance<double>(golden, "adapters.y", y) < 1e-13);
  CHECK(distance<double>(golden, "adapters.dx", dx, 2) < 1e-13);
  CHECK(distance<double>(golden, "adapters.gates", saved.gates.view()) < 1e-14);
  CHECK(gradient_distance(golden, "adapters.", dense, 1) < 1e-12);
  CHECK((same_table(rows.adapters[0].weight, dense.adapters[0].weight) &&
         same_table(rows.adapters[1].weight, dense.adapters[1].weight)));
  layer.forward(x, ids, s, ws);
  CHECK(distance<double>(golden, "adapters.y", s) < 1e-13);
  const auto served = freeze(layer);
  served.forward(x, ids, s, ws);
  CHECK(distance<double>(golden, "adapters.y", s) < 1e-13);
  CHECK((y.intact() && dx.intact() && s.intact()));
  auto frozen = make_gradient(layer);
  frozen.base = Linear<double>();
  layer.backward(x, ids, dy, saved, {}, frozen, ws);
  CHECK((frozen.base.weight.empty() && same_bits(frozen.gate_hidden, dense.gate_hidden)));
  const AllocationCounter counter;
  zero_gradient(rows);
  layer.forward(x, ids, y, saved, Step{}, ws);
  layer.backward(x, ids, dy, saved, dx, rows, ws);
  served.forward(x, ids, s, ws);
  CHECK(counter.count() == 0);
}

TEST_CASE("GatedAdapters give the specification's golden numbers (G7)", "[gating][adapters]") {
  Random random(1);
  Workspace ws;
  GatedAdapters<double> layer({.inputs = 6, .outputs = 3, .adapters = {1, 1}, .rank = 2, .alpha = 1.0, .gate_width = 4}, random);
  const auto set = [&](Linear<double>& l, Index i, Index in, Index out) {
    l.weight = transpose(fill(i, in, out));
    const Matrix<double> b = fill(i + 1, 1, out);
    std::copy_n(b.data(), out, l.bias.data());
  };
  set(layer.base, 28, 6, 3);
  set(layer.gate_hidden, 34, 6, 4);
  set(layer.gate_output, 36, 4, 3);
  for (Index a = 0; a < 2; ++a) {
    double* const row = layer.adapters[static_cast<std::size_t>(a)].weight.values.row(0);
    const Matrix<double> down = transpose(fill(30 + a, 6, 2)), up = fill(32 + a, 2, 3);
    std::copy_n(down.data(), 12, row);
    std::copy_n(up.data(), 6, row + 12);
  }
  const Matrix<double> x = fill(1, 4, 6), dy = fill(99, 4, 3);
  const std::int32_t ids[8] = {};
  const IndexView all(ids, 8);
  Matrix<double> y(4, 3), dx(4, 6, 0.0);
  GatedAdapters<double>::Saved saved;
  auto gradient = make_gradient(layer);
  layer.forward(x, all, y, saved, Step{}, ws);
  layer.backward(x, all, dy, saved, dx, gradient, ws);
  double sum = 0, sum_dx = 0, size_dx = 0;
  for (const double v : leaf_values(y)) sum += v;
  for (const double v : leaf_values(dx)) sum_dx += v, size_dx += std::abs(v);
  CHECK(y(0, 0) == Approx(0.1323287514).margin(1e-9));
  CHECK(sum == Approx(0.4678079039).margin(1e-9));
  CHECK(inner(y.view(), dy.view()) == Approx(0.0792980380).margin(1e-9));
  CHECK(dx(0, 0) == Approx(0.0184583).margin(1e-6));
  CHECK(sum_dx == Approx(-0.0758106).margin(1e-6));
  CHECK(size_dx == Approx(0.7008900).margin(1e-6));
}

TEMPLATE_TEST_CASE("Adapters: any sizes, both precisions, threads, new ones change nothing", "[gating][adapters]", float,
                   double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 2e-5 : 1e-13;
  Random random = random_stream(414);
  Threads threads{3};
  Workspace ws, wide(make_executor(threads, 3));
  for (const Index d : {1, 8, 19}) {
    for (const Index rank : {1, 4, 5}) {
      const Index o = d + 3, rows = 130, users = 11;
      GatedAdapters<T> layer({.inputs = d, .outputs = o, .adapters = {users}, .rank = rank}, random);
      std::vector<std::int32_t> ids;
      for (Index b = 0; b < rows; ++b) ids.push_back(static_cast<std::int32_t>(random.below(users + 1)) - 1);
      const Matrix<T> x = random_matrix<T>(rows, d, random), dy = random_matrix<T>(rows, o, random);
      Matrix<T> y(rows, o, T(1)), z(rows, o, T(1));
      auto& table = layer.adapters[0].weight.values;
      add_adapters<T>(x, table, ids, rank, {}, y, ws);
      for (const T v : leaf_values(y)) CHECK(v == T(1));
      table = random_matrix<T>(users, table.cols(), random);
      const Vector<T> scale = random_vector<T>(rows, random);
      add_adapters<T>(x, table, ids, rank, scale, y, ws);
      add_adapters<T>(x, table, ids, rank, scale, z, wide);
      CHECK(max_difference(y.view(), z.view()) == 0);
      double worst = 0;
      for (Index b = 0; b < rows; ++b)
        for (Index j = 0; j < o; ++j) {
          double sum = 1, size = 1;
          for (Index k = 0; k < rank && ids[static_cast<std::size_t>(b)] >= 0; ++k) {
            const T* const a = table.row(ids[static_cast<std::size_t>(b)]);
            double q = 0;
            for (Index i = 0; i < d; ++i) q += static_cast<double>(a[k * d + i]) * static_cast<double>(x(b, i));
            const double term = static_cast<double>(scale[b]) * q * static_cast<double>(a[rank * d + k * o + j]);
            sum += term;
            size += std::abs(term);
          }
          worst = std::max(worst, std::abs(static_cast<double>(y(b, j)) - sum) / size);
        }
      CHECK(worst < tolerance);
      typename GatedAdapters<T>::Saved saved;
      Matrix<T> dx(rows, d, T(0)), dx2(rows, d, T(0)), s(rows, o);
      auto one = make_gradient(layer), two = make_gradient(layer);
      layer.forward(x, ids, y, saved, Step{}, ws);
      layer.backward(x, ids, dy, saved, dx, one, ws);
      layer.forward(x, ids, z, saved, Step{}, wide);
      layer.backward(x, ids, dy, saved, dx2, two, wide);
      CHECK(max_difference(y.view(), z.view()) == 0);
      CHECK(max_difference(dx.view(), dx2.view()) == 0);
      CHECK(same_bits(one, two));
      freeze(layer).forward(x, ids, s, ws);
      for (Index i = 0; i < rows * o; ++i)
        CHECK(static_cast<double>(s.data()[i]) == Approx(static_cast<double>(y.data()[i])).epsilon(1e-5).margin(1e-4));
    }
  }
}

TEST_CASE("GatedAdapters pass the gradient check; a gate that is all base gives the base", "[gating][adapters]") {
  Random random = random_stream(415);
  Workspace ws;
  GatedAdapters<double> layer({.inputs = 5, .outputs = 4, .adapters = {3, 2, 2}, .rank = 3}, random);
  for (auto& a : layer.adapters) a.weight.values = random_matrix<double>(a.weight.values.rows(), a.weight.values.cols(), random);
  const std::int32_t ids[] = {0, 1, 2, 0, -1, 1, 1, 0, 0, 1, 0, 0, -1, 1, 1};
  const IndexView all(ids, 15);
  Matrix<double> x = random_matrix<double>(5, 5, random), y(5, 4), dx(5, 5, 0.0);
  const Matrix<double> dy = random_matrix<double>(5, 4, random);
  GatedAdapters<double>::Saved saved;
  auto gradient = zeros_like(layer);
  layer.forward(x, all, y, saved, Step{}, ws);
  layer.backward(x, all, dy, saved, dx, gradient, ws);
  const auto loss = [&] {
    layer.forward(x, all, y, ws);
    return inner(y.view(), dy.view());
  };
  GradientReport report;
  check_gradient("x", leaf_values(x), VectorView<const double>(leaf_values(dx)), loss, report);
  check_parameters(layer, gradient, loss, report);
  CAPTURE(report.where, report.numeric, report.analytic);
  CHECK(report.worst < 2e-6);
  layer.gate_output.weight.fill(0);
  layer.gate_output.bias = {2000, 0, 0, 0};
  Matrix<double> base(5, 4);
  layer.forward(x, all, y, ws);
  layer.base.forward(x, base, ws);
  for (double& v : leaf_values(base)) v = v > 0 ? v : 0;
  CHECK(max_difference(y.view(), base.view()) == 0);
  CHECK(error_of([&] { layer.forward(x, all.segment(0, 10), y, ws); }).find("one id for each slot") != std::string::npos);
  const std::int32_t wrong[] = {0, 1, 2, 0, -1, 1, 1, 0, 0, 2, 0, 0, -1, 1, 1};
  CHECK(error_of([&] { layer.forward(x, IndexView(wrong, 15), y, ws); }).find("below 2") != std::string::npos);
}

TEST_CASE("GroupGatedFfn equals PyTorch, with and without the gate's factor; balance loss", "[gating][adapters]") {
  const Golden golden("pepnet");
  Random random(1);
  Workspace ws;
  for (const std::string name : {"group", "group_scaled"}) {
    const bool scaled = name == "group_scaled";
    GroupGatedFfn<double> layer(6, 3, 4,
                                [&] {
                                  return Mlp<double>({6, 6, 6}, {}, random);
                                },
                                random, {.scale_by_gate = scaled, .padded_length = scaled ? 9 : 0});
    set_parameters<double>(golden, name + ".", layer);
    const auto offsets = ids_of(golden, name + ".offsets");
    const auto values = golden.matrix<double>(name + ".x"), user = golden.matrix<double>(name + ".u"),
               dy = golden.matrix<double>(name + ".dy"), previous = golden.matrix<double>(name + ".previous");
    const JaggedView<const double> x(values.view(), offsets);
    Padded<double> y(13, 6), dx(13, 6), du(3, 3), s(13, 6);
    GroupGatedFfn<double>::Saved saved;
    auto gradient = make_gradient(layer);
    layer.forward(x, user, y, saved, Step{}, ws);
    CHECK(distance<double>(golden, name + ".y", y) < 1e-13);
    CHECK(distance<double>(golden, name + ".gates", saved.gates.view()) < 1e-14);
    const auto picks = ids_of(golden, name + ".picks");
    CHECK(std::equal(picks.begin(), picks.end(), saved.picks.begin()));
    Matrix<double> dg(3, 4, 0.0);
    const double balance =
        group_balance_value_and_grad<double>(saved.gates, saved.picks, VectorView<const double>(previous.data(), 4), 0.1, dg);
    CHECK(balance == Approx(golden.scalar(name + ".balance")).epsilon(1e-13));
    for (int twice = 0; twice < 2; ++twice) layer.backward(x, user, dy, dg, saved, dx, du, gradient, ws);
    CHECK(distance<double>(golden, name + ".dx", dx, 2) < 1e-13);
    CHECK(distance<double>(golden, name + ".du", du, 2) < 1e-13);
    CHECK(gradient_distance(golden, name + ".", gradient, 2) < 1e-12);
    layer.forward(x, user, s, ws);
    CHECK(max_difference(s.view(), y.view()) < 1e-14);
    const auto served = freeze(layer);
    served.forward(x, user, s, ws);
    CHECK(distance<double>(golden, name + ".y", s) < 1e-13);
    CHECK((y.intact() && dx.intact() && du.intact() && s.intact()));
    const AllocationCounter counter;
    layer.forward(x, user, s, ws);
    served.forward(x, user, s, ws);
    layer.forward(x, user, y, saved, Step{}, ws);
    layer.backward(x, user, dy, dg, saved, dx, du, gradient, ws);
    CHECK(counter.count() == 0);
  }
}

TEST_CASE("GroupGatedFfn: a sequence layer; equal groups make it two networks; empty sequences; floats", "[gating][adapters]") {
  Random random = random_stream(416);
  Workspace ws;
  static_assert(SequenceLayer<GroupGatedFfn<float>, float> && !RowLayer<GroupGatedFfn<float>, float>);
  const auto make = [&] { return Mlp<double>({5, 7, 5}, {.activation = Activation::silu}, random); };
  GroupGatedFfn<double> layer(5, 0, 3, make, random, {.scale_by_gate = true});
  const std::int32_t offsets[] = {0, 3, 3, 10, 11};
  Matrix<double> values = random_matrix<double>(11, 5, random);
  const GradientReport report = gradient_check(layer, JaggedView<double>(values.view(), IndexView(offsets, 5)));
  CAPTURE(report.where, report.numeric, report.analytic);
  CHECK(report.worst < 2e-6);
  layer.options.scale_by_gate = false;
  for (auto& g : layer.groups) g = layer.own;
  Matrix<double> y(11, 5), twice(11, 5);
  const JaggedView<const double> x(values.view(), IndexView(offsets, 5));
  layer.forward(x, y, ws);
  layer.own.forward(values, twice, ws);
  for (double& v : leaf_values(twice)) v *= 2;
  CHECK(max_difference(y.view(), twice.view()) < 1e-13);
  GroupGatedFfn<float> single(
      5, 0, 3,
      [&] {
        return Mlp<float>({5, 7, 5}, {.activation = Activation::silu}, random);
      },
      random);
  cast_layer(layer, single);
  const Matrix<float> narrow = cast<float>(values);
  Matrix<float> z(11, 5), frozen(11, 5);
  const JaggedView<const float> xf(narrow.view(), IndexView(offsets, 5));
  single.forward(xf, z, ws);
  freeze(single).forward(xf, frozen, ws);
  CHECK(max_difference(z.view(), y.view()) < 2e-5);
  CHECK(max_difference(frozen.view(), y.view()) < 2e-5);
  const std::int32_t bad[] = {0, 3, 2, 10, 11};
  z.fill(7);
  CHECK(error_of([&] { single.forward(JaggedView<const float>(narrow.view(), IndexView(bad, 5)), z, ws); }).find("never fall") !=
        std::string::npos);
  GroupGatedFfn<float>::Saved saved;
  CHECK(error_of([&] { single.update(saved); }).find("saved") != std::string::npos);
  single.forward(xf, frozen, saved, Step{}, ws);
  single.update(saved);
  saved.order.resize(3);
  auto gradient = make_gradient(single);
  CHECK(error_of([&] { single.backward(xf, frozen, saved, {}, gradient, ws); }).find("saved.order") != std::string::npos);
  single.options.padded_length = -1;
  CHECK(error_of([&] { single.forward(xf, z, ws); }).find("padded_length") != std::string::npos);
  CHECK(z(0, 0) == 7.0f);
}

TEST_CASE("Adapters: a NaN stays in its row, or in its sequence", "[gating][adapters]") {
  Random random = random_stream(417);
  Workspace ws;
  const Index rows = 9, d = 6;
  const Matrix<float> x = random_matrix<float>(rows, d, random), z = random_matrix<float>(rows, 3, random);
  Matrix<float> broken = x, y(rows, d), spoilt(rows, d);
  broken(4, 2) = std::numeric_limits<float>::quiet_NaN();
  const std::vector<std::int32_t> ids{0, 1, 1, -1, 2, 2, 0, 1, 2}, offsets{0, 4, 4, 6, 9};
  const auto check = [&](const char* name, Index first, Index last, auto&& forward, float bound = 0) {
    INFO(name);
    forward(x, y);
    forward(broken, spoilt);
    bool others = true, own = false;
    for (Index i = 0; i < rows; ++i)
      for (Index c = 0; c < d; ++c) {
        const bool inside = first <= i && i < last;
        others = others && (inside || std::abs(spoilt(i, c) - y(i, c)) <= bound);
        own = own || (inside && std::isnan(spoilt(i, c)));
      }
    CHECK((others && own));
  };
  Lhuc<float> lhuc(3, d);
  for (float& r : leaf_values(lhuc.weight)) r = static_cast<float>(random.normal());
  check("Lhuc", 4, 5, [&](const Matrix<float>& in, Matrix<float>& out) { lhuc.forward(in, ids, out, ws); });
  Film<float> film(d, 3, random);
  for (float& w : leaf_values(film.linear.weight)) w = static_cast<float>(random.normal());
  const auto served = freeze(film);
  check("Film", 4, 5, [&](const Matrix<float>& in, Matrix<float>& out) { film.forward(in, z, out, ws); });
  check("Film, frozen", 4, 5, [&](const Matrix<float>& in, Matrix<float>& out) { served.forward(in, z, out, ws); });
  LoraLinear<float> lora(Linear<float>(d, d, random), 2, 1.0, random);
  for (float& w : leaf_values(lora.up)) w = static_cast<float>(random.normal());
  check("LoraLinear", 4, 5, [&](const Matrix<float>& in, Matrix<float>& out) { lora.forward(in, out, ws); });
  GatedAdapters<float> gated({.inputs = d, .outputs = d, .adapters = {3}, .rank = 2}, random);
  for (auto& table : gated.adapters)
    for (float& w : leaf_values(table.weight)) w = static_cast<float>(random.normal());
  const auto packed = freeze(gated);
  check("GatedAdapters", 4, 5, [&](const Matrix<float>& in, Matrix<float>& out) { gated.forward(in, ids, out, ws); });
  check("GatedAdapters, frozen", 4, 5, [&](const Matrix<float>& in, Matrix<float>& out) { packed.forward(in, ids, out, ws); });
  GroupGatedFfn<float> groups(
      d, 0, 3,
      [&] {
        return Mlp<float>({d, d, d}, {}, random);
      },
      random);
  const auto all = freeze(groups);
  const auto in_sequences = [&](const Matrix<float>& in) { return JaggedView<const float>(in.view(), offsets); };
  // The broken sequence may change its group, and with it the number of rows of a product: others keep their values to rounding.
  check(
      "GroupGatedFfn", 4, 6, [&](const Matrix<float>& in, Matrix<float>& out) { groups.forward(in_sequences(in), out, ws); },
      1e-5f);
  check("GroupGatedFfn, frozen", 4, 6,
        [&](const Matrix<float>& in, Matrix<float>& out) { all.forward(in_sequences(in), out, ws); });
}
