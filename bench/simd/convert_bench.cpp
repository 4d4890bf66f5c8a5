/// Conversions between float and the storage formats, n numbers; quantisation of rows of 64.
///
///     taskset -c 1 build/bench/bench/recops_bench_simd_convert
///
/// of_bandwidth: share of the speed of reading as many bytes as are read and written. Peer: `eigen` is its cast to and from
/// Eigen::bfloat16 and Eigen::half.
#include <recops/core/random.hpp>
#include <recops/simd/quantize.hpp>

#include "support/paired.hpp"
#if defined(RECOPS_BENCH_EIGEN) || __has_include(<Eigen/Core>)
#include <Eigen/Core>
#define WITH_EIGEN 1
#endif

using namespace recops;
using namespace recops_bench;

namespace {

template <class S>
void register_format(const std::string& name, Index n) {
  const std::string size = "/n:" + std::to_string(n);
  const double bytes = static_cast<double>(n) * (sizeof(S) + sizeof(float));
  for (const bool widen : {true, false}) {
    register_case<float>("simd/convert/" + (widen ? name + "_to_f32" : "f32_to_" + name) + size, [=] {
      Case<float> c;
      c.bytes = bytes;
      c.copies = copies_for(bytes);
      c.elements = static_cast<double>(n);
      auto floats = std::make_shared<Rotation<float>>(n, c.copies);
      auto stored = std::make_shared<Rotation<S>>(n, c.copies);
      Random random(1);
      for (Index i = 0; i < n; ++i) (*floats)[0][i] = static_cast<float>(random.normal());
      floats->spread();
      simd::convert((*floats)[0], (*stored)[0], n);
      stored->spread();
      c.kernel = [=](Index copy) {
        widen ? simd::convert((*stored)[copy], (*floats)[copy], n) : simd::convert((*floats)[copy], (*stored)[copy], n);
      };
#ifdef WITH_EIGEN
      using E = std::conditional_t<std::is_same_v<S, BFloat16>, Eigen::bfloat16, Eigen::half>;
      c.peers.push_back({"eigen", [=](Index copy) {
                           Eigen::Map<Eigen::ArrayXf> f((*floats)[copy], n);
                           Eigen::Map<Eigen::Array<E, Eigen::Dynamic, 1>> s(reinterpret_cast<E*>((*stored)[copy]), n);
                           if (widen) {
                             f = s.template cast<float>();
                           } else {
                             s = f.template cast<E>();
                           }
                           benchmark::ClobberMemory();
                         }});
#endif
      return c;
    });
  }
}

void register_rows(Index rows, Index cols) {
  const std::string size = "/L:" + std::to_string(rows) + "/D:" + std::to_string(cols);
  const double bytes = static_cast<double>(rows) * (static_cast<double>(cols) * 5 + 4);
  for (const bool quantize : {true, false}) {
    register_case<float>(std::string("simd/") + (quantize ? "quantize_rows" : "dequantize_rows") + size, [=] {
      Case<float> c;
      c.bytes = bytes;
      c.copies = copies_for(bytes);
      c.elements = static_cast<double>(rows * cols);
      auto floats = std::make_shared<Rotation<float>>(rows * cols, c.copies);
      auto codes = std::make_shared<Rotation<std::int8_t>>(rows * cols, c.copies);
      auto scales = std::make_shared<Matrix<float>>(rows, 1, 0.02f);
      Random random(1);
      for (Index i = 0; i < rows * cols; ++i) (*floats)[0][i] = static_cast<float>(random.normal());
      floats->spread();
      c.kernel = [=](Index copy) {
        const MatrixView<float> x((*floats)[copy], rows, cols);
        const MatrixView<std::int8_t> q((*codes)[copy], rows, cols);
        if (quantize) {
          simd::quantize_rows(x, 0, q, scales->view());
        } else {
          simd::dequantize_rows({q, *scales, 0}, x);
        }
      };
      return c;
    });
  }
}

}  // namespace

int main(int argc, char** argv) {
  for (const Index n : {4096, 100000, 4000000}) {
    register_format<BFloat16>("bf16", n);
    register_format<Float16>("f16", n);
  }
  for (const Index rows : {100, 100000}) register_rows(rows, 64);
  return run_registered(argc, argv);
}
