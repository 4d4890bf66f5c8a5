/// C [m, n] = A [m, k] B against the speed of multiply-adds and, for few rows, of reading the weights once.
///
///     taskset -c 1 build/bench/bench/recops_bench_simd_gemm --benchmark_filter=simd/gemm/f32
///
///   simd/gemm/TYPE/...           B packed once; TYPE f32, f64, or bf16 and int8 weights with float rows (vs_f32: our own float)
///   simd/gemm_avx2/TYPE/...      the same kernel for AVX2 and FMA in the same program, against that peak
///   simd/gemm_unpacked/f32/...   B as it lies: `nn` rows of B contiguous (dx = dy W), `nt` columns (y = x W^T), `tn` A transposed
///                                too (dW = dy^T x), which is added to C
///   simd/gemm_epilogue/f32/...   bias, SiLU and a residual fused
///   simd/gemm_grouped/f32/...    many small products in one call
///
/// Peers: Eigen in the same process, column-major operands laid out beforehand; OpenBLAS, which packs in every call; oneDNN with
/// reordered weights; PyTorch and ONNX Runtime in a process of their own.
#include <recops/core/random.hpp>
#include <recops/simd/gemm_grouped.hpp>
#include <recops/simd/gemm_quantized.hpp>

#include <memory>

#include "peers/onednn.hpp"
#include "peers/openblas.hpp"
#include "support/paired.hpp"
#if defined(RECOPS_BENCH_EIGEN)
#include <Eigen/Core>
#endif

using namespace recops;
using namespace recops_bench;

namespace {

template <class T>
Matrix<T> numbers(Index rows, Index cols, std::uint64_t stream) {
  Random random(1, stream);
  Matrix<T> x(rows, cols);
  for (Index i = 0; i < rows * cols; ++i) x.data()[i] = static_cast<T>(random.uniform(-1.7, 1.7));
  return x;
}

std::string shape(Index m, Index n, Index k) {
  return "/m:" + std::to_string(m) + "/n:" + std::to_string(n) + "/k:" + std::to_string(k);
}
template <class S>
const char* type_name() {
  return std::is_same_v<S, double>        ? "f64"
         : std::is_same_v<S, BFloat16>    ? "bf16"
         : std::is_same_v<S, std::int8_t> ? "int8"
                                          : "f32";
}

/// Rows, and weights packed in format S, as many copies as their size asks for.
template <class T, class S, class A>
struct Product {
  Index copies;
  Matrix<T> a, c;
  Rotation<S> panels;
  Vector<T> scale;
  Workspace ws;
  simd::Epilogue<T> epilogue;

  Product(Index m, Index n, Index k, Index copies_)
      : copies(copies_), a(numbers<T>(m, k, 2)), c(m, n), panels(simd::packed_size<T, A>(k, n), copies_), scale(n) {
    const Matrix<T> b = numbers<T>(k, n, 3);
    if constexpr (std::is_same_v<S, std::int8_t>) {
      simd::pack<T, A>(simd::plain(b.view()), panels[0], scale.data());
      epilogue.column_scale = scale.data();
    } else {
      simd::pack<T, A>(simd::plain(b.view()), panels[0]);
    }
    panels.spread();
  }
  void run(Index copy) { simd::gemm_packed<T, A>(simd::plain(a.view()), panels[copy], c.cols(), epilogue, c, ws); }
};

template <class T>
void add_peers([[maybe_unused]] Case<T>& c, [[maybe_unused]] Index m, [[maybe_unused]] Index n, [[maybe_unused]] Index k) {
#if defined(RECOPS_BENCH_EIGEN)
  using Columns = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic>;
  struct Data {
    Columns a, out;
    Rotation<T> b;
  };
  const auto d = std::make_shared<Data>(Data{Columns::Constant(m, k, T(0.5)), Columns(m, n), Rotation<T>(k * n, c.copies)});
  c.peers.push_back({"eigen", [=](Index copy) {
                       const Eigen::Map<const Columns> b(d->b[copy], k, n);
                       if (m == 1) {
                         d->out.row(0).transpose().noalias() = b.transpose() * d->a.row(0).transpose();
                       } else {
                         d->out.noalias() = d->a * b;
                       }
                     }});
#endif
  c.peers.push_back(openblas_gemm<T>(m, n, k, c.copies));
  const std::string arguments = R"({"m": )" + std::to_string(m) + R"(, "n": )" + std::to_string(n) + R"(, "k": )" +
                                std::to_string(k) + R"(, "copies": )" + std::to_string(c.copies) + R"(, "type": ")" +
                                type_name<T>() + R"("})";
  if constexpr (std::is_same_v<T, float>) c.peers.push_back(onednn_linear(m, n, k, false, c.copies));
  c.peers.push_back(python_peer("torch", "matmul", arguments));
  c.peers.push_back(python_peer("onnxruntime", "matmul", arguments));
}

template <class T, class S = T, class A = simd::DefaultArch>
void add_packed(const std::string& group, Index m, Index n, Index k, bool peers) {
  register_case<T>("simd/" + group + "/" + type_name<S>() + shape(m, n, k), [=] {
    const double bytes = static_cast<double>(n * k) * sizeof(S);
    Case<T> c;
    c.copies = copies_for(bytes);
    const auto p = std::make_shared<Product<T, S, A>>(m, n, k, c.copies);
    c.kernel = [p](Index copy) { p->run(copy); };
    c.flops = 2.0 * static_cast<double>(m * n * k);
    c.working_set = bytes;
    if (m <= 16) {
      c.bytes = bytes;
      c.data = [p](Index copy) { return p->panels[copy]; };
    }
    c.template use<A>();
    if (peers) add_peers<T>(c, m, n, k);
    if constexpr (!std::is_same_v<S, T>) {
      const auto own = std::make_shared<Product<T, T, A>>(m, n, k, c.copies);
      c.peers.push_back({"f32", [own](Index copy) { own->run(copy); }});
    }
    return c;
  });
}

enum class Form { nn, nt, tn };

void add_unpacked(Form form, Index m, Index n, Index k) {
  const char* const name = form == Form::nn ? "nn" : form == Form::nt ? "nt" : "tn";
  register_case<float>(std::string("simd/gemm_unpacked/f32/") + name + shape(m, n, k), [=] {
    struct Data {
      Matrix<float> a, b, c;
      Workspace ws;
    };
    const auto d = std::make_shared<Data>();
    d->a = form == Form::tn ? numbers<float>(k, m, 2) : numbers<float>(m, k, 2);
    d->b = form == Form::nt ? numbers<float>(n, k, 3) : numbers<float>(k, n, 3);
    d->c = Matrix<float>(m, n, 0.0f);
    Case<float> c;
    c.flops = 2.0 * static_cast<double>(m * n * k);
    c.working_set = static_cast<double>(n * k) * sizeof(float);
    c.kernel = [=] {
      const auto a = form == Form::tn ? simd::transposed(d->a.view()) : simd::plain(d->a.view());
      const auto b = form == Form::nt ? simd::transposed(d->b.view()) : simd::plain(d->b.view());
      simd::gemm<float>(a, b, {.accumulate = form == Form::tn}, d->c, d->ws);
    };
    return c;
  });
}

void add_epilogue(Index m, Index n, Index k) {
  register_case<float>("simd/gemm_epilogue/f32" + shape(m, n, k), [=] {
    const auto p = std::make_shared<Product<float, float, simd::DefaultArch>>(m, n, k, 1);
    const auto residual = std::make_shared<Matrix<float>>(numbers<float>(m, n, 4));
    p->epilogue = {.bias = p->scale.data(), .activation = Activation::silu, .residual = residual->data(), .residual_stride = n};
    Case<float> c;
    c.kernel = [p, residual] { p->run(0); };
    c.flops = 2.0 * static_cast<double>(m * n * k);
    return c;
  });
}

void add_grouped(Index groups, Index m, Index n, Index k) {
  register_case<float>("simd/gemm_grouped/f32/groups:" + std::to_string(groups) + shape(m, n, k), [=] {
    struct Data {
      Matrix<float> a, c, weights;
      Vector<float> panels;
      std::vector<simd::GemmProblem<float>> problems;
      Workspace ws;
    };
    const auto d = std::make_shared<Data>();
    const Index size = simd::packed_size<float>(k, n);
    d->a = numbers<float>(groups * m, k, 2);
    d->c = Matrix<float>(groups * m, n);
    d->weights = numbers<float>(groups * n, k, 3);
    d->panels.resize(groups * size);
    for (Index g = 0; g < groups; ++g) {
      simd::pack<float>(simd::transposed(d->weights.view().middle_rows(g * n, n)), d->panels.data() + g * size);
      d->problems.push_back({.a = simd::plain(d->a.view().middle_rows(g * m, m)),
                             .panels = d->panels.data() + g * size,
                             .c = d->c.view().middle_rows(g * m, m)});
    }
    Case<float> c;
    c.kernel = [=] { simd::gemm_grouped<float>(d->problems.data(), groups, d->ws); };
    c.flops = 2.0 * static_cast<double>(groups * m * n * k);
    c.working_set = static_cast<double>(groups * size) * sizeof(float);
#if defined(RECOPS_BENCH_EIGEN)
    using Rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    const auto out = std::make_shared<Rows>(groups * m, n);
    c.peers.push_back({"eigen", [=] {
                         const Eigen::Map<const Rows> a(d->a.data(), groups * m, k), w(d->weights.data(), groups * n, k);
                         for (Index g = 0; g < groups; ++g)
                           out->middleRows(g * m, m).noalias() = a.middleRows(g * m, m) * w.middleRows(g * n, n).transpose();
                       }});
#endif
    return c;
  });
}

}  // namespace

int main(int argc, char** argv) {
  for (const Index m : {1, 2, 4, 8, 12, 16, 32, 64, 512}) add_packed<float>("gemm", m, 512, 512, true);
  for (const Index m : {1, 4, 8, 16, 512}) add_packed<double>("gemm", m, 512, 512, true);
  for (const Index m : {1, 8, 32, 512}) add_packed<float>("gemm", m, 2048, 512, true);
  for (const Index m : {1, 8, 512}) add_packed<float>("gemm", m, 512, 64, true);
  for (const Index m : {1, 4, 8}) add_packed<float>("gemm", m, 2048, 2048, true);
  for (const Index n : {1, 17, 33}) add_packed<float>("gemm", 64, n, 512, true);
  for (const Index m : {1, 4, 8})
    for (const Index n : {512, 2048}) {
      add_packed<float, BFloat16>("gemm", m, n, n, false);
      add_packed<float, std::int8_t>("gemm", m, n, n, false);
    }
#if defined(__AVX512F__)
  using Avx2 = xsimd::fma3<xsimd::avx2>;
  for (const Index m : {1, 4, 8, 16, 512}) add_packed<float, float, Avx2>("gemm_avx2", m, 512, 512, false);
  for (const Index m : {1, 4, 8, 16, 512}) add_packed<double, double, Avx2>("gemm_avx2", m, 512, 512, false);
#endif
  for (const Form form : {Form::nn, Form::nt})
    for (const Index m : {1, 4, 8, 16, 64, 512}) add_unpacked(form, m, 512, 512);
  for (const Index batch : {64, 512}) add_unpacked(Form::tn, 512, 512, batch);
  for (const Index m : {1, 8, 64, 512}) add_epilogue(m, 512, 512);
  for (const Index m : {1, 4, 16}) add_grouped(64, m, 64, 64);
  return run_registered(argc, argv);
}
