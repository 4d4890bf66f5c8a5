/// SDIM with 16 groups of 3 bits, D = 64: what a candidate costs, and what building a user's table costs.
///
///     taskset -c 1 build/bench/bench/recops_bench_attention_sdim
///
/// Cases: `lookup` codes and interests of N candidates in the tables of a history of L; `build` codes and tables of a history.
/// of_peak: share of the speed of multiply-adds; ns_each is per candidate or behaviour. Peers: `eigen` the same steps written with
/// Eigen; `torch` the same in PyTorch (codes by a product, tables by index_add, lookups by indexing); `scan` PyTorch without tables:
/// every behaviour compared with every candidate.
#include <recops/attention/sdim.hpp>

#include <memory>

#include "support/paired.hpp"

#if __has_include(<Eigen/Core>)
#define WITH_EIGEN
#include <Eigen/Core>
#include <recops/core/eigen.hpp>
#endif

using namespace recops;
using namespace recops_bench;

namespace {

constexpr Index width = 64;

struct Data {
  Sdim<float> layer;
  Matrix<float> q, e, tables, out, products;
  Matrix<std::uint16_t> codes;
  Workspace ws;
  Data(Index n, Index l) : q(n, width), e(l, width), out(n, width), products(std::max(n, l), 48), codes(std::max(n, l), 16) {
    Random random(1);
    layer = Sdim<float>(width, {}, random);
    for (Index i = 0; i < n * width; ++i) q.data()[i] = static_cast<float>(random.normal());
    for (Index i = 0; i < l * width; ++i) e.data()[i] = static_cast<float>(random.normal());
    tables.resize(layer.buckets(), width);
    layer.build(e, tables, ws);
  }
#ifdef WITH_EIGEN
  void eigen_codes(const Matrix<float>& x) {
    auto p = as_eigen(products).topRows(x.rows());
    p.noalias() = as_eigen(x) * as_eigen(layer.planes);
    for (Index i = 0; i < x.rows(); ++i)
      for (Index t = 0; t < 16; ++t)
        codes(i, t) = static_cast<std::uint16_t>((p(i, 3 * t) >= 0) + 2 * (p(i, 3 * t + 1) >= 0) + 4 * (p(i, 3 * t + 2) >= 0));
  }
  void eigen_lookup() {
    eigen_codes(q);
    auto y = as_eigen(out);
    const auto table = as_eigen(tables);
    for (Index i = 0; i < q.rows(); ++i) {
      y.row(i) = table.row(codes(i, 0));
      for (Index t = 1; t < 16; ++t) y.row(i) += table.row(8 * t + codes(i, t));
      y.row(i) *= 1.0f / 16;
    }
  }
  void eigen_build() {
    eigen_codes(e);
    auto table = as_eigen(tables);
    const auto rows = as_eigen(e);
    table.setZero();
    for (Index j = 0; j < e.rows(); ++j)
      for (Index t = 0; t < 16; ++t) table.row(8 * t + codes(j, t)) += rows.row(j);
    table.rowwise().normalize();
  }
#endif
};

void add(const std::string& what, Index n, Index l) {
  register_case<float>("attention/sdim/" + what + "/f32/N:" + std::to_string(n) + "/L:" + std::to_string(l), [=] {
    auto d = std::make_shared<Data>(n, l);
    Case<float> c;
    const bool build = what == "build";
    const double rows = static_cast<double>(build ? l : n);
    c.elements = rows;
    c.flops = rows * width * (2 * 48 + 16);
    const std::string shape = "{\"n\": " + std::to_string(n) + ", \"l\": " + std::to_string(l) + "}";
    if (build) {
      c.kernel = [=](Index) { d->layer.build(d->e, d->tables, d->ws); };
    } else {
      c.kernel = [=](Index) { d->layer.lookup(d->q, d->tables, d->out, d->ws); };
    }
#ifdef WITH_EIGEN
    c.peers.push_back({"eigen", [=](Index) { build ? d->eigen_build() : d->eigen_lookup(); }});
#endif
    c.peers.push_back(python_peer("torch", build ? "sdim_build" : "sdim_lookup", shape));
    if (!build && l == 1000) {
      auto scan = python_peer("torch", "sdim_scan", shape);
      scan.name = "scan";
      c.peers.push_back(scan);
    }
    return c;
  });
}

}  // namespace

int main(int argc, char** argv) {
  for (const Index n : {1, 64, 512})
    for (const Index l : {1000, 100000}) add("lookup", n, l);
  for (const Index l : {1000, 100000}) add("build", 1, l);
  return run_registered(argc, argv);
}
