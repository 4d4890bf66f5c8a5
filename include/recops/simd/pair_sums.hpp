/// @file   recops/simd/pair_sums.hpp
/// @brief  Sums over all pairs of two sets of scores, the inner loop of pairwise ranking losses.
///
///     x_ij = sigma (low_j - high_i)        logistic: f = softplus(x), f' = sigmoid(x)        sigmoid: f = sigmoid(x)
///
/// with i in `high`, which should win, and j in `low`: the sum of all f, and of f' over each row and each column.
///
/// Speed       e^x_ij = e^(sigma low_j) e^(-sigma high_i): the exponentials of n scores serve n^2 pairs. Four rows share one division,
///             and one logarithm serves the product of all 1 + e^x of a lane. Where the scores lie so far apart that such products would
///             overflow (`PairScores::separable` is false) every pair takes an exponential of its own, at about half the speed.
/// Precision   a pair's f' is within some 5 units in the last place. Sums run in T over 32 vectors (rows) or 64 rows (columns)
///             and in double beyond. The order of additions depends on the sizes alone.
#pragma once
#include <algorithm>
#include <cmath>
#include <recops/simd/log.hpp>
#include <utility>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

/// What a pair costs.
enum class PairLoss {
  logistic,  ///< softplus(x)
  sigmoid,   ///< sigmoid(x)
};

/// How a set of scores is handed to `pair_sums`: by its exponentials if they are of a size that can be multiplied.
template <class T>
struct PairScores {
  bool separable;  ///< whether the numbers are exponentials
  T sigma;
  T centre;  ///< subtracted before the exponential
  T reach;   ///< an upper bound of x
};

namespace detail {

inline constexpr int pair_rows = 4;      // rows of a tile
inline constexpr Index pair_block = 32;  // vectors of columns before sums go to double
inline constexpr Index pair_group = 64;  // rows before the sums of columns do

/// sum of the four, which are products of (1 + e) - 1, and the reciprocals of p = 1 + e with one division.
template <class B>
struct PairQuad {
  B product, excess, inverse[pair_rows];  // of all four p; product - 1 without cancellation
  RECOPS_INLINE PairQuad(const B (&e)[pair_rows], bool reciprocals) {
    const B one(typename B::value_type(1));
    const B p[pair_rows] = {e[0] + one, e[1] + one, e[2] + one, e[3] + one};
    const B first = p[0] * p[1], second = p[2] * p[3];
    const B q = mul_add(e[0], p[1], e[1]), r = mul_add(e[2], p[3], e[3]);
    product = first * second;
    excess = mul_add(q, second, r);
    if (!reciprocals) return;
    const B inverse_all = one / product, of_first = inverse_all * second, of_second = inverse_all * first;
    inverse[0] = of_first * p[1];
    inverse[1] = of_first * p[0];
    inverse[2] = of_second * p[3];
    inverse[3] = of_second * p[2];
  }
};

template <class T, class A, PairLoss loss, bool gradient, bool separable>
double pair_sums(const T* high, Index rows, const T* low, Index cols, T sigma, Index period, double* row, double* col) {
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>, width = pair_block * W;
  using Word = std::conditional_t<std::is_same_v<T, float>, std::uint32_t, std::uint64_t>;
  using U = Batch<Word, A>;
  constexpr int fraction = std::is_same_v<T, float> ? 23 : 52;
  constexpr Word bias = std::is_same_v<T, float> ? 127 : 1023;
  constexpr T far = std::numeric_limits<T>::infinity();
  alignas(64) T block[width], sums[width];
  double total = 0;
  for (Index c = 0; c < cols; c += width) {
    const Index count = std::min(width, cols - c), padded = (count + W - 1) / W * W;
    std::copy_n(low + c, count, block);
    std::fill(block + count, block + padded, separable ? T(0) : -far);  // what is padded adds nothing
    for (Index g = 0; g < rows; g += pair_group) {
      if constexpr (gradient) std::fill_n(sums, padded, T(0));
      for (Index i = g; i < std::min(rows, g + pair_group); i += pair_rows) {
        const Index height = std::min<Index>(pair_rows, rows - i);
        B h[pair_rows], across[pair_rows];
        RECOPS_UNROLL
        for (int r = 0; r < pair_rows; ++r) {
          h[r] = B(r < height ? high[i + r] : separable ? T(0) : far);
          across[r] = B(T(0));
        }
        B excess(T(0)), plain(T(0));  // of the product over a power of two; what is summed without a logarithm
        U powers(0);
        Index periods = 0;
        for (Index start = 0; start < padded; start += period * W) {
          const Index end = std::min(padded, start + period * W);
          for (Index j = start; j < end; j += W) {
            const B l = B::load_aligned(block + j);
            B e[pair_rows], x[pair_rows], f[pair_rows];
            RECOPS_UNROLL
            for (int r = 0; r < pair_rows; ++r) {
              if constexpr (separable) {
                e[r] = l * h[r];
              } else {
                x[r] = B(sigma) * (l - h[r]);
                constexpr T least = std::is_same_v<T, float> ? T(-104) : T(-746);
                e[r] = exp_parts(xsimd::max(B(least), -xsimd::abs(x[r]))).value();
              }
            }
            const PairQuad<B> quad(e, gradient || loss == PairLoss::sigmoid);
            if constexpr (loss == PairLoss::logistic) {
              excess = mul_add(excess, quad.product, quad.excess);
              if constexpr (!separable) {
                RECOPS_UNROLL
                for (int r = 0; r < pair_rows; ++r) plain = plain + xsimd::max(B(T(0)), x[r]);
              }
            }
            if constexpr (gradient || loss == PairLoss::sigmoid) {
              RECOPS_UNROLL
              for (int r = 0; r < pair_rows; ++r) {
                const B small = e[r] * quad.inverse[r];
                if constexpr (separable) {
                  f[r] = small;
                } else {
                  f[r] = xsimd::select(x[r] >= B(T(0)), quad.inverse[r], small);
                }
                if constexpr (loss == PairLoss::sigmoid) {
                  plain = plain + f[r];
                  f[r] = small * quad.inverse[r];
                }
              }
            }
            if constexpr (gradient) {
              RECOPS_UNROLL
              for (int r = 0; r < pair_rows; ++r) across[r] = across[r] + f[r];
              const B down = (f[0] + f[1]) + (f[2] + f[3]);
              (B::load_aligned(sums + j) + down).store_aligned(sums + j);
            }
          }
          if constexpr (loss == PairLoss::logistic) {  // 1 + excess back to [1, 2); what is there already stays as exact as it is
            const U power = bits_as<Word>(B(excess + B(T(1)))) >> fraction;
            const B scale = bits_as<T>(U((U(2 * bias) - power) << fraction));
            excess = mul_add(excess, scale, scale - B(T(1)));
            powers = powers + power;
            ++periods;
          }
        }
        if constexpr (loss == PairLoss::logistic) {
          alignas(64) Word lane[W];
          powers.store_aligned(lane);
          Word sum = 0;
          for (const Word power : lane) sum += power;
          constexpr double log_2 = 0.69314718055994530942;
          total += log_2 * (static_cast<double>(sum) - static_cast<double>(periods * W) * static_cast<double>(bias)) +
                   static_cast<double>(sum_lanes(simd::log1p(excess)));
        }
        total += static_cast<double>(sum_lanes(plain));
        if constexpr (gradient)
          for (Index r = 0; r < height; ++r) row[i + r] += static_cast<double>(sum_lanes(across[r]));
      }
      if constexpr (gradient)
        for (Index j = 0; j < count; ++j) col[c + j] += static_cast<double>(sums[j]);
    }
  }
  return total;
}

}  // namespace detail

/// How scores within [high_min, high_max] and [low_min, low_max] are to be prepared. All are finite, sigma > 0.
template <class T>
PairScores<T> pair_scores(T sigma, T high_min, T high_max, T low_min, T low_max) {
  constexpr double most = std::is_same_v<T, float> ? 20 : 170;  // (1 + e^x)^4 is finite, and what is left of it in `period`
  constexpr double spread = std::is_same_v<T, float> ? 80 : 700;
  const double least = std::min<double>(high_min, low_min), largest = std::max<double>(high_max, low_max), s = sigma;
  const double reach = s * (static_cast<double>(low_max) - static_cast<double>(high_min));
  const bool separable = s * (largest - least) <= spread && reach <= most;
  return {separable, sigma, static_cast<T>(0.5 * least + 0.5 * largest), static_cast<T>(separable ? reach : 0)};
}

/// The least and the largest of n >= 1 numbers that are not NaN.
template <class T, class A = DefaultArch>
std::pair<T, T> min_max(const T* x, Index n) {
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>;
  T least = x[0], most = x[0];
  Index i = 0;
  if (n >= W) {
    B low = B::load_unaligned(x), high = low;
    for (i = W; i + W <= n; i += W) {
      const B v = B::load_unaligned(x + i);
      low = xsimd::min(low, v);
      high = xsimd::max(high, v);
    }
    least = -max_lane(B(-low));
    most = max_lane(high);
  }
  for (; i < n; ++i) {
    least = x[i] < least ? x[i] : least;
    most = x[i] > most ? x[i] : most;
  }
  return {least, most};
}

/// out = scores as `pair_sums` wants them; `sign` is +1 for those that should lose, -1 for those that should win.
template <class T, class A = DefaultArch>
void prepare_pair_scores(const T* scores, Index n, const PairScores<T>& how, int sign, T* out) {
  if (!how.separable) {
    std::copy_n(scores, n, out);
    return;
  }
  using B = Batch<T, A>;
  const B centre(how.centre), sigma(static_cast<T>(sign) * how.sigma);
  for_each_vector<T, A>(n, [=](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
    // What rounding takes from the argument would be an error of that size of the exponential: it is carried along.
    const B s = load(scores + i), d = s - centre, back = s - d, lost = (s - (d + back)) + (back - centre), x = sigma * d;
    store(out + i, detail::exp_parts(x, mul_add(sigma, d, -x) + sigma * lost).value());
  });
}

/// The sum of f over all pairs of `high [rows]` and `low [cols]`, prepared as `how` says. Where `row [rows]` and `col [cols]` are
/// not null the sums of f' over each row and column are added to them.
template <PairLoss loss, class T, class A = DefaultArch>
double pair_sums(const T* high, Index rows, const T* low, Index cols, const PairScores<T>& how, double* row, double* col) {
  constexpr double capacity = std::is_same_v<T, float> ? 85 : 700;
  const double reach = how.separable ? static_cast<double>(how.reach) : 0, each = (reach > 0 ? reach : 0) + 0.694;
  const Index period = std::clamp<Index>(static_cast<Index>(capacity / (detail::pair_rows * each)), 1, 16);
  const auto run = [&](auto gradient, auto separable) {
    return detail::pair_sums<T, A, loss, gradient(), separable()>(high, rows, low, cols, how.sigma, period, row, col);
  };
  if (row != nullptr) return how.separable ? run(std::true_type{}, std::true_type{}) : run(std::true_type{}, std::false_type{});
  return how.separable ? run(std::false_type{}, std::true_type{}) : run(std::false_type{}, std::false_type{});
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
