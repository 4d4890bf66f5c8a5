/// @file   tests/support/architectures.hpp
/// @brief  Runs a kernel test on every instruction set that this program can run.
#pragma once
#include <recops/simd/xsimd.hpp>

#include "support/catch.hpp"

namespace recops_test {

/// Calls `f(A{})` for every architecture A in `simd::Architectures`; failures name it.
template <class F>
void for_each_architecture(F&& f) {
  const auto one = [&](auto architecture) {
    INFO("architecture " << decltype(architecture)::name());
    f(architecture);
  };
  [&]<class... A>(const std::tuple<A...>*) { (one(A{}), ...); }(static_cast<const recops::simd::Architectures*>(nullptr));
}

}  // namespace recops_test
