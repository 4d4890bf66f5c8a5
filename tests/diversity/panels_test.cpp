// Oracle: the features themselves, and normalize_rows.
#include <recops/diversity/candidates.hpp>
#include <recops/diversity/panels.hpp>

#include "support/allocations.hpp"
#include "support/catch.hpp"
#include "support/numbers.hpp"

using namespace recops;

namespace {

template <class T>
T at(PanelsView<T> p, Index i, Index d) {
  constexpr Index P = simd::panel_width<T>;
  return p.data[(i / P * p.cols + d) * P + i % P];
}

}  // namespace

TEMPLATE_TEST_CASE("Panels hold the features, divided by their lengths where wanted", "[diversity][panels]", float, double) {
  using T = TestType;
  auto random = recops_test::random_stream(1);
  Panels<T> panels;
  for (const Index rows : {0, 1, 31, 32, 33, 64, 65, 200}) {
    for (const Index cols : {0, 1, 3, 16, 19}) {
      const auto numbers = recops_test::random_matrix<T>(rows, cols, random);
      recops_test::Padded<T> x(numbers.view());
      Matrix<T> unit(rows, cols);
      normalize_rows<T>(numbers, unit);
      for (const bool normalize : {false, true}) {
        panels.pack(x.view(), normalize);
        const PanelsView<T> p = panels;
        REQUIRE((p.rows == rows && p.cols == cols && p.unit == normalize));
        double most = 0;
        for (Index i = 0; i < rows; ++i) {
          double square = 0;
          for (Index d = 0; d < cols; ++d) {
            const T expected = normalize ? unit(i, d) : numbers(i, d);
            most = std::max(most, std::abs(static_cast<double>(at(p, i, d)) - static_cast<double>(expected)));
            square += static_cast<double>(numbers(i, d)) * static_cast<double>(numbers(i, d));
          }
          if (normalize) {
            CHECK(p.squares[i] == T(cols > 0));
          } else {
            CHECK(static_cast<double>(p.squares[i]) == Approx(square).epsilon(1e-6));
          }
        }
        CHECK(most <= (normalize ? 4 : 0) * static_cast<double>(std::numeric_limits<T>::epsilon()));
      }
    }
  }
}

TEMPLATE_TEST_CASE("Panels mark rows that are not finite, and forget tiny ones", "[diversity][panels]", float, double) {
  using T = TestType;
  constexpr T inf = std::numeric_limits<T>::infinity();
  Matrix<T> x(70, 5, T(1));
  x(2, 3) = std::numeric_limits<T>::quiet_NaN();
  x(3, 0) = inf;
  x(4, 4) = std::numeric_limits<T>::max();
  for (Index d = 0; d < 5; ++d) x(69, d) = std::is_same_v<T, float> ? T(1e-12) : T(1e-14);
  Panels<T> panels;
  for (const bool normalize : {false, true}) {
    panels.pack(x, normalize);
    const PanelsView<T> p = panels;
    for (Index i = 0; i < 70; ++i) {
      const bool broken = i >= 2 && i <= 4;
      CHECK((p.squares[i] == inf) == broken);
      for (Index d = 0; d < 5; ++d) {
        const T expected = broken ? T(0) : i < 69 ? (normalize ? T(1) / std::sqrt(T(5)) : T(1)) : normalize ? T(0) : x(69, d);
        CHECK(at(p, i, d) == Approx(expected).epsilon(1e-6));
      }
    }
    if (normalize) CHECK(p.squares[69] == T(0));
  }
}

TEST_CASE("Panels keep their memory and refuse what is not sound", "[diversity][panels]") {
  const Matrix<float> x(130, 9, 1.0f);
  Panels<float> panels;
  panels.pack(x, true);
  const recops_test::AllocationCounter counter;
  panels.pack(x.view().middle_rows(0, 40), false);
  panels.pack(x, true);
  CHECK(counter.count() == 0);
  CHECK_THROWS_WITH(panels.pack(MatrixView<const float>(nullptr, 3, 3), true), recops_test::contains("Panels::pack: features"));
  CHECK((panels.rows() == 130 && panels.cols() == 9));
  const Panels<float> taken = std::move(panels);
  CHECK((taken.rows() == 130 && panels.rows() == 0));
}

TEST_CASE("Panels in every storage and order are the same items", "[diversity][panels]") {
  auto random = recops_test::random_stream(7);
  constexpr Index n = 150, d = 11;
  auto x = recops_test::random_matrix<float>(n, d, random);
  x(3, 2) = std::numeric_limits<float>::quiet_NaN();
  for (Index c = 0; c < d; ++c) x(4, c) = 0;
  Vector<float> priority(n);
  for (float& p : priority) p = static_cast<float>(random.normal());
  priority[7] = std::numeric_limits<float>::quiet_NaN();
  Matrix<BFloat16> halves(n, d);
  simd::convert<BFloat16>(x.data(), halves.data(), n * d);
  Matrix<std::int8_t> codes(n, d);
  Matrix<float> scales(n, 1);
  simd::quantize_rows(x.view(), 0, codes.view(), scales.view());
  const QuantizedView quantized{codes, scales, 0};
  for (const auto storage : {PanelStorage::full, PanelStorage::bfloat16, PanelStorage::int8}) {
    for (const bool normalize : {false, true}) {
      for (const bool ordered : {false, true}) {
        for (const int source : {0, 1, 2}) {
          Panels<float> panels;
          const PanelOptions o{.normalize = normalize, .storage = storage};
          const VectorView<const float> by = ordered ? VectorView<const float>(priority) : VectorView<const float>();
          if (source == 0) panels.pack(x, o, by);
          if (source == 1) panels.pack(halves, o, by);
          if (source == 2) panels.pack(quantized, o, by);
          Workspace ws;
          detail::Candidates<float, simd::DefaultArch> rows({}, panels, n, normalize, false, nullptr, ws);
          CAPTURE(static_cast<int>(storage), normalize, ordered, source);
          REQUIRE((panels.view().order != nullptr) == ordered);
          std::vector<int> seen(n);
          double most = 0;
          Vector<float> row(d);
          for (Index i = 0; i < n; ++i) {
            const Index item = rows.item(i);
            ++seen[static_cast<std::size_t>(item)];
            CHECK(rows.marked(i) == (item == 3));
            rows.row(i, row.data());
            double length = 0, square = 0;
            for (Index c = 0; c < d; ++c) length += static_cast<double>(x(item, c)) * static_cast<double>(x(item, c));
            const double factor = item == 3 || length == 0 ? 0 : normalize ? 1 / std::sqrt(length) : 1;
            for (Index c = 0; c < d; ++c) {
              const double expected = factor == 0 ? 0 : factor * static_cast<double>(x(item, c));
              most = std::max(most, std::abs(static_cast<double>(row[c]) - expected));
              square += static_cast<double>(row[c]) * static_cast<double>(row[c]);
            }
            if (item != 3) CHECK(static_cast<double>(panels.view().squares[i]) == Approx(square).epsilon(1e-5).margin(1e-9));
          }
          CHECK(std::count(seen.begin(), seen.end(), 1) == n);
          CHECK(most < (storage == PanelStorage::full && source == 0 ? 1e-6 : 0.04));
        }
      }
    }
  }
  Panels<double> wide;
  const Matrix<double> y(4, 3, 1.0);
  CHECK_THROWS_WITH(wide.pack(y, {.storage = PanelStorage::int8}), recops_test::contains("storage"));
  CHECK_THROWS_WITH(wide.pack(y, {}, VectorView<const double>(y.data(), 3)), recops_test::contains("priority"));
}

TEST_CASE("Panels of rows that are bfloat16 already are those of the same floats, bit for bit", "[diversity][panels]") {
  auto random = recops_test::random_stream(9);
  for (const Index n : {1, 31, 33, 63, 64, 65, 200}) {
    for (const Index d : {0, 1, 7, 8, 19}) {
      Matrix<BFloat16> wide(n, d + 3);  // unaligned rows with gaps
      const auto halves = wide.view().middle_cols(1, d);
      Matrix<float> floats(n, d);
      Vector<float> priority(n);
      for (Index i = 0; i < n; ++i) {
        priority[i] = static_cast<float>(random.normal());
        for (Index c = 0; c < d; ++c) {
          float v = static_cast<float>(random.normal());
          if (i % 7 == 3) v = c == d - 1 ? std::numeric_limits<float>::quiet_NaN() : v;
          if (i % 7 == 4) v = c == 0 ? -std::numeric_limits<float>::infinity() : v;
          if (i % 7 == 5) v = 0;
          if (i % 7 == 6) v *= 1e-20f;
          halves(i, c) = BFloat16(v);
          floats(i, c) = static_cast<float>(halves(i, c));
        }
      }
      for (const bool normalize : {false, true}) {
        for (const bool ordered : {false, true}) {
          const PanelOptions o{.normalize = normalize, .storage = PanelStorage::bfloat16};
          const VectorView<const float> by = ordered ? VectorView<const float>(priority) : VectorView<const float>();
          Panels<float> expected, panels;
          expected.pack(floats, o, by);
          panels.pack(halves, o, by);
          CAPTURE(n, d, normalize, ordered);
          const PanelsView<float> e = expected, p = panels;
          const Index rows = (n + 63) / 64 * 64;
          CHECK(std::equal(e.words, e.words + rows * d / 2, p.words));
          CHECK(std::equal(e.squares, e.squares + rows, p.squares));
          CHECK(std::equal(e.scales, e.scales + rows, p.scales));
        }
      }
    }
  }
}
