// Oracle: whole gradients laid out as plain vectors, in double.
#include <recops/train/gradient_gram.hpp>

#include <vector>

#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {
template <class T>
struct Model {
  Table<T> table;
  Matrix<T> dense;
  Vector<T> running;
  static constexpr auto fields() {
    return std::tuple{parameter("table", &Model::table), parameter("dense", &Model::dense), buffer("running", &Model::running)};
  }
};
constexpr Index rows = 10, cols = 7;

template <class T>
Model<T> gradient(bool by_rows, Random& random) {
  Model<T> g;
  if (by_rows) {
    g.table.clear_rows(cols);
    std::vector<std::int64_t> ids;
    for (Index i = 0; i < rows; ++i)
      if (random.chance(0.5)) ids.push_back(i);
    g.table.touch_rows(static_cast<Index>(ids.size()), [&](Index i) { return ids[static_cast<std::size_t>(i)]; });
    for (T& x : leaf_values(g.table)) x = static_cast<T>(random.normal());
  } else {
    g.table.values = random_matrix<T>(rows, cols, random);
  }
  g.dense = random_matrix<T>(3, cols, random);
  g.running = random_vector<T>(4, random);
  return g;
}
template <class T>
std::vector<double> flat(const Model<T>& g) {
  std::vector<double> x(static_cast<std::size_t>(rows * cols));
  for (Index r = 0; r < g.table.values.rows(); ++r)
    for (Index c = 0; c < cols; ++c)
      x[static_cast<std::size_t>((g.table.by_rows ? g.table.rows[r] : r) * cols + c)] = static_cast<double>(g.table.values(r, c));
  for (Index i = 0; i < 3 * cols; ++i) x.push_back(static_cast<double>(g.dense.data()[i]));
  return x;
}
}  // namespace

TEMPLATE_TEST_CASE("inner products and sums are those of the flat vectors", "[train][gradient_gram]", float, double) {
  using T = TestType;
  Random random = random_stream(341);
  const double bound = std::is_same_v<T, float> ? 1e-4 : 1e-12;
  for (const bool by_rows : {false, true})
    for (int repeat = 0; repeat < 10; ++repeat) {
      std::vector<Model<T>> gradients;
      for (int m = 0; m < 4; ++m) gradients.push_back(gradient<T>(by_rows, random));
      Matrix<double> gram(4, 4);
      gradient_gram<Model<T>>(gradients, gram);
      const Vector<double> coefficients{0.5, -2, 0, 1};
      Model<T> out = gradient<T>(by_rows, random);
      std::vector<double> expected = flat(out);
      const Vector<T> running = out.running;
      double worst = 0;
      for (Index i = 0; i < 4; ++i) {
        const auto a = flat(gradients[static_cast<std::size_t>(i)]);
        for (Index j = 0; j < 4; ++j) {
          const auto b = flat(gradients[static_cast<std::size_t>(j)]);
          double sum = 0;
          for (std::size_t k = 0; k < a.size(); ++k) sum += a[k] * b[k];
          worst = std::max(worst, std::abs(sum - gram(i, j)));
        }
        for (std::size_t k = 0; k < a.size(); ++k) expected[k] += coefficients[i] * a[k];
      }
      CHECK(worst < bound);
      combine_gradients<Model<T>>(gradients, coefficients, out);
      const auto got = flat(out);
      worst = 0;
      for (std::size_t k = 0; k < got.size(); ++k) worst = std::max(worst, std::abs(got[k] - expected[k]));
      CHECK(worst < bound);
      CHECK(std::equal(running.begin(), running.end(), out.running.begin()));
    }
}

TEST_CASE("gradients of different shapes are refused before anything is written", "[train][gradient_gram]") {
  Random random = random_stream(342);
  std::vector<Model<float>> gradients{gradient<float>(true, random), gradient<float>(false, random)};
  Matrix<double> gram(2, 2, 7.0);
  CHECK(error_of([&] { gradient_gram<Model<float>>(gradients, gram); }) ==
        "gradient_gram: table: expected the same shape in every gradient, got different ones");
  CHECK(gram(0, 0) == 7.0);
  Model<float> out = gradients[0];
  const Vector<double> ones{1, 1};
  CHECK_THROWS_AS(combine_gradients<Model<float>>(gradients, ones, out), Error);
  CHECK(max_difference(out.dense.view(), gradients[0].dense.view()) == 0);
  Matrix<double> none(0, 0);
  gradient_gram<Model<float>>(VectorView<const Model<float>>(), none);
}
