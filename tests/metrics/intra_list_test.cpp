// Oracle: all pairs, cosine by cosine.
#include <recops/metrics/intra_list.hpp>

#include "metrics/cases.hpp"
#include "support/allocations.hpp"

using namespace recops;
using metric_cases::kept;
using metric_cases::same;

namespace {

template <class T>
Matrix<T> normal_matrix(Index rows, Index cols, std::uint64_t stream) {
  Random r(recops_test::seed(), stream);
  Matrix<T> m(rows, cols);
  for (Index i = 0; i < rows * cols; ++i) m.data()[i] = static_cast<T>(r.normal());
  return m;
}

struct Pairs {
  double mean = 0, smallest = 2;
  bool valid = false;
};

template <class T>
Pairs all_pairs(MatrixView<const T> rows, bool skip_zero) {
  Pairs p;
  double count = 0;
  for (Index i = 0; i < rows.rows(); ++i) {
    for (Index j = 0; j < rows.rows(); ++j) {
      double dot = 0, a = 0, b = 0;
      for (Index d = 0; d < rows.cols(); ++d) {
        dot += double(rows(i, d)) * double(rows(j, d));
        a += double(rows(i, d)) * double(rows(i, d));
        b += double(rows(j, d)) * double(rows(j, d));
      }
      if (i == j || (skip_zero && (a == 0 || b == 0))) continue;
      const double distance = a == 0 || b == 0 ? 1 : 1 - dot / std::sqrt(a * b);
      p.mean += distance;
      p.smallest = std::min(p.smallest, distance);
      count += 1;
    }
  }
  p.valid = count > 0;
  if (p.valid) p.mean /= count;
  return p;
}

}  // namespace

TEMPLATE_TEST_CASE("intra-list distance is that of all pairs", "[metrics][intra_list]", float, double) {
  using T = TestType;
  Workspace ws;
  for (const Index width : {1, 3, 16, 33}) {
    auto m = normal_matrix<T>(24, width, static_cast<std::uint64_t>(width));
    for (Index d = 0; d < width; ++d) {
      m(5, d) = 0;  // rows without features
      m(9, d) = 0;
      m(12, d) = 3 * m(11, d);  // the same direction
    }
    const std::vector<std::int64_t> offsets{0, 0, 1, 3, 8, 8, 14, 23, 24};
    const JaggedView<const T> lists(m, offsets);
    for (const ZeroRows zero : {ZeroRows::distant, ZeroRows::skip}) {
      double mean = 0, smallest = 0, valid = 0;
      for (Index g = 0; g < lists.size(); ++g) {
        const Pairs p = all_pairs<T>(lists[g], zero == ZeroRows::skip);
        if (!p.valid) continue;
        mean += p.mean;
        smallest += p.smallest;
        ++valid;
      }
      REQUIRE(valid == 4);
      const GroupResult r = intra_list_distance<T>(lists, {.zero_rows = zero}, ws);
      CHECK((r.valid && r.valid_groups == 4 && r.skipped_groups == 4 && same(r.value, mean / valid, 1e-12)));
      const GroupResult s = intra_list_min_distance<T>(lists, {.zero_rows = zero}, ws);
      CHECK((s.valid_groups == 4 && same(s.value, smallest / valid, 1e-12)));
    }
  }
}

TEMPLATE_TEST_CASE("picks from a catalogue are the rows they name", "[metrics][intra_list]", float, double) {
  using T = TestType;
  Workspace ws;
  const auto catalogue = normal_matrix<T>(40, 7, 71);
  const std::vector<std::int32_t> items{3, 39, 0, -1, 17, 17, -1, -1, 5, 8}, offsets{0, 4, 8, 10};
  Matrix<T> rows(7, 7);
  const Index picked[] = {3, 39, 0, 17, 17, 5, 8};
  for (Index i = 0; i < 7; ++i)
    for (Index d = 0; d < 7; ++d) rows(i, d) = catalogue(picked[i], d);
  const std::vector<std::int32_t> without{0, 3, 5, 7};
  const GroupResult a = intra_list_distance<T>(catalogue, items, offsets, {}, ws);
  const GroupResult b = intra_list_distance<T>(JaggedView<const T>(rows, without), {}, ws);
  CHECK((a.value == b.value && a.valid_groups == 3));
  CHECK(intra_list_min_distance<T>(catalogue, items, offsets, {}, ws).value ==
        intra_list_min_distance<T>(JaggedView<const T>(rows, without), {}, ws).value);
  const GroupResult twice =
      intra_list_distance<T>(catalogue, IndexView(items).segment(4, 2), kept(std::vector<std::int64_t>{0, 2}), {}, ws);
  CHECK(std::abs(twice.value) < 1e-15);
  CHECK_THROWS_WITH(
      intra_list_distance<T>(catalogue, kept(std::vector<std::int32_t>{1, 40}), kept(std::vector<std::int32_t>{0, 2}), {}, ws),
      "intra_list_distance: items: expected -1 or indices below 40, got 40 at position 1");
  CHECK_THROWS_AS(intra_list_distance<T>(catalogue, items, kept(std::vector<std::int32_t>{0, 2}), {}, ws), Error);
  recops_test::AllocationCounter counter;
  intra_list_distance<T>(catalogue, items, offsets, {}, ws);
  intra_list_min_distance<T>(catalogue, items, offsets, {}, ws);
  const std::size_t allocations = counter.count();
  CHECK(allocations == 0);
}

TEMPLATE_TEST_CASE("known intra-list distances", "[metrics][intra_list]", float, double) {
  using T = TestType;
  Workspace ws;
  const Matrix<T> orthogonal{{2, 0, 0}, {0, 5, 0}, {0, 0, 1}}, opposite{{1, 1}, {-2, -2}}, one{{1, 2}};
  CHECK(same(intra_list_distance<T>(orthogonal, {}, ws).value, 1.0));
  CHECK(same(intra_list_min_distance<T>(orthogonal, {}, ws).value, 1.0));
  CHECK(same(intra_list_distance<T>(opposite, {}, ws).value, 2.0));
  const Matrix<T> with_zero{{1, 1}, {0, 0}, {-1, -1}};
  CHECK(same(intra_list_min_distance<T>(with_zero, {}, ws).value, 1.0));
  CHECK(same(intra_list_min_distance<T>(with_zero, {.zero_rows = ZeroRows::skip}, ws).value, 2.0));
  const GroupResult lonely = intra_list_distance<T>(one, {}, ws);
  CHECK((!lonely.valid && lonely.value == 0 && lonely.skipped_groups == 1));
  const Matrix<T> poisoned{{1, 2}, {std::numeric_limits<T>::quiet_NaN(), 1}, {3, 1}, {1, 0}, {0, 1}};
  const std::vector<std::int32_t> offsets{0, 3, 5};
  const GroupResult r = intra_list_distance<T>(JaggedView<const T>(poisoned, offsets), {}, ws);
  CHECK((r.valid && r.value == 1 && r.valid_groups == 1 && r.nan_groups == 1));
  const Matrix<T> infinite{{std::numeric_limits<T>::infinity(), 1}, {1, 1}};
  CHECK(intra_list_distance<T>(infinite, {}, ws).nan_groups == 1);
}
