// kernel that may reload: attention score tile = score_tiles<
// kernel: attention sum tile = sum_tile<
#include <recops/attention/target_attention.hpp>

template <class T>
void attend(recops::MatrixView<const T> candidates, recops::MatrixView<const T> history, recops::MatrixView<T> out,
            recops::Workspace& ws) {
  recops::target_attention<T>(candidates, history, {.heads = 2}, out, ws);
}
template void attend<float>(recops::MatrixView<const float>, recops::MatrixView<const float>, recops::MatrixView<float>,
                            recops::Workspace&);
