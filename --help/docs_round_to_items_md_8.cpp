#include <cstdio>
#include <recops/diffusion/round_to_items.hpp>

int main() {
  using namespace recops;
  const Matrix<float> items{{1, 0}, {0.8f, 0.6f}, {0, 2}, {-1, 0}};
  const ItemTable<float> table(items.view(), {.metric = ItemMetric::cosine});

  const Matrix<float> generated{{1, 0.1f}, {0, 1}};
  const Vector<std::int32_t> seen{0}, seen_offsets{0, 1, 1};  // the first user has seen item 0
  Matrix<std::int32_t> list(2, 3);
  Matrix<float> score(2, 3);
  Workspace scratch;
  round_to_items<float>(generated, table, {.seen = seen, .seen_offsets = seen_offsets}, list, score, scratch);
  for (Index b = 0; b < 2; ++b)
    for (Index i = 0; i < 3; ++i) std::printf("%d %.3f%s", list(b, i), score(b, i), i < 2 ? ", " : "\n");
}
