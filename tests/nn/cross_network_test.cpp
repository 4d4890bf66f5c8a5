// Oracles: the paper's formula under torch's autograd (golden/layers.py); central differences.
#include <recops/nn/cross_network.hpp>
#include <recops/train/gradient_check.hpp>

#include "support/allocations.hpp"
#include "support/golden_layer.hpp"

using namespace recops;
using namespace recops_test;

static_assert(RowLayer<CrossNetwork<float>, float>);

TEMPLATE_TEST_CASE("a cross network is DCN-v2's formula", "[nn][golden]", float, double) {
  using T = TestType;
  const Golden golden("layers");
  const double bound = std::is_same_v<T, float> ? 1e-5 : 1e-10;
  Random random(1);
  CrossNetwork<T> network(8, 3, random);
  CHECK(distance_to_golden<T>(golden, "cross", network) < bound);
  Workspace ws;
  const Matrix<T> x = golden.matrix<T>("cross.x");
  const Matrix<double> expected = golden.matrix<double>("cross.y");
  Padded<T> y(6, 8), z(6, 8);
  network.forward(x, y, ws);
  freeze(network).forward(x, z, ws);
  CHECK(max_difference(y.view(), expected.view()) < 10 * bound);
  CHECK(max_difference(z.view(), expected.view()) < 10 * bound);
  CHECK((y.intact() && z.intact()));
}

TEST_CASE("gradients of cross networks of every depth", "[nn][cross_network]") {
  Random random = random_stream(441);
  for (const Index depth : {0, 1, 2, 4}) {
    CrossNetwork<double> network(5, depth, random);
    Matrix<double> x = random_matrix<double>(7, 5, random);
    const GradientReport report = gradient_check(network, x.view());
    CAPTURE(depth, report.where);
    CHECK(report.worst < 1e-6);
  }
}

TEST_CASE("frozen cross networks of fewer bits, empty batches, errors, allocations", "[nn][cross_network]") {
  Random random = random_stream(442);
  Workspace ws;
  CrossNetwork<float> network(9, 2, random), gradient = make_gradient(network);
  const Matrix<float> x = random_matrix<float>(4, 9, random), none(0, 9);
  Matrix<float> y(4, 9), z(4, 9), empty(0, 9), dx(4, 9, 0.0f), wrong(4, 8);
  network.forward(x, y, ws);
  freeze(network, Weights<BFloat16>()).forward(x, z, ws);
  CHECK(max_difference(y.view(), z.view()) < 0.1);
  CHECK(max_difference(y.view(), z.view()) > 0);
  network.forward(none, empty, ws);
  freeze(network).forward(none, empty, ws);
  CrossNetwork<float>::Saved saved;
  const auto step = [&] {
    network.forward(x, y, saved, Step{}, ws);
    network.backward(x, y, saved, dx, gradient, ws);
  };
  step();
  CHECK(count_allocations(step) == 0);
  CHECK(error_of([&] { network.forward(x, wrong, ws); }) == "CrossNetwork: y: expected shape [4, 9], got [4, 8]");
  CHECK(error_of([&] { CrossNetwork<float>(9, -1, random); }) == "CrossNetwork: count: expected count >= 0, got -1");
  CHECK(error_of([&] { network.forward(wrong, wrong, ws); }) == "Linear: input columns: expected as many as weight has, got 8");
}
