// Oracles: tests/gating/reference.hpp (the sum in double), central differences; every instruction set the machine runs.
#include <recops/train/gradient_check.hpp>

#include "gating/reference.hpp"
#include "support/allocations.hpp"
#include "support/architectures.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

TEMPLATE_TEST_CASE("gate_mix and its backward equal the definition", "[gating][gate_mix]", float, double) {
  using T = TestType;
  const double tolerance = 60 * static_cast<double>(std::numeric_limits<T>::epsilon());
  Random random = random_stream(221);
  Workspace ws;
  for (const GateMap& map : {GateMap(1, 1), GateMap(1, 5), GateMap(4, 1), GateMap(6, 8), GateMap(7, 3), GateMap(13, 2),
                             GateMap(4, {{0, 3}, {}, {1}, {2, 1, 0}}), GateMap(2, {{1, 0}, {0, 1}})}) {
    for (const Index h : {1, 3, 8, 16, 17, 64, 83}) {
      for (const Index rows : {0, 1, 3, 65}) {
        Padded<T> a(random_matrix<T>(rows, map.experts() * h, random).view()),
            g(random_matrix<T>(rows, map.size(), random).view());
        Padded<T> dy(random_matrix<T>(rows, map.tasks() * h, random).view());
        Padded<T> y(rows, map.tasks() * h, T(5)), da(rows, map.experts() * h, T(2)), dg(rows, map.size(), T(3));
        Matrix<double> exact_a(rows, map.experts() * h), exact_g(rows, map.size()), expected_da(rows, map.experts() * h, 2.0),
            expected_dg(rows, map.size(), 3.0);
        for (Index r = 0; r < rows; ++r) {
          for (Index j = 0; j < exact_a.cols(); ++j) exact_a(r, j) = static_cast<double>(a(r, j));
          for (Index j = 0; j < exact_g.cols(); ++j) exact_g(r, j) = static_cast<double>(g(r, j));
          for (Index t = 0; t < map.tasks(); ++t)
            for (Index i = map.begin(t); i < map.end(t); ++i)
              for (Index j = 0; j < h; ++j) {
                const auto d = static_cast<double>(dy(r, t * h + j));
                expected_da(r, map.expert(i) * h + j) += exact_g(r, i) * d;
                expected_dg(r, i) += exact_a(r, map.expert(i) * h + j) * d;
              }
        }
        CAPTURE(map.tasks(), map.experts(), map.is_dense(), h, rows);
        gate_mix<T>(a, g, map, y, ws);
        CHECK(max_difference(y.view(), mix_reference(exact_a, exact_g, map).view()) < tolerance);
        gate_mix_backward<T>(a, g, map, dy, da, dg, ws);
        CHECK(max_difference(da.view(), expected_da.view()) < tolerance);
        CHECK(max_difference(dg.view(), expected_dg.view()) < 10 * tolerance);
        CHECK((y.intact() && da.intact() && dg.intact()));
      }
    }
  }
}

TEMPLATE_TEST_CASE("The kernels of gate_mix agree on every instruction set", "[gating][gate_mix]", float, double) {
  using T = TestType;
  const double tolerance = 100 * static_cast<double>(std::numeric_limits<T>::epsilon());
  Random random = random_stream(222);
  for (const GateMap& map : {GateMap(7, 5), GateMap(5, {{0, 3}, {}, {1}, {2, 1, 4}})}) {
    for (const Index h : {1, 7, 33, 100}) {
      const Matrix<T> a = random_matrix<T>(1, map.experts() * h, random), g = random_matrix<T>(1, map.size(), random),
                      dy = random_matrix<T>(1, map.tasks() * h, random);
      const Matrix<double> expected = mix_reference(cast<double>(a), cast<double>(g), map);
      Matrix<T> first_da(1, map.experts() * h, T(0)), first_dg(1, map.size(), T(0));
      detail::gate_mix_row_backward<T>(a.data(), g.data(), map, h, dy.data(), first_da.data(), first_dg.data());
      for_each_architecture([&](auto architecture) {
        using A = decltype(architecture);
        Matrix<T> y(1, map.tasks() * h), da(1, map.experts() * h, T(0)), dg(1, map.size(), T(0));
        detail::gate_mix_row<T, A>(a.data(), a.data(), g.data(), map, h, y.data());
        CHECK(max_difference(y.view(), expected.view()) < tolerance);
        detail::gate_mix_row_backward<T, A>(a.data(), g.data(), map, h, dy.data(), da.data(), dg.data());
        CHECK(max_difference(da.view(), first_da.view()) < tolerance);
        CHECK(max_difference(dg.view(), first_dg.view()) < tolerance);
      });
    }
  }
}

TEST_CASE("gate_mix: a hidden expert is not read, a row keeps its NaN, equal gates give the mean", "[gating][gate_mix]") {
  Workspace ws;
  const double nan = std::nan("");
  const Matrix<double> a{{1, 2, nan, nan, 5, 8}, {1, 2, 3, 4, 5, 6}}, g{{0.5, 0.5}, {0.5, 0.5}};
  Matrix<double> y(2, 2), z(2, 2);
  gate_mix<double>(a, g, GateMap(3, {{0, 2}}), y, ws);
  CHECK((y(0, 0) == 3 && y(0, 1) == 5 && y(1, 0) == 3 && y(1, 1) == 4));
  gate_mix<double>(a, g, GateMap(3, {{0, 1}}), z, ws);
  CHECK((std::isnan(z(0, 0)) && z(1, 0) == 2));
}

TEST_CASE("gate_mix: what is not wanted is left out; threads change no bit; a warm call allocates nothing",
          "[gating][gate_mix]") {
  Random random = random_stream(223);
  Threads threads{3};
  Workspace ws, wide(make_executor(threads, 3));
  const GateMap map(6, 8);
  const Index h = 40, rows = 200;
  const Matrix<float> a = random_matrix<float>(rows, 8 * h, random), g = random_matrix<float>(rows, 48, random),
                      dy = random_matrix<float>(rows, 6 * h, random);
  Matrix<float> y(rows, 6 * h), y2(rows, 6 * h), da(rows, 8 * h, 0.0f), da2(rows, 8 * h, 0.0f), dg(rows, 48, 0.0f),
      dg2(rows, 48, 0.0f);
  gate_mix<float>(a, g, map, y, ws);
  gate_mix<float>(a, g, map, y2, wide);
  gate_mix_backward<float>(a, g, map, dy, da, dg, ws);
  gate_mix_backward<float>(a, g, map, dy, da2, {}, wide);
  gate_mix_backward<float>(a, g, map, dy, {}, dg2, wide);
  CHECK(max_difference(y.view(), y2.view()) == 0);
  CHECK(max_difference(da.view(), da2.view()) == 0);
  CHECK(max_difference(dg.view(), dg2.view()) == 0);
  const AllocationCounter counter;
  gate_mix<float>(a, g, map, y, ws);
  gate_mix_backward<float>(a, g, map, dy, da, dg, ws);
  const std::size_t allocations = counter.count();
  CHECK(allocations == 0);
}

TEST_CASE("gate_mix refuses what does not fit and writes nothing", "[gating][gate_mix]") {
  Workspace ws;
  const GateMap map(2, 3);
  const Matrix<float> a(4, 15, 1.0f), g(4, 6, 1.0f), odd(4, 14, 1.0f), short_g(3, 6, 1.0f);
  Matrix<float> y(4, 10, 7.0f), narrow(4, 9, 7.0f);
  CHECK(error_of([&] { gate_mix<float>(odd, g, map, y, ws); }) ==
        "gate_mix: columns of experts: expected experts times the outputs of one, got 14");
  CHECK(error_of([&] { gate_mix<float>(a, short_g, map, y, ws); }) == "gate_mix: gates: expected shape [4, 6], got [3, 6]");
  CHECK(error_of([&] { gate_mix<float>(a, g, map, narrow, ws); }) == "gate_mix: out: expected shape [4, 10], got [4, 9]");
  CHECK(error_of([&] { gate_mix<float>(a, g, GateMap(), y, ws); }) == "gate_mix: tasks: expected a GateMap with tasks, got 0");
  CHECK(error_of([&] { gate_mix_backward<float>(a, g, map, narrow, {}, {}, ws); }) ==
        "gate_mix_backward: dout: expected shape [4, 10], got [4, 9]");
  CHECK(error_of([&] { gate_mix_backward<float>(a, g, map, y, narrow, {}, ws); }) ==
        "gate_mix_backward: dexperts: expected shape [4, 15], got [4, 9]");
  for (const float v : leaf_values(y)) CHECK(v == 7);
  for (const float v : leaf_values(narrow)) CHECK(v == 7);
}
