/// @file   bench/peers/fftw.hpp
/// @brief  FFTW in single precision: real transform and back, planned with patience beforehand.
#pragma once
#include <memory>
#include <recops/core/views.hpp>

#include "support/child.hpp"
#if defined(RECOPS_BENCH_FFTW)
#include <fftw3.h>
#endif

namespace recops_bench {

/// `rows` transforms of `length` and back, unscaled. `contiguous`: each row by itself (a transpose that costs nothing); else
/// along the middle axis of [rows / channels, length, channels], as the data lie.
inline Peer fftw_round_trip([[maybe_unused]] Index rows, [[maybe_unused]] Index length, [[maybe_unused]] Index channels = 1,
                            [[maybe_unused]] bool contiguous = true) {
  const char* const name = contiguous ? "fftw" : "fftw_strided";
#if defined(RECOPS_BENCH_FFTW)
  struct Plans {
    float* x = nullptr;
    fftwf_complex* f = nullptr;
    fftwf_plan there = nullptr, back = nullptr;
    Plans() = default;
    Plans(const Plans&) = delete;
    ~Plans() {
      fftwf_destroy_plan(there);
      fftwf_destroy_plan(back);
      fftwf_free(x);
      fftwf_free(f);
    }
  };
  const auto p = std::make_shared<Plans>();
  const std::size_t bins = static_cast<std::size_t>(length / 2 + 1), n = static_cast<std::size_t>(rows);
  p->x = fftwf_alloc_real(n * static_cast<std::size_t>(length));
  p->f = fftwf_alloc_complex(n * bins);
  const unsigned effort = length >= 512 ? FFTW_MEASURE : FFTW_PATIENT;
  const int l = static_cast<int>(length), b = static_cast<int>(bins), c = contiguous ? 1 : static_cast<int>(channels);
  const fftwf_iodim inner{l, c, c};
  const fftwf_iodim outer[2] = {{static_cast<int>(rows) / c, l * c, b * c}, {c, 1, 1}};
  const fftwf_iodim outer_back[2] = {{static_cast<int>(rows) / c, b * c, l * c}, {c, 1, 1}};
  p->there = fftwf_plan_guru_dft_r2c(1, &inner, 2, outer, p->x, p->f, effort | FFTW_DESTROY_INPUT);
  p->back = fftwf_plan_guru_dft_c2r(1, &inner, 2, outer_back, p->f, p->x, effort | FFTW_DESTROY_INPUT);
  for (std::size_t i = 0; i < n * static_cast<std::size_t>(length); ++i) p->x[i] = static_cast<float>(i % 17) * 1e-3f;
  Peer peer;
  peer.name = name;
  peer.run = [p, n, length](Index) {
    fftwf_execute(p->there);
    fftwf_execute(p->back);
    // Unscaled, values grow by `length` in every call: start anew before they overflow.
    if (!(p->x[0] < 1e20f)) std::fill_n(p->x, n * static_cast<std::size_t>(length), 1e-3f);
  };
  return peer;
#else
  return skipped_peer(name, "libfftw3-dev");
#endif
}

}  // namespace recops_bench
