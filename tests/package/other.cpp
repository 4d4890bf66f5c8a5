#include <recops/recops.hpp>

recops::Index columns(recops::MatrixView<const float> m);
recops::Index columns(recops::MatrixView<const float> m) {
  recops::check_shape("columns", "m", m, 2, 3);
  return m.cols();
}
