// Oracles: the definition in double, number by number; numpy's float16 and PyTorch's bfloat16 and per-channel int8
// (golden/storage.py).
#include <recops/simd/quantize.hpp>

#include <bit>
#include <cmath>
#include <vector>

#include "support/architectures.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

constexpr double largest = 3.4028234663852886e38;

template <class S>
double number(S x) {
  if constexpr (std::is_same_v<S, double>) {
    return x;
  } else {
    return static_cast<double>(static_cast<float>(x));
  }
}

// Half a scale, what division may add, and what a denormal scale loses.
double allowed(double scale) { return scale / 2 * (1 + 0x1p-15) + 0x1p-142; }

}  // namespace

TEMPLATE_TEST_CASE("codes are within half a scale, and every block uses its whole range", "[simd][quantize]", float, double,
                   BFloat16, Float16) {
  using S = TestType;
  Random random = random_stream(70);
  for (const Index cols : {0, 1, 3, 16, 33, 64, 70}) {
    for (const Index block : {0, 1, 5, 16, 64, 100}) {
      Matrix<S> x(9, cols);
      for (Index l = 0; l < 9; ++l)
        for (Index d = 0; d < cols; ++d) x(l, d) = S(static_cast<float>(std::ldexp(random.normal(), static_cast<int>(l) - 4)));
      for_each_architecture([&](auto arch) {
        using A = decltype(arch);
        CAPTURE(cols, block);
        QuantizedRows shape;
        shape.assign(x.view(), block);
        const QuantizedView v = shape;
        Padded<std::int8_t> codes(9, cols);
        Padded<float> scales(9, v.blocks());
        Padded<float> back(9, cols);
        simd::quantize_rows<A>(x.view(), block, codes.view(), scales.view());
        simd::dequantize_rows<A>(QuantizedView{codes.view(), scales.view(), block}, back.view());
        REQUIRE((scales.intact() && back.intact()));
        for (Index l = 0; l < 9; ++l) {
          for (Index b = 0; b < v.blocks(); ++b) {
            const Index first = b * v.width(), end = std::min(cols, first + v.width());
            double most = 0;
            int most_code = 0;
            for (Index d = first; d < end; ++d) {
              most = std::max(most, std::abs(number(x(l, d))));
              most_code = std::max(most_code, std::abs(int{codes(l, d)}));
            }
            const double scale = static_cast<double>(scales(l, b));
            REQUIRE(std::abs(scale - most / 127) <= 1.3e-7 * most / 127 + 1e-45);
            if (end > first) REQUIRE(most_code == 127);
            for (Index d = first; d < end; ++d) {
              REQUIRE(codes(l, d) >= -127);
              REQUIRE(std::abs(number(x(l, d)) - scale * codes(l, d)) <= allowed(scale) + 1e-7 * most);
              REQUIRE(static_cast<double>(back(l, d)) == static_cast<double>(static_cast<float>(scale * codes(l, d))));
            }
          }
        }
      });
    }
  }
}

TEST_CASE("ties go to the even code", "[simd][quantize]") {
  Matrix<float> x(1, 130);
  for (Index d = 0; d < 130; ++d) x(0, d) = static_cast<float>(d) - 64.5f;  // scale 1: see the last two
  x(0, 128) = 127.0f, x(0, 129) = -127.0f;
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    Matrix<std::int8_t> codes(1, 130);
    Matrix<float> scales(1, 1);
    simd::quantize_rows<A>(x.view(), 0, codes.view(), scales.view());
    CHECK(scales(0, 0) == 1.0f);
    for (Index d = 0; d < 128; ++d) CHECK(codes(0, d) == static_cast<int>(std::nearbyint(x(0, d))));
    CHECK((codes(0, 128) == 127 && codes(0, 129) == -127));
  });
}

TEST_CASE("zeros, NaN, infinity and the ends of the range", "[simd][quantize]") {
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  Matrix<double> x(10, 21, 0.5);
  std::fill_n(x.row(1), 21, 0.0);
  x(2, 20) = static_cast<double>(nan);
  x(3, 0) = static_cast<double>(infinity);
  x(4, 7) = -static_cast<double>(infinity);
  x(5, 5) = 1e39;  // no float
  std::fill_n(x.row(6), 21, -largest);
  std::fill_n(x.row(7), 21, 1e-45);  // denormals
  std::fill_n(x.row(8), 21, 1e-43);
  for (Index d = 0; d < 21; ++d) x(9, d) = static_cast<double>(d) * 1.1e-42;
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    Matrix<std::int8_t> codes(10, 21);
    Matrix<float> scales(10, 1), back(10, 21);
    simd::quantize_rows<A>(x.view(), 0, codes.view(), scales.view());
    simd::dequantize_rows<A>(QuantizedView{codes, scales, 0}, back.view());
    for (Index l = 0; l < 10; ++l) {
      CAPTURE(l);
      const bool poisoned = l >= 2 && l <= 5;
      CHECK(std::isnan(scales(l, 0)) == poisoned);
      for (Index d = 0; d < 21; ++d) {
        if (poisoned) {
          CHECK((codes(l, d) == 0 && std::isnan(back(l, d))));
        } else {
          CHECK(std::abs(x(l, d) - static_cast<double>(back(l, d))) <=
                allowed(static_cast<double>(scales(l, 0))) + 1e-7 * std::abs(x(l, d)));
        }
      }
    }
    CHECK(scales(1, 0) == 0.0f);
    CHECK(codes(6, 3) == -127);
    // In blocks the poison stays in its block.
    Matrix<float> blocks(10, 3);
    simd::quantize_rows<A>(x.view(), 8, codes.view(), blocks.view());
    CHECK((!std::isnan(blocks(2, 0)) && std::isnan(blocks(2, 2)) && std::isnan(blocks(3, 0)) && !std::isnan(blocks(3, 1))));
  });
}

TEST_CASE("a quantised query keeps fifteen bits and never overflows", "[simd][quantize]") {
  Random random = random_stream(71);
  for (const Index cols : {0, 1, 31, 32, 64, 600, 5000, 70000}) {
    const Vector<float> q = random_vector<float>(cols, random);
    Vector<std::int16_t> codes(simd::query_codes_size(cols), 9);
    const auto quantized = simd::quantize_query(q.data(), cols, codes.data());
    const double limit = static_cast<double>(simd::query_code_limit(cols));
    CHECK(limit * 128 * static_cast<double>(cols) <= 2147483647.0);
    bool right = true;
    for (Index d = 0; d < cols; ++d) {
      right = right && std::abs(codes[d]) <= limit;
      const double scale = static_cast<double>(quantized.scale);
      right = right && std::abs(static_cast<double>(q[d]) - scale * codes[d]) <= 0.5001 * scale;
    }
    for (Index d = cols; d < codes.size(); ++d) right = right && codes[d] == 0;
    CHECK(right);
  }
  Vector<float> q(5, 1.0f);
  q[2] = std::numeric_limits<float>::infinity();
  Vector<std::int16_t> codes(32, 9);
  CHECK(std::isnan(simd::quantize_query(q.data(), 5, codes.data()).scale));
  CHECK((codes[0] == 0 && codes[31] == 0));
}

TEST_CASE("owners keep their memory, views have the shapes of their blocks", "[simd][quantize]") {
  Random random = random_stream(72);
  QuantizedRows rows;
  CHECK((rows.view().rows() == 0 && rows.view().blocks() == 1));
  rows.assign(random_matrix<float>(10, 20, random).view(), 8);
  const QuantizedView v = rows;
  CHECK((v.rows() == 10 && v.cols() == 20 && v.width() == 8 && v.blocks() == 3));
  CHECK((v.middle_rows(4, 3).rows() == 3 && v.middle_rows(4, 3).scales.data() == v.scales.row(4)));
  const std::int8_t* before = rows.codes.data();
  rows.assign(random_matrix<float>(5, 20, random).view());
  CHECK((rows.codes.data() == before && rows.view().blocks() == 1 && rows.view().width() == 20));
}

TEST_CASE("wrong shapes of quantised rows are named", "[simd][quantize]") {
  const Matrix<float> x(4, 6, 1.0f);
  Matrix<std::int8_t> codes(4, 6), narrow(4, 5);
  Matrix<float> scales(4, 1), out(3, 6);
  CHECK_THAT(error_of([&] { simd::quantize_rows(x.view(), 0, narrow.view(), scales.view()); }),
             contains("quantize_rows: codes: expected shape [4, 6]"));
  CHECK_THAT(error_of([&] { simd::quantize_rows(x.view(), 2, codes.view(), scales.view()); }),
             contains("scales: expected shape [4, 3]"));
  CHECK_THAT(error_of([&] { simd::quantize_rows(x.view(), -1, codes.view(), scales.view()); }), contains("block >= 0"));
  CHECK_THAT(error_of([&] {
               simd::dequantize_rows({codes, scales, 0}, out.view());
             }),
             contains("dequantize_rows: out: expected shape [4, 6]"));
}

TEST_CASE("sixteen-bit conversions are those of numpy and PyTorch", "[simd][convert][golden]") {
  const Golden golden("storage");
  const auto x = golden.values<float>("x"), every = golden.values<float>("every.half");
  const auto half = golden.values<int>("half"), bfloat = golden.values<int>("bfloat"), from_double = golden.values<int>("d.half");
  const auto d = golden.values<double>("d");
  for_each_architecture([&](auto arch) {
    using A = decltype(arch);
    std::vector<Float16> h(x.size()), hd(d.size());
    std::vector<BFloat16> b(x.size());
    simd::convert<Float16, A>(x.data(), h.data(), static_cast<Index>(x.size()));
    simd::convert<BFloat16, A>(x.data(), b.data(), static_cast<Index>(x.size()));
    simd::convert<Float16, A>(d.data(), hd.data(), static_cast<Index>(d.size()));
    for (std::size_t i = 0; i < x.size(); ++i) {
      CAPTURE(i, x[i]);
      REQUIRE(h[i].bits == half[i]);
      REQUIRE(b[i].bits == bfloat[i]);
    }
    for (std::size_t i = 0; i < d.size(); ++i) REQUIRE(hd[i].bits == from_double[i]);
  });
  for (std::size_t i = 0; i < every.size(); ++i) {
    Float16 s;
    s.bits = static_cast<std::uint16_t>(7 * i);
    const float f = static_cast<float>(s);
    REQUIRE((std::isnan(f) ? every[i] == 0 : std::bit_cast<std::uint32_t>(f) == std::bit_cast<std::uint32_t>(every[i])));
  }
}

TEST_CASE("int8 rows are PyTorch's", "[simd][quantize][golden]") {
  const Golden golden("storage");
  const Matrix<float> rows = golden.matrix<float>("rows"), back = golden.matrix<float>("dequantized");
  const auto scales = golden.values<float>("scales");
  const auto codes = golden.values<int>("codes");
  QuantizedRows q;
  q.assign(rows.view());
  Matrix<float> mine(rows.rows(), rows.cols());
  simd::dequantize_rows(q, mine.view());
  for (Index l = 0; l < rows.rows(); ++l) {
    CHECK(q.scales(l, 0) == scales[static_cast<std::size_t>(l)]);
    for (Index d = 0; d < rows.cols(); ++d) CHECK(q.codes(l, d) == codes[static_cast<std::size_t>(l * rows.cols() + d)]);
  }
  CHECK(max_difference<const float, const float>(mine, back) <= 1e-7 * 1000);
}
