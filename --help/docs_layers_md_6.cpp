#include <cstdio>
#include <recops/nn/dense.hpp>
#include <recops/nn/loss.hpp>
#include <recops/nn/sequential.hpp>
#include <recops/train/adam.hpp>
#include <recops/train/gradient_check.hpp>

using namespace recops;

// A layer of one's own: y = x * scale, one learned factor per column.
template <class T>
struct Scale {
  Vector<T> factor;

  static constexpr auto fields() { return std::tuple{parameter("factor", &Scale::factor)}; }
  Index output_cols(Index input_cols) const { return input_cols; }
  struct Saved {};  // backward needs the input only
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace&) const {
    for (Index b = 0; b < x.rows(); ++b)
      for (Index j = 0; j < x.cols(); ++j) y(b, j) = x(b, j) * factor[j];
  }
  void forward(MatrixView<const T> x, MatrixView<T> y, Saved&, const Step&, Workspace& ws) const { forward(x, y, ws); }
  void backward(MatrixView<const T> x, MatrixView<const T> dy, const Saved&, MatrixView<T> dx, Scale& gradient, Workspace&) const {
    for (Index b = 0; b < x.rows(); ++b)
      for (Index j = 0; j < x.cols(); ++j) {
        if (!dx.empty()) dx(b, j) += dy(b, j) * factor[j];  // backward always adds
        if (!gradient.factor.empty()) gradient.factor[j] += dy(b, j) * x(b, j);
      }
  }
};

int main() {
  // Is the backward right? In double, against central differences.
  Random random(1);
  auto checked = sequential<double>(Scale<double>{Vector<double>(4, 1.5)}, Dense<double>(4, 8, Activation::silu, random), Linear<double>(8, 1, random));
  Matrix<double> probe(5, 4);
  for (double& v : leaf_values(probe)) v = random.normal();
  const GradientReport report = gradient_check(checked, probe.view());
  std::printf("gradients %s\n", report.worst < 1e-6 ? "agree" : report.where.c_str());

  // Train: is x_0 x_1 > 0?
  auto net = sequential<float>(Scale<float>{Vector<float>(2, 1.0f)}, Dense<float>(2, 32, Activation::relu, random), Linear<float>(32, 1, random));
  auto gradient = make_gradient(net);
  Adam adam(net, {.learning_rate = 0.01});
  decltype(net)::Saved saved;
  Workspace ws;
  Matrix<float> x(512, 2), labels(512, 1), logits(512, 1), dlogits(512, 1);
  for (float& v : leaf_values(x)) v = static_cast<float>(random.normal());
  for (Index b = 0; b < 512; ++b) labels(b, 0) = x(b, 0) * x(b, 1) > 0 ? 1.0f : 0.0f;
  double loss = 0;
  for (std::uint64_t step = 0; step < 300; ++step) {
    zero_gradient(gradient);
    dlogits.fill(0);
    net.forward(x, logits, saved, Step{1, step, 0}, ws);
    loss = bce_with_logits_value_and_grad<float>(logits, labels, {}, {}, dlogits);
    net.backward(x, dlogits, saved, {}, gradient, ws);
    adam.step(net, gradient);
  }
  std::printf("loss below 0.1: %s, %td parameters\n", loss < 0.1 ? "yes" : "no", parameter_count(net));

  // Serve: the dense part packed for the kernels, to be shared by threads.
  const auto frozen = freeze(std::get<1>(net.layers));
  Matrix<float> hidden(512, 32);
  frozen.forward(x, hidden, ws);
  return loss < 0.1 && report.worst < 1e-6 ? 0 : 1;
}
