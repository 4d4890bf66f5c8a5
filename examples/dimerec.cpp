/// Next-item recommendation by generation: DimeRec against what it is made of.
///
/// Four kinds of systems learn the same sequences and predict the same held-out items: SASRec (one vector), multi-interest retrieval
/// (ComiRec, several vectors), DreamRec (diffusion guided by a sequence encoder) and DimeRec (diffusion on the sphere guided by
/// interests), the last also without each of its modules. Printed are hit rate and NDCG, the diversity of the lists, and what a reverse
/// step costs and brings. With --seeds 5 differences come with paired intervals. Without arguments all this happens in a small simulated
/// world.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <memory>
#include <numeric>
#include <recops/metrics/intra_list.hpp>
#include <recops/models/dimerec.hpp>
#include <recops/models/dreamrec.hpp>
#include <recops/simd/build_info.hpp>
#include <recops/train/adam.hpp>

#include "common/cli.hpp"
#include "common/leave_one_out.hpp"
#include "common/movielens.hpp"
#include "common/progress.hpp"
#include "common/seeds.hpp"
#include "common/simulator.hpp"
#include "common/svg.hpp"

using namespace examples;
using namespace recops;

namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }
std::size_t at(Index i) { return static_cast<std::size_t>(i); }

struct Config {
  std::string data, plot;
  Index seeds = 1, users = 300, items = 500, width = 32, interests = 4, history = 30, epochs = 20, cuts = 6, batch = 128,
        negatives = 256;
  Index held_out = 3;  // last items of each user that are predicted, each from those before it
  Index steps = 1;     // reverse steps of DimeRec
  Index samples = 4;   // starts of each request
  double learning_rate = 4e-3, temperature = 0.1, softmax = 1, reconstruction = 1, guidance = 0, dream_guidance = 2;
  bool ablation = false;
};

/// Sequences, and what diversity is measured by.
struct World {
  std::string name;
  UserSequences sequences;
  Index items = 0;
  Matrix<float> features;  // [items, F]
};

World simulated(const Config& config, std::uint64_t seed) {
  SimulatorOptions o;
  o.seed = seed;
  o.users = config.users;
  o.items = config.items;
  const Simulator simulator(o);
  World w{"simulated feed", user_sequences(simulator.generate()), simulator.item_count(), {}};
  const auto v = simulator.item_vectors();
  w.features.resize(v.rows(), v.cols());
  for (Index i = 0; i < v.rows(); ++i)
    for (Index d = 0; d < v.cols(); ++d) w.features(i, d) = static_cast<float>(v(i, d));
  return w;
}

World films(const std::string& folder) {
  const MovieLens data = load_movielens(folder);
  World w{"MovieLens", user_sequences(data.log), data.log.items, {}};
  w.features = Matrix<float>(data.log.items, data.log.categories, 0.0f);
  for (Index i = 0; i < data.log.items; ++i)
    for (Index g = data.genre_offsets[at(i)]; g < data.genre_offsets[at(i + 1)]; ++g) w.features(i, data.genres[at(g)]) = 1;
  return w;
}

/// Requests with the item that came next, and what the user had taken before.
struct Questions {
  std::vector<std::int32_t> ids, targets, seen;
  std::vector<std::int64_t> offsets{0}, seen_offsets{0}, rows;
  Index size() const { return static_cast<Index>(targets.size()); }
};

Questions questions_of(const World& world, const Config& config) {
  Questions q;
  for (Index u = 0; u < world.sequences.users(); ++u) {
    const auto all = world.sequences[u];
    for (Index place = std::max<Index>(1, all.size() - config.held_out); place < all.size(); ++place) {
      const Index first = std::max<Index>(0, place - config.history);
      q.ids.insert(q.ids.end(), all.begin() + first, all.begin() + place);
      q.offsets.push_back(static_cast<std::int64_t>(q.ids.size()));
      q.seen.insert(q.seen.end(), all.begin(), all.begin() + place);
      q.seen_offsets.push_back(static_cast<std::int64_t>(q.seen.size()));
      q.targets.push_back(all[place]);
      q.rows.push_back(u * 100 + (all.size() - place));
    }
  }
  return q;
}

// ---- Training -----------------------------------------------------------------------------------------------------------

/// Runs `step(order of users, first, last, step number)` over all users, epoch by epoch, with rates that fall at the end.
template <class Model, class F>
void train(const World& world, Model& model, Index epochs, Index users_at_once, double rate, std::uint64_t seed,
           const std::string& label, F&& loss_of) {
  Adam adam(model, {.learning_rate = rate});
  Model gradient = make_gradient(model);
  typename Model::Saved saved;
  Workspace ws;
  std::vector<Index> order(at(world.sequences.users()));
  std::iota(order.begin(), order.end(), Index{0});
  Progress progress(label, epochs);
  Step step{seed, 0, 0};
  for (Index epoch = 0; epoch < epochs; ++epoch) {
    Random shuffle(seed, 0x73687566ull + static_cast<std::uint64_t>(epoch));
    for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[at(shuffle.below(static_cast<Index>(i)))]);
    const double done = static_cast<double>(epoch) / static_cast<double>(epochs);
    adam.options.learning_rate = rate * (done < 0.6 ? 1 : done < 0.85 ? 0.3 : 0.1);
    double total = 0;
    Index batches = 0;
    for (Index first = 0; first < world.sequences.users(); first += users_at_once, ++step.number, ++batches) {
      zero_gradient(gradient);
      const VectorView<const Index> users(order.data() + first, std::min(users_at_once, world.sequences.users() - first));
      total += loss_of(users, gradient, saved, step, ws);
      adam.step(model, gradient);
    }
    char note[32];
    std::snprintf(note, sizeof note, "loss %.4f", total / static_cast<double>(std::max<Index>(1, batches)));
    progress.advance(1, note);
  }
}

std::vector<std::int32_t> draw_negatives(const World& world, Index count, const Step& step) {
  Random random = step.child(77).random();
  std::vector<std::int32_t> out(at(count));
  for (auto& i : out) i = static_cast<std::int32_t>(random.below(world.items));
  return out;
}

/// The sequences of some users for models that learn at every position: a window of the longest length from a random place.
void windows(const World& world, const Config& config, VectorView<const Index> users, const Step& step,
             std::vector<std::int32_t>& ids, std::vector<std::int64_t>& offsets) {
  ids.clear();
  offsets.assign(1, 0);
  for (const Index u : users) {
    const auto all = world.sequences[u];
    const Index known = std::max<Index>(0, all.size() - config.held_out), length = std::min(known, config.history + 1);
    Random random = step.child(78).random(u);
    const Index first = known > length ? random.below(known - length + 1) : 0;
    ids.insert(ids.end(), all.begin() + first, all.begin() + first + length);
    offsets.push_back(static_cast<std::int64_t>(ids.size()));
  }
}

SasRec<float> train_sasrec(const World& world, const Config& config, std::uint64_t seed) {
  Random random(seed, 1);
  SasRec<float> model(
      {.items = world.items, .width = config.width, .max_length = config.history, .blocks = 2, .heads = 2, .dropout = 0.2},
      random);
  std::vector<std::int32_t> ids;
  std::vector<std::int64_t> offsets;
  train(world, model, config.epochs * config.cuts / 2, 32, config.learning_rate * 0.5, seed, "SASRec",
        [&](VectorView<const Index> users, auto& gradient, auto& saved, const Step& step, Workspace& ws) {
          windows(world, config, users, step, ids, offsets);
          const auto negatives = draw_negatives(world, config.negatives, step);
          return model.value_and_grad(ids, offsets, negatives, {}, gradient, saved, step, ws);
        });
  return model;
}

/// The targets are detached: otherwise all embeddings end in one point, where nothing is left to predict.
DreamRec<float> train_dreamrec(const World& world, const Config& config, std::uint64_t seed) {
  Random random(seed, 2);
  DreamRec<float> model(
      {.encoder =
           {.items = world.items, .width = config.width, .max_length = config.history, .blocks = 2, .heads = 2, .dropout = 0.1},
       .two_layers = true,
       .detach_target = true},
      random);
  std::vector<std::int32_t> ids;
  std::vector<std::int64_t> offsets;
  train(world, model, config.epochs * config.cuts / 2, 32, config.learning_rate * 0.5, seed, "DreamRec",
        [&](VectorView<const Index> users, auto& gradient, auto& saved, const Step& step, Workspace& ws) {
          windows(world, config, users, step, ids, offsets);
          return model.value_and_grad(ids, offsets, gradient, saved, step, ws);
        });
  return model;
}

DimeRec<float> train_dimerec(const World& world, const Config& config, DimeRecOptions options, std::uint64_t seed,
                             const std::string& name) {
  options.items = world.items;
  options.width = config.width;
  options.max_length = config.history;
  options.temperature = config.temperature;
  Random random(seed, 3);
  DimeRec<float> model(options, random);
  std::vector<std::int32_t> ids, targets;
  std::vector<std::int64_t> offsets;
  train(world, model, config.epochs, std::max<Index>(1, config.batch / config.cuts), config.learning_rate, seed, name,
        [&](VectorView<const Index> users, auto& gradient, auto& saved, const Step& step, Workspace& ws) {
          ids.clear(), targets.clear(), offsets.assign(1, 0);
          for (const Index u : users) {
            const auto all = world.sequences[u];
            const Index known = all.size() - config.held_out;
            Random place = step.child(78).random(u);
            for (Index c = 0; c < config.cuts && known >= 2; ++c) {
              const Index target = 1 + place.below(known - 1), first = std::max<Index>(0, target - config.history);
              ids.insert(ids.end(), all.begin() + first, all.begin() + target);
              offsets.push_back(static_cast<std::int64_t>(ids.size()));
              targets.push_back(all[target]);
            }
          }
          const auto negatives = draw_negatives(world, config.negatives, step);
          const NextItemBatch batch{.ids = ids, .offsets = offsets, .targets = targets, .negatives = negatives};
          return model.value_and_grad(batch, {}, gradient, saved, step, ws).total;
        });
  return model;
}

// ---- Judging ------------------------------------------------------------------------------------------------------------

struct Quality {
  double hit20 = 0, hit50 = 0, ndcg20 = 0, ndcg50 = 0, diversity = 0;
};

/// Judges lists of 50.
Quality judge(const World& world, const Questions& questions, MatrixView<const std::int32_t> lists) {
  Quality q;
  const auto n = static_cast<double>(questions.size());
  for (Index b = 0; b < questions.size(); ++b) {
    for (Index r = 0; r < 50; ++r) {
      if (lists(b, r) != questions.targets[at(b)]) continue;
      const double gain = 1 / std::log2(2 + static_cast<double>(r));
      q.hit50 += 1 / n, q.ndcg50 += gain / n;
      if (r < 20) q.hit20 += 1 / n, q.ndcg20 += gain / n;
    }
  }
  Workspace ws;
  std::vector<std::int32_t> items;
  std::vector<std::int64_t> offsets{0};
  for (Index b = 0; b < questions.size(); ++b) {
    items.insert(items.end(), lists.row(b), lists.row(b) + 20);
    offsets.push_back(static_cast<std::int64_t>(items.size()));
  }
  q.diversity = intra_list_distance<float>(world.features, items, offsets, {}, ws).value;
  return q;
}

/// Lists from vectors `[questions S, D]`.
Quality judge_vectors(const World& world, const Questions& questions, MatrixView<const float> x, const ItemTable<float>& table,
                      Index samples) {
  Workspace ws;
  Matrix<std::int32_t> lists(questions.size(), 50);
  round_to_items<float>(x, table, {.seen = questions.seen, .seen_offsets = questions.seen_offsets, .samples = samples}, lists, {},
                        ws);
  return judge(world, questions, lists);
}

Quality judge_generated(const World& world, const Questions& questions, const FrozenDimeRec<float>& model) {
  Workspace ws;
  Matrix<float> x(questions.size() * model.serving().samples, model.width());
  model.generate(questions.ids, questions.offsets, questions.rows, x, ws);
  return judge_vectors(world, questions, x, model.table(), model.serving().samples);
}

Quality judge_interests(const World& world, const Questions& questions, const FrozenDimeRec<float>& model, Index interests) {
  Workspace ws;
  Matrix<float> z(questions.size() * interests, model.width());
  model.interests(questions.ids, questions.offsets, z, ws);
  unit_rows<float>(z, z);
  return judge_vectors(world, questions, z, model.table(), interests);
}

Quality judge_dreamrec(const World& world, const Questions& questions, const DreamRec<float>& model,
                       const SamplerOptions& options) {
  Workspace ws;
  Matrix<float> x(questions.size(), model.width());
  const FrozenDreamRec<float> frozen = freeze(model, SamplerPlan(model.schedule, options));
  frozen.generate(questions.ids, questions.offsets, questions.rows, /*seed=*/1, x, ws);
  return judge_vectors(world, questions, x, frozen.table(), 1);
}

/// Microseconds of one request, a batch of one: the median over some questions.
template <class F>
double latency(const Questions& questions, F&& answer) {
  std::vector<double> times;
  for (Index round = 0; round < 2; ++round) {  // the first one warms up
    times.clear();
    for (Index b = 0; b < std::min<Index>(questions.size(), 200); ++b) {
      const Index first = questions.offsets[at(b)], count = questions.offsets[at(b + 1)] - first;
      const std::int64_t offsets[] = {0, count}, row[] = {questions.rows[at(b)]};
      const auto start = Clock::now();
      answer(IndexView(questions.ids.data() + first, count), IndexView(offsets, 2), IndexView(row, 1));
      times.push_back(seconds_since(start) * 1e6);
    }
  }
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  return times.empty() ? 0 : times[times.size() / 2];
}

// ---- The comparison -----------------------------------------------------------------------------------------------------

struct System {
  std::string name;
  DimeRecOptions options = {};
  bool generates = true;
};

std::vector<System> systems_of(const Config& config) {
  DimeRecOptions full{
      .interests = config.interests, .softmax_weight = config.softmax, .reconstruction_weight = config.reconstruction};
  const auto with = [&](const std::string& name, auto&& change, bool generates = true) {
    System s{name, full, generates};
    change(s.options);
    return s;
  };
  std::vector<System> all;
  all.push_back(with(
      "multi-interest, SA", [](auto& o) { o.softmax_weight = o.reconstruction_weight = 0; }, false));
  all.push_back(with(
      "multi-interest, DR",
      [](auto& o) {
        o.softmax_weight = o.reconstruction_weight = 0;
        o.extraction = GuidanceExtraction::dynamic_routing;
      },
      false));
  all.push_back(with("DimeRec", [](auto&) {}));
  if (!config.ablation) return all;
  all.push_back(with("  guided by routing", [](auto& o) { o.extraction = GuidanceExtraction::dynamic_routing; }));
  all.push_back(with("  guided by last items", [](auto& o) { o.extraction = GuidanceExtraction::last_items; }));
  all.push_back(with("  one interest", [](auto& o) { o.interests = 1; }));
  all.push_back(with("  no extraction loss", [](auto& o) { o.extraction_weight = 0; }));
  all.push_back(with("  no softmax loss", [](auto& o) { o.softmax_weight = 0; }));
  all.push_back(with("  no reconstruction", [](auto& o) { o.reconstruction_weight = 0; }));
  all.push_back(with("  not on the sphere", [](auto& o) { o.space = DiffusionSpace::euclidean; }));
  return all;
}

/// How quality and latency depend on the number of reverse steps.
void by_steps(const World& world, const Questions& questions, const DimeRec<float>& model, const DreamRec<float>& dream,
              const Config& config) {
  std::printf("\nBy the number of reverse steps, %td starts (one core, one request at a time, list of 50):\n", config.samples);
  std::printf("  %-22s %6s %8s %8s %10s %12s\n", "", "steps", "HR@50", "NDCG@50", "diversity", "microseconds");
  SvgChart chart{.title = "Quality against steps, " + world.name, .x_label = "reverse steps", .y_label = "HR@50", .log_x = true};
  chart.series.resize(3);
  Matrix<std::int32_t> list(1, 50);
  Workspace ws;
  const auto show = [&](int series, const std::string& name, Index steps, const Quality& q, double us) {
    std::printf("  %-22s %6td %8.4f %8.4f %10.3f %12.1f\n", name.c_str(), steps, q.hit50, q.ndcg50, q.diversity, us);
    SvgSeries& s = chart.series[static_cast<std::size_t>(series)];
    s.name = name;
    s.x.push_back(static_cast<double>(steps));
    s.y.push_back(q.hit50);
  };
  for (const Index samples : {Index{1}, config.samples}) {
    for (const Index steps : {1, 2, 5, 10, 20, 50}) {
      const FrozenDimeRec<float> frozen(model, {.steps = steps, .samples = samples, .guidance = config.guidance});
      const double us = latency(questions, [&](IndexView ids, IndexView offsets, IndexView rows) {
        frozen.recommend(ids, offsets, rows, {}, list, {}, ws);
      });
      show(samples == 1 ? 0 : 1, samples == 1 ? "DimeRec, one start" : "DimeRec", steps,
           judge_generated(world, questions, frozen), us);
    }
    if (config.samples == 1) break;
  }
  for (const Index steps : {1, 2, 5, 10, 20, 50, 200}) {
    const SamplerOptions options{
        .method = steps == 200 ? SamplerMethod::ddpm : SamplerMethod::ddim, .steps = steps, .guidance = config.dream_guidance};
    const FrozenDreamRec<float> frozen = freeze(dream, SamplerPlan(dream.schedule, options));
    const double us = latency(questions, [&](IndexView ids, IndexView offsets, IndexView rows) {
      frozen.recommend(ids, offsets, rows, 1, {}, list, {}, ws);
    });
    show(2, steps == 200 ? "DreamRec (DDPM)" : "DreamRec (DDIM)", steps, judge_dreamrec(world, questions, dream, options), us);
  }
  chart.series[2].name = "DreamRec";
  if (!config.plot.empty()) {
    write_svg(config.plot, chart);
    std::printf("  drawn in %s\n", config.plot.c_str());
  }
}

void run(const Config& config) {
  const std::vector<System> systems = systems_of(config);
  std::vector<std::string> names{"SASRec", "DreamRec"};
  for (const System& s : systems) names.push_back(s.name);
  std::vector<std::uint64_t> seeds(at(config.seeds));
  std::iota(seeds.begin(), seeds.end(), std::uint64_t{1});
  const char* metrics[] = {"HR@20", "HR@50", "NDCG@20", "NDCG@50", "diversity@20"};
  std::vector<SeedTable> tables;
  for (const char* m : metrics) tables.emplace_back(m, names, seeds);

  for (Index s = 0; s < config.seeds; ++s) {
    const std::uint64_t seed = seeds[at(s)];
    const World world = config.data.empty() ? simulated(config, seed) : films(config.data);
    const Questions questions = questions_of(world, config);
    std::printf("%s, seed %d: %td users, %td items, %td events, %td to predict\n", world.name.c_str(), static_cast<int>(seed),
                world.sequences.users(), world.items, static_cast<Index>(world.sequences.items.size()), questions.size());
    Index row = 0;
    const auto record = [&](const Quality& q) {
      const double values[] = {q.hit20, q.hit50, q.ndcg20, q.ndcg50, q.diversity};
      for (std::size_t m = 0; m < tables.size(); ++m) tables[m].set(row, s, values[m]);
      ++row;
    };
    const auto start = Clock::now();
    {
      const SasRec<float> model = train_sasrec(world, config, seed);
      Workspace ws;
      Matrix<float> x(questions.size(), model.width());
      model.encode(questions.ids, questions.offsets, x, ws);
      record(judge_vectors(world, questions, x, ItemTable<float>(model.items.weight.values), 1));
    }
    const DreamRec<float> dream = train_dreamrec(world, config, seed);
    record(judge_dreamrec(world, questions, dream, {.method = SamplerMethod::ddpm, .guidance = config.dream_guidance}));
    std::unique_ptr<DimeRec<float>> full;
    for (const System& system : systems) {
      DimeRec<float> model = train_dimerec(world, config, system.options, seed, system.name);
      const FrozenDimeRec<float> frozen(model, {.steps = config.steps, .samples = config.samples, .guidance = config.guidance});
      record(system.generates ? judge_generated(world, questions, frozen)
                              : judge_interests(world, questions, frozen, system.options.interests));
      if (system.name == "DimeRec") full = std::make_unique<DimeRec<float>>(std::move(model));
    }
    std::printf("  trained and judged in %.1f s\n", seconds_since(start));
    if (s + 1 < config.seeds) continue;
    std::printf("\n");
    for (SeedTable& table : tables) {
      if (config.seeds == 1 && &table == &tables[0]) {  // one line a system
        std::printf("  %-24s", "");
        for (const char* m : metrics) std::printf(" %12s", m);
        std::printf("\n");
        for (Index i = 0; i < static_cast<Index>(names.size()); ++i) {
          std::printf("  %-24s", names[at(i)].c_str());
          for (const SeedTable& t : tables) std::printf(" %12.4f", t.value(i, 0));
          std::printf("\n");
        }
        std::printf("  by chance HR@50 is about %.3f; one standard error of SASRec's is %.3f: --seeds 5 tells luck from more\n",
                    50.0 / static_cast<double>(world.items),
                    std::sqrt(tables[1].value(0, 0) * (1 - tables[1].value(0, 0)) / static_cast<double>(questions.size())));
      }
      if (config.seeds > 1) table.print(stdout, 4), std::printf("\n");
    }
    if (config.seeds > 1) {
      const auto against = [&](const char* name, Index baseline) {
        const Interval d = tables[1].difference(4, baseline);
        std::printf("DimeRec minus %-20s HR@50 %+.4f +- %.4f (95 %%): %s\n", name, d.mean, d.half_width,
                    d.low() > 0    ? "better"
                    : d.high() < 0 ? "worse"
                                   : "not told apart");
      };
      against("SASRec", 0), against("DreamRec", 1), against("multi-interest, SA", 2), against("multi-interest, DR", 3);
      for (Index i = 5; i < static_cast<Index>(names.size()); ++i) {
        const Interval d = tables[1].difference(4, i);
        std::printf("%-24s %s\n", names[at(i)].c_str(),
                    d.low() > 0    ? "the module helps"
                    : d.high() < 0 ? "the module hurts here"
                                   : "no difference that so few seeds could show");
      }
    }
    by_steps(world, questions, *full, dream, config);
  }
}

}  // namespace

int main(int argc, char** argv) {
  Config config;
  Cli cli("dimerec", "Next-item recommendation by diffusion over interests, against SASRec, ComiRec and DreamRec.");
  cli.option("data", config.data, "folder with MovieLens (docs/data.md); without it a simulated world", "DIR");
  cli.option("plot", config.plot, "SVG of quality against the number of steps", "FILE");
  cli.option("seeds", config.seeds, "runs to compare the systems over", "seeds", 1, 100);
  cli.option("users", config.users, "users of the simulated world", "users", 10, 1000000);
  cli.option("items", config.items, "items of the simulated world", "items", 100, 1000000);
  cli.option("width", config.width, "of embeddings", "", 2, 1024);
  cli.option("interests", config.interests, "of a user", "", 1, 64);
  cli.option("history", config.history, "items that a model sees", "items", 1, 1000);
  cli.option("epochs", config.epochs, "passes over the users", "passes", 1, 10000);
  cli.option("cuts", config.cuts, "examples of each user in a pass", "", 1, 1000);
  cli.option("steps", config.steps, "reverse steps of DimeRec", "steps", 1, 50);
  cli.option("samples", config.samples, "starts of each request", "", 1, 64);
  cli.option("rate", config.learning_rate, "learning rate of Adam", "", 0, 1);
  cli.option("temperature", config.temperature, "of DimeRec's softmaxes", "", 1e-3, 10);
  cli.option("softmax", config.softmax, "weight of the softmax over generated vectors", "", 0, 100);
  cli.option("reconstruction", config.reconstruction, "weight of the reconstruction", "", 0, 100);
  cli.option("guidance", config.guidance, "w of DimeRec", "", -1, 10);
  cli.option("dream-guidance", config.dream_guidance, "w of DreamRec", "", -1, 10);
  cli.flag("ablation", config.ablation, "DimeRec without each of its modules as well");
  cli.parse(argc, argv);
  std::printf("%s\n", build_info().c_str());
  try {
    run(config);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "dimerec: %s\n", error.what());
    return 1;
  }
}
