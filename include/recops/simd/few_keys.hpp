/// @file   recops/simd/few_keys.hpp
/// @brief  Softmax attention of very many rows over a few keys: two products of packed weights with a softmax between them.
///
///     y_i = sum_s sum_j P_isj v_sj + bias,     P_is = softmax_j(c x_i . k_sj + key_bias_sj)
///
/// A segment s has a softmax of its own; the segments' outputs are summed (one segment: a head of its own). Rows go in blocks
/// whose scores stay in L1, lanes are keys, so that nothing but the largest and the sum of a row crosses lanes.
#pragma once
#include <cmath>
#include <recops/simd/attention_tiles.hpp>
#include <recops/simd/gemm.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

/// The keys of one sequence: row j of segment s of the keys begins at k + s * k_segment + j * k_stride.
template <class T>
struct FewKeysOperands {
  const T *k, *v;
  Index segments, keys, depth, width;  ///< rows are `depth` wide, outputs `width`
  Index k_stride, k_segment, v_stride, v_segment;
  T scale;                      ///< c
  const T* key_bias = nullptr;  ///< [keys] of segment s begins at key_bias + s * bias_segment
  Index bias_stride = 0, bias_segment = 0;
  const T* bias = nullptr;  ///< [width]
};

/// Where the gradients go; all are added to. A row of the keys' and values' gradients is padded to whole vectors.
template <class T>
struct FewKeysGradients {
  T* k = nullptr;         ///< [segments * padded keys, padded depth], of x . k, without c
  T* v = nullptr;         ///< [segments * padded keys, padded width]
  T* key_bias = nullptr;  ///< [segments * padded keys]
};

namespace few_keys {

/// Rows of a block: a multiple of the lanes and of the height of a tile.
inline constexpr Index block = 48;

template <class T, class A>
constexpr Index padded(Index n) {
  return (n + lanes<T, A> - 1) / lanes<T, A> * lanes<T, A>;
}

/// What becomes of the sums of a row before they are stored, N vectors from `column` on: nothing,
struct AsItIs {
  template <int N, class B>
  RECOPS_INLINE void operator()(B*, Index, Index) const {}
};
/// powers of two, good if all of them are near,
template <class T, class A>
struct Powers {
  attention_kernel::NearPowers<T, A> near;
  template <int N, class B>
  RECOPS_INLINE void operator()(B* x, Index, Index) {
    near.template operator()<N>(x);
  }
};
/// or a share of the row, plus a bias.
template <class T>
struct Share {
  const T *factors, *bias;
  template <int N, class B>
  RECOPS_INLINE void operator()(B* x, Index row, Index column) const {
    RECOPS_UNROLL
    for (int v = 0; v < N; ++v) x[v] = mul_add(x[v], B(factors[row]), B::load_aligned(bias + column + v * Index{B::size}));
  }
};

/// c[r][.] = finish(init[.] + sum_j a[r][j] b[j][.]), `rows` >= R rows in tiles of R, the last of which overlaps the one before, and V
/// vectors from `column` on. With each tile some of the rows `ahead` are asked for.
template <class T, class A, int R, int V, class Finish>
[[gnu::noinline]] void product_tiles(Index rows, Index depth, const T* a, Index a_stride, const T* b, Index b_stride,
                                     const T* init, T* c, Index c_stride, Finish& result, Index column,
                                     attention_kernel::RowsAhead<T>* ahead) {
  constexpr Index W = lanes<T, A>;
  using B = Batch<T, A>;
  Finish finish = result;  // in registers
  for (Index row = 0; row < rows; row += R) {
    if (rows - row < R) row = rows - R;
    if (ahead) ahead->ask();
    B acc[R][V];
    RECOPS_UNROLL
    for (int v = 0; v < V; ++v) {
      const B first = init ? B::load_aligned(init + column + v * W) : B(T(0));
      RECOPS_UNROLL
      for (int r = 0; r < R; ++r) acc[r][v] = first;
    }
    attention_kernel::add_products<T, A, R, V>(depth, attention_kernel::AlongRows<T, R>(a + row * a_stride, a_stride), b + column,
                                               b_stride, acc);
    T* const to = c + row * c_stride + column;
    RECOPS_UNROLL
    for (int r = 0; r < R; ++r) {
      finish.template operator()<V>(acc[r], row + r, column);
      RECOPS_UNROLL
      for (int v = 0; v < V; ++v) acc[r][v].store_unaligned(to + r * c_stride + v * W);
    }
  }
  result = finish;
}

/// Rows of a tile: powers keep the stores of six rows apart (104 against 106 us a call of 1000 rows, 32 keys and 2 heads).
template <class A, int V, class Finish>
inline constexpr int tile_rows = attention_kernel::tile_rows<A, V>;
template <class T, class A>
inline constexpr int tile_rows<A, 2, Powers<T, A>> = registers<A> == 32 ? 12 : 6;

/// The same for any number of rows and `vectors`; returns `finish`.
template <class T, class A, class Finish = AsItIs>
Finish product(Index rows, Index vectors, Index depth, const T* a, Index a_stride, const T* b, Index b_stride, const T* init,
               T* c, Index c_stride, Finish finish = {}, attention_kernel::RowsAhead<T>* ahead = nullptr) {
  for (Index v = 0; v < vectors; v += 2) {
    const auto tiles = [&](auto* some) {
      some(rows, depth, a, a_stride, b, b_stride, init, c, c_stride, finish, v * lanes<T, A>, ahead);
    };
    constexpr int two = tile_rows<A, 2, Finish>, one = tile_rows<A, 1, Finish>;
    if (v + 2 <= vectors) {
      tiles(rows >= two ? product_tiles<T, A, two, 2, Finish> : product_tiles<T, A, 1, 2, Finish>);
    } else {
      tiles(rows >= one ? product_tiles<T, A, one, 1, Finish> : product_tiles<T, A, 1, 1, Finish>);
    }
  }
  return finish;
}

/// The bias of a key that is not there: a weight that no sum notices, and near enough for powers.
template <class T>
inline constexpr T absent = T(-90);

/// s <- 2^(s - the largest) for a run of n numbers, a whole number of vectors, of which `keys` are there.
template <class T, class A>
[[gnu::noinline, gnu::cold]] void powers_from_largest(T* s, Index keys, Index n) {
  using B = Batch<T, A>;
  std::fill(s + keys, s + n, -std::numeric_limits<T>::infinity());
  B most = B::load_aligned(s);
  for (Index j = lanes<T, A>; j < n; j += lanes<T, A>) most = xsimd::max(B::load_aligned(s + j), most);
  const B largest(max_lane(most));
  for (Index j = 0; j < n; j += lanes<T, A>) attention_kernel::exp2(B::load_aligned(s + j) - largest).store_aligned(s + j);
}

/// s <- 2^s for `count` such runs, each by itself, so that its bits do not depend on its company: measured from 0 where that is near.
template <class T, class A>
[[gnu::noinline, gnu::cold]] void powers_of_runs(T* s, Index count, Index keys, Index n) {
  using B = Batch<T, A>;
  for (; count > 0; --count, s += n) {
    const auto powers = [&](bool store) {
      attention_kernel::NearPowers<T, A> near;
      for (Index j = 0; j < n; j += lanes<T, A>) {
        B x = B::load_aligned(s + j);
        near.template operator()<1>(&x);
        if (store) x.store_aligned(s + j);
      }
      return near.all();
    };
    if (powers(false)) {
      powers(true);
    } else {
      powers_from_largest<T, A>(s, keys, n);
    }
  }
}

/// factors[i] <- 1 / the sum of run i, for `count` runs of n powers, n a whole number of vectors and count of lanes. What crosses lanes is
/// done for as many runs at a time as there are lanes; `again(i)` measures from its largest a run whose sum is out of range. `V`: vectors
/// of a run, 0 for any number. `scale`: the runs become what they are shares of.
template <class T, class A, int V, bool scale, class Again>
[[gnu::noinline]] void shares(T* s, Index count, Index n, T* factors, const Again& again) {
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>;
  const auto each = [&](auto&& f) RECOPS_LAMBDA_INLINE {
    if constexpr (V > 0) {
      RECOPS_UNROLL
      for (Index v = 0; v < V; ++v) f(v * W);
    } else {
      for (Index j = 0; j < n; j += W) f(j);
    }
  };
  if constexpr (V > 0) n = V * W;
  const B least(std::ldexp(T(1), -30)), most(std::ldexp(T(1), 30));
  for (Index i = 0; i < count; i += W, s += W * n) {
    const auto total = [&]() RECOPS_LAMBDA_INLINE {
      B x[W];
      RECOPS_UNROLL
      for (Index u = 0; u < W; ++u) {
        const T* const from = s + u * n;
        x[u] = B::load_aligned(from);
        each([&](Index j) RECOPS_LAMBDA_INLINE {
          if (j > 0) x[u] = x[u] + B::load_aligned(from + j);
        });
      }
      return sum_each<T, A>(x);
    };
    B sum = total();
    if (!xsimd::all((sum >= least) & (sum <= most))) [[unlikely]] {
      alignas(64) T sums[W];
      sum.store_aligned(sums);
      for (Index u = 0; u < W; ++u)
        if (!(sums[u] >= least.get(0) && sums[u] <= most.get(0))) again(i + u);
      sum = total();
    }
    (B(T(1)) / sum).store_aligned(factors + i);
    if constexpr (scale) {
      for (Index u = 0; u < W; ++u) {
        T* const to = s + u * n;
        const B factor(factors[i + u]);
        each([&](Index j) RECOPS_LAMBDA_INLINE { (B::load_aligned(to + j) * factor).store_aligned(to + j); });
      }
    }
  }
}

/// d <- p (d - sum p d) for every run.
template <class T, class A>
[[gnu::noinline]] void softmax_runs_backward(const T* p, T* d, Index count, Index n) {
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>;
  for (Index i = 0; i < count; ++i, p += n, d += n) {
    B sum(T(0));
    for (Index j = 0; j < n; j += W) sum = mul_add(B::load_aligned(p + j), B::load_aligned(d + j), sum);
    const B mean(sum_lanes(sum));
    for (Index j = 0; j < n; j += W) (B::load_aligned(p + j) * (B::load_aligned(d + j) - mean)).store_aligned(d + j);
  }
}

/// Rows as sums over them need them: whole vectors wide, those that a mask hides 0. `x` itself where it is that already.
template <class T, class A>
MatrixView<const T> summable(MatrixView<const T> x, const std::uint8_t* mask, T* copy) {
  const Index cols = padded<T, A>(x.cols());
  if (!mask && cols == x.cols()) return x;
  for (Index i = 0; i < x.rows(); ++i) {
    T* const to = copy + i * cols;
    const bool seen = !mask || mask[i] != 0;
    if (seen) std::copy_n(x.row(i), x.cols(), to);
    std::fill(to + (seen ? x.cols() : 0), to + cols, T(0));
  }
  return MatrixView<const T>(copy, x.rows(), cols);
}

}  // namespace few_keys

/// The keys and values of one sequence, laid out for the products. A key that is not there, behind the last of a segment, has the value 0.
template <class T, class A = DefaultArch>
class FewKeys {
 public:
  /// Memory is taken from `ws`. `backward`: both directions.
  FewKeys(const FewKeysOperands<T>& x, bool backward, Workspace& ws)
      : segments_(x.segments),
        present_(x.keys),
        run_(few_keys::padded<T, A>(x.keys)),
        n_(x.segments * run_),
        depth_(x.depth),
        width_(x.width),
        padded_depth_(few_keys::padded<T, A>(x.depth)),
        padded_width_(few_keys::padded<T, A>(x.width)) {
    keys_ = ws.take<T>(depth_ * n_);
    values_ = ws.take<T>(n_ * padded_width_);
    weights_ = ws.take<T>(few_keys::block * n_);
    copy_ = ws.take<T>(few_keys::block * padded_width_);
    factors_ = ws.take<T>(few_keys::block * segments_);
    const bool biased = x.key_bias || run_ != x.keys;
    if (biased) bias_ = ws.take<T>(n_);
    out_bias_ = ws.take<T>(padded_width_);
    std::fill_n(out_bias_, padded_width_, T(0));
    if (x.bias) std::copy_n(x.bias, width_, out_bias_);
    if (backward) {
      keys_back_ = ws.take<T>(n_ * padded_depth_);
      values_back_ = ws.take<T>(width_ * n_);
      scores_ = ws.take<T>(few_keys::block * n_);
      copy_in_ = ws.take<T>(few_keys::block * padded_depth_);
    }
    for (Index s = 0; s < segments_; ++s) {
      const T *k = x.k + s * x.k_segment, *v = x.v + s * x.v_segment;
      pack_transposed<T, A>(k, x.k_stride, x.keys, depth_, x.scale * attention_kernel::log2_e<T>, keys_ + s * run_, n_, run_);
      if (backward) pack_transposed<T, A>(v, x.v_stride, x.keys, width_, T(1), values_back_ + s * run_, n_, run_);
      for (Index j = 0; j < run_; ++j) {
        const Index row = s * run_ + j;
        const bool there = j < x.keys;
        T* const to = values_ + row * padded_width_;
        if (there) std::copy_n(v + j * x.v_stride, width_, to);
        std::fill(to + (there ? width_ : 0), to + padded_width_, T(0));
        if (biased)
          bias_[row] = !there       ? few_keys::absent<T>
                       : x.key_bias ? attention_kernel::log2_e<T> * x.key_bias[s * x.bias_segment + j * x.bias_stride]
                                    : T(0);
        if (!backward) continue;
        T* const back = keys_back_ + row * padded_depth_;
        if (there) simd::scale<T, A>(x.scale, k + j * x.k_stride, back, depth_);
        std::fill(back + (there ? depth_ : 0), back + padded_depth_, T(0));
      }
    }
    // Multiples of weights add up to 2^30 at most: values beyond this might overflow where their mean does not.
    constexpr T limit = std::numeric_limits<T>::max() / T(1 << 30);
    Batch<T, A> most(T(0));
    for (Index i = 0; i < n_ * padded_width_; i += lanes<T, A>)
      most = xsimd::max(most, Batch<T, A>(xsimd::abs(Batch<T, A>::load_aligned(values_ + i))));
    divide_last_ = segments_ == 1 && xsimd::all(most <= Batch<T, A>(limit));
  }

  /// y `[R, width]` of x `[R, depth]`, R <= few_keys::block; a row whose `mask` is 0 gets zeros.
  void attend(MatrixView<const T> x, const std::uint8_t* mask, MatrixView<T> y, attention_kernel::RowsAhead<T>* ahead = nullptr) {
    const Index rows = x.rows(), vectors = padded_width_ / lanes<T, A>;
    const bool direct = width_ == padded_width_;
    T* const to = direct ? y.data() : copy_;
    const Index stride = direct ? y.stride() : padded_width_;
    if (divide_last_) {
      weigh<false>(x, ahead);
      few_keys::product<T, A>(rows, vectors, n_, weights_, n_, values_, padded_width_, nullptr, to, stride,
                              few_keys::Share<T>{factors_, out_bias_}, ahead);
    } else {
      weigh<true>(x, ahead);
      few_keys::product<T, A>(rows, vectors, n_, weights_, n_, values_, padded_width_, out_bias_, to, stride, few_keys::AsItIs{},
                              ahead);
    }
    if (direct && !mask) return;
    for (Index i = 0; i < rows; ++i) {
      if (!direct) std::copy_n(copy_ + i * padded_width_, width_, y.row(i));
      if (mask && mask[i] == 0) std::fill_n(y.row(i), width_, T(0));
    }
  }

  /// Adds to dx `[R, depth]`, unless empty, and to `gradients`; a row whose `mask` is 0 takes no part, whatever it holds.
  void backward(MatrixView<const T> x, const std::uint8_t* mask, MatrixView<const T> dy, MatrixView<T> dx,
                const FewKeysGradients<T>& gradients) {
    using namespace attention_kernel;
    constexpr Index W = lanes<T, A>;
    const Index rows = x.rows();
    const MatrixView<const T> in = few_keys::summable<T, A>(x, mask, copy_in_), dout = few_keys::summable<T, A>(dy, mask, copy_);
    weigh<true>(in.middle_cols(0, depth_));
    few_keys::product<T, A>(rows, n_ / W, width_, dout.data(), dout.stride(), values_back_, n_, nullptr, scores_, n_);
    few_keys::softmax_runs_backward<T, A>(weights_, scores_, rows * segments_, run_);
    if (gradients.v)
      sums_wide<T, A, true>(n_, padded_width_ / W, rows, weights_, n_, dout.data(), dout.stride(), gradients.v, padded_width_);
    if (gradients.k)
      sums_wide<T, A, true>(n_, padded_depth_ / W, rows, scores_, n_, in.data(), in.stride(), gradients.k, padded_depth_);
    for (Index i = 0; gradients.key_bias && i < rows; ++i) simd::add<T, A>(scores_ + i * n_, gradients.key_bias, n_);
    if (dx.empty()) return;
    few_keys::product<T, A>(rows, padded_depth_ / W, n_, scores_, n_, keys_back_, padded_depth_, nullptr, copy_in_,
                            padded_depth_);
    for (Index i = 0; i < rows; ++i)
      if (!mask || mask[i] != 0) simd::add<T, A>(copy_in_ + i * padded_depth_, dx.row(i), depth_);
  }

 private:
  /// The weights of a block, with `scaled` as they are, else as multiples of which `factors_` makes weights.
  template <bool scaled>
  void weigh(MatrixView<const T> x, attention_kernel::RowsAhead<T>* ahead = nullptr) {
    constexpr Index W = lanes<T, A>;
    const Index count = x.rows() * segments_, whole = (count + W - 1) / W * W;
    const auto product = [&](Index rows, Index row, Index segment, Index vectors, auto finish) {
      return few_keys::product<T, A>(rows, vectors, depth_, x.row(row), x.stride(), keys_ + segment * run_, n_,
                                     bias_ ? bias_ + segment * run_ : nullptr, weights_ + row * n_ + segment * run_, n_, finish,
                                     ahead);
    };
    // Powers are measured from 0, and only where that would leave the range from the largest.
    near_ = near_ && product(x.rows(), 0, 0, n_ / W, few_keys::Powers<T, A>{}).near.all();
    if (!near_) [[unlikely]] {  // nor will it be for the rows after these
      product(x.rows(), 0, 0, n_ / W, few_keys::AsItIs{});
      few_keys::powers_of_runs<T, A>(weights_, count, present_, run_);
    }
    std::fill(weights_ + count * run_, weights_ + whole * run_, T(1));
    const auto again = [&](Index i) {
      product(1, i / segments_, i % segments_, run_ / W, few_keys::AsItIs{});
      few_keys::powers_from_largest<T, A>(weights_ + i * run_, present_, run_);
    };
    const auto shares = [&](auto vectors) {
      few_keys::shares<T, A, decltype(vectors)::value, scaled>(weights_, whole, run_, factors_, again);
    };
    if (run_ == W) return shares(std::integral_constant<int, 1>());
    if (run_ == 2 * W) return shares(std::integral_constant<int, 2>());
    if (run_ == 4 * W) return shares(std::integral_constant<int, 4>());
    shares(std::integral_constant<int, 0>());
  }

  bool divide_last_;  // the outputs, not the weights
  bool near_ = true;
  Index segments_, present_, run_, n_, depth_, width_, padded_depth_, padded_width_;
  T *keys_, *values_;                                                       // [depth, n] in units of log 2; [n, padded width]
  T *bias_ = nullptr, *out_bias_;                                           // [n], [padded width]
  T *keys_back_ = nullptr, *values_back_ = nullptr;                         // [n, padded depth] times c; [width, n]
  T *weights_, *factors_, *copy_, *scores_ = nullptr, *copy_in_ = nullptr;  // of a block
};

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
