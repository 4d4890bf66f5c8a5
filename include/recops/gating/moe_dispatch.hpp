/// @file   recops/gating/moe_dispatch.hpp
/// @brief  What sparse experts compute: each expert its own rows and no others, and the sum of what comes back to each row.
///
///     z_s = activation(W_e x_row(s) + b_e)         for every slot s of expert e         (`grouped_linear`)
///     y_n = sum over the row's choices of w z                                         (`combine_slots`)
///
/// Shapes      x [N, D]   weight [E H, D], expert e owns rows e H .. (e + 1) H   bias [E H], or empty   z [S, H]   plan: expert_plan.hpp
/// How         rows are gathered into scratch an expert (frozen: a block of rows) at a time, where the product finds them in cache.
///             Results are gathered too, in the order of a row's choices: no two threads write one number.
/// Edge cases  an expert without rows costs nothing and has no gradient.   A NaN stays in its row.   Same bits for any number of threads.
/// Cost        2 S D H flops; weights of the experts hit are read once.
/// Errors      Error if shapes disagree with the plan; outputs untouched.
/// Reference   Shazeer et al., arXiv 1701.06538; Gale et al., "MegaBlocks", arXiv 2211.15841 (without dropping rows).
#pragma once
#include <recops/gating/expert_plan.hpp>
#include <recops/nn/layer_norm.hpp>
#include <recops/nn/linear.hpp>

namespace recops {
inline namespace RECOPS_ABI {

namespace detail {

/// The rows of x at the slots first .. first + count.
template <class T>
MatrixView<const T> gather_slots(MatrixView<const T> x, const ExpertPlan& plan, Index first, Index count, Workspace& ws) {
  const MatrixView<T> rows = ws.matrix<T>(count, x.cols());
  for (Index i = 0; i < count; ++i) std::copy_n(x.row(plan.row[first + i]), x.cols(), rows.row(i));
  return rows;
}
inline void check_plan(const char* name, const ExpertPlan& plan) {
  check_option(name, "plan", plan.begin.size() >= 2 && plan.row_begin.size() >= 1 && plan.slot.size() == plan.row.size(),
               "a plan of plan_choices or plan_expert_choice", static_cast<double>(plan.begin.size()));
}
/// `weights [E, cap]` of a plan of plan_expert_choice: another plan's slots would read the weights of others.
template <class T>
void check_chosen(const char* name, MatrixView<const T> z, const ExpertPlan& plan, MatrixView<const T> weights) {
  check_plan(name, plan);
  check_shape(name, "z", z, plan.slots(), any_size);
  check_shape(name, "weights", weights, plan.experts(), plan.entry.cols());
  check_option(name, "weights", weights.rows() * weights.cols() == plan.slots(), "one for each slot",
               static_cast<double>(weights.rows() * weights.cols()));
  for (Index s = 0; s < plan.slots(); ++s)
    check_option(name, "plan", plan.entry(s / weights.cols(), s % weights.cols()) == s, "one of plan_expert_choice",
                 static_cast<double>(s));
}
template <class T>
void check_grouped(const char* name, MatrixView<const T> x, bool by_slot, const ExpertPlan& plan, MatrixView<const T> weight,
                   VectorView<const T> bias) {
  check_plan(name, plan);
  check_shape(name, "weight", weight, any_size, any_size);
  check_option(name, "rows of weight", weight.rows() > 0 && weight.rows() % plan.experts() == 0,
               "experts times the outputs of one", static_cast<double>(weight.rows()));
  check_shape(name, "x", x, by_slot ? plan.slots() : plan.rows(), weight.cols());
  if (!bias.empty()) check_size(name, "bias", bias, weight.rows());
}

}  // namespace detail

/// Writes `z [S, H]`. With `by_slot` x is `[S, D]`, a row per slot: the second layer of an expert.
template <Real T>
void grouped_linear(MatrixView<const T> x, bool by_slot, const ExpertPlan& plan, MatrixView<const T> weight,
                    VectorView<const T> bias, Activation activation, MatrixView<T> z, Workspace& ws) {
  constexpr const char* name = "grouped_linear";
  detail::check_grouped(name, x, by_slot, plan, weight, bias);
  const Index h = weight.rows() / plan.experts();
  check_shape(name, "z", z, plan.slots(), h);
  ws.parallel_for(plan.experts(), [&](Index e, Workspace& scratch) {
    const Index first = plan.begin[e], count = plan.count(e);
    if (count == 0) return;
    const auto mark = scratch.mark();
    const MatrixView<const T> in = by_slot ? x.middle_rows(first, count) : detail::gather_slots(x, plan, first, count, scratch);
    simd::gemm<T>(simd::plain(in), simd::transposed(weight.middle_rows(e * h, h)),
                  {.bias = bias.empty() ? nullptr : bias.data() + e * h, .activation = activation}, z.middle_rows(first, count),
                  scratch);
  });
}

/// From `dz [S, H]`, the gradient before the activation: adds to `dx` (`[N, D]`, or with `by_slot` `[S, D]`), `dweight` and `dbias`,
/// each unless empty.
template <Real T>
void grouped_linear_backward(MatrixView<const T> x, bool by_slot, const ExpertPlan& plan, MatrixView<const T> weight,
                             MatrixView<const T> dz, MatrixView<T> dx, MatrixView<T> dweight, VectorView<T> dbias,
                             Workspace& ws) {
  constexpr const char* name = "grouped_linear_backward";
  detail::check_grouped<T>(name, x, by_slot, plan, weight, {});
  const Index h = weight.rows() / plan.experts(), d = weight.cols();
  check_shape(name, "dz", dz, plan.slots(), h);
  if (!dx.empty()) check_shape(name, "dx", dx, x.rows(), d);
  if (!dweight.empty()) check_shape(name, "dweight", dweight, weight.rows(), d);
  if (!dbias.empty()) check_size(name, "dbias", dbias, weight.rows());
  const auto mark = ws.mark();
  const MatrixView<T> at_slots = by_slot || dx.empty() ? dx : ws.matrix<T>(plan.slots(), d);
  ws.parallel_for(plan.experts(), [&](Index e, Workspace& scratch) {
    const Index first = plan.begin[e], count = plan.count(e);
    if (count == 0) return;
    const auto own = scratch.mark();
    const MatrixView<const T> up = dz.middle_rows(first, count);
    const MatrixView<const T> in = by_slot || dweight.empty()
                                       ? (by_slot ? x.middle_rows(first, count) : MatrixView<const T>(nullptr, count, d, d))
                                       : detail::gather_slots(x, plan, first, count, scratch);
    if (!dx.empty())
      simd::gemm<T>(simd::plain(up), simd::plain(weight.middle_rows(e * h, h)), {.accumulate = by_slot},
                    at_slots.middle_rows(first, count), scratch);
    if (!dweight.empty())
      simd::gemm<T>(simd::transposed(up), simd::plain(in), {.accumulate = true}, dweight.middle_rows(e * h, h), scratch);
    for (Index s = 0; s < count && !dbias.empty(); ++s) simd::add<T>(up.row(s), dbias.data() + e * h, h);
  });
  if (by_slot || dx.empty()) return;
  detail::for_row_blocks(plan.rows(), ws, [&](Index first, Index count, Index, Workspace&) {
    for (Index n = first; n < first + count; ++n)
      for (Index i = plan.row_begin[n]; i < plan.row_begin[n + 1]; ++i) simd::add<T>(at_slots.row(plan.slot[i]), dx.row(n), d);
  });
}

/// y `[N, T H]` from z `[S, H]`, `entries [N, T k]` (the plan's `entry`; -1: nothing) and `weights [N, T k]`: task t of row n is the sum
/// of its k choices, in their order. A row without any is 0.
template <Real T>
void combine_slots(MatrixView<const T> z, MatrixView<const std::int32_t> entries, MatrixView<const T> weights, Index tasks,
                   MatrixView<T> y, Workspace& ws) {
  constexpr const char* name = "combine_slots";
  check_shape(name, "z", z, any_size, any_size);
  check_option(name, "tasks", tasks >= 1 && entries.cols() % tasks == 0, "a divisor of the choices of a row",
               static_cast<double>(tasks));
  check_shape(name, "entries", entries, any_size, any_size);
  check_shape(name, "weights", weights, entries.rows(), entries.cols());
  check_shape(name, "y", y, entries.rows(), tasks * z.cols());
  const Index h = z.cols(), k = entries.cols() / tasks;
  for (Index n = 0; n < entries.rows(); ++n)
    for (Index j = 0; j < entries.cols(); ++j)
      if (entries(n, j) < -1 || entries(n, j) >= z.rows()) [[unlikely]]
        detail::fail_at(name, "entries", "-1 or slots from 0 to below ", z.rows(), n * entries.cols() + j, entries(n, j));
  detail::for_row_blocks(entries.rows(), ws, [&](Index first, Index count, Index, Workspace&) {
    for (Index n = first; n < first + count; ++n)
      for (Index t = 0; t < tasks; ++t) {
        T* const to = y.row(n) + t * h;
        bool fresh = true;
        for (Index j = t * k; j < (t + 1) * k; ++j) {
          const std::int32_t s = entries(n, j);
          if (s < 0) continue;
          fresh ? simd::scale<T>(weights(n, j), z.row(s), to, h) : simd::axpy<T>(weights(n, j), z.row(s), to, h);
          fresh = false;
        }
        if (fresh) std::fill_n(to, h, T(0));
      }
  });
}

/// Adds to `dz [S, H]` and `dweights [N, T k]`, each unless empty; a dropped choice gets nothing.
template <Real T>
void combine_slots_backward(MatrixView<const T> z, MatrixView<const std::int32_t> entries, MatrixView<const T> weights,
                            Index tasks, MatrixView<const T> dy, MatrixView<T> dz, MatrixView<T> dweights, Workspace& ws) {
  constexpr const char* name = "combine_slots_backward";
  check_shape(name, "z", z, any_size, any_size);
  check_option(name, "tasks", tasks >= 1 && entries.cols() % tasks == 0, "a divisor of the choices of a row",
               static_cast<double>(tasks));
  check_shape(name, "entries", entries, any_size, any_size);
  check_shape(name, "weights", weights, entries.rows(), entries.cols());
  check_shape(name, "dy", dy, entries.rows(), tasks * z.cols());
  if (!dz.empty()) check_shape(name, "dz", dz, z.rows(), z.cols());
  if (!dweights.empty()) check_shape(name, "dweights", dweights, entries.rows(), entries.cols());
  const Index h = z.cols(), k = entries.cols() / tasks;
  for (Index n = 0; n < entries.rows(); ++n)
    for (Index j = 0; j < entries.cols(); ++j)
      if (entries(n, j) < -1 || entries(n, j) >= z.rows()) [[unlikely]]
        detail::fail_at(name, "entries", "-1 or slots from 0 to below ", z.rows(), n * entries.cols() + j, entries(n, j));
  detail::for_row_blocks(entries.rows(), ws, [&](Index first, Index count, Index, Workspace&) {
    for (Index n = first; n < first + count; ++n)
      for (Index j = 0; j < entries.cols(); ++j) {
        const std::int32_t s = entries(n, j);
        if (s < 0) continue;
        const T* const up = dy.row(n) + j / k * h;
        if (!dweights.empty()) dweights(n, j) += simd::dot(up, z.row(s), h);
        if (!dz.empty())
          simd::axpy<T>(weights(n, j), up, dz.row(s), h);  // slots of a row are its own: no other thread writes them
      }
  });
}

/// The same for rows that experts chose (`plan_expert_choice`): y `[N, H]`, `weights [E, cap]` as `route_expert_choice` wrote them; a row
/// sums its experts in their order.
template <Real T>
void combine_chosen(MatrixView<const T> z, const ExpertPlan& plan, MatrixView<const T> weights, MatrixView<T> y, Workspace& ws) {
  constexpr const char* name = "combine_chosen";
  detail::check_chosen(name, z, plan, weights);
  check_shape(name, "y", y, plan.rows(), z.cols());
  detail::for_row_blocks(y.rows(), ws, [&](Index first, Index count, Index, Workspace&) {
    for (Index n = first; n < first + count; ++n) {
      std::fill_n(y.row(n), y.cols(), T(0));
      for (Index i = plan.row_begin[n]; i < plan.row_begin[n + 1]; ++i) {
        const Index s = plan.slot[i];
        simd::axpy<T>(weights(s / weights.cols(), s % weights.cols()), z.row(s), y.row(n), y.cols());
      }
    }
  });
}

/// Adds to `dz [S, H]` and `dweights [E, cap]`, each unless empty.
template <Real T>
void combine_chosen_backward(MatrixView<const T> z, const ExpertPlan& plan, MatrixView<const T> weights, MatrixView<const T> dy,
                             MatrixView<T> dz, MatrixView<T> dweights, Workspace& ws) {
  constexpr const char* name = "combine_chosen_backward";
  detail::check_chosen(name, z, plan, weights);
  check_shape(name, "dy", dy, plan.rows(), z.cols());
  if (!dz.empty()) check_shape(name, "dz", dz, z.rows(), z.cols());
  if (!dweights.empty()) check_shape(name, "dweights", dweights, weights.rows(), weights.cols());
  detail::for_row_blocks(z.rows(), ws, [&](Index first, Index count, Index, Workspace&) {
    for (Index s = first; s < first + count; ++s) {
      const T* const up = dy.row(plan.row[s]);
      const Index e = s / weights.cols(), j = s % weights.cols();
      if (!dweights.empty()) dweights(e, j) += simd::dot(up, z.row(s), z.cols());
      if (!dz.empty()) simd::axpy<T>(weights(e, j), up, dz.row(s), z.cols());
    }
  });
}

}  // namespace RECOPS_ABI
}  // namespace recops
