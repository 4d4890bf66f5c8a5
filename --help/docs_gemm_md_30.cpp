#include <cstdio>
#include <recops/simd/gemm_grouped.hpp>
#include <recops/simd/gemm_quantized.hpp>

int main() {
  using namespace recops;
  const Matrix<float> weight{{1.0f, 0.5f, -1.0f}, {0.0f, 2.0f, 1.0f}};  // [out, in], as PyTorch keeps it
  const Matrix<float> x{{1.0f, 2.0f, 3.0f}, {-1.0f, 0.0f, 1.0f}};
  const Vector<float> bias{0.5f, -1.0f};
  Matrix<float> y(2, 2);
  Workspace scratch;  // one per thread, kept from call to call

  // y = relu(x W^T + bias), weights packed once.
  Vector<float> panels(simd::packed_size<float>(3, 2));
  simd::pack<float>(simd::transposed(weight.view()), panels.data());
  simd::gemm_packed<float>(simd::plain(x.view()), panels.data(), 2, {.bias = bias.data(), .activation = Activation::relu}, y, scratch);
  std::printf("%.1f %.1f | %.1f %.1f\n", y(0, 0), y(0, 1), y(1, 0), y(1, 1));

  // dW += dy^T x, nothing packed by hand.
  Matrix<float> dweight(2, 3, 0.0f);
  simd::gemm<float>(simd::transposed(y.view()), simd::plain(x.view()), {.accumulate = true}, dweight, scratch);
  std::printf("%.1f %.1f %.1f\n", dweight(1, 0), dweight(1, 1), dweight(1, 2));

  // The same weights as int8: a quarter of the bytes, one scale per output column.
  Vector<float> memory(simd::packed_size<float>(3, 2)), scale(2);
  auto* const codes = reinterpret_cast<std::int8_t*>(memory.data());
  simd::pack<float>(simd::transposed(weight.view()), codes, scale.data());
  simd::gemm_packed<float>(simd::plain(x.view()), codes, 2, {.bias = bias.data(), .column_scale = scale.data()}, y, scratch);
  std::printf("%.2f %.2f\n", y(0, 0), y(0, 1));

  // Two products in one call: each row with weights of its own.
  Matrix<float> z(2, 2);
  const simd::GemmProblem<float> problems[] = {
      {.a = simd::plain(x.view().middle_rows(0, 1)), .panels = panels.data(), .c = z.view().middle_rows(0, 1)},
      {.a = simd::plain(x.view().middle_rows(1, 1)), .panels = panels.data(), .c = z.view().middle_rows(1, 1)}};
  simd::gemm_grouped<float>(problems, 2, scratch);
  std::printf("%.1f %.1f | %.1f %.1f\n", z(0, 0), z(0, 1), z(1, 0), z(1, 1));
}
