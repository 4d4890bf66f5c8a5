// With other.cpp a program of two files that both include everything: whatever is not inline is defined twice and does not link.
#include <cstdio>
#include <recops/recops.hpp>

recops::Index columns(recops::MatrixView<const float> m);

int main() {
  const recops::Matrix<float> m(2, 3);
  std::printf("recops %d.%d.%d: %td columns\n", RECOPS_VERSION_MAJOR, RECOPS_VERSION_MINOR, RECOPS_VERSION_PATCH, columns(m));
  return columns(m) == 3 ? 0 : 1;
}
