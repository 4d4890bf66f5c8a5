/// @file   recops/gating/epnet.hpp
/// @brief  EPNet: every number of a row's embeddings is scaled for the domain (scenario, page, country) the row comes from.
///
///     gates = gate_nu([domain | sg(e)])          out = gates * e
///
/// sg: the gate reads the embeddings but sends them no gradient; e learns through the product alone, `domain` through the gate alone.
///
/// Shapes      e [B, E]   domain [B, D]   gates and out [B, E]   parameters as in gating/gate_nu.hpp with O = E and input
///             D + E (D where `gate_sees_embedding` is off, the form of the paper's first version)
/// Edge cases  gates of 1 leave the bits of e.   A NaN stays in its row.
/// Precision, cost, errors as in gating/gate_nu.hpp.
/// Reference   Chang et al., arXiv 2302.01115, equations 5 and 6.
#pragma once
#include <recops/gating/gate_nu.hpp>

namespace recops {

struct EpnetOptions {
  double gamma = 2.0;               ///< gates end below it; > 0
  bool gate_sees_embedding = true;  ///< the gate reads [domain | sg(e)], else domain alone
};

inline namespace RECOPS_ABI {

namespace detail {

/// out = a b, row by row.
template <class T>
void multiply_rows(MatrixView<const T> a, MatrixView<const T> b, MatrixView<T> out, Workspace& ws) {
  for_row_blocks(a.rows(), ws, [&](Index first, Index count, Index, Workspace&) {
    for (Index r = first; r < first + count; ++r) {
      const T *const pa = a.row(r), *const pb = b.row(r);
      T* const to = out.row(r);
      simd::for_each_vector<T, simd::DefaultArch>(
          a.cols(), [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE { store(to + i, load(pa + i) * load(pb + i)); });
    }
  });
}

template <class T>
MatrixView<const T> epnet_context(MatrixView<const T> e, const EpnetOptions& o) {
  return o.gate_sees_embedding ? e : MatrixView<const T>();
}

template <class T>
void check_epnet(const char* name, MatrixView<const T> e, MatrixView<const T> domain, GateNuView<const T> p,
                 const EpnetOptions& o) {
  check_shape(name, "e", e, domain.rows(), p.weight.rows());
  check_gate_nu(name, domain, epnet_context(e, o), p, {o.gamma});
}

}  // namespace detail

/// Writes `out [B, E]`, `gates [B, E]` and, unless it is empty, `hidden [B, Hg]`; backward needs the last two. `gates` may be empty
/// where they are of no interest.
template <Real T>
void epnet(MatrixView<const T> e, MatrixView<const T> domain, GateNuView<const T> parameters, const EpnetOptions& options,
           MatrixView<T> hidden, MatrixView<T> gates, MatrixView<T> out, Workspace& ws) {
  constexpr const char* name = "epnet";
  detail::check_epnet(name, e, domain, parameters, options);
  if (!hidden.empty()) check_shape(name, "hidden", hidden, e.rows(), parameters.hidden_weight.rows());
  if (!gates.empty()) check_shape(name, "gates", gates, e.rows(), e.cols());
  check_shape(name, "out", out, e.rows(), e.cols());
  if (e.rows() == 0) return;
  const auto mark = ws.mark();
  if (gates.empty()) gates = ws.matrix<T>(e.rows(), e.cols());
  gate_nu<T>(domain, detail::epnet_context(e, options), parameters, {options.gamma}, hidden, gates, ws);
  detail::multiply_rows<T>(gates, e, out, ws);
}

/// Takes what forward took and wrote; adds to `de`, `ddomain` and the parameters' gradients, each unless empty.
template <Real T>
void epnet_backward(MatrixView<const T> e, MatrixView<const T> domain, GateNuView<const T> parameters,
                    const EpnetOptions& options, MatrixView<const T> hidden, MatrixView<const T> gates, MatrixView<const T> dout,
                    MatrixView<T> de, MatrixView<T> ddomain, GateNuView<T> gradient, Workspace& ws) {
  constexpr const char* name = "epnet_backward";
  detail::check_epnet(name, e, domain, parameters, options);
  check_shape(name, "hidden", hidden, e.rows(), parameters.hidden_weight.rows());
  check_shape(name, "gates", gates, e.rows(), e.cols());
  check_shape(name, "dout", dout, e.rows(), e.cols());
  if (!de.empty()) check_shape(name, "de", de, e.rows(), e.cols());
  if (!ddomain.empty()) check_shape(name, "ddomain", ddomain, e.rows(), domain.cols());
  detail::check_gate_nu_gradient(name, parameters, gradient);
  if (e.rows() == 0) return;
  const auto mark = ws.mark();
  const MatrixView<T> dlogits = ws.matrix<T>(e.rows(), e.cols());
  const T inverse = static_cast<T>(1 / options.gamma);
  detail::for_row_blocks(e.rows(), ws, [&](Index first, Index count, Index, Workspace&) {
    for (Index r = first; r < first + count; ++r) {
      const T *const d = dout.row(r), *const g = gates.row(r), *const x = e.row(r);
      T *const to = dlogits.row(r), *const dx = de.empty() ? nullptr : de.row(r);
      simd::for_each_vector<T, simd::DefaultArch>(e.cols(), [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
        const auto up = load(d + i), gate = load(g + i);
        store(to + i, detail::gate_logit_gradient<T>(up * load(x + i), gate, inverse));
        if (dx) store(dx + i, simd::mul_add(up, gate, load(dx + i)));
      });
    }
  });
  const MatrixView<const T> input = detail::side_by_side(domain, detail::epnet_context(e, options), ws);
  detail::gate_nu_rows_backward<T>(input, parameters, hidden, dlogits, ddomain, gradient, ws);
}

/// What an `Epnet` is made of.
struct EpnetSpec {
  Index embeddings = 0;    ///< E
  Index domain = 0;        ///< D
  Index hidden_width = 0;  ///< of the gate; 0: E
  EpnetOptions options = {};
};

/// EPNet with its parameters, `gate.hidden.weight`, `gate.hidden.bias`, `gate.output.weight`, `gate.output.bias`.
template <Real T>
struct Epnet {
  GateNu<T> gate;
  EpnetOptions options;

  Epnet() = default;
  Epnet(const EpnetSpec& spec, Random& random)
      : gate(checked_size("Epnet", "domain", spec.domain) + (spec.options.gate_sees_embedding ? spec.embeddings : 0),
             checked_size("Epnet", "hidden_width", spec.hidden_width), checked_size("Epnet", "embeddings", spec.embeddings),
             random, {spec.options.gamma}),
        options(spec.options) {}

  static constexpr auto fields() { return std::tuple{layer("gate", &Epnet::gate)}; }

  struct Saved {
    Matrix<T> hidden;  ///< [B, Hg]
    Matrix<T> gates;   ///< [B, E], there to be looked at
  };
  void forward(MatrixView<const T> e, MatrixView<const T> domain, MatrixView<T> out, Workspace& ws) const {
    epnet<T>(e, domain, gate.view(), options, {}, {}, out, ws);
  }
  void forward(MatrixView<const T> e, MatrixView<const T> domain, MatrixView<T> out, Saved& saved, const Step&,
               Workspace& ws) const {
    saved.hidden.resize(e.rows(), gate.hidden.weight.rows());
    saved.gates.resize(e.rows(), gate.output.weight.rows());
    epnet<T>(e, domain, gate.view(), options, saved.hidden, saved.gates, out, ws);
  }
  /// Adds to `de` and `ddomain`, each unless empty, and to `gradient`.
  void backward(MatrixView<const T> e, MatrixView<const T> domain, MatrixView<const T> dout, const Saved& saved, MatrixView<T> de,
                MatrixView<T> ddomain, Epnet& gradient, Workspace& ws) const {
    epnet_backward<T>(e, domain, gate.view(), options, saved.hidden, saved.gates, dout, de, ddomain, gradient.gate.view(), ws);
  }
};

/// Serving form of Epnet. Immutable; threads may share it.
template <Real T, class S = T>
class FrozenEpnet {
 public:
  FrozenEpnet() = default;
  explicit FrozenEpnet(const Epnet<T>& layer) : gate_(layer.gate), options_(layer.options) {
    check_option("freeze(Epnet)", "gate.options.gamma", layer.gate.options.gamma == layer.options.gamma, "that of the layer",
                 layer.gate.options.gamma);
  }
  /// out `[B, E]`; out may be e. `gates [B, E]`, empty: not wanted.
  void forward(MatrixView<const T> e, MatrixView<const T> domain, MatrixView<T> out, Workspace& ws,
               MatrixView<T> gates = {}) const {
    constexpr const char* name = "FrozenEpnet";
    const Index d = gate_.input_cols() - (options_.gate_sees_embedding ? e.cols() : 0);
    check_shape(name, "e", e, any_size, gate_.output_cols(gate_.input_cols()));
    check_shape(name, "domain", domain, e.rows(), d);
    check_shape(name, "out", out, e.rows(), e.cols());
    if (!gates.empty()) check_shape(name, "gates", gates, e.rows(), e.cols());
    if (e.rows() == 0) return;
    constexpr Index block = simd::detail::Chunks<T, simd::DefaultArch>::rows;  // stays in L2 from product to product
    ws.parallel_for((e.rows() + block - 1) / block, [&](Index task, Workspace& scratch) {
      const Index first = task * block, count = std::min(block, e.rows() - first);
      const auto mark = scratch.mark();
      const MatrixView<const T> own = e.middle_rows(first, count);
      const MatrixView<T> g = scratch.matrix<T>(count, e.cols());
      gate_.forward(detail::side_by_side(domain.middle_rows(first, count), detail::epnet_context<T>(own, options_), scratch), g,
                    scratch);
      detail::multiply_rows<T>(g, own, out.middle_rows(first, count), scratch);
      for (Index r = 0; r < count && !gates.empty(); ++r) std::copy_n(g.row(r), g.cols(), gates.row(first + r));
    });
  }

 private:
  FrozenGateNu<T, S> gate_;
  EpnetOptions options_;
};
template <Real T, class S = T>
FrozenEpnet<T, S> freeze(const Epnet<T>& layer, Weights<S> = {}) {
  return FrozenEpnet<T, S>(layer);
}

}  // namespace RECOPS_ABI
}  // namespace recops
