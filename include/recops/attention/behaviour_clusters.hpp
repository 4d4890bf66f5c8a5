/// @file   recops/attention/behaviour_clusters.hpp
/// @brief  TWIN-V2's offline half: a life-long history as clusters of alike behaviours, none larger than a limit, and what stands for
///         each of them.
///
///     groups     by how much of it was watched: g = min(M - 1, floor(clamp(ratio, 0, 1) M)); a cluster never mixes groups
///     then       a queue of sets, first the group: one of at most `max_size` behaviours is a cluster; a larger one is split by k-means
///                into max(2, floor(size^0.3)) parts, which are queued. Parts that cannot be told apart are cut in the order of time
///
/// k-means: at most `iterations` rounds of Lloyd from evenly spaced members, until no label changes; equal distances go to the lower
/// centroid; a centroid that loses all members stays where it is. Everything is deterministic.
///
/// Shapes      x [L, d] embeddings of the behaviours, in the order of time   ratio [L] or empty: one group
///             clusters: offsets [C + 1], members [L]: by group, then as they left the queue, then what is not finite; members in
///             the order of time
/// Edge cases  L = 0: no clusters. max_size = 1: every behaviour is a cluster. All behaviours alike: ceil(n / max_size) pieces.
/// NaN         A ratio of NaN counts as 0. Behaviours with a NaN or infinity are a set of their own in their group, after the others and
///             cut in the order of time; the rest are clustered as if they were not there.
/// Cost        sum over levels of 2 L d size^0.3 iterations flops: for L = 10^6 and d = 64, 8e10. Scratch: a copy of the largest group.
/// Threads     One task a group; the same clusters for any number of threads.
/// Errors      Error for options out of range or sizes that disagree; clusters untouched.
/// Reference   Si et al., TWIN-V2, arXiv 2407.16357, section 4.2; start of k-means and cutting of what is alike are our reconstruction.
#pragma once
#include <cmath>
#include <recops/core/workspace.hpp>
#include <recops/simd/nearest_centroid.hpp>
#include <recops/simd/pool_rows.hpp>
#include <recops/simd/reduce.hpp>

namespace recops {

/// Options of `cluster_behaviours`.
struct ClusterOptions {
  Index groups = 5;              ///< M
  Index max_size = 20;           ///< of a cluster
  double branch_exponent = 0.3;  ///< a set of n is split into max(2, floor(n^this)) parts; in (0, 1)
  Index iterations = 10;         ///< of Lloyd, at most
};

inline namespace RECOPS_ABI {

/// Which behaviours are together. Keeps its memory when filled again.
struct BehaviourClusters {
  Vector<std::int32_t> offsets;  ///< [C + 1]
  Vector<std::int32_t> members;  ///< [L], each behaviour once

  Index size() const { return offsets.empty() ? 0 : offsets.size() - 1; }
  Index size_of(Index c) const { return offsets[c + 1] - offsets[c]; }
  VectorView<const std::int32_t> operator[](Index c) const {
    return VectorView<const std::int32_t>(members).segment(offsets[c], size_of(c));
  }
};

namespace detail {

/// Splits the rows named by order[0 .. n) into `count` parts by k-means and orders them by part, each in the order they had. Returns
/// the number of parts with members; `sizes` [count] has theirs.
template <class T>
Index split_by_k_means(MatrixView<const T> x, std::int32_t* order, Index n, Index count, Index iterations, std::int32_t* sizes,
                       Workspace& ws) {
  constexpr Index P = simd::panel_width<T>, summed = 4096;
  const auto mark = ws.mark();
  const Index d = x.cols(), panels = (n + P - 1) / P;
  T* const packed = ws.take<T>(panels * d * P);
  T* const squares = ws.take<T>(P);
  T* const fresh = ws.take<T>(P);
  auto* const label = ws.take<std::int32_t>(n);
  const MatrixView<T> centroids = ws.matrix<T>(count, d), sums = ws.matrix<T>(count, d);
  T* const half = ws.take<T>(count);
  double* const total = ws.take<double>(count * d);
  auto* const moved = ws.take<std::int32_t>(P);
  for (Index p = 0; p < panels; ++p) {
    const Index first = p * P;
    simd::pack_panel<T>([&](Index i) { return first + i < n ? x.row(order[first + i]) : nullptr; }, d, packed + first * d,
                        squares, /*ahead=*/true);
  }
  for (Index k = 0; k < count; ++k) std::copy_n(x.row(order[k * n / count]), d, centroids.row(k));
  std::fill_n(label, n, std::int32_t{-1});
  std::fill_n(sizes, count, std::int32_t{0});
  std::fill_n(total, count * d, 0.0);
  for (Index round = 0; round < iterations; ++round) {
    for (Index k = 0; k < count; ++k) half[k] = simd::dot<T>(centroids.row(k), centroids.row(k), d) / 2;
    const bool last = round + 1 == iterations;
    bool changed = false;
    // Only rows that move change the sums: they are read again, the others only as panels. In blocks, so that float sums stay
    // accurate.
    for (Index begin = 0; begin < n; begin += summed) {
      const Index end = std::min(n, begin + summed);
      bool touched = false;
      for (Index p = begin; p < end; p += P) {
        const Index rows = std::min(P, end - p);
        simd::nearest_centroid<T>(packed + p * d, rows, d, centroids.data(), half, count, fresh);
        Index moves = 0;
        for (Index i = 0; i < rows; ++i) {
          moved[moves] = static_cast<std::int32_t>(p + i);
          moves += label[p + i] != static_cast<std::int32_t>(fresh[i]) ? 1 : 0;
        }
        if (moves == 0) continue;
        if (!touched) std::fill_n(sums.data(), count * d, T(0));
        touched = changed = true;
        for (Index m = 0; m < moves; ++m) {
          const Index i = moved[m];
          const auto to = static_cast<std::int32_t>(fresh[i - p]), from = std::exchange(label[i], to);
          ++sizes[to];
          if (from >= 0) --sizes[from];
          if (last) continue;
          if (m + 4 < moves) {
            const auto next = reinterpret_cast<std::uintptr_t>(x.row(order[moved[m + 4]]));
            for (std::uintptr_t b = 0; b < static_cast<std::uintptr_t>(d) * sizeof(T); b += 64)
              __builtin_prefetch(reinterpret_cast<const void*>(next + b));
          }
          const T* const row = x.row(order[i]);
          simd::add<T>(row, sums.row(to), d);
          if (from >= 0) simd::axpy<T>(T(-1), row, sums.row(from), d);
        }
      }
      for (Index i = 0; i < count * d && touched && !last; ++i) total[i] += static_cast<double>(sums.data()[i]);
    }
    if (!changed || last) break;
    for (Index k = 0; k < count; ++k)
      for (Index i = 0; i < d && sizes[k] > 0; ++i)
        centroids(k, i) = static_cast<T>(total[k * d + i] / static_cast<double>(sizes[k]));
  }
  Index parts = 0;
  auto* const next = ws.take<std::int32_t>(count);
  auto* const sorted = ws.take<std::int32_t>(n);
  std::int32_t at = 0;
  for (Index k = 0; k < count; ++k) {
    next[k] = at;
    at += sizes[k];
    parts += sizes[k] > 0 ? 1 : 0;
  }
  for (Index i = 0; i < n; ++i) sorted[next[label[i]]++] = order[i];
  std::copy_n(sorted, n, order);
  return parts;
}

/// Clusters one group: order [n], its behaviours, is rearranged; `ends` [n] receives begin and end of every cluster in `order`, in the
/// order they leave the queue. Returns their number.
struct RowRange {
  std::int32_t begin, end;
};
template <class T>
Index cluster_group(MatrixView<const T> x, std::int32_t* order, Index n, const ClusterOptions& o, RowRange* clusters,
                    Workspace& ws) {
  if (n == 0) return 0;
  const auto mark = ws.mark();
  auto* const queue = ws.take<RowRange>(2 * n);  // sets that are split have two parts or more
  auto* const sizes = ws.take<std::int32_t>(n);
  Index head = 0, tail = 0, count = 0;
  const auto cut = [&](RowRange set) {
    const Index size = set.end - set.begin, pieces = (size + o.max_size - 1) / o.max_size;
    for (Index i = 0; i < pieces; ++i)
      clusters[count++] = {static_cast<std::int32_t>(set.begin + size * i / pieces),
                           static_cast<std::int32_t>(set.begin + size * (i + 1) / pieces)};
  };
  auto* const others = ws.take<std::int32_t>(n);
  Index kept = 0, odd = 0;
  for (Index i = 0; i < n; ++i) {
    const std::int32_t row = order[i];
    (simd::finite_row(x.row(row), x.cols()) ? order[kept++] : others[odd++]) = row;
  }
  std::copy_n(others, odd, order + kept);
  if (odd < n) queue[tail++] = {0, static_cast<std::int32_t>(n - odd)};
  while (head < tail) {
    const RowRange set = queue[head++];
    const Index size = set.end - set.begin;
    if (size <= o.max_size) {
      clusters[count++] = set;
      continue;
    }
    const Index branches =
        std::min(size, std::max(Index{2}, static_cast<Index>(std::pow(static_cast<double>(size), o.branch_exponent))));
    const Index parts = split_by_k_means<T>(x, order + set.begin, size, branches, o.iterations, sizes, ws);
    if (parts == 1) {  // nothing tells them apart
      cut(set);
      continue;
    }
    std::int32_t begin = set.begin;
    for (Index k = 0; k < branches; ++k) {
      if (sizes[k] == 0) continue;
      queue[tail++] = {begin, begin + sizes[k]};
      begin += sizes[k];
    }
  }
  cut({static_cast<std::int32_t>(n - odd), static_cast<std::int32_t>(n)});
  return count;
}

}  // namespace detail

/// Clusters one user's behaviours.
template <class T>
void cluster_behaviours(MatrixView<const T> x, VectorView<const T> ratio, const ClusterOptions& o, BehaviourClusters& clusters,
                        Workspace& ws) {
  const char* op = "cluster_behaviours";
  check_shape(op, "x", x, any_size, any_size);
  const Index l = x.rows();
  check_option(op, "x", l < Index{1} << 31, "fewer than 2^31 behaviours", static_cast<double>(l));
  check_option(op, "x", x.cols() >= 1 || l == 0, "embeddings of at least one number", static_cast<double>(x.cols()));
  if (!ratio.empty()) check_size(op, "ratio", ratio, l);
  check_option(op, "groups", o.groups >= 1 && o.groups <= 65536, "1 <= groups <= 65536", static_cast<double>(o.groups));
  check_option(op, "max_size", o.max_size >= 1, "max_size >= 1", static_cast<double>(o.max_size));
  check_option(op, "branch_exponent", o.branch_exponent > 0 && o.branch_exponent < 1, "0 < branch_exponent < 1",
               o.branch_exponent);
  check_option(op, "iterations", o.iterations >= 1, "iterations >= 1", static_cast<double>(o.iterations));
  const auto mark = ws.mark();
  const Index groups = ratio.empty() ? 1 : o.groups;
  auto* const group = ws.take<std::int32_t>(l);
  auto* const begin = ws.take<Index>(groups + 1);
  std::fill_n(begin, groups + 1, Index{0});
  for (Index i = 0; i < l; ++i) {
    const double p = ratio.empty() || !(ratio[i] > 0) ? 0 : std::min(1.0, static_cast<double>(ratio[i]));
    group[i] = static_cast<std::int32_t>(std::min(groups - 1, static_cast<Index>(p * static_cast<double>(groups))));
    ++begin[group[i] + 1];
  }
  for (Index g = 0; g < groups; ++g) begin[g + 1] += begin[g];
  auto* const order = ws.take<std::int32_t>(l);
  auto* const next = ws.take<Index>(groups);
  std::copy_n(begin, groups, next);
  for (Index i = 0; i < l; ++i) order[next[group[i]]++] = static_cast<std::int32_t>(i);
  auto* const ranges = ws.take<detail::RowRange>(l);
  auto* const counts = ws.take<Index>(groups);
  ws.parallel_for(groups, [&](Index g, Workspace& scratch) {
    counts[g] = detail::cluster_group<T>(x, order + begin[g], begin[g + 1] - begin[g], o, ranges + begin[g], scratch);
  });
  Index all = 0;
  for (Index g = 0; g < groups; ++g) all += counts[g];
  clusters.offsets.resize(all + 1);
  clusters.members.resize(l);
  clusters.offsets[0] = 0;
  Index c = 0;
  std::int32_t* to = clusters.members.data();
  for (Index g = 0; g < groups; ++g) {
    for (Index i = 0; i < counts[g]; ++i) {
      const detail::RowRange r = ranges[begin[g] + i];
      to = std::copy(order + begin[g] + r.begin, order + begin[g] + r.end, to);
      clusters.offsets[++c] = static_cast<std::int32_t>(to - clusters.members.data());
    }
  }
}

namespace detail {
inline void check_clusters(const char* op, const BehaviourClusters& clusters, Index behaviours) {
  check_offsets(op, "clusters.offsets", clusters.offsets, clusters.members.size());
  check_indices(op, "clusters.members", clusters.members, behaviours);
}
}  // namespace detail

/// means [C, D] of the members' rows of x [L, D]: numeric features, or an average embedding. An empty cluster: zeros.
template <class T>
void cluster_means(MatrixView<const T> x, const BehaviourClusters& clusters, MatrixView<T> means) {
  const char* op = "cluster_means";
  check_shape(op, "x", x, any_size, any_size);
  detail::check_clusters(op, clusters, x.rows());
  check_shape(op, "means", means, clusters.size(), x.cols());
  const simd::PickedRows<T> rows{.table = x, .ids = clusters.members};
  for (Index c = 0; c < clusters.size(); ++c) {
    const Index n = clusters.size_of(c);
    simd::pool_rows<T>(rows, clusters.offsets[c], clusters.offsets[c + 1], n > 0 ? T(1) / static_cast<T>(n) : T(0), means.row(c));
  }
}

/// Adds to dx.
template <class T>
void cluster_means_backward(const BehaviourClusters& clusters, MatrixView<const T> dmeans, MatrixView<T> dx) {
  const char* op = "cluster_means_backward";
  check_shape(op, "dx", dx, any_size, any_size);
  detail::check_clusters(op, clusters, dx.rows());
  check_shape(op, "dmeans", dmeans, clusters.size(), dx.cols());
  for (Index c = 0; c < clusters.size(); ++c)
    for (const std::int32_t l : clusters[c])
      simd::axpy<T>(T(1) / static_cast<T>(clusters.size_of(c)), dmeans.row(c), dx.row(l), dx.cols());
}

/// representative [C]: the member nearest to the cluster's mean, whose ids and other categorical features stand for all. Equal
/// distances, and NaN: the earliest. -1 for an empty cluster.
template <class T>
void cluster_representatives(MatrixView<const T> x, const BehaviourClusters& clusters, VectorView<std::int32_t> representative,
                             Workspace& ws) {
  const char* op = "cluster_representatives";
  check_shape(op, "x", x, any_size, any_size);
  detail::check_clusters(op, clusters, x.rows());
  check_size(op, "representative", representative, clusters.size());
  const auto mark = ws.mark();
  T* const mean = ws.take<T>(x.cols());
  T* const apart = ws.take<T>(x.cols());
  const simd::PickedRows<T> rows{.table = x, .ids = clusters.members};
  for (Index c = 0; c < clusters.size(); ++c) {
    const Index n = clusters.size_of(c);
    representative[c] = n > 0 ? clusters[c][0] : -1;
    if (n < 3) continue;  // two are equally far from their mean
    simd::pool_rows<T>(rows, clusters.offsets[c], clusters.offsets[c + 1], T(1) / static_cast<T>(n), mean);
    T least = std::numeric_limits<T>::infinity();
    for (const std::int32_t l : clusters[c]) {
      for (Index i = 0; i < x.cols(); ++i) apart[i] = x(l, i) - mean[i];
      const T distance = simd::sum_squares<T>(apart, x.cols());
      if (distance < least) least = distance, representative[c] = l;
    }
  }
}

}  // namespace RECOPS_ABI
}  // namespace recops
