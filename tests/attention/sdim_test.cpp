/// Oracles: vectors made with PyTorch (golden/history_search.py), a scan of all behaviours in double, central differences.
#include <recops/attention/sdim.hpp>

#include <recops/train/gradient_check.hpp>
#include <vector>

#include "support/allocations.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {

struct Users {
  std::vector<std::int64_t> rows{0}, keys{0};
  Users(const std::vector<Index>& n, const std::vector<Index>& l) {
    for (std::size_t b = 0; b < n.size(); ++b) {
      rows.push_back(rows.back() + n[b]);
      keys.push_back(keys.back() + l[b]);
    }
  }
};

/// Every behaviour is looked at, every code compared.
template <class T>
Matrix<double> scan(const Users& users, MatrixView<const T> history, const Matrix<std::uint16_t>& candidate_codes,
                    const Matrix<std::uint16_t>& history_codes, const SdimOptions& o) {
  Matrix<double> out(candidate_codes.rows(), history.cols(), 0.0);
  std::vector<double> u(static_cast<std::size_t>(history.cols()));
  for (std::size_t b = 0; b + 1 < users.rows.size(); ++b)
    for (Index i = users.rows[b]; i < users.rows[b + 1]; ++i)
      for (Index t = 0; t < o.groups; ++t) {
        std::fill(u.begin(), u.end(), 0);
        for (Index j = users.keys[b]; j < users.keys[b + 1]; ++j)
          if (history_codes(j, t) == candidate_codes(i, t))
            for (std::size_t d = 0; d < u.size(); ++d) u[d] += static_cast<double>(history(j, static_cast<Index>(d)));
        double square = 0;
        for (const double x : u) square += x * x;
        const double scale = (o.normalize ? (square > 1e-20 ? 1 / std::sqrt(square) : 0) : 1) / static_cast<double>(o.groups);
        for (std::size_t d = 0; d < u.size(); ++d) out(i, static_cast<Index>(d)) += scale * u[d];
      }
  return out;
}

/// Bit i of code t is the side of plane t bits + i, where rounding does not decide.
template <class T>
bool codes_are_signs(const Sdim<T>& layer, const Matrix<T>& x, const Matrix<std::uint16_t>& codes) {
  const Index bits = layer.options.bits;
  for (Index r = 0; r < x.rows(); ++r)
    for (Index t = 0; t < layer.options.groups; ++t) {
      if (codes(r, t) >> bits != 0) return false;
      for (Index i = 0; i < bits; ++i) {
        double product = 0;
        for (Index d = 0; d < x.cols(); ++d)
          product += static_cast<double>(x(r, d)) * static_cast<double>(layer.planes(d, t * bits + i));
        if (std::abs(product) > 1e-5 && (codes(r, t) >> i & 1) != (product > 0)) return false;
      }
    }
  return true;
}

}  // namespace

TEMPLATE_TEST_CASE("sdim agrees with PyTorch", "[attention][sdim][golden]", float, double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 1e-5 : 1e-12;
  const Golden golden("history_search");
  const auto history_offsets = golden.values<std::int64_t>("history_offsets"),
             candidate_offsets = golden.values<std::int64_t>("candidate_offsets");
  const Matrix<T> e = golden.matrix<T>("history"), q = golden.matrix<T>("candidates"), g = golden.matrix<T>("cotangent");
  Padded<T> history(e.view()), candidates(q.view()), dout(g.view());
  const JaggedView<const T> what(history.view(), history_offsets), who(candidates.view(), candidate_offsets);
  Workspace ws;
  Sdim<T> layer;
  layer.planes = golden.matrix<T>("sdim.planes");
  for (const bool normalize : {true, false}) {
    layer.options = {.groups = 5, .bits = 2, .normalize = normalize};
    const std::string name = normalize ? "sdim.unit." : "sdim.sum.";
    typename Sdim<T>::Saved saved;
    Padded<T> out(q.rows(), 8, T(9)), served(q.rows(), 8, T(9)), dh(e.rows(), 8);
    const auto both = [&] {
      layer.forward(who, what, out, saved, {}, ws);
      layer.backward(who, what, dout, saved, dh, ws);
      layer.forward(who, what, served, ws);
    };
    both();
    CHECK(max_difference(saved.history_codes.view(), golden.matrix<std::int32_t>("sdim.history_codes").view()) == 0);
    CHECK(max_difference(saved.candidate_codes.view(), golden.matrix<std::int32_t>("sdim.candidate_codes").view()) == 0);
    CHECK(max_difference(out.view(), golden.matrix<double>(name + "out").view()) <= tolerance);
    CHECK(max_difference(dh.view(), golden.matrix<double>(name + "dhistory").view()) <= 10 * tolerance);
    CHECK(max_difference(out.view(), served.view()) == 0);
    CHECK((out.intact() && served.intact() && dh.intact()));
    CHECK(count_allocations(both) == 0);
  }
}

TEMPLATE_TEST_CASE("tables are a scan of all behaviours", "[attention][sdim]", float, double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 3e-5 : 1e-12;
  Random random = random_stream(640);
  Workspace ws;
  Threads threads{3};
  Workspace parallel(make_executor(threads, 3));
  const Users users({3, 1, 0, sanitized ? 10 : 70}, {0, 7, 5, sanitized ? 600 : 1500});
  for (const SdimOptions o :
       {SdimOptions{1, 0, true}, {3, 0, false}, {7, 1, true}, {16, 3, true}, {16, 3, false}, {11, sanitized ? 5 : 9, true}})
    for (const Index cols : {1, 5, 16}) {
      CAPTURE(o.groups, o.bits, o.normalize, cols);
      const Sdim<T> layer(cols, o, random);
      const Matrix<T> e = random_matrix<T>(users.keys.back(), cols, random),
                      q = random_matrix<T>(users.rows.back(), cols, random);
      const JaggedView<const T> what(e.view(), users.keys), who(q.view(), users.rows);
      typename Sdim<T>::Saved saved;
      Matrix<T> y(q.rows(), cols), again(q.rows(), cols), dh(e.rows(), cols, T(0)), dh_again(e.rows(), cols, T(0));
      layer.forward(who, what, y, saved, {}, ws);
      CHECK(codes_are_signs<T>(layer, e, saved.history_codes));  // also where a group lies across two words
      CHECK(codes_are_signs<T>(layer, q, saved.candidate_codes));
      CHECK(max_difference(y.view(), scan<T>(users, e, saved.candidate_codes, saved.history_codes, o).view()) <=
            tolerance * (o.normalize ? 1 : 40));
      layer.forward(who, what, again, parallel);
      CHECK(max_difference(y.view(), again.view()) == 0);
      layer.backward(who, what, y, saved, dh, ws);
      layer.backward(who, what, y, saved, dh_again, parallel);
      CHECK(max_difference(dh.view(), dh_again.view()) == 0);
    }
}

TEST_CASE("sdim's gradient agrees with central differences", "[attention][sdim]") {
  Random random = random_stream(641);
  Workspace ws;
  const Users users({3, 2}, {6, 9});
  for (const bool normalize : {true, false}) {
    const Sdim<double> layer(4, {.groups = 5, .bits = 2, .normalize = normalize}, random);
    Matrix<double> e = random_matrix<double>(15, 4, random), q = random_matrix<double>(5, 4, random), y(5, 4);
    const Matrix<double> g = random_matrix<double>(5, 4, random);
    const JaggedView<const double> what(e.view(), users.keys), who(q.view(), users.rows);
    Sdim<double>::Saved saved;
    layer.forward(who, what, y, saved, {}, ws);
    Matrix<double> dh(15, 4, 0.0);
    layer.backward(who, what, g, saved, dh, ws);
    GradientReport report;
    check_gradient(
        "history", VectorView<double>(e.data(), 60), VectorView<const double>(dh.data(), 60),
        [&] {
          layer.forward(who, what, y, ws);
          double sum = 0;
          for (Index i = 0; i < 20; ++i) sum += y.data()[i] * g.data()[i];
          return sum;
        },
        report);
    CAPTURE(report.where, report.numeric, report.analytic);
    CHECK(report.worst < 1e-6);
  }
}

TEST_CASE("weights of collisions: (1 - angle / pi)^bits in the mean", "[attention][sdim]") {
  Random random = random_stream(642);
  Workspace ws;
  // One behaviour at 60 degrees to the candidate: how often it is found in a group.
  const Matrix<double> q{{1, 0}}, e{{0.5, std::sqrt(0.75)}};
  double found = 0;
  constexpr int rounds = sanitized ? 40 : 200;
  for (int round = 0; round < rounds; ++round) {
    const Sdim<double> layer(2, {.groups = 50, .bits = 3, .normalize = false}, random);
    Matrix<double> y(1, 2);
    layer.forward(q, e, y, ws);
    found += y(0, 0) / 0.5 / rounds;
  }
  const double p = std::pow(1 - 1.0 / 3, 3);
  CHECK(std::abs(found - p) < 5 * std::sqrt(p * (1 - p) / (50 * rounds)));
}

TEST_CASE("no bits: the mean of groups is the whole history, whatever the candidate", "[attention][sdim]") {
  Random random = random_stream(643);
  Workspace ws;
  const Matrix<double> e = random_matrix<double>(20, 3, random), q = random_matrix<double>(4, 3, random);
  const Sdim<double> layer(3, {.groups = 2, .bits = 0, .normalize = false}, random);
  Matrix<double> y(4, 3);
  layer.forward(q, e, y, ws);
  for (Index d = 0; d < 3; ++d) {
    double sum = 0;
    for (Index j = 0; j < 20; ++j) sum += e(j, d);
    for (Index i = 0; i < 4; ++i) CHECK(std::abs(y(i, d) - sum) < 1e-12);
  }
}

TEMPLATE_TEST_CASE("a NaN in sdim stays in its buckets, and with its user", "[attention][sdim]", float, double) {
  using T = TestType;
  Random random = random_stream(645);
  Workspace ws;
  const Sdim<T> layer(4, {.groups = 3, .bits = 2}, random);
  Matrix<T> q = random_matrix<T>(6, 4, random), e = random_matrix<T>(50, 4, random), y(6, 4), spoilt(6, 4);
  const std::vector<int> qo{0, 2, 4, 6}, eo{0, 15, 35, 50};
  layer.forward({q.view(), qo}, {e.view(), eo}, y, ws);
  e(20, 1) = std::numeric_limits<T>::quiet_NaN();
  layer.forward({q.view(), qo}, {e.view(), eo}, spoilt, ws);
  for (const Index i : {0, 1, 4, 5})
    for (Index c = 0; c < 4; ++c) CHECK(spoilt(i, c) == y(i, c));
  Matrix<T> tables(3 * layer.buckets(), 4);
  layer.build({e.view(), eo}, tables, ws);
  Index touched = 0;
  for (Index r = 0; r < tables.rows(); ++r) {
    const bool nan = std::any_of(tables.row(r), tables.row(r) + 4, [](T v) { return std::isnan(v); });
    CHECK((!nan || r / layer.buckets() == 1));
    touched += nan;
  }
  CHECK(touched == 3);  // one bucket of each group
}

TEST_CASE("a NaN in a bucket that no candidate chose gives nobody a gradient", "[attention][sdim]") {
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  Workspace ws;
  Sdim<double> layer;
  layer.options = {.groups = 1, .bits = 1};
  layer.planes = {{1}, {0}};  // the side of the first number
  const Matrix<double> q{{1, 2}}, e{{1, 3}, {-1, nan}, {-2, 1}}, dy{{1, -1}};
  Matrix<double> y(1, 2), dh(3, 2, 0.0);
  Sdim<double>::Saved saved;
  layer.forward(q, e, y, saved, {}, ws);
  layer.backward(q, e, dy, saved, dh, ws);
  CHECK((dh(0, 0) > 0 && dh(0, 1) < 0));
  for (const Index l : {1, 2})
    for (const Index c : {0, 1}) CHECK(dh(l, c) == 0);
}

TEST_CASE("sdim names what is wrong and writes nothing", "[attention][sdim][errors]") {
  Random random = random_stream(644);
  Workspace ws;
  Sdim<float> layer(4, {.groups = 2, .bits = 3}, random);
  Matrix<float> q(2, 4, 1.0f), e(5, 4, 1.0f), narrow(5, 3, 1.0f), out(2, 4, 9.0f), tables(16, 4, 9.0f);
  CHECK_THAT(error_of([&] { layer.forward(q, narrow, out, ws); }), contains("Sdim: history: expected shape [_, 4], got [5, 3]"));
  layer.options.bits = 13;
  CHECK_THAT(error_of([&] { layer.forward(q, e, out, ws); }), contains("Sdim: bits: expected 0 to 12 bits, got 13"));
  Matrix<std::uint16_t> codes(5, 2, std::uint16_t{7});
  codes(3, 1) = 8;
  CHECK_THAT(error_of([&] { sdim_tables<float>(e, codes, {.groups = 2, .bits = 3}, tables, ws); }),
             contains("sdim_tables: codes: expected codes from 0 to below 8, got 8 at position 7"));
  CHECK_THAT(error_of([&] { sdim_lookup<float>(codes, tables, {.groups = 2, .bits = 3}, out, ws); }),
             contains("sdim_lookup: codes: expected codes from 0 to below 8"));
  CHECK_THAT(error_of([&] { sdim_backward<float>(codes, codes, tables, {.groups = 2, .bits = 3}, e, e, ws); }),
             contains("sdim_backward: candidate_codes: expected codes from 0 to below 8"));
  for (Index i = 0; i < 8; ++i) CHECK(out.data()[i] == 9.0f);
  for (Index i = 0; i < 64; ++i) CHECK(tables.data()[i] == 9.0f);
}
