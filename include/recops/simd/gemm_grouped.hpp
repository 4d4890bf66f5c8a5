/// @file   recops/simd/gemm_grouped.hpp
/// @brief  Many products in one call, of any shapes: rows grouped by expert, each with its own weights; slices of one batch that
///         share them. What the threads share out is all of it, not one product after the other.
///
/// Each product has the bits that `gemm_packed` gives, for any number of threads. Small products cost no more than a call each.
#pragma once
#include <recops/simd/gemm.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

/// C `[m, n]` = epilogue(A `[m, k]` B), B packed by `pack` in T or another format S. A product without rows is legal.
template <class T, class S = T>
struct GemmProblem {
  Operand<T> a = {};
  const S* panels = nullptr;
  Epilogue<T> epilogue = {};
  MatrixView<T> c = {};
};

/// Computes `count` products. Their C do not overlap each other nor any A or B.
template <class T, class A = DefaultArch, class S = T>
void gemm_grouped(const GemmProblem<T, S>* problems, Index count, Workspace& ws) {
  const auto mark = ws.mark();
  const bool threads = ws.workers() > 1;
  Index* const ends = ws.take<Index>(count);  // tasks of the problems up to each
  Index total = 0;
  for (Index i = 0; i < count; ++i) {
    const GemmProblem<T, S>& p = problems[i];
    assert(p.c.rows() == p.a.rows);
    ends[i] = total += p.c.empty() ? 0 : detail::Chunks<T, A>(p.a.rows, p.c.cols(), threads).count();
  }
  ws.parallel_for(total, [&](Index task, Workspace& scratch) {
    const Index i = std::upper_bound(ends, ends + count, task) - ends;
    const GemmProblem<T, S>& p = problems[i];
    const Index n = p.c.cols();
    detail::multiply_chunk<T, A>(task - (i > 0 ? ends[i - 1] : 0), detail::Chunks<T, A>(p.a.rows, n, threads), p.a,
                                 detail::PanelSource<S>{p.panels, packed_size<T, A>(1, n)}, n, p.epilogue, p.c, scratch);
  });
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
