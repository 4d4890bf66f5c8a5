/// @file   recops/attention/twin_v2.hpp
/// @brief  TWIN-V2: a life-long history as clusters of alike behaviours, each of which attention treats as one behaviour that
///         happened n times.
///
///     alpha'_a = alpha_a + ln n_c          in both stages: the search keeps the k clusters with the largest alpha', and the attention
///                                          is softmax(alpha')
///
/// With + ln n_c, attention over clusters is exactly attention over the history in which every member is replaced by its cluster's
/// virtual behaviour: n equal scores share n times the weight. So a cluster is not underrated for being one row.
/// A virtual behaviour has the inherent features (ids) of the member nearest to the mean embedding, or, on request, their mean; and
/// the mean of the cross features (numbers). As inherent features are those of an item, cached keys serve clusters too.
///
/// The layer is `Twin` (twin.hpp); a `CompressedHistory` hands it `TwinHistory` with prior = ln n.
///
/// Shapes      L behaviours to C clusters, about L / 10; see behaviour_clusters.hpp for how they are found.
/// Gradients   `compress_history_backward` takes those of a compressed history to the behaviours: means share, representatives get all.
///             Clustering itself has none.
/// Errors      Error for shapes and options that disagree; the result is untouched.
/// Reference   Si et al., TWIN-V2, arXiv 2407.16357, sections 4.2 and 4.3.
#pragma once
#include <recops/attention/behaviour_clusters.hpp>
#include <recops/attention/twin.hpp>

namespace recops {
inline namespace RECOPS_ABI {

/// prior [C] = ln n_c, what attention over clusters of n_c behaviours adds to the scores; an empty cluster is hidden.
template <class T>
void cluster_prior(const BehaviourClusters& clusters, VectorView<T> prior) {
  check_size("cluster_prior", "prior", prior, clusters.size());
  for (Index c = 0; c < clusters.size(); ++c) prior[c] = static_cast<T>(std::log(static_cast<double>(clusters.size_of(c))));
}

/// A history of one user as clusters. Keeps its memory when filled again.
template <class T>
struct CompressedHistory {
  BehaviourClusters clusters;
  Vector<std::int32_t> representative;  ///< [C], a behaviour each
  Matrix<T> inherent;                   ///< [C, D]
  Matrix<T> cross;                      ///< [C, J e]
  Vector<T> prior;                      ///< [C], ln n
  bool average_inherent = false;        ///< inherent features are means, not the representative's

  Index size() const { return clusters.size(); }
  /// What `Twin` takes; views of this.
  TwinHistory<T> history() const { return {.inherent = inherent.view(), .cross = cross, .prior = prior}; }
  /// Bytes that serving reads of a user: features and prior of every cluster.
  Index bytes() const {
    return (inherent.rows() * inherent.cols() + cross.rows() * cross.cols() + prior.size()) * Index{sizeof(T)};
  }
};

/// Clusters a user's history [L] by `embedding` [L, d] and `ratio` [L] (or empty) and forms the virtual behaviours.
template <class T>
void compress_history(MatrixView<const T> embedding, VectorView<const T> ratio, MatrixView<const T> inherent,
                      MatrixView<const T> cross, const ClusterOptions& options, CompressedHistory<T>& out, Workspace& ws) {
  const char* op = "compress_history";
  check_shape(op, "inherent", inherent, embedding.rows(), any_size);
  if (cross.cols() > 0) check_shape(op, "cross", cross, embedding.rows(), any_size);
  cluster_behaviours<T>(embedding, ratio, options, out.clusters, ws);
  const Index count = out.clusters.size();
  out.representative.resize(count);
  cluster_representatives<T>(embedding, out.clusters, out.representative, ws);
  out.inherent.resize(count, inherent.cols());
  if (out.average_inherent) {
    cluster_means<T>(inherent, out.clusters, out.inherent);
  } else {
    for (Index c = 0; c < count; ++c) std::copy_n(inherent.row(out.representative[c]), inherent.cols(), out.inherent.row(c));
  }
  out.cross.resize(count, cross.cols());
  if (!cross.empty()) cluster_means<T>(cross, out.clusters, out.cross);
  out.prior.resize(count);
  cluster_prior<T>(out.clusters, out.prior);
}

/// Adds the gradients of a compressed history (empty: none) to those of the behaviours (empty: not wanted).
template <class T>
void compress_history_backward(const CompressedHistory<T>& compressed, MatrixView<const T> dinherent_of_clusters,
                               MatrixView<const T> dcross_of_clusters, MatrixView<T> dinherent, MatrixView<T> dcross) {
  const char* op = "compress_history_backward";
  const Index count = compressed.size(), l = compressed.clusters.members.size();
  if (dinherent_of_clusters.empty()) dinherent = {};
  if (dcross_of_clusters.empty()) dcross = {};
  if (dinherent.empty() && dcross.empty()) return;
  detail::check_clusters(op, compressed.clusters, l);
  if (!dinherent.empty()) {
    check_shape(op, "dinherent", dinherent, l, compressed.inherent.cols());
    check_shape(op, "dinherent_of_clusters", dinherent_of_clusters, count, dinherent.cols());
    check_size(op, "representative", VectorView<const std::int32_t>(compressed.representative), count);
    check_indices(op, "representative", compressed.representative, l);
  }
  if (!dcross.empty()) {
    check_shape(op, "dcross", dcross, l, compressed.cross.cols());
    check_shape(op, "dcross_of_clusters", dcross_of_clusters, count, dcross.cols());
  }
  if (!dinherent.empty() && compressed.average_inherent) {
    cluster_means_backward<T>(compressed.clusters, dinherent_of_clusters, dinherent);
  } else if (!dinherent.empty()) {
    for (Index c = 0; c < count; ++c)
      simd::add<T>(dinherent_of_clusters.row(c), dinherent.row(compressed.representative[c]), dinherent.cols());
  }
  if (!dcross.empty()) cluster_means_backward<T>(compressed.clusters, dcross_of_clusters, dcross);
}

}  // namespace RECOPS_ABI
}  // namespace recops
