#include <cstdio>
#include <recops/diversity/mmr.hpp>

int main() {
  // Six films: the first three are nearly the same.
  const recops::Vector<float> relevance{0.95f, 0.94f, 0.93f, 0.70f, 0.60f, 0.50f};
  const recops::Matrix<float> features{{1.0f, 0.1f, 0.0f}, {1.0f, 0.0f, 0.1f}, {0.9f, 0.1f, 0.1f},
                                       {0.1f, 1.0f, 0.0f}, {0.0f, 0.2f, 1.0f}, {0.7f, 0.7f, 0.0f}};
  recops::Vector<std::int32_t> picks(3);
  recops::Vector<float> scores(3);
  recops::Workspace scratch;  // one per thread, kept from request to request

  for (const double lambda : {1.0, 0.5}) {
    const recops::Selection s =
        recops::mmr<float>(relevance, features, {.lambda = lambda, .normalize = true}, picks, scores, scratch);
    std::printf("lambda %.1f:", lambda);
    for (recops::Index t = 0; t < s.count; ++t) std::printf("  item %d (%.3f)", picks[t], static_cast<double>(scores[t]));
    std::printf("\n");
  }
}
