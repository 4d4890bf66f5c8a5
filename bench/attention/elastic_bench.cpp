/// Dispatcher attention and the interest memory against self-attention and PyTorch.
///
///     taskset -c 1 build/bench/bench/recops_bench_attention_elastic
///
///   attention/dispatcher_attention/f32/H:2/dk:32/k:32/L:*            both passes on projected rows, 16384 L flops
///   attention/dispatcher_attention_train/...                        the same and its backward, 3.5 times the flops
///   attention/dispatcher_attention_layer/f32/D:64/H:2/k:16/L:*       with projections, no norm, no network; `_train`: forward and backward
///   attention/dispatcher_block/...                                  the whole block, network 4 D wide
///   attention/dispatcher_causal/...                                 the causal layer
///   attention/interest_memory/f32/slots:1048576/...                 one user's 16 interests of 2^20
///
/// Peers: `torch` the same two passes, the fastest way it has; `self` our own streaming attention of all tokens over all tokens, with
/// projections where we have them; `unfolded` the same layer with tokens projected; `block` the block that the memory feeds.
/// At the end, or alone with --growth: a line through the times of the layer, and the memory it takes.
#include <recops/attention/dispatcher_block.hpp>
#include <recops/attention/interest_memory.hpp>
#include <recops/core/random.hpp>

#include <chrono>
#include <memory>

#include "support/paired.hpp"

using namespace recops;
using namespace recops_bench;

namespace {

Matrix<float> random_rows(Index rows, Index cols, Random& random) {
  Matrix<float> m(rows, cols);
  for (float& v : leaf_values(m)) v = static_cast<float>(random.uniform(-1.7, 1.7));
  return m;
}

/// Projected rows of both passes: 2 heads of 32 columns, 32 experts.
struct Core {
  static constexpr Index width = 64, k = 32;
  Random random{1};
  Matrix<float> q1, k1, v1, q2, k2, v2, p, y, lse, dp, dy, dq1, dk1, dv1, dq2, dk2, dv2, full, full_lse;
  Workspace ws;
  explicit Core(Index l) {
    for (Matrix<float>* m : {&q1, &k2, &v2, &p, &dp, &dq1, &dk2, &dv2}) *m = random_rows(k, width, random);
    for (Matrix<float>* m : {&k1, &v1, &q2, &y, &dy, &dk1, &dv1, &dq2, &full}) *m = random_rows(l, width, random);
    lse.resize(k, 2);
    full_lse.resize(l, 2);
  }
  void forward() {
    aggregate_into_experts<float>(q1, k1.view(), v1.view(), {.heads = 2}, p, lse, ws);
    dispatch_from_experts<float>(q2.view(), k2, v2, {.heads = 2}, y, ws);
  }
  void backward() {
    aggregate_into_experts_backward<float>(q1, k1.view(), v1.view(), {.heads = 2}, p, lse, dp, dq1, dk1, dv1, ws);
    dispatch_from_experts_backward<float>(q2.view(), k2, v2, {.heads = 2}, dy, dq2, dk2, dv2, ws);
  }
  void self(bool train) {
    scaled_dot_product_attention<float>(q2.view(), k1.view(), v1.view(), {}, {.heads = 2}, full,
                                        train ? full_lse.view() : MatrixView<float>(), ws);
    if (train)
      scaled_dot_product_attention_backward<float>(q2.view(), k1.view(), v1.view(), {}, {.heads = 2}, full, full_lse, dy, {}, dq2,
                                                   dk1, dv1, {}, ws);
  }
};

void add_core(Index l, bool train) {
  const std::string name =
      std::string("attention/dispatcher_attention") + (train ? "_train" : "") + "/f32/H:2/dk:32/k:32/L:" + std::to_string(l);
  register_case<float>(name, [=] {
    const auto core = std::make_shared<Core>(l);
    Case<float> c;
    c.flops = (train ? 3.5 : 1) * 16384 * static_cast<double>(l);
    c.working_set = 4.0 * static_cast<double>(l) * 64 * 4;
    c.kernel = [=] {
      core->forward();
      if (train) core->backward();
    };
    c.peers.push_back({"self", [=] { core->self(train); }});
    c.peers.push_back(python_peer("torch", "dispatcher",
                                  R"({"length": )" + std::to_string(l) + R"(, "backward": )" + (train ? "true" : "false") + "}"));
    return c;
  });
}

/// Layers with projections: 64 columns, 2 heads, k experts.
struct Layers {
  static constexpr Index width = 64;
  Random random{1};
  DispatcherAttention<float> dispatcher{width, 2, random}, gradient;
  MultiheadAttention<float> self{width, 2, random}, self_gradient;
  DispatcherBlock<float> block{width, {.heads = 2}, random};
  FrozenDispatcherAttention<float> folded, unfolded;
  FrozenMultiheadAttention<float> served_self;
  FrozenDispatcherBlock<float> served_block;
  DispatcherAttention<float>::Saved saved;
  MultiheadAttention<float>::Saved self_saved;
  Matrix<float> x, experts, y, dy, dx, dexperts;
  Workspace ws, self_ws;
  Layers(Index l, Index k) {
    for (Matrix<float>* m : {&x, &y, &dy, &dx}) *m = random_rows(l, width, random);
    for (Matrix<float>* m : {&experts, &dexperts}) *m = random_rows(k, width, random);
    gradient = make_gradient(dispatcher);
    self_gradient = make_gradient(self);
    dispatcher.form = DispatcherForm::unfolded;
    unfolded = freeze(dispatcher);
    dispatcher.form = DispatcherForm::folded;
    folded = freeze(dispatcher);
    served_self = freeze(self);
    served_block = freeze(block);
  }
  void train(DispatcherForm form) {
    dispatcher.form = form;
    dispatcher.forward(x.view(), experts, {}, y, {}, saved, {}, ws);
    dispatcher.backward(x.view(), experts, {}, dy, {}, saved, dx, dexperts, gradient, ws);
  }
  void train_self() {
    self.forward(x.view(), y, self_saved, {}, self_ws);
    self.backward(x.view(), dy, self_saved, dx, self_gradient, self_ws);
  }
};

void add_layer(Index l, Index k, bool train) {
  const std::string tail = "/f32/D:64/H:2/k:" + std::to_string(k) + "/L:" + std::to_string(l);
  const double flops = 8.0 * 64 * 2 * static_cast<double>(k * l);
  register_case<float>(std::string("attention/dispatcher_attention_layer") + (train ? "_train" : "") + tail, [=] {
    const auto layers = std::make_shared<Layers>(l, k);
    Case<float> c;
    c.flops = (train ? 3.5 : 1) * flops;
    c.working_set = 2.0 * static_cast<double>(l) * 64 * 4;
    if (train) {
      c.kernel = [=] { layers->train(DispatcherForm::folded); };
      c.peers.push_back({"unfolded", [=] { layers->train(DispatcherForm::unfolded); }});
      c.peers.push_back({"self", [=] { layers->train_self(); }});
    } else {
      c.kernel = [=] { layers->folded.forward(layers->x.view(), layers->experts, {}, layers->y, {}, layers->ws); };
      c.peers.push_back(
          {"unfolded", [=] { layers->unfolded.forward(layers->x.view(), layers->experts, {}, layers->y, {}, layers->ws); }});
      if (k == 16)
        c.peers.push_back({"self", [=] { layers->served_self.forward(layers->x.view(), layers->y, layers->self_ws); }});
    }
    return c;
  });
  if (train || k != 16) return;
  register_case<float>("attention/dispatcher_block" + tail, [=] {
    const auto layers = std::make_shared<Layers>(l, k);
    Case<float> c;
    c.flops = flops + 16.0 * 64 * 64 * static_cast<double>(l);
    c.working_set = 2.0 * static_cast<double>(l) * 64 * 4;
    c.kernel = [=] { layers->served_block.forward(layers->x.view(), layers->experts, {}, layers->y, {}, layers->ws); };
    return c;
  });
  register_case<float>("attention/dispatcher_causal" + tail, [=] {
    const auto layers = std::make_shared<Layers>(l, k);
    layers->dispatcher.causal = true;
    layers->self.causal = true;
    layers->served_self = freeze(layers->self);
    Case<float> c;
    c.flops =
        static_cast<double>(l) * (2 * 64 * (64 * 6 + 2.0 * static_cast<double>(k)) + 4.0 * static_cast<double>(k) * 2 * 128);
    c.kernel = [=] { layers->dispatcher.forward(layers->x.view(), layers->experts, {}, layers->y, {}, layers->ws); };
    c.peers.push_back({"self", [=] { layers->served_self.forward(layers->x.view(), layers->y, layers->self_ws); }});
    return c;
  });
}

void add_memory(Index users) {
  register_case<float>("attention/interest_memory/f32/slots:1048576/D:64/k:16/B:" + std::to_string(users), [=] {
    struct State {
      Random random{1};
      FrozenInterestMemory<float> memory;
      Matrix<float> x, y;
      Layers layers{1000, 16};
      Workspace ws;
    };
    const auto s = std::make_shared<State>();
    s->memory =
        freeze(InterestMemory<float>({.sub_keys = 1024, .width = 64, .input = 64, .query = 64, .experts = 16}, s->random));
    s->x = random_rows(users, 64, s->random);
    s->y.resize(16 * users, 64);
    Case<float> c;
    c.flops = static_cast<double>(users) * (2.0 * 64 * 64 + 2.0 * 1024 * 64);
    c.kernel = [=] { s->memory.forward(s->x, s->y, s->ws); };
    if (users == 1)
      c.peers.push_back(
          {"block",
           [=] { s->layers.served_block.forward(s->layers.x.view(), s->layers.experts, {}, s->layers.y, {}, s->layers.ws); }});
    return c;
  });
}

/// The fastest call of a while.
template <class F>
double fastest(F&& f) {
  using Clock = std::chrono::steady_clock;
  double best = 1e9;
  const auto begin = Clock::now();
  for (auto start = begin; start - begin < std::chrono::milliseconds(500);) {
    f();
    const auto now = Clock::now();
    best = std::min(best, std::chrono::duration<double>(now - start).count());
    start = now;
  }
  return best;
}

/// How the layer's time grows, and what it takes in memory beside what self-attention would if it formed its scores.
void print_growth() {
  constexpr int count = 6;
  constexpr Index lengths[count] = {250, 500, 1000, 2000, 4000, 8000};
  double n = 0, sx = 0, sy = 0, sxx = 0, sxy = 0, worst = 0, t[count];  // sums weighed by 1 / length^2: relative errors count
  for (int i = 0; i < count; ++i) {
    Layers layers(lengths[i], 16);
    t[i] = 1e6 * fastest([&] { layers.folded.forward(layers.x.view(), layers.experts, {}, layers.y, {}, layers.ws); });
    const double x = static_cast<double>(lengths[i]), w = 1 / (x * x);
    n += w, sx += w * x, sy += w * t[i], sxx += 1, sxy += w * x * t[i];
    std::printf("layer, k 16, L %td: %.1f us, %.0f ns a token\n", lengths[i], t[i], 1e3 * t[i] / x);
    if (lengths[i] == 1000) {
      const double scores = 2.0 * 1000 * 1000 * 4, extra = static_cast<double>(layers.ws.high_water());
      std::printf("memory at L 1000, k 16: %.0f KB of scratch, %.1f %% of the scores [2, 1000, 1000] of self-attention\n",
                  extra / 1024, 100 * extra / scores);
    }
  }
  const double slope = (n * sxy - sx * sy) / (n * sxx - sx * sx), start = (sy - slope * sx) / n;
  for (int i = 0; i < count; ++i)
    worst = std::max(worst, std::abs(t[i] / (start + slope * static_cast<double>(lengths[i])) - 1));
  std::printf("the line through them: %.1f us + %.1f us per 1000 tokens, off by %.1f %% at most\n", start, 1000 * slope,
              100 * worst);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && std::string(argv[1]) == "--growth") {
    prepare_process(argv);
    print_growth();
    return 0;
  }
  for (const bool train : {false, true}) {
    for (const Index l : {1000, 10000}) add_core(l, train);
    for (const Index l : {1000, 4096}) add_layer(l, 16, train);
  }
  for (const Index k : {8, 32, 64}) add_layer(1000, k, false);
  for (const Index users : {1, 64}) add_memory(users);
  const int result = run_registered(argc, argv);
  if (result == 0 && argc == 1) print_growth();
  return result;
}
