/// @file   recops/nn/hash_ids.hpp
/// @brief  Ids of any size to rows of a table of fixed size.
#pragma once
#include <cstdint>
#include <recops/core/error.hpp>

namespace recops {
inline namespace RECOPS_ABI {

/// A row in [0, rows) for any 64-bit id: the id's bits mixed (the finaliser of MurmurHash3, public domain) under a seed and scaled by
/// the high half of a product, so that rows need not be a power of two. The same on every machine.
constexpr Index hash_row(std::uint64_t id, Index rows, std::uint64_t seed = 0) {
  std::uint64_t h = id ^ (seed * 0x9E3779B97F4A7C15ull);
  h = (h ^ (h >> 33)) * 0xFF51AFD7ED558CCDull;
  h = (h ^ (h >> 33)) * 0xC4CEB9FE1A85EC53ull;
  h ^= h >> 33;
  const auto n = static_cast<std::uint64_t>(rows);
  // High half of the 128-bit product h n, in pieces of 32 bits.
  const std::uint64_t low = h & 0xFFFFFFFFu, high = h >> 32, n_low = n & 0xFFFFFFFFu, n_high = n >> 32;
  const std::uint64_t middle = high * n_low + ((low * n_low) >> 32), cross = low * n_high + (middle & 0xFFFFFFFFu);
  return static_cast<Index>(high * n_high + (middle >> 32) + (cross >> 32));
}

/// Rows `[n]` in [0, table_rows) for `ids [n]`, negative ones too; id `keep` (e.g. a padding id) stays what it is if it is given, as
/// long as it is a row. Different seeds give independent rows: several look-ups of one id make collisions rare. Throws `Error` for
/// sizes that disagree, table_rows < 1, or `keep` beyond the table. `rows` may be the memory of `ids`.
inline void hash_ids(IndexView ids, Index table_rows, std::uint64_t seed, VectorView<std::int64_t> rows, Index keep = -1) {
  detail::check_not_null("hash_ids", "ids", ids);
  check_size("hash_ids", "rows", rows, ids.size());
  check_option("hash_ids", "table_rows", table_rows >= 1, "one row or more", static_cast<double>(table_rows));
  check_option("hash_ids", "keep", keep >= -1 && keep < table_rows, "-1 or a row of the table", static_cast<double>(keep));
  for (Index i = 0; i < ids.size(); ++i) {
    const Index id = ids[i];
    rows[i] = keep >= 0 && id == keep ? keep : hash_row(static_cast<std::uint64_t>(id), table_rows, seed);
  }
}

}  // namespace RECOPS_ABI
}  // namespace recops
