// Oracle: bags summed by hand in double; the gradient by rows against the dense gradient.
#include <recops/nn/embedding_bag.hpp>

#include <set>
#include <vector>

#include "support/allocations.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {

// Random ids with repeats and some padding, in bags of 0 to 9.
struct Batch {
  std::vector<std::int64_t> ids, offsets{0};
  Batch(Index bags, Index rows, Index padding, Random& random) {
    for (Index b = 0; b < bags; ++b) {
      const Index length = random.below(10) * random.below(2);
      for (Index i = 0; i < length; ++i) ids.push_back(padding >= 0 && random.chance(0.2) ? padding : random.below(rows));
      offsets.push_back(static_cast<std::int64_t>(ids.size()));
    }
  }
  Index size() const { return static_cast<Index>(offsets.size()) - 1; }
  template <class F>
  void for_each(Index padding, F&& f) const {  // f(bag, id, ids that count in the bag)
    for (Index b = 0; b < size(); ++b) {
      const auto begin = static_cast<std::size_t>(offsets[static_cast<std::size_t>(b)]),
                 end = static_cast<std::size_t>(offsets[static_cast<std::size_t>(b) + 1]);
      Index count = 0;
      for (std::size_t i = begin; i < end; ++i) count += ids[i] != padding;
      for (std::size_t i = begin; i < end; ++i)
        if (ids[i] != padding) f(b, Index{ids[i]}, count);
    }
  }
};

template <class T>
Matrix<T> dense_of(const Table<T>& gradient, Index rows) {
  Matrix<T> all(rows, gradient.values.cols(), T(0));
  for (Index r = 0; r < gradient.rows.size(); ++r) std::copy_n(gradient.values.row(r), all.cols(), all.row(gradient.rows[r]));
  return all;
}
template <class T>
bool sorted_and_distinct(const Table<T>& gradient) {
  for (Index r = 1; r < gradient.rows.size(); ++r)
    if (gradient.rows[r] <= gradient.rows[r - 1]) return false;
  return gradient.rows.size() == gradient.values.rows();
}
template <class T>
Table<T> by_rows(Index cols) {
  Table<T> t;
  t.clear_rows(cols);
  return t;
}
template <class T>
Table<T> dense_table(Index rows, Index cols) {
  Table<T> t;
  t.values = Matrix<T>(rows, cols, T(0));
  return t;
}

}  // namespace

TEMPLATE_TEST_CASE("bags are summed or averaged, padding left out", "[nn][embedding_bag]", float, double) {
  using T = TestType;
  Random random = random_stream(61);
  for (const Index cols : {0, 1, 5, 16, 37}) {
    for (const Pooling pooling : {Pooling::sum, Pooling::mean}) {
      for (const Index padding : {-1, 0, 4, 12}) {  // 12 lies behind the table: an id that only ever means nothing
        const Batch batch(23, 12, padding, random);
        Padded<T> table(random_matrix<T>(12, cols, random).view()), out(batch.size(), cols, T(9)),
            out32(batch.size(), cols, T(9));
        const EmbeddingBagOptions options{.pooling = pooling, .padding_index = padding};
        embedding_bag<T>(table, batch.ids, batch.offsets, options, out);
        const std::vector<std::int32_t> ids(batch.ids.begin(), batch.ids.end()),
            offsets(batch.offsets.begin(), batch.offsets.end());
        embedding_bag<T>(table, ids, offsets, options, out32);
        Matrix<double> expected(batch.size(), cols, 0.0);
        batch.for_each(padding, [&](Index b, Index id, Index count) {
          for (Index j = 0; j < cols; ++j)
            expected(b, j) += static_cast<double>(table(id, j)) / (pooling == Pooling::mean ? static_cast<double>(count) : 1.0);
        });
        CAPTURE(cols, padding, static_cast<int>(pooling));
        CHECK(max_difference(out.view(), expected.view()) < 20 * static_cast<double>(std::numeric_limits<T>::epsilon()));
        CHECK(max_difference(out.view(), out32.view()) == 0);
        CHECK((out.intact() && out32.intact()));
      }
    }
  }
}

TEMPLATE_TEST_CASE("without offsets every id is a bag of its own", "[nn][embedding_bag]", float, double) {
  using T = TestType;
  Random random = random_stream(62);
  const Matrix<T> table = random_matrix<T>(6, 7, random);
  const std::vector<std::int32_t> ids{5, 0, 5, 2, 3};
  for (const Pooling pooling : {Pooling::sum, Pooling::mean}) {
    Matrix<T> out(5, 7, T(9));
    embedding_bag<T>(table, ids, {}, {.pooling = pooling, .padding_index = 2}, out);
    for (Index i = 0; i < 5; ++i)
      for (Index j = 0; j < 7; ++j) CHECK(out(i, j) == (i == 3 ? T(0) : table(ids[static_cast<std::size_t>(i)], j)));
  }
  Matrix<T> none(0, 7);
  embedding_bag<T>(table, {}, {}, {}, none);
  const std::vector<std::int64_t> zero{0};
  embedding_bag<T>(table, {}, zero, {}, none);
}

TEMPLATE_TEST_CASE("the gradient by rows is the dense gradient, merged over several calls", "[nn][embedding_bag]", float,
                   double) {
  using T = TestType;
  Random random = random_stream(63);
  Workspace ws;
  for (int round = 0; round < 60; ++round) {
    const Index rows = 1 + random.below(40), cols = random.below(9), padding = random.below(3) - 1;
    const EmbeddingBagOptions options{.pooling = round % 2 == 0 ? Pooling::sum : Pooling::mean, .padding_index = padding};
    Table<T> sparse = by_rows<T>(cols), dense = dense_table<T>(rows, cols);
    Matrix<double> expected(rows, cols, 0.0);
    std::set<Index> touched;
    for (int call = 0; call < 5; ++call) {
      const Batch batch(random.below(8), rows, padding, random);
      Padded<T> dout(random_matrix<T>(batch.size(), cols, random).view());
      embedding_bag_backward<T>(rows, batch.ids, batch.offsets, options, dout, sparse, ws);
      embedding_bag_backward<T>(rows, batch.ids, batch.offsets, options, dout, dense, ws);
      batch.for_each(padding, [&](Index b, Index id, Index count) {
        touched.insert(id);
        for (Index j = 0; j < cols; ++j)
          expected(id, j) +=
              static_cast<double>(dout(b, j)) / (options.pooling == Pooling::mean ? static_cast<double>(count) : 1.0);
      });
      CAPTURE(round, call, rows, cols, padding);
      REQUIRE(sorted_and_distinct(sparse));
      REQUIRE(std::set<Index>(sparse.rows.begin(), sparse.rows.end()) == touched);
      REQUIRE(max_difference(dense_of(sparse, rows).view(), dense.values.view()) <
              200 * static_cast<double>(std::numeric_limits<T>::epsilon()));
      REQUIRE(max_difference(dense.values.view(), expected.view()) <
              200 * static_cast<double>(std::numeric_limits<T>::epsilon()));
    }
  }
}

TEST_CASE("one call: by rows and dense have the same bits, every time", "[nn][embedding_bag]") {
  Random random = random_stream(64);
  Workspace ws;
  const Batch batch(200, 15, 3, random);
  const Matrix<float> dout = random_matrix<float>(200, 11, random);
  const EmbeddingBagOptions options{.pooling = Pooling::mean, .padding_index = 3};
  Table<float> sparse = by_rows<float>(11), again = by_rows<float>(11), dense = dense_table<float>(15, 11);
  embedding_bag_backward<float>(15, batch.ids, batch.offsets, options, dout, sparse, ws);
  embedding_bag_backward<float>(15, batch.ids, batch.offsets, options, dout, again, ws);
  embedding_bag_backward<float>(15, batch.ids, batch.offsets, options, dout, dense, ws);
  CHECK(max_difference(sparse.values.view(), again.values.view()) == 0);
  CHECK(max_difference(dense_of(sparse, 15).view(), dense.values.view()) == 0);
}

TEST_CASE("one long mean bag costs one pass, not one pass per id", "[nn][embedding_bag]") {
  Workspace ws;
  const Index n = 3000000;  // quadratic work would take hours
  const std::vector<std::int32_t> ids(static_cast<std::size_t>(n), 1), offsets{0, static_cast<std::int32_t>(n)};
  const Matrix<double> dout(1, 2, 3.0);
  Table<double> g = by_rows<double>(2);
  embedding_bag_backward<double>(2, ids, offsets, {.pooling = Pooling::mean}, dout, g, ws);
  CHECK((g.rows.size() == 1 && g.rows[0] == 1));
  CHECK(g.values(0, 1) == Approx(3.0).epsilon(1e-9));
}

TEST_CASE("bad ids, offsets and shapes are found before the first write", "[nn][embedding_bag]") {
  Workspace ws;
  const Matrix<float> table(5, 2, 1.0f), dout(2, 2, 1.0f), odd(2, 3, 1.0f);
  Matrix<float> out(2, 2, 7.0f), tall(3, 2, 7.0f);
  const std::vector<std::int32_t> ids{0, 4, 1}, high{0, 1, 5}, low{0, 1, -1}, lower{-7, 0, 0}, offsets{0, 2, 3}, falling{0, 3, 2},
      late{1, 2, 3}, over{0, 2, 4};
  const EmbeddingBagOptions none{}, padded{.padding_index = 1}, negative{.padding_index = -7};
  const auto forward = [&](IndexView i, IndexView o, const EmbeddingBagOptions& options, MatrixView<float> to) {
    return error_of([&] { embedding_bag<float>(table, i, o, options, to); });
  };
  CHECK(forward(high, offsets, none, out) == "embedding_bag: ids: expected ids from 0 to below 5, got 5 at position 2");
  CHECK(forward(low, offsets, none, out) == "embedding_bag: ids: expected ids from 0 to below 5, got -1 at position 2");
  CHECK(forward(low, offsets, padded, out) == "embedding_bag: ids: expected ids from 0 to below 5, got -1 at position 2");
  CHECK(forward(lower, offsets, negative, out) == "embedding_bag: ids: expected ids from 0 to below 5, got -7 at position 0");
  CHECK(forward(high, {}, none, tall) == "embedding_bag: ids: expected ids from 0 to below 5, got 5 at position 2");
  CHECK(forward(ids, falling, none, out) ==
        "embedding_bag: offsets: expected offsets that never fall, at least 3, got 2 at position 2");
  CHECK(forward(ids, late, none, out) == "embedding_bag: offsets: expected offsets that begin with 0, got 1 at position 0");
  CHECK(forward(ids, over, none, out) ==
        "embedding_bag: offsets: expected offsets that end with the number of rows 3, got 4 at position 2");
  CHECK(forward(ids, offsets, none, tall) == "embedding_bag: out: expected shape [2, 2], got [3, 2]");
  CHECK(forward(ids, {}, none, out) == "embedding_bag: out: expected shape [3, 2], got [2, 2]");
  CHECK(forward(IndexView(static_cast<const std::int64_t*>(nullptr), 3), offsets, none, out) ==
        "embedding_bag: ids: expected any size, got 3 at a null pointer");

  Table<float> rows = by_rows<float>(2), dense = dense_table<float>(5, 2), small = dense_table<float>(4, 2);
  const auto backward = [&](IndexView i, IndexView o, MatrixView<const float> d, Table<float>& g) {
    return error_of([&] { embedding_bag_backward<float>(5, i, o, none, d, g, ws); });
  };
  CHECK(backward(high, offsets, dout, rows) ==
        "embedding_bag_backward: ids: expected ids from 0 to below 5, got 5 at position 2");
  CHECK(backward(low, offsets, dout, dense) ==
        "embedding_bag_backward: ids: expected ids from 0 to below 5, got -1 at position 2");
  CHECK(backward(ids, offsets, odd, rows) == "embedding_bag_backward: dout: expected shape [2, 2], got [2, 3]");
  CHECK(backward(ids, falling, dout, rows) ==
        "embedding_bag_backward: offsets: expected offsets that never fall, at least 3, got 2 at position 2");
  CHECK(backward(ids, offsets, dout, small) == "embedding_bag_backward: gradient: expected shape [5, _], got [4, 2]");
  CHECK(rows.rows.empty());
  for (const float v : leaf_values(dense)) CHECK(v == 0);
  for (const float v : leaf_values(out)) CHECK(v == 7);
  for (const float v : leaf_values(tall)) CHECK(v == 7);
}

TEST_CASE("a dense gradient without numbers is not wanted; rows and values must agree", "[nn][embedding_bag]") {
  Workspace ws;
  const std::vector<std::int32_t> ids{0, 4};
  const Matrix<float> dout(2, 3, 1.0f);
  Table<float> none, torn = by_rows<float>(3);
  embedding_bag_backward<float>(5, ids, {}, {}, dout, none, ws);
  CHECK((none.values.empty() && none.rows.empty()));
  torn.rows = {2};
  CHECK(error_of([&] { embedding_bag_backward<float>(5, ids, {}, {}, dout, torn, ws); }) ==
        "embedding_bag_backward: gradient: expected shape [1, _], got [0, 3]");
  CHECK(torn.rows.size() == 1);
}

TEST_CASE("a NaN row of the table reaches only the bags that read it", "[nn][embedding_bag]") {
  Matrix<float> table(4, 3, 1.0f), out(3, 3);
  table(2, 1) = std::numeric_limits<float>::quiet_NaN();
  const std::vector<std::int32_t> ids{0, 1, 2, 3, 1}, offsets{0, 2, 4, 5};
  embedding_bag<float>(table, ids, offsets, {}, out);
  for (Index b = 0; b < 3; ++b)
    for (Index j = 0; j < 3; ++j) CHECK(std::isnan(out(b, j)) == (b == 1 && j == 1));
  // As padding the row is not read at all.
  embedding_bag<float>(table, ids, offsets, {.padding_index = 2}, out);
  CHECK((out(1, 0) == 1 && out(1, 1) == 1));
}

TEST_CASE("EmbeddingBag: initialisation, gradients, copies", "[nn][embedding_bag]") {
  Random random = random_stream(65), same = random_stream(65);
  Workspace ws;
  const EmbeddingBag<double> layer(2000, 8, 0.3, random, {.pooling = Pooling::mean, .padding_index = 5});
  const EmbeddingBag<double> twin(2000, 8, 0.3, same, {.pooling = Pooling::mean, .padding_index = 5});
  CHECK(max_difference(layer.weight.values.view(), twin.weight.values.view()) == 0);
  double square = 0;
  for (const double w : leaf_values(layer.weight)) square += w * w;
  CHECK(std::sqrt(square / 16000) == Approx(0.3).epsilon(0.05));
  for (Index j = 0; j < 8; ++j) CHECK(layer.weight.values(5, j) == 0);
  CHECK(parameter_count(layer) == 16000);

  EmbeddingBag<double> g = make_gradient(layer);
  CHECK((g.weight.by_rows && g.options.padding_index == 5 && g.options.pooling == Pooling::mean));
  const std::vector<std::int32_t> ids{1999, 5, 0, 7, 7}, offsets{0, 3, 5};
  Matrix<double> out(2, 8), dout = random_matrix<double>(2, 8, random);
  layer.forward(ids, offsets, out);
  layer.backward(ids, offsets, dout, g, ws);
  CHECK(out(0, 3) == Approx((layer.weight.values(1999, 3) + layer.weight.values(0, 3)) / 2).epsilon(1e-14));
  CHECK((g.weight.rows.size() == 3 && g.weight.rows[0] == 0 && g.weight.rows[1] == 7 && g.weight.rows[2] == 1999));
  CHECK(g.weight.values(1, 2) == Approx(dout(1, 2)).epsilon(1e-14));
  EmbeddingBag<double> copy = g;
  const EmbeddingBag<double> moved = std::move(copy);
  CHECK((moved.weight.by_rows && moved.weight.rows.size() == 3 && g.weight.rows.size() == 3));
  zero_gradient(g);
  CHECK((g.weight.rows.empty() && g.weight.by_rows && g.weight.values.cols() == 8));
}

TEST_CASE("embedding bags allocate nothing once warm", "[nn][embedding_bag]") {
  Random random = random_stream(66);
  Workspace ws;
  const EmbeddingBag<float> layer(50, 8, 1.0, random);
  EmbeddingBag<float> g = make_gradient(layer);
  const Batch batch(40, 50, -1, random), other(40, 50, -1, random);
  Matrix<float> out(40, 8), dout = random_matrix<float>(40, 8, random);
  const auto step = [&] {
    for (const Batch* b : {&batch, &other, &batch}) {
      layer.forward(b->ids, b->offsets, out);
      layer.backward(b->ids, b->offsets, dout, g, ws);
    }
    zero_gradient(g);
  };
  step();
  const AllocationCounter counter;
  for (int i = 0; i < 3; ++i) step();
  const std::size_t allocations = counter.count();
  CHECK(allocations == 0);
}

TEMPLATE_TEST_CASE("weights multiply rows; their gradient and the table's are those of differences", "[nn][embedding_bag]", float,
                   double) {
  using T = TestType;
  Random random = random_stream(491);
  Workspace ws;
  const Index rows = 9, cols = 5;
  Matrix<T> table = random_matrix<T>(rows, cols, random);
  const std::vector<std::int64_t> ids{3, 3, 0, 8, 2, 3, 1}, offsets{0, 2, 2, 6, 7};
  Vector<T> weights = random_vector<T>(7, random);
  const EmbeddingBagOptions options{.padding_index = 2};
  Padded<T> out(4, cols);
  embedding_bag<T, T>(table, ids, offsets, weights, options, out);
  const Matrix<T> dout = random_matrix<T>(4, cols, random);
  Vector<T> dweights(7, T(1));
  embedding_bag_weights_backward<T>(table, ids, offsets, options, dout, dweights);
  Table<T> sparse, dense;
  sparse.clear_rows(cols);
  dense.values = Matrix<T>(rows, cols, T(0));
  embedding_bag_backward<T>(rows, ids, offsets, weights, options, dout, sparse, ws);
  embedding_bag_backward<T>(rows, ids, offsets, weights, options, dout, dense, ws);
  Matrix<double> expected(4, cols, 0.0), dtable(rows, cols, 0.0);
  for (Index b = 0; b < 4; ++b)
    for (auto i = static_cast<std::size_t>(offsets[static_cast<std::size_t>(b)]);
         i < static_cast<std::size_t>(offsets[static_cast<std::size_t>(b) + 1]); ++i) {
      double dw = 0;
      const auto w = static_cast<double>(weights[static_cast<Index>(i)]);
      for (Index j = 0; j < cols && ids[i] != 2; ++j) {
        expected(b, j) += w * static_cast<double>(table(ids[i], j));
        dtable(ids[i], j) += w * static_cast<double>(dout(b, j));
        dw += static_cast<double>(dout(b, j)) * static_cast<double>(table(ids[i], j));
      }
      CHECK(std::abs(static_cast<double>(dweights[static_cast<Index>(i)]) - 1 - dw) < 1e-5);
    }
  CHECK(max_difference(out.view(), expected.view()) < 1e-5);
  CHECK(max_difference(dense.values.view(), dtable.view()) < 1e-5);
  for (Index r = 0; r < sparse.rows.size(); ++r)
    CHECK(max_difference(sparse.values.view().middle_rows(r, 1), dense.values.view().middle_rows(sparse.rows[r], 1)) == 0);
  CHECK(out.intact());
  CHECK(error_of([&] { embedding_bag<T, T>(table, ids, offsets, weights, {.pooling = Pooling::mean}, out); }) ==
        "embedding_bag: pooling: expected a sum where there are weights, got 1");
}

TEST_CASE("frozen tables of fewer bits are within the stated bound", "[nn][embedding_bag]") {
  Random random = random_stream(492);
  EmbeddingBag<float> layer(50, 33, 0.5, random, {.pooling = Pooling::mean, .padding_index = 4});
  std::vector<std::int32_t> ids, offsets{0};
  for (Index b = 0; b < 20; ++b) {
    for (Index i = random.below(9); i > 0; --i) ids.push_back(static_cast<std::int32_t>(random.below(50)));
    offsets.push_back(static_cast<std::int32_t>(ids.size()));
  }
  Matrix<float> y(20, 33), same(20, 33), half(20, 33), eighth(20, 33);
  layer.forward(ids, offsets, y);
  freeze(layer).forward(ids, offsets, same);
  const auto bf16 = freeze(layer, Weights<BFloat16>());
  const auto int8 = freeze(layer, Weights<std::int8_t>());
  bf16.forward(ids, offsets, half);
  int8.forward(ids, offsets, eighth);
  CHECK(max_difference(y.view(), same.view()) == 0);
  double most = 0;
  for (const float w : leaf_values(layer.weight)) most = std::max(most, static_cast<double>(std::abs(w)));
  CHECK(max_difference(y.view(), half.view()) < most / 256 * 1.01);
  CHECK(max_difference(y.view(), eighth.view()) < most / 254 * 1.01);
  CHECK(max_difference(y.view(), half.view()) > 0);
  CHECK(max_difference(y.view(), eighth.view()) > 0);
  CHECK(count_allocations([&] { int8.forward(ids, offsets, eighth); }) == 0);
  const std::vector<std::int32_t> beyond{50};
  CHECK(error_of([&] { int8.forward(beyond, {}, eighth); }) ==
        "embedding_bag: ids: expected ids from 0 to below 50, got 50 at position 0");
}
