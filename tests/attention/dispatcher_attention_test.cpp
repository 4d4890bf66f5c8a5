/// Oracle: both passes written from the formula in double, token by token; PyTorch (golden/elastic.py); central differences.
#include <recops/attention/dispatcher_block.hpp>
#include <recops/train/gradient_check.hpp>

#include <vector>

#include "support/allocations.hpp"
#include "support/golden_layer.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {

using Row = std::vector<double>;
using Rows = std::vector<Row>;

/// x W^T + b
template <class T>
Row project(const Row& x, MatrixView<const T> w, VectorView<const T> b) {
  Row y(static_cast<std::size_t>(w.rows()));
  for (Index i = 0; i < w.rows(); ++i) {
    y[static_cast<std::size_t>(i)] = b.empty() ? 0 : static_cast<double>(b[i]);
    for (Index j = 0; j < w.cols(); ++j)
      y[static_cast<std::size_t>(i)] += static_cast<double>(w(i, j)) * x[static_cast<std::size_t>(j)];
  }
  return y;
}
/// Attention of one query over rows, by heads; zeros where there are none.
Row attend(const Row& q, const Rows& keys, const Rows& values, std::size_t heads) {
  Row out(values.empty() ? q.size() : values[0].size(), 0.0);
  const std::size_t d = q.size() / heads, dv = out.size() / heads;
  for (std::size_t a = 0; a < heads; ++a) {
    Row s;
    double most = -1e300, sum = 0;
    for (const Row& k : keys) {
      double dot = 0;
      for (std::size_t i = 0; i < d; ++i) dot += q[a * d + i] * k[a * d + i];
      s.push_back(dot / std::sqrt(static_cast<double>(d)));
      most = std::max(most, s.back());
    }
    for (double& v : s) sum += v = std::exp(v - most);
    for (std::size_t j = 0; j < s.size(); ++j)
      for (std::size_t i = 0; i < dv; ++i) out[a * dv + i] += s[j] / sum * values[j][a * dv + i];
  }
  return out;
}
template <class T>
Row row_of(MatrixView<const T> m, Index i) {
  return Row(m.row(i), m.row(i) + m.cols());
}

/// The operator with its projections; `upto`: with experts that have read the tokens up to each only.
template <class T>
void naive(const DispatcherAttention<T>& layer, JaggedView<const T> x, MatrixView<const T> experts,
           VectorView<const std::uint8_t> mask, bool upto, Matrix<double>& y, Matrix<double>& next) {
  const auto a = recops::detail::attention_weights<const T>(layer.aggregate);
  const auto b = recops::detail::attention_weights<const T>(layer.dispatch);
  const auto heads = static_cast<std::size_t>(layer.heads());
  const Index k = experts.rows() / x.size();
  y = Matrix<double>(x.values().rows(), x.cols(), 0.0);
  next = Matrix<double>(experts.rows(), x.cols());
  for (Index s = 0; s < x.size(); ++s) {
    const auto read = [&](Index last) {
      Rows keys, values, p;
      for (Index i = x.begin(s); i < last; ++i) {
        if (!mask.empty() && mask[i] == 0) continue;
        keys.push_back(project(row_of(x.values(), i), a.weight[1], a.bias[1]));
        values.push_back(project(row_of(x.values(), i), a.weight[2], a.bias[2]));
      }
      for (Index r = 0; r < k; ++r)
        p.push_back(project<T>(attend(project(row_of(experts, s * k + r), a.weight[0], a.bias[0]), keys, values, heads),
                               layer.aggregate.out_proj.weight, layer.aggregate.out_proj.bias));
      return p;
    };
    const Index end = x.begin(s) + x.length(s);
    const Rows all = read(end);
    for (Index r = 0; r < k; ++r)
      std::copy(all[static_cast<std::size_t>(r)].begin(), all[static_cast<std::size_t>(r)].end(), next.row(s * k + r));
    for (Index i = x.begin(s); i < end; ++i) {
      if (!mask.empty() && mask[i] == 0) continue;
      Rows keys, values;
      for (const Row& p : upto ? read(i + 1) : all) {
        keys.push_back(project(p, b.weight[1], b.bias[1]));
        values.push_back(project(p, b.weight[2], b.bias[2]));
      }
      const Row out = project<T>(attend(project(row_of(x.values(), i), b.weight[0], b.bias[0]), keys, values, heads),
                                 layer.dispatch.out_proj.weight, layer.dispatch.out_proj.bias);
      std::copy(out.begin(), out.end(), y.row(i));
    }
  }
}

std::vector<std::int32_t> offsets_of(std::initializer_list<int> lengths) {
  std::vector<std::int32_t> o{0};
  for (const int l : lengths) o.push_back(o.back() + l);
  return o;
}
std::vector<std::uint8_t> some_mask(Index total, Random& random) {
  std::vector<std::uint8_t> mask;
  for (Index i = 0; i < total; ++i) mask.push_back(random.chance(0.7) ? 1 : 0);
  return mask;
}
template <class T>
void fill_biases(DispatcherAttention<T>& layer, Random& random) {
  for (auto* bias : {&layer.aggregate.in_proj_bias, &layer.aggregate.out_proj.bias, &layer.dispatch.in_proj_bias,
                     &layer.dispatch.out_proj.bias})
    for (T& b : *bias) b = static_cast<T>(0.5 * random.normal());
}

}  // namespace

TEMPLATE_TEST_CASE("dispatcher attention is that of the formula", "[attention][dispatcher_attention]", float, double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 2e-5 : 1e-12;
  Random random = random_stream(71);
  Threads threads{3};
  Workspace ws, threaded(make_executor(threads, 3));
  struct Shape {
    Index width, heads, experts;
  };
  for (const Shape s : {Shape{1, 1, 1}, Shape{16, 2, 16}, Shape{15, 3, 5}, Shape{8, 4, 33}}) {
    if (sanitized && s.experts > 16) continue;
    DispatcherAttention<T> layer(s.width, s.heads, random);
    fill_biases(layer, random);
    const auto offsets = sanitized ? offsets_of({3, 0, 1, 53}) : offsets_of({3, 0, 1, 17, 130, 2, 0, 49});
    const Index total = offsets.back(), users = static_cast<Index>(offsets.size()) - 1;
    for (const bool masked : {false, true}) {
      Padded<T> x(random_matrix<T>(total, s.width, random).view()),
          experts(random_matrix<T>(users * s.experts, s.width, random).view());
      std::vector<std::uint8_t> mask;
      if (masked) {
        mask = some_mask(total, random);
        mask[3] = 0;  // user 2 has nothing left
      }
      const JaggedView<const T> tokens(x.view(), offsets);
      for (const bool causal : {false, true}) {
        CAPTURE(s.width, s.heads, s.experts, masked, causal);
        layer.causal = causal;
        Matrix<double> want, want_next;
        naive<T>(layer, tokens, experts, mask, causal, want, want_next);
        for (Index i = 0; masked && i < total; ++i)
          if (mask[static_cast<std::size_t>(i)] == 0) x(i, 0) = std::numeric_limits<T>::quiet_NaN();
        for (const DispatcherForm form : {DispatcherForm::folded, DispatcherForm::unfolded}) {
          if (causal && form == DispatcherForm::unfolded) continue;
          CAPTURE(static_cast<int>(form));
          layer.form = form;
          Padded<T> y(total, s.width, T(9)), again(total, s.width, T(9)), next(users * s.experts, s.width, T(9));
          const MatrixView<T> to = causal ? MatrixView<T>() : next.view();
          layer.forward(tokens, experts, mask, y, to, ws);
          CHECK(max_difference(MatrixView<const T>(y), want.view()) <= tolerance);
          if (!causal) CHECK(max_difference(MatrixView<const T>(next), want_next.view()) <= tolerance);
          CHECK((y.intact() && next.intact()));
          // Training computes the same, threads the same bits, and the second time takes no memory.
          typename DispatcherAttention<T>::Saved saved;
          layer.forward(tokens, experts, mask, again, to, saved, {}, ws);
          CHECK(max_difference(MatrixView<const T>(again), want.view()) <= tolerance);
          layer.forward(tokens, experts, mask, again, to, threaded);
          CHECK(max_difference(MatrixView<const T>(again), MatrixView<const T>(y)) == 0);
          const auto counted = count_allocations([&] {
            layer.forward(tokens, experts, mask, again, to, ws);
            layer.forward(tokens, experts, mask, again, to, saved, {}, ws);
          });
          CHECK(counted == 0);
          const auto frozen = freeze(layer);
          frozen.forward(tokens, experts, mask, again, to, ws);
          CHECK(max_difference(MatrixView<const T>(again), want.view()) <= tolerance);
        }
        for (Index i = 0; masked && i < total; ++i)
          if (mask[static_cast<std::size_t>(i)] == 0) x(i, 0) = T(0.25);
      }
    }
  }
}

TEST_CASE("gradients of dispatcher attention are central differences", "[attention][dispatcher_attention]") {
  Random random = random_stream(72);
  Workspace ws;
  const auto offsets = offsets_of({7, 0, 1, 52});
  const std::vector<std::int32_t> short_offsets{0, 7, 7, 8, 27};
  const Index k = 5, width = 6;
  for (const bool causal : {false, true}) {
    for (const DispatcherForm form : {DispatcherForm::folded, DispatcherForm::unfolded}) {
      if (causal && form == DispatcherForm::unfolded) continue;
      for (const bool masked : {false, true}) {
        CAPTURE(causal, static_cast<int>(form), masked);
        const auto& bounds = causal || sanitized ? short_offsets : offsets;
        const Index total = bounds.back(), users = static_cast<Index>(bounds.size()) - 1;
        DispatcherBlock<double> block(
            width, {.heads = 2, .hidden = 7, .activation = Activation::silu, .norm_first = masked, .causal = causal}, random);
        fill_biases(block.attention, random);
        block.attention.form = form;
        Matrix<double> x = random_matrix<double>(total, width, random), experts = random_matrix<double>(users * k, width, random);
        Matrix<double> z(total, width), next(causal ? 0 : users * k, width), dx(total, width, 0.0),
            dexperts(users * k, width, 0.0);
        Matrix<double> g = random_matrix<double>(total, width, random);
        const Matrix<double> gnext = random_matrix<double>(next.rows(), width, random);
        std::vector<std::uint8_t> mask;
        if (masked) mask = some_mask(total, random);
        const JaggedView<const double> tokens(x, bounds);
        auto gradient = make_gradient(block);
        DispatcherBlock<double>::Saved saved;
        block.forward(tokens, experts, mask, z, next, saved, {}, ws);
        for (int twice = 0; twice < 2; ++twice)
          block.backward(tokens, experts, mask, g, gnext, saved, dx, dexperts, gradient, ws);
        const auto half = [](auto&& values) {
          for (double& v : values) v /= 2;
        };
        half(leaf_values(dx));
        half(leaf_values(dexperts));
        visit([&](const FieldPath&, auto& leaf) { half(leaf_values(leaf)); }, gradient);
        const auto loss = [&] {
          block.forward(tokens, experts, mask, z, next, ws);
          double sum = 0;
          for (Index i = 0; i < z.rows() * z.cols(); ++i) sum += z.data()[i] * g.data()[i];
          for (Index i = 0; i < next.rows() * next.cols(); ++i) sum += next.data()[i] * gnext.data()[i];
          return sum;
        };
        GradientReport report;
        const GradientCheckOptions few{.step = 1e-5, .most = sanitized ? 5 : 60};
        check_gradient("x", leaf_values(x), leaf_values(dx), loss, report, few);
        check_gradient("experts", leaf_values(experts), leaf_values(dexperts), loss, report, few);
        visit([&](const FieldPath& path, auto& leaf,
                  const auto& d) { check_gradient(path.str(), leaf_values(leaf), leaf_values(d), loss, report, few); },
              block, gradient);
        INFO(report.where << " " << report.numeric << " " << report.analytic);
        CHECK(report.worst < 1e-6);
        // What a mask hides takes no part, whatever it holds; and no memory the second time.
        Matrix<double> same(total, width, 0.0);
        dx.fill(0);
        block.backward(tokens, experts, mask, g, gnext, saved, dx, {}, gradient, ws);
        for (Index i = 0; masked && i < total; ++i)
          if (mask[static_cast<std::size_t>(i)] == 0) x(i, 1) = g(i, 1) = std::numeric_limits<double>::quiet_NaN();
        block.forward(tokens, experts, mask, z, next, saved, {}, ws);
        block.backward(tokens, experts, mask, g, gnext, saved, same, {}, gradient, ws);
        CHECK(max_difference(dx.view(), same.view()) < 1e-14);
        CHECK(count_allocations([&] { block.backward(tokens, experts, mask, g, gnext, saved, same, dexperts, gradient, ws); }) ==
              0);
      }
    }
  }
}

TEMPLATE_TEST_CASE("dispatcher blocks against PyTorch", "[attention][dispatcher_attention][golden]", float, double) {
  using T = TestType;
  const Golden golden("elastic");
  const double tolerance = std::is_same_v<T, float> ? 3e-5 : 1e-12;
  const Matrix<T> x = golden.matrix<T>("x"), experts = golden.matrix<T>("experts"), dz = golden.matrix<T>("dz"),
                  dnext = golden.matrix<T>("dnext");
  const auto mask = golden.values<std::uint8_t>("mask");
  const auto offsets = golden.values<std::int64_t>("offsets");
  const JaggedView<const T> tokens(x, offsets);
  Random random = random_stream(73);
  Workspace ws;
  for (const bool causal : {false, true}) {
    const std::string name = causal ? "causal" : "block";
    DispatcherBlock<T> block(6, {.heads = 2, .hidden = 10, .causal = causal}, random);
    set_parameters<T>(golden, name + ".", block);
    const auto compare = [&](const Matrix<T>& got, const std::string& what, double times) {
      const auto want = golden.values<double>(name + what);
      double most = 0.1, off = 0;
      for (std::size_t i = 0; i < want.size(); ++i) {
        most = std::max(most, std::abs(want[i]));
        off = std::max(off, std::abs(static_cast<double>(got.data()[i]) / times - want[i]));
      }
      INFO(name << what);
      CHECK(off <= tolerance * most);
    };
    for (const DispatcherForm form : {DispatcherForm::folded, DispatcherForm::unfolded}) {
      block.attention.form = form;
      Matrix<T> z(x.rows(), 6), next(causal ? 0 : experts.rows(), 6), served = z, dx(x.rows(), 6, T(0)),
                                                                      dexperts(experts.rows(), 6, T(0));
      const MatrixView<const T> dafter = causal ? MatrixView<const T>() : dnext.view();
      auto gradient = make_gradient(block);
      typename DispatcherBlock<T>::Saved saved;
      block.forward(tokens, experts, mask, z, next, saved, {}, ws);
      for (int twice = 0; twice < 2; ++twice)
        block.backward(tokens, experts, mask, dz, dafter, saved, dx, dexperts, gradient, ws);
      compare(z, ".z", 1);
      if (!causal) compare(next, ".next", 1);
      compare(dx, ".dx", 2);
      compare(dexperts, ".dexperts", 2);
      visit(
          [&](const FieldPath& path, const auto& leaf) {
            if (leaf_values(leaf).empty()) return;
            Matrix<T> flat(1, leaf_values(leaf).size());
            std::copy(leaf_values(leaf).begin(), leaf_values(leaf).end(), flat.data());
            compare(flat, ".d." + path.str(), 2);
          },
          gradient);
      freeze(block).forward(tokens, experts, mask, served, next, ws);
      CHECK(max_difference(served.view(), z.view()) <= tolerance);
      if constexpr (std::is_same_v<T, float>) {
        freeze(block, Weights<BFloat16>()).forward(tokens, experts, mask, served, next, ws);
        CHECK(max_difference(served.view(), z.view()) <= 0.1);
        freeze(block, Weights<std::int8_t>()).forward(tokens, experts, mask, served, next, ws);
        CHECK(max_difference(served.view(), z.view()) <= 0.1);
      }
      gradient.attention.aggregate.in_proj_weight = {};  // not wanted
      gradient.attention.dispatch.in_proj_weight = {};
      gradient.attention.dispatch.in_proj_bias = {};
      gradient.attention.aggregate.out_proj.weight = {};
      block.backward(tokens, experts, mask, dz, {}, saved, {}, {}, gradient, ws);
      CHECK(count_allocations([&] { freeze(block); }) > 0);
    }
  }
}

TEMPLATE_TEST_CASE("passes on projected rows", "[attention][dispatcher_attention]", float, double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 1e-5 : 1e-13;
  Random random = random_stream(74);
  Workspace ws;
  // Values of another width than keys, long sequences, which are cut; any number of experts.
  for (const Index k : {Index{1}, Index{7}, Index{32}, Index{70}}) {
    if (sanitized && k == 32) continue;
    CAPTURE(k);
    const auto offsets = sanitized ? offsets_of({60, 0, 3}) : offsets_of({1100, 0, 3});
    const Index total = offsets.back(), dk = 2 * 5, dv = 2 * 9;
    Padded<T> q(random_matrix<T>(total, dk, random).view()), keys(random_matrix<T>(3 * k, dk, random).view()),
        values(random_matrix<T>(3 * k, dv, random).view()), y(total, dv), dy(random_matrix<T>(total, dv, random).view());
    const JaggedView<const T> tokens(q.view(), offsets);
    const std::vector<std::uint8_t> mask = some_mask(total, random);
    const DispatcherAttentionOptions o{.heads = 2, .scale = 0.7, .mask = mask};
    dispatch_from_experts<T>(tokens, keys, values, o, y, ws);
    // The general operator has the same gradients.
    std::vector<std::int32_t> expert_offsets{0, static_cast<std::int32_t>(k), static_cast<std::int32_t>(2 * k),
                                             static_cast<std::int32_t>(3 * k)};
    const JaggedView<const T> k_rows(keys.view(), expert_offsets), v_rows(values.view(), expert_offsets);
    Matrix<T> want(total, dv), lse(total, 2), dq(total, dk, T(0)), dkeys(3 * k, dk, T(0)), dvalues(3 * k, dv, T(0));
    scaled_dot_product_attention<T>(tokens, k_rows, v_rows, {}, {.heads = 2, .scale = 0.7}, want, lse, ws);
    Matrix<T> shown(total, dv, T(0));
    for (Index i = 0; i < total; ++i) {
      if (mask[static_cast<std::size_t>(i)] == 0) {
        std::fill_n(want.row(i), dv, T(0));
        dy(i, 3) = std::numeric_limits<T>::quiet_NaN();
      } else {
        std::copy_n(dy.view().row(i), dv, shown.row(i));
      }
    }
    CHECK(max_difference(MatrixView<const T>(y), want.view()) <= tolerance);
    scaled_dot_product_attention<T>(tokens, k_rows, v_rows, {}, {.heads = 2, .scale = 0.7}, want, lse, ws);
    scaled_dot_product_attention_backward<T>(tokens, k_rows, v_rows, {}, {.heads = 2, .scale = 0.7}, want, lse, shown, {}, dq,
                                             dkeys, dvalues, {}, ws);
    Padded<T> dq2(total, dk), dk2(3 * k, dk), dv2(3 * k, dv);
    dispatch_from_experts_backward<T>(tokens, keys, values, o, dy, dq2, dk2, dv2, ws);
    CHECK(max_difference(MatrixView<const T>(dq2), dq.view()) <= 5 * tolerance);
    CHECK(max_difference(MatrixView<const T>(dk2), dkeys.view()) <= 200 * tolerance);
    CHECK(max_difference(MatrixView<const T>(dv2), dvalues.view()) <= 200 * tolerance);
    CHECK((y.intact() && dq2.intact() && dk2.intact() && dv2.intact()));
    Threads threads{3};
    Workspace threaded(make_executor(threads, 3));
    Padded<T> dk3(3 * k, dk);
    dispatch_from_experts_backward<T>(tokens, keys, values, o, dy, {}, dk3, {}, threaded);
    CHECK(max_difference(MatrixView<const T>(dk3), MatrixView<const T>(dk2)) == 0);
    // Rows of the weights sum to 1: constant values come back; scores of any size.
    std::fill_n(values.view().data(), 1, T(0));
    for (Index i = 0; i < 3 * k; ++i) std::fill_n(values.view().row(i), dv, T(0.5));
    for (Index i = 0; i < total; ++i)
      for (Index j = 0; j < dk; ++j) q(i, j) *= T(1e4);
    dispatch_from_experts<T>(tokens, keys, values, {.heads = 2}, y, ws);
    double off = 0;
    for (Index i = 0; i < total; ++i)
      for (Index j = 0; j < dv; ++j) off = std::max(off, std::abs(static_cast<double>(y(i, j)) - 0.5));
    CHECK(off <= tolerance);
    // A NaN stays in its row, and one of an expert in its sequence.
    q(1, 2) = std::numeric_limits<T>::quiet_NaN();
    keys(2 * k, 0) = std::numeric_limits<T>::quiet_NaN();
    dispatch_from_experts<T>(tokens, keys, values, {.heads = 2}, y, ws);
    CHECK((std::isnan(y(1, 0)) && !std::isnan(y(0, 0)) && !std::isnan(y(2, 0)) && std::isnan(y(total - 1, 0))));
  }
}

TEST_CASE("what dispatcher attention does not depend on", "[attention][dispatcher_attention]") {
  Random random = random_stream(76);
  Workspace ws;
  const Index n = 40, width = 8, k = 4;
  DispatcherAttention<double> layer(width, 2, random);
  fill_biases(layer, random);
  Matrix<double> x = random_matrix<double>(n, width, random), experts = random_matrix<double>(k, width, random), y(n, width),
                 next(k, width), other_y = y, other_next = next, turned = x, swapped = experts;
  layer.forward(JaggedView<const double>(x), experts, {}, y, next, ws);
  // Tokens in another order: y moves with them, the experts stay. Experts in another order: they move, y stays.
  for (Index i = 0; i < n; ++i) std::copy_n(x.row(n - 1 - i), width, turned.row(i));
  layer.forward(JaggedView<const double>(turned), experts, {}, other_y, other_next, ws);
  double off = max_difference(next.view(), other_next.view());
  for (Index i = 0; i < n; ++i)
    off = std::max(off, max_difference(y.view().middle_rows(n - 1 - i, 1), other_y.view().middle_rows(i, 1)));
  CHECK(off < 1e-13);
  for (Index r = 0; r < k; ++r) std::copy_n(experts.row((r + 1) % k), width, swapped.row(r));
  layer.forward(JaggedView<const double>(x), swapped, {}, other_y, other_next, ws);
  CHECK(max_difference(y.view(), other_y.view()) < 1e-13);
  CHECK(max_difference(next.view().middle_rows(1, 3), other_next.view().middle_rows(0, 3)) < 1e-13);
  // One expert: every token reads the same.
  layer.forward(JaggedView<const double>(x), experts.view().middle_rows(0, 1), {}, y, {}, ws);
  for (Index i = 1; i < n; ++i) CHECK(max_difference(y.view().middle_rows(0, 1), y.view().middle_rows(i, 1)) < 1e-14);
  // Causal: what comes later changes nothing; the last token sees what the other form sees.
  layer.forward(JaggedView<const double>(x), experts, {}, other_y, {}, ws);
  layer.causal = true;
  layer.forward(JaggedView<const double>(x), experts, {}, y, {}, ws);
  CHECK(max_difference(y.view().middle_rows(n - 1, 1), other_y.view().middle_rows(n - 1, 1)) < 1e-12);
  std::copy_n(x.row(3), width, x.row(n - 1));
  layer.forward(JaggedView<const double>(x), experts, {}, other_y, {}, ws);
  CHECK(max_difference(y.view().middle_rows(0, n - 1), other_y.view().middle_rows(0, n - 1)) == 0);
  // Served one token at a time, and some at once: the same rows, from a state of fixed size.
  for (const bool norm_first : {false, true}) {
    DispatcherBlock<double> block(width, {.heads = 2, .norm_first = norm_first, .causal = true}, random);
    fill_biases(block.attention, random);
    const auto frozen = freeze(block);
    DispatcherState<double> state;
    Matrix<double> z(n, width), step(n, width);
    block.forward(JaggedView<const double>(x), experts, {}, z, {}, ws);
    for (Index i = 0; i < n; i += i < 20 ? 1 : 10)
      frozen.extend(std::as_const(x).view().middle_rows(i, i < 20 ? 1 : 10), experts, state,
                    step.view().middle_rows(i, i < 20 ? 1 : 10), ws);
    CHECK(state.length == n);
    CHECK(max_difference(z.view(), step.view()) < 1e-12);
    state.length = 0;  // another sequence
    frozen.extend(std::as_const(x).view().middle_rows(0, 1), experts, state, step.view().middle_rows(1, 1), ws);
    CHECK(max_difference(z.view().middle_rows(0, 1), step.view().middle_rows(1, 1)) < 1e-12);
    CHECK(count_allocations([&] {
            frozen.extend(std::as_const(x).view().middle_rows(1, 1), experts, state, step.view().middle_rows(1, 1), ws);
          }) == 0);
    CHECK(error_of([&] {
            frozen.extend(x, std::as_const(experts).view().middle_rows(0, 2), state, step, ws);
          }).find("state.mean") != std::string::npos);
  }
  // The same experts for everybody, and their gradient.
  Matrix<double> all(3 * k, width), sum(k, width, 0.0);
  repeat_experts<double>(experts, 3, all);
  repeat_experts_backward<double>(all, sum, ws);
  for (double& v : leaf_values(sum)) v /= 3;
  CHECK(max_difference(sum.view(), experts.view()) < 1e-15);
  // An empty batch.
  const std::vector<std::int32_t> none{0};
  layer.forward(JaggedView<const double>(MatrixView<const double>(nullptr, 0, width), none),
                MatrixView<const double>(nullptr, 0, width), {}, MatrixView<double>(nullptr, 0, width), {}, ws);
}

TEST_CASE("what workers of dispatcher attention took is given back", "[attention][dispatcher_attention]") {
  Random random = random_stream(78);
  const auto in_turns = [](Index tasks, auto&& task) {
    for (Index i = 0; i < tasks; ++i) task(i, static_cast<int>(i % 2));
  };
  Workspace ws(make_executor(in_turns, 2));
  const std::vector<std::int32_t> offsets = offsets_of({40, 30, 7, 25});
  const Matrix<float> x = random_matrix<float>(102, 8, random), keys = random_matrix<float>(12, 8, random);
  Matrix<float> y(102, 8), dx(102, 8, 0.0f), dkeys(12, 8, 0.0f);
  const JaggedView<const float> tokens(x, offsets);
  const auto call = [&] {
    dispatch_from_experts<float>(tokens, keys, keys, {.heads = 2}, y, ws);
    dispatch_from_experts_backward<float>(tokens, keys, keys, {.heads = 2}, x, dx, dkeys, {}, ws);
  };
  call();
  const Index first = ws.worker(1).capacity();
  for (int i = 0; i < 20; ++i) call();
  CHECK(ws.worker(1).capacity() == first);
}

TEST_CASE("gradients of causal dispatch keep their digits over long sequences and large batches",
          "[attention][dispatcher_attention]") {
  // One expert: token after token, the gradient of the constant part of the values is that of the output, 0.1.
  constexpr Index n = 1 << 17;
  const Matrix<float> zeros(n, 2, 0.0f), dout(n, 1, 0.1f);
  const MatrixView<const float> column = zeros.view().middle_cols(0, 1);
  Matrix<float> out(n, 1), betas(n, 1);
  std::vector<std::int32_t> each(n + 1);
  for (Index i = 0; i <= n; ++i) each[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(i);
  Workspace ws;
  for (const JaggedView<const float>& queries : {JaggedView<const float>(column), JaggedView<const float>(column, each)}) {
    Vector<float> dconstant(2, 0.0f);
    causal_dispatch<float>(queries, column, zeros, {}, {}, out, betas, ws);
    causal_dispatch_backward<float>(queries, column, zeros, {}, {}, betas, dout, {}, {}, {}, dconstant, ws);
    CHECK(std::abs(dconstant[1] / (0.1f * static_cast<float>(n)) - 1) < 3e-5f);
  }
}

TEMPLATE_TEST_CASE("causal dispatch is that of its page, however far logits rise and fall", "[attention][dispatcher_attention]",
                   float, double) {
  using T = TestType;
  Random random = random_stream(78);
  Workspace ws;
  const std::vector<std::int32_t> offsets{0, 40, 40, 41, 70};
  const Index total = 70, k = 3;
  for (const Index heads : {1, 2})
    for (const double rise : {0.0, 7.0, 400.0}) {
      CAPTURE(heads, rise);
      const Index e = 4, f = 2 * e;
      Padded<T> q(random_matrix<T>(total, e, random).view()), logits(random_matrix<T>(total, k * heads, random).view()),
          mixed(random_matrix<T>(total, heads * f, random).view()), out(total, e);
      const Vector<T> constant = random_vector<T>(f, random);
      std::vector<std::uint8_t> mask(static_cast<std::size_t>(total), 1);
      mask[5] = mask[41] = 0;
      for (Index t = 0; t < total; ++t)  // up, and down again
        for (Index j = 0; j < k * heads; ++j)
          logits(t, j) += static_cast<T>(rise * static_cast<double>(t < 50 ? t : 100 - t) * 0.3);
      for (Index j = 0; j < k * heads; ++j) logits(0, j) = -std::numeric_limits<T>::infinity();  // nothing but the token itself
      causal_dispatch<T>(JaggedView<const T>(q.view(), offsets), logits, mixed, constant, {.heads = heads, .mask = mask}, out, {},
                         ws);
      double worst = 0;
      for (std::size_t b = 0; b + 1 < offsets.size(); ++b)
        for (Index t = offsets[b]; t < offsets[b + 1]; ++t) {
          const auto shown = [&](Index i) { return mask[static_cast<std::size_t>(i)] != 0; };
          std::vector<double> want(static_cast<std::size_t>(e), 0.0);
          Matrix<double> seen(k, f);
          for (Index r = 0; r < k && shown(t); ++r)
            for (Index c = 0; c < f; ++c) {
              seen(r, c) = static_cast<double>(constant[c]);
              for (Index h = 0; h < heads; ++h) {
                double top = -1e300, sum = 0, mean = 0;
                for (Index i = offsets[b]; i <= t; ++i)
                  if (shown(i)) top = std::max(top, static_cast<double>(logits(i, r * heads + h)));
                for (Index i = offsets[b]; i <= t; ++i) {
                  if (!shown(i)) continue;
                  const double w = t == 0 ? 1 : std::exp(static_cast<double>(logits(i, r * heads + h)) - top);
                  sum += w;
                  mean += w * static_cast<double>(mixed(i, h * f + c));
                }
                seen(r, c) += mean / sum;
              }
            }
          const Index width = e / heads;
          for (Index h = 0; h < heads && shown(t); ++h) {
            double p[k], sum = 0;
            for (Index r = 0; r < k; ++r) {
              double product = 0;
              for (Index c = h * width; c < (h + 1) * width; ++c) product += static_cast<double>(q(t, c)) * seen(r, c);
              sum += p[r] = std::exp(product / std::sqrt(static_cast<double>(width)));
            }
            for (Index r = 0; r < k; ++r)
              for (Index c = h * width; c < (h + 1) * width; ++c)
                want[static_cast<std::size_t>(c)] += p[r] / sum * seen(r, e + c);
          }
          for (Index c = 0; c < e; ++c) {
            const double apart = std::abs(static_cast<double>(out(t, c)) - want[static_cast<std::size_t>(c)]);
            worst = std::isnan(apart) ? INFINITY : std::max(worst, apart);
          }
        }
      CHECK(worst < (std::is_same_v<T, float> ? 1e-4 : 1e-12));
      CHECK(out.intact());
    }
}

TEST_CASE("dispatcher attention errors", "[attention][dispatcher_attention]") {
  Random random = random_stream(77);
  Workspace ws;
  DispatcherBlock<float> block(4, {.heads = 2}, random);
  Matrix<float> x(3, 4, 1.0f), z(3, 4, 7.0f), experts(2, 4, 1.0f), next(2, 4, 7.0f), wide(3, 5, 1.0f);
  const JaggedView<const float> rows(x);
  const std::vector<std::uint8_t> short_mask{1};
  const auto has = [](const std::string& text, const char* part) { return text.find(part) != std::string::npos; };
  CHECK(
      has(error_of([&] { block.forward(JaggedView<const float>(wide), experts, {}, z, next, ws); }), "x: expected shape [_, 4]"));
  CHECK(has(error_of([&] { block.forward(rows, wide, {}, z, next, ws); }), "experts: expected shape [_, 4]"));
  CHECK(has(error_of([&] { block.forward(rows, experts.view().middle_rows(0, 0), {}, z, {}, ws); }),
            "1 or more, for each sequence"));
  CHECK(has(error_of([&] { block.forward(rows, experts, short_mask, z, next, ws); }), "mask: expected size 3"));
  CHECK(has(error_of([&] { block.forward(rows, experts, {}, z, wide, ws); }), "next experts: expected shape [2, 4]"));
  const std::vector<std::int32_t> two{0, 1, 3}, bad{0, 2};
  CHECK(
      has(error_of([&] { block.forward(JaggedView<const float>(x, two), x, {}, z, next, ws); }), "1 or more, for each sequence"));
  CHECK(has(error_of([&] { block.forward(JaggedView<const float>(x, bad), experts, {}, z, next, ws); }), "offsets"));
  DispatcherBlock<float>::Saved saved;
  DispatcherBlock<float> gradient = make_gradient(block);
  Matrix<float> out(3, 4);
  block.forward(rows, experts, {}, out, {}, saved, {}, ws);
  CHECK(has(error_of([&] { block.backward(rows, experts, {}, x, {}, saved, {}, wide, gradient, ws); }),
            "dexperts: expected shape [2, 4]"));
  CHECK(has(error_of([&] { block.backward(rows, experts, {}, x, x, saved, {}, {}, gradient, ws); }),
            "dnext: expected shape [2, 4]"));
  CHECK(*std::max_element(gradient.norm2.bias.begin(), gradient.norm2.bias.end()) == 0);
  const auto spoiled = [&](auto&& spoil) {
    DispatcherBlock<float> unfit = block;
    spoil(unfit);
    CHECK(error_of([&] { (void)freeze(unfit); }) != "");
    return error_of([&] { unfit.forward(rows, experts, {}, z, next, ws); });
  };
  CHECK(has(spoiled([](auto& b) { b.linear1.bias.resize(3); }), "linear1.bias: expected size 16"));
  CHECK(has(spoiled([](auto& b) { b.linear2.bias.resize(3); }), "linear2.bias: expected size 4"));
  CHECK(has(spoiled([](auto& b) { b.norm2.weight.resize(3); }), "weight: expected size 4"));
  block.attention.causal = true;
  CHECK(has(error_of([&] { block.forward(rows, experts, {}, z, next, ws); }), "none where causal"));
  CHECK(has(error_of([&] { DispatcherBlock<float>(4, {.heads = 3}, random); }), "divides"));
  DispatcherBlock<float> before(4, {.heads = 2, .norm_first = true}, random);
  DispatcherState<float> state;
  CHECK(has(error_of([&] { freeze(before).extend(x, experts, state, z, ws); }), "a causal one"));
  before.attention.causal = true;
  CHECK(has(error_of([&] { freeze(before).forward(rows, experts, {}, z, next, ws); }), "none where causal"));
  CHECK(has(error_of([&] { freeze(before).extend(x, wide, state, z, ws); }), "experts: expected shape [_, 4]"));
  CHECK(has(error_of([&] { DispatcherBlock<float>(4, {.dropout = 1}, random); }), "dropout < 1"));
  CHECK(has(error_of([&] { dispatch_from_experts<float>(rows, experts, experts, {.heads = 3}, z, ws); }), "heads"));
  CHECK(has(error_of([&] { dispatch_from_experts<float>(rows, wide, experts, {}, z, ws); }), "keys: expected shape [_, 4]"));
  CHECK(has(error_of([&] { causal_dispatch<float>(rows, x, x, {}, {}, z, {}, ws); }), "mixed: expected shape [3, 8]"));
  CHECK(*std::min_element(z.data(), z.data() + 12) == 7.0f);
  CHECK(*std::min_element(next.data(), next.data() + 8) == 7.0f);
}
