// Oracle: determinants of all subsets. Frequencies are compared by chi-square.
#include <recops/diversity/dpp_sample.hpp>
#include <vector>

#include "support/allocations.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

TEMPLATE_TEST_CASE("samples follow the determinants", "[diversity][dpp_sample]", float, double) {
  using T = TestType;
  Random random = random_stream(7601);
  Workspace ws;
  const Matrix<T> f = random_matrix<T>(7, 4, random);
  Vector<T> q{1, T(0.5), 2, T(1.5), 0, T(0.8), T(1.2)};  // item 4 is never drawn
  const DppItems<T> in{.features = f, .quality = q};
  DppSampler<T> sampler;
  sampler.prepare(in, ws);
  CHECK((sampler.items() == 7 && sampler.rank() == 4));
  Vector<double> of_three(128, 0), of_any(128, 0);
  constexpr int draws = 6000;
  double drawn = 0;
  for (int s = 0; s < draws; ++s) {
    Vector<std::int32_t> three(3), any(4);
    const RandomRow at{.seed = seed(), .row = static_cast<std::uint64_t>(s)};
    const Selection done = sampler.sample(at, three, ws), free = sampler.sample_any(at, any, ws);
    REQUIRE((done.count == 3 && done.status == SelectionStatus::ok));
    unsigned set = 0;
    for (const std::int32_t i : three) set |= 1u << i;
    of_three[static_cast<Index>(set)] += 1;
    set = 0;
    for (Index t = 0; t < free.count; ++t) set |= 1u << any[t];
    of_any[static_cast<Index>(set)] += 1;
    drawn += static_cast<double>(free.count) / draws;
  }
  CHECK(std::abs(drawn - sampler.expected_size()) < 0.06);
  double total_three = 0, total_any = 0;
  Vector<double> expected(128, 0);
  for (unsigned set = 0; set < 128; ++set) {
    std::vector<Index> items;
    for (int i = 0; i < 7; ++i)
      if (set >> i & 1u) items.push_back(i);
    const auto k = static_cast<Index>(items.size());
    Matrix<double> m(k, k);
    for (Index a = 0; a < k; ++a)
      for (Index b = 0; b < k; ++b) {
        const Index i = items[static_cast<std::size_t>(a)], j = items[static_cast<std::size_t>(b)];
        m(a, b) = 0;
        for (Index c = 0; c < 4; ++c)
          m(a, b) +=
              static_cast<double>(q[i]) * static_cast<double>(f(i, c)) * static_cast<double>(q[j]) * static_cast<double>(f(j, c));
      }
    const double det = k == 0 ? 1 : recops::detail::cholesky(m) ? std::exp(recops::detail::log_det(m)) : 0;
    expected[static_cast<Index>(set)] = det;
    total_any += det;
    if (k == 3) total_three += det;
  }
  double chi_three = 0, chi_any = 0, rest_three = 0, rest_any = 0, seen_three = 0, seen_any = 0;
  Index cells_three = 0, cells_any = 0;
  for (unsigned set = 0; set < 128; ++set) {
    const auto s = static_cast<Index>(set);
    const auto add = [&](double want, double got, double& chi, Index& cells, double& rest, double& seen) {
      if (want == 0) CHECK(got == 0);
      if (want < 5) {  // too few for the approximation: together they are one cell
        rest += want;
        seen += got;
      } else {
        chi += (got - want) * (got - want) / want;
        ++cells;
      }
    };
    if (__builtin_popcount(set) == 3)
      add(draws * expected[s] / total_three, of_three[s], chi_three, cells_three, rest_three, seen_three);
    add(draws * expected[s] / total_any, of_any[s], chi_any, cells_any, rest_any, seen_any);
  }
  const auto limit = [](Index cells) {  // about one in ten thousand
    const auto df = static_cast<double>(cells);
    return df + 3.8 * std::sqrt(2 * df) + 10;
  };
  if (rest_three > 5) chi_three += (seen_three - rest_three) * (seen_three - rest_three) / rest_three;
  if (rest_any > 5) chi_any += (seen_any - rest_any) * (seen_any - rest_any) / rest_any;
  CAPTURE(chi_three, cells_three, chi_any, cells_any);
  CHECK(chi_three < limit(cells_three));
  CHECK(chi_any < limit(cells_any));
}

TEST_CASE("samples: functions of their row, rank, duplicates, sizes, errors", "[diversity][dpp_sample]") {
  Random random = random_stream(7602);
  Workspace ws;
  Matrix<float> f = random_matrix<float>(50, 6, random);
  for (Index i = 1; i < 50; i += 2) std::copy_n(f.row(i - 1), 6, f.row(i));  // every item twice
  DppSampler<float> sampler;
  sampler.prepare({.features = f}, ws);
  Vector<std::int32_t> picks(6), again(6), seven(7);
  for (std::uint64_t row = 0; row < 200; ++row) {
    const RandomRow at{.seed = 9, .row = row};
    sampler.sample(at, picks, ws);
    for (Index a = 0; a < 6; ++a)
      for (Index b = 0; b < a; ++b) CHECK(picks[a] / 2 != picks[b] / 2);  // never both of a pair
    const auto call = [&] { sampler.sample(at, again, ws); };
    if (row == 3) CHECK(count_allocations(call) == 0);
    call();
    CHECK(std::equal(picks.begin(), picks.end(), again.begin()));
  }
  const Selection none = sampler.sample({}, seven, ws);
  CHECK((none.count == 0 && none.status == SelectionStatus::rank_exhausted && seven[0] == -1));
  CHECK(sampler.sample({}, {}, ws).count == 0);
  CHECK(error_of([&] { sampler.sample_any({}, VectorView<std::int32_t>(picks.data(), 2), ws); }) ==
        "DppSampler::sample_any: picks: expected room for rank() items, got 2");
  const auto prepare = [&] { sampler.prepare({.features = f}, ws); };
  prepare();
  CHECK(count_allocations(prepare) == 0);
  for (const float broken : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    f(0, 0) = broken;
    CHECK(error_of(prepare) == "DppSampler: features: expected finite numbers, got others");
    CHECK(sampler.items() == 0);
  }
  sampler.prepare({}, ws);
  CHECK(sampler.rank() == 0);
  CHECK(sampler.sample_any({}, {}, ws).count == 0);
}

TEST_CASE("samples do not depend on the scales of features and qualities, nor on gaps", "[diversity][dpp_sample]") {
  Random random = random_stream(7603);
  Workspace ws;
  Matrix<float> f = random_matrix<float>(40, 6, random);
  Vector<std::int32_t> picks(5), expected(5);
  DppSampler<float> sampler, plain;
  plain.prepare({.features = f}, ws);
  Padded<float> strided(f.view());
  for (const auto& [f_scale, q_scale] :
       {std::pair(1.0, 1.0), {0x1p66, 0x1p99}, {0x1p-83, 0x1p-66}, {0x1p-66, 0x1p66}, {0x1p30, 0x1p-99}}) {
    for (Index i = 0; i < 40; ++i) simd::scale(static_cast<float>(f_scale), f.row(i), strided.view().row(i), 6);
    const Vector<float> q(40, static_cast<float>(q_scale));
    sampler.prepare({.features = strided, .quality = q}, ws);
    for (std::uint64_t row = 0; row < 50; ++row) {
      CHECK(plain.sample({.seed = 4, .row = row}, expected, ws).count == 5);
      CHECK(sampler.sample({.seed = 4, .row = row}, picks, ws).count == 5);
      CHECK(std::equal(picks.begin(), picks.end(), expected.begin()));
    }
  }
  CHECK(strided.intact());
  // Every item of three that are orthogonal, at the ends of what float holds.
  for (const auto& [size, quality] : {std::pair(1e20f, 1e30f), {1e-25f, 1e-20f}, {1e-40f, 1.0f}}) {
    const Matrix<float> axes{{size, 0, 0}, {0, size, 0}, {0, 0, size}};
    const Vector<float> q(3, quality);
    sampler.prepare({.features = axes, .quality = q}, ws);
    Vector<std::int32_t> all(3);
    const Selection done = sampler.sample({.seed = 4}, all, ws);
    CHECK((done.count == 3 && done.status == SelectionStatus::ok));
    std::sort(all.begin(), all.end());
    CHECK((all[0] == 0 && all[1] == 1 && all[2] == 2));
  }
  // Nearly parallel and large: what tells them apart is a millionth of what float holds.
  const float s = 1e36f;
  const Matrix<float> steep{{s, s}, {s, s * 1.001f}, {s, s * 0.999f}, {s, s * 1.0005f}};
  sampler.prepare({.features = steep}, ws);
  Vector<std::int32_t> two(2);
  for (std::uint64_t row = 0; row < 50; ++row) {
    CHECK(sampler.sample({.seed = 4, .row = row}, two, ws).count == 2);
    CHECK(two[0] != two[1]);
  }
  // Features of all sizes, made even by their qualities: the first is always there, the others as often as each other.
  const Matrix<float> uneven{{1e36f, 0}, {0, 1e-5f}, {0, 1}};
  const Vector<float> even{1e-36f, 1e5f, 1};
  sampler.prepare({.features = uneven, .quality = even}, ws);
  int seen[3] = {};
  for (std::uint64_t row = 0; row < 2000; ++row) {
    CHECK(sampler.sample({.seed = 4, .row = row}, two, ws).count == 2);
    ++seen[two[0]], ++seen[two[1]];
  }
  CHECK(seen[0] == 2000);
  CHECK(std::abs(seen[1] - seen[2]) < 200);
}
