/// @file   recops/contrastive/in_batch_blocks.hpp
/// @brief  The blocked passes behind `inbatch_symmetric`: one matrix of logits serves both directions.
///
/// A block of logits is made once and taken into the running log-sum-exp of its rows and of its columns. The backward pass joins both
/// directions in one matrix R of weights, so that each gradient is one product. Blocks as in infonce_blocks.hpp, summed in order,
/// whoever computes them; exponentials of both directions are kept, or made again by the same operations.
#pragma once
#include <recops/contrastive/infonce_blocks.hpp>

namespace recops {

/// Options of `inbatch_symmetric`; what is empty is left out.
template <class T>
struct InBatchOptions {
  double log_scale = 0;              ///< logarithm of the scale, log(1 / temperature), as in `InfoNceOptions`
  VectorView<const T> weights = {};  ///< [B] >= 0 of the pairs; 0: the pair is left out, as a negative of others too
  /// Ids [B] of the rows of u and of v (user, item): v_j is no negative of u_i where v_ids say that it is v_i's equal, and u_i none of
  /// v_j where u_ids do.
  IndexView u_ids = {}, v_ids = {};
  VectorView<const T> u_bias = {},
                      v_bias = {};     ///< [B], added to the logits of a candidate: -log q, how probable it is in a batch
  Index kept_bytes = Index{64} << 20;  ///< as in `InfoNceOptions`; there are 2 B^2 exponentials
};

inline namespace RECOPS_ABI {
namespace detail {

/// One call. All memory comes from the workspace given to the constructor, whose mark the caller holds.
template <class T>
class InBatch {
 public:
  static constexpr Index block_rows = InfoNce<T>::block_rows, block_cols = InfoNce<T>::block_cols,
                         tile_stride = InfoNce<T>::tile_stride;

  /// Checks everything but gradients; prepares what both passes need. Scratch O(B D + B^2 / 120).
  InBatch(const char* name, MatrixView<const T> u, MatrixView<const T> v, const InBatchOptions<T>& options, Workspace& ws)
      : name_(name), u_(u), o_(options), rows_(u.rows()), width_(u.cols()) {
    check(v);
    blocks_ = (rows_ + block_rows - 1) / block_rows;
    tiles_ = (rows_ + block_cols - 1) / block_cols;
    scale_ = std::exp(std::min(o_.log_scale, std::log(100.0)));
    weight_ = ws.take<double>(rows_);
    double mass = 0;
    for (Index i = 0; i < rows_; ++i) mass += weight_[i] = o_.weights.empty() ? 1 : static_cast<double>(o_.weights[i]);
    for (Index i = 0; i < rows_ && mass > 0; ++i) weight_[i] /= mass;
    if (std::find(weight_, weight_ + rows_, 0.0) != weight_ + rows_) {
      gone_ = ws.take<T>(rows_);
      for (Index i = 0; i < rows_; ++i) gone_[i] = weight_[i] == 0 ? T(1) : T(0);
    }
    su_ = ws.matrix<T>(rows_, width_);
    v_ = ws.matrix<T>(rows_, width_);
    for (Index i = 0; i < rows_; ++i) {
      if (weight_[i] == 0) {  // not read
        std::fill_n(su_.row(i), width_, T(0));
        std::fill_n(v_.row(i), width_, T(0));
      } else {
        simd::scale(static_cast<T>(scale_), u.row(i), su_.row(i), width_);
        std::copy_n(v.row(i), width_, v_.row(i));
      }
    }
    u_ids_ = copy_of(o_.u_ids, ws);
    v_ids_ = copy_of(o_.v_ids, ws);
    own_ = ws.take<T>(rows_);
    for (Side* side : {&by_row_, &by_column_}) {
      side->lse = ws.take<double>(rows_);
      side->max = ws.take<T>(rows_ * (side == &by_row_ ? tiles_ : blocks_));
      side->sum = ws.take<T>(rows_ * (side == &by_row_ ? tiles_ : blocks_));
    }
  }

  /// Makes room for the blocks' exponentials where they are few enough.
  void keep(Workspace& ws) {
    if (2 * rows_ * rows_ * static_cast<Index>(sizeof(T)) > o_.kept_bytes) return;
    for (Side* side : {&by_row_, &by_column_}) side->kept = ws.take<T>(blocks_ * tiles_ * block_rows * tile_stride);
  }

  double loss(Workspace& ws) {
    const auto mark = ws.mark();
    T* const panels = pack_tiles(ws);
    ws.parallel_for(blocks_, [&](Index b, Workspace& scratch) {
      const auto inner = scratch.mark();
      T* const memory = scratch.take<T>(2 * block_rows * tile_stride);
      auto* const out = scratch.take<std::uint8_t>(block_cols);
      for (Index t = 0; t < tiles_; ++t) {
        const bool kept = by_row_.kept != nullptr;
        exponentials(b, t, panels, kept ? kept_block(by_row_, b, t) : memory,
                     kept ? kept_block(by_column_, b, t) : memory + block_rows * tile_stride, out, scratch);
      }
    });
    double total = 0;
    for (Index i = 0; i < rows_; ++i) {
      if (weight_[i] == 0) continue;
      const double by_row = finish(by_row_, i, tiles_), by_column = finish(by_column_, i, blocks_);
      const double z = static_cast<double>(own_[i]);
      const double one = by_row - z - bias(o_.v_bias, i), other = by_column - z - bias(o_.u_bias, i);
      total += weight_[i] * (one + other) / 2;
      if (!std::isfinite(one)) by_row_.lse[i] = std::numeric_limits<double>::quiet_NaN();
      if (!std::isfinite(other)) by_column_.lse[i] = std::numeric_limits<double>::quiet_NaN();
    }
    return total;
  }

  void backward(const InfoNceGradient<T>& g, Workspace& ws) {
    upstream_ = g.upstream;
    const bool scale_wanted = g.dlog_scale != nullptr && o_.log_scale <= std::log(100.0),
               u_wanted = !g.du.empty() || scale_wanted;
    T* const panels = by_row_.kept != nullptr ? nullptr : pack_tiles(ws);  // of what the logits were made of
    const MatrixView<T> sound = ws.matrix<T>(rows_, width_);  // s U for products; logits made again are those of s U as it is
    for (Index i = 0; i < rows_; ++i) {                       // what is not finite reaches no product
      std::copy_n(su_.row(i), width_, sound.row(i));
      if (weight_[i] != 0 && std::isnan(by_row_.lse[i])) std::fill_n(sound.row(i), width_, T(0));
      if (weight_[i] != 0 && std::isnan(by_column_.lse[i])) std::fill_n(v_.row(i), width_, T(0));
    }
    const MatrixView<T> weighted = u_wanted ? ws.matrix<T>(rows_, width_) : MatrixView<T>();  // R V
    for (Index i = 0; i < weighted.rows(); ++i) std::fill_n(weighted.row(i), width_, T(0));
    const Index packed_v = simd::packed_size<T>(block_cols, width_), packed_u = simd::packed_size<T>(block_rows, width_);
    T* const values = u_wanted ? ws.take<T>(tiles_ * packed_v) : nullptr;
    for (Index t = 0; values && t < tiles_; ++t) simd::pack<T>(simd::plain(constant(tile_of(t))), values + t * packed_v);
    T* const rows = g.dv.empty() ? nullptr : ws.take<T>(blocks_ * packed_u);
    for (Index b = 0; rows && b < blocks_; ++b) simd::pack<T>(simd::plain(constant(block_of(sound, b))), rows + b * packed_u);
    const auto one = [&](Index b, Index t, bool du, bool dv, Workspace& scratch) {
      const auto mark = scratch.mark();
      const MatrixView<T> r(scratch.take<T>(block_rows * tile_stride), rows_of(b), cols_of(t), tile_stride);
      join(b, t, panels, r, scratch);
      if (du)
        simd::gemm_packed<T>(simd::plain(constant(r)), values + t * packed_v, width_, {.accumulate = true}, block_of(weighted, b),
                             scratch);
      if (dv)
        simd::gemm_packed<T>(simd::transposed(constant(r)), rows + b * packed_u, width_, {.accumulate = true},
                             g.dv.middle_rows(t * block_cols, cols_of(t)), scratch);
    };
    if (ws.workers() == 1) {
      for (Index t = 0; t < tiles_; ++t)
        for (Index b = 0; b < blocks_; ++b) one(b, t, values != nullptr, rows != nullptr, ws);
    } else {
      const auto by_rows = [&](Index b, Workspace& scratch) {
        for (Index t = 0; t < tiles_; ++t) one(b, t, true, false, scratch);
      };
      const auto by_columns = [&](Index t, Workspace& scratch) {
        for (Index b = 0; b < blocks_; ++b) one(b, t, false, true, scratch);
      };
      if (values) ws.parallel_for(blocks_, by_rows);
      if (rows) ws.parallel_for(tiles_, by_columns);
    }
    double dscale = 0;
    for (Index i = 0; i < rows_; ++i) {
      if (weight_[i] == 0) continue;
      if (values) dscale += static_cast<double>(simd::dot(sound.row(i), weighted.row(i), width_));
      if (!g.du.empty()) {
        const bool broken = std::isnan(by_row_.lse[i]);
        simd::axpy(broken ? std::numeric_limits<T>::quiet_NaN() : static_cast<T>(scale_), weighted.row(i), g.du.row(i), width_);
      }
      if (!g.dv.empty() && std::isnan(by_column_.lse[i])) std::fill_n(g.dv.row(i), width_, std::numeric_limits<T>::quiet_NaN());
    }
    if (scale_wanted) *g.dlog_scale += dscale;
  }

  void check_gradient(const InfoNceGradient<T>& g) const {
    if (!g.du.empty()) check_shape(name_, "du", g.du, rows_, width_);
    if (!g.dv.empty()) check_shape(name_, "dv", g.dv, rows_, width_);
    check_option(name_, "gradient", g.dbias.empty() && g.dcolumn_bias.empty(), "none of biases", 1);
  }

 private:
  static constexpr T infinity = std::numeric_limits<T>::infinity();

  /// One direction: log-sum-exp of each row (or column; NaN: not finite), maximum and sum of its exponentials in each block.
  struct Side {
    double* lse = nullptr;
    T *max = nullptr, *sum = nullptr, *kept = nullptr;
  };

  void check(MatrixView<const T> v) const {
    check_shape(name_, "u", u_, any_size, any_size);
    check_shape(name_, "v", v, rows_, width_);
    check_option(name_, "log_scale", std::isfinite(o_.log_scale), "a finite number", o_.log_scale);
    const auto check_numbers = [&](const char* which, VectorView<const T> view) {
      if (!view.empty()) check_size(name_, which, view, rows_);
    };
    const auto check_ids = [&](const char* which, IndexView ids) {
      check_not_null(name_, which, ids);
      if (!ids.empty() && ids.size() != rows_) fail_size(name_, which, rows_, ids.size(), false);
    };
    check_numbers("weights", o_.weights);
    check_numbers("u_bias", o_.u_bias);
    check_numbers("v_bias", o_.v_bias);
    check_ids("u_ids", o_.u_ids);
    check_ids("v_ids", o_.v_ids);
    for (const T w : o_.weights)
      check_option(name_, "weights", w >= T(0) && w < infinity, "weights >= 0", static_cast<double>(w));
  }
  static std::int64_t* copy_of(IndexView ids, Workspace& ws) {
    auto* const copy = ids.empty() ? nullptr : ws.take<std::int64_t>(ids.size());
    for (Index j = 0; j < ids.size(); ++j) copy[j] = ids[j];
    return copy;
  }
  static double bias(VectorView<const T> b, Index i) { return b.empty() ? 0 : static_cast<double>(b[i]); }

  Index rows_of(Index b) const { return std::min(block_rows, rows_ - b * block_rows); }
  Index cols_of(Index t) const { return std::min(block_cols, rows_ - t * block_cols); }
  static MatrixView<const T> constant(MatrixView<T> m) { return m; }
  MatrixView<T> block_of(MatrixView<T> m, Index b) const { return m.middle_rows(b * block_rows, rows_of(b)); }
  MatrixView<T> tile_of(Index t) const { return v_.middle_rows(t * block_cols, cols_of(t)); }
  T* kept_block(const Side& side, Index b, Index t) const { return side.kept + (b * tiles_ + t) * block_rows * tile_stride; }
  T* pack_tiles(Workspace& ws) const {
    const Index size = simd::packed_size<T>(width_, block_cols);
    T* const panels = ws.take<T>(tiles_ * size);
    for (Index t = 0; t < tiles_; ++t) simd::pack<T>(simd::transposed(constant(tile_of(t))), panels + t * size);
    return panels;
  }

  /// Log-sum-exp of all blocks of a row, or column, in order.
  static double finish(const Side& side, Index i, Index blocks) {
    simd::SoftmaxState<T> state;
    for (Index k = 0; k < blocks; ++k) {
      const simd::SoftmaxState<T> block{side.max[i * blocks + k], side.sum[i * blocks + k]};
      if (block.sum != T(0)) state = simd::merge(state, block);
    }
    side.lse[i] = state.sum == T(0) ? -static_cast<double>(infinity)
                                    : static_cast<double>(state.max) + std::log(static_cast<double>(state.sum));
    return side.lse[i];
  }

  /// Exponentials of block b and tile t, by row and by column, relative to their maxima in the block. `out` is scratch.
  void exponentials(Index b, Index t, const T* panels, T* by_row, T* by_column, std::uint8_t* out, Workspace& ws) const {
    const Index i0 = b * block_rows, j0 = t * block_cols, m = rows_of(b), n = cols_of(t);
    const MatrixView<T> z(by_row, m, n, tile_stride);
    simd::gemm_packed<T>(simd::plain(constant(block_of(su_, b))), panels + t * simd::packed_size<T>(width_, block_cols), n, {}, z,
                         ws);
    for (Index i = i0; i < i0 + m; ++i)
      if (j0 <= i && i < j0 + n) own_[i] = z(i - i0, i - j0);
    for (Index r = 0; r < m; ++r) {
      const Index i = i0 + r;
      T *const x = z.row(r), *const y = by_column + r * tile_stride;
      // As a candidate of the columns.
      std::copy_n(x, n, y);
      if (!o_.u_bias.empty())
        for (Index j = 0; j < n; ++j) y[j] += o_.u_bias[i];
      leave_out(u_ids_, i, j0, n, y, out);
      // Its candidates.
      if (!o_.v_bias.empty()) simd::add(o_.v_bias.data() + j0, x, n);
      leave_out(v_ids_, i, j0, n, x, out);
      simd::SoftmaxState<T> state;
      simd::softmax_update(state, x, x, n);
      by_row_.max[i * tiles_ + t] = state.max;
      by_row_.sum[i * tiles_ + t] = state.sum;
    }
    softmax_columns(by_column, m, n, b, j0);
  }
  /// -infinity in row i where the pairs are left out or have its id.
  void leave_out(const std::int64_t* ids, Index i, Index j0, Index n, T* x, std::uint8_t* out) const {
    if (gone_ != nullptr && weight_[i] == 0) return (void)std::fill_n(x, n, -infinity);
    if (gone_ != nullptr)
      simd::for_each_vector<T, simd::DefaultArch>(n, [&](Index j, auto load, auto store) RECOPS_LAMBDA_INLINE {
        using B = simd::Batch<T>;
        store(x + j, xsimd::select(load(gone_ + j0 + j) == B(T(0)), load(x + j), B(-infinity)));
      });
    if (ids == nullptr) return;
    const Index own = i - j0;
    for (Index j = 0; j < n; ++j) out[j] = ids[j0 + j] == ids[i] && j != own;
    for (Index j = 0; j < n; ++j) x[j] = out[j] != 0 ? -infinity : x[j];
  }
  /// x becomes exp(x - maximum of its column); maxima and sums go to their place. A column of -infinity gives zeros.
  void softmax_columns(T* x, Index m, Index n, Index b, Index j0) const {
    alignas(64) T most[block_cols], sums[block_cols];
    simd::for_each_vector<T, simd::DefaultArch>(n, [&](Index j, auto load, auto store) RECOPS_LAMBDA_INLINE {
      using B = simd::Batch<T>;
      const B scale(simd::detail::log2_of_e<T>);
      B top = simd::larger(load(x + j), B(std::numeric_limits<T>::lowest())), sum(T(0));
      for (Index r = 1; r < m; ++r) top = simd::larger(load(x + r * tile_stride + j), top);
      for (Index r = 0; r < m; ++r) {
        const B e = simd::exp2((load(x + r * tile_stride + j) - top) * scale);
        store(x + r * tile_stride + j, e);
        sum = sum + e;
      }
      store(most + j, top);
      store(sums + j, sum);
    });
    for (Index j = 0; j < n; ++j) {
      by_column_.max[(j0 + j) * blocks_ + b] = most[j];
      by_column_.sum[(j0 + j) * blocks_ + b] = sums[j];
    }
  }

  /// R of block b and tile t: what the gradients of the logits are, of both directions together.
  void join(Index b, Index t, const T* panels, MatrixView<T> r, Workspace& ws) const {
    const Index i0 = b * block_rows, j0 = t * block_cols, n = r.cols();
    const bool kept = by_row_.kept != nullptr;
    T* by_column = kept ? kept_block(by_column_, b, t) : ws.take<T>(block_rows * tile_stride);
    if (!kept) exponentials(b, t, panels, r.data(), by_column, ws.take<std::uint8_t>(block_cols), ws);
    alignas(64) T factor[block_cols];
    for (Index j = 0; j < n; ++j) factor[j] = factor_of(by_column_, j0 + j, by_column_.max[(j0 + j) * blocks_ + b]);
    for (Index k = 0; k < r.rows(); ++k) {
      const Index i = i0 + k;
      T* const x = r.row(k);
      const T* const p = kept ? kept_block(by_row_, b, t) + k * tile_stride : x;
      const T* const q = by_column + k * tile_stride;
      if (weight_[i] == 0 || std::isnan(by_row_.lse[i])) {
        std::fill_n(x, n, T(0));
        continue;
      }
      const T own = factor_of(by_row_, i, by_row_.max[i * tiles_ + t]);
      simd::for_each_vector<T, simd::DefaultArch>(n, [&](Index j, auto load, auto store) RECOPS_LAMBDA_INLINE {
        using B = simd::Batch<T>;
        const B f = load(factor + j), zero(T(0));
        store(x + j, simd::mul_add(B(own), load(p + j), xsimd::select(f == zero, zero, f * load(q + j))));
      });
      if (j0 <= i && i < j0 + n) x[i - j0] -= static_cast<T>(upstream_ * weight_[i] * (std::isnan(by_column_.lse[i]) ? 0.5 : 1));
    }
  }
  /// What a row's, or column's, exponentials relative to `top` count for in R.
  T factor_of(const Side& side, Index i, T top) const {
    if (weight_[i] == 0 || std::isnan(side.lse[i])) return T(0);
    return static_cast<T>(upstream_ * weight_[i] / 2 * std::exp(static_cast<double>(top) - side.lse[i]));
  }

  const char* name_;
  MatrixView<const T> u_;
  const InBatchOptions<T>& o_;
  Index rows_, width_, blocks_ = 0, tiles_ = 0;
  double scale_ = 1, upstream_ = 1;
  double* weight_ = nullptr;  // shares of the pairs, 0: left out
  T* gone_ = nullptr;         // 1 for pairs left out; null where there are none
  MatrixView<T> su_, v_;      // s U and V, zeros for pairs left out
  std::int64_t *u_ids_ = nullptr, *v_ids_ = nullptr;
  T* own_ = nullptr;         // s <u_i, v_i>, from the blocks
  Side by_row_, by_column_;  // u_i among all v, v_j among all u
};

}  // namespace detail
}  // namespace RECOPS_ABI
}  // namespace recops
