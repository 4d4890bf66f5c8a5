#include <cstdio>
#include <recops/simd/midrank.hpp>
#include <recops/simd/top_k.hpp>

int main() {
  using namespace recops;
  const float scores[] = {0.3f, 0.9f, 0.1f, 0.9f, 0.5f, 0.7f};
  Workspace scratch;  // one per thread, kept from call to call

  float top[3];
  std::int32_t items[3];
  simd::top_k<float>(scores, 6, 3, Order::descending, top, items, scratch);
  std::printf("best: ");
  for (int i = 0; i < 3; ++i) std::printf("  item %d (%.1f)", items[i], static_cast<double>(top[i]));

  // The same scores in two blocks, as they come out of a blocked product.
  {
    const auto mark = scratch.mark();  // gives the selector's buffers back
    simd::TopK<float> best(3, Order::descending, scratch);
    best.add(scores, 4, 0);
    best.add(scores + 4, 2, 4);
    const Index count = best.finish(nullptr, items);
    std::printf("\nagain:");
    for (Index i = 0; i < count; ++i) std::printf("  item %d", items[i]);
  }

  std::int32_t order[6];
  simd::argsort<float>(scores, 6, Order::ascending, order, scratch);
  std::printf("\norder:");
  for (const std::int32_t i : order) std::printf("  %d", i);

  double ranks[6];
  const double term = simd::midrank<float>(scores, 6, Order::ascending, ranks, nullptr, scratch);
  std::printf("\nranks:");
  for (const double r : ranks) std::printf("  %.1f", r);
  std::printf("   tie term %.0f\n", term);
}
