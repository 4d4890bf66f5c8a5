/// HarmonRank's ensemble: the folded serving form beside the direct one, and a training step, for a request of 500 candidates.
#include <recops/models/harmonrank.hpp>

#include "support/paired.hpp"

using namespace recops;
using namespace recops_bench;

namespace {

struct Data {
  HarmonRank<float> model, gradient;
  HarmonRank<float>::Saved saved;
  FrozenHarmonRank<float> frozen;
  Matrix<float> x, u;
  Vector<float> s, ds;
  Workspace ws;

  Data(Index rows, const HarmonRankSpec& spec) : x(rows, spec.objectives), u(rows, spec.profile), s(rows), ds(rows, 1.0f) {
    Random random(1);
    model = HarmonRank<float>(spec, random);
    gradient = make_gradient(model);
    frozen = freeze(model);
    for (float& v : leaf_values(x)) v = static_cast<float>(random.normal());
    for (float& v : leaf_values(u)) v = static_cast<float>(random.normal());
  }
  void direct() { model.forward(x, u, s, saved, ws); }
};

void add(Index rows, Index objectives, Index width, Index heads) {
  const HarmonRankSpec spec{.objectives = objectives, .profile = 32, .width = width, .heads = heads};
  const std::string shape = "/B:" + std::to_string(rows) + "/M:" + std::to_string(objectives) + "/d:" + std::to_string(width) +
                            "/H:" + std::to_string(heads);
  const auto base = [=](const std::shared_ptr<Data>& d) {
    Case<float> c;
    c.elements = static_cast<double>(rows);
    c.working_set = 4.0 * static_cast<double>(rows * (objectives + spec.profile));
    c.kernel = [d] { d->direct(); };
    return c;
  };
  register_case<float>("models/harmonrank/serving/f32" + shape, [=] {
    const auto d = std::make_shared<Data>(rows, spec);
    Case<float> c = base(d);
    const auto b = static_cast<double>(rows), m = static_cast<double>(objectives), h = static_cast<double>(heads);
    c.flops = b * (2 * 32 * (3 + 2 * h) * m + h * m * m * 12);
    c.kernel = [d] { d->frozen.forward(d->x, d->u, d->s, d->ws); };
    c.peers.push_back({"direct", [d] { d->direct(); }});
    return c;
  });
  register_case<float>("models/harmonrank/training/f32" + shape, [=] {
    const auto d = std::make_shared<Data>(rows, spec);
    Case<float> c = base(d);
    const auto n = static_cast<double>(rows * objectives * width);
    c.flops = 3 * n * (12 * static_cast<double>(width) + 4 * static_cast<double>(objectives));
    c.kernel = [d] {
      d->direct();
      d->model.backward(d->x, d->u, d->ds, d->saved, {}, {}, d->gradient, d->ws);
    };
    return c;
  });
}

}  // namespace

int main(int argc, char** argv) {
  add(500, 4, 16, 1);
  add(500, 8, 32, 4);
  return run_registered(argc, argv);
}
