/// One feed, seven ways to re-rank it: by relevance, MMR, MSD, DPP, DPP with a window, SSD with a window, and CDM, which has learned from
/// MMR.
///
/// Every way has one knob between relevance and diversity. Each is turned as far towards diversity as keeps 95 % of the NDCG on requests
/// for tuning, and judged on others; `--plot` draws the whole frontier of each. Without arguments users are simulated: they leave when
/// they are bored, so the value of a list is known exactly. With `--data` the films of MovieLens are re-ranked.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <numeric>
#include <recops/diversity/dpp_map.hpp>
#include <recops/diversity/msd.hpp>
#include <recops/diversity/normalize.hpp>
#include <recops/diversity/ssd.hpp>
#include <recops/metrics/intra_list.hpp>
#include <recops/models/cdm.hpp>
#include <recops/train/adam.hpp>
#include <set>

#include "common/cli.hpp"
#include "common/movielens.hpp"
#include "common/progress.hpp"
#include "common/simulator.hpp"
#include "common/simulator_cli.hpp"
#include "common/svg.hpp"

using namespace examples;
using recops::Matrix;
using recops::MatrixView;
using recops::Random;
using recops::Vector;
using recops::VectorView;
using recops::Workspace;

namespace {

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

struct Config {
  std::string data, plot;
  Index requests = 400;    // half for tuning (and for CDM to learn from), half for judging
  Index candidates = 200;  // of a request
  Index list = 12;         // places
  Index window = 5;        // of windowed DPP and SSD
  Index epochs = 4;        // of CDM
  double noise = 0.5;      // of the simulated ranker, logits
  double keep = 0.95;      // share of NDCG to keep
  Index lists = 2;         // requests to print
};

/// One request: candidates, the relevance a ranker gives them, in [0, 1], and what they are worth in truth.
struct Request {
  Index user = 0;
  std::int64_t time = 0;
  std::vector<std::int32_t> items;
  Vector<float> relevance, gains;
  Matrix<float> features;  // rows of length 1
};

struct World {
  Matrix<float> vectors;  // [items, D] what makes items alike
  std::vector<std::int32_t> category;
  std::vector<std::string> category_names, titles;
  std::vector<Request> requests;
  const Simulator* truth = nullptr;
};

void finish(Request& q, const World& world, Workspace& ws) {
  recops::normalize_scores<float>(q.relevance, recops::ScoreScale::minmax, q.relevance, ws);
  q.features.resize(static_cast<Index>(q.items.size()), world.vectors.cols());
  for (std::size_t i = 0; i < q.items.size(); ++i)
    std::copy_n(world.vectors.row(q.items[i]), world.vectors.cols(), q.features.row(static_cast<Index>(i)));
}

World simulated_world(const Simulator& simulator, const Config& config) {
  World world;
  world.truth = &simulator;
  const auto& o = simulator.options();
  const auto truth = simulator.item_vectors();
  world.vectors.resize(o.items, truth.cols());
  for (Index i = 0; i < o.items; ++i) {
    for (Index d = 0; d < truth.cols(); ++d) world.vectors(i, d) = static_cast<float>(truth(i, d));
    world.category.push_back(static_cast<std::int32_t>(simulator.item_category(i)));
    world.titles.push_back("item " + std::to_string(i));
  }
  for (Index c = 0; c < o.categories; ++c) world.category_names.push_back("category " + std::to_string(c));
  recops::normalize_rows<float>(world.vectors, world.vectors);
  Random random(o.seed, 0x66656564);
  Workspace ws;
  while (static_cast<Index>(world.requests.size()) < config.requests) {
    Request q;
    q.user = random.below(o.users);
    q.time = o.start_time + static_cast<std::int64_t>(random.uniform(0, o.days * 86400));
    std::set<std::int32_t> chosen;
    for (Index tries = 0; static_cast<Index>(chosen.size()) < config.candidates && tries < 50 * config.candidates; ++tries) {
      const auto item = static_cast<std::int32_t>(random.below(o.items));
      if (simulator.is_available(item, q.time)) chosen.insert(item);
    }
    q.items.assign(chosen.begin(), chosen.end());
    const auto n = static_cast<Index>(q.items.size());
    q.relevance.resize(n);
    q.gains.resize(n);
    for (Index i = 0; i < n; ++i) {
      const double p = simulator.true_probability(q.user, q.items[at(i)], q.time, Label::click);
      q.gains[i] = static_cast<float>(p);
      q.relevance[i] = static_cast<float>(std::log(p / (1 - p)) + config.noise * random.normal());
    }
    finish(q, world, ws);
    world.requests.push_back(std::move(q));
  }
  return world;
}

/// Films: vectors from genres and who rated them, relevance from what the user liked; worth: liked afterwards, that is, in the last
/// fifth of a user's ratings (a cut at one moment has 22 users on both sides).
World movielens_world(const Config& config) {
  const MovieLens data = load_movielens(config.data);
  const InteractionLog& log = data.log;
  constexpr Index width = 48;
  World world;
  world.category = log.item_category;
  world.category_names = data.genre_names;
  world.titles = data.titles;
  Random random(1, 0x6d6c);
  Matrix<float> users(log.users, width), genres(static_cast<Index>(data.genre_names.size()), width),
      taste(log.items, width, 0.0f);
  for (Matrix<float>* m : {&users, &genres}) {
    for (Index i = 0; i < m->rows() * width; ++i) m->data()[i] = static_cast<float>(random.normal());
  }
  std::vector<double> popularity(at(log.items));
  std::vector<Index> total(at(log.users)), met(at(log.users)), known;  // known: rows of the log that may be learned from
  for (const std::int32_t u : log.user) ++total[at(u)];
  for (Index row = 0; row < log.size(); ++row) {
    const auto user = at(log.user[at(row)]);
    if (5 * met[user]++ >= 4 * total[user]) continue;
    known.push_back(row);
    recops::simd::axpy(1.0f, users.row(log.user[at(row)]), taste.row(log.item[at(row)]), width);
    popularity[at(log.item[at(row)])] += 1;
  }
  world.vectors = Matrix<float>(log.items, width, 0.0f);
  for (Index i = 0; i < log.items; ++i) {
    for (Index g = data.genre_offsets[at(i)]; g < data.genre_offsets[at(i) + 1]; ++g)
      recops::simd::axpy(1.0f, genres.row(data.genres[at(g)]), world.vectors.row(i), width);
  }
  recops::normalize_rows<float>(world.vectors, world.vectors);
  recops::normalize_rows<float>(taste, taste);
  recops::simd::add(taste.data(), world.vectors.data(), log.items * width);
  recops::normalize_rows<float>(world.vectors, world.vectors);

  Workspace ws;
  std::vector<std::vector<std::int32_t>> liked(at(log.users)), later(at(log.users));
  std::vector<std::set<std::int32_t>> rated(at(log.users));
  for (Index row = 0, next = 0; row < log.size(); ++row) {
    const auto user = static_cast<std::size_t>(log.user[at(row)]);
    const bool before = next < static_cast<Index>(known.size()) && known[at(next)] == row;
    next += before;
    if (before) rated[user].insert(log.item[at(row)]);
    if (log.label(Label::like)[at(row)]) (before ? liked : later)[user].push_back(log.item[at(row)]);
  }
  for (Index u = 0; u < log.users && static_cast<Index>(world.requests.size()) < config.requests; ++u) {
    if (later[at(u)].size() < 3 || liked[at(u)].size() < 3) continue;
    Request q;
    q.user = u;
    std::set<std::int32_t> chosen;
    for (const auto i : later[at(u)])
      if (static_cast<Index>(chosen.size()) < config.candidates / 4) chosen.insert(i);
    const std::set<std::int32_t> wanted = chosen;
    while (static_cast<Index>(chosen.size()) < std::min(config.candidates, log.items / 2)) {
      const Index row = known[at(random.below(static_cast<Index>(known.size())))];  // popular films come up often
      if (!rated[at(u)].count(log.item[at(row)])) chosen.insert(log.item[at(row)]);
    }
    q.items.assign(chosen.begin(), chosen.end());
    std::vector<float> profile(at(width), 0.0f);
    for (const auto i : liked[at(u)]) recops::simd::add(world.vectors.row(i), profile.data(), width);
    const float length = std::sqrt(recops::simd::dot(profile.data(), profile.data(), width));
    const auto n = static_cast<Index>(q.items.size());
    q.relevance.resize(n);
    q.gains.resize(n);
    for (Index i = 0; i < n; ++i) {
      const auto item = q.items[at(i)];
      q.relevance[i] = recops::simd::dot(profile.data(), world.vectors.row(item), width) / std::max(length, 1e-6f) +
                       0.2f * static_cast<float>(std::log1p(popularity[static_cast<std::size_t>(item)]));
      q.gains[i] = wanted.count(item) != 0 ? 1.0f : 0.0f;
    }
    finish(q, world, ws);
    world.requests.push_back(std::move(q));
  }
  if (world.requests.size() < 4) throw DataError("too few users with films liked before and after the split");
  return world;
}

// ---- Ways to re-rank ------------------------------------------------------------------------------------------------------

struct System {
  std::string name, knob;
  std::vector<double> values;  // of the knob, from relevance towards diversity
  std::function<Index(const Request&, double, VectorView<std::int32_t>)> rank;
};

using Student = recops::FrozenCdm<float>;

/// CDM learns which candidates MMR would pick.
Student train_student(const World& world, const Config& config, Index last) {
  Random random(1, 0x63646d);
  recops::Cdm<float> model({.features = world.vectors.cols(), .pool = 48, .hidden = {48}}, random);
  auto gradient = recops::make_gradient(model);
  recops::Cdm<float>::Saved saved;
  recops::Adam adam(model, {.learning_rate = 5e-3});
  Workspace ws;
  std::vector<Vector<float>> labels(at(last));
  for (Index r = 0; r < last; ++r) {
    const Request& q = world.requests[at(r)];
    labels[at(r)].resize(q.relevance.size());
    recops::mmr_labels<float>(recops::MmrInput<float>{.relevance = q.relevance, .features = q.features},
                              {.teacher = {.lambda = 0.6}, .picks = config.list, .labels = recops::TeacherLabels::soft},
                              labels[at(r)], ws);
  }
  Progress progress("CDM learns", config.epochs * last);
  recops::Step step{1, 0, 0};
  for (Index epoch = 0; epoch < config.epochs; ++epoch) {
    for (Index r = 0; r < last; ++r, ++step.number) {
      const Request& q = world.requests[at(r)];
      recops::zero_gradient(gradient);
      model.value_and_grad({.features = q.features, .relevance = q.relevance}, labels[at(r)], {}, gradient, saved, step, ws);
      adam.step(model, gradient);
      progress.advance(1, "");
    }
  }
  return recops::freeze(model);
}

std::vector<System> systems_of(const Config& config, const Student& student, Workspace& ws) {
  const std::vector<double> lambdas{0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.35, 0.2},
      thetas{0.99, 0.98, 0.96, 0.93, 0.9, 0.8, 0.65, 0.4};
  const auto dpp = [&ws](Index window) {
    return [&ws, window](const Request& q, double theta, VectorView<std::int32_t> picks) {
      const auto mark = ws.mark();
      const VectorView<float> quality = ws.vector<float>(q.relevance.size());
      recops::dpp_quality<float>(q.relevance, theta, quality);
      return recops::dpp_map<float>(quality, q.features,
                                    {.window = window, .normalize = true, .fill = recops::DppFill::by_quality}, picks, {}, ws)
          .count;
    };
  };
  return {{"relevance",
           "",
           {1},
           [&ws](const Request& q, double, VectorView<std::int32_t> picks) {
             return recops::simd::top_k<float>(q.relevance.data(), q.relevance.size(), std::min(picks.size(), q.relevance.size()),
                                               recops::Order::descending, nullptr, picks.data(), ws);
           }},
          {"MMR", "lambda", lambdas,
           [&ws](const Request& q, double lambda, VectorView<std::int32_t> picks) {
             return recops::mmr<float>(q.relevance, q.features, {.lambda = lambda, .normalize = true}, picks, {}, ws).count;
           }},
          {"MSD", "lambda", lambdas,
           [&ws](const Request& q, double lambda, VectorView<std::int32_t> picks) {
             return recops::msd<float>(q.relevance, q.features, {.lambda = lambda, .normalize = true}, picks, {}, ws).count;
           }},
          {"DPP", "theta", thetas, dpp(0)},
          {"DPP, window", "theta", thetas, dpp(config.window)},
          {"SSD, window",
           "gamma",
           {0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3},
           [&ws, &config](const Request& q, double gamma, VectorView<std::int32_t> picks) {
             return recops::ssd<float>(q.relevance, q.features, {.gamma = gamma, .window = config.window, .normalize = true},
                                       picks, {}, ws)
                 .count;
           }},
          {"CDM",
           "beta",
           {0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3},
           [&ws, &student](const Request& q, double beta, VectorView<std::int32_t> picks) {
             return student.rank(q.relevance, q.features, {.beta = beta}, picks, {}, ws).count;
           }}};
}

// ---- Judging ----------------------------------------------------------------------------------------------------------------

struct Quality {
  double ndcg = 0, distance = 0, categories = 0, entropy = 0, clicks = 0, microseconds = 0;
  std::set<std::int32_t> shown;  // over all lists
};

std::vector<std::int32_t> list_of(const System& system, const Request& q, double value, Index places) {
  std::vector<std::int32_t> picks(at(places));
  picks.resize(at(system.rank(q, value, picks)));
  return picks;
}

Quality judge(const World& world, const System& system, double value, Index first, Index last, Index places, Workspace& ws) {
  Quality sum;
  std::vector<double> times;
  recops::GroupMean distance;
  for (Index r = first; r < last; ++r) {
    const Request& q = world.requests[at(r)];
    const auto start = std::chrono::steady_clock::now();
    const auto picks = list_of(system, q, value, places);
    times.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count());
    std::vector<float> best(q.gains.begin(), q.gains.end());
    std::partial_sort(best.begin(), best.begin() + static_cast<Index>(picks.size()), best.end(), std::greater<>());
    double dcg = 0, ideal = 0, entropy = 0;
    std::vector<Index> counts(world.category_names.size());
    std::vector<std::int32_t> items;
    for (std::size_t p = 0; p < picks.size(); ++p) {
      const double discount = 1 / std::log2(static_cast<double>(p) + 2);
      dcg += discount * static_cast<double>(q.gains[picks[p]]);
      ideal += discount * static_cast<double>(best[p]);
      items.push_back(q.items[static_cast<std::size_t>(picks[p])]);
      ++counts[static_cast<std::size_t>(world.category[static_cast<std::size_t>(items.back())])];
      sum.shown.insert(items.back());
    }
    for (const Index c : counts) {
      const double share = static_cast<double>(c) / static_cast<double>(picks.size());
      if (c > 0) entropy -= share * std::log2(share);
      sum.categories += c > 0;
    }
    sum.ndcg += ideal > 0 ? dcg / ideal : 0;
    sum.entropy += entropy;
    const std::int64_t offsets[] = {0, static_cast<std::int64_t>(picks.size())};
    recops::add_intra_list_distance<float>(q.features, picks, recops::IndexView(offsets, 2), {}, distance, ws);
    if (world.truth) sum.clicks += world.truth->expected_labels(q.user, items, q.time, Label::click);
  }
  const auto n = static_cast<double>(last - first);
  for (double* v : {&sum.ndcg, &sum.categories, &sum.entropy, &sum.clicks}) *v /= n;
  sum.distance = distance.result().value;
  std::nth_element(times.begin(), times.begin() + static_cast<Index>(times.size() / 2), times.end());
  sum.microseconds = times[times.size() / 2];
  return sum;
}

void print_list(const World& world, const Request& q, const std::string& name, const std::vector<std::int32_t>& picks) {
  const bool colour = wants_colour(stdout);
  std::printf("  %-12s", name.c_str());
  for (const auto p : picks) {
    const auto category = world.category[static_cast<std::size_t>(q.items[static_cast<std::size_t>(p)])];
    const std::string label =
        world.truth ? std::to_string(category) : world.category_names[static_cast<std::size_t>(category)].substr(0, 7);
    std::printf(" %s", coloured((label.size() < 2 ? " " : "") + label, category, colour).c_str());
  }
  std::printf("\n");
}

int run(const World& world, const Config& config) {
  Workspace ws;
  const auto total = static_cast<Index>(world.requests.size()), half = total / 2;
  std::printf("%td requests of up to %td candidates, %td places; the first %td are for tuning\n", total, config.candidates,
              config.list, half);
  const Student student = train_student(world, config, half);
  const std::vector<System> systems = systems_of(config, student, ws);
  const double floor = config.keep * judge(world, systems[0], 1, 0, half, config.list, ws).ndcg;
  SvgChart chart{.title = "Relevance and diversity", .x_label = "intra-list distance", .y_label = "NDCG"}, visits = chart;
  visits.title = "Clicks and diversity";
  visits.y_label = "expected clicks per visit";
  std::vector<double> chosen;
  std::printf("\n%-12s %-14s %7s %7s %11s %8s %9s%s %10s\n", "", "knob", "NDCG", "ILD", "categories", "entropy", "coverage",
              world.truth ? "  clicks/visit" : "", "us/request");
  for (const System& system : systems) {
    double best = system.values.front(), most = -1;
    for (const double value : system.values) {
      const Quality q = judge(world, system, value, 0, half, config.list, ws);
      if (q.ndcg >= floor && q.distance > most) most = q.distance, best = value;
    }
    chosen.push_back(best);
    const Quality q = judge(world, system, best, half, total, config.list, ws);
    char knob[32] = "";
    if (!system.knob.empty()) std::snprintf(knob, sizeof knob, "%s %g", system.knob.c_str(), best);
    std::printf("%-12s %-14s %7.4f %7.4f %11.2f %8.3f %8.1f%%", system.name.c_str(), knob, q.ndcg, q.distance, q.categories,
                q.entropy, 100 * static_cast<double>(q.shown.size()) / static_cast<double>(world.vectors.rows()));
    if (world.truth) std::printf("  %12.4f", q.clicks);
    std::printf(" %10.1f\n", q.microseconds);
    if (config.plot.empty()) continue;
    SvgSeries curve{.name = system.name}, value_curve{.name = system.name};
    for (const double value : system.values) {
      const Quality point = judge(world, system, value, half, total, config.list, ws);
      curve.x.push_back(point.distance);
      curve.y.push_back(point.ndcg);
      value_curve.x.push_back(point.distance);
      value_curve.y.push_back(point.clicks);
    }
    chart.series.push_back(curve);
    visits.series.push_back(value_curve);
  }
  std::printf(
      "\nThe knob of each is as far from relevance as keeps %.0f %% of its NDCG on the tuning requests.\n"
      "ILD: mean distance of a list's items, 1 - cosine; entropy: of its categories, in bits; coverage: items shown to anyone.\n",
      100 * config.keep);
  for (Index r = half; r < std::min(total, half + config.lists); ++r) {
    const Request& q = world.requests[at(r)];
    std::printf("\ncategories shown to user %td:\n", q.user);
    for (std::size_t s = 0; s < systems.size(); ++s)
      print_list(world, q, systems[s].name, list_of(systems[s], q, chosen[s], config.list));
  }
  if (!config.plot.empty()) {
    write_svg(config.plot, chart);
    std::printf("\nwrote %s", config.plot.c_str());
    if (world.truth) {
      const std::string other = std::filesystem::path(config.plot).replace_extension(".clicks.svg").string();
      write_svg(other, visits);
      std::printf(" and %s", other.c_str());
    }
    std::printf("\n");
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Config config;
  SimulatorOptions simulated;
  Cli cli("diverse_feed", "Re-ranks the same candidates by relevance, MMR, MSD, DPP, SSD and CDM, and judges lists and speed.");
  cli.option("data", config.data, "folder of MovieLens data; empty: the simulator")
      .option("plot", config.plot, "file for the relevance-diversity frontier (SVG)")
      .option("requests", config.requests, "requests in all; half are for tuning", "", 4, 1e6)
      .option("candidates", config.candidates, "candidates of a request", "", 2, 1e5)
      .option("list", config.list, "places of a list", "", 2, 1000)
      .option("window", config.window, "of windowed DPP and SSD", "", 1, 1000)
      .option("epochs", config.epochs, "of CDM's training", "", 1, 1000)
      .option("noise", config.noise, "of the simulated ranker", "logits", 0, 100)
      .option("keep", config.keep, "share of NDCG that the knobs must keep", "", 0, 1)
      .option("lists", config.lists, "requests whose lists are printed", "", 0, 1000);
  add_simulator_options(cli, simulated);
  cli.parse(argc, argv);
  try {
    if (!config.data.empty()) return run(movielens_world(config), config);
    const Simulator simulator(simulated);
    return run(simulated_world(simulator, config), config);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "diverse_feed: %s\n", e.what());
    return 1;
  }
}
