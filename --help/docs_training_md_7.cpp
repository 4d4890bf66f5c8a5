#include <cmath>
#include <cstdio>
#include <recops/io/safetensors.hpp>
#include <recops/nn/dense.hpp>
#include <recops/nn/dropout.hpp>
#include <recops/nn/embedding_bag.hpp>
#include <recops/nn/loss.hpp>
#include <recops/nn/sequential.hpp>
#include <recops/train/adam.hpp>
#include <recops/train/clip.hpp>
#include <recops/train/early_stopping.hpp>
#include <recops/train/schedule.hpp>
#include <recops/train/sequence_batches.hpp>
#include <recops/train/uncertainty_weighting.hpp>

using namespace recops;

// Two labels of a sequence of ids: is its mean score above 0, and does it have an id below 5?
struct Data {
  Vector<std::int64_t> lengths, ids, offsets{0};
  Matrix<float> labels;
  Data(Index sequences, Random random) : labels(sequences, 2) {
    for (Index i = 0; i < sequences; ++i) {
      double score = 0;
      bool low = false;
      lengths.push_back(1 + random.below(20));
      for (Index k = 0; k < lengths[i]; ++k) {
        ids.push_back(random.below(60));
        score += std::sin(static_cast<double>(ids[ids.size() - 1]));
        low = low || ids[ids.size() - 1] < 5;
      }
      offsets.push_back(ids.size());
      labels(i, 0) = score > 0 ? 1.0f : 0.0f;
      labels(i, 1) = low ? 1.0f : 0.0f;
    }
  }
};

struct Model {
  EmbeddingBag<float> items;
  Sequential<float, Dense<float, BatchNorm<float>>, Dropout<float>, Linear<float>> net;
  UncertaintyWeighting<float> weighting{2};  // learns how much each task's loss counts

  explicit Model(Random random)
      : items(60, 16, 0.3, random),
        net(sequential<float>(Dense<float, BatchNorm<float>>(16, 32, Activation::relu, random), Dropout<float>(0.1), Linear<float>(32, 2, random))) {}
  static constexpr auto fields() {
    return std::tuple{layer("items", &Model::items), layer("net", &Model::net), layer("weighting", &Model::weighting)};
  }
};

// All that a run is. Saved and loaded like a layer.
struct Run {
  Model model{Random(1)};
  Adam<Model> adam{model, {.learning_rate = 0.01, .weight_decay = 0.01}};
  EarlyStopping stopping{{.patience = 3}};
  Vector<std::int64_t> progress{0, 0, 0};  // steps, epoch, batch in the epoch
  static constexpr auto fields() {
    return std::tuple{layer("model", &Run::model), layer("adam", &Run::adam), layer("stopping", &Run::stopping), buffer("progress", &Run::progress)};
  }
};

double evaluate(const Model& m, const Data& data, Workspace& ws) {
  Matrix<float> pooled(data.labels.rows(), 16), logits(data.labels.rows(), 2);
  m.items.forward(data.ids, data.offsets, pooled);
  m.net.forward(pooled, logits, ws);  // without a Step: no dropout, running statistics
  return bce_with_logits<float>(logits, data.labels);
}

void train(Run& run, std::int64_t until, const Data& data, const Data& held_out, Workspace& ws) {
  std::int64_t &steps = run.progress[0], &epoch = run.progress[1], &batch = run.progress[2];
  Model gradient = make_gradient(run.model);
  decltype(run.model.net)::Saved saved;
  SequenceBatches batches(data.lengths, {.batch_size = 128, .bucket = 4, .seed = 7});
  batches.begin_epoch(static_cast<std::uint64_t>(epoch));
  Vector<std::int64_t> ids, offsets;
  Matrix<float> pooled, dpooled, labels, logits, dlogits;
  while (steps < until && !run.stopping.should_stop()) {
    const IndexView picks = batches[batch];
    gather_sequences(data.ids, data.offsets, picks, 0, ids, offsets);
    for (Matrix<float>* m : {&pooled, &dpooled}) m->resize(picks.size(), 16);
    for (Matrix<float>* m : {&labels, &logits, &dlogits}) m->resize(picks.size(), 2);
    for (Index b = 0; b < picks.size(); ++b) std::copy_n(data.labels.row(picks[b]), 2, labels.row(b));

    const auto number = static_cast<std::uint64_t>(steps);
    zero_gradient(gradient);
    dpooled.fill(0);
    dlogits.fill(0);
    Vector<float> weights(2), losses(2);
    run.model.weighting.weights(weights);
    run.model.items.forward(ids, offsets, pooled);
    run.model.net.forward(pooled, logits, saved, Step{.seed = 7, .number = number}, ws);
    bce_with_logits_value_and_grad<float>(logits, labels, {.task_weights = weights}, losses, dlogits);
    run.model.weighting.value_and_grad(losses, gradient.weighting);
    run.model.net.backward(pooled, dlogits, saved, dpooled, gradient.net, ws);
    run.model.items.backward(ids, offsets, dpooled, gradient.items, ws);
    run.model.net.update(saved);  // batch norm's running statistics

    clip_gradient_norm(gradient, 1.0);
    run.adam.options.learning_rate = 0.01 * linear_warmup(number, 20, 0.1) * cosine_decay(number, 1000);
    run.adam.step(run.model, gradient);
    ++steps;
    if (++batch == batches.size()) {
      run.stopping.update(evaluate(run.model, held_out, ws));
      batch = 0;
      batches.begin_epoch(static_cast<std::uint64_t>(++epoch));
    }
  }
}

int main() {
  const Data data(4000, Random(2)), held_out(1000, Random(3));
  Workspace ws;
  Run straight, first, second;
  const double before = evaluate(straight.model, held_out, ws);
  train(straight, 300, data, held_out, ws);
  std::printf("held-out loss %s\n", evaluate(straight.model, held_out, ws) < before / 2 ? "halved" : "has not halved");

  train(first, 150, data, held_out, ws);  // in the middle of an epoch
  save(first, "/tmp/recops_run.safetensors");
  load(second, "/tmp/recops_run.safetensors");
  train(second, 300, data, held_out, ws);
  bool same = true;
  visit(
      [&](const FieldPath&, const auto& a, const auto& b) {
        same = same && std::equal(leaf_values(a).begin(), leaf_values(a).end(), leaf_values(b).begin());
      },
      straight, second);
  std::printf("stopped and resumed: %s\n", same ? "the same numbers" : "other numbers");
  std::remove("/tmp/recops_run.safetensors");
  return same ? 0 : 1;
}
