/// HarmonRank (arXiv 2601.02955): one ensemble score out of the scores of several objectives, trained on their AUCs.
///
///   1. A multi-task model predicts click, long view, like and purchase from the first part of a simulated log, and is frozen.
///   2. Ensembles learn from the next part to make one score of the four, and of who asks. What is compared is how they are trained:
///      a hand-tuned formula, the sum of cross-entropies, a pairwise AUC surrogate, the rank-sum AUC; and what HarmonRank's parts are
///      worth: without each attention step, without each branch, with the paper's literal eps.
///   3. The last part says how well the one score ranks by each objective: AUC, and GAUC within users.
///
/// --seeds 5 repeats all of it in other worlds, with intervals of the paired differences; --plot FILE draws the trade-off between
/// clicks and purchases. No public data set that the examples read has several objectives per impression; --data says so.
#include <recops/metrics/gauc.hpp>
#include <recops/models/harmonrank.hpp>
#include <recops/nn/loss.hpp>
#include <recops/ranking/pairwise_auc.hpp>
#include <recops/ranking/rank_sum_auc_loss.hpp>
#include <recops/simd/build_info.hpp>
#include <recops/train/adam.hpp>

#include <numeric>

#include "examples/common/cli.hpp"
#include "examples/common/ranker.hpp"
#include "examples/common/running_rates.hpp"
#include "examples/common/seeds.hpp"
#include "examples/common/simulator.hpp"
#include "examples/common/svg.hpp"

using namespace examples;
using recops::Random;
using recops::Vector;
using recops::VectorView;

namespace {

constexpr Index objectives = label_count;

struct Config {
  std::string plot;
  Index seeds = 1, users = 600, epochs = 4, batch = 2048, width = 16, heads = 2;
  double eps = 2, rate = 5e-3, purchases = 0.06;
};

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

/// What a user is like so far: columns of the profile.
constexpr Index profile_columns = 9;

/// Rows of a log as ensembles see them.
struct Part {
  Matrix<float> scores, profile;    ///< [n, M] logits of the frozen model, [n, P]
  Matrix<std::uint8_t> labels;      ///< [n, M]
  std::vector<std::int32_t> order;  ///< rows by user ...
  std::vector<std::int32_t> users;  ///< ... and where each user's begin
  Index rows() const { return scores.rows(); }
};

/// The log with features of the past only: those of a row are taken before its visit.
struct Features {
  Matrix<float> item;     ///< of the multi-task model's context: rates of the item, the user's taste for its category and price
  Matrix<float> profile;  ///< of the user

  explicit Features(const InteractionLog& log) : item(log.size(), objectives + 4), profile(log.size(), profile_columns) {
    RunningRates rates(log, {Label::click, Label::long_view, Label::like, Label::purchase});
    const auto users = at(log.users), categories = at(log.categories);
    std::vector<float> shown(users), price(users), taste(users * categories), seen(users * categories);
    std::vector<std::array<float, objectives>> taken(users);
    for (Index begin = 0, end = 0; begin < log.size(); begin = end) {
      while (end < log.size() && log.visit[at(end)] == log.visit[at(begin)]) ++end;
      const auto u = at(log.user[at(begin)]);
      rates.advance(log.time[at(begin)]);
      for (Index r = begin; r < end; ++r) {
        const auto c = u * categories + at(log.item_category[at(log.item[at(r)])]);
        const float own_price = log.item_price[at(log.item[at(r)])], mean_price = price[u] / (1 + taken[u][0]);
        float* const f = item.row(r);
        rates.features(log.item[at(r)], f);
        f[objectives + 1] = std::log((taste[c] + 0.5f) / (seen[c] + 2.5f)) - std::log(0.2f);
        f[objectives + 2] = std::log((taken[u][0] + 2) / (shown[u] + 10)) - std::log(0.2f);
        f[objectives + 3] = own_price * mean_price;
        float* const p = profile.row(r);
        for (Index g = 0; g < 4; ++g) p[g] = log.user_group[u] == static_cast<std::int32_t>(g) ? 1.0f : 0.0f;
        for (Index m = 0; m < objectives; ++m)
          p[4 + m] = std::log((taken[u][at(m)] + 1) / ((m == 0 ? shown[u] : taken[u][0]) + 5)) + 1.5f;
        p[8] = mean_price;
      }
      for (Index r = begin; r < end; ++r) {
        const auto c = u * categories + at(log.item_category[at(log.item[at(r)])]);
        const float click = log.label(Label::click)[at(r)];
        ++shown[u], ++seen[c], taste[c] += click;
        price[u] += click * log.item_price[at(log.item[at(r)])];
        for (Index m = 0; m < objectives; ++m) taken[u][at(m)] += log.labels[at(m)][at(r)];
      }
    }
  }
};

/// Rows of the log as a batch of the multi-task model; each is a request of its own, without a history.
void fill(const InteractionLog& log, const Features& features, const std::vector<Index>& rows, Index first, Index last,
          RankerBatch& batch) {
  batch.clear();
  for (Index k = first; k < last; ++k) {
    const Index r = rows[at(k)];
    batch.item.push_back(log.item[at(r)]);
    batch.category.push_back(log.item_category[at(log.item[at(r)])]);
    batch.hour.push_back(log.hour[at(r)]);
    batch.context.insert(batch.context.end(), features.item.row(r), features.item.row(r) + features.item.cols());
    batch.context.insert(batch.context.end(), features.profile.row(r), features.profile.row(r) + profile_columns);
    for (Index m = 0; m < objectives; ++m) batch.labels.push_back(log.labels[at(m)][at(r)]);
    batch.close();
  }
}

std::vector<Index> rows_of(RowRange range) {
  std::vector<Index> rows(at(range.size()));
  std::iota(rows.begin(), rows.end(), range.first);
  return rows;
}

template <class T>
void shuffle(std::vector<T>& v, std::uint64_t seed, std::uint64_t stream) {
  Random random(seed, stream);
  for (std::size_t i = v.size(); i > 1; --i) std::swap(v[i - 1], v[at(random.below(static_cast<Index>(i)))]);
}

/// Step 1: the model whose scores are to be combined.
Ranker train_objectives(const InteractionLog& log, const Features& features, RowRange range, std::uint64_t seed) {
  std::vector<Index> rows = rows_of(range);
  RankerOptions options{.items = log.items,
                        .categories = log.categories,
                        .context = features.item.cols() + profile_columns,
                        .tasks = objectives,
                        .interest = InterestFrom::nothing,
                        .item_width = 16,
                        .category_width = 8,
                        .time_width = 8,
                        .expert_width = 24,
                        .embedding_deviation = 0.1,
                        .context_begins_with_rates = true};
  for (Index m = 0; m < objectives; ++m) {
    double sum = 1;
    for (const Index r : rows) sum += log.labels[at(m)][at(r)];
    options.base_rates.push_back(sum / static_cast<double>(rows.size() + 2));
  }
  Ranker ranker(options, seed);
  recops::Adam adam(ranker, {.learning_rate = 3e-3});
  Ranker gradient = recops::make_gradient(ranker);
  Ranker::Saved saved;
  RankerBatch batch;
  Matrix<float> logits, dlogits;
  Workspace ws;
  recops::Step step{seed, 0, 0};
  for (std::uint64_t epoch = 0; epoch < 2; ++epoch) {
    shuffle(rows, seed, 100 + epoch);
    constexpr Index size = 512;
    for (Index first = 0; first < range.size(); first += size, ++step.number) {
      const Index last = std::min(first + size, range.size());
      fill(log, features, rows, first, last, batch);
      logits.resize(last - first, objectives);
      dlogits = Matrix<float>(last - first, objectives, 0.0f);
      ranker.forward(batch, logits, saved, step, ws);
      recops::bce_with_logits_value_and_grad<float>(
          logits, MatrixView<const float>(batch.labels.data(), last - first, objectives), {}, {}, dlogits);
      recops::zero_gradient(gradient);
      ranker.backward(batch, dlogits, saved, gradient, ws);
      adam.step(ranker, gradient);
    }
  }
  return ranker;
}

Part make_part(const InteractionLog& log, const Features& features, const FrozenRanker& model, RowRange range) {
  Part part;
  const std::vector<Index> rows = rows_of(range);
  const Index n = range.size();
  part.scores.resize(n, objectives);
  part.profile.resize(n, profile_columns);
  part.labels.resize(n, objectives);
  RankerBatch batch;
  Workspace ws;
  for (Index first = 0; first < n; first += 1024) {
    const Index last = std::min(first + 1024, n);
    fill(log, features, rows, first, last, batch);
    model.forward(batch, part.scores.view().middle_rows(first, last - first), ws);
  }
  for (Index i = 0; i < n; ++i) {
    std::copy_n(features.profile.row(range.first + i), profile_columns, part.profile.row(i));
    for (Index m = 0; m < objectives; ++m) part.labels(i, m) = log.labels[at(m)][at(range.first + i)];
  }
  part.order.resize(at(n));
  std::iota(part.order.begin(), part.order.end(), 0);
  const auto user = [&](std::int32_t i) { return log.user[at(range.first + i)]; };
  std::stable_sort(part.order.begin(), part.order.end(), [&](std::int32_t a, std::int32_t b) { return user(a) < user(b); });
  for (Index i = 0; i < n; ++i)
    if (i == 0 || user(part.order[at(i)]) != user(part.order[at(i - 1)])) part.users.push_back(static_cast<std::int32_t>(i));
  part.users.push_back(static_cast<std::int32_t>(n));
  return part;
}

/// The scores' means and deviations on the training part: ensembles get standardised ones.
void standardise(Part& train, Part& test) {
  for (Index m = 0; m < objectives; ++m) {
    double sum = 0, square = 0;
    for (Index i = 0; i < train.rows(); ++i) sum += static_cast<double>(train.scores(i, m));
    const double mean = sum / static_cast<double>(train.rows());
    for (Index i = 0; i < train.rows(); ++i) square += std::pow(static_cast<double>(train.scores(i, m)) - mean, 2);
    const double deviation = std::sqrt(square / static_cast<double>(train.rows())) + 1e-6;
    for (Part* p : {&train, &test})
      for (Index i = 0; i < p->rows(); ++i)
        p->scores(i, m) = static_cast<float>((static_cast<double>(p->scores(i, m)) - mean) / deviation);
  }
}

struct Quality {
  std::array<double, objectives> auc{}, gauc{};
  double mean_auc() const { return std::accumulate(auc.begin(), auc.end(), 0.0) / objectives; }
  double mean_gauc() const { return std::accumulate(gauc.begin(), gauc.end(), 0.0) / objectives; }
};

Quality judge(const Part& part, const Vector<float>& score) {
  Quality q;
  Workspace ws;
  Vector<float> s(score.size());
  Vector<std::uint8_t> y(score.size());
  for (Index i = 0; i < score.size(); ++i) s[i] = score[part.order[at(i)]];
  for (Index m = 0; m < objectives; ++m) {
    for (Index i = 0; i < score.size(); ++i) y[i] = part.labels(part.order[at(i)], m);
    q.auc[at(m)] = recops::auc<float>(s, y, ws).value;
    q.gauc[at(m)] = recops::gauc<float>(s, y, part.users, {}, ws).value;
  }
  return q;
}

using Weights = std::array<double, objectives>;
constexpr Weights even{0.25, 0.25, 0.25, 0.25};

Vector<float> formula(const Part& part, const Weights& w) {
  Vector<float> s(part.rows());
  for (Index i = 0; i < part.rows(); ++i) {
    double sum = 0;
    for (Index m = 0; m < objectives; ++m) sum += w[at(m)] * static_cast<double>(part.scores(i, m));
    s[i] = static_cast<float>(sum);
  }
  return s;
}

/// What a product team does: powers of the scores (weights of logits here), tuned one after the other on a grid for the weighted mean
/// of the AUCs on the training part.
Weights tune_formula(const Part& train, const Weights& value) {
  Weights best = even;
  const auto worth = [&](const Weights& w) {
    const Quality q = judge(train, formula(train, w));
    return std::inner_product(value.begin(), value.end(), q.auc.begin(), 0.0);
  };
  double most = worth(best);
  for (int round = 0; round < 2; ++round)
    for (std::size_t m = 0; m < objectives; ++m)
      for (const double w : {0.0, 0.1, 0.2, 0.4, 0.8, 1.6}) {
        Weights other = best;
        other[m] = w;
        if (const double v = worth(other); v > most) most = v, best = other;
      }
  return best;
}

enum class Loss { cross_entropy, pairwise, rank_sum };

/// A way to make one score of four.
struct System {
  const char* name;
  Loss loss = Loss::rank_sum;
  bool self = true, cross = true, agnostic = true, aware = true;  ///< parts of the network
  bool literal = false;  ///< s in (0, 1) and an absolute eps of 1, as the paper writes it
};
constexpr System systems[] = {
    {"sum of BCE", Loss::cross_entropy},
    {"pairwise AUC", Loss::pairwise},
    {"HarmonRank"},
    {"- self-attention", Loss::rank_sum, false},
    {"- cross-attention", Loss::rank_sum, true, false},
    {"- both (gate + values)", Loss::rank_sum, false, false},
    {"- agnostic branch", Loss::rank_sum, true, true, false},
    {"- aware branch", Loss::rank_sum, true, true, true, false},
    {"literal eps", Loss::rank_sum, true, true, true, true, true},
};
constexpr std::size_t system_count = std::size(systems), formula_place = system_count, click_place = formula_place + 1;

/// Step 2: trains one ensemble and scores the test part. `blocks` receives the share of scores the last batch pooled.
Vector<float> train_ensemble(const Part& train, const Part& test, const System& system, const Weights& value,
                             const Config& config, std::uint64_t seed, double* pooled = nullptr) {
  Random random(seed, 7);
  recops::HarmonRank<float> model({.objectives = objectives,
                                   .profile = profile_columns,
                                   .width = config.width,
                                   .heads = config.heads,
                                   .relation_aware = system.aware,
                                   .self_attention = system.self,
                                   .cross_attention = system.cross,
                                   .relation_agnostic = system.agnostic,
                                   .sigmoid = system.literal},
                                  random);
  recops::HarmonRank<float> gradient = recops::make_gradient(model);
  recops::HarmonRank<float>::Saved saved;
  recops::Adam adam(model, {.learning_rate = config.rate});
  std::vector<Index> rows = rows_of({0, train.rows()});
  Workspace ws;
  Vector<float> s, ds;
  Matrix<float> x, u;
  Matrix<std::uint8_t> y;
  for (Index epoch = 0; epoch < config.epochs; ++epoch) {
    shuffle(rows, seed, 200 + static_cast<std::uint64_t>(epoch));
    const Index n = std::min(config.batch, train.rows());
    for (Index first = 0; n > 0 && first + n <= train.rows(); first += n) {
      x.resize(n, objectives), u.resize(n, profile_columns), y.resize(n, objectives), s.resize(n), ds.resize(n);
      for (Index i = 0; i < n; ++i) {
        const Index r = rows[at(first + i)];
        std::copy_n(train.scores.row(r), objectives, x.row(i));
        std::copy_n(train.profile.row(r), profile_columns, u.row(i));
        std::copy_n(train.labels.row(r), objectives, y.row(i));
      }
      model.forward(x, u, s, saved, ws);
      ds.fill(0);
      if (system.loss == Loss::rank_sum) {
        const auto r = recops::rank_sum_auc_loss_value_and_grad<float>(
            s, y, {},
            {.eps_mode = system.literal ? recops::EpsMode::absolute : recops::EpsMode::relative,
             .eps = system.literal ? 1.0 : config.eps,
             .weights = VectorView<const double>(value.data(), objectives),
             .scale_gradient = true},
            {}, ds, ws);
        if (pooled != nullptr) *pooled = static_cast<double>(r.blocks.largest) / static_cast<double>(n);
      } else {
        Vector<float> d(n);
        Vector<std::uint8_t> one(n);
        Vector<float> label(n);
        for (Index m = 0; m < objectives; ++m) {
          d.fill(0);
          for (Index i = 0; i < n; ++i) one[i] = y(i, m), label[i] = y(i, m);
          if (system.loss == Loss::pairwise)
            recops::pairwise_auc_loss_value_and_grad<float>(s, one, {}, {}, d, ws);
          else
            recops::bce_with_logits_value_and_grad<float>(MatrixView<const float>(s.data(), n, 1),
                                                          MatrixView<const float>(label.data(), n, 1), {}, {},
                                                          MatrixView<float>(d.data(), n, 1));
          recops::simd::axpy(static_cast<float>(value[at(m)]), d.data(), ds.data(), n);
        }
      }
      recops::zero_gradient(gradient);
      model.backward(x, u, ds, saved, {}, {}, gradient, ws);
      adam.step(model, gradient);
    }
  }
  Vector<float> score(test.rows());
  freeze(model).forward(test.scores, test.profile, score, ws);
  return score;
}

struct Run {
  std::vector<Quality> quality;
  std::vector<double> pooled;
};

/// The trade-off between the first and the last objective: the same systems with all weights from the one to the other.
void plot(const Part& train, const Part& test, const Config& config) {
  SvgChart chart{.title = "One score for clicks and purchases", .x_label = "AUC of clicks", .y_label = "AUC of purchases"};
  const System* const drawn[] = {nullptr, &systems[0], &systems[1], &systems[2]};
  for (const System* system : drawn) {
    SvgSeries series{.name = system == nullptr ? "formula" : system->name};
    for (const double t : {0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0}) {
      const Weights value{1 - t, 0, 0, t};
      const Quality q = judge(test, system == nullptr ? formula(test, tune_formula(train, value))
                                                      : train_ensemble(train, test, *system, value, config, 1));
      series.x.push_back(q.auc[0]);
      series.y.push_back(q.auc[objectives - 1]);
    }
    chart.series.push_back(series);
  }
  write_svg(config.plot, chart);
  std::printf("\n%s: the trade-off between clicks and purchases, weights from the one to the other.\n", config.plot.c_str());
}

Run run_world(const Config& config, std::uint64_t seed) {
  SimulatorOptions world{.seed = seed, .users = config.users};
  world.rates.purchase = config.purchases;
  const Simulator simulator(world);
  const InteractionLog log = simulator.generate();
  const TimeSplit split = split_by_time(log, 0.25, 0.35);
  const Features features(log);
  const Ranker ranker = train_objectives(log, features, split.train, seed);
  const FrozenRanker frozen(ranker);
  Part train = make_part(log, features, frozen, split.validation), test = make_part(log, features, frozen, split.test);
  standardise(train, test);
  if (seed == 1) {
    std::printf(
        "A simulated feed (docs/simulator.md): %td impressions for the objectives' model, %td for the ensembles, %td to judge.\n",
        split.train.size(), train.rows(), test.rows());
    std::printf("Positives in 1000 of those:");
    for (Index m = 0; m < objectives; ++m) {
      double sum = 0;
      for (Index i = 0; i < test.rows(); ++i) sum += test.labels(i, m);
      std::printf(" %s %.1f", label_name(static_cast<Label>(m)), 1000 * sum / static_cast<double>(test.rows()));
    }
    std::printf("\n\n");
  }
  Run run;
  for (const System& system : systems) {
    double pooled = 0;
    run.quality.push_back(judge(test, train_ensemble(train, test, system, even, config, seed, &pooled)));
    run.pooled.push_back(pooled);
  }
  run.quality.push_back(judge(test, formula(test, tune_formula(train, even))));
  run.quality.push_back(judge(test, formula(test, {1, 0, 0, 0})));
  if (seed == 1 && !config.plot.empty()) plot(train, test, config);
  return run;
}

const char* name_of(std::size_t k) {
  return k == formula_place ? "hand-tuned formula" : k == click_place ? "click score alone" : systems[k].name;
}

void report(const Run& run) {
  std::printf("Held-out impressions, seed 1\n  %-22s", "ensemble");
  for (Index m = 0; m < objectives; ++m) std::printf(" | %9s AUC   GAUC", label_name(static_cast<Label>(m)));
  std::printf(" | mean AUC   GAUC | largest block\n");
  for (std::size_t k = 0; k < run.quality.size(); ++k) {
    const Quality& q = run.quality[k];
    std::printf("  %-22s", name_of(k));
    for (Index m = 0; m < objectives; ++m) std::printf(" | %13.4f %.4f", q.auc[at(m)], q.gauc[at(m)]);
    std::printf(" |   %.4f %.4f", q.mean_auc(), q.mean_gauc());
    if (k < system_count && systems[k].loss == Loss::rank_sum) std::printf(" | %5.1f %%", 100 * run.pooled[k]);
    std::printf("\n");
  }
  std::printf(
      "  largest block: share of the scores that the soft ranks pool at most; --seeds 5 says which differences are luck\n");
}

}  // namespace

int main(int argc, char** argv) {
  Config config;
  Cli cli("harmonrank",
          "Combines the scores of several objectives into one, trained on their AUCs, and shows what each part is worth.");
  cli.refuse("data", "none of the sets in docs/data.md has several objectives for one impression");
  cli.option("seeds", config.seeds, "worlds to compare over", "seeds", 1, 100);
  cli.option("users", config.users, "users of the simulated world", "users", 50, 1000000);
  cli.option("epochs", config.epochs, "passes of an ensemble over its data", "passes", 1, 1000);
  cli.option("batch", config.batch, "impressions that are ranked together in training", "rows", 16, 1000000);
  cli.option("width", config.width, "d of the network", "", 1, 1024);
  cli.option("heads", config.heads, "of the self-attention, a divisor of width", "", 1, 64);
  cli.option("eps", config.eps, "relative eps of the soft ranks", "std / n", 0, 1e6);
  cli.option("rate", config.rate, "learning rate of Adam", "", 0, 1);
  cli.option("purchase-rate", config.purchases, "purchases per click in the simulated world", "", 0.001, 0.9);
  cli.option("plot", config.plot, "writes the trade-off between clicks and purchases as SVG", "FILE");
  cli.parse(argc, argv);
  std::printf("%s\n", recops::build_info().c_str());
  const auto start = std::chrono::steady_clock::now();
  try {
    std::vector<std::uint64_t> seeds(at(config.seeds));
    std::iota(seeds.begin(), seeds.end(), std::uint64_t{1});
    std::vector<std::string> names;
    for (std::size_t k = 0; k < system_count + 2; ++k) names.push_back(name_of(k));
    SeedTable auc("mean AUC", names, seeds), within("mean GAUC", names, seeds);
    std::vector<SeedTable> each;
    for (Index m = 0; m < objectives; ++m)
      each.emplace_back(std::string("AUC, ") + label_name(static_cast<Label>(m)), names, seeds);
    for (std::size_t s = 0; s < seeds.size(); ++s) {
      const Run run = run_world(config, seeds[s]);
      if (s == 0) report(run);
      for (std::size_t k = 0; k < run.quality.size(); ++k) {
        const auto row = static_cast<Index>(k), column = static_cast<Index>(s);
        auc.set(row, column, run.quality[k].mean_auc());
        within.set(row, column, run.quality[k].mean_gauc());
        for (Index m = 0; m < objectives; ++m) each[at(m)].set(row, column, run.quality[k].auc[at(m)]);
      }
    }
    if (seeds.size() > 1) {
      std::printf("\nOver %zu worlds, differences from the sum of cross-entropies with 95 %% intervals\n", seeds.size());
      auc.print();
      std::printf("\n");
      within.print();
      for (const SeedTable& table : each) std::printf("\n"), table.print();
      std::printf("\nWhat each part is worth: mean AUC, differences from HarmonRank\n");
      auc.print(stdout, 2);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "harmonrank: %s\n", error.what());
    return 1;
  }
  std::printf("\n%.1f s\n", std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
}
