/// @file   recops/models/cdm.hpp
/// @brief  CDM: a model of single items that has learned from a greedy diversifier which of a request's candidates it would pick. It
///         ranks thousands at the price of a small network, where the teacher goes over all of them for every pick.
///
///     e_i = [x_i; z_i; r_i]                        features, relevance standardised within the request, relevance as it is
///     pool = the M most relevant candidates        in training perturbed by Gumbel numbers: a sample without replacement
///     p_i, n_i = contrastive attention of e_i over the pool          what is like it there, and what is unlike it
///     logit_i = MLP [e_i; p_i; n_i; e_i ∘ p_i; e_i ∘ n_i]            serving: r_i + beta · sigmoid(logit_i), best K of all
///
/// Shapes      features [total, D], relevance and logits [total], requests divided by the features' offsets (a matrix: one request).
///             Width d = D + 2; 3 d^2 + 5 d hidden parameters.
/// Scales      Rows of length 1 (`normalize_rows`) and the relevance that the teacher sees.
/// Edge cases  Requests of 0 or 1 items. An item alone in its pool sees nothing: p = n = 0. All relevances equal: z = 0.
/// NaN         An item whose relevance or features are not finite gets the logit -infinity and is in no pool: it touches nothing else.
/// Precision   T; statistics of the relevance in double.
/// Cost        Serving: N (6 M d + 10 d hidden) flops and 2 N M exponentials, linear in N; scratch 20 N bytes and tiles of 64 items.
/// Threads     Those of the workspace; same bits for any number of them.
/// Gradient    of parameters, features and (straight through the relaxed choice) the logits of the pool; not of the relevance.
/// Reference   Contextual Distillation Model, arXiv 2406.09021 (structure); the equations are our reconstruction. The projections
///             begin at the identity: the attention then compares features by their cosine, which is what the teacher does.
#pragma once
#include <recops/attention/contrastive_attention.hpp>
#include <recops/diversity/gumbel_top_k.hpp>
#include <recops/diversity/mmr_labels.hpp>
#include <recops/models/cdm_loss.hpp>
#include <recops/nn/mlp.hpp>
#include <recops/simd/top_k.hpp>
#include <vector>

namespace recops {

/// Options of `Cdm`.
struct CdmOptions {
  Index features = 0;                ///< D, columns of the items' features
  Index pool = 64;                   ///< M, candidates of a request that serve as context for all of them
  std::vector<Index> hidden = {64};  ///< widths of the student's hidden layers
  double gumbel_temperature =
      0.5;                  ///< how far training strays from the M most relevant; in standard deviations of the pool's logits
  double relaxation = 0.5;  ///< temperature of the relaxed choice that a gradient of the pool's logits goes through
  double sharpness = 6;     ///< how strictly, at first, an item looks at what is like it; per unit of cosine
  double pull = 2;          ///< how much more, at first, it looks at the relevant; per standard deviation of relevance
};

/// Candidates of one request or of several.
template <class T>
struct CdmInput {
  JaggedView<const T> features = {};     ///< [total, D]
  VectorView<const T> relevance = {};    ///< [total]
  VectorView<const T> pool_logits = {};  ///< [total] what the pool is chosen by; empty: the relevance, standardised
};

inline namespace RECOPS_ABI {
namespace detail {

template <class T>
void check_cdm(const char* name, const CdmInput<T>& in, Index features) {
  check_jagged(name, "features", in.features, any_size, features);
  const Index total = in.features.values().rows();
  check_option(name, "features", total <= std::numeric_limits<std::int32_t>::max(), "at most 2^31 - 1 rows",
               static_cast<double>(total));
  check_size(name, "relevance", in.relevance, total);
  if (!in.pool_logits.empty()) check_size(name, "pool_logits", in.pool_logits, total);
}

/// What is known of one request's relevance: z = (r - mean) / deviation of the items that are finite.
template <class T>
struct CdmRequest {
  MatrixView<const T> features;
  VectorView<const T> relevance;
  VectorView<T> standard;  ///< [N] z, or -infinity for an item that is out
  Index valid = 0;

  CdmRequest(const CdmInput<T>& in, Index b, VectorView<T> z) : features(in.features[b]), standard(z) {
    const Index n = features.rows(), d = features.cols();
    relevance = in.relevance.segment(in.features.begin(b), n);
    double mean = 0, square = 0;
    for (Index i = 0; i < n; ++i) {
      const bool ok = std::abs(relevance[i]) <= std::numeric_limits<T>::max() &&
                      (d == 0 || simd::sum_squares(features.row(i), d) <= largest_square<T>);
      standard[i] = ok ? T(0) : -std::numeric_limits<T>::infinity();
      if (ok) mean += (static_cast<double>(relevance[i]) - mean) / static_cast<double>(++valid);
    }
    for (Index i = 0; i < n; ++i) {
      if (!is_out(i)) {
        const double r = static_cast<double>(relevance[i]) - mean;
        square += r * r;
      }
    }
    const double deviation = std::sqrt(square / static_cast<double>(std::max<Index>(valid, 1)));
    const double factor = deviation > 1e-12 * std::abs(mean) && deviation > 0 ? 1 / deviation : 0;
    for (Index i = 0; i < n; ++i)
      if (!is_out(i)) standard[i] = static_cast<T>((static_cast<double>(relevance[i]) - mean) * factor);
  }
  bool is_out(Index i) const { return standard[i] == -std::numeric_limits<T>::infinity(); }
  /// e_i = [x_i; z_i; r_i]; zeros for an item that is out.
  void row(Index i, T* e) const {
    const Index d = features.cols();
    if (is_out(i)) {
      std::fill_n(e, d + 2, T(0));
      return;
    }
    if (d > 0) std::copy_n(features.row(i), d, e);
    e[d] = standard[i];
    e[d + 1] = relevance[i];
  }
};

/// What the pool of one request is chosen by; -infinity for what cannot be chosen.
template <class T>
void cdm_pool_logits(const CdmInput<T>& in, Index b, const CdmRequest<T>& request, T* out) {
  const Index first = in.features.begin(b);
  for (Index i = 0; i < request.standard.size(); ++i) {
    const T a = in.pool_logits.empty() || request.is_out(i) ? request.standard[i] : in.pool_logits[first + i];
    out[i] = std::abs(a) <= std::numeric_limits<T>::max() ? a : -std::numeric_limits<T>::infinity();
  }
}

/// Columns d .. 3 d of [e; p; n; e ∘ p; e ∘ n] hold p and n; writes the products behind them.
template <class T>
void cdm_products(MatrixView<T> inputs, Index d) {
  for (Index i = 0; i < inputs.rows(); ++i) {
    T* const h = inputs.row(i);
    for (Index j = 0; j < d; ++j) {
      h[3 * d + j] = h[j] * h[d + j];
      h[4 * d + j] = h[j] * h[2 * d + j];
    }
  }
}

/// The places of the largest scores, but none of -infinity; returns how many.
template <class T>
Index cdm_best(VectorView<const T> scores, VectorView<std::int32_t> picks, Workspace& ws) {
  Index count = simd::top_k<T>(scores.data(), scores.size(), std::min(picks.size(), scores.size()), Order::descending, nullptr,
                               picks.data(), ws);
  while (count > 0 && !(scores[picks[count - 1]] > -std::numeric_limits<T>::infinity())) --count;  // NaN ranks behind numbers
  return count;
}

/// Logits of all requests with the most relevant as pools, in tiles of items. Of the attention only what depends on the item is left
/// for it: <Wq e + b, k_j> = <e, Wq^T k_j> + <b, k_j>, with Wq^T k_j once per request.
template <class T, class Student>
void cdm_serve(const CdmInput<T>& in, Index pool, const Linear<T>& query, const Linear<T>& key, const Linear<T>& value,
               const Student& student, VectorView<T> logits, Workspace& ws) {
  constexpr T never = -std::numeric_limits<T>::infinity();
  constexpr Index tile = contrastive_tile, chunk = 4 * tile;
  const Index d = query.weight.rows();
  for (Index b = 0; b < in.features.size(); ++b) {
    const Index first = in.features.begin(b), n = in.features.length(b);
    if (n == 0) continue;
    const auto mark = ws.mark();
    const CdmRequest<T> request(in, b, ws.vector<T>(n));
    const VectorView<T> pool_logits = ws.vector<T>(n);
    cdm_pool_logits(in, b, request, pool_logits.data());
    const VectorView<std::int32_t> picks = ws.vector<std::int32_t>(std::min(n, pool)), self = ws.vector<std::int32_t>(n);
    const Index m = cdm_best<T>(pool_logits, picks, ws);
    std::fill(self.begin(), self.end(), -1);
    const MatrixView<T> context = ws.matrix<T>(m, d), keys = ws.matrix<T>(m, d), values = ws.matrix<T>(m, d);
    for (Index j = 0; j < m; ++j) {
      self[picks[j]] = static_cast<std::int32_t>(j);
      request.row(picks[j], context.row(j));
    }
    key.forward(context, keys, ws);
    value.forward(context, values, ws);
    simd::gemm<T>(simd::plain(MatrixView<const T>(keys)), simd::plain(query.weight.view()), {}, context, ws);
    T* const bias = ws.take<T>(m);
    for (Index j = 0; j < m; ++j) bias[j] = simd::dot(keys.row(j), query.bias.data(), d);
    T* const packed_keys = ws.take<T>(simd::packed_size<T>(d, m));
    T* const packed_values = ws.take<T>(simd::packed_size<T>(m, d));
    simd::pack<T>(simd::transposed(MatrixView<const T>(context)), packed_keys);
    simd::pack<T>(simd::plain(MatrixView<const T>(values)), packed_values);
    ws.parallel_for((n + chunk - 1) / chunk, [&](Index task, Workspace& own) {
      const auto inner = own.mark();
      const MatrixView<T> s = own.matrix<T>(tile, m), up = own.matrix<T>(tile, m), down = own.matrix<T>(tile, m),
                          inputs = own.matrix<T>(tile, 5 * d);
      for (Index start = task * chunk; start < std::min(n, (task + 1) * chunk); start += tile) {
        const Index rows = std::min(tile, n - start);
        const MatrixView<T> h = inputs.middle_rows(0, rows);
        const auto part = [rows](MatrixView<T> x) { return x.middle_rows(0, rows); };
        for (Index i = 0; i < rows; ++i) request.row(start + i, h.row(i));
        simd::gemm_packed<T>(simd::plain(MatrixView<const T>(h.middle_cols(0, d))), packed_keys, m, {.bias = bias}, part(s), own);
        contrast<T>(
            part(s), [&](Index i) { return Index{self[start + i]}; }, nullptr, part(up), part(down), nullptr);
        simd::gemm_packed<T>(simd::plain(MatrixView<const T>(part(up))), packed_values, d, {}, h.middle_cols(d, d), own);
        simd::gemm_packed<T>(simd::plain(MatrixView<const T>(part(down))), packed_values, d, {}, h.middle_cols(2 * d, d), own);
        cdm_products(h, d);
        student.forward(h, MatrixView<T>(logits.data() + first + start, rows, 1), own);
        for (Index i = 0; i < rows; ++i)
          if (request.is_out(start + i)) logits[first + start + i] = never;
      }
    });
  }
}

}  // namespace detail

/// The model with its parameters.
template <class T>
struct Cdm {
  CdmOptions options;
  Linear<T> query;  ///< [d, d] and bias
  Linear<T> key;    ///< [d, d]
  Linear<T> value;  ///< [d, d]
  Mlp<T> student;   ///< 5 d -> hidden -> 1

  Cdm() = default;
  /// Throws `Error` for options out of range.
  Cdm(const CdmOptions& o, Random& random) : options(o) {
    const auto need = [](bool ok, const char* field, const char* expected, double actual) {
      check_option("Cdm", field, ok, expected, actual);
    };
    need(o.features >= 0, "features", "features >= 0", static_cast<double>(o.features));
    need(o.pool >= 1 && o.pool < Index{1} << 31, "pool", "1 to 2^31 - 1 candidates", static_cast<double>(o.pool));
    need(o.gumbel_temperature >= 0, "gumbel_temperature", "0 or more", o.gumbel_temperature);
    need(o.relaxation > 0, "relaxation", "more than 0", o.relaxation);
    need(std::isfinite(o.sharpness), "sharpness", "a number", o.sharpness);
    need(std::isfinite(o.pull), "pull", "a number", o.pull);
    for (const Index h : o.hidden) need(h >= 1, "hidden", "widths of 1 or more", static_cast<double>(h));
    const Index d = width();
    query = near_identity(o.sharpness, random);
    std::fill_n(query.weight.row(o.features), 2 * d, T(0));
    query.bias.resize(d);
    query.bias.fill(T(0));
    query.bias[o.features] = static_cast<T>(o.pull);
    key = near_identity(1, random);
    value = near_identity(1, random);
    std::vector<Index> widths{5 * d};
    widths.insert(widths.end(), o.hidden.begin(), o.hidden.end());
    widths.push_back(1);
    student = Mlp<T>(VectorView<const Index>(widths.data(), static_cast<Index>(widths.size())), {}, random);
  }

  static constexpr auto fields() {
    return std::tuple{layer("query", &Cdm::query), layer("key", &Cdm::key), layer("value", &Cdm::value),
                      layer("student", &Cdm::student)};
  }
  /// d = D + 2
  Index width() const { return options.features + 2; }

  /// Throws `Error` unless the layers are of the shapes above: they and the options are open to everyone.
  void check_parameters(const char* name) const {
    const Index d = width();
    check_option(name, "features", options.features >= 0, "features >= 0", static_cast<double>(options.features));
    check_option(name, "pool", options.pool >= 1 && options.pool < Index{1} << 31, "1 to 2^31 - 1 candidates",
                 static_cast<double>(options.pool));
    check_shape(name, "query.weight", query.weight.view(), d, d);
    check_size(name, "query.bias", VectorView<const T>(query.bias), d);
    check_shape(name, "key.weight", key.weight.view(), d, d);
    check_shape(name, "value.weight", value.weight.view(), d, d);
    check_option(name, "student", student.output_cols(5 * d) == 1, "one output", static_cast<double>(student.output_cols(5 * d)));
  }

  /// What backward needs, reused step after step.
  struct Saved {
    Matrix<T> inputs;                          ///< [total, 5 d]
    Matrix<T> context, queries, keys, values;  ///< e, Wk e and Wv e of the pools; Wq e of all
    Vector<std::int32_t> pool, self;           ///< rows of the pools' items; place of each item in its pool, or -1
    std::vector<std::int64_t> pool_offsets;    ///< [B + 1]
    Vector<T> standard, gumbel_keys;           ///< [total]
    typename Mlp<T>::Saved student;
  };

  /// Logits [total] in serving mode: the pool is the M most relevant. `freeze` gives the form that is made for it.
  void forward(const CdmInput<T>& in, VectorView<T> logits, Workspace& ws) const {
    check(in, logits);
    detail::cdm_serve<T>(in, options.pool, query, key, value, student, logits, ws);
  }

  /// The same in training mode: pools are drawn anew in every step.
  void forward(const CdmInput<T>& in, VectorView<T> logits, Saved& saved, const Step& step, Workspace& ws) const {
    check(in, logits);
    const Index total = in.relevance.size(), requests = in.features.size(), d = width();
    saved.inputs.resize(total, 5 * d);
    saved.standard.resize(total);
    saved.gumbel_keys.resize(total);
    saved.self.resize(total);
    saved.self.fill(-1);
    saved.pool.resize(std::min(total, requests * options.pool));
    saved.pool_offsets.resize(static_cast<std::size_t>(requests) + 1);
    saved.context.resize(saved.pool.size(), d);
    Index pooled = 0;
    for (Index b = 0; b < requests; ++b) {
      const auto mark = ws.mark();
      const Index first = in.features.begin(b), n = in.features.length(b);
      const detail::CdmRequest<T> request(in, b, VectorView<T>(saved.standard).segment(first, n));
      for (Index i = 0; i < n; ++i) request.row(i, saved.inputs.row(first + i));
      const VectorView<T> pool_logits = ws.vector<T>(n);
      detail::cdm_pool_logits(in, b, request, pool_logits.data());
      const VectorView<std::int32_t> picks = ws.vector<std::int32_t>(std::min(n, options.pool));
      RandomRow at = step.random_row(RandomPurpose::gumbel);
      at.row = static_cast<std::uint64_t>(b);
      const Index count = choose(pool_logits, at, VectorView<T>(saved.gumbel_keys).segment(first, n), picks, ws);
      saved.pool_offsets[static_cast<std::size_t>(b)] = pooled;
      for (Index j = 0; j < count; ++j, ++pooled) {
        saved.pool[pooled] = static_cast<std::int32_t>(first) + picks[j];
        saved.self[first + picks[j]] = static_cast<std::int32_t>(j);
        std::copy_n(saved.inputs.row(first + picks[j]), d, saved.context.row(pooled));
      }
    }
    saved.pool_offsets[static_cast<std::size_t>(requests)] = pooled;
    saved.pool.resize(pooled);
    saved.context.resize(pooled, d);
    saved.queries.resize(total, d);
    saved.keys.resize(pooled, d);
    saved.values.resize(pooled, d);
    const MatrixView<T> h = saved.inputs;
    query.forward(h.middle_cols(0, d), saved.queries, ws);
    key.forward(saved.context, saved.keys, ws);
    value.forward(saved.context, saved.values, ws);
    contrastive_attention<T>(attention_input(in, saved), {}, h.middle_cols(d, d), h.middle_cols(2 * d, d), {}, ws);
    detail::cdm_products(h, d);
    student.forward(h, MatrixView<T>(logits.data(), total, 1), saved.student, step.child(1), ws);
    for (Index i = 0; i < total; ++i)
      if (saved.standard[i] == never) logits[i] = never;
  }

  /// Adds to `gradient`, to dfeatures [total, D] and to dpool_logits [total] (empty: not wanted).
  void backward(const CdmInput<T>& in, VectorView<const T> dlogits, const Saved& saved, MatrixView<T> dfeatures,
                VectorView<T> dpool_logits, Cdm& gradient, Workspace& ws) const {
    constexpr const char* name = "Cdm::backward";
    check_parameters(name);
    detail::check_cdm(name, in, options.features);
    const Index total = in.relevance.size(), requests = in.features.size(), d = width(), pooled = saved.pool.size();
    check_size(name, "dlogits", dlogits, total);
    check_shape(name, "saved", saved.inputs.view(), total, 5 * d);
    check_option(name, "saved", static_cast<Index>(saved.pool_offsets.size()) == requests + 1, "what forward saved",
                 static_cast<double>(saved.pool_offsets.size()));
    if (!dfeatures.empty()) check_shape(name, "dfeatures", dfeatures, total, options.features);
    if (!dpool_logits.empty()) check_size(name, "dpool_logits", dpool_logits, total);
    check_gradient_shapes(name, *this, gradient);
    const auto mark = ws.mark();
    const auto zeros = [&](Index rows, Index cols) {
      const MatrixView<T> m = ws.matrix<T>(rows, cols);
      std::fill_n(m.data(), rows * cols, T(0));
      return m;
    };
    const MatrixView<T> dz = ws.matrix<T>(total, 1), dh = zeros(total, 5 * d);
    for (Index i = 0; i < total; ++i) dz(i, 0) = saved.standard[i] == never ? T(0) : dlogits[i];
    student.backward(saved.inputs, dz, saved.student, dh, gradient.student, ws);
    for (Index i = 0; i < total; ++i) {
      const T* const h = saved.inputs.row(i);
      T* const g = dh.row(i);
      for (Index j = 0; j < d; ++j) {
        const T up = g[3 * d + j], down = g[4 * d + j];
        g[d + j] += up * h[j];
        g[2 * d + j] += down * h[j];
        g[j] += up * h[d + j] + down * h[2 * d + j];
      }
    }
    const MatrixView<T> dq = zeros(total, d), dk = zeros(pooled, d), dv = zeros(pooled, d);
    const VectorView<T> dw = dpool_logits.empty() ? VectorView<T>() : VectorView<T>(zeros(1, pooled).data(), pooled);
    contrastive_attention_backward<T>(attention_input(in, saved), {}, dh.middle_cols(d, d), dh.middle_cols(2 * d, d),
                                      {.queries = dq, .keys = dk, .values = dv, .weights = dw}, ws);
    const bool wanted = !dfeatures.empty();
    const MatrixView<T> de = wanted ? dh.middle_cols(0, d) : MatrixView<T>(),
                        dcontext = wanted ? zeros(pooled, d) : MatrixView<T>();
    query.backward(saved.inputs.view().middle_cols(0, d), dq, {}, de, gradient.query, ws);
    key.backward(saved.context, dk, {}, dcontext, gradient.key, ws);
    value.backward(saved.context, dv, {}, dcontext, gradient.value, ws);
    if (wanted) {
      for (Index j = 0; j < pooled; ++j) simd::add(dcontext.row(j), de.row(saved.pool[j]), options.features);
      for (Index i = 0; i < total; ++i)
        if (saved.standard[i] != never) simd::add(de.row(i), dfeatures.row(i), options.features);
    }
    if (!dw.empty()) pool_backward(in, saved, dw, dpool_logits, ws);
  }

  /// Mean loss against the teacher's labels [total] (`mmr_labels`), adding its gradient; what a training loop calls.
  double value_and_grad(const CdmInput<T>& in, VectorView<const T> labels, const CdmLossOptions& loss, Cdm& gradient,
                        Saved& saved, const Step& step, Workspace& ws) const {
    check_size("Cdm::value_and_grad", "labels", labels, in.relevance.size());
    const auto mark = ws.mark();
    const Index total = in.relevance.size();
    const VectorView<T> logits = ws.vector<T>(total), dlogits = ws.vector<T>(total);
    std::fill(dlogits.begin(), dlogits.end(), T(0));
    forward(in, logits, saved, step, ws);
    const double mean = cdm_loss<T>(logits, labels, in.features.offsets(), loss, dlogits);
    backward(in, dlogits, saved, {}, {}, gradient, ws);
    return mean;
  }

 private:
  static constexpr T never = -std::numeric_limits<T>::infinity();

  void check(const CdmInput<T>& in, VectorView<T> logits) const {
    check_parameters("Cdm");
    detail::check_cdm("Cdm", in, options.features);
    check_size("Cdm", "logits", logits, in.relevance.size());
  }
  Linear<T> near_identity(double scale, Random& random) const {
    const Index d = width();
    Linear<T> layer;
    layer.weight.resize(d, d);
    for (Index i = 0; i < d; ++i)
      for (Index j = 0; j < d; ++j) layer.weight(i, j) = static_cast<T>((i == j ? scale : 0) + 0.02 * random.normal());
    return layer;
  }
  Index choose(VectorView<const T> pool_logits, const RandomRow& at, VectorView<T> keys, VectorView<std::int32_t> picks,
               Workspace& ws) const {
    if (options.gumbel_temperature > 0) return gumbel_top_k<T>(pool_logits, options.gumbel_temperature, at, keys, picks, ws);
    std::copy(pool_logits.begin(), pool_logits.end(), keys.begin());
    return detail::cdm_best(pool_logits, picks, ws);
  }

  ContrastiveInput<T> attention_input(const CdmInput<T>& in, const Saved& saved) const {
    const IndexView offsets(saved.pool_offsets);
    return {.queries = in.features.with_values(MatrixView<const T>(saved.queries)),
            .keys = JaggedView<const T>(saved.keys.view(), offsets),
            .values = JaggedView<const T>(saved.values.view(), offsets),
            .self = IndexView(saved.self)};
  }
  /// From the weights of the chosen to the logits of all, through the relaxed choice.
  void pool_backward(const CdmInput<T>& in, const Saved& saved, VectorView<const T> dw, VectorView<T> dpool_logits,
                     Workspace& ws) const {
    for (Index b = 0; b < in.features.size(); ++b) {
      const Index first = in.features.begin(b), n = in.features.length(b);
      const auto start = static_cast<Index>(saved.pool_offsets[static_cast<std::size_t>(b)]),
                 count = static_cast<Index>(saved.pool_offsets[static_cast<std::size_t>(b) + 1]) - start;
      if (count == 0) continue;
      const auto mark = ws.mark();
      const MatrixView<T> p = ws.matrix<T>(count, n);
      const VectorView<T> w = ws.vector<T>(n), dweights = ws.vector<T>(n), dkeys = ws.vector<T>(n);
      std::fill(dweights.begin(), dweights.end(), T(0));
      std::fill(dkeys.begin(), dkeys.end(), T(0));
      for (Index j = 0; j < count; ++j) dweights[saved.pool[start + j] - first] = dw[start + j];
      relaxed_top_k<T>(VectorView<const T>(saved.gumbel_keys).segment(first, n), options.relaxation, p, w, ws);
      relaxed_top_k_backward<T>(p, options.relaxation, dweights, dkeys, ws);
      const double factor = options.gumbel_temperature > 0 ? 1 / options.gumbel_temperature : 1;
      simd::axpy(static_cast<T>(factor), dkeys.data(), dpool_logits.data() + first, n);
    }
  }
};

/// Serving form of Cdm; weights of the student in the chosen format. Immutable; threads may share it.
template <class T, class S = T>
class FrozenCdm {
 public:
  explicit FrozenCdm(const Cdm<T>& model)
      : features_(model.options.features),
        pool_(model.options.pool),
        query_(model.query),
        key_(model.key),
        value_(model.value),
        student_(freeze(model.student, Weights<S>())) {
    model.check_parameters("freeze(Cdm)");
  }
  /// D
  Index features() const { return features_; }

  /// Logits [total] of one request or of several, as `Cdm::forward`.
  void forward(const CdmInput<T>& in, VectorView<T> logits, Workspace& ws) const {
    detail::check_cdm("FrozenCdm", in, features_);
    check_size("FrozenCdm", "logits", logits, in.relevance.size());
    detail::cdm_serve<T>(in, pool_, query_, key_, value_, student_, logits, ws);
  }
  /// Ranks one request: the k = picks.size() best by `cdm_fuse`, best first, and their scores [k] (or empty). An item that is not finite
  /// is never picked. Unused places get index -1 and score -infinity.
  Selection rank(VectorView<const T> relevance, MatrixView<const T> features, const CdmFusion& fusion,
                 VectorView<std::int32_t> picks, VectorView<T> scores, Workspace& ws) const {
    constexpr const char* name = "FrozenCdm::rank";
    const CdmInput<T> in{.features = features, .relevance = relevance};
    detail::check_cdm(name, in, features_);
    check_size(name, "picks", picks, any_size);
    if (!scores.empty()) check_size(name, "scores", scores, picks.size());
    const auto mark = ws.mark();
    const VectorView<T> logits = ws.vector<T>(relevance.size()), fused = ws.vector<T>(relevance.size());
    detail::cdm_serve<T>(in, pool_, query_, key_, value_, student_, logits, ws);
    cdm_fuse<T>(relevance, logits, fusion, fused);
    for (Index i = 0; i < fused.size(); ++i) {  // without the student's logit, beta 0, its features do not show in the score
      const bool out = logits[i] == -std::numeric_limits<T>::infinity() || !(std::abs(fused[i]) <= std::numeric_limits<T>::max());
      if (out) fused[i] = -std::numeric_limits<T>::infinity();
    }
    Selection done;
    done.count = detail::cdm_best<T>(fused, picks, ws);
    done.status = done.count == picks.size() ? SelectionStatus::ok : SelectionStatus::exhausted;
    for (Index t = 0; t < picks.size(); ++t) {
      if (t >= done.count) picks[t] = -1;
      if (!scores.empty()) scores[t] = t < done.count ? fused[picks[t]] : -std::numeric_limits<T>::infinity();
    }
    return done;
  }

 private:
  Index features_, pool_;
  Linear<T> query_, key_, value_;
  decltype(freeze(std::declval<const Mlp<T>&>(), Weights<S>())) student_;
};
template <class T, class S = T>
FrozenCdm<T, S> freeze(const Cdm<T>& model, Weights<S> = {}) {
  return FrozenCdm<T, S>(model);
}

}  // namespace RECOPS_ABI
}  // namespace recops
