/// Oracle: target attention over the selected rows copied side by side, one candidate at a time.
#include <recops/attention/selected_attention.hpp>

#include <vector>

#include "support/allocations.hpp"
#include "support/attention_reference.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {

struct Batch {
  std::vector<std::int64_t> rows{0}, keys{0};
  Matrix<double> candidates, k, v, dout;
  Matrix<std::int32_t> indices;
  std::vector<std::uint8_t> mask;
  Index heads;

  Batch(Index head_count, Index selected, bool hide, Random& random) : heads(head_count) {
    const std::vector<Index> n{2, 3, 0, 9}, l{7, 0, 4, 40};
    for (std::size_t b = 0; b < n.size(); ++b) {
      rows.push_back(rows.back() + n[b]);
      keys.push_back(keys.back() + l[b]);
    }
    candidates = AttentionCase::rounded(rows.back(), 3 * heads, random);
    k = AttentionCase::rounded(keys.back(), 3 * heads, random);
    v = AttentionCase::rounded(keys.back(), 2 * heads, random);
    dout = AttentionCase::rounded(rows.back(), 2 * heads, random);
    indices.resize(rows.back(), selected);
    for (std::size_t b = 0; b < n.size(); ++b)
      for (Index i = rows[b]; i < rows[b + 1]; ++i)
        for (Index j = 0; j < selected; ++j)  // some behaviours twice, some places empty, one candidate with none at all
          indices(i, j) = l[b] == 0 || i == 7 ? -1 : static_cast<std::int32_t>(random.below(l[b] + 1)) - 1;
    if (hide) {
      mask.resize(static_cast<std::size_t>(keys.back()));
      for (auto& m : mask) m = random.chance(0.7) ? 1 : 0;
      for (Index j = 0; j < keys.back(); ++j)  // what is hidden may hold anything
        if (mask[static_cast<std::size_t>(j)] == 0) k(j, 0) = v(j, 0) = std::numeric_limits<double>::quiet_NaN();
    }
  }
};

template <class T>
Matrix<T> cast(const Matrix<double>& m) {
  Matrix<T> out(m.rows(), m.cols());
  for (Index i = 0; i < m.rows() * m.cols(); ++i) out.data()[i] = static_cast<T>(m.data()[i]);
  return out;
}

}  // namespace

TEMPLATE_TEST_CASE("each candidate attends to what it selected", "[attention][selected_attention]", float, double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 1e-5 : 1e-13;
  Random random = random_stream(620);
  Workspace ws;
  for (const Index heads : {1, 4})
    for (const Index selected : {0, 1, 13})
      for (const bool hide : {false, true}) {
        CAPTURE(heads, selected, hide);
        const Batch x(heads, selected, hide, random);
        const Matrix<T> c = cast<T>(x.candidates), k = cast<T>(x.k), v = cast<T>(x.v), g = cast<T>(x.dout);
        Padded<T> candidates(c.view()), keys(k.view()), values(v.view()), dout(g.view()), out(c.rows(), 2 * heads, T(9)),
            lse(c.rows(), heads), dc(c.rows(), 3 * heads, T(1)), dk(k.rows(), 3 * heads), dv(v.rows(), 2 * heads);
        const JaggedView<const T> who(candidates.view(), x.rows), what(keys.view(), x.keys), which(values.view(), x.keys);
        const AttentionOptions options{.heads = heads, .key_mask = x.mask};
        const auto both = [&](Workspace& scratch) {
          selected_attention<T>(who, what, which, x.indices, options, out, lse, scratch);
          selected_attention_backward<T>(who, what, which, x.indices, options, out, lse, dout, dc, dk, dv, scratch);
        };
        both(ws);
        Matrix<double> want_dk(k.rows(), 3 * heads, 0.0), want_dv(v.rows(), 2 * heads, 0.0);
        for (std::size_t b = 0; b + 1 < x.rows.size(); ++b)
          for (Index i = x.rows[b]; i < x.rows[b + 1]; ++i) {
            std::vector<Index> at;
            for (Index j = 0; j < selected; ++j)
              if (x.indices(i, j) >= 0 && (!hide || x.mask[static_cast<std::size_t>(x.keys[b] + x.indices(i, j))] != 0))
                at.push_back(x.keys[b] + x.indices(i, j));
            AttentionCase one(1, static_cast<Index>(at.size()), heads, 3, 2, random);
            std::copy_n(x.candidates.row(i), 3 * heads, one.q.data());
            for (std::size_t j = 0; j < at.size(); ++j) {
              std::copy_n(x.k.row(at[j]), 3 * heads, one.k.row(static_cast<Index>(j)));
              std::copy_n(x.v.row(at[j]), 2 * heads, one.v.row(static_cast<Index>(j)));
            }
            Matrix<double> part(1, 2 * heads);
            std::copy_n(x.dout.row(i), 2 * heads, part.data());
            AttentionAnswer want = attention_reference(one, part, {});
            for (Index d = 0; d < 3 * heads; ++d) want.dq(0, d) += 1;
            CHECK(max_difference(out.view().middle_rows(i, 1), want.out.view()) <= tolerance);
            CHECK(max_difference(dc.view().middle_rows(i, 1), want.dq.view()) <= 10 * tolerance);
            for (std::size_t j = 0; j < at.size(); ++j) {
              for (Index d = 0; d < 3 * heads; ++d) want_dk(at[j], d) += want.dk(static_cast<Index>(j), d);
              for (Index d = 0; d < 2 * heads; ++d) want_dv(at[j], d) += want.dv(static_cast<Index>(j), d);
            }
          }
        CHECK(max_difference(dk.view(), want_dk.view()) <= 10 * tolerance);
        CHECK(max_difference(dv.view(), want_dv.view()) <= 10 * tolerance);
        CHECK((out.intact() && lse.intact() && dc.intact() && dk.intact() && dv.intact()));
        CHECK(count_allocations([&] { both(ws); }) == 0);

        Matrix<T> first(c.rows(), 2 * heads), again(c.rows(), 2 * heads), dkey(k.rows(), 3 * heads, T(0)),
            dkey_again(k.rows(), 3 * heads, T(0));
        Threads threads{3};
        Workspace parallel(make_executor(threads, 3));
        selected_attention<T>(who, what, which, x.indices, options, first, lse, ws);
        selected_attention<T>(who, what, which, x.indices, options, again, {}, parallel);
        selected_attention_backward<T>(who, what, which, x.indices, options, first, lse, dout, {}, dkey, {}, ws);
        selected_attention_backward<T>(who, what, which, x.indices, options, first, lse, dout, {}, dkey_again, {}, parallel);
        CHECK(max_difference(first.view(), again.view()) == 0);
        CHECK(max_difference(dkey.view(), dkey_again.view()) == 0);
      }
}

TEST_CASE("selected_attention names what is wrong and writes nothing", "[attention][selected_attention][errors]") {
  Workspace ws;
  Matrix<float> candidates(2, 4, 1.0f), history(5, 4, 1.0f), out(2, 4, 9.0f);
  Matrix<std::int32_t> indices{{0, 1}, {2, 5}};
  const auto call = [&](const AttentionOptions& o) {
    selected_attention<float>(candidates, history, history, indices, o, out, {}, ws);
  };
  CHECK_THAT(error_of([&] { call({}); }), contains("selected_attention: indices: expected -1, or positions from 0 to below the "
                                                   "length of the history, 5, got 5 at position 3"));
  indices(1, 1) = -2;
  CHECK_THAT(error_of([&] { call({}); }), contains("got -2 at position 3"));
  indices(1, 1) = -1;
  CHECK_THAT(error_of([&] { call({.causal = true}); }), contains("selected_attention: causal"));
  for (Index i = 0; i < 8; ++i) CHECK(out.data()[i] == 9.0f);
}
