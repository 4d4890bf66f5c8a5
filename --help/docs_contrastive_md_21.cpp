#include <cmath>
#include <cstdio>
#include <recops/contrastive/in_batch.hpp>
#include <recops/nn/linear.hpp>
#include <recops/nn/normalize_rows.hpp>
#include <recops/train/adam.hpp>

using namespace recops;

struct Towers {
  Linear<float> left, right;
  Vector<float> log_scale;  // log(1 / temperature), learned
  static constexpr auto fields() {
    return std::tuple{layer("left", &Towers::left), layer("right", &Towers::right), parameter("log_scale", &Towers::log_scale)};
  }
};

int main() {
  const Index things = 64, inputs = 16, width = 8;
  Random random(1);
  Matrix<float> a(things, inputs), b(things, inputs), u(things, width), v(things, width), du(things, width), dv(things, width);
  for (Index i = 0; i < things; ++i)
    for (Index k = 0; k < inputs; ++k) {
      a(i, k) = static_cast<float>(random.normal());
      b(i, (k + 3) % inputs) = a(i, k) + 0.1f * static_cast<float>(random.normal());  // the other view: turned, and noisy
    }
  Towers towers{Linear<float>(inputs, width, random), Linear<float>(inputs, width, random), Vector<float>(1, std::log(1 / 0.1f))};
  Towers gradient = make_gradient(towers);
  Adam adam(towers, {.learning_rate = 0.02});
  Workspace ws;

  Matrix<float> unit_u(things, width), unit_v(things, width), dunit_u(things, width), dunit_v(things, width);
  double first = 0, loss = 0;
  for (int step = 0; step < 200; ++step) {
    zero_gradient(gradient);
    for (auto* m : {&du, &dv, &dunit_u, &dunit_v}) m->fill(0);
    towers.left.forward(a, u, ws);
    towers.right.forward(b, v, ws);
    normalize_rows<float>(u, unit_u);
    normalize_rows<float>(v, unit_v);
    double dlog_scale = 0;
    loss = inbatch_symmetric_value_and_grad<float>(unit_u, unit_v, {.log_scale = towers.log_scale[0]},
                                                   {.du = dunit_u, .dv = dunit_v, .dlog_scale = &dlog_scale}, ws);
    if (step == 0) first = loss;
    gradient.log_scale[0] += static_cast<float>(dlog_scale);
    normalize_rows_backward<float>(u, dunit_u, du);
    normalize_rows_backward<float>(v, dunit_v, dv);
    towers.left.backward(a, du, {}, {}, gradient.left, ws);
    towers.right.backward(b, dv, {}, {}, gradient.right, ws);
    adam.step(towers, gradient);
  }

  Vector<std::int32_t> positives(things);  // who belongs to whom, as the core wants to know it
  for (Index i = 0; i < things; ++i) positives[i] = static_cast<std::int32_t>(i);
  InfoNceStatistics statistics;
  biased_infonce<float>(unit_u, unit_v, positives, {.log_scale = towers.log_scale[0]}, statistics, ws);
  std::printf("%s, %.0f of 64 find their own\n", loss < first / 10 ? "learned" : "not learned", 64 * statistics.accuracy);
}
