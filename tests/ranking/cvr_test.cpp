// The losses of conversion in entire space (product_bce, esmm, escm2, chorus_cvr). Oracle: their definitions in long double, with
// constants of the gradient frozen by hand; the expectation over all click patterns; a worked example.
#include <recops/ranking/chorus_cvr.hpp>

#include <functional>
#include <vector>

#include "support/allocations.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

using Real80 = long double;
using Logits = std::vector<Real80>;
using Labels = std::vector<std::uint8_t>;

std::size_t at(Index i) { return static_cast<std::size_t>(i); }
Real80 sigmoid(Real80 x) { return 1 / (1 + std::exp(-x)); }
Real80 bce(Real80 z, Real80 t) { return std::max(z, 0.0L) - t * z + std::log1p(std::exp(-std::abs(z))); }
Real80 product(Real80 a, Real80 b, Real80 t) {
  const Real80 log_p = -bce(-a, 0) - bce(-b, 0);
  // 1 - p = (1 - p_a) + p_a (1 - p_b)
  const Real80 not_p = sigmoid(-a) + sigmoid(a) * sigmoid(-b);
  return -t * log_p - (1 - t) * (not_p > 0.5L ? std::log1p(-sigmoid(a) * sigmoid(b)) : std::log(not_p));
}

template <class T>
struct Funnel {
  Vector<T> a, b, c, d;
  Labels o, r;
  Funnel(Index n, Random& random, double spread = 2)
      : a(random_vector<T>(n, random)),
        b(random_vector<T>(n, random)),
        c(random_vector<T>(n, random)),
        d(random_vector<T>(n, random)) {
    for (Vector<T>* v : {&a, &b, &c})
      for (T& x : *v) x = static_cast<T>(spread * static_cast<double>(x));
    for (Index i = 0; i < n; ++i) {
      o.push_back(random.chance(0.4) ? 1 : 0);
      r.push_back(o.back() && random.chance(0.5) ? 1 : 0);
    }
  }
  Index size() const { return a.size(); }
};

/// A loss of four sets of logits, with those that the gradient takes for constants given apart.
using Book = std::function<Real80(const std::vector<Logits>& z, const std::vector<Logits>& frozen)>;

/// Compares value and gradients of `run(gradients)`, which adds to four vectors, with the book: derivatives by differences.
template <class T>
void compare(const Funnel<T>& f, const Book& book, const std::function<double(std::vector<Vector<T>>&)>& run, double tolerance) {
  std::vector<Logits> z(4);
  const Vector<T>* const all[] = {&f.a, &f.b, &f.c, &f.d};
  for (std::size_t k = 0; k < 4; ++k)
    for (const T x : *all[k]) z[k].push_back(static_cast<Real80>(x));
  std::vector<Vector<T>> gradients(4, Vector<T>(f.size(), T(1)));
  const double got = run(gradients);
  CHECK(got == Approx(static_cast<double>(book(z, z))).epsilon(tolerance).margin(tolerance));
  for (std::size_t k = 0; k < 4; ++k) {
    for (Index i = 0; i < f.size(); ++i) {
      std::vector<Logits> up = z, down = z;
      const Real80 h = 1e-6L;
      up[k][at(i)] += h;
      down[k][at(i)] -= h;
      const Real80 slope = (book(up, z) - book(down, z)) / (2 * h);
      CAPTURE(k, i);
      CHECK(static_cast<double>(gradients[k][i]) - 1 == Approx(static_cast<double>(slope)).margin(tolerance));
    }
  }
}

}  // namespace

TEMPLATE_TEST_CASE("product_bce is accurate for logits of any size", "[ranking][product_bce]", float, double) {
  using T = TestType;
  const double epsilon = static_cast<double>(std::numeric_limits<T>::epsilon());
  for (const double a : {-60.0, -17.0, -2.0, -0.1, 0.0, 0.3, 1.7, 9.0, 18.0, 60.0, 300.0}) {
    for (const double b : {-60.0, -9.0, -1.0, 0.0, 0.2, 3.0, 17.5, 60.0, 301.0}) {
      for (const std::uint8_t t : {std::uint8_t{0}, std::uint8_t{1}}) {
        const Vector<T> x{static_cast<T>(a)}, y{static_cast<T>(b)};
        const Labels target{t};
        Vector<T> da(1, T(0)), db(1, T(0));
        const double loss = product_bce_value_and_grad<T>(x, y, target, da, db);
        const Real80 u = x[0], v = y[0], h = 1e-5L;
        CAPTURE(a, b, static_cast<int>(t));
        CHECK(loss == Approx(static_cast<double>(product(u, v, t))).epsilon(20 * epsilon).margin(1e-37));
        CHECK(product_bce<T>(x, y, target) == loss);
        const double slope_a = static_cast<double>((product(u + h, v, t) - product(u - h, v, t)) / (2 * h));
        const double slope_b = static_cast<double>((product(u, v + h, t) - product(u, v - h, t)) / (2 * h));
        CHECK(static_cast<double>(da[0]) == Approx(slope_a).epsilon(std::max(30 * epsilon, 1e-9)).margin(1e-12));
        CHECK(static_cast<double>(db[0]) == Approx(slope_b).epsilon(std::max(30 * epsilon, 1e-9)).margin(1e-12));
      }
    }
  }
}

TEMPLATE_TEST_CASE("the losses of conversion equal their definitions", "[ranking][cvr]", float, double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 5e-6 : 1e-10;
  Random random = random_stream(961);
  const Index n = GENERATE(Index{1}, Index{7}, Index{41});
  const Funnel<T> f(n, random);
  const auto rows = static_cast<Real80>(n);
  Real80 clicked = 0;
  for (const std::uint8_t o : f.o) clicked += o;
  CAPTURE(n);
  SECTION("esmm") {
    const Book book = [&](const std::vector<Logits>& z, const std::vector<Logits>&) {
      Real80 sum = 0;
      for (Index i = 0; i < n; ++i) sum += bce(z[0][at(i)], f.o[at(i)]) + product(z[0][at(i)], z[1][at(i)], f.r[at(i)]);
      return sum / rows;
    };
    compare<T>(
        f, book, [&](auto& d) { return esmm_loss_value_and_grad<T>(f.a, f.b, f.o, f.r, d[0], d[1]).value; }, tolerance);
    CHECK(esmm_loss<T>(f.a, f.b, f.o, f.r).value == Approx(esmm_loss_value_and_grad<T>(f.a, f.b, f.o, f.r, {}, {}).value));
  }
  SECTION("escm2") {
    for (const PropensityNorm norm : {PropensityNorm::entire, PropensityNorm::clicked, PropensityNorm::self_normalised}) {
      for (const bool through : {false, true}) {
        const Escm2Options o{
            .conversion_weight = 0.7, .product_weight = 1.4, .clip = 0.2, .norm = norm, .propensity_gradient = through};
        const Book book = [&](const std::vector<Logits>& z, const std::vector<Logits>& frozen) {
          Real80 sum = 0, cvr = 0, mass = norm == PropensityNorm::entire ? rows : norm == PropensityNorm::clicked ? clicked : 0;
          for (Index i = 0; i < n; ++i) {
            sum += bce(z[0][at(i)], f.o[at(i)]) + 1.4L * product(z[0][at(i)], z[1][at(i)], f.r[at(i)]);
            if (!f.o[at(i)]) continue;
            const Real80 q = std::max(sigmoid((through ? z : frozen)[0][at(i)]), 0.2L);
            cvr += bce(z[1][at(i)], f.r[at(i)]) / q;
            if (norm == PropensityNorm::self_normalised) mass += 1 / q;
          }
          return sum / rows + (mass > 0 ? 0.7L * cvr / mass : 0);
        };
        CAPTURE(static_cast<int>(norm), through);
        compare<T>(
            f, book, [&](auto& d) { return escm2_ips_loss_value_and_grad<T>(f.a, f.b, f.o, f.r, o, d[0], d[1]).value; },
            tolerance);
      }
    }
  }
  SECTION("escm2, doubly robust") {
    for (int mode = 0; mode < 8; ++mode) {
      const bool through = mode & 1, soft = mode & 2, trains = mode & 4;
      const Escm2Options o{.conversion_weight = 0.6,
                           .clip = 0.2,
                           .propensity_gradient = through,
                           .softplus_imputation = soft,
                           .imputation_trains_conversion = trains};
      const Book book = [&](const std::vector<Logits>& z, const std::vector<Logits>& frozen) {
        Real80 sum = 0;
        for (Index i = 0; i < n; ++i) {
          const Real80 q = std::max(sigmoid((through ? z : frozen)[0][at(i)]), 0.2L),
                       guess = soft ? bce(z[3][at(i)], 0) : z[3][at(i)];
          const Real80 e = bce(z[1][at(i)], f.r[at(i)]), held = bce((trains ? z : frozen)[1][at(i)], f.r[at(i)]);
          sum += bce(z[0][at(i)], f.o[at(i)]) + product(z[0][at(i)], z[1][at(i)], f.r[at(i)]);
          sum += 0.6L * (guess + (f.o[at(i)] ? (e - guess) / q + (held - guess) * (held - guess) / q : 0));
        }
        return sum / rows;
      };
      CAPTURE(mode);
      compare<T>(
          f, book, [&](auto& d) { return escm2_dr_loss_value_and_grad<T>(f.a, f.b, f.d, f.o, f.r, o, d[0], d[1], d[3]).value; },
          4 * tolerance);
    }
  }
  SECTION("chorus") {
    for (int mode = 0; mode < 3; ++mode) {
      const ChorusCvrOptions o{
          .discrimination = mode > 0, .alignment_weight = mode > 1 ? 0.8 : 0.0, .click_weight = 0.9, .clip = 0.15};
      const Book book = [&](const std::vector<Logits>& z, const std::vector<Logits>& frozen) {
        Real80 everywhere = 0, on_clicks = 0, align_clicked = 0, align_others = 0;
        for (Index i = 0; i < n; ++i) {
          const Real80 a = z[0][at(i)], b = z[1][at(i)], c = z[2][at(i)], click = f.o[at(i)], sale = f.r[at(i)];
          const Real80 p = sigmoid(frozen[0][at(i)]), q = std::max(p, 0.15L), q_other = std::max(1 - p, 0.15L);
          everywhere += 0.9L * bce(a, click) + product(a, b, sale);
          if (click > 0) on_clicks += bce(b, sale) / q;
          if (mode == 0) continue;
          everywhere += product(a, c, click - sale);
          if (click > 0) on_clicks += bce(c, 1 - sale) / q;
          const Real80 gap = bce(b, 1 - sigmoid(frozen[2][at(i)])) + bce(c, 1 - sigmoid(frozen[1][at(i)]));
          (click > 0 ? align_clicked : align_others) += gap / (click > 0 ? q : q_other);
        }
        Real80 sum = everywhere / rows;
        if (clicked > 0) sum += (on_clicks + (mode > 1 ? 0.8L * align_clicked : 0)) / clicked;
        if (clicked < rows && mode > 1) sum += 0.8L * align_others / (rows - clicked);
        return sum;
      };
      CAPTURE(mode);
      compare<T>(
          f, book, [&](auto& d) { return chorus_cvr_loss_value_and_grad<T>(f.a, f.b, f.c, f.o, f.r, o, d[0], d[1], d[2]).value; },
          4 * tolerance);
      CHECK(chorus_cvr_loss<T>(f.a, f.b, f.c, f.o, f.r, o).value ==
            Approx(chorus_cvr_loss_value_and_grad<T>(f.a, f.b, f.c, f.o, f.r, o, {}, {}, {}).value));
    }
  }
}

TEST_CASE("conversion losses of the worked example", "[ranking][cvr]") {
  const Vector<double> a{.2, -1, .5, -2}, b{-1, .3, -2, .1}, c{.8, -.2, 1.5, .4}, imputed{.5, .4, .3, .6};
  const Labels o{1, 0, 1, 0}, r{1, 0, 0, 0};
  CHECK(esmm_loss<double>(a, b, o, r).value == Approx(0.933335455).margin(1e-8));
  const auto ips = [&](PropensityNorm norm) { return escm2_ips_loss<double>(a, b, o, r, {.norm = norm}).conversion; };
  CHECK(ips(PropensityNorm::entire) == Approx(0.64809579).margin(1e-8));
  CHECK(ips(PropensityNorm::clicked) == Approx(1.29619158).margin(1e-8));
  CHECK(ips(PropensityNorm::self_normalised) == Approx(0.756842427).margin(1e-8));
  const Escm2Loss dr = escm2_dr_loss<double>(a, b, imputed, o, r);
  CHECK(dr.conversion == Approx(0.750264646).margin(1e-8));
  CHECK(dr.imputation == Approx(0.312755132).margin(1e-8));
  Vector<double> da(4, 0.0), db(4, 0.0), dc(4, 0.0);
  const ChorusCvrLoss l = chorus_cvr_loss_value_and_grad<double>(a, b, c, o, r, {}, da, db, dc);
  CHECK(l.both == Approx(0.555234067).margin(1e-8));
  CHECK(l.conversion == Approx(1.29619158).margin(1e-8));
  CHECK(l.click_only == Approx(0.338900168).margin(1e-8));
  CHECK(l.unconversion == Approx(1.226746701).margin(1e-8));
  CHECK(l.alignment == Approx(3.549389337).margin(1e-8));
  CHECK(l.click == Approx(0.378101388).margin(1e-8));
  CHECK(l.value == Approx(7.344563242).margin(1e-8));
  const double in_a[] = {-0.156289795, 0.125805004, -0.181205769, 0.061422742};
  const double in_b[] = {-0.88492446, 0.036270216, 0.062615075, 0.078129364};
  const double in_c[] = {0.637455748, 0.035764939, -0.242927004, 0.077911853};
  for (Index i = 0; i < 4; ++i) {
    CHECK(da[i] == Approx(in_a[i]).margin(1e-8));
    CHECK(db[i] == Approx(in_b[i]).margin(1e-8));
    CHECK(dc[i] == Approx(in_c[i]).margin(1e-8));
  }
}

TEST_CASE("with the true propensity IPS and DR are unbiased over all click patterns", "[ranking][cvr]") {
  // Five rows, whose would-be conversions are fixed; every pattern of clicks comes with its probability.
  Random random = random_stream(962);
  const Funnel<double> f(5, random, 1);
  const Labels would{1, 0, 0, 1, 0};
  double ips = 0, dr = 0, truth = 0, first = 0;
  for (Index i = 0; i < 5; ++i) truth += static_cast<double>(bce(f.b[i], would[at(i)])) / 5;
  for (unsigned pattern = 0; pattern < 32; ++pattern) {
    Labels o, r;
    double probability = 1;
    for (Index i = 0; i < 5; ++i) {
      const bool click = pattern >> i & 1;
      const double p = static_cast<double>(sigmoid(f.a[i]));
      o.push_back(click ? 1 : 0);
      r.push_back(click ? would[at(i)] : std::uint8_t{0});
      probability *= click ? p : 1 - p;
    }
    ips += probability * escm2_ips_loss<double>(f.a, f.b, o, r, {.clip = 1e-9}).conversion;
    dr += probability * escm2_dr_loss<double>(f.a, f.b, f.d, o, r, {.clip = 1e-9}).conversion;
    first += probability;
  }
  CHECK(first == Approx(1));
  CHECK(ips == Approx(truth).epsilon(1e-12));
  CHECK(dr == Approx(truth).epsilon(1e-12));
}

TEST_CASE("what the modules of ChorusCVR amount to", "[ranking][chorus_cvr]") {
  Random random = random_stream(963);
  Funnel<double> f(60, random);
  const ChorusCvrLoss plain = chorus_cvr_loss<double>(f.a, f.b, {}, f.o, f.r, {.discrimination = false});
  const Escm2Loss ips = escm2_ips_loss<double>(f.a, f.b, f.o, f.r, {.norm = PropensityNorm::clicked});
  CHECK(plain.value == Approx(ips.value).epsilon(1e-13));
  Vector<double> c(60);
  for (Index i = 0; i < 60; ++i) c[i] = -f.b[i];  // complements: nothing to align
  const auto pulled = [&](double weight) {
    Vector<double> db(60, 0.0);
    chorus_cvr_loss_value_and_grad<double>(f.a, f.b, c, f.o, f.r, {.alignment_weight = weight}, {}, db, {});
    return db;
  };
  const Vector<double> with = pulled(3), without = pulled(0);
  for (Index i = 0; i < 60; ++i) CHECK(with[i] == Approx(without[i]).margin(1e-15));
  const Labels all(60, 1);
  CHECK(std::isfinite(chorus_cvr_loss<double>(f.a, f.b, f.c, all, f.r).value));  // a space without rows
  const Labels none(60, 0);
  CHECK(chorus_cvr_loss<double>(f.a, f.b, f.c, none, none).conversion == 0);
  // Sure clicks: the inverse propensity does nothing.
  Vector<double> sure(60, 100.0);
  double mean = 0;
  for (Index i = 0; i < 60; ++i) mean += static_cast<double>(bce(f.b[i], f.r[at(i)])) / 60;
  CHECK(escm2_ips_loss<double>(sure, f.b, all, f.r).conversion == Approx(mean));
}

TEST_CASE("conversion losses: NaN stays in its row, nothing is allocated, bad input", "[ranking][cvr]") {
  Random random = random_stream(964);
  Funnel<float> f(50, random);
  f.o[7] = 1;
  Vector<float> da(50, 0.0f), db(50, 0.0f), dc(50, 0.0f), dd(50, 0.0f);
  const auto all = [&] {
    const double sum = esmm_loss_value_and_grad<float>(f.a, f.b, f.o, f.r, da, db).value +
                       escm2_ips_loss_value_and_grad<float>(
                           f.a, f.b, f.o, f.r, {.norm = PropensityNorm::self_normalised, .propensity_gradient = true}, da, db)
                           .value +
                       escm2_dr_loss_value_and_grad<float>(f.a, f.b, f.d, f.o, f.r, {}, da, db, dd).value;
    return sum + chorus_cvr_loss_value_and_grad<float>(f.a, f.b, f.c, f.o, f.r, {}, da, db, dc).value;
  };
  CHECK(count_allocations([&] { CHECK(std::isfinite(all())); }) == 0);
  for (Vector<float>* bad : {&f.b, &f.c, &f.a}) {
    (*bad)[7] = std::numeric_limits<float>::quiet_NaN();
    da.fill(0), db.fill(0), dc.fill(0), dd.fill(0);
    if (bad != &f.a) CHECK(std::isnan(all()));
    if (bad == &f.a) chorus_cvr_loss_value_and_grad<float>(f.a, f.b, f.c, f.o, f.r, {}, da, db, dc);
    for (Index i = 0; i < 50; ++i)
      if (i != 7) CHECK((std::isfinite(da[i]) && std::isfinite(db[i]) && std::isfinite(dc[i])));
    CHECK((std::isnan(da[7]) || std::isnan(db[7])));
    (*bad)[7] = 0;
  }
  Labels early = f.r, grade = f.o;
  Vector<float> untouched(50, 4.0f), few(49);
  const std::size_t unclicked = at(std::find(f.o.begin(), f.o.end(), 0) - f.o.begin());
  early[unclicked] = 1;
  grade[3] = 2;
  CHECK_THAT(error_of([&] { esmm_loss_value_and_grad<float>(f.a, f.b, f.o, early, untouched, untouched); }),
             contains("no conversion without a click"));
  CHECK_THAT(error_of([&] { esmm_loss_value_and_grad<float>(f.a, f.b, grade, f.r, untouched, {}); }), contains("clicks"));
  CHECK_THAT(error_of([&] { escm2_ips_loss<float>(f.a, few, f.o, f.r); }), contains("conversion_logits"));
  CHECK_THAT(error_of([&] { escm2_dr_loss<float>(f.a, f.b, few, f.o, f.r); }), contains("imputed"));
  CHECK_THAT(error_of([&] { escm2_ips_loss<float>(f.a, f.b, f.o, f.r, {.clip = 0}); }), contains("clip"));
  CHECK_THAT(error_of([&] { chorus_cvr_loss<float>(f.a, f.b, {}, f.o, f.r); }), contains("unconversion_logits"));
  CHECK_THAT(error_of([&] { chorus_cvr_loss<float>(f.a, f.b, f.c, f.o, f.r, {.alignment_weight = -1}); }), contains("alignment"));
  CHECK_THAT(error_of([&] { product_bce<float>(f.a, f.b, grade); }), contains("targets"));
  for (const float u : untouched) CHECK(u == 4);
  CHECK(esmm_loss<float>({}, {}, {}, {}).value == 0);
}
