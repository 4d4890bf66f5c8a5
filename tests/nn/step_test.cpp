// Oracles: distinctness counted in sets; moments of the uniform distribution.
#include <recops/nn/step.hpp>

#include <cmath>
#include <set>
#include <unordered_set>
#include <vector>

#include "support/catch.hpp"

using namespace recops;

namespace {

// The first two words, which tell sequences apart.
std::uint64_t head(Random r) {
  const std::uint64_t high = r.word();
  return (high << 32) | r.word();
}

}  // namespace

TEST_CASE("a step is a value: the same children, the same numbers", "[nn][step]") {
  constexpr Step step{7, 3, 0};
  static_assert(step.child(4).stream == Step{7, 3, 0}.child(4).stream);
  CHECK((step.child(4).seed == 7 && step.child(4).number == 3));
  CHECK(head(step.random(5)) == head(Step{7, 3, 0}.random(5)));
}

TEST_CASE("no two nodes of a tree of 10^5 layers share a stream", "[nn][step]") {
  std::vector<Step> nodes{{1, 0, 0}};
  std::unordered_set<std::uint64_t> streams{0};
  // 10 children each, five levels: 1 + 10 + ... + 10^5; and one flat list of 10^5 besides.
  for (std::size_t next = 0; nodes.size() < 111111; ++next)
    for (Index i = 0; i < 10; ++i) {
      nodes.push_back(nodes[next].child(i));
      streams.insert(nodes.back().stream);
    }
  CHECK(streams.size() == nodes.size());
  for (Index i = 10; i < 100000; ++i) streams.insert(nodes[0].child(i).stream);
  CHECK(streams.size() == nodes.size() + 99990);
}

TEST_CASE("order matters: child(a).child(b) is not child(b).child(a)", "[nn][step]") {
  constexpr Step step{1, 1, 0};
  for (Index a = 0; a < 20; ++a)
    for (Index b = 0; b < a; ++b) REQUIRE(step.child(a).child(b).stream != step.child(b).child(a).stream);
}

TEST_CASE("layers, rows, steps and seeds draw different numbers", "[nn][step]") {
  std::unordered_set<std::uint64_t> heads;
  std::size_t draws = 0;
  const auto draw = [&](const Step& step, Index row) {
    heads.insert(head(step.random(row)));
    ++draws;
  };
  for (const std::uint64_t seed : {0ull, 1ull, 2ull, 1ull << 32, ~0ull})
    for (std::uint64_t number = 0; number < 10; ++number)
      for (Index child = 0; child < 10; ++child)
        for (Index row = 0; row < 100; ++row) draw(Step{seed, number, 0}.child(child), row);
  const Step deep = Step{3, 5, 0}.child(1);
  for (Index row = 0; row < 10000; ++row) draw(deep, row);
  for (const Index row : {Index{1} << 31, Index{1} << 32, (Index{1} << 32) + 1, Index{1} << 40}) draw(deep, row);
  for (const std::uint64_t number : {std::uint64_t{1} << 32, (std::uint64_t{1} << 32) + 5, std::uint64_t{1} << 40})
    draw(Step{3, number, 0}.child(1), 0);
  // A layer's rows against the layers below it: row i is not child i.
  for (Index i = 0; i < 1000; ++i) draw(deep.child(i), 0);
  CHECK(heads.size() == draws);
}

TEST_CASE("neighbouring rows are uncorrelated uniforms", "[nn][step]") {
  const Step step{recops_test::seed(), 9, 0};
  const Index rows = 40000;
  double sum = 0, square = 0, product = 0, before = 0.5;
  for (Index row = 0; row < rows; ++row) {
    const double u = step.random(row).uniform() - 0.5;
    sum += u, square += u * u, product += u * before;
    before = u;
  }
  const double n = static_cast<double>(rows);
  CHECK(std::abs(sum / n) < 5 * std::sqrt(1.0 / 12 / n));
  CHECK(std::abs(square / n - 1.0 / 12) < 5 * std::sqrt(1.0 / 180 / n));
  CHECK(std::abs(product / n) < 5 / 12.0 / std::sqrt(n));
}
