/// @file   tests/simd/elementwise_golden.hpp
/// @brief  Holds an elementwise function against the golden vectors of tests/golden/elementwise.py.
#pragma once
#include <cmath>
#include <string>
#include <vector>

#include "support/architectures.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"

namespace recops_test {

/// f(arch, x, y, n) on every instruction set; results within `most` units of the last place, NaN and infinities where they
/// belong.
template <class T, class F>
void check_golden(const std::string& name, const std::string& argument, double most, F&& f) {
  static const Golden golden("elementwise");
  const std::vector<T> x = golden.values<T>(argument);
  const std::vector<double> exact = golden.values<double>(name);
  REQUIRE((x.size() == exact.size() && x.size() > 90));
  for_each_architecture([&](auto arch) {
    std::vector<T> y(x.size());
    f(arch, x.data(), y.data(), static_cast<recops::Index>(x.size()));
    for (std::size_t i = 0; i < x.size(); ++i) {
      CAPTURE(name, x[i], y[i], exact[i]);
      if (std::isnan(exact[i])) {
        REQUIRE(std::isnan(y[i]));
      } else {
        REQUIRE(ulps(y[i], static_cast<long double>(exact[i])) <= most);
      }
    }
  });
}

}  // namespace recops_test
