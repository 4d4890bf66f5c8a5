/// @file   bench/peers/openblas.hpp
/// @brief  OpenBLAS: C = A B, plain row-major operands, which it packs in every call (it has no way to keep them packed).
#pragma once
#include <memory>
#include <recops/core/matrix.hpp>
#include <type_traits>

#include "support/child.hpp"
#include "support/rotation.hpp"
#if defined(RECOPS_BENCH_OPENBLAS)
#include <cblas.h>
#endif

namespace recops_bench {

/// [m, k] times [k, n]; with m = 1 gemv where that is faster, as is its own advice. B has `copies`.
template <class T>
Peer openblas_gemm([[maybe_unused]] Index m, [[maybe_unused]] Index n, [[maybe_unused]] Index k,
                   [[maybe_unused]] Index copies = 1) {
#if defined(RECOPS_BENCH_OPENBLAS)
  struct Data {
    recops::Matrix<T> a, c;
    Rotation<T> b;
  };
  static const bool said = std::fprintf(stderr, "peer openblas: %s, %s\n", openblas_get_config(), openblas_get_corename()) > 0;
  (void)said;
  const auto d =
      std::make_shared<Data>(Data{recops::Matrix<T>(m, k, T(0.5)), recops::Matrix<T>(m, n), Rotation<T>(k * n, copies)});
  const int mi = static_cast<int>(m), ni = static_cast<int>(n), ki = static_cast<int>(k);
  Peer peer;
  peer.name = "openblas";
  peer.run = [=](Index copy) {
    if constexpr (std::is_same_v<T, float>) {
      if (mi == 1) {
        cblas_sgemv(CblasRowMajor, CblasTrans, ki, ni, 1, d->b[copy], ni, d->a.data(), 1, 0, d->c.data(), 1);
      } else {
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, mi, ni, ki, 1, d->a.data(), ki, d->b[copy], ni, 0, d->c.data(),
                    ni);
      }
    } else {
      if (mi == 1) {
        cblas_dgemv(CblasRowMajor, CblasTrans, ki, ni, 1, d->b[copy], ni, d->a.data(), 1, 0, d->c.data(), 1);
      } else {
        cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, mi, ni, ki, 1, d->a.data(), ki, d->b[copy], ni, 0, d->c.data(),
                    ni);
      }
    }
  };
  return peer;
#else
  return skipped_peer("openblas", "libopenblas-dev");
#endif
}

}  // namespace recops_bench
