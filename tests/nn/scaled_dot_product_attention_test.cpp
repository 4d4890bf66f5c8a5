/// Oracles: attention written from its formula in double precision, PyTorch's answers (golden/attention.safetensors), central
/// differences, and algebra: merging, permutations, jagged = one by one.
#include <recops/nn/scaled_dot_product_attention.hpp>

#include <numeric>

#include "support/allocations.hpp"
#include "support/attention_reference.hpp"
#include "support/golden.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

/// A batch of sequences of the given lengths with a mask and a per-key bias over all of them.
struct Batch {
  std::vector<AttentionCase> users;
  std::vector<std::int64_t> query_offsets{0};
  std::vector<std::int32_t> key_offsets{0};
  Index heads, dk, dv, bias_columns;

  Batch(const std::vector<std::pair<Index, Index>>& sizes, Index h, Index key_width, Index value_width, bool mask, Index bias,
        Random& random)
      : heads(h), dk(key_width), dv(value_width), bias_columns(bias) {
    for (const auto& [n, l] : sizes) {
      users.emplace_back(n, l, h, key_width, value_width, random);
      if (mask) users.back().add_mask(random);
      if (bias > 0) users.back().add_key_bias(bias, random);
      query_offsets.push_back(query_offsets.back() + n);
      key_offsets.push_back(key_offsets.back() + static_cast<std::int32_t>(l));
    }
  }
  /// The rows of `member` of all users below each other, as T.
  template <class T, class M>
  Matrix<T> stacked(M member, Index cols) const {
    Index rows = 0;
    for (const auto& u : users) rows += (u.*member).rows();
    Matrix<T> all(rows, cols);
    Index at = 0;
    for (const auto& u : users)
      for (Index i = 0; i < (u.*member).rows(); ++i, ++at)
        for (Index j = 0; j < cols; ++j) all(at, j) = static_cast<T>((u.*member)(i, j));
    return all;
  }
  std::vector<std::uint8_t> mask() const {
    std::vector<std::uint8_t> all;
    for (const auto& u : users) all.insert(all.end(), u.mask.begin(), u.mask.end());
    return all;
  }
};

const std::vector<std::pair<Index, Index>> mixed = {{5, 0}, {0, 7},   {1, 1},   {33, 64}, {0, 0},
                                                    {2, 2}, {5, 257}, {150, 7}, {1, 1000}};

/// Forward and backward of a batch, everything in T.
template <class T>
struct Run {
  Matrix<T> out, lse, dq, dk, dv, dbias;
  Run(const Batch& b, const AttentionOptions& options, const Matrix<T>& dout, Workspace& ws) {
    const Matrix<T> q = b.stacked<T>(&AttentionCase::q, b.heads * b.dk), k = b.stacked<T>(&AttentionCase::k, b.heads * b.dk),
                    v = b.stacked<T>(&AttentionCase::v, b.heads * b.dv),
                    bias = b.stacked<T>(&AttentionCase::key_bias, b.bias_columns);
    out = Matrix<T>(q.rows(), v.cols(), T(7));
    lse = Matrix<T>(q.rows(), b.heads, T(7));
    dq = Matrix<T>(q.rows(), q.cols(), T(0));
    dk = Matrix<T>(k.rows(), k.cols(), T(0));
    dv = Matrix<T>(v.rows(), v.cols(), T(0));
    dbias = Matrix<T>(bias.rows(), bias.cols(), T(0));
    const JaggedView<const T> queries(q.view(), b.query_offsets), keys(k.view(), b.key_offsets), values(v.view(), b.key_offsets);
    scaled_dot_product_attention<T>(queries, keys, values, {.per_key = bias}, options, out, lse, ws);
    scaled_dot_product_attention_backward<T>(queries, keys, values, {.per_key = bias}, options, out, lse, dout, {}, dq, dk, dv,
                                             {.per_key = dbias}, ws);
  }
};

}  // namespace

TEMPLATE_TEST_CASE("attention of a jagged batch is attention of each sequence", "[nn][attention]", float, double) {
  using T = TestType;
  Random random = random_stream(10);
  Workspace ws;
  const double tolerance = std::is_same_v<T, float> ? 1e-5 : 1e-13;
  for (const int mode : {0, 1, 2, 3}) {
    const Batch b(mixed, mode % 2 ? 4 : 1, mode == 2 ? 16 : 3, 5, mode > 0, mode == 3 ? 4 : mode == 2 ? 1 : 0, random);
    const std::vector<std::uint8_t> mask = b.mask();
    const AttentionOptions options{.heads = b.heads, .causal = mode == 1, .window = mode == 1 ? 9 : 0, .key_mask = mask};
    const Matrix<double> dout = AttentionCase::rounded(b.query_offsets.back(), b.heads * b.dv, random);
    const Run<T> got(b, options, as<T>(dout), ws);
    for (std::size_t u = 0; u < b.users.size(); ++u) {
      AttentionCase x = b.users[u];
      x.causal = options.causal;
      x.window = options.window;
      CAPTURE(mode, u, x.n, x.l);
      Matrix<double> part(x.n, dout.cols());
      std::copy_n(dout.data() + b.query_offsets[u] * dout.cols(), x.n * dout.cols(), part.data());
      const AttentionAnswer want = attention_reference(x, part, {});
      const auto differ = [](const Matrix<T>& all, Index row, const Matrix<double>& exact) {
        return max_difference(all.view().middle_rows(row, exact.rows()), exact.view());
      };
      CHECK(differ(got.out, b.query_offsets[u], want.out) <= tolerance);
      CHECK(differ(got.lse, b.query_offsets[u], want.lse) <= tolerance);
      CHECK(differ(got.dq, b.query_offsets[u], want.dq) <= 10 * tolerance);
      CHECK(differ(got.dk, b.key_offsets[u], want.dk) <= 10 * tolerance);
      CHECK(differ(got.dv, b.key_offsets[u], want.dv) <= 10 * tolerance);
      if (b.bias_columns > 0) CHECK(differ(got.dbias, b.key_offsets[u], want.dkey_bias) <= 10 * tolerance);
    }
  }
}

TEST_CASE("gradients of attention agree with central differences", "[nn][attention]") {
  Random random = random_stream(11);
  Workspace ws;
  for (const int mode : {0, 1, 2, 3}) {
    const Index n = mode == 0 ? 3 : 11, l = 9, heads = 2, dk = 3, dv = 2;
    const AttentionOptions options{
        .heads = heads, .scale = mode == 1 ? 0.3 : 0.0, .causal = mode == 2, .window = mode == 3 ? 4 : 0};
    Matrix<double> in[] = {random_matrix<double>(n, heads * dk, random), random_matrix<double>(l, heads * dk, random),
                           random_matrix<double>(l, heads * dv, random), random_matrix<double>(l, mode % 2 ? 1 : heads, random),
                           random_matrix<double>(mode < 2 ? n : heads * n, l, random)};
    const Matrix<double> dout = random_matrix<double>(n, heads * dv, random), dlse = random_matrix<double>(n, heads, random);
    Matrix<double> out(n, heads * dv), lse(n, heads), g[5];
    const auto run = [&] {
      scaled_dot_product_attention<double>(in[0], in[1], in[2], {.per_key = in[3], .pairwise = in[4]}, options, out, lse, ws);
      double loss = 0;
      for (Index i = 0; i < n * heads * dv; ++i) loss += out.data()[i] * dout.data()[i];
      for (Index i = 0; i < n * heads; ++i) loss += lse.data()[i] * dlse.data()[i];
      return loss;
    };
    run();
    for (int i = 0; i < 5; ++i) g[i] = Matrix<double>(in[i].rows(), in[i].cols(), 0.0);
    scaled_dot_product_attention_backward<double>(in[0], in[1], in[2], {.per_key = in[3], .pairwise = in[4]}, options, out, lse,
                                                  dout, dlse, g[0], g[1], g[2], {.per_key = g[3], .pairwise = g[4]}, ws);
    for (int t = 0; t < 5; ++t) {
      for (Index i = 0; i < in[t].rows() * in[t].cols(); ++i) {
        const double at = in[t].data()[i], step = 1e-6;
        in[t].data()[i] = at + step;
        const double up = run();
        in[t].data()[i] = at - step;
        const double down = run();
        in[t].data()[i] = at;
        CAPTURE(mode, t, i);
        REQUIRE(std::abs((up - down) / (2 * step) - g[t].data()[i]) < 2e-8);
      }
    }
  }
}

TEMPLATE_TEST_CASE("attention gives PyTorch's numbers and gradients", "[nn][attention][golden]", float, double) {
  using T = TestType;
  const Golden golden("attention");
  Workspace ws;
  const double tolerance = std::is_same_v<T, float> ? 5e-6 : 1e-13;
  for (const std::string name : {"plain", "masked", "causal", "biased"}) {
    CAPTURE(name);
    const auto read = [&](const std::string& key) { return golden.matrix<T>("sdpa_" + name + "_" + key); };
    const Matrix<T> q = read("q"), k = read("k"), v = read("v"), dout = read("dout"), out = read("out");
    std::vector<std::uint8_t> mask;
    Matrix<T> bias;
    AttentionOptions options{.heads = static_cast<Index>(golden.scalar("sdpa_" + name + "_heads"))};
    if (name == "masked") mask = golden.values<std::uint8_t>("sdpa_masked_mask"), options.key_mask = mask;
    if (name == "causal") options.causal = true;
    if (name == "biased") bias = read("bias");
    Matrix<T> got(out.rows(), out.cols()), lse(out.rows(), options.heads), dq(q.rows(), q.cols(), T(0)),
        dk(k.rows(), k.cols(), T(0)), dv(v.rows(), v.cols(), T(0)), db(bias.rows(), bias.cols(), T(0));
    scaled_dot_product_attention<T>(q, k, v, {.pairwise = bias}, options, got, lse, ws);
    scaled_dot_product_attention_backward<T>(q, k, v, {.pairwise = bias}, options, got, lse, dout, {}, dq, dk, dv,
                                             {.pairwise = db}, ws);
    CHECK(max_difference(got.view(), out.view()) < tolerance);
    CHECK(max_difference(lse.view(), read("lse").view()) < tolerance);
    CHECK(max_difference(dq.view(), read("dq").view()) < 4 * tolerance);
    CHECK(max_difference(dk.view(), read("dk").view()) < 4 * tolerance);
    CHECK(max_difference(dv.view(), read("dv").view()) < 4 * tolerance);
    if (name == "biased") CHECK(max_difference(db.view(), read("dbias").view()) < 4 * tolerance);
  }
}

TEMPLATE_TEST_CASE("a hidden key may hold NaN, a query without keys gives zeros", "[nn][attention]", float, double) {
  using T = TestType;
  Random random = random_stream(12);
  Workspace ws;
  const T nan = std::numeric_limits<T>::quiet_NaN();
  for (const Index n : {1, 3, 40}) {
    for (const int how : {0, 1, 2, 3}) {  // by mask, by per-key bias, by pairwise bias, by causality
      CAPTURE(n, how);
      const Index l = 70, heads = 2, width = 10;
      const auto hidden = [&](Index i, Index j) { return how == 3 ? j > i : j % 3 == 1 || j > 60; };
      Matrix<T> q = random_matrix<T>(n, width, random), k = random_matrix<T>(l, width, random),
                v = random_matrix<T>(l, width, random), key_bias(how == 1 ? l : 0, 1, T(0)), pair_bias(how == 2 ? n : 0, l, T(0)),
                dout = random_matrix<T>(n, width, random);
      std::vector<std::uint8_t> mask(how == 0 ? static_cast<std::size_t>(l) : 0, 1);
      const Index last = how == 3 ? n : l;  // causal: keys from n on are hidden from all
      for (Index j = 0; j < l; ++j) {
        if (how < 3 && hidden(0, j)) {
          if (how == 0) mask[static_cast<std::size_t>(j)] = 0;
          if (how == 1) key_bias(j, 0) = static_cast<T>(-infinity);
          for (Index i = 0; i < n && how == 2; ++i) pair_bias(i, j) = static_cast<T>(-infinity);
        }
      }
      const AttentionOptions options{.heads = heads, .causal = how == 3, .key_mask = mask};
      const AttentionBias<T> bias{.per_key = key_bias, .pairwise = pair_bias};
      struct Result {
        Matrix<T> out, lse, dq, dk, dv;
      };
      const auto run = [&] {
        Result r{Matrix<T>(n, width), Matrix<T>(n, heads), Matrix<T>(n, width, T(0)), Matrix<T>(l, width, T(0)),
                 Matrix<T>(l, width, T(0))};
        scaled_dot_product_attention<T>(q, k, v, bias, options, r.out, r.lse, ws);
        scaled_dot_product_attention_backward<T>(q, k, v, bias, options, r.out, r.lse, dout, {}, r.dq, r.dk, r.dv, {}, ws);
        return r;
      };
      const Result clean = run();
      for (Index j = 0; j < l; ++j)
        if (how < 3 ? hidden(0, j) : j >= last)
          for (Index d = 0; d < width; ++d) k(j, d) = v(j, d) = nan;
      const Result planted = run();
      // Where some queries could see it, a key that is not finite is summed by other code.
      const double rounding = how < 2 ? 0 : std::is_same_v<T, float> ? 5e-6 : 1e-14;
      CHECK(max_difference(clean.out.view(), planted.out.view()) <= rounding);
      CHECK(max_difference(clean.dq.view(), planted.dq.view()) <= rounding);
      CHECK(max_difference(clean.dk.view(), planted.dk.view()) <= rounding);
      CHECK(max_difference(clean.dv.view(), planted.dv.view()) <= rounding);
      for (Index j = 0; j < l; ++j)
        if (how < 3 ? hidden(0, j) : j >= last)
          for (Index d = 0; d < width; ++d) REQUIRE((planted.dk(j, d) == T(0) && planted.dv(j, d) == T(0)));

      if (how == 3 && n > 1) {  // a NaN key that some queries see: the rest are as before
        for (Index d = 0; d < width / heads; ++d) k(n / 2, d) = nan;
        v(n / 2, 0) = nan;
        const Result some = run();
        for (Index i = 0; i < n; ++i) {
          CHECK(std::isnan(some.out(i, 0)) == (i >= n / 2));
          CHECK(std::isnan(some.lse(i, 0)) == (i >= n / 2));
          CHECK(std::isnan(some.dq(i, 0)) == (i >= n / 2));
          CHECK(!std::isnan(some.out(i, width / heads)));
          CHECK(!std::isnan(some.dq(i, width / heads)));
          if (i < n / 2) CHECK(std::abs(some.out(i, 0) - clean.out(i, 0)) < T(1e-5));
        }
      }
    }
  }
  // Nothing visible, although keys and values are large and the bias is finite elsewhere.
  for (const Index n : {2, 30}) {
    Matrix<T> q(n, 4, T(1)), k(20, 4, T(1e4)), v(20, 4, T(5)), out(n, 4, T(9)), lse(n, 2, T(9)), dq(n, 4, T(1)), dk(20, 4, T(1)),
        dv(20, 4, T(1));
    const std::vector<std::uint8_t> mask(20, 0);
    scaled_dot_product_attention<T>(q, k, v, {}, {.heads = 2, .key_mask = mask}, out, lse, ws);
    scaled_dot_product_attention_backward<T>(q, k, v, {}, {.heads = 2, .key_mask = mask}, out, lse, q, {}, dq, dk, dv, {}, ws);
    for (Index i = 0; i < n * 4; ++i) REQUIRE((out.data()[i] == T(0) && dq.data()[i] == T(1)));
    for (Index i = 0; i < n * 2; ++i) REQUIRE(lse.data()[i] == static_cast<T>(-infinity));
    for (Index i = 0; i < 80; ++i) REQUIRE((dk.data()[i] == T(1) && dv.data()[i] == T(1)));
  }
}

TEMPLATE_TEST_CASE("a NaN query stays in its row, large scores stay finite, a constant moves log_sum_exp only", "[nn][attention]",
                   float, double) {
  using T = TestType;
  Random random = random_stream(13);
  Workspace ws;
  for (const Index n : {3, 50}) {
    Matrix<T> q = random_matrix<T>(n, 8, random), k = random_matrix<T>(90, 8, random), v = random_matrix<T>(90, 6, random);
    Matrix<T> out(n, 6), lse(n, 2), same(n, 6), shifted(n, 2), bias(90, 1, T(3));
    scaled_dot_product_attention<T>(q, k, v, {}, {.heads = 2}, out, lse, ws);
    scaled_dot_product_attention<T>(q, k, v, {.per_key = bias}, {.heads = 2}, same, shifted, ws);
    CHECK(max_difference(out.view(), same.view()) < (std::is_same_v<T, float> ? 2e-6 : 1e-14));
    for (Index i = 0; i < n * 2; ++i) CHECK(std::abs(shifted.data()[i] - lse.data()[i] - 3) < 1e-5);
    q(1, 5) = std::numeric_limits<T>::quiet_NaN();  // head 1 of query 1
    scaled_dot_product_attention<T>(q, k, v, {}, {.heads = 2}, same, shifted, ws);
    for (Index i = 0; i < n; ++i)
      for (Index d = 0; d < 6; ++d) {
        if (i == 1 && d >= 3) {
          CHECK(std::isnan(same(i, d)));
        } else {
          CHECK(same(i, d) == out(i, d));
        }
      }
    q(1, 5) = 0;
    for (Index i = 0; i < n; ++i)
      for (Index d = 0; d < 8; ++d) q(i, d) = i % 2 ? T(5e3) : T(-5e3);
    scaled_dot_product_attention<T>(q, k, v, {}, {.heads = 2}, same, shifted, ws);
    for (Index i = 0; i < n * 6; ++i) CHECK(std::isfinite(same.data()[i]));
    for (Index i = 0; i < n * 2; ++i) CHECK(std::isfinite(shifted.data()[i]));
  }
}

TEMPLATE_TEST_CASE("any number of threads gives the same bits, and warm calls allocate nothing", "[nn][attention]", float,
                   double) {
  using T = TestType;
  Random random = random_stream(14);
  const Batch b({{3, 9000}, {70, 8300}, {600, 2100}, {0, 5}, {5, 64}}, 2, 4, 4, false, 0, random);
  const Matrix<T> dout = random_matrix<T>(b.query_offsets.back(), 8, random);
  Workspace serial;
  const Run<T> want(b, {.heads = 2}, dout, serial);
  for (const int workers : {2, 4}) {
    Threads threads{workers};
    Workspace ws(make_executor(threads, workers));
    const Run<T> got(b, {.heads = 2}, dout, ws);
    CHECK(max_difference(got.out.view(), want.out.view()) == 0);
    CHECK(max_difference(got.lse.view(), want.lse.view()) == 0);
    CHECK(max_difference(got.dq.view(), want.dq.view()) == 0);
    CHECK(max_difference(got.dk.view(), want.dk.view()) == 0);
    CHECK(max_difference(got.dv.view(), want.dv.view()) == 0);
  }
  // The long history alone, to see that cutting it into ranges changes nothing beyond rounding.
  AttentionCase x = b.users[0];
  const AttentionAnswer exact = attention_reference(x, {}, {});
  CHECK(max_difference(want.out.view().middle_rows(0, 3), exact.out.view()) < (std::is_same_v<T, float> ? 2e-6 : 1e-14));

  const Batch small(mixed, 2, 4, 4, true, 2, random);
  const Matrix<T> q = small.stacked<T>(&AttentionCase::q, 8), k = small.stacked<T>(&AttentionCase::k, 8),
                  bias = small.stacked<T>(&AttentionCase::key_bias, 2);
  const std::vector<std::uint8_t> mask = small.mask();
  Matrix<T> out(q.rows(), 8), lse(q.rows(), 2), dq(q.rows(), 8, T(0)), dk(k.rows(), 8, T(0)), db(bias.rows(), 2, T(0));
  const JaggedView<const T> queries(q.view(), small.query_offsets), keys(k.view(), small.key_offsets);
  const auto both = [&] {
    scaled_dot_product_attention<T>(queries, keys, keys, {.per_key = bias}, {.heads = 2, .key_mask = mask}, out, lse, serial);
    scaled_dot_product_attention_backward<T>(queries, keys, keys, {.per_key = bias}, {.heads = 2, .key_mask = mask}, out, lse,
                                             out, {}, dq, dk, dk, {.per_key = db}, serial);
  };
  both();
  const AllocationCounter allocations;
  both();
  CHECK(allocations.count() == 0);
}

TEST_CASE("scratch does not grow with the history", "[nn][attention]") {
  Workspace ws[2];
  for (int i = 0; i < 2; ++i) {
    const Index l = i == 0 ? 70000 : 140000;
    Matrix<float> q(20, 4, 1.0f), k(l, 4, 0.5f), out(20, 4);
    scaled_dot_product_attention<float>(q, k, k, {}, {}, out, {}, ws[i]);
    CHECK(std::abs(out(3, 2) - 0.5f) < 1e-6f);
  }
  CHECK(ws[0].high_water() == ws[1].high_water());
}

TEMPLATE_TEST_CASE("results over disjoint keys merge to the result over all", "[nn][attention]", float, double) {
  using T = TestType;
  Random random = random_stream(15);
  Workspace ws;
  const Index n = 21, l = 100, heads = 3, width = 9;
  const Matrix<T> q = random_matrix<T>(n, width, random), k = random_matrix<T>(l, width, random),
                  v = random_matrix<T>(l, width, random);
  Matrix<T> want(n, width), want_lse(n, heads);
  scaled_dot_product_attention<T>(q, k, v, {}, {.heads = heads}, want, want_lse, ws);
  for (int trial = 0; trial < 5; ++trial) {
    Matrix<T> out(n, width, T(0)), lse(n, heads, static_cast<T>(-infinity)), part(n, width), part_lse(n, heads);
    for (Index at = 0; at < l;) {
      const Index count = std::min(l - at, random.below(40));
      scaled_dot_product_attention<T>(q, k.view().middle_rows(at, count), v.view().middle_rows(at, count), {}, {.heads = heads},
                                      part, part_lse, ws);
      merge_attention<T>(part, part_lse, out, lse);
      at += count;
    }
    CHECK(max_difference(out.view(), want.view()) < (std::is_same_v<T, float> ? 2e-6 : 1e-14));
    CHECK(max_difference(lse.view(), want_lse.view()) < (std::is_same_v<T, float> ? 2e-6 : 1e-14));
  }
}

TEST_CASE("order: permuting keys leaves the result, permuting queries permutes it", "[nn][attention]") {
  Random random = random_stream(16);
  Workspace ws;
  const Index n = 37, l = 129;
  const Matrix<double> q = random_matrix<double>(n, 6, random), k = random_matrix<double>(l, 6, random);
  Matrix<double> reversed(l, 6), backwards(n, 6), out(n, 6), other(n, 6), turned(n, 6);
  for (Index j = 0; j < l; ++j) std::copy_n(k.row(l - 1 - j), 6, reversed.row(j));
  for (Index i = 0; i < n; ++i) std::copy_n(q.row(n - 1 - i), 6, backwards.row(i));
  scaled_dot_product_attention<double>(q, k, k, {}, {.heads = 2}, out, {}, ws);
  scaled_dot_product_attention<double>(q, reversed, reversed, {}, {.heads = 2}, other, {}, ws);
  scaled_dot_product_attention<double>(backwards, k, k, {}, {.heads = 2}, turned, {}, ws);
  CHECK(max_difference(out.view(), other.view()) < 1e-14);
  for (Index i = 0; i < n; ++i)
    for (Index d = 0; d < 6; ++d) CHECK(turned(n - 1 - i, d) == out(i, d));
}

TEST_CASE("one tensor as queries, keys and values takes all three gradients in one view", "[nn][attention]") {
  Random random = random_stream(17);
  Workspace ws;
  for (const Index n : {5, 70, 2100}) {
    AttentionCase c(n, n, 2, 3, 3, random);
    c.k = c.v = c.q;
    const Matrix<double> dout = random_matrix<double>(n, 6, random);
    if (n < 1000) {
      const AttentionAnswer want = attention_reference(c, dout, {});
      Matrix<double> out(n, 6), lse(n, 2), dx(n, 6, 0.0);
      scaled_dot_product_attention<double>(c.q, c.q, c.q, {}, {.heads = 2}, out, lse, ws);
      scaled_dot_product_attention_backward<double>(c.q, c.q, c.q, {}, {.heads = 2}, out, lse, dout, {}, dx, dx, dx, {}, ws);
      for (Index i = 0; i < n * 6; ++i)
        REQUIRE(std::abs(dx.data()[i] - want.dq.data()[i] - want.dk.data()[i] - want.dv.data()[i]) < 1e-12);
    } else {  // cut into ranges: against separate views
      Matrix<double> out(n, 6), lse(n, 2), dx(n, 6, 0.0), dq(n, 6, 0.0), dk(n, 6, 0.0), dv(n, 6, 0.0);
      scaled_dot_product_attention<double>(c.q, c.q, c.q, {}, {.heads = 2, .causal = true}, out, lse, ws);
      scaled_dot_product_attention_backward<double>(c.q, c.q, c.q, {}, {.heads = 2, .causal = true}, out, lse, dout, {}, dx, dx,
                                                    dx, {}, ws);
      scaled_dot_product_attention_backward<double>(c.q, c.q, c.q, {}, {.heads = 2, .causal = true}, out, lse, dout, {}, dq, dk,
                                                    dv, {}, ws);
      for (Index i = 0; i < n * 6; ++i) REQUIRE(std::abs(dx.data()[i] - dq.data()[i] - dk.data()[i] - dv.data()[i]) < 1e-12);
    }
  }
}

TEST_CASE("wrong shapes and options are named, and nothing is written", "[nn][attention][errors]") {
  Workspace ws;
  Matrix<float> q(3, 8, 1.0f), k(5, 8, 1.0f), v(5, 4, 1.0f), out(3, 4, 9.0f), lse(3, 2, 9.0f);
  Matrix<float> odd(5, 7), fewer(4, 4), small(3, 3), bias(4, 2), pairs(4, 5);
  const std::vector<std::uint8_t> mask(4, 1);
  const std::vector<int> falling{0, 4, 3, 5}, two{0, 2, 3}, three{0, 1, 2, 5}, other{0, 2, 2, 5};
  const auto error = [&](JaggedView<const float> queries, JaggedView<const float> keys, JaggedView<const float> values,
                         const AttentionBias<float>& b, const AttentionOptions& o, MatrixView<float> y, MatrixView<float> z) {
    return error_of([&] { scaled_dot_product_attention<float>(queries, keys, values, b, o, y, z, ws); });
  };
  const AttentionOptions o{.heads = 2};
  CHECK_THAT(error(q, k, v, {}, {.heads = 0}, out, lse),
             contains("scaled_dot_product_attention: heads: expected heads >= 1, got 0"));
  CHECK_THAT(error(q, k, v, {}, {.heads = 3}, out, lse), contains("queries: expected a number of columns that heads divides"));
  CHECK_THAT(error(q, odd, v, {}, o, out, lse), contains("keys: expected shape [_, 8], got [5, 7]"));
  CHECK_THAT(error(q, k, odd, {}, o, out, lse), contains("values: expected a number of columns that heads divides"));
  CHECK_THAT(error(q, k, fewer, {}, o, out, lse), contains("values: expected shape [5, _], got [4, 4]"));
  CHECK_THAT(error(q, k, v, {}, {.heads = 2, .scale = infinity}, out, lse), contains("scale: expected a finite scale"));
  CHECK_THAT(error(q, k, v, {}, {.heads = 2, .window = -1}, out, lse), contains("window: expected window >= 0"));
  CHECK_THAT(error(q, k, v, {}, {.heads = 2, .key_mask = mask}, out, lse), contains("key_mask: expected size 5, got 4"));
  CHECK_THAT(error(q, k, v, {.per_key = bias}, o, out, lse), contains("bias.per_key: expected shape [5, 2], got [4, 2]"));
  CHECK_THAT(error(q, k, v, {.pairwise = pairs}, o, out, lse), contains("bias.pairwise: expected shape [6, 5], got [4, 5]"));
  CHECK_THAT(error(q, k, v, {}, o, small, lse), contains("out: expected shape [3, 4], got [3, 3]"));
  CHECK_THAT(error(q, k, v, {}, o, out, small), contains("log_sum_exp: expected shape [3, 2], got [3, 3]"));
  CHECK_THAT(error(q, {k.view(), falling}, v, {}, o, out, lse), contains("keys"));
  CHECK_THAT(error({q.view(), two}, {k.view(), three}, v, {}, o, out, lse), contains("keys: expected 2 sequences, got 3"));
  CHECK_THAT(error({q.view(), two}, k, v, {}, o, out, lse), contains("keys: expected 2 sequences, got 1"));
  const std::vector<int> q3{0, 1, 2, 3};
  CHECK_THAT(error({q.view(), q3}, {k.view(), three}, {v.view(), other}, {}, o, out, lse),
             contains("values: expected as many rows as keys in each sequence, 1, got 2 at position 0"));
  for (Index i = 0; i < 12; ++i) CHECK(out.data()[i] == 9.0f);
  for (Index i = 0; i < 6; ++i) CHECK(lse.data()[i] == 9.0f);

  Matrix<float> d(5, 4, 9.0f);
  CHECK_THAT(
      error_of([&] { scaled_dot_product_attention_backward<float>(q, k, v, {}, o, out, lse, out, {}, {}, d, {}, {}, ws); }),
      contains("scaled_dot_product_attention_backward: dkeys: expected shape [5, 8], got [5, 4]"));
  CHECK_THAT(error_of([&] { merge_attention<float>(small, lse, out, lse); }), contains("merge_attention: other_out"));
  for (Index i = 0; i < 20; ++i) CHECK(d.data()[i] == 9.0f);
}
