/// @file   recops/ranking/sorting_network.hpp
/// @brief  Differentiable sort by a network of comparators, each of which swaps only as far as its inputs are in the wrong order.
///
///     w = f(beta (b - a))       min = w a + (1 - w) b       max = (1 - w) a + w b            for each comparator (a, b), layer by layer
///
///     f       logistic      1 / (1 + e^-x)                 cauchy       atan(x) / pi + ½
///             reciprocal    ½ + x / (2 (2 + |x|))            optimal      ½ + x within ± ¼, beyond 1 - 1 / (16 x) or -1 / (16 x)
///
/// Shapes      scores, sorted [n] (ascending)   offsets [G + 1], or empty for one group
/// Networks    odd-even: n layers of neighbours; bitonic: log2(n) (log2(n) + 1) / 2 layers, in the form whose comparators all point one
///             way, so that lists of any length need no padding.
/// NaN         a NaN or infinity makes its group NaN; other groups are untouched.
/// Precision   T. The sum of a group is preserved.
/// Cost        a comparator O(1); saves the inputs of every layer. One function value per comparator: for lists of up to some 100.
/// Threads     one; groups are independent.
/// Errors      Error if sizes or offsets disagree, or beta is not in (0, 1e30].
/// Gradient    of the scores, *added*.
/// Reference   Petersen, Borgelt, Kuehne, Deussen, Differentiable sorting networks, ICML 2021 (arXiv 2105.04019), and Monotonic
///             differentiable sorting networks, ICLR 2022 (arXiv 2203.09630).
#pragma once
#include <recops/ranking/soft_rank.hpp>

namespace recops {

enum class SortingNetwork { odd_even, bitonic };

/// How much of a swap a difference calls for.
enum class SwapFunction { logistic, cauchy, reciprocal, optimal };

struct SortingNetworkOptions {
  SortingNetwork network = SortingNetwork::bitonic;
  SwapFunction function = SwapFunction::cauchy;
  double beta = 10;  ///< > 0, steepness, in units of 1 / score
};

inline namespace RECOPS_ABI {

/// What backward needs; kept and reused.
template <class T>
struct SortingNetworkSaved {
  Vector<std::int64_t> offsets;  ///< [G + 1]
  Vector<T> inputs;              ///< of every layer, group after group
  SortingNetworkOptions options;
};

namespace detail {

struct Swap {
  double value, slope;  ///< of f
};
inline Swap swap_weight(SwapFunction f, double x) {
  constexpr double pi = 3.14159265358979323846;
  const double size = std::abs(x);
  switch (f) {
    case SwapFunction::logistic: {
      const double e = std::exp(-size), p = x >= 0 ? 1 / (1 + e) : e / (1 + e);
      return {p, e / ((1 + e) * (1 + e))};
    }
    case SwapFunction::cauchy:
      return {std::atan(x) / pi + 0.5, 1 / (pi * (1 + x * x))};
    case SwapFunction::reciprocal:
      return {0.5 + x / (2 * (2 + size)), 1 / ((2 + size) * (2 + size))};
    case SwapFunction::optimal:
      break;
  }
  if (size <= 0.25) return {x + 0.5, 1};
  return {x > 0 ? 1 - 1 / (16 * x) : -1 / (16 * x), 1 / (16 * x * x)};
}

/// Calls layer(compare-list) ... for n inputs: `begin()` before each layer, then pair(i, j), i < j, of its comparators.
template <class Begin, class Pair>
void visit_network(SortingNetwork network, Index n, Begin&& begin, Pair&& pair) {
  if (network == SortingNetwork::odd_even) {
    for (Index layer = 0; layer < n; ++layer) {
      begin();
      for (Index i = layer % 2; i + 1 < n; i += 2) pair(i, i + 1);
    }
    return;
  }
  for (Index size = 2; size < 2 * n; size *= 2) {
    begin();  // mirrored halves
    for (Index start = 0; start < n; start += size)
      for (Index i = 0; i < size / 2; ++i)
        if (const Index j = start + size - 1 - i; j < n) pair(start + i, j);
    for (Index step = size / 4; step > 0; step /= 2) {
      begin();
      for (Index i = 0; i + step < n; ++i)
        if ((i & step) == 0) pair(i, i + step);
    }
  }
}
inline Index network_layers(SortingNetwork network, Index n) {
  if (network == SortingNetwork::odd_even) return n;
  Index layers = 0, merges = 0;
  for (Index size = 2; size < 2 * n; size *= 2) layers += ++merges;
  return layers;
}

}  // namespace detail

/// The soft values of every group, smallest first.
template <Real T>
void sorting_network(VectorView<const T> scores, IndexView offsets, const SortingNetworkOptions& options, VectorView<T> sorted,
                     SortingNetworkSaved<T>& saved) {
  using namespace detail;
  check_size("sorting_network", "scores", scores, any_size);
  const Groups groups = check_rank_groups("sorting_network", offsets, scores.size());
  check_option("sorting_network", "beta", options.beta > 0 && options.beta <= 1e30, "0 < beta <= 1e30", options.beta);
  check_size("sorting_network", "sorted", sorted, scores.size());
  saved.options = options;
  saved.offsets.resize(groups.count() + 1);
  Index size = 0;
  for (Index g = 0; g < groups.count(); ++g) {
    saved.offsets[g] = groups.begin(g);
    size += groups.size(g) * network_layers(options.network, groups.size(g));
  }
  saved.offsets[groups.count()] = groups.n;
  saved.inputs.resize(size);
  T* keep = saved.inputs.data();
  for (Index g = 0; g < groups.count(); ++g) {
    const Index n = groups.size(g);
    T* const v = sorted.data() + groups.begin(g);
    std::copy_n(scores.data() + groups.begin(g), n, v);
    if (!all_finite(v, n)) std::fill_n(v, n, std::numeric_limits<T>::quiet_NaN());
    visit_network(
        options.network, n,
        [&] {
          std::copy_n(v, n, keep);
          keep += n;
        },
        [&](Index i, Index j) {
          const double a = static_cast<double>(v[i]), b = static_cast<double>(v[j]);
          const double w = swap_weight(options.function, options.beta * (b - a)).value, moved = (1 - w) * (b - a);
          v[i] = static_cast<T>(a + moved);
          v[j] = static_cast<T>(b - moved);
        });
  }
}

/// Adds to `dscores` [n], given the gradient of the sorted values. The scratch it takes is one group and its network.
template <Real T>
void sorting_network_backward(const SortingNetworkSaved<T>& saved, VectorView<const T> dsorted, VectorView<T> dscores,
                              Workspace& ws) {
  using namespace detail;
  const Index count = saved.offsets.size() - 1;
  check_option("sorting_network_backward", "saved", count >= 0, "what a forward call left", static_cast<double>(count));
  const Index total = saved.offsets[count];
  check_size("sorting_network_backward", "dsorted", dsorted, total);
  if (dscores.empty()) return;
  check_size("sorting_network_backward", "dscores", dscores, total);
  const auto& o = saved.options;
  const T* keep = saved.inputs.data();
  struct Comparator {
    std::int32_t i, j;
  };
  for (Index g = 0; g < count; ++g) {
    const auto mark = ws.mark();
    const Index begin = saved.offsets[g], n = saved.offsets[g + 1] - begin, layers = network_layers(o.network, n);
    double* const d = ws.take<double>(n);
    Comparator* const comparators = ws.take<Comparator>(layers * (n / 2 + 1));
    Index* const starts = ws.take<Index>(layers + 1);
    for (Index i = 0; i < n; ++i) d[i] = static_cast<double>(dsorted[begin + i]);
    Index layer = 0, used = 0;
    visit_network(
        o.network, n, [&] { starts[layer++] = used; },
        [&](Index i, Index j) {
          comparators[used++] = {static_cast<std::int32_t>(i), static_cast<std::int32_t>(j)};
        });
    starts[layer] = used;
    for (Index l = layers; l-- > 0;) {
      const T* const v = keep + l * n;
      for (Index c = starts[l]; c < starts[l + 1]; ++c) {
        const auto [i, j] = comparators[c];
        const double a = static_cast<double>(v[i]), b = static_cast<double>(v[j]);
        const Swap w = swap_weight(o.function, o.beta * (b - a));
        const double low = d[i], high = d[j], turn = o.beta * w.slope * (a - b) * (low - high);
        d[i] = w.value * low + (1 - w.value) * high - turn;
        d[j] = (1 - w.value) * low + w.value * high + turn;
      }
    }
    keep += layers * n;
    for (Index i = 0; i < n; ++i) dscores[begin + i] += static_cast<T>(d[i]);
  }
}

}  // namespace RECOPS_ABI
}  // namespace recops
