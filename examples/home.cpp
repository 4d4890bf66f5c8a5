/// Many tasks of very different density on one network: what becomes of its experts, and does HoME cure it?
///
/// A simulated feed of two domains gives eight tasks (click, long view, like, purchase in each), from one positive in five impressions
/// to one in hundreds. Ratings (`--data`, MovieLens) give seven tasks of one. On the same embeddings, towers and steps are trained
///
///     shared bottom    one network for all tasks
///     MMoE             six relu experts, a gate per task                          and with HoME's expert: batch norm, silu
///     sparse MMoE      two of sixteen relu experts per task and row: costs what four do, and a loss keeps all of them busy
///     PLE              two levels of shared and own experts
///     HoME             and HoME with each of its four ingredients taken away
///
/// Two inputs are counts as a feature store holds them (`--scaled` takes their logarithms): what nobody normalised makes experts ill.
/// GAUC says how well held-out impressions are ordered for each user; an ExpertMonitor says what ails the experts.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <recops/gating/diagnostics.hpp>
#include <recops/gating/home.hpp>
#include <recops/gating/ple.hpp>
#include <recops/gating/sparse_mmoe.hpp>
#include <recops/metrics/gauc.hpp>
#include <recops/nn/embedding_bag.hpp>
#include <recops/nn/loss.hpp>
#include <recops/simd/build_info.hpp>
#include <recops/train/adam.hpp>

#include "common/cli.hpp"
#include "common/movielens.hpp"
#include "common/progress.hpp"
#include "common/seeds.hpp"
#include "common/simulator.hpp"

using namespace examples;
using recops::ExpertMonitor;
using recops::ExpertReport;
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
  Index seeds = 1, users = 400, items = 1200, epochs = 1, batch = 512, history = 20;
  double learning_rate = 3e-3;
  bool scaled = false;
  std::string data, json;
};

/// Impressions with what is known of them and what came of them.
struct Problem {
  std::vector<std::string> tasks;
  std::vector<Index> categories;  ///< of the tasks, for HoME
  Index items = 0, item_categories = 0;
  std::vector<std::int32_t> item, category, user;
  std::vector<std::int32_t> history, history_offsets{0};  ///< items the user took before, per row
  std::vector<std::uint8_t> domain, hour;
  std::vector<float> item_seen, user_seen;  ///< impressions before
  Matrix<float> labels, weights;            ///< [rows, tasks]; weight 0 where a task has no say in a row
  Index train = 0;                          ///< the first rows; the others are held out

  Index size() const { return static_cast<Index>(item.size()); }
  double rate(Index t) const {
    double positive = 0, all = 0;
    for (Index r = 0; r < train; ++r) {
      positive += labels(r, t) * weights(r, t);
      all += weights(r, t);
    }
    return all > 0 ? positive / all : 0;
  }
};

Problem describe(const InteractionLog& log, std::vector<std::string> tasks, std::vector<Index> categories, Index memory) {
  Problem p;
  p.tasks = std::move(tasks);
  p.categories = std::move(categories);
  p.items = log.items;
  p.item_categories = log.categories;
  p.item = log.item;
  p.user = log.user;
  p.domain = log.domain;
  p.hour = log.hour;
  for (const std::int32_t i : log.item) p.category.push_back(log.item_category[static_cast<std::size_t>(i)]);
  p.train = split_by_time(log, 0.35).train.last;
  std::vector<float> items(at(log.items), 0), users(at(log.users), 0);
  for (Index r = 0; r < log.size(); ++r) {
    p.item_seen.push_back(items[static_cast<std::size_t>(log.item[at(r)])]++);
    p.user_seen.push_back(users[static_cast<std::size_t>(log.user[at(r)])]++);
  }
  const Histories histories(log);
  std::vector<Index> rows(at(log.size()));
  std::iota(rows.begin(), rows.end(), Index{0});
  HistoryBatch batch;
  histories.gather_rows(rows, memory, batch);
  p.history = std::move(batch.items);
  p.history_offsets = std::move(batch.offsets);
  const auto count = static_cast<Index>(p.tasks.size());
  p.labels = Matrix<float>(log.size(), count, 0.0f);
  p.weights = Matrix<float>(log.size(), count, 1.0f);
  return p;
}

Problem simulated(const Config& config, std::uint64_t seed) {
  SimulatorOptions o{.seed = seed, .users = config.users, .items = config.items};
  o.second_items = config.items / 4;
  o.second_ratio = 3;
  o.rates = {.click = 0.2, .long_view = 0.4, .like = 0.1, .purchase = 0.05};
  o.second_rates = {.click = 0.1, .long_view = 0.3, .like = 0.1, .purchase = 0.05};
  const InteractionLog log = Simulator(o).generate();
  // HoME's categories: what is watched, and what is done about it.
  Problem p = describe(log, {"click", "long view", "click B", "long view B", "like", "purchase", "like B", "purchase B"},
                       {0, 0, 0, 0, 1, 1, 1, 1}, config.history);
  const Label label[] = {Label::click, Label::long_view, Label::click, Label::long_view,
                         Label::like,  Label::purchase,  Label::like,  Label::purchase};
  for (Index r = 0; r < log.size(); ++r)
    for (Index t = 0; t < 8; ++t) {
      p.labels(r, t) = log.label(label[t])[at(r)];
      p.weights(r, t) = (t / 2 % 2 == 1) == (log.domain[at(r)] == 1);  // a task's own domain
    }
  return p;
}

Problem rated(const Config& config) {
  const MovieLens films = load_movielens(config.data);
  Problem p = describe(films.log, {"3.5 or more", "4 or more", "4.5 or more", "5", "2.5 or less", "1.5 or less", "0.5"},
                       {0, 0, 0, 0, 1, 1, 1}, config.history);
  for (Index r = 0; r < films.log.size(); ++r) {
    const float stars = films.rating[at(r)];
    const bool label[] = {stars >= 3.5f, stars >= 4, stars >= 4.5f, stars >= 5, stars <= 2.5f, stars <= 1.5f, stars <= 0.5f};
    for (Index t = 0; t < 7; ++t) p.labels(r, t) = label[t];
  }
  return p;
}

constexpr Index width = 16, expert_width = 16, own_experts = 1, group_experts = 2;
/// item | its category | mean of the user's last items | item * mean | domain, hour, how often item and user were seen before
constexpr Index inputs = 4 * width + 6;

/// The network around a mixture; everything but the mixture is the same for all of them.
template <class Mixture>
struct Model {
  recops::EmbeddingBag<float> item, category, past;
  Mixture mixture;
  std::vector<recops::Linear<float>> towers;

  Model(const Problem& p, Mixture m, Random& random)
      : item(p.items, width, 0.1, random),
        category(p.item_categories, width, 0.1, random),
        past(p.items, width, 0.1, random, {.pooling = recops::Pooling::mean}),
        mixture(std::move(m)) {
    for (Index t = 0; t < static_cast<Index>(p.tasks.size()); ++t) {
      towers.emplace_back(expert_width, 1, random);
      const double rate = std::clamp(p.rate(t), 1e-4, 1 - 1e-4);
      towers.back().bias[0] = static_cast<float>(std::log(rate / (1 - rate)));
    }
  }
  static constexpr auto fields() {
    using namespace recops;
    return std::tuple{layer("item", &Model::item), layer("category", &Model::category), layer("past", &Model::past),
                      layer("mixture", &Model::mixture), layers("towers", &Model::towers)};
  }
};

/// Rows of a problem as inputs of a model.
struct Batch {
  std::vector<std::int32_t> item, category, history, offsets;
  Matrix<float> x, labels, weights;

  template <class Mixture>
  void take(const Problem& p, const Index* rows, Index n, bool raw, const Model<Mixture>& model) {
    const auto tasks = static_cast<Index>(p.tasks.size());
    item.clear();
    category.clear();
    history.clear();
    offsets.assign(1, 0);
    x.resize(n, inputs);
    labels.resize(n, tasks);
    weights.resize(n, tasks);
    for (Index b = 0; b < n; ++b) {
      const auto r = at(rows[b]);
      item.push_back(p.item[r]);
      category.push_back(p.category[r]);
      history.insert(history.end(), p.history.begin() + p.history_offsets[r], p.history.begin() + p.history_offsets[r + 1]);
      offsets.push_back(static_cast<std::int32_t>(history.size()));
      std::copy_n(p.labels.row(rows[b]), tasks, labels.row(b));
      std::copy_n(p.weights.row(rows[b]), tasks, weights.row(b));
    }
    const MatrixView<float> all = x;
    model.item.forward(item, {}, all.middle_cols(0, width));
    model.category.forward(category, {}, all.middle_cols(width, width));
    model.past.forward(history, offsets, all.middle_cols(2 * width, width));
    for (Index b = 0; b < n; ++b) {
      float* const row = x.row(b);
      for (Index j = 0; j < width; ++j) row[3 * width + j] = 10 * row[j] * row[2 * width + j];  // embeddings begin at 0.1
      const double angle = 2 * 3.14159265358979 * p.hour[at(rows[b])] / 24;
      float* const rest = row + 4 * width;
      rest[0] = p.domain[at(rows[b])] == 0 ? 1.0f : 0.0f;
      rest[1] = 1 - rest[0];
      rest[2] = static_cast<float>(std::sin(angle));
      rest[3] = static_cast<float>(std::cos(angle));
      const float seen[] = {p.item_seen[at(rows[b])], p.user_seen[at(rows[b])]};
      for (int k = 0; k < 2; ++k) rest[4 + k] = raw ? seen[k] : std::log1p(seen[k]) / 4;
    }
  }
  /// From the gradient of x to that of the embeddings.
  template <class Mixture>
  void give(MatrixView<float> dx, const Model<Mixture>& model, Model<Mixture>& gradient, Workspace& ws) const {
    for (Index b = 0; b < dx.rows(); ++b) {
      const float *row = x.row(b), *product = dx.row(b) + 3 * width;
      float* const d = dx.row(b);
      for (Index j = 0; j < width; ++j) {
        d[j] += 10 * product[j] * row[2 * width + j];
        d[2 * width + j] += 10 * product[j] * row[j];
      }
    }
    model.item.backward(item, {}, dx.middle_cols(0, width), gradient.item, ws);
    model.category.backward(category, {}, dx.middle_cols(width, width), gradient.category, ws);
    model.past.backward(history, offsets, dx.middle_cols(2 * width, width), gradient.past, ws);
  }
};

/// One monitor per level of a mixture. Outputs of silu count as zero up to 1e-3.
recops::ExpertLimits limits(recops::Activation f) { return {.zero = f == recops::Activation::relu ? 0 : 1e-3}; }
std::vector<ExpertMonitor> monitors(const recops::Mmoe<float>& m) {
  return {ExpertMonitor(m.gates.map, m.outputs(), limits(m.experts.options.activation))};
}
std::vector<ExpertMonitor> monitors(const recops::Ple<float>& m) {
  std::vector<ExpertMonitor> all;
  for (const auto& level : m.levels) all.push_back(monitors(level)[0]);
  return all;
}
/// HoME's own experts are those of the last groups, one group per mixture; without masks others see them too.
std::vector<ExpertMonitor> monitors(const recops::Home<float>& m) {
  std::vector<ExpertMonitor> all;
  for (const auto* level : {&m.meta, &m.task}) {
    const Index each = level == &m.meta ? group_experts : own_experts;
    std::vector<std::vector<Index>> own(at(level->mixtures()));
    for (Index t = 0; t < level->mixtures(); ++t)
      for (Index k = 0; k < each; ++k) own[at(t)].push_back(level->map.experts() - (level->mixtures() - t) * each + k);
    all.emplace_back(level->map, level->outputs(), limits(level->experts.options.activation), own);
  }
  return all;
}
/// Not every row has an output of every expert: nothing a monitor could compare.
std::vector<ExpertMonitor> monitors(const recops::SparseMmoe<float>&) { return {}; }
void watch(std::vector<ExpertMonitor>&, const recops::SparseMmoe<float>&, const recops::SparseMmoe<float>::Saved&) {}
void watch(std::vector<ExpertMonitor>& monitors, const recops::Mmoe<float>&, const recops::Mmoe<float>::Saved& saved) {
  monitors[0].add<float>(saved.expert_outputs, saved.gates());
}
void watch(std::vector<ExpertMonitor>& monitors, const recops::Ple<float>&, const recops::Ple<float>::Saved& saved) {
  for (std::size_t l = 0; l < monitors.size(); ++l)
    monitors[l].add<float>(saved.levels[l].expert_outputs, saved.levels[l].gates());
}
void watch(std::vector<ExpertMonitor>& monitors, const recops::Home<float>& m, const recops::Home<float>::Saved& saved) {
  std::size_t l = 0;
  for (const auto& [level, own] : {std::pair{&m.meta, &saved.meta}, std::pair{&m.task, &saved.task}}) {
    Matrix<float> joint(own->gates.rows(), own->gates.cols());
    level->joint_gates(*own, joint);
    monitors[l++].add<float>(own->expert_outputs, joint);
  }
}

/// What a system shows under one seed.
struct Outcome {
  std::vector<double> gauc;                 ///< per task
  std::vector<ExpertReport> before, after;  ///< per level
  Index parameters = 0;                     ///< of the mixture
  double one = 0, many = 0, seconds = 0;    ///< microseconds for 1 and 64 rows, frozen; seconds of training

  double mean(Index first, Index last) const {
    double sum = 0;
    for (Index t = first; t < last; ++t) sum += gauc[at(t)] / static_cast<double>(last - first);
    return sum;
  }
};

template <class Mixture>
class Run {
 public:
  Run(const Problem& p, const Config& c, Mixture m, std::uint64_t seed)
      : p_(p),
        c_(c),
        seed_(seed),
        random_(seed, 21),
        model_(p, std::move(m), random_),
        gradient_(recops::make_gradient(model_)) {}

  Outcome outcome() {
    Outcome out;
    const auto start = Clock::now();
    out.before = diagnose();
    learn();
    out.after = diagnose();
    out.gauc = judge();
    out.parameters = recops::parameter_count(model_.mixture);
    out.seconds = seconds_since(start);
    const auto served = recops::freeze(model_.mixture);
    out.one = latency(served, 1);
    out.many = latency(served, 64);
    return out;
  }

 private:
  Index tasks() const { return static_cast<Index>(p_.tasks.size()); }

  /// Logits of the rows, through the layers as they train (`saved` then holds what they did) or as they serve.
  void forward(const Index* rows, Index n, bool training, Matrix<float>& logits, std::uint64_t step) {
    batch_.take(p_, rows, n, !c_.scaled, model_);
    mixed_.resize(n, tasks() * expert_width);
    logits.resize(n, tasks());
    if (training) {
      model_.mixture.forward(batch_.x, mixed_, saved_, {seed_, step, 0}, ws_);
    } else {
      model_.mixture.forward(batch_.x, mixed_, ws_);
    }
    for (Index t = 0; t < tasks(); ++t)
      model_.towers[at(t)].forward(mixed_.view().middle_cols(t * expert_width, expert_width), logits.view().middle_cols(t, 1),
                                   ws_);
  }

  void learn() {
    recops::Adam adam(model_, {.learning_rate = c_.learning_rate});
    std::vector<Index> order(at(p_.train));
    std::iota(order.begin(), order.end(), Index{0});
    Random shuffle(seed_, 22);
    Matrix<float> logits, dlogits, dmixed, dx;
    std::uint64_t step = 0;
    const double steps = static_cast<double>(c_.epochs * std::max<Index>(1, p_.train / c_.batch));
    for (Index epoch = 0; epoch < c_.epochs; ++epoch) {
      for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[at(shuffle.below(static_cast<Index>(i)))]);
      for (Index first = 0; first + c_.batch <= p_.train; first += c_.batch) {
        adam.options.learning_rate = c_.learning_rate * (1 - 0.9 * static_cast<double>(step) / steps);
        forward(order.data() + first, c_.batch, true, logits, step++);
        dlogits.resize(c_.batch, tasks());
        dmixed.resize(c_.batch, mixed_.cols());
        dx.resize(c_.batch, inputs);
        dlogits.fill(0);
        dmixed.fill(0);
        dx.fill(0);
        recops::zero_gradient(gradient_);
        recops::bce_with_logits_value_and_grad<float>(logits, batch_.labels, {.weights = batch_.weights}, {}, dlogits);
        for (Index t = 0; t < tasks(); ++t) {
          const Index from = t * expert_width;
          model_.towers[at(t)].backward(mixed_.view().middle_cols(from, expert_width), dlogits.view().middle_cols(t, 1), {},
                                        dmixed.view().middle_cols(from, expert_width), gradient_.towers[at(t)], ws_);
        }
        model_.mixture.backward(batch_.x, dmixed, saved_, dx, gradient_.mixture, ws_);
        batch_.give(dx, model_, gradient_, ws_);
        model_.mixture.update(saved_);
        adam.step(model_, gradient_);
      }
    }
  }

  /// The experts on held-out impressions.
  std::vector<ExpertReport> diagnose() {
    std::vector<ExpertMonitor> all = monitors(model_.mixture);
    std::vector<Index> rows(at(p_.size() - p_.train));
    std::iota(rows.begin(), rows.end(), p_.train);
    Random pick(seed_, 23);
    Matrix<float> logits;
    for (Index b = 0; b < 8; ++b) {
      std::vector<Index> some(1024);
      for (Index& r : some) r = rows[at(pick.below(static_cast<Index>(rows.size())))];
      forward(some.data(), static_cast<Index>(some.size()), true, logits, 0);
      watch(all, model_.mixture, saved_);
    }
    std::vector<double> rates;
    for (Index t = 0; t < tasks(); ++t) rates.push_back(p_.rate(t));
    std::vector<ExpertReport> reports;
    for (const ExpertMonitor& m : all) {
      ExpertReport r = m.report();
      for (std::size_t t = 0; t < rates.size() && t < r.tasks.size() && &m == &all.back(); ++t)
        r.tasks[t].positive_rate = rates[t];
      reports.push_back(std::move(r));
    }
    return reports;
  }

  /// GAUC per task, grouped by user.
  std::vector<double> judge() {
    std::vector<Index> rows(at(p_.size() - p_.train));
    std::iota(rows.begin(), rows.end(), p_.train);
    std::stable_sort(rows.begin(), rows.end(), [&](Index a, Index b) { return p_.user[at(a)] < p_.user[at(b)]; });
    struct Scored {
      std::vector<float> scores;
      std::vector<std::uint8_t> labels;
      std::vector<std::int32_t> offsets{0};
      std::int32_t user = -1;
    };
    std::vector<Scored> of(at(tasks()));
    Matrix<float> logits;
    for (Index first = 0; first < static_cast<Index>(rows.size()); first += 1024) {
      const Index n = std::min<Index>(1024, static_cast<Index>(rows.size()) - first);
      forward(rows.data() + first, n, false, logits, 0);
      for (Index b = 0; b < n; ++b)
        for (Index t = 0; t < tasks(); ++t) {
          if (batch_.weights(b, t) == 0) continue;
          Scored& s = of[at(t)];
          const std::int32_t user = p_.user[at(rows[at(first + b)])];
          if (user != s.user && !s.scores.empty()) s.offsets.push_back(static_cast<std::int32_t>(s.scores.size()));
          s.user = user;
          s.scores.push_back(logits(b, t));
          s.labels.push_back(batch_.labels(b, t) > 0);
        }
    }
    std::vector<double> result;
    for (Scored& s : of) {
      if (!s.scores.empty()) s.offsets.push_back(static_cast<std::int32_t>(s.scores.size()));
      result.push_back(recops::gauc<float>(s.scores, s.labels, s.offsets, {}, ws_).value);
    }
    return result;
  }

  /// Median microseconds of the frozen mixture.
  template <class Served>
  double latency(const Served& served, Index n) {
    Matrix<float> x(n, inputs), y(n, tasks() * expert_width);
    for (float& v : recops::leaf_values(x)) v = static_cast<float>(random_.normal());
    std::vector<double> times;
    for (int i = 0; i < 201; ++i) {
      const auto start = Clock::now();
      served.forward(x, y, ws_);
      times.push_back(1e6 * seconds_since(start));
    }
    std::nth_element(times.begin(), times.begin() + 100, times.end());
    return times[100];
  }

  const Problem& p_;
  const Config& c_;
  std::uint64_t seed_;
  Random random_;
  Model<Mixture> model_, gradient_;
  typename Mixture::Saved saved_;
  Batch batch_;
  Matrix<float> mixed_;
  Workspace ws_;
};

const std::vector<std::string> systems{"shared bottom", "MMoE",        "MMoE + norm",     "PLE",          "HoME",
                                       "- normalise",   "- hierarchy", "- feature gates", "- self gates", "sparse MMoE"};
enum System : Index {
  shared_bottom,
  mmoe,
  mmoe_norm,
  ple,
  home,
  no_norm,
  no_hierarchy,
  no_feature_gates,
  no_self_gates,
  sparse_mmoe
};

Outcome run(Index system, const Problem& p, const Config& c, std::uint64_t seed) {
  Random random(seed, 20);
  const auto tasks = static_cast<Index>(p.tasks.size());
  if (system == shared_bottom || system == mmoe || system == mmoe_norm) {
    recops::MmoeSpec spec{.inputs = inputs, .experts = 6, .outputs = expert_width, .tasks = tasks, .hidden = {32}};
    if (system == shared_bottom) {
      spec.experts = 1;
      spec.hidden = {128, 64};
    }
    return Run(p, c, recops::Mmoe<float>(system == mmoe_norm ? spec.home() : spec, random), seed).outcome();
  }
  if (system == sparse_mmoe)
    return Run(p, c,
               recops::SparseMmoe<float>({.inputs = inputs,
                                          .experts = 16,
                                          .outputs = expert_width,
                                          .tasks = tasks,
                                          .hidden = {32},
                                          .route = {.k = 2},
                                          .balance = {.switch_loss = 1e-2}},
                                         random),
               seed)
        .outcome();
  if (system == ple) {
    const recops::PleSpec spec{.inputs = inputs,
                               .tasks = tasks,
                               .levels = {{.outputs = 32, .shared_experts = 2}, {.outputs = expert_width, .shared_experts = 2}}};
    return Run(p, c, recops::Ple<float>(spec, random), seed).outcome();
  }
  const recops::HomeSpec spec{.inputs = inputs,
                              .meta_outputs = 32,
                              .outputs = expert_width,
                              .categories = p.categories,
                              .meta_shared_experts = group_experts,
                              .meta_category_experts = group_experts,
                              .own_experts = own_experts,
                              .normalise = system != no_norm,
                              .hierarchy = system != no_hierarchy,
                              .feature_gates = system != no_feature_gates,
                              .self_gates = system != no_self_gates};
  return Run(p, c, recops::Home<float>(spec, random), seed).outcome();
}

/// The worst or the mean of a number over all levels.
template <class F>
double mean_of(const std::vector<ExpertReport>& levels, F&& f) {
  double sum = 0, n = 0;
  for (const ExpertReport& r : levels)
    f(r, [&](double x) {
      if (std::isnan(x)) return;
      sum += x;
      n += 1;
    });
  return n > 0 ? sum / n : std::nan("");
}

}  // namespace

int main(int argc, char** argv) try {
  Config config;
  Cli cli("home", "Many tasks of very different density: shared bottom, MMoE, PLE, HoME and HoME without each ingredient.");
  cli.option("seeds", config.seeds, "seeds to compare the systems over", "seeds", 1, 100);
  cli.option("users", config.users, "users of the simulated world", "users", 20, 1000000);
  cli.option("items", config.items, "items of the simulated world", "items", 40, 1000000);
  cli.option("epochs", config.epochs, "passes over the log", "passes", 1, 1000);
  cli.option("batch", config.batch, "impressions per step", "rows", 2, 65536);
  cli.option("history", config.history, "items of the past a user is known by", "items", 1, 1000);
  cli.option("learning-rate", config.learning_rate, "of Adam; falls to a tenth", "", 0, 1);
  cli.flag("scaled", config.scaled, "counts of impressions enter as logarithms, not as a feature store holds them");
  cli.option("data", config.data, "folder with MovieLens (docs/data.md); without it a simulated world", "DIR");
  cli.option("json", config.json, "file for the last reports of MMoE and HoME", "FILE");
  cli.parse(argc, argv);

  std::printf("%s\n", recops::build_info().c_str());
  const auto start = Clock::now();
  std::vector<std::uint64_t> seeds(at(config.seeds));
  std::iota(seeds.begin(), seeds.end(), std::uint64_t{1});
  const auto table = [&](const char* metric) { return SeedTable(metric, systems, seeds); };
  SeedTable all = table("GAUC, all tasks"), sparse = table("GAUC, the sparser half"), zeros = table("zero outputs"),
            scale = table("largest by smallest scale"), heard = table("effective experts"), own = table("own share of fair");
  std::vector<Outcome> last(systems.size());
  std::vector<std::vector<double>> per_task(systems.size());
  Problem p;
  std::vector<Index> by_density;
  for (Index s = 0; s < config.seeds; ++s) {
    if (s == 0 || config.data.empty()) p = config.data.empty() ? simulated(config, seeds[at(s)]) : rated(config);
    const auto tasks = static_cast<Index>(p.tasks.size());
    if (s == 0) {
      std::printf("%td impressions, %td of them to learn from; positives", p.size(), p.train);
      for (Index t = 0; t < tasks; ++t) {
        std::printf("%s %s %.2f %%", t == 0 ? ":" : ",", p.tasks[at(t)].c_str(), 100 * p.rate(t));
        by_density.push_back(t);
      }
      std::printf("\n");
      std::sort(by_density.begin(), by_density.end(), [&](Index a, Index b) { return p.rate(a) < p.rate(b); });
    }
    Progress progress("systems", static_cast<Index>(systems.size()));
    for (Index system = 0; system < static_cast<Index>(systems.size()); ++system) {
      Outcome o = run(system, p, config, seeds[at(s)]);
      all.set(system, s, o.mean(0, tasks));
      double few = 0;
      for (Index i = 0; i < tasks / 2; ++i) few += o.gauc[at(by_density[at(i)])] / static_cast<double>(tasks / 2);
      sparse.set(system, s, few);
      zeros.set(system, s, mean_of(o.after, [](const ExpertReport& r, auto add) {
                  for (const auto& e : r.experts) add(e.zero_rate);
                }));
      scale.set(system, s, mean_of(o.after, [](const ExpertReport& r, auto add) { add(r.scale_ratio); }));
      heard.set(system, s, mean_of(o.after, [](const ExpertReport& r, auto add) {
                  for (const auto& t : r.tasks) add(t.effective_experts);
                }));
      if (!o.after.empty())
        own.set(system, s, mean_of({o.after.back()}, [](const ExpertReport& r, auto add) {
                  for (const auto& t : r.tasks) add(t.own_share / t.fair_share);
                }));
      per_task[at(system)].resize(at(tasks));
      for (Index t = 0; t < tasks; ++t) per_task[at(system)][at(t)] += o.gauc[at(t)] / static_cast<double>(config.seeds);
      last[at(system)] = std::move(o);
      progress.advance(1);
    }
  }

  std::printf("\n%-16s", "GAUC, mean");
  for (const std::string& t : p.tasks) std::printf(" %12s", t.c_str());
  std::printf(" %11s %8s %8s %8s\n", "parameters", "1 row", "64 rows", "training");
  for (std::size_t i = 0; i < systems.size(); ++i) {
    std::printf("%-16s", systems[i].c_str());
    for (const double g : per_task[i]) std::printf(" %12.4f", g);
    std::printf(" %11td %5.1f us %5.1f us %6.1f s\n", last[i].parameters, last[i].one, last[i].many, last[i].seconds);
  }
  std::printf("\n%s\n%s\n", all.text(mmoe).c_str(), sparse.text(mmoe).c_str());
  std::printf("Experts, after training: %s\n%s\n%s\n%s\n", zeros.text(mmoe, 3).c_str(), scale.text(mmoe, 2).c_str(),
              heard.text(mmoe, 2).c_str(), own.text(home, 2).c_str());
  for (const Index system : {Index{mmoe}, Index{home}}) {
    const Outcome& o = last[at(system)];
    std::printf("%s, last seed: before training scales differ by %.2f; after it\n%s\n", systems[at(system)].c_str(),
                o.before.back().scale_ratio, o.after.back().text({}, p.tasks).c_str());
  }
  std::printf("Diseases (collapsed, degraded, underfitted) of the last seed:\n");
  for (std::size_t i = 1; i < systems.size(); ++i) {
    if (last[i].after.empty()) continue;
    Index before[3] = {}, after[3] = {};
    for (const auto& [reports, sums] : {std::pair{&last[i].before, before}, std::pair{&last[i].after, after}})
      for (const ExpertReport& r : *reports) {
        sums[0] += r.collapsed();
        sums[1] += r.degraded();
        sums[2] += r.underfitted();
      }
    std::printf("  %-16s before %td %td %td, after %td %td %td\n", systems[i].c_str(), before[0], before[1], before[2], after[0],
                after[1], after[2]);
  }
  if (!config.json.empty()) {
    std::FILE* const file = std::fopen(config.json.c_str(), "w");
    if (!file) {
      std::fprintf(stderr, "home: cannot write %s\n", config.json.c_str());
      return 1;
    }
    std::fprintf(file, "{\"mmoe\": %s, \"home\": %s}\n", last[mmoe].after.back().json().c_str(),
                 last[home].after.back().json().c_str());
    std::fclose(file);
  }
  if (config.seeds == 1) std::printf("\nOne world says little about GAUC: --seeds 5 gives intervals.\n");
  const auto verdict = [&](const SeedTable& of, Index a, Index b) {
    const Interval d = of.difference(a, b);
    return d.low() > 0 ? "higher" : d.high() < 0 ? "lower" : "no certain difference";
  };
  if (config.seeds > 1)
    std::printf("\nOver the seeds, 95 %%: HoME against MMoE, GAUC of all tasks: %s; of the sparser half: %s; zero outputs: %s.\n",
                verdict(all, home, mmoe), verdict(sparse, home, mmoe), verdict(zeros, home, mmoe));
  for (const Index i :
       config.seeds == 1 ? std::vector<Index>()
                         : std::vector<Index>{Index{no_norm}, Index{no_hierarchy}, Index{no_feature_gates}, Index{no_self_gates}})
    std::printf("HoME %s, GAUC of all tasks against HoME: %s; of the sparser half: %s.\n", systems[at(i)].c_str(),
                verdict(all, i, home), verdict(sparse, i, home));
  std::printf("\n%.1f s\n", seconds_since(start));
} catch (const std::exception& error) {
  std::fprintf(stderr, "home: %s\n", error.what());
  return 1;
}
