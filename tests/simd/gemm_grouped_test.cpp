// Oracle: gemm_packed, one product after the other, bit for bit.
#include <recops/simd/gemm_grouped.hpp>
#include <recops/simd/gemm_quantized.hpp>

#include <cstring>
#include <vector>

#include "support/allocations.hpp"
#include "support/architectures.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {

template <class T>
bool same_bits(MatrixView<const T> a, MatrixView<const T> b) {
  if (a.empty()) return true;
  for (Index i = 0; i < a.rows(); ++i)
    if (std::memcmp(a.row(i), b.row(i), static_cast<std::size_t>(a.cols()) * sizeof(T)) != 0) return false;
  return true;
}

}  // namespace

TEMPLATE_TEST_CASE("grouped products have the bits of single ones, on any number of threads", "[simd][gemm][grouped]", float,
                   double) {
  using T = TestType;
  Random random = random_stream(230);
  // Experts of different widths, row ranges of one batch: some empty, some larger than a chunk.
  const Index k = 70, rows[] = {0, 3, 1, 200, 0, 17, 64}, widths[] = {40, 1, 33, 600, 8, 0, 96};
  const Matrix<T> x = random_matrix<T>(285, k, random);
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    std::vector<Vector<T>> panels, biases;
    std::vector<Matrix<T>> expected, got;
    std::vector<simd::GemmProblem<T>> problems;
    Workspace ws;
    Index at = 0;
    for (std::size_t g = 0; g < 7; at += rows[g], ++g) {
      const Matrix<T> weight = random_matrix<T>(widths[g], k, random);
      panels.emplace_back(simd::packed_size<T, A>(k, widths[g]));
      simd::pack<T, A>(simd::transposed(weight.view()), panels.back().data());
      biases.push_back(random_vector<T>(widths[g], random));
      expected.emplace_back(rows[g], widths[g]);
      got.emplace_back(rows[g], widths[g]);
    }
    at = 0;
    for (std::size_t g = 0; g < 7; at += rows[g], ++g) {
      simd::GemmProblem<T> p{.a = simd::plain(x.view().middle_rows(at, rows[g])),
                             .panels = panels[g].data(),
                             .epilogue = {.bias = biases[g].data(), .activation = g % 2 ? Activation::relu : Activation::none},
                             .c = expected[g]};
      simd::gemm_packed<T, A>(p.a, p.panels, widths[g], p.epilogue, p.c, ws);
      p.c = got[g];
      problems.push_back(p);
    }
    for (int workers = 1; workers <= 4; ++workers) {
      Threads threads{workers};
      Workspace parallel(make_executor(threads, workers));
      for (Matrix<T>& c : got) std::fill_n(c.data(), c.rows() * c.cols(), T(-1));
      simd::gemm_grouped<T, A>(problems.data(), 7, parallel);
      for (std::size_t g = 0; g < 7; ++g) {
        CAPTURE(workers, g);
        CHECK(same_bits<T>(got[g], expected[g]));
      }
    }
  });
}

TEST_CASE("grouped products share weights, take stored ones, allocate nothing the second time", "[simd][gemm][grouped]") {
  Random random = random_stream(231);
  const Index k = 33, n = 50;
  const Matrix<float> weight = random_matrix<float>(n, k, random), x = random_matrix<float>(60, k, random);
  Vector<float> memory(simd::packed_size<float>(k, n));
  auto* const panels = reinterpret_cast<BFloat16*>(memory.data());
  simd::pack<float>(simd::transposed(weight.view()), panels);
  Matrix<float> expected(60, n), got(60, n, 0.0f);
  Workspace ws;
  simd::gemm_packed<float>(simd::plain(x.view()), panels, n, {}, expected, ws);
  std::vector<simd::GemmProblem<float, BFloat16>> problems;
  for (Index first = 0, count = 1; first < 60; first += count, count = std::min<Index>(count + 3, 60 - first))
    problems.push_back(
        {.a = simd::plain(x.view().middle_rows(first, count)), .panels = panels, .c = got.view().middle_rows(first, count)});
  const auto run = [&] { simd::gemm_grouped<float>(problems.data(), static_cast<Index>(problems.size()), ws); };
  run();
  CHECK(same_bits<float>(got, expected));
  const AllocationCounter counter;
  run();
  const std::size_t allocations = counter.count();
  CHECK(allocations == 0);
  simd::gemm_grouped<float>(problems.data(), 0, ws);  // nothing to do is legal
}
