/// @file   recops/ranking/soft_rank.hpp
/// @brief  Differentiable ranks in O(n log n): the projection of scores onto the permutahedron, group by group.
///
///     quadratic   r = argmin { ½ ‖t - x / eps‖² : t in the hull of all permutations of (1, ..., n) }
///     kl          the same in the relative entropy: r = exp(projection of x / eps onto the hull of permutations of log (1 ... n))
///
///     x = scores (ascending: the smallest score has rank 1) or -scores (descending: the best has rank 1)
///
/// Where neighbours in the order are further apart than eps ranks are exact; closer ones form blocks, within which
///
///     quadratic   r_i = mean rank of the block + (x_i - mean x) / eps               kl   r_i = R_B exp(x_i / eps) / Σ_B exp(x_j / eps)
///
/// with R_B the sum of the block's ranks. Gradients exist only within blocks: too small an eps gives none at all, too large a one
/// a single block, whose ranks are *linear* in the scores and no ranks any more.
///
/// Shapes      scores, ranks [n]   offsets [G + 1], or empty for one group
/// eps         relative (default): eps · std(group) / n, scale-free; 1 to 3 are useful, at 2 some 40 % of normal scores keep exact
///             ranks. Absolute: as it is, in units of the scores. 0: hard mid-ranks, gradient 0. The deviation counts as a constant
///             in backward. `saved.count_blocks()` says how much is pooled.
/// Ties        get the same rank (with eps -> 0 the mid-rank) and are smooth points; the only kinks are blocks that touch.
/// Edge cases  n = 0: nothing. One score: rank 1, gradient 0. All equal: (n + 1) / 2, and in relative mode gradient 0.
/// NaN         a NaN or infinity (or a double beyond 2^1000) makes its group's ranks and gradients NaN; other groups are untouched.
/// Precision   blocks, means and residuals in double, from differences: a float rank of 10^7 scores is off by at most 0.51 unit
///             in its last place and n · 1e-10. The sum of ranks is n (n + 1) / 2. Each rank lies within those of its block.
/// Cost        one argsort, one pass of pooling, one scatter; KL one logarithm and up to one exponential more per step of pooling.
///             Scratch (28 or 40 + KL 16) bytes per entry of the largest group.
/// Threads     groups run on the caller's; same bits for any number.
/// Errors      Error if sizes or offsets disagree, or eps is negative or not finite.
/// Gradient    with u the ranks' gradient, of which this *adds* the product with the Jacobian:
///             quadratic ± (u_i - mean_B u) / eps,   kl ± r_i (u_i - Σ_B r_j u_j / R_B) / eps; at a kink one of Clarke's.
/// Reference   Blondel, Teboul, Berthet, Djolonga, Fast differentiable sorting and ranking, ICML 2020 (arXiv 2002.08871). Their form
///             "s - projection" loses all digits at n = 10^6 in float; block means are our derivation, relative eps our default.
#pragma once
#include <algorithm>
#include <cstring>
#include <recops/ranking/group_loss.hpp>
#include <recops/ranking/isotonic.hpp>
#include <recops/simd/argsort.hpp>

namespace recops {

/// What "nearest" means in a projection.
enum class SoftRankRegularization {
  quadratic,  ///< squared distance: linear within a block
  kl,         ///< relative entropy: exponential within a block
};

/// In which unit eps is given.
enum class EpsMode {
  relative,  ///< of std / n, the typical distance of neighbours
  absolute,  ///< of the scores
};

struct SoftRankOptions {
  Order order = Order::ascending;  ///< ascending: the smallest score has rank 1
  SoftRankRegularization regularization = SoftRankRegularization::quadratic;
  EpsMode eps_mode = EpsMode::relative;
  double eps = 2;  ///< in [0, 1e100]; how far apart scores must be to keep exact ranks
};

/// How much was pooled.
struct SoftRankBlocks {
  Index blocks = 0;      ///< in all groups together
  Index singletons = 0;  ///< scores with an exact rank and no gradient
  Index largest = 0;     ///< scores in the largest block
};

inline namespace RECOPS_ABI {

/// What backward needs; kept and reused step after step. The blocks are remembered, never guessed from equal values.
struct SoftRankSaved {
  Vector<std::int64_t> offsets;  ///< [G + 1]
  Vector<std::int32_t> order;    ///< [n] of each group, largest x first
  Vector<std::int32_t> starts;   ///< [n] of group g from offsets[g] on: where its blocks begin
  Vector<std::int32_t> blocks;   ///< [G]
  Vector<double> eps;            ///< [G] in units of the scores; NaN where a score was not finite
  bool descending = false;
  SoftRankRegularization regularization = SoftRankRegularization::quadratic;

  Index groups() const { return blocks.size(); }
  /// How many blocks, and how large: what to look at when gradients vanish (all singletons) or the order stops to matter (one block).
  SoftRankBlocks count_blocks() const {
    SoftRankBlocks result;
    for (Index g = 0; g < groups(); ++g) {
      const Index begin = offsets[g], size = offsets[g + 1] - begin;
      for (Index k = 0; k < blocks[g]; ++k) {
        const Index length = (k + 1 < blocks[g] ? starts[begin + k + 1] : size) - starts[begin + k];
        result.largest = std::max(result.largest, length);
        result.singletons += length == 1;
      }
      result.blocks += blocks[g];
    }
    return result;
  }
};

namespace detail {

/// One sorted and pooled group.
template <class T>
struct PooledGroup {
  Index n = 0, blocks = 0;
  double eps = 0;  ///< NaN: not finite
  const std::int32_t* order = nullptr;
  const std::int32_t* starts = nullptr;
  T* x = nullptr;                  ///< in order, largest first; may be overwritten
  const BlockSum* sums = nullptr;  ///< of x_i - middle + eps (i - n / 2), where blocks were pooled from sums
  double middle = 0;

  Index end(Index block) const { return block + 1 < blocks ? starts[block + 1] : n; }
  double inverse_eps() const { return eps > 0 ? std::min(1 / eps, std::numeric_limits<double>::max()) : 0; }
};

/// Scratch for groups of up to `longest`.
template <class T>
struct PoolScratch {
  T* x;
  double* means;  ///< or the numbers to be pooled
  BlockSum* sums = nullptr;
  EntropicBlock* entropic = nullptr;

  PoolScratch(Index longest, SoftRankRegularization r, Workspace& ws)
      : x(ws.take<T>(longest)), means(ws.take<double>(longest + 1)) {
    if (r == SoftRankRegularization::kl) {
      entropic = ws.take<EntropicBlock>(longest + 1);
    } else if (std::is_same_v<T, float>) {
      sums = ws.take<BlockSum>(longest + 16);
    }
  }
};

/// eps · std / n of sorted, finite numbers. Scaled by a power of two, so that no square overflows or vanishes.
template <class T>
double relative_eps(double eps, const T* x, Index n) {
  const double first = static_cast<double>(x[0]), last = static_cast<double>(x[n - 1]);
  if (first == last) return 0;
  int exponent = 0;
  std::frexp(std::max(std::abs(first), std::abs(last)), &exponent);
  const double scale = std::ldexp(1.0, std::clamp(-exponent, -1000, 1000)), count = static_cast<double>(n);
  const double middle = static_cast<double>(x[n / 2]);  // within a deviation of the mean, so that one pass is enough
  constexpr Index lanes = 8;
  double sums[lanes] = {}, squares[lanes] = {};
  const auto take = [&](Index i, Index lane) RECOPS_LAMBDA_INLINE {
    const double d = (static_cast<double>(x[i]) - middle) * scale;
    sums[lane] += d;
    squares[lane] += d * d;
  };
  Index i = 0;
  for (; i + lanes <= n; i += lanes)
    for (Index lane = 0; lane < lanes; ++lane) take(i + lane, lane);
  for (Index lane = 0; i < n; ++i, ++lane) take(i, lane);
  double sum = 0, square = 0;
  for (Index lane = 0; lane < lanes; ++lane) sum += sums[lane], square += squares[lane];
  const double variance = std::max(0.0, square / count - (sum / count) * (sum / count));
  return eps * (std::sqrt(variance) / count) / scale;
}

/// Runs of equal numbers.
template <class T>
Index pool_ties(const T* x, Index n, std::int32_t* starts) {
  Index blocks = 0;
  for (Index i = 0; i < n; ++i)
    if (i == 0 || x[i] != x[i - 1]) starts[blocks++] = static_cast<std::int32_t>(i);
  return blocks;
}

/// The sum of the ranks of places [a, b), of which place 0 has rank n.
inline double ranks_sum(Index n, Index a, Index b) {
  return static_cast<double>(b - a) * static_cast<double>(2 * n - a - b + 1) / 2;
}

/// Whether sums in double tell blocks apart: ranks then come out as (x_i - mean y) / eps, off by some n · 2^-52, which a float
/// does not show. Not for an eps beside which the range of x is enormous, nor for few numbers, where it does not pay.
template <class T>
bool from_sums(Index n, SoftRankRegularization regularization, const T* x, double eps) {
  return std::is_same_v<T, float> && regularization == SoftRankRegularization::quadratic && n >= 32 &&
         static_cast<double>(x[0]) - static_cast<double>(x[n - 1]) <= 0x1p27 * eps;
}

/// Calls flat(first, count, values) for stretches of places, values[i] being value(k, a, b) of the block [a, b) that place
/// first + i is in. Four copies are written whatever a block's length: lengths are unpredictable, but few exceed four.
template <class T, class Value, class Flat>
void spread_blocks(const PooledGroup<T>& g, Value&& value, Flat&& flat) {
  constexpr Index room = 512;
  double values[room + 4];
  const auto put = [](double v, double* to) RECOPS_LAMBDA_INLINE {
    for (int j = 0; j < 4; ++j) to[j] = v;
  };
  Index first = 0, a = 0;
  for (Index k = 0; k < g.blocks; ++k) {
    const Index b = g.end(k);
    const double v = value(k, a, b);
    if (b - first > room) {
      flat(first, a - first, values);
      first = a;
      if (b - a > room) {
        std::fill_n(values, room, v);
        for (; first < b; first += room) flat(first, std::min(room, b - first), values);
        first = a = b;
        continue;
      }
    }
    double* const to = values + (a - first);
    put(v, to);
    for (Index j = 4; j < b - a; j += 4) put(v, to + j);
    a = b;
  }
  flat(first, g.n - first, values);
}

/// Sorts and pools the scores of one group.
template <class T>
PooledGroup<T> pool_group(const T* scores, Index n, const SoftRankOptions& o, std::int32_t* order, std::int32_t* starts,
                          const PoolScratch<T>& scratch, Workspace& ws) {
  PooledGroup<T> g;
  g.n = n;
  g.order = order;
  g.starts = starts;
  g.x = scratch.x;
  if (n == 0) return g;
  const bool descending = o.order == Order::descending;
  simd::argsort<T>(scores, n, descending ? Order::ascending : Order::descending, order, g.x, ws);
  if (descending)
    for (Index i = 0; i < n; ++i) g.x[i] = -g.x[i];
  const T* const x = g.x;
  constexpr double limit = std::is_same_v<T, float> ? 3.5e38 : 0x1p1000;
  if (!(std::abs(static_cast<double>(x[0])) <= limit && std::abs(static_cast<double>(x[n - 1])) <= limit)) {  // NaN is last
    g.eps = std::numeric_limits<double>::quiet_NaN();
    return g;
  }
  const double eps = g.eps = o.eps_mode == EpsMode::absolute ? o.eps : relative_eps(o.eps, x, n);
  if (eps == 0) {
    g.blocks = pool_ties(x, n, starts);
  } else if (from_sums<T>(n, o.regularization, x, eps)) {
    const double middle = g.middle = static_cast<double>(x[n / 2]), half = 0.5 * static_cast<double>(n);
    double* const y = scratch.means;
    for (Index i = 0; i < n; ++i) y[i] = (static_cast<double>(x[i]) - middle) + eps * (static_cast<double>(i) - half);
    y[n] = 0;
    g.sums = scratch.sums;
    g.blocks = pool_sums(n, y, scratch.sums);
    std::int32_t begin = 0;
    for (Index k = 0; k < g.blocks; ++k) {
      starts[k] = begin;
      begin += static_cast<std::int32_t>(g.sums[k][1]);
    }
  } else if (o.regularization == SoftRankRegularization::quadratic) {
    const double top = eps * static_cast<double>(n);  // y_i = x_i - eps · rank_i, rank_i = n - i
    g.blocks = pool_means(
        n, [=](Index i) { return static_cast<double>(x[i]) - (top - eps * static_cast<double>(i)); }, starts, scratch.means);
  } else {
    const double inverse = g.inverse_eps();
    g.blocks = pool_blocks(
        n,
        [=](Index i) {
          return LogSum{static_cast<double>(x[i]), 1};
        },
        [=](const LogSum& a, const LogSum& b) { return LogSum::merged(a, b, inverse); },
        [=](const LogSum& s, Index a, Index b) { return s.largest + eps * (std::log(s.sum) - std::log(ranks_sum(n, a, b))); },
        starts, scratch.entropic);
  }
  return g;
}

/// Calls write(i, rank) for every place i in order.
template <class T, class F>
void visit_ranks(const PooledGroup<T>& g, SoftRankRegularization regularization, F&& write) {
  const Index n = g.n;
  if (g.eps != g.eps) {
    for (Index i = 0; i < n; ++i) write(i, g.eps);
    return;
  }
  const double inverse = g.inverse_eps();
  if (g.sums != nullptr) {
    const double half = 0.5 * static_cast<double>(n);
    spread_blocks(
        g, [&](Index k, Index, Index) { return half - g.sums[k][0] / g.sums[k][1] * inverse; },
        [&](Index first, Index count, const double* values) {
          for (Index i = 0; i < count; ++i)
            write(first + i, (static_cast<double>(g.x[first + i]) - g.middle) * inverse + values[i]);
        });
    return;
  }
  for (Index k = 0; k < g.blocks; ++k) {
    const Index a = g.starts[k], b = g.end(k);
    if (b - a == 1) {
      write(a, static_cast<double>(n - a));
      continue;
    }
    const double count = static_cast<double>(b - a), base = static_cast<double>(n) - 0.5 * static_cast<double>(a + b - 1);
    if (g.x[a] == g.x[b - 1]) {
      for (Index i = a; i < b; ++i) write(i, base);
      continue;
    }
    if (regularization == SoftRankRegularization::quadratic) {
      const double first = static_cast<double>(g.x[a]);
      double sum = 0;  // of differences, which are small
      for (Index i = a + 1; i < b; ++i) sum += static_cast<double>(g.x[i]) - first;
      const double mean = sum / count, low = static_cast<double>(n - b + 1), high = static_cast<double>(n - a);
      for (Index i = a; i < b; ++i) {
        const double r = base + ((static_cast<double>(g.x[i]) - first) - mean) * inverse;
        write(i, std::min(std::max(r, low), high));  // tiny eps: rounding must not leave the block
      }
    } else {
      const double largest = static_cast<double>(g.x[a]);
      double sum = 0;
      for (Index i = a; i < b; ++i) sum += std::exp((static_cast<double>(g.x[i]) - largest) * inverse);
      const double factor = ranks_sum(n, a, b) / sum;
      for (Index i = a; i < b; ++i) write(i, factor * std::exp((static_cast<double>(g.x[i]) - largest) * inverse));
    }
  }
}

/// u[0] + ... + u[count - 1] for count <= 4, without a branch; four numbers are readable. (The compilers' own vectors.)
template <class T>
RECOPS_INLINE double sum_upto_four(const T* u, Index count) {
  using Bits = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
  using Lanes [[gnu::vector_size(4 * sizeof(T))]] = Bits;
  using Numbers [[gnu::vector_size(4 * sizeof(T))]] = T;
  const auto c = static_cast<Bits>(count);
  Lanes bits;
  std::memcpy(&bits, u, sizeof bits);
  bits &= Lanes{0, 1, 2, 3} < Lanes{c, c, c, c};
  Numbers kept;
  std::memcpy(&kept, &bits, sizeof kept);
  return (static_cast<double>(kept[0]) + static_cast<double>(kept[1])) +
         (static_cast<double>(kept[2]) + static_cast<double>(kept[3]));
}

/// u (in order) becomes the gradient of x (in order, sign of the scores). `ranks` (in order) only for KL.
template <class T, class R>
void pooled_backward(const PooledGroup<T>& g, SoftRankRegularization regularization, double sign, R&& rank, T* u) {
  if (g.eps != g.eps) {
    std::fill_n(u, g.n, std::numeric_limits<T>::quiet_NaN());
    return;
  }
  const double scale = sign * g.inverse_eps();
  if (regularization == SoftRankRegularization::quadratic && scale != 0) {
    spread_blocks(
        g,
        [&](Index, Index a, Index b) {
          const Index count = b - a;
          double sum = 0;
          if (a + 4 <= g.n && count <= 4) {
            sum = sum_upto_four(u + a, count);
          } else {
            for (Index i = a; i < b; ++i) sum += static_cast<double>(u[i]);
          }
          return sum / static_cast<double>(count);
        },
        [&](Index first, Index count, const double* means) {
          for (Index i = 0; i < count; ++i) u[first + i] = static_cast<T>(scale * (static_cast<double>(u[first + i]) - means[i]));
        });
    return;
  }
  for (Index k = 0; k < g.blocks; ++k) {
    const Index a = g.starts[k], b = g.end(k);
    if (b - a == 1 || scale == 0) {
      std::fill(u + a, u + b, T(0));
      continue;
    }
    double sum = 0;
    for (Index i = a; i < b; ++i) sum += rank(i) * static_cast<double>(u[i]);
    const double mean = sum / ranks_sum(g.n, a, b);
    for (Index i = a; i < b; ++i) u[i] = static_cast<T>(scale * rank(i) * (static_cast<double>(u[i]) - mean));
  }
}

/// to[order[i]] = from[i], or += with `add`. What comes next is fetched ahead: places are random.
template <bool Add, class T>
void scatter(const T* from, const std::int32_t* order, Index n, T* to) {
  constexpr Index ahead = 16;
  const auto put = [&](Index i) {
    if constexpr (Add) {
      to[order[i]] += from[i];
    } else {
      to[order[i]] = from[i];
    }
  };
  Index i = 0;
  for (; i + ahead < n; ++i) {
    __builtin_prefetch(to + order[i + ahead], 1);
    put(i);
  }
  for (; i < n; ++i) put(i);
}

inline void check_soft_rank_options(const char* operation, const SoftRankOptions& o) {
  check_option(operation, "eps", o.eps >= 0 && o.eps <= 1e100, "0 <= eps <= 1e100", o.eps);
}

/// Offsets of groups over n entries; empty ones stand for one group.
inline Groups check_rank_groups(const char* operation, IndexView offsets, Index n) {
  check_option(operation, "scores", n < Index{1} << 31, "fewer than 2^31 scores", static_cast<double>(n));
  if (offsets.empty()) {
    check_not_null(operation, "offsets", offsets);
  } else {
    check_offsets(operation, "offsets", offsets, n);
  }
  return {offsets, n};
}

/// Calls f(first group, behind the last, entries of the largest, scratch) for runs of groups on the caller's threads.
template <class F>
void run_groups(const Groups& groups, Workspace& ws, F&& f) {
  constexpr Index some = 64;
  const Index count = groups.count();
  ws.parallel_for((count + some - 1) / some, [&](Index task, Workspace& scratch) {
    const Index first = task * some, last = std::min(count, first + some);
    Index longest = 0;
    for (Index g = first; g < last; ++g) longest = std::max(longest, groups.size(g));
    const auto mark = scratch.mark();
    f(first, last, longest, scratch);
  });
}

/// Makes room for what is kept of so many groups.
inline void keep_groups(const Groups& groups, Order order, SoftRankRegularization regularization, SoftRankSaved& saved) {
  const Index count = groups.count();
  saved.offsets.resize(count + 1);
  for (Index g = 0; g < count; ++g) saved.offsets[g] = groups.begin(g);
  saved.offsets[count] = groups.n;
  saved.order.resize(groups.n);
  saved.starts.resize(groups.n);
  saved.blocks.resize(count);
  saved.eps.resize(count);
  saved.descending = order == Order::descending;
  saved.regularization = regularization;
}

}  // namespace detail

/// The soft ranks of every group; `saved` is for backward.
template <Real T>
void soft_rank(VectorView<const T> scores, IndexView offsets, const SoftRankOptions& options, VectorView<T> ranks,
               SoftRankSaved& saved, Workspace& ws) {
  using namespace detail;
  check_size("soft_rank", "scores", scores, any_size);
  const Groups groups = check_rank_groups("soft_rank", offsets, scores.size());
  check_soft_rank_options("soft_rank", options);
  check_size("soft_rank", "ranks", ranks, scores.size());
  keep_groups(groups, options.order, options.regularization, saved);
  run_groups(groups, ws, [&](Index first, Index last, Index longest, Workspace& own) {
    const PoolScratch<T> scratch(longest, options.regularization, own);
    for (Index g = first; g < last; ++g) {
      const Index begin = groups.begin(g);
      const auto group = pool_group(scores.data() + begin, groups.size(g), options, saved.order.data() + begin,
                                    saved.starts.data() + begin, scratch, own);
      saved.blocks[g] = static_cast<std::int32_t>(group.blocks);
      saved.eps[g] = group.eps;
      visit_ranks(group, options.regularization, [&](Index i, double r) { group.x[i] = static_cast<T>(r); });
      scatter<false>(group.x, group.order, group.n, ranks.data() + begin);
    }
  });
}

/// The same for serving, where nobody asks for gradients.
template <Real T>
void soft_rank(VectorView<const T> scores, IndexView offsets, const SoftRankOptions& options, VectorView<T> ranks,
               Workspace& ws) {
  using namespace detail;
  check_size("soft_rank", "scores", scores, any_size);
  const Groups groups = check_rank_groups("soft_rank", offsets, scores.size());
  check_soft_rank_options("soft_rank", options);
  check_size("soft_rank", "ranks", ranks, scores.size());
  run_groups(groups, ws, [&](Index first, Index last, Index longest, Workspace& own) {
    const PoolScratch<T> scratch(longest, options.regularization, own);
    std::int32_t* const order = own.take<std::int32_t>(longest);
    std::int32_t* const starts = own.take<std::int32_t>(longest);
    for (Index g = first; g < last; ++g) {
      const Index begin = groups.begin(g);
      const auto group = pool_group(scores.data() + begin, groups.size(g), options, order, starts, scratch, own);
      visit_ranks(group, options.regularization, [&](Index i, double r) { group.x[i] = static_cast<T>(r); });
      scatter<false>(group.x, group.order, group.n, ranks.data() + begin);
    }
  });
}

/// Adds to `dscores` [n] the gradient, given that of the ranks. `ranks` is what forward wrote, read for KL only (else it may be
/// empty). Does not read the scores. O(n), two random accesses an entry.
template <Real T>
void soft_rank_backward(VectorView<const T> ranks, const SoftRankSaved& saved, VectorView<const T> dranks, VectorView<T> dscores,
                        Workspace& ws) {
  using namespace detail;
  const bool kl = saved.regularization == SoftRankRegularization::kl;
  check_size("soft_rank_backward", "dranks", dranks, saved.order.size());
  if (kl) check_size("soft_rank_backward", "ranks", ranks, dranks.size());
  if (dscores.empty()) return;
  check_size("soft_rank_backward", "dscores", dscores, dranks.size());
  const Groups groups{saved.offsets, dranks.size()};
  run_groups(groups, ws, [&](Index first, Index last, Index longest, Workspace& own) {
    T* const u = own.take<T>(longest);
    for (Index g = first; g < last; ++g) {
      const Index begin = groups.begin(g);
      PooledGroup<T> group;
      group.n = groups.size(g);
      group.blocks = saved.blocks[g];
      group.eps = saved.eps[g];
      group.order = saved.order.data() + begin;
      group.starts = saved.starts.data() + begin;
      const T* const from = dranks.data() + begin;
      for (Index i = 0; i < group.n; ++i) u[i] = from[group.order[i]];
      pooled_backward(
          group, saved.regularization, saved.descending ? -1.0 : 1.0,
          [&](Index i) { return static_cast<double>(ranks.data()[begin + group.order[i]]); }, u);
      scatter<true>(u, group.order, group.n, dscores.data() + begin);
    }
  });
}

}  // namespace RECOPS_ABI
}  // namespace recops
