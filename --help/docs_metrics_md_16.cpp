#include <cstdint>
#include <cstdio>
#include <recops/metrics/gauc.hpp>
#include <recops/metrics/ndcg.hpp>
#include <vector>

int main() {
  // Three users with 4, 2 and 3 impressions. The second clicked nothing: no order can be right or wrong there.
  const std::vector<float> scores{0.9f, 0.2f, 0.4f, 0.4f, 0.7f, 0.1f, 0.3f, 0.8f, 0.5f};
  const std::vector<std::uint8_t> clicks{1, 0, 1, 0, 0, 0, 1, 0, 0};
  const std::vector<std::int64_t> offsets{0, 4, 6, 9};

  recops::Workspace scratch;
  const recops::GroupResult g = recops::gauc<float>(scores, clicks, offsets, {}, scratch);
  std::printf("GAUC %.4f over %td users, %td skipped, %.0f%% of impressions\n", g.value, g.valid_groups, g.skipped_groups,
              100 * g.coverage);

  const recops::GroupResult n = recops::ndcg<float>(scores, clicks, offsets, {.k = 2}, scratch);
  std::printf("NDCG@2 %.4f\n", n.value);

  // The same over shards: each worker keeps a GroupMean, and they merge in any order.
  recops::GroupMean left, right;
  const recops::VectorView<const float> s = scores;
  const recops::VectorView<const std::uint8_t> y = clicks;
  const std::vector<std::int64_t> first{0, 4, 6}, second{0, 3};
  recops::add_gauc<float>(s.segment(0, 6), y.segment(0, 6), first, {}, left, scratch);
  recops::add_gauc<float>(s.segment(6, 3), y.segment(6, 3), second, {}, right, scratch);
  right.merge(left);
  std::printf("merged %.4f\n", right.result().value);
  return right.result().valid_groups == 2 && g.valid && n.valid ? 0 : 1;
}
