#include <recops/attention/hstu_attention.hpp>

#include "support/allocations.hpp"
#include "support/silu_attention_reference.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {

/// A jagged batch put together from cases of one shape, its tables shared.
template <class T>
struct Batch {
  Matrix<T> q, k, v, dout, position, time;
  std::vector<std::int64_t> q_offsets{0}, k_offsets{0}, times, asked;
  std::vector<std::int32_t> targets;
  HstuAttentionOptions options;
  std::vector<SiluAttentionCase> cases;
  std::vector<SiluAttentionAnswer> want;

  Batch(const std::vector<std::pair<Index, Index>>& lengths, Index heads, Index dk, Index dv, int kind, Random& random) {
    const Index longest = 150;
    Index n = 0, l = 0;
    for (const auto& [queries, keys] : lengths) {
      SiluAttentionCase c(queries, keys, heads, dk, dv, longest, random);
      c.causal = kind != 0;
      if (kind >= 2) c.add_position(random);
      if (kind >= 3) c.add_time(50, false, random);
      if (kind == 4) c.window = 20;
      if (kind == 4) c.targets = random.below(keys + 1);
      if (!cases.empty()) c.position = cases[0].position, c.time = cases[0].time;
      cases.push_back(c);
      want.push_back(silu_attention_reference(c));
      q_offsets.push_back(n += queries);
      k_offsets.push_back(l += keys);
      times.insert(times.end(), c.times.begin(), c.times.end());
      asked.insert(asked.end(), c.asked.begin(), c.asked.end());
      targets.push_back(static_cast<std::int32_t>(c.targets));
    }
    const auto all = [&](Matrix<double> SiluAttentionCase::*part, Index rows, Index cols) {
      Matrix<T> m(rows, cols);
      Index at = 0;
      for (const SiluAttentionCase& c : cases)
        for (Index i = 0; i < (c.*part).rows(); ++i, ++at)
          for (Index j = 0; j < cols; ++j) m(at, j) = static_cast<T>((c.*part)(i, j));
      return m;
    };
    q = all(&SiluAttentionCase::q, n, heads * dk);
    k = all(&SiluAttentionCase::k, l, heads * dk);
    v = all(&SiluAttentionCase::v, l, heads * dv);
    dout = all(&SiluAttentionCase::dout, n, heads * dv);
    position = as<T>(cases[0].position);
    time = as<T>(cases[0].time);
    options = {
        .heads = heads, .max_length = longest, .scale = cases[0].scale, .causal = cases[0].causal, .window = cases[0].window};
    if (kind == 4) options.targets = targets;
  }
  HstuBias<T> bias() const {
    return {VectorView<const T>(position.data(), position.cols()), VectorView<const T>(time.data(), time.cols()), times, asked};
  }
  void forward(MatrixView<T> out, Workspace& ws) const {
    hstu_attention<T>(JaggedView<const T>(q.view(), q_offsets), JaggedView<const T>(k.view(), k_offsets),
                      JaggedView<const T>(v.view(), k_offsets), bias(), options, out, ws);
  }
  void backward(MatrixView<T> dq, MatrixView<T> dk, MatrixView<T> dv, VectorView<T> dposition, VectorView<T> dtime,
                Workspace& ws) const {
    hstu_attention_backward<T>(JaggedView<const T>(q.view(), q_offsets), JaggedView<const T>(k.view(), k_offsets),
                               JaggedView<const T>(v.view(), k_offsets), bias(), options, dout, dq, dk, dv, {dposition, dtime},
                               ws);
  }
};

/// The largest difference of the users' rows in `got` from their answers, of which got holds `times`.
template <class T>
double off(MatrixView<const T> got, const std::vector<SiluAttentionAnswer>& want, Matrix<double> SiluAttentionAnswer::*part,
           double times) {
  double worst = 0;
  Index at = 0;
  for (const auto& w : want)
    for (Index i = 0; i < (w.*part).rows(); ++i, ++at)
      for (Index j = 0; j < got.cols(); ++j)
        worst = std::max(worst, std::abs(static_cast<double>(got(at, j)) / times - (w.*part)(i, j)));
  return worst;
}
template <class T>
double off_sum(VectorView<const T> got, const std::vector<SiluAttentionAnswer>& want, Matrix<double> SiluAttentionAnswer::*part,
               double times) {
  double worst = 0;
  for (Index i = 0; i < got.size(); ++i) {
    double sum = 0;
    for (const auto& w : want) sum += (w.*part)(0, i);
    worst = std::max(worst, std::abs(static_cast<double>(got[i]) / times - sum));
  }
  return worst;
}

}  // namespace

TEMPLATE_TEST_CASE("hstu attention against its formula", "[attention][hstu]", float, double) {
  using T = TestType;
  Random random = random_stream(62);
  const double tolerance = std::is_same_v<T, float> ? 2e-5 : 1e-12;
  Threads threads{3};
  Workspace ws, threaded(make_executor(threads, 3));
  const std::vector<std::pair<Index, Index>> few{{5, 5}, {0, 0}, {1, 1}, {3, 70}, {0, 4}, {130, 131}};
  std::vector<std::pair<Index, Index>> many;
  for (Index i = 0; i < 90; ++i) many.emplace_back(i % 4, i % 4 + i % 3);
  for (int kind = 0; kind < 5; kind += sanitized ? 2 : 1) {
    for (const auto& lengths : {few, many}) {
      const Batch<T> b(lengths, 2, 5, 3, kind, random);
      CAPTURE(kind, lengths.size());
      Padded<T> out(b.q.rows(), b.v.cols(), T(9)), dq(b.q.rows(), b.q.cols()), dk(b.k.rows(), b.k.cols()),
          dv(b.v.rows(), b.v.cols());
      Vector<T> dposition(b.position.cols(), T(0)), dtime(b.time.cols(), T(0));
      b.forward(out, ws);
      for (int twice = 0; twice < 2; ++twice) b.backward(dq, dk, dv, dposition, dtime, ws);
      CHECK(off<T>(out, b.want, &SiluAttentionAnswer::out, 1) < tolerance);
      CHECK(off<T>(dq, b.want, &SiluAttentionAnswer::dq, 2) < tolerance);
      CHECK(off<T>(dk, b.want, &SiluAttentionAnswer::dk, 2) < tolerance);
      CHECK(off<T>(dv, b.want, &SiluAttentionAnswer::dv, 2) < tolerance);
      CHECK(off_sum<T>(dposition, b.want, &SiluAttentionAnswer::dposition, 2) < 5 * tolerance);
      CHECK(off_sum<T>(dtime, b.want, &SiluAttentionAnswer::dtime, 2) < 5 * tolerance);
      CHECK((out.intact() && dq.intact() && dk.intact() && dv.intact()));
      // The same bits on threads, and no memory the second time.
      Matrix<T> again(b.q.rows(), b.v.cols()), dk_again(b.k.rows(), b.k.cols(), T(0)), dk_once = dk_again;
      Vector<T> dposition_again(b.position.cols(), T(0)), dposition_once = dposition_again;
      b.forward(again, threaded);
      CHECK(max_difference(again.view(), out.view()) == 0);
      b.backward({}, dk_again, {}, dposition_again, {}, threaded);
      b.backward({}, dk_once, {}, dposition_once, {}, ws);
      CHECK(max_difference(dk_again.view(), dk_once.view()) == 0);
      CHECK(std::equal(dposition_once.begin(), dposition_once.end(), dposition_again.begin()));
      CHECK(count_allocations([&] {
              b.forward(out, ws);
              b.backward(dq, dk, dv, dposition, dtime, ws);
            }) == 0);
    }
  }
}

TEST_CASE("what hstu attention does not depend on", "[attention][hstu]") {
  Random random = random_stream(63);
  Workspace ws;
  Batch<float> b({{100, 100}}, 2, 8, 8, 3, random);
  Matrix<float> out(100, 16), other(100, 16);
  b.forward(out, ws);
  SECTION("later behaviours, even a NaN") {
    b.k(60, 3) = b.v(60, 5) = b.q(60, 1) = std::numeric_limits<float>::quiet_NaN();
    b.forward(other, ws);
    CHECK(max_difference(other.view().middle_rows(0, 60), out.view().middle_rows(0, 60)) == 0);
    CHECK(std::isnan(other(60, 0)));
    Matrix<float> dk(100, 16, 0.0f), dv(100, 16, 0.0f), dq(100, 16, 0.0f);
    b.backward(dq, dk, dv, {}, {}, ws);
    for (Index i = 0; i < 60; ++i) CHECK(std::isfinite(dq(i, 0) + dq(i, 15)));
    for (Index i = 61; i < 100; ++i) CHECK(std::isfinite(dv(i, 0)));
  }
  SECTION("a score that is infinite: no weight below, no end above") {
    constexpr float infinity = std::numeric_limits<float>::infinity();
    b.position = b.time = {};
    for (Index j = 0; j < 16; ++j) b.q(40, j) = b.k(7, j) = j == 0 || j == 8 ? 1.0f : 0.0f;
    for (const float sign : {-1.0f, 1.0f}) {
      b.k(7, 0) = sign * infinity;
      b.forward(other, ws);
      CHECK((sign < 0 ? std::isfinite(other(40, 1)) : other(40, 1) == std::copysign(infinity, b.v(7, 1))));
      CHECK(std::isfinite(other(40, 9)));  // the other head
    }
  }
  SECTION("linear in the values") {
    for (Index i = 0; i < 1600; ++i) b.v.data()[i] *= 2;
    b.forward(other, ws);
    for (Index i = 0; i < 1600; ++i) other.data()[i] /= 2;
    CHECK(max_difference(other.view(), out.view()) == 0);
  }
  SECTION("twice the history without biases, twice the output") {
    b.position = b.time = {};
    b.options.causal = false;
    b.options.max_length = 200;
    b.forward(out, ws);
    Batch<float> two = b;
    two.k.resize(200, 16);
    two.v.resize(200, 16);
    for (Index i = 0; i < 200; ++i) {
      std::copy_n(b.k.row(i % 100), 16, two.k.row(i));
      std::copy_n(b.v.row(i % 100), 16, two.v.row(i));
    }
    two.k_offsets = {0, 200};
    two.forward(other, ws);
    for (Index i = 0; i < 1600; ++i) other.data()[i] /= 2;
    CHECK(max_difference(other.view(), out.view()) < 1e-5);
  }
  SECTION("query times that are those of the next behaviours") {
    HstuBias<float> bias = b.bias();
    bias.query_times = {};
    hstu_attention<float>(b.q.view(), b.k.view(), b.v.view(), bias, b.options, other, ws);
    CHECK(max_difference(other.view(), out.view()) == 0);
  }
  SECTION("an empty batch") {
    const std::vector<std::int32_t> none{0};
    const JaggedView<const float> nothing(MatrixView<const float>(nullptr, 0, 16), none);
    hstu_attention<float>(nothing, nothing, nothing, {}, {.heads = 2, .max_length = 4}, MatrixView<float>(nullptr, 0, 16), ws);
  }
}

TEST_CASE("hstu attention errors", "[attention][hstu]") {
  Workspace ws;
  Matrix<float> q(3, 4, 1.0f), k(3, 4, 1.0f), v(3, 2, 1.0f), out(3, 2, 7.0f), longer(4, 4, 1.0f);
  const Vector<float> position(9, 0.0f), time(149, 0.0f);
  const std::vector<std::int64_t> times{1, 2, 3}, short_times{1, 2};
  const std::vector<std::int32_t> targets{4};
  const auto message = [&](const HstuBias<float>& bias, const HstuAttentionOptions& o, MatrixView<const float> queries) {
    return error_of([&] { hstu_attention<float>(queries, k.view(), v.view(), bias, o, out, ws); });
  };
  const HstuAttentionOptions good{.heads = 2, .max_length = 5};
  const auto with = [&](auto change) {
    HstuAttentionOptions o = good;
    change(o);
    return o;
  };
  CHECK(message({}, {}, q.view()).find("max_length >= 1") != std::string::npos);
  CHECK(message({}, with([](auto& o) { o.max_length = 2; }), q.view()).find("at most max_length rows") != std::string::npos);
  CHECK(message({}, with([](auto& o) { o.heads = 3; }), q.view()).find("divides") != std::string::npos);
  CHECK(message({}, with([](auto& o) { o.window = -1; }), q.view()).find("window >= 0") != std::string::npos);
  CHECK(message({}, with([](auto& o) { o.scale = std::numeric_limits<double>::infinity(); }), q.view()).find("scale") !=
        std::string::npos);
  CHECK(message({}, with([&](auto& o) { o.targets = targets; }), q.view()).find("from 0 to the sequence's rows") !=
        std::string::npos);
  CHECK(message({}, with([&](auto& o) { o.targets = targets, o.causal = false; }), q.view()).find("causal") != std::string::npos);
  CHECK(message({}, good, longer.view()).find("no more rows than keys") != std::string::npos);
  CHECK(message({.position = VectorView<const float>(position.data(), 8)}, good, q.view()).find("size 9") != std::string::npos);
  CHECK(message({.time = time, .times = times}, good, q.view()).find("at most 148") != std::string::npos);
  CHECK(message({.time = VectorView<const float>(time.data(), 5), .times = short_times}, good, q.view())
            .find("times: expected size 3") != std::string::npos);
  CHECK(*std::min_element(out.data(), out.data() + 6) == 7.0f);
  Vector<float> wrong(3, 0.0f);
  CHECK(error_of([&] {
          hstu_attention_backward<float>(q.view(), k.view(), v.view(), {.position = position}, good, out, {}, {}, {}, {wrong, {}},
                                         ws);
        }).find("dbias.position: expected size 9") != std::string::npos);
}
