/// Oracle: attention written from its formula in double precision, user by user (support/attention_reference.hpp).
#include <recops/attention/target_attention.hpp>

#include "support/allocations.hpp"
#include "support/attention_reference.hpp"

using namespace recops;
using namespace recops_test;

TEMPLATE_TEST_CASE("target attention of a batch of users", "[attention][target_attention]", float, double) {
  using T = TestType;
  Random random = random_stream(30);
  Workspace ws;
  const double tolerance = std::is_same_v<T, float> ? 1e-5 : 1e-13;
  const std::vector<Index> candidates_of{0, 1, 5, 33, 5, 1, 70}, behaviours_of{7, 0, 64, 257, 1, 1000, 2};
  for (const Index heads : {1, 2, 4}) {
    const Index width = 4 * heads;
    std::vector<std::int64_t> rows{0}, keys{0};
    for (std::size_t u = 0; u < candidates_of.size(); ++u) {
      rows.push_back(rows.back() + candidates_of[u]);
      keys.push_back(keys.back() + behaviours_of[u]);
    }
    const Matrix<double> c = AttentionCase::rounded(rows.back(), width, random),
                         h = AttentionCase::rounded(keys.back(), width, random),
                         g = AttentionCase::rounded(rows.back(), width, random);
    Padded<T> candidates(as<T>(c).view()), history(as<T>(h).view()), dout(as<T>(g).view());
    Padded<T> out(rows.back(), width, T(9)), again(rows.back(), width, T(9)), lse(rows.back(), heads), dc(rows.back(), width),
        dh(keys.back(), width);
    std::vector<std::uint8_t> mask(static_cast<std::size_t>(keys.back()));
    for (auto& m : mask) m = random.chance(0.8) ? 1 : 0;
    const AttentionOptions options{.heads = heads, .key_mask = mask};
    const JaggedView<const T> who(candidates.view(), rows), what(history.view(), keys);
    const auto both = [&] {
      target_attention<T>(who, what, options, again, ws);
      target_attention<T>(who, what, options, out, lse, ws);
      target_attention_backward<T>(who, what, options, out, lse, dout, dc, dh, ws);
    };
    both();
    CHECK(max_difference(out.view(), again.view()) == 0);
    for (std::size_t u = 0; u < candidates_of.size(); ++u) {
      CAPTURE(heads, u);
      AttentionCase x(candidates_of[u], behaviours_of[u], heads, 4, 4, random);
      std::copy_n(c.data() + rows[u] * width, x.n * width, x.q.data());
      std::copy_n(h.data() + keys[u] * width, x.l * width, x.k.data());
      x.v = x.k;
      x.mask.assign(mask.begin() + keys[u], mask.begin() + keys[u + 1]);
      Matrix<double> part(x.n, width);
      std::copy_n(g.data() + rows[u] * width, x.n * width, part.data());
      const AttentionAnswer want = attention_reference(x, part, {});
      Matrix<double> dhistory = want.dk;
      for (Index i = 0; i < x.l * width; ++i) dhistory.data()[i] += want.dv.data()[i];
      CHECK(max_difference(out.view().middle_rows(rows[u], x.n), want.out.view()) <= tolerance);
      CHECK(max_difference(dc.view().middle_rows(rows[u], x.n), want.dq.view()) <= 10 * tolerance);
      CHECK(max_difference(dh.view().middle_rows(keys[u], x.l), dhistory.view()) <= 10 * tolerance);
    }
    CHECK((out.intact() && lse.intact() && dc.intact() && dh.intact()));
    const AllocationCounter allocations;
    both();
    CHECK(allocations.count() == 0);
  }
}

TEST_CASE("keys and values of their own, and one user as plain matrices", "[attention][target_attention]") {
  Random random = random_stream(31);
  Workspace ws;
  const AttentionCase x(6, 50, 2, 5, 3, random);
  const Matrix<double> dout = random_matrix<double>(6, 6, random);
  const AttentionAnswer want = attention_reference(x, dout, {});
  Matrix<double> out(6, 6), plain(6, 6), lse(6, 2), dq(6, 10, 0.0), dk(50, 10, 0.0), dv(50, 6, 0.0);
  target_attention<double>(x.q, x.k, x.v, {.heads = 2}, out, lse, ws);
  target_attention<double>(x.q, x.k, x.v, {.heads = 2}, plain, ws);
  target_attention_backward<double>(x.q, x.k, x.v, {.heads = 2}, out, lse, dout, dq, dk, dv, ws);
  CHECK(max_difference(out.view(), want.out.view()) < 1e-14);
  CHECK(max_difference(out.view(), plain.view()) == 0);
  CHECK(max_difference(dq.view(), want.dq.view()) < 1e-13);
  CHECK(max_difference(dk.view(), want.dk.view()) < 1e-13);
  CHECK(max_difference(dv.view(), want.dv.view()) < 1e-13);
}

TEST_CASE("a history given twice changes nothing; a user alone has the bits it has in a batch", "[attention][target_attention]") {
  Random random = random_stream(32);
  Workspace ws;
  const Matrix<float> candidates = random_matrix<float>(45, 8, random), history = random_matrix<float>(90, 8, random);
  Matrix<float> twice(180, 8), once_out(45, 8), twice_out(45, 8), batch_out(45, 8), alone(40, 8);
  for (Index j = 0; j < 180; ++j) std::copy_n(history.row(j % 90), 8, twice.row(j));
  target_attention<float>(candidates, history, {.heads = 2}, once_out, ws);
  target_attention<float>(candidates, twice, {.heads = 2}, twice_out, ws);
  CHECK(max_difference(once_out.view(), twice_out.view()) < 1e-6);
  const std::vector<int> rows{0, 5, 45}, keys{0, 30, 90};
  target_attention<float>({candidates.view(), rows}, {history.view(), keys}, {.heads = 2}, batch_out, ws);
  target_attention<float>(candidates.view().middle_rows(5, 40), history.view().middle_rows(30, 60), {.heads = 2}, alone, ws);
  CHECK(max_difference(alone.view(), batch_out.view().middle_rows(5, 40)) == 0);
}

TEST_CASE("histories in bfloat16 and int8: jagged, masked, without allocation", "[attention][target_attention][stored]") {
  Random random = random_stream(33);
  Workspace ws;
  const Index width = 32, heads = 2;
  const std::vector<std::int64_t> rows{0, 1, 1, 8, 48}, keys{0, 0, 300, 9300, 9317};
  const Matrix<float> c = random_matrix<float>(rows.back(), width, random), h = random_matrix<float>(keys.back(), width, random);
  Matrix<BFloat16> half(h.rows(), width);
  simd::convert(h.data(), half.data(), h.rows() * width);
  Matrix<float> restored(h.rows(), width), want(rows.back(), width), out(rows.back(), width), again(rows.back(), width),
      lse(rows.back(), heads), want_lse(rows.back(), heads);
  simd::convert(half.data(), restored.data(), h.rows() * width);
  const JaggedView<const float> who(c.view(), rows), floats(restored.view(), keys);
  const JaggedView<const BFloat16> halves(half.view(), keys);
  std::vector<std::uint8_t> mask(static_cast<std::size_t>(keys.back()));
  for (auto& m : mask) m = random.chance(0.9) ? 1 : 0;
  const auto compare = [&](const AttentionOptions& options, auto&& stored) {
    target_attention<float>(who, floats, options, want, want_lse, ws);
    stored(options, out, lse, ws);
    CHECK(max_difference(out.view(), want.view()) < 1e-5);
    CHECK(max_difference(lse.view(), want_lse.view()) < 1e-5);
    const AllocationCounter allocations;
    stored(options, again, MatrixView<float>(), ws);
    CHECK(allocations.count() == 0);
    CHECK(max_difference(out.view(), again.view()) == 0);
  };
  const auto half_of = [&](const AttentionOptions& o, MatrixView<float> y, MatrixView<float> z, Workspace& w) {
    target_attention<float>(who, halves, o, y, z, w);
  };
  compare({.heads = heads}, half_of);
  compare({.heads = heads, .key_mask = mask}, half_of);
  for (const Index block : {Index{0}, width / heads}) {
    QuantizedRows codes;
    codes.assign(h.view(), block);
    simd::dequantize_rows(codes, restored);
    const QuantizedHistory history{codes.view(), keys};
    const auto eighth_of = [&](const AttentionOptions& o, MatrixView<float> y, MatrixView<float> z, Workspace& w) {
      target_attention<float>(who, history, o, y, z, w);
    };
    compare({.heads = heads}, eighth_of);
    compare({.heads = heads, .window = 5, .key_mask = mask}, eighth_of);
  }
}

TEST_CASE("stored histories: one user as plain rows, keys and values apart, NaN, errors",
          "[attention][target_attention][stored]") {
  Random random = random_stream(34);
  Workspace ws;
  const Matrix<float> c = random_matrix<float>(3, 8, random), k = random_matrix<float>(40, 8, random),
                      v = random_matrix<float>(40, 4, random);
  Matrix<float> out(3, 4, 9.0f), want(3, 4);
  QuantizedRows kq, vq;
  kq.assign(k.view());
  vq.assign(v.view());
  Matrix<float> kr(40, 8), vr(40, 4);
  simd::dequantize_rows(kq, kr);
  simd::dequantize_rows(vq, vr);
  target_attention<float>(c, kr, vr, {.heads = 2}, want, ws);
  target_attention<float>(c, QuantizedHistory{kq}, QuantizedHistory{vq}, {.heads = 2}, out, {}, ws);
  CHECK(max_difference(out.view(), want.view()) < 1e-6);
  vq.assign(v.view(), 2);
  vq.scales(7, 1) = std::numeric_limits<float>::quiet_NaN();  // of the second head alone
  target_attention<float>(c, QuantizedHistory{kq}, QuantizedHistory{vq}, {.heads = 2}, out, {}, ws);
  for (Index i = 0; i < 3; ++i) CHECK((std::isfinite(out(i, 0)) && std::isfinite(out(i, 1)) && std::isnan(out(i, 2))));
  vq.assign(v.view(), 3);
  CHECK_THAT(error_of([&] { target_attention<float>(c, QuantizedHistory{kq}, QuantizedHistory{vq}, {.heads = 2}, out, {}, ws); }),
             contains("target_attention: values: expected one scale per row, or one per row and head"));
  {  // Values that begin where the keys do, but are not the keys: the first columns of each row, or the same codes at another scale.
    Matrix<float> keys(40, 8), wide(3, 8), wide_want(3, 8), halved(40, 1);
    Matrix<BFloat16> rounded(40, 8);
    for (Index i = 0; i < 40 * 8; ++i) rounded.data()[i] = BFloat16(static_cast<float>(i % 7) - 3.0f);
    simd::convert(rounded.data(), keys.data(), 40 * 8);
    target_attention<float>(c, keys.view(), keys.view().middle_cols(0, 4), {}, want, {}, ws);
    target_attention<float>(c, rounded.view(), rounded.view().middle_cols(0, 4), {}, out, {}, ws);
    CHECK(max_difference(out.view(), want.view()) < 1e-5);
    for (Index i = 0; i < 40; ++i) halved(i, 0) = kq.scales(i, 0) / 2;
    const QuantizedView half{kq.codes, halved, 0};
    const std::vector<std::uint8_t> all(40, 1);
    target_attention<float>(c, QuantizedHistory{kq}, QuantizedHistory{kq}, {.key_mask = all}, wide_want, {}, ws);
    target_attention<float>(c, QuantizedHistory{kq}, QuantizedHistory{half}, {.key_mask = all}, wide, {}, ws);
    for (Index i = 0; i < 3 * 8; ++i) CHECK(std::abs(2 * wide.data()[i] - wide_want.data()[i]) < 1e-5f);
  }
  Matrix<BFloat16> narrow(40, 6, BFloat16(1.0f));
  CHECK_THAT(error_of([&] { target_attention<float>(c, narrow, {.heads = 2}, out, {}, ws); }),
             contains("target_attention: history: expected shape [_, 8], got [40, 6]"));
}

TEST_CASE("target attention names what is wrong and writes nothing", "[attention][target_attention][errors]") {
  Workspace ws;
  Matrix<float> candidates(3, 8, 1.0f), history(5, 8, 1.0f), narrow(5, 6, 1.0f), out(3, 8, 9.0f);
  CHECK_THAT(error_of([&] { target_attention<float>(candidates, narrow, {.heads = 2}, out, ws); }),
             contains("target_attention: history: expected shape [_, 8], got [5, 6]"));
  CHECK_THAT(error_of([&] { target_attention<float>(candidates, history, {.heads = 3}, out, ws); }),
             contains("target_attention: candidates: expected a number of columns that heads divides"));
  Matrix<float> lse(2, 2), dc(3, 8, 9.0f), dh(5, 8, 9.0f);
  CHECK_THAT(error_of([&] { target_attention_backward<float>(candidates, history, {.heads = 2}, out, lse, out, dc, dh, ws); }),
             contains("target_attention_backward: log_sum_exp: expected shape [3, 2], got [2, 2]"));
  CHECK_THAT(error_of([&] { target_attention<float>(candidates, narrow, history, {.heads = 2}, out, ws); }),
             contains("target_attention: keys: expected shape [_, 8], got [5, 6]"));
  Matrix<float> full(3, 2), small(4, 8, 9.0f);
  CHECK_THAT(
      error_of([&] { target_attention_backward<float>(candidates, history, {.heads = 2}, out, full, out, small, dh, ws); }),
      contains("target_attention_backward: dcandidates: expected shape [3, 8], got [4, 8]"));
  CHECK_THAT(
      error_of([&] { target_attention_backward<float>(candidates, history, {.heads = 2}, out, full, out, dc, small, ws); }),
      contains("target_attention_backward: dhistory: expected shape [5, 8], got [4, 8]"));
  for (Index i = 0; i < 24; ++i) CHECK((out.data()[i] == 9.0f && dc.data()[i] == 9.0f));
  for (Index i = 0; i < 40; ++i) CHECK(dh.data()[i] == 9.0f);
}
