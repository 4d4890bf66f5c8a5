/// @file   recops/diffusion/sampler.hpp
/// @brief  The sampler's loop around a denoiser of yours: start, steps, guidance in one batch, noise keyed by request.
///
///     recops::sample<float>(plan, [&](const DenoiserInput<float>& in, MatrixView<float> m, Workspace& ws) { ... },
///                          {.at = {.seed = 1}, .ids = users}, x, ws);
///
/// Rows go through the whole chain in tiles, so that a state stays in L1 from step to step; tiles run on the workspace's threads.
///
/// Edge cases  No rows: nothing happens. NaN stays in its row, and is counted.
/// Precision   All that is done here is the same bits for a row in any batch, at any place in it and for any number of threads; what the
///             denoiser does with a row should be so too (frozen layers are).
/// Cost        n denoiser calls per tile, n diffusion_steps. No allocation once the workspace has grown.
/// Errors      Error for shapes that disagree; outputs untouched.
/// Reference   Ho et al. arXiv 2006.11239, algorithm 2; Ho and Salimans arXiv 2207.12598 (guidance).
#pragma once
#include <recops/diffusion/diffusion_step.hpp>

namespace recops {

/// What a denoiser is called with: a tile of rows, all at the same step.
template <class T>
struct DenoiserInput {
  /// States `[rows, D]`. If the plan is guided `[2 rows, D]`: the same states once more, to be denoised without their conditions (with
  /// the null condition), so that both are one product.
  MatrixView<const T> x;
  Index first = 0, rows = 0;  ///< the tile is rows [first, first + rows) of the batch: their conditions
  Index step = 0;             ///< which of the plan's steps, 0, 1, ...
  Index t = 0;                ///< the schedule's step of the states
};

/// Options of `sample`.
struct SampleOptions {
  RandomRow at = {};    ///< seed and sample of the noise, row without ids; step and purpose are chosen here
  IndexView ids = {};   ///< one per row, of the user or request; none: `at.row` + place in the batch
  bool from_x = false;  ///< x holds the start already (q_sample of something known); otherwise it is drawn
  Index tile_rows = 0;  ///< rows that go through the chain together; 0: as many as is fast
};

inline namespace RECOPS_ABI {

namespace detail {
template <class T>
Index rows_not_finite(MatrixView<const T> x) {
  Index count = 0;
  for (Index b = 0; b < x.rows(); ++b) {
    T none = 0;  // anything times 0 is 0 but for what is not finite
    for (Index j = 0; j < x.cols(); ++j) none += x(b, j) * T(0);
    count += none == T(0) ? 0 : 1;
  }
  return count;
}
}  // namespace detail

/// Runs the plan: x `[B, D]` receives the samples. `denoise(const DenoiserInput<T>&, MatrixView<T> m, Workspace&)` writes one row of m
/// for every row of the input's x; it is called from the workspace's threads, each with a scratch of its own. Returns how many rows
/// are not finite: 0 when all is well.
template <Real T, class Denoiser>
Index sample(const SamplerPlan& plan, Denoiser&& denoise, const SampleOptions& options, MatrixView<T> x, Workspace& ws) {
  check_shape("sample", "x", x, any_size, any_size);
  check_option("sample", "plan", !plan.steps.empty(), "a plan with steps", 0);
  check_option("sample", "tile_rows", options.tile_rows >= 0, "tile_rows >= 0", static_cast<double>(options.tile_rows));
  simd::check_ids("sample", options.ids, x.rows());
  const Index tile = std::clamp<Index>(options.tile_rows > 0 ? options.tile_rows : 32, 1, std::max<Index>(x.rows(), 1)),
              cols = x.cols();
  ws.parallel_for((x.rows() + tile - 1) / tile, [&](Index task, Workspace& scratch) {
    const Index first = task * tile, rows = std::min(tile, x.rows() - first), twice = plan.guided() ? 2 * rows : rows;
    const auto mark = scratch.mark();
    const MatrixView<T> state = scratch.matrix<T>(twice, cols), m = scratch.matrix<T>(twice, cols);
    const MatrixView<T> previous = plan.multistep() ? scratch.matrix<T>(rows, cols) : MatrixView<T>();
    const MatrixView<T> own = state.middle_rows(0, rows);
    const IndexView ids = options.ids.is_null() ? IndexView() : options.ids.segment(first, rows);
    RandomRow at = options.at;
    at.row += static_cast<std::uint64_t>(first);
    if (options.from_x) {
      for (Index b = 0; b < rows; ++b) std::copy_n(x.row(first + b), cols, own.row(b));
    } else {
      RandomRow start = at;
      start.step = 0;
      start.purpose = RandomPurpose::initial_noise;
      simd::fill_normal<T>(start, ids, own);
    }
    for (Index i = 0; i < static_cast<Index>(plan.steps.size()); ++i) {
      for (Index b = rows; b < twice; ++b) std::copy_n(own.row(b - rows), cols, state.row(b));
      denoise(
          DenoiserInput<T>{
              .x = state, .first = first, .rows = rows, .step = i, .t = plan.steps[static_cast<std::size_t>(i)].from},
          m, scratch);
      diffusion_step<T>(plan, i, own, m.middle_rows(0, rows), m.middle_rows(twice - rows, rows), previous, at, ids);
    }
    for (Index b = 0; b < rows; ++b) std::copy_n(own.row(b), cols, x.row(first + b));
  });
  return detail::rows_not_finite<T>(x);
}

}  // namespace RECOPS_ABI
}  // namespace recops
