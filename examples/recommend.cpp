/// The main job, end to end: learn from what users did, rank candidates for each of them, and diversify the list.
///
/// Item embeddings, target attention over the user's history and MMoE over several tasks are trained with the library's exact
/// backward; two baselines learn and are judged on the same data. Then the model is frozen, ranks fresh candidates for a few users,
/// MMR diversifies the lists, and every stage of a request is timed. Without arguments all this happens in a simulated world.
#include <cmath>
#include <cstdio>
#include <memory>
#include <numeric>
#include <optional>
#include <recops/diversity/mmr.hpp>
#include <recops/diversity/normalize.hpp>
#include <recops/metrics/auc.hpp>
#include <recops/metrics/calibration.hpp>
#include <recops/metrics/gauc.hpp>
#include <recops/metrics/intra_list.hpp>
#include <recops/metrics/log_loss.hpp>
#include <recops/metrics/ndcg.hpp>
#include <recops/simd/build_info.hpp>
#include <recops/train/adam.hpp>

#include "common/cli.hpp"
#include "common/movielens.hpp"
#include "common/open_bandit.hpp"
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

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }
std::size_t at(Index i) { return static_cast<std::size_t>(i); }

struct Config {
  std::string data;             // folder of real data; empty: the simulator
  Index seeds = 1;              // runs
  Index users = 1000;           // of the simulated world
  Index epochs = 3;             // passes over the training data
  Index history = 50;           // events a request sees
  Index candidates = 200;       // items ranked per request when lists are made
  Index list = 10;              // items shown
  Index requests = 500;         // timed requests
  double lambda = 0.7;          // MMR's weight of relevance
  double learning_rate = 5e-3;  // of Adam
  double deviation = 0.3;       // of initial embeddings
};

/// A task to learn, and what one such label is worth in the score that ranks.
struct Task {
  Label label;
  double value;
};

/// A data set and what can be asked of it.
struct World {
  InteractionLog log;
  std::vector<Task> tasks;
  std::vector<std::string> item_names, category_names;
  const Simulator* truth = nullptr;  // true probabilities, where they are known
  TimeSplit split;
};

std::vector<Label> labels_of(const World& world) {
  std::vector<Label> labels;
  for (const Task& t : world.tasks) labels.push_back(t.label);
  return labels;
}

/// The labels of a log that are neither always nor never set. Throws `DataError` if there is none.
std::vector<Task> tasks_of(const InteractionLog& log) {
  constexpr double values[] = {1, 1, 5, 10};  // a click, a long view on top of it, a like, a purchase
  std::vector<Task> tasks;
  for (int l = 0; l < label_count; ++l) {
    const auto label = static_cast<Label>(l);
    if (!log.has(label)) continue;
    const auto& y = log.label(label);
    const auto positives = std::accumulate(y.begin(), y.end(), Index{0});
    if (positives > 0 && positives < log.size()) tasks.push_back({label, values[l]});
  }
  if (tasks.empty()) throw DataError("nothing to learn: every label is always or never set");
  return tasks;
}

/// How often each task's label is set in the training rows.
std::vector<double> base_rates(const World& world) {
  std::vector<double> rates;
  for (const Task& t : world.tasks) {
    const auto first = world.log.label(t.label).begin();
    const auto positives = std::accumulate(first + world.split.train.first, first + world.split.train.last, 0.5);
    rates.push_back(positives / (static_cast<double>(world.split.train.size()) + 1));
  }
  return rates;
}

double sigmoid(double z) { return z >= 0 ? 1 / (1 + std::exp(-z)) : std::exp(z) / (1 + std::exp(z)); }

/// The multi-objective score: the expected value of showing an item.
double score_of(const World& world, const float* logits) {
  double score = 0;
  for (std::size_t t = 0; t < world.tasks.size(); ++t) score += world.tasks[t].value * sigmoid(static_cast<double>(logits[t]));
  return score;
}

// ---- Batches ------------------------------------------------------------------------------------------------------------

/// Rows first .. last - 1 of a log that were scored together: one user, one moment, hence one history.
struct Request {
  Index first, last;
};

std::vector<Request> requests_of(const InteractionLog& log, RowRange range) {
  std::vector<Request> requests;
  for (Index first = range.first, last; first < range.last; first = last) {
    last = first + 1;
    while (last < range.last && log.user[at(last)] == log.user[at(first)] && log.time[at(last)] == log.time[at(first)]) ++last;
    requests.push_back({first, last});
  }
  return requests;
}

/// Turns requests into batches. Context features are what was known when the request was made.
class BatchMaker {
 public:
  BatchMaker(const World& world, Index history)
      : world_(world), histories_(world.log), most_(history), rates_(world.log, labels_of(world)) {
    context_ = Matrix<float>(world.log.size(), rates_.columns());
    popularity_ = Matrix<float>(world.log.size(), static_cast<Index>(world.tasks.size()));
    for (Index row = 0; row < world.log.size(); ++row) {
      rates_.advance(world.log.time[at(row)]);
      rates_.features(world.log.item[at(row)], context_.row(row));
      for (std::size_t t = 0; t < world.tasks.size(); ++t) {
        const double rate = rates_.rate(world.log.item[at(row)], t);
        popularity_(row, static_cast<Index>(t)) = static_cast<float>(std::log(rate / (1 - rate)));
      }
    }
    rates_ = RunningRates(world.log, labels_of(world));
  }
  Index context() const { return context_.cols(); }
  /// What popularity alone knows about each row of the log when it was shown: the item's rates so far, as logits of all tasks.
  MatrixView<const float> popularity() const { return popularity_; }

  /// Appends the impressions of a request, with their labels.
  void append(const Request& request, RankerBatch& batch) const {
    begin(request, batch);
    for (Index row = request.first; row < request.last; ++row) {
      add_candidate(world_.log.item[at(row)], request, batch);
      batch.context.insert(batch.context.end(), context_.row(row), context_.row(row) + context_.cols());
      for (const Task& t : world_.tasks) batch.labels.push_back(world_.log.label(t.label)[at(row)]);
    }
    batch.close();
  }
  /// Appends other candidates for the same user and moment. Moments must not go back between calls.
  void append(const Request& request, const std::vector<std::int32_t>& candidates, RankerBatch& batch) {
    rates_.advance(world_.log.time[at(request.first)]);
    begin(request, batch);
    std::vector<float> features(at(rates_.columns()));
    for (const std::int32_t item : candidates) {
      add_candidate(item, request, batch);
      rates_.features(item, features.data());
      batch.context.insert(batch.context.end(), features.begin(), features.end());
    }
    batch.close();
  }

 private:
  void begin(const Request& request, RankerBatch& batch) const {
    const InteractionLog& log = world_.log;
    const Index row[] = {request.first};
    HistoryBatch h;
    histories_.gather_rows(VectorView<const Index>(row, 1), most_, h);
    for (std::size_t e = 0; e < h.items.size(); ++e) {
      const auto r = static_cast<std::size_t>(h.rows[e]);
      batch.event_item.push_back(h.items[e]);
      batch.event_category.push_back(log.item_category[static_cast<std::size_t>(h.items[e])]);
      batch.event_code.push_back(event_code(h.gap_hours[e], log.has(Label::long_view) && log.label(Label::long_view)[r],
                                            log.has(Label::like) && log.label(Label::like)[r]));
    }
  }
  void add_candidate(std::int32_t item, const Request& request, RankerBatch& batch) const {
    batch.item.push_back(item);
    batch.category.push_back(world_.log.item_category[static_cast<std::size_t>(item)]);
    batch.hour.push_back(world_.log.hour[at(request.first)]);
  }

  const World& world_;
  Histories histories_;
  Index most_;
  RunningRates rates_;
  Matrix<float> context_, popularity_;  // of every row of the log, at its own time
};

// ---- Training and judging -----------------------------------------------------------------------------------------------

/// Trains on batches of about 512 impressions; `fill(k, batch)` appends the k-th of `count` requests.
template <class Fill>
void train(Ranker& ranker, Index count, const Config& config, std::uint64_t seed, const std::string& label, Fill&& fill) {
  Workspace ws;
  recops::Adam adam(ranker, {.learning_rate = config.learning_rate});
  Ranker gradient = recops::make_gradient(ranker);
  Ranker::Saved saved;
  RankerBatch batch;
  Matrix<float> logits, dlogits;
  std::vector<Index> order(at(count));
  std::iota(order.begin(), order.end(), Index{0});
  Progress progress(label, config.epochs * count);
  recops::Step step{seed, 0, 0};
  double loss = 0;
  for (Index epoch = 0; epoch < config.epochs; ++epoch) {
    Random shuffle(seed, 0x73687566ull + static_cast<std::uint64_t>(epoch));
    for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[at(shuffle.below(static_cast<Index>(i)))]);
    // The last pass takes smaller steps: it averages out what the noise of single batches has left.
    adam.options.learning_rate = config.learning_rate * (epoch + 1 == config.epochs && epoch > 0 ? 0.3 : 1.0);
    for (std::size_t next = 0; next < order.size();) {
      batch.clear();
      const std::size_t before = next;
      while (next < order.size() && batch.candidates() < 512) fill(order[next++], batch);
      const Index n = batch.candidates(), tasks = ranker.options.tasks;
      logits.resize(n, tasks);
      dlogits.resize(n, tasks);
      dlogits.fill(0);
      recops::zero_gradient(gradient);
      ranker.forward(batch, logits, saved, step, ws);
      const double now = recops::bce_with_logits_value_and_grad<float>(
          logits, MatrixView<const float>(batch.labels.data(), n, tasks), {}, {}, dlogits);
      ranker.backward(batch, dlogits.view(), saved, gradient, ws);
      adam.step(ranker, gradient);
      ++step.number;
      loss = step.number == 1 ? now : 0.98 * loss + 0.02 * now;
      char note[32];
      std::snprintf(note, sizeof note, "loss %.4f", loss);
      progress.advance(static_cast<Index>(next - before), note);
    }
  }
}

/// Held-out figures of one system.
struct Quality {
  std::vector<double> auc, gauc, log_loss, calibration;  // per task; the last two for models only
  double ndcg = 0;
};

/// The test rows user by user, as the grouped metrics want them.
struct ByUser {
  std::vector<Index> order;  // rows counted from the first test row
  std::vector<std::int64_t> offsets{0};
};

ByUser group_by_user(const World& world) {
  const RowRange test = world.split.test;
  ByUser g;
  g.order.resize(at(test.size()));
  std::iota(g.order.begin(), g.order.end(), Index{0});
  const auto user = [&](Index i) { return world.log.user[at(test.first + i)]; };
  std::stable_sort(g.order.begin(), g.order.end(), [&](Index a, Index b) { return user(a) < user(b); });
  for (std::size_t i = 1; i <= g.order.size(); ++i)
    if (i == g.order.size() || user(g.order[i]) != user(g.order[i - 1])) g.offsets.push_back(static_cast<std::int64_t>(i));
  return g;
}

/// Judges logits `[test rows, tasks]`.
Quality judge(const World& world, MatrixView<const float> logits, const ByUser& users, bool probabilities) {
  const auto& [order, offsets] = users;
  Workspace ws;
  const Index n = logits.rows();
  Vector<float> scores(n), gains(n);
  Vector<std::uint8_t> labels(n);
  Quality q;
  for (std::size_t t = 0; t < world.tasks.size(); ++t) {
    const auto& y = world.log.label(world.tasks[t].label);
    for (Index i = 0; i < n; ++i) {
      scores[i] = logits(order[at(i)], static_cast<Index>(t));
      labels[i] = y[at(world.split.test.first + order[at(i)])];
    }
    const auto figure = [](const auto& result) { return result.valid ? result.value : std::nan(""); };  // nan: undefined here
    q.auc.push_back(figure(recops::auc<float>(scores, labels, ws)));
    q.gauc.push_back(figure(recops::gauc<float>(scores, labels, offsets, {}, ws)));
    if (!probabilities) continue;
    q.log_loss.push_back(recops::log_loss_from_logits<float>(scores, labels).value);
    for (float& s : scores) s = static_cast<float>(sigmoid(static_cast<double>(s)));
    q.calibration.push_back(recops::pcoc<float>(scores, labels).value);
  }
  for (Index i = 0; i < n; ++i) {
    scores[i] = static_cast<float>(score_of(world, logits.row(order[at(i)])));
    gains[i] = 0;
    for (const Task& t : world.tasks)
      gains[i] +=
          static_cast<float>(t.value) * static_cast<float>(world.log.label(t.label)[at(world.split.test.first + order[at(i)])]);
  }
  q.ndcg =
      recops::ndcg<float>(scores, VectorView<const float>(gains), offsets, {.k = 10, .gain = recops::Gain::linear}, ws).value;
  return q;
}

/// Logits of all test rows, by the frozen model: what would be served is what is judged.
Matrix<float> score_test(const World& world, const FrozenRanker& model, const BatchMaker& maker) {
  Workspace ws;
  RankerBatch batch;
  const Index tasks = static_cast<Index>(world.tasks.size());
  Matrix<float> logits(world.split.test.size(), tasks);
  const std::vector<Request> requests = requests_of(world.log, world.split.test);
  for (std::size_t r = 0, row = 0; r < requests.size();) {
    batch.clear();
    while (r < requests.size() && batch.candidates() < 512) maker.append(requests[r++], batch);
    model.forward(batch, logits.view().middle_rows(static_cast<Index>(row), batch.candidates()), ws);
    row += at(batch.candidates());
  }
  return logits;
}

// ---- Lists --------------------------------------------------------------------------------------------------------------

/// Items for a request to choose from: random ones that are out and were not taken before; where the truth is unknown, what the
/// user went on to take is among them.
std::vector<std::int32_t> draw_candidates(const World& world, const Request& request, Index count, Random& random) {
  const InteractionLog& log = world.log;
  const std::int64_t now = log.time[at(request.first)];
  std::vector<std::int32_t> items;
  std::vector<char> seen(at(log.items));
  for (Index row = 0; row < log.size(); ++row) {
    if (log.user[at(row)] != log.user[at(request.first)]) continue;
    const bool taken = log.label(Label::click)[at(row)] != 0;
    char& mine = seen[static_cast<std::size_t>(log.item[at(row)])];
    if (!world.truth && log.time[at(row)] >= now && !mine && static_cast<Index>(items.size()) < count / 2) {
      items.push_back(log.item[at(row)]);
      mine = 1;
    }
    if (taken) mine = 1;
  }
  for (Index tries = 0; static_cast<Index>(items.size()) < count && tries < 50 * count; ++tries) {
    const auto item = static_cast<std::int32_t>(random.below(log.items));
    if (seen[static_cast<std::size_t>(item)] || (world.truth && !world.truth->is_available(item, now))) continue;
    seen[static_cast<std::size_t>(item)] = 1;
    items.push_back(item);
  }
  return items;
}

/// What each item is worth to the user, for judging a list: the expected value where the truth is known, else the labels that came.
std::vector<float> worths(const World& world, const Request& request, const std::vector<std::int32_t>& items) {
  const InteractionLog& log = world.log;
  const Index user = log.user[at(request.first)];
  const std::int64_t now = log.time[at(request.first)];
  std::vector<float> value(at(log.items));
  if (world.truth) {
    for (const std::int32_t item : items)
      for (const Task& t : world.tasks)
        value[at(item)] += static_cast<float>(t.value * world.truth->true_probability(user, item, now, t.label));
  } else {
    for (Index row = request.first; row < log.size(); ++row) {
      if (log.user[at(row)] != user) continue;
      for (const Task& t : world.tasks) value[at(log.item[at(row)])] += static_cast<float>(t.value * log.label(t.label)[at(row)]);
    }
  }
  std::vector<float> gains;
  for (const std::int32_t item : items) gains.push_back(value[at(item)]);
  return gains;
}

/// Ranks candidates and diversifies the list; keeps all it needs from call to call.
class Recommender {
 public:
  Recommender(const World& world, const FrozenRanker& model, const Config& config)
      : world_(world), model_(model), config_(config) {
    // What makes two items alike: their learned embeddings, scaled to length 1.
    const Ranker& r = model.ranker();
    const Index width = r.options.item_width + r.options.category_width;
    features_ = Matrix<float>(world.log.items, width);
    for (Index i = 0; i < world.log.items; ++i) {
      std::copy_n(r.item.weight.values.row(i), r.options.item_width, features_.row(i));
      std::copy_n(r.category.weight.values.row(world.log.item_category[at(i)]), r.options.category_width,
                  features_.row(i) + r.options.item_width);
    }
    recops::normalize_rows<float>(features_, features_);
  }

  /// Microseconds of one request by stage.
  struct Timing {
    FrozenRanker::Stages model;
    double rerank = 0, total = 0;
  };

  /// `by_score` and `diverse`: places in the batch's candidates, best first.
  void recommend(const RankerBatch& batch, std::vector<std::int32_t>& by_score, std::vector<std::int32_t>& diverse,
                 Timing& timing) {
    const auto start = Clock::now();
    const auto mark = ws_.mark();
    const Index n = batch.candidates();
    const MatrixView<float> logits = ws_.matrix<float>(n, static_cast<Index>(world_.tasks.size()));
    model_.forward(batch, logits, ws_, &timing.model);
    const auto ranked = Clock::now();
    const VectorView<float> scores = ws_.vector<float>(n);
    for (Index i = 0; i < n; ++i) scores[i] = static_cast<float>(score_of(world_, logits.row(i)));
    recops::normalize_scores<float>(scores, recops::ScoreScale::minmax, scores, ws_);
    const MatrixView<float> features = ws_.matrix<float>(n, features_.cols());
    for (Index i = 0; i < n; ++i) std::copy_n(features_.row(batch.item[at(i)]), features.cols(), features.row(i));
    diverse.resize(at(std::min(config_.list, n)));
    const auto chosen = recops::mmr<float>(scores, features, {.lambda = config_.lambda}, diverse, {}, ws_);
    diverse.resize(at(chosen.count));
    timing.rerank += std::chrono::duration<double, std::micro>(Clock::now() - ranked).count();
    timing.total += std::chrono::duration<double, std::micro>(Clock::now() - start).count();

    by_score.resize(at(n));
    std::iota(by_score.begin(), by_score.end(), 0);
    std::stable_sort(by_score.begin(), by_score.end(), [&](std::int32_t a, std::int32_t b) { return scores[a] > scores[b]; });
    by_score.resize(at(std::min(config_.list, n)));
  }
  MatrixView<const float> features() const { return features_; }

 private:
  const World& world_;
  const FrozenRanker& model_;
  Config config_;
  Matrix<float> features_;
  Workspace ws_;
};

double ndcg_of(const std::vector<std::int32_t>& list, const std::vector<float>& gains) {
  std::vector<float> best = gains;
  std::sort(best.begin(), best.end(), std::greater<>());
  double dcg = 0, ideal = 0;
  for (std::size_t p = 0; p < list.size(); ++p) {
    dcg += static_cast<double>(gains[static_cast<std::size_t>(list[p])]) / std::log2(static_cast<double>(p) + 2);
    ideal += static_cast<double>(best[p]) / std::log2(static_cast<double>(p) + 2);
  }
  return ideal > 0 ? dcg / ideal : std::nan("");
}

void print_list(const char* title, const World& world, const RankerBatch& batch, const std::vector<std::int32_t>& list) {
  const bool colour = wants_colour(stdout);
  std::printf("    %s\n", title);
  for (const std::int32_t place : list) {
    const Index item = batch.item[static_cast<std::size_t>(place)], category = batch.category[static_cast<std::size_t>(place)];
    std::printf("      %s\n",
                coloured(world.category_names[at(category)] + "  " + world.item_names[at(item)], category, colour).c_str());
  }
}

double quantile(std::vector<double> values, double q) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[std::min(values.size() - 1, static_cast<std::size_t>(q * static_cast<double>(values.size())))];
}

/// Lists for the test requests: what diversification gains and costs, a few of them in full, and the time they took.
void serve(const World& world, const FrozenRanker& model, const Config& config) {
  BatchMaker maker(world, config.history);
  Recommender recommender(world, model, config);
  Workspace ws;
  Random random(7);
  std::vector<Request> requests = requests_of(world.log, world.split.test);
  const std::size_t every = std::max<std::size_t>(1, (requests.size() + at(config.requests) - 1) / at(config.requests));
  double ndcg[2] = {0, 0}, categories[2] = {0, 0}, judged = 0;
  recops::GroupMean distance[2];
  Recommender::Timing total;
  std::vector<double> stage[5];
  std::vector<std::int32_t> lists[2];
  RankerBatch batch;
  int printed = 0;
  for (std::size_t r = 0; r < requests.size(); r += every) {
    batch.clear();
    maker.append(requests[r], draw_candidates(world, requests[r], config.candidates, random), batch);
    Recommender::Timing t;
    recommender.recommend(batch, lists[0], lists[1], t);
    const double times[] = {t.model.embed, t.model.interest, t.model.mixture, t.rerank, t.total};
    for (int i = 0; i < 5; ++i) stage[i].push_back(times[i]);

    const std::vector<float> gains = worths(world, requests[r], batch.item);
    const bool counts = std::any_of(gains.begin(), gains.end(), [](float g) { return g > 0; });
    judged += counts;
    for (int d = 0; d < 2; ++d) {
      if (counts) ndcg[d] += ndcg_of(lists[d], gains);
      std::vector<std::int32_t> items;
      std::vector<char> seen(at(world.log.categories));
      for (const std::int32_t place : lists[d]) {
        items.push_back(batch.item[static_cast<std::size_t>(place)]);
        char& mine = seen[static_cast<std::size_t>(batch.category[static_cast<std::size_t>(place)])];
        categories[d] += !mine;
        mine = 1;
      }
      const std::int32_t offsets[] = {0, static_cast<std::int32_t>(items.size())};
      recops::add_intra_list_distance<float>(recommender.features(), items, recops::IndexView(offsets, 2), {}, distance[d], ws);
    }
    if (printed < 3 && batch.events() >= 8) {
      std::printf("\n  User %d has lately taken\n", world.log.user[at(requests[r].first)]);
      const bool colour = wants_colour(stdout);
      for (Index e = batch.events() - 8; e < batch.events(); ++e) {
        const Index item = batch.event_item[at(e)], category = batch.event_category[at(e)];
        std::printf("      %s\n",
                    coloured(world.category_names[at(category)] + "  " + world.item_names[at(item)], category, colour).c_str());
      }
      print_list("by score", world, batch, lists[0]);
      print_list("after MMR", world, batch, lists[1]);
      ++printed;
    }
  }
  const double n = static_cast<double>(stage[0].size());
  std::printf("\nLists of %td out of %td candidates, %.0f requests%s\n", config.list, config.candidates, n,
              world.truth ? ", judged by the true value of every candidate" : ", judged by what users went on to like");
  std::printf("  %-28s %8s %12s %12s\n", "", "NDCG", "distance", "categories");
  for (int d = 0; d < 2; ++d) {
    char name[40];
    std::snprintf(name, sizeof name, d == 0 ? "by score" : "after MMR, lambda %.2g", config.lambda);
    std::printf("  %-28s %8.4f %12.4f %12.2f\n", name, ndcg[d] / judged, distance[d].result().value, categories[d] / n);
  }
  std::printf("  MMR: distance %+.1f %%, categories %+.1f %%, at %+.1f %% of NDCG\n",
              100 * (distance[1].result().value / distance[0].result().value - 1), 100 * (categories[1] / categories[0] - 1),
              100 * (ndcg[1] / ndcg[0] - 1));
  std::printf("\nLatency per request of the frozen model, one core, microseconds\n  %-34s %8s %8s\n", "", "p50", "p99");
  const char* names[] = {"embed candidates and history", "attention over the history", "MMoE and towers", "score and MMR",
                         "whole request"};
  for (int i = 0; i < 5; ++i) std::printf("  %-34s %8.1f %8.1f\n", names[i], quantile(stage[i], 0.5), quantile(stage[i], 0.99));
}

// ---- The three worlds ---------------------------------------------------------------------------------------------------

const char* const systems[] = {"attention", "mean pooling", "popularity", "the truth"};  // the last one on the simulator only

/// Trains and judges all systems once; returns the quality of each, and serves lists with the first if asked to.
std::vector<Quality> run(const World& world, const Config& config, std::uint64_t seed, bool lists) {
  const BatchMaker maker(world, config.history);
  const std::vector<Request> requests = requests_of(world.log, world.split.train);
  const ByUser users = group_by_user(world);
  std::vector<Quality> found;
  for (const InterestFrom interest : {InterestFrom::attention, InterestFrom::mean}) {
    Ranker ranker({.items = world.log.items,
                   .categories = world.log.categories,
                   .context = maker.context(),
                   .tasks = static_cast<Index>(world.tasks.size()),
                   .interest = interest,
                   .embedding_deviation = config.deviation,
                   .base_rates = base_rates(world),
                   .context_begins_with_rates = true},
                  seed);
    const bool first = interest == InterestFrom::attention;
    if (lists && first)
      std::printf("%td training requests, %td test impressions, %td parameters\n", static_cast<Index>(requests.size()),
                  world.split.test.size(), recops::parameter_count(ranker));
    std::fflush(stdout);
    train(ranker, static_cast<Index>(requests.size()), config, seed,
          std::string("  ") + systems[first ? 0 : 1] + ", seed " + std::to_string(seed),
          [&](Index k, RankerBatch& batch) { maker.append(requests[at(k)], batch); });
    const FrozenRanker frozen(ranker);
    const Matrix<float> logits = score_test(world, frozen, maker);
    found.push_back(judge(world, logits, users, true));
    if (lists && first) serve(world, frozen, config);
  }
  const RowRange test = world.split.test;
  found.push_back(judge(world, maker.popularity().middle_rows(test.first, test.size()), users, false));
  if (world.truth) {  // no model can be better than this, but for luck
    Matrix<float> truth(test.size(), static_cast<Index>(world.tasks.size()));
    for (Index i = 0; i < test.size(); ++i) {
      const std::size_t row = at(test.first + i);
      for (std::size_t t = 0; t < world.tasks.size(); ++t) {
        const double p = world.truth->true_probability(world.log.user[row], world.log.item[row], world.log.time[row],
                                                       world.tasks[t].label, world.log.position[row]);
        truth(i, static_cast<Index>(t)) = static_cast<float>(std::log(p / (1 - p)));
      }
    }
    found.push_back(judge(world, truth, users, true));
  }
  return found;
}

/// All seeds on one world and the table of what came out. `make` gives the world of a seed.
template <class Make>
void compare_systems(const Config& config, Make&& make) {
  std::vector<std::uint64_t> seeds(at(config.seeds));
  std::iota(seeds.begin(), seeds.end(), std::uint64_t{1});
  std::vector<SeedTable> tables;
  std::vector<Quality> first;
  std::vector<Task> tasks;
  for (std::size_t s = 0; s < seeds.size(); ++s) {
    const World& world = make(seeds[s]);
    const std::vector<Quality> found = run(world, config, seeds[s], s == 0);
    if (s == 0) {
      first = found;
      tasks = world.tasks;
      for (const Task& t : tasks)
        tables.emplace_back(std::string("GAUC, ") + label_name(t.label), std::vector<std::string>(systems, systems + 3), seeds);
      tables.emplace_back("NDCG@10 of the value", std::vector<std::string>(systems, systems + 3), seeds);
    }
    for (std::size_t k = 0; k < 3; ++k) {
      for (std::size_t t = 0; t < tasks.size(); ++t)
        tables[t].set(static_cast<Index>(k), static_cast<Index>(s), found[k].gauc[t]);
      tables.back().set(static_cast<Index>(k), static_cast<Index>(s), found[k].ndcg);
    }
  }
  std::printf("\nHeld-out impressions, seed 1\n  %-14s", "");
  for (const Task& t : tasks) std::printf(" | %9s AUC   GAUC  loss   p/y", label_name(t.label));
  std::printf(" | NDCG@10\n");
  for (std::size_t k = 0; k < first.size(); ++k) {
    std::printf("  %-14s", systems[k]);
    for (std::size_t t = 0; t < tasks.size(); ++t) {
      std::printf(" | %13.4f %.4f", first[k].auc[t], first[k].gauc[t]);
      if (first[k].log_loss.empty())
        std::printf("%12s", "");
      else
        std::printf(" %.3f %5.3f", first[k].log_loss[t], first[k].calibration[t]);
    }
    std::printf(" | %.4f\n", first[k].ndcg);
  }
  std::printf("  loss: log loss; p/y: predicted over observed rate, 1 is calibrated; NDCG@10: of the value of a visit's list%s\n",
              first.size() == 4 ? ";\n  the truth: the simulator's own probabilities, which no model can beat but for luck" : "");
  if (seeds.size() < 2) return;
  std::printf("\nOver %zu seeds: mean, and attention minus each baseline with a 95 %% interval of the paired difference\n",
              seeds.size());
  for (const SeedTable& table : tables) {
    std::printf("  %-22s", table.metric().c_str());
    for (Index k = 0; k < 3; ++k) std::printf(" %s %.4f%s", systems[k], table.summary(k).mean, k < 2 ? "," : "");
    for (Index k = 1; k < 3; ++k) {
      const Interval d = table.difference(0, k);
      std::printf(" | vs %s %+.4f [%+.4f, %+.4f]", systems[k], d.mean, d.low(), d.high());
    }
    std::printf("\n");
  }
}

void on_simulator(const Config& config) {
  std::unique_ptr<Simulator> truth;
  World world;
  compare_systems(config, [&](std::uint64_t seed) -> const World& {
    truth = std::make_unique<Simulator>(SimulatorOptions{.seed = seed, .users = config.users});
    world = World{};
    world.log = truth->generate();
    world.truth = truth.get();
    world.tasks = tasks_of(world.log);
    world.split = split_by_time(world.log, 0.15);
    for (Index i = 0; i < world.log.items; ++i) world.item_names.push_back("item " + std::to_string(i));
    for (Index c = 0; c < world.log.categories; ++c)
      world.category_names.push_back((c < 10 ? "category  " : "category ") + std::to_string(c));
    if (seed == 1)
      std::printf("A simulated feed: %td users, %td items, %td impressions; docs/simulator.md describes it.\n", world.log.users,
                  world.log.items, world.log.size());
    return world;
  });
}

void on_movielens(const Config& config, const MovieLens& data) {
  World world;
  world.log = data.log;
  world.tasks = tasks_of(world.log);
  world.split = split_by_time(world.log, 0.15);
  world.item_names = data.titles;
  world.category_names = data.genre_names;
  std::printf(
      "MovieLens: %td users, %td films, %td ratings; the task is to tell what a user likes (4 stars or more) of what they "
      "rate.\n",
      world.log.users, world.log.items, world.log.size());
  compare_systems(config, [&](std::uint64_t) -> const World& { return world; });
}

/// Open Bandit has neither users nor sequences: the ranking part alone. It learns from what Thompson sampling showed and is judged
/// on what was shown at random, where every item had the same chance.
void on_open_bandit(const Config& config, const std::string& campaign) {
  const OpenBanditLog shown = load_open_bandit(config.data, campaign, "bts"),
                      random = load_open_bandit(config.data, campaign, "random");
  constexpr Index codes = 4, context = 3 + 1 + 1 + 4 * codes;  // position, item value, past clicks, the commonest user codes
  const auto append = [&](const OpenBanditLog& log, Index row, RankerBatch& batch) {
    const Index item = log.item[at(row)];
    batch.item.push_back(log.item[at(row)]);
    batch.category.push_back(log.item_category[at(3 * item)]);
    batch.hour.push_back(hour_of(log.time_us[at(row)] / 1000000));
    float c[context] = {};
    c[log.position[at(row)]] = 1;
    c[3] = static_cast<float>(log.item_value[at(item)]);
    for (Index a = log.affinity_offsets[at(row)]; a < log.affinity_offsets[at(row) + 1]; ++a)
      if (log.affinity_item[at(a)] == item) c[4] = std::log1p(static_cast<float>(log.affinity_count[at(a)]));
    for (Index f = 0; f < 4; ++f)
      if (const Index code = log.user_feature[at(4 * row + f)]; code < codes) c[5 + codes * f + code] = 1;
    batch.context.insert(batch.context.end(), c, c + context);
    batch.labels.push_back(log.click[at(row)]);
    batch.close();
  };
  const double clicks = std::accumulate(shown.click.begin(), shown.click.end(), 0.0);
  Ranker ranker({.items = shown.items,
                 .categories = *std::max_element(shown.item_category.begin(), shown.item_category.end()) + 1,
                 .context = context,
                 .interest = InterestFrom::nothing,
                 .embedding_deviation = config.deviation,
                 .base_rates = {clicks / static_cast<double>(shown.size())}},
                1);
  train(ranker, shown.size(), config, 1, "  " + campaign, [&](Index k, RankerBatch& batch) { append(shown, k, batch); });
  const FrozenRanker frozen(ranker);
  Workspace ws;
  RankerBatch batch;
  for (Index row = 0; row < random.size(); ++row) append(random, row, batch);
  Matrix<float> logits(random.size(), 1);
  frozen.forward(batch, logits, ws);
  Vector<float> p(random.size());
  for (Index i = 0; i < p.size(); ++i) p[i] = static_cast<float>(sigmoid(static_cast<double>(logits(i, 0))));
  const auto calibration = recops::pcoc<float>(p, random.click);
  std::printf(
      "  %-6s %td impressions with %.0f clicks to learn from, %td with %.0f to judge by: AUC %.3f (standard error about %.3f), "
      "predicted / observed clicks %.2f, log-loss %.5f\n",
      campaign.c_str(), shown.size(), clicks, random.size(), calibration.observed, recops::auc<float>(p, random.click, ws).value,
      0.29 / std::sqrt(calibration.observed), calibration.value,
      recops::log_loss_from_probabilities<float>(p, random.click).value);
}

bool has_file(const std::string& folder, const char* name, const char* file) {
  try {
    find_data_folder(folder, name, file);
    return true;
  } catch (const DataError&) {
    return false;
  }
}

}  // namespace

int main(int argc, char** argv) {
  Config config;
  Cli cli("recommend", "Learns from behaviour sequences, ranks candidates and diversifies the list, with recops operators only.");
  cli.option("data", config.data, "folder with MovieLens and/or Open Bandit (docs/data.md); without it a simulated world", "DIR");
  cli.option("seeds", config.seeds, "runs to compare the systems over", "seeds", 1, 100);
  cli.option("users", config.users, "users of the simulated world", "users", 10, 1000000);
  cli.option("epochs", config.epochs, "passes over the training data", "passes", 1, 1000);
  cli.option("history", config.history, "most recent events that a request sees", "events", 1, 100000);
  cli.option("candidates", config.candidates, "items ranked per request", "items", 1, 100000);
  cli.option("list", config.list, "items shown", "items", 1, 1000);
  cli.option("requests", config.requests, "requests to serve and time", "requests", 1, 1000000);
  cli.option("lambda", config.lambda, "MMR's weight of relevance, 1 = no diversification", "", 0, 1);
  cli.option("rate", config.learning_rate, "learning rate of Adam", "", 0, 1);
  cli.option("deviation", config.deviation, "standard deviation of initial embeddings", "", 0, 10);
  // The real data are small and most items rare: ids are learned with care.
  for (int a = 1; a < argc; ++a)
    if (std::string_view(argv[a]).substr(0, 6) == "--data")
      config.deviation = 0.2, config.learning_rate = 1e-3, config.epochs = 2;
  cli.parse(argc, argv);

  std::printf("%s\n", recops::build_info().c_str());
  const auto start = Clock::now();
  try {
    if (config.data.empty()) {
      on_simulator(config);
    } else {
      const bool films = has_file(config.data, "ml-latest-small-2016", "ratings.tsv");
      const bool bandit = has_file(config.data, "open-bandit-small", "men-random.log.tsv");
      if (!films && !bandit)
        throw DataError(config.data + ": holds neither MovieLens nor Open Bandit (docs/data.md says what is expected)");
      if (films) on_movielens(config, load_movielens(config.data));
      if (bandit) {
        std::printf(
            "\nOpen Bandit has no users and no sequences: only the ranking part is trained, without history, and no list is "
            "made.\n");
        for (const char* campaign : {"men", "women"}) on_open_bandit(config, campaign);
        std::printf(
            "  So few clicks check the numbers and the calibration; they cannot tell whether anything about ranking was "
            "learned.\n");
      }
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "recommend: %s\n", error.what());
    return 1;
  }
  std::printf("\n%.1f s\n", seconds_since(start));
}
