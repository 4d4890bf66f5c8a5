/// Oracle: vectors made with NumPy and PyTorch (golden/history_search.py), and signatures written bit by bit.
#include <recops/attention/eta.hpp>
#include <recops/attention/target_attention.hpp>

#include <vector>

#include "support/allocations.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {

Matrix<std::uint64_t> signatures(const Golden& golden, const std::string& key) {
  const Matrix<std::int64_t> stored = golden.matrix<std::int64_t>(key);
  Matrix<std::uint64_t> m(stored.rows(), stored.cols());
  for (Index i = 0; i < m.rows() * m.cols(); ++i) m.data()[i] = static_cast<std::uint64_t>(stored.data()[i]);
  return m;
}

template <class T>
double scalar_product(const T* a, const T* b, Index stride, Index n) {
  double sum = 0;
  for (Index i = 0; i < n; ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i * stride]);
  return sum;
}

}  // namespace

TEMPLATE_TEST_CASE("eta agrees with NumPy and PyTorch", "[attention][eta][golden]", float, double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 1e-5 : 1e-12;
  const Golden golden("history_search");
  const auto history_offsets = golden.values<std::int64_t>("history_offsets"),
             candidate_offsets = golden.values<std::int64_t>("candidate_offsets");
  const Matrix<T> e = golden.matrix<T>("history"), q = golden.matrix<T>("candidates"), g = golden.matrix<T>("cotangent"),
                  planes = golden.matrix<T>("eta.planes");
  Padded<T> history(e.view()), candidates(q.view());
  const JaggedView<const T> what(history.view(), history_offsets), who(candidates.view(), candidate_offsets);
  Workspace ws;

  Matrix<std::uint64_t> sign_e(e.rows(), 2), sign_q(q.rows(), 2);
  simhash<T>(history, planes, sign_e, ws);
  simhash<T>(candidates, planes, sign_q, ws);
  CHECK(max_difference(sign_e.view(), signatures(golden, "eta.history_signatures").view()) == 0);
  CHECK(max_difference(sign_q.view(), signatures(golden, "eta.candidate_signatures").view()) == 0);

  const JaggedView<const std::uint64_t> what_bits(sign_e.view(), history_offsets), who_bits(sign_q.view(), candidate_offsets);
  Matrix<std::int32_t> indices(q.rows(), 4), found(q.rows(), 4);
  Matrix<std::uint8_t> distances(q.rows(), 4);
  Matrix<T> out(q.rows(), 8), lse(q.rows(), 2), dc(q.rows(), 8, T(0)), dh(e.rows(), 8, T(0));
  const auto both = [&] {
    eta<T>(who, what, what, who_bits, what_bits, {.heads = 2}, indices, out, lse, ws);
    eta_backward<T>(who, what, what, {.heads = 2}, indices, out, lse, g, dc, dh, dh, ws);
  };
  both();
  eta_search(who_bits, what_bits, found, distances, ws);
  CHECK(max_difference(indices.view(), golden.matrix<std::int32_t>("eta.indices").view()) == 0);
  CHECK(max_difference(found.view(), indices.view()) == 0);
  CHECK(max_difference(distances.view(), golden.matrix<std::uint8_t>("eta.distances").view()) == 0);
  CHECK(max_difference(out.view(), golden.matrix<double>("eta.out").view()) <= tolerance);
  CHECK(max_difference(dc.view(), golden.matrix<double>("eta.dcandidates").view()) <= 10 * tolerance);
  CHECK(max_difference(dh.view(), golden.matrix<double>("eta.dhistory").view()) <= 10 * tolerance);
  CHECK(count_allocations(both) == 0);
}

TEMPLATE_TEST_CASE("simhash: signs of projections", "[attention][eta]", float, double) {
  using T = TestType;
  Random random = random_stream(630);
  Workspace ws;
  for (const Index d : {1, 5, 33})
    for (const Index bits : {1, 7, 63, 64, 65, 255})
      for (const Index n : {0, 1, 300}) {
        CAPTURE(d, bits, n);
        const Matrix<T> planes = random_planes<T>(bits, d, random), x = random_matrix<T>(n, d, random);
        Padded<T> rows(x.view());
        const Index words = (bits + 63) / 64;
        Matrix<std::uint64_t> got(n, words), alone(1, words), large(n, words);
        simhash<T>(rows, planes, got, ws);
        Index wrong = 0;
        for (Index i = 0; i < n; ++i)
          for (Index t = 0; t < 64 * words; ++t) {
            const bool bit = (got(i, t / 64) >> (t % 64)) & 1;
            if (t >= bits) {
              wrong += bit;
              continue;
            }
            const double p = scalar_product(x.row(i), planes.data() + t, bits, d);
            wrong += std::abs(p) > 1e-4 && bit != (p >= 0);
          }
        CHECK(wrong == 0);
        if (n == 0) continue;
        simhash<T>(x.view().middle_rows(n / 2, 1), planes, alone, ws);
        CHECK(max_difference(alone.view(), got.view().middle_rows(n / 2, 1)) == 0);
        Matrix<T> scaled(n, d);  // by a power of two: not a bit changes
        for (Index i = 0; i < n * d; ++i) scaled.data()[i] = 8 * x.data()[i];
        simhash<T>(scaled, planes, large, ws);
        CHECK(max_difference(got.view(), large.view()) == 0);
      }
  // A zero vector has all bits; a NaN none.
  Matrix<T> odd(2, 3, T(0));
  odd(1, 1) = std::numeric_limits<T>::quiet_NaN();
  for (const Index bits : {1, 5, 8, 13, 64, 67}) {
    Matrix<std::uint64_t> got(2, (bits + 63) / 64);
    const Matrix<T> planes = random_planes<T>(bits, 3, random);
    simhash<T>(odd, planes, got, ws);
    for (Index t = 0; t < bits; ++t) {
      CHECK((got(0, t / 64) >> (t % 64) & 1) == 1);
      CHECK((got(1, t / 64) >> (t % 64) & 1) == 0);
    }
  }
}

TEST_CASE("the share of equal bits tells the angle", "[attention][eta]") {
  Random random = random_stream(631);
  Workspace ws;
  // Unit vectors in the plane at 0, 30, 60 ... 180 degrees, each with thousands of planes.
  constexpr double pi = 3.14159265358979323846;
  Matrix<double> x(7, 2);
  for (Index i = 0; i < 7; ++i)
    x(i, 0) = std::cos(static_cast<double>(i) * pi / 6), x(i, 1) = std::sin(static_cast<double>(i) * pi / 6);
  Matrix<std::uint64_t> bits(7, 4);
  Matrix<std::uint8_t> distances(1, 7);
  double mean[7] = {};
  constexpr int rounds = sanitized ? 10 : 40, planes = 250;
  for (int round = 0; round < rounds; ++round) {
    const Matrix<double> normals = random_planes<double>(planes, 2, random);
    simhash<double>(x, normals, bits, ws);
    simd::hamming_distances(bits.view().middle_rows(0, 1), bits, distances, ws);
    for (Index i = 0; i < 7; ++i) mean[i] += distances(0, i) / static_cast<double>(rounds * planes);
  }
  CHECK(mean[0] == 0);
  CHECK(mean[6] == Approx(1).margin(1e-12));  // opposite vectors share no bit
  for (int i = 1; i < 6; ++i) CHECK(std::abs(mean[i] - i / 6.0) < 5 * std::sqrt(0.25 / (rounds * planes)));
}

TEST_CASE("keeping everything is target attention; threads change nothing", "[attention][eta]") {
  Random random = random_stream(632);
  Workspace ws;
  const std::vector<int> rows{0, 3, 23, 24}, keys{0, 50, 50, 130};
  const Matrix<float> c = random_matrix<float>(24, 8, random), h = random_matrix<float>(130, 8, random),
                      planes = random_planes<float>(64, 8, random);
  Matrix<std::uint64_t> cs(24, 1), hs(130, 1);
  simhash<float>(c, planes, cs, ws);
  simhash<float>(h, planes, hs, ws);
  const JaggedView<const float> who(c.view(), rows), what(h.view(), keys);
  Matrix<std::int32_t> indices(24, 100), again(24, 100);
  Matrix<float> out(24, 8), all(24, 8), parallel_out(24, 8);
  const AttentionOptions options{.heads = 2};
  eta<float>(who, what, what, {cs.view(), rows}, {hs.view(), keys}, options, indices, out, {}, ws);
  target_attention<float>(who, what, options, all, ws);
  CHECK(max_difference(out.view(), all.view()) < 1e-6);
  Threads threads{4};
  Workspace parallel(make_executor(threads, 4));
  eta<float>(who, what, what, {cs.view(), rows}, {hs.view(), keys}, options, again, parallel_out, {}, parallel);
  CHECK(max_difference(indices.view(), again.view()) == 0);
  CHECK(max_difference(out.view(), parallel_out.view()) == 0);
}

TEST_CASE("eta names what is wrong and writes nothing", "[attention][eta][errors]") {
  Workspace ws;
  Matrix<float> c(2, 4, 1.0f), h(5, 4, 1.0f), out(2, 4, 9.0f), planes(4, 64, 1.0f), none(4, 0), many(4, 256, 1.0f);
  Matrix<std::uint64_t> cs(2, 1, std::uint64_t{0}), hs(4, 1, std::uint64_t{0}), wide(5, 2, std::uint64_t{0});
  Matrix<std::int32_t> indices(2, 3, 9);
  CHECK_THAT(error_of([&] { eta<float>(c, h, h, cs, hs, {}, indices, out, {}, ws); }),
             contains("eta: history_signatures: expected as many rows in each sequence, 5, got 4 at position 0"));
  CHECK_THAT(error_of([&] { eta<float>(c, h, h, cs, wide, {}, indices, out, {}, ws); }),
             contains("eta: history_signatures: expected shape [_, 1], got [5, 2]"));
  CHECK_THAT(error_of([&] { simhash<float>(h, none, hs, ws); }), contains("simhash: planes: expected 1 to 255 planes, got 0"));
  CHECK_THAT(error_of([&] { simhash<float>(h, many, hs, ws); }), contains("1 to 255 planes"));
  CHECK_THAT(error_of([&] { simhash<float>(h, planes, hs, ws); }),
             contains("simhash: signatures: expected shape [5, 1], got [4, 1]"));
  Matrix<std::uint64_t> all(5, 1, std::uint64_t{0});
  for (const AttentionOptions& o : {AttentionOptions{.causal = true}, AttentionOptions{.window = 2}})
    CHECK_THAT(error_of([&] { eta<float>(c, h, h, cs, all, o, indices, out, {}, ws); }),
               contains("eta: causal: expected neither causal nor window"));
  for (Index i = 0; i < 8; ++i) CHECK(out.data()[i] == 9.0f);
  for (Index i = 0; i < 6; ++i) CHECK(indices.data()[i] == 9);
}
