/// CDM: ranking N candidates of D = 64 features by a trained student (pool of 64, one hidden layer of 64), and its training step.
///
///     taskset -c 1 build/bench/bench/recops_bench_models_cdm
///
/// Cases: `rank` is one request through the serving form, fusion and the best 50 of all; `train` forward, loss, backward and Adam over 4
/// requests of 200. Time per candidate (ns_each) that does not move with N is what linear means. Peers: `torch`, the same model, queries
/// folded into the keys as ours are, without its top-k; `eager` is the teacher, MMR without bounds, for the same 50 picks.
#include <recops/models/cdm.hpp>
#include <recops/train/adam.hpp>

#include "support/paired.hpp"

using namespace recops;
using namespace recops_bench;

namespace {

constexpr Index features = 64, pool = 64, hidden = 64, picks = 50;

Matrix<float> unit_rows(Index n, Random& random) {
  Matrix<float> x(n, features);
  for (Index i = 0; i < n * features; ++i) x.data()[i] = static_cast<float>(random.normal());
  normalize_rows<float>(x, x);
  return x;
}

struct Ranking {
  Index n;
  Rotation<float> rows;
  Vector<float> relevance;
  FrozenCdm<float> model;
  Vector<std::int32_t> out{};
  Workspace ws{};

  static Cdm<float> make() {
    Random random(1);
    return Cdm<float>({.features = features, .pool = pool, .hidden = {hidden}}, random);
  }
  explicit Ranking(Index count)
      : n(count),
        rows(count * features, copies_for(static_cast<double>(count * features) * sizeof(float))),
        relevance(count),
        model(make()),
        out(picks) {
    Random random(2);
    const Matrix<float> x = unit_rows(n, random);
    std::copy_n(x.data(), n * features, rows[0]);
    rows.spread();
    for (float& r : relevance) r = static_cast<float>(random.uniform());
  }
  MatrixView<const float> x(Index copy) { return MatrixView<const float>(rows[copy], n, features); }
  void rank(Index copy) { model.rank(relevance, x(copy), {}, out, {}, ws); }
  void teacher(Index copy) {
    mmr<float>(VectorView<const float>(relevance), x(copy), {.evaluation = MmrEvaluation::eager}, out, {}, ws);
  }
};

void add_rank(Index n) {
  register_case<float>(
      "models/cdm/rank/f32/N:" + std::to_string(n),
      [n] {
        const auto data = std::make_shared<Ranking>(n);
        constexpr double d = features + 2;
        Case<float> c;
        c.copies = data->rows.copies();
        c.kernel = [data](Index copy) { data->rank(copy); };
        c.flops = static_cast<double>(n) * (6 * pool * d + 10 * d * hidden + 2 * hidden);
        c.elements = static_cast<double>(n);
        c.peers.push_back({"eager", [data](Index copy) { data->teacher(copy); }});
        const std::string arguments = R"({"n": )" + std::to_string(n) + R"(, "features": 64, "pool": 64, "hidden": 64})";
        for (const char* torch : {"torch", "torch_new"}) c.peers.push_back(python_peer(torch, "cdm_rank", arguments));
        return c;
      },
      n > 20000 ? 30 : 100);
}

struct Training {
  static constexpr Index n = 200, requests = 4;
  Random random{3};
  Cdm<float> model{{.features = features, .pool = pool, .hidden = {hidden}}, random}, gradient = make_gradient(model);
  Cdm<float>::Saved saved{};
  Adam<Cdm<float>> adam{model, {}};
  Matrix<float> x = unit_rows(n * requests, random);
  Vector<float> relevance{}, labels{};
  std::vector<std::int64_t> offsets{0};
  Step step{};
  Workspace ws{};

  Training() : relevance(n * requests), labels(n * requests) {
    for (Index b = 1; b <= requests; ++b) offsets.push_back(b * n);
    for (Index i = 0; i < n * requests; ++i) {
      relevance[i] = static_cast<float>(random.uniform());
      labels[i] = random.chance(0.1);
    }
  }
  void run() {
    zero_gradient(gradient);
    model.value_and_grad({.features = JaggedView<const float>(x.view(), offsets), .relevance = relevance}, labels, {}, gradient,
                         saved, step, ws);
    adam.step(model, gradient);
    ++step.number;
  }
};

void add_train() {
  register_case<float>("models/cdm/train/f32/requests:4/N:200", [] {
    const auto data = std::make_shared<Training>();
    constexpr double d = features + 2, rows = Training::n * Training::requests;
    Case<float> c;
    c.kernel = [data] { data->run(); };
    // Queries, attention and student, twice more going back (attention four times: its logits are computed again).
    c.flops = rows * (3 * 2 * d * d + 20 * pool * d + 3 * 2 * (5 * d * hidden + hidden));
    for (const char* torch : {"torch", "torch_new"})
      c.peers.push_back(
          python_peer(torch, "cdm_train", R"({"requests": 4, "n": 200, "features": 64, "pool": 64, "hidden": 64})"));
    return c;
  });
}

}  // namespace

int main(int argc, char** argv) {
  for (const Index n : {200, 1000, 10000, 100000}) add_rank(n);
  add_train();
  return recops_bench::run_registered(argc, argv);
}
