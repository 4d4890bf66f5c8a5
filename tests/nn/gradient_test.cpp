// Oracle: counts, names and zeros written by hand.
#include <recops/nn/gradient.hpp>

#include <array>
#include <string>
#include <vector>

#include "support/allocations.hpp"
#include "support/catch.hpp"

using namespace recops;

namespace {

template <class T>
struct Unit {
  Matrix<T> weight;
  Vector<T> bias;
  Vector<T> running;
  static constexpr auto fields() {
    return std::tuple{parameter("weight", &Unit::weight), parameter("bias", &Unit::bias), buffer("running", &Unit::running)};
  }
};

template <class T>
struct Net {
  Table<T> items;
  Unit<T> first;
  std::vector<Unit<T>> towers;
  std::array<Unit<T>, 2> heads;
  int option = 3;
  static constexpr auto fields() {
    return std::tuple{parameter("items", &Net::items), layer("first", &Net::first), layers("towers", &Net::towers),
                      layers("", &Net::heads)};
  }
};

template <class T>
Unit<T> unit(Index out, Index in) {
  return {Matrix<T>(out, in, T(1)), Vector<T>(out, T(2)), Vector<T>(7, T(3))};
}
template <class T>
Net<T> net() {
  Net<T> n;
  n.items.values = Matrix<T>(5, 4, T(9));
  n.first = unit<T>(2, 3);
  n.towers = {unit<T>(1, 1), unit<T>(0, 4), unit<T>(3, 2)};
  n.heads = {unit<T>(2, 2), Unit<T>{Matrix<T>(1, 5, T(1)), {}, {}}};
  n.option = 8;
  return n;
}

template <class T>
bool all_equal(VectorView<const T> v, T value) {
  for (const T x : v)
    if (x != value) return false;
  return true;
}

}  // namespace

TEMPLATE_TEST_CASE("parameters are counted, buffers are not", "[nn][gradient]", float, double) {
  const Net<TestType> n = net<TestType>();
  CHECK(parameter_count(n.first) == 2 * 3 + 2);
  CHECK(parameter_count(n) == 20 + 8 + (1 + 1) + 0 + (6 + 3) + (4 + 2) + 5);
  CHECK(parameter_count(Unit<TestType>{}) == 0);
}

TEMPLATE_TEST_CASE("make_gradient: same shapes and options, all zeros, tables by rows and untouched", "[nn][gradient]", float,
                   double) {
  using T = TestType;
  const Net<T> n = net<T>();
  const Net<T> g = make_gradient(n);
  CHECK((g.items.by_rows && g.items.rows.empty() && g.items.values.rows() == 0 && g.items.values.cols() == 4));
  CHECK((g.first.weight.rows() == 2 && g.first.weight.cols() == 3 && g.towers.size() == 3 && g.option == 8));
  Index leaves = 0;
  visit(
      [&](const FieldPath& path, const auto& leaf) {
        ++leaves;
        CAPTURE(path.str());
        CHECK(all_equal<T>(leaf_values(leaf), T(0)));
      },
      g);
  CHECK(leaves == 1 + 3 + 9 + 6);
  CHECK((n.items.values(0, 0) == 9 && n.first.weight(0, 0) == 1));  // the layer itself is as it was
}

TEMPLATE_TEST_CASE("zeros_like: the same, tables dense", "[nn][gradient]", float, double) {
  using T = TestType;
  const Net<T> z = zeros_like(net<T>());
  CHECK((!z.items.by_rows && z.items.values.rows() == 5 && z.items.values.cols() == 4));
  visit([&](const FieldPath&, const auto& leaf) { CHECK(all_equal<T>(leaf_values(leaf), T(0))); }, z);
}

TEMPLATE_TEST_CASE("zero_gradient forgets rows, fills the rest and allocates nothing", "[nn][gradient]", float, double) {
  using T = TestType;
  Net<T> g = make_gradient(net<T>());
  g.items.rows = Vector<std::int64_t>{1, 3};
  g.items.values = Matrix<T>(2, 4, T(5));
  g.first.weight.fill(T(5));
  g.towers[2].bias.fill(T(5));
  const recops_test::AllocationCounter counter;
  zero_gradient(g);
  const std::size_t allocations = counter.count();
  CHECK(allocations == 0);
  CHECK((g.items.by_rows && g.items.rows.empty() && g.items.values.rows() == 0 && g.items.values.cols() == 4));
  visit([&](const FieldPath&, const auto& leaf) { CHECK(all_equal<T>(leaf_values(leaf), T(0))); }, g);

  // A dense gradient of a table stays dense.
  Net<T> dense = zeros_like(net<T>());
  dense.items.values.fill(T(4));
  zero_gradient(dense);
  CHECK((!dense.items.by_rows && dense.items.values.rows() == 5));
  CHECK(all_equal<T>(leaf_values(dense.items), T(0)));
}

TEMPLATE_TEST_CASE("leaf_values is all of a leaf, writable where the leaf is", "[nn][gradient]", float, double) {
  using T = TestType;
  Net<T> n = net<T>();
  leaf_values(n.items)[19] = T(-1);
  CHECK(n.items.values(4, 3) == T(-1));
  leaf_values(n.first.weight)[5] = T(-2);
  CHECK(n.first.weight(1, 2) == T(-2));
  const Net<T>& constant = n;
  static_assert(std::is_same_v<decltype(leaf_values(constant.items)), VectorView<const T>>);
  static_assert(std::is_same_v<decltype(leaf_values(n.first.bias)), VectorView<T>>);
  const Matrix<T> none(0, 5);
  CHECK(leaf_values(none).empty());
}

TEST_CASE("a table by rows keeps its memory", "[nn][gradient]") {
  Table<float> t;
  t.rows = Vector<std::int64_t>{0, 1, 2};
  t.values = Matrix<float>(3, 8, 1.0f);
  const float* const memory = t.values.data();
  const recops_test::AllocationCounter counter;
  t.clear_rows(8);
  t.rows.resize(3);
  t.values.resize(3, 8);
  const std::size_t allocations = counter.count();
  CHECK((allocations == 0 && t.values.data() == memory && t.by_rows));
}
