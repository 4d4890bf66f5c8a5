/// What comes next? Recommenders that mix a sequence by frequency filters (FMLP-Rec, BSARec, SLIME4Rec) against self-attention.
///
/// All share embeddings, feed-forward networks, loss and training; only what mixes the rows of a sequence differs. They read a whole
/// sequence and predict one item from its last row, so they are trained on random beginnings of sequences; the loss is a softmax over
/// the whole catalogue, made block by block by the contrastive core. SASRec (models/sasrec.hpp), causal and trained at every position at
/// once, is the baseline as it is usually run. (Of SLIME4Rec the filter mixer is used, not its additional contrastive loss.) The last
/// item of every user is hidden and has to be found among all others. Without arguments in a simulated world; --data reads MovieLens.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <recops/contrastive/biased_infonce.hpp>
#include <recops/frequency/bsarec_layer.hpp>
#include <recops/frequency/filter_block.hpp>
#include <recops/frequency/slide_filter.hpp>
#include <recops/frequency/spectral_filter.hpp>
#include <recops/models/sasrec.hpp>
#include <recops/simd/build_info.hpp>
#include <recops/train/adam.hpp>

#include "common/cli.hpp"
#include "common/leave_one_out.hpp"
#include "common/movielens.hpp"
#include "common/progress.hpp"
#include "common/seeds.hpp"
#include "common/simulator.hpp"

using namespace examples;
using recops::IndexView;
using recops::JaggedView;
using recops::Matrix;
using recops::MatrixView;
using recops::Random;
using recops::VectorView;
using recops::Workspace;

namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }
std::size_t at(Index i) { return static_cast<std::size_t>(i); }

struct Config {
  std::string data, fill = "none";
  Index seeds = 1, users = 400, items = 300, epochs = 8, prefixes = 8, length = 32, width = 32, blocks = 2, batch = 64;
  double dropout = 0.2, learning_rate = 3e-3, ratio = 0.4, alpha = 0.7;
  Index keep = 3;
};

/// A sequential recommender with blocks of a Mixer and a feed-forward network.
template <class Mixer>
struct FilterRecommender {
  using Block = recops::FilterBlock<float, Mixer>;
  recops::EmbeddingBag<float> items;
  recops::PositionalEmbedding<float> positions;  // counted from the end: the last item is always at the same place
  recops::LayerNorm<float> norm;
  recops::Dropout<float> dropout;
  std::vector<Block> blocks;

  /// `mixer(i)` makes that of block i.
  template <class Make>
  FilterRecommender(const Config& c, Index catalogue, Random& random, Make&& mixer)
      : items(catalogue, c.width, 1 / std::sqrt(static_cast<double>(c.width)), random),
        positions(c.length, c.width, 0.02, random),
        norm(c.width),
        dropout(c.dropout) {
    for (Index i = 0; i < c.blocks; ++i)
      blocks.emplace_back(mixer(i), c.width, recops::FilterBlockOptions{.dropout = c.dropout}, random);
  }
  static constexpr auto fields() {
    using namespace recops;
    using R = FilterRecommender;
    return std::tuple{layer("items", &R::items), layer("positions", &R::positions), layer("norm", &R::norm),
                      layers("blocks", &R::blocks)};
  }
  Index width() const { return items.weight.values.cols(); }

  struct Saved {
    Matrix<float> embedded;
    std::vector<Matrix<float>> states;  // what goes into each block, and what comes out of the last
    recops::LayerNorm<float>::Saved norm;
    recops::Dropout<float>::Saved dropout;
    std::vector<typename Block::Saved> blocks;
  };

  /// users `[B, D]`: the state after the last item of each sequence.
  void encode(IndexView ids, IndexView offsets, MatrixView<float> users, Workspace& ws) const {
    const auto mark = ws.mark();
    MatrixView<float> x = ws.matrix<float>(ids.size(), width()), y = ws.matrix<float>(ids.size(), width());
    items.forward(ids, {}, x);
    positions.forward(JaggedView<const float>(MatrixView<const float>(x), offsets), x, ws);
    norm.forward(x, x, ws);
    for (const Block& block : blocks) {
      block.forward(JaggedView<const float>(MatrixView<const float>(x), offsets), y, ws);
      std::swap(x, y);
    }
    for (Index b = 0; b < users.rows(); ++b) std::copy_n(x.row(offsets[b + 1] - 1), width(), users.row(b));
  }

  /// Mean loss of finding `next [B]` in the whole catalogue; adds its gradient.
  double value_and_grad(IndexView ids, IndexView offsets, IndexView next, FilterRecommender& gradient, Saved& s,
                        const recops::Step& step, Workspace& ws) const {
    const auto mark = ws.mark();
    const Index rows = ids.size(), d = width(), users = next.size(), catalogue = items.weight.values.rows();
    const auto zeros = [&](Index n) {
      const MatrixView<float> m = ws.matrix<float>(n, d);
      std::fill_n(m.data(), n * d, 0.0f);
      return m;
    };
    s.states.resize(blocks.size() + 1);
    s.blocks.resize(blocks.size());
    s.embedded.resize(rows, d);
    for (auto& x : s.states) x.resize(rows, d);
    items.forward(ids, {}, s.embedded);
    positions.forward(JaggedView<const float>(s.embedded.view(), offsets), s.embedded, ws);
    norm.forward(s.embedded, s.states[0], s.norm, step, ws);
    dropout.forward(s.states[0], s.states[0], s.dropout, step.child(0), ws);
    for (std::size_t i = 0; i < blocks.size(); ++i)
      blocks[i].forward(JaggedView<const float>(std::as_const(s.states[i]).view(), offsets), s.states[i + 1], s.blocks[i],
                        step.child(static_cast<Index>(i) + 1), ws);
    const MatrixView<float> u = zeros(users), du = zeros(users), dv = zeros(catalogue);
    for (Index b = 0; b < users; ++b) std::copy_n(s.states.back().row(offsets[b + 1] - 1), d, u.row(b));
    const double loss = recops::biased_infonce_value_and_grad<float>(u, items.weight.values, next, {}, {.du = du, .dv = dv}, ws);

    MatrixView<float> dx = zeros(rows);
    for (Index b = 0; b < users; ++b) recops::simd::add(du.row(b), dx.row(offsets[b + 1] - 1), d);
    for (std::size_t i = blocks.size(); i-- > 0;) {
      const MatrixView<float> din = zeros(rows);
      blocks[i].backward(JaggedView<const float>(std::as_const(s.states[i]).view(), offsets), dx, s.blocks[i], din,
                         gradient.blocks[i], ws);
      dx = din;
    }
    const MatrixView<float> dnormed = zeros(rows), dembedded = zeros(rows);
    recops::Dropout<float> none;
    dropout.backward(dx, dx, s.dropout, dnormed, none, ws);
    norm.backward(s.embedded, dnormed, s.norm, dembedded, gradient.norm, ws);
    positions.backward(JaggedView<const float>(std::as_const(s.embedded).view(), offsets), dembedded, {}, {}, gradient.positions,
                       ws);
    items.backward(ids, {}, dembedded, gradient.items, ws);
    auto* const all = ws.take<std::int32_t>(catalogue);
    std::iota(all, all + catalogue, 0);
    items.backward(IndexView(all, catalogue), {}, dv, gradient.items, ws);
    return loss;
  }
};

// ---- Data, training, judging --------------------------------------------------------------------------------------------

/// Sequences one behind the other.
struct Sequences {
  std::vector<std::int32_t> ids, offsets{0}, next;
  void clear() {
    ids.clear();
    next.clear();
    offsets.assign(1, 0);
  }
  /// Items [first, last) of a user, at most the `most` last of them.
  void append(VectorView<const std::int32_t> all, Index last, Index most) {
    for (Index i = std::max<Index>(0, last - most); i < last; ++i) ids.push_back(all[i]);
    offsets.push_back(static_cast<std::int32_t>(ids.size()));
  }
};

struct Quality {
  double hit_rate = 0, ndcg = 0, seconds = 0, microseconds = 0;
};

struct World {
  UserSequences sequences;
  Index catalogue = 0;
};

/// Runs through shuffled jobs in batches: `count` of them, `step(first, last)` on places in `order`.
template <class Shuffle, class Step>
void in_batches(Index epochs, Index count, Index batch, const std::string& name, Shuffle&& shuffled, Step&& step) {
  Progress progress("  " + name, epochs * count);
  double loss = 0;
  bool first_step = true;
  for (Index epoch = 0; epoch < epochs; ++epoch) {
    shuffled(epoch);
    for (Index first = 0; first < count; first += batch) {
      const Index last = std::min(first + batch, count);
      const double now = step(first, last);
      loss += (first_step ? 1 : 0.05) * (now - loss);
      first_step = false;
      char note[32];
      std::snprintf(note, sizeof note, "loss %.4f", loss);
      progress.advance(last - first, note);
    }
  }
}

/// Ranks the hidden items by `users [users, D]` . item.
Quality judge(const World& world, MatrixView<const float> users, MatrixView<const float> items) {
  const LeaveOneOutResult r = leave_one_out(
      world.sequences, world.catalogue,
      [&](Index user, VectorView<const std::int32_t>, VectorView<const std::int32_t> candidates, VectorView<double> scores) {
        for (Index i = 0; i < candidates.size(); ++i)
          scores[i] = static_cast<double>(recops::simd::dot(users.row(user), items.row(candidates[i]), users.cols()));
      },
      {.cutoffs = {10}});
  return {r.hit_rate[0], r.ndcg[0], 0, 0};
}

/// States of all users who have a history, in batches; what serving costs.
template <class Model>
Matrix<float> encode_all(const World& world, const Model& model, const Config& c, double& microseconds) {
  Matrix<float> users(world.sequences.users(), c.width, 0.0f), states;
  Workspace ws;
  Sequences s;
  std::vector<Index> who;
  double seconds = 0;
  Index encoded = 0;
  for (Index user = 0; user < world.sequences.users(); ++user) {
    const auto all = world.sequences[user];
    if (all.size() >= 2) {
      s.append(all, all.size() - 1, c.length);
      who.push_back(user);
    }
    if (static_cast<Index>(who.size()) == c.batch || user + 1 == world.sequences.users()) {
      states.resize(static_cast<Index>(who.size()), c.width);
      const auto start = Clock::now();
      model.encode(s.ids, s.offsets, states, ws);
      seconds += seconds_since(start);
      encoded += states.rows();
      for (Index b = 0; b < states.rows(); ++b) std::copy_n(states.row(b), c.width, users.row(who[at(b)]));
      who.clear();
      s.clear();
    }
  }
  microseconds = encoded > 0 ? 1e6 * seconds / static_cast<double>(encoded) : 0;
  return users;
}

template <class Mixer, class Make>
Quality run_filter(const World& world, const Config& c, std::uint64_t seed, const std::string& name, Make&& mixer) {
  Random random(seed, 0x66696c74ull);
  FilterRecommender<Mixer> model(c, world.catalogue, random, [&](Index i) { return mixer(i, random); });
  FilterRecommender<Mixer> gradient = recops::make_gradient(model);
  typename FilterRecommender<Mixer>::Saved saved;
  recops::Adam adam(model, {.learning_rate = c.learning_rate});
  Workspace ws;
  recops::Step step{seed, 0, 0};
  // A job is a beginning of a user's sequence (without the hidden item) and the item after it.
  struct Job {
    Index user, place;
  };
  std::vector<Job> jobs;
  const UserSequences known = world.sequences.without_last();
  for (Index user = 0; user < known.users(); ++user)
    for (Index k = 0; k < c.prefixes && known[user].size() >= 2; ++k) jobs.push_back({user, 0});
  const auto start = Clock::now();
  Sequences s;
  in_batches(
      c.epochs, static_cast<Index>(jobs.size()), c.batch, name,
      [&](Index epoch) {
        Random draw(seed, 0x6472ull + static_cast<std::uint64_t>(epoch));
        for (Job& job : jobs) job.place = 1 + draw.below(known[job.user].size() - 1);
        for (std::size_t i = jobs.size(); i > 1; --i) std::swap(jobs[i - 1], jobs[at(draw.below(static_cast<Index>(i)))]);
      },
      [&](Index first, Index last) {
        s.clear();
        for (Index j = first; j < last; ++j) {
          s.append(known[jobs[at(j)].user], jobs[at(j)].place, c.length);
          s.next.push_back(known[jobs[at(j)].user][jobs[at(j)].place]);
        }
        recops::zero_gradient(gradient);
        const double loss = model.value_and_grad(s.ids, s.offsets, s.next, gradient, saved, step, ws);
        adam.step(model, gradient);
        ++step.number;
        return loss;
      });
  const double seconds = seconds_since(start);
  double microseconds = 0;
  const Matrix<float> users = encode_all(world, model, c, microseconds);
  Quality q = judge(world, users, model.items.weight.values);
  q.seconds = seconds;
  q.microseconds = microseconds;
  return q;
}

Quality run_sasrec(const World& world, const Config& c, std::uint64_t seed, const std::string& name) {
  Random random(seed, 0x7361ull);
  recops::SasRec<float> model({.items = world.catalogue,
                               .width = c.width,
                               .max_length = c.length,
                               .blocks = c.blocks,
                               .hidden = 4 * c.width,
                               .dropout = c.dropout},
                              random),
      gradient = recops::make_gradient(model);
  recops::SasRec<float>::Saved saved;
  recops::Adam adam(model, {.learning_rate = c.learning_rate});
  Workspace ws;
  recops::Step step{seed, 0, 0};
  const UserSequences known = world.sequences.without_last();
  // Against the whole catalogue, as the others, or where that is large against some of it, drawn anew for every step.
  std::vector<std::int32_t> negatives(at(std::min<Index>(world.catalogue, 512)));
  std::iota(negatives.begin(), negatives.end(), 0);
  const std::vector<float> log_q(negatives.size(), static_cast<float>(std::log(static_cast<double>(negatives.size()) /
                                                                               static_cast<double>(world.catalogue))));
  std::vector<Index> order;
  for (Index user = 0; user < known.users(); ++user)
    for (Index k = 0; 4 * k < c.prefixes && known[user].size() >= 2; ++k) order.push_back(user);
  // A quarter as many windows of sequences as the others see beginnings: each of them is trained at all its positions.
  const auto start = Clock::now();
  Sequences s;
  Random draw(seed, 0x6f72ull);
  in_batches(
      c.epochs, static_cast<Index>(order.size()), c.batch, name,
      [&](Index) {
        for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[at(draw.below(static_cast<Index>(i)))]);
      },
      [&](Index first, Index last) {
        s.clear();
        for (Index j = first; j < last; ++j) {
          const auto items = known[order[at(j)]];
          const Index most = std::min(items.size(), c.length), end = most + draw.below(items.size() - most + 1);
          s.append(items, end, c.length);
        }
        if (static_cast<Index>(negatives.size()) < world.catalogue)
          for (auto& item : negatives) item = static_cast<std::int32_t>(draw.below(world.catalogue));
        recops::zero_gradient(gradient);
        const double loss = model.value_and_grad(s.ids, s.offsets, negatives, log_q, gradient, saved, step, ws);
        adam.step(model, gradient);
        ++step.number;
        return loss;
      });
  const double seconds = seconds_since(start);
  double microseconds = 0;
  const Matrix<float> users = encode_all(world, model, c, microseconds);
  Quality q = judge(world, users, model.items.weight.values);
  q.seconds = seconds;
  q.microseconds = microseconds;
  return q;
}

/// The most frequent items of what is known.
Quality run_popularity(const World& world) {
  const UserSequences known = world.sequences.without_last();
  std::vector<double> count(at(world.catalogue));
  for (const std::int32_t item : known.items) ++count[at(item)];
  const LeaveOneOutResult r = leave_one_out(
      world.sequences, world.catalogue,
      [&](Index, VectorView<const std::int32_t>, VectorView<const std::int32_t> candidates, VectorView<double> scores) {
        for (Index i = 0; i < candidates.size(); ++i) scores[i] = count[at(candidates[i])];
      },
      {.cutoffs = {10}});
  return {r.hit_rate[0], r.ndcg[0], 0, 0};
}

const char* const systems[] = {"self-attention", "FMLP-Rec", "BSARec", "SLIME4Rec", "SASRec", "popularity"};
constexpr Index system_count = 6;

Quality run(const World& world, Index system, const Config& c, std::uint64_t seed) {
  using namespace recops;
  const std::string name = std::string(systems[system]) + ", seed " + std::to_string(seed);
  const FilterBlockOptions around{.dropout = c.dropout};
  const SequencePadding padding{.fill = c.fill == "zero"      ? SequenceFill::zero
                                        : c.fill == "edge"    ? SequenceFill::edge
                                        : c.fill == "cyclic"  ? SequenceFill::cyclic
                                        : c.fill == "reflect" ? SequenceFill::reflect
                                                              : SequenceFill::none};
  switch (system) {
    case 0: {
      using Mixer = FilterSublayer<float, MultiheadAttention<float>>;
      return run_filter<Mixer>(world, c, seed, name, [&](Index, Random& random) {
        return Mixer(MultiheadAttention<float>(c.width, 1, random), c.width, around);
      });
    }
    case 1: {
      using Mixer = FilterSublayer<float, SpectralFilter<float>>;
      return run_filter<Mixer>(world, c, seed, name, [&](Index, Random& random) {
        return Mixer(
            SpectralFilter<float>(c.width, {.length = c.length, .padding = padding, .fit = GainFit::interpolate}, random),
            c.width, around);
      });
    }
    case 2:
      return run_filter<BsarecLayer<float>>(world, c, seed, name, [&](Index, Random& random) {
        return BsarecLayer<float>(
            c.width, {.length = c.length, .band = {.keep = c.keep}, .alpha = c.alpha, .dropout = c.dropout, .padding = padding},
            random);
      });
    case 3: {
      using Mixer = FilterSublayer<float, SlideFilter<float>>;
      return run_filter<Mixer>(world, c, seed, name, [&](Index i, Random& random) {
        return Mixer(SlideFilter<float>(c.width,
                                        {.length = c.length,
                                         .layer = i,
                                         .layers = c.blocks,
                                         .ratio = c.ratio,
                                         .padding = padding,
                                         .fit = GainFit::interpolate},
                                        random),
                     c.width, around);
      });
    }
    case 4:
      return run_sasrec(world, c, seed, name);
    default:
      return run_popularity(world);
  }
}

}  // namespace

int main(int argc, char** argv) {
  Config c;
  Cli cli("frequency_filters", "Predicts the next item with frequency filters and with self-attention.");
  cli.option("data", c.data, "folder with MovieLens (docs/data.md); without it a simulated world", "DIR");
  cli.option("seeds", c.seeds, "runs to compare the systems over", "seeds", 1, 100);
  cli.option("users", c.users, "users of the simulated world", "users", 20, 1000000);
  cli.option("items", c.items, "items of the simulated world", "items", 20, 1000000);
  cli.option("epochs", c.epochs, "passes", "passes", 1, 1000);
  cli.option("prefixes", c.prefixes, "beginnings of each user's sequence seen in a pass", "", 1, 1000);
  cli.option("length", c.length, "longest sequence", "items", 2, 1000);
  cli.option("width", c.width, "width of the model", "", 4, 1024);
  cli.option("blocks", c.blocks, "blocks of the model", "", 1, 32);
  cli.option("batch", c.batch, "sequences in a training step", "", 1, 100000);
  cli.option("dropout", c.dropout, "in training", "", 0, 0.9);
  cli.option("rate", c.learning_rate, "learning rate of Adam", "", 0, 1);
  cli.option("keep", c.keep, "bins in BSARec's low band", "", 0, 1000);
  cli.option("alpha", c.alpha, "share of the filter in BSARec", "", 0, 1);
  cli.option("ratio", c.ratio, "share of the bins in SLIME4Rec's dynamic window", "", 0.01, 1);
  cli.option("fill", c.fill, "what filters see before a short sequence: none (its own length), zero, edge, cyclic, reflect");
  cli.parse(argc, argv);
  std::printf("%s\n", recops::build_info().c_str());
  try {
    const bool films = !c.data.empty();
    if (c.fill != "none" && c.fill != "zero" && c.fill != "edge" && c.fill != "cyclic" && c.fill != "reflect")
      throw DataError("--fill expects none, zero, edge, cyclic or reflect, got '" + c.fill + "'");
    std::vector<std::uint64_t> seeds(at(c.seeds));
    std::iota(seeds.begin(), seeds.end(), std::uint64_t{1});
    const std::vector<std::string> names(systems, systems + system_count);
    SeedTable hits("HR@10", names, seeds), ndcg("NDCG@10", names, seeds);
    std::vector<Quality> first(at(system_count));
    for (std::size_t s = 0; s < seeds.size(); ++s) {
      World world;
      if (films) {
        const MovieLens data = load_movielens(c.data);
        world = {user_sequences(data.log, Label::like), data.log.items};
      } else {
        const Simulator simulator({.seed = seeds[s], .users = c.users, .items = c.items});
        world = {user_sequences(simulator.generate()), c.items};
      }
      if (s == 0)
        std::printf("%s: %td users, %td items, %zu events\n",
                    films ? "MovieLens, films that were liked" : "A simulated feed, clicks", world.sequences.users(),
                    world.catalogue, world.sequences.items.size());
      std::fflush(stdout);
      for (Index k = 0; k < system_count; ++k) {
        const Quality q = run(world, k, c, seeds[s]);
        hits.set(k, static_cast<Index>(s), q.hit_rate);
        ndcg.set(k, static_cast<Index>(s), q.ndcg);
        if (s == 0) first[at(k)] = q;
      }
    }
    std::printf("\nThe hidden last item of each user among all %s it has not taken yet\n\n", films ? "films" : "items");
    hits.print();
    std::printf("\n");
    ndcg.print();
    std::printf("\nOne core, seed 1\n  %-16s %12s %24s\n", "", "training", "encoding a user");
    for (Index k = 0; k + 1 < system_count; ++k)
      std::printf("  %-16s %10.1f s %21.1f us\n", systems[k], first[at(k)].seconds, first[at(k)].microseconds);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "frequency_filters: %s\n", error.what());
    return 1;
  }
}
