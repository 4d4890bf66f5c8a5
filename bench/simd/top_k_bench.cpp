/// Top-k of fresh scores against reading them: arrays rotate over 64 MB (longer ones over 512 MB), so `of_bandwidth` compares
/// with a read stream over the same memory. `order:rising` is the worst case, in which every score beats all before it.
#include <algorithm>
#include <recops/core/random.hpp>
#include <recops/simd/top_k.hpp>
#include <utility>

#include "support/paired.hpp"

using namespace recops;
using namespace recops_bench;

namespace {

enum class Scores { normal, rising };

template <class T>
Case<T> case_of(Index n, Scores scores, std::shared_ptr<Rotation<T>>& x) {
  Case<T> c;
  c.bytes = static_cast<double>(n) * sizeof(T);
  c.elements = static_cast<double>(n);
  c.copies = c.bytes > 4 * l2_bytes() ? copies_over(c.bytes, dram_rotation_bytes) : copies_over(c.bytes, 64e6);
  x = std::make_shared<Rotation<T>>(n, c.copies);
  Random random(1);
  for (Index copy = 0; copy < c.copies; ++copy) {
    for (Index i = 0; i < n; ++i) (*x)[copy][i] = static_cast<T>(random.normal());
    if (scores == Scores::rising) std::sort((*x)[copy], (*x)[copy] + n);
  }
  c.data = [x = x](Index copy) { return (*x)[copy]; };
  return c;
}

/// The k largest in order with the standard library, on (score, index).
template <class T, bool Nth>
Peer standard(std::shared_ptr<Rotation<T>> x, Index n, Index k) {
  using Pair = std::pair<T, std::uint32_t>;
  const auto pairs = std::make_shared<Vector<Pair>>(n);
  return {Nth ? "nth_element" : "partial_sort", [=](Index copy) {
            const T* const from = (*x)[copy];
            Pair* const p = pairs->data();
            for (Index i = 0; i < n; ++i) p[i] = {from[i], static_cast<std::uint32_t>(i)};
            const auto better = [](const Pair& a, const Pair& b) {
              return a.first > b.first || (a.first == b.first && a.second < b.second);
            };
            if constexpr (Nth) {
              std::nth_element(p, p + k - 1, p + n, better);
              std::sort(p, p + k, better);
            } else {
              std::partial_sort(p, p + k, p + n, better);
            }
            benchmark::DoNotOptimize(p);
          }};
}

std::string python_arguments(Index n, Index k, const char* type, Index copies) {
  return R"({"n": )" + std::to_string(n) + R"(, "k": )" + std::to_string(k) + R"(, "type": ")" + type + R"(", "copies": )" +
         std::to_string(copies) + "}";
}

template <class T, class A>
void add_top_k(Index n, Index k, Scores scores = Scores::normal, const std::string& set = "") {
  const std::string type = type_name<T>();
  register_case<T>("simd/top_k/" + type + "/n:" + std::to_string(n) + "/k:" + std::to_string(k) +
                       (scores == Scores::rising ? "/order:rising" : "") + set,
                   [=] {
                     std::shared_ptr<Rotation<T>> x;
                     Case<T> c = case_of<T>(n, scores, x);
                     c.template use<A>();
                     const auto top = std::make_shared<Vector<T>>(k);
                     const auto indices = std::make_shared<Vector<std::int32_t>>(k);
                     const auto ws = std::make_shared<Workspace>();
                     c.kernel = [=](Index copy) {
                       simd::top_k<T, A>((*x)[copy], n, k, Order::descending, top->data(), indices->data(), *ws);
                     };
                     if (!set.empty()) return c;
                     c.peers.push_back(standard<T, true>(x, n, k));
                     c.peers.push_back(standard<T, false>(x, n, k));
                     if (scores == Scores::normal) {
                       c.peers.push_back(python_peer("torch", "topk", python_arguments(n, k, type.c_str(), c.copies)));
                       c.peers.push_back(python_peer("numpy", "argpartition", python_arguments(n, k, type.c_str(), c.copies)));
                     }
                     return c;
                   });
}

// The streaming form: blocks as they come out of a blocked product.
template <class T>
void add_blocks(Index n, Index k, Index block) {
  register_case<T>("simd/top_k_blocks/" + std::string(type_name<T>()) + "/n:" + std::to_string(n) + "/k:" + std::to_string(k) +
                       "/block:" + std::to_string(block),
                   [=] {
                     std::shared_ptr<Rotation<T>> x;
                     Case<T> c = case_of<T>(n, Scores::normal, x);
                     const auto top = std::make_shared<Vector<T>>(k);
                     const auto indices = std::make_shared<Vector<std::int32_t>>(k);
                     const auto ws = std::make_shared<Workspace>();
                     c.kernel = [=](Index copy) {
                       const auto mark = ws->mark();
                       simd::TopK<T> best(k, Order::descending, *ws);
                       for (Index i = 0; i < n; i += block) best.add((*x)[copy] + i, std::min(block, n - i), i);
                       best.finish(top->data(), indices->data());
                     };
                     return c;
                   });
}

}  // namespace

int main(int argc, char** argv) {
  using A = simd::DefaultArch;
  add_top_k<float, A>(1000, 10);
  add_top_k<float, A>(10000, 100);
  for (const Index k : {10, 100, 1000}) add_top_k<float, A>(100000, k);
  add_top_k<double, A>(100000, 100);
  add_top_k<float, A>(10000000, 100);
  add_top_k<float, A>(100000, 100, Scores::rising);
#if defined(__AVX512F__) && defined(__FMA__)
  add_top_k<float, xsimd::fma3<xsimd::avx2>>(100000, 100, Scores::normal, "/set:avx2");
  add_top_k<float, xsimd::sse2>(100000, 100, Scores::normal, "/set:sse2");
  add_top_k<float, xsimd::fma3<xsimd::avx2>>(100000, 100, Scores::rising, "/set:avx2");
#endif
  add_blocks<float>(100000, 100, 1024);
  return run_registered(argc, argv);
}
