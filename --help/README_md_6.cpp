#include <cstdio>
#include <recops/attention/target_attention.hpp>

int main() {
  const recops::Matrix<float> history = {{1, 0}, {0, 1}, {1, 1}};  // three things a user did
  const recops::Matrix<float> candidates = {{9, 0}, {0, 9}};       // two items to rank
  recops::Matrix<float> interest(2, 2);
  recops::Workspace scratch;
  recops::target_attention<float>(candidates, history, {}, interest, scratch);
  for (recops::Index i = 0; i < 2; ++i) std::printf("%.3f %.3f\n", interest(i, 0), interest(i, 1));
}
