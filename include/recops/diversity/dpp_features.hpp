/// @file   recops/diversity/dpp_features.hpp
/// @brief  Picks of dpp_map.hpp by features: one product of every panel with one vector a pick, no kernel and no factor matrix.
#pragma once
#include <recops/diversity/dpp_basis.hpp>
#include <recops/diversity/dpp_input.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

/// score = (q / max q)^2 · rho. What was picked explains the volume in the directions g of DppBasis: rho falls by <x, g>^2. With a
/// window, what leaves gives back the direction that nothing in the window explains: rho rises by its <x, g>^2.
template <class T, class A, bool Windowed>
struct DppFeatureRule {
  using B = simd::Batch<T, A>;
  static constexpr Index P = simd::panel_width<T>, W = simd::lanes<T, A>;
  static constexpr bool monotone = !Windowed;
  static constexpr Index between_refreshes = 64;  // picks after which a window's rounding is forgotten

  const DppInput<T>& in;
  const DppOptions& options;
  Candidates<T, A>& rows;
  T eps, infinity = std::numeric_limits<T>::infinity();
  T *weight, *start, *rho;       // [size] quality; the volume of the item alone; what is left of it, -infinity: out
  T *top_weight, *top_start;     // the largest of each panel
  std::int32_t* applied;         // how many of the directions a panel has seen
  DppBasis<T, A> basis;          // of all that counts
  T *queries, *signs;            // directions in the order they came, and whether rho falls (-1) or rises (1)
  Index count = 0, restart = 0;  // ... from `restart` on they say everything
  T* x;                          // one row, padded
  T *kept, *kept_start;          // window: the rows that count, oldest first
  Index kept_count = 0, since = 0;
  bool by_quality = false;

  /// Qualities that may be picked.
  static bool takes(T quality) { return quality > T(0); }

  DppFeatureRule(const DppInput<T>& input, const DppOptions& o, Candidates<T, A>& candidates, const T* value, Index places,
                 Workspace& scratch)
      : in(input), options(o), rows(candidates), eps(dpp_eps<T>(o)) {
    const Index size = rows.size(), seen = in.history.rows(), stride = simd::padded<T>(rows.cols());
    weight = scratch.take<T>(size);
    start = scratch.take<T>(size);
    rho = scratch.take<T>(size);
    top_weight = scratch.take<T>(rows.panels());
    top_start = scratch.take<T>(rows.panels());
    applied = scratch.take<std::int32_t>(rows.panels());
    const Index back = o.window - 1, capacity = Windowed ? std::min(back, seen + places) : seen + places;
    basis = DppBasis<T, A>(rows.cols(), std::max(capacity, Index{1}), o.alpha == 1 && in.diagonal.empty(),
                           static_cast<T>(o.alpha), eps, scratch);
    x = scratch.take<T>(stride);
    std::fill(x, x + stride, T(0));
    if constexpr (Windowed) {
      const Index most = 2 * (seen + places + 1) + ((seen + places) / between_refreshes + 1) * (capacity + 1);
      queries = scratch.take<T>(most * stride);
      signs = scratch.take<T>(most);
      kept = scratch.take<T>((capacity + 1) * stride);
      kept_start = scratch.take<T>(capacity + 1);
    }
    T best = 0;
    for (Index i = 0; i < size; ++i) {
      const bool out = i >= rows.rows() || value[rows.item(i)] == never<T>;
      weight[i] = out ? T(0) : quality_of(rows.item(i));
      best = std::max(best, weight[i]);
      start[i] = rho[i] = out ? never<T> : T(0);
    }
    for (Index i = 0; i < size && best > T(0); ++i) {
      const T q = weight[i] / best;
      weight[i] = q * q;
    }
    for (Index p = 0; p < rows.panels(); ++p) {
      applied[p] = 0;
      top_weight[p] = simd::max<T, A>(start + p * P, P) == never<T> ? never<T> : simd::max<T, A>(weight + p * P, P);
      top_start[p] = rows.unit() && in.diagonal.empty() ? T(1) : infinity;
    }
    for (Index h = Windowed ? history_begin(in.history, back) : 0; h < seen; ++h) {
      if (selection_row(in.history.row(h), rows.cols(), rows.unit(), x)) advance(simd::dot(x, x, rows.cols()));
    }
  }

  bool begin(Index place) {
    if (Windowed) by_quality = false;
    return Windowed || place == 0;
  }
  void refresh(Index p) {
    prepare(p);
    Index from = applied[p];
    applied[p] = static_cast<std::int32_t>(directions());
    T* const left = rho + p * P;
    if constexpr (Windowed) {
      if (from < restart) {
        std::copy_n(start + p * P, P, left);
        from = restart;
      }
      const T* const sign = signs + from;
      rows.products(p, queries + from * basis.stride(), basis.stride(), count - from,
                    [=](Index q, Index lane, B c) RECOPS_LAMBDA_INLINE {
                      simd::mul_add(B(sign[q]) * c, c, B::load_aligned(left + lane)).store_aligned(left + lane);
                    });
    } else {
      rows.products(
          p, basis.row(from), basis.stride(), basis.count() - from,
          [=](Index, Index lane, B c)
              RECOPS_LAMBDA_INLINE { simd::neg_mul_add(c, c, B::load_aligned(left + lane)).store_aligned(left + lane); },
          true);
    }
  }
  T ceiling(Index p) const {  // a weight may have vanished, and the volumes be unknown: their product would be no number
    return by_quality || !(top_weight[p] > T(0)) ? top_weight[p] : top_weight[p] * top_start[p];
  }
  RECOPS_INLINE B score(Index i) const {
    const B s = B::load_aligned(start + i), w = B::load_aligned(weight + i), out(never<T>);
    if (by_quality) return xsimd::select(s > out, w, out);
    const B left = B::load_aligned(rho + i);
    return xsimd::select(left > B(eps) * s, w * left, out);
  }
  T reported(Index i) const {
    if (!(rho[i] > eps * start[i])) return never<T>;
    const double q = static_cast<double>(quality_of(rows.item(i))), left = static_cast<double>(rho[i]);
    if constexpr (std::is_same_v<T, float>) return static_cast<T>(std::log(q * q * left));  // far from a double's limits
    return static_cast<T>(2 * std::log(q) + std::log(left));
  }
  bool pickable(Index i) {
    refresh(i / P);
    return start[i] > never<T>;
  }
  void take(Index i, bool last) {
    const T s = start[i];
    start[i] = rho[i] = never<T>;
    if (last) return;
    rows.row(i, x);
    advance(s);
  }
  bool fall_back() { return options.fill == DppFill::by_quality && !std::exchange(by_quality, true); }
  SelectionStatus over() const {
    for (Index i = 0; i < rows.rows(); ++i) {
      if (start[i] > never<T>) return SelectionStatus::rank_exhausted;
    }
    return SelectionStatus::exhausted;
  }

 private:
  T quality_of(Index item) const {
    const T q = in.quality.data()[item];
    return in.diagonal.empty() ? q : quality_beside(q, in.diagonal.data()[item]);
  }
  Index directions() const { return Windowed ? count : basis.count(); }
  void prepare(Index p) {
    if (!rows.prepare(p)) return;
    T top = 0;
    for (Index i = p * P; i < p * P + rows.rows_in(p); ++i) {
      if (start[i] == never<T>) continue;
      T s = rows.squares(p)[i - p * P];
      if (!in.diagonal.empty()) {  // of the kernel: here all is over the squared quality
        const T q = quality_of(rows.item(i)), d = in.diagonal.data()[rows.item(i)];
        s += d / q / q;
      }
      if (rows.marked(i) || !(s <= largest_square<T>)) s = never<T>;
      start[i] = rho[i] = s;
      top = std::max(top, s);
    }
    top_start[p] = top;
  }
  /// `x` with diagonal entry s was shown.
  void advance(T s) {
    if constexpr (!Windowed) {
      basis.add(x, s);
    } else if (options.window > 1) {
      const Index stride = basis.stride();
      std::copy_n(x, stride, kept + kept_count * stride);
      kept_start[kept_count++] = s;
      if (basis.residual(x, s, queries + count * stride)) signs[count++] = T(-1);
      if (kept_count < options.window) {
        basis.add(x, s);
        return;
      }
      basis.clear();
      for (Index r = 1; r < kept_count; ++r) basis.add(kept + r * stride, kept_start[r]);
      if (basis.residual(kept, kept_start[0], queries + count * stride)) signs[count++] = T(1);
      std::copy(kept + stride, kept + kept_count * stride, kept);
      std::copy(kept_start + 1, kept_start + kept_count, kept_start);
      --kept_count;
      if (++since < between_refreshes) return;
      since = 0;
      restart = count;
      for (Index l = 0; l < basis.count(); ++l, ++count) {
        std::copy_n(basis.row(l), stride, queries + count * stride);
        signs[count] = T(-1);
      }
    }
  }
};

}  // namespace detail
}  // namespace RECOPS_ABI
}  // namespace recops
