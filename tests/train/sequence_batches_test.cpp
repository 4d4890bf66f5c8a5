// Oracles: every sequence exactly once; plain loops over the picked sequences.
#include <recops/train/sequence_batches.hpp>

#include <vector>

#include "support/allocations.hpp"
#include "support/numbers.hpp"

using namespace recops;
using namespace recops_test;

namespace {
std::vector<std::int64_t> lengths_of(Index n, Random& random) {
  std::vector<std::int64_t> lengths;
  for (Index i = 0; i < n; ++i) lengths.push_back(random.below(7) == 0 ? 0 : random.below(60));
  return lengths;
}
std::vector<std::vector<Index>> all(const SequenceBatches& batches) {
  std::vector<std::vector<Index>> out;
  for (Index b = 0; b < batches.size(); ++b) {
    out.emplace_back();
    for (Index i = 0; i < batches[b].size(); ++i) out.back().push_back(batches[b][i]);
  }
  return out;
}
}  // namespace

TEST_CASE("an epoch holds every sequence once, within the limits", "[train][sequence_batches]") {
  Random random = random_stream(321);
  for (const Index n : {0, 1, 2, 31, 32, 33, 500})
    for (const Index size : {1, 8, 32, 1000})
      for (const Index rows : {0, 1, 100})
        for (const Index bucket : {0, 1, 3, 1000})
          for (const bool shuffle : {false, true}) {
            const auto lengths = lengths_of(n, random);
            SequenceBatches batches(lengths, {.batch_size = size, .max_rows = rows, .bucket = bucket, .shuffle = shuffle});
            for (const std::uint64_t epoch : {0u, 1u}) {
              batches.begin_epoch(epoch);
              std::vector<int> seen(static_cast<std::size_t>(n));
              bool sound = true;
              for (const auto& batch : all(batches)) {
                Index total = 0;
                for (const Index i : batch) {
                  ++seen[static_cast<std::size_t>(i)];
                  total += lengths[static_cast<std::size_t>(i)];
                }
                sound = sound && !batch.empty() && static_cast<Index>(batch.size()) <= size;
                sound = sound && (rows == 0 || total <= rows || batch.size() == 1);
              }
              CAPTURE(n, size, rows, bucket, shuffle, epoch);
              CHECK(sound);
              CHECK(std::all_of(seen.begin(), seen.end(), [](int s) { return s == 1; }));
            }
          }
}

TEST_CASE("batches are a function of seed and epoch", "[train][sequence_batches]") {
  Random random = random_stream(322);
  const auto lengths = lengths_of(300, random);
  SequenceBatches a(lengths, {.batch_size = 16, .seed = 5}), b(lengths, {.batch_size = 16, .seed = 5}),
      other(lengths, {.batch_size = 16, .seed = 6});
  CHECK(all(a) == all(b));
  CHECK(all(a) != all(other));
  const auto first = all(a);
  a.begin_epoch(3);
  CHECK(all(a) != first);
  b.begin_epoch(1);
  b.begin_epoch(3);  // whatever came before
  CHECK(all(a) == all(b));
  CHECK(count_allocations([&] { a.begin_epoch(4); }) == 0);
  std::vector<std::int64_t> mixed(20, 1);  // long ones are alone, short ones between them together: some 25 to 36 batches
  mixed.resize(40, 50);
  SequenceBatches uneven(mixed, {.batch_size = 100, .max_rows = 50, .bucket = 0});
  CHECK(count_allocations([&] {
          for (std::uint64_t epoch = 1; epoch < 100; ++epoch) uneven.begin_epoch(epoch);
        }) == 0);
  SequenceBatches plain(lengths, {.batch_size = 16, .bucket = 0, .shuffle = false});
  CHECK(all(plain)[2][5] == 2 * 16 + 5);
}

TEST_CASE("buckets put sequences of like length together", "[train][sequence_batches]") {
  Random random = random_stream(323);
  const auto lengths = lengths_of(2000, random);
  const auto padding = [&](Index bucket) {
    const SequenceBatches batches(lengths, {.batch_size = 32, .bucket = bucket});
    Index padded = 0, rows = 0;
    for (const auto& batch : all(batches)) {
      std::int64_t longest = 0;
      for (const Index i : batch) {
        longest = std::max(longest, lengths[static_cast<std::size_t>(i)]);
        rows += lengths[static_cast<std::size_t>(i)];
      }
      padded += longest * static_cast<Index>(batch.size());
    }
    return static_cast<double>(padded) / static_cast<double>(rows);
  };
  CHECK(padding(0) > 1.7);
  CHECK(padding(20) < 1.15);
}

TEST_CASE("gathered sequences are the picked ones, the last of each", "[train][sequence_batches]") {
  Random random = random_stream(324);
  const Vector<std::int64_t> offsets{0, 3, 3, 8, 9};
  const Matrix<float> values = random_matrix<float>(9, 5, random);
  const std::vector<std::int32_t> ids{10, 11, 12, 20, 21, 22, 23, 24, 30}, picks{2, 1, 0, 2}, wrong{4};
  Matrix<float> rows;
  Vector<std::int64_t> out, bounds;
  for (int repeat = 0; repeat < 2; ++repeat) {
    gather_sequences(IndexView(ids), offsets, IndexView(picks), 2, out, bounds);
    CHECK(std::vector<std::int64_t>(out.begin(), out.end()) == std::vector<std::int64_t>{23, 24, 11, 12, 23, 24});
    CHECK(std::vector<std::int64_t>(bounds.begin(), bounds.end()) == std::vector<std::int64_t>{0, 2, 2, 4, 6});
    gather_sequences<float>(values, offsets, IndexView(picks), 0, rows, bounds);
    CHECK(std::vector<std::int64_t>(bounds.begin(), bounds.end()) == std::vector<std::int64_t>{0, 5, 5, 8, 13});
    CHECK(max_difference(rows.view().middle_rows(5, 3), values.view().middle_rows(0, 3)) == 0);
    CHECK(max_difference(rows.view().middle_rows(8, 5), values.view().middle_rows(3, 5)) == 0);
  }
  CHECK(count_allocations([&] { gather_sequences<float>(values, offsets, IndexView(picks), 0, rows, bounds); }) == 0);
  CHECK(error_of([&] { gather_sequences(IndexView(ids), offsets, IndexView(wrong), 0, out, bounds); }) ==
        "gather_sequences: picks: expected indices from 0 to below 4, got 4 at position 0");
  const Vector<std::int64_t> negative{1, -1}, one{1};
  CHECK(error_of([&] { SequenceBatches b(negative); }) ==
        "SequenceBatches: lengths: expected lengths >= 0, got -1 at position 1");
  CHECK(error_of([&] { SequenceBatches b(one, {.batch_size = 0}); }) ==
        "SequenceBatches: batch_size: expected batch_size >= 1, got 0");
}
