/// @file   recops/simd/fft_plan.hpp
/// @brief  How a Fourier transform of one length is done: radices, twiddle factors, the order of the bins, Bluestein's chirp.
///
///     X_k = sum_n x_n e^(-2 pi i k n / L)
///
/// A plan is a value: immutable once made, cheap to copy (copies share their tables), safe to use from many threads. Whoever
/// transforms owns it; there is no global cache, and nothing is allocated after creation. `FftPlans` holds one for every length
/// up to a maximum, for jagged batches, and shares equal tables.
///
/// Lengths     any. Prime factors 2, 3, 5, 7 have butterflies of their own, primes up to 61 a generic one of p^2 operations, the
///             rest goes through Bluestein's convolution of a length 2^a 3^b 5^c >= 2 L - 1, whichever is estimated cheaper.
/// Precision   every factor is computed in double from an integer reduced to one octant, and rounded once to T.
/// Memory      about 2 L scalars and L int32; with Bluestein 8 to 10 L scalars more. `FftPlans<float>` up to 200: 0.5 MB, up to
///             1024: 11 MB.
/// Errors      Error if a length is negative or above 2^26.
/// Reference   Cooley, Tukey 1965; Bluestein, IEEE Trans. Audio Electroacoustics 18, 1970.
#pragma once
#include <array>
#include <cmath>
#include <iterator>
#include <memory>
#include <recops/core/matrix.hpp>
#include <recops/simd/xsimd.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

/// One level of a transform: `radix` interleaved parts of `span` elements each.
struct FftStage {
  int radix = 1;
  Index span = 1;
  Index twiddles =
      0;  ///< where w^(p j), w = e^(-2 pi i / (radix span)), 0 < p < radix, lie in the tables: [span][radix - 1] complex
  Index roots = 0;  ///< where e^(2 pi i m / radix), m < radix, lie; for the generic butterfly alone
};

namespace detail {

/// e^(2 pi i m / n), 0 <= m < n: the angle is folded to one octant in integers, where cos and sin are exact to a rounding.
[[gnu::noinline, gnu::cold]] inline void unit_root(Index m, Index n, double& c, double& s) {
  Index a = 8 * m;  // in eighths of a step; a turn is 8 n
  const bool below = a > 4 * n;
  if (below) a = 8 * n - a;
  const bool left = a > 2 * n;
  if (left) a = 4 * n - a;
  const bool steep = a > n;
  if (steep) a = 2 * n - a;
  const double angle = 0.78539816339744830962 * static_cast<double>(a) / static_cast<double>(n);
  c = steep ? std::sin(angle) : std::cos(angle);
  s = steep ? std::cos(angle) : std::sin(angle);
  if (left) c = -c;
  if (below) s = -s;
}

inline constexpr int fft_largest_prime = 61, fft_most_stages = 20;

/// Estimated cost per element of one level; `last` has no twiddles and keeps its data in registers with the filter. Instructions
/// where there are registers for it; with 16 cycles of a Zen 3, times 2.3: there 8 and 10 spill, and lose to 4 . 4 where the
/// `size` elements of a transform are many.
[[gnu::noinline, gnu::cold]] inline double fft_stage_cost(int radix, bool last, Index size) {
  constexpr bool roomy = registers<> >= 32;
  switch (radix) {
    case 1:
      return 4;
    case 2:
      return roomy ? (last ? 6 : 11) : (last ? 4.6 : 8.9);
    case 3:
      return roomy ? (last ? 8 : 10.7) : (last ? 5.4 : 10.7);
    case 4:
      return roomy ? (last ? 8 : 11) : (last ? 5.1 : 11);
    case 5:
      return roomy ? (last ? 9.6 : 12.8) : (last ? 8.3 : 13.1);
    case 6:
      return roomy ? (last ? 10.3 : 14) : (last ? 7.5 : 15.2);
    case 7:
      return last ? 16 : 17;
    case 8:
      return roomy ? (last ? 11 : 14.5) : (last ? 9.6 : size > 100 ? 17.6 : 17);
    case 10:
      return roomy ? (last ? 11.6 : 15.2) : (last ? 10.6 : size > 100 ? 20 : 19.5);
    default:
      return 16 + 1.6 * radix;
  }
}

inline constexpr int fft_radix_list[] = {61, 59, 53, 47, 43, 41, 37, 31, 29, 23, 19, 17, 13, 11, 10, 8, 7, 6, 5, 4, 3, 2};
inline constexpr int fft_radix_count = static_cast<int>(std::size(fft_radix_list));

/// The cheapest way to write n, a factor of `size`, as a product of radices of the list from entry `from` on, smallest first;
/// infinity where there is none.
[[gnu::noinline, gnu::cold]] inline double fft_factor(Index n, int from, Index size, std::array<int, fft_most_stages>& radices,
                                                      int& count) {
  count = 0;
  double best = std::numeric_limits<double>::infinity();
  for (int i = from; i < fft_radix_count; ++i) {
    const int r = fft_radix_list[i];
    if (n % r != 0) continue;
    std::array<int, fft_most_stages> rest{};
    int rest_count = 0;
    const double cost = fft_stage_cost(r, false, size) + (n == r ? 0 : fft_factor(n / r, i, size, rest, rest_count));
    if (cost < best && rest_count < fft_most_stages) {  // 2^21 in steps of 2 has more levels than a plan
      best = cost;
      radices = rest;
      count = rest_count;
      radices[static_cast<std::size_t>(count++)] = r;
    }
  }
  return best;
}

/// Radices of a transform of n elements, first level first; returns its cost per element.
[[gnu::noinline, gnu::cold]] inline double fft_radices(Index n, std::array<int, fft_most_stages>& radices, int& count) {
  radices.fill(1);
  count = 1;
  if (n <= 1) return fft_stage_cost(1, true, n);
  double best = std::numeric_limits<double>::infinity();
  for (const int last : fft_radix_list) {
    if (n % last != 0) continue;
    std::array<int, fft_most_stages> rest{};
    int rest_count = 0;
    // Only 2, 3, 4, 5, 6, 8 and 10 have a last level that is fused with the filter; another one pays for its own pass.
    const bool fused = last <= 10 && last != 7;
    const double end = fused ? fft_stage_cost(last, true, n) : fft_stage_cost(last, false, n) + 2;
    const double cost = end + (n == last ? 0 : fft_factor(n / last, 0, n, rest, rest_count));
    if (cost < best && rest_count < fft_most_stages) {
      best = cost;
      count = 0;
      for (int i = rest_count; i-- > 0;) radices[static_cast<std::size_t>(count++)] = rest[static_cast<std::size_t>(i)];
      radices[static_cast<std::size_t>(count++)] = last;
    }
  }
  return best;
}

}  // namespace detail

template <Real T>
class FftPlans;

/// The plan of one length. Internally sequences of `size()` elements are transformed: L itself, or Bluestein's longer length.
template <Real T>
class FftPlan {
 public:
  /// A plan of length 0.
  FftPlan() = default;
  [[gnu::noinline, gnu::cold]] explicit FftPlan(Index length) {
    Tables tables;
    const Layout layout = make(length, tables);
    *this = FftPlan(layout, std::make_shared<const Tables>(static_cast<Tables&&>(tables)));
  }

  /// L.
  Index length() const { return layout_.length; }
  /// K = L / 2 + 1 bins of the half spectrum of real numbers; 0 for L = 0.
  Index bins() const { return layout_.length == 0 ? 0 : layout_.length / 2 + 1; }
  /// m_k, the number of bins of the whole spectrum that half-spectrum bin `k` stands for: 1 at DC and (even L) Nyquist, else 2.
  int multiplicity(Index k) const {
    assert(0 <= k && k < bins());
    return k == 0 || 2 * k == length() ? 1 : 2;
  }

  /// Elements of the transform that is carried out: L, or the convolution length of Bluestein's method.
  Index size() const { return layout_.size; }
  bool bluestein() const { return layout_.size != layout_.length; }
  int stages() const { return layout_.stages; }
  const FftStage& stage(int i) const {
    assert(0 <= i && i < stages());
    return layout_.stage[static_cast<std::size_t>(i)];
  }
  const T* twiddles(const FftStage& s) const { return tables_->numbers.data() + s.twiddles; }
  const T* roots(const FftStage& s) const { return tables_->numbers.data() + s.roots; }
  /// Where bin k of `size()` lies after the forward levels: `[size()]`.
  const std::int32_t* positions() const { return tables_->positions.data() + layout_.positions; }
  /// e^(-pi i n^2 / L), n < L, as complex pairs; Bluestein only.
  const T* chirp() const { return tables_->numbers.data() + layout_.chirp; }
  /// The transform of the conjugate chirp over size(), at the positions of the bins, as complex pairs; Bluestein only.
  const T* chirp_gains() const { return tables_->numbers.data() + layout_.chirp_gains; }
  /// Bytes of the tables, with those shared with other plans.
  Index bytes() const { return tables_ ? tables_->bytes() : 0; }

 private:
  friend class FftPlans<T>;

  struct Tables {
    std::vector<T> numbers;
    std::vector<std::int32_t> positions;
    /// What is there already for a size: the twiddles of a radix (key), roots (-1), positions (-2).
    struct Entry {
      Index size = 0, key = 0, at = 0, next = 0;
    };
    std::vector<Entry> entries;
    std::vector<Index> first;  // one more than the entry of a size, or 0
    Index bytes() const { return static_cast<Index>(numbers.size() * sizeof(T) + positions.size() * sizeof(std::int32_t)); }
    [[gnu::noinline, gnu::cold]] Index find(Index size, Index key) const {
      if (size >= static_cast<Index>(first.size())) return -1;
      for (Index e = first[static_cast<std::size_t>(size)]; e > 0; e = entries[static_cast<std::size_t>(e - 1)].next)
        if (entries[static_cast<std::size_t>(e - 1)].key == key) return entries[static_cast<std::size_t>(e - 1)].at;
      return -1;
    }
    [[gnu::noinline, gnu::cold]] void insert(Index size, Index key, Index at) {
      if (size >= static_cast<Index>(first.size())) first.resize(static_cast<std::size_t>(size + 1));
      entries.push_back({size, key, at, first[static_cast<std::size_t>(size)]});
      first[static_cast<std::size_t>(size)] = static_cast<Index>(entries.size());
    }
    [[gnu::noinline, gnu::cold]] void push(double c, double s) {
      numbers.push_back(static_cast<T>(c));
      numbers.push_back(static_cast<T>(s));
    }
    /// Builders are not needed any more.
    void finish() {
      entries = {};
      first = {};
      numbers.shrink_to_fit();
      positions.shrink_to_fit();
    }
  };
  struct Layout {
    Index length = 0, size = 0, positions = 0, chirp = 0, chirp_gains = 0;
    int stages = 0;
    std::array<FftStage, detail::fft_most_stages> stage{};
  };

  FftPlan(const Layout& layout, std::shared_ptr<const Tables> tables)
      : layout_(layout), tables_(static_cast<std::shared_ptr<const Tables>&&>(tables)) {}

  // Making plans need not be fast; marked cold it is compiled for size.
  [[gnu::noinline, gnu::cold]] static Layout make(Index length, Tables& tables) {
    check_option("FftPlan", "length", 0 <= length && length <= (Index{1} << 26), "a length in [0, 2^26]",
                 static_cast<double>(length));
    Layout plan;
    plan.length = plan.size = length;
    if (length == 0) return plan;
    std::array<int, detail::fft_most_stages> radices{};
    int count = 0;
    double cost = detail::fft_radices(length, radices, count) * static_cast<double>(length);
    std::array<int, detail::fft_most_stages> padded{};
    int padded_count = 0;
    if (const Index size = convolution_length(length, cost, padded, padded_count); size > 0) {
      plan.size = size;
      radices = padded;
      count = padded_count;
    }
    add_stages(plan, radices, count, tables);
    if (plan.size != plan.length) add_chirp(plan, tables);
    return plan;
  }

  /// The size of the cheapest convolution that does it for less than `cost` (of one direct transform), or 0.
  [[gnu::noinline, gnu::cold]] static Index convolution_length(Index length, double cost,
                                                               std::array<int, detail::fft_most_stages>& radices, int& count) {
    Index rest = length;
    for (const Index p : {2, 3, 5, 7})
      while (rest % p == 0) rest /= p;
    if (rest == 1) return 0;
    const Index least = 2 * length - 1, most = least + least / 4 + 8;
    Index best = 0;
    for (Index a = 1; a <= most; a *= 5) {
      for (Index b = a; b <= most; b *= 3) {
        Index c = b;
        while (c < least) c *= 2;
        if (c > most) continue;
        std::array<int, detail::fft_most_stages> r{};
        int n = 0;
        // Two transforms, the product between them, and the chirp before and after.
        const double both = (2 * detail::fft_radices(c, r, n) + 8) * static_cast<double>(c) + 16 * static_cast<double>(length);
        if (both < cost) {
          cost = both;
          best = c;
          radices = r;
          count = n;
        }
      }
    }
    return best;
  }

  [[gnu::noinline, gnu::cold]] static void add_stages(Layout& plan, const std::array<int, detail::fft_most_stages>& radices,
                                                      int count, Tables& tables) {
    plan.stages = count;
    Index n = plan.size;
    for (int i = 0; i < count; ++i) {
      FftStage& stage = plan.stage[static_cast<std::size_t>(i)];
      const int r = stage.radix = radices[static_cast<std::size_t>(i)];
      const Index span = stage.span = n / r;
      stage.twiddles = tables.find(n, r);
      if (stage.twiddles < 0) {
        stage.twiddles = static_cast<Index>(tables.numbers.size());
        tables.insert(n, r, stage.twiddles);
        for (Index j = 0; j < span; ++j) {
          for (Index p = 1; p < r; ++p) {
            double c, s;
            detail::unit_root(p * j, n, c, s);
            tables.push(c, -s);
          }
        }
      }
      stage.roots = tables.find(r, -1);
      if (stage.roots < 0) {
        stage.roots = static_cast<Index>(tables.numbers.size());
        tables.insert(r, -1, stage.roots);
        for (Index m = 0; m < r; ++m) {
          double c, s;
          detail::unit_root(m, r, c, s);
          tables.push(c, s);
        }
      }
      n = span;
    }
    plan.positions = tables.find(plan.size, -2);  // the radices of a size are always the same
    if (plan.positions >= 0) return;
    plan.positions = static_cast<Index>(tables.positions.size());
    tables.insert(plan.size, -2, plan.positions);
    for (Index k = 0; k < plan.size; ++k) {
      Index at = 0, rest = k;
      for (int i = 0; i < count; ++i) {
        const FftStage& stage = plan.stage[static_cast<std::size_t>(i)];
        at += rest % stage.radix * stage.span;
        rest /= stage.radix;
      }
      tables.positions.push_back(static_cast<std::int32_t>(at));
    }
  }

  [[gnu::noinline, gnu::cold]] static void add_chirp(Layout& plan, Tables& tables) {
    const Index length = plan.length, size = plan.size;
    std::vector<double> z(static_cast<std::size_t>(2 * size));  // e^(pi i n^2 / L) around 0, for the convolution
    plan.chirp = static_cast<Index>(tables.numbers.size());
    for (Index n = 0; n < length; ++n) {
      double c, s;
      detail::unit_root(n * n % (2 * length), 2 * length, c, s);
      tables.push(c, -s);
      for (const Index at : {n, (size - n) % size}) {
        z[static_cast<std::size_t>(2 * at)] = c;
        z[static_cast<std::size_t>(2 * at + 1)] = s;
      }
    }
    transform(z, size);
    plan.chirp_gains = static_cast<Index>(tables.numbers.size());
    tables.numbers.resize(tables.numbers.size() + static_cast<std::size_t>(2 * size));
    T* const gains = tables.numbers.data() + plan.chirp_gains;
    const std::int32_t* const at = tables.positions.data() + plan.positions;
    for (Index k = 0; k < size; ++k)
      for (Index part = 0; part < 2; ++part)
        gains[2 * at[k] + part] = static_cast<T>(z[static_cast<std::size_t>(2 * k + part)] / static_cast<double>(size));
  }

  /// A transform in double of 2^a 3^b 5^c elements, for the plan's own use: plain recursion by the smallest prime.
  [[gnu::noinline, gnu::cold]] static void transform(std::vector<double>& z, Index size) {
    std::vector<double> out(z.size());
    std::vector<double> root(z.size());
    for (Index m = 0; m < size; ++m)
      detail::unit_root(m, size, root[static_cast<std::size_t>(2 * m)], root[static_cast<std::size_t>(2 * m + 1)]);
    recurse(z.data(), 1, out.data(), size, root.data(), size);
    z.swap(out);
  }
  /// out[0, n) <- transform of in[0], in[step], ...; `root` holds e^(2 pi i m / size).
  [[gnu::noinline, gnu::cold]] static void recurse(const double* in, Index step, double* out, Index n, const double* root,
                                                   Index size) {
    if (n == 1) {
      out[0] = in[0];
      out[1] = in[1];
      return;
    }
    const Index r = n % 2 == 0 ? 2 : n % 3 == 0 ? 3 : 5, span = n / r;
    for (Index q = 0; q < r; ++q) recurse(in + 2 * q * step, step * r, out + 2 * q * span, span, root, size);
    for (Index j = 0; j < span; ++j) {
      double part[10], sum[10];
      for (Index q = 0; q < r; ++q) {
        part[2 * q] = out[2 * (q * span + j)];
        part[2 * q + 1] = out[2 * (q * span + j) + 1];
      }
      for (Index p = 0; p < r; ++p) {
        double re = 0, im = 0;
        for (Index q = 0; q < r; ++q) {
          const Index m = q * (p * span + j) % n * (size / n);
          const double c = root[2 * m], s = -root[2 * m + 1];
          re += part[2 * q] * c - part[2 * q + 1] * s;
          im += part[2 * q] * s + part[2 * q + 1] * c;
        }
        sum[2 * p] = re;
        sum[2 * p + 1] = im;
      }
      for (Index p = 0; p < r; ++p) {
        out[2 * (p * span + j)] = sum[2 * p];
        out[2 * (p * span + j) + 1] = sum[2 * p + 1];
      }
    }
  }

  Layout layout_;
  std::shared_ptr<const Tables> tables_;
};

/// Plans of every length 0 .. `longest()`, for the sequences of a jagged batch. All are made at once (about 10 ms up to 200, 0.3 s
/// up to 1024) and share what is equal; later calls only look them up.
template <Real T>
class FftPlans {
 public:
  /// Length 0 alone.
  FftPlans() : FftPlans(0) {}
  explicit FftPlans(Index longest) {
    check_option("FftPlans", "longest", 0 <= longest && longest <= (Index{1} << 16), "a length in [0, 65536]",
                 static_cast<double>(longest));
    using Plan = FftPlan<T>;
    typename Plan::Tables tables;
    std::vector<typename Plan::Layout> layouts;
    for (Index length = 0; length <= longest; ++length) layouts.push_back(Plan::make(length, tables));
    tables.finish();
    const auto shared = std::make_shared<const typename Plan::Tables>(static_cast<typename Plan::Tables&&>(tables));
    for (const auto& layout : layouts) plans_.push_back(Plan(layout, shared));
  }

  Index longest() const { return static_cast<Index>(plans_.size()) - 1; }
  const FftPlan<T>& operator[](Index length) const {
    assert(0 <= length && length <= longest());
    return plans_[static_cast<std::size_t>(length)];
  }
  /// Bytes of all plans and their tables.
  Index bytes() const { return plans_.back().bytes() + static_cast<Index>(plans_.size() * sizeof(FftPlan<T>)); }

 private:
  std::vector<FftPlan<T>> plans_;
};

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
