// Oracles: the papers' layers on PyTorch's FFT and autograd (golden/frequency.py), central differences; freezing changes nothing.
#include <recops/frequency/autocorr_attention.hpp>
#include <recops/frequency/bsarec_layer.hpp>
#include <recops/frequency/farm_intra_domain.hpp>
#include <recops/frequency/slide_filter.hpp>
#include <recops/frequency/spectral_features.hpp>
#include <recops/frequency/spectral_filter_last.hpp>
#include <recops/train/gradient_check.hpp>

#include "support/allocations.hpp"
#include "support/golden_layer.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {

/// Equal sequences.
std::vector<std::int64_t> every(Index length, Index count) {
  std::vector<std::int64_t> offsets;
  for (Index b = 0; b <= count; ++b) offsets.push_back(b * length);
  return offsets;
}

template <class T>
using Fmlp = FilterSublayer<T, SpectralFilter<T>>;

/// Jagged rows and what all layers are asked here: the derivatives, the frozen form, no allocation when warm, no leak of a NaN.
template <class Make>
void check_layer(const char* name, Make make) {
  INFO(name);
  const std::int32_t offsets[] = {0, 7, 7, 10, 17, 18};
  Random random = random_stream(7301);
  auto layer = make(double(), random);
  Matrix<double> x = random_matrix<double>(18, 4, random);
  const GradientReport report = gradient_check(layer, JaggedView<double>(x.view(), IndexView(offsets, 6)), 3, {.most = 24});
  INFO(report.where);
  CHECK(report.worst < 1e-6);

  Random again = random_stream(7302);
  auto single = make(double(), again);
  const auto frozen = freeze(single);
  Workspace ws;
  Matrix<double> in = random_matrix<double>(18, 4, again), out(18, 4), cold(18, 4), poisoned(18, 4), dx(18, 4, 0.0);
  const JaggedView<const double> rows(MatrixView<const double>(in), IndexView(offsets, 6));
  typename decltype(single)::Saved saved;
  auto gradient = make_gradient(single);
  const auto all = [&] {
    single.forward(rows, out, ws);
    frozen.forward(rows, cold, ws);
    single.forward(rows, out, saved, Step{}, ws);
    single.backward(rows, out.view(), saved, dx, gradient, ws);
  };
  all();
  CHECK(count_allocations(all) == 0);
  single.forward(rows, out, ws);
  CHECK(max_difference(out.view(), cold.view()) < 1e-11);
  // Rows with gaps between them, and several threads.
  Threads threads{3};
  Workspace many(make_executor(threads, 3));
  Padded<double> wide(in.view()), apart(18, 4), served(18, 4), back(18, 4);
  const JaggedView<const double> gaps(wide.view(), IndexView(offsets, 6));
  auto first = make_gradient(single), second = make_gradient(single);
  dx.fill(0);
  single.forward(rows, out, saved, Step{}, ws);
  single.backward(rows, out.view(), saved, dx, first, ws);
  frozen.forward(gaps, served, many);
  single.forward(gaps, apart, saved, Step{}, many);
  single.backward(gaps, apart.view(), saved, back, second, many);
  CHECK(max_difference(apart.view(), out.view()) == 0);
  CHECK(max_difference(served.view(), cold.view()) == 0);
  CHECK(max_difference(back.view(), dx.view()) == 0);
  visit(
      [&](const FieldPath& path, const auto& a, const auto& b) {
        INFO(path.str());
        const auto x0 = leaf_values(a), x1 = leaf_values(b);
        CHECK(std::equal(x0.begin(), x0.end(), x1.begin(), x1.end()));
      },
      std::as_const(first), std::as_const(second));
  CHECK((wide.intact() && apart.intact() && served.intact() && back.intact()));
  single.forward(rows, out, ws);
  in(8, 2) = std::numeric_limits<double>::quiet_NaN();
  single.forward(rows, poisoned, ws);
  for (Index i = 0; i < 18; ++i)
    for (Index d = 0; d < 4; ++d) CHECK(((7 <= i && i < 10) || std::abs(poisoned(i, d) - out(i, d)) < 1e-11));
  in.resize(18, 3);
  CHECK_THROWS_AS(single.forward(JaggedView<const double>(MatrixView<const double>(in), IndexView(offsets, 6)), out, ws), Error);
}

}  // namespace

TEMPLATE_TEST_CASE("layers are the papers'", "[frequency][golden]", float, double) {
  using T = TestType;
  const Golden golden("frequency");
  const double bound = sizeof(T) == 4 ? 5e-5 : 1e-11;
  Random random(1);
  const auto check = [&](const std::string& name, auto layer, Index length, Index count, double times = 1) {
    const auto offsets = every(length, count);
    CHECK(distance_to_golden<T>(golden, name, layer, IndexView(offsets)) < times * bound);
  };
  check("fmlp_even", SpectralFilter<T>(5, {.length = 12}, random), 12, 3);
  check("slide", SlideFilter<T>(4, {.length = 17, .layer = 1, .layers = 3}, random), 17, 2);
  FarmIntraDomainOptions farm = {.length = 11, .band = {.keep = 2}, .hidden = 7, .gate_scale = 2};
  check("farm", FarmIntraDomain<T>(4, farm, random), 11, 3);
  check("fmlp_prime", SpectralFilter<T>(5, {.length = 67, .padding = {SequenceFill::zero}}, random), 67, 3);
  check("fmlp_block", FilterBlock<T, Fmlp<T>>(Fmlp<T>(SpectralFilter<T>(6, {.length = 10}, random), 6), 6, {}, random), 10, 2);
  check("bsarec_c5", BsarecLayer<T>(6, {.length = 14, .band = {keep_from_bsarec_c(5)}, .heads = 2}, random), 14, 2);
  check("bsarec_c4", BsarecLayer<T>(6, {.length = 9, .band = {keep_from_bsarec_c(4)}, .heads = 2}, random), 9, 2);
  check("fmlp_odd", SpectralFilter<T>(5, {.length = 13}, random), 13, 3);
  check("fmlp_one", SpectralFilter<T>(5, {.length = 1}, random), 1, 3);
  farm.per_channel = true;
  check("farm_channels", FarmIntraDomain<T>(4, farm, random), 11, 3);
  // The gradients of its query's and key's biases are 0: what rounding leaves of sums that cancel.
  check("autocorr", AutocorrAttention<T>(4, 15, {.factor = 1.5}, random), 15, 2, 10);
  check("autocorr_window", AutocorrAttention<T>(4, 15, {.factor = 1.5, .layer = 1, .layers = 2, .ratio = 0.5}, random), 15, 2,
        10);

  Workspace ws;
  const SpectralPlans<T> plans(9);
  for (const auto& [name, length] : {std::pair("amplitude_even", Index{8}), std::pair("amplitude_odd", Index{9})}) {
    const std::string c = name;
    const auto offsets = every(length, 2);
    const Matrix<T> x = golden.matrix<T>(c + ".x"), dy = golden.matrix<T>(c + ".dy");
    Matrix<T> y(dy.rows(), 3), dx(x.rows(), 3, T(0));
    const SpectralFeatureOptions o = {.feature = SpectralFeature::log_amplitude, .epsilon = 1e-12};
    const JaggedView<const T> in(x.view(), IndexView(offsets));
    spectral_features<T>(in, o, plans, y, ws);
    spectral_features_backward<T>(in, o, plans, dy.view(), dx, ws);
    const Matrix<double> y0 = golden.matrix<double>(c + ".y"), dx0 = golden.matrix<double>(c + ".dx");
    CHECK(max_difference(y.view(), y0.view()) < bound);
    CHECK(max_difference(dx.view(), dx0.view()) < bound);
  }
}

TEST_CASE("every layer has its derivatives, a serving form, and keeps NaNs where they are", "[frequency]") {
  const auto fill = [](SequenceFill f) { return SequencePadding{f, SequenceAlign::right}; };
  check_layer("SpectralFilter", [&](auto t, Random& r) { return SpectralFilter<decltype(t)>(4, {.length = 7}, r, 1.0); });
  check_layer("SpectralFilter, filled, interpolated", [&](auto t, Random& r) {
    return SpectralFilter<decltype(t)>(4, {.length = 9, .padding = fill(SequenceFill::cyclic), .fit = GainFit::interpolate}, r,
                                       1.0);
  });
  check_layer("SpectralFilter, interpolated", [&](auto t, Random& r) {
    return SpectralFilter<decltype(t)>(4, {.length = 9, .fit = GainFit::interpolate}, r, 1.0);
  });
  check_layer("SlideFilter", [&](auto t, Random& r) {
    return SlideFilter<decltype(t)>(4, {.length = 8, .layers = 2, .dynamic_weight = 0.3, .padding = fill(SequenceFill::reflect)},
                                    r, 1.0);
  });
  check_layer("FarmIntraDomain", [&](auto t, Random& r) {
    return FarmIntraDomain<decltype(t)>(4, {.length = 7, .per_channel = true, .padding = fill(SequenceFill::edge)}, r);
  });
  check_layer("BsarecLayer", [&](auto t, Random& r) {
    return BsarecLayer<decltype(t)>(4, {.length = 7, .band = {.keep = 2}, .heads = 2, .dropout = 0.3}, r);
  });
  check_layer("FilterBlock", [&](auto t, Random& r) {
    using T = decltype(t);
    return FilterBlock<T, Fmlp<T>>(Fmlp<T>(SpectralFilter<T>(4, {.length = 7}, r, 1.0), 4, {.dropout = 0.2}), 4,
                                   {.dropout = 0.2, .hidden = 5}, r);
  });
  check_layer("AutocorrAttention", [&](auto t, Random& r) { return AutocorrAttention<decltype(t)>(4, 7, {.factor = 1.2}, r); });
}

TEST_CASE("FARM's gate reads the context", "[frequency]") {
  Random random = random_stream(7303);
  Workspace ws;
  FarmIntraDomain<double> layer(3, {.length = 6, .context = 2}, random);
  const std::int32_t offsets[] = {0, 6, 6, 10};
  Matrix<double> x = random_matrix<double>(10, 3, random), context = random_matrix<double>(3, 2, random), y(10, 3),
                 dx(10, 3, 0.0), dcontext(3, 2, 0.0), cotangent = random_matrix<double>(10, 3, random);
  const JaggedView<const double> in(MatrixView<const double>(x), IndexView(offsets, 4));
  auto gradient = make_gradient(layer);
  FarmIntraDomain<double>::Saved saved;
  const auto loss = [&] {
    layer.forward(in, context.view(), y, ws);
    return simd::dot(y.data(), cotangent.data(), 30);
  };
  layer.forward(in, context.view(), y, saved, Step{}, ws);
  layer.backward(in, context.view(), cotangent.view(), saved, dx, dcontext, gradient, ws);
  GradientReport report;
  check_gradient("context", leaf_values(context), VectorView<const double>(dcontext.data(), 6), loss, report);
  check_gradient("x", leaf_values(x), VectorView<const double>(dx.data(), 30), loss, report);
  CHECK(report.worst < 1e-7);
  CHECK_THROWS_WITH(layer.forward(in, y, ws), contains("context"));
}

TEST_CASE("shared lags are of the finite sequences, and lags past a sequence are refused", "[frequency]") {
  CHECK((autocorr_lags(0, 1) == 0 && autocorr_lags(1, 1) == 1 && autocorr_lags(50, 2) == 7 && autocorr_lags(50, 1e300) == 50));
  Random random = random_stream(7304);
  Workspace ws;
  const SpectralPlans<float> plans(8);
  const auto offsets = every(8, 3);
  Matrix<float> q = random_matrix<float>(24, 2, random), k(24, 2), v = random_matrix<float>(24, 2, random), y(24, 2), p(3, 2);
  for (Index i = 0; i < 24; ++i) std::copy_n(q.row(i / 8 * 8 + (i + 3) % 8), 2, k.row(i));  // three rows ahead
  Matrix<std::int32_t> lags(3, 2), clean(3, 2);
  const AutocorrOptions o = {.factor = 1, .shared_lags = true};
  const auto run = [&](Matrix<std::int32_t>& to) {
    autocorr_attention<float>(JaggedView<const float>(q.view(), IndexView(offsets)), k.view(), v.view(), o, plans, to, p, y, ws);
  };
  run(clean);
  for (Index b = 1; b < 3; ++b)
    for (Index i = 0; i < 2; ++i) CHECK(clean(b, i) == clean(0, i));
  CHECK(clean(0, 0) == 3);  // at which keys are the queries: no lag matches better
  q(9, 1) = std::numeric_limits<float>::quiet_NaN();
  run(lags);
  CHECK((lags(0, 0) == 3 && lags(2, 0) == 3));
  for (Index i = 0; i < 48; ++i) CHECK((i / 16 == 1) == std::isnan(y.data()[i]));
  lags(2, 1) = 8;
  Matrix<float> none;
  CHECK_THROWS_AS(autocorr_attention_backward<float>(JaggedView<const float>(q.view(), IndexView(offsets)), k.view(), v.view(), o,
                                                     plans, lags.view(), p.view(), y.view(), none, none, none, ws),
                  Error);
}

TEST_CASE("transforms of batches: there and back, and their adjoints", "[frequency]") {
  Workspace ws;
  Random random = random_stream(7305);
  const SpectralPlans<double> plans(13);
  const std::int32_t offsets[] = {0, 13, 13, 21, 22, 35};
  const IndexView at(offsets, 6);
  const Matrix<double> x = random_matrix<double>(35, 3, random);
  const Index bins = spectrum_rows(JaggedView<const double>(x.view(), at));
  REQUIRE(bins == 7 + 0 + 5 + 1 + 7);
  Matrix<double> gr = random_matrix<double>(bins, 3, random), gi = random_matrix<double>(bins, 3, random);
  for (const FftNorm norm : {FftNorm::backward, FftNorm::ortho, FftNorm::forward}) {
    Matrix<double> re(bins, 3), im(bins, 3), y(35, 3), dx(35, 3, 0.0), dre(bins, 3, 0.0), dim(bins, 3, 0.0), z(35, 3);
    rfft_seq<double>(JaggedView<const double>(x.view(), at), plans, norm, {re, im}, ws);
    irfft_seq<double>({re.view(), im.view()}, plans, norm, JaggedView<double>(y.view(), at), ws);
    CHECK(max_difference(x.view(), y.view()) < 1e-14);
    rfft_seq_backward<double>({gr.view(), gi.view()}, plans, norm, JaggedView<double>(dx.view(), at), ws);
    irfft_seq<double>({gr.view(), gi.view()}, plans, norm, JaggedView<double>(z.view(), at), ws);
    irfft_seq_backward<double>(JaggedView<const double>(x.view(), at), plans, norm, {dre, dim}, ws);
    const auto dot = [](const Matrix<double>& a, const Matrix<double>& b) { return simd::dot(a.data(), b.data(), a.rows() * 3); };
    CHECK(dot(re, gr) + dot(im, gi) == Approx(dot(x, dx)));
    CHECK(dot(z, x) == Approx(dot(gr, dre) + dot(gi, dim)));
  }
  CHECK_THROWS_AS(
      rfft_seq<double>(JaggedView<const double>(x.view(), at), plans, FftNorm::backward, {gr, MatrixView<double>()}, ws), Error);
}

TEMPLATE_TEST_CASE("transforms and features of rows with gaps between them are those of rows without", "[frequency]", float,
                   double) {
  using T = TestType;
  Workspace ws;
  Random random = random_stream(7307);
  const SpectralPlans<T> plans(13);
  const std::int64_t offsets[] = {0, 13, 13, 21, 22, 35};
  const IndexView at(offsets, 6);
  const Matrix<T> x = random_matrix<T>(35, 3, random), k = random_matrix<T>(35, 3, random);
  const Index bins = 20;
  const Matrix<T> g = random_matrix<T>(bins, 3, random), dy = random_matrix<T>(35, 3, random);
  Padded<T> wx(x.view()), wk(k.view()), wg(g.view()), wdy(dy.view());
  const auto compare = [](const Matrix<T>& want, Padded<T>& got) {
    CHECK(max_difference(want.view(), got.view()) == 0);
    CHECK(got.intact());
  };
  const JaggedView<const T> rows(x.view(), at), gaps(wx.view(), at);
  Matrix<T> re(bins, 3), im(bins, 3), y(35, 3), dx(35, 3, T(0)), dre(bins, 3, T(0)), dim(bins, 3, T(0));
  Padded<T> wre(bins, 3), wim(bins, 3), wy(35, 3), wdx(35, 3), wdre(bins, 3), wdim(bins, 3);
  rfft_seq<T>(rows, plans, FftNorm::ortho, {re, im}, ws);
  rfft_seq<T>(gaps, plans, FftNorm::ortho, {wre.view(), wim.view()}, ws);
  irfft_seq<T>({re.view(), im.view()}, plans, FftNorm::ortho, JaggedView<T>(y.view(), at), ws);
  irfft_seq<T>({MatrixView<const T>(wre), MatrixView<const T>(wim)}, plans, FftNorm::ortho, JaggedView<T>(wy.view(), at), ws);
  rfft_seq_backward<T>({g.view(), g.view()}, plans, FftNorm::ortho, JaggedView<T>(dx.view(), at), ws);
  rfft_seq_backward<T>({MatrixView<const T>(wg), MatrixView<const T>(wg)}, plans, FftNorm::ortho, JaggedView<T>(wdx.view(), at),
                       ws);
  irfft_seq_backward<T>(rows, plans, FftNorm::ortho, {dre, dim}, ws);
  irfft_seq_backward<T>(gaps, plans, FftNorm::ortho, {wdre.view(), wdim.view()}, ws);
  compare(re, wre);
  compare(im, wim);
  compare(y, wy);
  compare(dx, wdx);
  compare(dre, wdre);
  compare(dim, wdim);
  for (const SpectralFeature feature : {SpectralFeature::amplitude, SpectralFeature::log_amplitude, SpectralFeature::power}) {
    const SpectralFeatureOptions o = {.feature = feature};
    Matrix<T> f(bins, 3), df(35, 3, T(0));
    Padded<T> wf(bins, 3), wdf(35, 3);
    spectral_features<T>(rows, o, plans, f, ws);
    spectral_features<T>(gaps, o, plans, wf, ws);
    spectral_features_backward<T>(rows, o, plans, g.view(), df, ws);
    spectral_features_backward<T>(gaps, o, plans, wg, wdf, ws);
    compare(f, wf);
    compare(df, wdf);
  }
  Matrix<std::int32_t> lags(5, 2);
  Matrix<T> p(5, 2), dq(35, 3, T(0)), dk(35, 3, T(0)), dv(35, 3, T(0));
  Padded<std::int32_t> wlags(5, 2);
  Padded<T> wp(5, 2), wdq(35, 3), wdk(35, 3), wdv(35, 3);
  autocorr_attention<T>(rows, k.view(), dy.view(), {}, plans, lags, p, y, ws);
  autocorr_attention<T>(gaps, wk, wdy, {}, plans, wlags, wp, wy, ws);
  autocorr_attention_backward<T>(rows, k.view(), dy.view(), {}, plans, lags.view(), p.view(), x.view(), dq, dk, dv, ws);
  autocorr_attention_backward<T>(gaps, wk, wdy, {}, plans, wlags.view(), wp.view(), wx, wdq, wdk, wdv, ws);
  CHECK((max_difference(lags.view(), wlags.view()) == 0 && wlags.intact()));
  compare(p, wp);
  compare(y, wy);
  compare(dq, wdq);
  compare(dk, wdk);
  compare(dv, wdv);
}

TEST_CASE("bin_linear is a complex product with its adjoint", "[frequency]") {
  Workspace ws;
  const Matrix<double> xr{{1, 2}}, xi{{3, -1}}, mr{{2, 0}, {1, 1}, {0, 1}}, mi{{1, 1}, {0, 2}, {-1, 0}};
  Matrix<double> yr(1, 3), yi(1, 3);
  bin_linear<double>({xr.view(), xi.view()}, {mr.view(), mi.view()}, {yr, yi}, ws);
  // (1 + 3i)(2 + i) + (2 - i)(i) = -1 + 7i + 1 + 2i
  CHECK(yr(0, 0) == Approx(0).margin(1e-14));
  CHECK(yi(0, 0) == Approx(9));
  Random random = random_stream(7306);
  const Matrix<double> gr = random_matrix<double>(1, 3, random), gi = random_matrix<double>(1, 3, random);
  Matrix<double> dxr(1, 2, 0.0), dxi(1, 2, 0.0), dmr(3, 2, 0.0), dmi(3, 2, 0.0);
  bin_linear_backward<double>({xr.view(), xi.view()}, {mr.view(), mi.view()}, {gr.view(), gi.view()}, {dxr, dxi}, {dmr, dmi}, ws);
  const auto dot = [](const Matrix<double>& a, const Matrix<double>& b) {
    return simd::dot(a.data(), b.data(), a.rows() * a.cols());
  };
  const double value = dot(yr, gr) + dot(yi, gi);
  CHECK(dot(xr, dxr) + dot(xi, dxi) == Approx(value));
  CHECK(dot(mr, dmr) + dot(mi, dmi) == Approx(value));
}

TEST_CASE("layers refuse negative sizes by name", "[frequency][errors]") {
  check_refused({
      {"BsarecFilter: width", [](Random& r) { BsarecFilter<float>(-4, 8, {.keep = 3}, {}, r); }},
      {"BsarecFilter: length", [](Random& r) { BsarecFilter<float>(4, -8, {.keep = 3}, {}, r); }},
      {"BsarecLayer: width", [](Random& r) { BsarecLayer<float>(-4, {.length = 8}, r); }},
      {"FilterSublayer: width", [](Random&) { FilterSublayer<float, BsarecFilter<float>>({}, -4); }},
      {"FeedForward: width", [](Random& r) { FeedForward<float>(-4, {}, r); }},
      {"FilterBlock: width", [](Random& r) { FilterBlock<float, BsarecFilter<float>>({}, -4, {}, r); }},
      {"FarmIntraDomain: width", [](Random& r) { FarmIntraDomain<float>(-4, {.length = 8}, r); }},
      {"FarmIntraDomain: length", [](Random& r) { FarmIntraDomain<float>(4, {.length = -8}, r); }},
      {"AutocorrAttention: width", [](Random& r) { AutocorrAttention<float>(-4, 8, {}, r); }},
      {"AutocorrAttention: length", [](Random& r) { AutocorrAttention<float>(4, -8, {}, r); }},
      {"SpectralFilter: width", [](Random& r) { SpectralFilter<float>(-4, {.length = 8}, r); }},
      {"SlideFilter: length", [](Random& r) { SlideFilter<float>(4, {.length = -8}, r); }},
  });
}

TEST_CASE("an epsilon that float rounds to 0 or infinity is refused", "[frequency][errors]") {
  Workspace ws;
  const Matrix<float> x(4, 1, 0.0f), dout(3, 1, 1.0f);
  Matrix<float> dx(4, 1, 0.0f);
  const SpectralPlans<float> plans(4);
  const auto backward = [&](double epsilon) {
    return error_of([&] { spectral_features_backward<float>(x.view(), {.epsilon = epsilon}, plans, dout, dx, ws); });
  };
  for (const double epsilon : {-1.0, 1e-50, 1e300, std::numeric_limits<double>::quiet_NaN()})
    CHECK(backward(epsilon).rfind("spectral_features_backward: epsilon: expected ", 0) == 0);
  for (const double epsilon : {0.0, 1e-30}) CHECK(backward(epsilon) == "no error");
  for (const float v : leaf_values(std::as_const(dx))) CHECK(std::isfinite(v));
}
