// Oracles: the scalar philox4x32 (held against the published known answers in core/random_test), and the layout of the counter.
#include <recops/simd/philox.hpp>

#include <vector>

#include "support/architectures.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

// The words of N * `width` blocks from `block` on.
template <int N, class A>
std::vector<std::uint32_t> words(const simd::Philox<A>& philox, std::uint32_t block) {
  constexpr std::size_t width = static_cast<std::size_t>(simd::Philox<A>::width);
  typename simd::Philox<A>::Words w[N][4];
  philox.blocks(block, w);
  std::vector<std::uint32_t> out(4 * width * N);
  for (std::size_t i = 0; i < 4 * N; ++i) {
    alignas(64) std::uint64_t lane[width];
    w[i / 4][i % 4].store_aligned(lane);
    for (std::size_t b = 0; b < width; ++b) out[4 * (i / 4 * width + b) + i % 4] = static_cast<std::uint32_t>(lane[b]);
  }
  return out;
}

RandomRow random_row(Random& random) {
  const auto word64 = [&] { return (std::uint64_t{random.word()} << 32) | random.word(); };
  return {.seed = word64(),
          .row = word64(),
          .step = random.word(),
          .purpose = static_cast<RandomPurpose>(random.below(16)),
          .sample = static_cast<std::uint32_t>(random.below(4096))};
}

}  // namespace

TEST_CASE("blocks in lanes are the scalar blocks, on every set", "[simd][philox]") {
  for_each_architecture([](auto arch) {
    using A = decltype(arch);
    Random random = random_stream(1);
    for (int trial = 0; trial < 200; ++trial) {
      RandomRow at = random_row(random);
      const std::uint32_t first = trial % 3 == 0 ? 0 : random.word() >> 1;
      simd::Philox<A> philox(at);
      if (trial % 2) philox.set_row(at.row = random.word() * std::uint64_t{0x100000001});
      const std::vector<std::uint32_t> got = words<3>(philox, first);
      for (std::uint32_t b = 0; b < 3 * static_cast<std::uint32_t>(simd::Philox<A>::width); ++b) {
        const PhiloxBlock expected = philox4x32(random_counter(at, first + b), at.seed);
        for (std::size_t i = 0; i < 4; ++i) REQUIRE(got[4 * b + i] == expected.word[i]);
      }
    }
  });
}

TEST_CASE("the row of a batch", "[simd][philox]") {
  const std::vector<std::int32_t> small{5, 9};
  const std::vector<std::int64_t> large{5, Index{1} << 47};
  const RandomRow at{.row = 100};
  CHECK((simd::row_of(at, small, 1) == 9 && simd::row_of(at, large, 1) == std::uint64_t{1} << 47));
  CHECK(simd::row_of(at, IndexView(), 3) == 103);
}

TEMPLATE_TEST_CASE("vectors of a row come in order and stay inside", "[simd][philox]", float, double, std::uint32_t) {
  using T = TestType;
  for_each_architecture([](auto arch) {
    using A = decltype(arch);
    constexpr Index W = simd::lanes<T, A>;
    for (Index n = 0; n <= 6 * W + 3; ++n) {
      // What is handed out is the number of the vector it stands in, counted by calls.
      std::vector<T> x(static_cast<std::size_t>(n + 2), T(50)), y(x);
      Index calls = 0;
      simd::for_each_random<T, A>(
          simd::Philox<A>(RandomRow{}), n,
          [&](const auto&) {
            ++calls;
            return simd::VectorPair<T, A>{simd::Batch<T, A>(static_cast<T>(2 * calls)),
                                          simd::Batch<T, A>(static_cast<T>(2 * calls + 1))};
          },
          [&](Index i, simd::Batch<T, A> v, auto load, auto store) { store(y.data() + i, v + load(x.data() + i)); });
      CHECK(calls == (n + 2 * W - 1) / (2 * W));
      for (Index i = 0; i < n; ++i) REQUIRE(y[static_cast<std::size_t>(i)] == static_cast<T>(50 + 2 + i / W));
      CHECK((y[static_cast<std::size_t>(n)] == T(50) && y[static_cast<std::size_t>(n) + 1] == T(50)));
    }
  });
}
