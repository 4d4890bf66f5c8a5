// Oracles: the picks of mmr itself; soft labels by numpy (tests/golden/cdm.py).
#include <recops/diversity/mmr_labels.hpp>
#include <vector>

#include "support/allocations.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

TEMPLATE_TEST_CASE("soft labels against numpy; they become the hard ones", "[diversity][labels]", float, double) {
  using T = TestType;
  const Golden golden("cdm");
  const Matrix<T> x = golden.matrix<T>("labels.features");
  const auto r = golden.values<T>("labels.relevance");
  const auto options = golden.values<double>("labels.options"), soft = golden.values<double>("labels.soft");
  Workspace ws;
  MmrLabelOptions o{.teacher = {.lambda = options[0]},
                    .picks = static_cast<Index>(options[1]),
                    .labels = TeacherLabels::soft,
                    .temperature = options[2]};
  const MmrInput<T> in{.relevance = r, .features = x};
  Vector<T> y(24), hard(24), graded(24);
  mmr_labels<T>(in, o, y, ws);
  for (Index i = 0; i < 24; ++i)
    CHECK(std::abs(static_cast<double>(y[i]) - soft[static_cast<std::size_t>(i)]) < (std::is_same_v<T, float> ? 2e-5 : 1e-12));
  o.temperature = 1e-6;
  mmr_labels<T>(in, o, y, ws);
  o.labels = TeacherLabels::hard;
  mmr_labels<T>(in, o, hard, ws);
  o.labels = TeacherLabels::graded;
  mmr_labels<T>(in, o, graded, ws);
  Vector<std::int32_t> picks(6);
  mmr<T>(in, o.teacher, picks, {}, ws);
  Index wins = 0;
  for (Index i = 0; i < 24; ++i) {
    wins += hard[i] == 1;
    CHECK(std::abs(y[i] - hard[i]) < T(1e-3));
  }
  CHECK(wins == 6);
  for (Index t = 0; t < 6; ++t) CHECK(graded[picks[t]] == static_cast<T>(1 - static_cast<double>(t) / 6));
}

TEST_CASE("labels of a batch are those of its requests; masks, NaN, history, errors", "[diversity][labels]") {
  Random random = random_stream(7301);
  Workspace ws;
  Matrix<float> x = random_matrix<float>(30, 5, random), history = random_matrix<float>(3, 5, random);
  Vector<float> r = random_vector<float>(30, random);
  Vector<std::uint8_t> allowed(30, 1);
  allowed[4] = 0;
  r[7] = std::numeric_limits<float>::quiet_NaN();
  x(9, 2) = std::numeric_limits<float>::infinity();
  const std::vector<std::int32_t> offsets{0, 12, 12, 13, 30}, seen{0, 0, 0, 1, 3};
  const MmrBatch<float> batch{.relevance = r,
                              .features = JaggedView<const float>(x.view(), offsets),
                              .history = JaggedView<const float>(history.view(), seen),
                              .allowed = allowed};
  for (const TeacherLabels kind : {TeacherLabels::hard, TeacherLabels::graded, TeacherLabels::soft}) {
    const MmrLabelOptions o{.teacher = {.lambda = 0.4, .normalize = true}, .picks = 5, .labels = kind};
    Vector<float> all(30, -1), one(30, -1);
    const auto call = [&] { mmr_labels<float>(batch, o, all, ws); };
    call();
    CHECK(count_allocations(call) == 0);
    for (Index b = 0; b < 4; ++b) {
      MmrInput<float> in = recops::detail::mmr_request(batch, b);
      mmr_labels<float>(in, o, VectorView<float>(one).segment(batch.features.begin(b), batch.features.length(b)), ws);
    }
    for (Index i = 0; i < 30; ++i) {
      CHECK(all[i] == one[i]);
      CHECK((all[i] >= 0 && all[i] <= 1));
    }
    CHECK((all[4] == 0 && all[7] == 0 && all[9] == 0 && all[12] > 0.9999f));
  }
  // A history that the teacher ignores, and scores that are no numbers any more once divided by the temperature.
  Matrix<float> unusable(1, 5, std::numeric_limits<float>::quiet_NaN());
  Vector<float> with(30, -1), without(30, -1), vast(30, 0.0f);
  const MmrLabelOptions soft{.teacher = {.lambda = 0.4, .normalize = true}, .picks = 3, .labels = TeacherLabels::soft};
  mmr_labels<float>(MmrInput<float>{.relevance = r, .features = x, .history = unusable}, soft, with, ws);
  mmr_labels<float>(MmrInput<float>{.relevance = r, .features = x}, soft, without, ws);
  for (Index i = 0; i < 30; ++i) CHECK(with[i] == without[i]);
  vast[3] = 3e38f;
  mmr_labels<float>(MmrInput<float>{.relevance = vast, .features = x}, soft, with, ws);
  for (Index i = 0; i < 30; ++i) CHECK((with[i] >= 0 && with[i] <= 1));
  CHECK(with[3] == Approx(1));
  // Without features there is nothing to normalise.
  for (const bool normalize : {false, true}) {
    Vector<float>& to = normalize ? with : without;
    to.fill(-1);
    mmr_labels<float>(MmrInput<float>{.relevance = r},
                      {.teacher = {.lambda = 1, .normalize = normalize}, .picks = 3, .labels = TeacherLabels::soft}, to, ws);
  }
  CHECK(std::equal(with.begin(), with.end(), without.begin()));
  // A teacher with rules: they are checked.
  const std::vector<std::int32_t> pins{11, -1, 3, -1}, few{11};
  const Constraints pinned{.pins = pins}, wrong{.pins = few};
  const MmrLabelOptions four{.teacher = {.lambda = 0.4}, .picks = 4};
  mmr_labels<float>(MmrInput<float>{.relevance = vast, .features = x, .constraints = &pinned}, four, with, ws);
  CHECK((with[11] == 1 && with[3] == 1));
  // ... and pins are for all places, also where there are fewer items.
  const std::vector<std::int32_t> last{-1, 2, -1, -1};
  const Constraints place{.pins = last};
  Vector<float> graded(3, -1);
  mmr_labels<float>(
      MmrInput<float>{
          .relevance = VectorView<const float>(r.data(), 3), .features = x.view().middle_rows(0, 3), .constraints = &place},
      {.teacher = {.lambda = 0.4}, .picks = 4, .labels = TeacherLabels::graded}, graded, ws);
  CHECK(graded[2] == 0.75f);
  Vector<float> y(30, -1);
  CHECK(error_of([&] {
          mmr_labels<float>(MmrInput<float>{.relevance = vast, .features = x, .constraints = &wrong}, four, y, ws);
        }).find("constraints.pins") != std::string::npos);
  CHECK(error_of([&] {
          mmr_labels<float>(MmrInput<float>{.relevance = vast, .features = x, .constraints = &pinned},
                            {.picks = 4, .labels = TeacherLabels::soft}, y, ws);
        }).find("soft") != std::string::npos);
  const MmrInput<float> in{.relevance = r, .features = x};
  CHECK(error_of([&] { mmr_labels<float>(in, {.picks = -1}, y, ws); }) == "mmr_labels: picks: expected picks >= 0, got -1");
  CHECK(error_of([&] {
          mmr_labels<float>(in, {.teacher = {.window = 3}, .labels = TeacherLabels::soft}, y, ws);
        }).find("window") != std::string::npos);
  CHECK(error_of([&] { mmr_labels<float>(in, {}, VectorView<float>(y.data(), 3), ws); }) ==
        "mmr_labels: labels: expected size 30, got 3");
  MmrInput<float> categories = in;
  const std::vector<std::int32_t> ids(30, 1);
  categories.categories = ids;
  CHECK(error_of([&] { mmr_labels<float>(categories, {.labels = TeacherLabels::soft}, y, ws); }).find("soft") !=
        std::string::npos);
  for (const float v : y) CHECK(v == -1);
}

TEMPLATE_TEST_CASE("labels: strided rows, and temperatures that T does not hold", "[diversity][labels]", float, double) {
  using T = TestType;
  Random random = random_stream(7302);
  Workspace ws;
  const Matrix<T> x = random_matrix<T>(30, 5, random), history = random_matrix<T>(3, 5, random);
  const Vector<T> r = random_vector<T>(30, random);
  Padded<T> wide(x.view()), wide_history(history.view());
  Vector<T> packed(30), strided(30, T(7));
  for (const TeacherLabels kind : {TeacherLabels::hard, TeacherLabels::graded, TeacherLabels::soft}) {
    const MmrLabelOptions o{.teacher = {.lambda = 0.4}, .picks = 5, .labels = kind};
    mmr_labels<T>(MmrInput<T>{.relevance = r, .features = x, .history = history}, o, packed, ws);
    mmr_labels<T>(MmrInput<T>{.relevance = r, .features = wide, .history = wide_history}, o, strided, ws);
    CHECK(std::equal(packed.begin(), packed.end(), strided.begin()));
  }
  CHECK((wide.intact() && wide_history.intact()));
  constexpr double inf = std::numeric_limits<double>::infinity();
  for (const double broken : {0.0, -1.0, inf, std::is_same_v<T, float> ? 1e-50 : 1e-310, std::is_same_v<T, float> ? 1e50 : inf}) {
    const MmrLabelOptions o{.picks = 5, .labels = TeacherLabels::soft, .temperature = broken};
    CHECK(error_of([&] { mmr_labels<T>(MmrInput<T>{.relevance = r, .features = x}, o, strided, ws); }).find("temperature") !=
          std::string::npos);
  }
  CHECK(std::equal(packed.begin(), packed.end(), strided.begin()));
}
