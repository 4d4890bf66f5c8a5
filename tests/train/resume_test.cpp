// Oracle: the same training without a stop, and the same training on one thread, bit for bit.
#include <cstring>
#include <filesystem>
#include <optional>
#include <recops/gating/mmoe.hpp>
#include <recops/io/safetensors.hpp>
#include <recops/nn/dropout.hpp>
#include <recops/nn/embedding_bag.hpp>
#include <recops/nn/loss.hpp>
#include <recops/nn/mlp.hpp>
#include <recops/nn/transformer_block.hpp>
#include <recops/train/adagrad.hpp>
#include <recops/train/adam.hpp>
#include <recops/train/clip.hpp>
#include <recops/train/early_stopping.hpp>
#include <recops/train/grad_norm.hpp>
#include <recops/train/schedule.hpp>
#include <recops/train/sequence_batches.hpp>
#include <recops/train/sgd.hpp>
#include <recops/train/uncertainty_weighting.hpp>

#include "support/numbers.hpp"
#include "support/threads.hpp"

using namespace recops;
using namespace recops_test;

namespace {

/// Names of the leaves of `a` whose bytes differ from those of `b`; a table by rows counts with its rows.
template <class L>
std::string different_bits(const L& a, const L& b) {
  std::string names;
  visit(
      [&](const FieldPath& path, const auto& x, const auto& y) {
        const auto u = leaf_values(x), v = leaf_values(y);
        bool same = u.size() == v.size() &&
                    (u.empty() || std::memcmp(u.data(), v.data(), static_cast<std::size_t>(u.size()) * sizeof *u.data()) == 0);
        if constexpr (requires { x.by_rows; })
          same = same && x.by_rows == y.by_rows && std::equal(x.rows.begin(), x.rows.end(), y.rows.begin(), y.rows.end());
        if (!same) names += path.str() + ' ';
      },
      a, b);
  return names;
}

/// A bit of everything that keeps state or draws random numbers: a table updated by rows, attention with dropout, batch norm.
template <class T>
struct Net {
  static constexpr Index width = 8;
  EmbeddingBag<T> items;
  TransformerBlock<T> block;
  Dense<T, BatchNorm<T>> hidden;
  Dropout<T> dropout;
  Linear<T> out;
  UncertaintyWeighting<T> weighting;

  explicit Net(Random random)
      : items(40, width, 0.5, random, {.padding_index = 0}),
        block(width, {.heads = 2, .hidden = 16, .causal = true, .dropout = 0.2}, random),
        hidden(width, 16, Activation::silu, random),
        dropout(0.3),
        out(16, 2, random),
        weighting(2) {}
  static constexpr auto fields() {
    return std::tuple{layer("items", &Net::items),     layer("block", &Net::block), layer("hidden", &Net::hidden),
                      layer("dropout", &Net::dropout), layer("out", &Net::out),     layer("weighting", &Net::weighting)};
  }

  struct Saved {
    Matrix<T> embedded, attended, pooled, activated, dropped;
    typename TransformerBlock<T>::Saved block;
    typename Dense<T, BatchNorm<T>>::Saved hidden;
    typename Dropout<T>::Saved dropout;
  };
  /// Sequences, and the mean over each after attention.
  void forward(IndexView ids, IndexView offsets, MatrixView<T> logits, Saved& s, const Step* step, Workspace& ws) const {
    const Index rows = offsets.size() - 1;
    s.embedded.resize(ids.size(), width);
    s.attended.resize(ids.size(), width);
    s.pooled.resize(rows, width);
    s.activated.resize(rows, 16);
    s.dropped.resize(rows, 16);
    items.forward(ids, {}, s.embedded);
    const JaggedView<const T> sequences(std::as_const(s.embedded).view(), offsets);
    if (step) {
      block.forward(sequences, s.attended, s.block, step->child(0), ws);
      pool(offsets, s);
      hidden.forward(s.pooled, s.activated, s.hidden, step->child(1), ws);
      dropout.forward(s.activated, s.dropped, s.dropout, step->child(2), ws);
    } else {
      block.forward(sequences, s.attended, ws);
      pool(offsets, s);
      hidden.forward(s.pooled, s.activated, ws);
      dropout.forward(s.activated, s.dropped, ws);
    }
    out.forward(s.dropped, logits, ws);
  }
  void backward(IndexView ids, IndexView offsets, MatrixView<const T> dlogits, const Saved& s, Net& gradient,
                Workspace& ws) const {
    const Index rows = offsets.size() - 1;
    Matrix<T> ddropped(rows, 16, T(0)), dactivated(rows, 16, T(0)), dpooled(rows, width, T(0)),
        dattended(ids.size(), width, T(0)), dembedded(ids.size(), width, T(0));
    out.backward(s.dropped, dlogits, {}, ddropped, gradient.out, ws);
    dropout.backward(s.activated, ddropped, s.dropout, dactivated, gradient.dropout, ws);
    hidden.backward(s.pooled, dactivated, s.hidden, dpooled, gradient.hidden, ws);
    for (Index b = 0; b < rows; ++b) {
      const Index length = offsets[b + 1] - offsets[b];
      for (Index i = offsets[b]; i < offsets[b + 1]; ++i)
        for (Index j = 0; j < width; ++j) dattended(i, j) = dpooled(b, j) / static_cast<T>(length);
    }
    block.backward(JaggedView<const T>(s.embedded.view(), offsets), dattended, s.block, dembedded, gradient.block, ws);
    items.backward(ids, {}, dembedded, gradient.items, ws);
  }

 private:
  static void pool(IndexView offsets, Saved& s) {
    s.pooled.fill(T(0));
    for (Index b = 0; b + 1 < offsets.size(); ++b) {
      const Index length = offsets[b + 1] - offsets[b];
      for (Index i = offsets[b]; i < offsets[b + 1]; ++i)
        for (Index j = 0; j < width; ++j) s.pooled(b, j) += s.attended(i, j) / static_cast<T>(length);
    }
  }
};

template <class T>
struct Data {
  Vector<std::int64_t> lengths, ids, offsets{0};
  Matrix<T> labels;

  explicit Data(Index sequences, Random random) : labels(sequences, 2) {
    for (Index i = 0; i < sequences; ++i) {
      lengths.push_back(random.below(10));  // some are empty
      for (Index k = 0; k < lengths[i]; ++k) ids.push_back(random.below(40));
      offsets.push_back(ids.size());
      for (Index t = 0; t < 2; ++t) labels(i, t) = random.chance(0.3) ? T(1) : T(0);
    }
  }
};

/// Everything that a training run is: what is saved, and what a new process makes from its own constants.
template <class T, class Optimizer>
struct Run {
  Net<T> model;
  Optimizer optimizer;
  EarlyStopping stopping{{.patience = 2}};
  GradNorm balance{2};
  Vector<std::int64_t> at{0, 0, 0};  // steps done, epoch, next batch of it

  explicit Run(Random random) : model(random), optimizer(model) { optimizer.options.learning_rate = 0.05; }
  static constexpr auto fields() {
    return std::tuple{layer("model", &Run::model), layer("optimizer", &Run::optimizer), layer("stopping", &Run::stopping),
                      layer("balance", &Run::balance), buffer("at", &Run::at)};
  }

  /// Trains until `end` steps are done; the batches, masks and rates of a step depend on its number alone.
  void train(std::int64_t end, const Data<T>& data, Workspace& ws) {
    SequenceBatches batches(data.lengths, {.batch_size = 8, .bucket = 2, .seed = 5});
    batches.begin_epoch(static_cast<std::uint64_t>(at[1]));
    Net<T> gradient = make_gradient(model);
    typename Net<T>::Saved saved;
    Vector<std::int64_t> ids, offsets;
    Matrix<T> logits, dlogits, labels;
    const double base = optimizer.options.learning_rate;
    while (at[0] < end) {
      if (at[2] == batches.size()) {
        evaluate(data, ws);
        at[2] = 0;
        batches.begin_epoch(static_cast<std::uint64_t>(++at[1]));
      }
      const IndexView picks = batches[at[2]++];
      gather_sequences(data.ids, data.offsets, picks, 6, ids, offsets);
      for (Matrix<T>* m : {&logits, &dlogits, &labels}) m->resize(picks.size(), 2);
      for (Index b = 0; b < picks.size(); ++b) std::copy_n(data.labels.row(picks[b]), 2, labels.row(b));
      dlogits.fill(T(0));
      zero_gradient(gradient);
      const auto number = static_cast<std::uint64_t>(at[0]++);
      const Step step{.seed = 3, .number = number};
      Vector<T> weights(2), losses(2);
      model.weighting.weights(weights);
      for (Index t = 0; t < 2; ++t) weights[t] *= static_cast<T>(balance.weights()[t]);
      model.forward(ids, offsets, logits, saved, &step, ws);
      bce_with_logits_value_and_grad<T>(logits, labels, {.task_weights = weights}, losses, dlogits);
      model.weighting.value_and_grad(losses, gradient.weighting);
      model.backward(ids, offsets, dlogits, saved, gradient, ws);
      model.hidden.update(saved.hidden);
      const double norm = clip_gradient_norm(gradient, 1.0);
      const Vector<double> both{static_cast<double>(losses[0]), static_cast<double>(losses[1])}, norms{norm, norm / 2};
      balance.update(both, norms);
      optimizer.options.learning_rate = base * linear_warmup(number, 5, 0.1) * cosine_decay(number, 60);
      optimizer.step(model, gradient);
    }
    optimizer.options.learning_rate = base;
  }

 private:
  void evaluate(const Data<T>& data, Workspace& ws) {
    typename Net<T>::Saved saved;
    Matrix<T> logits(data.labels.rows(), 2);
    model.forward(data.ids, data.offsets, logits, saved, nullptr, ws);
    stopping.update(bce_with_logits<T>(logits, data.labels));
  }
};

template <class T, class Optimizer>
void check_resume() {
  const Data<T> data(30, random_stream(71));
  const std::string path =
      (std::filesystem::temp_directory_path() / ("recops_resume_" + std::to_string(seed()) + "_" + std::to_string(sizeof(T)) +
                                                 std::to_string(sizeof(Optimizer)) + ".safetensors"))
          .string();
  Run<T, Optimizer> straight(random_stream(72)), first(random_stream(72));
  REQUIRE(different_bits(straight, first).empty());
  {
    Workspace ws;
    straight.train(20, data, ws);
  }
  for (const std::int64_t stop :
       {std::int64_t{0}, std::int64_t{4}, std::int64_t{10}}) {  // at the start, between epochs, inside one
    CAPTURE(stop);
    {
      Workspace ws;
      first.train(stop, data, ws);
      save(first, path);
    }
    const Threads threads{3};
    Run<T, Optimizer> second(random_stream(73));  // other numbers everywhere: what is not in the file shows
    CHECK(!different_bits(first.model, second.model).empty());
    load(second, path);
    CHECK(different_bits(first, second).empty());
    Workspace ws(make_executor(threads, 3));
    second.train(20, data, ws);
    CHECK(different_bits(straight, second).empty());
    CHECK(second.at[0] == 20);
    CHECK(second.at[1] > 0);
    CHECK(second.stopping.best() == straight.stopping.best());
  }
  CHECK(!different_bits(straight.model, first.model).empty());  // ten steps are not twenty
  std::filesystem::remove(path);
}

/// Three training steps of a layer on each number of threads: outputs, gradients of inputs, parameters and buffers. `spreads`: it
/// gives the threads something to do.
template <class T, class L, class Forward, class Backward>
void check_threads(const L& start, bool spreads, Index rows, Index in, Index out, Forward&& forward, Backward&& backward) {
  struct Result {
    Matrix<T> y, dx;
    L layer;
    static constexpr auto fields() {
      return std::tuple{parameter("y", &Result::y), parameter("dx", &Result::dx), recops::layer("layer", &Result::layer)};
    }
  };
  std::optional<Result> one;
  for (const int workers : {1, 2, 5}) {
    CAPTURE(workers);
    const Threads threads{workers};
    Index shared = 0;  // loops that were spread over the threads
    const auto run = [&](Index tasks, auto&& task) {
      ++shared;
      threads(tasks, task);
    };
    Workspace ws(make_executor(run, workers));
    Random random = random_stream(74);
    const Matrix<T> x = random_matrix<T>(rows, in, random), dy = random_matrix<T>(rows, out, random);
    Result r{Matrix<T>(rows, out), Matrix<T>(rows, in), start};
    L gradient = make_gradient(r.layer);
    Adam<L> adam(r.layer, {.learning_rate = 0.01});
    for (std::uint64_t n = 0; n < 3; ++n) {
      zero_gradient(gradient);
      r.dx.fill(T(0));
      forward(r.layer, x.view(), r.y.view(), Step{.seed = 9, .number = n}, ws);
      backward(r.layer, x.view(), dy.view(), r.dx.view(), gradient, ws);
      adam.step(r.layer, gradient);
    }
    CHECK((shared > 0) == (workers > 1 && spreads));
    if (!one) {
      CHECK(!different_bits(r.layer, start).empty());
      one.emplace(std::move(r));
    } else {
      CHECK(different_bits(*one, r) == "");
    }
  }
}

}  // namespace

TEST_CASE("Training resumed from a file equals training that never stopped, with Adam", "[train][resume]") {
  check_resume<float, Adam<Net<float>>>();
}
TEST_CASE("The same with SGD and momentum", "[train][resume]") {
  struct Momentum : Sgd<Net<float>> {
    explicit Momentum(const Net<float>& net) : Sgd(net, {.momentum = 0.9, .nesterov = true}) {}
  };
  check_resume<float, Momentum>();
}
TEST_CASE("The same with row-wise Adagrad", "[train][resume]") {
  struct RowWise : Adagrad<Net<float>> {
    explicit RowWise(const Net<float>& net) : Adagrad(net, {.rate_decay = 0.01, .row_wise = true}) {}
  };
  check_resume<float, RowWise>();
}

TEST_CASE("An optimiser's state left out of a checkpoint shows in the bits", "[train][resume]") {
  const Data<float> data(30, random_stream(71));
  using Trained = Run<float, Adam<Net<float>>>;
  Trained straight(random_stream(72)), half(random_stream(72)), forgetful(random_stream(72));
  Workspace ws;
  straight.train(20, data, ws);
  half.train(10, data, ws);
  forgetful.model = half.model;
  forgetful.at = half.at;
  forgetful.train(20, data, ws);
  CHECK_THAT(different_bits(straight, forgetful), contains("model.out.weight"));
}

TEST_CASE("A training step has the same bits on any number of threads", "[train][threads]") {
  Random random = random_stream(75);
  SECTION("Mlp") {
    using T = double;
    const Mlp<T, BatchNorm<T>> mlp({96, 160, 64, 3}, {}, random);
    typename Mlp<T, BatchNorm<T>>::Saved saved;
    check_threads<T>(
        mlp, true, 301, 96, 3,
        [&](auto& l, auto x, auto y, const Step& step, Workspace& ws) {
          l.forward(x, y, saved, step, ws);
          l.update(saved);
        },
        [&](auto& l, auto x, auto dy, auto dx, auto& g, Workspace& ws) { l.backward(x, dy, saved, dx, g, ws); });
  }
  SECTION("TransformerBlock") {
    using T = float;
    const TransformerBlock<T> block(32, {.heads = 4, .hidden = 64, .causal = true, .dropout = 0.1}, random);
    const Vector<std::int64_t> offsets{0, 50, 50, 117, 160, 161, 230};
    typename TransformerBlock<T>::Saved saved;
    check_threads<T>(
        block, true, 230, 32, 32,
        [&](auto& l, auto x, auto y, const Step& step, Workspace& ws) {
          l.forward(JaggedView<const T>(x, offsets), y, saved, step, ws);
        },
        [&](auto& l, auto x, auto dy, auto dx, auto& g, Workspace& ws) {
          l.backward(JaggedView<const T>(x, offsets), dy, saved, dx, g, ws);
        });
  }
  SECTION("EmbeddingBag") {
    using T = float;
    const EmbeddingBag<T> bag(500, 24, 0.1, random);
    Vector<std::int64_t> ids, offsets{0};
    for (Index b = 0; b < 200; ++b) {
      for (Index k = random.below(12); k > 0; --k) ids.push_back(random.below(500));
      offsets.push_back(ids.size());
    }
    check_threads<T>(
        bag, false, 200, 24, 24, [&](auto& l, auto, auto y, const Step&, Workspace&) { l.forward(ids, offsets, y); },
        [&](auto& l, auto, auto dy, auto, auto& g, Workspace& ws) { l.backward(ids, offsets, dy, g, ws); });
  }
  SECTION("Mmoe") {
    using T = double;
    MmoeSpec spec{.inputs = 48, .experts = 5, .outputs = 32, .tasks = 3, .gates = {.dropout = 0.1}};
    const Mmoe<T> mmoe(spec.home(), random);
    typename Mmoe<T>::Saved saved;
    check_threads<T>(
        mmoe, true, 333, 48, 96,
        [&](auto& l, auto x, auto y, const Step& step, Workspace& ws) {
          l.forward(x, y, saved, step, ws);
          l.update(saved);
        },
        [&](auto& l, auto x, auto dy, auto dx, auto& g, Workspace& ws) { l.backward(x, dy, saved, dx, g, ws); });
  }
}
