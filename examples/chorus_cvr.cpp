/// Conversion learned where nobody clicked: what each way of training on the funnel exposure -> click -> conversion is worth, judged on
/// clicked impressions, where every log can judge, and on all impressions, where only a simulated world knows the truth.
///
/// One small model (embeddings, a shared bottom, a tower per head) is trained on the same batches with seven losses: naive (clicked
/// impressions only), ESMM, ESCM2 with inverse propensities and doubly robust, and ChorusCVR without its two modules, with the
/// third head (NDM), and with the alignment on top (SAM).
#include <cmath>
#include <cstdio>
#include <numeric>
#include <recops/metrics/auc.hpp>
#include <recops/metrics/calibration.hpp>
#include <recops/metrics/log_loss.hpp>
#include <recops/nn/embedding_bag.hpp>
#include <recops/nn/mlp.hpp>
#include <recops/ranking/chorus_cvr.hpp>
#include <recops/train/adam.hpp>

#include "common/cli.hpp"
#include "common/progress.hpp"
#include "common/running_rates.hpp"
#include "common/seeds.hpp"
#include "common/simulator.hpp"
#include "common/simulator_cli.hpp"

using namespace examples;
using recops::Matrix;
using recops::MatrixView;
using recops::Vector;
using recops::VectorView;
using recops::Workspace;

namespace {

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

struct Config {
  Index seeds = 1;
  Index epochs = 1;
  Index batch = 512;
  double learning_rate = 2e-3;
  double clip = 0.05;  // least propensity
  double align = 0.1;  // weight of ChorusCVR's alignment
  double deviation = 0.1;
};

/// The ways to train.
enum class System { naive, esmm, escm2_ips, escm2_dr, chorus_plain, chorus_ndm, chorus_full };
constexpr Index system_count = 7;
const std::vector<std::string> system_names{"naive",          "ESMM",     "ESCM2 IPS", "ESCM2 DR", "ChorusCVR -NDM -SAM",
                                            "ChorusCVR -SAM", "ChorusCVR"};

/// A batch of impressions.
struct Batch {
  std::vector<std::int32_t> user, item, category, hour;
  Matrix<float> context;
  std::vector<std::uint8_t> clicks, conversions;
  Index size() const { return static_cast<Index>(user.size()); }
};

/// x = [ user | item | user * item | category | hour | context ], one shared bottom, one tower per head: click, conversion, and a third
/// whose meaning depends on the loss (no conversion after a click, or the imputed error).
struct Funnel {
  static constexpr Index width = 16, small = 8, shared = 48, heads = 3;
  recops::EmbeddingBag<float> user, item, category, hour;
  recops::Mlp<float> bottom;
  std::vector<recops::Mlp<float>> towers;

  Funnel(const InteractionLog& log, Index context, double deviation, std::uint64_t seed) {
    recops::Random random(seed, 0x6375ull);
    user = {log.users, width, deviation, random};
    item = {log.items, width, deviation, random};
    category = {log.categories, small, deviation, random};
    hour = {24, small, deviation, random};
    bottom = recops::Mlp<float>({inputs(context), 64, shared}, {.output = recops::Activation::relu}, random);
    for (Index h = 0; h < heads; ++h)
      towers.emplace_back(std::initializer_list<Index>{shared, 24, 1}, recops::MlpOptions{}, random);
  }
  static Index inputs(Index context) { return 3 * width + 2 * small + context; }
  static constexpr auto fields() {
    using namespace recops;
    return std::tuple{layer("user", &Funnel::user), layer("item", &Funnel::item),     layer("category", &Funnel::category),
                      layer("hour", &Funnel::hour), layer("bottom", &Funnel::bottom), layers("towers", &Funnel::towers)};
  }

  struct Saved {
    Matrix<float> x, common;
    recops::Mlp<float>::Saved bottom, towers[heads];
  };
  /// `logits [heads, n]`: a row per head, as the losses read them.
  void forward(const Batch& b, MatrixView<float> logits, Saved& s, const recops::Step& step, Workspace& ws) const {
    const Index n = b.size();
    s.x.resize(n, inputs(b.context.cols()));
    const MatrixView<float> x = s.x;
    user.forward(b.user, {}, x.middle_cols(0, width));
    item.forward(b.item, {}, x.middle_cols(width, width));
    category.forward(b.category, {}, x.middle_cols(3 * width, small));
    hour.forward(b.hour, {}, x.middle_cols(3 * width + small, small));
    for (Index i = 0; i < n; ++i) {
      float* row = x.row(i);
      for (Index j = 0; j < width; ++j) row[2 * width + j] = row[j] * row[width + j];
      std::copy_n(b.context.row(i), b.context.cols(), row + 3 * width + 2 * small);
    }
    s.common.resize(n, shared);
    bottom.forward(s.x, s.common, s.bottom, step.child(0), ws);
    for (Index h = 0; h < heads; ++h)
      towers[at(h)].forward(s.common, MatrixView<float>(logits.row(h), n, 1), s.towers[h], step.child(1 + h), ws);
  }
  void backward(const Batch& b, MatrixView<const float> dlogits, const Saved& s, Funnel& gradient, Workspace& ws) const {
    const auto mark = ws.mark();
    const Index n = b.size();
    const MatrixView<float> dcommon = ws.matrix<float>(n, shared), dx = ws.matrix<float>(n, s.x.cols());
    std::fill_n(dcommon.data(), n * shared, 0.0f);
    std::fill_n(dx.data(), n * s.x.cols(), 0.0f);
    for (Index h = 0; h < heads; ++h)
      towers[at(h)].backward(s.common, MatrixView<const float>(dlogits.row(h), n, 1), s.towers[h], dcommon,
                             gradient.towers[at(h)], ws);
    bottom.backward(s.x, dcommon, s.bottom, dx, gradient.bottom, ws);
    for (Index i = 0; i < n; ++i) {
      const float* row = s.x.row(i);
      float* d = dx.row(i);
      for (Index j = 0; j < width; ++j) {
        d[j] += d[2 * width + j] * row[width + j];
        d[width + j] += d[2 * width + j] * row[j];
      }
    }
    user.backward(b.user, {}, dx.middle_cols(0, width), gradient.user, ws);
    item.backward(b.item, {}, dx.middle_cols(width, width), gradient.item, ws);
    category.backward(b.category, {}, dx.middle_cols(3 * width, small), gradient.category, ws);
    hour.backward(b.hour, {}, dx.middle_cols(3 * width + small, small), gradient.hour, ws);
  }
};

/// A log, what is known of each row when it is scored, and how it is cut.
struct World {
  InteractionLog log;
  Matrix<float> context;
  TimeSplit split;
  Vector<double> true_rate;  // of conversion, had it been clicked: of every test row

  explicit World(const Simulator& simulator) : log(simulator.generate()), split(split_by_time(log, 0.25)) {
    RunningRates rates(log, {Label::click, Label::purchase});
    context = Matrix<float>(log.size(), rates.columns() + 1);
    for (Index row = 0; row < log.size(); ++row) {
      rates.advance(log.time[at(row)]);
      rates.features(log.item[at(row)], context.row(row));
      context(row, rates.columns()) = log.item_price[at(log.item[at(row)])];
    }
    true_rate = Vector<double>(split.test.size());
    for (Index i = 0; i < true_rate.size(); ++i) {
      const std::size_t row = at(split.test.first + i);
      true_rate[i] = simulator.true_probability_given_click(log.user[row], log.item[row], log.time[row], Label::purchase);
    }
  }
  template <class Rows>
  void fill(const Rows& rows, Batch& b) const {
    for (auto* v : {&b.user, &b.item, &b.category, &b.hour}) v->clear();
    b.clicks.clear();
    b.conversions.clear();
    b.context.resize(static_cast<Index>(rows.size()), context.cols());
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const std::size_t row = at(rows[i]);
      b.user.push_back(log.user[row]);
      b.item.push_back(log.item[row]);
      b.category.push_back(log.item_category[at(log.item[row])]);
      b.hour.push_back(log.hour[row]);
      std::copy_n(context.row(rows[i]), context.cols(), b.context.row(static_cast<Index>(i)));
      b.clicks.push_back(log.label(Label::click)[row]);
      b.conversions.push_back(log.label(Label::purchase)[row]);
    }
  }
};

/// Loss of one batch; adds the gradient of the logits `[heads, n]`.
double loss_of(System system, const Config& config, const Batch& b, MatrixView<const float> z, MatrixView<float> d) {
  const auto logits = [&](Index h) { return VectorView<const float>(z.row(h), z.cols()); };
  const auto gradient = [&](Index h) { return VectorView<float>(d.row(h), d.cols()); };
  switch (system) {
    case System::naive:  // propensities clipped to 1: the mean over clicked rows
      return recops::escm2_ips_loss_value_and_grad<float>(
                 logits(0), logits(1), b.clicks, b.conversions,
                 {.product_weight = 0, .clip = 1, .norm = recops::PropensityNorm::clicked}, gradient(0), gradient(1))
          .value;
    case System::esmm:
      return recops::esmm_loss_value_and_grad<float>(logits(0), logits(1), b.clicks, b.conversions, gradient(0), gradient(1))
          .value;
    case System::escm2_ips:
      return recops::escm2_ips_loss_value_and_grad<float>(logits(0), logits(1), b.clicks, b.conversions, {.clip = config.clip},
                                                          gradient(0), gradient(1))
          .value;
    case System::escm2_dr:
      return recops::escm2_dr_loss_value_and_grad<float>(
                 logits(0), logits(1), logits(2), b.clicks, b.conversions,
                 {.clip = config.clip, .softplus_imputation = true, .imputation_trains_conversion = false}, gradient(0),
                 gradient(1), gradient(2))
          .value;
    default:
      return recops::chorus_cvr_loss_value_and_grad<float>(
                 logits(0), logits(1), logits(2), b.clicks, b.conversions,
                 {.discrimination = system != System::chorus_plain,
                  .alignment_weight = system == System::chorus_full ? config.align : 0.0,
                  .clip = config.clip},
                 gradient(0), gradient(1), gradient(2))
          .value;
  }
}

/// What a system is worth on the test rows.
struct Quality {
  double clicked_auc = 0, entire_auc = 0, both_auc = 0, clicked_pcoc = 0, entire_pcoc = 0, entire_log_loss = 0;
};

/// Scores every test row and judges: `z [heads, rows]`.
Quality judge(const World& world, MatrixView<const float> z) {
  const InteractionLog& log = world.log;
  const Index n = world.split.test.size(), first = world.split.test.first;
  Workspace ws;
  Vector<float> all(n), both(n), clicked, probabilities(n), clicked_probabilities;
  std::vector<float> some, some_probabilities;
  std::vector<std::uint8_t> would(at(n)), sold(at(n)), clicked_sold;
  const auto sigmoid = [](float x) { return 1 / (1 + std::exp(-static_cast<double>(x))); };
  for (Index i = 0; i < n; ++i) {
    const std::size_t row = at(first + i);
    all[i] = z(1, i);
    probabilities[i] = static_cast<float>(sigmoid(z(1, i)));
    both[i] = static_cast<float>(sigmoid(z(0, i)) * sigmoid(z(1, i)));
    would[at(i)] = log.would_purchase[row];
    sold[at(i)] = log.label(Label::purchase)[row];
    if (!log.label(Label::click)[row]) continue;
    some.push_back(all[i]);
    some_probabilities.push_back(probabilities[i]);
    clicked_sold.push_back(sold[at(i)]);
  }
  Quality q;
  q.clicked_auc = recops::auc<float>(some, clicked_sold, ws).value;
  q.entire_auc = recops::auc<float>(all, would, ws).value;
  q.both_auc = recops::auc<float>(both, sold, ws).value;
  q.clicked_pcoc = recops::pcoc<float>(some_probabilities, clicked_sold).value;
  q.entire_pcoc = recops::pcoc<float>(probabilities, would).value;
  q.entire_log_loss = recops::log_loss_from_logits<float>(all, would).value;
  return q;
}

Quality run(System system, const World& world, const Config& config, std::uint64_t seed) {
  Workspace ws;
  Funnel model(world.log, world.context.cols(), config.deviation, seed), gradient = recops::make_gradient(model);
  recops::Adam adam(model, {.learning_rate = config.learning_rate});
  Funnel::Saved saved;
  Batch batch;
  Matrix<float> z, d;
  recops::Step step{seed, 0, 0};
  std::vector<Index> order(at(world.split.train.size())), rows;
  std::iota(order.begin(), order.end(), world.split.train.first);
  Progress progress(system_names[static_cast<std::size_t>(system)], config.epochs * world.split.train.size());
  double loss = 0;
  for (Index epoch = 0; epoch < config.epochs; ++epoch) {
    recops::Random shuffle(seed, 0x73687566ull + static_cast<std::uint64_t>(epoch));
    for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[at(shuffle.below(static_cast<Index>(i)))]);
    adam.options.learning_rate = config.learning_rate * (epoch + 1 == config.epochs && epoch > 0 ? 0.3 : 1.0);
    for (std::size_t next = 0; next < order.size(); next += at(config.batch)) {
      rows.assign(order.begin() + static_cast<std::ptrdiff_t>(next),
                  order.begin() + static_cast<std::ptrdiff_t>(std::min(order.size(), next + at(config.batch))));
      world.fill(rows, batch);
      z.resize(Funnel::heads, batch.size());
      d.resize(Funnel::heads, batch.size());
      d.fill(0);
      recops::zero_gradient(gradient);
      model.forward(batch, z, saved, step, ws);
      const double now = loss_of(system, config, batch, z, d);
      model.backward(batch, d, saved, gradient, ws);
      adam.step(model, gradient);
      ++step.number;
      loss = step.number == 1 ? now : 0.98 * loss + 0.02 * now;
      char note[32];
      std::snprintf(note, sizeof note, "loss %.4f", loss);
      progress.advance(batch.size(), note);
    }
  }
  Matrix<float> scores(Funnel::heads, world.split.test.size());
  for (Index first = 0; first < scores.cols(); first += 4096) {
    rows.resize(at(std::min<Index>(4096, scores.cols() - first)));
    std::iota(rows.begin(), rows.end(), world.split.test.first + first);
    world.fill(rows, batch);
    z.resize(Funnel::heads, batch.size());
    model.forward(batch, z, saved, step, ws);
    for (Index h = 0; h < Funnel::heads; ++h) std::copy_n(z.row(h), batch.size(), scores.row(h) + first);
  }
  return judge(world, scores);
}

int main_of(const Config& config, const SimulatorOptions& simulated) {
  std::vector<std::uint64_t> seeds(at(config.seeds));
  std::iota(seeds.begin(), seeds.end(), simulated.seed);
  const std::pair<const char*, double Quality::*> metrics[] = {
      {"AUC, clicked", &Quality::clicked_auc},           {"AUC, entire space", &Quality::entire_auc},
      {"AUC, click and conversion", &Quality::both_auc}, {"PCOC, clicked", &Quality::clicked_pcoc},
      {"PCOC, entire space", &Quality::entire_pcoc},     {"log loss, entire space", &Quality::entire_log_loss}};
  std::vector<SeedTable> tables;
  for (const auto& [name, field] : metrics) tables.emplace_back(name, system_names, seeds);

  for (std::size_t s = 0; s < seeds.size(); ++s) {
    SimulatorOptions options = simulated;
    options.seed = seeds[s];
    const Simulator simulator(options);
    const World world(simulator);
    if (s == 0) {
      const auto count = [&](const std::vector<std::uint8_t>& y, RowRange r) {
        return std::accumulate(y.begin() + r.first, y.begin() + r.last, Index{0});
      };
      const RowRange train = world.split.train, test = world.split.test;
      const Index clicks = count(world.log.label(Label::click), test), sold = count(world.log.label(Label::purchase), test),
                  would = count(world.log.would_purchase, test);
      std::printf("train: %td impressions, %td clicks, %td conversions\n", train.size(),
                  count(world.log.label(Label::click), train), count(world.log.label(Label::purchase), train));
      std::printf("test:  %td impressions, %td clicks; conversion rate %.4f of clicked ones, %.4f had all been clicked\n",
                  test.size(), clicks, static_cast<double>(sold) / static_cast<double>(clicks),
                  static_cast<double>(would) / static_cast<double>(test.size()));
      Workspace ws;
      const auto first = world.log.would_purchase.begin() + test.first;
      const std::vector<std::uint8_t> labels(first, first + test.size());
      std::printf("the true rate itself reaches AUC %.4f in the entire space: the limit of any model\n\n",
                  recops::auc<double>(world.true_rate, labels, ws).value);
    }
    for (Index system = 0; system < system_count; ++system) {
      const Quality q = run(static_cast<System>(system), world, config, seeds[s]);
      for (std::size_t m = 0; m < tables.size(); ++m) tables[m].set(system, static_cast<Index>(s), q.*metrics[m].second);
    }
  }
  if (seeds.size() == 1) {
    std::printf("%-20s  %-21s  %-8s  %-21s  %s\n", "", "AUC of the conversion", "AUC", "PCOC", "log loss");
    std::printf("%-20s  %9s %11s  %8s  %9s %11s  %s\n", "", "clicked", "everywhere", "of both", "clicked", "everywhere",
                "everywhere");
    for (Index r = 0; r < system_count; ++r) {
      std::printf("%-20s", system_names[at(r)].c_str());
      for (std::size_t m = 0; m < tables.size(); ++m)
        std::printf(m == 0 || m == 3   ? "  %9.4f"
                    : m == 1 || m == 4 ? " %11.4f"
                    : m == 2           ? "  %8.4f"
                                       : "  %.4f",
                    tables[m].value(r, 0));
      std::printf("\n");
    }
    std::printf("\nPCOC: mean prediction over observed rate, 1 is calibrated.\n");
    std::printf("One seed says little about differences this small: --seeds 5 gives paired intervals.\n");
    return 0;
  }
  for (const SeedTable& table : tables) {
    table.print(stdout, 1);  // against ESMM
    std::printf("\n");
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Config config;
  SimulatorOptions simulated;
  simulated.rates.purchase = 0.08;  // of clicks: enough conversions to compare models on
  Cli cli("chorus_cvr", "Trains conversion models on a click funnel by seven losses and judges them on all impressions.");
  cli.refuse("data", "none of the sets in docs/data.md has conversions after clicks")
      .option("seeds", config.seeds, "worlds to compare the systems over, from --seed on", "seeds", 1, 100)
      .option("epochs", config.epochs, "passes over the training data", "", 1, 100)
      .option("batch", config.batch, "impressions of a step", "", 1, 1e6)
      .option("learning-rate", config.learning_rate, "of Adam", "", 1e-9, 1)
      .option("clip", config.clip, "least propensity", "", 1e-6, 1)
      .option("align", config.align, "weight of ChorusCVR's alignment", "", 0, 1e3)
      .option("conversion-rate", simulated.rates.purchase, "conversions per click", "", 1e-6, 0.999);
  add_simulator_options(cli, simulated);
  cli.parse(argc, argv);
  try {
    return main_of(config, simulated);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "chorus_cvr: %s\n", e.what());
    return 1;
  }
}
