// Oracles: PyTorch's vectors (golden/pooling.py), central differences.
#include <recops/attention/orthogonal_projection.hpp>
#include <recops/attention/query_resampler.hpp>
#include <recops/train/gradient_check.hpp>

#include "support/allocations.hpp"
#include "support/golden_layer.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

TEMPLATE_TEST_CASE("query resampler against PyTorch", "[attention][query_resampler][golden]", float, double) {
  using T = TestType;
  const Golden golden("pooling");
  const double tolerance = std::is_same_v<T, float> ? 3e-4 : 1e-10;
  const auto offsets = golden.values<std::int64_t>("offsets");
  Random random(1);
  QueryResampler<T> layer(6, {.queries = 2, .heads = 3, .layers = 2, .hidden = 10}, random);
  set_parameters<T>(golden, "resampler.", layer);
  const Matrix<T> x = golden.matrix<T>("resampler.x"), dy = golden.matrix<T>("resampler.dy"),
                  condition = golden.matrix<T>("resampler.condition");
  const JaggedView<const T> tokens(x, offsets);
  Padded<T> y(dy.rows(), 6), dx(x.rows(), 6), dcondition(condition.rows(), 6);
  auto gradient = make_gradient(layer);
  typename QueryResampler<T>::Saved saved;
  Workspace ws;
  layer.forward(tokens, condition, y, saved, {}, ws);
  CHECK(max_difference(y.view(), golden.matrix<double>("resampler.y").view()) < tolerance);
  for (int twice = 0; twice < 2; ++twice) layer.backward(tokens, condition, dy, saved, dx, dcondition, gradient, ws);
  const auto off = [](const T* got, const std::vector<double>& want) {
    double worst = 0;
    for (std::size_t i = 0; i < want.size(); ++i) worst = std::max(worst, std::abs(static_cast<double>(got[i]) / 2 - want[i]));
    return worst;
  };
  for (Index i = 0; i < x.rows(); ++i)
    CHECK(off(dx.view().row(i), [&] {
            const auto all = golden.values<double>("resampler.dx");
            return std::vector<double>(all.begin() + 6 * i, all.begin() + 6 * i + 6);
          }()) < tolerance);
  for (Index i = 0; i < condition.rows(); ++i)
    CHECK(off(dcondition.view().row(i), [&] {
            const auto all = golden.values<double>("resampler.d.condition");
            return std::vector<double>(all.begin() + 6 * i, all.begin() + 6 * i + 6);
          }()) < tolerance);
  visit(
      [&](const FieldPath& path, const auto& leaf) {
        if (leaf_values(leaf).empty()) return;
        CAPTURE(path.str());
        CHECK(off(leaf.data(), golden.values<double>("resampler.d." + path.str())) < tolerance);
      },
      gradient);
  layer.forward(tokens, condition, y, ws);
  CHECK(max_difference(y.view(), golden.matrix<double>("resampler.y").view()) < tolerance);
  CHECK((y.intact() && dx.intact() && dcondition.intact()));
  CHECK(count_allocations([&] {
          layer.forward(tokens, condition, y, saved, {}, ws);
          layer.backward(tokens, condition, dy, saved, dx, dcondition, gradient, ws);
          layer.forward(tokens, condition, y, ws);
        }) == 0);
}

TEST_CASE("query resampler gradients, threads and independence", "[attention][query_resampler]") {
  Random random = random_stream(74);
  QueryResampler<double> layer(4, {.queries = 3, .heads = 2, .layers = 2, .hidden = 5}, random);
  visit(
      [&](const FieldPath&, auto& leaf) {
        for (double& w : leaf_values(leaf)) w += 0.3 * random.normal();
      },
      layer);
  Matrix<double> x = random_matrix<double>(9, 4, random), y(6, 4), dx(9, 4, 0.0), other(6, 4);
  const Matrix<double> g = random_matrix<double>(6, 4, random);
  const std::vector<std::int64_t> offsets{0, 7, 9};
  const JaggedView<const double> tokens(x, offsets);
  Threads threads{2};
  Workspace ws, threaded(make_executor(threads, 2));
  QueryResampler<double>::Saved saved;
  auto gradient = make_gradient(layer);
  layer.forward(tokens, {}, y, saved, {}, ws);
  layer.backward(tokens, {}, g, saved, dx, {}, gradient, ws);
  const auto loss = [&] {
    layer.forward(tokens, {}, other, ws);
    double sum = 0;
    for (Index i = 0; i < 24; ++i) sum += other.data()[i] * g.data()[i];
    return sum;
  };
  GradientReport report;
  check_gradient("tokens", leaf_values(x), leaf_values(dx), loss, report);
  visit([&](const FieldPath& path, auto& leaf,
            const auto& d) { check_gradient(path.str(), leaf_values(leaf), leaf_values(d), loss, report); },
        layer, gradient);
  CAPTURE(report.where, report.numeric, report.analytic);
  CHECK(report.worst < 5e-6);
  layer.forward(tokens, {}, y, ws);
  layer.forward(tokens, {}, other, threaded);
  CHECK(max_difference(y.view(), other.view()) == 0);
  // The order of tokens, and another user's NaN.
  for (Index j = 0; j < 4; ++j) std::swap(x(0, j), x(5, j));
  x(8, 0) = std::numeric_limits<double>::quiet_NaN();
  layer.forward(tokens, {}, other, ws);
  CHECK(max_difference(y.view().middle_rows(0, 3), other.view().middle_rows(0, 3)) < 1e-12);
  CHECK(std::isnan(other(3, 0)));
  // Without tokens.
  const std::vector<std::int64_t> none{0, 0, 0};
  layer.forward(JaggedView<const double>(MatrixView<const double>(nullptr, 0, 4), none), {}, other, ws);
  CHECK(std::isfinite(other(5, 3)));
}

TEMPLATE_TEST_CASE("orthogonal projection", "[attention][orthogonal_projection][golden]", float, double) {
  using T = TestType;
  const Golden golden("pooling");
  const double tolerance = std::is_same_v<T, float> ? 3e-6 : 1e-13;
  const Matrix<T> x = golden.matrix<T>("orthogonal.x"), y = golden.matrix<T>("orthogonal.y"),
                  dout = golden.matrix<T>("orthogonal.dout");
  Padded<T> out(4, 5), dx(4, 5), dy(4, 5);
  orthogonal_projection<T>(x, y, 1e-3, out);
  CHECK(max_difference(out.view(), golden.matrix<double>("orthogonal.out").view()) < tolerance);
  orthogonal_projection_backward<T>(x, y, 1e-3, dout, dx, dy);
  CHECK(max_difference(dx.view(), golden.matrix<double>("orthogonal.dx").view()) < tolerance);
  CHECK(max_difference(dy.view(), golden.matrix<double>("orthogonal.dy").view()) < tolerance);
  orthogonal_projection_backward<T>(x, y, 1e-3, dout, dx, {});
  for (Index i = 0; i < 4; ++i)
    for (Index j = 0; j < 5; ++j) dx(i, j) /= 2;
  CHECK(max_difference(dx.view(), golden.matrix<double>("orthogonal.dx").view()) < tolerance);
  for (Index i = 0; i < 4; ++i) CHECK(std::abs(static_cast<double>(simd::dot<T>(out.view().row(i), y.row(i), 5))) < 5e-3);
  CHECK((out.intact() && dx.intact() && dy.intact()));
  Matrix<T> in_place = x;
  orthogonal_projection<T>(in_place, y, 1e-3, in_place);
  CHECK(max_difference(in_place.view(), out.view()) == 0);
  CHECK(error_of([&] { orthogonal_projection<T>(x, y, 0, out); }).find("epsilon > 0") != std::string::npos);
  if (std::is_same_v<T, float>)  // 0 in float
    CHECK(error_of([&] { orthogonal_projection<T>(x, y, 1e-60, out); }).find("epsilon > 0") != std::string::npos);
  CHECK(error_of([&] { orthogonal_projection<T>(x, dout.view().middle_cols(0, 4), 1, out); }).find("y: expected shape [4, 5]") !=
        std::string::npos);
}

TEST_CASE("query resampler errors", "[attention][query_resampler]") {
  Random random = random_stream(75);
  Workspace ws;
  CHECK(error_of([&] { QueryResampler<float>(4, {.queries = 0}, random); }).find("one query or more") != std::string::npos);
  CHECK(error_of([&] { QueryResampler<float>(4, {.layers = 0}, random); }).find("one layer or more") != std::string::npos);
  QueryResampler<float> layer(4, {.queries = 2}, random);
  Matrix<float> x(3, 4, 1.0f), wide(3, 5, 1.0f), y(2, 4, 7.0f), wrong(3, 4);
  CHECK(error_of([&] { layer.forward(wide, {}, y, ws); }).find("tokens: expected shape [_, 4]") != std::string::npos);
  CHECK(error_of([&] { layer.forward(x, {}, wrong, ws); }).find("resampled: expected shape [2, 4]") != std::string::npos);
  CHECK(error_of([&] { layer.forward(x, wide, y, ws); }).find("condition: expected shape [1, 4]") != std::string::npos);
  const auto spoiled = [&](auto&& spoil) {
    QueryResampler<float> bad = layer;
    spoil(bad);
    return error_of([&] { bad.forward(x, {}, y, ws); });
  };
  CHECK(spoiled([](auto& l) { l.blocks[0].linear1.bias.resize(3); }).find("linear1.bias: expected size 16") != std::string::npos);
  CHECK(spoiled([](auto& l) { l.blocks[0].linear2.bias.resize(3); }).find("linear2.bias: expected size 4") != std::string::npos);
  CHECK(spoiled([](auto& l) { l.blocks[0].attention.in_proj_bias.resize(3); }).find("in_proj_bias") != std::string::npos);
  CHECK(spoiled([](auto& l) { l.norm.bias.resize(3); }).find("norm.bias: expected size 4") != std::string::npos);
  CHECK(*std::min_element(y.data(), y.data() + 8) == 7.0f);
}
