// Oracle: torch.optim.Adam, AdamW and SparseAdam in double (golden/nn.py).
#include <recops/nn/embedding_bag.hpp>
#include <recops/nn/linear.hpp>
#include <recops/train/adam.hpp>

#include "support/golden.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

// Rows [step * rows, ...) of a tensor that stacks one matrix per step.
MatrixView<const double> at_step(const Matrix<double>& all, Index step, Index rows) {
  return all.view().middle_rows(step * rows, rows);
}

}  // namespace

TEMPLATE_TEST_CASE("ten steps of Adam and AdamW are torch's", "[train][golden]", float, double) {
  using T = TestType;
  const Golden golden("nn");
  const struct {
    std::string name;
    AdamOptions options;
  } cases[] = {{"adam", {.learning_rate = 0.01, .beta1 = 0.8, .beta2 = 0.99, .epsilon = 1e-6}},
               {"adamw", {.learning_rate = 0.02, .weight_decay = 0.3}}};
  const Matrix<T> dweight = golden.matrix<T>("adam.dweight"), dbias = golden.matrix<T>("adam.dbias");
  for (const auto& [name, options] : cases) {
    Linear<T> layer;
    layer.weight = golden.matrix<T>("adam.weight0");
    for (const T b : golden.values<T>("adam.bias0")) layer.bias.push_back(b);
    Linear<T> gradient = make_gradient(layer);
    Adam<Linear<T>> adam(layer, options);
    const Matrix<double> weight = golden.matrix<double>(name + ".weight"), bias = golden.matrix<double>(name + ".bias");
    double worst = 0;
    for (Index step = 0; step < 10; ++step) {
      std::copy_n(dweight.row(step * 5), 15, gradient.weight.data());
      std::copy_n(dbias.row(step), 5, gradient.bias.data());
      adam.step(layer, gradient);
      worst = std::max(worst, max_difference(layer.weight.view(), at_step(weight, step, 5)));
      worst = std::max(worst, max_difference(MatrixView<const T>(layer.bias.data(), 1, 5), at_step(bias, step, 1)));
    }
    CAPTURE(name);
    CHECK(worst < (std::is_same_v<T, float> ? 1e-5 : 1e-13));
  }
}

TEMPLATE_TEST_CASE("ten steps on a table by rows are SparseAdam's", "[train][golden]", float, double) {
  using T = TestType;
  const Golden golden("nn");
  Workspace ws;
  EmbeddingBag<T> layer;
  layer.weight.values = golden.matrix<T>("adam.table0");
  EmbeddingBag<T> gradient = make_gradient(layer);
  // SparseAdam leaves epsilon out of the correction of bias: a tiny one makes both the same.
  Adam<EmbeddingBag<T>> adam(layer, {.learning_rate = 0.01, .beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-15});
  const auto ids = golden.values<std::int64_t>("sparse_adam.ids");
  const Matrix<T> dout = golden.matrix<T>("sparse_adam.dout");
  const Matrix<double> table = golden.matrix<double>("sparse_adam.table");
  double worst = 0;
  for (Index step = 0; step < 10; ++step) {
    zero_gradient(gradient);
    layer.backward(IndexView(ids).segment(step * 6, 6), {}, dout.view().middle_rows(step * 6, 6), gradient, ws);
    adam.step(layer, gradient);
    worst = std::max(worst, max_difference(layer.weight.values.view(), at_step(table, step, 9)));
  }
  CHECK(worst < (std::is_same_v<T, float> ? 1e-5 : 1e-10));
}
