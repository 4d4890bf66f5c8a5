// Oracle: plain loops in double. Numbers are small multiples of 1/4, so products and sums are exact.
#include <recops/simd/gram_schmidt.hpp>

#include <vector>

#include "support/architectures.hpp"
#include "support/catch.hpp"
#include "support/numbers.hpp"

using namespace recops;

TEMPLATE_TEST_CASE("set_products, subtract_rows and combine_rows agree with plain loops", "[simd][gram_schmidt]", float, double) {
  using T = TestType;
  auto random = recops_test::random_stream(1);
  const auto quarter = [&] { return static_cast<T>(random.below(17) - 8) / T(4); };
  recops_test::for_each_architecture([&](auto architecture) {
    using A = decltype(architecture);
    for (const Index cols : {1, 7, 16, 33, 64, 130}) {
      for (const Index count : {0, 1, 8, 9, 17, 31, 40, 65}) {
        const Index stride = simd::padded<T>(cols), capacity = simd::padded<T>(count + 1);
        Vector<T> rows(count * stride, T(0)), x(stride, T(0)), c(capacity, T(99)),
            out(stride, T(99));
        Vector<T> odd(cols + 1, T(0));  // the same x, unaligned
        for (Index d = 0; d < cols; ++d) x[d] = odd[d + 1] = quarter();
        for (Index l = 0; l < count; ++l) {
          for (Index d = 0; d < cols; ++d) rows[l * stride + d] = quarter();
        }
        simd::set_products<T, A>(rows.data(), stride, count, x.data(), stride, c.data());
        bool same = true;
        for (Index l = 0; l < count; ++l) {
          double sum = 0;
          for (Index d = 0; d < cols; ++d) sum += static_cast<double>(x[d]) * static_cast<double>(rows[l * stride + d]);
          same &= static_cast<double>(c[l]) == sum;
        }
        for (Index l = 0; l < count; ++l) c[l] = quarter();
        const T square = simd::subtract_rows<T, A>(rows.data(), stride, count, c.data(), T(0.5), x.data(), stride, out.data());
        double squares = 0;
        for (Index d = 0; d < stride; ++d) {
          double v = 0.5 * static_cast<double>(x[d]);
          for (Index l = 0; l < count; ++l) v -= static_cast<double>(c[l]) * static_cast<double>(rows[l * stride + d]);
          same &= static_cast<double>(out[d]) == v;
          squares += v * v;
        }
        CHECK(static_cast<double>(square) == Approx(squares).epsilon(1e-5));
        if (cols % 64 == 0 && count > 0) {
          std::vector<const T*> each;
          for (Index l = 0; l < count; ++l) each.push_back(rows.data() + l * stride);
          simd::combine_rows<T, A>(each.data(), 0, c.data(), count, cols, out.data());
          for (Index d = 0; d < cols; ++d) {
            double v = 0;
            for (Index l = 0; l < count; ++l) v += static_cast<double>(c[l]) * static_cast<double>(rows[l * stride + d]);
            same &= static_cast<double>(out[d]) == v;
          }
        }
        CAPTURE(cols, count);
        CHECK(same);
      }
    }
  });
}
