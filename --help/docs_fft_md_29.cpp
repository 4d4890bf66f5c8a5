#include <cmath>
#include <cstdio>
#include <recops/simd/fft_filter.hpp>

int main() {
  // One sequence of 8 steps and 2 channels: a slow wave, and the same with a fast one on top.
  const recops::Index length = 8, channels = 2;
  recops::Matrix<float> x(length, channels), y(length, channels);
  for (recops::Index n = 0; n < length; ++n) {
    const double slow = std::cos(2 * 3.14159265358979 * static_cast<double>(n) / 8);
    x(n, 0) = static_cast<float>(slow);
    x(n, 1) = static_cast<float>(slow + (n % 2 == 0 ? 0.5 : -0.5));
  }

  const recops::simd::FftPlan<float> plan(length);  // made once, shared by threads
  recops::Workspace scratch;                        // one per thread

  recops::Matrix<float> re(plan.bins(), channels), im(plan.bins(), channels);
  recops::simd::rfft<float>(plan, x.view(), {re, im}, recops::FftNorm::backward, scratch);
  for (recops::Index k = 0; k < plan.bins(); ++k)
    std::printf("bin %td  |X| = %.2f %.2f\n", k, std::hypot(re(k, 0), im(k, 0)), std::hypot(re(k, 1), im(k, 1)));

  // Keep the three lowest bins.
  const recops::Vector<float> band{1, 1, 1, 0, 0};
  recops::simd::FftGains<float> low;
  low.prepare(plan, recops::VectorView<const float>(band), scratch);
  recops::simd::fft_filter<float>(plan, low, x.view(), y, false, scratch);
  std::printf("low pass, step 0 and 1: %.3f %.3f\n", static_cast<double>(y(0, 1)), static_cast<double>(y(1, 1)));
}
