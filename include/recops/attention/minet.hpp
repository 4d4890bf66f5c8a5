/// @file   recops/attention/minet.hpp
/// @brief  MiNet: a user's interests in two domains, read for a candidate of one of them, and how much each of them counts.
///
///     item level       a_j = v . relu(W [c_j, t, u, m_j * t])     agg = sum_j softmax_j(a) c_j        m_j = c_j, or U D c_j: clicks of
///                                                                                                 another domain, carried over by two
///                                                                                                 small matrices in the score only
///     interest level   g_i = exp(h_i . relu(V_i z) + b_i)         z = [t, u, agg_target, agg_source]
///     out = [t, g_1 u, g_2 agg_target, g_3 agg_source]            three numbers, not a softmax: all may count, or none
///
/// The concatenations are never built. In the own domain the score's first layer is that of DIN (`pair_layer.hpp`); across domains
/// W_p (t_n * U D c_j) = (U^T diag(t_n) W_p^T)^T (D c_j): a small matrix a candidate, found for eight candidates in one product, and `rank`
/// numbers a click. See docs/minet.md.
///
/// Shapes      candidates [total_N, dt]   users [B, du]   clicks [total_L, dc]   out [total_N, dt + du + dt + ds]
/// Edge cases  No clicks in a domain: its aggregate is zeros.   The exponent of a gate is held within +-30, without gradient beyond.
/// NaN         stays with its candidate, or the candidates of its user.
/// Cost        own domain 2 (dt h + h) flops a pair and 2 dt h to prepare a candidate; across domains 2 (rank h + h) a pair, 2 dt rank h a
///             candidate, 2 dc (h + rank) a click. Training keeps the hidden layer of all pairs.
/// Errors      Error if shapes or parameters do not fit; outputs untouched.
/// Source      Ouyang et al., arXiv 2008.02974, sections 3.3 to 3.5; padded clicks, which the released code lets into the softmax, do not
///             exist here.
#pragma once
#include <recops/attention/pair_layer.hpp>
#include <recops/nn/gradient.hpp>
#include <recops/nn/layer.hpp>
#include <recops/nn/linear.hpp>
#include <recops/simd/softmax.hpp>

namespace recops {
inline namespace RECOPS_ABI {

/// Attention of candidates over clicks of their own domain (`down` and `up` empty) or of another one.
template <Real T>
struct ItemAttention {
  Matrix<T> weight;  ///< [h, dc + dt + du + dt]: click, candidate, user, product
  Vector<T> score;   ///< [h]
  Matrix<T> down;    ///< [rank, dc], or empty: clicks are of the candidates' domain
  Matrix<T> up;      ///< [dt, rank], or empty

  ItemAttention() = default;
  /// `rank` = 0: clicks of the candidates' own domain.
  ItemAttention(Index candidate_width, Index user_width, Index click_width, Index hidden, Index rank, Random& random)
      : weight(checked_size("ItemAttention", "hidden", hidden),
               checked_size("ItemAttention", "click_width", click_width) +
                   2 * checked_size("ItemAttention", "candidate_width", candidate_width) +
                   checked_size("ItemAttention", "user_width", user_width)),
        score(hidden),
        down(checked_size("ItemAttention", "rank", rank), rank > 0 ? click_width : 0),
        up(rank > 0 ? candidate_width : 0, rank) {
    const auto fill = [&](auto& w, Index in) {
      const double bound = in > 0 ? 1 / std::sqrt(static_cast<double>(in)) : 0;
      for (T& x : leaf_values(w)) x = static_cast<T>(random.uniform(-bound, bound));
    };
    fill(weight, weight.cols());
    fill(score, hidden);
    fill(down, click_width);
    fill(up, rank);
    check_parameters("ItemAttention", candidate_width, user_width, click_width);
  }

  static constexpr auto fields() {
    return std::tuple{parameter("weight", &ItemAttention::weight), parameter("score", &ItemAttention::score),
                      parameter("down", &ItemAttention::down), parameter("up", &ItemAttention::up)};
  }
  Index hidden() const { return weight.rows(); }
  bool crosses() const { return !up.empty(); }

  struct Saved {
    Matrix<T> before;   ///< [pairs, h], hidden layer before relu
    Vector<T> weights;  ///< [pairs]
  };

  /// y `[total_N, dc]`
  void forward(JaggedView<const T> candidates, MatrixView<const T> users, JaggedView<const T> clicks, MatrixView<T> y,
               Workspace& ws) const {
    check("ItemAttention", candidates, users, clicks, y);
    const auto mark = ws.mark();
    const Index h = hidden();
    const Parts p = parts(candidates, users, clicks, ws);
    ws.parallel_for(p.pairs.candidates, [&](Index i, Workspace& scratch) {
      const auto own = scratch.mark();
      const Index b = p.pairs.user[i], length = p.pairs.length(i);
      T* const a = scratch.take<T>(length);
      const T* const mixed = mix(p, candidates, i, scratch);
      const MatrixView<T> z = scratch.matrix<T>(std::min(length, detail::pair_block<T>), h);
      for (Index at = 0; at < length; at += z.rows()) {
        const Index count = std::min(z.rows(), length - at);
        hidden_rows(p, clicks, b, i, at, mixed, Activation::relu, z.middle_rows(0, count), scratch);
        scores(z.middle_rows(0, count), a + at, scratch);
      }
      simd::softmax<T>(a, a, length);
      detail::pool_pairs<T>(a, clicks[b], y.row(i), scratch);
    });
  }
  void forward(JaggedView<const T> candidates, MatrixView<const T> users, JaggedView<const T> clicks, MatrixView<T> y,
               Saved& saved, const Step&, Workspace& ws) const {
    check("ItemAttention", candidates, users, clicks, y);
    const auto mark = ws.mark();
    const Index h = hidden();
    const Parts p = parts(candidates, users, clicks, ws);
    saved.before.resize(p.pairs.pairs(), h);
    saved.weights.resize(p.pairs.pairs());
    ws.parallel_for(p.pairs.candidates, [&](Index i, Workspace& scratch) {
      const auto own = scratch.mark();
      const Index b = p.pairs.user[i], length = p.pairs.length(i), first = p.pairs.first[i];
      T* const a = saved.weights.data() + first;
      const T* const mixed = mix(p, candidates, i, scratch);
      const MatrixView<T> z = scratch.matrix<T>(length, h);
      hidden_rows(p, clicks, b, i, 0, mixed, Activation::none, saved.before.view().middle_rows(first, length), scratch);
      for (Index j = 0; j < length; ++j) simd::activate(Activation::relu, saved.before.row(first + j), z.row(j), h);
      scores(z, a, scratch);
      simd::softmax<T>(a, a, length);
      detail::pool_pairs<T>(a, clicks[b], y.row(i), scratch);
    });
  }
  /// Adds to dcandidates, dusers, dclicks (each unless empty) and to `gradient`.
  void backward(JaggedView<const T> candidates, MatrixView<const T> users, JaggedView<const T> clicks, MatrixView<const T> dy,
                const Saved& saved, MatrixView<T> dcandidates, MatrixView<T> dusers, MatrixView<T> dclicks,
                ItemAttention& gradient, Workspace& ws) const {
    constexpr const char* name = "ItemAttention::backward";
    check(name, candidates, users, clicks, dy);
    const auto mark = ws.mark();
    const Index h = hidden(), dt = candidates.cols(), du = users.cols(), dc = clicks.cols(), n = candidates.values().rows();
    const Parts p = parts(candidates, users, clicks, ws);
    const Index total = p.pairs.pairs(), rank = down.rows();
    check_shape(name, "saved", saved.before.view(), total, h);
    check_size(name, "saved", VectorView<const T>(saved.weights), total);
    if (!dcandidates.empty()) check_shape(name, "dcandidates", dcandidates, n, dt);
    if (!dusers.empty()) check_shape(name, "dusers", dusers, users.rows(), du);
    if (!dclicks.empty()) check_shape(name, "dclicks", dclicks, clicks.values().rows(), dc);
    check_gradient_shapes(name, *this, gradient);
    if (total == 0) return;
    // Softmax and sum; then the scores, whose gradients become those of the hidden layer.
    const MatrixView<T> ds = ws.matrix<T>(total, h), dscore = ws.matrix<T>(total, 1);
    ws.parallel_for(candidates.size(), [&](Index b, Workspace& scratch) {
      const auto own = scratch.mark();
      const MatrixView<const T> c = clicks[b];
      T* const da = scratch.take<T>(c.rows());
      const MatrixView<T> dc_rows = dclicks.empty() ? dclicks : dclicks.middle_rows(clicks.begin(b), c.rows());
      for (Index i = candidates.begin(b); i < candidates.begin(b) + candidates.length(b); ++i) {
        const T* const a = saved.weights.data() + p.pairs.first[i];
        T* const to = dscore.data() + p.pairs.first[i];
        detail::pool_pairs_backward<T>(a, c, dy.row(i), da, dc_rows);
        std::fill_n(to, c.rows(), T(0));
        simd::softmax_backward<T>(a, da, to, c.rows());
      }
    });
    T* const relu = ws.take<T>(h);
    simd::ChainedSum<T> sum(gradient.score.data(), gradient.score.size(), ws);
    for (Index j = 0; j < total; ++j) {
      const T *const s = saved.before.row(j), x = dscore(j, 0);
      T* const d = ds.row(j);
      simd::activate(Activation::relu, s, relu, h);
      if (!gradient.score.empty()) simd::axpy<T>(x, relu, sum.next(), h);
      for (Index r = 0; r < h; ++r) d[r] = s[r] > T(0) ? x * score[r] : T(0);
    }
    sum.finish();
    const MatrixView<T> du_all = ws.matrix<T>(n, h);
    const MatrixView<T> dweight = gradient.weight;
    const auto columns = [&](MatrixView<T> m, Index first, Index count) { return m.empty() ? m : m.middle_cols(first, count); };
    if (!crosses()) {
      detail::PairGradients<T> g{dcandidates, dclicks, columns(dweight, 0, dc), columns(dweight, dc + dt + du, dt), du_all};
      detail::pair_layer_backward<T>(p.pairs, candidates, clicks, part(0, dc), part(dc + dt + du, dt), ds, g, ws);
    } else {
      backward_across(p, candidates, clicks, ds, du_all, rank, dcandidates, dclicks, gradient, ws);
    }
    // u_n = W_t t_n + W_u u_b
    linear_backward<T>(candidates.values(), part(dc, dt), du_all, dcandidates, columns(dweight, dc, dt), {}, ws);
    if (du == 0) return;
    const MatrixView<T> of_user = ws.matrix<T>(users.rows(), h);
    for (Index b = 0; b < users.rows(); ++b) {
      const auto inner = ws.mark();
      std::fill_n(of_user.row(b), h, T(0));
      simd::ChainedSum<T> all(of_user.row(b), h, ws);
      for (Index i = candidates.begin(b); i < candidates.begin(b) + candidates.length(b); ++i)
        simd::add<T>(du_all.row(i), all.next(), h);
      all.finish();
    }
    linear_backward<T>(users, part(dc + dt, du), of_user, dusers, columns(dweight, dc + dt, du), {}, ws);
  }

  /// Throws `Error` unless the parameters, which may have been loaded, fit each other and these widths.
  void check_parameters(const char* name, Index candidate_width, Index user_width, Index click_width) const {
    check_option(name, "weight", hidden() >= 1 && candidate_width >= 1 && click_width >= 1, "one row and column or more",
                 static_cast<double>(hidden()));
    check_shape(name, "weight", weight.view(), any_size, click_width + 2 * candidate_width + user_width);
    check_size(name, "score", VectorView<const T>(score), hidden());
    if (crosses() || !down.empty()) {
      check_option(name, "down", down.rows() >= 1, "a rank of 1 or more", static_cast<double>(down.rows()));
      check_shape(name, "down", down.view(), any_size, click_width);
      check_shape(name, "up", up.view(), candidate_width, down.rows());
    } else {
      check_option(name, "clicks", click_width == candidate_width, "as many columns as candidates where there is no transfer",
                   static_cast<double>(click_width));
    }
  }

 private:
  /// What all candidates share.
  struct Parts {
    detail::PairIndex pairs;
    MatrixView<T> u;              // [total_N, h], what depends on candidate and user
    detail::PairPanels<T> first;  // own domain
    MatrixView<T> clicks, small;  // across: W_c c_j [total_L, h] and D c_j [total_L, rank]
    MatrixView<T> mixed;          // [total_N, rank h], column r h + k: sum_c t_c up(c, r) W_p(k, c)
  };

  MatrixView<const T> part(Index first, Index count) const { return weight.view().middle_cols(first, count); }

  template <class Y>
  void check(const char* name, JaggedView<const T> candidates, MatrixView<const T> users, JaggedView<const T> clicks,
             MatrixView<Y> y) const {
    check_jagged(name, "candidates", candidates, any_size, any_size);
    check_shape(name, "users", users, candidates.size(), any_size);
    check_jagged(name, "clicks", clicks, candidates.size(), any_size);
    check_parameters(name, candidates.cols(), users.cols(), clicks.cols());
    check_shape(name, "y", y, candidates.values().rows(), clicks.cols());
  }

  Parts parts(JaggedView<const T> candidates, MatrixView<const T> users, JaggedView<const T> clicks, Workspace& ws) const {
    const Index h = hidden(), dt = candidates.cols(), du = users.cols(), dc = clicks.cols(), n = candidates.values().rows();
    Parts p{};
    p.pairs = detail::pair_index(candidates, clicks, ws);
    p.u = ws.matrix<T>(n, h);
    linear<T>(candidates.values(), part(dc, dt), {}, p.u, ws);
    if (du > 0) {
      const MatrixView<T> of_user = ws.matrix<T>(users.rows(), h);
      linear<T>(users, part(dc + dt, du), {}, of_user, ws);
      for (Index i = 0; i < n; ++i) simd::add<T>(of_user.row(p.pairs.user[i]), p.u.row(i), h);
    }
    const MatrixView<const T> product = part(dc + dt + du, dt);
    if (!crosses()) {
      T *const base = ws.take<T>(simd::packed_size<T>(dc, h)), *const times = ws.take<T>(simd::packed_size<T>(dt, h));
      simd::pack<T>(simd::transposed(part(0, dc)), base);
      simd::pack<T>(simd::transposed(product), times);
      p.first = {base, times, dt, h};
      return p;
    }
    const Index rank = down.rows(), l = clicks.values().rows();
    p.clicks = ws.matrix<T>(l, h);
    p.small = ws.matrix<T>(l, rank);
    p.mixed = ws.matrix<T>(n, rank * h);
    linear<T>(clicks.values(), part(0, dc), {}, p.clicks, ws);
    linear<T>(clicks.values(), down, {}, p.small, ws);
    // A few candidates at a time, each with every column of U: nothing of the size of U times W_p is made for them. Packed weights give a
    // candidate the same bits in any place.
    constexpr Index together = 8;
    T* const panels = ws.take<T>(simd::packed_size<T>(dt, h));
    simd::pack<T>(simd::transposed(product), panels);
    const MatrixView<T> turned = ws.matrix<T>(rank, dt);
    for (Index c = 0; c < dt; ++c)
      for (Index r = 0; r < rank; ++r) turned(r, c) = up(c, r);
    ws.parallel_for((n + together - 1) / together, [&](Index block, Workspace& scratch) {
      const auto inner = scratch.mark();
      const Index first = block * together, count = std::min(n - first, together);
      const MatrixView<T> scaled = scratch.matrix<T>(count * rank, dt);
      for (Index j = 0; j < count; ++j) {
        const T* const candidate = candidates.values().row(first + j);
        for (Index r = 0; r < rank; ++r) {
          T* const to = scaled.row(j * rank + r);
          for (Index c = 0; c < dt; ++c) to[c] = candidate[c] * turned(r, c);
        }
      }
      simd::gemm_packed<T>(simd::plain(MatrixView<const T>(scaled)), panels, h, {}, MatrixView<T>(p.mixed.row(first), count * rank, h),
                           scratch);
    });
    return p;
  }

  /// The weights that candidate i has for behaviours.
  const T* mix(const Parts& p, JaggedView<const T> candidates, Index i, Workspace& ws) const {
    if (p.pairs.length(i) == 0) return nullptr;
    if (crosses()) {
      const MatrixView<const T> own(p.mixed.row(i), down.rows(), hidden());
      T* const panels = ws.take<T>(simd::packed_size<T>(own.rows(), own.cols()));
      simd::pack<T>(simd::plain(own), panels);
      return panels;
    }
    T* const mixed = ws.take<T>(simd::packed_size<T>(p.first.depth, p.first.out));
    detail::mix_panels(p.first, candidates.values().row(i), mixed);
    return mixed;
  }
  /// Hidden rows of candidate i and the clicks of user b from `at` on.
  void hidden_rows(const Parts& p, JaggedView<const T> clicks, Index b, Index i, Index at, const T* mixed, Activation activation,
                   MatrixView<T> z, Workspace& ws) const {
    if (z.rows() == 0) return;
    const Index row = clicks.begin(b) + at;
    if (!crosses()) return detail::pair_rows<T>(clicks.values().middle_rows(row, z.rows()), mixed, p.u.row(i), activation, z, ws);
    for (Index j = 0; j < z.rows(); ++j) std::copy_n(p.clicks.row(row + j), z.cols(), z.row(j));
    simd::gemm_packed<T>(simd::plain(MatrixView<const T>(p.small.middle_rows(row, z.rows()))), mixed, z.cols(),
                         {.bias = p.u.row(i), .activation = activation, .accumulate = true}, z, ws);
  }
  void scores(MatrixView<const T> z, T* a, Workspace& ws) const {
    if (z.rows() == 0) return;
    simd::gemm<T>(simd::plain(z), {score.data(), z.cols(), 1, 1, z.cols()}, {}, MatrixView<T>(a, z.rows(), 1), ws);
  }

  void backward_across(const Parts& p, JaggedView<const T> candidates, JaggedView<const T> clicks, MatrixView<const T> ds,
                       MatrixView<T> du, Index rank, MatrixView<T> dcandidates, MatrixView<T> dclicks, ItemAttention& gradient,
                       Workspace& ws) const {
    const Index h = hidden(), l = clicks.values().rows(), dt = candidates.cols(), dc = clicks.cols(), n = p.pairs.candidates;
    const MatrixView<T> dhidden = ws.matrix<T>(l, h), dsmall = ws.matrix<T>(l, rank), dmixed = ws.matrix<T>(n, rank * h);
    const auto zero = [](MatrixView<T> m) { std::fill_n(m.data(), m.rows() * m.cols(), T(0)); };
    zero(dhidden);
    zero(dsmall);
    zero(dmixed);
    ws.parallel_for(candidates.size(), [&](Index b, Workspace& scratch) {
      const Index first = clicks.begin(b), length = clicks.length(b);
      for (Index i = candidates.begin(b); i < candidates.begin(b) + candidates.length(b); ++i) {
        const auto inner = scratch.mark();
        std::fill_n(du.row(i), h, T(0));
        if (length == 0) continue;
        simd::ChainedSum<T> all(du.row(i), h, scratch);
        const MatrixView<const T> rows = ds.middle_rows(p.pairs.first[i], length);
        for (Index j = 0; j < length; ++j) {
          simd::add<T>(rows.row(j), all.next(), h);
          simd::add<T>(rows.row(j), dhidden.row(first + j), h);
        }
        all.finish();
        const MatrixView<const T> small = p.small.middle_rows(first, length);
        simd::gemm<T>(simd::transposed(small), simd::plain(rows), {}, MatrixView<T>(dmixed.row(i), rank, h), scratch);
        simd::gemm<T>(simd::plain(rows), simd::transposed(MatrixView<const T>(p.mixed.row(i), rank, h)), {.accumulate = true},
                      dsmall.middle_rows(first, length), scratch);
      }
    });
    const MatrixView<T> dweight = gradient.weight;
    linear_backward<T>(clicks.values(), part(0, dc), dhidden, dclicks, dweight.empty() ? dweight : dweight.middle_cols(0, dc), {},
                       ws);
    linear_backward<T>(clicks.values(), down, dsmall, dclicks, gradient.down, {}, ws);
    // mixed = candidates transfer
    const MatrixView<const T> product = part(weight.cols() - dt, dt);
    const MatrixView<T> columns = ws.matrix<T>(dt, h), transfer = ws.matrix<T>(dt, rank * h);
    for (Index k = 0; k < h; ++k)
      for (Index c = 0; c < dt; ++c) columns(c, k) = product(k, c);
    for (Index c = 0; c < dt; ++c)
      for (Index r = 0; r < rank; ++r) simd::scale<T>(up(c, r), columns.row(c), transfer.row(c) + r * h, h);
    if (!dcandidates.empty())
      simd::gemm<T>(simd::plain(MatrixView<const T>(dmixed)), simd::transposed(MatrixView<const T>(transfer)),
                    {.accumulate = true}, dcandidates, ws);
    if (dweight.empty() && gradient.up.empty()) return;
    const MatrixView<T> dtransfer = ws.matrix<T>(dt, rank * h);
    simd::gemm<T>(simd::transposed(candidates.values()), simd::plain(MatrixView<const T>(dmixed)), {}, dtransfer, ws);
    T* const dcolumn = ws.take<T>(h);
    for (Index c = 0; c < dt; ++c) {
      std::fill_n(dcolumn, h, T(0));
      for (Index r = 0; r < rank; ++r) {
        const T* const d = dtransfer.row(c) + r * h;
        if (!gradient.up.empty()) gradient.up(c, r) += simd::dot<T>(d, columns.row(c), h);
        simd::axpy<T>(up(c, r), d, dcolumn, h);
      }
      for (Index k = 0; k < h && !dweight.empty(); ++k) dweight(k, weight.cols() - dt + c) += dcolumn[k];
    }
  }
};

/// The interest level: rows z of several parts side by side; every part but the first is scaled by a number that all of z decides.
/// A row layer: y = [z_0, g_1 z_1, g_2 z_2, ...] with g_i = exp(score_i . relu(weight_i z) + bias_i).
template <Real T>
struct InterestGates {
  std::vector<Index> widths;  ///< of the parts; at least one
  Matrix<T> weight;           ///< [gates h, sum of widths]: gate after gate
  Matrix<T> score;            ///< [gates, h]
  Vector<T> bias;             ///< [gates]

  static constexpr T limit = T(30);  ///< of the exponent, to both sides

  InterestGates() = default;
  InterestGates(std::vector<Index> parts, Index hidden, Random& random) : widths(std::move(parts)) {
    check_option("InterestGates", "parts", !widths.empty(), "one part or more", 0);
    const Index gates = this->gates();
    Index cols = 0;
    for (const Index w : widths) cols += checked_size("InterestGates", "parts", w);
    weight.resize(gates * checked_size("InterestGates", "hidden", hidden), cols);
    score.resize(gates, hidden);
    bias = Vector<T>(gates, T(0));
    const auto fill = [&](Matrix<T>& w) {
      const double bound = 1 / std::sqrt(static_cast<double>(std::max(Index{1}, w.cols())));
      for (T& x : leaf_values(w)) x = static_cast<T>(random.uniform(-bound, bound));
    };
    fill(weight);
    fill(score);
    output_cols(cols);
  }

  static constexpr auto fields() {
    return std::tuple{parameter("weight", &InterestGates::weight), parameter("score", &InterestGates::score),
                      parameter("bias", &InterestGates::bias)};
  }
  Index gates() const { return static_cast<Index>(widths.size()) - 1; }
  /// The same; throws `Error` unless parts and parameters fit.
  Index output_cols(Index input_cols) const { return check("InterestGates", input_cols); }

  struct Saved {
    Matrix<T> before;    ///< [N, gates h]
    Matrix<T> exponent;  ///< [N, gates], before it is held within limits
  };
  /// y may be z.
  void forward(MatrixView<const T> z, MatrixView<T> y, Workspace& ws) const {
    check_both("InterestGates", z, y);
    const auto mark = ws.mark();
    const MatrixView<T> before = ws.matrix<T>(z.rows(), weight.rows()), exponent = ws.matrix<T>(z.rows(), gates());
    apply(z, y, before, exponent, ws);
  }
  void forward(MatrixView<const T> z, MatrixView<T> y, Saved& saved, const Step&, Workspace& ws) const {
    check_both("InterestGates", z, y);
    saved.before.resize(z.rows(), weight.rows());
    saved.exponent.resize(z.rows(), gates());
    apply(z, y, saved.before, saved.exponent, ws);
  }
  /// Adds to dz (unless empty) and to `gradient`.
  void backward(MatrixView<const T> z, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dz, InterestGates& gradient,
                Workspace& ws) const {
    constexpr const char* name = "InterestGates::backward";
    check_both(name, z, dy);
    const Index n = z.rows(), gates = this->gates(), h = score.cols();
    check_shape(name, "saved", saved.before.view(), n, gates * h);
    check_shape(name, "saved", saved.exponent.view(), n, gates);
    if (!dz.empty()) check_shape(name, "dz", dz, n, z.cols());
    check_gradient_shapes(name, *this, gradient);
    const auto mark = ws.mark();
    const MatrixView<T> ds = ws.matrix<T>(n, gates * h);
    simd::ChainedSum<T> scores(gradient.score.data(), gradient.score.empty() ? 0 : gates * h, ws);
    simd::ChainedSum<T> biases(gradient.bias.data(), gradient.bias.size(), ws);
    for (Index i = 0; i < n; ++i) {
      T *const dscore = scores.next(), *const dbias = biases.next();
      Index at = widths[0];
      if (!dz.empty()) simd::add<T>(dy.row(i), dz.row(i), at);
      for (Index g = 0; g < gates; ++g) {
        const Index width = widths[static_cast<std::size_t>(g + 1)];
        const T e = saved.exponent(i, g), w = gate(e);
        if (!dz.empty()) simd::axpy<T>(w, dy.row(i) + at, dz.row(i) + at, width);
        const T d = e < -limit || e > limit ? T(0) : w * simd::dot<T>(dy.row(i) + at, z.row(i) + at, width);
        const T *const s = saved.before.row(i) + g * h, *const v = score.row(g);
        T* const to = ds.row(i) + g * h;
        for (Index k = 0; k < h; ++k) {
          if (!gradient.score.empty()) dscore[g * h + k] += d * (s[k] > T(0) ? s[k] : T(0));
          to[k] = s[k] > T(0) ? d * v[k] : T(0);
        }
        if (!gradient.bias.empty()) dbias[g] += d;
        at += width;
      }
    }
    scores.finish();
    biases.finish();
    linear_backward<T>(z, weight, ds, dz, gradient.weight, {}, ws);
  }

 private:
  Index check(const char* name, Index input_cols) const {
    check_option(name, "widths", !widths.empty(), "one part or more", 0);
    Index cols = 0;
    for (const Index w : widths) {
      check_option(name, "widths", w >= 0, "widths >= 0", static_cast<double>(w));
      cols += w;
    }
    check_option(name, "input columns", input_cols == cols, "as many as the parts have together",
                 static_cast<double>(input_cols));
    check_shape(name, "score", score.view(), gates(), any_size);
    check_shape(name, "weight", weight.view(), gates() * score.cols(), cols);
    check_size(name, "bias", VectorView<const T>(bias), gates());
    return cols;
  }
  template <class Y>
  void check_both(const char* name, MatrixView<const T> z, MatrixView<Y> y) const {
    check_shape(name, "z", z, any_size, any_size);
    check(name, z.cols());
    check_shape(name, "y", y, z.rows(), z.cols());
  }
  static T gate(T e) { return std::exp(e < -limit ? -limit : e > limit ? limit : e); }
  void apply(MatrixView<const T> z, MatrixView<T> y, MatrixView<T> before, MatrixView<T> exponent, Workspace& ws) const {
    const Index gates = this->gates(), h = score.cols();
    linear<T>(z, weight, {}, before, ws);
    for (Index i = 0; i < z.rows(); ++i) {
      Index at = widths[0];
      std::copy_n(z.row(i), at, y.row(i));
      for (Index g = 0; g < gates; ++g) {
        const Index width = widths[static_cast<std::size_t>(g + 1)];
        const T *const s = before.row(i) + g * h, *const v = score.row(g);
        T sum = bias[g];
        for (Index k = 0; k < h; ++k) sum += v[k] * (s[k] > T(0) || s[k] != s[k] ? s[k] : T(0));
        exponent(i, g) = sum;
        simd::scale<T>(gate(sum), z.row(i) + at, y.row(i) + at, width);
        at += width;
      }
    }
  }
};

/// The whole: two item levels and the interest level.
template <Real T>
struct MiNet {
  ItemAttention<T> target, source;
  InterestGates<T> gates;

  MiNet() = default;
  /// Widths of candidates and target clicks, users, source clicks; hidden widths of the levels; rank of the transfer.
  MiNet(Index target_width, Index user_width, Index source_width, Index hidden, Index gate_hidden, Index rank, Random& random)
      : target(checked_size("MiNet", "target_width", target_width), checked_size("MiNet", "user_width", user_width), target_width,
               checked_size("MiNet", "hidden", hidden), 0, random),
        source(target_width, user_width, checked_size("MiNet", "source_width", source_width), hidden,
               checked_size("MiNet", "rank", rank), random),
        gates({target_width, user_width, target_width, source_width}, checked_size("MiNet", "gate_hidden", gate_hidden), random) {
  }

  static constexpr auto fields() {
    return std::tuple{layer("target", &MiNet::target), layer("source", &MiNet::source), layer("gates", &MiNet::gates)};
  }
  /// Columns of the output, as many as the parts have together.
  Index output_width() const { return gates.weight.cols(); }

  struct Saved {
    typename ItemAttention<T>::Saved target, source;
    typename InterestGates<T>::Saved gates;
    Matrix<T> z;
  };

  /// y `[total_N, dt + du + dt + ds]` of candidates `[total_N, dt]`, users `[B, du]`, clicks `[., dt]` and `[., ds]` of the two domains.
  void forward(JaggedView<const T> candidates, MatrixView<const T> users, JaggedView<const T> target_clicks,
               JaggedView<const T> source_clicks, MatrixView<T> y, Workspace& ws) const {
    check("MiNet", candidates, users, target_clicks, source_clicks, y);
    const auto mark = ws.mark();
    const MatrixView<T> z = ws.matrix<T>(y.rows(), y.cols());
    const Index dt = candidates.cols(), du = users.cols(), ds = source_clicks.cols();
    join(candidates, users, z);
    target.forward(candidates, users, target_clicks, z.middle_cols(dt + du, dt), ws);
    source.forward(candidates, users, source_clicks, z.middle_cols(2 * dt + du, ds), ws);
    gates.forward(z, y, ws);
  }
  void forward(JaggedView<const T> candidates, MatrixView<const T> users, JaggedView<const T> target_clicks,
               JaggedView<const T> source_clicks, MatrixView<T> y, Saved& saved, const Step& step, Workspace& ws) const {
    check("MiNet", candidates, users, target_clicks, source_clicks, y);
    saved.z.resize(y.rows(), y.cols());
    const MatrixView<T> z = saved.z;
    const Index dt = candidates.cols(), du = users.cols(), ds = source_clicks.cols();
    join(candidates, users, z);
    target.forward(candidates, users, target_clicks, z.middle_cols(dt + du, dt), saved.target, step.child(0), ws);
    source.forward(candidates, users, source_clicks, z.middle_cols(2 * dt + du, ds), saved.source, step.child(1), ws);
    gates.forward(z, y, saved.gates, step.child(2), ws);
  }
  /// Adds to the gradients of all four inputs (each unless empty) and to `gradient`.
  void backward(JaggedView<const T> candidates, MatrixView<const T> users, JaggedView<const T> target_clicks,
                JaggedView<const T> source_clicks, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dcandidates,
                MatrixView<T> dusers, MatrixView<T> dtarget_clicks, MatrixView<T> dsource_clicks, MiNet& gradient,
                Workspace& ws) const {
    constexpr const char* name = "MiNet::backward";
    check(name, candidates, users, target_clicks, source_clicks, dy);
    const Index dt = candidates.cols(), du = users.cols(), ds = source_clicks.cols(), n = dy.rows();
    check_shape(name, "saved", saved.z.view(), n, dy.cols());
    check_shape(name, "saved.gates", saved.gates.before.view(), n, gates.weight.rows());
    check_shape(name, "saved.gates", saved.gates.exponent.view(), n, gates.gates());
    const auto check_saved = [&](const char* domain, const auto& s, Index pairs, Index hidden) {
      check_shape(name, domain, s.before.view(), pairs, hidden);
      check_size(name, domain, VectorView<const T>(s.weights), pairs);
    };
    check_saved("saved.target", saved.target, detail::pair_count(candidates, target_clicks), target.hidden());
    check_saved("saved.source", saved.source, detail::pair_count(candidates, source_clicks), source.hidden());
    if (!dcandidates.empty()) check_shape(name, "dcandidates", dcandidates, n, dt);
    if (!dusers.empty()) check_shape(name, "dusers", dusers, users.rows(), du);
    if (!dtarget_clicks.empty()) check_shape(name, "dtarget_clicks", dtarget_clicks, target_clicks.values().rows(), dt);
    if (!dsource_clicks.empty()) check_shape(name, "dsource_clicks", dsource_clicks, source_clicks.values().rows(), ds);
    check_gradient_shapes(name, *this, gradient);
    const auto mark = ws.mark();
    const MatrixView<T> dz = ws.matrix<T>(n, dy.cols());
    std::fill_n(dz.data(), n * dy.cols(), T(0));
    gates.backward(saved.z, dy, saved.gates, dz, gradient.gates, ws);
    for (Index b = 0; b < candidates.size(); ++b)
      for (Index i = candidates.begin(b); i < candidates.begin(b) + candidates.length(b); ++i) {
        if (!dcandidates.empty()) simd::add<T>(dz.row(i), dcandidates.row(i), dt);
        if (!dusers.empty()) simd::add<T>(dz.row(i) + dt, dusers.row(b), du);
      }
    target.backward(candidates, users, target_clicks, dz.middle_cols(dt + du, dt), saved.target, dcandidates, dusers,
                    dtarget_clicks, gradient.target, ws);
    source.backward(candidates, users, source_clicks, dz.middle_cols(2 * dt + du, ds), saved.source, dcandidates, dusers,
                    dsource_clicks, gradient.source, ws);
  }

 private:
  template <class Y>
  void check(const char* name, JaggedView<const T> candidates, MatrixView<const T> users, JaggedView<const T> target_clicks,
             JaggedView<const T> source_clicks, MatrixView<Y> y) const {
    check_jagged(name, "candidates", candidates, any_size, any_size);
    check_shape(name, "users", users, candidates.size(), any_size);
    check_jagged(name, "target_clicks", target_clicks, candidates.size(), candidates.cols());
    check_jagged(name, "source_clicks", source_clicks, candidates.size(), any_size);
    const Index dt = candidates.cols(), du = users.cols(), ds = source_clicks.cols();
    target.check_parameters(name, dt, du, dt);
    source.check_parameters(name, dt, du, ds);
    const Index want[] = {dt, du, dt, ds};
    check_option(name, "gates.widths", std::equal(gates.widths.begin(), gates.widths.end(), want, want + 4),
                 "those of candidate, user, target and source clicks", static_cast<double>(gates.widths.size()));
    gates.output_cols(2 * dt + du + ds);
    check_shape(name, "y", y, candidates.values().rows(), 2 * dt + du + ds);
  }
  static void join(JaggedView<const T> candidates, MatrixView<const T> users, MatrixView<T> z) {
    const Index dt = candidates.cols();
    for (Index b = 0; b < candidates.size(); ++b)
      for (Index i = candidates.begin(b); i < candidates.begin(b) + candidates.length(b); ++i) {
        std::copy_n(candidates.values().row(i), dt, z.row(i));
        std::copy_n(users.row(b), users.cols(), z.row(i) + dt);
      }
  }
};

}  // namespace RECOPS_ABI
}  // namespace recops
