/// @file   recops/contrastive/align_pooled.hpp
/// @brief  Aligns two sequences of the same user, such as of two domains: their means, scaled to length 1, in a symmetric in-batch loss.
///
///     a_b = normalised mean of x_b's rows        c_b = normalised mean of y_b's rows        L = inbatch_symmetric(a, c)
///
/// Shapes      x [total, D], y [total', D]: sequences of the same B users
/// Edge cases  A user with an empty sequence on either side is left out, as a negative of others too, whatever the
///             other one holds. A mean of length 0 has no gradient.
/// Cost        one pass over the sequences, and the in-batch loss of [B, D].  NaN and errors as there.
/// Reference   Moment&Cross, arXiv 2408.05709, section on contrastive learning; FARM's align step, arXiv 2502.09375. The form of the loss
///             (symmetric, temperature 0.1) is our reconstruction.
#pragma once
#include <recops/contrastive/in_batch.hpp>
#include <recops/nn/normalize_rows.hpp>
#include <recops/simd/chained_sum.hpp>

namespace recops {

/// Options of `align_pooled`.
struct AlignOptions {
  double log_scale = 2.302585092994046;  ///< log(1 / temperature): temperature 0.1
  IndexView ids = {};                    ///< [B], whose sequences they are: a user who is there twice is no negative of himself
};

inline namespace RECOPS_ABI {

/// mean `[B, D]` of the rows of each sequence of x; zeros for an empty one.
template <Real T>
void mean_pool(JaggedView<const T> x, MatrixView<T> mean, Workspace& ws) {
  check_jagged("mean_pool", "x", x, any_size, any_size);
  check_shape("mean_pool", "mean", mean, x.size(), x.cols());
  for (Index b = 0; b < x.size(); ++b) {
    const MatrixView<const T> rows = x[b];
    std::fill_n(mean.row(b), mean.cols(), T(0));
    const auto mark = ws.mark();
    simd::ChainedSum<T> sum(mean.row(b), mean.cols(), ws);
    for (Index l = 0; l < rows.rows(); ++l) simd::add(rows.row(l), sum.next(), mean.cols());
    sum.finish();
    if (rows.rows() > 0) simd::scale(T(1) / static_cast<T>(rows.rows()), mean.row(b), mean.row(b), mean.cols());
  }
}

/// Adds the gradient of `mean_pool`: dmean_b / L_b to every row of sequence b of dx `[total, D]`. `x` gives the offsets.
template <Real T>
void mean_pool_backward(JaggedView<const T> x, MatrixView<const T> dmean, MatrixView<T> dx) {
  check_jagged("mean_pool_backward", "x", x, any_size, any_size);
  check_shape("mean_pool_backward", "dmean", dmean, x.size(), x.cols());
  check_shape("mean_pool_backward", "dx", dx, x.values().rows(), x.cols());
  for (Index b = 0; b < x.size(); ++b)
    for (Index l = x.begin(b); l < x.begin(b) + x.length(b); ++l)
      simd::axpy(T(1) / static_cast<T>(x.length(b)), dmean.row(b), dx.row(l), dx.cols());
}

namespace detail {

template <class T>
struct AlignGradient {
  MatrixView<T> dx, dy;
  double* dlog_scale;
  double upstream;
};

template <class T>
double align_pooled(const char* name, JaggedView<const T> x, JaggedView<const T> y, const AlignOptions& o,
                    const AlignGradient<T>* g, Workspace& ws) {
  check_jagged(name, "x", x, any_size, any_size);
  const Index users = x.size(), width = x.cols();
  check_jagged(name, "y", y, users, width);
  if (g && !g->dx.empty()) check_shape(name, "dx", g->dx, x.values().rows(), width);
  if (g && !g->dy.empty()) check_shape(name, "dy", g->dy, y.values().rows(), width);
  check_not_null(name, "ids", o.ids);
  if (!o.ids.empty() && o.ids.size() != users) fail_size(name, "ids", users, o.ids.size(), false);
  check_option(name, "log_scale", std::isfinite(o.log_scale), "a finite number", o.log_scale);
  const auto mark = ws.mark();
  const auto matrix = [&] { return ws.matrix<T>(users, width); };
  const MatrixView<T> mean_x = matrix(), mean_y = matrix(), unit_x = matrix(), unit_y = matrix();
  const VectorView<T> weights = ws.vector<T>(users);
  for (Index b = 0; b < users; ++b) weights[b] = x.length(b) > 0 && y.length(b) > 0 ? T(1) : T(0);
  mean_pool<T>(x, mean_x, ws);
  mean_pool<T>(y, mean_y, ws);
  for (Index b = 0; b < users; ++b)  // a NaN of one who is left out has no gradient either
    for (const MatrixView<T>& m : {mean_x, mean_y})
      if (weights[b] == T(0)) std::fill_n(m.row(b), width, T(0));
  normalize_rows<T>(mean_x, unit_x);
  normalize_rows<T>(mean_y, unit_y);
  const InBatchOptions<T> options{.log_scale = o.log_scale, .weights = weights, .u_ids = o.ids, .v_ids = o.ids};
  if (!g) return inbatch_symmetric<T>(name, unit_x, unit_y, options, nullptr, ws);
  const auto zeros = [&](bool wanted) {
    const MatrixView<T> m = wanted ? matrix() : MatrixView<T>();
    for (Index b = 0; b < m.rows(); ++b) std::fill_n(m.row(b), width, T(0));
    return m;
  };
  const MatrixView<T> dunit_x = zeros(!g->dx.empty()), dunit_y = zeros(!g->dy.empty());
  const InfoNceGradient<T> gradient{.du = dunit_x, .dv = dunit_y, .dlog_scale = g->dlog_scale, .upstream = g->upstream};
  const double loss = inbatch_symmetric<T>(name, unit_x, unit_y, options, &gradient, ws);
  const auto back = [&](JaggedView<const T> sequences, MatrixView<const T> mean, MatrixView<const T> dunit, MatrixView<T> d) {
    if (d.empty()) return;
    const MatrixView<T> dmean = zeros(true);
    normalize_rows_backward<T>(mean, dunit, dmean);
    mean_pool_backward<T>(sequences, dmean, d);
  };
  back(x, mean_x, dunit_x, g->dx);
  back(y, mean_y, dunit_y, g->dy);
  return loss;
}

}  // namespace detail

/// The loss.
template <Real T>
double align_pooled(JaggedView<const T> x, JaggedView<const T> y, const AlignOptions& options, Workspace& ws) {
  return detail::align_pooled<T>("align_pooled", x, y, options, nullptr, ws);
}

/// The loss; adds its gradients, times `upstream`, to dx and dy, the shapes of x's and y's rows (each unless empty), and to
/// `dlog_scale` (unless null).
template <Real T>
double align_pooled_value_and_grad(JaggedView<const T> x, JaggedView<const T> y, const AlignOptions& options, double upstream,
                                   MatrixView<T> dx, MatrixView<T> dy, double* dlog_scale, Workspace& ws) {
  const detail::AlignGradient<T> gradient{dx, dy, dlog_scale, upstream};
  return detail::align_pooled<T>("align_pooled_value_and_grad", x, y, options, &gradient, ws);
}

}  // namespace RECOPS_ABI
}  // namespace recops
