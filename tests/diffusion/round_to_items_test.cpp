// Oracle: every item scored by simd::dot_rows (in the metric's own terms), the seen ones struck out, ordered by std::stable_sort.
// Selections must be that, to the bit, through every copy, batch and number of threads.
#include <recops/diffusion/round_to_items.hpp>

#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "support/allocations.hpp"
#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {

template <class T>
bool same_bits(MatrixView<const T> a, MatrixView<const T> b) {
  for (Index i = 0; i < a.rows(); ++i)
    for (Index j = 0; j < a.cols(); ++j)
      if (std::isnan(a(i, j)) ? !std::isnan(b(i, j)) : a(i, j) != b(i, j)) return false;
  return true;
}

template <class T>
void expected(MatrixView<const T> x, MatrixView<const T> items, const std::vector<std::vector<std::int32_t>>& seen, Index samples,
              MatrixView<std::int32_t> indices, MatrixView<T> scores) {
  for (Index b = 0; b < indices.rows(); ++b) {
    Vector<T> best(items.rows()), s(items.rows());
    for (Index q = 0; q < samples; ++q) {
      simd::dot_rows<T>(VectorView<const T>(x.row(b * samples + q), x.cols()), items, s);
      for (Index i = 0; i < s.size(); ++i)
        if (q == 0 || std::isnan(best[i]) || s[i] > best[i]) best[i] = s[i];
    }
    std::vector<std::int32_t> order;
    for (Index i = 0; i < items.rows(); ++i) {
      const auto& mine = seen.empty() ? std::vector<std::int32_t>() : seen[static_cast<std::size_t>(b)];
      if (std::find(mine.begin(), mine.end(), i) == mine.end()) order.push_back(static_cast<std::int32_t>(i));
    }
    std::stable_sort(order.begin(), order.end(), [&](std::int32_t p, std::int32_t q) {
      return std::isnan(best[q]) ? !std::isnan(best[p]) : best[p] > best[q];
    });
    for (Index i = 0; i < indices.cols(); ++i) {
      const bool there = i < static_cast<Index>(order.size());
      indices(b, i) = there ? order[static_cast<std::size_t>(i)] : -1;
      scores(b, i) = there ? best[indices(b, i)] : -std::numeric_limits<T>::infinity();
    }
  }
}

struct Seen {
  std::vector<std::vector<std::int32_t>> lists;
  std::vector<std::int32_t> ids;
  std::vector<std::int64_t> offsets{0};

  Seen(Index requests, Index items, Random& random) {
    for (Index b = 0; b < requests; ++b) {
      lists.emplace_back();
      const Index n = items == 0 ? 0 : b % 3 == 0 ? 0 : random.below(30);
      for (Index i = 0; i < n; ++i) lists.back().push_back(static_cast<std::int32_t>(random.below(items)));
      if (b % 5 == 4 && n > 0) lists.back().push_back(lists.back().front());
      ids.insert(ids.end(), lists.back().begin(), lists.back().end());
      offsets.push_back(static_cast<std::int64_t>(ids.size()));
    }
  }
};

}  // namespace

TEST_CASE("lists are the best of all items, whatever the copy", "[diffusion][round_to_items]") {
  Random random = random_stream(52);
  Workspace ws;
  for (const Index items : {0, 1, 9, 1500}) {
    for (const auto& [requests, samples] : {std::pair<Index, Index>{1, 1}, {1, 3}, {5, 1}, {7, 4}, {40, 1}, {0, 2}}) {
      if (items == 1500 && requests == 40) continue;
      const Index cols = items == 1500 ? 17 : 24, k = 20;
      const Matrix<float> x = random_matrix<float>(requests * samples, cols, random);
      Matrix<float> e = random_matrix<float>(items, cols, random);
      for (Index i = 0; i + 1 < items; i += 7) std::copy_n(e.row(i), cols, e.row(i + 1));  // ties
      if (items > 8) std::fill_n(e.row(8), cols, 0.0f);
      const Seen seen(requests, items, random);
      const RoundToItemsOptions options{.seen = seen.ids, .seen_offsets = seen.offsets, .samples = samples};
      Matrix<std::int32_t> indices(requests, k), want(requests, k);
      Matrix<float> scores(requests, k), want_scores(requests, k);
      for (const ItemMetric metric : {ItemMetric::inner_product, ItemMetric::cosine, ItemMetric::l2}) {
        // What the table holds, made by hand.
        const Index width = metric == ItemMetric::l2 ? (cols + 16) / 16 * 16 : cols;
        Matrix<float> prepared(items, width, 0.0f), queries(x.rows(), width, 0.0f);
        using From = const Matrix<float>*;
        for (const auto& [from, to] : {std::pair<From, Matrix<float>*>{&e, &prepared}, {&x, &queries}}) {
          for (Index i = 0; i < from->rows(); ++i) {
            const float* row = from->row(i);
            std::copy_n(row, cols, to->row(i));
            const float square = simd::dot(row, row, cols);
            if (metric == ItemMetric::cosine) simd::scale(square > 1e-20f ? 1 / std::sqrt(square) : 0.0f, row, to->row(i), cols);
            if (metric == ItemMetric::l2) (*to)(i, cols) = to == &prepared ? -square / 2 : 1.0f;
          }
        }
        expected<float>(queries, prepared, seen.lists, samples, want, want_scores);
        for (const ItemCopy copy : {ItemCopy::none, ItemCopy::bfloat16, ItemCopy::int8}) {
          CAPTURE(items, requests, samples, static_cast<int>(metric), static_cast<int>(copy));
          const ItemTable<float> table(e.view(), {.metric = metric, .copy = copy});
          round_to_items<float>(x, table, options, indices, scores, ws);
          CHECK(max_difference(indices.view(), want.view()) == 0);
          CHECK(same_bits<float>(scores, want_scores));
          indices.fill(7);
          CHECK(count_allocations([&] { round_to_items<float>(x, table, options, indices, {}, ws); }) == 0);
          CHECK(max_difference(indices.view(), want.view()) == 0);
        }
      }
      // The distances themselves rise along an l2 list, in which the last metric was.
      for (Index b = 0; b < requests && samples == 1; ++b) {
        double last = -1;
        for (Index i = 0; i < k && indices(b, i) >= 0; ++i) {
          double distance = 0;
          for (Index d = 0; d < cols; ++d) distance += std::pow(static_cast<double>(x(b, d) - e(indices(b, i), d)), 2);
          CHECK(distance >= last - 1e-4);
          last = distance;
        }
      }
    }
  }
}

TEST_CASE("lists do not depend on threads nor on the batch, in double too", "[diffusion][round_to_items]") {
  Random random = random_stream(53);
  const Matrix<double> e = random_matrix<double>(33000, 2, random), x = random_matrix<double>(3, 2, random);
  Matrix<std::int32_t> indices(3, 10), want(3, 10), one(1, 10);
  Matrix<double> scores(3, 10), want_scores(3, 10), one_score(1, 10);
  Workspace ws;
  expected<double>(x, e, {}, 1, want, want_scores);
  for (const int workers : {1, 5}) {
    Threads threads{workers};
    Workspace with(make_executor(threads, workers));
    round_to_items<double>(x, e.view(), {}, indices, scores, with);
    CHECK(max_difference(indices.view(), want.view()) == 0);
    CHECK(same_bits<double>(scores, want_scores));
  }
  for (Index b = 0; b < 3; ++b) {
    round_to_items<double>(x.view().middle_rows(b, 1), e.view(), {}, one, one_score, ws);
    CHECK(max_difference(one.view(), want.view().middle_rows(b, 1)) == 0);
    CHECK(same_bits<double>(one_score, want_scores.view().middle_rows(b, 1)));
  }
}

TEST_CASE("NaN stays in its request, errors leave outputs alone", "[diffusion][round_to_items]") {
  Random random = random_stream(54);
  Workspace ws;
  const Matrix<float> e = random_matrix<float>(2000, 16, random);
  Matrix<float> x = random_matrix<float>(3, 16, random);
  Matrix<std::int32_t> clean(3, 5), indices(3, 5, 7);
  Matrix<float> scores(3, 5);
  for (const ItemCopy copy : {ItemCopy::none, ItemCopy::int8, ItemCopy::bfloat16}) {
    const ItemTable<float> table(e.view(), {.metric = ItemMetric::cosine, .copy = copy});
    x(1, 3) = 0;
    round_to_items<float>(x, table, {}, clean, {}, ws);
    x(1, 3) = std::numeric_limits<float>::quiet_NaN();
    round_to_items<float>(x, table, {}, indices, scores, ws);
    for (Index i = 0; i < 5; ++i) {
      CHECK((indices(0, i) == clean(0, i) && indices(2, i) == clean(2, i) && indices(1, i) == i));
      CHECK((std::isnan(scores(1, i)) && !std::isnan(scores(0, i))));
    }
  }
  indices.fill(7);
  const ItemTable<float> table(e.view());
  const auto message = [&](MatrixView<const float> q, const RoundToItemsOptions& o, MatrixView<float> s) {
    return error_of([&] { round_to_items<float>(q, table, o, indices, s, ws); });
  };
  const std::vector<std::int32_t> seen{1, 2, 2000}, offsets{0, 1, 2, 3}, few{0, 3};
  CHECK(message(e, {}, {}).find("x: expected shape [3, _]") != std::string::npos);
  CHECK(message(x.view().middle_cols(0, 15), {}, {}).find("x: expected shape [_, 16]") != std::string::npos);
  CHECK(message(x, {.samples = 0}, {}).find("samples") != std::string::npos);
  Matrix<std::int32_t> four(4, 1, 7);  // 4 times 2^62 is 0, as many as there are
  CHECK(error_of([&] {
          round_to_items<float>(x.view().middle_rows(0, 0), table, {.samples = Index{1} << 62}, four, {}, ws);
        }).find("samples") != std::string::npos);
  CHECK(message(x, {}, scores.view().middle_cols(0, 4)).find("scores: expected shape [3, 5]") != std::string::npos);
  CHECK(message(x, {.seen = seen, .seen_offsets = offsets}, {}).find("seen: expected indices from 0 to below 2000") !=
        std::string::npos);
  CHECK(message(x, {.seen = seen, .seen_offsets = few}, {}).find("seen_offsets: expected size 4") != std::string::npos);
  CHECK(message(x, {.seen = seen}, {}).find("seen_offsets") != std::string::npos);
  CHECK(error_of([&] { ItemTable<double>(MatrixView<const double>(nullptr, 0, 3), {.copy = ItemCopy::int8}); }).find("copy") !=
        std::string::npos);
  CHECK(*std::max_element(indices.data(), indices.data() + 15) == 7);
}

TEST_CASE("lists from rows with gaps between them", "[diffusion][round_to_items]") {
  Random random = random_stream(55);
  Workspace ws;
  const Matrix<float> e = random_matrix<float>(500, 17, random), x = random_matrix<float>(6, 17, random);
  Padded<float> wide_e(e.view()), wide_x(x.view()), wide_scores(3, 8);
  Padded<std::int32_t> wide_indices(3, 8);
  Matrix<std::int32_t> indices(3, 8);
  Matrix<float> scores(3, 8);
  const RoundToItemsOptions options{.samples = 2};
  for (const ItemMetric metric : {ItemMetric::inner_product, ItemMetric::cosine, ItemMetric::l2}) {
    for (const ItemCopy copy : {ItemCopy::none, ItemCopy::bfloat16, ItemCopy::int8}) {
      const ItemTable<float> table(e.view(), {.metric = metric, .copy = copy});
      const ItemTable<float> wide(wide_e.view(), {.metric = metric, .copy = copy});
      round_to_items<float>(x, table, options, indices, scores, ws);
      round_to_items<float>(wide_x, wide, options, wide_indices, wide_scores, ws);
      CHECK(max_difference(indices.view(), wide_indices.view()) == 0);
      CHECK(same_bits<float>(scores, wide_scores.view()));
    }
  }
  round_to_items<float>(x, e.view(), options, indices, scores, ws);
  round_to_items<float>(wide_x, wide_e.view(), options, wide_indices, wide_scores, ws);
  CHECK(max_difference(indices.view(), wide_indices.view()) == 0);
  CHECK(same_bits<float>(scores, wide_scores.view()));
  CHECK((wide_e.intact() && wide_x.intact() && wide_scores.intact() && wide_indices.intact()));
}
