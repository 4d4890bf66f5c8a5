// Oracle: bits counted one at a time, and a stable sort.
#include <recops/simd/hamming.hpp>

#include <numeric>
#include <vector>

#include "support/allocations.hpp"
#include "support/architectures.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {

int distance_of(const std::uint64_t* a, const std::uint64_t* b, Index words) {
  int count = 0;
  for (Index w = 0; w < words; ++w)
    for (std::uint64_t x = a[w] ^ b[w]; x != 0; x >>= 1) count += static_cast<int>(x & 1);
  return std::min(count, 255);
}

/// Rows with unused words between them.
struct Signatures {
  Index rows, words, stride;
  std::vector<std::uint64_t> data;
  Signatures(Index n, Index w, Index s, Random& random)
      : rows(n), words(w), stride(s), data(static_cast<std::size_t>(n * s + 1)) {
    for (auto& x : data) x = (std::uint64_t{random.word()} << 32) | random.word();
  }
  MatrixView<const std::uint64_t> view() const { return MatrixView<const std::uint64_t>(data.data(), rows, words, stride); }
};

}  // namespace

TEST_CASE("hamming distances and the nearest signatures on every instruction set", "[simd][hamming]") {
  for_each_architecture([&](auto architecture) {
    using A = decltype(architecture);
    Random random = random_stream(610);
    Workspace ws;
    for (const Index words : {1, 2, 3, 4})
      for (const Index stride : {words, words + 1})
        for (const Index l : sanitized ? std::vector<Index>{0, 65, 200} : std::vector<Index>{0, 1, 63, 64, 65, 127, 128, 700})
          for (const Index n : sanitized ? std::vector<Index>{0, 1, 5} : std::vector<Index>{0, 1, 2, 3, 5, 70}) {
            CAPTURE(words, stride, l, n);
            Signatures queries(n, words, stride, random), rows(l, words, stride, random);
            if (l > 63 && n > 2) {  // the same, and the opposite
              std::copy_n(queries.data.data(), words, rows.data.data() + 62 * stride);
              for (Index w = 0; w < words; ++w) rows.data[static_cast<std::size_t>(7 * stride + w)] = ~queries.view()(0, w);
            }
            Matrix<std::uint8_t> all(n, l);
            simd::hamming_distances<A>(queries.view(), rows.view(), all, ws);
            bool same = true;
            for (Index q = 0; q < n; ++q)
              for (Index i = 0; i < l; ++i) same &= all(q, i) == distance_of(queries.view().row(q), rows.view().row(i), words);
            CHECK(same);
            for (const Index k : sanitized ? std::vector<Index>{0, 10, 210} : std::vector<Index>{0, 1, 10, 200, 800}) {
              CAPTURE(k);
              Matrix<std::int32_t> indices(n, k, 7);
              Matrix<std::uint8_t> distances(n, k, std::uint8_t{9});
              simd::hamming_top_k<A>(queries.view(), rows.view(), indices, distances, ws);
              for (Index q = 0; q < n; ++q) {
                std::vector<std::int32_t> order(static_cast<std::size_t>(l));
                std::iota(order.begin(), order.end(), 0);
                std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return all(q, a) < all(q, b); });
                for (Index i = 0; i < k; ++i) {
                  same &= indices(q, i) == (i < l ? order[static_cast<std::size_t>(i)] : -1);
                  same &= distances(q, i) == (i < l ? all(q, order[static_cast<std::size_t>(i)]) : 255);
                }
              }
              CHECK(same);
            }
          }
  });
}

TEST_CASE("rows that come ever nearer fill the buffer again and again", "[simd][hamming]") {
  for_each_architecture([&](auto architecture) {
    using A = decltype(architecture);
    Workspace ws;
    // Row i differs from zero in 64 - i / 100 bits: each beats the ones before, a hundred at a time.
    Matrix<std::uint64_t> rows(6500, 1), queries(3, 1, std::uint64_t{0});
    for (Index i = 0; i < rows.rows(); ++i) rows(i, 0) = i / 100 == 64 ? 0 : ~std::uint64_t{0} >> (i / 100);
    for (const Index k : {1, 100, 150}) {
      Matrix<std::int32_t> indices(3, k);
      simd::hamming_top_k<A>(queries, rows, indices, {}, ws);
      for (Index q = 0; q < 3; ++q)
        for (Index i = 0; i < k; ++i) CHECK(indices(q, i) == (i < 100 ? 6400 + i : 6300 + i - 100));
    }
  });
}

TEST_CASE("threads change nothing, a second call allocates nothing", "[simd][hamming]") {
  Random random = random_stream(611);
  Signatures queries(100, 1, 1, random), rows(sanitized ? 700 : 3000, 1, 1, random);
  Matrix<std::int32_t> one(100, 50), several(100, 50);
  Matrix<std::uint8_t> distances(100, 50);
  Workspace ws;
  simd::hamming_top_k(queries.view(), rows.view(), one, distances, ws);
  CHECK(count_allocations([&] { simd::hamming_top_k(queries.view(), rows.view(), one, distances, ws); }) == 0);
  for (const int workers : {2, 4}) {
    Threads threads{workers};
    Workspace parallel(make_executor(threads, workers));
    simd::hamming_top_k(queries.view(), rows.view(), several, {}, parallel);
    CHECK(max_difference(one.view(), several.view()) == 0);
  }
}

TEST_CASE("hamming_top_k names what is wrong and writes nothing", "[simd][hamming][errors]") {
  Workspace ws;
  Matrix<std::uint64_t> queries(2, 1, std::uint64_t{0}), rows(4, 2, std::uint64_t{0}), wide(2, 5, std::uint64_t{0});
  Matrix<std::int32_t> indices(2, 3, 9);
  CHECK_THAT(error_of([&] { simd::hamming_top_k(queries, rows, indices, {}, ws); }),
             contains("hamming_top_k: rows: expected shape [_, 1], got [4, 2]"));
  CHECK_THAT(error_of([&] { simd::hamming_top_k(wide, rows, indices, {}, ws); }),
             contains("hamming_top_k: queries: expected 1 to 4 words of 64 bits, got 5"));
  for (Index i = 0; i < 6; ++i) CHECK(indices.data()[i] == 9);
}
