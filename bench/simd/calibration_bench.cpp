/// The harness measuring itself: what each instruction set reaches on this machine, a gemm and streams of every level of the
/// memory, so that a change of the machine, or of the harness, shows before a change of a kernel is believed.
///
///     taskset -c 1 build/bench/bench/recops_bench_simd_calibration
#include <recops/core/random.hpp>
#include <recops/simd/gemm.hpp>

#include "support/paired.hpp"

using namespace recops;
using namespace recops_bench;

namespace {

template <class T, class A>
void add_limits() {
  register_case<T>(std::string("simd/calibration_tile/") + type_name<T>() + "/set:" + A::name(), [] {
    Case<T> c;
    c.template use<A>();
    c.flops = limits<T, A>().tile();
    c.kernel = [] { limits<T, A>().tile(); };
    return c;
  });
}

void add_read(const std::string& name, double bytes) {
  register_case<float>("simd/calibration_read/f32/" + name, [bytes] {
    Case<float> c;
    c.copies = copies_for(bytes);
    const auto data = std::make_shared<Rotation<char>>(static_cast<Index>(bytes), c.copies);
    c.bytes = bytes;
    c.data = [data](Index copy) { return (*data)[copy]; };
    c.kernel = [data, bytes](Index copy) { limits<float>().read((*data)[copy], static_cast<Index>(bytes)); };
    return c;
  });
}

template <class T>
void add_gemm(Index m, Index n, Index k) {
  register_case<T>(std::string("simd/calibration_gemm/") + type_name<T>() + "/m:" + std::to_string(m) +
                       "/n:" + std::to_string(n) + "/k:" + std::to_string(k),
                   [=] {
                     struct Data {
                       Matrix<T> a, c;
                       Rotation<T> b;
                       Workspace ws;
                     };
                     const auto d = std::make_shared<Data>();
                     d->a = Matrix<T>(m, k, T(1));
                     d->c = Matrix<T>(m, n, T(0));
                     Matrix<T> b(k, n, T(0.5));
                     d->b = Rotation<T>(simd::packed_size<T>(k, n));
                     simd::pack<T>(simd::plain(MatrixView<const T>(b)), d->b[0]);
                     Case<T> c;
                     c.flops = 2.0 * static_cast<double>(m * n * k);
                     c.kernel = [=] {
                       simd::gemm_packed<T>(simd::plain(MatrixView<const T>(d->a)), d->b[0], n, simd::Epilogue<T>{},
                                            MatrixView<T>(d->c), d->ws);
                     };
                     return c;
                   });
}

}  // namespace

int main(int argc, char** argv) {
  [&]<class... A>(const std::tuple<A...>*) {
    (add_limits<float, A>(), ...);
    (add_limits<double, A>(), ...);
  }(static_cast<const simd::Architectures*>(nullptr));
  add_read("level:L1", 16384);
  add_read("level:L2", 0.4 * l2_bytes());
  add_read("level:L3", 3.5 * l2_bytes());
  add_read("level:dram", 64e6);
  for (const Index m : {8, 64, 512}) {
    add_gemm<float>(m, 512, 512);
    add_gemm<double>(m, 512, 512);
  }
  return run_registered(argc, argv);
}
