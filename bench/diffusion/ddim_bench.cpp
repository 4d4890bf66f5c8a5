/// Whole reverse chains of a diffusion sampler: DDIM without noise around an MLP 64-256-256-64 with SiLU, on weights packed once.
///
///     taskset -c 1 build/bench/bench/recops_bench_diffusion_ddim
///
///   diffusion/ddim/TYPE/B:batch/dim:64/steps:n      from drawn starts to samples; TYPE bf16: weights in bfloat16
///   diffusion/normal_step/f32/B:64/dim:64           one noisy step, its normals drawn in registers
///
/// of_bandwidth: against reading the weights once for every step, which is the least a lone row must do. Peers do the same chain with
/// the step's embedding folded into the first bias too: `torch` (eager or traced, whichever is faster), `onnxruntime` (one graph, all
/// steps unrolled), `eigen` (a loop of products).
#include <memory>
#include <recops/diffusion/frozen_sampler.hpp>

#include "support/paired.hpp"
#if RECOPS_BENCH_EIGEN
#include <Eigen/Dense>
#endif

using namespace recops;
using namespace recops_bench;

namespace {

constexpr Index width = 64, hidden = 256;

struct Chain {
  Random random{1};
  MlpDenoiser<float> denoiser;
  SamplerPlan plan;
  Matrix<float> x;
  Workspace ws;

  Chain(Index batch, Index steps)
      : denoiser(width, 0, {hidden, hidden}, Activation::silu,
                 TimeEmbedding<float>(width, 4 * width, width, Activation::silu, {}, random), random),
        plan(NoiseSchedule::cosine(50), {.steps = steps}),
        x(batch, width) {}
  double weights() const { return static_cast<double>(width * hidden + hidden * hidden + hidden * width); }
};

#if RECOPS_BENCH_EIGEN
using Rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// The same chain with Eigen; every row a column of its own where that is faster (a lone row is a vector).
struct EigenChain {
  Eigen::MatrixXf w0 = Eigen::MatrixXf::Random(hidden, width) / 8, w1 = Eigen::MatrixXf::Random(hidden, hidden) / 16,
                  w2 = Eigen::MatrixXf::Random(width, hidden) / 16;
  Eigen::MatrixXf bias, x, start, h0, h1, m;
  Eigen::VectorXf b1 = Eigen::VectorXf::Random(hidden), b2 = Eigen::VectorXf::Random(width);
  SamplerPlan plan;
  EigenChain(Index batch, const SamplerPlan& p)
      : bias(Eigen::MatrixXf::Random(hidden, static_cast<Index>(p.steps.size()))),
        start(Eigen::MatrixXf::Random(width, batch)),
        plan(p) {}
  static void silu(Eigen::MatrixXf& h) { h.array() /= (1.0f + (-h.array()).exp()); }
  void run() {
    x = start;
    for (std::size_t i = 0; i < plan.steps.size(); ++i) {
      product(w0, x, h0);
      h0.colwise() += bias.col(static_cast<Index>(i));
      silu(h0);
      product(w1, h0, h1);
      h1.colwise() += b1;
      silu(h1);
      product(w2, h1, m);
      x = static_cast<float>(plan.steps[i].x) * x + static_cast<float>(plan.steps[i].p) * (m.colwise() + b2);
    }
  }
  static void product(const Eigen::MatrixXf& w, const Eigen::MatrixXf& in, Eigen::MatrixXf& out) {
    if (in.cols() == 1) {
      out.resize(w.rows(), 1);
      out.col(0).noalias() = w * in.col(0);  // a matrix times a vector, which Eigen does not see by itself
    } else {
      out.noalias() = w * in;
    }
  }
};
#endif

template <class S>
void add_ddim(const std::string& type, Index batch, Index steps, bool peers) {
  register_case<float>("diffusion/ddim/" + type + "/B:" + std::to_string(batch) + "/dim:64/steps:" + std::to_string(steps), [=] {
    const auto d = std::make_shared<Chain>(batch, steps);
    Case<float> c;
    const double rounds = static_cast<double>(d->plan.steps.size());
    c.flops = 2 * rounds * static_cast<double>(batch) * d->weights();
    c.kernel = [d, frozen = freeze(d->denoiser, d->plan, Weights<S>())] { frozen.sample({}, {.at = {.seed = 1}}, d->x, d->ws); };
    const Index bytes = static_cast<Index>(d->weights()) * static_cast<Index>(sizeof(S)), times = static_cast<Index>(rounds);
    const auto stream = std::make_shared<Rotation<char>>(bytes);
    c.floors.push_back({"bandwidth", [=] {
                          for (Index i = 0; i < times; ++i) limits<float>().read((*stream)[0], bytes);
                        }});
    if (!peers) return c;
    const std::string arguments = R"({"batch": )" + std::to_string(batch) + R"(, "width": 64, "hidden": 256, "steps": )" +
                                  std::to_string(d->plan.steps.size()) + "}";
#if RECOPS_BENCH_EIGEN
    const auto e = std::make_shared<EigenChain>(batch, d->plan);
    c.peers.push_back({"eigen", [e] { e->run(); }});
#endif
    for (const char* torch : {"torch", "torch_new"}) c.peers.push_back(python_peer(torch, "ddim", arguments));
    c.peers.push_back(python_peer("onnxruntime", "ddim", arguments));
    return c;
  });
}

void add_normal_step() {
  register_case<float>("diffusion/normal_step/f32/B:64/dim:64", [] {
    const auto x = std::make_shared<Matrix<float>>(64, width, 1.0f), m = std::make_shared<Matrix<float>>(64, width, 0.5f);
    const auto plan = std::make_shared<SamplerPlan>(NoiseSchedule::cosine(50), SamplerOptions{.method = SamplerMethod::ddpm});
    Case<float> c;
    c.elements = 64 * width;
    c.bytes = 2 * 64 * width * sizeof(float);
    c.kernel = [=] { diffusion_step<float>(*plan, 20, *x, m->view(), {}, {}, RandomRow{.seed = 1}, {}); };
    return c;
  });
}

}  // namespace

int main(int argc, char** argv) {
  for (const Index batch : {1, 64})
    for (const Index steps : {10, 50}) add_ddim<float>("f32", batch, steps, true);
  for (const Index batch : {1, 64}) add_ddim<BFloat16>("bf16", batch, 10, false);
  for (const Index batch : {3, 7, 16, 512}) add_ddim<float>("f32", batch, 10, false);
  add_normal_step();
  return run_registered(argc, argv);
}
