/// Rounding of generated vectors to the 100 nearest of many items, D = 64, B requests at once, 20 items seen by each.
///
///     taskset -c 1 build/bench/bench/recops_bench_diffusion_round_to_items
///
/// of_bandwidth: share of the speed of reading what the method reads (the items, or their copy with its scales or norms) once. `int8` and
/// `bf16` give the very lists of `f32`. Peers: `own_f32` ours without a copy; `eigen` matrix-vector product (B > 1: matrix product), then
/// std::partial_sort of the places; `torch` mv (mm) into a preallocated tensor, then topk; neither leaves out what was seen.
#include <recops/core/random.hpp>
#include <recops/diffusion/round_to_items.hpp>

#include <algorithm>
#include <numeric>

#include "support/paired.hpp"
#if defined(RECOPS_BENCH_EIGEN) || __has_include(<Eigen/Core>)
#include <recops/core/eigen.hpp>
#define WITH_EIGEN 1
#endif

using namespace recops;
using namespace recops_bench;

namespace {

constexpr Index cols = 64, k = 100;

/// The items that all cases of one size share: what they read must come from memory by its size alone, so a single copy will do. In
/// huge pages, like the stream that they are held against; the tables with copies are not.
struct Items {
  Rotation<float> numbers;
  MatrixView<const float> rows;
  std::unique_ptr<ItemTable<float>> int8, bf16;
  explicit Items(Index n) : numbers(n * cols), rows(numbers[0], n, cols) {
    Random random(1);
    for (Index i = 0; i < n * cols; ++i) numbers[0][i] = static_cast<float>(random.normal());
  }
  const ItemTable<float>& table(ItemCopy copy) {
    auto& t = copy == ItemCopy::int8 ? int8 : bf16;
    if (!t) t = std::make_unique<ItemTable<float>>(rows, ItemTableOptions{.copy = copy});
    return *t;
  }
};

struct Requests {
  std::shared_ptr<Items> items;
  Matrix<float> x;
  std::vector<std::int32_t> seen;
  std::vector<std::int64_t> offsets{0};
  Matrix<std::int32_t> lists;
  Matrix<float> scores;
  Workspace ws;
  Index rescored = 0;

  Requests(std::shared_ptr<Items> i, Index b) : items(std::move(i)), x(b, cols), lists(b, k), scores(b, k) {
    Random random(2);
    for (Index j = 0; j < b * cols; ++j) x.data()[j] = static_cast<float>(random.normal());
    for (Index r = 0; r < b; ++r) {
      for (int s = 0; s < 20; ++s) seen.push_back(static_cast<std::int32_t>(random.below(items->rows.rows())));
      offsets.push_back(static_cast<std::int64_t>(seen.size()));
    }
  }
  void run(ItemCopy copy) {
    const RoundToItemsOptions o{.seen = seen, .seen_offsets = offsets};
    rescored = copy == ItemCopy::none ? round_to_items<float>(x, items->rows, o, lists, scores, ws)
                                      : round_to_items<float>(x, items->table(copy), o, lists, scores, ws);
  }
#ifdef WITH_EIGEN
  Matrix<float> all;
  std::vector<std::int32_t> order;
  void eigen() {
    const Index n = items->rows.rows(), b = x.rows();
    all.resize(b, n);
    order.resize(static_cast<std::size_t>(n));
    if (b == 1) {
      Eigen::Map<Eigen::VectorXf>(all.data(), n).noalias() = as_eigen(items->rows) * Eigen::Map<Eigen::VectorXf>(x.data(), cols);
    } else {
      as_eigen(all).noalias() = as_eigen(x) * as_eigen(items->rows).transpose();
    }
    for (Index r = 0; r < b; ++r) {
      const float* const s = all.row(r);
      std::iota(order.begin(), order.end(), 0);
      std::partial_sort(order.begin(), order.begin() + k, order.end(),
                        [s](std::int32_t p, std::int32_t q) { return s[p] > s[q]; });
      std::copy_n(order.begin(), k, lists.row(r));
    }
  }
#endif
};

void add(ItemCopy copy, Index n, Index b) {
  const char* const type = copy == ItemCopy::none ? "f32" : copy == ItemCopy::int8 ? "int8" : "bf16";
  const std::string shape = "/N:" + std::to_string(n) + "/D:" + std::to_string(cols) + "/B:" + std::to_string(b);
  register_case<float>(std::string("diffusion/round_to_items/") + type + shape, [=] {
    static std::shared_ptr<Items> items;
    if (!items || items->rows.rows() != n) items = std::make_shared<Items>(n);
    auto r = std::make_shared<Requests>(items, b);
    Case<float> c;
    const double numbers = static_cast<double>(n * cols), rows = static_cast<double>(n);
    c.bytes = copy == ItemCopy::none ? 4 * numbers : copy == ItemCopy::int8 ? numbers + 4 * rows : 2 * numbers + 4 * rows;
    c.flops = 2 * numbers * static_cast<double>(b);
    c.kernel = [=](Index) { r->run(copy); };
    r->run(ItemCopy::none);
    const Matrix<std::int32_t> want = r->lists;
    r->run(copy);
    const bool same = std::equal(want.data(), want.data() + b * k, r->lists.data());
    std::fprintf(stderr, "%s%s: %s lists as f32, %td rows scored in float\n", type, shape.c_str(), same ? "the same" : "OTHER",
                 r->rescored);
    if (copy == ItemCopy::none) c.data = [=](Index) { return r->items->numbers[0]; };
    if (copy != ItemCopy::none) {
      c.peers.push_back({"own_f32", [=](Index) { r->run(ItemCopy::none); }});
      return c;
    }
#ifdef WITH_EIGEN
    c.peers.push_back({"eigen", [=](Index) { r->eigen(); }});
#endif
    c.peers.push_back(python_peer("torch", b == 1 ? "scan_topk" : "scan_topk_batch",
                                  "{\"n\": " + std::to_string(n) + ", \"d\": " + std::to_string(cols) +
                                      ", \"k\": " + std::to_string(k) + (b == 1 ? "" : ", \"b\": " + std::to_string(b)) + "}"));
    return c;
  });
}

}  // namespace

int main(int argc, char** argv) {
  for (const Index n : {100000, 1000000})
    for (const ItemCopy copy : {ItemCopy::none, ItemCopy::int8, ItemCopy::bfloat16})
      for (const Index b : {1, 64})
        if (n == 1000000 ? b == 1 : b == 64 || copy == ItemCopy::none) add(copy, n, b);
  return run_registered(argc, argv);
}
