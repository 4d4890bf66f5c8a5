/// Oracle: the flat search over all slots; PyTorch (golden/elastic.py), which scores all of them; central differences.
#include <recops/attention/interest_memory.hpp>
#include <recops/train/adam.hpp>
#include <recops/train/gradient_check.hpp>

#include <vector>

#include "support/allocations.hpp"
#include "support/golden_layer.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {

/// The table's gradient, row by row where it is touched.
template <class T>
Matrix<double> dense(const Table<T>& table, Index rows) {
  Matrix<double> m(rows, table.values.cols(), 0.0);
  for (Index r = 0; r < table.rows.size(); ++r)
    for (Index j = 0; j < m.cols(); ++j) m(table.rows[r], j) = static_cast<double>(table.values(r, j));
  return m;
}

}  // namespace

TEMPLATE_TEST_CASE("product keys find what the flat search finds", "[attention][interest_memory]", float, double) {
  using T = TestType;
  Random random = random_stream(81);
  Workspace ws;
  const T nan = std::numeric_limits<T>::quiet_NaN(), infinity = std::numeric_limits<T>::infinity();
  for (int trial = 0; trial < (sanitized ? 150 : 1500); ++trial) {
    const Index rows = 1 + random.below(trial % 3 == 0 ? 5 : 90), cols = 1 + random.below(trial % 3 == 0 ? 5 : 90);
    const Index k = std::min<Index>(rows * cols, 1 + random.below(trial % 5 == 0 ? 200 : 20));
    // Ties of every kind: few levels; halves of very different size, whose sums round alike; all equal; and numbers that are none.
    const int kind = trial % 7;
    const auto number = [&](bool second) {
      const double x = random.normal();
      if (kind == 1) return static_cast<T>(std::round(2 * x));
      if (kind == 2) return static_cast<T>(second ? x : (std::is_same_v<T, float> ? 1e7 : 1e16) + std::round(x));
      if (kind == 3) return T(0);
      if (kind == 4) return static_cast<T>(second ? 1e-3 * x : std::round(x));
      if (kind == 5 && random.chance(0.1)) return random.chance(0.4) ? nan : random.chance(0.5) ? infinity : -infinity;
      if (kind == 6) return static_cast<T>(second ? std::numeric_limits<T>::max() : x);
      return static_cast<T>(x);
    };
    std::vector<T> a, b, sums(static_cast<std::size_t>(k)), flat_sums = sums;
    for (Index i = 0; i < rows; ++i) a.push_back(number(false));
    for (Index j = 0; j < cols; ++j) b.push_back(number(true));
    std::vector<std::int32_t> slots(static_cast<std::size_t>(k)), flat = slots;
    product_top_k<T>(a.data(), rows, b.data(), cols, k, sums.data(), slots.data(), ws);
    flat_top_k<T>(a.data(), rows, b.data(), cols, k, flat_sums.data(), flat.data(), ws);
    CAPTURE(trial, rows, cols, k);
    REQUIRE(slots == flat);
    for (std::size_t i = 0; i < slots.size(); ++i)
      REQUIRE((sums[i] == flat_sums[i] || (sums[i] != sums[i] && flat_sums[i] != flat_sums[i])));
  }
}

TEMPLATE_TEST_CASE("interest memory against PyTorch", "[attention][interest_memory][golden]", float, double) {
  using T = TestType;
  const Golden golden("elastic");
  const double tolerance = std::is_same_v<T, float> ? 2e-5 : 1e-12;
  const Matrix<T> x = golden.matrix<T>("memory.x");
  Random random = random_stream(82);
  Workspace ws;
  for (const MemoryMode mode : {MemoryMode::slots, MemoryMode::sum}) {
    const std::string name = mode == MemoryMode::slots ? "memory.slots" : "memory.sum";
    InterestMemory<T> memory(
        {.sub_keys = 6, .width = 5, .input = 4, .query = 6, .experts = 4, .heads = 2, .temperature = 0.7, .mode = mode}, random);
    set_parameters<T>(golden, name + ".", memory);
    const Matrix<T> dy = golden.matrix<T>(name + ".dy");
    Matrix<T> y(dy.rows(), dy.cols()), dx(x.rows(), x.cols(), T(0));
    typename InterestMemory<T>::Saved saved;
    auto sparse = make_gradient(memory), full = zeros_like(memory);
    memory.forward(x, y, saved, {}, ws);
    for (int twice = 0; twice < 2; ++twice) memory.backward(x, dy, saved, dx, sparse, ws);
    memory.backward(x, dy, saved, {}, full, ws);
    const auto compare = [&](const auto& got, const std::string& what, double times) {
      const auto want = golden.values<double>(name + what);
      double off = 0, most = 0.1;
      for (std::size_t i = 0; i < want.size(); ++i) {
        most = std::max(most, std::abs(want[i]));
        off = std::max(off, std::abs(static_cast<double>(got.data()[i]) / times - want[i]));
      }
      INFO(name << what);
      CHECK(off <= tolerance * most);
    };
    const auto choice = golden.values<std::int32_t>(name + ".choice");
    CHECK(std::equal(choice.begin(), choice.end(), saved.slots.data()));
    compare(y, ".y", 1);
    compare(dx, ".dx", 2);
    compare(sparse.query.weight, ".d.query.weight", 2);
    compare(dense(sparse.keys1, 12), ".d.keys1", 2);
    compare(dense(sparse.keys2, 12), ".d.keys2", 2);
    compare(dense(sparse.bank.weight, 36), ".d.bank.weight", 2);
    compare(full.keys1.values, ".d.keys1", 1);
    compare(full.bank.weight.values, ".d.bank.weight", 1);
    // Only what was read is touched.
    std::vector<std::int32_t> read(choice);
    std::sort(read.begin(), read.end());
    read.erase(std::unique(read.begin(), read.end()), read.end());
    CHECK(std::equal(read.begin(), read.end(), sparse.bank.weight.rows.begin(), sparse.bank.weight.rows.end()));

    Matrix<T> served(y.rows(), y.cols());
    Matrix<std::int32_t> chosen(x.rows(), 4);
    memory.forward(x, served, ws);
    CHECK(max_difference(served.view(), y.view()) == 0);
    const auto frozen = freeze(memory);
    frozen.forward(x, served, ws, chosen);
    CHECK(max_difference(served.view(), y.view()) <= tolerance);
    CHECK(std::equal(choice.begin(), choice.end(), chosen.data()));
    if constexpr (std::is_same_v<T, float>) {
      freeze(memory, Weights<BFloat16>()).forward(x, served, ws);
      CHECK(max_difference(served.view(), y.view()) <= 0.03);
      freeze(memory, Weights<std::int8_t>()).forward(x, served, ws);
      CHECK(max_difference(served.view(), y.view()) <= 0.03);
    }
    CHECK(count_allocations([&] {
            frozen.forward(x, served, ws);
            memory.forward(x, y, saved, {}, ws);
            memory.backward(x, dy, saved, dx, sparse, ws);
          }) == 0);
    Threads threads{3};
    Workspace threaded(make_executor(threads, 3));
    memory.forward(x, served, threaded);
    CHECK(max_difference(served.view(), y.view()) == 0);

    if (mode == MemoryMode::sum) continue;
    auto gradient = make_gradient(memory);
    Matrix<T> dbalance(x.rows(), x.cols(), T(0));
    const double loss = memory.balance_value_and_grad(x, 0.3, dbalance, gradient, ws);
    CHECK(std::abs(loss - golden.scalar("memory.balance")) < 10 * tolerance);
    const auto check_balance = [&](const Matrix<double>& got, const std::string& what) {
      INFO(what);
      CHECK(max_difference(got.view(), golden.matrix<double>("memory.balance" + what).view()) < 10 * tolerance);
    };
    check_balance(dense(gradient.keys1, 12), ".d.keys1");
    check_balance(dense(gradient.keys2, 12), ".d.keys2");
    CHECK(max_difference(dbalance.view(), golden.matrix<double>("memory.balance.dx").view()) < 10 * tolerance);
    CHECK(max_difference(gradient.query.weight.view(), golden.matrix<double>("memory.balance.d.query.weight").view()) <
          10 * tolerance);
  }
}

TEST_CASE("gradients of the interest memory are central differences", "[attention][interest_memory]") {
  Random random = random_stream(83);
  Workspace ws;
  for (const MemoryMode mode : {MemoryMode::slots, MemoryMode::sum}) {
    InterestMemory<double> memory(
        {.sub_keys = 7, .width = 3, .input = 5, .query = 4, .experts = 6, .heads = 3, .temperature = 1.3, .mode = mode}, random);
    Matrix<double> x = random_matrix<double>(4, 5, random), y(memory.output_rows(4), 3), dx(4, 5, 0.0);
    const Matrix<double> g = random_matrix<double>(y.rows(), 3, random);
    auto gradient = zeros_like(memory);
    InterestMemory<double>::Saved saved;
    memory.forward(x, y, saved, {}, ws);
    memory.backward(x, g, saved, dx, gradient, ws);
    const auto loss = [&] {
      memory.forward(x, y, ws);
      double sum = 0;
      for (Index i = 0; i < y.rows() * y.cols(); ++i) sum += y.data()[i] * g.data()[i];
      return sum;
    };
    GradientReport report;
    check_gradient("x", leaf_values(x), leaf_values(dx), loss, report);
    visit([&](const FieldPath& path, auto& leaf,
              const auto& d) { check_gradient(path.str(), leaf_values(leaf), leaf_values(d), loss, report); },
          memory, gradient);
    INFO(report.where);
    CHECK(report.worst < 1e-6);
  }
}

TEST_CASE("a bank of a million interests trains and serves", "[attention][interest_memory]") {
  Random random = random_stream(84);
  Workspace ws;
  const Index m = sanitized ? 128 : 1024, users = 24, width = 8;
  InterestMemory<float> memory({.sub_keys = m, .width = width, .input = 8, .query = 16, .experts = 8, .heads = 2}, random);
  CHECK(parameter_count(memory) == m * m * width + 2 * (2 * m * 8) + 2 * 16 * 8);
  const Matrix<float> x = random_matrix<float>(users, 8, random), target = random_matrix<float>(users, width, random);
  Matrix<float> y(users * 8, width), dy(users * 8, width);
  auto gradient = make_gradient(memory);
  Adam<InterestMemory<float>> adam(memory, {.learning_rate = 0.05});
  MemoryUsage usage(m * m);
  InterestMemory<float>::Saved saved;
  double first = 0, last = 0;
  for (int step = 0; step < 40; ++step) {
    memory.forward(x, y, saved, {}, ws);
    last = 0;
    for (Index i = 0; i < y.rows() * width; ++i) {
      const float d = y.data()[i] - target(i / width / 8, i % width);  // all of a user's interests should be alike
      dy.data()[i] = d;
      last += static_cast<double>(d) * static_cast<double>(d);
    }
    if (step == 0) first = last;
    zero_gradient(gradient);
    memory.backward(x, dy, saved, {}, gradient, ws);
    CHECK(gradient.bank.weight.rows.size() <= users * 8);
    adam.step(memory, gradient);
    usage.add(VectorView<const std::int32_t>(saved.slots.data(), users * 8));
  }
  CHECK(last < 0.5 * first);
  CHECK(usage.reads() == 40 * users * 8);
  CHECK((usage.live() > 0 && usage.live() <= 1));
  CHECK((usage.perplexity() >= 8 && usage.perplexity() <= static_cast<double>(usage.reads())));
  // Served: what the flat search over the whole bank gives.
  const auto served = freeze(memory);
  Matrix<std::int32_t> chosen(users, 8);
  served.forward(x, y, ws, chosen);
  Matrix<float> q(users, 2 * 16);
  memory.query.forward(x, q, ws);
  for (Index b = 0; b < 3; ++b) {
    for (Index h = 0; h < 2; ++h) {
      Matrix<float> s1(1, m), s2(1, m);
      const MatrixView<const float> row = std::as_const(q).view().middle_rows(b, 1);
      linear<float>(row.middle_cols(h * 16, 8), memory.keys1.values.view().middle_rows(h * m, m), {}, s1, ws);
      linear<float>(row.middle_cols(h * 16 + 8, 8), memory.keys2.values.view().middle_rows(h * m, m), {}, s2, ws);
      float sums[4];
      std::int32_t slots[4];
      flat_top_k<float>(s1.data(), m, s2.data(), m, 4, sums, slots, ws);
      CHECK(std::equal(slots, slots + 4, chosen.row(b) + h * 4));
    }
  }
}

TEMPLATE_TEST_CASE("the mean of the tokens that are shown, and its gradient", "[attention][interest_memory]", float, double) {
  using T = TestType;
  const double bound = std::is_same_v<T, float> ? 2e-6 : 1e-14;
  Random random = random_stream(86);
  const std::vector<std::int32_t> offsets{0, 3, 3, 4, 9, 11, sanitized ? 700 : 1700};
  const Index users = 6, total = offsets.back();
  for (const Index cols : {1, 5, 64, 67}) {
    for (const bool masked : {false, true}) {
      CAPTURE(cols, masked);
      Padded<T> x(random_matrix<T>(total, cols, random).view()), out(users, cols, T(9)), dx(total, cols, T(3));
      const Matrix<T> dout = random_matrix<T>(users, cols, random);
      std::vector<std::uint8_t> mask;
      for (Index i = 0; i < total && masked; ++i) mask.push_back(i >= 9 && i < 11 ? 0 : random.chance(0.6));  // the fifth: none
      for (Index i = 0; i < total && masked; ++i)
        if (mask[static_cast<std::size_t>(i)] == 0) x(i, cols / 2) = std::numeric_limits<T>::quiet_NaN();  // and is not read
      const JaggedView<const T> rows(x.view(), offsets);
      mean_of_tokens<T>(rows, mask, out);
      mean_of_tokens_backward<T>(rows, mask, dout.view(), dx);
      double worst = 0, worst_gradient = 0;
      for (Index b = 0; b < users; ++b) {
        const Index first = rows.begin(b), last = first + rows.length(b);
        const auto shown = [&](Index i) { return !masked || mask[static_cast<std::size_t>(i)] != 0; };
        double count = 0;
        for (Index i = first; i < last; ++i) count += shown(i);
        for (Index c = 0; c < cols; ++c) {
          double mean = 0;
          for (Index i = first; i < last; ++i) {
            mean += shown(i) ? static_cast<double>(x(i, c)) / count : 0;
            const double expected = 3 + (shown(i) ? static_cast<double>(dout(b, c)) / count : 0);
            worst_gradient = std::max(worst_gradient, std::abs(static_cast<double>(dx(i, c)) - expected));
          }
          worst = std::max(worst, std::abs(static_cast<double>(out(b, c)) - mean));
        }
      }
      CHECK(worst < bound);
      CHECK(worst_gradient < bound);
      CHECK((out.intact() && dx.intact()));
      const JaggedView<const T> few(x.view().middle_rows(0, 3));
      Matrix<T> two(2, cols, T(9));
      CHECK(error_of([&] { mean_of_tokens<T>(few, {}, two); }).rfind("mean_of_tokens: out: expected shape [1, ", 0) == 0);
      CHECK(error_of([&] {
              mean_of_tokens_backward<T>(few, {}, out.view().middle_rows(0, 1), two);
            }).rfind("mean_of_tokens_backward: dx: expected shape [3, ", 0) == 0);
      CHECK(two(1, 0) == T(9));
    }
  }
}

TEST_CASE("interest memory: edges and errors", "[attention][interest_memory]") {
  Random random = random_stream(85);
  Workspace ws;
  const auto has = [](const std::string& text, const char* part) { return text.find(part) != std::string::npos; };
  InterestMemory<float> memory({.sub_keys = 3, .width = 4, .input = 5, .query = 4, .experts = 9}, random);
  Matrix<float> x = random_matrix<float>(2, 5, random), y(18, 4, 7.0f), wrong(3, 4);
  memory.forward(x, y, ws);  // all slots
  x(1, 0) = std::numeric_limits<float>::quiet_NaN();
  Matrix<float> other(18, 4);
  InterestMemory<float>::Saved saved;
  memory.forward(x, other, saved, {}, ws);
  CHECK(max_difference(other.view().middle_rows(0, 9), y.view().middle_rows(0, 9)) == 0);
  CHECK(std::isnan(other(9, 0)));
  for (Index r = 0; r < 9; ++r) CHECK(saved.slots(1, r) == r);  // NaN ranks by slot
  memory.forward(x.view().middle_rows(0, 0), y.view().middle_rows(0, 0), ws);
  // One expert: its gate is 1 and does not move.
  InterestMemory<float> single({.sub_keys = 5, .width = 4, .input = 5, .query = 4, .experts = 1}, random);
  Matrix<float> one(1, 4), dx(1, 5, 0.0f);
  auto gradient = make_gradient(single);
  single.forward(x.view().middle_rows(0, 1), one, saved, {}, ws);
  CHECK(max_difference(one.view(), std::as_const(single.bank.weight.values).view().middle_rows(saved.slots(0, 0), 1)) == 0);
  single.backward(x.view().middle_rows(0, 1), one, saved, dx, gradient, ws);
  CHECK(*std::max_element(dx.data(), dx.data() + 5) == 0);

  const JaggedView<const float> rows(x.view().middle_rows(0, 1));
  Matrix<float> mean(1, 5), dmean(1, 5, 0.0f);
  mean_of_tokens<float>(rows, {}, mean);
  CHECK(max_difference(mean.view(), x.view().middle_rows(0, 1)) == 0);
  const std::vector<std::uint8_t> hidden{0};
  mean_of_tokens<float>(rows, hidden, mean);
  CHECK(*std::max_element(mean.data(), mean.data() + 5) == 0);
  mean_of_tokens_backward<float>(rows, {}, x.view().middle_rows(0, 1), dmean);
  CHECK(max_difference(dmean.view(), x.view().middle_rows(0, 1)) == 0);

  const Matrix<float> life(100000, 65, 0.1f);  // one sum of a life's rows, row after row, would be off in the fourth digit
  Matrix<float> typical(1, 65);
  mean_of_tokens<float>(life.view(), {}, typical);
  CHECK((std::abs(typical(0, 0) - 0.1f) < 1e-6f && std::abs(typical(0, 64) - 0.1f) < 1e-6f));

  y.fill(7.0f);
  CHECK(has(error_of([&] { memory.forward(wrong, y, ws); }), "x: expected shape [_, 5]"));
  CHECK(has(error_of([&] { memory.forward(x, wrong, ws); }), "y: expected shape [18, 4]"));
  CHECK(has(error_of([&] { InterestMemory<float>({.sub_keys = 2, .experts = 5}, random); }), "at most sub_keys^2"));
  CHECK(has(error_of([&] { InterestMemory<float>({.sub_keys = 4, .experts = 5, .heads = 2}, random); }), "a multiple of heads"));
  CHECK(has(error_of([&] { InterestMemory<float>({.sub_keys = 4, .query = 3}, random); }), "an even number"));
  CHECK(has(error_of([&] { InterestMemory<float>({.sub_keys = 4, .temperature = 0}, random); }), "a positive number"));
  CHECK(has(error_of([&] { InterestMemory<float>({.sub_keys = 4, .temperature = 1e-40}, random); }), "a positive number"));
  CHECK(has(error_of([&] { InterestMemory<float>({.sub_keys = 50000}, random); }), "1 to 46340"));
  CHECK(has(error_of([&] { memory.balance_value_and_grad(x, -1, {}, memory, ws); }), "lambda >= 0"));
  MemoryUsage usage(9);
  const std::vector<std::int32_t> slots{3, 9};
  CHECK(has(error_of([&] { usage.add(slots); }), "slots"));
  CHECK(usage.perplexity() == 0);
  CHECK(*std::min_element(y.data(), y.data() + 72) == 7.0f);
}
