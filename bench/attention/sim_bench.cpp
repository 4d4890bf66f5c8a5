/// SIM's searches over a history of L behaviours, D = 64, and its exact unit over the 100 that are kept.
///
///     taskset -c 1 build/bench/bench/recops_bench_attention_sim
///
/// Cases: `pooled` the training signal U by the cheaper form, `pooled_train` with backward, `kept` U from a kept Gram matrix, `soft` search
/// of the 100 largest products, `hard` of the 100 latest of a category (of 200), `index` building that index, `exact` the frozen exact
/// unit. of_peak: share of the speed of multiply-adds of the direct form (so above 1 where the Gram matrix saves flops). Peers: `eigen` two
/// products by hand; `torch` the same (autograd for training; topk; nn.MultiheadAttention); `scan` hard search by comparing categories.
#include <recops/attention/sim.hpp>

#include <memory>
#include <vector>

#include "support/paired.hpp"

#if __has_include(<Eigen/Core>)
#define WITH_EIGEN
#include <Eigen/Core>
#include <recops/core/eigen.hpp>
#endif

using namespace recops;
using namespace recops_bench;

namespace {

constexpr Index width = 64, keep = 100, kinds = 200;

struct Data {
  Index n, l;
  SoftSearch<float> soft, gradient;
  ExactSearchUnit<float> unit;
  FrozenExactSearchUnit<float> frozen;
  CategoryIndex index;
  Matrix<float> q, e, keys, y, dq, de, grams, r, w;
  Matrix<std::int32_t> indices;
  std::vector<std::int32_t> category, wanted;
  std::vector<std::int64_t> times, now{1 << 24}, offsets, rows;
  Workspace ws;
  Data(Index candidates, Index length)
      : n(candidates),
        l(length),
        q(n, width),
        e(l, width),
        keys(l, width),
        y(n, width),
        dq(n, width, 0.0f),
        de(l, width, 0.0f),
        grams(width, width),
        w(n, width),
        indices(n, keep),
        offsets{0, l},
        rows{0, n} {
    Random random(1);
    soft = SoftSearch<float>(width, width, width, random);
    gradient = make_gradient(soft);
    unit = ExactSearchUnit<float>(width, width, 4, 16, 8, 60, random);
    frozen = freeze(unit);
    for (Index i = 0; i < n * width; ++i) q.data()[i] = static_cast<float>(random.normal());
    for (Index i = 0; i < l * width; ++i) e.data()[i] = static_cast<float>(random.normal());
    for (Index j = 0; j < l; ++j) {
      category.push_back(static_cast<std::int32_t>(random.below(kinds)));
      times.push_back(random.below(1 << 24));
    }
    for (Index i = 0; i < n; ++i) wanted.push_back(static_cast<std::int32_t>(random.below(kinds)));
    soft.project_keys(e, keys, ws);
    soft_search_grams<float>(e, grams, ws);
    soft.search(q, keys, indices, {}, ws);
    index.build(category, offsets, ws);
  }
  void scan() {
    for (Index i = 0; i < n; ++i) {
      Index found = 0;
      for (Index j = l - 1; j >= 0 && found < keep; --j)
        if (category[static_cast<std::size_t>(j)] == wanted[static_cast<std::size_t>(i)])
          indices(i, found++) = static_cast<std::int32_t>(j);
      for (; found < keep; ++found) indices(i, found) = -1;
    }
  }
};

void add(const std::string& what, Index n, Index l) {
  register_case<float>("attention/sim/" + what + "/f32/N:" + std::to_string(n) + "/L:" + std::to_string(l), [=] {
    auto d = std::make_shared<Data>(n, l);
    Case<float> c;
    const double direct = 4.0 * static_cast<double>(n) * static_cast<double>(l) * width;
    const std::string shape = "{\"n\": " + std::to_string(n) + ", \"l\": " + std::to_string(l) + "}";
    if (what == "pooled" || what == "kept") {
      c.flops = direct;
      const bool kept = what == "kept";
      c.kernel = [=](Index) {
        soft_search_pooled<float>(d->q, d->e, d->soft.query.weight, d->soft.key.weight,
                                  kept ? MatrixView<const float>(d->grams) : MatrixView<const float>(), d->y, d->ws);
      };
#ifdef WITH_EIGEN
      d->r.resize(n, l);
      c.peers.push_back({"eigen", [=](Index) {
                           as_eigen(d->w).noalias() =
                               (as_eigen(d->q) * as_eigen(d->soft.query.weight).transpose()) * as_eigen(d->soft.key.weight);
                           as_eigen(d->r).noalias() = as_eigen(d->w) * as_eigen(d->e).transpose();
                           as_eigen(d->y).noalias() = as_eigen(d->r) * as_eigen(d->e);
                         }});
#endif
      c.peers.push_back(python_peer("torch", "sim_pooled", shape));
    } else if (what == "pooled_train") {
      c.flops = 3.5 * direct;
      c.kernel = [=](Index) {
        d->soft.pooled(d->q, d->e, d->y, d->ws);
        d->soft.pooled_backward(d->q, d->e, d->y, d->dq, d->de, d->gradient, d->ws);
      };
      c.peers.push_back(python_peer("torch", "sim_pooled_train", shape));
    } else if (what == "soft") {
      c.flops = direct / 2;
      c.kernel = [=](Index) { d->soft.search(d->q, d->keys, d->indices, {}, d->ws); };
      c.peers.push_back(python_peer("torch", "sim_search", shape));
    } else if (what == "hard") {
      c.elements = static_cast<double>(n);
      c.kernel = [=](Index) { d->index.search(d->wanted, d->rows, d->indices); };
      c.peers.push_back({"scan", [=](Index) { d->scan(); }});
    } else if (what == "index") {
      c.elements = static_cast<double>(l);
      c.kernel = [=](Index) { d->index.build(d->category, d->offsets, d->ws); };
      c.peers.push_back(python_peer("torch", "sim_index", shape));
    } else {
      c.elements = static_cast<double>(n);
      c.kernel = [=](Index) { d->frozen.forward(d->q, d->e, d->times, d->now, d->indices, d->y, d->ws); };
      c.peers.push_back(python_peer("torch", "sim_exact", shape));
    }
    return c;
  });
}

}  // namespace

int main(int argc, char** argv) {
  for (const Index n : {1, 64}) {
    for (const char* what : {"pooled", "pooled_train", "kept", "soft", "hard", "exact"}) add(what, n, 10000);
  }
  add("index", 1, 100000);
  return run_registered(argc, argv);
}
