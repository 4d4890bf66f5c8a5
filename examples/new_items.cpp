/// What a new item is about, before anybody has clicked it: its frames, the words of its title and its sound become one vector.
///
/// Nothing is known of a new item but tokens, some tens of numbers each, as encoders of pictures, text and sound give them: any number of
/// each, most of them beside the point, and in part they say the same. A user's taste is known. The ways to fuse the tokens are
/// compared on items that no model was trained with: a mean, additive attention, PMA, ISAB before PMA (Set Transformer), an FQ-Former (EM3)
/// and a resampler whose queries know who asks (MMBee); then the last again with words and sound from which orthogonal projection has
/// taken what the frames say already. The world is simulated, with several tastes and a known best AUC. --seeds 5 says what of the
/// differences is luck.
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <recops/attention/additive_pool.hpp>
#include <recops/attention/fq_former.hpp>
#include <recops/attention/orthogonal_projection.hpp>
#include <recops/attention/pma.hpp>
#include <recops/attention/query_resampler.hpp>
#include <recops/metrics/auc.hpp>
#include <recops/nn/embedding_bag.hpp>
#include <recops/nn/loss.hpp>
#include <recops/simd/build_info.hpp>
#include <recops/train/adam.hpp>

#include "common/cli.hpp"
#include "common/progress.hpp"
#include "common/seeds.hpp"

using namespace examples;
using namespace recops;

namespace {

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

struct Config {
  Index seeds = 1, users = 60, items = 800, pairs = 12000, epochs = 6, batch = 64;
  double learning_rate = 6e-3;
};

constexpr Index width = 16, tastes = 6, modalities = 3;

// ---- The world ----------------------------------------------------------------------------------------------------------

struct World {
  Matrix<float> tokens, own;             ///< [total, width]; own: words and sound without what the frames say
  std::vector<std::int64_t> offsets{0};  ///< of items
  std::vector<std::int32_t> modality;    ///< of tokens: frame, word, sound
  struct Pair {
    std::int32_t user, item;
    float label, chance;
  };
  std::vector<Pair> train, test;  ///< test: the last fifth of the items, which `train` does not have

  World(const Config& c, std::uint64_t seed) {
    Random random(seed, 0x6e6577ull);
    const auto normal = [&](Index rows, Index cols) {
      Matrix<float> m(rows, cols);
      for (float& x : leaf_values(m)) x = static_cast<float>(random.normal());
      return m;
    };
    const Matrix<float> user = normal(c.users, tastes), item = normal(c.items, tastes), basis = normal(tastes + 1, width);
    // What each modality shows of an item; frames and words overlap.
    constexpr bool shows[modalities][tastes] = {{1, 1, 1, 1, 0, 0}, {0, 0, 1, 1, 1, 0}, {0, 0, 0, 0, 0, 1}};
    std::vector<float> values;
    const auto token = [&](Index i, std::int32_t kind, bool telling) {
      // The last row of the basis marks what belongs to the matter, as saliency does; the others show something else.
      std::array<float, tastes + 1> content{};
      for (Index t = 0; t < tastes; ++t)
        content[at(t)] = shows[kind][t] ? (telling ? item(i, t) : static_cast<float>(random.normal())) : 0.0f;
      content[at(tastes)] = telling ? 1.0f : -1.0f;
      for (Index d = 0; d < width; ++d) {
        double x = 0.3 * random.normal();
        for (Index t = 0; t <= tastes; ++t) x += static_cast<double>(content[at(t)] * basis(t, d));
        values.push_back(static_cast<float>(x / std::sqrt(static_cast<double>(tastes + 1))));
      }
      modality.push_back(kind);
    };
    for (Index i = 0; i < c.items; ++i) {
      const Index frames = 3 + random.below(6), words = random.below(7);
      for (Index f = 0; f < frames; ++f) token(i, 0, f == 0 || random.uniform() < 0.25);
      for (Index w = 0; w < words; ++w) token(i, 1, random.uniform() < 0.4);
      if (random.uniform() < 0.7) token(i, 2, true);
      offsets.push_back(static_cast<std::int64_t>(modality.size()));
    }
    tokens = Matrix<float>(static_cast<Index>(modality.size()), width);
    std::copy(values.begin(), values.end(), tokens.data());
    take_out_frames();
    const Index known = c.items * 4 / 5;
    for (Index n = 0; n < c.pairs + c.pairs / 3; ++n) {
      const Index u = random.below(c.users), i = n < c.pairs ? random.below(known) : known + random.below(c.items - known);
      double z = -0.3;
      for (Index t = 0; t < tastes; ++t) z += static_cast<double>(user(u, t) * item(i, t));
      const double chance = 1 / (1 + std::exp(-z));
      (n < c.pairs ? train : test)
          .push_back({static_cast<std::int32_t>(u), static_cast<std::int32_t>(i), random.uniform() < chance ? 1.0f : 0.0f,
                      static_cast<float>(chance)});
    }
  }

 private:
  void take_out_frames() {
    Matrix<float> frames(tokens.rows(), width, 0.0f);
    own = tokens;
    for (std::size_t i = 0; i + 1 < offsets.size(); ++i) {
      std::array<float, width> mean{};
      for (std::int64_t r = offsets[i]; r < offsets[i + 1]; ++r)
        for (Index d = 0; d < width && modality[at(r)] == 0; ++d) mean[at(d)] += tokens(r, d);
      for (std::int64_t r = offsets[i]; r < offsets[i + 1]; ++r)  // a frame keeps everything: nothing is taken along 0
        if (modality[at(r)] != 0) std::copy(mean.begin(), mean.end(), frames.row(r));
    }
    orthogonal_projection<float>(tokens, frames, 1e-6, own);
  }
};

// ---- Ways to fuse ---------------------------------------------------------------------------------------------------------

/// Each turns the tokens of B items into fused [B, width]; `users` [B, width] is who asks.
struct Mean {
  Linear<float> out;
  explicit Mean(Random& random) : out(width, width, random) {}
  static constexpr auto fields() { return std::tuple{layer("out", &Mean::out)}; }
  struct Saved {
    Matrix<float> mean;
    Linear<float>::Saved out;
  };
  void forward(JaggedView<const float> x, MatrixView<const float>, MatrixView<float> y, Saved& s, const Step& step,
               Workspace& ws) const {
    s.mean.resize(x.size(), width);
    s.mean.fill(0);
    for (Index b = 0; b < x.size(); ++b)
      for (Index r = 0; r < x.length(b); ++r)
        simd::axpy<float>(1 / static_cast<float>(x.length(b)), x[b].row(r), s.mean.row(b), width);
    out.forward(s.mean, y, s.out, step, ws);
  }
  void backward(JaggedView<const float> x, MatrixView<const float>, MatrixView<const float> dy, const Saved& s,
                MatrixView<float> dx, MatrixView<float>, Mean& gradient, Workspace& ws) const {
    const auto mark = ws.mark();
    const MatrixView<float> dmean = ws.matrix<float>(x.size(), width);
    std::fill_n(dmean.data(), x.size() * width, 0.0f);
    out.backward(s.mean, dy, s.out, dmean, gradient.out, ws);
    for (Index b = 0; b < x.size(); ++b)
      for (Index r = 0; r < x.length(b); ++r)
        simd::axpy<float>(1 / static_cast<float>(x.length(b)), dmean.row(b), dx.row(x.begin(b) + r), width);
  }
};
struct Additive {
  AdditivePool<float> pool;
  explicit Additive(Random& random) : pool(width, width, random) {}
  static constexpr auto fields() { return std::tuple{layer("pool", &Additive::pool)}; }
  using Saved = AdditivePool<float>::Saved;
  void forward(JaggedView<const float> x, MatrixView<const float>, MatrixView<float> y, Saved& s, const Step& step,
               Workspace& ws) const {
    pool.forward(x, {}, y, s, step, ws);
  }
  void backward(JaggedView<const float> x, MatrixView<const float>, MatrixView<const float> dy, const Saved& s,
                MatrixView<float> dx, MatrixView<float>, Additive& gradient, Workspace& ws) const {
    pool.backward(x, {}, dy, s, dx, gradient.pool, ws);
  }
};
struct Seeds {
  Pma<float> pma;
  explicit Seeds(Random& random) : pma(width, width, 1, {.heads = 2}, random) {}
  static constexpr auto fields() { return std::tuple{layer("pma", &Seeds::pma)}; }
  using Saved = Pma<float>::Saved;
  void forward(JaggedView<const float> x, MatrixView<const float>, MatrixView<float> y, Saved& s, const Step& step,
               Workspace& ws) const {
    pma.forward(x, y, s, step, ws);
  }
  void backward(JaggedView<const float> x, MatrixView<const float>, MatrixView<const float> dy, const Saved& s,
                MatrixView<float> dx, MatrixView<float>, Seeds& gradient, Workspace& ws) const {
    pma.backward(x, dy, s, dx, gradient.pma, ws);
  }
};
struct SetTransformer {
  Isab<float> isab;
  Pma<float> pma;
  explicit SetTransformer(Random& random)
      : isab(width, width, 4, {.heads = 2}, random), pma(width, width, 1, {.heads = 2}, random) {}
  static constexpr auto fields() { return std::tuple{layer("isab", &SetTransformer::isab), layer("pma", &SetTransformer::pma)}; }
  struct Saved {
    Matrix<float> middle;
    Isab<float>::Saved isab;
    Pma<float>::Saved pma;
  };
  void forward(JaggedView<const float> x, MatrixView<const float>, MatrixView<float> y, Saved& s, const Step& step,
               Workspace& ws) const {
    s.middle.resize(x.values().rows(), width);
    isab.forward(x, s.middle, s.isab, step.child(0), ws);
    pma.forward(x.with_values(std::as_const(s.middle).view()), y, s.pma, step.child(1), ws);
  }
  void backward(JaggedView<const float> x, MatrixView<const float>, MatrixView<const float> dy, const Saved& s,
                MatrixView<float> dx, MatrixView<float>, SetTransformer& gradient, Workspace& ws) const {
    const auto mark = ws.mark();
    const MatrixView<float> dmiddle = ws.matrix<float>(s.middle.rows(), width);
    std::fill_n(dmiddle.data(), s.middle.rows() * width, 0.0f);
    pma.backward(x.with_values(s.middle.view()), dy, s.pma, dmiddle, gradient.pma, ws);
    isab.backward(x, dmiddle, s.isab, dx, gradient.isab, ws);
  }
};
struct Queries {
  FqFormer<float> former;
  explicit Queries(Random& random) : former(width, {.queries = 2, .heads = 2}, random) {}
  static constexpr auto fields() { return std::tuple{layer("former", &Queries::former)}; }
  using Saved = FqFormer<float>::Saved;
  void forward(JaggedView<const float> x, MatrixView<const float>, MatrixView<float> y, Saved& s, const Step& step,
               Workspace& ws) const {
    former.forward(x, y, s, step, ws);
  }
  void backward(JaggedView<const float> x, MatrixView<const float>, MatrixView<const float> dy, const Saved& s,
                MatrixView<float> dx, MatrixView<float>, Queries& gradient, Workspace& ws) const {
    former.backward(x, dy, s, dx, gradient.former, ws);
  }
};
struct Asked {
  QueryResampler<float> resampler;
  explicit Asked(Random& random) : resampler(width, {.queries = 1, .heads = 2, .hidden = 2 * width}, random) {}
  static constexpr auto fields() { return std::tuple{layer("resampler", &Asked::resampler)}; }
  using Saved = QueryResampler<float>::Saved;
  void forward(JaggedView<const float> x, MatrixView<const float> users, MatrixView<float> y, Saved& s, const Step& step,
               Workspace& ws) const {
    resampler.forward(x, users, y, s, step, ws);
  }
  void backward(JaggedView<const float> x, MatrixView<const float> users, MatrixView<const float> dy, const Saved& s,
                MatrixView<float> dx, MatrixView<float> dusers, Asked& gradient, Workspace& ws) const {
    resampler.backward(x, users, dy, s, dx, dusers, gradient.resampler, ws);
  }
};

// ---- The model ------------------------------------------------------------------------------------------------------------

/// logit = user . fuse(W token + what its modality adds) + bias
template <class Fuse>
struct Model {
  EmbeddingBag<float> user, modality;
  Linear<float> in;
  Fuse fuse;
  Vector<float> bias{0.0f};

  Model(Index users, Random& random)
      : user(users, width, 0.3, random), modality(modalities, width, 0.3, random), in(width, width, random), fuse(random) {}
  static constexpr auto fields() {
    return std::tuple{layer("user", &Model::user), layer("modality", &Model::modality), layer("in", &Model::in),
                      layer("fuse", &Model::fuse), parameter("bias", &Model::bias)};
  }
  struct Saved {
    Matrix<float> users, kinds, tokens, fused;
    Linear<float>::Saved in;
    typename Fuse::Saved fuse;
  };
  struct Batch {
    std::vector<std::int32_t> user, modality;
    Matrix<float> tokens, labels;
    std::vector<std::int64_t> offsets;
  };

  void forward(const Batch& batch, MatrixView<float> logits, Saved& s, const Step& step, Workspace& ws) const {
    const Index n = batch.labels.rows(), total = batch.tokens.rows();
    for (Matrix<float>* m : {&s.users, &s.fused}) m->resize(n, width);
    for (Matrix<float>* m : {&s.kinds, &s.tokens}) m->resize(total, width);
    user.forward(batch.user, {}, s.users);
    modality.forward(batch.modality, {}, s.kinds);
    in.forward(batch.tokens, s.tokens, s.in, step.child(0), ws);
    simd::add<float>(s.kinds.data(), s.tokens.data(), total * width);
    fuse.forward(JaggedView<const float>(s.tokens.view(), batch.offsets), s.users, s.fused, s.fuse, step.child(1), ws);
    for (Index i = 0; i < n; ++i) logits(i, 0) = bias[0] + simd::dot<float>(s.users.row(i), s.fused.row(i), width);
  }
  void backward(const Batch& batch, MatrixView<const float> dlogits, const Saved& s, Model& gradient, Workspace& ws) const {
    const auto mark = ws.mark();
    const auto zeros = [&](Index rows) {
      const MatrixView<float> m = ws.matrix<float>(rows, width);
      std::fill_n(m.data(), rows * width, 0.0f);
      return m;
    };
    const MatrixView<float> dusers = zeros(s.users.rows()), dfused = zeros(s.users.rows()), dtokens = zeros(s.tokens.rows());
    for (Index i = 0; i < dlogits.rows(); ++i) {
      gradient.bias[0] += dlogits(i, 0);
      simd::axpy<float>(dlogits(i, 0), s.fused.row(i), dusers.row(i), width);
      simd::axpy<float>(dlogits(i, 0), s.users.row(i), dfused.row(i), width);
    }
    fuse.backward(JaggedView<const float>(s.tokens.view(), batch.offsets), s.users, dfused, s.fuse, dtokens, dusers,
                  gradient.fuse, ws);
    in.backward(batch.tokens, dtokens, s.in, {}, gradient.in, ws);
    modality.backward(batch.modality, {}, dtokens, gradient.modality, ws);
    user.backward(batch.user, {}, dusers, gradient.user, ws);
  }
};

template <class Batch>
void gather(const World& world, const Matrix<float>& tokens, VectorView<const World::Pair> pairs, Batch& batch) {
  batch.user.clear();
  batch.modality.clear();
  batch.offsets.assign(1, 0);
  for (const World::Pair& p : pairs)
    batch.offsets.push_back(batch.offsets.back() + world.offsets[at(p.item) + 1] - world.offsets[at(p.item)]);
  batch.tokens.resize(batch.offsets.back(), width);
  batch.labels.resize(pairs.size(), 1);
  for (Index i = 0; i < pairs.size(); ++i) {
    const World::Pair& p = pairs[i];
    const std::int64_t first = world.offsets[at(p.item)], last = world.offsets[at(p.item) + 1];
    batch.user.push_back(p.user);
    batch.modality.insert(batch.modality.end(), world.modality.begin() + first, world.modality.begin() + last);
    std::copy_n(tokens.row(first), (last - first) * width, batch.tokens.row(batch.offsets[at(i)]));
    batch.labels(i, 0) = p.label;
  }
}

struct Outcome {
  double auc = 0, seconds = 0;
};

template <class Fuse>
Outcome run(const World& world, bool own, const Config& config, std::uint64_t seed, const char* name) {
  const Matrix<float>& tokens = own ? world.own : world.tokens;
  Random random(seed, 0x6d6f64ull);
  Model<Fuse> model(config.users, random), gradient = make_gradient(model);
  typename Model<Fuse>::Saved saved;
  typename Model<Fuse>::Batch batch;
  Adam adam(model, {.learning_rate = config.learning_rate, .weight_decay = 1e-2});
  Workspace ws;
  Matrix<float> logits, dlogits;
  std::vector<World::Pair> pairs = world.train;
  Step step{seed, 0, 0};
  const auto start = std::chrono::steady_clock::now();
  Progress progress(name, config.epochs);
  for (Index epoch = 0; epoch < config.epochs; ++epoch) {
    for (std::size_t i = pairs.size(); i > 1; --i) std::swap(pairs[i - 1], pairs[at(random.below(static_cast<Index>(i)))]);
    adam.options.learning_rate = config.learning_rate * (epoch + 1 < config.epochs ? 1 : 0.3);
    double loss = 0, steps = 0;
    for (std::size_t first = 0; first < pairs.size(); first += at(config.batch), ++step.number, ++steps) {
      const Index n = std::min(config.batch, static_cast<Index>(pairs.size() - first));
      gather(world, tokens, VectorView<const World::Pair>(pairs.data() + first, n), batch);
      for (Matrix<float>* m : {&logits, &dlogits}) m->resize(n, 1);
      dlogits.fill(0);
      zero_gradient(gradient);
      model.forward(batch, logits, saved, step, ws);
      loss += bce_with_logits_value_and_grad<float>(logits, batch.labels, {}, {}, dlogits);
      model.backward(batch, dlogits, saved, gradient, ws);
      adam.step(model, gradient);
    }
    char note[32];
    std::snprintf(note, sizeof note, "loss %.4f", loss / steps);
    progress.advance(1, note);
  }
  Outcome out;
  out.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  gather(world, tokens, VectorView<const World::Pair>(world.test.data(), static_cast<Index>(world.test.size())), batch);
  logits.resize(batch.labels.rows(), 1);
  model.forward(batch, logits, saved, step, ws);
  std::vector<std::uint8_t> labels;
  for (const World::Pair& p : world.test) labels.push_back(p.label > 0);
  out.auc = auc<float>(VectorView<const float>(logits.data(), logits.rows()), labels, ws).value;
  return out;
}

}  // namespace

int main(int argc, char** argv) {
  Config config;
  Cli cli("new_items", "Fuses the pictures, words and sound of items that nobody has clicked yet into one vector.");
  cli.option("seeds", config.seeds, "worlds to compare over", "seeds", 1, 100);
  cli.option("users", config.users, "whose taste is learned", "users", 2, 1000000);
  cli.option("items", config.items, "a fifth of them is new", "items", 10, 1000000);
  cli.option("pairs", config.pairs, "of user and item to learn from", "pairs", 10, 1e8);
  cli.option("epochs", config.epochs, "passes over them", "passes", 1, 10000);
  cli.option("batch", config.batch, "pairs of a step", "pairs", 1, 100000);
  cli.option("rate", config.learning_rate, "learning rate of AdamW", "", 0, 1);
  cli.parse(argc, argv);
  std::printf("%s\n", build_info().c_str());
  try {
    const std::vector<std::string> names{"mean of tokens",
                                         "additive attention",
                                         "PMA",
                                         "ISAB, then PMA",
                                         "FQ-Former",
                                         "resampler, asked by the user",
                                         "  frames taken out of words and sound"};
    std::vector<std::uint64_t> seeds(at(config.seeds));
    std::iota(seeds.begin(), seeds.end(), std::uint64_t{1});
    SeedTable table("AUC, new items", names, seeds);
    for (Index s = 0; s < config.seeds; ++s) {
      const std::uint64_t seed = seeds[at(s)];
      const World world(config, seed);
      std::printf("\nSeed %d: %td users, %td items of %.1f tokens, %zu pairs; judged on %zu pairs with new items\n",
                  static_cast<int>(seed), config.users, config.items,
                  static_cast<double>(world.modality.size()) / static_cast<double>(config.items), world.train.size(),
                  world.test.size());
      Workspace ws;
      std::vector<float> chances;
      std::vector<std::uint8_t> labels;
      for (const World::Pair& p : world.test) chances.push_back(p.chance), labels.push_back(p.label > 0);
      std::printf("  %-40s AUC %.4f\n", "the truth", auc<float>(VectorView<const float>(chances), labels, ws).value);
      const Outcome outcomes[] = {run<Mean>(world, false, config, seed, names[0].c_str()),
                                  run<Additive>(world, false, config, seed, names[1].c_str()),
                                  run<Seeds>(world, false, config, seed, names[2].c_str()),
                                  run<SetTransformer>(world, false, config, seed, names[3].c_str()),
                                  run<Queries>(world, false, config, seed, names[4].c_str()),
                                  run<Asked>(world, false, config, seed, names[5].c_str()),
                                  run<Asked>(world, true, config, seed, names[6].c_str())};
      for (Index i = 0; i < table.systems(); ++i) {
        table.set(i, s, outcomes[i].auc);
        std::printf("  %-40s AUC %.4f  (trained in %.1f s)\n", names[at(i)].c_str(), outcomes[i].auc, outcomes[i].seconds);
      }
    }
    if (config.seeds > 1) {
      std::printf("\n");
      table.print(stdout, 0, 4);
    } else {
      std::printf("(one world: --seeds 5 says what of the differences is luck)\n");
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "new_items: %s\n", error.what());
    return 1;
  }
}
