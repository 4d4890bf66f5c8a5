/// Oracle: attention in double precision written from its formula (support/attention_reference.hpp), on every instruction set.
#include <recops/simd/attention_backward.hpp>
#include <recops/simd/attention_forward.hpp>
#include <recops/simd/quantize.hpp>

#include <array>

#include "support/architectures.hpp"
#include "support/attention_reference.hpp"

using namespace recops;
using namespace recops_test;

namespace {

enum Masks : unsigned {
  none = 0,
  causal = 1,
  window = 2,
  mask = 4,
  key_bias = 8,
  head_key_bias = 16,
  pair_bias = 32,
  head_pair_bias = 64
};

AttentionCase make_case(Index n, Index l, Index heads, Index dk, Index dv, unsigned masks, Random& random) {
  AttentionCase x(n, l, heads, dk, dv, random);
  x.causal = masks & causal;
  x.window = masks & window ? 7 : 0;
  if (masks & mask) x.add_mask(random);
  if (masks & key_bias) x.add_key_bias(1, random);
  if (masks & head_key_bias) x.add_key_bias(heads, random);
  if (masks & pair_bias) x.add_pair_bias(1, random);
  if (masks & head_pair_bias) x.add_pair_bias(heads, random);
  return x;
}

/// The operands of a case as T, in rows that are further apart than they are long.
template <class T>
struct Operands {
  Padded<T> q, k, v;
  Matrix<T> key_bias, pair_bias;
  simd::AttentionOperands<T> x{};

  explicit Operands(const AttentionCase& c)
      : q(as<T>(c.q).view()),
        k(as<T>(c.k).view()),
        v(as<T>(c.v).view()),
        key_bias(as<T>(c.key_bias)),
        pair_bias(as<T>(c.pair_bias)) {
    x = {q.view().data(),
         k.view().data(),
         v.view().data(),
         q.view().stride(),
         k.view().stride(),
         v.view().stride(),
         c.n,
         c.l,
         c.heads,
         c.dk,
         c.dv,
         static_cast<T>(c.scale)};
    x.causal = c.causal;
    x.window = c.window;
    if (!c.mask.empty()) x.mask = c.mask.data();
    if (!c.key_bias.empty()) {
      x.key_bias = key_bias.data();
      x.key_bias_stride = key_bias.cols();
      x.key_bias_head = key_bias.cols() == 1 ? 0 : 1;
    }
    if (!c.pair_bias.empty()) {
      x.pair_bias = pair_bias.data();
      x.pair_stride = c.l;
      x.pair_head = pair_bias.rows() == c.n ? 0 : c.n * c.l;
    }
  }
};

template <class T, class A>
void check(const AttentionCase& c, Random& random, Workspace& ws) {
  CAPTURE(c.n, c.l, c.heads, c.dk, c.dv, c.causal, c.window, c.mask.size(), c.key_bias.cols(), c.pair_bias.rows());
  const double tolerance = std::is_same_v<T, float> ? 4e-6 : 1e-14;
  const Matrix<double> dout = AttentionCase::rounded(c.n, c.heads * c.dv, random),
                       dlse = AttentionCase::rounded(c.n, c.heads, random);
  const AttentionAnswer want = attention_reference(c, dout, dlse);
  Operands<T> o(c);
  Padded<T> out(c.n, c.heads * c.dv, T(99)), lse(c.n, c.heads, T(99));
  simd::attention_forward<T, A>(o.x, 0, c.n, 0, c.l, out, lse, ws);
  REQUIRE(out.intact());
  REQUIRE(lse.intact());
  CHECK(max_difference(out.view(), want.out.view()) <= tolerance);
  CHECK(max_difference(lse.view(), want.lse.view()) <= 4 * tolerance);

  Padded<T> g(as<T>(dout).view()), gl(as<T>(dlse).view()), dq(c.n, c.heads * c.dk, T(1)), dk(c.l, c.heads * c.dk, T(2)),
      dv(c.l, c.heads * c.dv, T(3));
  Matrix<T> db(want.dkey_bias.rows(), want.dkey_bias.cols(), T(4)), dp(want.dpair_bias.rows(), want.dpair_bias.cols(), T(5));
  const simd::AttentionResult<T> r{out.view().data(),   g.view().data(),   lse.view().data(),   gl.view().data(),
                                   out.view().stride(), g.view().stride(), lse.view().stride(), gl.view().stride()};
  simd::AttentionGradients<T> d{};
  d.dq = dq.view().data(), d.dk = dk.view().data(), d.dv = dv.view().data();
  d.dq_stride = dq.view().stride(), d.dk_stride = dk.view().stride(), d.dv_stride = dv.view().stride();
  if (o.x.key_bias) d.key_bias = db.data(), d.key_bias_stride = o.x.key_bias_stride, d.key_bias_head = o.x.key_bias_head;
  if (o.x.pair_bias) d.pair_bias = dp.data(), d.pair_stride = o.x.pair_stride, d.pair_head = o.x.pair_head;
  simd::attention_backward<T, A>(o.x, 0, c.n, 0, c.l, r, d, ws);
  REQUIRE(dq.intact());
  REQUIRE(dk.intact());
  REQUIRE(dv.intact());
  const auto added = [&](auto got, const Matrix<double>& exact, double before) {
    Matrix<double> sum = exact;
    double most = 1;
    for (Index i = 0; i < sum.rows() * sum.cols(); ++i) {
      most = std::max(most, std::abs(sum.data()[i]));
      sum.data()[i] += before;
    }
    return max_difference(got, sum.view()) / most;
  };
  CHECK(added(dq.view(), want.dq, 1) <= 4 * tolerance);
  CHECK(added(dk.view(), want.dk, 2) <= 4 * tolerance);
  CHECK(added(dv.view(), want.dv, 3) <= 4 * tolerance);
  CHECK(added(db.view(), want.dkey_bias, 4) <= 8 * tolerance);
  CHECK(added(dp.view(), want.dpair_bias, 5) <= 4 * tolerance);
}

}  // namespace

TEMPLATE_TEST_CASE("attention kernels match the formula for every shape and mask", "[simd][attention]", float, double) {
  Random random = random_stream(1);
  Workspace ws;
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    for (const Index n : {1, 2, 3, 8, 9, 16, 33, 63, 80}) {
      for (const Index l : {0, 1, 2, 61, 130}) {
        const Index heads = 1 + (n + l) % 3, dk = Index{std::array{3, 16, 17}[static_cast<std::size_t>(n % 3)]},
                    dv = l % 2 ? 5 : 19;
        for (const unsigned m :
             {0u, 1u, 2u, 3u, 4u, 8u, 16u, 32u, 64u, 4u + 8u, 1u + 4u, 2u + 16u + 64u, 3u + 32u, 4u + 16u + 32u})
          check<TestType, A>(make_case(n, l, heads, dk, dv, m, random), random, ws);
      }
    }
    check<TestType, A>(make_case(64, 250, 2, 64, 64, none, random), random, ws);
    check<TestType, A>(make_case(1, 250, 1, 80, 80, none, random), random, ws);
  });
}

TEMPLATE_TEST_CASE("scores that rise by thousands rescale what was summed before", "[simd][attention]", float, double) {
  for_each_architecture([&](auto arch) {
    Workspace ws;
    Random random = random_stream(2);
    for (const Index n : {1, 20}) {
      AttentionCase c(n, 200, 1, 4, 3, random);
      for (Index j = 0; j < c.l; ++j) c.k(j, 0) = static_cast<double>(100 * j % 1700), c.k(j, 1) = 0;
      for (Index i = 0; i < n; ++i) c.q(i, 0) = i % 3 == 0 ? 8 : i % 3 == 1 ? -8 : 0.5;
      Operands<TestType> o(c);
      Matrix<TestType> out(n, 3), lse(n, 1);
      simd::attention_forward<TestType, decltype(arch)>(o.x, 0, n, 0, c.l, out, lse, ws);
      const AttentionAnswer want = attention_reference(c, {}, {});
      // A float score near 7000 is known to 5e-4, and so is its weight.
      REQUIRE(max_difference(out.view(), want.out.view()) < (std::is_same_v<TestType, float> ? 5e-3 : 1e-11));
      REQUIRE(max_difference(lse.view(), want.lse.view()) < (std::is_same_v<TestType, float> ? 2e-3 : 1e-11));
    }
  });
}

TEMPLATE_TEST_CASE("exp2 of attention is exact to rounding, keeps NaN and underflows to 0", "[simd][attention]", float, double) {
  using T = TestType;
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    constexpr Index W = simd::lanes<T, A>;
    alignas(64) T x[W];
    double worst = 0;
    for (double at = -120; at < 31; at += 0.0137) {
      std::fill_n(x, W, static_cast<T>(at));
      simd::attention_kernel::exp2(simd::Batch<T, A>::load_aligned(x)).store_aligned(x);
      const double exact = std::exp2(static_cast<double>(static_cast<T>(at)));
      worst = std::max(worst, std::abs(static_cast<double>(x[W - 1]) - exact) / exact);
    }
    CHECK(worst < (std::is_same_v<T, float> ? 3e-7 : 5e-16));
    std::fill_n(x, W, -std::numeric_limits<T>::infinity());
    x[W - 1] = std::numeric_limits<T>::quiet_NaN();
    simd::attention_kernel::exp2(simd::Batch<T, A>::load_aligned(x)).store_aligned(x);
    CHECK(x[0] == T(0));
    CHECK(std::isnan(x[W - 1]));
  });
}

TEMPLATE_TEST_CASE("near powers are those of exp2 bit by bit, and know when they are not", "[simd][attention]", float, double) {
  using T = TestType;
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    using B = simd::Batch<T, A>;
    constexpr Index W = simd::lanes<T, A>;
    alignas(64) T x[W], want[W];
    Index wrong = 0;
    const auto see = [&](T value) {
      std::fill_n(x, W, T(0));
      x[W - 1] = value;
      B batch = B::load_aligned(x);
      simd::attention_kernel::exp2(batch).store_aligned(want);
      simd::attention_kernel::NearPowers<T, A> near;
      near.template operator()<1>(&batch);
      batch.store_aligned(x);
      if (near.all()) {
        wrong += !(value >= T(-96.5) && value <= T(32.5)) || x[W - 1] != want[W - 1];
      } else {
        wrong += value >= T(-95) && value <= T(31);
      }
    };
    for (int i = -400; i <= 400; ++i) see(static_cast<T>(i) / 4);  // halves may go either way
    for (double at = -97; at < 33; at += 0.00737) see(static_cast<T>(at));
    // Among all these some have the bits of 1.5 2^23 in part once it is added to them.
    for (double at = 16; at < 2e7; at *= 1.0001) see(static_cast<T>(-at)), see(static_cast<T>(at)), see(std::round(static_cast<T>(-at)));
    for (const double at : {-4194400.0, -4194304.0, -4194273.0, -9437280.0, -9437249.0, -10485840.0, -11796576.0, -12386400.0,
                            -12451936.0, -12583008.0, -12582912.0, -12582816.0})
      for (int d = -130; d <= 130; ++d) see(static_cast<T>(at + d));
    for (const T at : {std::numeric_limits<T>::infinity(), -std::numeric_limits<T>::infinity(), std::numeric_limits<T>::quiet_NaN(),
                       std::numeric_limits<T>::max(), std::numeric_limits<T>::lowest(), T(-1e9), T(1e7)})
      see(at);
    CHECK(wrong == 0);
  });
}

TEMPLATE_TEST_CASE("a query has the same bits whatever its neighbours", "[simd][attention]", float, double) {
  using T = TestType;
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    Workspace ws;
    Random random = random_stream(5);
    for (const double low : {0.0, -10.0, -300.0}) {
      AttentionCase c(40, 200, 1, 4, 3, random);
      // Scores around `low`, some of them halves.
      for (Index j = 0; j < c.l; ++j) c.k(j, 0) = low * 2 + static_cast<double>(j % 7), c.k(j, 1) = 0;
      for (Index i = 0; i < c.n; ++i) c.q(i, 0) = 1;
      Matrix<T> out[2] = {Matrix<T>(40, 3), Matrix<T>(40, 3)}, lse[2] = {Matrix<T>(40, 1), Matrix<T>(40, 1)};
      for (int turn = 0; turn < 2; ++turn) {
        if (turn == 1) {
          for (Index i = 0; i < c.n; ++i)
            if (i % 4 != 0) c.q(i, 0) = i % 4 == 1 ? std::numeric_limits<double>::quiet_NaN() : i % 4 == 2 ? 1e4 : -300;
        }
        Operands<T> o(c);
        simd::attention_forward<T, A>(o.x, 0, c.n, 0, c.l, out[turn], lse[turn], ws);
      }
      Index different = 0;
      for (Index i = 0; i < c.n; i += 4) {
        for (Index d = 0; d < 3; ++d) different += out[0](i, d) != out[1](i, d);
        different += lse[0](i, 0) != lse[1](i, 0);
      }
      CAPTURE(low);
      CHECK(different == 0);
    }
  });
}

TEST_CASE("scores of millions below the largest have no weight", "[simd][attention]") {
  for_each_architecture([&](auto arch) {
    Workspace ws;
    Random random = random_stream(6);
    AttentionCase c(40, 2, 1, 1, 1, random);
    for (Index i = 0; i < c.n; ++i) c.q(i, 0) = 1;
    c.k(0, 0) = 0, c.k(1, 0) = -2907265;
    Operands<float> o(c);
    Matrix<float> out(40, 1), lse(40, 1);
    simd::attention_forward<float, decltype(arch)>(o.x, 0, c.n, 0, c.l, out, lse, ws);
    for (Index i = 0; i < c.n; ++i) CHECK(out(i, 0) == static_cast<float>(c.v(0, 0)));
  });
}

namespace {

/// Attention over what `rows` stand for, in every way the kernels read them.
template <class A, class S>
void check_stored(AttentionCase c, const simd::HistoryRows<S>& k, const simd::HistoryRows<S>& v, Workspace& ws) {
  CAPTURE(c.n, c.l, c.heads, c.dk, c.causal, c.mask.size(), c.key_bias.cols(), sizeof(S), k.scale_head);
  Operands<float> o(c);
  const simd::StoredHistory<float> stored = simd::stored_history<A>(k, v);
  o.x.k = o.x.v = nullptr;
  o.x.stored = &stored;
  o.x.stored_row = 2;
  const AttentionAnswer want = attention_reference(c, {}, {});
  Padded<float> out(c.n, c.heads * c.dv, 99.0f), lse(c.n, c.heads, 99.0f);
  simd::attention_forward<float, A>(o.x, 0, c.n, 0, c.l, out, lse, ws);
  REQUIRE((out.intact() && lse.intact()));
  CHECK(max_difference(out.view(), want.out.view()) <= 1e-5);
  CHECK(max_difference(lse.view(), want.lse.view()) <= 2e-5);
}

/// Two rows of NaN, then x: what lies before a sequence is not read.
template <class S>
Matrix<S> behind_two(const Matrix<double>& x) {
  Matrix<S> out(x.rows() + 2, x.cols(), S(std::numeric_limits<float>::quiet_NaN()));
  for (Index i = 0; i < x.rows() * x.cols(); ++i) out.data()[2 * x.cols() + i] = S(static_cast<float>(x.data()[i]));
  return out;
}

}  // namespace

TEST_CASE("keys and values in bfloat16 and int8 give the result of what they stand for", "[simd][attention][stored]") {
  Random random = random_stream(3);
  Workspace ws;
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    for (const Index n : {1, 3, 21}) {
      for (const Index l : {1, 8, 9, 100, 611}) {
        for (const Index dk : {5, 8, 16, 32, 64}) {
          const Index heads = 64 / dk > 4 ? 4 : 64 / dk;
          for (const unsigned m : {0u, 1u, 4u, 8u}) {
            if (m != 0 && l > 100) continue;
            const bool shared = (n + l + dk) % 2 == 0;
            AttentionCase c = make_case(n, l, heads, dk, dk, m, random);
            if (shared) c.v = c.k;
            const Index width = heads * dk;
            Matrix<BFloat16> k = behind_two<BFloat16>(c.k), v = behind_two<BFloat16>(c.v);
            AttentionCase rounded = c;
            for (Index i = 0; i < l * width; ++i) {
              rounded.k.data()[i] = static_cast<float>(k.data()[2 * width + i]);
              rounded.v.data()[i] = static_cast<float>(v.data()[2 * width + i]);
            }
            const simd::HistoryRows<BFloat16> kb{k.data(), width}, vb{v.data(), width};
            check_stored<A>(rounded, kb, shared ? kb : vb, ws);
            for (const Index block : {Index{0}, dk}) {
              QuantizedRows kq, vq;
              kq.assign(behind_two<float>(c.k).view(), block);
              vq.assign(behind_two<float>(c.v).view(), block);
              const auto restore = [&](const QuantizedRows& q, Matrix<double>& to) {
                for (Index j = 0; j < l; ++j)
                  for (Index d = 0; d < width; ++d)
                    to(j, d) =
                        static_cast<double>(q.codes(j + 2, d)) * static_cast<double>(q.scales(j + 2, block ? d / block : 0));
              };
              restore(kq, rounded.k);
              restore(vq, rounded.v);
              const simd::HistoryRows<std::int8_t> ki{kq.codes.data(), width, kq.scales.data(), kq.scales.cols(),
                                                      block && heads > 1},
                  vi{vq.codes.data(), width, vq.scales.data(), vq.scales.cols(), block && heads > 1};
              check_stored<A>(rounded, ki, shared ? ki : vi, ws);
            }
          }
        }
      }
    }
  });
}
