/// Oracle: the keys of `FrozenTwin::project_keys`; selection without a cache.
#include <recops/attention/projected_key_cache.hpp>
#include <recops/attention/twin.hpp>

#include "support/allocations.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

TEMPLATE_TEST_CASE("a cache of projected keys serves what TWIN without one does", "[attention][twin]", float, BFloat16,
                   std::int8_t) {
  using S = TestType;
  Random random = random_stream(70);
  Workspace ws;
  const Index items = 700, l = 1500, width = 12;
  Twin<float> layer(
      {.width = width, .cross_features = 1, .cross_width = 3, .heads = 2, .key_width = 16, .value_width = 4, .selected = 30},
      random);
  const Matrix<float> table = random_matrix<float>(items, width, random), q = random_matrix<float>(9, width, random),
                      cross = random_matrix<float>(l, 3, random);
  Matrix<float> inherent(l, width), y(9, width), cached(9, width);
  std::vector<std::int32_t> history;
  for (Index i = 0; i < l; ++i) {
    history.push_back(static_cast<std::int32_t>(i * 31 % 500));
    std::copy_n(table.row(history.back()), width, inherent.row(i));
  }
  const std::vector<std::int32_t> rows{0, 1, 9}, offsets{0, 1100, 1500};
  const TwinHistory<float> behaviours{.inherent = {inherent, offsets}, .cross = cross};
  const JaggedView<const float> candidates(q, rows);

  ProjectedKeyCache<S> cache(items, 2, 16);
  CHECK(cache.bytes() == items * (32 * 4 + 8 + (sizeof(S) == 4 ? 0 : 32 * static_cast<Index>(sizeof(S)) + 2 * 4)));
  CHECK_THAT(error_of([&] { cache.keys(history, offsets); }),
             contains("items whose keys are there, of version 0, got 0 at position 0"));
  for (std::int64_t version : {0, 1}) {
    if (version == 1) {  // the parameters changed
      layer = Twin<float>(
          {.width = width, .cross_features = 1, .cross_width = 3, .heads = 2, .key_width = 16, .value_width = 4, .selected = 30},
          random);
      cache.set_version(1);
      CHECK(!cache.fresh(3));
      CHECK_THAT(error_of([&] { cache.keys(history, offsets); }), contains("of version 1"));
      CHECK(cache.keys(history, offsets, /*allow_stale=*/true).behaviours() == l);
    }
    const auto served = freeze(layer);
    CHECK(cache.refresh(served, history, inherent, ws) == 500);
    CHECK(cache.refresh(served, history, inherent, ws) == 0);
    CHECK((cache.fresh(3) && !cache.fresh(600) && !cache.fresh(-1) && !cache.fresh(items)));
    Matrix<std::int32_t> with(9, 30), without(9, 30);
    Matrix<float> keys(l, 32);
    served.project_keys(inherent, keys, ws);
    served.forward(candidates, behaviours, SearchKeys<float>(JaggedView<const float>(keys, offsets)), without, y, ws);
    served.forward(candidates, behaviours, cache.keys(history, offsets), with, cached, ws);
    CHECK(std::equal(with.data(), with.data() + 270, without.data()));
    CHECK(max_difference(y.view(), cached.view()) == 0);
    CHECK(count_allocations([&] { served.forward(candidates, behaviours, cache.keys(history, offsets), with, cached, ws); }) ==
          0);
  }
  cache.forget(31);
  CHECK_THAT(error_of([&] { cache.keys(history, offsets, true); }), contains("got 31 at position 1"));
  CHECK_THAT(error_of([&] { cache.forget(items); }), contains("an item of the cache"));
  const std::vector<std::int32_t> beyond{items};
  CHECK_THAT(error_of([&] { cache.store(beyond, Matrix<float>(1, 32, 0.0f).view()); }), contains("indices from 0 to below 700"));
  CHECK_THAT(error_of([&] { cache.set_version(-1); }), contains("version >= 0"));
  CHECK_THAT(error_of([&] { ProjectedKeyCache<S>(5, 0, 3); }), contains("heads >= 1"));
  const std::vector<std::int32_t> none;
  CHECK(cache.keys(none).behaviours() == 0);
}
