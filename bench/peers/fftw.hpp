/// @file   bench/peers/fftw.hpp
/// @brief  FFTW in single precision: real transform and back, planned with patience beforehand, on the case's own data.
#pragma once
#include <algorithm>
#include <functional>
#include <memory>
#include <recops/core/views.hpp>
#include <vector>

#include "support/child.hpp"
#if defined(RECOPS_BENCH_FFTW)
#include <fftw3.h>
#endif

namespace recops_bench {

/// What is transformed: `batch` times [length, channels], and where copy i of it lies.
struct FftwData {
  Index batch = 0, length = 0, channels = 0;
  std::function<float*(Index copy)> x = {}, y = {};
};

/// x to spectra to y, unscaled; calls visit the same copies as the kernel. `contiguous`: the numbers are taken as rows of
/// `length` (transposes that cost nothing); else along the middle axis, as the data lie. Planned with PATIENT on an eighth of the
/// batch where all of it would take minutes: the plan is then carried out eight times.
inline Peer fftw_round_trip([[maybe_unused]] const FftwData& d, [[maybe_unused]] bool contiguous) {
  const char* const name = contiguous ? "fftw" : "fftw_strided";
#if defined(RECOPS_BENCH_FFTW)
  struct Plans {
    fftwf_complex* f = nullptr;
    fftwf_plan there = nullptr, back = nullptr;
    Plans() = default;
    Plans(const Plans&) = delete;
    ~Plans() {
      fftwf_destroy_plan(there);
      fftwf_destroy_plan(back);
      fftwf_free(f);
    }
  };
  const auto p = std::make_shared<Plans>();
  const Index parts = d.length >= 512 && d.batch % 8 == 0 ? 8 : 1, batch = d.batch / parts;
  const Index numbers = batch * d.length * d.channels, bins = d.length / 2 + 1, spectra = batch * bins * d.channels;
  p->f = fftwf_alloc_complex(static_cast<std::size_t>(spectra * parts));
  const int l = static_cast<int>(d.length), k = static_cast<int>(bins), c = contiguous ? 1 : static_cast<int>(d.channels);
  const int rows = static_cast<int>(batch * d.channels) / c;
  const fftwf_iodim inner{l, c, c};
  const fftwf_iodim outer[2] = {{rows, l * c, k * c}, {c, 1, 1}}, outer_back[2] = {{rows, k * c, l * c}, {c, 1, 1}};
  const std::vector<float> kept(d.x(0), d.x(0) + numbers);  // planning writes
  p->there = fftwf_plan_guru_dft_r2c(1, &inner, 2, outer, d.x(0), p->f, FFTW_PATIENT);
  p->back = fftwf_plan_guru_dft_c2r(1, &inner, 2, outer_back, p->f, d.y(0), FFTW_PATIENT | FFTW_DESTROY_INPUT);
  std::copy(kept.begin(), kept.end(), d.x(0));
  Peer peer;
  peer.name = name;
  peer.run = [p, d, parts, numbers, spectra](Index copy) {
    for (Index i = 0; i < parts; ++i) fftwf_execute_dft_r2c(p->there, d.x(copy) + i * numbers, p->f + i * spectra);
    for (Index i = 0; i < parts; ++i) fftwf_execute_dft_c2r(p->back, p->f + i * spectra, d.y(copy) + i * numbers);
  };
  return peer;
#else
  return skipped_peer(name, "libfftw3-dev");
#endif
}

}  // namespace recops_bench
