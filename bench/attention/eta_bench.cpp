/// ETA's search: N candidates against L signatures of 64 bits, and the whole operator with attention to the 100 nearest.
///
///     taskset -c 1 build/bench/bench/recops_bench_attention_eta
///
/// Cases: `distances` writes all of them, `search` the 100 nearest, `eta` attends to these as well (D = 64, 4 heads), `hash` makes the
/// signatures. ns_each is per distance (per row for `hash`), of_peak the share of the speed of multiply-adds where there are any.
/// Peers: `popcount` the loop over words that a compiler makes of std::popcount, with nth_element for the search; `eigen` products of
/// vectors of signs; `torch` the same in PyTorch with its topk; for `eta` full target attention in PyTorch.
#include <recops/attention/eta.hpp>

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

constexpr Index width = 64, keep = 100, heads = 4;

struct Data {
  Index n, l;
  Matrix<float> q, e, planes, out, sign_q, sign_e, products;
  Matrix<std::uint64_t> bits_q, bits_e;
  Matrix<std::uint8_t> distances;
  Matrix<std::int32_t> indices;
  std::vector<std::int32_t> order;
  Workspace ws;
  Data(Index candidates, Index length)
      : n(candidates),
        l(length),
        q(n, width),
        e(l, width),
        out(n, width),
        sign_q(n, width),
        sign_e(l, width),
        bits_q(n, 1),
        bits_e(l, 1),
        indices(n, keep) {
    Random random(1);
    planes = random_planes<float>(64, width, random);
    for (Index i = 0; i < n * width; ++i) q.data()[i] = static_cast<float>(random.normal());
    for (Index i = 0; i < l * width; ++i) e.data()[i] = static_cast<float>(random.normal());
    simhash<float>(q, planes, bits_q, ws);
    simhash<float>(e, planes, bits_e, ws);
    const auto signs = [](const Matrix<std::uint64_t>& bits, Matrix<float>& to) {
      for (Index i = 0; i < to.rows(); ++i)
        for (Index t = 0; t < width; ++t) to(i, t) = (bits(i, 0) >> t) & 1 ? 1.0f : -1.0f;
    };
    signs(bits_q, sign_q);
    signs(bits_e, sign_e);
  }
  void popcount() {
    for (Index i = 0; i < n; ++i) {
      const std::uint64_t x = bits_q(i, 0), *const rows = bits_e.data();
      std::uint8_t* const to = distances.row(i);
      for (Index j = 0; j < l; ++j) to[j] = static_cast<std::uint8_t>(std::popcount(rows[j] ^ x));
    }
  }
  void popcount_search() {
    popcount();
    order.resize(static_cast<std::size_t>(l));
    for (Index i = 0; i < n; ++i) {
      const std::uint8_t* const d = distances.row(i);
      for (Index j = 0; j < l; ++j) order[static_cast<std::size_t>(j)] = static_cast<std::int32_t>(j);
      const auto nearer = [d](std::int32_t a, std::int32_t b) { return d[a] != d[b] ? d[a] < d[b] : a < b; };
      std::nth_element(order.begin(), order.begin() + keep, order.end(), nearer);
      std::sort(order.begin(), order.begin() + keep, nearer);
      std::copy_n(order.begin(), keep, indices.row(i));
    }
  }
};

void add(const std::string& what, Index n, Index l) {
  register_case<float>("attention/eta/" + what + "/N:" + std::to_string(n) + "/L:" + std::to_string(l), [=] {
    auto d = std::make_shared<Data>(n, l);
    Case<float> c;
    const double pairs = static_cast<double>(n) * static_cast<double>(l);
    const std::string shape = "{\"n\": " + std::to_string(n) + ", \"l\": " + std::to_string(l) + "}";
    c.elements = pairs;
    c.working_set = static_cast<double>(l) * 8;
    if (what == "distances" || what == "search") d->distances.resize(n, l);
    if (what == "distances") {
      c.kernel = [=](Index) { simd::hamming_distances(d->bits_q, d->bits_e, d->distances, d->ws); };
      c.peers.push_back({"popcount", [=](Index) { d->popcount(); }});
#ifdef WITH_EIGEN
      d->products.resize(n, l);
      c.peers.push_back(
          {"eigen", [=](Index) { as_eigen(d->products).noalias() = as_eigen(d->sign_q) * as_eigen(d->sign_e).transpose(); }});
#endif
    } else if (what == "search") {
      c.kernel = [=](Index) { simd::hamming_top_k(d->bits_q, d->bits_e, d->indices, {}, d->ws); };
      c.peers.push_back({"popcount", [=](Index) { d->popcount_search(); }});
      c.peers.push_back(python_peer("torch", "sign_search", shape));
    } else if (what == "eta") {
      c.kernel = [=](Index) {
        eta<float>(d->q, d->e, d->e, d->bits_q, d->bits_e, {.heads = heads}, d->indices, d->out, {}, d->ws);
      };
      c.peers.push_back(python_peer("torch", "eta_full", shape));
    } else {
      c.elements = static_cast<double>(l);
      c.flops = 2.0 * static_cast<double>(l) * width * 64;
      c.kernel = [=](Index) { simhash<float>(d->e, d->planes, d->bits_e, d->ws); };
      c.peers.push_back(python_peer("torch", "eta_hash", shape));
    }
    return c;
  });
}

}  // namespace

int main(int argc, char** argv) {
  for (const Index n : {1, 64}) {
    for (const Index l : {1000, 100000}) {
      add("distances", n, l);
      add("search", n, l);
    }
    add("eta", n, 100000);
  }
  add("hash", 1, 10000);
  return run_registered(argc, argv);
}
