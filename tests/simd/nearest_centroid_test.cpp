/// Oracle: distances in long double, on every instruction set.
#include <recops/simd/nearest_centroid.hpp>

#include "support/architectures.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

template <class T, class A>
void check_nearest(Random& random) {
  constexpr Index P = simd::panel_width<T>;
  for (const Index cols : {1, 3, 8, 17}) {
    for (const Index count : {1, 2, 5, 6, 7, 13, 38}) {
      for (const Index rows : {Index{1}, P / 2 + 1, P}) {
        CAPTURE(cols, count, rows);
        const Matrix<T> x = random_matrix<T>(rows, cols, random);
        Matrix<T> c = random_matrix<T>(count, cols, random), panel(cols, P);
        if (count > 6) std::copy_n(c.row(1), cols, c.row(6));  // a tie, over chunks
        Vector<T> half(count), label(P), squares(P);
        for (Index k = 0; k < count; ++k) {
          T sum = 0;
          for (Index d = 0; d < cols; ++d) sum += c(k, d) * c(k, d);
          half[k] = sum / 2;
        }
        simd::pack_panel<T, A>([&](Index i) { return i < rows ? x.row(i) : nullptr; }, cols, panel.data(), squares.data());
        simd::nearest_centroid<T, A>(panel.data(), rows, cols, c.data(), half.data(), count, label.data());
        for (Index i = 0; i < rows; ++i) {
          const auto distance = [&](Index k) {
            long double sum = 0;
            for (Index d = 0; d < cols; ++d)
              sum += (static_cast<long double>(x(i, d)) - c(k, d)) * (static_cast<long double>(x(i, d)) - c(k, d));
            return static_cast<double>(sum);
          };
          const auto got = static_cast<Index>(label[i]);
          REQUIRE((got >= 0 && got < count && got != 6 + (count > 6 ? 0 : count)));
          double least = distance(0);
          for (Index k = 1; k < count; ++k) least = std::min(least, distance(k));
          CHECK(distance(got) <= least + (std::is_same_v<T, float> ? 1e-4 : 1e-12));
        }
      }
    }
  }
  Matrix<T> panel(2, P, std::numeric_limits<T>::quiet_NaN());
  const Vector<T> c(4, T(1)), half(2, T(1));
  Vector<T> label(P, T(9));
  simd::nearest_centroid<T, A>(panel.data(), P, 2, c.data(), half.data(), 2, label.data());
  for (const T k : label) CHECK(k == 0);
}

}  // namespace

TEST_CASE("nearest centroids", "[simd][nearest_centroid]") {
  Random random = random_stream(84);
  for_each_architecture([&](auto architecture) {
    check_nearest<float, decltype(architecture)>(random);
    check_nearest<double, decltype(architecture)>(random);
  });
}
