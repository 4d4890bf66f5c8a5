/// Reductions of arrays in L1 (n = 4096), in L2 (65 536) and in memory: how near to a plain read.
///
///     taskset -c 1 build/bench/bench/recops_bench_simd_reduce
///
/// Peers: `eigen` (its argmax is scalar); `torch`.
#include <recops/core/random.hpp>
#include <recops/simd/reduce.hpp>

#include "support/paired.hpp"
#if defined(RECOPS_BENCH_EIGEN) || __has_include(<Eigen/Core>)
#include <Eigen/Core>
#define WITH_EIGEN 1
#endif

using namespace recops;
using namespace recops_bench;

namespace {

template <class T>
using Array = Eigen::Map<const Eigen::Array<T, Eigen::Dynamic, 1>>;

template <class T, class Ours, class EigenForm>
void add(const std::string& name, Index n, int arrays, const char* torch, Ours ours, [[maybe_unused]] EigenForm eigen) {
  register_case<T>("simd/" + name + "/" + type_name<T>() + "/n:" + std::to_string(n), [=] {
    Case<T> c;
    c.bytes = static_cast<double>(arrays * n) * sizeof(T);
    c.copies = copies_for(c.bytes);
    const auto d = std::make_shared<Rotation<T>>(arrays * n, c.copies);
    Random random(1);
    for (Index i = 0; i < arrays * n; ++i) (*d)[0][i] = static_cast<T>(random.normal());
    d->spread();
    c.data = [=](Index i) { return (*d)[i]; };
    c.elements = static_cast<double>(n);
    c.kernel = [=](Index i) { benchmark::DoNotOptimize(ours((*d)[i], n)); };
#ifdef WITH_EIGEN
    c.peers.push_back({"eigen", [=](Index i) { benchmark::DoNotOptimize(eigen((*d)[i], n)); }});
#endif
    if (std::is_same_v<T, float> && *torch != 0) {
      c.peers.push_back(python_peer("torch", "reduce",
                                    std::string(R"({"f": ")") + torch + R"(", "n": )" + std::to_string(n) + R"(, "copies": )" +
                                        std::to_string(c.copies) + "}"));
    }
    return c;
  });
}

template <class T>
void add_all(Index n) {
  add<T>(
      "dot", n, 2, "", [](const T* x, Index m) { return simd::dot<T>(x, x + m, m); },
      [](const T* x, Index m) { return (Array<T>(x, m) * Array<T>(x + m, m)).sum(); });
  add<T>(
      "sum", n, 1, "sum", [](const T* x, Index m) { return simd::sum<T>(x, m); },
      [](const T* x, Index m) { return Array<T>(x, m).sum(); });
  add<T>(
      "sum_squares", n, 1, "", [](const T* x, Index m) { return simd::sum_squares<T>(x, m); },
      [](const T* x, Index m) { return Array<T>(x, m).square().sum(); });
  add<T>(
      "max", n, 1, "max", [](const T* x, Index m) { return simd::max<T>(x, m); },
      [](const T* x, Index m) { return Array<T>(x, m).maxCoeff(); });
  add<T>(
      "argmax", n, 1, "argmax", [](const T* x, Index m) { return simd::argmax<T>(x, m); },
      [](const T* x, Index m) {
        Eigen::Index at = 0;
        Array<T>(x, m).maxCoeff(&at);
        return at;
      });
}

}  // namespace

int main(int argc, char** argv) {
  for (const Index n : {4096, 65536, 8000000}) {
    add_all<float>(n);
    add_all<double>(n);
  }
  return run_registered(argc, argv);
}
