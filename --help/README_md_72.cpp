#include <cstdio>
#include <recops/attention/target_attention.hpp>
#include <vector>

// Your service's buffers: one request, rows of `dim` floats.
bool score(const float* candidates, int count, const float* behaviours, int length, int dim, float* interest) {
  using namespace recops;
  thread_local Workspace scratch;
  try {
    target_attention<float>(MatrixView<const float>(candidates, count, dim), MatrixView<const float>(behaviours, length, dim), {.heads = 4},
                            MatrixView<float>(interest, count, dim), scratch);
    return true;
  } catch (const Error& error) {  // before anything was written
    std::fprintf(stderr, "%s\n", error.what());
    return false;
  }
}

int main() {
  std::vector<float> candidates(200 * 64, 0.1f), behaviours(50 * 64, 0.2f), interest(200 * 64);
  if (!score(candidates.data(), 200, behaviours.data(), 50, 64, interest.data())) return 1;
  std::printf("%.1f\n", interest[0]);
  return score(candidates.data(), 200, behaviours.data(), 50, 63, interest.data()) ? 1 : 0;  // 63 columns do not make 4 heads
}
