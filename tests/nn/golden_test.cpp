// Oracle: PyTorch in double (golden/nn.py).
#include <recops/nn/dense.hpp>
#include <recops/nn/embedding_bag.hpp>
#include <recops/nn/loss.hpp>
#include <recops/nn/sequential.hpp>

#include "support/golden.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

template <class T>
constexpr double tolerance = std::is_same_v<T, float> ? 2e-5 : 1e-12;

template <class T>
double distance(MatrixView<const T> got, const Golden& golden, const std::string& key) {
  const Matrix<double> expected = golden.matrix<double>(key);
  return max_difference(got, expected.view());
}
template <class T>
double distance(VectorView<const T> got, const Golden& golden, const std::string& key) {
  return distance(MatrixView<const T>(got.data(), 1, got.size()), golden, key);
}
template <class T>
Vector<T> vector_of(const Golden& golden, const std::string& key) {
  Vector<T> v;
  for (const T x : golden.values<T>(key)) v.push_back(x);
  return v;
}

}  // namespace

TEMPLATE_TEST_CASE("Linear is torch.nn.Linear", "[nn][golden]", float, double) {
  using T = TestType;
  const Golden golden("nn");
  Workspace ws;
  Linear<T> layer;
  layer.weight = golden.matrix<T>("linear.weight");
  layer.bias = vector_of<T>(golden, "linear.bias");
  const Matrix<T> x = golden.matrix<T>("linear.x"), dy = golden.matrix<T>("linear.dy");
  Matrix<T> y(x.rows(), 3), dx(x.rows(), 5, T(0));
  typename Linear<T>::Saved saved;
  Linear<T> g = make_gradient(layer);
  layer.forward(x, y, saved, Step{}, ws);
  layer.backward(x, dy, saved, dx, g, ws);
  CHECK(distance<T>(y.view(), golden, "linear.y") < tolerance<T>);
  CHECK(distance<T>(dx.view(), golden, "linear.dx") < tolerance<T>);
  CHECK(distance<T>(g.weight.view(), golden, "linear.dweight") < tolerance<T>);
  for (Index i = 0; i < 3; ++i)
    CHECK(static_cast<double>(g.bias[i]) ==
          Approx(golden.values<double>("linear.dbias")[static_cast<std::size_t>(i)]).margin(tolerance<T>));
}

TEMPLATE_TEST_CASE("Dense and Sequential are torch's layers one after another", "[nn][golden]", float, double) {
  using T = TestType;
  const Golden golden("nn");
  Workspace ws;
  Sequential<T, Dense<T>, Dense<T>, Dense<T>, Dense<T>> net;
  constexpr Activation activations[] = {Activation::relu, Activation::silu, Activation::sigmoid, Activation::none};
  const auto each = [&](auto& n, auto&& f) {
    std::apply(
        [&](auto&... layer) {
          Index i = 0;
          (f(layer, "mlp." + std::to_string(i++) + "."), ...);
        },
        n.layers);
  };
  std::size_t next = 0;
  each(net, [&](Dense<T>& layer, const std::string& name) {
    layer.linear.weight = golden.matrix<T>(name + "weight");
    layer.linear.bias = vector_of<T>(golden, name + "bias");
    layer.activation = activations[next++];
  });
  const Matrix<T> x = golden.matrix<T>("mlp.x"), dy = golden.matrix<T>("mlp.dy");
  Matrix<T> y(33, 2), served(33, 2), dx(33, 5, T(0));
  typename decltype(net)::Saved saved;
  auto g = make_gradient(net);
  net.forward(x, y, saved, Step{}, ws);
  net.backward(x, dy, saved, dx, g, ws);
  freeze(net).forward(x, served, ws);
  CHECK(distance<T>(y.view(), golden, "mlp.y") < tolerance<T>);
  CHECK(distance<T>(served.view(), golden, "mlp.y") < tolerance<T>);
  CHECK(distance<T>(dx.view(), golden, "mlp.dx") < tolerance<T>);
  each(g, [&](const Dense<T>& layer, const std::string& name) {
    CAPTURE(name);
    CHECK(distance<T>(layer.linear.weight.view(), golden, name + "dweight") < tolerance<T>);
    CHECK(distance<T>(leaf_values(layer.linear.bias), golden, name + "dbias") < tolerance<T>);
  });
}

TEMPLATE_TEST_CASE("embedding_bag is torch's, padding included", "[nn][golden]", float, double) {
  using T = TestType;
  const Golden golden("nn");
  Workspace ws;
  const Matrix<T> table = golden.matrix<T>("bag.table"), dout = golden.matrix<T>("bag.dout");
  const auto ids = golden.values<std::int64_t>("bag.ids"), offsets = golden.values<std::int64_t>("bag.offsets");
  const auto check = [&](const std::string& name, IndexView o, MatrixView<const T> d, const EmbeddingBagOptions& options) {
    CAPTURE(name);
    Matrix<T> out(d.rows(), 6), scattered(11, 6, T(0));
    embedding_bag<T>(table, ids, o, options, out);
    CHECK(distance<T>(out.view(), golden, name + ".out") < tolerance<T>);
    Table<T> rows, dense;
    rows.clear_rows(6);
    dense.values = Matrix<T>(11, 6, T(0));
    embedding_bag_backward<T>(11, ids, o, options, d, rows, ws);
    embedding_bag_backward<T>(11, ids, o, options, d, dense, ws);
    for (Index r = 0; r < rows.rows.size(); ++r) std::copy_n(rows.values.row(r), 6, scattered.row(rows.rows[r]));
    CHECK(distance<T>(dense.values.view(), golden, name + ".dtable") < tolerance<T>);
    CHECK(distance<T>(scattered.view(), golden, name + ".dtable") < tolerance<T>);
  };
  check("bag.sum", offsets, dout, {});
  check("bag.mean", offsets, dout, {.pooling = Pooling::mean});
  check("bag.sum_padding", offsets, dout, {.padding_index = 3});
  check("bag.mean_padding", offsets, dout, {.pooling = Pooling::mean, .padding_index = 3});
  const Matrix<T> dlookup = golden.matrix<T>("lookup.dout");
  check("lookup", {}, dlookup, {});
}

TEMPLATE_TEST_CASE("bce_with_logits is torch's, weights, tasks and far logits included", "[nn][golden]", float, double) {
  using T = TestType;
  const Golden golden("nn");
  const Matrix<T> logits = golden.matrix<T>("bce.logits"), labels = golden.matrix<T>("bce.labels"),
                  weights = golden.matrix<T>("bce.weights");
  const Vector<T> task_weights = vector_of<T>(golden, "bce.task_weights");
  for (const bool weighted : {false, true}) {
    const std::string name = weighted ? "bce.weighted." : "bce.plain.";
    Matrix<T> d(40, 3, T(0));
    Vector<T> losses(3);
    const double total =
        bce_with_logits_value_and_grad<T>(logits, labels,
                                          {.weights = weighted ? weights.view() : MatrixView<const T>(),
                                           .task_weights = weighted ? VectorView<const T>(task_weights) : VectorView<const T>()},
                                          losses, d);
    CAPTURE(weighted);
    CHECK(total == Approx(golden.scalar(name + "total")).epsilon(std::is_same_v<T, float> ? 1e-6 : 1e-13));
    for (Index t = 0; t < 3; ++t)
      CHECK(static_cast<double>(losses[t]) ==
            Approx(golden.values<double>(name + "losses")[static_cast<std::size_t>(t)]).epsilon(1e-6));
    CHECK(distance<T>(d.view(), golden, name + "dlogits") < (std::is_same_v<T, float> ? 1e-7 : 1e-15));
  }
}
