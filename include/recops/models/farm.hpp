/// @file   recops/models/farm.hpp
/// @brief  FARM: what a user did in a dense domain (short video) and in a sparse one (live streams), told apart by frequency, aligned and
///         fused into one representation for every candidate of the sparse domain.
///
///     F_d  = alpha_d low(x_d) + beta_d high(x_d)                    frequency module of each domain d = video, live
///     L    = symmetric InfoNCE of the users' normalised means of F_video and F_live       align, added to the task's loss
///     A_d  = norm(F_d + attention(F_d over F_d))                    intra
///     C_l  = norm(A_l + attention(A_l over A_v)), and C_v likewise  cross: each domain looks at the other
///     t_d  = attention(candidate over C_d)                          target
///     y    = [t_live ; t_video ; candidate], or [g t_live + (1 - g) t_video ; candidate] with a gate g
///
/// Each part may be left out, for ablations and for less cost. y goes into a multi-task predictor of one's own.
///
/// Shapes      video, live [total_V, D], [total_L, D]: behaviours of the same B users, oldest first; candidates [total_N, E] of these
///             users; context [B, C], read by the gates; y [total_N, output_cols]
/// Edge cases  A user without behaviours in a domain is not aligned; attention over nothing gives its bias.
/// NaN         stays with its user, but for the align loss, which becomes NaN, and the gradient of candidates in it.
/// Cost        per user about 8 L D^2 + 4 L^2 D flops a domain for intra, as much for cross; a few L D for the bands.
/// Errors      Error if shapes or options disagree; outputs untouched.
/// Reference   arXiv 2502.09375 (the frequency module, align by contrastive learning, fuse by attention); the details of gates, align and
///             fuse are our reconstruction. Which user is whose is all that align needs: it has no labels.
#pragma once
#include <recops/contrastive/align_pooled.hpp>
#include <recops/frequency/farm_intra_domain.hpp>
#include <recops/nn/attention_sublayer.hpp>

namespace recops {

/// What becomes of a domain's sequence before anything else.
enum class FarmBands : unsigned char {
  gated,  ///< both bands, weighed by learned gates: FARM
  none,   ///< the sequence as it is
  low,    ///< the low band alone
  high    ///< the high band alone
};

/// How the domains' interests in a candidate are put together.
enum class FarmOutput : unsigned char {
  concatenated,  ///< [t_live ; t_video ; candidate], 3 E
  gated          ///< [g t_live + (1 - g) t_video ; candidate], 2 E, g = sigmoid(w [t_live ; t_video] + b)
};

/// Options of `Farm`.
struct FarmOptions {
  Index width = 64;     ///< D of a behaviour
  Index candidate = 0;  ///< E of a candidate; 0: as wide as a behaviour
  Index length = 50;    ///< longest sequence of either domain
  Index heads = 1;      ///< of all attentions; divides D and E
  double dropout = 0;   ///< in training, of what intra and cross attention add
  FarmBands bands = FarmBands::gated;
  Band band = {.ratio = 0.25};      ///< the low band: a share of the bins, or `.keep` of them
  SequencePadding padding = {};     ///< what the transform sees where a sequence is shorter than `length`
  Index context = 0;                ///< C, columns that the gates read besides a sequence's mean
  Index gate_hidden = 0;            ///< of the gates; 0: as wide as a behaviour
  bool gate_per_channel = false;    ///< gains per channel instead of one per sequence and band
  double gate_scale = 2;            ///< of the gains' sigmoid; 2 begins near the identity
  bool intra = true, cross = true;  ///< which steps of the fusion there are
  FarmOutput output = FarmOutput::concatenated;
  double align = 0.1;        ///< weight of the align loss; 0: none
  Index align_width = 0;     ///< of learned projections of the means before they are compared; 0: none
  double temperature = 0.1;  ///< of align, where it begins
  bool learn_temperature = false;
};

/// A batch of users.
template <class T>
struct FarmInput {
  JaggedView<const T> video = {}, live = {};  ///< behaviours
  JaggedView<const T> candidates = {};        ///< what is to be ranked for each user
  MatrixView<const T> context = {};           ///< [B, C]; empty where C is 0
  IndexView users = {};  ///< [B], who they are: one who is there twice is no negative of himself; empty: all differ
};

/// Gradients of a batch to add to; what is empty is not wanted.
template <class T>
struct FarmInputGradient {
  MatrixView<T> dvideo = {}, dlive = {}, dcandidates = {}, dcontext = {};
};

inline namespace RECOPS_ABI {

namespace detail {

/// y `[N, 2 E or 3 E]` from the domains' interests t = [t_live ; t_video] and, where it is gated, the gate's logits.
template <class T>
void farm_output(FarmOutput output, MatrixView<const T> t, MatrixView<const T> gate, MatrixView<const T> candidates,
                 MatrixView<T> y) {
  const Index e = candidates.cols();
  for (Index i = 0; i < y.rows(); ++i) {
    T* const out = y.row(i);
    if (output == FarmOutput::concatenated) {
      std::copy_n(t.row(i), 2 * e, out);
    } else {
      const T g = T(1) / (T(1) + std::exp(-gate(i, 0)));
      simd::scale(g, t.row(i), out, e);
      simd::axpy(T(1) - g, t.row(i) + e, out, e);
    }
    std::copy_n(candidates.row(i), e, out + y.cols() - e);
  }
}

/// A band alone, or its gradient in place of the sequence.
template <class T>
void farm_band(FarmBands bands, JaggedView<const T> x, const Band& band, const SequencePadding& padding, Index length,
               const SpectralPlans<T>& plans, MatrixView<T> y, Workspace& ws) {
  const T one = T(1), zero = T(0);
  const BandGains<const T> on{MatrixView<const T>(&one, 1, 1), GainRows::all},
      off{MatrixView<const T>(&zero, 1, 1), GainRows::all};
  const bool low = bands == FarmBands::low;
  forward_filled<T>(x, padding, length, y, ws, [&](JaggedView<const T> in, MatrixView<T> out) {
    band_mix<T>(in, low ? on : off, low ? off : on, band, plans, out, ws);
  });
}

/// What Farm and its serving form have in common: inference.
template <class T, class Model>
void farm_forward(const char* name, const Model& m, const FarmInput<T>& in, MatrixView<T> y, Workspace& ws) {
  const FarmOptions& o = m.options;
  m.check(name, in, MatrixView<const T>(y));
  const auto mark = ws.mark();
  const auto like = [&](JaggedView<const T> x) { return ws.matrix<T>(x.values().rows(), o.width); };
  const auto filtered = [&](JaggedView<const T> x, const FarmIntraDomain<T>& filter) {
    if (o.bands == FarmBands::none) return x;
    const MatrixView<T> f = like(x);
    if (o.bands == FarmBands::gated) {
      filter.forward(x, in.context, f, ws);
    } else {
      farm_band<T>(o.bands, x, o.band, o.padding, o.length, m.plans, f, ws);
    }
    return x.with_values(MatrixView<const T>(f));
  };
  const auto attended = [&](bool there, const auto& sublayer, JaggedView<const T> x, JaggedView<const T> z) {
    if (!there) return x;
    const MatrixView<T> a = like(x);
    sublayer.forward(x, z, a, ws);
    return x.with_values(MatrixView<const T>(a));
  };
  const JaggedView<const T> fv = filtered(in.video, m.video_filter), fl = filtered(in.live, m.live_filter);
  const JaggedView<const T> av = attended(o.intra, m.video_intra, fv, fv), al = attended(o.intra, m.live_intra, fl, fl);
  const JaggedView<const T> cv = attended(o.cross, m.video_cross, av, al), cl = attended(o.cross, m.live_cross, al, av);
  const Index n = y.rows(), e = in.candidates.cols();
  const MatrixView<T> t = ws.matrix<T>(n, 2 * e), gate = ws.matrix<T>(o.output == FarmOutput::gated ? n : 0, 1);
  m.live_target.forward(in.candidates, cl, t.middle_cols(0, e), ws);
  m.video_target.forward(in.candidates, cv, t.middle_cols(e, e), ws);
  if (o.output == FarmOutput::gated) m.mix.forward(t, gate, ws);
  farm_output<T>(o.output, t, gate, in.candidates.values(), y);
}

/// Shapes of a batch.
template <class T>
void check_farm(const char* name, const FarmOptions& o, Index e, Index output_cols, const FarmInput<T>& in,
                MatrixView<const T> y) {
  check_jagged(name, "video", in.video, any_size, o.width);
  const Index users = in.video.size();
  check_jagged(name, "live", in.live, users, o.width);
  check_jagged(name, "candidates", in.candidates, users, e);
  for (const JaggedView<const T>& x : {in.video, in.live})
    check_option(name, "length", x.longest() <= o.length, "sequences of at most `length` rows", static_cast<double>(x.longest()));
  if (o.context > 0) check_shape(name, "context", in.context, users, o.context);
  check_option(name, "context", o.context > 0 || in.context.empty(), "none, as the model was made without",
               static_cast<double>(in.context.cols()));
  check_not_null(name, "users", in.users);
  if (!in.users.empty() && in.users.size() != users) fail_size(name, "users", users, in.users.size(), false);
  check_shape(name, "y", y, in.candidates.values().rows(), output_cols);
}

}  // namespace detail

/// The model with its parameters; see the head of this file.
template <class T>
struct Farm {
  FarmOptions options;
  FarmIntraDomain<T> video_filter, live_filter;
  Linear<T> video_projection, live_projection;  ///< [align_width, D], of the means
  AttentionSublayer<T> video_intra, live_intra, video_cross, live_cross;
  MultiheadAttention<T> video_target, live_target;  ///< candidates over behaviours
  Linear<T> mix;                                    ///< [1, 2 E], of the gated output
  Vector<T> log_scale;                              ///< [1], log(1 / temperature), where it is learned
  SpectralPlans<T> plans;                           ///< of a band alone

  Farm() = default;
  /// Throws `Error` for options out of range.
  Farm(const FarmOptions& o, Random& random) : options(o) {
    constexpr const char* name = "Farm";
    check_option(name, "width", o.width >= 1, "width >= 1", static_cast<double>(o.width));
    check_option(name, "candidate", o.candidate >= 0, "candidate >= 0, where 0 is the width", static_cast<double>(o.candidate));
    check_option(name, "length", o.length >= 1, "length >= 1", static_cast<double>(o.length));
    check_option(name, "align", o.align >= 0 && std::isfinite(o.align), "a number >= 0", o.align);
    check_option(name, "align_width", o.align_width >= 0, "align_width >= 0, where 0 is no projection",
                 static_cast<double>(o.align_width));
    check_option(name, "temperature", o.temperature >= 0.01 && std::isfinite(o.temperature), "temperature >= 0.01",
                 o.temperature);
    check_option(name, "context", o.context >= 0, "context >= 0", static_cast<double>(o.context));
    detail::check_band(name, o.band);
    if (options.candidate == 0) options.candidate = o.width;
    const Index d = o.width, e = options.candidate;
    if (o.bands == FarmBands::gated) {
      const FarmIntraDomainOptions filter{.length = o.length,
                                          .band = o.band,
                                          .context = o.context,
                                          .hidden = o.gate_hidden,
                                          .per_channel = o.gate_per_channel,
                                          .gate_scale = o.gate_scale,
                                          .padding = o.padding};
      video_filter = FarmIntraDomain<T>(d, filter, random);
      live_filter = FarmIntraDomain<T>(d, filter, random);
    } else if (o.bands != FarmBands::none) {
      plans = o.padding.fill == SequenceFill::none ? SpectralPlans<T>(o.length) : SpectralPlans<T>::only(o.length);
    }
    if (o.align > 0 && o.align_width > 0) {
      video_projection = Linear<T>(d, o.align_width, random, false);
      live_projection = Linear<T>(d, o.align_width, random, false);
    }
    if (o.intra) {
      video_intra = AttentionSublayer<T>(d, o.heads, o.dropout, random);
      live_intra = AttentionSublayer<T>(d, o.heads, o.dropout, random);
    }
    if (o.cross) {
      video_cross = AttentionSublayer<T>(d, o.heads, o.dropout, random);
      live_cross = AttentionSublayer<T>(d, o.heads, o.dropout, random);
    }
    video_target = MultiheadAttention<T>(e, o.heads, random, true, d, d);
    live_target = MultiheadAttention<T>(e, o.heads, random, true, d, d);
    if (o.output == FarmOutput::gated) mix = Linear<T>(2 * e, 1, random);
    if (o.align > 0 && o.learn_temperature) log_scale = Vector<T>(1, static_cast<T>(-std::log(o.temperature)));
  }

  static constexpr auto fields() {
    return std::tuple{layer("video_filter", &Farm::video_filter),
                      layer("live_filter", &Farm::live_filter),
                      layer("video_projection", &Farm::video_projection),
                      layer("live_projection", &Farm::live_projection),
                      layer("video_intra", &Farm::video_intra),
                      layer("live_intra", &Farm::live_intra),
                      layer("video_cross", &Farm::video_cross),
                      layer("live_cross", &Farm::live_cross),
                      layer("video_target", &Farm::video_target),
                      layer("live_target", &Farm::live_target),
                      layer("mix", &Farm::mix),
                      parameter("log_scale", &Farm::log_scale)};
  }

  /// Columns of y.
  Index output_cols() const { return (options.output == FarmOutput::gated ? 2 : 3) * options.candidate; }

  /// What backward needs, reused step after step.
  struct Saved {
    struct Domain {
      typename FarmIntraDomain<T>::Saved filter;
      typename AttentionSublayer<T>::Saved intra, cross;
      typename MultiheadAttention<T>::Saved target;
      Matrix<T> f, a, c;                ///< [total, D] after the bands, intra and cross; empty where there is no such step
      Matrix<T> mean, unit, projected;  ///< [B, .] of align
      Matrix<T> daligned;               ///< [B, .] gradient of align, of the means or of their projections
    } video, live;
    Matrix<T> t, gate;      ///< [total_N, 2 E], [total_N, 1]
    Vector<T> weights;      ///< [B], who is aligned
    double align_loss = 0;  ///< of the last forward pass, before its weight
    double dlog_scale = 0;
  };

  /// y in serving mode, without align.
  void forward(const FarmInput<T>& in, MatrixView<T> y, Workspace& ws) const {
    detail::farm_forward<T>("Farm", *this, in, y, ws);
  }

  /// y in training mode. `saved.align_loss` is the align loss; `options.align` times it belongs to the total, and backward adds its
  /// gradient.
  void forward(const FarmInput<T>& in, MatrixView<T> y, Saved& saved, const Step& step, Workspace& ws) const {
    check("Farm", in, MatrixView<const T>(y));
    const FarmOptions& o = options;
    filter(in.video, in.context, video_filter, saved.video, step.child(0), ws);
    filter(in.live, in.context, live_filter, saved.live, step.child(1), ws);
    align(in, saved, ws);
    const auto attend = [&](bool there, const AttentionSublayer<T>& sublayer, JaggedView<const T> x, JaggedView<const T> z,
                            Matrix<T>& out, typename AttentionSublayer<T>::Saved& s, Index k) {
      out.resize(there ? x.values().rows() : 0, o.width);
      if (there) sublayer.forward(x, z, out, s, step.child(k), ws);
    };
    const JaggedView<const T> fv = after(in.video, saved.video, 0), fl = after(in.live, saved.live, 0);
    attend(o.intra, video_intra, fv, fv, saved.video.a, saved.video.intra, 2);
    attend(o.intra, live_intra, fl, fl, saved.live.a, saved.live.intra, 3);
    const JaggedView<const T> av = after(in.video, saved.video, 1), al = after(in.live, saved.live, 1);
    attend(o.cross, video_cross, av, al, saved.video.c, saved.video.cross, 4);
    attend(o.cross, live_cross, al, av, saved.live.c, saved.live.cross, 5);
    const JaggedView<const T> cv = after(in.video, saved.video, 2), cl = after(in.live, saved.live, 2);
    const Index n = y.rows(), e = o.candidate;
    saved.t.resize(n, 2 * e);
    saved.gate.resize(o.output == FarmOutput::gated ? n : 0, 1);
    live_target.forward(in.candidates, cl, saved.t.view().middle_cols(0, e), saved.live.target, step.child(6), ws);
    video_target.forward(in.candidates, cv, saved.t.view().middle_cols(e, e), saved.video.target, step.child(7), ws);
    if (o.output == FarmOutput::gated) mix.forward(saved.t, saved.gate, ws);
    detail::farm_output<T>(o.output, saved.t, saved.gate, in.candidates.values(), y);
  }

  /// Adds the gradient of the task, of which dy is that of y, and of `options.align` times the align loss, to `inputs` and `gradient`.
  void backward(const FarmInput<T>& in, MatrixView<const T> dy, const Saved& saved, const FarmInputGradient<T>& inputs,
                Farm& gradient, Workspace& ws) const {
    constexpr const char* name = "Farm::backward";
    const FarmOptions& o = options;
    check(name, in, dy);
    const Index nv = in.video.values().rows(), nl = in.live.values().rows(), n = dy.rows(), e = o.candidate;
    check_shape(name, "saved", saved.t.view(), n, 2 * e);
    check_shape(name, "saved", saved.gate.view(), o.output == FarmOutput::gated ? n : 0, 1);
    check_saved(name, in.video, saved.video);
    check_saved(name, in.live, saved.live);
    // All that the passes below would check, before anything is written.
    const auto check_attention = [&](const JaggedView<const T>& x, const Domain& own, const JaggedView<const T>& z,
                                     const Domain& other, const AttentionSublayer<T>& intra, const AttentionSublayer<T>& dintra,
                                     const AttentionSublayer<T>& cross, const AttentionSublayer<T>& dcross,
                                     const MultiheadAttention<T>& target, const MultiheadAttention<T>& dtarget) {
      const JaggedView<const T> f = after(x, own, 0), keys = after(x, own, 1), behaviours = after(x, own, 2);
      if (o.intra) intra.check_backward(name, f, f, f.values(), own.intra, {}, {}, dintra);
      if (o.cross) cross.check_backward(name, keys, after(z, other, 1), keys.values(), own.cross, {}, {}, dcross);
      target.check_backward(name, in.candidates, behaviours, behaviours, {}, saved.t.view().middle_cols(0, e), own.target, {}, {},
                            {}, dtarget);
    };
    check_attention(in.video, saved.video, in.live, saved.live, video_intra, gradient.video_intra, video_cross,
                    gradient.video_cross, video_target, gradient.video_target);
    check_attention(in.live, saved.live, in.video, saved.video, live_intra, gradient.live_intra, live_cross, gradient.live_cross,
                    live_target, gradient.live_target);
    if (!inputs.dvideo.empty()) check_shape(name, "dvideo", inputs.dvideo, nv, o.width);
    if (!inputs.dlive.empty()) check_shape(name, "dlive", inputs.dlive, nl, o.width);
    if (!inputs.dcandidates.empty()) check_shape(name, "dcandidates", inputs.dcandidates, n, e);
    if (!inputs.dcontext.empty()) check_shape(name, "dcontext", inputs.dcontext, in.video.size(), o.context);
    check_gradient_shapes(name, *this, gradient);
    const auto mark = ws.mark();
    const auto zeros = [&](Index rows, Index cols) {
      const MatrixView<T> m = ws.matrix<T>(rows, cols);
      std::fill_n(m.data(), rows * cols, T(0));
      return m;
    };
    // The output.
    const MatrixView<T> dt = zeros(n, 2 * e), dgate = zeros(saved.gate.rows(), 1);
    for (Index i = 0; i < n; ++i) {
      const T* const d = dy.row(i);
      if (!inputs.dcandidates.empty()) simd::add(d + dy.cols() - e, inputs.dcandidates.row(i), e);
      if (o.output == FarmOutput::concatenated) {
        simd::add(d, dt.row(i), 2 * e);
        continue;
      }
      const T g = T(1) / (T(1) + std::exp(-saved.gate(i, 0)));
      simd::axpy(g, d, dt.row(i), e);
      simd::axpy(T(1) - g, d, dt.row(i) + e, e);
      dgate(i, 0) = g * (T(1) - g) * (simd::dot(d, saved.t.row(i), e) - simd::dot(d, saved.t.row(i) + e, e));
    }
    if (o.output == FarmOutput::gated) mix.backward(saved.t, dgate, {}, dt, gradient.mix, ws);
    // Through target, cross and intra; a step that is not there passes on what it gets.
    const MatrixView<T> dcv = zeros(nv, o.width), dcl = zeros(nl, o.width);
    live_target.backward(in.candidates, after(in.live, saved.live, 2), dt.middle_cols(0, e), saved.live.target,
                         inputs.dcandidates, dcl, gradient.live_target, ws);
    video_target.backward(in.candidates, after(in.video, saved.video, 2), dt.middle_cols(e, e), saved.video.target,
                          inputs.dcandidates, dcv, gradient.video_target, ws);
    const JaggedView<const T> av = after(in.video, saved.video, 1), al = after(in.live, saved.live, 1);
    const MatrixView<T> dav = o.cross ? zeros(nv, o.width) : dcv, dal = o.cross ? zeros(nl, o.width) : dcl;
    if (o.cross) {
      live_cross.backward(al, av, dcl, saved.live.cross, dal, dav, gradient.live_cross, ws);
      video_cross.backward(av, al, dcv, saved.video.cross, dav, dal, gradient.video_cross, ws);
    }
    const JaggedView<const T> fv = after(in.video, saved.video, 0), fl = after(in.live, saved.live, 0);
    const MatrixView<T> dfv = o.intra ? zeros(nv, o.width) : dav, dfl = o.intra ? zeros(nl, o.width) : dal;
    if (o.intra) {
      video_intra.backward(fv, fv, dav, saved.video.intra, dfv, dfv, gradient.video_intra, ws);
      live_intra.backward(fl, fl, dal, saved.live.intra, dfl, dfl, gradient.live_intra, ws);
    }
    align_backward(fv, saved.video, video_projection, dfv, gradient.video_projection, ws);
    align_backward(fl, saved.live, live_projection, dfl, gradient.live_projection, ws);
    if (!gradient.log_scale.empty()) gradient.log_scale[0] += static_cast<T>(saved.dlog_scale);
    filter_backward(in.video, in.context, video_filter, dfv, saved.video, inputs.dvideo, inputs.dcontext, gradient.video_filter,
                    ws);
    filter_backward(in.live, in.context, live_filter, dfl, saved.live, inputs.dlive, inputs.dcontext, gradient.live_filter, ws);
  }

  /// Throws `Error` unless the batch fits.
  void check(const char* name, const FarmInput<T>& in, MatrixView<const T> y) const {
    detail::check_farm<T>(name, options, options.candidate, output_cols(), in, y);
  }

 private:
  using Domain = typename Saved::Domain;

  void check_saved(const char* name, JaggedView<const T> x, const Domain& s) const {
    const FarmOptions& o = options;
    const Index rows = x.values().rows(), users = x.size();
    check_shape(name, "saved", s.f.view(), o.bands == FarmBands::none ? 0 : rows, o.width);
    check_shape(name, "saved", s.a.view(), o.intra ? rows : 0, o.width);
    check_shape(name, "saved", s.c.view(), o.cross ? rows : 0, o.width);
    if (o.bands == FarmBands::gated) {
      check_shape(name, "saved", s.filter.summary.view(), users, o.width + o.context);
      check_shape(name, "saved", s.filter.gains.view(), users, o.gate_per_channel ? 2 * o.width : 2);
    }
    if (o.align == 0) return;
    check_shape(name, "saved", s.mean.view(), users, o.width);
    check_shape(name, "saved", s.daligned.view(), users, o.align_width > 0 ? o.align_width : o.width);
  }

  /// A domain's sequence after the bands (0), intra (1) or cross (2): of the last step until there that exists.
  JaggedView<const T> after(JaggedView<const T> x, const Domain& s, int step) const {
    if (step >= 2 && options.cross) return x.with_values(s.c.view());
    if (step >= 1 && options.intra) return x.with_values(s.a.view());
    return options.bands == FarmBands::none ? x : x.with_values(s.f.view());
  }

  void filter(JaggedView<const T> x, MatrixView<const T> context, const FarmIntraDomain<T>& module, Domain& s, const Step& step,
              Workspace& ws) const {
    s.f.resize(options.bands == FarmBands::none ? 0 : x.values().rows(), options.width);
    if (options.bands == FarmBands::gated) {
      module.forward(x, context, s.f, s.filter, step, ws);
    } else if (options.bands != FarmBands::none) {
      detail::farm_band<T>(options.bands, x, options.band, options.padding, options.length, plans, s.f, ws);
    }
  }
  void filter_backward(JaggedView<const T> x, MatrixView<const T> context, const FarmIntraDomain<T>& module, MatrixView<T> df,
                       const Domain& s, MatrixView<T> dx, MatrixView<T> dcontext, FarmIntraDomain<T>& gradient,
                       Workspace& ws) const {
    if (options.bands == FarmBands::gated) {
      module.backward(x, context, df, s.filter, dx, dcontext, gradient, ws);
    } else if (options.bands == FarmBands::none) {
      for (Index i = 0; i < dx.rows(); ++i) simd::add(df.row(i), dx.row(i), dx.cols());
    } else if (!dx.empty()) {
      const T one = T(1), zero = T(0);
      const BandGains<const T> on{MatrixView<const T>(&one, 1, 1), GainRows::all},
          off{MatrixView<const T>(&zero, 1, 1), GainRows::all};
      const bool low = options.bands == FarmBands::low;
      detail::backward_filled<T>(x, options.padding, options.length, df, dx, ws,
                                 [&](JaggedView<const T> in, MatrixView<const T> dout, MatrixView<T> din) {
                                   band_mix_backward<T>(in, low ? on : off, low ? off : on, options.band, plans, dout, din, {},
                                                        {}, ws);
                                 });
    }
  }

  /// The align loss and, saved, its gradient with respect to the means or their projections.
  void align(const FarmInput<T>& in, Saved& saved, Workspace& ws) const {
    saved.align_loss = saved.dlog_scale = 0;
    if (options.align == 0) return;
    const Index users = in.video.size(), width = options.align_width > 0 ? options.align_width : options.width;
    saved.weights.resize(users);
    for (Index b = 0; b < users; ++b) saved.weights[b] = in.video.length(b) > 0 && in.live.length(b) > 0 ? T(1) : T(0);
    const auto unit = [&](JaggedView<const T> f, const Linear<T>& projection, Domain& s) {
      s.mean.resize(users, options.width);
      s.projected.resize(options.align_width > 0 ? users : 0, width);
      s.unit.resize(users, width);
      s.daligned.resize(users, width);
      s.daligned.fill(T(0));
      mean_pool<T>(f, s.mean, ws);
      for (Index b = 0; b < users; ++b)  // a NaN of one who is left out has no gradient either
        if (saved.weights[b] == T(0)) std::fill_n(s.mean.row(b), options.width, T(0));
      if (options.align_width > 0) projection.forward(s.mean, s.projected, ws);
      normalize_rows<T>(compared(s), s.unit);
    };
    unit(after(in.video, saved.video, 0), video_projection, saved.video);
    unit(after(in.live, saved.live, 0), live_projection, saved.live);
    const double scale = log_scale.empty() ? -std::log(options.temperature) : static_cast<double>(log_scale[0]);
    const auto mark = ws.mark();
    const MatrixView<T> dv = ws.matrix<T>(users, width), dl = ws.matrix<T>(users, width);
    for (const MatrixView<T>& m : {dv, dl}) std::fill_n(m.data(), users * width, T(0));
    saved.align_loss = inbatch_symmetric_value_and_grad<T>(
        saved.video.unit, saved.live.unit, {.log_scale = scale, .weights = saved.weights, .u_ids = in.users, .v_ids = in.users},
        {.du = dv, .dv = dl, .dlog_scale = &saved.dlog_scale, .upstream = options.align}, ws);
    normalize_rows_backward<T>(compared(saved.video), dv, saved.video.daligned);
    normalize_rows_backward<T>(compared(saved.live), dl, saved.live.daligned);
  }
  MatrixView<const T> compared(const Domain& s) const { return options.align_width > 0 ? s.projected.view() : s.mean.view(); }

  void align_backward(JaggedView<const T> f, const Domain& s, const Linear<T>& projection, MatrixView<T> df, Linear<T>& gradient,
                      Workspace& ws) const {
    if (options.align == 0) return;
    MatrixView<const T> dmean = s.daligned.view();
    const auto mark = ws.mark();
    if (options.align_width > 0) {
      const MatrixView<T> d = ws.matrix<T>(s.mean.rows(), s.mean.cols());
      std::fill_n(d.data(), d.rows() * d.cols(), T(0));
      projection.backward(s.mean, s.daligned, {}, d, gradient, ws);
      dmean = d;
    }
    mean_pool_backward<T>(f, dmean, df);
  }
};

/// Serving form of Farm: weights packed, in T or a smaller format. Immutable; threads may share it. (Gates, two numbers a sequence,
/// stay as they are.)
template <class T, class S = T>
struct FrozenFarm {
  FarmOptions options;
  FarmIntraDomain<T> video_filter, live_filter;
  FrozenAttentionSublayer<T, S> video_intra, live_intra, video_cross, live_cross;
  FrozenMultiheadAttention<T, S> video_target, live_target;
  FrozenDense<T, S> mix;
  SpectralPlans<T> plans;

  FrozenFarm() = default;
  explicit FrozenFarm(const Farm<T>& model)
      : options(model.options),
        video_filter(model.video_filter),
        live_filter(model.live_filter),
        video_target(freeze(model.video_target, Weights<S>())),
        live_target(freeze(model.live_target, Weights<S>())),
        mix(freeze(model.mix, Weights<S>())),
        plans(model.plans) {
    if (options.intra) {
      video_intra = freeze(model.video_intra, Weights<S>());
      live_intra = freeze(model.live_intra, Weights<S>());
    }
    if (options.cross) {
      video_cross = freeze(model.video_cross, Weights<S>());
      live_cross = freeze(model.live_cross, Weights<S>());
    }
  }

  Index output_cols() const { return (options.output == FarmOutput::gated ? 2 : 3) * options.candidate; }
  /// As `Farm::forward` in serving mode. What does not depend on the candidates is computed once for all of a user's.
  void forward(const FarmInput<T>& in, MatrixView<T> y, Workspace& ws) const {
    detail::farm_forward<T>("FrozenFarm", *this, in, y, ws);
  }
  void check(const char* name, const FarmInput<T>& in, MatrixView<const T> y) const {
    detail::check_farm<T>(name, options, options.candidate, output_cols(), in, y);
  }
};
template <class T, class S = T>
FrozenFarm<T, S> freeze(const Farm<T>& model, Weights<S> = {}) {
  return FrozenFarm<T, S>(model);
}

}  // namespace RECOPS_ABI
}  // namespace recops
