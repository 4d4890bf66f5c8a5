// Oracles: tests/gating/reference.hpp (the formulas in double), golden numbers of the specification, central differences.
#include <recops/train/gradient_check.hpp>

#include "gating/reference.hpp"
#include "support/allocations.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {
constexpr ExpertNorm norms[] = {ExpertNorm::none, ExpertNorm::batch, ExpertNorm::layer, ExpertNorm::rms};
}

TEMPLATE_TEST_CASE("ExpertBank equals the definition: serving and training, every norm, one layer or several",
                   "[gating][expert_bank]", float, double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 2e-5 : 1e-13;
  Random random = random_stream(201);
  Workspace ws;
  for (const ExpertNorm norm : norms) {
    for (const Activation f : {Activation::relu, Activation::silu}) {
      for (const auto& [rows, in, experts, out] :
           {std::array<Index, 4>{0, 3, 2, 4}, {1, 5, 3, 7}, {2, 1, 1, 1}, {9, 6, 4, 16}, {65, 33, 3, 17}}) {
        for (const std::vector<Index>& hidden : {std::vector<Index>{}, {5}, {4, 9}}) {
          ExpertBank<T> bank({.inputs = in,
                              .experts = experts,
                              .outputs = out,
                              .hidden = hidden,
                              .norm = norm,
                              .activation = f,
                              .bias = rows != 9},
                             random);
          shake(bank, random);
          CAPTURE(rows, in, experts, out, hidden.size(), static_cast<int>(norm), static_cast<int>(f));
          CHECK(bank.output_cols(in) == experts * out);
          Padded<T> x(random_matrix<T>(rows, in, random).view()), y(rows, experts * out, T(5));
          Matrix<double> exact(rows, in);
          for (Index r = 0; r < rows; ++r)
            for (Index j = 0; j < in; ++j) exact(r, j) = static_cast<double>(x(r, j));
          bank.forward(x, y, ws);
          const auto scale = [](const Matrix<double>& m) {
            double most = 1;
            for (const double v : leaf_values(m)) most = std::max(most, std::abs(v));
            return most;
          };
          const Matrix<double> served = experts_reference(bank, exact, false);
          CHECK(max_difference(y.view(), served.view()) < tolerance * scale(served));
          CHECK(y.intact());
          if (rows == 1 && norm == ExpertNorm::batch) continue;
          // Two rows leave a batch's deviation to chance: where it is near 0, rounding is divided by it.
          if (rows == 2 && norm != ExpertNorm::none) continue;
          typename ExpertBank<T>::Saved saved;
          bank.forward(x, y, saved, Step{}, ws);
          const Matrix<double> trained = experts_reference(bank, exact, true);
          CHECK(max_difference(y.view(), trained.view()) < 4 * tolerance * scale(trained));
          CHECK(y.intact());
        }
      }
    }
  }
}

TEST_CASE("ExpertBank passes the gradient check with every norm, activation and depth", "[gating][expert_bank]") {
  Random random = random_stream(202);
  for (const ExpertNorm norm : norms) {
    for (const Activation f : {Activation::relu, Activation::silu}) {
      for (const std::vector<Index>& hidden : {std::vector<Index>{}, {5, 4}}) {
        // A bias before batch norm has no gradient: see below.
        ExpertBank<double> bank({.inputs = 4,
                                 .experts = 3,
                                 .outputs = 5,
                                 .hidden = hidden,
                                 .norm = norm,
                                 .activation = f,
                                 .bias = norm != ExpertNorm::batch},
                                random);
        shake(bank, random);
        Matrix<double> x = random_matrix<double>(9, 4, random);
        const GradientReport report = gradient_check(bank, x.view());
        CAPTURE(hidden.size(), static_cast<int>(norm), static_cast<int>(f), report.where, report.numeric, report.analytic);
        CHECK(report.worst < 1e-6);
        CHECK(report.checked == 36 + parameter_count(bank));
      }
    }
  }
}

TEST_CASE("ExpertBank gives the specification's golden numbers (G1: batch norm, silu)", "[gating][expert_bank]") {
  Random random(1);
  Workspace ws;
  ExpertBank<double> bank(
      {.inputs = 6, .experts = 3, .outputs = 4, .norm = ExpertNorm::batch, .activation = Activation::silu, .bias = false},
      random);
  bank.weight = transpose(fill(2, 6, 12));
  const Matrix<double> scale = fill(3, 1, 12), shift = fill(4, 1, 12), x = fill(1, 4, 6), dy = fill(99, 4, 12);
  for (Index j = 0; j < 12; ++j) {
    bank.norm_weight[j] = 1 + scale(0, j);
    bank.norm_bias[j] = shift(0, j);
  }
  Matrix<double> y(4, 12), dx(4, 6, 0.0);
  ExpertBank<double>::Saved saved;
  ExpertBank<double> gradient = make_gradient(bank);
  bank.forward(x, y, saved, Step{}, ws);
  bank.backward(x, dy, saved, dx, gradient, ws);
  double sum = 0, loss = 0, sum_dx = 0, size_dx = 0;
  for (Index i = 0; i < 48; ++i) {
    sum += y.data()[i];
    loss += y.data()[i] * dy.data()[i];
  }
  for (Index i = 0; i < 24; ++i) {
    sum_dx += dx.data()[i];
    size_dx += std::abs(dx.data()[i]);
  }
  CHECK(y(0, 0) == Approx(-0.1558887038).margin(1e-9));
  CHECK(sum == Approx(11.4165244975).margin(1e-8));
  CHECK(loss == Approx(-0.9161971026).margin(1e-9));
  CHECK(dx(0, 0) == Approx(-0.6696390).margin(1e-6));
  CHECK(std::abs(sum_dx) < 1e-12);
  CHECK(size_dx == Approx(14.7082933).margin(1e-5));
}

TEST_CASE("A bias right before batch norm has no gradient", "[gating][expert_bank]") {
  Random random = random_stream(203);
  Workspace ws;
  ExpertBank<double> bank({.inputs = 4, .experts = 3, .outputs = 5, .norm = ExpertNorm::batch, .activation = Activation::silu},
                          random);
  const Matrix<double> x = random_matrix<double>(20, 4, random), dy = random_matrix<double>(20, 15, random);
  Matrix<double> y(20, 15);
  ExpertBank<double>::Saved saved;
  ExpertBank<double> gradient = make_gradient(bank);
  bank.forward(x, y, saved, Step{}, ws);
  bank.backward(x, dy, saved, {}, gradient, ws);
  for (const double g : gradient.bias) CHECK(std::abs(g) < 1e-13);
}

TEST_CASE("ExpertBank: wide equals expert by expert; permuting experts permutes outputs", "[gating][expert_bank]") {
  Random random = random_stream(204);
  Workspace ws;
  const Index in = 19, h = 21, rows = 40;
  const Matrix<float> x = random_matrix<float>(rows, in, random);
  for (const ExpertNorm norm : norms) {
    ExpertBank<float> bank({.inputs = in, .experts = 3, .outputs = h, .hidden = {6}, .norm = norm}, random);
    shake(bank, random);
    Matrix<float> y(rows, 3 * h), own(rows, h);
    ExpertBank<float>::Saved saved, saved1;
    bank.forward(x, y, saved, Step{}, ws);
    for (Index e = 0; e < 3; ++e) {
      ExpertBank<float> one({.inputs = in, .experts = 1, .outputs = h, .hidden = {6}, .norm = norm}, random);
      const auto rows_of = [&](const Matrix<float>& all, Matrix<float>& part) {
        std::copy_n(all.data() + e * part.rows() * part.cols(), part.rows() * part.cols(), part.data());
      };
      const auto part_of = [&](const Vector<float>& all, Vector<float>& part) {
        if (!all.empty()) std::copy_n(all.data() + e * part.size(), part.size(), part.data());
      };
      rows_of(bank.hidden[0].weight, one.hidden[0].weight);
      part_of(bank.hidden[0].bias, one.hidden[0].bias);
      rows_of(bank.weight, one.weight);
      part_of(bank.bias, one.bias);
      part_of(bank.norm_weight, one.norm_weight);
      part_of(bank.norm_bias, one.norm_bias);
      one.forward(x, own, saved1, Step{}, ws);
      CHECK(max_difference(own.view(), y.view().middle_cols(e * h, h)) < 1e-6);
    }
  }
}

TEST_CASE("ExpertBank with one plain expert is a linear layer and relu", "[gating][expert_bank]") {
  Random random = random_stream(205);
  Workspace ws;
  ExpertBank<double> bank({.inputs = 7, .experts = 1, .outputs = 9}, random);
  const Matrix<double> x = random_matrix<double>(12, 7, random);
  Matrix<double> y(12, 9), z(12, 9);
  bank.forward(x, y, ws);
  linear<double>(x, bank.weight, bank.bias, z, ws);
  for (double& v : leaf_values(z)) v = std::max(v, 0.0);
  CHECK(max_difference(y.view(), z.view()) == 0);
}

TEST_CASE("ExpertBank::update folds batch statistics as batch norm does", "[gating][expert_bank]") {
  Random random = random_stream(206);
  Workspace ws;
  ExpertBank<double> bank({.inputs = 3, .experts = 2, .outputs = 2, .norm = ExpertNorm::batch}, random);
  const Matrix<double> x = random_matrix<double>(10, 3, random);
  Matrix<double> y(10, 4);
  ExpertBank<double>::Saved saved;
  bank.forward(x, y, saved, Step{}, ws);
  bank.update(saved);
  const Matrix<double> z = linear_reference(x, bank.weight, bank.bias, 1);
  for (Index j = 0; j < 4; ++j) {
    double mean = 0, square = 0;
    for (Index r = 0; r < 10; ++r) mean += z(r, j) / 10;
    for (Index r = 0; r < 10; ++r) square += (z(r, j) - mean) * (z(r, j) - mean) / 9;
    CHECK(bank.running_mean[j] == Approx(0.1 * mean));
    CHECK(bank.running_variance[j] == Approx(0.9 + 0.1 * square));
  }
}

TEST_CASE("ExpertBank: threads change no bit, a NaN stays in its row, a warm call allocates nothing", "[gating][expert_bank]") {
  Random random = random_stream(207);
  Threads threads{3};
  for (const ExpertNorm norm : norms) {
    Workspace ws, wide(make_executor(threads, 3));
    ExpertBank<float> bank(
        {.inputs = 20, .experts = 3, .outputs = 33, .hidden = {18}, .norm = norm, .activation = Activation::silu}, random);
    Matrix<float> x = random_matrix<float>(300, 20, random);
    const Matrix<float> dy = random_matrix<float>(300, 99, random);
    Matrix<float> y(300, 99), y2(300, 99), dx(300, 20, 0.0f), dx2(300, 20, 0.0f);
    ExpertBank<float>::Saved saved, saved2;
    ExpertBank<float> g = make_gradient(bank), g2 = make_gradient(bank);
    bank.forward(x, y, saved, Step{}, ws);
    bank.backward(x, dy, saved, dx, g, ws);
    bank.forward(x, y2, saved2, Step{}, wide);
    bank.backward(x, dy, saved2, dx2, g2, wide);
    CHECK(max_difference(y.view(), y2.view()) == 0);
    CHECK(max_difference(dx.view(), dx2.view()) == 0);
    visit([](const FieldPath&, const auto& a,
             const auto& b) { CHECK(std::equal(a.data(), a.data() + leaf_values(a).size(), b.data())); },
          g, g2);
    const AllocationCounter counter;
    bank.forward(x, y, ws);
    bank.forward(x, y, saved, Step{}, ws);
    bank.backward(x, dy, saved, dx, g, ws);
    bank.update(saved);
    const std::size_t allocations = counter.count();
    CHECK(allocations == 0);
    x(7, 3) = std::nanf("");
    bank.forward(x, y, ws);
    for (Index r = 0; r < 300; ++r) CHECK(std::isnan(y(r, 50)) == (r == 7));
  }
}

TEST_CASE("ExpertBank: what is not wanted is left out", "[gating][expert_bank]") {
  Random random = random_stream(208);
  Workspace ws;
  ExpertBank<float> bank({.inputs = 4, .experts = 2, .outputs = 3, .norm = ExpertNorm::layer}, random);
  const Matrix<float> x = random_matrix<float>(5, 4, random), dy = random_matrix<float>(5, 6, random);
  Matrix<float> y(5, 6), dx(5, 4, 0.0f);
  ExpertBank<float>::Saved saved;
  bank.forward(x, y, saved, Step{}, ws);
  ExpertBank<float> whole = make_gradient(bank), part = make_gradient(bank);
  part.bias.clear();
  part.norm_weight.clear();
  bank.backward(x, dy, saved, dx, whole, ws);
  bank.backward(x, dy, saved, {}, part, ws);
  CHECK(max_difference(whole.weight.view(), part.weight.view()) == 0);
  CHECK(std::equal(whole.norm_bias.begin(), whole.norm_bias.end(), part.norm_bias.begin()));
  CHECK((part.bias.empty() && part.norm_weight.empty()));

  // Batch norm, whose gradients are not wanted though there is memory behind the empty views.
  ExpertBank<float> batch({.inputs = 4, .experts = 2, .outputs = 3, .norm = ExpertNorm::batch}, random);
  whole = make_gradient(batch), part = make_gradient(batch);
  float* const behind = part.norm_weight.data();
  part.norm_weight.clear();
  std::fill_n(behind, 6, 7.0f);
  batch.forward(x, y, saved, Step{}, ws);
  batch.backward(x, dy, saved, {}, whole, ws);
  batch.backward(x, dy, saved, {}, part, ws);
  part.norm_weight.resize(6);
  CHECK(std::count(part.norm_weight.begin(), part.norm_weight.end(), 7.0f) == 6);
  CHECK(std::equal(whole.norm_bias.begin(), whole.norm_bias.end(), part.norm_bias.begin()));
}

TEST_CASE("expert_bank refuses what does not fit and writes nothing", "[gating][expert_bank]") {
  Workspace ws;
  const Matrix<float> x(3, 4, 1.0f), one(1, 4, 1.0f), w(6, 4, 1.0f);
  const Vector<float> b(6, 1.0f), odd(5, 1.0f);
  Matrix<float> y(3, 6, 7.0f), y1(1, 6, 7.0f), pre(3, 6), moments(3, 4);
  const ExpertBankOptions two{.experts = 2};
  const auto message = [&](MatrixView<const float> in, VectorView<const float> bias, ExpertNormView<const float> norm,
                           const ExpertBankOptions& o, MatrixView<float> out) {
    return error_of([&] { expert_bank<float>(in, w, bias, norm, o, out, ws); });
  };
  CHECK(message(x, odd, {}, two, y) == "expert_bank: bias: expected size 6, got 5");
  CHECK(message(y, b, {}, two, y) == "expert_bank: x: expected shape [_, 4], got [3, 6]");
  CHECK(message(x, b, {}, two, y1) == "expert_bank: out: expected shape [3, 6], got [1, 6]");
  CHECK(message(x, b, {}, {.experts = 4}, y) == "expert_bank: rows of weight: expected experts times the outputs of one, got 6");
  CHECK(message(x, b, {}, {.experts = 0}, y) == "expert_bank: experts: expected 1 to 65536, got 0");
  CHECK(message(x, b, {}, {.experts = 2, .epsilon = 0}, y) == "expert_bank: epsilon: expected epsilon > 0, got 0");
  CHECK(message(x, b, {}, {.experts = 2, .own_inputs = true}, y) == "expert_bank: x: expected shape [_, 8], got [3, 4]");
  CHECK(message(x, b, {.weight = odd}, {.experts = 2, .norm = ExpertNorm::layer}, y) ==
        "expert_bank: norm.weight: expected size 6, got 5");
  CHECK(message(x, b, {.weight = b}, {.experts = 2, .norm = ExpertNorm::batch}, y) ==
        "expert_bank: norm.running_mean: expected size 6, got 0");
  CHECK(message(x, b, {.bias = b}, {.experts = 2, .norm = ExpertNorm::rms}, y) ==
        "expert_bank: norm.bias: expected size 0, got 6");
  CHECK(error_of([&] { expert_bank_train<float>(one, w, b, {}, {.experts = 2, .norm = ExpertNorm::batch}, y1, {}, y1, ws); }) ==
        "expert_bank_train: rows of x: expected at least two rows to take statistics of, got 1");
  CHECK(error_of([&] { expert_bank_train<float>(x, w, b, {}, {.experts = 2, .norm = ExpertNorm::rms}, pre, moments, y, ws); }) ==
        "expert_bank_train: moments: expected shape [3, 2], got [3, 4]");
  CHECK(error_of([&] { expert_bank_backward<float>(x, w, {}, two, pre, {}, y1, {}, {}, {}, {}, ws); }) ==
        "expert_bank_backward: dout: expected shape [3, 6], got [1, 6]");
  CHECK(error_of([&] { expert_bank_backward<float>(x, w, {}, two, pre, {}, y, y1, {}, {}, {}, ws); }) ==
        "expert_bank_backward: dx: expected shape [3, 4], got [1, 6]");
  Matrix<float> rms_moments(3, 2, 1.0f);
  Vector<float> db(6, 7.0f);  // rms norm has no bias
  CHECK(error_of([&] {
          expert_bank_backward<float>(x, w, {}, {.experts = 2, .norm = ExpertNorm::rms}, y, rms_moments, y, {}, {}, {},
                                      {.bias = db}, ws);
        }) == "expert_bank_backward: dnorm.bias: expected size 0, got 6");
  CHECK(db[0] == 7);
  for (const float v : leaf_values(y)) CHECK(v == 7);
  for (const float v : leaf_values(y1)) CHECK(v == 7);

  Random random(1);
  CHECK(error_of([&] { ExpertBank<float>({.inputs = 0, .outputs = 1}, random); }) ==
        "ExpertBank: inputs: expected inputs >= 1, got 0");
  CHECK(error_of([&] { ExpertBank<float>({.inputs = 1, .outputs = 0}, random); }) ==
        "ExpertBank: outputs: expected outputs >= 1, got 0");
  CHECK(error_of([&] { ExpertBank<float>({.inputs = 1, .experts = -1, .outputs = 1}, random); }) ==
        "ExpertBank: experts: expected 1 to 65536, got -1");
  CHECK(error_of([&] { ExpertBank<float>({.inputs = 1, .outputs = 1, .hidden = {0}}, random); }) ==
        "ExpertBank: hidden: expected widths >= 1, got 0");
  ExpertBank<float> bank({.inputs = 4, .experts = 2, .outputs = 3, .hidden = {5}}, random);
  ExpertBank<float>::Saved saved;
  CHECK(error_of([&] { bank.forward(y, y, ws); }) == "ExpertBank::forward: x: expected shape [_, 4], got [3, 6]");
  CHECK(error_of([&] { bank.forward(x, y1, saved, Step{}, ws); }) == "ExpertBank::forward: y: expected shape [3, 6], got [1, 6]");
  CHECK(error_of([&] { bank.backward(x, y, saved, {}, bank, ws); }) ==
        "ExpertBank::backward: saved.pre: expected shape [3, 6], got [0, 0]");
  CHECK(error_of([&] { (void)bank.output_cols(3); }) == "ExpertBank: input columns: expected as many as the weight has, got 3");
  bank.options.experts = 0;
  CHECK(bank.outputs() == 0);
  CHECK(error_of([&] { bank.forward(x, y, ws); }) == "ExpertBank::forward: experts: expected 1 to 65536, got 0");
  CHECK(error_of([&] { bank.backward(x, y, saved, {}, bank, ws); }).find("ExpertBank::backward") == 0);
}
