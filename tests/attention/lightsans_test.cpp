#include <recops/attention/lightsans.hpp>
#include <recops/train/gradient_check.hpp>

#include "support/allocations.hpp"
#include "support/golden_layer.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

static_assert(SequenceLayer<LightSans<float>, float>);
static_assert(SequenceLayer<LightSansBlock<float>, float>);

TEMPLATE_TEST_CASE("lightsans against PyTorch", "[attention][lightsans][golden]", float, double) {
  using T = TestType;
  const Golden golden("lightsans");
  const double tolerance = std::is_same_v<T, float> ? 2e-5 : 1e-12;
  const auto offsets = golden.values<std::int64_t>("offsets");
  Workspace ws;
  for (const std::string name : {"items", "places"}) {
    CAPTURE(name);
    Random random(1);
    LightSans<T> layer(6, {.heads = 2, .interests = 4, .max_length = name == "places" ? 14 : 0}, random);
    CHECK(distance_to_golden<T>(golden, name, layer, offsets) < 5 * tolerance);  // gradients of biases of keys cancel
    const Matrix<T> x = golden.matrix<T>(name + ".x");
    const Matrix<double> want = golden.matrix<double>(name + ".y");
    Padded<T> y(x.rows(), 6, T(9));
    const JaggedView<const T> rows(x, offsets);
    layer.forward(rows, y, ws);
    CHECK(max_difference(y.view(), want.view()) < 10 * tolerance);
    freeze(layer).forward(rows, y, ws);
    CHECK(max_difference(y.view(), want.view()) < 10 * tolerance);
    if constexpr (std::is_same_v<T, float>) {
      freeze(layer, Weights<BFloat16>()).forward(rows, y, ws);
      CHECK(max_difference(y.view(), want.view()) < 0.2);
      freeze(layer, Weights<std::int8_t>()).forward(rows, y, ws);
      CHECK(max_difference(y.view(), want.view()) < 0.2);
    }
    CHECK(y.intact());
  }
}

TEST_CASE("lightsans gradients, memory and threads", "[attention][lightsans]") {
  Random random = random_stream(67);
  const std::vector<std::int32_t> offsets{0, 5, 5, 6, 15};
  Matrix<double> x = random_matrix<double>(15, 6, random);
  for (const Index longest : {0, 10}) {
    LightSansBlock<double> block(LightSans<double>(6, {.heads = 3, .interests = 2, .max_length = longest}, random), 6,
                                 {.hidden = 7, .activation = Activation::gelu, .dropout = 0.2}, random);
    visit(
        [&](const FieldPath&, auto& leaf) {
          for (double& w : leaf_values(leaf)) w += 0.3 * random.normal();
        },
        block);
    const GradientReport report = gradient_check(block, JaggedView<double>(x, offsets), 1, {.most = sanitized ? 16 : 200});
    CAPTURE(longest, report.where, report.numeric, report.analytic);
    CHECK(report.worst < 5e-6);

    const JaggedView<const double> rows(x, offsets);
    Threads threads{3};
    Workspace ws, threaded(make_executor(threads, 3));
    LightSansBlock<double>::Saved saved;
    auto gradient = make_gradient(block);
    Matrix<double> y(15, 6), other(15, 6), dx(15, 6, 0.0);
    const auto both = [&](Workspace& with) {
      block.forward(rows, y, saved, {}, with);
      block.backward(rows, y, saved, dx, gradient, with);
      block.forward(rows, y, with);
    };
    both(ws);
    CHECK(count_allocations([&] { both(ws); }) == 0);
    block.forward(rows, other, threaded);
    CHECK(max_difference(y.view(), other.view()) == 0);
    freeze(block).forward(rows, other, ws);
    CHECK(max_difference(y.view(), other.view()) < 1e-12);
  }
}

TEST_CASE("what lightsans does not depend on", "[attention][lightsans]") {
  Random random = random_stream(68);
  Workspace ws;
  LightSans<float> layer(8, {.heads = 2, .interests = 3}, random);
  visit(
      [&](const FieldPath&, auto& leaf) {
        for (float& w : leaf_values(leaf)) w += static_cast<float>(random.normal());
      },
      layer);
  Matrix<float> x = random_matrix<float>(9, 8, random), y(9, 8), turned = x, other(9, 8);
  layer.forward(x, y, ws);
  for (Index i = 0; i < 9; ++i) std::copy_n(x.row(i), 8, turned.row(8 - i));
  layer.forward(turned, other, ws);
  for (Index i = 0; i < 9; ++i)  // the order of behaviours
    for (Index j = 0; j < 8; ++j) CHECK(std::abs(y(i, j) - other(8 - i, j)) < 1e-4);
  // Other users, even a NaN in one.
  Matrix<float> more(18, 8);
  for (Index i = 0; i < 18; ++i) std::copy_n(x.row(i % 9), 8, more.row(i));
  more(2, 2) = std::numeric_limits<float>::quiet_NaN();
  const std::vector<std::int64_t> offsets{0, 9, 18};
  Matrix<float> all(18, 8);
  layer.forward(JaggedView<const float>(more, offsets), all, ws);
  CHECK(max_difference(all.view().middle_rows(9, 9), y.view()) < 1e-5);
  CHECK(std::isnan(all(0, 0)));
  // Users without behaviours.
  const std::vector<std::int64_t> none{0, 0, 0};
  const JaggedView<const float> nothing(MatrixView<const float>(nullptr, 0, 8), none);
  layer.forward(nothing, MatrixView<float>(nullptr, 0, 8), ws);
}

TEST_CASE("gradients of lightsans keep their digits over a large batch", "[attention][lightsans]") {
  // B times the same user: B times the gradient.
  constexpr Index users = 1 << 15;
  Random random = random_stream(70);
  Workspace ws;
  const LightSans<float> layer(2, {.interests = 2, .max_length = 2}, random);
  const Matrix<float> x = random_matrix<float>(2, 2, random), dy = random_matrix<float>(2, 2, random);
  const auto gradient_of = [&](Index times) {
    Matrix<float> xs(2 * times, 2), dys(2 * times, 2), y(2 * times, 2);
    std::vector<std::int32_t> twos{0};
    for (Index i = 0; i < 2 * times; ++i) {
      std::copy_n(x.row(i % 2), 2, xs.row(i));
      std::copy_n(dy.row(i % 2), 2, dys.row(i));
      if (i % 2 == 1) twos.push_back(static_cast<std::int32_t>(i + 1));
    }
    LightSans<float>::Saved saved;
    LightSans<float> gradient = make_gradient(layer);
    layer.forward(JaggedView<const float>(xs, twos), y, saved, Step{}, ws);
    layer.backward(JaggedView<const float>(xs, twos), dys, saved, {}, gradient, ws);
    return gradient;
  };
  const LightSans<float> one = gradient_of(1), all = gradient_of(users);
  visit(
      [&](const FieldPath& path, const auto& a, const auto& b) {
        const auto want = leaf_values(a), got = leaf_values(b);
        CAPTURE(path.str());
        float most = 1e-3f;  // some gradients cancel
        for (Index i = 0; i < want.size(); ++i) most = std::max(most, std::abs(want[i]));
        for (Index i = 0; i < want.size(); ++i) CHECK(std::abs(got[i] / static_cast<float>(users) - want[i]) <= 3e-5f * most);
      },
      one, all);
}

TEST_CASE("lightsans errors", "[attention][lightsans]") {
  Random random = random_stream(69);
  Workspace ws;
  CHECK(error_of([&] { LightSans<float>(6, {.heads = 4}, random); }).find("heads") != std::string::npos);
  CHECK(error_of([&] { LightSans<float>(6, {.interests = 0}, random); }).find("one interest or more") != std::string::npos);
  LightSans<float> layer(6, {.heads = 2, .interests = 3, .max_length = 3}, random);
  Matrix<float> x(4, 6, 1.0f), y(4, 6, 7.0f), narrow(4, 5);
  CHECK(error_of([&] { layer.forward(x, y, ws); }).find("at most max_length") != std::string::npos);
  CHECK(error_of([&] { freeze(layer).forward(x, y, ws); }).find("at most max_length") != std::string::npos);
  CHECK(error_of([&] { layer.forward(narrow, y, ws); }).find("x: expected shape [_, 6]") != std::string::npos);
  const LightSansBlock<float> block(layer, 6, {.norm_first = true}, random);
  CHECK(error_of([&] { block.forward(x, y, ws); }).find("at most max_length") != std::string::npos);
  CHECK(error_of([&] { freeze(block).forward(x, y, ws); }).find("at most max_length") != std::string::npos);
  layer.theta_value.resize(2, 6);
  CHECK(error_of([&] { layer.forward(x, y, ws); }).find("theta_value: expected shape [3, 6]") != std::string::npos);
  CHECK(*std::min_element(y.data(), y.data() + 24) == 7.0f);
}
