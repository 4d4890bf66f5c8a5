/// The main of every test program: says what was built and with which seed, then runs Catch2.
#if __has_include(<catch2/catch_session.hpp>)
#include <catch2/catch_session.hpp>
#include <catch2/catch_version_macros.hpp>
#else
#define CATCH_CONFIG_RUNNER
#include <catch2/catch.hpp>
#endif

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <recops/version.hpp>

namespace recops_test {
std::uint64_t seed();
std::uint64_t seed() {
  const char* text = std::getenv("RECOPS_SEED");
  return text != nullptr && *text != '\0' ? std::strtoull(text, nullptr, 10) : 1;
}
}  // namespace recops_test

int main(int argc, char** argv) {
  std::printf("recops %d.%d.%d | RECOPS_SEED=%llu | " RECOPS_TEST_COMPILER " | Catch2 %d.%d | xsimd " RECOPS_TEST_XSIMD
              " | Eigen " RECOPS_TEST_EIGEN "\n",
              RECOPS_VERSION_MAJOR, RECOPS_VERSION_MINOR, RECOPS_VERSION_PATCH,
              static_cast<unsigned long long>(recops_test::seed()), CATCH_VERSION_MAJOR, CATCH_VERSION_MINOR);
  std::fflush(stdout);
  return Catch::Session().run(argc, argv);
}
