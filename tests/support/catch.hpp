/// @file   tests/support/catch.hpp
/// @brief  Catch2, version 2 or 3, under the names of version 2: the only way a test includes it.
#pragma once

#if __has_include(<catch2/catch_test_macros.hpp>)
#include <catch2/catch_approx.hpp>
#include <catch2/catch_message.hpp>
#include <catch2/catch_template_test_macros.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
using Catch::Approx;
namespace recops_test {
/// Matches a text, or the message of an exception, that contains `part`.
inline auto contains(const std::string& part) { return Catch::Matchers::ContainsSubstring(part); }
}  // namespace recops_test
#else
#include <catch2/catch.hpp>
namespace recops_test {
/// Matches a text, or the message of an exception, that contains `part`.
inline auto contains(const std::string& part) { return Catch::Matchers::Contains(part); }
}  // namespace recops_test
#endif

#include <cstdint>

namespace recops_test {
/// The seed of this run: environment variable RECOPS_SEED, 1 where it is not set. Every random test input derives from it.
std::uint64_t seed();
}  // namespace recops_test
