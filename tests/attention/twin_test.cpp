/// Oracles: TWIN written from its formulas in double (support/twin_reference.hpp); PyTorch (golden/twin.py); central differences.
#include <recops/attention/target_attention.hpp>
#include <recops/attention/twin.hpp>
#include <recops/train/gradient_check.hpp>

#include "support/allocations.hpp"
#include "support/golden.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"
#include "support/twin_reference.hpp"

using namespace recops;
using namespace recops_test;

namespace {

/// A batch of users, some without candidates or history.
template <class T>
struct Batch {
  std::vector<std::int32_t> rows{0}, offsets{0};
  Matrix<T> candidates, inherent, cross;
  Vector<T> prior;
  Batch(const std::vector<Index>& n, const std::vector<Index>& l, Index width, Index cross_cols, bool with_prior,
        Random& random) {
    for (std::size_t u = 0; u < n.size(); ++u) {
      rows.push_back(rows.back() + static_cast<std::int32_t>(n[u]));
      offsets.push_back(offsets.back() + static_cast<std::int32_t>(l[u]));
    }
    candidates = random_matrix<T>(rows.back(), width, random);
    inherent = random_matrix<T>(offsets.back(), width, random);
    cross = random_matrix<T>(offsets.back(), cross_cols, random);
    if (with_prior) prior = random_vector<T>(offsets.back(), random);
  }
  JaggedView<const T> q() const { return {candidates, rows}; }
  TwinHistory<T> history() const { return {.inherent = {inherent, offsets}, .cross = cross, .prior = prior}; }
};

double inner(const Matrix<double>& a, const Matrix<double>& b) {
  double sum = 0;
  for (Index i = 0; i < a.rows() * a.cols(); ++i) sum += a.data()[i] * b.data()[i];
  return sum;
}

}  // namespace

TEMPLATE_TEST_CASE("TWIN is its formulas", "[attention][twin]", float, double) {
  using T = TestType;
  Random random = random_stream(60);
  Threads threads{3};
  Workspace ws, many(make_executor(threads, 3));
  const double tolerance = std::is_same_v<T, float> ? 1e-5 : 1e-13;
  for (const TwinConfig& c :
       {TwinConfig{.width = 1, .heads = 1, .key_width = 1, .value_width = 1, .selected = 1},
        TwinConfig{.width = 7,
        .cross_features = 3,
        .cross_width = 2,
        .heads = 3,
        .key_width = 5,
        .value_width = 2,
        .output_width = 4,
        .selected = 6},
        TwinConfig{
            .width = 16, .cross_features = 2, .cross_width = 4, .heads = 4, .key_width = 8, .value_width = 8, .selected = 20}}) {
    for (const bool prior : {false, true}) {
      CAPTURE(c.width, c.heads, prior);
      const Twin<T> layer(c, random);
      Batch<T> batch({2, 0, 3, 1, 17}, {9, 4, 0, 1, 70}, c.width, layer.cross_cols(), prior, random);
      if (prior) {
        batch.prior[3] = -std::numeric_limits<T>::infinity();
        batch.inherent(3, 0) = std::numeric_limits<T>::quiet_NaN();
      }
      const Index n = batch.rows.back();
      Padded<T> y(n, layer.output_width(), T(9)), trained(n, layer.output_width(), T(9)), served(n, layer.output_width(), T(9));
      typename Twin<T>::Saved saved;
      layer.forward(batch.q(), batch.history(), y, ws);
      layer.forward(batch.q(), batch.history(), trained, saved, ws);
      double off = 0;
      bool selected = true;
      for (std::size_t u = 0; u + 1 < batch.rows.size(); ++u) {
        const Index first = batch.offsets[u], length = batch.offsets[u + 1] - first;
        std::vector<double> own;
        for (Index l = first; l < first + length && prior; ++l) own.push_back(static_cast<double>(batch.prior[l]));
        const TwinReference<T> reference{layer, batch.candidates, batch.inherent.view().middle_rows(first, length),
                                         batch.cross.view().middle_rows(first, length), own};
        for (Index i = batch.rows[u]; i < batch.rows[u + 1]; ++i) {
          const auto want = reference.output(i);
          const auto rows = reference.selected(i);
          for (Index o = 0; o < layer.output_width(); ++o)
            off = std::max(off, std::abs(static_cast<double>(y(i, o)) - want[static_cast<std::size_t>(o)]));
          for (Index k = 0; k < c.selected; ++k)
            selected =
                selected && saved.indices(i, k) == (k < static_cast<Index>(rows.size()) ? rows[static_cast<std::size_t>(k)] : -1);
        }
      }
      CHECK(off <= tolerance);
      CHECK(selected);
      CHECK(max_difference(y.view(), trained.view()) == 0);
      freeze(layer).forward(batch.q(), batch.history(), served, ws);
      CHECK(max_difference(y.view(), served.view()) <= tolerance);
      CHECK((y.intact() && trained.intact() && served.intact()));
      layer.forward(batch.q(), batch.history(), trained, many);
      CHECK(max_difference(y.view(), trained.view()) == 0);
      auto gradient = make_gradient(layer), threaded = make_gradient(layer);
      Matrix<T> dq(n, c.width, T(0)), dq2(n, c.width, T(0)), dh(batch.offsets.back(), c.width, T(0)),
          dh2 = dh, dx(batch.offsets.back(), layer.cross_cols(), T(0)), dx2 = dx;
      Vector<T> dp(batch.prior.size(), T(0)), dp2 = dp;
      const Matrix<T> dy = random_matrix<T>(n, layer.output_width(), random);
      layer.backward(batch.q(), batch.history(), dy, saved, dq, {dh, dx, dp}, gradient, ws);
      layer.backward(batch.q(), batch.history(), dy, saved, dq2, {dh2, dx2, dp2}, threaded, many);
      CHECK(max_difference(dq.view(), dq2.view()) == 0);
      CHECK(max_difference(dh.view(), dh2.view()) == 0);
      CHECK(max_difference(gradient.k_proj.weight.view(), threaded.k_proj.weight.view()) == 0);
      for (Index d = 0; d < c.width && prior; ++d) CHECK(dh(3, d) == 0);
      CHECK(count_allocations([&] {
              layer.forward(batch.q(), batch.history(), trained, saved, ws);
              layer.forward(batch.q(), batch.history(), y, ws);
              layer.backward(batch.q(), batch.history(), dy, saved, dq, {dh, dx, dp}, gradient, ws);
            }) == 0);
    }
  }
}

TEMPLATE_TEST_CASE("TWIN against PyTorch", "[attention][twin][golden]", float, double) {
  using T = TestType;
  const double tolerance = std::is_same_v<T, float> ? 2e-4 : 1e-11;
  const Golden golden("twin");
  Workspace ws;
  Twin<T> layer;
  layer.heads = 2;
  layer.selected = 4;
  layer.q_proj.weight = golden.matrix<T>("wq");
  layer.k_proj.weight = golden.matrix<T>("wk");
  layer.v_proj.weight = golden.matrix<T>("wv");
  layer.out_proj.weight = golden.matrix<T>("wo");
  layer.cross_weight = golden.matrix<T>("w");
  layer.cross_scale = golden.matrix<T>("beta");
  const Matrix<T> q = golden.matrix<T>("q"), inherent = golden.matrix<T>("inherent"), cross = golden.matrix<T>("cross"),
                  dy = golden.matrix<T>("dy");
  const auto prior = golden.values<T>("prior");
  const auto rows = golden.values<std::int64_t>("rows"), offsets = golden.values<std::int64_t>("offsets");
  const TwinHistory<T> history{.inherent = {inherent, offsets}, .cross = cross, .prior = prior};
  Matrix<T> y(q.rows(), 6), dq(q.rows(), q.cols(), T(0)), dh(inherent.rows(), inherent.cols(), T(0)),
      dx(cross.rows(), cross.cols(), T(0));
  Vector<T> dprior(cross.rows(), T(0));
  typename Twin<T>::Saved saved;
  auto gradient = make_gradient(layer);
  layer.forward({q, rows}, history, y, saved, ws);
  for (int twice = 0; twice < 2; ++twice) layer.backward({q, rows}, history, dy, saved, dq, {dh, dx, dprior}, gradient, ws);
  const auto compare = [&](const Matrix<T>& got, const char* name, double times) {
    Matrix<double> scaled(got.rows(), got.cols());
    for (Index i = 0; i < got.rows() * got.cols(); ++i) scaled.data()[i] = static_cast<double>(got.data()[i]) / times;
    CAPTURE(name);
    CHECK(max_difference(scaled.view(), golden.matrix<double>(name).view()) <= tolerance);
  };
  CHECK(max_difference(saved.indices.view(), golden.matrix<std::int32_t>("indices").view()) == 0);
  compare(y, "y", 1);
  compare(dq, "dq", 2);
  compare(dh, "dinherent", 2);
  compare(dx, "dcross", 2);
  compare(gradient.q_proj.weight, "dwq", 2);
  compare(gradient.k_proj.weight, "dwk", 2);
  compare(gradient.v_proj.weight, "dwv", 2);
  compare(gradient.out_proj.weight, "dwo", 2);
  compare(gradient.cross_weight, "dw", 2);
  compare(gradient.cross_scale, "dbeta", 2);
  const auto want = golden.values<double>("dprior");
  for (Index l = 0; l < dprior.size(); ++l)
    CHECK(std::abs(static_cast<double>(dprior[l]) / 2 - want[static_cast<std::size_t>(l)]) <= tolerance);
}

TEST_CASE("gradients of TWIN are central differences", "[attention][twin]") {
  Random random = random_stream(61);
  Workspace ws;
  Twin<double> layer({.width = 4,
                      .cross_features = 2,
                      .cross_width = 3,
                      .heads = 2,
                      .key_width = 3,
                      .value_width = 2,
                      .output_width = 3,
                      .selected = 4},
                     random);
  Batch<double> batch({2, 1, 3}, {12, 0, 3}, 4, 6, true, random);
  Matrix<double> y(6, 3), dq(6, 4, 0.0), dh(15, 4, 0.0), dx(15, 6, 0.0);
  Vector<double> dp(15, 0.0);
  const Matrix<double> dy = random_matrix<double>(6, 3, random);
  Twin<double>::Saved saved;
  auto gradient = make_gradient(layer);
  layer.forward(batch.q(), batch.history(), y, saved, ws);
  layer.backward(batch.q(), batch.history(), dy, saved, dq, {dh, dx, dp}, gradient, ws);
  const auto loss = [&] {
    layer.forward(batch.q(), batch.history(), y, ws);
    return inner(y, dy);
  };
  GradientReport report;
  check_gradient("candidates", leaf_values(batch.candidates), leaf_values(dq), loss, report);
  check_gradient("inherent", leaf_values(batch.inherent), leaf_values(dh), loss, report);
  check_gradient("cross", leaf_values(batch.cross), leaf_values(dx), loss, report);
  check_gradient("prior", batch.prior, dp, loss, report);
  visit([&](const FieldPath& path, auto& leaf,
            const auto& d) { check_gradient(path.str(), leaf_values(leaf), leaf_values(d), loss, report); },
        layer, gradient);
  INFO(report.where);
  CHECK(report.worst < 1e-7);
}

TEST_CASE("cross features by tables are those by embeddings", "[attention][twin]") {
  Random random = random_stream(62);
  Workspace ws;
  const Index heads = 3, features = 2, e = 4, length = 30;
  const std::vector<std::int32_t> first_row{0, 5, 12};
  Matrix<double> tables = random_matrix<double>(12, e, random), w = random_matrix<double>(heads, features * e, random),
                 beta = random_matrix<double>(heads, features, random), cross(length, features * e), collapsed(12, heads),
                 dense(length, heads), bias(length, heads);
  Matrix<std::int32_t> ids(length, features);
  for (Index l = 0; l < length; ++l)
    for (Index j = 0; j < features; ++j) {
      ids(l, j) = static_cast<std::int32_t>(
          (l * 7 + j) % (first_row[static_cast<std::size_t>(j) + 1] - first_row[static_cast<std::size_t>(j)]));
      std::copy_n(tables.row(first_row[static_cast<std::size_t>(j)] + ids(l, j)), e, cross.row(l) + j * e);
    }
  cross_feature_bias<double>(cross, w, beta, dense, ws);
  for (Index l = 0; l < length; ++l)  // uncollapsed
    for (Index a = 0; a < heads; ++a) {
      double want = 0;
      for (Index j = 0; j < features; ++j) {
        double one = 0;
        for (Index i = 0; i < e; ++i) one += cross(l, j * e + i) * w(a, j * e + i);
        want += beta(a, j) * one;
      }
      CHECK(std::abs(dense(l, a) - want) < 1e-13);
    }
  collapse_cross_tables<double>(tables, first_row, w, beta, collapsed, ws);
  cross_table_bias<double>(collapsed, first_row, ids, bias);
  CHECK(max_difference(bias.view(), dense.view()) < 1e-13);

  const Matrix<double> g = random_matrix<double>(length, heads, random);
  Matrix<double> dtables(12, e, 0.0), dw(heads, features * e, 0.0), dbeta(heads, features, 0.0),
      dw2 = dw, dbeta2 = dbeta, dcross(length, features * e, 0.0);
  cross_table_bias_backward<double>(tables, first_row, w, beta, ids, g, dtables, dw, dbeta, ws);
  cross_feature_bias_backward<double>(cross, w, beta, g, dcross, dw2, dbeta2, ws);
  CHECK(max_difference(dw.view(), dw2.view()) < 1e-12);
  CHECK(max_difference(dbeta.view(), dbeta2.view()) < 1e-12);
  const auto loss = [&] {
    collapse_cross_tables<double>(tables, first_row, w, beta, collapsed, ws);
    cross_table_bias<double>(collapsed, first_row, ids, bias);
    return inner(bias, g);
  };
  GradientReport report;
  check_gradient("tables", leaf_values(tables), leaf_values(dtables), loss, report);
  check_gradient("w", leaf_values(w), leaf_values(dw), loss, report);
  check_gradient("beta", leaf_values(beta), leaf_values(dbeta), loss, report);
  const auto dense_loss = [&] {
    cross_feature_bias<double>(cross, w, beta, bias, ws);
    return inner(bias, g);
  };
  check_gradient("cross", leaf_values(cross), leaf_values(dcross), dense_loss, report);
  INFO(report.where);
  CHECK(report.worst < 1e-7);
  Matrix<std::int32_t> same(200000, 2, 0);  // float sums of many equal numbers keep their digits
  const Matrix<float> ones(200000, 1, 0.1f), table(2, 1, 1.f), weight(1, 2, 1.f);
  const std::vector<int> rows{0, 1, 2};
  Matrix<float> dtable(2, 1, 0.f);
  cross_table_bias_backward<float>(table, rows, weight, weight, same, ones, dtable, {}, {}, ws);
  CHECK(std::abs(dtable(0, 0) - 20000) < 0.01f);
  ids(4, 1) = 7;
  CHECK_THAT(error_of([&] { cross_table_bias<double>(collapsed, first_row, ids, bias); }), contains("ids"));
}

TEMPLATE_TEST_CASE("attention over all behaviours is target attention", "[attention][twin]", float, double) {
  using T = TestType;
  Random random = random_stream(63);
  Workspace ws;
  const double tolerance = std::is_same_v<T, float> ? 1e-5 : 1e-13;
  const Index heads = 2, width = 6, n = 5, l = 20;
  const Matrix<T> q = random_matrix<T>(n, heads * width, random), keys = random_matrix<T>(l, heads * width, random),
                  values = random_matrix<T>(l, 3, random);
  Matrix<T> twice(l, 6), want(n, 6), lse(n, heads), pooled(n, 6), lse2(n, heads);
  for (Index i = 0; i < l; ++i)
    for (Index d = 0; d < 6; ++d) twice(i, d) = values(i, d % 3);  // the values of both heads
  Matrix<std::int32_t> indices(n, l + 3);
  const SearchKeys<T> all{JaggedView<const T>(keys.view())};
  const TwinOptions options{.heads = heads};
  twin_search<T>(q.view(), all, {}, options, indices, ws);
  twin_attention<T>(q.view(), all, {}, values, options, indices, pooled, lse2, ws);
  target_attention<T>(q.view(), keys.view(), twice.view(), {.heads = heads}, want, lse, ws);
  CHECK(max_difference(pooled.view(), want.view()) < tolerance);
  CHECK(max_difference(lse.view(), lse2.view()) < tolerance);
  const Matrix<T> g = random_matrix<T>(n, 6, random);
  Matrix<T> dq(n, heads * width, T(0)), dk(l, heads * width, T(0)), dv(l, 3, T(0)), dq2 = dq, dk2 = dk, dv2(l, 6, T(0));
  twin_attention_backward<T>(q.view(), keys.view(), {}, values, options, indices, pooled, lse2, g, dq, dk, {}, dv, ws);
  target_attention_backward<T>(q.view(), keys.view(), twice.view(), {.heads = heads}, want, lse, g, dq2, dk2, dv2, ws);
  for (Index i = 0; i < l; ++i)
    for (Index d = 0; d < 3; ++d) dv2(i, d) += dv2(i, d + 3);
  CHECK(max_difference(dq.view(), dq2.view()) < 10 * tolerance);
  CHECK(max_difference(dk.view(), dk2.view()) < 10 * tolerance);
  CHECK(max_difference(dv.view(), MatrixView<const T>(dv2.view()).middle_cols(0, 3)) < 10 * tolerance);
}

TEST_CASE("TWIN's stages agree with each other; the order of behaviours does not matter", "[attention][twin]") {
  Random random = random_stream(64);
  Workspace ws;
  const Twin<float> layer(
      {.width = 24, .cross_features = 2, .cross_width = 4, .heads = 4, .key_width = 8, .value_width = 8, .selected = 100},
      random);
  Batch<float> batch({10}, {2000}, 24, 8, false, random);
  const auto served = freeze(layer);
  Matrix<float> keys(2000, 32), queries(10, 32), bias(2000, 4), scores(40, 2000), y(10, 24), z(10, 24);
  served.project_keys(batch.inherent, keys, ws);
  served.project_queries(batch.candidates, queries, ws);
  served.score_bias(batch.history(), bias, ws);
  Matrix<std::int32_t> chosen(10, 100);
  const SearchKeys<float> all{JaggedView<const float>(keys.view())};
  served.forward(batch.q(), batch.history(), all, chosen, y, ws);
  // What the attention stage would have kept, had it scored everything.
  twin_scores<float>(queries, all, bias, {.heads = 4}, scores, ws);
  Index hits = 0;
  for (Index n = 0; n < 10; ++n) {
    std::vector<std::vector<double>> rows(4);
    for (Index a = 0; a < 4; ++a)
      for (Index l = 0; l < 2000; ++l) rows[static_cast<std::size_t>(a)].push_back(static_cast<double>(scores(n * 4 + a, l)));
    const auto want = lock_step_reference(rows, 100);
    for (Index i = 0; i < 100; ++i) hits += chosen(n, i) == want[static_cast<std::size_t>(i)] ? 1 : 0;
  }
  CHECK(hits == 1000);
  Batch<float> reversed = batch;
  for (Index l = 0; l < 2000; ++l) {
    std::copy_n(batch.inherent.row(l), 24, reversed.inherent.row(1999 - l));
    std::copy_n(batch.cross.row(l), 8, reversed.cross.row(1999 - l));
  }
  layer.forward(reversed.q(), reversed.history(), z, ws);
  CHECK(max_difference(y.view(), z.view()) < 1e-5);
}

TEST_CASE("a bias of the prior alone goes where a strided view says", "[attention][twin]") {
  Random random = random_stream(66);
  Workspace ws;
  const auto layer = freeze(Twin<float>({.width = 4, .heads = 2, .key_width = 3, .value_width = 2, .selected = 3}, random));
  const Batch<float> batch({1}, {5}, 4, 0, true, random);
  Matrix<float> room(5, 7, 9.0f);
  layer.score_bias(batch.history(), room.view().middle_cols(1, 2), ws);
  for (Index l = 0; l < 5; ++l)
    for (Index c = 0; c < 7; ++c) CHECK(room(l, c) == (c == 1 || c == 2 ? batch.prior[l] : 9.0f));
}

TEST_CASE("TWIN names what is wrong and writes nothing", "[attention][twin][errors]") {
  Random random = random_stream(65);
  Workspace ws;
  Twin<float> layer(
      {.width = 4, .cross_features = 1, .cross_width = 2, .heads = 2, .key_width = 3, .value_width = 2, .selected = 3}, random);
  Batch<float> batch({2}, {5}, 4, 2, false, random);
  Matrix<float> y(2, 4, 9.0f), narrow(2, 3, 9.0f), short_cross(4, 2, 0.0f), wide(5, 5, 0.0f);
  const auto forward = [&](const TwinHistory<float>& h, MatrixView<float> to) {
    return error_of([&] { layer.forward(batch.q(), h, to, ws); });
  };
  TwinHistory<float> h = batch.history();
  CHECK_THAT(forward(h, narrow), contains("Twin: y: expected shape [2, 4], got [2, 3]"));
  h.cross = short_cross;
  CHECK_THAT(forward(h, y), contains("cross: expected shape [5, 2]"));
  h.cross = {};
  CHECK_THAT(forward(h, y), contains("cross: expected shape [5, 2]"));
  h = batch.history();
  const Vector<float> prior(3, 0.0f);
  h.prior = prior;
  CHECK_THAT(forward(h, y), contains("prior: expected size 5"));
  h = batch.history();
  h.inherent = JaggedView<const float>(wide.view());
  CHECK_THAT(forward(h, y), contains("inherent: expected shape [_, 4]"));
  layer.heads = 4;
  CHECK_THAT(forward(batch.history(), y), contains("q_proj.weight: expected rows that heads divides"));
  CHECK_THAT(error_of([&] { Twin<float>({.width = 4, .heads = 0}, random); }), contains("heads >= 1"));
  Matrix<std::int32_t> indices(2, 2, 5);
  Matrix<float> pooled(2, 8, 9.0f), q(2, 6, 0.0f), keys(5, 6, 0.0f);
  CHECK_THAT(error_of([&] {
               twin_attention<float>(q.view(), SearchKeys<float>(JaggedView<const float>(keys.view())), {}, batch.inherent,
                                     {.heads = 2}, indices, pooled, {}, ws);
             }),
             contains("indices"));
  for (Index i = 0; i < 8; ++i) CHECK((y.data()[i] == 9.0f && pooled.data()[i] == 9.0f));
  layer.heads = 2;  // what forward saved of one batch is not of another, whose users have other lengths
  Twin<float>::Saved saved;
  Twin<float> gradient = layer;
  const Batch<float> other({1, 1}, {4, 1}, 4, 2, false, random), swapped({1, 1}, {1, 4}, 4, 2, false, random);
  layer.forward(other.q(), other.history(), y, saved, ws);
  CHECK_THAT(error_of([&] { layer.backward(swapped.q(), swapped.history(), y, saved, {}, {}, gradient, ws); }),
             contains("Twin backward: indices"));
}
