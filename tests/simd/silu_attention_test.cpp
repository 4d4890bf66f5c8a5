#include <recops/simd/silu_attention.hpp>

#include "support/allocations.hpp"
#include "support/architectures.hpp"
#include "support/silu_attention_reference.hpp"

using namespace recops;
using namespace recops_test;

namespace {

/// Forward and backward of one case on architecture A, queries in two calls; the largest error of each result.
template <class T, class A>
double error_of_kernel(const SiluAttentionCase& c, const SiluAttentionAnswer& want, Workspace& ws) {
  const auto q = as<T>(c.q), k = as<T>(c.k), v = as<T>(c.v), dout = as<T>(c.dout), position = as<T>(c.position),
             time = as<T>(c.time);
  const Index room = 2 * simd::lanes<T, A>, span = 2 * c.max_length - 1;
  std::vector<T> reversed(static_cast<std::size_t>(span + room), T(0)), dreversed(static_cast<std::size_t>(span), T(0));
  std::vector<double> dtime(static_cast<std::size_t>(c.time.cols()), 0);
  simd::SiluAttentionOperands<T> x;
  x.q = q.data();
  x.k = k.data();
  x.v = v.data();
  x.q_stride = x.k_stride = c.heads * c.dk;
  x.v_stride = c.heads * c.dv;
  x.queries = c.n;
  x.keys = c.l;
  x.heads = c.heads;
  x.key_width = c.dk;
  x.value_width = c.dv;
  x.scale = static_cast<T>(c.scale);
  x.weight = T(1) / static_cast<T>(c.max_length);
  x.causal = c.causal;
  x.window = c.window;
  x.targets = c.targets;
  Matrix<T> out(c.n, c.heads * c.dv, T(7)), dq(c.n, c.heads * c.dk, T(0)), dk(c.l, c.heads * c.dk, T(0)),
      dv(c.l, c.heads * c.dv, T(0));
  simd::SiluAttentionGradients<T> g;
  g.dq = dq.data();
  g.dk = dk.data();
  g.dv = dv.data();
  g.dq_stride = g.dk_stride = x.q_stride;
  g.dv_stride = x.v_stride;
  if (!position.empty()) {
    std::reverse_copy(position.data(), position.data() + span, reversed.data());
    x.position = position.data() + c.max_length - 1;
    x.reversed = reversed.data() + c.max_length - 1;
    g.reversed = dreversed.data() + c.max_length - 1;
  }
  if (!time.empty()) {
    x.time = time.data();
    x.buckets = time.cols();
    x.key_times = c.times;
    x.query_times = c.asked;
    g.time = dtime.data();
  }
  const Index middle = c.n * 2 / 3;
  for (int half = 0; half < 2; ++half) {
    const Index q0 = half == 0 ? 0 : middle, q1 = half == 0 ? middle : c.n;
    simd::silu_attention_forward<T, A>(x, q0, q1, out.data() + q0 * out.cols(), out.cols(), ws);
    for (Index h = 0; h < c.heads; ++h) simd::silu_attention_backward<T, A>(x, q0, q1, h, h + 1, dout.data(), dout.cols(), g, ws);
  }
  double worst = max_difference(out.view(), want.out.view());
  worst = std::max(worst, max_difference(dq.view(), want.dq.view()));
  worst = std::max(worst, max_difference(dk.view(), want.dk.view()));
  worst = std::max(worst, max_difference(dv.view(), want.dv.view()));
  for (Index i = 0; i < c.position.cols(); ++i)
    worst =
        std::max(worst, std::abs(static_cast<double>(dreversed[static_cast<std::size_t>(span - 1 - i)]) - want.dposition(0, i)));
  for (Index i = 0; i < c.time.cols(); ++i)
    worst = std::max(worst, std::abs(dtime[static_cast<std::size_t>(i)] - want.dtime(0, i)));
  return worst;
}

}  // namespace

TEST_CASE("silu attention on every architecture", "[simd][silu_attention]") {
  Random random = random_stream(61);
  Workspace ws;
  const Index sizes[][6] = {{1, 1, 1, 1, 1, 1},     {2, 2, 1, 3, 2, 5},      {7, 7, 2, 5, 3, 7},     {33, 33, 3, 8, 16, 40},
                            {64, 64, 1, 17, 9, 64}, {3, 130, 2, 16, 8, 200}, {40, 90, 2, 4, 7, 100}, {131, 131, 2, 6, 32, 131}};
  for (const auto& s : sizes) {
    for (int kind = 0; kind < 7; ++kind) {
      SiluAttentionCase c(s[0], s[1], s[2], s[3], s[4], s[5], random);
      c.causal = kind != 1;
      if (kind >= 2) c.add_position(random);
      if (kind >= 3) c.add_time(kind == 3 ? 4 : 40, kind == 4, random);
      if (kind == 2 || kind == 5) c.window = 1 + random.below(s[1]);
      if (kind >= 5) c.targets = random.below(s[1] + 1);
      if (kind == 6) c.time = {}, c.times.clear(), c.asked.clear();
      const SiluAttentionAnswer want = silu_attention_reference(c);
      CAPTURE(s[0], s[1], s[2], s[3], s[4], kind, c.window, c.targets);
      for_each_architecture([&](auto a) {
        CHECK(error_of_kernel<double, decltype(a)>(c, want, ws) < 1e-12);
        CHECK(error_of_kernel<float, decltype(a)>(c, want, ws) < 2e-5);
      });
    }
  }
}

TEST_CASE("silu attention far from zero", "[simd][silu_attention]") {
  for_each_architecture([&](auto a) {
    using A = decltype(a);
    Workspace ws;
    for (const float score : {1e-30f, -1e-30f, 80.0f, -80.0f, 87.5f, -87.5f, 1e4f, -1e4f, 1e30f, -1e30f}) {
      const std::vector<float> q(20, 1.0f), k(20, score), v(20, 1.0f);
      std::vector<float> out(20);
      simd::SiluAttentionOperands<float> x;
      x.q = q.data();
      x.k = k.data();
      x.v = v.data();
      x.q_stride = x.k_stride = x.v_stride = x.key_width = x.value_width = 1;
      x.queries = x.keys = 20;
      simd::silu_attention_forward<float, A>(x, 0, 20, out.data(), 1, ws);
      simd::silu_attention_forward<float, A>(x, 0, 1, out.data(), 1, ws);
      const double one = static_cast<double>(score) / (1 + std::exp(-static_cast<double>(score)));
      CAPTURE(score);
      for (int i = 0; i < 20; ++i)
        CHECK(std::abs(static_cast<double>(out[static_cast<std::size_t>(i)]) - (i + 1) * one) <=
              1e-6 * (i + 1) * std::abs(one) + 1e-9);
    }
  });
}

TEST_CASE("buckets of time gaps", "[core][log_buckets]") {
  CHECK(log_bucket(0, 0, 147) == 0);
  CHECK(log_bucket(5, 4, 147) == 0);
  CHECK(log_bucket(4, 6, 147) == 2);  // ln 2 / 0.301 = 2.3
  CHECK(log_bucket(0, 1000000, 10) == 10);
  CHECK(log_bucket(std::numeric_limits<std::int64_t>::min(), std::numeric_limits<std::int64_t>::max(), 147) == 147);
  Index last = 0;
  for (std::int64_t gap = 1; gap < std::int64_t{1} << 50; gap += 1 + gap / 997) {
    const Index k = log_bucket(gap, 0, 147), want = static_cast<Index>(std::floor(std::log(static_cast<double>(gap)) / 0.301));
    if (k != want) {
      CAPTURE(gap, k, want);
      CHECK(k == want);
    }
    CHECK(k >= last);
    last = k;
  }
}
