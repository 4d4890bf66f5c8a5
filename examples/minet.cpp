/// Two domains, one candidate: MiNet (arXiv 2008.02974) ranks live streams by what a user clicked among live streams, which is little, and
/// among short videos, which is nine times as much.
///
/// The model is the same throughout; what it is shown is not: no clicks at all, those of one domain, of both, both with every gate held at
/// 1, and, as a control, the short videos of another user. The world is simulated (docs/simulator.md): interests are shared by the
/// domains, items are not. --seeds 5 says what of the differences is luck; no public data set that the examples read has two
/// domains; --data says so.
#include <cmath>
#include <cstdio>
#include <numeric>
#include <recops/attention/minet.hpp>
#include <recops/metrics/auc.hpp>
#include <recops/metrics/gauc.hpp>
#include <recops/nn/embedding_bag.hpp>
#include <recops/nn/loss.hpp>
#include <recops/nn/mlp.hpp>
#include <recops/simd/build_info.hpp>
#include <recops/train/adam.hpp>

#include "common/cli.hpp"
#include "common/progress.hpp"
#include "common/running_rates.hpp"
#include "common/seeds.hpp"
#include "common/simulator.hpp"

using namespace examples;
using recops::JaggedView;
using recops::Matrix;
using recops::MatrixView;
using recops::Random;
using recops::Vector;
using recops::VectorView;
using recops::Workspace;

namespace {

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

struct Config {
  std::uint64_t first_seed = 1;
  Index seeds = 1, users = 1000, epochs = 3, batch = 128;
  Index video_length = 40, live_length = 20;  // most recent clicks that a request sees
  double visits = 60, learning_rate = 5e-3;
};

/// What the model is shown: the rows of the table.
struct System {
  const char* name;
  bool live, video, gates, other_user;
};
constexpr System systems[] = {
    {"no clicks", false, false, true, false},        {"live alone", true, false, true, false},
    {"videos alone", false, true, true, false},      {"MiNet", true, true, true, false},
    {"MiNet, gates at 1", true, true, false, false}, {"MiNet, another's videos", true, true, true, true}};
constexpr Index system_count = 6, baseline = 1;

// ---- The model ----------------------------------------------------------------------------------------------------------

/// Clicks of both domains and the live candidates of some requests.
struct Batch {
  struct Clicks {
    std::vector<std::int32_t> item, category, offsets{0};
    void clear() {
      item.clear();
      category.clear();
      offsets.assign(1, 0);
    }
  } video, live;
  std::vector<std::int32_t> item, category, offsets{0}, user, group;
  std::vector<float> context, labels;

  Index candidates() const { return static_cast<Index>(item.size()); }
  void clear() {
    video.clear();
    live.clear();
    for (auto* v : {&item, &category, &user, &group}) v->clear();
    offsets.assign(1, 0);
    context.clear();
    labels.clear();
  }
};

/// Embeddings, MiNet, a network:
///     y = MiNet(candidate, user, clicks)      x = [ y | candidate * interest in each domain | context ]
///     logit = mlp(x) + wide(context)
struct Model {
  static constexpr Index item_width = 16, category_width = 8, width = 24, user_width = 8, hidden = 32, rank = 8;
  Index context = 0;
  recops::EmbeddingBag<float> item, category, user, group;
  recops::MiNet<float> minet;
  recops::Mlp<float> mlp;
  recops::Linear<float> wide;

  Model(const InteractionLog& log, Index context_columns, double base_rate, std::uint64_t seed) : context(context_columns) {
    Random random(seed, 0x6d696e6574ull);
    item = {log.items, item_width, 0.3, random};
    category = {log.categories, category_width, 0.3, random};
    user = {log.users, user_width - 4, 0.1, random};
    group = {log.groups, 4, 0.3, random};
    minet = {width, user_width, width, hidden, 16, rank, random};
    mlp = {{columns() + context, 48, 1}, {}, random};
    wide = {context, 1, random};
    wide.weight.fill(0);
    wide.weight(0, 0) = 1;  // the item's rate so far is believed at first
    wide.bias[0] = static_cast<float>(std::log(base_rate / (1 - base_rate)));
  }
  static constexpr auto fields() {
    using namespace recops;
    return std::tuple{layer("item", &Model::item),   layer("category", &Model::category), layer("user", &Model::user),
                      layer("group", &Model::group), layer("minet", &Model::minet),       layer("mlp", &Model::mlp),
                      layer("wide", &Model::wide)};
  }

  /// Of x, before the context.
  Index columns() const { return minet.output_width() + 2 * width; }

  struct Saved {
    Matrix<float> video, live, candidate, users, x, known;
    recops::MiNet<float>::Saved minet;
    recops::Mlp<float>::Saved mlp;
  };

  /// Logits `[candidates, 1]`.
  void forward(const Batch& batch, MatrixView<float> logits, Saved& s, const recops::Step& step, Workspace& ws) const {
    const Index n = batch.candidates(), out = minet.output_width(), all = columns();
    embed(batch.video.item, batch.video.category, s.video);
    embed(batch.live.item, batch.live.category, s.live);
    embed(batch.item, batch.category, s.candidate);
    s.users.resize(static_cast<Index>(batch.user.size()), user_width);
    user.forward(batch.user, {}, s.users.view().middle_cols(0, user_width - 4));
    group.forward(batch.group, {}, s.users.view().middle_cols(user_width - 4, 4));
    s.x.resize(n, all + context);
    minet.forward(candidates(batch, s), s.users, clicks(batch.live, s.live), clicks(batch.video, s.video),
                  s.x.view().middle_cols(0, out), s.minet, step.child(0), ws);
    for (Index i = 0; i < n; ++i) {
      float* const x = s.x.row(i);
      for (Index j = 0; j < 2 * width; ++j) x[out + j] = x[j % width] * x[width + user_width + j];
      std::copy_n(batch.context.data() + i * context, context, x + all);
    }
    mlp.forward(s.x, logits, s.mlp, step.child(1), ws);
    s.known.resize(n, 1);
    wide.forward(std::as_const(s.x).view().middle_cols(all, context), s.known, ws);
    for (Index i = 0; i < n; ++i) logits(i, 0) += s.known(i, 0);
  }

  void backward(const Batch& batch, MatrixView<const float> dlogits, const Saved& s, Model& gradient, Workspace& ws) const {
    const auto mark = ws.mark();
    const auto zeros = [&](Index rows, Index cols) {
      const MatrixView<float> m = ws.matrix<float>(rows, cols);
      std::fill_n(m.data(), rows * cols, 0.0f);
      return m;
    };
    const Index out = minet.output_width();
    const MatrixView<float> dx = zeros(s.x.rows(), s.x.cols()), dcandidate = zeros(s.candidate.rows(), width),
                            dusers = zeros(s.users.rows(), user_width), dvideo = zeros(s.video.rows(), width),
                            dlive = zeros(s.live.rows(), width);
    wide.backward(s.x.view().middle_cols(columns(), context), dlogits, {}, {}, gradient.wide, ws);
    mlp.backward(s.x, dlogits, s.mlp, dx, gradient.mlp, ws);
    for (Index i = 0; i < dx.rows(); ++i) {
      const float* const x = s.x.row(i);
      float* const d = dx.row(i);
      for (Index j = 0; j < 2 * width; ++j) {
        d[j % width] += d[out + j] * x[width + user_width + j];
        d[width + user_width + j] += d[out + j] * x[j % width];
      }
    }
    minet.backward(candidates(batch, s), s.users, clicks(batch.live, s.live), clicks(batch.video, s.video),
                   dx.middle_cols(0, out), s.minet, dcandidate, dusers, dlive, dvideo, gradient.minet, ws);
    embed_backward(batch.video.item, batch.video.category, dvideo, gradient, ws);
    embed_backward(batch.live.item, batch.live.category, dlive, gradient, ws);
    embed_backward(batch.item, batch.category, dcandidate, gradient, ws);
    user.backward(batch.user, {}, dusers.middle_cols(0, user_width - 4), gradient.user, ws);
    group.backward(batch.group, {}, dusers.middle_cols(user_width - 4, 4), gradient.group, ws);
  }

 private:
  static JaggedView<const float> candidates(const Batch& batch, const Saved& s) { return {s.candidate.view(), batch.offsets}; }
  static JaggedView<const float> clicks(const Batch::Clicks& c, const Matrix<float>& rows) { return {rows.view(), c.offsets}; }
  void embed(const std::vector<std::int32_t>& items, const std::vector<std::int32_t>& categories, Matrix<float>& rows) const {
    rows.resize(static_cast<Index>(items.size()), width);
    item.forward(items, {}, rows.view().middle_cols(0, item_width));
    category.forward(categories, {}, rows.view().middle_cols(item_width, category_width));
  }
  void embed_backward(const std::vector<std::int32_t>& items, const std::vector<std::int32_t>& categories,
                      MatrixView<const float> d, Model& gradient, Workspace& ws) const {
    item.backward(items, {}, d.middle_cols(0, item_width), gradient.item, ws);
    category.backward(categories, {}, d.middle_cols(item_width, category_width), gradient.category, ws);
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
        truth_({.seed = seed,
                .users = config.users,
                .visits_per_user = config.visits,
                .second_items = 400,
                .second_ratio = 9,
                .second_rates = {.click = 0.15, .long_view = 0.30, .like = 0.15, .purchase = 0.06}}),
        log_(truth_.generate()),
        split_(split_by_time(log_, 0.2)),
        video_(log_, Label::click, 0),
        live_(log_, Label::click, 1) {
    RunningRates running(log_, {Label::click});
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
  double base_rate() const {
    double clicks = 0.5, rows = 1;
    for (const Request& r : train)
      for (Index row = r.first; row < r.last; ++row, ++rows) clicks += log_.label(Label::click)[at(row)];
    return clicks / rows;
  }

  void append(const Request& request, const System& system, Batch& batch) const {
    const auto user = log_.user[at(request.first)];
    const std::int64_t time = log_.time[at(request.first)];
    const auto other = static_cast<std::int32_t>((user + log_.users / 2) % log_.users);
    clicks(video_, system.other_user ? other : user, time, system.video ? config_.video_length : 0, batch.video);
    clicks(live_, user, time, system.live ? config_.live_length : 0, batch.live);
    for (Index row = request.first; row < request.last; ++row) {
      batch.item.push_back(log_.item[at(row)]);
      batch.category.push_back(log_.item_category[at(log_.item[at(row)])]);
      batch.context.insert(batch.context.end(), rates_.row(row), rates_.row(row) + rates_.cols());
      batch.labels.push_back(log_.label(Label::click)[at(row)]);
    }
    batch.offsets.push_back(static_cast<std::int32_t>(batch.item.size()));
    batch.user.push_back(user);
    batch.group.push_back(log_.user_group[at(user)]);
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
  void clicks(const Histories& histories, std::int32_t user, std::int64_t time, Index most, Batch::Clicks& out) const {
    HistoryBatch h;
    histories.gather(VectorView<const std::int32_t>(&user, 1), VectorView<const std::int64_t>(&time, 1), most, h);
    for (const std::int32_t item : h.items) {
      out.item.push_back(item);
      out.category.push_back(log_.item_category[static_cast<std::size_t>(item)]);
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

void train(Model& model, const World& world, const System& system, const Config& config, std::uint64_t seed) {
  Workspace ws;
  recops::Adam adam(model, {.learning_rate = config.learning_rate});
  Model gradient = recops::make_gradient(model);
  Model::Saved saved;
  Batch batch;
  Matrix<float> logits, dlogits;
  std::vector<Index> order(world.train.size());
  std::iota(order.begin(), order.end(), Index{0});
  Progress progress("  " + std::string(system.name) + ", seed " + std::to_string(seed),
                    config.epochs * static_cast<Index>(order.size()));
  recops::Step step{seed, 0, 0};
  double loss = 0;
  if (!system.gates) {
    model.minet.gates.score.fill(0);  // exp(0) for every part ...
    model.minet.gates.bias.fill(0);
  }
  for (Index epoch = 0; epoch < config.epochs; ++epoch) {
    Random shuffle(seed, 0x73687566ull + static_cast<std::uint64_t>(epoch));
    for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[at(shuffle.below(static_cast<Index>(i)))]);
    adam.options.learning_rate = config.learning_rate * (epoch + 1 == config.epochs && epoch > 0 ? 0.3 : 1.0);
    for (std::size_t next = 0; next < order.size();) {
      const std::size_t before = next;
      batch.clear();
      while (next < order.size() && batch.candidates() < config.batch)
        world.append(world.train[at(order[next++])], system, batch);
      const Index n = batch.candidates();
      logits.resize(n, 1);
      dlogits.resize(n, 1);
      dlogits.fill(0);
      recops::zero_gradient(gradient);
      model.forward(batch, logits, saved, step, ws);
      const double now = recops::bce_with_logits_value_and_grad<float>(logits, MatrixView<const float>(batch.labels.data(), n, 1),
                                                                       {}, {}, dlogits);
      model.backward(batch, dlogits, saved, gradient, ws);
      if (!system.gates) recops::zero_gradient(gradient.minet.gates);  // ... for good
      adam.step(model, gradient);
      ++step.number;
      loss += (step.number == 1 ? 1 : 0.05) * (now - loss);
      char note[32];
      std::snprintf(note, sizeof note, "loss %.4f", loss);
      progress.advance(static_cast<Index>(next - before), note);
    }
  }
}

/// AUC over all test impressions, and within users.
struct Quality {
  double auc, gauc;
};
constexpr const char* metric_names[] = {"AUC", "GAUC"};

Index test_rows(const World& world) {
  Index n = 0;
  for (const Request& r : world.test) n += r.last - r.first;
  return n;
}

/// Judges scores of the test impressions, in the order of `world.test`.
Quality judge(const World& world, VectorView<const float> scores) {
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
  Vector<float> sorted(scores.size());
  Vector<std::uint8_t> labels(scores.size());
  for (Index i = 0; i < scores.size(); ++i) {
    sorted[i] = scores[order[at(i)]];
    labels[i] = world.log().label(Label::click)[at(rows[at(order[at(i)])])];
  }
  const auto figure = [](const auto& result) { return result.valid ? result.value : std::nan(""); };
  return {figure(recops::auc<float>(sorted, labels, ws)), figure(recops::gauc<float>(sorted, labels, offsets, {}, ws))};
}

Quality run(const World& world, const System& system, const Config& config, std::uint64_t seed) {
  Model model(world.log(), world.context(), world.base_rate(), seed);
  train(model, world, system, config, seed);
  Matrix<float> logits(test_rows(world), 1);
  Model::Saved saved;
  Batch batch;
  Workspace ws;
  Index row = 0;
  for (std::size_t r = 0; r < world.test.size();) {
    batch.clear();
    while (r < world.test.size() && batch.candidates() < 512) world.append(world.test[r++], system, batch);
    model.forward(batch, logits.view().middle_rows(row, batch.candidates()), saved, {}, ws);
    row += batch.candidates();
  }
  return judge(world, VectorView<const float>(logits.data(), logits.rows()));
}

/// What no model can beat, but for luck: the probabilities from which the labels were drawn.
Quality run_truth(const World& world) {
  Vector<float> p;
  for (const Request& r : world.test)
    for (Index row = r.first; row < r.last; ++row)
      p.push_back(static_cast<float>(world.truth().true_probability(world.log().user[at(row)], world.log().item[at(row)],
                                                                    world.log().time[at(row)], Label::click)));
  return judge(world, p);
}

}  // namespace

int main(int argc, char** argv) try {
  Config config;
  Cli cli("minet", "Ranks live streams with the clicks of two domains: what the other domain adds, and what MiNet's gates do.");
  cli.refuse("data", "none of the sets in docs/data.md has one set of users in two domains");
  cli.option("seeds", config.seeds, "worlds to compare the systems over", "seeds", 1, 100);
  cli.option("seed", config.first_seed, "seed of the first world");
  cli.option("users", config.users, "users of the simulated world", "users", 50, 1000000);
  cli.option("visits", config.visits, "mean number of visits of a user, a tenth of them to the live domain", "", 10, 10000);
  cli.option("epochs", config.epochs, "passes over the training data", "passes", 1, 1000);
  cli.option("batch", config.batch, "impressions in a training step, about", "", 8, 100000);
  cli.option("video", config.video_length, "most recent clicks on short videos that a request sees", "clicks", 1, 1000);
  cli.option("live", config.live_length, "most recent clicks on live streams that a request sees", "clicks", 1, 1000);
  cli.option("rate", config.learning_rate, "learning rate of Adam", "", 0, 1);
  cli.parse(argc, argv);
  std::printf("%s\n", recops::build_info().c_str());
  std::vector<std::uint64_t> seeds(at(config.seeds));
  std::iota(seeds.begin(), seeds.end(), config.first_seed);
  std::vector<std::string> names;
  for (const System& s : systems) names.push_back(s.name);
  names.push_back("the truth");
  SeedTable tables[] = {{metric_names[0], names, seeds}, {metric_names[1], names, seeds}};
  for (std::size_t s = 0; s < seeds.size(); ++s) {
    const World world(config, seeds[s]);
    if (s == 0) {
      double clicks = 0;
      for (const Request& r : world.test)
        for (Index row = r.first; row < r.last; ++row) clicks += world.log().label(Label::click)[at(row)];
      std::printf("%td users; %zu visits to live streams to learn from, %td impressions with %.0f clicks to judge by\n",
                  config.users, world.train.size(), test_rows(world), clicks);
      std::fflush(stdout);
    }
    const auto set = [&](Index system, const Quality& q) {
      tables[0].set(system, static_cast<Index>(s), q.auc);
      tables[1].set(system, static_cast<Index>(s), q.gauc);
    };
    for (Index k = 0; k < system_count; ++k) set(k, run(world, systems[k], config, seeds[s]));
    set(system_count, run_truth(world));
  }
  std::printf(
      "\nHeld-out live impressions, clicks: mean over %zu world%s, and the difference from live clicks alone%s\n\n  %-26s",
      seeds.size(), seeds.size() == 1 ? "" : "s",
      seeds.size() == 1 ? " (--seeds 5 gives intervals)" : " with its paired 95 % interval", "");
  for (const char* metric : metric_names) std::printf("%-28s", metric);
  std::printf("\n");
  for (Index k = 0; k <= system_count; ++k) {
    std::printf("  %-26s", names[at(k)].c_str());
    for (const SeedTable& table : tables) {
      const Interval d = table.difference(k, baseline);
      char text[64] = "";
      const bool compared = k != baseline && k < system_count;
      if (compared && seeds.size() > 1) std::snprintf(text, sizeof text, " %+.4f +- %.4f", d.mean, d.half_width);
      if (compared && seeds.size() == 1) std::snprintf(text, sizeof text, " %+.4f", d.mean);
      std::printf("%.4f%-22s", table.summary(k).mean, text);
    }
    std::printf("\n");
  }
} catch (const std::exception& error) {
  std::fprintf(stderr, "minet: %s\n", error.what());
  return 1;
}
