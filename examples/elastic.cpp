/// The next item after a long history: attention that costs O(L) against attention that costs O(L^2).
///
/// First, what it costs: parameters, memory, the time of a training step and of a request as the sequence grows (--longest 8192: from 50 to
/// 8192). Then what it is worth: self-attention (SASRec), dispatcher attention (ELASTIC) with and without an interest memory, in the causal
/// form that trains at every position and in the published one that looks ahead and trains on the last, LightSANs and HSTU learn the same
/// sequences of users with many interests and predict the same held-out items. With --seeds 3 the table says where the others are ahead of,
/// level with or behind self-attention. Without arguments all this happens in a small simulated world.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <recops/attention/hstu.hpp>
#include <recops/attention/lightsans.hpp>
#include <recops/models/elastic.hpp>
#include <recops/models/sasrec.hpp>
#include <recops/nn/sequential.hpp>
#include <recops/simd/build_info.hpp>
#include <recops/train/adam.hpp>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

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
  Index seeds = 1, users = 100, items = 200, visits = 50, interests = 8, width = 32, heads = 2, blocks = 2, experts = 16,
        memory = 64, history = 30, epochs = 10, cuts = 3, batch = 8, negatives = 128, held_out = 3, longest = 1000;
  double learning_rate = 1e-2, dropout = 0.2;
  bool growth_only = false, quality_only = false;
};

// ---- The systems --------------------------------------------------------------------------------------------------------

enum class System { sasrec, dispatcher, dispatcher_memory, ahead, ahead_memory, lightsans, hstu };
struct Named {
  System system;
  const char* name;
  bool last_only;
};
constexpr Named systems[] = {{System::sasrec, "self-attention (SASRec)", false},
                             {System::dispatcher, "dispatcher, causal", false},
                             {System::dispatcher_memory, "  + interest memory", false},
                             {System::ahead, "dispatcher, looking ahead", true},
                             {System::ahead_memory, "  + interest memory", true},
                             {System::lightsans, "LightSANs, looking ahead", true},
                             {System::hstu, "HSTU", false}};
constexpr Index system_count = 7;

using Dispatcher = NextItemModel<float, DispatcherStack<float>>;
using LightSansModel = NextItemModel<float, Sequential<float, LightSansBlock<float>, LightSansBlock<float>, LayerNorm<float>>>;
using HstuModel = NextItemModel<float, Sequential<float, Hstu<float>, Hstu<float>, LayerNorm<float>>>;

constexpr bool looks_ahead(System s) { return s == System::ahead || s == System::ahead_memory || s == System::lightsans; }

/// Calls `f(model)` with the system's model for `items` items and sequences of at most `longest`.
template <class F>
void with_model(System system, const Config& config, Index items, Index longest, std::uint64_t seed, F&& f) {
  Random random(seed, 0x656c61ull);
  const NextItemOptions o{
      .items = items, .width = config.width, .max_length = longest, .dropout = config.dropout, .last_only = looks_ahead(system)};
  if (system == System::sasrec)
    return f(SasRec<float>({.items = items,
                            .width = config.width,
                            .max_length = longest,
                            .blocks = config.blocks,
                            .heads = config.heads,
                            .dropout = config.dropout},
                           random));
  if (system == System::hstu) {
    const HstuOptions h{.heads = config.heads, .max_length = longest, .dropout = config.dropout};
    Hstu<float> first(config.width, h, random), second(config.width, h, random);
    Sequential<float, Hstu<float>, Hstu<float>, LayerNorm<float>> body(std::move(first), std::move(second),
                                                                       LayerNorm<float>(config.width));
    return f(HstuModel(o, std::move(body), random));
  }
  if (system == System::lightsans) {
    const auto block = [&] {
      return LightSansBlock<float>(LightSans<float>(config.width, {.heads = config.heads, .interests = config.experts}, random),
                                   config.width, {.hidden = config.width, .norm_first = true, .dropout = config.dropout}, random);
    };
    LightSansBlock<float> first = block(), second = block();
    Sequential<float, LightSansBlock<float>, LightSansBlock<float>, LayerNorm<float>> body(std::move(first), std::move(second),
                                                                                           LayerNorm<float>(config.width));
    return f(LightSansModel(o, std::move(body), random));
  }
  const bool memory = system == System::dispatcher_memory || system == System::ahead_memory;
  DispatcherStack<float> stack({.width = config.width,
                                .blocks = config.blocks,
                                .heads = config.heads,
                                .experts = config.experts,
                                .dropout = config.dropout,
                                .causal = !o.last_only,
                                .memory = memory ? config.memory : 0},
                               random);
  f(Dispatcher(o, std::move(stack), random));
}

// ---- What it costs ------------------------------------------------------------------------------------------------------

/// Bytes on the heap, where the system tells.
double heap_bytes() {
#if defined(__GLIBC__) && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 33)
  const struct mallinfo2 m = mallinfo2();
  return static_cast<double>(m.uordblks + m.hblkhd);
#else
  return std::nan("");
#endif
}

struct Cost {
  double parameters = 0, step = 0, request = 0, step_bytes = 0, request_bytes = 0;
};

Cost cost_of(System system, const Config& config, Index length) {
  Cost cost;
  with_model(system, config, 1000, length, 1, [&](auto&& model) {
    using Model = std::remove_cvref_t<decltype(model)>;
    cost.parameters = static_cast<double>(parameter_count(model) - 1000 * config.width);
    std::vector<std::int32_t> ids, negatives;
    Random random(2);
    for (Index i = 0; i <= length; ++i) ids.push_back(static_cast<std::int32_t>(random.below(1000)));
    for (Index i = 0; i < config.negatives; ++i) negatives.push_back(static_cast<std::int32_t>(random.below(1000)));
    const std::vector<std::int64_t> offsets{0, length + 1}, request{0, length};
    const IndexView history(ids.data(), length);
    Model gradient = make_gradient(model);
    const double before = heap_bytes();
    {
      Workspace ws;
      typename Model::Saved saved;
      double best = 1e9;
      std::uint64_t number = 0;
      const auto start = Clock::now();
      do {
        zero_gradient(gradient);
        const auto one = Clock::now();
        model.value_and_grad(ids, offsets, negatives, {}, gradient, saved, {.seed = 1, .number = number}, ws);
        best = std::min(best, seconds_since(one));
      } while (++number < 2 || (number < 20 && seconds_since(start) < 0.05));
      cost.step = best;
      cost.step_bytes = heap_bytes() - before;
    }
    const double rest = heap_bytes();
    Workspace ws;
    Matrix<float> user(1, config.width);
    double best = 1e9;
    int calls = 0;
    const auto start = Clock::now();
    do {
      const auto one = Clock::now();
      model.encode(history, request, user, ws);
      best = std::min(best, seconds_since(one));
    } while (++calls < 2 || (calls < 50 && seconds_since(start) < 0.02));
    cost.request = best;
    cost.request_bytes = heap_bytes() - rest;
  });
  return cost;
}

void growth(const Config& given) {
  Config config = given;
  config.width = 64;
  std::printf("One sequence of length L, %td columns, %td heads, %td blocks, %td experts, a memory of %td interests, one core.\n",
              config.width, config.heads, config.blocks, config.experts, config.memory * config.memory);
  std::printf(
      "A step is loss and gradient at all positions (looking ahead: of the last one); a request encodes the history anew.\n");
  std::printf("  %-26s %6s %12s %12s %12s %12s %12s\n", "", "L", "parameters", "step", "memory", "request", "memory");
  SvgChart chart{.title = "A request against the length of the history",
                 .x_label = "length",
                 .y_label = "milliseconds",
                 .log_x = true,
                 .log_y = true};
  for (const Named& s : systems) {
    SvgSeries line{.name = s.system == System::dispatcher_memory ? "dispatcher, causal + memory"
                           : s.system == System::ahead_memory    ? "dispatcher, looking ahead + memory"
                                                                 : s.name};
    for (const Index length : {Index{50}, Index{200}, Index{1000}, Index{4096}, Index{8192}}) {
      if (length > config.longest) continue;
      const Cost c = cost_of(s.system, config, length);
      std::printf("  %-26s %6td %12.0f %9.2f ms %9.1f MB %9.3f ms %9.1f MB\n", length == 50 ? s.name : "", length, c.parameters,
                  c.step * 1e3, c.step_bytes * 1e-6, c.request * 1e3, c.request_bytes * 1e-6);
      line.x.push_back(static_cast<double>(length));
      line.y.push_back(c.request * 1e3);
    }
    chart.series.push_back(line);
  }
  std::printf("(parameters without the items' embeddings; positions are a table, so that they grow with L)\n");
  if (config.plot.empty()) return;
  write_svg(config.plot, chart);
  std::printf("drawn in %s\n", config.plot.c_str());
}

// ---- What it is worth ---------------------------------------------------------------------------------------------------

struct World {
  std::string name;
  UserSequences sequences;
  Index items = 0;
};

World simulated(const Config& config, std::uint64_t seed) {
  SimulatorOptions o;
  o.seed = seed;
  o.users = config.users;
  o.items = config.items;
  o.visits_per_user = static_cast<double>(config.visits);
  o.interests_min = std::max<Index>(1, config.interests - 2);
  o.interests_max = config.interests + 2;
  const Simulator simulator(o);
  return {"simulated feed", user_sequences(simulator.generate()), simulator.item_count()};
}
World films(const std::string& folder) {
  const MovieLens data = load_movielens(folder);
  return {"MovieLens", user_sequences(data.log), data.log.items};
}

/// The sequences of one step. Models that learn at every position get a window from a random place, the others `cuts` random prefixes.
void draw_sequences(const World& world, const Config& config, VectorView<const Index> users, bool last_only, const Step& step,
                    std::vector<std::int32_t>& ids, std::vector<std::int64_t>& offsets) {
  ids.clear();
  offsets.assign(1, 0);
  for (const Index u : users) {
    const auto all = world.sequences[u];
    const Index known = std::max<Index>(0, all.size() - config.held_out);
    Random random = step.child(78).random(u);
    for (Index c = 0; c < (last_only ? config.cuts : 1) && known >= 2; ++c) {
      const Index end = last_only                ? 2 + random.below(known - 1)
                        : known > config.history ? config.history + 1 + random.below(known - config.history)
                                                 : known;
      const Index first = std::max<Index>(0, end - config.history - 1);
      ids.insert(ids.end(), all.begin() + first, all.begin() + end);
      offsets.push_back(static_cast<std::int64_t>(ids.size()));
    }
  }
}

template <class Model>
void train(Model& model, const World& world, const Config& config, bool last_only, std::uint64_t seed, const std::string& label) {
  Adam adam(model, {.learning_rate = config.learning_rate});
  Model gradient = make_gradient(model);
  typename Model::Saved saved;
  Workspace ws;
  std::vector<Index> order(at(world.sequences.users()));
  std::iota(order.begin(), order.end(), Index{0});
  std::vector<std::int32_t> ids, negatives(at(config.negatives));
  std::vector<std::int64_t> offsets;
  Step step{seed, 0, 0};
  Progress progress(label, config.epochs);
  for (Index epoch = 0; epoch < config.epochs; ++epoch) {
    Random shuffle(seed, 0x73687566ull + static_cast<std::uint64_t>(epoch));
    for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[at(shuffle.below(static_cast<Index>(i)))]);
    const double done = static_cast<double>(epoch) / static_cast<double>(config.epochs);
    adam.options.learning_rate = config.learning_rate * (done < 0.6 ? 1 : done < 0.85 ? 0.3 : 0.1);
    double total = 0;
    Index batches = 0;
    for (Index first = 0; first < world.sequences.users(); first += config.batch, ++step.number, ++batches) {
      const VectorView<const Index> users(order.data() + first, std::min(config.batch, world.sequences.users() - first));
      draw_sequences(world, config, users, last_only, step, ids, offsets);
      Random random = step.child(77).random();
      for (auto& i : negatives) i = static_cast<std::int32_t>(random.below(world.items));
      zero_gradient(gradient);
      total += model.value_and_grad(ids, offsets, negatives, {}, gradient, saved, step, ws);
      adam.step(model, gradient);
    }
    char note[32];
    std::snprintf(note, sizeof note, "loss %.4f", total / static_cast<double>(std::max<Index>(1, batches)));
    progress.advance(1, note);
  }
}

struct Quality {
  double hit = 0, ndcg = 0;
};

/// Ranks the whole catalogue but what was seen; the last `held_out` items of every user, each from those before it.
template <class Model>
Quality judge(const Model& model, const World& world, const Config& config) {
  Workspace ws;
  Quality q;
  double questions = 0;
  std::vector<char> seen(at(world.items));
  Matrix<float> user(1, model.width()), scores(1, world.items);
  for (Index u = 0; u < world.sequences.users(); ++u) {
    const auto all = world.sequences[u];
    for (Index place = std::max<Index>(1, all.size() - config.held_out); place < all.size(); ++place) {
      const Index first = std::max<Index>(0, place - config.history);
      const std::vector<std::int64_t> offsets{0, place - first};
      model.encode(IndexView(all.data() + first, place - first), offsets, user, ws);
      simd::gemm<float>(simd::plain(std::as_const(user).view()), simd::transposed(model.items.weight.values.view()), {}, scores,
                        ws);
      for (Index i = 0; i < place; ++i) seen[at(all[i])] = 1;
      const float own = scores(0, all[place]);
      Index rank = 1;
      for (Index i = 0; i < world.items; ++i) rank += !seen[at(i)] && i != all[place] && !(scores(0, i) < own);
      for (Index i = 0; i < place; ++i) seen[at(all[i])] = 0;
      if (rank <= 10) q.hit += 1, q.ndcg += 1 / std::log2(1 + static_cast<double>(rank));
      questions += 1;
    }
  }
  if (questions > 0) q.hit /= questions, q.ndcg /= questions;
  return q;
}

/// How much of a memory the users' histories read.
void print_memory(Dispatcher model, const World& world, const Config& config) {
  model.dropout = Dropout<float>(0);
  for (auto& block : model.body.blocks) block.options.dropout = 0;
  Workspace ws;
  MemoryUsage usage(config.memory * config.memory);
  Dispatcher::Saved saved;
  Matrix<float> h;
  for (Index u = 0; u < world.sequences.users(); ++u) {
    const auto all = world.sequences[u];
    const Index count = std::min(all.size(), config.history);
    if (count == 0) continue;
    const std::vector<std::int64_t> offsets{0, count};
    h.resize(count, model.width());
    model.forward(IndexView(all.data() + all.size() - count, count), offsets, h, saved, {}, ws);
    const Matrix<std::int32_t>& slots = saved.body.memory.slots;
    usage.add(VectorView<const std::int32_t>(slots.data(), slots.rows() * slots.cols()));
  }
  std::printf("    memory: %.1f %% of %td interests are read, as diverse as %.0f read alike\n", 100 * usage.live(),
              config.memory * config.memory, usage.perplexity());
}

void quality(const Config& config, const World& real) {
  std::vector<std::string> names;
  for (const Named& s : systems) names.push_back(std::string(s.name) + (s.system == System::ahead_memory ? " (ahead)" : ""));
  std::vector<std::uint64_t> seeds(at(config.seeds));
  std::iota(seeds.begin(), seeds.end(), std::uint64_t{1});
  SeedTable hit("HR@10", names, seeds), ndcg("NDCG@10", names, seeds);
  for (Index s = 0; s < config.seeds; ++s) {
    const World drawn = config.data.empty() ? simulated(config, seeds[at(s)]) : World();
    const World& world = config.data.empty() ? drawn : real;
    std::printf("\n%s, seed %d: %td users, %td items, %td events, histories of up to %td\n", world.name.c_str(),
                static_cast<int>(seeds[at(s)]), world.sequences.users(), world.items,
                static_cast<Index>(world.sequences.items.size()), config.history);
    for (Index i = 0; i < system_count; ++i) {
      with_model(systems[i].system, config, world.items, config.history, seeds[at(s)], [&](auto&& model) {
        const auto start = Clock::now();
        train(model, world, config, systems[i].last_only, seeds[at(s)], systems[i].name);
        const Quality q = judge(model, world, config);
        hit.set(i, s, q.hit);
        ndcg.set(i, s, q.ndcg);
        std::printf("  %-26s HR@10 %.4f  NDCG@10 %.4f  (%.1f s)\n", systems[i].name, q.hit, q.ndcg, seconds_since(start));
        if constexpr (std::is_same_v<std::remove_cvref_t<decltype(model)>, Dispatcher>)
          if (model.body.has_memory()) print_memory(model, world, config);
      });
    }
  }
  if (config.seeds == 1) {
    std::printf("(one seed: --seeds 3 says what of the differences is luck)\n");
    return;
  }
  std::printf("\n");
  hit.print(stdout, 0, 4);
  std::printf("\n");
  ndcg.print(stdout, 0, 4);
  std::printf("\nNDCG@10 against self-attention:\n");
  for (Index i = 1; i < system_count; ++i) {
    const Interval d = ndcg.difference(i, 0);
    std::printf("  %-28s %+.4f +- %.4f: %s\n", names[at(i)].c_str(), d.mean, d.half_width,
                d.low() > 0    ? "ahead"
                : d.high() < 0 ? "behind"
                               : "level, as far as these seeds can tell");
  }
}

}  // namespace

int main(int argc, char** argv) {
  Config config;
  Cli cli("elastic",
          "Next item after long histories: dispatcher attention and interest memory against self-attention, LightSANs and HSTU.");
  cli.option("data", config.data, "folder with MovieLens (docs/data.md); without it a simulated world", "DIR");
  cli.option("plot", config.plot, "SVG of the time of a request against the length", "FILE");
  cli.option("seeds", config.seeds, "runs to compare the systems over", "seeds", 1, 100);
  cli.option("users", config.users, "users of the simulated world", "users", 10, 1000000);
  cli.option("items", config.items, "items of the simulated world", "items", 100, 1000000);
  cli.option("visits", config.visits, "mean visits of a user", "visits", 1, 10000);
  cli.option("interests", config.interests, "of a user, two more or less", "", 1, 20);
  cli.option("width", config.width, "of embeddings", "", 2, 1024);
  cli.option("heads", config.heads, "divides the width", "", 1, 64);
  cli.option("blocks", config.blocks, "of attention (LightSANs and HSTU have two)", "", 1, 16);
  cli.option("experts", config.experts, "of a block, and interests of LightSANs; even", "", 2, 1024);
  cli.option("memory", config.memory, "sub-keys of the memory, which has their square of interests", "", 4, 4096);
  cli.option("history", config.history, "items that a model sees", "items", 1, 100000);
  cli.option("epochs", config.epochs, "passes over the users", "passes", 1, 10000);
  cli.option("cuts", config.cuts, "prefixes of each user in a pass, for what looks ahead", "", 1, 1000);
  cli.option("batch", config.batch, "users of a step", "users", 1, 100000);
  cli.option("rate", config.learning_rate, "learning rate of Adam", "", 0, 1);
  cli.option("longest", config.longest, "sequence of the first table", "items", 50, 1e6);
  cli.flag("growth", config.growth_only, "the first table alone");
  cli.flag("quality", config.quality_only, "the second table alone");
  cli.parse(argc, argv);
  std::printf("%s\n", build_info().c_str());
  try {
    const World real = config.data.empty() ? World() : films(config.data);  // first: a folder that is not there is found at once
    if (!config.quality_only) growth(config);
    if (!config.growth_only) quality(config, real);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "elastic: %s\n", error.what());
    return 1;
  }
}
