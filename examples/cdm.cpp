/// Distils a slow diversifier into a fast model: MMR re-ranks the candidates of simulated requests, CDM learns which of them it would
/// pick, and then ranks requests it has not seen, and candidate lists far longer than the teacher could go over in time.
///
/// Printed: how well the student tells the teacher's picks apart (AUC), what its lists are worth (relevance, diversity), and what a
/// request costs by the number of candidates, with the straight line fitted to it.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <recops/diversity/mmr.hpp>
#include <recops/diversity/mmr_labels.hpp>
#include <recops/diversity/normalize.hpp>
#include <recops/metrics/auc.hpp>
#include <recops/models/cdm.hpp>
#include <recops/simd/build_info.hpp>
#include <recops/train/adam.hpp>

#include "common/cli.hpp"
#include "common/progress.hpp"
#include "common/seeds.hpp"
#include "common/simulator.hpp"

using namespace examples;
using recops::Cdm;
using recops::FrozenCdm;
using recops::JaggedView;
using recops::Matrix;
using recops::MatrixView;
using recops::Random;
using recops::Vector;
using recops::VectorView;
using recops::Workspace;

namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

struct Config {
  Index seeds = 1, steps = 1500, batch = 4, candidates = 200, list = 10, requests = 100, pool = 64;
  bool untimed = false;
  double gumbel = 0.1;
  double lambda = 0.7, beta = 10, learning_rate = 6e-3;
};

/// Candidates of one user at one moment: latent vectors of length 1, and the true probability of a click as relevance.
struct Request {
  Matrix<float> features;
  Vector<float> relevance;
};

void draw_request(const Simulator& world, Index candidates, Random& random, Request& out) {
  const Index user = random.below(world.options().users), d = world.options().dimension;
  const std::int64_t time = world.options().start_time + random.below(static_cast<Index>(world.options().days * 86400));
  std::vector<std::int32_t> items;
  std::vector<char> taken(static_cast<std::size_t>(world.item_count()));
  while (static_cast<Index>(items.size()) < candidates) {
    const Index item = random.below(world.item_count());
    if (char& mine = taken[static_cast<std::size_t>(item)]; !mine) {
      mine = 1;
      items.push_back(static_cast<std::int32_t>(item));
    }
  }
  std::vector<double> p(items.size());
  world.true_probabilities(user, items, time, Label::click, p);
  out.features.resize(candidates, d);
  out.relevance.resize(candidates);
  for (Index i = 0; i < candidates; ++i) {
    for (Index j = 0; j < d; ++j)
      out.features(i, j) = static_cast<float>(world.item_vectors()(items[static_cast<std::size_t>(i)], j));
    out.relevance[i] = static_cast<float>(p[static_cast<std::size_t>(i)]);
  }
}

/// Trains on requests that are drawn as they are needed.
Cdm<float> distil(const Simulator& world, const Config& config, std::uint64_t seed, double& seconds) {
  Random random(seed, 1), draws(seed, 2);
  Cdm<float> model({.features = world.options().dimension, .pool = config.pool, .gumbel_temperature = config.gumbel}, random);
  Cdm<float> gradient = recops::make_gradient(model);
  Cdm<float>::Saved saved;
  recops::Adam adam(model, {.learning_rate = config.learning_rate});
  Workspace ws;
  const Index n = config.candidates, total = n * config.batch;
  Matrix<float> features(total, world.options().dimension);
  Vector<float> relevance(total), labels(total);
  std::vector<std::int64_t> offsets;
  for (Index b = 0; b <= config.batch; ++b) offsets.push_back(b * n);
  Request request;
  Progress progress("distilling", config.steps);
  const auto start = Clock::now();
  for (Index step = 0; step < config.steps; ++step) {
    for (Index b = 0; b < config.batch; ++b) {
      draw_request(world, n, draws, request);
      std::copy_n(request.features.data(), n * features.cols(), features.row(b * n));
      std::copy_n(request.relevance.data(), n, relevance.data() + b * n);
    }
    const JaggedView<const float> rows(features.view(), offsets);
    recops::mmr_labels<float>(recops::MmrBatch<float>{.relevance = relevance, .features = rows},
                              {.teacher = {.lambda = config.lambda}, .picks = config.list}, labels, ws);
    recops::zero_gradient(gradient);
    adam.options.learning_rate = config.learning_rate * (4 * step < 3 * config.steps ? 1 : 0.3);
    const double loss = model.value_and_grad({.features = rows, .relevance = relevance}, labels, {}, gradient, saved,
                                             {seed, static_cast<std::uint64_t>(step), 0}, ws);
    adam.step(model, gradient);
    char note[32];
    std::snprintf(note, sizeof note, "loss %.4f", loss);
    progress.advance(1, note);
  }
  seconds = seconds_since(start);
  return model;
}

/// Of relevance order, MMR and CDM, means over held-out requests.
enum System { by_relevance, teacher, student, system_count };
const std::vector<std::string> system_names{"relevance order", "MMR (teacher)", "CDM (student)"};
struct Outcome {
  double auc = 0, overlap = 0, relevance[system_count] = {}, diversity[system_count] = {};
};

/// Mean of 1 - cosine over all pairs of a list of unit rows.
double diversity_of(const Matrix<float>& rows, const Vector<std::int32_t>& list) {
  std::vector<double> sum(static_cast<std::size_t>(rows.cols()));
  double lengths = 0, square = 0;
  for (const std::int32_t i : list) {
    for (Index c = 0; c < rows.cols(); ++c) {
      const auto v = static_cast<double>(rows(i, c));
      sum[static_cast<std::size_t>(c)] += v;
      lengths += v * v;
    }
  }
  for (const double v : sum) square += v * v;
  const auto k = static_cast<double>(list.size());
  return list.size() < 2 ? 0 : 1 - (square - lengths) / (k * (k - 1));
}

Outcome judge(const Simulator& world, const FrozenCdm<float>& model, const Config& config, std::uint64_t seed) {
  Random draws(seed, 3);
  Workspace ws;
  Request request;
  Outcome mean;
  const Index n = config.candidates, k = config.list;
  Vector<float> logits(n);
  Vector<std::uint8_t> won(n);
  Vector<std::int32_t> lists[system_count] = {Vector<std::int32_t>(k), Vector<std::int32_t>(k), Vector<std::int32_t>(k)};
  const double each = 1 / static_cast<double>(config.requests), item = each / static_cast<double>(k);
  for (Index r = 0; r < config.requests; ++r) {
    draw_request(world, n, draws, request);
    const VectorView<const float> relevance = request.relevance;
    const MatrixView<const float> features = request.features;
    recops::simd::top_k<float>(relevance.data(), n, k, recops::Order::descending, nullptr, lists[by_relevance].data(), ws);
    recops::mmr<float>(relevance, features, {.lambda = config.lambda}, lists[teacher], {}, ws);
    model.rank(relevance, features, {.beta = config.beta}, lists[student], {}, ws);
    model.forward({.features = features, .relevance = relevance}, logits, ws);
    won.fill(0);
    for (const std::int32_t i : lists[teacher]) won[i] = 1;
    mean.auc += each * recops::auc<float>(logits, won, ws).value;
    for (const std::int32_t i : lists[student]) mean.overlap += item * won[i];
    for (int s = 0; s < system_count; ++s) {
      for (const std::int32_t i : lists[s]) mean.relevance[s] += item * static_cast<double>(relevance[i]);
      mean.diversity[s] += each * diversity_of(request.features, lists[s]);
    }
  }
  return mean;
}

/// Microseconds that `f` takes, the fastest of some runs.
template <class F>
double microseconds(F&& f) {
  double best = 1e18;
  const auto start = Clock::now();
  for (int run = 0; run < 50 && (run < 3 || seconds_since(start) < 0.3); ++run) {
    const auto before = Clock::now();
    f();
    best = std::min(best, 1e6 * seconds_since(before));
  }
  return best;
}

/// What ranking costs by the number of candidates, and the line through it.
void time_requests(const FrozenCdm<float>& model, const Config& config) {
  Workspace ws;
  Random random(5);
  Vector<std::int32_t> picks(config.list);
  std::printf("\n%10s %14s %14s %14s %14s\n", "candidates", "CDM, us", "ns per item", "MMR lazy, us", "MMR eager, us");
  std::vector<std::pair<double, double>> points;
  for (const Index n : {1000, 2000, 5000, 10000, 20000, 50000, 100000}) {
    Matrix<float> features(n, model.features());
    Vector<float> relevance(n);
    for (Index i = 0; i < n; ++i) {
      relevance[i] = static_cast<float>(random.uniform());
      for (Index c = 0; c < features.cols(); ++c) features(i, c) = static_cast<float>(random.normal());
    }
    recops::normalize_rows<float>(features, features);
    const double cdm = microseconds([&] { model.rank(relevance, features, {.beta = config.beta}, picks, {}, ws); });
    double greedy[2];
    for (const bool eager : {false, true})
      greedy[eager] = microseconds([&] {
        recops::mmr<float>(
            VectorView<const float>(relevance), MatrixView<const float>(features),
            {.lambda = config.lambda, .evaluation = eager ? recops::MmrEvaluation::eager : recops::MmrEvaluation::lazy}, picks,
            {}, ws);
      });
    std::printf("%10td %14.1f %14.1f %14.1f %14.1f\n", n, cdm, 1000 * cdm / static_cast<double>(n), greedy[0], greedy[1]);
    points.push_back({static_cast<double>(n), cdm});
  }
  // Time = a + b N, with relative errors alike: weights 1 / time^2. And the exponent of time ~ N^p, by least squares of logarithms.
  double w = 0, x = 0, y = 0, xx = 0, xy = 0, lx = 0, ly = 0, lxx = 0, lxy = 0, worst = 0;
  for (const auto& [n, t] : points) {
    const double weight = 1 / (t * t), u = std::log(n), v = std::log(t);
    w += weight, x += weight * n, y += weight * t, xx += weight * n * n, xy += weight * n * t;
    lx += u, ly += v, lxx += u * u, lxy += u * v;
  }
  const double b = (w * xy - x * y) / (w * xx - x * x), a = (y - b * x) / w, count = static_cast<double>(points.size());
  for (const auto& [n, t] : points) worst = std::max(worst, std::abs(a + b * n - t) / t);
  std::printf("Fit: %.1f us + %.1f ns per candidate, off by at most %.0f %%; time grows as N^%.3f.\n", a, 1000 * b, 100 * worst,
              (count * lxy - lx * ly) / (count * lxx - lx * lx));
  std::printf(
      "Where MMR takes less time, as for few picks on this machine, nothing is gained by its student: distil slower teachers.\n");
}

}  // namespace

int main(int argc, char** argv) try {
  Config config;
  Cli cli("cdm", "Distils MMR into a student that ranks any number of candidates in linear time.");
  cli.option("seeds", config.seeds, "worlds and students", "seeds", 1, 100);
  cli.option("steps", config.steps, "training steps", "steps", 1, 1000000);
  cli.option("batch", config.batch, "requests per step", "requests", 1, 1000);
  cli.option("candidates", config.candidates, "items per request in training and judging", "items", 1, 2000);
  cli.option("list", config.list, "items the teacher picks", "items", 1, 2000);
  cli.option("pool", config.pool, "candidates that serve as context", "items", 1, 2000);
  cli.option("requests", config.requests, "held-out requests to judge by", "requests", 1, 100000);
  cli.option("lambda", config.lambda, "the teacher's weight of relevance", "", 0, 1);
  cli.option("beta", config.beta, "weight of the student in the score that ranks", "", 0, 1e6);
  cli.option("rate", config.learning_rate, "learning rate of Adam", "", 0, 1);
  cli.option("gumbel", config.gumbel, "temperature of the draw of the pool in training", "", 0, 100);
  cli.flag("untimed", config.untimed, "leave out the table of costs");
  cli.parse(argc, argv);
  config.list = std::min(config.list, config.candidates);

  std::printf("%s\n", recops::build_info().c_str());
  std::vector<std::uint64_t> seeds(static_cast<std::size_t>(config.seeds));
  std::iota(seeds.begin(), seeds.end(), std::uint64_t{1});
  SeedTable relevance("mean relevance", system_names, seeds), diversity("list diversity", system_names, seeds),
      auc("win AUC", {"CDM (student)"}, seeds);
  for (Index s = 0; s < config.seeds; ++s) {
    const std::uint64_t seed = seeds[static_cast<std::size_t>(s)];
    const Simulator world({.seed = seed, .users = 300, .items = 2000});
    double seconds = 0;
    const FrozenCdm<float> model(distil(world, config, seed, seconds));
    const Outcome o = judge(world, model, config, seed);
    std::printf(
        "seed %llu: %.1f s to distil; held-out AUC of the teacher's picks %.4f; %.0f %% of the picks are the same; diversity "
        "%.1f %% "
        "below the teacher's\n",
        static_cast<unsigned long long>(seed), seconds, o.auc, 100 * o.overlap,
        100 * (1 - o.diversity[student] / o.diversity[teacher]));
    auc.set(0, s, o.auc);
    for (int system = 0; system < system_count; ++system) {
      relevance.set(system, s, o.relevance[system]);
      diversity.set(system, s, o.diversity[system]);
    }
    if (s + 1 == config.seeds) {
      std::printf("\n%s\n%s", relevance.text(teacher).c_str(), diversity.text(teacher).c_str());
      if (!config.untimed) time_requests(model, config);
    }
  }
} catch (const std::exception& error) {
  std::fprintf(stderr, "cdm: %s\n", error.what());
  return 1;
}
