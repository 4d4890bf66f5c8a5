/// @file   recops/diversity/dpp_kernel.hpp
/// @brief  Picks of dpp_map.hpp from a kernel that the caller has: the published fast greedy, panel by panel, and its window.
///
///     e = (L[j, :] - sum_l C[l, j] C[l, :]) / sqrt(d2_j)      C gets the row e      d2 -= e^2
///
/// With a window: for the item o that leaves and the rest R, d2 += e^2 with e = (L[o, :] - L_oR L_R^-1 L[R, :]) / sqrt(L_oo - L_oR
/// L_R^-1 L_Ro), and for the item that comes, with everything in the window, d2 -= e^2. Small systems are solved in double.
#pragma once
#include <recops/diversity/dpp_input.hpp>
#include <recops/simd/gram_schmidt.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

/// What both rules keep: the volume of each item, what is left of it, and how a panel reads a kernel row.
template <class T, class A>
struct DppVolumes {
  using B = simd::Batch<T, A>;
  static constexpr Index P = simd::panel_width<T>, W = simd::lanes<T, A>;

  const DppOptions& options;
  Candidates<T, A>& rows;
  T eps;
  T *start, *rho, *top;   // [size], [size], [panels]; -infinity: out
  std::int32_t* applied;  // [panels] how many of the picks a panel has seen
  bool by_quality = false;

  DppVolumes(const DppOptions& o, Candidates<T, A>& candidates, const T* diagonal, Workspace& scratch)
      : options(o), rows(candidates), eps(dpp_eps<T>(o)) {
    start = scratch.take<T>(rows.size());
    rho = scratch.take<T>(rows.size());
    top = scratch.take<T>(rows.panels());
    applied = scratch.take<std::int32_t>(rows.panels());
    std::copy_n(diagonal, rows.rows(), start);
    std::fill(start + rows.rows(), start + rows.size(), never<T>);
    std::copy_n(start, rows.size(), rho);
    for (Index p = 0; p < rows.panels(); ++p) {
      applied[p] = 0;
      top[p] = simd::max<T, A>(start + p * P, P);
    }
  }
  T ceiling(Index p) const { return top[p]; }
  RECOPS_INLINE B score(Index i) const {
    const B s = B::load_aligned(start + i), out(never<T>);
    const B left = B::load_aligned(rho + i);
    if (by_quality) return xsimd::select(left > B(std::numeric_limits<T>::lowest()), s, out);
    return xsimd::select(left > B(eps) * s, left, out);
  }
  bool redundant(Index i) const { return !(rho[i] > eps * start[i]); }
  T reported(Index i) const { return redundant(i) ? never<T> : static_cast<T>(std::log(static_cast<double>(rho[i]))); }
  bool fall_back() { return options.fill == DppFill::by_quality && !std::exchange(by_quality, true); }
  SelectionStatus over() const {
    return simd::max<T, A>(start, rows.size()) > never<T> ? SelectionStatus::rank_exhausted : SelectionStatus::exhausted;
  }
  /// Panel p of a kernel row [N]; the last one is copied to `own` [P].
  const T* part(const T* row, Index p, T* own) const {
    const Index have = rows.rows_in(p);
    if (have == P) return row + p * P;
    std::fill(std::copy_n(row + p * P, have, own), own + P, T(0));
    return own;
  }
};

template <class T, class A, class Fetch>
struct DppKernelRule : DppVolumes<T, A> {
  using Base = DppVolumes<T, A>;
  using Base::P, Base::W;
  using typename Base::B;
  static constexpr bool monotone = true;

  Fetch& fetch;
  Index places, count = 0;
  T *factors, *coefficients, *inverse;  // C as [panels][places][P]; of pick t: C[0 .. t, j] and 1 / sqrt(d2_j)
  const T** picked;                     // kernel rows

  DppKernelRule(const DppOptions& o, Candidates<T, A>& candidates, Fetch& f, const T* diagonal, Index k, Workspace& scratch)
      : Base(o, candidates, diagonal, scratch),
        fetch(f),
        places(k),
        factors(scratch.take<T>(candidates.size() * k)),
        coefficients(scratch.take<T>(k * k)),
        inverse(scratch.take<T>(k)),
        picked(scratch.take<const T*>(k)) {}

  bool begin(Index place) const { return place == 0; }
  void refresh(Index p) {
    alignas(64) T own[2][P];
    Index s = this->applied[p];
    for (; s + 2 <= count; s += 2) update<2>(p, s, own);  // what was missed two by two: the rows before them are read once
    if (s < count) update<1>(p, s, own);
    this->applied[p] = static_cast<std::int32_t>(count);
  }
  bool pickable(Index i) {
    refresh(i / P);
    return is_finite(this->rho[i]);
  }
  void take(Index i, bool last) {
    if (!last && !this->redundant(i)) {
      for (Index l = 0; l < count; ++l) coefficients[count * places + l] = factors[(i / P * places + l) * P + i % P];
      inverse[count] = T(1) / std::sqrt(this->rho[i]);
      const T* const row = picked[count++] = fetch(i);
      const Index soon = std::min(this->rows.rows(), 4 * P);  // the panels read it in pieces, after much of C each
      for (Index at = 0; at < soon; at += Index{64} / static_cast<Index>(sizeof(T))) __builtin_prefetch(row + at);
    }
    this->start[i] = this->rho[i] = never<T>;
  }

 private:
  /// Rows s to s + N of C in panel p, and what they leave of the volumes. Each is summed in the order of the picks, whatever N.
  template <int N>
  RECOPS_INLINE void update(Index p, Index s, T (&own)[2][P]) {
    constexpr int V = static_cast<int>(P / W) < 8 / N ? static_cast<int>(P / W) : 8 / N;
    T *const c = factors + p * places * P, *const left = this->rho + p * P;
    const T *row[N], *of[N];
    RECOPS_UNROLL
    for (int n = 0; n < N; ++n) {
      row[n] = this->part(picked[s + n], p, own[n]);
      of[n] = coefficients + (s + n) * places;
    }
    const Index used = this->rows.rows_in(p);
    for (Index v = 0; v < used; v += V * W) {
      B e[N][V];
      RECOPS_UNROLL
      for (int n = 0; n < N; ++n) {
        RECOPS_UNROLL
        for (int i = 0; i < V; ++i) e[n][i] = B::load_unaligned(row[n] + v + i * W);
      }
      for (Index l = 0; l < s; ++l) {
        B factor[N];
        RECOPS_UNROLL
        for (int n = 0; n < N; ++n) factor[n] = B(of[n][l]);
        RECOPS_UNROLL
        for (int i = 0; i < V; ++i) {
          const B x = B::load_aligned(c + l * P + v + i * W);
          RECOPS_UNROLL
          for (int n = 0; n < N; ++n) e[n][i] = simd::neg_mul_add(factor[n], x, e[n][i]);
        }
      }
      RECOPS_UNROLL
      for (int i = 0; i < V; ++i) {
        B rest = B::load_aligned(left + v + i * W);
        RECOPS_UNROLL
        for (int n = 0; n < N; ++n) {
          const B x = e[n][i] * B(inverse[s + n]);
          x.store_aligned(c + (s + n) * P + v + i * W);
          rest = simd::neg_mul_add(x, x, rest);
          if constexpr (N == 2) {
            if (n == 0) e[1][i] = simd::neg_mul_add(B(of[1][s]), x, e[1][i]);
          }
        }
        rest.store_aligned(left + v + i * W);
      }
    }
  }
};

template <class T, class A, class Fetch>
struct DppKernelWindowRule : DppVolumes<T, A> {
  using Base = DppVolumes<T, A>;
  using Base::P, Base::W;
  using typename Base::B;
  static constexpr bool monotone = false;
  static constexpr Index between_refreshes = 64;  // picks after which a window's rounding is forgotten

  Fetch& fetch;
  Index width, count = 0, restart = 0, since = 0;  // width: items in the window at most, the newest among them
  T *coefficients, *signs;                         // of term q: [width] and whether d2 falls (-1) or rises (1)
  const T** term_rows;                             // [width] kernel rows of term q
  std::int32_t* term_size;
  std::int32_t* window;  // items, oldest first
  const T** window_rows;
  Index filled = 0;
  double *factor, *y;  // Cholesky factor of the rest [width, width]; a right-hand side

  DppKernelWindowRule(const DppOptions& o, Candidates<T, A>& candidates, Fetch& f, const T* diagonal, Index k, Workspace& scratch)
      : Base(o, candidates, diagonal, scratch), fetch(f), width(std::min(o.window, k)) {
    const Index terms = 2 * k + (k / between_refreshes + 1) * width;
    coefficients = scratch.take<T>(terms * width);
    signs = scratch.take<T>(terms);
    term_rows = scratch.take<const T*>(terms * width);
    term_size = scratch.take<std::int32_t>(terms);
    window = scratch.take<std::int32_t>(width + 1);
    window_rows = scratch.take<const T*>(width + 1);
    factor = scratch.take<double>(width * width);
    y = scratch.take<double>(width);
  }

  bool begin(Index) {
    this->by_quality = false;
    return true;
  }
  void refresh(Index p) {
    Index from = this->applied[p];
    T* const left = this->rho + p * P;
    if (from < restart) {
      std::copy_n(this->start + p * P, P, left);
      from = restart;
    }
    alignas(64) T e[P];
    const bool whole = this->rows.rows_in(p) == P;
    for (; from < count; ++from) {
      const T* const* const of = term_rows + from * width;
      const T* const c = coefficients + from * width;
      if (whole) {
        simd::combine_rows<T, A>(of, p * P, c, term_size[from], P, e);
      } else {
        alignas(64) T own[P];
        std::fill(e, e + P, T(0));
        for (Index r = 0; r < term_size[from]; ++r) {
          const T* const row = this->part(of[r], p, own);
          for (Index v = 0; v < P; v += W)
            simd::mul_add(B(c[r]), B::load_aligned(row + v), B::load_aligned(e + v)).store_aligned(e + v);
        }
      }
      const B sign(signs[from]);
      for (Index v = 0; v < P; v += W) {
        const B x = B::load_aligned(e + v);
        simd::mul_add(sign * x, x, B::load_aligned(left + v)).store_aligned(left + v);
      }
    }
    this->applied[p] = static_cast<std::int32_t>(count);
  }
  bool pickable(Index i) {
    refresh(i / P);
    return is_finite(this->rho[i]);
  }
  void take(Index i, bool last) {
    this->start[i] = this->rho[i] = never<T>;
    if (last || width < 2) return;
    window[filled] = static_cast<std::int32_t>(i);
    window_rows[filled++] = fetch(i);
    factorize(0, filled - 1);
    add_term(filled - 1, T(-1));
    if (filled < this->options.window) return;
    factorize(1, filled);
    add_term(0, T(1));
    std::copy(window + 1, window + filled, window);
    std::copy(window_rows + 1, window_rows + filled, window_rows);
    --filled;
    if (++since < between_refreshes) return;
    since = 0;
    restart = count;
    for (Index r = 0; r < filled; ++r) {
      factorize(0, r);
      add_term(r, T(-1));
    }
  }

 private:
  double kernel(Index a, Index b) const { return static_cast<double>(window_rows[a][window[b]]); }
  Index members[2] = {0, 0};  // of the factor: a range of the window
  /// Cholesky factor of the kernel of window[from .. to); redundant items get a zero pivot and are passed over.
  void factorize(Index from, Index to) {
    members[0] = from;
    members[1] = to;
    for (Index a = from; a < to; ++a) {
      double* const row = factor + (a - from) * width;
      double d2 = kernel(a, a);
      for (Index b = from; b < a; ++b) {
        const double* const other = factor + (b - from) * width;
        double v = kernel(a, b);
        for (Index l = 0; l < b - from; ++l) v -= row[l] * other[l];
        row[b - from] = other[b - from] > 0 ? v / other[b - from] : 0;
        d2 -= row[b - from] * row[b - from];
      }
      row[a - from] = d2 > static_cast<double>(this->eps) * kernel(a, a) ? std::sqrt(d2) : 0;
    }
  }
  /// The term of window item `a` given the factor's members.
  void add_term(Index a, T sign) {
    const Index from = members[0], n = members[1] - from;
    double d2 = kernel(a, a);
    for (Index b = 0; b < n; ++b) {  // L y = kernel column
      const double* const row = factor + b * width;
      double v = kernel(a, from + b);
      for (Index l = 0; l < b; ++l) v -= row[l] * y[l];
      y[b] = row[b] > 0 ? v / row[b] : 0;
      d2 -= y[b] * y[b];
    }
    if (!(d2 > static_cast<double>(this->eps) * kernel(a, a))) return;
    const double scale = 1 / std::sqrt(d2);
    T* const c = coefficients + count * width;
    const T** const of = term_rows + count * width;
    for (Index b = n; b-- > 0;) {  // L^T z = y
      double v = y[b];
      for (Index l = b + 1; l < n; ++l) v -= factor[l * width + b] * y[l];
      y[b] = factor[b * width + b] > 0 ? v / factor[b * width + b] : 0;
      c[b] = static_cast<T>(-y[b] * scale);
      of[b] = window_rows[from + b];
    }
    c[n] = static_cast<T>(scale);
    of[n] = window_rows[a];
    term_size[count] = static_cast<std::int32_t>(n + 1);
    signs[count++] = sign;
  }
};

}  // namespace detail
}  // namespace RECOPS_ABI
}  // namespace recops
