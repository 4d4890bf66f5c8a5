#include <cstdio>
#include <recops/attention/target_attention.hpp>

int main() {
  // Two users: the first has two candidates and three behaviours, the second one candidate and no history at all.
  recops::Matrix<float> candidates{{1, 0, 0, 1}, {0, 2, 1, 0}, {1, 1, 1, 1}};
  recops::Matrix<float> history{{4, 0, 0, 4}, {0, 4, 0, 0}, {0, 0, 4, 0}};
  const int candidate_offsets[] = {0, 2, 3}, history_offsets[] = {0, 3, 3};
  const recops::JaggedView<const float> who(candidates.view(), recops::IndexView(candidate_offsets, 3));
  const recops::JaggedView<const float> what(history.view(), recops::IndexView(history_offsets, 3));

  recops::Matrix<float> interest(3, 4);
  recops::Workspace scratch;  // one per thread, reused from request to request
  recops::target_attention<float>(who, what, {.heads = 2}, interest, scratch);

  for (recops::Index i = 0; i < 3; ++i)
    std::printf("%.3f %.3f %.3f %.3f\n", interest(i, 0), interest(i, 1), interest(i, 2), interest(i, 3));
  return interest(2, 0) == 0 ? 0 : 1;  // nothing to attend to: zeros
}
