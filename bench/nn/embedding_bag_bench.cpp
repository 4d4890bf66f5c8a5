/// Sums of the rows of a table of 10^6 x 64 per bag: 64 requests with 26 features each, 1 to 39 ids a bag, drawn uniformly; and the
/// gradient by rows with one lazy step of Adam.
///
///     taskset -c 1 build/bench/bench/recops_bench_nn_embedding_bag
///
///   nn/embedding_bag/TYPE/V:rows/D:cols/bags:b/mean:m    TYPE of the table: f32, bf16, int8
///   nn/embedding_bag_train/f32/...                       backward and Adam; every row that was read gets its step
///
/// `of_row_reads` compares with a plain loop that reads the same rows in the same order into one sum, fetched ahead by whichever
/// distance and hint are fastest here. For the training step it reads and writes the rows of weights and both moments.
/// Peers: `f32` (ours), `torch` (its EmbeddingBag; SparseAdam).
#include <array>
#include <memory>
#include <recops/nn/embedding_bag.hpp>
#include <recops/train/adam.hpp>

#include "support/paired.hpp"

using namespace recops;
using namespace recops_bench;

namespace {

constexpr Index rows = 1000000, cols = 64, requests = 64, features = 26, longest = 39, bags = requests * features;

/// What each copy of a call reads: ids, and the bags that they make.
struct Reads {
  std::vector<Vector<std::int64_t>> ids, offsets;
  explicit Reads(Index copies) {
    for (Index c = 0; c < copies; ++c) {
      Random random(1, static_cast<std::uint64_t>(c));
      Vector<std::int64_t> all, ends{0};
      for (Index b = 0; b < bags; ++b) {
        const Index count = 1 + static_cast<Index>(random.uniform() * longest);
        for (Index i = 0; i < count; ++i) all.push_back(static_cast<std::int64_t>(random.uniform() * rows));
        ends.push_back(all.size());
      }
      ids.push_back(std::move(all));
      offsets.push_back(std::move(ends));
    }
  }
  IndexView ids_of(Index copy) const { return ids[static_cast<std::size_t>(copy)]; }
  IndexView offsets_of(Index copy) const { return offsets[static_cast<std::size_t>(copy)]; }
};

/// Reads the rows `ids`, of whole cache lines, into a sum; `Hint` is the locality of the fetches.
template <int Hint>
void read_rows(const char* table, Index row_bytes, IndexView ids, Index ahead) {
  using B = simd::Batch<float>;
  constexpr Index vector = 4 * simd::lanes<float>;
  B sum[4] = {B(0.0f), B(0.0f), B(0.0f), B(0.0f)};
  for (Index i = 0; i < ids.size(); ++i) {
    if (i + ahead < ids.size()) {
      const char* const next = table + ids[i + ahead] * row_bytes;
      for (Index at = 0; at < row_bytes; at += 64) __builtin_prefetch(next + at, 0, Hint);
    }
    const float* const row = reinterpret_cast<const float*>(table + ids[i] * row_bytes);
    for (Index at = 0; at < row_bytes; at += vector)
      sum[at / vector % 4] = sum[at / vector % 4] + B::load_unaligned(row + at / static_cast<Index>(sizeof(float)));
  }
  float result = simd::sum_lanes(sum[0] + sum[1] + sum[2] + sum[3]);
  benchmark::DoNotOptimize(result);
}

/// Reads and writes rows of three tables.
template <int Hint>
void update_rows(const std::array<float*, 3>& tables, IndexView ids, Index ahead) {
  for (Index i = 0; i < ids.size(); ++i) {
    for (float* const table : tables) {
      if (i + ahead < ids.size())
        for (Index at = 0; at < cols; at += 16) __builtin_prefetch(table + ids[i + ahead] * cols + at, 1, Hint);
      float* const row = table + ids[i] * cols;
      for (Index j = 0; j < cols; ++j) row[j] *= 0.999f;
    }
    benchmark::ClobberMemory();
  }
}

/// The fastest of the loops that `f.operator()<Hint>(ahead, copy)` runs, over all distances and hints.
template <class F>
Work fastest_loop(F f, Index copies) {
  double best = 1e9;
  Work chosen;
  Index copy = 0;
  const auto try_it = [&](auto hint) {
    for (const Index ahead : {4, 6, 8, 12, 16, 24, 32, 48, 64, 96}) {
      const Work loop = [f, ahead](Index i) { f.template operator()<decltype(hint)::value>(ahead, i); };
      double once = 1e9;
      for (int i = 0; i < 10; ++i) {
        copy = copy + 1 < copies ? copy + 1 : 0;
        once = std::min(once, recops_bench::detail::seconds([&] { loop(copy); }));
      }
      if (once < best) best = once, chosen = loop;
    }
  };
  try_it(std::integral_constant<int, 0>());
  try_it(std::integral_constant<int, 3>());
  return chosen;
}

std::string arguments(Index copies) {
  return R"({"rows": )" + std::to_string(rows) + R"(, "cols": )" + std::to_string(cols) + R"(, "bags_": )" +
         std::to_string(bags) + R"(, "longest": )" + std::to_string(longest) + R"(, "copies": )" + std::to_string(copies) + "}";
}

const EmbeddingBag<float>& layer() {
  static const EmbeddingBag<float> only = [] {
    Random random(1);
    return EmbeddingBag<float>(rows, cols, 0.1, random);
  }();
  return only;
}

template <class S>
void add(const char* type, const std::string& tail) {
  register_case<float>("nn/embedding_bag/" + std::string(type) + tail, [] {
    const Index row_bytes = cols * static_cast<Index>(sizeof(S)),
                copies = copies_over(bags * 20.0 * static_cast<double>(row_bytes), dram_rotation_bytes);
    struct Data {
      FrozenEmbeddingBag<float, S> frozen = freeze(layer(), Weights<S>());
      Reads reads;
      Matrix<float> out{bags, cols};
      explicit Data(Index n) : reads(n) {}
      void run(Index copy) { frozen.forward(reads.ids_of(copy), reads.offsets_of(copy), out); }
    };
    const auto d = std::make_shared<Data>(copies);
    Case<float> c;
    c.copies = copies;
    c.bytes = bags * 20.0 * static_cast<double>(row_bytes);
    c.elements = bags * 20.0;
    c.kernel = [=](Index copy) { d->run(copy); };
    // The loop reads a table of its own kind and size.
    const auto table = std::make_shared<Rotation<char>>(rows * row_bytes);
    c.floors.push_back({"row_reads", fastest_loop(
                                         [=]<int Hint>(Index ahead, Index copy) {
                                           read_rows<Hint>((*table)[0], row_bytes, d->reads.ids_of(copy), ahead);
                                         },
                                         copies)});
    if (std::is_same_v<S, float>) {
      for (const char* torch : {"torch", "torch_new"}) c.peers.push_back(python_peer(torch, "embedding_bag", arguments(copies)));
    } else {
      c.peers.push_back({"f32", [=](Index copy) { layer().forward(d->reads.ids_of(copy), d->reads.offsets_of(copy), d->out); }});
    }
    return c;
  });
}

void add_training(const std::string& tail) {
  register_case<float>("nn/embedding_bag_train/f32" + tail, [] {
    const Index copies = copies_over(bags * 20.0 * cols * sizeof(float), dram_rotation_bytes);
    struct Data {
      EmbeddingBag<float> bag = layer();
      EmbeddingBag<float> gradient = make_gradient(bag);
      Adam<EmbeddingBag<float>> adam{bag};
      Reads reads;
      Matrix<float> dout{bags, cols, 0.01f};
      Workspace ws;
      explicit Data(Index n) : reads(n) {}
      void run(Index copy) {
        zero_gradient(gradient);
        bag.backward(reads.ids_of(copy), reads.offsets_of(copy), dout, gradient, ws);
        adam.step(bag, gradient);
      }
    };
    const auto d = std::make_shared<Data>(copies);
    Case<float> c;
    c.copies = copies;
    c.bytes = bags * 20.0 * cols * sizeof(float) * 3;
    c.elements = bags * 20.0;
    c.kernel = [=](Index copy) { d->run(copy); };
    const auto tables = std::make_shared<Rotation<float>>(rows * cols, 3);
    c.floors.push_back(
        {"row_updates", fastest_loop(
                            [=]<int Hint>(Index ahead, Index copy) {
                              update_rows<Hint>({(*tables)[0], (*tables)[1], (*tables)[2]}, d->reads.ids_of(copy), ahead);
                            },
                            copies)});
    for (const char* torch : {"torch", "torch_new"}) c.peers.push_back(python_peer(torch, "embedding_train", arguments(copies)));
    return c;
  });
}

}  // namespace

int main(int argc, char** argv) {
  const std::string tail =
      "/V:" + std::to_string(rows) + "/D:" + std::to_string(cols) + "/bags:" + std::to_string(bags) + "/mean:20";
  add<float>("f32", tail);
  add<BFloat16>("bf16", tail);
  add<std::int8_t>("int8", tail);
  add_training(tail);
  return run_registered(argc, argv);
}
