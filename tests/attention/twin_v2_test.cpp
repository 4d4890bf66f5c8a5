/// Oracles: the queue of k-means written naively in double; the same with scipy's k-means (tests/golden/clusters.py); duplication of
/// members; `Twin` itself; central differences.
#include <recops/attention/twin_v2.hpp>
#include <recops/train/gradient_check.hpp>

#include "support/allocations.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"
#include "support/twin_reference.hpp"

using namespace recops;
using namespace recops_test;

namespace {

using Set = std::vector<int>;

/// The parts of a set by Lloyd, in double.
template <class T>
std::vector<Set> k_means(const Matrix<T>& x, const Set& set, std::size_t count, Index iterations) {
  const auto d = static_cast<std::size_t>(x.cols());
  std::vector<std::vector<double>> c(count, std::vector<double>(d));
  const auto at = [&](int row, std::size_t i) { return static_cast<double>(x(row, static_cast<Index>(i))); };
  for (std::size_t k = 0; k < count; ++k)
    for (std::size_t i = 0; i < d; ++i) c[k][i] = at(set[k * set.size() / count], i);
  std::vector<std::size_t> label(set.size(), count);
  for (Index round = 0; round < iterations; ++round) {
    bool changed = false;
    for (std::size_t r = 0; r < set.size(); ++r) {
      std::size_t best = 0;
      double least = INFINITY;
      for (std::size_t k = 0; k < count; ++k) {
        double apart = 0;
        for (std::size_t i = 0; i < d; ++i) apart += (at(set[r], i) - c[k][i]) * (at(set[r], i) - c[k][i]);
        if (apart < least) least = apart, best = k;
      }
      changed = changed || label[r] != best;
      label[r] = best;
    }
    if (!changed) break;
    for (std::size_t k = 0; k < count; ++k) {
      std::vector<double> sum(d, 0.0);
      double n = 0;
      for (std::size_t r = 0; r < set.size(); ++r) {
        if (label[r] != k) continue;
        ++n;
        for (std::size_t i = 0; i < d; ++i) sum[i] += at(set[r], i);
      }
      for (std::size_t i = 0; i < d && n > 0; ++i) c[k][i] = sum[i] / n;
    }
  }
  std::vector<Set> parts(count);
  for (std::size_t r = 0; r < set.size(); ++r) parts[label[r]].push_back(set[r]);
  parts.erase(std::remove_if(parts.begin(), parts.end(), [](const Set& s) { return s.empty(); }), parts.end());
  return parts;
}

template <class T>
std::vector<Set> reference(const Matrix<T>& x, const Vector<T>& ratio, const ClusterOptions& o) {
  std::vector<Set> clusters;
  const Index groups = ratio.empty() ? 1 : o.groups;
  for (Index g = 0; g < groups; ++g) {
    std::vector<Set> queue(1);
    for (int l = 0; l < static_cast<int>(x.rows()); ++l)
      if (ratio.empty() || std::min(groups - 1, static_cast<Index>(std::clamp(static_cast<double>(ratio[l]), 0.0, 1.0) *
                                                                   static_cast<double>(groups))) == g)
        queue[0].push_back(l);
    for (std::size_t head = 0; head < queue.size(); ++head) {
      const Set set = queue[head];
      if (set.empty()) continue;
      if (static_cast<Index>(set.size()) <= o.max_size) {
        clusters.push_back(set);
        continue;
      }
      const auto branches =
          std::max<std::size_t>(2, static_cast<std::size_t>(std::pow(static_cast<double>(set.size()), o.branch_exponent)));
      const auto parts = k_means(x, set, branches, o.iterations);
      if (parts.size() > 1) {
        queue.insert(queue.end(), parts.begin(), parts.end());
        continue;
      }
      const std::size_t pieces = (set.size() + static_cast<std::size_t>(o.max_size) - 1) / static_cast<std::size_t>(o.max_size);
      for (std::size_t i = 0; i < pieces; ++i)
        clusters.emplace_back(set.begin() + static_cast<std::ptrdiff_t>(set.size() * i / pieces),
                              set.begin() + static_cast<std::ptrdiff_t>(set.size() * (i + 1) / pieces));
    }
  }
  return clusters;
}

bool equal(const BehaviourClusters& got, const std::vector<Set>& want) {
  if (got.size() != static_cast<Index>(want.size())) return false;
  for (Index c = 0; c < got.size(); ++c)
    if (!std::equal(got[c].begin(), got[c].end(), want[static_cast<std::size_t>(c)].begin(),
                    want[static_cast<std::size_t>(c)].end()))
      return false;
  return true;
}

/// Every behaviour once, sizes within the limit, no group mixed with another.
template <class T>
bool partition(const BehaviourClusters& c, const Vector<T>& ratio, Index l, const ClusterOptions& o) {
  std::vector<int> seen(static_cast<std::size_t>(l), 0);
  for (Index i = 0; i < c.size(); ++i) {
    if (c.size_of(i) < 1 || c.size_of(i) > o.max_size) return false;
    Index group = -1;
    std::int32_t before = -1;
    for (const std::int32_t m : c[i]) {
      const Index g = ratio.empty()
                          ? 0
                          : std::min(o.groups - 1, static_cast<Index>(std::clamp(static_cast<double>(ratio[m]), 0.0, 1.0) *
                                                                      static_cast<double>(o.groups)));
      if ((group >= 0 && g != group) || m <= before) return false;
      group = g;
      before = m;
      ++seen[static_cast<std::size_t>(m)];
    }
  }
  return c.members.size() == l && std::all_of(seen.begin(), seen.end(), [](int n) { return n == 1; });
}

}  // namespace

TEMPLATE_TEST_CASE("clusters are those of the queue", "[attention][twin_v2]", float, double) {
  using T = TestType;
  Random random = random_stream(80);
  Threads threads{3};
  Workspace ws, many(make_executor(threads, 3));
  BehaviourClusters clusters, again;
  for (const Index l : {0, 1, 2, 19, 20, 21, 65, 300, sanitized ? 400 : 3000}) {
    for (const Index d : {1, 5, 8, 19}) {
      if (l > 300 && d != 8) continue;
      CAPTURE(l, d);
      Matrix<T> x = random_matrix<T>(l, d, random);
      for (Index i = 0; i < l * d; ++i) x.data()[i] += static_cast<T>(5 * (i / d % 7));  // seven bumps
      Vector<T> ratio(l);
      for (T& p : ratio) p = static_cast<T>(random.uniform(-0.2, 1.2));
      const ClusterOptions o;
      cluster_behaviours<T>(x.view(), ratio, o, clusters, ws);
      CHECK(partition(clusters, ratio, l, o));
      // A row halfway between two centroids may go either way in float, and so may all that follows.
      if (std::is_same_v<T, double> || l <= 300) CHECK(equal(clusters, reference(x, ratio, o)));
      if (l >= 300) CHECK(static_cast<double>(l) / static_cast<double>(clusters.size()) >= 5);
      cluster_behaviours<T>(x.view(), ratio, o, again, many);
      CHECK(
          (std::equal(again.members.begin(), again.members.end(), clusters.members.begin()) && again.size() == clusters.size()));
      CHECK(count_allocations([&] { cluster_behaviours<T>(x.view(), ratio, o, clusters, ws); }) == 0);
      const ClusterOptions singles{.groups = 2, .max_size = 1, .branch_exponent = 0.5, .iterations = 3};
      cluster_behaviours<T>(x.view(), {}, singles, clusters, ws);
      CHECK((clusters.size() == l && partition(clusters, Vector<T>(), l, singles)));
    }
  }
}

TEMPLATE_TEST_CASE("clusters are scipy's", "[attention][twin_v2][golden]", float, double) {
  using T = TestType;
  const Golden g("clusters");
  Workspace ws;
  for (Index number = 0; number < static_cast<Index>(g.scalar("cases")); ++number) {
    CAPTURE(number);
    const std::string name = std::to_string(number) + ".";
    Padded<T> x(g.matrix<T>(name + "x").view());
    const auto ratio = g.values<T>(name + "ratio");
    const auto o = g.values<double>(name + "options");
    BehaviourClusters clusters;
    const ClusterOptions options{.groups = static_cast<Index>(o[0]),
                                 .max_size = static_cast<Index>(o[1]),
                                 .branch_exponent = o[2],
                                 .iterations = static_cast<Index>(o[3])};
    cluster_behaviours<T>(x, ratio, options, clusters, ws);
    const auto offsets = g.values<std::int32_t>(name + "offsets"), members = g.values<std::int32_t>(name + "members"),
               stands = g.values<std::int32_t>(name + "representative");
    REQUIRE(std::equal(clusters.offsets.begin(), clusters.offsets.end(), offsets.begin(), offsets.end()));
    REQUIRE(std::equal(clusters.members.begin(), clusters.members.end(), members.begin(), members.end()));
    Vector<std::int32_t> representative(clusters.size());
    cluster_representatives<T>(x, clusters, representative, ws);
    CHECK(std::equal(representative.begin(), representative.end(), stands.begin()));
    Padded<T> means(clusters.size(), x.view().cols());
    cluster_means<T>(x, clusters, means);
    CHECK(max_difference(means.view(), g.matrix<T>(name + "means").view()) <= (std::is_same_v<T, float> ? 1e-5 : 1e-13));
    CHECK(means.intact());
  }
}

TEST_CASE("clustering ends on what cannot be told apart, and on NaN", "[attention][twin_v2]") {
  Workspace ws;
  BehaviourClusters clusters;
  const Matrix<float> same(1000, 4, 0.3f);
  const ClusterOptions o;
  cluster_behaviours<float>(same, {}, o, clusters, ws);
  CHECK((clusters.size() == 50 && partition(clusters, Vector<float>(), 1000, o)));
  CHECK(clusters[0][0] == 0);
  CHECK(clusters[49][19] == 999);
  Random random = random_stream(81);
  Matrix<float> x = random_matrix<float>(500, 4, random);
  for (Index i = 0; i < 500; i += 3)
    x(i, i % 4) = i % 2 == 0 ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity();
  cluster_behaviours<float>(x, {}, o, clusters, ws);
  CHECK(partition(clusters, Vector<float>(), 500, o));
  // Two bumps, and rows that are not finite: the others part as if these were not there, and these are in clusters of their own.
  for (const float odd : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    for (const auto& [first, last] : {std::pair(0, 1), std::pair(12, 13), std::pair(0, 13), std::pair(13, 26)}) {
      Matrix<float> bumps = random_matrix<float>(26, 4, random);
      for (Index i = 0; i < 26; ++i)
        for (Index c = 0; c < 4; ++c) bumps(i, c) += i % 2 == 0 ? 50.f : -50.f;
      for (Index i = first; i < last; ++i) bumps(i, 1) = odd;
      cluster_behaviours<float>(bumps, {}, {.groups = 1, .max_size = 8}, clusters, ws);
      CHECK(partition(clusters, Vector<float>(), 26, {.groups = 1, .max_size = 8}));
      const auto kind = [from = first, to = last](std::int32_t m) { return from <= m && m < to ? 2 : m % 2; };
      bool pure = true;
      for (Index c = 0; c < clusters.size(); ++c)
        for (const std::int32_t m : clusters[c]) pure = pure && kind(m) == kind(clusters[c][0]);
      CHECK(pure);
    }
  }
  x.fill(std::numeric_limits<float>::quiet_NaN());
  Vector<float> ratio(500, std::numeric_limits<float>::quiet_NaN());
  cluster_behaviours<float>(x, ratio, o, clusters, ws);
  CHECK(clusters.size() == 25);
}

TEMPLATE_TEST_CASE("+ ln n is duplication, in both stages; clusters of one are TWIN", "[attention][twin_v2]", float, double) {
  using T = TestType;
  Random random = random_stream(82);
  Workspace ws;
  const double tolerance = std::is_same_v<T, float> ? 2e-5 : 1e-12;
  const Index l = 60, width = 6, cross_cols = 4, n = 5;
  TwinConfig config{
      .width = width, .cross_features = 2, .cross_width = 2, .heads = 2, .key_width = 4, .value_width = 3, .selected = 1000};
  Twin<T> layer(config, random);
  const Matrix<T> q = random_matrix<T>(n, width, random), inherent = random_matrix<T>(l, width, random),
                  cross = random_matrix<T>(l, cross_cols, random);
  Matrix<T> y(n, width), want(n, width);
  CompressedHistory<T> compressed;
  compress_history<T>(inherent, {}, inherent, cross, {.max_size = 4}, compressed, ws);
  CHECK(compressed.size() < 40);
  CHECK(compressed.bytes() == compressed.size() * (width + cross_cols + 1) * static_cast<Index>(sizeof(T)));
  layer.forward(q.view(), compressed.history(), y, ws);
  Matrix<T> h(l, width), x(l, cross_cols);
  for (Index c = 0; c < compressed.size(); ++c)
    for (const std::int32_t m : compressed.clusters[c]) {
      std::copy_n(compressed.inherent.row(c), width, h.row(m));
      std::copy_n(compressed.cross.row(c), cross_cols, x.row(m));
    }
  layer.forward(q.view(), TwinHistory<T>{.inherent = h.view(), .cross = x}, want, ws);
  CHECK(max_difference(y.view(), want.view()) <= tolerance);

  layer.selected = 7;  // the search uses ln n too: the reference with a prior
  typename Twin<T>::Saved saved;
  layer.forward(q.view(), compressed.history(), y, saved, ws);
  std::vector<double> prior;
  for (Index c = 0; c < compressed.size(); ++c) prior.push_back(std::log(static_cast<double>(compressed.clusters.size_of(c))));
  const TwinReference<T> reference_of{layer, q, compressed.inherent, compressed.cross, prior};
  for (Index i = 0; i < n; ++i) {
    const auto rows = reference_of.selected(i);
    const auto out = reference_of.output(i);
    CHECK(std::equal(rows.begin(), rows.end(), saved.indices.row(i)));
    for (Index d = 0; d < width; ++d)
      CHECK(std::abs(static_cast<double>(y(i, d)) - out[static_cast<std::size_t>(d)]) <= tolerance);
  }

  CompressedHistory<T> singles;
  compress_history<T>(inherent, {}, inherent, cross, {.max_size = 1}, singles, ws);
  layer.forward(q.view(), singles.history(), y, ws);
  layer.forward(q.view(), TwinHistory<T>{.inherent = inherent.view(), .cross = cross}, want, ws);
  CHECK(max_difference(y.view(), want.view()) <= tolerance);
}

TEST_CASE("means, representatives and their gradients", "[attention][twin_v2]") {
  Random random = random_stream(83);
  Workspace ws;
  const Matrix<double> embedding{{0, 0}, {4, 0}, {1.5, 0}, {9, 9}, {2, 2}, {2, 2}};
  BehaviourClusters clusters;
  clusters.offsets = {0, 3, 3, 4, 6};
  clusters.members = {0, 1, 2, 3, 4, 5};
  Matrix<double> means(4, 2);
  Vector<std::int32_t> representative(4);
  Vector<double> prior(4);
  cluster_means<double>(embedding, clusters, means);
  cluster_representatives<double>(embedding, clusters, representative, ws);
  cluster_prior<double>(clusters, prior);
  CHECK((std::abs(means(0, 0) - 5.5 / 3) < 1e-15 && means(1, 0) == 0 && means(2, 1) == 9));
  CHECK((representative[0] == 2 && representative[1] == -1 && representative[2] == 3 && representative[3] == 4));
  CHECK((prior[0] == std::log(3.0) && prior[1] == -INFINITY && prior[2] == 0));

  for (const bool average : {false, true}) {
    Matrix<double> inherent = random_matrix<double>(40, 3, random), cross = random_matrix<double>(40, 2, random);
    const Matrix<double> fixed = inherent;
    CompressedHistory<double> compressed;
    compressed.average_inherent = average;
    const auto compress = [&] { compress_history<double>(fixed, {}, inherent, cross, {.max_size = 6}, compressed, ws); };
    compress();
    const Matrix<double> g = random_matrix<double>(compressed.size(), 3, random),
                         gx = random_matrix<double>(compressed.size(), 2, random);
    Matrix<double> dinherent(40, 3, 0.0), dcross(40, 2, 0.0);
    compress_history_backward<double>(compressed, g, gx, dinherent, dcross);
    Matrix<double> alone(40, 3, 0.0), none(40, 2, 0.0);  // an empty gradient of the clusters: none
    compress_history_backward<double>(compressed, g, {}, alone, none);
    CHECK(max_difference(alone.view(), dinherent.view()) == 0);
    for (Index i = 0; i < 40 * 2; ++i) CHECK(none.data()[i] == 0);
    const auto loss = [&] {
      compress();
      double sum = 0;
      for (Index i = 0; i < g.rows() * 3; ++i) sum += g.data()[i] * compressed.inherent.data()[i];
      for (Index i = 0; i < gx.rows() * 2; ++i) sum += gx.data()[i] * compressed.cross.data()[i];
      return sum;
    };
    GradientReport report;
    check_gradient("inherent", leaf_values(inherent), leaf_values(dinherent), loss, report);
    check_gradient("cross", leaf_values(cross), leaf_values(dcross), loss, report);
    INFO(report.where);
    CHECK(report.worst < 1e-7);
  }
}

TEST_CASE("clustering names what is wrong and writes nothing", "[attention][twin_v2][errors]") {
  Workspace ws;
  BehaviourClusters clusters;
  clusters.members = {7};
  const Matrix<float> x(5, 2, 1.0f);
  const Vector<float> ratio(4, 0.0f);
  const auto cluster = [&](VectorView<const float> p, const ClusterOptions& o) {
    return error_of([&] { cluster_behaviours<float>(x, p, o, clusters, ws); });
  };
  CHECK_THAT(cluster(ratio, {}), contains("cluster_behaviours: ratio: expected size 5, got 4"));
  CHECK_THAT(cluster({}, {.groups = 0}), contains("groups"));
  CHECK_THAT(cluster({}, {.max_size = 0}), contains("max_size >= 1"));
  CHECK_THAT(cluster({}, {.branch_exponent = 1.0}), contains("branch_exponent"));
  CHECK_THAT(cluster({}, {.iterations = 0}), contains("iterations >= 1"));
  CHECK((clusters.members.size() == 1 && clusters.members[0] == 7 && clusters.offsets.empty()));
  CompressedHistory<float> compressed;
  const Matrix<float> no_rows(0, 3);  // three features of nobody: not the same as none
  CHECK_THAT(error_of([&] { compress_history<float>(x, {}, x, no_rows, {}, compressed, ws); }),
             contains("compress_history: cross: expected shape [5, _], got [0, 3]"));
  CHECK(compressed.size() == 0);
  clusters.offsets = {0, 1};
  Matrix<float> means(1, 2, 9.0f);
  CHECK_THAT(error_of([&] { cluster_means<float>(x, clusters, means); }), contains("clusters.members"));
  CHECK(means(0, 0) == 9.0f);
}
