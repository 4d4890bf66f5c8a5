// Oracle: torch.nn.utils.clip_grad_norm_ and clip_grad_value_ (golden/train.py).
#include <recops/nn/linear.hpp>
#include <recops/train/clip.hpp>

#include "support/golden.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {
template <class T>
struct Two {
  Matrix<T> a;
  Vector<T> b, kept;
  static constexpr auto fields() {
    return std::tuple{parameter("a", &Two::a), parameter("b", &Two::b), buffer("kept", &Two::kept)};
  }
};
template <class T>
Two<T> two(const Golden& golden, const std::string& suffix) {
  Two<T> g;
  g.a = golden.matrix<T>("clip." + suffix + "a");
  for (const T x : golden.values<T>("clip." + suffix + "b")) g.b.push_back(x);
  g.kept = Vector<T>{T(100)};
  return g;
}
template <class T>
double distance(const Two<T>& x, const Two<T>& y) {
  double worst = max_difference(x.a.view(), y.a.view());
  for (Index i = 0; i < x.b.size(); ++i) worst = std::max(worst, static_cast<double>(std::abs(x.b[i] - y.b[i])));
  return worst;
}
}  // namespace

TEMPLATE_TEST_CASE("clipping is torch's", "[train][clip]", float, double) {
  using T = TestType;
  const Golden golden("train");
  const double bound = std::is_same_v<T, float> ? 1e-6 : 1e-14;
  Two<T> g = two<T>(golden, "");
  CHECK(std::abs(clip_gradient_norm(g, 1.5) - golden.scalar("clip.norm")) < 10 * bound);
  CHECK(distance(g, two<T>(golden, "norm_")) < bound);
  CHECK(g.kept[0] == 100);
  CHECK(std::abs(gradient_norm(g) - 1.5) < 1e-5);
  g = two<T>(golden, "");
  clip_gradient_values(g, 0.4);
  CHECK(distance(g, two<T>(golden, "value_")) < bound);
  CHECK(g.kept[0] == 100);
}

TEMPLATE_TEST_CASE("a gradient that is short or not finite stays", "[train][clip]", float, double) {
  using T = TestType;
  const Golden golden("train");
  const Two<T> g = two<T>(golden, "");
  Two<T> clipped = g;
  CHECK(clip_gradient_norm(clipped, 1e6) < 1e6);
  CHECK(distance(g, clipped) == 0);
  for (const T bad : {std::numeric_limits<T>::quiet_NaN(), std::numeric_limits<T>::infinity()}) {
    Two<T> broken = g;
    broken.b[1] = bad;
    const double norm = clip_gradient_norm(broken, 0.5);
    CHECK(!std::isfinite(norm));
    CHECK(max_difference(broken.a.view(), g.a.view()) == 0);
  }
  Two<T> empty;
  CHECK(clip_gradient_norm(empty, 1) == 0);
  CHECK(error_of([&] { clip_gradient_norm(empty, 0); }) == "clip_gradient_norm: most: expected most > 0, got 0");
  CHECK(error_of([&] { clip_gradient_values(empty, -1); }) == "clip_gradient_values: most: expected most > 0, got -1");
}

TEST_CASE("a table by rows has the norm of the rows it holds", "[train][clip]") {
  struct Model {
    Table<float> t;
    static constexpr auto fields() { return std::tuple{parameter("t", &Model::t)}; }
  } g;
  g.t.clear_rows(2);
  const std::int64_t ids[] = {3, 8};
  g.t.touch_rows(2, [&](Index i) { return ids[i]; });
  g.t.values = Matrix<float>{{3, 0}, {0, 4}};
  CHECK(clip_gradient_norm(g, 1) == 5);
  CHECK(std::abs(gradient_norm(g) - 1) < 1e-5);
}
