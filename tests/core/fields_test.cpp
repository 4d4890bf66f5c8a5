// Oracle: the paths and values written out by hand, in the order of the field lists.
#include <recops/core/fields.hpp>

#include <array>
#include <map>
#include <recops/core/matrix.hpp>
#include <vector>

#include "support/allocations.hpp"
#include "support/catch.hpp"

using namespace recops;

namespace {

struct Leaf {
  Vector<float> weight, bias;
  static constexpr auto fields() { return std::tuple{parameter("weight", &Leaf::weight), parameter("bias", &Leaf::bias)}; }
};

struct Norm {
  Vector<float> scale, running_mean;
  static constexpr auto fields() {
    return std::tuple{parameter("scale", &Norm::scale), buffer("running_mean", &Norm::running_mean)};
  }
};

struct Nothing {
  static constexpr auto fields() { return std::tuple{}; }
};

struct Wrapper {  // adds nothing to the path
  Leaf inner;
  static constexpr auto fields() { return std::tuple{layer("", &Wrapper::inner)}; }
};

class Model {
 public:
  Leaf input;
  std::tuple<Leaf, Nothing, Norm> stack;
  std::array<Leaf, 2> towers;
  std::vector<Wrapper> experts;
  static constexpr auto fields() {
    return std::tuple{layer("input", &Model::input), layers("", &Model::stack), layers("towers", &Model::towers),
                      layers("experts", &Model::experts),
                      parameter(
                          "secret", [](auto& m) -> auto& { return m.secret_; })};
  }

 private:
  Vector<float> secret_ = {1, 2};
};

static_assert(HasFields<Leaf> && HasFields<const Model&> && !HasFields<int> && !HasFields<Vector<float>>);

std::vector<std::pair<std::string, FieldKind>> leaves(auto& model) {
  std::vector<std::pair<std::string, FieldKind>> found;
  visit([&](const FieldPath& path, auto&) { found.emplace_back(path.str(), path.kind); }, model);
  return found;
}

}  // namespace

TEST_CASE("visit names every leaf as PyTorch does", "[core][fields]") {
  Model model;
  model.experts.resize(2);
  const auto p = FieldKind::parameter, b = FieldKind::buffer;
  const std::vector<std::pair<std::string, FieldKind>> expected{
      {"input.weight", p},     {"input.bias", p},      {"0.weight", p},         {"0.bias", p},          {"2.scale", p},
      {"2.running_mean", b},   {"towers.0.weight", p}, {"towers.0.bias", p},    {"towers.1.weight", p}, {"towers.1.bias", p},
      {"experts.0.weight", p}, {"experts.0.bias", p},  {"experts.1.weight", p}, {"experts.1.bias", p},  {"secret", p}};
  CHECK(leaves(model) == expected);
  const Model& constant = model;
  CHECK(leaves(constant) == expected);
  model.experts.clear();
  CHECK(leaves(model).size() == expected.size() - 4);
  Nothing nothing;
  CHECK(leaves(nothing).empty());
}

TEST_CASE("visit walks several values in lockstep", "[core][fields]") {
  Model model, gradient;
  model.experts.resize(1);
  gradient.experts.resize(1);
  float next = 0;
  visit(
      [&](const FieldPath&, Vector<float>& x, Vector<float>& g) {
        x = Vector<float>(2, next);
        g = Vector<float>(2, 10 * next);
        next += 1;
      },
      model, gradient);
  CHECK(next == 13);
  const Model& constant = gradient;
  std::map<std::string, float> sums;
  visit(
      [&](const FieldPath& path, Vector<float>& x, const Vector<float>& g, Vector<float>& same) {
        CHECK(&x == &same);
        sums[path.str()] = x[0] + g[1];
      },
      model, constant, model);
  CHECK((sums["input.weight"] == 0 && sums["input.bias"] == 11 && sums["2.running_mean"] == 55));
  CHECK((sums["experts.0.bias"] == 121 && sums["secret"] == 132));
}

TEST_CASE("visit itself allocates nothing", "[core][fields]") {
  Model model;
  model.experts.resize(2);
  recops_test::AllocationCounter counter;
  Index count = 0;
  visit([&](const FieldPath& path, auto&) { count += path.kind == FieldKind::parameter; }, model);
  const std::size_t allocations = counter.count();
  CHECK(allocations == 0);
  CHECK(count == 14);
}
