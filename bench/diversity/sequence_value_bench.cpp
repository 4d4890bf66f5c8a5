/// What lists are worth, slot by slot, and plans for a swipe feed.
///
///     taskset -c 1 build/bench/bench/recops_bench_diversity_sequence_value
///
/// Cases: `value` and `gradient` of many lists of 10 slots; `plan` is the exact context-free plan of 10 of n items; `lookahead` the whole
/// dual-stage planner with a beam of 8 and 40 candidates and a predictor that only copies. of_bandwidth compares with reading rewards and
/// continuations once (gradient: with reading and writing both). Peer: `torch`, slot by slot over all lists at once, slots major.
#include <recops/core/random.hpp>
#include <recops/diversity/lookahead.hpp>

#include "support/paired.hpp"

using namespace recops;
using namespace recops_bench;

namespace {

constexpr Index slots = 10;

struct Lists {
  Matrix<float> r, c, dr, dc;
  Vector<float> v, dv;
  Workspace ws{};
  explicit Lists(Index n) : r(n, slots), c(n, slots), dr(n, slots, 0), dc(n, slots, 0), v(n), dv(n, 1) {
    Random random(1);
    for (Index i = 0; i < n * slots; ++i) {
      r.data()[i] = static_cast<float>(random.uniform(0, 0.2));
      c.data()[i] = static_cast<float>(random.uniform(0.3, 0.95));
    }
  }
};

void add_lists(Index n, bool gradient) {
  register_case<float>(
      std::string("diversity/sequence_value/") + (gradient ? "gradient" : "value") + "/f32/lists:" + std::to_string(n), [=] {
        const auto data = std::make_shared<Lists>(n);
        Case<float> c;
        if (gradient) {
          c.kernel = [data] { sequence_value_backward<float>(data->r, data->c, {}, data->dv, data->dr, data->dc, {}, data->ws); };
        } else {
          c.kernel = [data] { sequence_value<float>(data->r, data->c, {}, data->v); };
        }
        c.bytes = static_cast<double>(n * slots) * sizeof(float) * (gradient ? 6 : 2);
        c.elements = static_cast<double>(n);
        const std::string arguments =
            R"({"lists": )" + std::to_string(n) + R"(, "slots": 10, "train": )" + (gradient ? "true}" : "false}");
        for (const char* torch : {"torch", "torch_new"}) c.peers.push_back(python_peer(torch, "sequence_value", arguments));
        return c;
      });
}

void add_plan(Index n, bool whole) {
  register_case<float>(
      std::string("diversity/sequence_value/") + (whole ? "lookahead" : "plan") + "/f32/n:" + std::to_string(n) + "/m:10", [=] {
        const auto data = std::make_shared<Lists>(n);
        const auto picks = std::make_shared<Vector<std::int32_t>>(slots);
        const auto r = std::make_shared<Vector<float>>(n), k = std::make_shared<Vector<float>>(n);
        for (Index i = 0; i < n; ++i) {
          (*r)[i] = data->r(i, 0);
          (*k)[i] = data->c(i, 0);
        }
        Case<float> c;
        c.elements = static_cast<double>(n);
        c.kernel = [=] {
          if (!whole) {
            plan_sequence<float>(*r, *k, 0, *picks, {}, data->ws);
            return;
          }
          const auto copy = [&](const LookaheadQuery& q, VectorView<float> rewards, VectorView<float> goes_on) {
            for (Index j = 0; j < q.items.size(); ++j) {
              rewards[j] = (*r)[q.items[j]];
              goes_on[j] = (*k)[q.items[j]];
            }
          };
          lookahead<float>(*r, *k, {}, copy, *picks, data->ws);
        };
        return c;
      });
}

}  // namespace

int main(int argc, char** argv) {
  for (const bool gradient : {false, true}) add_lists(4096, gradient);
  for (const bool whole : {false, true})
    for (const Index n : {100, 1000}) add_plan(n, whole);
  return recops_bench::run_registered(argc, argv);
}
