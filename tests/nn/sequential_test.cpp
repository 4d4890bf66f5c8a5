// Oracle: the same layers called by hand; sequence by sequence for what mixes rows; central differences.
#include <recops/nn/dense.hpp>
#include <recops/nn/sequential.hpp>
#include <recops/train/gradient_check.hpp>

#include <set>
#include <vector>

#include "support/allocations.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

// A sequence layer: y_t = x_t + decay x_{t-1} within a sequence.
template <class T>
struct Echo {
  Vector<T> decay;
  static constexpr auto fields() { return std::tuple{parameter("decay", &Echo::decay)}; }
  Index output_cols(Index cols) const {
    check_option("Echo", "input columns", cols == decay.size(), "as many as decay", static_cast<double>(cols));
    return cols;
  }
  struct Saved {};
  void forward(JaggedView<const T> x, MatrixView<T> y, Workspace&) const {
    check_jagged("Echo", "x", x, any_size, decay.size());
    check_shape("Echo", "y", y, x.values().rows(), decay.size());
    for (Index s = 0; s < x.size(); ++s)
      for (Index t = 0; t < x.length(s); ++t)
        for (Index j = 0; j < decay.size(); ++j) y(x.begin(s) + t, j) = x[s](t, j) + (t > 0 ? decay[j] * x[s](t - 1, j) : T(0));
  }
  void forward(JaggedView<const T> x, MatrixView<T> y, Saved&, const Step&, Workspace& ws) const { forward(x, y, ws); }
  void backward(JaggedView<const T> x, MatrixView<const T> dy, const Saved&, MatrixView<T> dx, Echo& g, Workspace&) const {
    check_shape("Echo::backward", "dy", dy, x.values().rows(), decay.size());
    for (Index s = 0; s < x.size(); ++s)
      for (Index t = 0; t < x.length(s); ++t)
        for (Index j = 0; j < decay.size(); ++j) {
          const T d = dy(x.begin(s) + t, j);
          if (!dx.empty()) dx(x.begin(s) + t, j) += d;
          if (t == 0) continue;
          if (!dx.empty()) dx(x.begin(s) + t - 1, j) += decay[j] * d;
          g.decay[j] += d * x[s](t - 1, j);
        }
  }
};
template <class T>
Echo<T> echo(Index cols, Random& random) {
  return {random_vector<T>(cols, random)};
}

// A row layer that notes the stream it was given.
struct Witness {
  static constexpr auto fields() { return std::tuple{}; }
  Index output_cols(Index cols) const { return cols; }
  struct Saved {
    std::uint64_t stream = 0;
  };
  void forward(MatrixView<const double> x, MatrixView<double> y, Workspace&) const {
    for (Index i = 0; i < x.rows(); ++i) std::copy_n(x.row(i), x.cols(), y.row(i));
  }
  void forward(MatrixView<const double> x, MatrixView<double> y, Saved& saved, const Step& step, Workspace& ws) const {
    saved.stream = step.stream;
    forward(x, y, ws);
  }
  void backward(MatrixView<const double>, MatrixView<const double> dy, const Saved&, MatrixView<double> dx, Witness&,
                Workspace&) const {
    if (!dx.empty())
      for (Index i = 0; i < dy.rows(); ++i)
        for (Index j = 0; j < dy.cols(); ++j) dx(i, j) += dy(i, j);
  }
};

using Rows = Sequential<float, Dense<float>, Linear<float>>;
using Mixed = Sequential<float, Dense<float>, Echo<float>, Linear<float>>;
static_assert(RowLayer<Linear<float>, float> && !SequenceLayer<Linear<float>, float>);
static_assert(SequenceLayer<Echo<float>, float> && !RowLayer<Echo<float>, float>);
static_assert(RowLayer<Rows, float> && !SequenceLayer<Rows, float>);
static_assert(SequenceLayer<Mixed, float> && !RowLayer<Mixed, float>);
static_assert(RowLayer<Sequential<float, Rows, Linear<float>>, float> && SequenceLayer<Sequential<float, Mixed>, float>);
static_assert(!Layer<Linear<float>, double> && !Layer<int, float>);

const std::vector<std::int32_t> offsets{0, 0, 3, 4, 4, 9, 11, 11};

}  // namespace

TEMPLATE_TEST_CASE("Sequential is its layers one after another", "[nn][sequential]", float, double) {
  using T = TestType;
  Random random = random_stream(51);
  Workspace ws;
  const auto net = sequential<T>(Dense<T>(6, 17, Activation::relu, random), Dense<T>(17, 9, Activation::silu, random),
                                 Linear<T>(9, 3, random));
  CHECK(net.output_cols(6) == 3);
  typename std::remove_const_t<decltype(net)>::Saved saved;
  for (const Index rows : {0, 1, 5, 33}) {
    Padded<T> x(random_matrix<T>(rows, 6, random).view()), y(rows, 3), z(rows, 3);
    Matrix<T> a(rows, 17), b(rows, 9), c(rows, 3);
    std::get<0>(net.layers).forward(x, a, ws);
    std::get<1>(net.layers).forward(a, b, ws);
    std::get<2>(net.layers).forward(b, c, ws);
    net.forward(x, y, ws);
    net.forward(x, z, saved, Step{}, ws);
    CHECK(max_difference(y.view(), c.view()) == 0);
    CHECK(max_difference(z.view(), c.view()) < 200 * static_cast<double>(std::numeric_limits<T>::epsilon()));
    CHECK((y.intact() && z.intact()));
  }
}

TEST_CASE("Sequential names its children as PyTorch does", "[nn][sequential]") {
  Random random(1);
  auto net = sequential<float>(Linear<float>(2, 3, random), sequential<float>(Linear<float>(3, 1, random, false)));
  std::vector<std::string> names;
  visit([&](const FieldPath& path, const auto&) { names.push_back(path.str()); }, net);
  CHECK(names == std::vector<std::string>{"0.weight", "0.bias", "1.0.weight", "1.0.bias"});
  CHECK(parameter_count(net) == 6 + 3 + 3);
}

TEMPLATE_TEST_CASE("a jagged batch keeps its offsets between row layers and sequence layers, nested or not", "[nn][sequential]",
                   float, double) {
  using T = TestType;
  Random random = random_stream(52);
  Workspace ws;
  const Dense<T> in(4, 6, Activation::silu, random);
  const Echo<T> middle = echo<T>(6, random);
  const Linear<T> out(6, 2, random);
  const auto flat = sequential<T>(in, middle, out);
  const auto nested = sequential<T>(in, sequential<T>(middle, out));
  const Matrix<T> values = random_matrix<T>(11, 4, random);
  const JaggedView<const T> x(values.view(), offsets);
  Matrix<T> y(11, 2), z(11, 2), one(11, 2), served(11, 2);
  flat.forward(x, y, ws);
  nested.forward(x, z, ws);
  CHECK(max_difference(y.view(), z.view()) == 0);
  typename std::remove_const_t<decltype(nested)>::Saved saved;
  nested.forward(x, z, saved, Step{}, ws);
  CHECK(max_difference(y.view(), z.view()) < 1e-6);
  // Sequence by sequence.
  for (Index s = 0; s < x.size(); ++s) {
    const MatrixView<T> part = one.view().middle_rows(0, x.length(s));
    flat.forward(x[s], part, ws);
    CHECK(max_difference(part, MatrixView<const T>(y.view().middle_rows(x.begin(s), x.length(s)))) < 1e-6);
  }
  // As one long sequence it is something else.
  flat.forward(values.view(), one, ws);
  CHECK(max_difference(one.view(), y.view()) > 1e-3);
}

TEST_CASE("Sequential passes the gradient check: rows, sequences, nested", "[nn][sequential]") {
  Random random = random_stream(53);
  const auto check = [](auto net, JaggedView<double> x, Index entries) {
    const GradientReport report = gradient_check(net, x);
    CAPTURE(report.where, report.numeric, report.analytic);
    CHECK(report.worst < 1e-6);
    CHECK(report.checked == entries);
  };
  Matrix<double> values = random_matrix<double>(11, 4, random);
  const JaggedView<double> x(values.view(), offsets);
  const Dense<double> in(4, 6, Activation::silu, random), mid(6, 5, Activation::sigmoid, random);
  const Linear<double> out(5, 2, random);
  const Echo<double> echo6 = echo<double>(6, random), echo4 = echo<double>(4, random), echo2 = echo<double>(2, random);
  const Index in_n = 30, mid_n = 35, out_n = 12;
  check(sequential<double>(in), x, 44 + in_n);
  check(sequential<double>(in, mid, out), x, 44 + in_n + mid_n + out_n);
  check(sequential<double>(echo4), x, 44 + 4);
  check(sequential<double>(echo4, in, echo6, mid, out, echo2), x, 44 + 4 + in_n + 6 + mid_n + out_n + 2);
  check(sequential<double>(sequential<double>(in, echo6), sequential<double>(mid, out)), x, 44 + in_n + 6 + mid_n + out_n);
}

TEST_CASE("backward adds, and an empty dx is not wanted", "[nn][sequential]") {
  Random random = random_stream(54);
  Workspace ws;
  const auto net =
      sequential<double>(Dense<double>(4, 6, Activation::silu, random), echo<double>(6, random), Linear<double>(6, 2, random));
  const Matrix<double> values = random_matrix<double>(11, 4, random), dy = random_matrix<double>(11, 2, random);
  const JaggedView<const double> x(values.view(), offsets);
  Matrix<double> y(11, 2), once(11, 4, 0.0), twice(11, 4, 1.0);
  std::remove_const_t<decltype(net)>::Saved saved;
  net.forward(x, y, saved, Step{}, ws);
  auto g1 = make_gradient(net), g2 = make_gradient(net);
  net.backward(x, dy, saved, once, g1, ws);
  net.backward(x, dy, saved, twice, g2, ws);
  net.backward(x, dy, saved, {}, g2, ws);
  for (Index i = 0; i < 44; ++i) CHECK(twice.data()[i] == Approx(1 + once.data()[i]).epsilon(1e-12));
  visit(
      [](const FieldPath&, const auto& a, const auto& b) {
        for (Index i = 0; i < leaf_values(a).size(); ++i)
          CHECK(leaf_values(b)[i] == Approx(2 * leaf_values(a)[i]).epsilon(1e-12));
      },
      g1, g2);
}

TEST_CASE("every layer gets a stream of its own", "[nn][sequential]") {
  Workspace ws;
  const auto net = sequential<double>(Witness{}, sequential<double>(Witness{}, Witness{}), Witness{});
  std::remove_const_t<decltype(net)>::Saved saved;
  const Matrix<double> x(2, 3, 1.0);
  Matrix<double> y(2, 3);
  net.forward(x, y, saved, Step{5, 1, 77}, ws);
  const auto& inner = std::get<1>(saved.layers).layers;
  const std::set<std::uint64_t> streams{77, std::get<0>(saved.layers).stream, std::get<0>(inner).stream,
                                        std::get<1>(inner).stream, std::get<2>(saved.layers).stream};
  CHECK(streams.size() == 5);
  CHECK(std::get<0>(saved.layers).stream == Step{5, 1, 77}.child(0).stream);
  CHECK(max_difference(x.view(), y.view()) == 0);
}

TEMPLATE_TEST_CASE("freeze(Sequential) is within 1e-5 (1e-13 in double), nested too", "[nn][sequential]", float, double) {
  using T = TestType;
  Random random = random_stream(55);
  Workspace ws;
  const auto net = sequential<T>(Dense<T>(40, 64, Activation::silu, random),
                                 sequential<T>(Dense<T>(64, 33, Activation::relu, random)), Linear<T>(33, 5, random));
  const auto served = freeze(net);
  const auto copy = served;
  CHECK(served.output_cols(40) == 5);
  for (const Index rows : {0, 1, 7, 100}) {
    const Matrix<T> x = random_matrix<T>(rows, 40, random);
    Matrix<T> y(rows, 5), z(rows, 5), row(1, 5);
    net.forward(x, y, ws);
    served.forward(x, z, ws);
    CHECK(max_difference(y.view(), z.view()) < (std::is_same_v<T, float> ? 1e-5 : 1e-13));
    for (Index b = 0; b < rows; b += 3) {  // a row's bits do not depend on its batch
      copy.forward(x.view().middle_rows(b, 1), row, ws);
      CHECK(max_difference(row.view(), z.view().middle_rows(b, 1)) == 0);
    }
  }
}

TEST_CASE("a gradient of another shape is found before the last layer adds to its own", "[nn][sequential]") {
  Random random(1);
  Workspace ws;
  const auto net = sequential<float>(Linear<float>(4, 6, random), Linear<float>(6, 2, random));
  const Matrix<float> x(3, 4, 1.0f), dy(3, 2, 1.0f);
  Matrix<float> y(3, 2);
  std::remove_const_t<decltype(net)>::Saved saved;
  net.forward(x, y, saved, Step{}, ws);
  auto g = make_gradient(net);
  std::get<0>(g.layers).weight = Matrix<float>(6, 3, 0.0f);
  CHECK(error_of([&] { net.backward(x, dy, saved, {}, g, ws); }) ==
        "Sequential::backward: gradient of 0.weight: expected shape [6, 4], got [6, 3]");
  for (const float v : std::get<1>(g.layers).bias) CHECK(v == 0);
  std::get<0>(g.layers).weight = {};  // not wanted
  net.backward(x, dy, saved, {}, g, ws);
  for (const float v : std::get<1>(g.layers).bias) CHECK(v == 3);
}

TEST_CASE("Sequential refuses what does not fit and writes nothing", "[nn][sequential]") {
  Random random(1);
  Workspace ws;
  const auto net = sequential<float>(Linear<float>(4, 6, random), Linear<float>(6, 2, random));
  const auto crooked = sequential<float>(Linear<float>(4, 6, random), Linear<float>(5, 2, random));
  const Matrix<float> x(3, 4, 1.0f), odd(3, 5, 1.0f), dy(3, 2, 1.0f);
  Matrix<float> y(3, 2, 7.0f), dx(3, 4, 7.0f), wide(3, 9, 7.0f);
  CHECK(error_of([&] { (void)net.output_cols(5); }) == "Linear: input columns: expected as many as weight has, got 5");
  CHECK(error_of([&] { (void)crooked.output_cols(4); }) == "Linear: input columns: expected as many as weight has, got 6");
  std::remove_const_t<decltype(net)>::Saved saved, fresh;
  CHECK(error_of([&] { net.forward(odd, y, ws); }) == "Linear: input columns: expected as many as weight has, got 5");
  CHECK(error_of([&] { crooked.forward(x, y, ws); }) == "linear: x: expected shape [_, 5], got [3, 6]");
  CHECK(error_of([&] { net.forward(x, wide, ws); }) == "linear: y: expected shape [3, 2], got [3, 9]");
  CHECK(error_of([&] { net.forward(x, wide, saved, Step{}, ws); }) == "linear: y: expected shape [3, 2], got [3, 9]");
  CHECK(error_of([&] { (void)freeze(crooked).output_cols(4); }) ==
        "FrozenDense: input columns: expected as many as weight has, got 6");
  CHECK(error_of([&] { freeze(crooked).forward(x, y, ws); }) == "FrozenDense: x: expected shape [_, 5], got [3, 6]");
  Matrix<float> scratch(3, 2);
  net.forward(x, scratch, saved, Step{}, ws);
  auto g = make_gradient(net);
  CHECK(error_of([&] { net.backward(x, dy, saved, wide, g, ws); }) ==
        "Sequential::backward: dx: expected shape [3, 4], got [3, 9]");
  CHECK(error_of([&] { net.backward(x, dy, fresh, dx, g, ws); }) ==
        "Sequential::backward: saved: expected shape [3, _], got [0, 0]");
  CHECK(error_of([&] { net.backward(x, odd, saved, dx, g, ws); }) == "linear_backward: dy: expected shape [3, 2], got [3, 5]");
  // Offsets that do not fit the values reach the sequence layer's check.
  const auto mixed = sequential<float>(Linear<float>(4, 2, random), echo<float>(2, random));
  const std::vector<std::int32_t> bad{0, 2, 4};
  CHECK(error_of([&] { mixed.forward(JaggedView<const float>(x.view(), bad), y, ws); }) ==
        "Echo: x: expected offsets that end with the number of rows 3, got 4 at position 2");
  for (const float v : leaf_values(y)) CHECK(v == 7);
  for (const float v : leaf_values(dx)) CHECK(v == 7);
  visit(
      [](const FieldPath&, const auto& leaf) {
        for (const float v : leaf_values(leaf)) CHECK(v == 0);
      },
      g);
}

TEST_CASE("Sequential allocates nothing once warm", "[nn][sequential]") {
  Random random = random_stream(56);
  Workspace ws;
  const auto net =
      sequential<float>(Dense<float>(20, 35, Activation::silu, random), echo<float>(35, random), Linear<float>(35, 3, random));
  const auto tower = sequential<float>(Dense<float>(20, 35, Activation::silu, random), Linear<float>(35, 3, random));
  const auto served = freeze(tower);
  auto gradient = make_gradient(net);
  const Matrix<float> x = random_matrix<float>(30, 20, random), dy = random_matrix<float>(30, 3, random);
  Matrix<float> y(30, 3), dx(30, 20, 0.0f);
  std::remove_const_t<decltype(net)>::Saved saved;
  const auto step = [&](Index rows) {
    const auto in = x.view().middle_rows(0, rows);
    const auto out = y.view().middle_rows(0, rows);
    net.forward(in, out, ws);
    served.forward(in, out, ws);
    net.forward(in, out, saved, Step{}, ws);
    net.backward(in, dy.view().middle_rows(0, rows), saved, dx.view().middle_rows(0, rows), gradient, ws);
    zero_gradient(gradient);
  };
  step(30);
  const AllocationCounter counter;
  for (const Index rows : {30, 0, 1, 13, 30}) step(rows);
  const std::size_t allocations = counter.count();
  CHECK(allocations == 0);
}
