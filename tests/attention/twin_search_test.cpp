/// Oracle: lock-step selection by stable sort over `twin_scores`, whose numbers are compared with double; copies against the floats.
#include <recops/attention/twin_search.hpp>

#include "support/allocations.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"
#include "support/twin_reference.hpp"

using namespace recops;
using namespace recops_test;

namespace {

template <class T>
std::vector<int> expected(MatrixView<const T> scores, Index n, Index heads, Index k) {
  std::vector<std::vector<double>> rows(static_cast<std::size_t>(heads));
  for (Index a = 0; a < heads; ++a)
    for (Index l = 0; l < scores.cols(); ++l)
      rows[static_cast<std::size_t>(a)].push_back(static_cast<double>(scores(n * heads + a, l)));
  return lock_step_reference(rows, k);
}

bool same(const std::int32_t* got, Index k, const std::vector<int>& want) {
  for (Index i = 0; i < k; ++i)
    if (got[i] != (i < static_cast<Index>(want.size()) ? want[static_cast<std::size_t>(i)] : -1)) return false;
  return true;
}

/// Keys with what may be stored beside them.
struct Stored {
  Matrix<float> exact;
  QuantizedRows codes;
  Matrix<BFloat16> rounded;
  Matrix<float> norms;
  Stored(MatrixView<const float> keys, Index heads, bool one_scale = false)
      : exact(keys.rows(), keys.cols()), rounded(keys.rows(), keys.cols()), norms(keys.rows(), heads) {
    const Index width = keys.cols() / heads;
    for (Index l = 0; l < keys.rows(); ++l) {
      std::copy_n(keys.row(l), keys.cols(), exact.row(l));
      simd::convert(keys.row(l), rounded.row(l), keys.cols());
      for (Index a = 0; a < heads; ++a)
        simd::row_norms<float>(keys.middle_rows(l, 1).middle_cols(a * width, width), VectorView<float>(norms.row(l) + a, 1));
    }
    codes.assign(keys, one_scale ? 0 : width);
  }
  SearchKeys<float> plain() const { return SearchKeys<float>(JaggedView<const float>(exact.view())); }
  SearchKeys<float> int8() const {
    auto k = plain();
    k.int8 = codes;
    return k;
  }
  SearchKeys<float> bfloat16() const {
    auto k = plain();
    k.bfloat16 = rounded;
    k.norms = norms;
    return k;
  }
};

}  // namespace

TEMPLATE_TEST_CASE("search selects in lock-step by its scores", "[attention][twin]", float, double) {
  using T = TestType;
  Random random = random_stream(50);
  Workspace ws;
  const double tolerance = std::is_same_v<T, float> ? 2e-5 : 1e-13;
  struct Shape {
    Index n, l, heads, width, k;
  };
  for (const Shape s :
       {Shape{1, 1, 1, 1, 1}, Shape{3, 7, 2, 3, 4}, Shape{5, 64, 4, 16, 10}, Shape{2, 257, 1, 64, 100}, Shape{9, 300, 3, 5, 20},
        Shape{1, 1300, 4, 16, 100}, Shape{12, 1500, 2, 32, 30}, Shape{2, 5, 2, 8, 100}, Shape{3, 40, 2, 8, 0}}) {
    for (const int bias_cols : {0, 1, 2}) {
      CAPTURE(s.n, s.l, s.heads, s.width, s.k, bias_cols);
      Padded<T> q(random_matrix<T>(s.n, s.heads * s.width, random).view()),
          keys(random_matrix<T>(s.l, s.heads * s.width, random).view());
      Padded<T> bias(random_matrix<T>(s.l, bias_cols == 1 ? 1 : s.heads, random).view());
      const MatrixView<const T> added = bias_cols == 0 ? MatrixView<const T>() : MatrixView<const T>(bias.view());
      if (bias_cols != 0) {  // some are hidden, and hold anything
        for (Index l = 0; l < s.l; l += 3) {
          for (Index a = 0; a < bias.view().cols(); ++a) bias(l, a) = -std::numeric_limits<T>::infinity();
          for (Index d = 0; d < s.heads * s.width; ++d) keys(l, d) = T(1e30);
        }
        if (s.l > 3) std::copy_n(keys.view().row(1), s.heads * s.width, keys.view().row(2));
      }
      const SearchKeys<T> all{JaggedView<const T>(keys.view())};
      const TwinOptions options{.heads = s.heads};
      Matrix<T> scores(s.n * s.heads, s.l);
      Matrix<std::int32_t> indices(s.n, s.k, 77);
      twin_scores<T>(q.view(), all, added, options, scores, ws);
      for (Index n = 0; n < s.n; ++n)
        for (Index a = 0; a < s.heads; ++a)
          for (Index l = 0; l < s.l; ++l) {
            const double b = added.empty() ? 0 : static_cast<double>(added(l, bias_cols == 1 ? 0 : a));
            if (b == -INFINITY) {
              REQUIRE(scores(n * s.heads + a, l) == -std::numeric_limits<T>::infinity());
              continue;
            }
            double dot = 0;
            for (Index d = a * s.width; d < (a + 1) * s.width; ++d)
              dot += static_cast<double>(q(n, d)) * static_cast<double>(keys(l, d));
            REQUIRE(std::abs(static_cast<double>(scores(n * s.heads + a, l)) -
                             (dot / std::sqrt(static_cast<double>(s.width)) + b)) <= tolerance);
          }
      twin_search<T>(q.view(), all, added, options, indices, ws);
      bool all_same = true;
      for (Index n = 0; n < s.n; ++n)
        all_same = all_same && same(indices.row(n), s.k, expected<T>(scores.view(), n, s.heads, s.k));
      CHECK(all_same);
      CHECK(count_allocations([&] { twin_search<T>(q.view(), all, added, options, indices, ws); }) == 0);
    }
  }
}

TEST_CASE("a history that comes from memory is asked for ahead, with the same result", "[attention][twin]") {
  Random random = random_stream(55);
  Workspace ws;
  for (const Index heads : {4, 2, 1}) {
    const Index l = (simd::detail::distant_bytes / (64 * (sanitized ? Index{sizeof(float)} : 1))) + 77, k = 50;
    Padded<float> keys(random_matrix<float>(l, 64, random).view());
    for (Index i = 0; i < l / 2; i += 5) std::copy_n(keys.view().row(i), 64, keys.view().row(l - 1 - i));  // ties, far apart
    Padded<float> q(random_matrix<float>(2, 64, random).view()), bias(random_matrix<float>(l, heads, random).view());
    for (Index i = 0; i < l; i += 3) bias(i, 0) = -std::numeric_limits<float>::infinity();
    const SearchKeys<float> all{JaggedView<const float>(keys.view())};
    const Stored stored(keys.view(), heads);
    for (const MatrixView<const float> added : {MatrixView<const float>(), MatrixView<const float>(bias.view())}) {
      Matrix<float> scores(2 * heads, l);
      Matrix<std::int32_t> indices(2, k);
      twin_scores<float>(q.view(), all, added, {.heads = heads}, scores, ws);
      for (const SearchKeys<float>& with : {all, stored.int8()}) {
        CAPTURE(heads, added.empty(), with.int8.rows());
        twin_search<float>(q.view(), with, added, {.heads = heads}, indices, ws);
        for (Index n = 0; n < 2; ++n) CHECK(same(indices.row(n), k, expected<float>(scores.view(), n, heads, k)));
      }
    }
  }
}

TEST_CASE("a few rows that are as long as a history are searched too", "[attention][twin]") {
  Random random = random_stream(56);
  Workspace ws;
  const Index l = 70, width = simd::detail::distant_bytes / (l * Index{sizeof(float)}) + 1, k = 5;
  const auto q = random_matrix<float>(1, width, random), keys = random_matrix<float>(l, width, random);
  const SearchKeys<float> all{JaggedView<const float>(keys.view())};
  Matrix<float> scores(1, l);
  Matrix<std::int32_t> indices(1, k);
  twin_scores<float>(q.view(), all, {}, {.heads = 1}, scores, ws);
  twin_search<float>(q.view(), all, {}, {.heads = 1}, indices, ws);
  CHECK(same(indices.row(0), k, expected<float>(scores.view(), 0, 1, k)));
}

TEST_CASE("copies of keys select what the floats select", "[attention][twin]") {
  Random random = random_stream(51);
  Workspace ws;
  for (const Index heads : {1, 2, 4, 3}) {
    for (const Index width : {16, 32, 64, 10}) {
      for (const bool biased : {false, true}) {
        const Index l = sanitized ? 1100 : 3000, k = 50;
        Matrix<float> keys = random_matrix<float>(l, heads * width, random);
        for (Index i = 0; i < 40; ++i) std::copy_n(keys.row(7), heads * width, keys.row(100 + 3 * i));  // ties
        std::fill_n(keys.row(5), heads * width, 0.0f);
        keys(11, 0) = std::numeric_limits<float>::quiet_NaN();
        keys(12, 0) = std::numeric_limits<float>::infinity();
        Matrix<float> bias = random_matrix<float>(l, heads, random);
        for (Index i = 0; i < l; ++i) bias(i, i % heads) *= 100.0f;
        for (Index i = 0; i < l; i += 2) bias(i, 0) = -std::numeric_limits<float>::infinity();
        const MatrixView<const float> added = biased ? bias.view() : MatrixView<const float>();
        const Stored stored(keys, heads), row_scale(keys, heads, true);
        const Matrix<float> q = random_matrix<float>(20, heads * width, random);
        Matrix<float> scores(20 * heads, l);
        Matrix<std::int32_t> one(1, k), many(20, k), few(3, k);
        const TwinOptions options{.heads = heads};
        twin_scores<float>(q, stored.plain(), added, options, scores, ws);
        CAPTURE(heads, width, biased);
        std::vector<std::vector<int>> want;
        for (Index n = 0; n < 20; ++n) {
          std::vector<std::vector<double>> rows(static_cast<std::size_t>(heads));
          for (Index a = 0; a < heads; ++a)
            for (Index i = 0; i < l; ++i) {  // NaN ranks last
              const double x = static_cast<double>(scores(n * heads + a, i));
              rows[static_cast<std::size_t>(a)].push_back(std::isnan(x) ? -INFINITY : x);
            }
          want.push_back(lock_step_reference(rows, k));
        }
        bool ok = true;
        for (const SearchKeys<float>& with : {stored.plain(), stored.int8(), row_scale.int8(), stored.bfloat16()}) {
          const Index read = twin_search<float>(q.view().middle_rows(0, 1), with, added, options, one, ws);
          ok = ok && same(one.row(0), k, want[0]);
          if (with.exact.data() == stored.exact.data() && with.int8.codes.empty() && with.bfloat16.empty())
            CHECK(read == heads * l);
          if (!biased && width == 64) CHECK((read == heads * l || read < heads * l / 3));
          twin_search<float>(q.view().middle_rows(4, 3), with, added, options, few, ws);
          for (Index n = 0; n < 3; ++n) ok = ok && same(few.row(n), k, want[static_cast<std::size_t>(4 + n)]);
          const Index panels = twin_search<float>(q, with, added, options, many, ws);
          for (Index n = 0; n < 20; ++n) ok = ok && same(many.row(n), k, want[static_cast<std::size_t>(n)]);
          if (!biased) CHECK(panels < 20 * heads * 3 * k);
        }
        CHECK(ok);
      }
    }
  }
}

TEST_CASE("sums that overflow in one order only are not taken for certain", "[attention][twin]") {
  Workspace ws;
  Matrix<float> q(8, 16, 0.0f), keys(1100, 16, 0.0f);
  for (Index n = 0; n < 8; ++n) {
    for (const Index d : {0, 2, 8, 10}) q(n, d) = 0x1p66f;
    q(n, 1) = 0x1p60f;
  }
  for (Index l = 0; l < 1100; ++l) keys(l, 1) = -0x1p55f;
  keys(5, 1) = 0;
  for (const Index d : {0, 2, 8, 10}) keys(5, d) = d % 8 == 0 ? 0x1p61f : -0x1p61f;
  Matrix<std::int32_t> one(1, 1), many(8, 1);
  const SearchKeys<float> all{JaggedView<const float>(keys.view())};
  twin_search<float>(q.view().middle_rows(0, 1), all, {}, {.scale = 1}, one, ws);
  twin_search<float>(q.view(), all, {}, {.scale = 1}, many, ws);
  for (Index n = 0; n < 8; ++n) CHECK(many(n, 0) == one(0, 0));
}

TEST_CASE("a batch of users with named rows, on threads", "[attention][twin]") {
  Random random = random_stream(52);
  const Index heads = 2, width = 16, items = 2000, k = 25;
  const Matrix<float> table = random_matrix<float>(items, heads * width, random);
  const Stored stored(table, heads);
  const std::vector<std::int32_t> offsets{0, 0, 3, 1503, 1503, 2703}, rows{0, 2, 5, 95, 96, 98};
  std::vector<std::int64_t> names;
  for (Index i = 0; i < offsets.back(); ++i)
    names.push_back(static_cast<std::int64_t>(random.uniform(0, static_cast<double>(items) - 0.01)));
  Matrix<float> in_order(offsets.back(), heads * width);
  for (Index i = 0; i < in_order.rows(); ++i)
    std::copy_n(table.row(names[static_cast<std::size_t>(i)]), heads * width, in_order.row(i));
  const Matrix<float> q = random_matrix<float>(98, heads * width, random),
                      bias = random_matrix<float>(in_order.rows(), heads, random);
  const JaggedView<const float> queries(q, rows);
  Matrix<std::int32_t> want(98, k), got(98, k), threaded(98, k);
  Threads threads{3};
  Workspace ws, many(make_executor(threads, 3));
  twin_search<float>(queries, SearchKeys<float>(JaggedView<const float>(in_order, offsets)), bias, {.heads = heads}, want, ws);
  for (SearchKeys<float> with : {stored.plain(), stored.int8(), stored.bfloat16()}) {
    with.rows = names;
    with.offsets = offsets;
    got.fill(5);
    twin_search<float>(queries, with, bias, {.heads = heads}, got, ws);
    CHECK(std::equal(got.data(), got.data() + 98 * k, want.data()));
    twin_search<float>(queries, with, bias, {.heads = heads}, threaded, many);
    CHECK(std::equal(threaded.data(), threaded.data() + 98 * k, want.data()));
  }
  for (Index i = 0; i < 2 * k; ++i) CHECK(want.data()[i] == -1);  // user 0 has no history
  CHECK((want(2, 2) >= 0 && want(2, 2) < 3 && want(2, 3) == -1));
  // One user alone has what it has in the batch.
  Matrix<std::int32_t> alone(90, k);
  twin_search<float>(q.view().middle_rows(5, 90),
                     SearchKeys<float>(JaggedView<const float>(in_order.view().middle_rows(3, 1500))),
                     bias.view().middle_rows(3, 1500), {.heads = heads}, alone, ws);
  CHECK(std::equal(alone.data(), alone.data() + 90 * k, want.row(5)));
}

TEST_CASE("twin search names what is wrong and writes nothing", "[attention][twin][errors]") {
  Workspace ws;
  Matrix<float> q(3, 8, 1.0f), keys(5, 8, 1.0f), narrow(5, 6, 1.0f), bias(4, 2, 0.0f);
  Matrix<std::int32_t> out(3, 2, 9), wrong(2, 2, 9);
  const SearchKeys<float> all{JaggedView<const float>(keys.view())};
  const auto search = [&](const SearchKeys<float>& k, MatrixView<const float> b, Index heads, MatrixView<std::int32_t> to) {
    return error_of([&] { twin_search<float>(q, k, b, {.heads = heads}, to, ws); });
  };
  CHECK_THAT(search(SearchKeys<float>{JaggedView<const float>(narrow.view())}, {}, 2, out),
             contains("twin_search: keys: expected shape [_, 8], got [5, 6]"));
  CHECK_THAT(search(all, bias, 2, out), contains("bias: expected shape [5, 2]"));
  CHECK_THAT(search(all, {}, 3, out), contains("queries"));
  CHECK_THAT(search(all, {}, 0, out), contains("heads"));
  CHECK_THAT(search(all, {}, 2, wrong), contains("indices: expected shape [3, _]"));
  SearchKeys<float> named = all;
  const std::vector<std::int32_t> beyond{0, 5};
  named.rows = beyond;
  CHECK_THAT(search(named, {}, 2, out), contains("keys.rows: expected indices from 0 to below 5, got 5 at position 1"));
  SearchKeys<float> users = all;
  const std::vector<std::int32_t> two{0, 2, 5};
  users.offsets = two;
  CHECK_THAT(search(users, {}, 2, out), contains("keys: expected 1 users, got 2"));
  SearchKeys<float> coded = all;
  const Matrix<std::int8_t> codes(5, 8, 1);
  const Matrix<float> scales(5, 4, 1.0f);
  coded.int8 = {codes, scales, 2};
  CHECK_THAT(search(coded, {}, 2, out), contains("keys.int8: expected one scale for a row, or for every head of it"));
  for (Index i = 0; i < 6; ++i) CHECK(out.data()[i] == 9);
}
