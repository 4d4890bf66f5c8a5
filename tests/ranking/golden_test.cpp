// Oracle: PyTorch in double (golden/ranking_losses.py).
#include <recops/ranking/approx_ndcg.hpp>
#include <recops/ranking/border_pairwise.hpp>
#include <recops/ranking/chorus_cvr.hpp>
#include <recops/ranking/hardest_pair.hpp>
#include <recops/ranking/listwise.hpp>
#include <recops/ranking/pairwise_auc.hpp>
#include <recops/ranking/ranknet.hpp>

#include "support/golden.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

template <class T>
constexpr double tolerance = std::is_same_v<T, float> ? 2e-5 : 1e-11;

template <class T>
Vector<T> vector_of(const Golden& golden, const std::string& key) {
  Vector<T> v;
  for (const T x : golden.values<T>(key)) v.push_back(x);
  return v;
}
template <class T>
double distance(const Vector<T>& got, const Golden& golden, const std::string& key) {
  const auto expected = golden.values<double>(key);
  return max_difference(MatrixView<const T>(got.data(), 1, got.size()),
                        MatrixView<const double>(expected.data(), 1, static_cast<Index>(expected.size())));
}

}  // namespace

TEMPLATE_TEST_CASE("losses over groups are PyTorch's of their definitions", "[ranking][golden]", float, double) {
  using T = TestType;
  const Golden golden("ranking_losses");
  const Vector<T> s = vector_of<T>(golden, "scores"), rel = vector_of<T>(golden, "relevance");
  const auto y = golden.values<std::uint8_t>("labels");
  const auto offsets = golden.values<std::int64_t>("offsets");
  Workspace ws;
  const auto check = [&](const std::string& name, auto&& loss) {
    Vector<T> d(s.size(), T(0));
    const GroupLoss got = loss(VectorView<T>(d));
    CAPTURE(name);
    CHECK(got.value == Approx(golden.scalar(name + ".loss")).epsilon(tolerance<T>));
    CHECK(distance(d, golden, name + ".d") < tolerance<T>);
  };
  const auto auc = [&](const std::string& name, AucSurrogate surrogate) {
    check(name, [&](VectorView<T> d) {
      const PairwiseAucOptions<T> o{.surrogate = surrogate, .sigma = 1.3, .margin = 0.8};
      return pairwise_auc_loss_value_and_grad<T>(s, y, offsets, o, d, ws);
    });
  };
  auc("logistic", AucSurrogate::logistic);
  auc("sigmoid", AucSurrogate::sigmoid);
  auc("squared", AucSurrogate::squared);
  auc("hinge", AucSurrogate::hinge);
  auc("squared_hinge", AucSurrogate::squared_hinge);
  auc("exponential", AucSurrogate::exponential);
  auc("log_exponential", AucSurrogate::log_exponential);
  check("hardest", [&](auto d) { return hardest_pair_loss_value_and_grad<T>(s, y, offsets, {}, d, ws); });
  check("soft_hardest",
        [&](auto d) { return hardest_pair_loss_value_and_grad<T>(s, y, offsets, {.beta = 2, .margin = 0.3}, d, ws); });
  check("ranknet", [&](auto d) { return ranknet_loss_value_and_grad<T>(s, rel, offsets, {.sigma = 1.3}, d, ws); });
  check("lambdarank", [&](auto d) { return lambdarank_loss_value_and_grad<T>(s, rel, offsets, {}, d, ws); });
  check("lambdarank_5", [&](auto d) { return lambdarank_loss_value_and_grad<T>(s, rel, offsets, {.k = 5}, d, ws); });
  check("listnet", [&](auto d) { return listnet_loss_value_and_grad<T>(s, rel, offsets, {.temperature = 0.7}, d, ws); });
  check("listmle", [&](auto d) { return listmle_loss_value_and_grad<T>(s, rel, offsets, {}, d, ws); });
  check("listmle_5", [&](auto d) { return listmle_loss_value_and_grad<T>(s, rel, offsets, {.k = 5}, d, ws); });
  check("softmax_each", [&](auto d) { return softmax_loss_value_and_grad<T>(s, y, offsets, {}, d, ws); });
  check("softmax_any",
        [&](auto d) { return softmax_loss_value_and_grad<T>(s, y, offsets, {.target = PositiveTarget::any}, d, ws); });
  check("approx_ndcg", [&](auto d) { return approx_ndcg_loss_value_and_grad<T>(s, rel, offsets, {.temperature = 0.4}, d, ws); });
  check("border", [&](auto d) {
    const BorderPairwiseOptions<T> o{.window = 3, .delta = 0.5, .sigma = 1.2, .margin = 0.2, .smoothness = 0.3, .slope = 0.6};
    return border_pairwise_loss_value_and_grad<T>(s, rel, offsets, o, d, ws);
  });
}

TEMPLATE_TEST_CASE("losses of conversion are PyTorch's of their definitions", "[ranking][golden]", float, double) {
  using T = TestType;
  const Golden golden("ranking_losses");
  const Vector<T> a = vector_of<T>(golden, "cvr.a"), b = vector_of<T>(golden, "cvr.b"), c = vector_of<T>(golden, "cvr.c"),
                  imputed = vector_of<T>(golden, "cvr.imputed");
  const auto o = golden.values<std::uint8_t>("cvr.clicks"), r = golden.values<std::uint8_t>("cvr.conversions");
  const auto check = [&](const std::string& name, const std::string& which, auto&& loss) {
    std::vector<Vector<T>> d(which.size(), Vector<T>(a.size(), T(0)));
    CAPTURE(name);
    CHECK(loss(d) == Approx(golden.scalar(name + ".loss")).epsilon(tolerance<T>));
    for (std::size_t k = 0; k < which.size(); ++k) CHECK(distance(d[k], golden, name + ".d" + which[k]) < tolerance<T>);
  };
  check("esmm", "ab", [&](auto& d) { return esmm_loss_value_and_grad<T>(a, b, o, r, d[0], d[1]).value; });
  for (const bool through : {false, true}) {
    Escm2Options options{.conversion_weight = 0.7, .product_weight = 1.4, .clip = 0.3, .propensity_gradient = through};
    const std::string tail = through ? "_through" : "";
    for (const auto& [name, norm] :
         {std::pair{"ips_entire", PropensityNorm::entire}, std::pair{"ips_clicked", PropensityNorm::clicked},
          std::pair{"ips_self_normalised", PropensityNorm::self_normalised}}) {
      options.norm = norm;
      check(name + tail, "ab", [&](auto& d) { return escm2_ips_loss_value_and_grad<T>(a, b, o, r, options, d[0], d[1]).value; });
    }
    options.softplus_imputation = true;
    check("dr" + tail, "abd",
          [&](auto& d) { return escm2_dr_loss_value_and_grad<T>(a, b, imputed, o, r, options, d[0], d[1], d[2]).value; });
  }
  check("chorus", "abc", [&](auto& d) {
    return chorus_cvr_loss_value_and_grad<T>(a, b, c, o, r, {.alignment_weight = 0.8, .click_weight = 0.9, .clip = 0.15}, d[0],
                                             d[1], d[2])
        .value;
  });
}
