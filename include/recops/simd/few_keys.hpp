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

/// c[r][.] = init[.] + sum_j a[r][j] b[j][.], R rows and V vectors.
template <class T, class A, int R, int V>
[[gnu::noinline]] void product_tile(Index depth, const T* a, Index a_stride, const T* b, Index b_stride, const T* init, T* c,
                                    Index c_stride) {
  constexpr Index W = lanes<T, A>;
  using B = Batch<T, A>;
  B acc[R][V];
  RECOPS_UNROLL
  for (int v = 0; v < V; ++v) {
    const B first = init ? B::load_aligned(init + v * W) : B(T(0));
    RECOPS_UNROLL
    for (int r = 0; r < R; ++r) acc[r][v] = first;
  }
  // One pointer to every third row, and hidden from the compiler: an offset for each would take all the integer registers.
  constexpr int groups = (R + 2) / 3;
  const T* rows[groups];
  RECOPS_UNROLL
  for (int g = 0; g < groups; ++g) rows[g] = a + 3 * g * a_stride;
  const Index row_bytes = a_stride * static_cast<Index>(sizeof(T));
  for (Index j = depth; j > 0; --j, b += b_stride) {
    RECOPS_UNROLL
    for (int g = 0; g < groups; ++g) asm("" : "+r"(rows[g]));
    B x[V];
    RECOPS_UNROLL
    for (int v = 0; v < V; ++v) x[v] = simd::detail::in_register(B::load_aligned(b + v * W));
    RECOPS_UNROLL
    for (int r = 0; r < R; ++r) {
      const B y(*reinterpret_cast<const T*>(reinterpret_cast<const char*>(rows[r / 3]) + r % 3 * row_bytes));
      RECOPS_UNROLL
      for (int v = 0; v < V; ++v) acc[r][v] = mul_add(y, x[v], acc[r][v]);
    }
    RECOPS_UNROLL
    for (int g = 0; g < groups; ++g) ++rows[g];
  }
  RECOPS_UNROLL
  for (int r = 0; r < R; ++r) {
    RECOPS_UNROLL
    for (int v = 0; v < V; ++v) acc[r][v].store_unaligned(c + r * c_stride + v * W);
  }
}

/// The same for any number of rows and `vectors`; the last tile of rows overlaps the one before.
template <class T, class A>
void product(Index rows, Index vectors, Index depth, const T* a, Index a_stride, const T* b, Index b_stride, const T* init, T* c,
             Index c_stride) {
  constexpr Index W = lanes<T, A>, most = attention_kernel::tall<A>;
  for (Index v = 0; v < vectors; v += 2) {
    const bool pair = v + 2 <= vectors;
    const T *from = b + v * W, *start = init ? init + v * W : nullptr;
    for (Index r = 0; r < rows;) {
      if (rows >= most) {
        if (rows - r < most) r = rows - most;
        (pair ? product_tile<T, A, most, 2> : product_tile<T, A, most, 1>)(depth, a + r * a_stride, a_stride, from, b_stride,
                                                                           start, c + r * c_stride + v * W, c_stride);
        r += most;
      } else {
        (pair ? product_tile<T, A, 1, 2> : product_tile<T, A, 1, 1>)(depth, a + r * a_stride, a_stride, from, b_stride, start,
                                                                     c + r * c_stride + v * W, c_stride);
        ++r;
      }
    }
  }
}

/// 2^x for x <= 0, at least 2^-126; NaN stays NaN.
template <class T, class A>
RECOPS_INLINE Batch<T, A> power(Batch<T, A> x) {
  using B = Batch<T, A>;
  if constexpr (std::is_same_v<T, float> && registers<A> != 32) {
    constexpr float c[] = {1.00000007f, 0.693146967f, 0.240221197f, 0.0555071328f, 0.0096755415f, 0.0013276472f};
    const B magic(12582912.0f);  // adding it leaves the nearest whole number in the low bits
    const B y = xsimd::max(B(-126.0f), x), t = y + magic, r = y - (t - magic);
    const auto whole = bits_as<std::int32_t>(t) << 23;
    return bits_as<float>(bits_as<std::int32_t>(simd::detail::polynomial(r, c)) + whole) + (y - y);
  } else {
    return attention_kernel::exp2(x);
  }
}

/// The largest of each of several vectors, one per lane.
template <class T, class A>
RECOPS_INLINE Batch<T, A> max_each(Batch<T, A>* x) {
  constexpr Index W = lanes<T, A>;
  RECOPS_UNROLL
  for (Index n = W / 2; n > 0; n /= 2) {
    RECOPS_UNROLL
    for (Index i = 0; i < n; ++i) x[i] = xsimd::max(zip<false>(x[i], x[i + n]), zip<true>(x[i], x[i + n]));
  }
  return x[0];
}

/// Softmax of `count` runs of n scores in units of log 2, n a whole number of vectors and count of lanes. What crosses lanes is done
/// for as many runs at a time as there are lanes. `V`: vectors of a run, 0 for any number.
template <class T, class A, int V>
[[gnu::noinline]] void softmax_runs(T* s, Index count, Index n) {
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
  alignas(64) T across[W * W], one[W];
  for (Index i = 0; i < count; i += W, s += W * n) {
    B x[W];
    RECOPS_UNROLL
    for (Index u = 0; u < W; ++u) {
      const T* const from = s + u * n;
      x[u] = B::load_aligned(from);
      each([&](Index j) RECOPS_LAMBDA_INLINE {
        if (j > 0) x[u] = xsimd::max(B::load_aligned(from + j), x[u]);
      });
    }
    max_each<T, A>(x).store_aligned(one);
    for (Index u = 0; u < W; ++u) {
      T* const to = s + u * n;
      const B most(one[u]);
      B sum(T(0));
      each([&](Index j) RECOPS_LAMBDA_INLINE {
        const B e = power(B::load_aligned(to + j) - most);
        e.store_aligned(to + j);
        sum = sum + e;
      });
      sum.store_aligned(across + u * W);
    }
    RECOPS_UNROLL
    for (Index u = 0; u < W; ++u) x[u] = B::load_aligned(across + u * W);
    (B(T(1)) / sum_each<T, A>(x)).store_aligned(one);
    for (Index u = 0; u < W; ++u) {
      T* const to = s + u * n;
      const B factor(one[u]);
      each([&](Index j) RECOPS_LAMBDA_INLINE { (B::load_aligned(to + j) * factor).store_aligned(to + j); });
    }
  }
}
template <class T, class A>
void softmax_runs(T* s, Index count, Index n) {
  constexpr Index W = lanes<T, A>;
  const Index whole = (count + W - 1) / W * W;
  std::fill(s + count * n, s + whole * n, T(0));
  if (n == W) return softmax_runs<T, A, 1>(s, whole, n);
  if (n == 2 * W) return softmax_runs<T, A, 2>(s, whole, n);
  if (n == 4 * W) return softmax_runs<T, A, 4>(s, whole, n);
  softmax_runs<T, A, 0>(s, whole, n);
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

/// The keys and values of one sequence, laid out for the products. A key that is not there, behind the last of a segment, has the bias
/// -infinity and the value 0.
template <class T, class A = DefaultArch>
class FewKeys {
 public:
  /// Memory is taken from `ws`. `backward`: both directions.
  FewKeys(const FewKeysOperands<T>& x, bool backward, Workspace& ws)
      : segments_(x.segments),
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
    const bool biased = x.key_bias || run_ != x.keys;
    if (biased) bias_ = ws.take<T>(n_);
    if (x.bias) {
      out_bias_ = ws.take<T>(padded_width_);
      std::copy_n(x.bias, width_, out_bias_);
      std::fill(out_bias_ + width_, out_bias_ + padded_width_, T(0));
    }
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
          bias_[row] = !there       ? -std::numeric_limits<T>::infinity()
                       : x.key_bias ? attention_kernel::log2_e<T> * x.key_bias[s * x.bias_segment + j * x.bias_stride]
                                    : T(0);
        if (!backward) continue;
        T* const back = keys_back_ + row * padded_depth_;
        if (there) simd::scale<T, A>(x.scale, k + j * x.k_stride, back, depth_);
        std::fill(back + (there ? depth_ : 0), back + padded_depth_, T(0));
      }
    }
  }

  /// y `[R, width]` of x `[R, depth]`, R <= few_keys::block; a row whose `mask` is 0 gets zeros.
  void attend(MatrixView<const T> x, const std::uint8_t* mask, MatrixView<T> y) {
    const Index rows = x.rows();
    weigh(x);
    const bool direct = width_ == padded_width_;
    T* const to = direct ? y.data() : copy_;
    const Index stride = direct ? y.stride() : padded_width_;
    few_keys::product<T, A>(rows, padded_width_ / lanes<T, A>, n_, weights_, n_, values_, padded_width_, out_bias_, to, stride);
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
    weigh(in.middle_cols(0, depth_));
    few_keys::product<T, A>(rows, n_ / W, width_, dout.data(), dout.stride(), values_back_, n_, nullptr, scores_, n_);
    few_keys::softmax_runs_backward<T, A>(weights_, scores_, rows * segments_, run_);
    if (gradients.v)
      sums_wide<T, A>(n_, padded_width_ / W, rows, weights_, 1, n_, dout.data(), dout.stride(), gradients.v, padded_width_);
    if (gradients.k)
      sums_wide<T, A>(n_, padded_depth_ / W, rows, scores_, 1, n_, in.data(), in.stride(), gradients.k, padded_depth_);
    for (Index i = 0; gradients.key_bias && i < rows; ++i) simd::add<T, A>(scores_ + i * n_, gradients.key_bias, n_);
    if (dx.empty()) return;
    few_keys::product<T, A>(rows, padded_depth_ / W, n_, scores_, n_, keys_back_, padded_depth_, nullptr, copy_in_,
                            padded_depth_);
    for (Index i = 0; i < rows; ++i)
      if (!mask || mask[i] != 0) simd::add<T, A>(copy_in_ + i * padded_depth_, dx.row(i), depth_);
  }

 private:
  void weigh(MatrixView<const T> x) {
    few_keys::product<T, A>(x.rows(), n_ / lanes<T, A>, depth_, x.data(), x.stride(), keys_, n_, bias_, weights_, n_);
    few_keys::softmax_runs<T, A>(weights_, x.rows() * segments_, run_);
  }

  Index segments_, run_, n_, depth_, width_, padded_depth_, padded_width_;
  T *keys_, *values_;                                            // [depth, n] in units of log 2; [n, padded width]
  T *bias_ = nullptr, *out_bias_ = nullptr;                      // [n], [padded width]
  T *keys_back_ = nullptr, *values_back_ = nullptr;              // [n, padded depth] times c; [width, n]
  T *weights_, *copy_, *scores_ = nullptr, *copy_in_ = nullptr;  // of a block
};

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
