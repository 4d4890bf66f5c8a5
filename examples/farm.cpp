/// Two domains, one user: FARM ranks live streams with what the user does with them, which is little, and with short videos, which is
/// nine times as much.
///
/// The ranking model is the same throughout; what becomes of the two behaviour sequences is not: as they are, both frequency bands
/// weighed by learned gates, one band alone, with the domains aligned by a contrastive loss, and fused by attention to each other. All
/// are judged on held-out live impressions, label by label: click, like and gift, each rarer than the one before. The world is
/// simulated (docs/simulator.md) and was not made to please any of them; --seeds 5 says what of the differences is luck.
#include <cmath>
#include <cstdio>
#include <numeric>
#include <recops/gating/mmoe.hpp>
#include <recops/metrics/auc.hpp>
#include <recops/metrics/gauc.hpp>
#include <recops/models/farm.hpp>
#include <recops/nn/embedding_bag.hpp>
#include <recops/nn/loss.hpp>
#include <recops/simd/build_info.hpp>
#include <recops/train/adam.hpp>

#include "common/cli.hpp"
#include "common/progress.hpp"
#include "common/ranker.hpp"
#include "common/running_rates.hpp"
#include "common/seeds.hpp"
#include "common/simulator.hpp"

using namespace examples;
using recops::Random;
using recops::Vector;
using recops::VectorView;

namespace {

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

struct Config {
  std::uint64_t first_seed = 1;
  Index seeds = 1, users = 400, epochs = 3, batch = 128;
  Index video_length = 50, live_length = 20;  // most recent behaviours that a request sees
  double visits = 60, ratio = 0.25, learning_rate = 5e-3, align = 0.1;
};

constexpr Label tasks[] = {Label::click, Label::like, Label::purchase};
constexpr const char* task_names[] = {"click", "like", "gift"};
constexpr Index task_count = 3;

/// What becomes of the sequences: the rows of the table.
struct System {
  const char* name;
  recops::FarmBands bands;
  bool align, fuse;
};
constexpr System systems[] = {
    {"as they are", recops::FarmBands::none, false, false},      {"frequency module", recops::FarmBands::gated, false, false},
    {"low band alone", recops::FarmBands::low, false, false},    {"high band alone", recops::FarmBands::high, false, false},
    {"frequency, align", recops::FarmBands::gated, true, false}, {"frequency, align, fuse", recops::FarmBands::gated, true, true},
    {"fuse alone", recops::FarmBands::none, false, true}};
constexpr Index system_count = 7;

// ---- The model ----------------------------------------------------------------------------------------------------------

/// Behaviours of both domains and the live candidates of some requests.
struct Batch {
  struct Events {
    std::vector<std::int32_t> item, category, code, offsets{0};
    void clear() {
      for (auto* v : {&item, &category, &code}) v->clear();
      offsets.assign(1, 0);
    }
  } video, live;
  std::vector<std::int32_t> item, category, hour, offsets{0}, users;
  std::vector<float> context, labels;

  Index candidates() const { return static_cast<Index>(item.size()); }
  void clear() {
    video.clear();
    live.clear();
    for (auto* v : {&item, &category, &hour, &users}) v->clear();
    offsets.assign(1, 0);
    context.clear();
    labels.clear();
  }
};

/// Embeddings, FARM, experts and a tower per label:
///     y = FARM(events of both domains, candidates)        x = [ y | candidate * interest in each domain | context ]
///     logit_t = tower_t( MMoE_t(x) ) + wide_t(context)
struct Model {
  static constexpr Index item_width = 16, category_width = 8, time_width = 8, width = 32, experts = 4, expert_width = 32;
  Index context = 0;
  recops::EmbeddingBag<float> item, category, event, hour;
  recops::Farm<float> farm;
  recops::Mmoe<float> mmoe;
  std::vector<recops::Linear<float>> towers;
  recops::Linear<float> wide;

  Model(const InteractionLog& log, Index context_columns, const recops::FarmOptions& options,
        const std::vector<double>& base_rates, std::uint64_t seed)
      : context(context_columns) {
    Random random(seed, 0x6661726dull);
    item = {log.items, item_width, 0.3, random};
    category = {log.categories, category_width, 0.3, random};
    event = {gap_buckets * feedback_levels, time_width, 0.3, random};
    hour = {24, time_width, 0.3, random};
    mmoe = recops::Mmoe<float>({.inputs = inputs(), .experts = experts, .outputs = expert_width, .tasks = task_count}, random);
    for (Index t = 0; t < task_count; ++t) towers.emplace_back(expert_width, 1, random);
    wide = {context, task_count, random};
    wide.weight.fill(0);
    for (Index t = 0; t < task_count; ++t) {
      wide.weight(t, t) = 1;  // the item's rate so far is believed at first
      wide.bias[t] = static_cast<float>(std::log(base_rates[at(t)] / (1 - base_rates[at(t)])));
    }
    farm = recops::Farm<float>(options, random);  // last: all systems begin with the same numbers elsewhere
  }
  static constexpr auto fields() {
    using namespace recops;
    return std::tuple{layer("item", &Model::item),      layer("category", &Model::category), layer("event", &Model::event),
                      layer("hour", &Model::hour),      layer("farm", &Model::farm),         layer("mmoe", &Model::mmoe),
                      layers("towers", &Model::towers), layer("wide", &Model::wide)};
  }
  Index inputs() const { return 5 * width + context; }

  struct Saved {
    Matrix<float> video, live, candidate, x, mixed, known;
    recops::Farm<float>::Saved farm;
    recops::Mmoe<float>::Saved mmoe;
  };

  /// Logits `[candidates, labels]`; training where `step` is given. Serving leaves align out.
  void forward(const Batch& batch, MatrixView<float> logits, Saved& s, const recops::Step* step, Workspace& ws) const {
    const Index n = batch.candidates();
    embed(batch.video, s.video);
    embed(batch.live, s.live);
    s.candidate.resize(n, width);
    item.forward(batch.item, {}, part(s.candidate.view(), 0));
    category.forward(batch.category, {}, part(s.candidate.view(), 1));
    hour.forward(batch.hour, {}, part(s.candidate.view(), 2));
    s.x.resize(n, inputs());
    const MatrixView<float> y = s.x.view().middle_cols(0, 3 * width);
    if (step) {
      farm.forward(input(batch, s), y, s.farm, step->child(0), ws);
    } else {
      farm.forward(input(batch, s), y, ws);
    }
    for (Index i = 0; i < n; ++i) {
      float* const x = s.x.row(i);
      for (Index j = 0; j < 2 * width; ++j) x[3 * width + j] = x[j] * x[2 * width + j % width];
      std::copy_n(batch.context.data() + i * context, context, x + 5 * width);
    }
    s.mixed.resize(n, task_count * expert_width);
    if (step) {
      mmoe.forward(s.x, s.mixed, s.mmoe, step->child(1), ws);
    } else {
      mmoe.forward(s.x, s.mixed, ws);
    }
    for (Index t = 0; t < task_count; ++t) towers[at(t)].forward(task(s.mixed.view(), t), logits.middle_cols(t, 1), ws);
    s.known.resize(n, task_count);
    wide.forward(std::as_const(s.x).view().middle_cols(5 * width, context), s.known, ws);
    for (Index i = 0; i < n; ++i) recops::simd::add(s.known.row(i), logits.row(i), task_count);
  }

  void backward(const Batch& batch, MatrixView<const float> dlogits, const Saved& s, Model& gradient, Workspace& ws) const {
    const auto mark = ws.mark();
    const auto zeros = [&](Index rows, Index cols) {
      const MatrixView<float> m = ws.matrix<float>(rows, cols);
      std::fill_n(m.data(), rows * cols, 0.0f);
      return m;
    };
    const Index n = batch.candidates();
    const MatrixView<float> dmixed = zeros(n, s.mixed.cols()), dx = zeros(n, inputs()), dcandidate = zeros(n, width);
    for (Index t = 0; t < task_count; ++t)
      towers[at(t)].backward(task(s.mixed.view(), t), dlogits.middle_cols(t, 1), {}, task(dmixed, t), gradient.towers[at(t)], ws);
    wide.backward(s.x.view().middle_cols(5 * width, context), dlogits, {}, {}, gradient.wide, ws);
    mmoe.backward(s.x, dmixed, s.mmoe, dx, gradient.mmoe, ws);
    for (Index i = 0; i < n; ++i) {
      const float* const x = s.x.row(i);
      float* const d = dx.row(i);
      for (Index j = 0; j < 2 * width; ++j) {
        d[j] += d[3 * width + j] * x[2 * width + j % width];
        d[2 * width + j % width] += d[3 * width + j] * x[j];
      }
    }
    const MatrixView<float> dvideo = zeros(s.video.rows(), width), dlive = zeros(s.live.rows(), width);
    farm.backward(input(batch, s), dx.middle_cols(0, 3 * width), s.farm,
                  {.dvideo = dvideo, .dlive = dlive, .dcandidates = dcandidate}, gradient.farm, ws);
    embed_backward(batch.video, dvideo, gradient, ws);
    embed_backward(batch.live, dlive, gradient, ws);
    item.backward(batch.item, {}, part(dcandidate, 0), gradient.item, ws);
    category.backward(batch.category, {}, part(dcandidate, 1), gradient.category, ws);
    hour.backward(batch.hour, {}, part(dcandidate, 2), gradient.hour, ws);
  }

 private:
  template <class T>
  static MatrixView<T> part(MatrixView<T> m, int which) {
    constexpr Index first[] = {0, item_width, item_width + category_width}, count[] = {item_width, category_width, time_width};
    return m.middle_cols(first[which], count[which]);
  }
  template <class T>
  static MatrixView<T> task(MatrixView<T> mixed, Index t) {
    return mixed.middle_cols(t * expert_width, expert_width);
  }
  static recops::FarmInput<float> input(const Batch& batch, const Saved& s) {
    return {.video = {s.video.view(), batch.video.offsets},
            .live = {s.live.view(), batch.live.offsets},
            .candidates = {s.candidate.view(), batch.offsets},
            .users = batch.users};
  }
  void embed(const Batch::Events& events, Matrix<float>& rows) const {
    rows.resize(static_cast<Index>(events.item.size()), width);
    item.forward(events.item, {}, part(rows.view(), 0));
    category.forward(events.category, {}, part(rows.view(), 1));
    event.forward(events.code, {}, part(rows.view(), 2));
  }
  void embed_backward(const Batch::Events& events, MatrixView<const float> d, Model& gradient, Workspace& ws) const {
    item.backward(events.item, {}, part(d, 0), gradient.item, ws);
    category.backward(events.category, {}, part(d, 1), gradient.category, ws);
    event.backward(events.code, {}, part(d, 2), gradient.event, ws);
  }
};

// ---- Data ---------------------------------------------------------------------------------------------------------------

/// Rows first .. last - 1 of the log: one visit to the live domain.
struct Request {
  Index first, last;
};

class World {
 public:
  World(const Config& config, std::uint64_t seed)
      : config_(config),
        // Live streams are few, and once a user has clicked one, likes and gifts are less rare than under short videos.
        truth_({.seed = seed,
                .users = config.users,
                .visits_per_user = config.visits,
                .second_items = 400,
                .second_ratio = 9,
                .second_rates = {.click = 0.15, .long_view = 0.30, .like = 0.15, .purchase = 0.06}}),
        log_(truth_.generate()),
        split_(split_by_time(log_, 0.2)),
        video_(log_, Label::click, 0),
        live_(log_, Label::click, 1),
        rates_() {
    RunningRates running(log_, {tasks[0], tasks[1], tasks[2]});
    rates_ = Matrix<float>(log_.size(), running.columns());
    for (Index row = 0; row < log_.size(); ++row) {
      running.advance(log_.time[at(row)]);
      running.features(log_.item[at(row)], rates_.row(row));
    }
    train = requests(split_.train);
    test = requests(split_.test);
  }
  const InteractionLog& log() const { return log_; }
  const Simulator& truth() const { return truth_; }
  Index context() const { return rates_.cols(); }

  /// How often each label is set in what there is to learn from.
  std::vector<double> base_rates() const {
    std::vector<double> rate(at(task_count), 0.5);
    double rows = 1;
    for (const Request& r : train)
      for (Index row = r.first; row < r.last; ++row, ++rows)
        for (Index t = 0; t < task_count; ++t) rate[at(t)] += log_.label(tasks[t])[at(row)];
    for (double& x : rate) x /= rows;
    return rate;
  }

  void append(const Request& request, Batch& batch) const {
    events(video_, request, config_.video_length, batch.video);
    events(live_, request, config_.live_length, batch.live);
    for (Index row = request.first; row < request.last; ++row) {
      batch.item.push_back(log_.item[at(row)]);
      batch.category.push_back(log_.item_category[at(log_.item[at(row)])]);
      batch.hour.push_back(log_.hour[at(row)]);
      batch.context.insert(batch.context.end(), rates_.row(row), rates_.row(row) + rates_.cols());
      for (const Label label : tasks) batch.labels.push_back(log_.label(label)[at(row)]);
    }
    batch.offsets.push_back(static_cast<std::int32_t>(batch.item.size()));
    batch.users.push_back(log_.user[at(request.first)]);
  }

  std::vector<Request> train, test;

 private:
  std::vector<Request> requests(RowRange range) const {
    std::vector<Request> out;
    for (Index first = range.first, last; first < range.last; first = last) {
      last = first + 1;
      while (last < range.last && log_.visit[at(last)] == log_.visit[at(first)]) ++last;
      if (log_.domain[at(first)] == 1) out.push_back({first, last});
    }
    return out;
  }
  void events(const Histories& histories, const Request& request, Index most, Batch::Events& out) const {
    const Index row[] = {request.first};
    HistoryBatch h;
    histories.gather_rows(VectorView<const Index>(row, 1), most, h);
    for (std::size_t e = 0; e < h.items.size(); ++e) {
      const auto r = static_cast<std::size_t>(h.rows[e]);
      out.item.push_back(h.items[e]);
      out.category.push_back(log_.item_category[static_cast<std::size_t>(h.items[e])]);
      out.code.push_back(event_code(h.gap_hours[e], log_.label(Label::long_view)[r], log_.label(Label::like)[r]));
    }
    out.offsets.push_back(static_cast<std::int32_t>(out.item.size()));
  }

  Config config_;
  Simulator truth_;
  InteractionLog log_;
  TimeSplit split_;
  Histories video_, live_;
  Matrix<float> rates_;  // of every row's item when it was shown
};

// ---- Training and judging -----------------------------------------------------------------------------------------------

void train(Model& model, const World& world, const Config& config, std::uint64_t seed, const std::string& name) {
  Workspace ws;
  recops::Adam adam(model, {.learning_rate = config.learning_rate});
  Model gradient = recops::make_gradient(model);
  Model::Saved saved;
  Batch batch;
  Matrix<float> logits, dlogits;
  std::vector<Index> order(world.train.size());
  std::iota(order.begin(), order.end(), Index{0});
  Progress progress("  " + name, config.epochs * static_cast<Index>(order.size()));
  recops::Step step{seed, 0, 0};
  double loss = 0, align = 0;
  for (Index epoch = 0; epoch < config.epochs; ++epoch) {
    Random shuffle(seed, 0x73687566ull + static_cast<std::uint64_t>(epoch));
    for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[at(shuffle.below(static_cast<Index>(i)))]);
    adam.options.learning_rate = config.learning_rate * (epoch + 1 == config.epochs && epoch > 0 ? 0.3 : 1.0);
    for (std::size_t next = 0; next < order.size();) {
      const std::size_t before = next;
      batch.clear();
      while (next < order.size() && batch.candidates() < config.batch) world.append(world.train[at(order[next++])], batch);
      const Index n = batch.candidates();
      logits.resize(n, task_count);
      dlogits.resize(n, task_count);
      dlogits.fill(0);
      recops::zero_gradient(gradient);
      model.forward(batch, logits, saved, &step, ws);
      const double now = recops::bce_with_logits_value_and_grad<float>(
          logits, MatrixView<const float>(batch.labels.data(), n, task_count), {}, {}, dlogits);
      model.backward(batch, dlogits, saved, gradient, ws);
      adam.step(model, gradient);
      ++step.number;
      const double share = step.number == 1 ? 1 : 0.05;
      loss += share * (now - loss);
      align += share * (saved.farm.align_loss - align);
      char note[64];
      std::snprintf(note, sizeof note, align > 0 ? "loss %.4f, align %.3f" : "loss %.4f", loss, align);
      progress.advance(static_cast<Index>(next - before), note);
    }
  }
}

/// AUC, UAUC (mean over users) and GAUC (weighted by impressions) of each label.
using Quality = std::array<std::array<double, 3>, task_count>;
constexpr const char* metric_names[] = {"AUC", "UAUC", "GAUC"};

/// Judges logits of the test impressions, in the order of `world.test`.
Quality judge(const World& world, MatrixView<const float> logits) {
  Workspace ws;
  std::vector<Index> rows;  // of the log
  for (const Request& r : world.test)
    for (Index row = r.first; row < r.last; ++row) rows.push_back(row);
  std::vector<Index> order(rows.size());
  std::iota(order.begin(), order.end(), Index{0});
  const auto user = [&](Index i) { return world.log().user[at(rows[at(i)])]; };
  std::stable_sort(order.begin(), order.end(), [&](Index a, Index b) { return user(a) < user(b); });
  std::vector<std::int64_t> offsets{0};
  for (std::size_t i = 1; i <= order.size(); ++i)
    if (i == order.size() || user(order[i]) != user(order[i - 1])) offsets.push_back(static_cast<std::int64_t>(i));
  Vector<float> scores(logits.rows());
  Vector<std::uint8_t> labels(logits.rows());
  Quality q{};
  for (Index t = 0; t < task_count; ++t) {
    for (Index i = 0; i < scores.size(); ++i) {
      scores[i] = logits(order[at(i)], t);
      labels[i] = world.log().label(tasks[t])[at(rows[at(order[at(i)])])];
    }
    const auto figure = [](const auto& result) { return result.valid ? result.value : std::nan(""); };
    q[at(t)] = {figure(recops::auc<float>(scores, labels, ws)),
                figure(recops::gauc<float>(scores, labels, offsets, {.weight = recops::GroupWeight::one}, ws)),
                figure(recops::gauc<float>(scores, labels, offsets, {}, ws))};
  }
  return q;
}

Index test_rows(const World& world) {
  Index n = 0;
  for (const Request& r : world.test) n += r.last - r.first;
  return n;
}

Quality run(const World& world, const System& system, const Config& config, std::uint64_t seed) {
  const recops::FarmOptions options{.width = Model::width,
                                    .length = std::max(config.video_length, config.live_length),
                                    .heads = 2,
                                    .bands = system.bands,
                                    .band = {.ratio = config.ratio},
                                    .intra = system.fuse,
                                    .cross = system.fuse,
                                    .align = system.align ? config.align : 0};
  Model model(world.log(), world.context(), options, world.base_rates(), seed);
  train(model, world, config, seed, std::string(system.name) + ", seed " + std::to_string(seed));
  Matrix<float> logits(test_rows(world), task_count);
  Model::Saved saved;
  Batch batch;
  Workspace ws;
  Index row = 0;
  for (std::size_t r = 0; r < world.test.size();) {
    batch.clear();
    while (r < world.test.size() && batch.candidates() < 512) world.append(world.test[r++], batch);
    model.forward(batch, logits.view().middle_rows(row, batch.candidates()), saved, nullptr, ws);
    row += batch.candidates();
  }
  return judge(world, logits);
}

/// What no model can beat, but for luck: the probabilities from which the labels were drawn.
Quality run_truth(const World& world) {
  Matrix<float> logits(test_rows(world), task_count);
  Index i = 0;
  for (const Request& r : world.test) {
    for (Index row = r.first; row < r.last; ++row, ++i)
      for (Index t = 0; t < task_count; ++t)
        logits(i, t) = static_cast<float>(world.truth().true_probability(world.log().user[at(row)], world.log().item[at(row)],
                                                                         world.log().time[at(row)], tasks[t]));
  }
  return judge(world, logits);
}

}  // namespace

int main(int argc, char** argv) try {
  Config config;
  Cli cli("farm",
          "Ranks live streams with the behaviours of two domains: what the frequency module, align and fuse of FARM bring.");
  cli.refuse("data", "none of the sets in docs/data.md has one set of users in two domains");
  cli.option("seeds", config.seeds, "worlds to compare the systems over", "seeds", 1, 100);
  cli.option("seed", config.first_seed, "seed of the first world");
  cli.option("users", config.users, "users of the simulated world", "users", 50, 1000000);
  cli.option("visits", config.visits, "mean number of visits of a user, a tenth of them to the live domain", "", 10, 10000);
  cli.option("epochs", config.epochs, "passes over the training data", "passes", 1, 1000);
  cli.option("batch", config.batch, "impressions in a training step, about", "", 8, 100000);
  cli.option("video", config.video_length, "most recent short videos that a request sees", "events", 1, 1000);
  cli.option("live", config.live_length, "most recent live streams that a request sees", "events", 1, 1000);
  cli.option("ratio", config.ratio, "share of the frequency bins in the low band", "", 0.001, 1);
  cli.option("align", config.align, "weight of the align loss", "", 0, 100);
  cli.option("rate", config.learning_rate, "learning rate of Adam", "", 0, 1);
  cli.parse(argc, argv);
  std::printf("%s\n", recops::build_info().c_str());
  std::vector<std::uint64_t> seeds(at(config.seeds));
  std::iota(seeds.begin(), seeds.end(), config.first_seed);
  std::vector<std::string> names;
  for (const System& s : systems) names.push_back(s.name);
  names.push_back("the truth");
  std::vector<SeedTable> tables;  // label by label, metric by metric
  for (Index t = 0; t < task_count; ++t)
    for (const char* metric : metric_names) tables.emplace_back(std::string(task_names[t]) + " " + metric, names, seeds);
  for (std::size_t s = 0; s < seeds.size(); ++s) {
    const World world(config, seeds[s]);
    if (s == 0) {
      double positives[3] = {};
      for (const Request& r : world.test)
        for (Index row = r.first; row < r.last; ++row)
          for (Index t = 0; t < task_count; ++t) positives[t] += world.log().label(tasks[t])[at(row)];
      std::printf(
          "%td users; %zu visits to live streams to learn from, %td impressions to judge by with %.0f clicks, %.0f likes, %.0f "
          "gifts\n",
          config.users, world.train.size(), test_rows(world), positives[0], positives[1], positives[2]);
      std::fflush(stdout);
    }
    const auto set = [&](Index system, const Quality& q) {
      for (Index t = 0; t < task_count; ++t)
        for (Index m = 0; m < 3; ++m) tables[at(3 * t + m)].set(system, static_cast<Index>(s), q[at(t)][at(m)]);
    };
    for (Index k = 0; k < system_count; ++k) set(k, run(world, systems[k], config, seeds[s]));
    set(system_count, run_truth(world));
  }
  std::printf("\nHeld-out live impressions: mean over %zu world%s, and the difference from the sequences as they are%s\n",
              seeds.size(), seeds.size() == 1 ? "" : "s",
              seeds.size() == 1 ? " (mostly luck in one world: --seeds 5 gives intervals)" : " with its paired 95 % interval");
  for (Index t = 0; t < task_count; ++t) {
    std::printf("\n  %-24s", task_names[t]);
    for (Index m = 0; m < 3; ++m) std::printf(m < 2 ? "%-28s" : "%s", metric_names[at(m)]);
    std::printf("\n");
    for (Index k = 0; k <= system_count; ++k) {
      std::printf("  %-24s", names[at(k)].c_str());
      for (Index m = 0; m < 3; ++m) {
        const SeedTable& table = tables[at(3 * t + m)];
        const Interval d = table.difference(k, 0);
        char text[64] = "";
        if (k > 0 && k < system_count && seeds.size() > 1)
          std::snprintf(text, sizeof text, " %+.4f +- %.4f", d.mean, d.half_width);
        if (k > 0 && k < system_count && seeds.size() == 1) std::snprintf(text, sizeof text, " %+.4f", d.mean);
        std::printf(m < 2 ? "%.4f%-22s" : "%.4f%s", table.summary(k).mean, text);
      }
      std::printf("\n");
    }
  }
} catch (const std::exception& error) {
  std::fprintf(stderr, "farm: %s\n", error.what());
  return 1;
}
