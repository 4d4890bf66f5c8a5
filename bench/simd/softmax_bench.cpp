/// Softmax and its parts over one row that is in L1 (n = 1000), in L2 (20 000), or in memory.
///
///     taskset -c 1 build/bench/bench/recops_bench_simd_softmax
///
/// Peers: `eigen`, (x - max).exp() and a product with the inverse of its sum, each pass vectorised; `torch`. Ours also returns the
/// log-sum-exp; `log_sum_exp` and `softmax_masked` (every third entry hidden) have no store, and a mask, more.
#include <recops/core/random.hpp>
#include <recops/simd/softmax.hpp>

#include "support/paired.hpp"
#if defined(RECOPS_BENCH_EIGEN) || __has_include(<Eigen/Core>)
#include <Eigen/Core>
#define WITH_EIGEN 1
#endif

using namespace recops;
using namespace recops_bench;

namespace {

template <class T>
struct Data {
  Rotation<T> x, y;
  std::vector<std::uint8_t> keep;
  Data(Index n, Index copies) : x(n, copies), y(n, copies), keep(static_cast<std::size_t>(n), 1) {
    Random random(1);
    for (Index i = 0; i < n; ++i) x[0][i] = static_cast<T>(3 * random.normal());
    for (std::size_t i = 1; i < keep.size(); i += 3) keep[i] = 0;
    x.spread();
  }
};

template <class T>
void add(Index n) {
  const std::string tail = std::string("/") + type_name<T>() + "/n:" + std::to_string(n);
  const auto make = [n](auto&& fill) {
    return [n, fill] {
      const double bytes = 2.0 * static_cast<double>(n) * sizeof(T);
      Case<T> c;
      c.copies = copies_for(bytes);
      c.bytes = bytes;
      c.elements = static_cast<double>(n);
      fill(c, std::make_shared<Data<T>>(n, c.copies));
      return c;
    };
  };
  register_case<T>(
      "simd/softmax" + tail, make([n](Case<T>& c, std::shared_ptr<Data<T>> d) {
        c.kernel = [=](Index i) { simd::softmax<T>(static_cast<const T*>(d->x[i]), d->y[i], n); };
#ifdef WITH_EIGEN
        c.peers.push_back({"eigen", [=](Index i) {
                             using Array = Eigen::Map<Eigen::Array<T, Eigen::Dynamic, 1>>;
                             Array x(d->x[i], n), y(d->y[i], n);
                             y = (x - x.maxCoeff()).exp();
                             y *= T(1) / y.sum();
                           }});
#endif
        if (std::is_same_v<T, float>)
          c.peers.push_back(python_peer("torch", "softmax",
                                        R"({"n": )" + std::to_string(n) + R"(, "copies": )" + std::to_string(c.copies) + "}"));
      }));
  register_case<T>("simd/softmax_masked" + tail, make([n](Case<T>& c, std::shared_ptr<Data<T>> d) {
                     c.kernel = [=](Index i) { simd::softmax_masked<T>(d->x[i], d->keep.data(), d->y[i], n); };
                   }));
  register_case<T>("simd/log_sum_exp" + tail, make([n](Case<T>& c, std::shared_ptr<Data<T>> d) {
                     c.bytes /= 2;
                     c.kernel = [=](Index i) { benchmark::DoNotOptimize(simd::log_sum_exp<T>(d->x[i], n)); };
#ifdef WITH_EIGEN
                     c.peers.push_back({"eigen", [=](Index i) {
                                          const Eigen::Map<Eigen::Array<T, Eigen::Dynamic, 1>> x(d->x[i], n);
                                          const T m = x.maxCoeff();
                                          benchmark::DoNotOptimize(m + std::log((x - m).exp().sum()));
                                        }});
#endif
                     if (std::is_same_v<T, float>)
                       c.peers.push_back(python_peer("torch", "reduce",
                                                     R"({"f": "logsumexp", "n": )" + std::to_string(n) + R"(, "copies": )" +
                                                         std::to_string(c.copies) + "}"));
                   }));
}

}  // namespace

int main(int argc, char** argv) {
  for (const Index n : {1000, 20000, 4000000}) {
    add<float>(n);
    add<double>(n);
  }
  return run_registered(argc, argv);
}
