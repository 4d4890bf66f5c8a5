/// TWIN: the search over one user's keys, scoring with cached keys against projecting them, and TWIN-V2's compression.
///
///     taskset -c 1 build/bench/bench/recops_bench_attention_twin
///
/// `f32` beside int8 and bfloat16 is our own search with float keys. `eigen`: one product a head, then std::nth_element.
/// PyTorch and ONNX Runtime in the fastest of the ways in bench/peers: products of all heads or one by one, then their top-k. `projecting`:
/// the keys projected once for the request with packed weights, then scored in the same way.
#include <recops/attention/projected_key_cache.hpp>
#include <recops/attention/twin_v2.hpp>

#include <memory>
#include <numeric>

#include "support/paired.hpp"
#if defined(RECOPS_BENCH_EIGEN) || __has_include(<Eigen/Core>)
#include <recops/core/eigen.hpp>
#define WITH_EIGEN 1
#endif

using namespace recops;
using namespace recops_bench;

namespace {

constexpr Index width = 64, k = 100;

struct Search {
  Index n, l, heads;
  Matrix<float> q;
  Rotation<float> keys;
  std::vector<QuantizedRows> codes;
  std::vector<Matrix<BFloat16>> rounded;
  Matrix<float> norms, scores;
  Matrix<std::int32_t> indices;
  std::vector<std::int32_t> order;
  Workspace ws;

  Search(Index queries, Index length, Index head_count, bool copies_of_keys)
      : n(queries),
        l(length),
        heads(head_count),
        q(queries, width),
        keys(length * width, copies_for(bytes(length))),
        norms(length, head_count),
        scores(queries, length),
        indices(queries, k),
        order(static_cast<std::size_t>(length)) {
    Random random(1);
    for (Index i = 0; i < n * width; ++i) q.data()[i] = static_cast<float>(random.normal());
    for (Index i = 0; i < l * width; ++i) keys[0][i] = static_cast<float>(random.normal());
    keys.spread();
    if (!copies_of_keys) return;
    for (Index c = 0; c < keys.copies(); ++c) {
      codes.emplace_back().assign(exact(c), width / heads);
      rounded.emplace_back(l, width);
      simd::convert(keys[c], rounded.back().data(), l * width);
    }
    for (Index i = 0; i < l; ++i)
      for (Index a = 0; a < heads; ++a)
        simd::row_norms<float>(exact(0).middle_rows(i, 1).middle_cols(a * width / heads, width / heads),
                               VectorView<float>(norms.row(i) + a, 1));
  }
  static double bytes(Index length) { return static_cast<double>(length) * width * sizeof(float); }
  MatrixView<const float> exact(Index copy) const { return MatrixView<const float>(keys[copy], l, width); }
  void search(Index copy, int format) {
    SearchKeys<float> x{JaggedView<const float>(exact(copy))};
    if (format == 1) x.int8 = codes[static_cast<std::size_t>(copy)];
    if (format == 2) {
      x.bfloat16 = rounded[static_cast<std::size_t>(copy)];
      x.norms = norms;
    }
    twin_search<float>(q.view(), x, {}, {.heads = heads}, indices, ws);
  }
#ifdef WITH_EIGEN
  void eigen(Index copy) {
    const Index d = width / heads;
    auto s = as_eigen(scores), all_q = as_eigen(q);
    auto all_k = as_eigen(exact(copy));
    for (Index a = 0; a < heads; ++a) {
      s.noalias() = all_q.middleCols(a * d, d) * all_k.middleCols(a * d, d).transpose();
      for (Index i = 0; i < n; ++i) {
        std::iota(order.begin(), order.end(), 0);
        const float* const row = scores.row(i);
        std::nth_element(order.begin(), order.begin() + k, order.end(), [row](int x, int y) { return row[x] > row[y]; });
        std::sort(order.begin(), order.begin() + k, [row](int x, int y) { return row[x] > row[y]; });
      }
    }
  }
#endif
};

void add_search(Index heads, Index l, Index n, int format) {
  static constexpr const char* names[] = {"f32", "int8", "bf16"};
  register_case<float>(
      std::string("attention/twin_search/") + names[format] + "/heads:" + std::to_string(heads) + "/L:" + std::to_string(l) +
          "/N:" + std::to_string(n),
      [=] {
        const auto data = std::make_shared<Search>(n, l, heads, format != 0);
        Case<float> c;
        c.copies = data->keys.copies();
        c.working_set = Search::bytes(l);
        if (n > 1) c.flops = 2.0 * static_cast<double>(n) * static_cast<double>(l) * width;
        if (n == 1 && format == 0) {
          c.bytes = Search::bytes(l);
          c.data = [data](Index copy) { return data->keys[copy]; };
        }
        c.kernel = [data, format](Index copy) { data->search(copy, format); };
        if (format != 0) c.peers.push_back({"f32", [data](Index copy) { data->search(copy, 0); }});
        const std::string shape = "{\"n\": " + std::to_string(n) + ", \"l\": " + std::to_string(l) +
                                  ", \"heads\": " + std::to_string(heads) + ", \"k\": " + std::to_string(k) +
                                  ", \"copies\": " + std::to_string(c.copies) + "}";
        if (format == 0) {
          c.peers.push_back(python_peer("torch", "twin_search", shape));
          c.peers.push_back(python_peer("onnxruntime", "twin_search", shape));
        }
#ifdef WITH_EIGEN
        if (format == 0) c.peers.push_back({"eigen", [data](Index copy) { data->eigen(copy); }});
#endif
        return c;
      },
      25);
}

/// Scoring before selection: one user of L behaviours of 200000 items.
struct Scoring {
  static constexpr Index items = 200000, inherent_width = 128;
  Index n, l, heads;
  Matrix<float> q, inherent, scores;
  std::vector<std::int32_t> history;
  FrozenDense<float> projection;
  Matrix<float> keys, projected;
  Workspace ws;
  Scoring(Index queries, Index length, Index head_count)
      : n(queries),
        l(length),
        heads(head_count),
        q(queries, width),
        inherent(length, inherent_width),
        scores(queries * head_count, length),
        keys(items, width),
        projected(length, width) {
    Random random(1);
    const auto fill = [&](Matrix<float>& m) {
      for (float& x : leaf_values(m)) x = static_cast<float>(random.normal());
    };
    fill(q);
    fill(inherent);
    fill(keys);
    projection = freeze(Linear<float>(inherent_width, width, random, false));
    for (Index i = 0; i < l; ++i) history.push_back(static_cast<std::int32_t>(random.below(items)));
  }
  void cached() {
    SearchKeys<float> x{JaggedView<const float>(keys.view())};
    x.rows = history;
    twin_scores<float>(q, x, {}, {.heads = heads}, scores, ws);
  }
  void projecting() {
    projection.forward(inherent, projected, ws);
    twin_scores<float>(q, SearchKeys<float>{JaggedView<const float>(projected.view())}, {}, {.heads = heads}, scores, ws);
  }
};

void add_scoring(Index heads, Index n) {
  register_case<float>(
      "attention/twin_scores_cached/f32/heads:" + std::to_string(heads) + "/L:10000/N:" + std::to_string(n),
      [=] {
        const auto data = std::make_shared<Scoring>(n, 10000, heads);
        Case<float> c;
        c.flops = 2.0 * static_cast<double>(n) * 10000 * width;
        c.working_set = 10000.0 * width * sizeof(float);
        c.kernel = [data] { data->cached(); };
        c.peers.push_back({"projecting", [data] { data->projecting(); }});
        return c;
      },
      50);
}

void add_clusters(Index l, Index bumps) {
  register_case<float>(
      "attention/cluster_behaviours/f32/d:64/L:" + std::to_string(l) + "/interests:" + std::to_string(bumps),
      [=] {
        struct Data {
          Matrix<float> x;
          Vector<float> ratio;
          BehaviourClusters clusters;
          Workspace ws;
        };
        const auto data = std::make_shared<Data>();
        data->x.resize(l, width);
        data->ratio.resize(l);
        Random random(1);
        std::vector<float> centers;
        for (Index i = 0; i < bumps * width; ++i) centers.push_back(static_cast<float>(random.normal()));
        for (Index i = 0; i < l; ++i) {
          const Index b = bumps > 0 ? random.below(bumps) : 0;
          for (Index d = 0; d < width; ++d)
            data->x(i, d) = static_cast<float>(random.uniform(-0.5, 0.5)) +
                            (bumps > 0 ? centers[static_cast<std::size_t>(b * width + d)] : 0.0f);
          data->ratio[i] = static_cast<float>(random.uniform());
        }
        cluster_behaviours<float>(data->x, data->ratio, {}, data->clusters, data->ws);
        std::fprintf(stderr, "L %td: %td clusters, %.1f behaviours each\n", l, data->clusters.size(),
                     static_cast<double>(l) / static_cast<double>(data->clusters.size()));
        Case<float> c;
        c.elements = static_cast<double>(l);
        c.working_set = static_cast<double>(l) * width * sizeof(float);
        c.kernel = [data] { cluster_behaviours<float>(data->x, data->ratio, {}, data->clusters, data->ws); };
        return c;
      },
      5);
}

}  // namespace

int main(int argc, char** argv) {
  for (const Index heads : {1, 4}) {
    for (const int format : {0, 1, 2}) add_search(heads, 100000, 1, format);
    for (const int format : {0, 1}) add_search(heads, 10000, 1, format);
    add_search(heads, 10000, 100, 0);
    for (const Index n : {1, 100}) add_scoring(heads, n);
  }
  for (const Index bumps : {0, 200}) {
    add_clusters(100000, bumps);
    add_clusters(1000000, bumps);
  }
  return recops_bench::run_registered(argc, argv);
}
