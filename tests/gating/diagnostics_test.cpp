// Oracles: the definitions in double, number by number; mixtures made ill on purpose, one disease each; shards against the whole.
#include <recops/gating/diagnostics.hpp>
#include <recops/gating/home.hpp>

#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

/// Gates [B, G] that sum to 1 per task.
template <class T>
Matrix<T> random_gates(Index rows, const GateMap& map, Random& random) {
  Matrix<T> g(rows, map.size());
  for (Index r = 0; r < rows; ++r)
    for (Index t = 0; t < map.tasks(); ++t) {
      double total = 0;
      for (Index i = map.begin(t); i < map.end(t); ++i)
        total += static_cast<double>(g(r, i) = static_cast<T>(random.uniform(0.1, 1)));
      for (Index i = map.begin(t); i < map.end(t); ++i) g(r, i) = static_cast<T>(static_cast<double>(g(r, i)) / total);
    }
  return g;
}
template <class T>
Matrix<T> relu(Matrix<T> m) {
  for (T& v : leaf_values(m)) v = std::max(v, T(0));
  return m;
}

}  // namespace

TEMPLATE_TEST_CASE("ExpertMonitor gives the numbers of its definitions", "[gating][diagnostics]", float, double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 1e-5 : 1e-12;
  Random random = random_stream(831);
  const GateMap map(4, {{0, 1, 3}, {2, 3}, {3, 0}});
  const Index h = 7, rows = 41;
  Matrix<T> a = relu(random_matrix<T>(rows, 4 * h, random));
  for (Index r = 0; r < rows; ++r) a(r, h + 2) = 0;  // a dead unit of expert 1
  const Matrix<T> g = random_gates<T>(rows, map, random);
  ExpertMonitor monitor(map, h);
  Padded<T> strided(a.view());
  monitor.add<T>(strided.view().middle_rows(0, 17), g.view().middle_rows(0, 17));
  monitor.add<T>(strided.view().middle_rows(17, 0), g.view().middle_rows(17, 0));
  monitor.add<T>(strided.view().middle_rows(17, rows - 17), g.view().middle_rows(17, rows - 17));
  const ExpertReport report = monitor.report();
  CHECK((report.rows == rows && report.skipped_rows == 0));
  double largest = 0, smallest = 1e9;
  for (Index e = 0; e < 4; ++e) {
    double zero = 0, sum = 0, square = 0;
    for (Index r = 0; r < rows; ++r)
      for (Index j = e * h; j < (e + 1) * h; ++j) {
        const auto v = static_cast<double>(a(r, j));
        zero += v == 0;
        sum += v;
        square += v * v;
      }
    const double n = static_cast<double>(rows * h), mean = sum / n;
    const auto& x = report.experts[static_cast<std::size_t>(e)];
    CHECK(x.zero_rate == Approx(zero / n).epsilon(1e-12));
    CHECK(x.dead_units == Approx(e == 1 ? 1 / 7.0 : 0).margin(1e-12));
    CHECK(x.mean == Approx(mean).epsilon(tolerance));
    CHECK(x.rms == Approx(std::sqrt(square / n)).epsilon(tolerance));
    CHECK(x.deviation == Approx(std::sqrt(square / n - mean * mean)).epsilon(tolerance));
    CHECK(x.seen_by == (e == 0 ? 2 : e == 3 ? 3 : 1));
    largest = std::max(largest, x.rms);
    smallest = std::min(smallest, x.rms);
  }
  CHECK(report.scale_ratio == Approx(largest / smallest));
  double mean[4][3] = {};
  for (Index t = 0; t < 3; ++t) {
    double entropy = 0, top = 0, contribution[4] = {}, all = 0;
    for (Index r = 0; r < rows; ++r) {
      double most = 0;
      for (Index i = map.begin(t); i < map.end(t); ++i) {
        const auto v = static_cast<double>(g(r, i));
        const Index e = map.expert(i);
        double length = 0;
        for (Index j = e * h; j < (e + 1) * h; ++j) length += static_cast<double>(a(r, j)) * static_cast<double>(a(r, j));
        mean[e][t] += v / static_cast<double>(rows);
        entropy -= v * std::log(v) / static_cast<double>(rows);
        most = std::max(most, v);
        contribution[e] += v * std::sqrt(length);
        all += v * std::sqrt(length);
      }
      top += most / static_cast<double>(rows);
    }
    const auto& x = report.tasks[static_cast<std::size_t>(t)];
    CHECK(x.entropy == Approx(entropy / std::log(static_cast<double>(map.count(t)))).epsilon(tolerance));
    CHECK(x.effective_experts == Approx(std::exp(entropy)).epsilon(tolerance));
    CHECK(x.dominance == Approx(top).epsilon(tolerance));
    CHECK(std::isnan(x.positive_rate));
    for (Index i = map.begin(t); i < map.end(t); ++i) {
      const auto& gate = report.gates[static_cast<std::size_t>(i)];
      CHECK((gate.task == t && gate.expert == map.expert(i)));
      CHECK(gate.mean == Approx(mean[map.expert(i)][t]).epsilon(tolerance));
      CHECK(gate.contribution == Approx(contribution[map.expert(i)] / all).epsilon(tolerance));
      double spread = 0;
      for (Index r = 0; r < rows; ++r)
        spread += std::pow(static_cast<double>(g(r, i)) - gate.mean, 2) / static_cast<double>(rows);
      CHECK(gate.deviation == Approx(std::sqrt(spread)).epsilon(100 * tolerance));
    }
  }
  CHECK(report.experts[3].occupancy ==
        Approx(std::max({mean[3][0], mean[3][1], mean[3][2]}) / (mean[3][0] + mean[3][1] + mean[3][2])).epsilon(tolerance));
  CHECK(report.experts[3].load == Approx((mean[3][0] + mean[3][1] + mean[3][2]) / 3).epsilon(tolerance));
  CHECK(report.experts[0].occupancy_two == Approx(1));
  CHECK(report.tasks[0].fair_share == Approx(1 / 3.0));  // it alone sees expert 1
  CHECK(report.tasks[0].own_share == Approx(mean[1][0]).epsilon(tolerance));
  CHECK(std::isnan(report.tasks[2].own_share));
  CHECK(report.healthy());
}

TEST_CASE("ExpertMonitor names each disease where it is, and nothing where there is none", "[gating][diagnostics]") {
  Random random = random_stream(832);
  const GateMap map(5, {{0, 1, 2}, {0, 1, 3}, {0, 1, 4}});  // two shared, one own each
  const Index h = 16, rows = 64;
  const Matrix<double> a = relu(random_matrix<double>(rows, 5 * h, random)), g = random_gates<double>(rows, map, random);
  const auto report = [&](auto change, const ExpertLimits& limits = {}) {
    Matrix<double> outputs = a, gates = g;
    change(outputs, gates);
    ExpertMonitor monitor(map, h, limits);
    monitor.add<double>(outputs, gates);
    return monitor.report();
  };
  CHECK(report([](auto&, auto&) {}).healthy());
  {  // expert 1 is a hundred times smaller
    const ExpertReport r = report([&](auto& outputs, auto&) {
      for (Index i = 0; i < rows; ++i)
        for (Index j = h; j < 2 * h; ++j) outputs(i, j) /= 100;
    });
    CHECK((r.collapsed() == 1 && r.experts[1].collapsed && r.degraded() == 0 && r.underfitted() == 0));
    CHECK(r.scale_ratio > 50);
    CHECK(r.gates[1].contribution < 0.1 * r.gates[1].mean);  // its gate says more than it gives
  }
  {  // expert 0 is nearly always zero
    const ExpertReport r = report([&](auto& outputs, auto&) {
      for (Index i = 0; i < rows; ++i)
        for (Index j = 1; j < h; ++j) outputs(i, j) = 0;
    });
    CHECK((r.collapsed() == 1 && r.experts[0].collapsed));
    CHECK(r.experts[0].dead_units == Approx(15 / 16.0));
  }
  const auto set = [&](Matrix<double>& gates, Index t, double one, double two, double own) {
    for (Index i = 0; i < rows; ++i) {
      gates(i, 3 * t) = one;
      gates(i, 3 * t + 1) = two;
      gates(i, 3 * t + 2) = own;
    }
  };
  {  // every task listens to expert 0 alone: it has taken over, and nobody hears their own
    const ExpertReport r = report([&](auto&, auto& gates) {
      for (const Index t : {0, 1, 2}) set(gates, t, 0.99, 0.005, 0.005);
    });
    CHECK((r.experts[0].collapsed && r.underfitted() == 3));
    CHECK(r.tasks[0].effective_experts < 1.1);
  }
  {  // expert 1 belongs to task 2
    const ExpertReport r = report([&](auto&, auto& gates) {
      set(gates, 0, 0.6, 0.02, 0.38);
      set(gates, 1, 0.6, 0.02, 0.38);
      set(gates, 2, 0.2, 0.6, 0.2);
    });
    CHECK((r.degraded() == 1 && r.experts[1].degraded && r.experts[1].owner == 2 && r.collapsed() + r.underfitted() == 0));
  }
  {  // expert 1 belongs to tasks 0 and 2
    const ExpertReport r = report([&](auto&, auto& gates) {
      set(gates, 0, 0.2, 0.5, 0.3);
      set(gates, 1, 0.6, 0.02, 0.38);
      set(gates, 2, 0.2, 0.5, 0.3);
    });
    CHECK((r.degraded() == 1 && r.experts[1].occupancy < 0.8 && r.experts[1].occupancy_two > 0.9));
  }
  {  // task 1 ignores what was made for it
    const ExpertReport r = report([&](auto&, auto& gates) { set(gates, 1, 0.5, 0.49, 0.01); });
    CHECK((r.underfitted() == 1 && r.tasks[1].underfitted && r.collapsed() + r.degraded() == 0));
    CHECK(r.tasks[1].fair_share == Approx(1 / 3.0));
  }
  CHECK(report([](auto&, auto&) {}, {.zero_rate = 0.2}).collapsed() == 5);  // limits are the user's
}

TEST_CASE("ExpertMonitor: gates joined with self gates are shares; experts may be said to be own", "[gating][diagnostics]") {
  Random random = random_stream(833);
  Workspace ws;
  const HomeLevel<double> level(
      {.inputs = 4, .outputs = 3, .groups = {{1, 0}, {2, 0}}, .mixtures = {{{0, 1}, 0, {0}}, {{0, 1}, 1, {0}}}, .loras = 0},
      random);
  const Matrix<double> x = random_matrix<double>(12, 4, random);
  Matrix<double> y(12, 6), joint(12, 6);
  HomeLevel<double>::Saved saved;
  level.forward(x, y, saved, Step{}, ws);
  level.joint_gates(saved, joint);
  for (Index r = 0; r < 12; ++r) {
    CHECK(joint(r, 0) + joint(r, 1) + joint(r, 2) == Approx(1 + saved.self_gates(r, 0)));
    CHECK(joint(r, 3) + joint(r, 4) + joint(r, 5) == Approx(2));
  }
  ExpertMonitor monitor(level.map, 3, {.zero = 1e-3}, {{0}, {1, 2}});
  monitor.add<double>(saved.expert_outputs, joint);
  const ExpertReport report = monitor.report();
  double own = 0;
  for (Index r = 0; r < 12; ++r) own += (joint(r, 4) + joint(r, 5)) / 2 / 12;
  CHECK(report.tasks[1].own_share == Approx(own));
  CHECK(report.tasks[1].fair_share == Approx(2 / 3.0));
  CHECK((report.experts[1].seen_by == 2 && !report.experts[1].degraded));  // what is its own is not shared
  for (Index t = 0; t < 2; ++t) {
    double sum = 0;
    for (Index g = level.map.begin(t); g < level.map.end(t); ++g) sum += report.gates[static_cast<std::size_t>(g)].mean;
    CHECK(sum == Approx(1));
  }
  CHECK(error_of([&] { level.joint_gates(saved, y.view().middle_cols(0, 5)); }) ==
        "HomeLevel::joint_gates: joint: expected shape [12, 6], got [12, 5]");
  saved.self_gates.resize(12, 2);
  CHECK(error_of([&] { level.joint_gates(saved, joint); }) ==
        "HomeLevel::joint_gates: saved.self_gates: expected shape [12, 3], got [12, 2]");
}

TEST_CASE("ExpertMonitor: shards merge to the whole; rows that are not numbers are left out", "[gating][diagnostics]") {
  Random random = random_stream(834);
  const GateMap map(3, 4);
  const Index h = 9, rows = 300;
  Matrix<float> a = random_matrix<float>(rows, 4 * h, random);
  Matrix<float> g = random_gates<float>(rows, map, random);
  const ExpertMonitor empty(map, h);
  ExpertMonitor whole = empty, shards = empty, backwards = empty;
  whole.add<float>(a, g);
  std::vector<ExpertMonitor> parts(5, empty);
  for (Index p = 0; p < 5; ++p)
    parts[static_cast<std::size_t>(p)].add<float>(a.view().middle_rows(60 * p, 60), g.view().middle_rows(60 * p, 60));
  for (std::size_t p = 0; p < 5; ++p) {
    shards.merge(parts[p]);
    backwards.merge(parts[4 - p]);
  }
  CHECK(shards.report().json() == backwards.report().json());
  const ExpertReport one = whole.report(), two = shards.report();
  CHECK((one.rows == rows && two.rows == rows && shards.rows() == rows));
  for (std::size_t e = 0; e < 4; ++e) {
    CHECK(one.experts[e].rms == Approx(two.experts[e].rms).epsilon(1e-13));
    CHECK(one.experts[e].zero_rate == two.experts[e].zero_rate);
    CHECK(one.experts[e].occupancy == Approx(two.experts[e].occupancy).epsilon(1e-13));
  }
  a(7, 3) = std::nanf("");
  g(9, 2) = INFINITY;
  ExpertMonitor careful = empty, without = empty;
  careful.add<float>(a, g);
  without.add<float>(a.view().middle_rows(0, 7), g.view().middle_rows(0, 7));
  without.add<float>(a.view().middle_rows(8, 1), g.view().middle_rows(8, 1));
  without.add<float>(a.view().middle_rows(10, rows - 10), g.view().middle_rows(10, rows - 10));
  CHECK((careful.report().rows == rows - 2 && careful.report().skipped_rows == 2));
  CHECK(careful.report().experts[0].rms == Approx(without.report().experts[0].rms).epsilon(1e-13));

  ExpertMonitor exploding(GateMap(1, 2), 2);
  const Matrix<float> huge{{3e38f, 3e38f, 1, 1}}, halves{{0.5f, 0.5f}};
  exploding.add<float>(huge, halves);
  CHECK((exploding.report().rows == 1 && exploding.report().skipped_rows == 0 && exploding.report().experts[1].collapsed));
  CHECK(exploding.report().experts[0].mean == Approx(3e38).epsilon(1e-6));

  ExpertMonitor closed(GateMap(2, 2), 1);  // a row in which a task has no gates at all: nothing is divided by 0
  const Matrix<float> ones{{1, 1}, {1, 1}}, some{{0, 0, 0.5f, 0.5f}, {0.25f, 0.75f, 0.5f, 0.5f}};
  closed.add<float>(ones, some);
  const ExpertReport half = closed.report();
  CHECK((half.rows == 2 && half.tasks[0].dominance == Approx(0.375) && half.gates[1].mean == Approx(0.375)));
  CHECK(half.tasks[1].entropy == Approx(1));

  const ExpertReport nothing = empty.report();
  CHECK((nothing.healthy() && nothing.rows == 0 && std::isnan(nothing.experts[0].rms) && std::isnan(nothing.tasks[0].entropy)));
  CHECK(nothing.json().find("\"rms\": null") != std::string::npos);
  CHECK(nothing.json().find(": nan") == std::string::npos);
}

TEST_CASE("ExpertReport as a table and as JSON", "[gating][diagnostics]") {
  const GateMap map(2, {{0, 1}, {1}});
  ExpertMonitor monitor(map, 2);
  const Matrix<float> a{{0, 2, 3, 4}, {0, 0, 4, 3}}, g{{0.25f, 0.75f, 1}, {0.25f, 0.75f, 1}};
  monitor.add<float>(a, g);
  const double rates[] = {0.5, 0.01};
  const ExpertReport report = monitor.report(VectorView<const double>(rates, 2));
  CHECK(report.text({"private", "shared"}, {"click"}) ==
        "expert              zeros   dead       rms mean gate seen by  occupancy  \n"
        "private             0.750  0.500         1     0.250       1      1.000  \n"
        "shared              0.000  0.000      3.54     0.875       2      0.571  \n"
        "task               entropy effective  largest own share  of fair positives\n"
        "click                0.811      1.75    0.750     0.250     0.50    0.5000  \n"
        "task 1               1.000      1.00    1.000       nan      nan    0.0100  \n"
        "2 rows (0 skipped), largest by smallest scale 3.54; 0 collapsed, 0 degraded, 0 underfitted\n");
  const std::string json = report.json();
  CHECK(json.rfind("{\"rows\": 2, \"skipped_rows\": 0, \"scale_ratio\": 3.5355339059327378, \"collapsed\": 0, \"degraded\": 0, "
                   "\"underfitted\": 0, \"experts\": [{\"index\": 0, \"zero_rate\": 0.75, \"dead_units\": 0.5, \"mean\": 0.5, ",
                   0) == 0);
  CHECK(json.find("\"tasks\": [{\"index\": 0, \"entropy\": 0.8112781244591") != std::string::npos);
  CHECK(json.find("\"own_share\": null") != std::string::npos);
  CHECK(json.find("\"gates\": [{\"index\": 0, \"task\": 0, \"expert\": 0, \"mean\": 0.25, \"deviation\": 0, ") !=
        std::string::npos);
  CHECK(json.back() == '}');
}

TEST_CASE("ExpertMonitor refuses what does not fit and counts nothing", "[gating][diagnostics]") {
  const GateMap map(2, 3);
  CHECK(error_of([&] { ExpertMonitor(map, 0); }) == "ExpertMonitor: outputs: expected outputs >= 1, got 0");
  CHECK(error_of([&] { ExpertMonitor(GateMap(), 1); }) == "ExpertMonitor: tasks: expected a GateMap with tasks, got 0");
  CHECK(error_of([&] { ExpertMonitor(map, 1, {.zero = -1}); }) == "ExpertMonitor: zero: expected zero >= 0, got -1");
  CHECK(error_of([&] { ExpertMonitor(map, 1, {}, {{0}}); }) == "ExpertMonitor: own: expected one list per task, or none, got 1");
  CHECK(error_of([&] {
          ExpertMonitor(map, 1, {}, {{0}, {3}});
        }) == "ExpertMonitor: own expert: expected an expert that its task sees, got 3");
  ExpertMonitor monitor(map, 4);
  const Matrix<float> a(5, 12, 1.0f), g(5, 6, 0.5f);
  CHECK(error_of([&] { monitor.add<float>(g, g); }) == "ExpertMonitor::add: experts: expected shape [_, 12], got [5, 6]");
  CHECK(error_of([&] { monitor.add<float>(a, a); }) == "ExpertMonitor::add: gates: expected shape [5, 6], got [5, 12]");
  CHECK(error_of([&] { monitor.merge(ExpertMonitor(map, 3)); }) ==
        "ExpertMonitor::merge: other: expected a monitor of the same mixture, got 6");
  const GateMap masked(3, {{0, 1}, {1, 2}}), same_sizes(3, {{0, 2}, {1, 2}});
  ExpertMonitor watched(masked, 4);
  CHECK(error_of([&] { watched.merge(ExpertMonitor(same_sizes, 4)); }) ==
        "ExpertMonitor::merge: other: expected a monitor of the same mixture, got 4");
  CHECK(error_of([&] { watched.merge(ExpertMonitor(masked, 4, {.zero = 1e-3})); }) ==
        "ExpertMonitor::merge: other: expected a monitor of the same mixture, got 4");
  watched.merge(ExpertMonitor(masked, 4));
  const double one = 1;
  CHECK(error_of([&] { monitor.report(VectorView<const double>(&one, 1)); }) ==
        "ExpertMonitor::report: positive_rates: expected size 2, got 1");
  CHECK(monitor.rows() == 0);
}
