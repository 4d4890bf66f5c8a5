// Oracle: the definitions in plain loops; gradients against central differences.
#include <recops/ranking/listwise.hpp>

#include "ranking/group_cases.hpp"

using namespace recops;
using namespace recops_test;

namespace {

double log_sum_exp(const std::vector<double>& x) {
  double top = -std::numeric_limits<double>::infinity(), sum = 0;
  for (const double v : x) top = std::max(top, v);
  for (const double v : x) sum += std::exp(v - top);
  return top + std::log(sum);
}
std::vector<double> softmax(const std::vector<double>& x) {
  std::vector<double> p = x;
  for (double& v : p) v = std::exp(v - log_sum_exp(x));
  return p;
}

template <class T>
GroupReference listnet_by_the_book(const GroupCase<T>& c, double temperature) {
  return [=, &c](const std::vector<double>& s, Index begin, std::vector<double>& d) {
    std::vector<double> target;
    for (std::size_t i = 0; i < s.size(); ++i)
      target.push_back(static_cast<double>(c.grades[begin + static_cast<Index>(i)]) / temperature);
    const std::vector<double> p = softmax(s), q = softmax(target);
    double loss = 0;
    for (std::size_t i = 0; i < s.size(); ++i) {
      loss -= q[i] * (s[i] - log_sum_exp(s));
      d[i] = p[i] - q[i];
    }
    return loss;
  };
}

// The likelihood of a permutation: choose the best of what is left, k times. `order` is by grade, ties by index.
template <class T>
GroupReference listmle_by_the_book(const GroupCase<T>& c, std::size_t k) {
  return [=, &c](const std::vector<double>& s, Index begin, std::vector<double>& d) {
    std::vector<std::size_t> left(s.size());
    for (std::size_t i = 0; i < s.size(); ++i) left[i] = i;
    std::stable_sort(left.begin(), left.end(), [&](std::size_t a, std::size_t b) {
      return c.grades[begin + static_cast<Index>(a)] > c.grades[begin + static_cast<Index>(b)];
    });
    double loss = 0;
    for (std::size_t place = 0; place < k && !left.empty(); ++place) {
      std::vector<double> scores;
      for (const std::size_t i : left) scores.push_back(s[i]);
      const std::vector<double> p = softmax(scores);
      loss -= scores[0] - log_sum_exp(scores);
      for (std::size_t i = 0; i < left.size(); ++i) d[left[i]] += p[i] - (i == 0 ? 1 : 0);
      left.erase(left.begin());
    }
    return loss;
  };
}

template <class T>
GroupReference softmax_by_the_book(const GroupCase<T>& c, PositiveTarget target) {
  return [=, &c](const std::vector<double>& s, Index begin, std::vector<double>& d) {
    const std::vector<double> p = softmax(s);
    double count = 0, loss = 0;
    std::vector<double> right;
    for (std::size_t i = 0; i < s.size(); ++i) {
      if (!c.label(begin + static_cast<Index>(i))) continue;
      ++count;
      right.push_back(s[i]);
      loss -= s[i] - log_sum_exp(s);
    }
    if (count == 0) return std::nan("");
    const bool each = target == PositiveTarget::each;
    for (std::size_t i = 0; i < s.size(); ++i)
      d[i] = p[i] - (!c.label(begin + static_cast<Index>(i)) ? 0 : each ? 1 / count : std::exp(s[i] - log_sum_exp(right)));
    return each ? loss / count : log_sum_exp(s) - log_sum_exp(right);
  };
}

template <class T>
LossOfScores<T> listnet(const GroupCase<T>& c, double temperature) {
  return [&c, temperature](VectorView<const T> s, const GroupLossOptions<T>& groups, VectorView<T> d, Workspace& ws) {
    const ListNetOptions<T> o{.temperature = temperature, .groups = groups};
    return d.empty() ? listnet_loss<T>(s, c.grades, c.offsets, o, ws)
                     : listnet_loss_value_and_grad<T>(s, c.grades, c.offsets, o, d, ws);
  };
}
template <class T>
LossOfScores<T> listmle(const GroupCase<T>& c, Index k) {
  return [&c, k](VectorView<const T> s, const GroupLossOptions<T>& groups, VectorView<T> d, Workspace& ws) {
    const ListMleOptions<T> o{.k = k, .groups = groups};
    return d.empty() ? listmle_loss<T>(s, c.grades, c.offsets, o, ws)
                     : listmle_loss_value_and_grad<T>(s, c.grades, c.offsets, o, d, ws);
  };
}
template <class T>
LossOfScores<T> softmax_of(const GroupCase<T>& c, PositiveTarget target) {
  return [&c, target](VectorView<const T> s, const GroupLossOptions<T>& groups, VectorView<T> d, Workspace& ws) {
    const SoftmaxLossOptions<T> o{.target = target, .groups = groups};
    return d.empty() ? softmax_loss<T>(s, c.labels, c.offsets, o, ws)
                     : softmax_loss_value_and_grad<T>(s, c.labels, c.offsets, o, d, ws);
  };
}

}  // namespace

TEMPLATE_TEST_CASE("listwise losses equal their definitions", "[ranking][listwise]", float, double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 3e-6 : 1e-12;
  Random random = random_stream(931);
  for (const double spread : {1.0, 30.0, 500.0}) {
    const GroupCase<T> c(group_sizes(), random, spread);
    CAPTURE(spread);
    check_against<T>(c, listnet<T>(c, 0.7), listnet_by_the_book(c, 0.7), tolerance);
    for (const PositiveTarget target : {PositiveTarget::each, PositiveTarget::any})
      check_against<T>(c, softmax_of<T>(c, target), softmax_by_the_book(c, target), tolerance);
    for (const Index k : {Index{1}, Index{5}, Index{1000}}) {
      CAPTURE(k);
      check_against<T>(c, listmle<T>(c, k), listmle_by_the_book(c, static_cast<std::size_t>(k)), 10 * tolerance, spread < 500);
    }
  }
}

TEST_CASE("gradients of listwise losses agree with central differences", "[ranking][listwise]") {
  Random random = random_stream(932);
  const GroupCase<double> c({11, 0, 1, 18}, random);
  check_differences(c, listnet<double>(c, 0.7));
  check_differences(c, listmle<double>(c, 6));
  check_differences(c, listmle<double>(c, 100));
  check_differences(c, softmax_of<double>(c, PositiveTarget::each));
  check_differences(c, softmax_of<double>(c, PositiveTarget::any));
}

TEST_CASE("listwise losses have the habits of group losses", "[ranking][listwise]") {
  Random random = random_stream(933);
  GroupCase<float> c(group_sizes(), random);
  c.labels[static_cast<std::size_t>(c.begin(5))] = 1;
  check_habits<float>(c, listnet<float>(c, 1));
  check_habits<float>(c, listmle<float>(c, 5));
  check_habits<float>(c, softmax_of<float>(c, PositiveTarget::any));
}

TEST_CASE("the worked example, and what ListNet is least at", "[ranking][listwise]") {
  const Vector<double> s{0.3, -1.2, 0.3, 2.0, 0.7, -0.4}, rel{2, 0, 1, 3, 0, 1};
  Workspace ws;
  Vector<double> d(6, 0.0), e(6, 0.0), zero(6, 0.0);
  CHECK(listnet_loss_value_and_grad<double>(s, rel, {}, {}, d, ws).value == Approx(1.378575252).margin(1e-9));
  CHECK(listmle_loss_value_and_grad<double>(s, rel, {}, {}, e, ws).value == Approx(6.708283612).margin(1e-9));
  const double listnet_d[] = {-0.10840589, -0.005606562, 0.025384414, -0.010162857, 0.125382666, -0.026591771};
  const double listmle_d[] = {-0.659309919, -0.623502115, -0.347932838, -0.43482996, 2.517225115, -0.451650283};
  for (Index i = 0; i < 6; ++i) {
    CHECK(d[i] == Approx(listnet_d[i]).margin(1e-9));
    CHECK(e[i] == Approx(listmle_d[i]).margin(1e-9));
  }
  const Vector<double> shifted{7, 5, 6, 8, 5, 6};
  listnet_loss_value_and_grad<double>(shifted, rel, {}, {}, zero, ws);
  for (const double x : zero) CHECK(std::abs(x) < 1e-15);
}

TEST_CASE("ListMLE shuffles equal relevances by seed; a sound order among them", "[ranking][listwise]") {
  const Vector<double> s{0, 1, 2, 3, 4, 5}, rel{1, 1, 1, 0, 0, 0};
  Workspace ws;
  const auto loss = [&](std::uint64_t seed) {
    return listmle_loss<double>(s, rel, {}, {.shuffle_ties = true, .seed = seed}, ws).value;
  };
  double mean = 0, exact = 0;
  bool differs = false;
  for (std::uint64_t seed = 0; seed < 2000; ++seed) {
    mean += loss(seed) / 2000;
    differs |= loss(seed) != loss(0);
  }
  CHECK(differs);
  CHECK(loss(3) == loss(3));
  std::vector<Index> first{0, 1, 2}, last{3, 4, 5};  // all 36 orders
  do {
    do {
      std::vector<double> z;
      for (const Index i : first) z.push_back(s[i]);
      for (const Index i : last) z.push_back(s[i]);
      for (std::size_t p = 0; p < 6; ++p)
        exact += (log_sum_exp({z.begin() + static_cast<std::ptrdiff_t>(p), z.end()}) - z[p]) / 36;
    } while (std::next_permutation(last.begin(), last.end()));
  } while (std::next_permutation(first.begin(), first.end()));
  CHECK(mean == Approx(exact).epsilon(0.01));
}

TEST_CASE("bad input of listwise losses", "[ranking][listwise]") {
  const Vector<float> s{1, 2}, rel{1, std::numeric_limits<float>::infinity()}, sound{0, 1};
  const std::vector<std::uint8_t> y{0, 3};
  Workspace ws;
  CHECK_THAT(error_of([&] { listnet_loss<float>(s, rel, {}, {}, ws); }), contains("relevance"));
  CHECK_THAT(error_of([&] { listnet_loss<float>(s, sound, {}, {.temperature = 0}, ws); }), contains("temperature"));
  CHECK_THAT(error_of([&] { listmle_loss<float>(s, sound, {}, {.k = 0}, ws); }), contains("k >= 1"));
  CHECK_THAT(error_of([&] { softmax_loss<float>(s, y, {}, {}, ws); }), contains("labels"));
}
