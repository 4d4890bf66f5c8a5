/// @file   recops/attention/pair_layer.hpp
/// @brief  The first layer of a network over pairs (candidate, behaviour) that see their elementwise product, without the pairs' inputs.
///
///     s_nj = W_e e_j + W_p (q_n * e_j) + u_n = (W_e + W_p diag(q_n)) e_j + u_n
///
/// so a candidate's weights are one elementwise multiply-add of two packed matrices, and its behaviours one product with them: 2 d h flops
/// a pair where the concatenated input [q, e, q - e, q * e] costs 8 d h and is written and read. What depends on the candidate alone is in
/// u_n. Pairs are numbered user by user, candidate by candidate, behaviours in order. What DIN and MiNet share.
/// Our reconstruction of exact algebra; docs/din.md.
#pragma once
#include <recops/core/error.hpp>
#include <recops/simd/chained_sum.hpp>
#include <recops/simd/gemm.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

/// Where the pairs of each candidate begin, and whose candidate it is: `[total_N + 1]` and `[total_N]`.
struct PairIndex {
  Index *first, *user;
  Index candidates;
  Index pairs() const { return first[candidates]; }
  Index length(Index i) const { return first[i + 1] - first[i]; }
};
template <class T>
PairIndex pair_index(const JaggedView<const T>& candidates, const JaggedView<const T>& history, Workspace& ws) {
  const Index n = candidates.values().rows();
  PairIndex x{ws.take<Index>(n + 1), ws.take<Index>(n), n};
  x.first[0] = 0;
  for (Index b = 0; b < candidates.size(); ++b)
    for (Index i = candidates.begin(b); i < candidates.begin(b) + candidates.length(b); ++i) {
      x.user[i] = b;
      x.first[i + 1] = x.first[i] + history.length(b);
    }
  return x;
}
/// sum_b N_b L_b
template <class T>
Index pair_count(const JaggedView<const T>& candidates, const JaggedView<const T>& history) {
  Index pairs = 0;
  for (Index b = 0; b < candidates.size(); ++b) pairs += candidates.length(b) * history.length(b);
  return pairs;
}

template <class T>
void check_pairs(const char* name, const JaggedView<const T>& candidates, const JaggedView<const T>& history,
                 Index candidate_width, Index history_width) {
  check_jagged(name, "candidates", candidates, any_size, candidate_width);
  check_jagged(name, "history", history, candidates.size(), history_width);
}

/// W_e^T and W_p^T, packed for gemm.
template <class T>
struct PairPanels {
  const T *base, *product;
  Index depth, out;
};

/// Behaviours that pass together: what they become stays in L1 and L2.
template <class T>
inline constexpr Index pair_block = 384 / static_cast<Index>(sizeof(T));

/// out = base + diag(q) product, in the layout of panels.
template <class T>
void mix_panels(const PairPanels<T>& w, const T* q, T* out) {
  using B = simd::Batch<T>;
  constexpr Index P = simd::panel_cols<T>, W = simd::lanes<T>;
  const Index panels = (w.out + P - 1) / P;
  Index at = 0;
  for (Index p0 = 0; p0 < w.depth; p0 += simd::k_block) {
    const Index depth = std::min(simd::k_block, w.depth - p0);
    for (Index panel = 0; panel < panels; ++panel)
      for (Index p = p0; p < p0 + depth; ++p, at += P) {
        const B x(q[p]);
        simd::mul_add(x, B::load_aligned(w.product + at), B::load_aligned(w.base + at)).store_aligned(out + at);
        simd::mul_add(x, B::load_aligned(w.product + at + W), B::load_aligned(w.base + at + W)).store_aligned(out + at + W);
      }
  }
}

/// s `[count, h]` = activation((base + diag(q) product)^T e + u) for some behaviours of one candidate, by its mixed panels.
template <class T>
void pair_rows(MatrixView<const T> e, const T* mixed, const T* u, Activation activation, MatrixView<T> s, Workspace& ws) {
  simd::gemm_packed<T>(simd::plain(e), mixed, s.cols(), {.bias = u, .activation = activation}, s, ws);
}

/// s `[pairs, h]` of all pairs. u `[total_N, h]`.
template <class T>
void pair_layer(const PairIndex& pairs, JaggedView<const T> candidates, JaggedView<const T> history, const PairPanels<T>& w,
                MatrixView<const T> u, MatrixView<T> s, Workspace& ws) {
  ws.parallel_for(pairs.candidates, [&](Index i, Workspace& scratch) {
    if (pairs.length(i) == 0) return;
    const auto own = scratch.mark();
    T* const mixed = scratch.take<T>(simd::packed_size<T>(w.depth, w.out));
    mix_panels(w, candidates.values().row(i), mixed);
    pair_rows<T>(history[pairs.user[i]], mixed, u.row(i), Activation::none, s.middle_rows(pairs.first[i], pairs.length(i)),
                 scratch);
  });
}

/// What backward of a pair layer adds to; empty: not wanted. du is written.
template <class T>
struct PairGradients {
  MatrixView<T> dcandidates;  // [total_N, d], through the product only
  MatrixView<T> dhistory;     // [total_L, d]
  MatrixView<T> dbase;        // [h, d]
  MatrixView<T> dproduct;     // [h, d]
  MatrixView<T> du;           // [total_N, h]
};

/// From ds `[pairs, h]`, W_e and W_p `[h, d]`. With M_n = ds_n^T E: dW_e += M_n, dW_p += M_n diag(q_n), dq_n += colsum(W_p * M_n),
/// dE += ds_n (W_e + W_p diag(q_n)): two products a candidate, twice forward's flops.
template <class T>
void pair_layer_backward(const PairIndex& pairs, JaggedView<const T> candidates, JaggedView<const T> history,
                         MatrixView<const T> base, MatrixView<const T> product, MatrixView<const T> ds, const PairGradients<T>& g,
                         Workspace& ws) {
  const auto mark = ws.mark();
  const Index h = base.rows(), d = base.cols(), users = candidates.size();
  // Candidates of a user add to the same behaviours, all of them to the same weights: users are dealt to a fixed number of tasks.
  const Index tasks = std::min(users, Index{16});
  const bool parameters = !g.dbase.empty() || !g.dproduct.empty();
  const MatrixView<T> parts = ws.matrix<T>(parameters ? tasks * 2 * h : 0, d);
  ws.parallel_for(tasks, [&](Index task, Workspace& scratch) {
    const auto own = scratch.mark();
    const MatrixView<T> m = scratch.matrix<T>(h, d), mixed = scratch.matrix<T>(h, d);
    const Index size = parameters ? 2 * h * d : 0;
    T* const part = parts.data() + task * size;
    std::fill_n(part, size, T(0));
    simd::ChainedSum<T> weights(part, size, scratch);  // dW_e, then dW_p, of the task's candidates
    for (Index b = users * task / tasks; b < users * (task + 1) / tasks; ++b) {
      const MatrixView<const T> e = history[b];
      const MatrixView<T> de = g.dhistory.empty() ? g.dhistory : g.dhistory.middle_rows(history.begin(b), e.rows());
      for (Index i = candidates.begin(b); i < candidates.begin(b) + candidates.length(b); ++i) {
        const MatrixView<const T> rows = ds.middle_rows(pairs.first[i], pairs.length(i));
        const T* const q = candidates.values().row(i);
        if (!g.du.empty()) {
          const auto inner = scratch.mark();
          std::fill_n(g.du.row(i), h, T(0));
          simd::ChainedSum<T> du(g.du.row(i), h, scratch);
          for (Index j = 0; j < rows.rows(); ++j) simd::add<T>(rows.row(j), du.next(), h);
          du.finish();
        }
        if (rows.rows() == 0) continue;
        if (parameters || !g.dcandidates.empty()) {
          for (Index at = 0; at < rows.rows(); at += simd::k_block) {
            const Index count = std::min(simd::k_block, rows.rows() - at);
            simd::gemm<T>(simd::transposed(rows.middle_rows(at, count)), simd::plain(e.middle_rows(at, count)),
                          {.accumulate = at > 0}, m, scratch);
          }
          T* const dq = g.dcandidates.empty() ? nullptr : g.dcandidates.row(i);
          T* const dw = parameters ? weights.next() : nullptr;
          for (Index r = 0; r < h; ++r) {
            const T *const x = m.row(r), *const wp = product.row(r);
            T *const db = dw ? dw + r * d : nullptr, *const dp = dw ? db + h * d : nullptr;
            simd::for_each_vector<T, simd::DefaultArch>(d, [&](Index c, auto load, auto store) RECOPS_LAMBDA_INLINE {
              const auto v = load(x + c);
              if (db) {
                store(db + c, load(db + c) + v);
                store(dp + c, simd::mul_add(v, load(q + c), load(dp + c)));
              }
              if (dq) store(dq + c, simd::mul_add(v, load(wp + c), load(dq + c)));
            });
          }
        }
        if (de.empty()) continue;
        for (Index r = 0; r < h; ++r) {
          const T *const we = base.row(r), *const wp = product.row(r);
          T* const to = mixed.row(r);
          simd::for_each_vector<T, simd::DefaultArch>(d, [&](Index c, auto load, auto store) RECOPS_LAMBDA_INLINE {
            store(to + c, simd::mul_add(load(q + c), load(wp + c), load(we + c)));
          });
        }
        simd::gemm<T>(simd::plain(rows), simd::plain(MatrixView<const T>(mixed)), {.accumulate = true}, de, scratch);
      }
    }
    weights.finish();
  });
  for (Index task = 0; task < tasks && parameters; ++task)
    for (Index r = 0; r < h; ++r) {
      if (!g.dbase.empty()) simd::add<T>(parts.row(task * 2 * h + r), g.dbase.row(r), d);
      if (!g.dproduct.empty()) simd::add<T>(parts.row(task * 2 * h + h + r), g.dproduct.row(r), d);
    }
}

/// out `[total_N, D]` = sum_j a_nj e_j with the weights of all pairs side by side. What has no behaviours gets zeros.
template <class T>
void pool_pairs(const T* a, MatrixView<const T> e, T* out, Workspace& ws) {
  const MatrixView<T> to(out, 1, e.cols());
  if (e.rows() == 0) std::fill_n(out, e.cols(), T(0));
  for (Index at = 0; at < e.rows(); at += simd::k_block) {
    const Index count = std::min(simd::k_block, e.rows() - at);
    simd::gemm<T>(simd::plain(MatrixView<const T>(a + at, 1, count)), simd::plain(e.middle_rows(at, count)),
                  {.accumulate = at > 0}, to, ws);
  }
}

/// da_nj = e_j . g_n is written, dE += a_n^T g_n unless empty; for the pairs of one candidate.
template <class T>
void pool_pairs_backward(const T* a, MatrixView<const T> e, const T* g, T* da, MatrixView<T> de) {
  for (Index j = 0; j < e.rows(); ++j) {
    da[j] = simd::dot<T>(e.row(j), g, e.cols());
    if (!de.empty()) simd::axpy<T>(a[j], g, de.row(j), e.cols());
  }
}

}  // namespace detail
}  // namespace RECOPS_ABI
}  // namespace recops
