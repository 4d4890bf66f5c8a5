/// A full-screen feed: one item after another, and after each the user may leave. What is the best order?
///
/// A log of simulated visits teaches a small network three rates of an item after those shown before it: P(buys), P(long view | no
/// purchase), P(swipes on | no purchase). The labels are made to agree first, and the rates are put together into a reward and the
/// chance that the visit goes on. Lists for held-out visits are then made by reward alone (greedy), by the exact context-free plan (index
/// order), and by dual-stage look-ahead with the network as predictor. The simulator knows what each list is worth, exactly.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <recops/core/random.hpp>
#include <recops/diversity/lookahead.hpp>
#include <recops/metrics/auc.hpp>
#include <recops/models/stcrank.hpp>
#include <recops/nn/loss.hpp>
#include <recops/nn/mlp.hpp>
#include <recops/simd/build_info.hpp>
#include <recops/train/adam.hpp>

#include "common/cli.hpp"
#include "common/progress.hpp"
#include "common/seeds.hpp"
#include "common/simulator.hpp"

using namespace examples;
using recops::Matrix;
using recops::MatrixView;
using recops::Mlp;
using recops::Random;
using recops::Vector;
using recops::VectorView;
using recops::Workspace;

namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }
std::size_t at(Index i) { return static_cast<std::size_t>(i); }

struct Config {
  Index seeds = 1, users = 400, items = 1500, slots = 8, candidates = 60, visits = 300, beam = 8, epochs = 3, memory = 20;
  double exit_rate = 0.15, boredom = 4, exit_purchase = 0.9, view_value = 0.3;
};

enum Rate : Index { conversion, view, swipe, rate_count };
enum System { greedy, index_order, planned, oracle, system_count };
const std::vector<std::string> system_names{"greedy by reward", "index order", "look-ahead", "look-ahead, true rates"};

/// What a service may know: vectors of the items, what each user clicked, how items have done so far.
struct Knowledge {
  const Simulator& world;
  InteractionLog log;
  TimeSplit split;
  std::vector<double> click_rate, buy_rate;  // logits per item, of the training part
  std::vector<std::vector<Index>> clicks;    // rows of each user's clicks, in order of time

  explicit Knowledge(const Simulator& w) : world(w), log(w.generate()), split(split_by_time(log, 0.2)) {
    std::vector<double> shown(at(log.items), 20), clicked(at(log.items), 20 * 0.18), bought(at(log.items), 20 * 0.02);
    clicks.resize(at(log.users));
    for (Index row = 0; row < log.size(); ++row) {
      const auto item = static_cast<std::size_t>(log.item[at(row)]);
      if (row < split.train.last) {
        shown[item] += 1;
        clicked[item] += log.label(Label::click)[at(row)];
        bought[item] += log.label(Label::purchase)[at(row)];
      }
      if (log.label(Label::click)[at(row)]) clicks[static_cast<std::size_t>(log.user[at(row)])].push_back(row);
    }
    for (std::size_t i = 0; i < shown.size(); ++i) {
      click_rate.push_back(std::log(clicked[i] / shown[i]));
      buy_rate.push_back(std::log(bought[i] / shown[i]));
    }
  }
  double cosine(Index a, Index b) const {
    return recops::simd::dot(world.item_vectors().row(a), world.item_vectors().row(b), world.item_vectors().cols());
  }
};

/// Features of an item for a user, without and with what was shown before it.
constexpr Index item_features = 5, feature_count = 8;

/// A user at one moment: the last items clicked.
struct Visitor {
  std::vector<std::int32_t> clicked;
  Visitor(const Knowledge& known, Index user, std::int64_t time, Index memory) {
    const auto& rows = known.clicks[at(user)];
    std::size_t end = 0;
    while (end < rows.size() && known.log.time[at(rows[end])] < time) ++end;
    for (std::size_t r = end > at(memory) ? end - at(memory) : 0; r < end; ++r) clicked.push_back(known.log.item[at(rows[r])]);
  }
  void features(const Knowledge& known, Index item, float* f) const {
    double first = -1, second = -1, sum = 0;
    for (const std::int32_t c : clicked) {
      const double s = known.cosine(item, c);
      sum += s;
      if (s > first) {
        second = first;
        first = s;
      } else if (s > second) {
        second = s;
      }
    }
    f[0] = static_cast<float>(clicked.empty() ? 0 : sum / static_cast<double>(clicked.size()));
    f[1] = static_cast<float>(std::max(first, 0.0));
    f[2] = static_cast<float>(std::max(second, 0.0));
    f[3] = static_cast<float>(known.click_rate[at(item)] + 1.7);
    f[4] = static_cast<float>(known.buy_rate[at(item)] + 4);
  }
};
/// How like the last four shown an item is, on average and at most, and how many there are.
void context_features(const Knowledge& known, const std::int32_t* shown, Index count, Index item, float* f) {
  const Index first = std::max<Index>(0, count - 4);
  double sum = 0, most = 0;
  for (Index k = first; k < count; ++k) {
    const double s = known.cosine(shown[k], item);
    sum += s;
    most = std::max(most, s);
  }
  f[0] = static_cast<float>(count > first ? sum / static_cast<double>(count - first) : 0);
  f[1] = static_cast<float>(most);
  f[2] = static_cast<float>(count - first) / 4;
}

/// Rows of the log as samples: features, labels and weights [N, 3].
struct Samples {
  Matrix<float> features, labels, weights;
};

Samples samples_of(const Knowledge& known, RowRange range, const Config& config) {
  const InteractionLog& log = known.log;
  Samples s{Matrix<float>(range.size(), feature_count), Matrix<float>(range.size(), rate_count),
            Matrix<float>(range.size(), rate_count, 1)};
  Index start = range.first;
  for (Index row = range.first; row < range.last; ++row) {
    if (log.visit[at(row)] != log.visit[at(start)]) start = row;
    const Index i = row - range.first, user = log.user[at(row)];
    const Visitor visitor(known, user, log.time[at(row)], config.memory);
    visitor.features(known, log.item[at(row)], s.features.row(i));
    context_features(known, log.item.data() + start, row - start, log.item[at(row)], s.features.row(i) + item_features);
    const bool last = row + 1 == log.size() || log.visit[at(row + 1)] != log.visit[at(row)];
    s.labels(i, conversion) = log.label(Label::purchase)[at(row)];
    s.labels(i, view) = log.label(Label::long_view)[at(row)];
    s.labels(i, swipe) = last ? 0 : 1;
    if (last && row - start + 1 == known.world.options().shown) s.weights(i, swipe) = 0;  // the list was at its end: nobody knows
  }
  return s;
}

Mlp<float> learn(const Samples& data, const Config& config, std::uint64_t seed) {
  Random random(seed, 11), order_of(seed, 12);
  Mlp<float> model({feature_count, 32, 16, rate_count}, {}, random), gradient = recops::make_gradient(model);
  Mlp<float>::Saved saved;
  recops::Adam adam(model, {.learning_rate = 3e-3});
  Workspace ws;
  constexpr Index batch = 256;
  const Index n = data.features.rows();
  std::vector<Index> order(at(n));
  std::iota(order.begin(), order.end(), Index{0});
  Matrix<float> x(batch, feature_count), y(batch, rate_count), w(batch, rate_count), z(batch, rate_count), dz(batch, rate_count);
  Progress progress("learning rates", config.epochs * (n / batch));
  for (Index epoch = 0; epoch < config.epochs; ++epoch) {
    for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[at(order_of.below(static_cast<Index>(i)))]);
    if (epoch + 1 == config.epochs) adam.options.learning_rate = 1e-3;
    for (Index first = 0; first + batch <= n; first += batch) {
      for (Index b = 0; b < batch; ++b) {
        const Index row = order[at(first + b)];
        std::copy_n(data.features.row(row), feature_count, x.row(b));
        std::copy_n(data.labels.row(row), rate_count, y.row(b));
        std::copy_n(data.weights.row(row), rate_count, w.row(b));
      }
      recops::zero_gradient(gradient);
      dz.fill(0);
      model.forward(x, z, saved, {seed, 0, 0}, ws);
      recops::bce_with_logits_value_and_grad<float>(z, y, {.weights = w}, {}, dz);
      model.backward(x, dz, saved, {}, gradient, ws);
      adam.step(model, gradient);
      progress.advance(1);
    }
  }
  return model;
}

/// Rewards and continuations of items after what was shown, by the network.
struct LearnedRates {
  const Knowledge& known;
  recops::FrozenMlp<float, recops::FrozenDense<float>, recops::FrozenDense<float>> model;
  recops::SwipeValue value;
  const std::vector<std::int32_t>* items = nullptr;  // candidates of the visit
  Matrix<float> own;                                 // [candidates, item_features]
  Matrix<float> x, z;
  Vector<float> p[rate_count];
  Workspace ws;

  void begin(const Visitor& visitor, const std::vector<std::int32_t>& candidates) {
    items = &candidates;
    own.resize(static_cast<Index>(candidates.size()), item_features);
    for (Index i = 0; i < own.rows(); ++i) visitor.features(known, candidates[at(i)], own.row(i));
  }
  /// The callback of `lookahead`: items and prefixes are places among the candidates.
  void operator()(const recops::LookaheadQuery& q, VectorView<float> rewards, VectorView<float> continuations) {
    const Index n = q.items.size(), k = q.prefixes.cols();
    x.resize(n, feature_count);
    z.resize(n, rate_count);
    std::vector<std::int32_t> shown(at(k));
    for (Index j = 0; j < n; ++j) {
      for (Index t = 0; t < k; ++t) shown[at(t)] = (*items)[at(q.prefixes(q.parents[j], t))];
      std::copy_n(own.row(q.items[j]), item_features, x.row(j));
      context_features(known, shown.data(), k, (*items)[at(q.items[j])], x.row(j) + item_features);
    }
    model.forward(x, z, ws);
    for (Index r = 0; r < rate_count; ++r) {
      p[r].resize(n);
      for (Index j = 0; j < n; ++j) p[r][j] = 1 / (1 + std::exp(-z(j, r)));
    }
    recops::compose_rates<float>({p[conversion], p[view], p[swipe]}, value, {.continuation = continuations, .reward = rewards});
  }
};

/// The same, from the simulator: how far better rates would carry.
struct TrueRates {
  const Simulator& world;
  Index user;
  std::int64_t time;
  const std::vector<std::int32_t>& items;
  double view_value;
  void operator()(const recops::LookaheadQuery& q, VectorView<float> rewards, VectorView<float> continuations) const {
    std::vector<std::int32_t> shown;
    for (Index j = 0; j < q.items.size(); ++j) {
      shown.clear();
      for (Index t = 0; t < q.prefixes.cols(); ++t) shown.push_back(items[at(q.prefixes(q.parents[j], t))]);
      shown.push_back(items[at(q.items[j])]);
      rewards[j] = static_cast<float>(world.true_probability(user, shown.back(), time, Label::purchase) +
                                      view_value * world.true_probability(user, shown.back(), time, Label::long_view));
      continuations[j] = static_cast<float>(1 - world.exit_probability(user, shown, time));
    }
  }
};

struct Result {
  double value[system_count] = {}, length[system_count] = {}, microseconds[system_count] = {};
};

Result run(const Config& config, std::uint64_t seed) {
  SimulatorOptions options{.seed = seed, .users = config.users, .items = config.items};
  options.rates.purchase = 0.15;  // of clicks: a shop
  options.exit_rate = config.exit_rate;
  options.exit_boredom = config.boredom;
  options.exit_purchase = config.exit_purchase;
  const Simulator world(options);
  const Knowledge known(world);
  Samples train = samples_of(known, known.split.train, config), test = samples_of(known, known.split.test, config);

  // Labels that do not work against each other.
  Matrix<float> lift(rate_count, rate_count), before(rate_count, rate_count), after(rate_count, rate_count);
  recops::label_dependence<float>(train.labels, train.weights, lift, before);
  const auto rules = recops::stcrank_rules(conversion, view, swipe);
  recops::label_collaboration<float>(rules, train.labels, train.weights);
  recops::label_collaboration<float>(rules, test.labels, test.weights);
  recops::label_dependence<float>(train.labels, train.weights, lift, after);
  const auto text = [](float phi) {
    char out[32];
    std::snprintf(out, sizeof out, "%+.3f", static_cast<double>(phi));
    return std::string(std::isnan(phi) ? "none" : out);
  };
  std::printf("seed %llu: %td impressions in the log; correlation with a purchase: long view %s -> %s, swiping on %s -> %s\n",
              static_cast<unsigned long long>(seed), known.log.size(), text(before(view, conversion)).c_str(),
              text(after(view, conversion)).c_str(), text(before(swipe, conversion)).c_str(),
              text(after(swipe, conversion)).c_str());

  const Mlp<float> model = learn(train, config, seed);
  const recops::SwipeValue value{
      .conversion = 1, .view = config.view_value, .swipe = 0, .continue_after_conversion = 1 - config.exit_purchase};
  LearnedRates rates{known, recops::freeze(model), value, nullptr, {}, {}, {}, {}, {}};
  {
    Workspace ws;
    Matrix<float> z(test.features.rows(), rate_count);
    rates.model.forward(test.features, z, ws);
    std::printf("  held-out AUC:");
    for (Index r = 0; r < rate_count; ++r) {
      std::vector<float> score;
      std::vector<std::uint8_t> label;
      for (Index i = 0; i < z.rows(); ++i) {
        if (test.weights(i, r) == 0) continue;
        score.push_back(z(i, r));
        label.push_back(test.labels(i, r) == 1);
      }
      const char* names[] = {"purchase", "long view", "swipe"};
      std::printf(" %s %.3f", names[r], recops::auc<float>(score, label, ws).value);
    }
    std::printf("\n");
  }

  Result result;
  Random draws(seed, 13);
  Workspace ws;
  const Index n = config.candidates, m = config.slots;
  Vector<float> r(n), c(n);
  Vector<std::int32_t> picks(m), every(n), parents(n, 0);
  std::iota(every.begin(), every.end(), 0);
  for (Index visit = 0; visit < config.visits; ++visit) {
    const Index row = known.split.test.first + draws.below(known.split.test.size()), user = known.log.user[at(row)];
    const std::int64_t time = known.log.time[at(row)];
    std::vector<std::int32_t> items;
    while (static_cast<Index>(items.size()) < n) {
      const auto item = static_cast<std::int32_t>(draws.below(world.item_count()));
      if (world.is_available(item, time) && std::find(items.begin(), items.end(), item) == items.end()) items.push_back(item);
    }
    rates.begin(Visitor(known, user, time, config.memory), items);
    const TrueRates truth{world, user, time, items, config.view_value};
    const recops::LookaheadQuery alone{MatrixView<const std::int32_t>(every.data(), 1, 0, 0), parents, every};
    for (int system = 0; system < system_count; ++system) {
      const auto start = Clock::now();
      if (system == oracle) {
        truth(alone, r, c);
        recops::lookahead<float>(r, c, {.beam = config.beam}, truth, picks, ws);
      } else {
        rates(alone, r, c);
        if (system == greedy) recops::simd::top_k<float>(r.data(), n, m, recops::Order::descending, nullptr, picks.data(), ws);
        if (system == index_order) recops::plan_sequence<float>(r, c, 0, picks, {}, ws);
        if (system == planned) recops::lookahead<float>(r, c, {.beam = config.beam}, rates, picks, ws);
      }
      result.microseconds[system] += 1e6 * seconds_since(start) / static_cast<double>(config.visits);
      std::vector<std::int32_t> list;
      for (const std::int32_t i : picks) list.push_back(items[at(i)]);
      double length = 0;
      const double bought = world.expected_labels(user, list, time, Label::purchase, &length),
                   viewed = world.expected_labels(user, list, time, Label::long_view);
      result.value[system] += (bought + config.view_value * viewed) / static_cast<double>(config.visits);
      result.length[system] += length / static_cast<double>(config.visits);
    }
  }
  return result;
}

}  // namespace

int main(int argc, char** argv) try {
  Config config;
  Cli cli("stcrank", "Plans the slots of a swipe feed: greedy, index order and look-ahead, on simulated visits with exits.");
  cli.option("seeds", config.seeds, "worlds to compare the orders over", "seeds", 1, 100);
  cli.option("users", config.users, "users of the simulated world", "users", 10, 1000000);
  cli.option("items", config.items, "items of the simulated world", "items", 100, 1000000);
  cli.option("slots", config.slots, "items planned per visit", "items", 1, 100);
  cli.option("candidates", config.candidates, "items to choose from", "items", 1, 1000);
  cli.option("visits", config.visits, "held-out visits to plan", "visits", 1, 1000000);
  cli.option("beam", config.beam, "prefixes kept per slot", "prefixes", 1, 100000);
  cli.option("epochs", config.epochs, "passes over the log", "passes", 1, 1000);
  cli.option("exit-rate", config.exit_rate, "probability of leaving after an item, with neither boredom nor a match", "", 0,
             0.99);
  cli.option("boredom", config.boredom, "how much items like those before drive away, in logits per unit of cosine", "", 0, 100);
  cli.option("exit-purchase", config.exit_purchase, "probability of leaving after a purchase", "", 0, 1);
  cli.option("view-value", config.view_value, "what a long view is worth, in purchases", "", 0, 1000);
  cli.parse(argc, argv);
  config.slots = std::min(config.slots, config.candidates);

  std::printf("%s\n", recops::build_info().c_str());
  const auto start = Clock::now();
  std::vector<std::uint64_t> seeds(at(config.seeds));
  std::iota(seeds.begin(), seeds.end(), std::uint64_t{1});
  SeedTable value("value per visit", system_names, seeds), length("items seen", system_names, seeds),
      cost("microseconds per plan", system_names, seeds);
  for (Index s = 0; s < config.seeds; ++s) {
    const Result result = run(config, seeds[at(s)]);
    for (Index system = 0; system < system_count; ++system) {
      value.set(system, s, result.value[system]);
      length.set(system, s, result.length[system]);
      cost.set(system, s, result.microseconds[system]);
    }
  }
  std::printf("\n%s\n%s\n%s\n", value.text().c_str(), length.text(0, 2).c_str(), cost.text(0, 1).c_str());
  const double gain = value.summary(planned).mean / value.summary(greedy).mean - 1;
  std::printf(
      "A visit is worth its purchases, and %.1f of one for every long view. Look-ahead is worth %.1f %% more than greedy.\n",
      config.view_value, 100 * gain);
  std::printf("\n%.1f s\n", seconds_since(start));
} catch (const std::exception& error) {
  std::fprintf(stderr, "stcrank: %s\n", error.what());
  return 1;
}
