/// @file   recops/attention/hstu.hpp
/// @brief  The layer of HSTU: pointwise attention whose output is gated by the input, in place of attention and feed-forward network.
///
///     [u, v, q, k] = silu(norm(x) W^T + b)      y = x + dropout(u * norm(attention(q, k, v))) Wo^T + bo
///
/// Shapes      x, y [total, D], sequences of at most `max_length` rows   u, v [total, H dv]   q, k [total, H dk]
/// Serving     HstuState keeps the keys and values of a user: `extend` adds behaviours, `score` looks at candidates, each in O(L) instead
///             of O(L^2), with what a full forward of the longer sequence would give for the same `query_times`: without them, in layers
///             with time buckets, the last new behaviour is asked at its own time, as nothing is known of the next, and a candidate at
///             its own.  One state per layer and user.
/// Edge cases  empty users and batches are fine; candidates (`targets`) see the history and themselves.
/// NaN         stays in its sequence, and with causal in its row and the later ones.
/// Precision   T; incremental and full agree to rounding.   Same bits for any number of threads.
/// Cost        per row 4 D H (dk + dv) + 2 D H dv flops of products, and those of hstu_attention: nothing [L, L] is formed.
/// Errors      Error if shapes, times or options disagree; outputs, gradients and state untouched.
/// Reference   Zhai et al., arXiv 2402.17152, section 3 and its published code; defaults are those of its research part.
#pragma once
#include <recops/attention/hstu_attention.hpp>
#include <recops/nn/dropout.hpp>
#include <recops/nn/layer_norm.hpp>
#include <recops/nn/linear.hpp>

namespace recops {

/// Options of `Hstu`.
struct HstuOptions {
  Index heads = 1;
  Index key_width = 0, value_width = 0;  ///< of one head; 0: the layer's width divided by the heads
  Index max_length = 0;                  ///< of any sequence, 1 or more: divides the sums of attention
  bool position_bias = true;             ///< a learned term for each distance
  Index time_buckets = 0;                ///< learned terms for gaps of time, 129 in the authors' code; 0: none
  double scale = 1;                      ///< of q . k
  bool causal = true;
  Index window = 0;         ///< w > 0: position i sees j with i - j < w
  bool bias = false;        ///< of the first projection (the second has one)
  bool affine = false;      ///< weights and biases in the norms
  bool group_norm = false;  ///< the second norm works head by head
  bool concat = false;      ///< the second projection reads [u, norm(attention), u * norm(attention)] instead of the last alone
  double dropout = 0;       ///< in training, of what the second projection reads
  double epsilon = 1e-6;    ///< of the norms
};

/// What a layer needs to know of a batch besides its rows; each may be empty. See `HstuBias` and `HstuAttentionOptions`.
struct HstuBatch {
  IndexView times = {};        ///< [total]: needed where the layer has time buckets
  IndexView query_times = {};  ///< [total]
  IndexView targets = {};      ///< [B]
};

inline namespace RECOPS_ABI {

/// Keys, values and times of one user's behaviours in one layer. One state belongs to one call at a time.
template <class T>
struct HstuState {
  Matrix<T> keys, values;      ///< [max_length, H dk], [max_length, H dv]; the first `length` rows count
  Vector<std::int64_t> times;  ///< [max_length], or empty in a layer without time buckets
  Index length = 0;            ///< behaviours so far; 0 to begin anew
};

namespace detail {

/// The columns of u, v, q, k in the product of the first projection.
template <class M>
struct HstuColumns {
  M u, v, q, k;
  HstuColumns(M all, Index value_cols, Index key_cols)
      : u(all.middle_cols(0, value_cols)),
        v(all.middle_cols(value_cols, value_cols)),
        q(all.middle_cols(2 * value_cols, key_cols)),
        k(all.middle_cols(2 * value_cols + key_cols, key_cols)) {}
};

/// gated = u * a, or [u, a, u * a].
template <class T>
void hstu_gate(MatrixView<const T> u, MatrixView<const T> a, bool concat, MatrixView<T> gated) {
  const Index n = u.cols();
  for (Index r = 0; r < u.rows(); ++r) {
    T* to = gated.row(r);
    const T *const pu = u.row(r), *const pa = a.row(r);
    if (concat) {
      std::copy_n(pu, n, to);
      std::copy_n(pa, n, to + n);
      to += 2 * n;
    }
    simd::for_each_vector<T, simd::DefaultArch>(
        n, [=](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE { store(to + i, load(pu + i) * load(pa + i)); });
  }
}

/// What a layer and its serving form share: options, norms and tables of biases, and how rows pass through them.
template <class T>
struct HstuCore {
  LayerNorm<T> input_norm, output_norm;
  Vector<T> pos_w;  ///< [2 max_length - 1] or empty
  Vector<T> ts_w;   ///< [time_buckets] or empty
  HstuOptions options;

  static constexpr auto fields() {
    return std::tuple{layer("input_norm", &HstuCore::input_norm), layer("output_norm", &HstuCore::output_norm),
                      parameter("pos_w", &HstuCore::pos_w), parameter("ts_w", &HstuCore::ts_w)};
  }
  Index key_cols() const { return options.heads * options.key_width; }
  Index value_cols() const { return options.heads * options.value_width; }
  Index projected_cols() const { return 2 * (key_cols() + value_cols()); }
  Index gated_cols() const { return (options.concat ? 3 : 1) * value_cols(); }
  HstuAttentionOptions attention(IndexView targets) const {
    return {.heads = options.heads,
            .max_length = options.max_length,
            .scale = options.scale,
            .causal = options.causal,
            .window = options.window,
            .targets = targets};
  }
  HstuBias<T> biases(IndexView times, IndexView query_times) const { return {pos_w, ts_w, times, query_times}; }

  /// Throws before anything is written: what `hstu_attention` would find only when the projections are made.
  void check_batch(const char* name, JaggedView<const T> x, const HstuBatch& batch, MatrixView<const T> y, Index width) const {
    check_jagged(name, "x", x, any_size, width);
    check_shape(name, "y", y, x.values().rows(), width);
    const auto part = [&](Index cols) {  // shapes are all that is looked at
      return x.with_values(MatrixView<const T>(x.values().data(), x.values().rows(), cols, std::max(cols, x.values().stride())));
    };
    check_hstu<T>(name, part(key_cols()), part(key_cols()), part(value_cols()), biases(batch.times, batch.query_times),
                  attention(batch.targets));
  }

  /// Inference on rows x: `in` and `out` are the projections, `attend(q, k, v, attended)` is where sequences come in.
  template <class In, class Out, class Attend>
  void serve(MatrixView<const T> x, MatrixView<T> y, Workspace& ws, In&& in, Out&& out, Attend&& attend) const {
    const auto mark = ws.mark();
    const Index n = x.rows();
    const MatrixView<T> a = ws.matrix<T>(n, projected_cols()), attended = ws.matrix<T>(n, value_cols());
    {
      const auto inner = ws.mark();
      const MatrixView<T> normed = ws.matrix<T>(n, x.cols());
      input_norm.forward(x, normed, ws);
      in(MatrixView<const T>(normed), a);
    }
    const HstuColumns<MatrixView<const T>> of(a, value_cols(), key_cols());
    attend(of.q, of.k, of.v, attended);
    output_norm.forward(attended, attended, ws);
    const MatrixView<T> gated = options.concat ? ws.matrix<T>(n, gated_cols()) : attended;
    hstu_gate<T>(of.u, attended, options.concat, gated);
    out(MatrixView<const T>(gated), y);
    for (Index r = 0; r < n; ++r) simd::add(x.row(r), y.row(r), y.cols());
  }

  template <class In, class Out>
  void forward(const char* name, JaggedView<const T> x, const HstuBatch& batch, MatrixView<T> y, Workspace& ws, Index width,
               In&& in, Out&& out) const {
    check_batch(name, x, batch, y, width);
    serve(x.values(), y, ws, in, out,
          [&](MatrixView<const T> q, MatrixView<const T> k, MatrixView<const T> v, MatrixView<T> attended) {
            hstu_attention<T>(x.with_values(q), x.with_values(k), x.with_values(v), biases(batch.times, batch.query_times),
                              attention(batch.targets), attended, ws);
          });
  }

  /// New rows behind those of `state`, as behaviours or as candidates.
  template <class In, class Out>
  void step(const char* name, MatrixView<const T> x, IndexView times, IndexView query_times, bool candidates, HstuState<T>& state,
            MatrixView<T> y, Workspace& ws, Index width, In&& in, Out&& out) const {
    const Index n = x.rows(), all = state.length + n;
    check_option(name, "options", options.causal, "a causal layer", 0);
    check_option(name, "state.length", state.length >= 0, "0 behaviours or more", static_cast<double>(state.length));
    check_shape(name, "x", x, any_size, width);
    check_shape(name, "y", y, n, width);
    check_shape(name, "state.keys", state.keys.view(), options.max_length, key_cols());
    check_shape(name, "state.values", state.values.view(), options.max_length, value_cols());
    check_option(name, "x", all <= options.max_length, "at most max_length rows with those of the state",
                 static_cast<double>(all));
    if (!ts_w.empty()) {
      check_size(name, "state.times", VectorView<const std::int64_t>(state.times), options.max_length);
      check_not_null(name, "times", times);
      check_not_null(name, "query_times", query_times);
      if (times.size() != n) fail_size(name, "times", n, times.size(), false);
      if (!query_times.empty() && query_times.size() != n) fail_size(name, "query_times", n, query_times.size(), false);
      for (Index i = 0; i < n; ++i) state.times[state.length + i] = times[i];
    }
    if (candidates && query_times.empty()) query_times = times;  // each is the last one, not what comes before the next candidate
    const std::int64_t target[1] = {n};
    serve(x, y, ws, in, out, [&](MatrixView<const T> q, MatrixView<const T> k, MatrixView<const T> v, MatrixView<T> attended) {
      for (Index i = 0; i < n; ++i) {
        std::copy_n(k.row(i), k.cols(), state.keys.row(state.length + i));
        std::copy_n(v.row(i), v.cols(), state.values.row(state.length + i));
      }
      const IndexView seen = ts_w.empty() ? IndexView() : IndexView(state.times.data(), all);
      hstu_attention<T>(q, state.keys.view().middle_rows(0, all), state.values.view().middle_rows(0, all),
                        biases(seen, query_times), attention(candidates ? IndexView(target, 1) : IndexView()), attended, ws);
    });
    if (!candidates) state.length = all;
  }

  HstuState<T> make_state() const {
    HstuState<T> state;
    state.keys.resize(options.max_length, key_cols());
    state.values.resize(options.max_length, value_cols());
    state.times.resize(ts_w.empty() ? 0 : options.max_length);
    return state;
  }
};

}  // namespace detail

/// A sequence layer `[total, D]` to `[total, D]`. The authors' `_uvqk` is `uvqk.weight` transposed; rows in the order u, v, q, k.
template <class T>
struct Hstu {
  Linear<T> uvqk;  ///< [2 H (dv + dk), D]
  Linear<T> o;     ///< [D, H dv], or [D, 3 H dv] with `concat`
  detail::HstuCore<T> core;

  Hstu() = default;
  /// Throws `Error` for options out of range. Initialised as the authors' code: normal(0.02), Xavier for `o`.
  Hstu(Index width, HstuOptions opt, Random& random) {
    constexpr const char* name = "Hstu";
    const bool divides = opt.heads >= 1 && width >= 1 && (width % opt.heads == 0 || (opt.key_width > 0 && opt.value_width > 0));
    check_option(name, "heads", divides, "heads >= 1 that divide the width, unless the widths of a head are given",
                 static_cast<double>(opt.heads));
    check_option(name, "key_width", opt.key_width >= 0, "key_width >= 0", static_cast<double>(opt.key_width));
    check_option(name, "value_width", opt.value_width >= 0, "value_width >= 0", static_cast<double>(opt.value_width));
    check_option(name, "max_length", opt.max_length >= 1, "max_length >= 1", static_cast<double>(opt.max_length));
    check_option(name, "time_buckets", 0 <= opt.time_buckets && opt.time_buckets <= log_bucket_count, "0 to 148 buckets",
                 static_cast<double>(opt.time_buckets));
    check_option(name, "dropout", 0 <= opt.dropout && opt.dropout < 1, "0 <= dropout < 1", opt.dropout);
    if (opt.key_width == 0) opt.key_width = width / opt.heads;
    if (opt.value_width == 0) opt.value_width = width / opt.heads;
    core.options = opt;
    const auto normal = [&](auto& leaf) {
      for (T& w : leaf_values(leaf)) w = static_cast<T>(0.02 * random.normal());
    };
    uvqk.weight.resize(core.projected_cols(), width);
    uvqk.bias = Vector<T>(opt.bias ? core.projected_cols() : 0, T(0));
    normal(uvqk.weight);
    o = Linear<T>(core.gated_cols(), width, random);
    const double bound = std::sqrt(6.0 / static_cast<double>(core.gated_cols() + width));
    for (T& w : leaf_values(o.weight)) w = static_cast<T>(random.uniform(-bound, bound));
    core.input_norm = LayerNorm<T>(opt.affine ? width : 0, {.epsilon = opt.epsilon});
    core.output_norm =
        LayerNorm<T>(opt.affine ? core.value_cols() : 0, {.epsilon = opt.epsilon, .groups = opt.group_norm ? opt.heads : 1});
    core.pos_w.resize(opt.position_bias ? 2 * opt.max_length - 1 : 0);
    core.ts_w.resize(opt.time_buckets);
    normal(core.pos_w);
    normal(core.ts_w);
  }

  static constexpr auto fields() { return std::tuple{layer("uvqk", &Hstu::uvqk), layer("o", &Hstu::o), layer("", &Hstu::core)}; }
  const HstuOptions& options() const { return core.options; }
  Index width() const { return o.weight.rows(); }
  /// D; throws `Error` unless the input has D columns and the parameters, which may have been loaded, fit each other.
  Index output_cols(Index input_cols) const {
    constexpr const char* name = "Hstu";
    check_option(name, "input columns", input_cols == width(), "as many as the layer's width", static_cast<double>(input_cols));
    check_shape(name, "uvqk.weight", uvqk.weight.view(), core.projected_cols(), width());
    if (!uvqk.bias.empty()) check_size(name, "uvqk.bias", VectorView<const T>(uvqk.bias), core.projected_cols());
    check_shape(name, "o.weight", o.weight.view(), width(), core.gated_cols());
    if (!o.bias.empty()) check_size(name, "o.bias", VectorView<const T>(o.bias), width());
    return width();
  }

  /// What backward needs, reused step after step.
  struct Saved {
    typename LayerNorm<T>::Saved input_norm, output_norm;
    Matrix<T> normed, z, a;               ///< norm(x); the projections before and after silu
    Matrix<T> attended, normed_attended;  ///< [total, H dv]
    Matrix<T> gated;                      ///< what the second projection read, after dropout
    typename Dropout<T>::Saved dropout;
  };

  void forward(JaggedView<const T> x, const HstuBatch& batch, MatrixView<T> y, Workspace& ws) const {
    core.forward("Hstu", x, batch, y, ws, output_cols(width()), project_in(ws), project_out(ws));
  }
  void forward(JaggedView<const T> x, const HstuBatch& batch, MatrixView<T> y, Saved& saved, const Step& step,
               Workspace& ws) const {
    core.check_batch("Hstu", x, batch, y, output_cols(width()));
    const MatrixView<const T> rows = x.values();
    const Index n = rows.rows(), values = core.value_cols();
    saved.normed.resize(n, rows.cols());
    for (Matrix<T>* m : {&saved.z, &saved.a}) m->resize(n, core.projected_cols());
    for (Matrix<T>* m : {&saved.attended, &saved.normed_attended}) m->resize(n, values);
    saved.gated.resize(n, core.gated_cols());
    core.input_norm.forward(rows, saved.normed, saved.input_norm, step, ws);
    uvqk.forward(saved.normed, saved.z, ws);
    for (Index r = 0; r < n; ++r) simd::silu<T>(saved.z.row(r), saved.a.row(r), saved.z.cols());
    const detail::HstuColumns<MatrixView<const T>> of(saved.a.view(), values, core.key_cols());
    hstu_attention<T>(x.with_values(of.q), x.with_values(of.k), x.with_values(of.v), core.biases(batch.times, batch.query_times),
                      core.attention(batch.targets), saved.attended, ws);
    core.output_norm.forward(saved.attended, saved.normed_attended, saved.output_norm, step, ws);
    detail::hstu_gate<T>(of.u, saved.normed_attended, core.options.concat, saved.gated);
    if (core.options.dropout > 0)
      Dropout<T>(core.options.dropout).forward(saved.gated, saved.gated, saved.dropout, step.child(0), ws);
    o.forward(saved.gated, y, ws);
    for (Index r = 0; r < n; ++r) simd::add(rows.row(r), y.row(r), y.cols());
  }
  /// Adds to dx (unless empty) and to `gradient`.
  void backward(JaggedView<const T> x, const HstuBatch& batch, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx,
                Hstu& gradient, Workspace& ws) const {
    constexpr const char* name = "Hstu::backward";
    core.check_batch(name, x, batch, dy, output_cols(width()));
    const Index n = dy.rows(), values = core.value_cols();
    check_shape(name, "saved", saved.a.view(), n, core.projected_cols());
    check_shape(name, "saved", saved.gated.view(), n, core.gated_cols());
    check_shape(name, "saved", saved.attended.view(), n, values);
    if (!dx.empty()) check_shape(name, "dx", dx, n, width());
    check_gradient_shapes(name, *this, gradient);
    const auto mark = ws.mark();
    const auto zeros = [&](Index cols) {
      const MatrixView<T> m = ws.matrix<T>(n, cols);
      std::fill_n(m.data(), n * cols, T(0));
      return m;
    };
    MatrixView<T> dgated = ws.matrix<T>(n, core.gated_cols());
    detail::linear_backward<T>(saved.gated, o.weight, dy, dgated, true, gradient.o.weight, gradient.o.bias, ws);
    if (core.options.dropout > 0) {
      const MatrixView<T> kept = zeros(dgated.cols());
      Dropout<T> none;
      Dropout<T>(core.options.dropout).backward(dgated, dgated, saved.dropout, kept, none, ws);
      dgated = kept;
    }
    const detail::HstuColumns<MatrixView<const T>> of(saved.a.view(), values, core.key_cols());
    const MatrixView<T> dz = zeros(core.projected_cols()), dnormed = ws.matrix<T>(n, values), dattended = zeros(values);
    const detail::HstuColumns<MatrixView<T>> d(dz, values, core.key_cols());
    const Index at = core.gated_cols() - values;  // where u * a begins
    for (Index r = 0; r < n; ++r) {
      const T *const g = dgated.row(r), *const pu = of.u.row(r), *const pa = saved.normed_attended.row(r);
      T *const du = d.u.row(r), *const da = dnormed.row(r);
      simd::for_each_vector<T, simd::DefaultArch>(values, [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
        const auto both = load(g + at + i);
        auto to_u = both * load(pa + i), to_a = both * load(pu + i);
        if (at > 0) {
          to_u = to_u + load(g + i);
          to_a = to_a + load(g + values + i);
        }
        store(du + i, to_u);
        store(da + i, to_a);
      });
    }
    core.output_norm.backward(saved.attended, dnormed, saved.output_norm, dattended, gradient.core.output_norm, ws);
    hstu_attention_backward<T>(x.with_values(of.q), x.with_values(of.k), x.with_values(of.v),
                               core.biases(batch.times, batch.query_times), core.attention(batch.targets), dattended, d.q, d.k,
                               d.v, {gradient.core.pos_w, gradient.core.ts_w}, ws);
    for (Index r = 0; r < n; ++r)
      simd::activate_backward(Activation::silu, saved.z.row(r), saved.a.row(r), dz.row(r), dz.row(r), dz.cols());
    const MatrixView<T> dinput = zeros(width());
    uvqk.backward(saved.normed, dz, {}, dinput, gradient.uvqk, ws);
    core.input_norm.backward(x.values(), dinput, saved.input_norm, dx, gradient.core.input_norm, ws);
    for (Index r = 0; r < dx.rows(); ++r) simd::add(dy.row(r), dx.row(r), dx.cols());
  }

  /// Without times or targets: a sequence layer for containers.
  void forward(JaggedView<const T> x, MatrixView<T> y, Workspace& ws) const { forward(x, HstuBatch(), y, ws); }
  void forward(JaggedView<const T> x, MatrixView<T> y, Saved& saved, const Step& step, Workspace& ws) const {
    forward(x, HstuBatch(), y, saved, step, ws);
  }
  void backward(JaggedView<const T> x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, Hstu& gradient,
                Workspace& ws) const {
    backward(x, HstuBatch(), dy, saved, dx, gradient, ws);
  }

  /// An empty state, the only call that allocates.
  HstuState<T> make_state() const { return core.make_state(); }
  /// y `[n, D]` for n further behaviours x `[n, D]` of the user of `state`, which takes them in. `times` [n] and `query_times` [n] (or
  /// empty) as in `HstuBatch`, needed where the layer has time buckets.
  void extend(MatrixView<const T> x, IndexView times, IndexView query_times, HstuState<T>& state, MatrixView<T> y,
              Workspace& ws) const {
    core.step("Hstu::extend", x, times, query_times, false, state, y, ws, output_cols(width()), project_in(ws), project_out(ws));
  }
  /// y `[n, D]` for n candidates x `[n, D]`, each as if it alone came next; `state` keeps what it had. The candidates and the state's
  /// behaviours are at most `max_length` together.
  void score(MatrixView<const T> x, IndexView times, IndexView query_times, HstuState<T>& state, MatrixView<T> y,
             Workspace& ws) const {
    core.step("Hstu::score", x, times, query_times, true, state, y, ws, output_cols(width()), project_in(ws), project_out(ws));
  }

 private:
  auto project_in(Workspace& ws) const {
    return [this, &ws](MatrixView<const T> in, MatrixView<T> out) {
      simd::gemm<T>(simd::plain(in), simd::transposed(uvqk.weight.view()),
                    {.bias = uvqk.bias.empty() ? nullptr : uvqk.bias.data(), .activation = Activation::silu}, out, ws);
    };
  }
  auto project_out(Workspace& ws) const {
    return [this, &ws](MatrixView<const T> in, MatrixView<T> out) { o.forward(in, out, ws); };
  }
};

/// Serving form of Hstu: packed weights, silu in the product's pass. Immutable; threads may share it, each with states of its own.
template <class T, class S = T>
class FrozenHstu {
 public:
  explicit FrozenHstu(const Hstu<T>& layer)
      : core_(layer.core),
        in_(layer.uvqk.weight, layer.uvqk.bias, Activation::silu),
        out_(layer.o.weight, layer.o.bias, Activation::none) {
    layer.output_cols(layer.width());
  }
  Index output_cols(Index input_cols) const {
    in_.output_cols(input_cols);  // or it throws
    return input_cols;
  }
  /// As those of `Hstu`.
  void forward(JaggedView<const T> x, const HstuBatch& batch, MatrixView<T> y, Workspace& ws) const {
    core_.forward("FrozenHstu", x, batch, y, ws, in_.input_cols(), project(in_, ws), project(out_, ws));
  }
  void forward(JaggedView<const T> x, MatrixView<T> y, Workspace& ws) const { forward(x, HstuBatch(), y, ws); }
  HstuState<T> make_state() const { return core_.make_state(); }
  void extend(MatrixView<const T> x, IndexView times, IndexView query_times, HstuState<T>& state, MatrixView<T> y,
              Workspace& ws) const {
    core_.step("FrozenHstu::extend", x, times, query_times, false, state, y, ws, in_.input_cols(), project(in_, ws),
               project(out_, ws));
  }
  void score(MatrixView<const T> x, IndexView times, IndexView query_times, HstuState<T>& state, MatrixView<T> y,
             Workspace& ws) const {
    core_.step("FrozenHstu::score", x, times, query_times, true, state, y, ws, in_.input_cols(), project(in_, ws),
               project(out_, ws));
  }

 private:
  static auto project(const FrozenDense<T, S>& weights, Workspace& ws) {
    return [&weights, &ws](MatrixView<const T> in, MatrixView<T> out) { weights.forward(in, out, ws); };
  }
  detail::HstuCore<T> core_;
  FrozenDense<T, S> in_, out_;
};
template <class T, class S = T>
FrozenHstu<T, S> freeze(const Hstu<T>& layer, Weights<S> = {}) {
  return FrozenHstu<T, S>(layer);
}

}  // namespace RECOPS_ABI
}  // namespace recops
