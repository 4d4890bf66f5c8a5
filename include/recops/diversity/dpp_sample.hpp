/// @file   recops/diversity/dpp_sample.hpp
/// @brief  Exact samples of a determinantal point process: of k items, or of as many as it happens to draw.
///
///     P(Y) ~ det(V_Y V_Y^T),  v_i = q_i f_i          k-DPP: over the sets of k items          DPP: over all sets
///
/// `prepare` solves the eigenvalue problem of V^T V [D, D]; each sample then draws which eigenvectors take part, and items one by one
/// from what their span leaves open. The N x N kernel is never formed.
///
/// Shapes      features [N, D]   quality [N] or empty   picks [k], in the order of drawing.
/// Edge cases  k above the rank of V: no such set, count 0 and `rank_exhausted`. N = 0, k = 0, D = 0.  An item of probability 0 is never
///             drawn, nor an item twice.
/// NaN         Features or quality that are not finite, or items whose squares are not, as doubles: Error from `prepare`, as there is
///             no distribution.
/// Precision   Spectrum and choice of eigenvectors in double; N-sized arrays in T.
/// Cost        prepare: 2 N D^2 + O(D^3) flops. Sample: 2 N D k + 2 N k^2, and 2 passes over N numbers a pick. No allocation once warm.
/// Randomness  A function of `at` (seed, row, step, sample).
/// Reference   Kulesza & Taskar, k-DPPs: fixed-size determinantal point processes, ICML 2011; dual form: arXiv 1207.6083, section 3.3.
#pragma once
#include <recops/diversity/dpp_loss.hpp>
#include <recops/diversity/selection.hpp>
#include <recops/simd/uniform.hpp>

namespace recops {
inline namespace RECOPS_ABI {

/// Holds the spectrum of one request's items and refers to its features, which must live as long.
template <Real T>
class DppSampler {
 public:
  /// Throws `Error` for shapes that disagree, negative quality and numbers that are not finite.
  void prepare(const DppItems<T>& in, Workspace& ws) {
    detail::check_dpp_items("DppSampler", in);
    const Index d = in.features.cols();
    vectors_.resize(d, d);
    values_.resize(d);
    items_ = rank_ = 0;
    detail::dpp_gram(in, vectors_, ws);
    if (!detail::psd_spectrum(vectors_, values_.data(), ws)) fail("DppSampler", "features", "finite numbers", "others");
    double most = 0;
    for (const double v : values_) most = std::max(most, v);
    rank_ = 0;
    for (Index i = 0; i < d; ++i) {  // what is left of the vanishing ones is rounding
      if (values_[i] > 1e-12 * most) {
        values_[rank_] = values_[i];
        if (rank_ != i) std::copy_n(vectors_.row(i), d, vectors_.row(rank_));
        ++rank_;
      }
    }
    in_ = in;
    items_ = in.features.rows();
    largest_ = 0;
    for (Index i = 0; i < items_; ++i)
      for (Index c = 0; c < d; ++c) largest_ = std::max(largest_, std::abs(static_cast<double>(in.features(i, c))));
  }
  Index items() const { return items_; }
  /// Items that any sample can have at most.
  Index rank() const { return rank_; }
  /// Expected number of items of a sample of any size: sum of lambda / (1 + lambda).
  double expected_size() const {
    double sum = 0;
    for (Index i = 0; i < rank_; ++i) sum += values_[i] / (1 + values_[i]);
    return sum;
  }

  /// Draws k = picks.size() items.
  Selection sample(const RandomRow& at, VectorView<std::int32_t> picks, Workspace& ws) const {
    check_size("DppSampler::sample", "picks", picks, any_size);
    const Index k = picks.size();
    std::fill(picks.begin(), picks.end(), -1);
    if (k == 0) return {};
    if (k > rank_) return {0, SelectionStatus::rank_exhausted};
    const auto mark = ws.mark();
    const double* const u = uniforms(at, ws);
    double* const logs = ws.take<double>(rank_);
    for (Index i = 0; i < rank_; ++i) logs[i] = std::log(values_[i]);
    const MatrixView<double> e = ws.matrix<double>(rank_ + 1, k + 1);
    detail::log_elementary_symmetric(logs, rank_, 1, e);
    auto* const taken = ws.take<std::int32_t>(k);
    Index left = k;
    for (Index n = rank_; n > 0 && left > 0; --n) {
      if (std::log(u[n - 1]) < logs[n - 1] + e(n - 1, left - 1) - e(n, left)) taken[--left] = static_cast<std::int32_t>(n - 1);
    }
    const Index count = draw(taken, k, u + rank_, picks, ws);
    return {count, count == k ? SelectionStatus::ok : SelectionStatus::rank_exhausted};
  }

  /// Draws a set of any size into the first places of `picks`; at most `rank()` items, of which `picks` must have room for.
  Selection sample_any(const RandomRow& at, VectorView<std::int32_t> picks, Workspace& ws) const {
    check_size("DppSampler::sample_any", "picks", picks, any_size);
    check_option("DppSampler::sample_any", "picks", picks.size() >= rank_, "room for rank() items",
                 static_cast<double>(picks.size()));
    const auto mark = ws.mark();
    const double* const u = uniforms(at, ws);
    auto* const taken = ws.take<std::int32_t>(rank_);
    Index k = 0;
    for (Index n = 0; n < rank_; ++n)
      if (u[n] * (1 + values_[n]) < values_[n]) taken[k++] = static_cast<std::int32_t>(n);
    std::fill(picks.begin(), picks.end(), -1);
    const Index count = draw(taken, k, u + rank_, picks.segment(0, k), ws);
    return {count, count == picks.size() ? SelectionStatus::ok : SelectionStatus::exhausted};
  }

 private:
  const double* uniforms(const RandomRow& at, Workspace& ws) const {
    double* const u = ws.take<double>(2 * rank_);
    RandomRow row = at;
    row.purpose = RandomPurpose::point_process;
    simd::fill_uniform<double>(row, u, 2 * rank_);
    return u;
  }

  /// Items one by one from the span of the eigenvectors taken[0 .. k). Returns how many: k, unless T cannot hold what is left.
  Index draw(const std::int32_t* taken, Index k, const double* u, VectorView<std::int32_t> picks, Workspace& ws) const {
    const Index n = items_, d = in_.features.cols();
    if (k == 0) return 0;
    const MatrixView<T> directions = ws.matrix<T>(k, d), b = ws.matrix<T>(k, n), basis = ws.matrix<T>(k, k);
    // The scale of all items is taken out of the directions, and the qualities, that T can hold both; and of the directions what their
    // products with the largest features would have beyond T.
    const double scale = std::sqrt(*std::max_element(values_.begin(), values_.begin() + rank_));
    double steepest = 0;
    for (Index j = 0; j < k; ++j) steepest = std::max(steepest, scale / std::sqrt(values_[taken[j]]));
    constexpr double most = static_cast<double>(std::numeric_limits<T>::max());
    const double beyond = std::max(1.0, largest_ / (most / 4) * steepest * static_cast<double>(d));
    for (Index j = 0; j < k; ++j)
      for (Index c = 0; c < d; ++c)
        directions(j, c) = static_cast<T>(vectors_(taken[j], c) * (scale / std::sqrt(values_[taken[j]]) / beyond));
    T* const share = ws.take<T>(n);
    for (Index i = 0; i < n; ++i) {
      const double q = in_.quality.empty() ? 1.0 : static_cast<double>(in_.quality[i]);
      share[i] = static_cast<T>(std::min(q / scale * beyond, most));
    }
    // Column i is item i in the span: its squared length is the probability that it is drawn, times k.
    simd::gemm<T>(simd::plain(MatrixView<const T>(directions)), simd::transposed(in_.features), {.column_scale = share}, b, ws);
    T *const p = ws.take<T>(n), *const c = ws.take<T>(n);
    std::fill_n(p, n, T(0));
    for (Index j = 0; j < k; ++j) {
      const T* const row = b.row(j);
      for (Index i = 0; i < n; ++i) p[i] += row[i] * row[i];
    }
    for (Index t = 0; t < k; ++t) {
      const Index item = choose(p, n, u[t]);
      if (item < 0) return t;
      picks[t] = static_cast<std::int32_t>(item);
      T* const own = basis.row(t);
      for (Index j = 0; j < k; ++j) own[j] = b(j, item);
      for (int twice = 0; twice < 2; ++twice)  // once leaves too much of what is nearly a double
        for (Index s = 0; s < t; ++s) simd::axpy(-simd::dot(own, basis.row(s), k), basis.row(s), own, k);
      const T length = std::sqrt(simd::dot(own, own, k));
      simd::scale(length > 0 ? 1 / length : T(0), own, own, k);
      simd::gemm<T>(simd::plain(MatrixView<const T>(own, 1, k)), simd::plain(MatrixView<const T>(b)), {}, MatrixView<T>(c, 1, n),
                    ws);
      for (Index i = 0; i < n; ++i) {
        const T left = p[i] - c[i] * c[i];
        p[i] = left > 0 ? left : T(0);
      }
      for (Index s = 0; s <= t; ++s) p[picks[s]] = T(0);
    }
    return k;
  }
  /// The item at which the running sum of p passes u times its total; never one of probability 0: -1 if there is no other.
  static Index choose(const T* p, Index n, double u) {
    double total = 0;
    for (Index i = 0; i < n; ++i) total += static_cast<double>(p[i]);
    double sum = 0;
    Index last = -1;
    for (Index i = 0; i < n; ++i) {
      if (!(p[i] > 0)) continue;
      last = i;
      sum += static_cast<double>(p[i]);
      if (sum > u * total) return i;
    }
    return last;
  }

  DppItems<T> in_;
  Matrix<double> vectors_;  // rows
  Vector<double> values_;
  Index items_ = 0, rank_ = 0;
  double largest_ = 0;  // of the features
};

}  // namespace RECOPS_ABI
}  // namespace recops
