/// @file   recops/attention/multi_interest.hpp
/// @brief  Several interest vectors of each user from the behaviours, by self-attention or by dynamic routing (ComiRec, MIND).
///
///     self-attentive     A_b = softmax over l of W2 tanh(W1 key_l)      z_bk = sum_l A_bkl value_l
///     dynamic routing    u_l = S x_l;  c = softmax over k of b_kl;  z_bk = squash(sum_l c_kl u_l);  b_kl += <z_bk, u_l>; again
///                        squash(v) = |v| / (1 + |v|^2) v
///
/// Shapes      behaviours [total, D] with offsets [B + 1]   interests [B K, D]: those of user b are the rows b K .. b K + K - 1
/// Mask        `mask` [total], 0 hides a behaviour: its numbers do not matter, and its gradients are 0.
/// Edge cases  A user without (visible) behaviours gets zeros and no gradient.   NaN stays in the user it came from.
/// Precision   T; interests are summed in chains of 512 behaviours. A user's bits do not depend on the batch nor on threads.
/// Cost        self-attentive 2 total W (D + K) flops of products and W total tanh for W hidden units; routing 2 total D (Dout + 2 K
///             iterations). Nothing is allocated once scratch has grown.
/// Errors      Error if shapes, offsets or options disagree; outputs untouched.
/// Gradient    of inputs and parameters; *adds*. Through dynamic routing it is that of the last iteration, with the coupling c held
///             fixed, as published code has it.
/// Reference   Cen et al., Controllable Multi-Interest Framework (ComiRec), arXiv 2005.09347, section 3.2; Li et al., MIND, arXiv
///             1904.08030, section 3.3; Sabour et al., arXiv 1710.09829, for routing.
#pragma once
#include <cmath>
#include <recops/nn/linear.hpp>
#include <recops/nn/positional_embedding.hpp>
#include <recops/simd/softmax.hpp>

namespace recops {

/// Options of `dynamic_routing`.
struct DynamicRoutingOptions {
  Index iterations = 3;  ///< 1 or more
};

inline namespace RECOPS_ABI {

namespace detail {

/// Rows as they are without a mask, else a copy in which those that it hides are 0, so that nothing of them comes through a product.
template <class T>
JaggedView<const T> visible_rows(JaggedView<const T> x, VectorView<const std::uint8_t> mask, Workspace& ws) {
  if (mask.empty()) return x;
  const MatrixView<const T> rows = x.values();
  const MatrixView<T> out = ws.matrix<T>(rows.rows(), rows.cols());
  for (Index i = 0; i < rows.rows(); ++i) {
    if (mask[i] != 0) {
      std::copy_n(rows.row(i), rows.cols(), out.row(i));
    } else {
      std::fill_n(out.row(i), rows.cols(), T(0));
    }
  }
  return x.with_values(MatrixView<const T>(out));
}

inline void check_mask(const char* name, VectorView<const std::uint8_t> mask, Index rows) {
  if (!mask.empty()) check_size(name, "mask", mask, rows);
}

/// Users that are worked on together, so that what lies between two products stays in cache.
inline constexpr Index interest_block = 256;
/// Behaviours whose weighted rows are summed in T; the sums of more are added up in double, so that a long history stays accurate.
inline constexpr Index interest_chain = 512;
/// Calls `f(first user, last user, first row, last row, scratch)` for blocks of whole users, on the caller's threads. What the blocks
/// are depends on the batch alone.
template <class T, class F>
void for_user_blocks(JaggedView<const T> x, Workspace& ws, F&& f) {
  const auto mark = ws.mark();
  const Index users = x.size();
  Index* const firsts = ws.take<Index>(users + 1);
  Index blocks = 0, begin = 0;
  for (Index b = 0; b < users; ++b) {
    if (blocks == 0 || x.begin(b) + x.length(b) - begin > interest_block || b - firsts[blocks - 1] >= interest_block)
      firsts[blocks++] = b, begin = x.begin(b);
  }
  firsts[blocks] = users;
  ws.parallel_for(blocks, [&](Index i, Workspace& scratch) {
    const Index first = firsts[i], last = firsts[i + 1];
    f(first, last, x.begin(first), last == users ? x.values().rows() : x.begin(last), scratch);
  });
}

template <class T>
void check_self_attentive(const char* name, JaggedView<const T> keys, JaggedView<const T> values, MatrixView<const T> w1,
                          MatrixView<const T> w2, VectorView<const std::uint8_t> mask) {
  check_shape(name, "w1", w1, any_size, any_size);
  check_shape(name, "w2", w2, any_size, w1.rows());
  check_option(name, "w2", w2.rows() >= 1, "one interest or more", static_cast<double>(w2.rows()));
  check_jagged(name, "keys", keys, any_size, w1.cols());
  check_jagged(name, "values", values, keys.size(), any_size);
  check_shape(name, "values", values.values(), keys.values().rows(), any_size);
  for (Index b = 0; b < keys.size(); ++b)
    check_option(name, "values", values.begin(b) == keys.begin(b), "the offsets of keys", static_cast<double>(values.begin(b)));
  check_mask(name, mask, keys.values().rows());
}

/// sums [K, D] = weights [K, L] rows [L, D], in chains of behaviours.
template <class T>
void weighted_sums(MatrixView<const T> weights, MatrixView<const T> rows, MatrixView<T> sums, Workspace& ws) {
  const Index length = rows.rows(), all = sums.rows() * sums.cols();
  if (length <= interest_chain) return simd::gemm<T>(simd::plain(weights), simd::plain(rows), {}, sums, ws);
  const auto mark = ws.mark();
  const MatrixView<T> part = ws.matrix<T>(sums.rows(), sums.cols());
  double* const total = ws.take<double>(all);
  std::fill_n(total, all, 0.0);
  for (Index start = 0; start < length; start += interest_chain) {
    const Index count = std::min(interest_chain, length - start);
    simd::gemm<T>(simd::plain(weights.middle_cols(start, count)), simd::plain(rows.middle_rows(start, count)), {}, part, ws);
    for (Index i = 0; i < all; ++i) total[i] += static_cast<double>(part.data()[i]);
  }
  for (Index i = 0; i < sums.rows(); ++i)
    for (Index c = 0; c < sums.cols(); ++c) sums(i, c) = static_cast<T>(total[i * sums.cols() + c]);
}

/// W1 packed as for `gemm_packed`, W2 as it is; `hidden` and `attention` may be empty.
template <class T, class S>
void self_attentive_interests(JaggedView<const T> keys, JaggedView<const T> values, const S* w1, const T* w1_scale, Index width,
                              MatrixView<const T> w2, VectorView<const std::uint8_t> mask, MatrixView<T> out,
                              MatrixView<T> hidden, MatrixView<T> attention, Workspace& ws) {
  const auto mark = ws.mark();
  const JaggedView<const T> x = visible_rows(keys, mask, ws), seen = visible_rows(values, mask, ws);
  const Index k = w2.rows();
  for_user_blocks(x, ws, [&](Index first, Index last, Index begin, Index end, Workspace& scratch) {
    const auto inner = scratch.mark();
    const Index rows = end - begin;
    const MatrixView<T> h = hidden.empty() ? scratch.matrix<T>(rows, width) : hidden.middle_rows(begin, rows);
    const MatrixView<T> a = attention.empty() ? scratch.matrix<T>(k, rows) : attention.middle_cols(begin, rows);
    simd::gemm_packed<T>(simd::plain(x.values().middle_rows(begin, rows)), w1, width,
                         {.activation = Activation::tanh, .column_scale = w1_scale}, h, scratch);
    if (k <= 8) {
      simd::gemm<T>(simd::plain(w2), simd::transposed(h), {}, a, scratch);
    } else {  // where few columns would go another way than many: a user's bits would depend on who else is in the block
      T* const panels = scratch.take<T>(simd::packed_size<T>(width, rows));
      simd::pack<T>(simd::transposed(h), panels);
      simd::gemm_packed<T>(simd::plain(w2), panels, rows, {}, a, scratch);
    }
    for (Index b = first; b < last; ++b) {
      const Index at = values.begin(b), length = values.length(b);
      for (Index i = 0; i < k; ++i) {
        T* const weights = a.row(i) + (at - begin);
        if (mask.empty()) {
          simd::softmax(weights, length);
        } else {
          simd::softmax_masked(weights, mask.data() + at, weights, length);
        }
      }
      weighted_sums<T>(a.middle_cols(at - begin, length), seen.values().middle_rows(at, length), out.middle_rows(b * k, k), scratch);
    }
  });
}

}  // namespace detail

/// Interests `[B K, Dv]` = A values, A_b `[K, L_b]` = softmax over the behaviours of w2 tanh(w1 keys^T): keys `[total, D]`, usually values
/// with positions added, values `[total, Dv]`, w1 `[W, D]`, w2 `[K, W]`. `hidden` `[total, W]` and `attention` `[K, total]`, either both
/// empty or both kept for backward, receive tanh(w1 keys) and A.
template <Real T>
void self_attentive_interests(JaggedView<const T> keys, JaggedView<const T> values, MatrixView<const T> w1,
                              MatrixView<const T> w2, VectorView<const std::uint8_t> mask, MatrixView<T> interests,
                              MatrixView<T> hidden, MatrixView<T> attention, Workspace& ws) {
  constexpr const char* name = "self_attentive_interests";
  detail::check_self_attentive(name, keys, values, w1, w2, mask);
  check_shape(name, "interests", interests, keys.size() * w2.rows(), values.cols());
  if (!hidden.empty()) check_shape(name, "hidden", hidden, keys.values().rows(), w1.rows());
  if (!attention.empty()) check_shape(name, "attention", attention, w2.rows(), keys.values().rows());
  const auto mark = ws.mark();
  T* const panels = ws.take<T>(simd::packed_size<T>(w1.cols(), w1.rows()));
  simd::pack<T>(simd::transposed(w1), panels);
  detail::self_attentive_interests<T, T>(keys, values, panels, nullptr, w1.rows(), w2, mask, interests, hidden, attention, ws);
}

/// Adds to the gradients of keys, values, w1 and w2, each unless empty, given what forward wrote and the gradient of the interests.
template <Real T>
void self_attentive_interests_backward(JaggedView<const T> keys, JaggedView<const T> values, MatrixView<const T> w1,
                                       MatrixView<const T> w2, VectorView<const std::uint8_t> mask, MatrixView<const T> hidden,
                                       MatrixView<const T> attention, MatrixView<const T> dinterests, MatrixView<T> dkeys,
                                       MatrixView<T> dvalues, MatrixView<T> dw1, MatrixView<T> dw2, Workspace& ws) {
  constexpr const char* name = "self_attentive_interests_backward";
  detail::check_self_attentive(name, keys, values, w1, w2, mask);
  const Index total = keys.values().rows(), k = w2.rows(), width = w1.rows(), cols = values.cols();
  check_shape(name, "hidden", hidden, total, width);
  check_shape(name, "attention", attention, k, total);
  check_shape(name, "dinterests", dinterests, keys.size() * k, cols);
  if (!dkeys.empty()) check_shape(name, "dkeys", dkeys, total, keys.cols());
  if (!dvalues.empty()) check_shape(name, "dvalues", dvalues, total, cols);
  if (!dw1.empty()) check_shape(name, "dw1", dw1, width, w1.cols());
  if (!dw2.empty()) check_shape(name, "dw2", dw2, k, width);
  const auto mark = ws.mark();
  const JaggedView<const T> x = detail::visible_rows(keys, mask, ws);
  const MatrixView<T> ds = ws.matrix<T>(k, total);
  for (Index i = 0; i < k; ++i) std::fill_n(ds.row(i), total, T(0));
  T* const da = ws.take<T>(values.longest());
  for (Index b = 0; b < values.size(); ++b) {
    const Index at = values.begin(b), length = values.length(b);
    for (Index i = 0; i < k; ++i) {
      const T *const g = dinterests.row(b * k + i), *const a = attention.row(i) + at;
      for (Index l = 0; l < length; ++l) {
        da[l] = T(0);
        if (!mask.empty() && mask[at + l] == 0) continue;
        da[l] = simd::dot(g, values.values().row(at + l), cols);
        if (!dvalues.empty()) simd::axpy(a[l], g, dvalues.row(at + l), cols);
      }
      simd::softmax_backward(a, da, ds.row(i) + at, length);
    }
  }
  // Where nothing is seen, a NaN in the gradient of the (zero) interests must not come back.
  for (Index l = 0; l < mask.size(); ++l)
    for (Index i = 0; i < k && mask[l] == 0; ++i) ds(i, l) = T(0);
  if (!dw2.empty()) simd::gemm<T>(simd::plain(ds), simd::plain(hidden), {.accumulate = true}, dw2, ws);
  if (dkeys.empty() && dw1.empty()) return;
  const MatrixView<T> dh = ws.matrix<T>(total, width);
  simd::gemm<T>(simd::transposed(ds), simd::plain(w2), {}, dh, ws);
  for (Index l = 0; l < total; ++l)
    simd::activate_backward(Activation::tanh, hidden.row(l), hidden.row(l), dh.row(l), dh.row(l), width);
  if (!dw1.empty()) simd::gemm<T>(simd::transposed(dh), simd::plain(x.values()), {.accumulate = true}, dw1, ws);
  if (!dkeys.empty()) simd::gemm<T>(simd::plain(dh), simd::plain(w1), {.accumulate = true}, dkeys, ws);
}

namespace detail {

/// z = |v| / (1 + |v|^2) v
template <class T>
void squash(const T* v, T* z, Index n) {
  const T square = simd::dot(v, v, n);
  simd::scale(std::sqrt(square) / (T(1) + square), v, z, n);
}
/// dv of that, written.
template <class T>
void squash_backward(const T* v, const T* dz, T* dv, Index n) {
  const T square = simd::dot(v, v, n), length = std::sqrt(square), one = T(1) + square;
  simd::scale(length / one, dz, dv, n);
  if (length > T(0)) simd::axpy((T(1) - square) / (one * one * length) * simd::dot(dz, v, n), v, dv, n);
}

template <class T>
void check_routing(const char* name, JaggedView<const T> x, Index cols, MatrixView<const T> logits,
                   VectorView<const std::uint8_t> mask, const DynamicRoutingOptions& options) {
  check_jagged(name, "x", x, any_size, cols);
  check_shape(name, "logits", logits, any_size, any_size);
  check_option(name, "logits", logits.rows() >= 1, "one interest or more", static_cast<double>(logits.rows()));
  const Index longest = x.longest();
  check_option(name, "x", longest <= logits.cols(), "sequences no longer than logits has columns", static_cast<double>(longest));
  check_option(name, "iterations", options.iterations >= 1, "iterations >= 1", static_cast<double>(options.iterations));
  check_mask(name, mask, x.values().rows());
}

/// c = softmax over the rows of b, for each of the first `length` columns.
template <class T>
void softmax_over_interests(MatrixView<const T> b, MatrixView<T> c, Index length) {
  using B = simd::Batch<T>;
  simd::for_each_vector<T, simd::DefaultArch>(length, [&](Index l, auto load, auto store) RECOPS_LAMBDA_INLINE {
    B most(std::numeric_limits<T>::lowest()), total(T(0));
    for (Index i = 0; i < b.rows(); ++i) most = xsimd::max(load(b.row(i) + l), most);  // in this order a NaN is passed over
    for (Index i = 0; i < b.rows(); ++i) {
      const B e = simd::exp(B(load(b.row(i) + l) - most));
      store(c.row(i) + l, e);
      total = total + e;
    }
    const B share = xsimd::select(total == B(T(0)), total, B(B(T(1)) / total));
    for (Index i = 0; i < b.rows(); ++i) store(c.row(i) + l, load(c.row(i) + l) * share);
  });
}

/// Routes the rows u of each user, 0 where hidden; what the last iteration used goes to `coupling` `[K, total]` and `sums` `[B K, D]`,
/// unless empty.
template <class T>
void route(JaggedView<const T> u, MatrixView<const T> logits, VectorView<const std::uint8_t> mask,
           const DynamicRoutingOptions& options, MatrixView<T> out, MatrixView<T> coupling, MatrixView<T> sums, Workspace& ws) {
  const Index k = logits.rows(), cols = u.cols(), longest = u.longest();
  ws.parallel_for(u.size(), [&](Index user, Workspace& scratch) {
    const auto mark = scratch.mark();
    const Index at = u.begin(user), length = u.length(user);
    const MatrixView<T> b = scratch.matrix<T>(k, longest).middle_cols(0, length),
                        c = scratch.matrix<T>(k, longest).middle_cols(0, length), z = out.middle_rows(user * k, k),
                        sum = sums.empty() ? scratch.matrix<T>(k, cols) : sums.middle_rows(user * k, k);
    const MatrixView<const T> rows = u.values().middle_rows(at, length);
    for (Index i = 0; i < k; ++i) std::copy_n(logits.row(i) + logits.cols() - length, length, b.row(i));
    for (Index iteration = 0; iteration < options.iterations; ++iteration) {
      if (iteration > 0) simd::gemm<T>(simd::plain(z), simd::transposed(rows), {.accumulate = true}, b, scratch);
      softmax_over_interests<T>(b, c, length);
      weighted_sums<T>(c, rows, sum, scratch);
      for (Index i = 0; i < k; ++i) squash(sum.row(i), z.row(i), cols);
    }
    for (Index i = 0; i < k && !coupling.empty(); ++i)
      for (Index l = 0; l < length; ++l) coupling(i, at + l) = !mask.empty() && mask[at + l] == 0 ? T(0) : c(i, l);
  });
}

}  // namespace detail

/// Interests `[B K, Dout]` of x `[total, D]` by routing u = x weight^T, weight `[Dout, D]`. Routing begins with the couplings `logits`
/// `[K, M]`, the last L columns for a sequence of length L <= M: were they equal, all interests would stay equal. `coupling` `[K, total]`
/// and `sums` `[B K, Dout]`, either both empty or both kept for backward, receive the last couplings and the vectors before `squash`.
template <Real T>
void dynamic_routing(JaggedView<const T> x, MatrixView<const T> weight, MatrixView<const T> logits,
                     VectorView<const std::uint8_t> mask, const DynamicRoutingOptions& options, MatrixView<T> interests,
                     MatrixView<T> coupling, MatrixView<T> sums, Workspace& ws) {
  constexpr const char* name = "dynamic_routing";
  check_shape(name, "weight", weight, any_size, any_size);
  detail::check_routing(name, x, weight.cols(), logits, mask, options);
  check_shape(name, "interests", interests, x.size() * logits.rows(), weight.rows());
  if (!coupling.empty()) check_shape(name, "coupling", coupling, logits.rows(), x.values().rows());
  if (!sums.empty()) check_shape(name, "sums", sums, x.size() * logits.rows(), weight.rows());
  const auto mark = ws.mark();
  const MatrixView<T> u = ws.matrix<T>(x.values().rows(), weight.rows());
  T* const panels = ws.take<T>(simd::packed_size<T>(weight.cols(), weight.rows()));
  simd::pack<T>(simd::transposed(weight), panels);
  simd::gemm_packed<T>(simd::plain(x.values()), panels, weight.rows(), {}, u, ws);
  for (Index l = 0; l < mask.size(); ++l)
    if (mask[l] == 0) std::fill_n(u.row(l), u.cols(), T(0));
  detail::route<T>(x.with_values(MatrixView<const T>(u)), logits, mask, options, interests, coupling, sums, ws);
}

/// Adds to the gradients of x and weight, each unless empty.
template <Real T>
void dynamic_routing_backward(JaggedView<const T> x, MatrixView<const T> weight, VectorView<const std::uint8_t> mask,
                              MatrixView<const T> coupling, MatrixView<const T> sums, MatrixView<const T> dinterests,
                              MatrixView<T> dx, MatrixView<T> dweight, Workspace& ws) {
  constexpr const char* name = "dynamic_routing_backward";
  check_shape(name, "weight", weight, any_size, any_size);
  check_jagged(name, "x", x, any_size, weight.cols());
  const Index total = x.values().rows(), k = coupling.rows(), cols = weight.rows();
  detail::check_mask(name, mask, total);
  check_shape(name, "coupling", coupling, any_size, total);
  check_shape(name, "sums", sums, x.size() * k, cols);
  check_shape(name, "dinterests", dinterests, x.size() * k, cols);
  if (!dx.empty()) check_shape(name, "dx", dx, total, weight.cols());
  if (!dweight.empty()) check_shape(name, "dweight", dweight, cols, weight.cols());
  const auto mark = ws.mark();
  const JaggedView<const T> seen = detail::visible_rows(x, mask, ws);
  const MatrixView<T> du = ws.matrix<T>(total, cols);
  std::fill_n(du.data(), total * cols, T(0));
  T* const dv = ws.take<T>(cols);
  for (Index b = 0; b < x.size(); ++b) {
    for (Index i = 0; i < k; ++i) {
      detail::squash_backward(sums.row(b * k + i), dinterests.row(b * k + i), dv, cols);
      for (Index l = x.begin(b); l < x.begin(b) + x.length(b); ++l)
        if (mask.empty() || mask[l] != 0) simd::axpy(coupling(i, l), dv, du.row(l), cols);
    }
  }
  if (!dweight.empty()) simd::gemm<T>(simd::transposed(du), simd::plain(seen.values()), {.accumulate = true}, dweight, ws);
  if (!dx.empty()) simd::gemm<T>(simd::plain(du), simd::plain(weight), {.accumulate = true}, dx, ws);
}

/// Which interest answers for a target: choice_b = argmax_k <interest_bk, target_b>, the lowest k on ties; `choice` `[B]` counts from 0,
/// interests `[B K, D]`, targets `[B, D]`. A product that is NaN is never chosen (all NaN: 0). Discrete: it has no gradient.
template <Real T>
void choose_interest(MatrixView<const T> interests, MatrixView<const T> targets, VectorView<std::int32_t> choice) {
  constexpr const char* name = "choose_interest";
  check_shape(name, "targets", targets, any_size, any_size);
  const Index users = targets.rows(), k = users > 0 ? interests.rows() / users : 0;
  check_shape(name, "interests", interests, users * k, targets.cols());
  check_option(name, "interests", users == 0 || k >= 1, "one interest or more for every target",
               static_cast<double>(interests.rows()));
  check_size(name, "choice", choice, users);
  for (Index b = 0; b < users; ++b) {
    T most = -std::numeric_limits<T>::infinity();
    choice[b] = 0;
    for (Index i = 0; i < k; ++i) {
      const T score = simd::dot(interests.row(b * k + i), targets.row(b), targets.cols());
      if (score > most) most = score, choice[b] = static_cast<std::int32_t>(i);
    }
  }
}

/// ComiRec-SA as a layer.
template <class T>
struct SelfAttentiveInterests {
  PositionalEmbedding<T> positions;  ///< [max_length, D], or empty: order does not matter
  Linear<T> linear1;                 ///< weight [W, D], no bias
  Linear<T> linear2;                 ///< weight [K, W], no bias

  SelfAttentiveInterests() = default;
  /// `hidden` 0: four times the width. `max_length` 0: no positions. Throws `Error` for sizes below 1.
  SelfAttentiveInterests(Index width, Index interests, Index hidden, Index max_length, Random& random) {
    check_option("SelfAttentiveInterests", "width", width >= 1, "width >= 1", static_cast<double>(width));
    check_option("SelfAttentiveInterests", "interests", interests >= 1, "interests >= 1", static_cast<double>(interests));
    check_option("SelfAttentiveInterests", "max_length", max_length >= 0, "max_length >= 0", static_cast<double>(max_length));
    if (checked_size("SelfAttentiveInterests", "hidden", hidden) == 0) hidden = 4 * width;
    linear1 = Linear<T>(width, hidden, random, false);
    linear2 = Linear<T>(hidden, interests, random, false);
    if (max_length > 0) positions = PositionalEmbedding<T>(max_length, width, 1 / std::sqrt(static_cast<double>(width)), random);
  }

  static constexpr auto fields() {
    return std::tuple{layer("positions", &SelfAttentiveInterests::positions), layer("linear1", &SelfAttentiveInterests::linear1),
                      layer("linear2", &SelfAttentiveInterests::linear2)};
  }
  /// K
  Index interests() const { return linear2.weight.rows(); }

  /// What backward needs, reused step after step.
  struct Saved {
    Matrix<T> keys, hidden, attention;
  };
  /// Interests `[B K, D]` of x `[total, D]`; `mask` `[total]` or empty.
  void forward(JaggedView<const T> x, VectorView<const std::uint8_t> mask, MatrixView<T> z, Workspace& ws) const {
    const auto mark = ws.mark();
    self_attentive_interests<T>(keys_of(x, ws), x, linear1.weight, linear2.weight, mask, z, {}, {}, ws);
  }
  void forward(JaggedView<const T> x, VectorView<const std::uint8_t> mask, MatrixView<T> z, Saved& saved, const Step&,
               Workspace& ws) const {
    const auto mark = ws.mark();
    const JaggedView<const T> keys = keys_of(x, ws);
    saved.hidden.resize(x.values().rows(), linear1.weight.rows());
    saved.attention.resize(interests(), x.values().rows());
    self_attentive_interests<T>(keys, x, linear1.weight, linear2.weight, mask, z, saved.hidden, saved.attention, ws);
  }
  void backward(JaggedView<const T> x, VectorView<const std::uint8_t> mask, MatrixView<const T> dz, const Saved& saved,
                MatrixView<T> dx, SelfAttentiveInterests& gradient, Workspace& ws) const {
    constexpr const char* name = "SelfAttentiveInterests::backward";
    check_gradient_shapes(name, *this, gradient);
    const auto mark = ws.mark();
    const JaggedView<const T> keys = keys_of(x, ws);
    const Index rows = x.values().rows(), cols = x.cols();
    if (!dx.empty()) check_shape(name, "dx", dx, rows, cols);
    // Keys are values plus positions: their gradient goes to both.
    const bool placed = !positions.weight.empty() && !gradient.positions.weight.empty();
    MatrixView<T> dkeys = dx;
    if (placed) {
      dkeys = ws.matrix<T>(rows, cols);
      std::fill_n(dkeys.data(), rows * cols, T(0));
    }
    self_attentive_interests_backward<T>(keys, x, linear1.weight, linear2.weight, mask, saved.hidden, saved.attention, dz, dkeys,
                                         dx, gradient.linear1.weight, gradient.linear2.weight, ws);
    if (placed) positions.backward(x, dkeys, {}, dx, gradient.positions, ws);
  }

 private:
  JaggedView<const T> keys_of(JaggedView<const T> x, Workspace& ws) const {
    check_jagged("SelfAttentiveInterests", "x", x, any_size, linear1.weight.cols());
    if (positions.weight.empty()) return x;
    const MatrixView<T> keys = ws.matrix<T>(x.values().rows(), x.cols());
    positions.forward(x, keys, ws);
    return x.with_values(MatrixView<const T>(keys));
  }
};

/// Serving form: the first product packed. Immutable; threads may share it.
template <class T, class S = T>
class FrozenSelfAttentiveInterests {
 public:
  FrozenSelfAttentiveInterests() = default;
  explicit FrozenSelfAttentiveInterests(const SelfAttentiveInterests<T>& layer)
      : positions_(layer.positions),
        w2_(layer.linear2.weight),
        cols_(layer.linear1.weight.cols()),
        width_(layer.linear1.weight.rows()) {
    const MatrixView<const T> w1 = layer.linear1.weight;
    panels_.resize(simd::packed_size<T>(cols_, width_));
    if constexpr (std::is_same_v<S, std::int8_t>) {
      scale_.resize(width_);
      simd::pack<T>(simd::transposed(w1), panels_.data(), scale_.data());
    } else {
      simd::pack<T>(simd::transposed(w1), panels_.data());
    }
  }
  Index interests() const { return w2_.rows(); }
  /// As `SelfAttentiveInterests::forward`.
  void forward(JaggedView<const T> x, VectorView<const std::uint8_t> mask, MatrixView<T> z, Workspace& ws) const {
    constexpr const char* name = "FrozenSelfAttentiveInterests";
    check_jagged(name, "x", x, any_size, cols_);
    check_shape(name, "z", z, x.size() * interests(), cols_);
    detail::check_mask(name, mask, x.values().rows());
    const auto mark = ws.mark();
    JaggedView<const T> keys = x;
    if (!positions_.weight.empty()) {
      const MatrixView<T> sum = ws.matrix<T>(x.values().rows(), cols_);
      positions_.forward(x, sum, ws);
      keys = x.with_values(MatrixView<const T>(sum));
    }
    detail::self_attentive_interests<T, S>(keys, x, panels_.data(), scale_.empty() ? nullptr : scale_.data(), width_, w2_, mask,
                                           z, {}, {}, ws);
  }

 private:
  PositionalEmbedding<T> positions_;
  Vector<S> panels_;
  Vector<T> scale_;
  Matrix<T> w2_;
  Index cols_ = 0, width_ = 0;
};
/// The serving form of a layer.
template <class T, class S = T>
FrozenSelfAttentiveInterests<T, S> freeze(const SelfAttentiveInterests<T>& layer, Weights<S> = {}) {
  return FrozenSelfAttentiveInterests<T, S>(layer);
}

/// ComiRec-DR as a layer; it serves as it is.
template <class T>
struct DynamicRouting {
  Linear<T> bilinear;        ///< weight [D, D], no bias
  Matrix<T> initial_logits;  ///< [K, max_length], fixed standard normals
  DynamicRoutingOptions options;

  DynamicRouting() = default;
  /// Throws `Error` for sizes below 1.
  DynamicRouting(Index width, Index interests, Index max_length, Random& random, DynamicRoutingOptions o = {}) : options(o) {
    check_option("DynamicRouting", "width", width >= 1, "width >= 1", static_cast<double>(width));
    check_option("DynamicRouting", "interests", interests >= 1, "interests >= 1", static_cast<double>(interests));
    check_option("DynamicRouting", "max_length", max_length >= 1, "max_length >= 1", static_cast<double>(max_length));
    bilinear = Linear<T>(width, width, random, false);
    initial_logits.resize(interests, max_length);
    for (T& b : leaf_values(initial_logits)) b = static_cast<T>(random.normal());
  }

  static constexpr auto fields() {
    return std::tuple{layer("bilinear", &DynamicRouting::bilinear), buffer("initial_logits", &DynamicRouting::initial_logits)};
  }
  /// K
  Index interests() const { return initial_logits.rows(); }

  /// What backward needs, reused step after step.
  struct Saved {
    Matrix<T> coupling, sums;
  };
  /// Interests `[B K, D]` of x `[total, D]`; `mask` `[total]` or empty.
  void forward(JaggedView<const T> x, VectorView<const std::uint8_t> mask, MatrixView<T> z, Workspace& ws) const {
    dynamic_routing<T>(x, bilinear.weight, initial_logits, mask, options, z, {}, {}, ws);
  }
  void forward(JaggedView<const T> x, VectorView<const std::uint8_t> mask, MatrixView<T> z, Saved& saved, const Step&,
               Workspace& ws) const {
    check_jagged("DynamicRouting", "x", x, any_size, any_size);
    saved.coupling.resize(interests(), x.values().rows());
    saved.sums.resize(x.size() * interests(), bilinear.weight.rows());
    dynamic_routing<T>(x, bilinear.weight, initial_logits, mask, options, z, saved.coupling, saved.sums, ws);
  }
  void backward(JaggedView<const T> x, VectorView<const std::uint8_t> mask, MatrixView<const T> dz, const Saved& saved,
                MatrixView<T> dx, DynamicRouting& gradient, Workspace& ws) const {
    check_gradient_shapes("DynamicRouting::backward", *this, gradient);
    dynamic_routing_backward<T>(x, bilinear.weight, mask, saved.coupling, saved.sums, dz, dx, gradient.bilinear.weight, ws);
  }
};
/// The serving form of a layer.
template <class T>
DynamicRouting<T> freeze(const DynamicRouting<T>& layer) {
  return layer;
}

}  // namespace RECOPS_ABI
}  // namespace recops
