/// @file   recops/contrastive/infonce_blocks.hpp
/// @brief  The blocked passes behind `biased_infonce`.
///
/// Logits are made in blocks of 120 rows times 256 columns that live in the cache. The forward pass takes each block into the running
/// log-sum-exp of its rows. The backward pass needs the weights R_ij = w_i (p_ij - target_ij) block by block, for du += s R V and
/// dv += R^T (s U); the block's exponentials relative to its own maximum are kept from the forward pass, or made again, by the same
/// operations: the same bits. Blocks are summed in order, whoever computes them.
#pragma once
#include <algorithm>
#include <cmath>
#include <recops/contrastive/infonce_options.hpp>
#include <recops/simd/gemm.hpp>
#include <recops/simd/reduce.hpp>
#include <recops/simd/softmax.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

/// One call. All memory comes from the workspace given to the constructor, whose mark the caller holds.
template <class T>
class InfoNce {
 public:
  static constexpr Index block_rows = 120, block_cols = 256;  // whole tiles of 6 rows; a block stays in L2
  static constexpr Index tile_stride = block_cols + 16;       // rows of a block that share no sets of the cache

  /// Checks everything; prepares what both passes need. Scratch O(B D + K).
  InfoNce(const char* name, MatrixView<const T> u, MatrixView<const T> v, IndexView positives, const InfoNceOptions<T>& options,
          Workspace& ws)
      : name_(name), u_(u), v_(v), positives_(positives), o_(options), rows_(u.rows()), cols_(v.rows()), width_(u.cols()) {
    check_arguments();
    tiles_ = (cols_ + block_cols - 1) / block_cols;
    blocks_ = (rows_ + block_rows - 1) / block_rows;
    scale_ = std::exp(std::min(o_.log_scale, std::log(100.0)));
    weight_ = ws.take<double>(rows_);
    lse_ = ws.take<double>(rows_);
    target_sum_ = ws.take<double>(rows_);
    target_logit_ = ws.take<double>(rows_);
    share_ = ws.take<double>(rows_);
    state_ = ws.take<State>(rows_);
    right_ = kind_ == Kind::inside ? ws.take<State>(rows_) : nullptr;
    su_ = ws.matrix<T>(rows_, width_);
    if (!o_.row_ids.empty()) ids_ = copy_of(o_.column_ids, ws);
    if (!o_.row_labels.empty()) labels_ = copy_of(o_.column_labels, ws);
    limit_ = has_margin() ? ws.take<T>(rows_) : nullptr;
    for (Index i = 0; i < rows_; ++i) begin_row(i);
    double mass = 0;
    for (Index i = 0; i < rows_; ++i) mass += weight_[i];
    for (Index i = 0; i < rows_ && mass > 0; ++i) weight_[i] /= mass;
  }

  void check(const InfoNceGradient<T>& g) const {
    if (!g.du.empty()) check_shape(name_, "du", g.du, rows_, width_);
    if (!g.dv.empty()) check_shape(name_, "dv", g.dv, cols_, width_);
    if (!g.dcolumn_bias.empty()) check_size(name_, "dcolumn_bias", g.dcolumn_bias, cols_);
    if (!g.dbias.empty()) check_shape(name_, "dbias", g.dbias, rows_, cols_);
  }

  /// Makes room for the blocks' exponentials where they are few enough. (With positives inside the logarithm logits are needed.)
  void keep(Workspace& ws) {
    if (rows_ * cols_ * static_cast<Index>(sizeof(T)) > o_.kept_bytes || kind_ == Kind::inside) return;
    kept_ = ws.take<T>(rows_ * cols_);
    kept_max_ = ws.take<T>(rows_ * tiles_);
  }

  double loss(InfoNceStatistics* statistics, Workspace& ws) {
    if (statistics) check_option(name_, "statistics", kind_ == Kind::one, "positives, not targets or labels", 0);
    T* const hardest = statistics ? ws.take<T>(rows_) : nullptr;
    if (hardest) std::fill_n(hardest, rows_, -infinity);
    // As many rows as pay for packing the candidates; fewer where there are threads to share them.
    const Index group = ws.workers() > 1 ? block_rows : 4 * block_rows;
    ws.parallel_for((rows_ + group - 1) / group, [&](Index task, Workspace& scratch) {
      forward(task * group, std::min(rows_, (task + 1) * group), hardest, scratch);
    });
    double total = 0;
    if (statistics) *statistics = {};
    double with_negatives = 0;
    for (Index i = 0; i < rows_; ++i) {
      if (weight_[i] == 0) continue;
      lse_[i] = log_sum_exp(state_[i]);
      const double one = kind_ == Kind::inside ? lse_[i] - log_sum_exp(right_[i]) : target_sum_[i] * lse_[i] - target_logit_[i];
      total += weight_[i] * one;
      if (statistics) {
        statistics->accuracy += target_logit_[i] > static_cast<double>(hardest[i]) ? weight_[i] : 0;
        statistics->positive_probability += weight_[i] * std::exp(target_logit_[i] - lse_[i]);
        if (hardest[i] != -infinity) {
          statistics->hardest_negative += weight_[i] * static_cast<double>(hardest[i]);
          with_negatives += weight_[i];
        }
      }
      if (!std::isfinite(one)) {  // nobody else hears of it
        lse_[i] = std::numeric_limits<double>::quiet_NaN();
        std::fill_n(su_.row(i), width_, T(0));
      }
    }
    if (statistics && with_negatives > 0) statistics->hardest_negative /= with_negatives;
    return total;
  }

  void backward(const InfoNceGradient<T>& g, Workspace& ws) {
    const bool scale_wanted = g.dlog_scale != nullptr && o_.log_scale <= std::log(100.0),
               rows_wanted = !g.du.empty() || scale_wanted;
    const bool columns_wanted = !g.dv.empty() || !g.dcolumn_bias.empty() || !g.dbias.empty();
    upstream_ = g.upstream;
    const MatrixView<T> weighted = rows_wanted ? ws.matrix<T>(rows_, width_) : MatrixView<T>();  // R V
    for (Index i = 0; i < weighted.rows(); ++i) std::fill_n(weighted.row(i), width_, T(0));
    T* const packed_su = g.dv.empty() ? nullptr : ws.take<T>(blocks_ * packed_block());
    for (Index b = 0; packed_su && b < blocks_; ++b)
      simd::pack<T>(simd::plain(MatrixView<const T>(block_of(su_, b))), packed_su + b * packed_block());
    if (ws.workers() == 1) {
      for (Index t = 0; t < tiles_; ++t) backward_tile(t, 0, blocks_, weighted, packed_su, &g, ws);
    } else {
      if (rows_wanted) {
        ws.parallel_for(blocks_, [&](Index b, Workspace& scratch) {
          for (Index t = 0; t < tiles_; ++t) backward_tile(t, b, b + 1, weighted, nullptr, nullptr, scratch);
        });
      }
      if (columns_wanted) {
        ws.parallel_for(tiles_, [&](Index t, Workspace& scratch) { backward_tile(t, 0, blocks_, {}, packed_su, &g, scratch); });
      }
    }
    double dscale = 0;
    for (Index i = 0; i < weighted.rows(); ++i) {
      const bool broken = weight_[i] != 0 && std::isnan(lse_[i]);
      dscale += static_cast<double>(simd::dot(su_.row(i), weighted.row(i), width_));
      if (g.du.empty()) continue;
      simd::axpy(broken ? std::numeric_limits<T>::quiet_NaN() : static_cast<T>(scale_), weighted.row(i), g.du.row(i), width_);
    }
    if (scale_wanted) *g.dlog_scale += dscale;
  }

 private:
  enum class Kind : unsigned char { one, soft, outside, inside };
  using State = simd::SoftmaxState<T>;
  static constexpr T infinity = std::numeric_limits<T>::infinity();

  void check_arguments() {
    check_shape(name_, "u", u_, any_size, any_size);
    check_shape(name_, "v", v_, any_size, width_);
    const bool soft = !o_.targets.empty(), labelled = !o_.row_labels.empty() || !o_.column_labels.empty();
    kind_ = soft                                              ? Kind::soft
            : !labelled                                       ? Kind::one
            : o_.multi_positive == MultiPositive::outside_log ? Kind::outside
                                                              : Kind::inside;
    check_option(name_, "targets", !(soft && labelled), "either targets or labels", 2);
    check_not_null(name_, "positives", positives_);
    const Index wanted = kind_ == Kind::one ? rows_ : 0;
    if (positives_.size() != wanted) fail_size(name_, "positives", wanted, positives_.size(), false);
    for (Index i = 0; i < positives_.size(); ++i)
      if (positives_[i] < -1 || positives_[i] >= cols_) [[unlikely]]
        fail_at(name_, "positives", "-1 or columns from 0 to below ", cols_, i, positives_[i]);
    check_option(name_, "log_scale", std::isfinite(o_.log_scale), "a finite number", o_.log_scale);
    check_option(name_, "margin", o_.margin < std::numeric_limits<double>::infinity(), "a number or -infinity", o_.margin);
    check_option(name_, "margin", !has_margin() || kind_ == Kind::one, "-infinity with targets or labels", o_.margin);
    if (!o_.weights.empty()) check_size(name_, "weights", o_.weights, rows_);
    for (const T w : o_.weights)
      check_option(name_, "weights", w >= T(0) && w < infinity, "weights >= 0", static_cast<double>(w));
    if (!o_.column_bias.empty()) check_size(name_, "column_bias", o_.column_bias, cols_);
    if (!o_.bias.empty()) check_shape(name_, "bias", o_.bias, rows_, cols_);
    if (!o_.candidates.empty()) check_size(name_, "candidates", o_.candidates, cols_);
    if (!o_.exclude.empty()) check_shape(name_, "exclude", o_.exclude, rows_, cols_);
    if (soft) check_shape(name_, "targets", o_.targets, rows_, cols_);
    check_pair("row_ids", o_.row_ids, "column_ids", o_.column_ids);
    check_pair("row_labels", o_.row_labels, "column_labels", o_.column_labels);
  }
  /// Ids of rows and columns, or neither.
  void check_pair(const char* row, IndexView row_ids, const char* column, IndexView column_ids) const {
    if (row_ids.empty() && column_ids.empty()) return;
    check_not_null(name_, row, row_ids);
    check_not_null(name_, column, column_ids);
    if (row_ids.size() != rows_) fail_size(name_, row, rows_, row_ids.size(), false);
    if (column_ids.size() != cols_) fail_size(name_, column, cols_, column_ids.size(), false);
  }

  bool has_margin() const { return o_.margin != -std::numeric_limits<double>::infinity(); }
  bool has_rule() const { return has_margin() || !o_.exclude.empty() || ids_ != nullptr || o_.rule.mark != nullptr; }
  static std::int64_t* copy_of(IndexView ids, Workspace& ws) {
    auto* const copy = ws.take<std::int64_t>(ids.size());
    for (Index j = 0; j < ids.size(); ++j) copy[j] = ids[j];
    return copy;
  }
  static double log_sum_exp(const State& s) {
    return s.sum == T(0) ? -static_cast<double>(infinity) : static_cast<double>(s.max) + std::log(static_cast<double>(s.sum));
  }

  /// No candidate of the row, positive or not.
  bool is_out(Index i, Index j) const {
    return (!o_.candidates.empty() && o_.candidates[j] == 0) || (o_.exclude_diagonal && i == j) ||
           (!o_.column_bias.empty() && o_.column_bias[j] == -infinity) || (!o_.bias.empty() && o_.bias(i, j) == -infinity);
  }
  /// Whether column j is right for row i, where there may be several.
  bool is_target(Index i, Index j) const {
    return kind_ == Kind::soft ? o_.targets(i, j) != T(0) : labels_[j] == o_.row_labels[i];
  }

  /// Whether the row counts, the sum of its targets and what each of them weighs; s u_i, zeros where it does not.
  void begin_row(Index i) {
    double w = o_.weights.empty() ? 1 : static_cast<double>(o_.weights[i]), sum = 1;
    if (kind_ == Kind::one) {
      if (positives_[i] < 0 || is_out(i, positives_[i])) w = 0;
    } else if (w != 0) {
      sum = 0;
      for (Index j = 0; j < cols_; ++j)
        if (is_target(i, j) && !is_out(i, j)) sum += kind_ == Kind::soft ? static_cast<double>(o_.targets(i, j)) : 1;
      if (sum == 0) w = 0;
    }
    weight_[i] = w;
    share_[i] = kind_ == Kind::outside ? 1 / sum : 1;
    target_sum_[i] = kind_ == Kind::soft ? sum : 1;
    target_logit_[i] = 0;
    state_[i] = {};
    if (right_) right_[i] = {};
    if (w == 0) {
      std::fill_n(su_.row(i), width_, T(0));
      return;
    }
    simd::scale(static_cast<T>(scale_), u_.row(i), su_.row(i), width_);
    if (limit_) limit_[i] = simd::dot(su_.row(i), v_.row(positives_[i]), width_) - static_cast<T>(scale_ * o_.margin);
  }

  // ---- Blocks ----

  Index rows_of(Index b) const { return std::min(block_rows, rows_ - b * block_rows); }
  Index cols_of(Index t) const { return std::min(block_cols, cols_ - t * block_cols); }
  Index packed_block() const { return simd::packed_size<T>(block_rows, width_); }
  MatrixView<T> block_of(MatrixView<T> m, Index b) const { return m.middle_rows(b * block_rows, rows_of(b)); }
  /// Where a block's exponentials are kept: blocks one behind the other.
  MatrixView<T> kept_block(Index b, Index t) const {
    return MatrixView<T>(kept_ + b * block_rows * cols_ + rows_of(b) * t * block_cols, rows_of(b), cols_of(t));
  }
  /// The candidates of tile t; zeros for those that are nobody's, so that what they hold reaches no product.
  MatrixView<const T> candidates_of(Index t, Workspace& ws) const {
    const MatrixView<const T> tile = v_.middle_rows(t * block_cols, cols_of(t));
    if (o_.candidates.empty()) return tile;
    const MatrixView<T> copy = ws.matrix<T>(tile.rows(), width_);
    for (Index j = 0; j < tile.rows(); ++j)
      o_.candidates[t * block_cols + j] != 0 ? std::copy_n(tile.row(j), width_, copy.row(j))
                                             : std::fill_n(copy.row(j), width_, T(0));
    return copy;
  }
  /// Candidates with zeros for those that are not finite: in a sound row their weight is 0, which times a NaN would be a NaN.
  MatrixView<const T> finite_of(MatrixView<const T> v, Workspace& ws) const {
    const auto sound = [&](Index j) { return simd::finite_row(v.row(j), width_); };
    Index first = 0;
    while (first < v.rows() && sound(first)) ++first;
    if (first == v.rows()) return v;
    const MatrixView<T> copy = ws.matrix<T>(v.rows(), width_);
    for (Index j = 0; j < v.rows(); ++j)
      j < first || sound(j) ? std::copy_n(v.row(j), width_, copy.row(j)) : std::fill_n(copy.row(j), width_, T(0));
    return copy;
  }
  T* pack(simd::Operand<T> b, Workspace& ws) const {
    T* const panels = ws.take<T>(simd::packed_size<T>(b.rows, b.cols));
    simd::pack<T>(b, panels);
    return panels;
  }
  void multiply(Index b, const T* panels, MatrixView<T> z, Workspace& ws) const {
    simd::gemm_packed<T>(simd::plain(MatrixView<const T>(block_of(su_, b))), panels, z.cols(), {}, z, ws);
  }

  /// z += bias; -infinity leaves a column out whatever the product is, a NaN too.
  static void add_bias(const T* bias, Index n, T* z) {
    for (Index j = 0; j < n; ++j) z[j] = bias[j] == -infinity ? -infinity : z[j] + bias[j];
  }
  /// Logits of row i, columns j0 to j0 + n, from the products in z. `out [n]` is scratch.
  void finish_logits(Index i, Index j0, Index n, T* z, std::uint8_t* out) const {
    const Index own = kind_ == Kind::one ? positives_[i] - j0 : -1;
    const bool ruled = has_rule();
    if (ruled) {
      std::fill_n(out, n, std::uint8_t{0});
      for (Index j = 0; limit_ && j < n; ++j) out[j] |= z[j] > limit_[i];
      if (!o_.exclude.empty()) {
        const std::uint8_t* const e = o_.exclude.row(i) + j0;
        for (Index j = 0; j < n; ++j) out[j] |= e[j] != 0;
      }
      if (ids_) {
        const std::int64_t id = o_.row_ids[i];
        for (Index j = 0; j < n; ++j) out[j] |= ids_[j0 + j] == id;
      }
      if (o_.rule.mark) o_.rule.mark(o_.rule.context, i, j0, VectorView<std::uint8_t>(out, n));
      if (kind_ == Kind::one) {
        if (0 <= own && own < n) out[own] = 0;
      } else {
        for (Index j = 0; j < n; ++j)
          if (is_target(i, j0 + j)) out[j] = 0;
      }
    }
    if (!o_.column_bias.empty()) add_bias(o_.column_bias.data() + j0, n, z);
    if (!o_.bias.empty()) add_bias(o_.bias.row(i) + j0, n, z);
    for (Index j = 0; ruled && j < n; ++j) z[j] = out[j] != 0 ? -infinity : z[j];
    for (Index j = 0; !o_.candidates.empty() && j < n; ++j) z[j] = o_.candidates[j0 + j] != 0 ? z[j] : -infinity;
    if (o_.exclude_diagonal && j0 <= i && i < j0 + n) z[i - j0] = -infinity;
  }

  /// Calls `f(j, share of the target)` for the row's targets among columns j0 to j0 + n, where there may be several.
  template <class F>
  void for_targets(Index i, Index j0, Index n, F&& f) const {
    for (Index j = 0; j < n; ++j)
      if (is_target(i, j0 + j) && !is_out(i, j0 + j))
        f(j, share_[i] * (kind_ == Kind::soft ? static_cast<double>(o_.targets(i, j0 + j)) : 1));
  }

  // ---- Passes ----

  void forward(Index first, Index last, T* hardest, Workspace& ws) {
    const auto mark = ws.mark();
    auto* const out = ws.take<std::uint8_t>(block_cols);
    T* const row = right_ ? ws.take<T>(block_cols) : nullptr;
    T* const scratch = kept_ ? nullptr : ws.take<T>(block_rows * block_cols);
    for (Index t = 0; t < tiles_; ++t) {
      const auto inner = ws.mark();
      const Index j0 = t * block_cols, n = cols_of(t);
      const T* const panels = pack(simd::transposed(candidates_of(t, ws)), ws);
      for (Index b = first / block_rows; b * block_rows < last; ++b) {
        const MatrixView<T> z = kept_ ? kept_block(b, t) : MatrixView<T>(scratch, rows_of(b), n);
        multiply(b, panels, z, ws);
        for (Index r = 0; r < z.rows(); ++r) {
          const Index i = b * block_rows + r;
          if (weight_[i] == 0) continue;
          T* const x = z.row(r);
          finish_logits(i, j0, n, x, out);
          if (kind_ == Kind::one) {
            const Index own = std::clamp(positives_[i] - j0, Index{-1}, n);  // -1 and n: in another tile
            if (0 <= own && own < n) target_logit_[i] = static_cast<double>(x[own]);
            if (hardest) {
              const Index before = std::max<Index>(own, 0), after = std::min(own + 1, n);
              hardest[i] = std::max({hardest[i], simd::max(x, before), simd::max(x + after, n - after)});
            }
          } else if (right_) {
            std::fill_n(row, n, -infinity);
            for_targets(i, j0, n, [&](Index j, double) { row[j] = x[j]; });
            take(right_[i], row, row, n);
          } else {
            for_targets(i, j0, n, [&](Index j, double q) { target_logit_[i] += q * static_cast<double>(x[j]); });
          }
          const T top = take(state_[i], x, kept_ ? x : nullptr, n);
          if (kept_) kept_max_[i * tiles_ + t] = top;
        }
      }
    }
  }
  /// Takes a block of logits into a row's state. Returns their maximum; p, unless null, receives exp(x - maximum).
  static T take(State& state, const T* x, T* p, Index n) {
    State block;
    simd::softmax_update(block, x, p, n);
    state = block.max == -infinity && block.sum == T(0) ? state : simd::merge(state, block);
    return block.max;
  }

  /// R of block b and tile t: what the gradients of its logits are.
  void weights(Index b, Index t, const T* panels, MatrixView<T> r, std::uint8_t* out, T* row, Workspace& ws) const {
    const Index j0 = t * block_cols, n = cols_of(t);
    if (!kept_) multiply(b, panels, r, ws);
    for (Index k = 0; k < r.rows(); ++k) {
      const Index i = b * block_rows + k;
      T* const x = r.row(k);
      if (weight_[i] == 0 || std::isnan(lse_[i])) {
        std::fill_n(x, n, T(0));
        continue;
      }
      const double w = upstream_ * weight_[i];
      T top;
      if (kept_) {
        top = kept_max_[i * tiles_ + t];
        simd::scale(factor(w, i, top), kept_block(b, t).row(k), x, n);
      } else {
        finish_logits(i, j0, n, x, out);
        if (right_) std::copy_n(x, n, row);
        State block;
        simd::softmax_update(block, x, x, n);
        top = block.max;
        simd::scale(factor(w, i, top), x, x, n);
      }
      if (kind_ == Kind::one) {
        if (const Index own = positives_[i] - j0; 0 <= own && own < n) x[own] -= static_cast<T>(w);
      } else if (right_) {
        const double right = log_sum_exp(right_[i]);
        for_targets(i, j0, n,
                    [&](Index j, double) { x[j] -= static_cast<T>(w * std::exp(static_cast<double>(row[j]) - right)); });
      } else {
        for_targets(i, j0, n, [&](Index j, double q) { x[j] -= static_cast<T>(w * q); });
      }
    }
  }
  /// What exponentials relative to `top` are to be multiplied with: 0 where there were none.
  T factor(double w, Index i, T top) const {
    return static_cast<T>(w * target_sum_[i] * std::exp(static_cast<double>(top) - lse_[i]));
  }

  /// Blocks [first, last) of tile t: adds to the rows' sums and, with `g`, to the gradients of the columns.
  void backward_tile(Index t, Index first, Index last, MatrixView<T> weighted, const T* packed_su, const InfoNceGradient<T>* g,
                     Workspace& ws) const {
    const auto mark = ws.mark();
    const Index j0 = t * block_cols, n = cols_of(t);
    auto* const out = ws.take<std::uint8_t>(block_cols);
    T* const row = ws.take<T>(block_cols);
    const MatrixView<const T> v = candidates_of(t, ws);
    const T* const panels = kept_ ? nullptr : pack(simd::transposed(v), ws);
    const T* const values = weighted.empty() ? nullptr : pack(simd::plain(finite_of(v, ws)), ws);
    T* const memory = ws.take<T>(block_rows * tile_stride);
    for (Index b = first; b < last; ++b) {
      const MatrixView<T> r(memory, rows_of(b), n, tile_stride);
      weights(b, t, panels, r, out, row, ws);
      if (values)
        simd::gemm_packed<T>(simd::plain(MatrixView<const T>(r)), values, width_, {.accumulate = true}, block_of(weighted, b),
                             ws);
      if (!g) continue;
      if (!g->dv.empty())
        simd::gemm_packed<T>(simd::transposed(MatrixView<const T>(r)), packed_su + b * packed_block(), width_,
                             {.accumulate = true}, g->dv.middle_rows(j0, n), ws);
      for (Index k = 0; !g->dbias.empty() && k < r.rows(); ++k) simd::add(r.row(k), g->dbias.row(b * block_rows + k) + j0, n);
      if (g->dcolumn_bias.empty()) continue;
      std::fill_n(row, n, T(0));
      for (Index k = 0; k < r.rows(); ++k) simd::add(r.row(k), row, n);
      simd::add(row, g->dcolumn_bias.data() + j0, n);
    }
  }

  const char* name_;
  MatrixView<const T> u_, v_;
  IndexView positives_;
  const InfoNceOptions<T>& o_;
  Index rows_, cols_, width_, tiles_ = 0, blocks_ = 0;
  Kind kind_ = Kind::one;
  double scale_ = 1, upstream_ = 1;
  // Of every row: its share in the loss (0: left out), log-sum-exp (NaN: not finite), sum of targets, sum of targets times logits,
  // what one target counts.
  double *weight_, *lse_, *target_sum_, *target_logit_, *share_;
  State *state_, *right_;  // of all logits, and of those of the positives where they are inside the logarithm
  MatrixView<T> su_;       // s U; zeros for rows left out
  std::int64_t *ids_ = nullptr, *labels_ = nullptr;  // of the columns
  T* limit_ = nullptr;                               // products above it are false negatives
  T *kept_ = nullptr, *kept_max_ = nullptr;
};

}  // namespace detail
}  // namespace RECOPS_ABI
}  // namespace recops
