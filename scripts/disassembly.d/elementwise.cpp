// kernel that may reload: exp loop = exp_loop<
// kernel: dot = dot_loop<
#include <recops/simd/math.hpp>
#include <recops/simd/reduce.hpp>

template <class T>
[[gnu::noinline]] void exp_loop(const T* x, T* y, recops::Index n) {
  recops::simd::for_each_vector<T, recops::simd::DefaultArch>(
      n, [=](recops::Index i, auto load, auto store) RECOPS_LAMBDA_INLINE { store(y + i, recops::simd::exp(load(x + i))); });
}
template void exp_loop<float>(const float*, float*, recops::Index);
template void exp_loop<double>(const double*, double*, recops::Index);

template <class T>
[[gnu::noinline]] T dot_loop(const T* x, const T* y, recops::Index n) {
  return recops::simd::detail::sum_of<T, recops::simd::DefaultArch>(
      n, [=](recops::Index i, recops::simd::Batch<T> sum, recops::Index count) RECOPS_LAMBDA_INLINE {
        return recops::simd::mul_add(recops::simd::detail::load_upto<T, recops::simd::DefaultArch>(x + i, count),
                                     recops::simd::detail::load_upto<T, recops::simd::DefaultArch>(y + i, count), sum);
      });
}
template float dot_loop<float>(const float*, const float*, recops::Index);
template double dot_loop<double>(const double*, const double*, recops::Index);
