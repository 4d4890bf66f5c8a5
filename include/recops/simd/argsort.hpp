/// @file   recops/simd/argsort.hpp
/// @brief  The order of numbers: the permutation that sorts them, stable and safe from NaN; its inverse, their ranks; both also
///         segment by segment.
///
///     x[indices[0]] <= x[indices[1]] <= ...          (descending: >=)          ranks[indices[i]] = i
///
/// Shapes      x, indices, ranks [n]   offsets [S + 1]
/// Order       equal numbers (-0 and +0 are) by index, in either direction; NaN last in either direction, by index.
/// Limits      n < 2^31.
/// Cost        O(n), a few nanoseconds for each number whatever their order: words of key and index are sorted (simd/sort.hpp),
///             above 2^17 of them after a split by the leading digit into parts that fit into caches. Doubles are sorted by the
///             upper halves of their keys, then those that agree by the lower. Scratch 16 n bytes. No allocation once it has
///             grown.
/// Result      the same for every instruction set and any number of threads.
#pragma once
#include <recops/core/workspace.hpp>
#include <recops/simd/order_key.hpp>
#include <recops/simd/shuffle.hpp>
#include <recops/simd/sort.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

namespace detail {

/// words[i] = the upper 32 bits of the key of x[first + i], above first + i, for i < n. Room for n + lanes words.
template <class T, class A>
void fill_words(const T* x, Index first, Index n, Order order, std::uint64_t* words) {
  x += first;
  if constexpr (std::is_same_v<T, float>) {
    using B = Batch<float, A>;
    using I = Batch<std::int32_t, A>;
    constexpr Index W = lanes<float, A>;
    alignas(64) std::int32_t lane[W];
    for (Index l = 0; l < W; ++l) lane[l] = static_cast<std::int32_t>(first + l);
    I index = I::load_aligned(lane);
    const I step(static_cast<std::int32_t>(W));
    const auto fill = [&](B v, std::uint64_t* to) RECOPS_LAMBDA_INLINE {
      const B key = bits_as<float>(order_keys<A>(v, order)), position = bits_as<float>(index);
      bits_as<std::int32_t>(zip<false>(position, key)).store_unaligned(reinterpret_cast<std::int32_t*>(to));
      bits_as<std::int32_t>(zip<true>(position, key)).store_unaligned(reinterpret_cast<std::int32_t*>(to + W / 2));
      index = index + step;
    };
    Index i = 0;
    for (; i + W <= n; i += W) fill(B::load_unaligned(x + i), words + i);
    if (i < n) fill(load_first<float, A>(x + i, n - i), words + i);
  } else {
    for (Index i = 0; i < n; ++i) words[i] = (order_key(x[i], order) >> 32 << 32) | static_cast<std::uint32_t>(first + i);
  }
}

/// Orders doubles, whose upper halves are in order, by the lower halves of their keys where the upper ones are equal.
template <class A>
void order_lower_halves(const double* x, Index n, Order order, std::uint64_t* words, std::uint64_t* other) {
  const auto upper = [words](Index i) { return words[i] >> 32; };
  const auto lower_word = [=](std::uint64_t word) {
    const auto index = static_cast<std::uint32_t>(word);
    return order_key(x[index], order) << 32 | index;
  };
  constexpr Index ahead = 24;
  for (Index begin = 0; begin + 1 < n;) {
    if (begin + ahead + 1 < n) {  // what is not needed costs nothing: the start of x is there
      const bool needed = upper(begin + ahead) == upper(begin + ahead + 1);
      __builtin_prefetch(x + (needed ? static_cast<std::uint32_t>(words[begin + ahead]) : 0));
    }
    Index end = begin + 1;
    if (upper(begin) != upper(end)) {
      begin = end;
      continue;
    }
    while (end < n && upper(end) == upper(begin)) ++end;
    std::uint64_t* const run = words + begin;
    const Index count = end - begin;
    for (Index i = 0; i < count; ++i) run[i] = lower_word(run[i]);
    if (count == 2) {
      const std::uint64_t a = run[0], b = run[1];
      run[0] = a < b ? a : b;
      run[1] = a < b ? b : a;
    } else {
      const std::uint64_t* const sorted = sort_words<A>(run, other, count);
      if (sorted != run) std::copy_n(sorted, count, run);
    }
    begin = end;
  }
}

/// Sorting more of them at once runs out of cache and address translations.
inline constexpr Index cached_words = Index{1} << 17;

/// Calls `f(begin, count, words)` with the words of x in order, for the places from `begin` on: once, or part after part. Their
/// lower halves are the indices, the upper ones keys (float) or of no use (double). Equal numbers are in one part. Scratch for
/// n + lanes words at `words` and `other`.
template <class T, class A, class F>
void visit_ordered(const T* x, Index n, Order order, std::uint64_t* words, std::uint64_t* other, F&& f) {
  assert(n >= 0 && n <= Index{0x7FFFFFFF});
  const auto finish = [&](Index begin, Index count, std::uint64_t* part, std::uint64_t* spare) {
    std::uint64_t* const sorted = sort_words<A>(part, spare, count);
    if constexpr (std::is_same_v<T, double>) order_lower_halves<A>(x, count, order, sorted, sorted == part ? spare : part);
    f(begin, count, static_cast<const std::uint64_t*>(sorted));
  };
  constexpr int width = 11, values = 1 << width, shift = 64 - width;
  constexpr Index block = 256;
  if (n > cached_words) {
    // Split by the leading digit, from the numbers themselves. All parts share one spare buffer, which stays in cache.
    std::uint32_t place[values] = {};
    alignas(64) std::uint64_t some[block + lanes<float, A>];
    for (Index i = 0; i < n; i += block) {
      const Index count = std::min(block, n - i);
      fill_words<T, A>(x, i, count, order, some);
      for (Index j = 0; j < count; ++j) ++place[some[j] >> shift];
    }
    if (place[some[0] >> shift] <= n / 2) {
      places_of(place, values);
      for (Index i = 0; i < n; i += block) {
        const Index count = std::min(block, n - i);
        fill_words<T, A>(x, i, count, order, some);
        for (Index j = 0; j < count; ++j) other[place[some[j] >> shift]++] = some[j];
      }
      for (Index begin = 0, v = 0; v < values; begin = place[v++])  // `place` has moved on to the ends
        if (place[v] > begin) finish(begin, place[v] - begin, other + begin, words);
      return;
    }
  }
  fill_words<T, A>(x, 0, n, order, words);
  finish(0, n, words, other);
}
/// The same with scratch of `ws`, which must be marked.
template <class T, class A, class F>
void visit_ordered(const T* x, Index n, Order order, Workspace& ws, F&& f) {
  std::uint64_t* const words = ws.take<std::uint64_t>(n + lanes<float, A>);
  visit_ordered<T, A>(x, n, order, words, ws.take<std::uint64_t>(n + lanes<float, A>), f);
}

RECOPS_INLINE std::int32_t index_of(std::uint64_t word) { return static_cast<std::int32_t>(static_cast<std::uint32_t>(word)); }

/// Calls `f(segment, first, begin, count, words)` for every segment, which begins at `first`, and each of its parts in order.
template <class T, class A, class F>
void for_each_segment(const T* x, IndexView offsets, Order order, Workspace& ws, F&& f) {
  constexpr Index some = 64;
  const Index segments = offsets.size() - 1;
  ws.parallel_for((segments + some - 1) / some, [&](Index task, Workspace& scratch) {
    const Index begin = task * some, end = std::min(segments, begin + some);
    Index longest = 0;
    for (Index s = begin; s < end; ++s) longest = std::max(longest, offsets[s + 1] - offsets[s]);
    const auto mark = scratch.mark();
    std::uint64_t* const words = scratch.take<std::uint64_t>(longest + lanes<float, A>);
    std::uint64_t* const other = scratch.take<std::uint64_t>(longest + lanes<float, A>);
    for (Index s = begin; s < end; ++s) {
      const Index first = offsets[s], count = offsets[s + 1] - first;
      visit_ordered<T, A>(x + first, count, order, words, other,
                          [&](Index at, Index some_count, const std::uint64_t* sorted) { f(s, first, at, some_count, sorted); });
    }
  });
}

}  // namespace detail

/// indices[i] = which number is at place i.
template <Real T, class A = DefaultArch>
void argsort(const T* x, Index n, Order order, std::int32_t* indices, Workspace& ws) {
  const auto mark = ws.mark();
  detail::visit_ordered<T, A>(x, n, order, ws, [=](Index begin, Index count, const std::uint64_t* words) {
    for (Index i = 0; i < count; ++i) indices[begin + i] = detail::index_of(words[i]);
  });
}

/// The same, and the numbers in that order (`sorted` is not `x`): either zero comes as +0, NaN as some NaN.
template <Real T, class A = DefaultArch>
void argsort(const T* x, Index n, Order order, std::int32_t* indices, T* sorted, Workspace& ws) {
  const auto mark = ws.mark();
  detail::visit_ordered<T, A>(x, n, order, ws, [=](Index begin, Index count, const std::uint64_t* words) {
    for (Index i = 0; i < count; ++i) indices[begin + i] = detail::index_of(words[i]);
    for (Index i = 0; i < count; ++i) {
      if constexpr (std::is_same_v<T, float>) {
        sorted[begin + i] = from_order_key<float>(static_cast<std::uint32_t>(words[i] >> 32), order);
      } else {
        sorted[begin + i] = x[detail::index_of(words[i])] + T(0);
      }
    }
  });
}

/// indices[offsets[s] + i] = which number of segment s, counted from its first, is at place i of that segment. Segments run on
/// the caller's threads. `offsets` begin with 0 and never fall; empty segments are fine.
template <Real T, class A = DefaultArch>
void argsort_segments(const T* x, IndexView offsets, Order order, std::int32_t* indices, Workspace& ws) {
  detail::for_each_segment<T, A>(x, offsets, order, ws,
                                 [=](Index, Index first, Index begin, Index count, const std::uint64_t* words) {
                                   std::int32_t* const to = indices + first + begin;
                                   for (Index i = 0; i < count; ++i) to[i] = detail::index_of(words[i]);
                                 });
}

/// inverse[indices[i]] = i, of a permutation: ranks from an argsort, and the way back.
inline void invert_permutation(const std::int32_t* indices, Index n, std::int32_t* inverse) {
  for (Index i = 0; i < n; ++i) inverse[indices[i]] = static_cast<std::int32_t>(i);
}

/// ranks[i] = the place of x[i], from 0; of equal numbers the first comes first.
template <Real T, class A = DefaultArch>
void ranks(const T* x, Index n, Order order, std::int32_t* ranks, Workspace& ws) {
  const auto mark = ws.mark();
  detail::visit_ordered<T, A>(x, n, order, ws, [=](Index begin, Index count, const std::uint64_t* words) {
    for (Index i = 0; i < count; ++i) ranks[detail::index_of(words[i])] = static_cast<std::int32_t>(begin + i);
  });
}

/// The same within each segment.
template <Real T, class A = DefaultArch>
void ranks_segments(const T* x, IndexView offsets, Order order, std::int32_t* ranks, Workspace& ws) {
  detail::for_each_segment<T, A>(x, offsets, order, ws,
                                 [=](Index, Index first, Index begin, Index count, const std::uint64_t* words) {
                                   std::int32_t* const to = ranks + first;
                                   for (Index i = 0; i < count; ++i)
                                     to[detail::index_of(words[i])] = static_cast<std::int32_t>(begin + i);
                                 });
}

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
