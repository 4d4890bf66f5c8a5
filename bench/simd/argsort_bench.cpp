/// Argsort, segmented argsort and mid-ranks on fresh data: many arrays take turns, or the branch predictors of a comparison sort
/// learn the only one by heart. `set:` names a narrower instruction set.
#include <algorithm>
#include <recops/core/random.hpp>
#include <recops/simd/midrank.hpp>
#include <utility>

#include "peers/vqsort.hpp"
#include "support/paired.hpp"

using namespace recops;
using namespace recops_bench;

namespace {

/// Arrays for 64 MB, 512 MB where each is large, but not so many small ones that fetching them is what is measured.
Index arrays_of(Index n, std::size_t size) {
  const double bytes = static_cast<double>(n) * static_cast<double>(size);
  return n <= 1000 ? 1000 : std::max(copies_for(bytes), copies_over(bytes, 64e6));
}

template <class T>
std::shared_ptr<Rotation<T>> normal_arrays(Index n, Index copies) {
  auto x = std::make_shared<Rotation<T>>(n, copies);
  Random random(1);
  for (Index c = 0; c < copies; ++c)
    for (Index i = 0; i < n; ++i) (*x)[c][i] = static_cast<T>(random.normal());
  return x;
}

template <class T>
Case<T> case_of(Index n, Index copies) {
  Case<T> c;
  c.copies = copies;
  c.elements = static_cast<double>(n);
  c.working_set = static_cast<double>(n) * sizeof(T);
  return c;
}

std::string python_arguments(Index n, const char* type, Index copies) {
  return R"({"n": )" + std::to_string(n) + R"(, "type": ")" + type + R"(", "copies": )" +
         std::to_string(std::min(copies, Index{64})) + "}";
}

template <class T, class A>
void add_argsort(Index n, const std::string& set = "") {
  const std::string type = type_name<T>();
  register_case<T>("simd/argsort/" + type + "/n:" + std::to_string(n) + set, [=] {
    const Index copies = arrays_of(n, sizeof(T));
    const auto x = normal_arrays<T>(n, copies);
    Case<T> c = case_of<T>(n, copies);
    c.template use<A>();
    const auto order = std::make_shared<Vector<std::int32_t>>(n);
    const auto ws = std::make_shared<Workspace>();
    c.kernel = [=](Index copy) { simd::argsort<T, A>((*x)[copy], n, Order::ascending, order->data(), *ws); };
    if (!set.empty()) return c;
    const auto pairs = std::make_shared<Vector<std::pair<T, std::uint32_t>>>(n);
    c.peers.push_back({"std_sort", [=](Index copy) {
                         const T* const from = (*x)[copy];
                         auto* const p = pairs->data();
                         for (Index i = 0; i < n; ++i) p[i] = {from[i], static_cast<std::uint32_t>(i)};
                         std::sort(p, p + n);
                         benchmark::DoNotOptimize(p);
                       }});
    if constexpr (std::is_same_v<T, float>) c.peers.push_back(vqsort_argsort([x](Index copy) { return (*x)[copy]; }, n));
    c.peers.push_back(python_peer("numpy", "argsort", python_arguments(n, type.c_str(), copies)));
    c.peers.push_back(python_peer("torch", "argsort", python_arguments(n, type.c_str(), copies)));
    return c;
  });
}

// Lists of 10 to 200, sorted alone: what a batch of ranked requests is.
template <class T>
void add_segments(Index segments) {
  register_case<T>("simd/argsort_segments/" + std::string(type_name<T>()) + "/segments:" + std::to_string(segments), [=] {
    const auto offsets = std::make_shared<std::vector<std::int32_t>>(1, 0);
    Random random(2);
    for (Index s = 0; s < segments; ++s) offsets->push_back(offsets->back() + 10 + static_cast<std::int32_t>(random.below(191)));
    const Index n = offsets->back(), copies = arrays_of(n, sizeof(T));
    const auto x = normal_arrays<T>(n, copies);
    Case<T> c = case_of<T>(n, copies);
    const auto order = std::make_shared<Vector<std::int32_t>>(n);
    const auto ws = std::make_shared<Workspace>();
    c.kernel = [=](Index copy) { simd::argsort_segments<T>((*x)[copy], *offsets, Order::descending, order->data(), *ws); };
    const auto pairs = std::make_shared<Vector<std::pair<T, std::uint32_t>>>(n);
    c.peers.push_back({"std_sort", [=](Index copy) {
                         const T* const from = (*x)[copy];
                         auto* const p = pairs->data();
                         for (Index i = 0; i < n; ++i) p[i] = {-from[i], static_cast<std::uint32_t>(i)};
                         for (std::size_t s = 0; s + 1 < offsets->size(); ++s)
                           std::sort(p + (*offsets)[s], p + (*offsets)[s + 1]);
                         benchmark::DoNotOptimize(p);
                       }});
    return c;
  });
}

template <class T>
void add_midrank(Index n) {
  register_case<T>("simd/midrank/" + std::string(type_name<T>()) + "/n:" + std::to_string(n), [=] {
    const Index copies = arrays_of(n, sizeof(T));
    const auto x = normal_arrays<T>(n, copies);
    Case<T> c = case_of<T>(n, copies);
    const auto ranks = std::make_shared<Vector<T>>(n);
    const auto ws = std::make_shared<Workspace>();
    c.kernel = [=](Index copy) {
      benchmark::DoNotOptimize(simd::midrank<T>((*x)[copy], n, Order::ascending, ranks->data(), nullptr, *ws));
    };
    const auto pairs = std::make_shared<Vector<std::pair<T, std::uint32_t>>>(n);
    const auto theirs = std::make_shared<Vector<T>>(n);
    c.peers.push_back({"std_sort", [=](Index copy) {
                         const T* const from = (*x)[copy];
                         auto* const p = pairs->data();
                         for (Index i = 0; i < n; ++i) p[i] = {from[i], static_cast<std::uint32_t>(i)};
                         std::sort(p, p + n);
                         for (Index begin = 0, end = 0; begin < n; begin = end) {
                           while (end < n && p[end].first == p[begin].first) ++end;
                           for (Index i = begin; i < end; ++i)
                             (*theirs)[p[i].second] = static_cast<T>(0.5 * static_cast<double>(begin + 1 + end));
                         }
                         benchmark::DoNotOptimize(theirs->data());
                       }});
    c.peers.push_back(python_peer("scipy", "rank", python_arguments(n, type_name<T>(), copies)));
    return c;
  });
}

}  // namespace

int main(int argc, char** argv) {
  for (const Index n : {100, 1000, 10000, 100000, 1000000}) {
    add_argsort<float, simd::DefaultArch>(n);
    add_argsort<double, simd::DefaultArch>(n);
#if defined(__AVX512F__) && defined(__FMA__)
    add_argsort<float, xsimd::fma3<xsimd::avx2>>(n, "/set:avx2");
    add_argsort<float, xsimd::sse2>(n, "/set:sse2");
#endif
  }
  add_segments<float>(1000);
  add_segments<double>(1000);
  for (const Index n : {1000, 100000}) {
    add_midrank<float>(n);
    add_midrank<double>(n);
  }
  return run_registered(argc, argv);
}
