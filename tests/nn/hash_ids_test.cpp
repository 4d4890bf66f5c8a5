// Oracles: 128-bit arithmetic of the compiler; statistics of a uniform distribution.
#include <recops/nn/hash_ids.hpp>

#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {
__extension__ using Wide = unsigned __int128;
Index reference(std::uint64_t id, Index rows, std::uint64_t seed) {
  std::uint64_t h = id ^ (seed * 0x9E3779B97F4A7C15ull);
  for (const std::uint64_t factor : {0xFF51AFD7ED558CCDull, 0xC4CEB9FE1A85EC53ull}) h = (h ^ (h >> 33)) * factor;
  h ^= h >> 33;
  return static_cast<Index>((Wide{h} * static_cast<std::uint64_t>(rows)) >> 64);
}
}  // namespace

TEST_CASE("rows are the high half of the product", "[nn][hash_ids]") {
  Random random = random_stream(471);
  for (int i = 0; i < 2000; ++i) {
    const std::uint64_t id = (std::uint64_t{random.word()} << 32) | random.word(), seed = random.word();
    for (const Index rows : {Index{1}, Index{2}, Index{1000003}, Index{1} << 40, PTRDIFF_MAX}) {
      CHECK(hash_row(id, rows, seed) == reference(id, rows, seed));
      CHECK(hash_row(id, rows, seed) < rows);
    }
  }
}

TEST_CASE("consecutive ids spread evenly and differently for each seed", "[nn][hash_ids]") {
  constexpr Index rows = 100, n = 100000;
  Vector<std::int64_t> ids(n), a(n), b(n);
  for (Index i = 0; i < n; ++i) ids[i] = i - 50;
  hash_ids(ids, rows, 1, a);
  hash_ids(ids, rows, 2, b);
  Vector<std::int64_t> counts(rows, 0);
  Index same = 0;
  for (Index i = 0; i < n; ++i) {
    ++counts[a[i]];
    same += a[i] == b[i];
  }
  double chi = 0;
  for (const auto c : counts) chi += (static_cast<double>(c) - 1000) * (static_cast<double>(c) - 1000) / 1000;
  CHECK(chi < 99 + 5 * std::sqrt(2.0 * 99));
  CHECK(std::abs(static_cast<double>(same) - 1000) < 200);
}

TEST_CASE("padding stays, in place works, errors", "[nn][hash_ids]") {
  Vector<std::int64_t> ids{0, 5, 0, 9};
  hash_ids(ids, 1000, 7, ids, 0);
  CHECK((ids[0] == 0 && ids[2] == 0 && ids[1] == hash_row(5, 1000, 7)));
  Vector<std::int64_t> short_rows(3);
  CHECK(error_of([&] { hash_ids(ids, 10, 0, short_rows); }) == "hash_ids: rows: expected size 4, got 3");
  CHECK(error_of([&] { hash_ids(ids, 0, 0, ids); }) == "hash_ids: table_rows: expected one row or more, got 0");
  CHECK(error_of([&] { hash_ids(ids, 10, 0, ids, 10); }) == "hash_ids: keep: expected -1 or a row of the table, got 10");
}
