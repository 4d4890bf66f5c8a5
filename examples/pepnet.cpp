/// PEPNet (arXiv 2302.01115): one model for several domains, scaled for where a row comes from and for whose it is.
///
///   1. Three feeds show the same items to the same users, who behave differently in each: in "double" what counts is taste, in
///      "single" quality and the user's own habits, in "discover", the smallest, what is new. One log of each, split by time.
///   2. Four networks of the same towers learn clicks and long views from all of them: without gates (the domain is an input like any
///      other), with EPNet (embeddings scaled for the domain), with PPNet (hidden units scaled for user and item), with both.
///   3. AUC and GAUC of clicks in each domain, and the gates themselves: between 0 and 2, by domain, by what they scale.
///
/// --seeds 5 repeats it in other worlds, with intervals of the paired differences. --others adds what else one might put in front of
/// towers without gates: LHUC (a learned factor per domain and number), FiLM (scale and shift from the domain's embedding), LoRA (a
/// low-rank adapter per domain), SENet, a factorisation machine, a DCN-v2 mixture.
#include <recops/gating/adapters.hpp>
#include <recops/gating/epnet.hpp>
#include <recops/gating/film.hpp>
#include <recops/gating/lhuc.hpp>
#include <recops/gating/ppnet.hpp>
#include <recops/metrics/gauc.hpp>
#include <recops/nn/cross_mixture.hpp>
#include <recops/nn/embedding_bag.hpp>
#include <recops/nn/fm.hpp>
#include <recops/nn/loss.hpp>
#include <recops/nn/senet.hpp>
#include <recops/simd/build_info.hpp>
#include <recops/train/adam.hpp>

#include <array>
#include <chrono>
#include <numeric>

#include "examples/common/cli.hpp"
#include "examples/common/progress.hpp"
#include "examples/common/running_rates.hpp"
#include "examples/common/seeds.hpp"
#include "examples/common/simulator.hpp"

using namespace examples;
using recops::Index;
using recops::IndexView;
using recops::Matrix;
using recops::MatrixView;
using recops::Random;
using recops::Vector;
using recops::VectorView;
using recops::Workspace;

namespace {

struct Config {
  Index seeds = 3, users = 500, epochs = 4, batch = 256;
  double rate = 2e-3;
  bool others = false;
};

/// What lies between embeddings and towers, besides the gates.
enum class Front { none, lhuc, film, lora, senet, fm, cross };
struct System {
  const char* name;
  bool epnet = false, ppnet = false;
  Front front = Front::none;
};

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

constexpr Index domains = 3, tasks = 2;  // click, long view
const char* const domain_names[domains] = {"double", "single", "discover"};

/// The same users and items, with other strengths: what a domain is.
SimulatorOptions world_of(Index domain, const Config& config, std::uint64_t seed) {
  SimulatorOptions o;
  o.seed = seed;
  o.users = config.users;
  o.items = 800;
  if (domain == 0) {  // taste
    o.visits_per_user = 14;
    o.click_affinity = 9;
    o.click_quality = 0.2;
    o.click_freshness = 0;
    o.user_spread = 0.2;
    o.rates.click = 0.2;
  } else if (domain == 1) {  // quality, and who it is
    o.visits_per_user = 7;
    o.click_affinity = 3;
    o.click_quality = 1.0;
    o.click_freshness = 0;
    o.user_spread = 0.8;
    o.rates.click = 0.35;
  } else {  // what is new
    o.visits_per_user = 3;
    o.click_affinity = 5;
    o.click_quality = 0.3;
    o.click_freshness = 2.5;
    o.user_spread = 0.3;
    o.rates.click = 0.08;
  }
  return o;
}

/// What a row says, in columns of the embeddings: widths of the parts that the gates scale.
constexpr Index user_width = 16, item_width = 16, category_width = 8, context_width = 8;
constexpr Index inputs = user_width + item_width + category_width + context_width, domain_width = 4, prior_width = 8 + 4 + 4,
                lora_rank = 4;

/// Impressions of all domains, sorted by time.
struct Rows {
  std::vector<std::int32_t> user, item, category, group, domain;
  std::vector<std::int64_t> time;
  std::vector<std::array<float, context_width>> context;
  std::vector<std::array<std::uint8_t, tasks>> labels;
  Index train = 0, items = 0, users = 0, categories = 0;
  Index size() const { return static_cast<Index>(user.size()); }
};

Rows make_rows(const Config& config, std::uint64_t seed) {
  Rows all;
  std::vector<std::int64_t> cuts;
  for (Index d = 0; d < domains; ++d) {
    const InteractionLog log = Simulator(world_of(d, config, seed)).generate();
    all.items = log.items;
    all.users = log.users;
    all.categories = log.categories;
    RunningRates rates(log, {Label::click, Label::long_view});  // of this domain, of the past
    std::vector<float> shown(at(log.users)), taken(at(log.users));
    for (Index begin = 0, end = 0; begin < log.size(); begin = end) {
      while (end < log.size() && log.visit[at(end)] == log.visit[at(begin)]) ++end;
      rates.advance(log.time[at(begin)]);
      for (Index r = begin; r < end; ++r) {
        const auto u = at(log.user[at(r)]), i = at(log.item[at(r)]);
        std::array<float, context_width> f{};
        rates.features(log.item[at(r)], f.data());  // log rates of the item and how often it was seen
        const double age = static_cast<double>(log.time[at(r)] - log.item_release[i]) / 86400;
        f[3] = static_cast<float>(std::exp(-std::max(age, 0.0) / 5));
        f[4] = log.item_price[i];
        f[5] = std::log((taken[u] + 2) / (shown[u] + 10)) + 1.5f;
        f[6] = static_cast<float>(std::cos(0.2618 * log.hour[at(r)]));
        f[7] = static_cast<float>(std::sin(0.2618 * log.hour[at(r)]));
        all.user.push_back(log.user[at(r)]);
        all.item.push_back(log.item[at(r)]);
        all.category.push_back(log.item_category[i]);
        all.group.push_back(log.user_group[u]);
        all.domain.push_back(static_cast<std::int32_t>(d));
        all.time.push_back(log.time[at(r)]);
        all.context.push_back(f);
        all.labels.push_back({log.label(Label::click)[at(r)], log.label(Label::long_view)[at(r)]});
      }
      for (Index r = begin; r < end; ++r) {
        ++shown[at(log.user[at(r)])];
        taken[at(log.user[at(r)])] += log.label(Label::click)[at(r)];
      }
    }
  }
  std::vector<std::int32_t> order(at(all.size()));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) { return all.time[at(a)] < all.time[at(b)]; });
  const auto sort = [&](auto& v) {
    auto copy = v;
    for (std::size_t i = 0; i < order.size(); ++i) v[i] = copy[at(order[i])];
  };
  for (auto* v : {&all.user, &all.item, &all.category, &all.group, &all.domain}) sort(*v);
  sort(all.time);
  sort(all.context);
  sort(all.labels);
  all.train = all.size() * 3 / 4;
  return all;
}

/// Embeddings, gates and towers. The prior's embeddings are its own: gates send no gradient to what they scale.
struct Pepnet {
  recops::EmbeddingBag<float> user, item, category, domain, prior_user, prior_group, prior_category;
  recops::Epnet<float> epnet;
  recops::Ppnet<float> ppnet;
  recops::Lhuc<float> lhuc;  // of these at most one
  recops::Film<float> film;
  recops::AdapterTable<float> lora;
  recops::Senet<float> senet;
  recops::CrossMixture<float> cross;
  Front front;

  Pepnet(const Rows& rows, const System& system, std::uint64_t seed) : front(system.front) {
    Random random(seed, 17);
    user = {rows.users, user_width, 0.1, random};
    item = {rows.items, item_width, 0.1, random};
    category = {rows.categories, category_width, 0.1, random};
    domain = {domains, domain_width, 0.5, random};
    prior_user = {rows.users, 8, 0.1, random};
    prior_group = {4, 4, 0.5, random};
    prior_category = {rows.categories, 4, 0.1, random};
    epnet = recops::Epnet<float>({.embeddings = inputs, .domain = domain_width, .hidden_width = 32}, random);
    ppnet = recops::Ppnet<float>(
        {.inputs = inputs + domain_width, .prior = prior_width, .tasks = tasks, .widths = {48, 24}, .gate_width = 32}, random);
    // Gates whose last layer is 0 are exactly 1. They stay so: their gradient is cleared (see `train`).
    if (!system.epnet) epnet.gate.output.weight.fill(0);
    for (auto& g : ppnet.gates)
      if (!system.ppnet) g.output.weight.fill(0);
    if (front == Front::lhuc) lhuc = {domains, inputs};
    if (front == Front::film) film = {inputs, domain_width, random};
    if (front == Front::lora) lora = {domains, inputs, lora_rank, inputs, random};
    if (front == Front::senet) senet = {inputs / 8, 2, recops::Activation::sigmoid, random};  // fields of 8 numbers
    if (front == Front::cross) cross = {inputs, 1, 2, 8, random};
  }
  static constexpr auto fields() {
    using recops::layer;
    return std::tuple{layer("user", &Pepnet::user),
                      layer("item", &Pepnet::item),
                      layer("category", &Pepnet::category),
                      layer("domain", &Pepnet::domain),
                      layer("prior_user", &Pepnet::prior_user),
                      layer("prior_group", &Pepnet::prior_group),
                      layer("prior_category", &Pepnet::prior_category),
                      layer("epnet", &Pepnet::epnet),
                      layer("ppnet", &Pepnet::ppnet),
                      layer("lhuc", &Pepnet::lhuc),
                      layer("film", &Pepnet::film),
                      layer("lora", &Pepnet::lora),
                      layer("senet", &Pepnet::senet),
                      layer("cross", &Pepnet::cross)};
  }

  struct Saved {
    Matrix<float> e, d, p, x;  ///< embeddings, domain, prior, [gated embeddings | domain]
    Matrix<float> f, pair;     ///< what the front made of the embeddings, or of user and item
    recops::Film<float>::Saved film;
    recops::Senet<float>::Saved senet;
    recops::CrossMixture<float>::Saved cross;
    recops::Epnet<float>::Saved epnet;
    recops::Ppnet<float>::Saved ppnet;
  };

  struct Batch {
    std::vector<std::int32_t> user, item, category, group, domain;
    Matrix<float> context;
  };

  void forward(const Batch& b, MatrixView<float> logits, Saved& s, const recops::Step& step, Workspace& ws) const {
    const Index n = static_cast<Index>(b.user.size());
    s.e.resize(n, inputs);
    s.d.resize(n, domain_width);
    s.p.resize(n, prior_width);
    s.x.resize(n, inputs + domain_width);
    each_part(b, s.e.view(), s.p.view(),
              [](const auto& table, const auto& ids, MatrixView<float> to) { table.forward(ids, IndexView(), to); });
    for (Index r = 0; r < n; ++r) std::copy_n(b.context.row(r), context_width, s.e.row(r) + inputs - context_width);
    domain.forward(b.domain, IndexView(), s.d);
    s.f = s.e;
    if (front == Front::lhuc) lhuc.forward(s.e, b.domain, s.f, ws);
    if (front == Front::film) film.forward(s.e, s.d, s.f, s.film, step, ws);
    if (front == Front::lora) recops::add_adapters<float>(s.e, lora.weight.values, b.domain, lora_rank, {}, s.f, ws);
    if (front == Front::senet) senet.forward(s.e, s.f, s.senet, step, ws);
    if (front == Front::cross) cross.forward(s.e, s.f, s.cross, step, ws);
    epnet.forward(s.f, s.d, s.x.view().middle_cols(0, inputs), s.epnet, step, ws);
    for (Index r = 0; r < n; ++r) std::copy_n(s.d.row(r), domain_width, s.x.row(r) + inputs);
    ppnet.forward(s.x, s.p, logits, s.ppnet, step, ws);
    if (front != Front::fm) return;
    s.pair.resize(n, 1);
    recops::fm<float>(user_and_item(s.e.view()), {.fields = 2}, s.pair, ws);
    for (Index r = 0; r < n; ++r)
      for (float& z : VectorView<float>(logits.row(r), tasks)) z += s.pair(r, 0);
  }
  void backward(const Batch& b, MatrixView<const float> dlogits, const Saved& s, Pepnet& gradient, Workspace& ws) const {
    const Index n = dlogits.rows();
    const auto mark = ws.mark();
    const auto zeros = [&](Index cols) {
      const MatrixView<float> m = ws.matrix<float>(n, cols);
      std::fill_n(m.data(), n * cols, 0.0f);
      return m;
    };
    const MatrixView<float> dx = zeros(inputs + domain_width), dp = zeros(prior_width), de = zeros(inputs),
                            dd = zeros(domain_width), df = front == Front::none || front == Front::fm ? de : zeros(inputs);
    ppnet.backward(s.x, s.p, dlogits, s.ppnet, dx, dp, gradient.ppnet, ws);
    epnet.backward(s.f, s.d, dx.middle_cols(0, inputs), s.epnet, df, dd, gradient.epnet, ws);
    if (front == Front::lhuc) lhuc.backward(s.e, b.domain, df, de, gradient.lhuc, ws);
    if (front == Front::film) film.backward(s.e, s.d, df, s.film, de, dd, gradient.film, ws);
    if (front == Front::lora) {
      for (Index r = 0; r < n; ++r) recops::simd::add(df.row(r), de.row(r), inputs);
      recops::add_adapters_backward<float>(s.e, lora.weight.values, b.domain, lora_rank, {}, df, de, {}, gradient.lora.weight,
                                           ws);
    }
    if (front == Front::senet) senet.backward(s.e, df, s.senet, de, gradient.senet, ws);
    if (front == Front::cross) cross.backward(s.e, df, s.cross, de, gradient.cross, ws);
    if (front == Front::fm) {
      const MatrixView<float> dpair = zeros(1);
      for (Index r = 0; r < n; ++r) dpair(r, 0) = recops::simd::sum(dlogits.row(r), tasks);
      recops::fm_backward<float>(user_and_item(s.e.view()), {.fields = 2}, dpair, user_and_item(de), ws);
    }
    for (Index r = 0; r < n; ++r) recops::simd::add(dx.row(r) + inputs, dd.row(r), domain_width);
    const auto back = [&](const auto& table, auto& g, const auto& ids, MatrixView<const float> d) {
      table.backward(ids, IndexView(), d, g, ws);
    };
    back(user, gradient.user, b.user, de.middle_cols(0, user_width));
    back(item, gradient.item, b.item, de.middle_cols(user_width, item_width));
    back(category, gradient.category, b.category, de.middle_cols(user_width + item_width, category_width));
    back(domain, gradient.domain, b.domain, dd);
    back(prior_user, gradient.prior_user, b.user, dp.middle_cols(0, 8));
    back(prior_group, gradient.prior_group, b.group, dp.middle_cols(8, 4));
    back(prior_category, gradient.prior_category, b.category, dp.middle_cols(12, 4));
  }

 private:
  template <class M>
  static M user_and_item(M e) {
    return e.middle_cols(0, user_width + item_width);
  }
  template <class F>
  void each_part(const Batch& b, MatrixView<float> e, MatrixView<float> p, F&& f) const {
    f(user, b.user, e.middle_cols(0, user_width));
    f(item, b.item, e.middle_cols(user_width, item_width));
    f(category, b.category, e.middle_cols(user_width + item_width, category_width));
    f(prior_user, b.user, p.middle_cols(0, 8));
    f(prior_group, b.group, p.middle_cols(8, 4));
    f(prior_category, b.category, p.middle_cols(12, 4));
  }
};

template <class Order>
void fill(const Rows& rows, const Order& order, Index first, Index last, Pepnet::Batch& batch) {
  for (auto* v : {&batch.user, &batch.item, &batch.category, &batch.group, &batch.domain}) v->clear();
  batch.context.resize(last - first, context_width);
  for (Index k = first; k < last; ++k) {
    const auto r = at(order(k));
    batch.user.push_back(rows.user[r]);
    batch.item.push_back(rows.item[r]);
    batch.category.push_back(rows.category[r]);
    batch.group.push_back(rows.group[r]);
    batch.domain.push_back(rows.domain[r]);
    std::copy_n(rows.context[r].data(), context_width, batch.context.row(k - first));
  }
}

Pepnet train(const Rows& rows, const System& system, const Config& config, std::uint64_t seed) {
  Pepnet model(rows, system, seed), gradient = recops::make_gradient(model);
  recops::Adam adam(model, {.learning_rate = config.rate});
  Pepnet::Saved saved;
  Pepnet::Batch batch;
  Workspace ws;
  Matrix<float> logits, dlogits, labels;
  std::vector<std::int32_t> order(at(rows.train));
  std::iota(order.begin(), order.end(), 0);
  recops::Step step{seed, 0, 0};
  for (Index epoch = 0; epoch < config.epochs; ++epoch) {
    Random random(seed, 100 + static_cast<std::uint64_t>(epoch));
    for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[at(random.below(static_cast<Index>(i)))]);
    for (Index first = 0; first < rows.train; first += config.batch, ++step.number) {
      const Index last = std::min(first + config.batch, rows.train), n = last - first;
      fill(
          rows, [&](Index k) { return order[at(k)]; }, first, last, batch);
      logits.resize(n, tasks);
      labels.resize(n, tasks);
      dlogits = Matrix<float>(n, tasks, 0.0f);
      for (Index r = 0; r < n; ++r)
        for (Index t = 0; t < tasks; ++t) labels(r, t) = rows.labels[at(order[at(first + r)])][at(t)];
      model.forward(batch, logits, saved, step, ws);
      recops::bce_with_logits_value_and_grad<float>(logits, labels, {}, {}, dlogits);
      recops::zero_gradient(gradient);
      model.backward(batch, dlogits, saved, gradient, ws);
      if (!system.epnet) recops::zero_gradient(gradient.epnet);
      if (!system.ppnet) recops::zero_gradient(gradient.ppnet.gates[0]), recops::zero_gradient(gradient.ppnet.gates[1]);
      adam.step(model, gradient);
    }
  }
  return model;
}

struct Quality {
  std::array<double, domains> auc{}, gauc{};
};
/// What the gates of the last rows were like, by domain: of each group of embeddings and of each layer.
struct Gates {
  static constexpr Index parts = 6;
  std::array<std::array<double, parts>, domains> mean{}, low{}, high{};
  std::array<double, domains> rows{};
};
const char* const part_names[Gates::parts] = {"user embedding", "item embedding", "category",
                                              "context",        "hidden layer 1", "hidden layer 2"};

Quality judge(const Rows& rows, const Pepnet& model, Gates* gates) {
  const Index n = rows.size() - rows.train;
  Matrix<float> logits(n, tasks);
  Pepnet::Batch batch;
  Pepnet::Saved saved;
  Workspace ws;
  if (gates) {
    for (auto& d : gates->low) d.fill(2);
    for (auto& d : gates->high) d.fill(0);
  }
  for (Index first = 0; first < n; first += 1024) {
    const Index last = std::min(first + 1024, n);
    fill(
        rows, [&](Index k) { return rows.train + k; }, first, last, batch);
    model.forward(batch, logits.view().middle_rows(first, last - first), saved, {}, ws);
    for (Index r = 0; gates && r < last - first; ++r) {
      const auto d = at(batch.domain[at(r)]);
      gates->rows[d] += 1;
      const auto add = [&](std::size_t part, const float* g, Index count) {
        double sum = 0;
        for (Index j = 0; j < count; ++j) {
          const auto v = static_cast<double>(g[j]);
          sum += v / static_cast<double>(count);
          gates->low[d][part] = std::min(gates->low[d][part], v);
          gates->high[d][part] = std::max(gates->high[d][part], v);
        }
        gates->mean[d][part] += sum;
      };
      const float* e = saved.epnet.gates.row(r);
      add(0, e, user_width);
      add(1, e + user_width, item_width);
      add(2, e + user_width + item_width, category_width);
      add(3, e + inputs - context_width, context_width);
      for (std::size_t l = 0; l < 2; ++l) add(4 + l, saved.ppnet.gates[l].gates.row(r), saved.ppnet.gates[l].gates.cols());
    }
  }
  Quality q;
  for (Index d = 0; d < domains; ++d) {
    std::vector<Index> own;
    for (Index r = 0; r < n; ++r)
      if (rows.domain[at(rows.train + r)] == d) own.push_back(r);
    std::stable_sort(own.begin(), own.end(),
                     [&](Index a, Index b) { return rows.user[at(rows.train + a)] < rows.user[at(rows.train + b)]; });
    Vector<float> score;
    Vector<std::uint8_t> label;
    std::vector<std::int32_t> users;
    for (std::size_t k = 0; k < own.size(); ++k) {
      if (k == 0 || rows.user[at(rows.train + own[k])] != rows.user[at(rows.train + own[k - 1])])
        users.push_back(static_cast<std::int32_t>(k));
      score.push_back(logits(own[k], 0));
      label.push_back(rows.labels[at(rows.train + own[k])][0]);
    }
    users.push_back(static_cast<std::int32_t>(own.size()));
    q.auc[at(d)] = recops::auc<float>(score, label, ws).value;
    q.gauc[at(d)] = recops::gauc<float>(score, label, users, {}, ws).value;
  }
  return q;
}

void print_gates(const Gates& g) {
  std::printf("\nGates of PEPNet on the last quarter (seed 1), mean and range; between 0 and 2, near 1 at first:\n\n%-16s", "");
  for (const char* name : domain_names) std::printf("  %-22s", name);
  std::printf("\n");
  for (std::size_t p = 0; p < at(Gates::parts); ++p) {
    std::printf("%-16s", part_names[p]);
    for (std::size_t d = 0; d < at(domains); ++d)
      std::printf("  %.3f  (%.3f to %.3f)", g.mean[d][p] / std::max(1.0, g.rows[d]), g.low[d][p], g.high[d][p]);
    std::printf("\n");
  }
}

}  // namespace

int main(int argc, char** argv) {
  Config config;
  Cli cli("pepnet",
          "One model for three domains, with embeddings scaled for the domain and towers scaled for the user (PEPNet).");
  cli.refuse("data", "none of the sets in docs/data.md has one set of users in several domains");
  cli.option("seeds", config.seeds, "worlds to compare over", "seeds", 1, 100);
  cli.option("users", config.users, "users of the simulated worlds", "users", 50, 1000000);
  cli.option("epochs", config.epochs, "passes over the training rows", "passes", 1, 1000);
  cli.option("batch", config.batch, "rows of a training step", "rows", 1, 1000000);
  cli.option("rate", config.rate, "learning rate of Adam", "", 0, 1);
  cli.flag("others", config.others, "also LHUC, FiLM, LoRA, SENet, FM and a DCN-v2 mixture in front of towers without gates");
  cli.parse(argc, argv);
  std::printf("%s\n", recops::build_info().c_str());
  const auto start = std::chrono::steady_clock::now();
  try {
    std::vector<System> systems{{"no gates"}, {"EPNet", true, false}, {"PPNet", false, true}, {"PEPNet", true, true}};
    if (config.others)
      for (const System& s : {System{.name = "LHUC", .front = Front::lhuc},
                              {.name = "FiLM", .front = Front::film},
                              {.name = "LoRA", .front = Front::lora},
                              {.name = "SENet", .front = Front::senet},
                              {.name = "FM", .front = Front::fm},
                              {.name = "DCN mixture", .front = Front::cross}})
        systems.push_back(s);
    std::vector<std::string> names;
    for (const System& s : systems) names.push_back(s.name);
    std::vector<std::uint64_t> seeds(at(config.seeds));
    std::iota(seeds.begin(), seeds.end(), std::uint64_t{1});
    std::vector<SeedTable> auc, gauc;
    for (const char* d : domain_names) {
      auc.emplace_back(std::string("AUC, ") + d, names, seeds);
      gauc.emplace_back(std::string("GAUC, ") + d, names, seeds);
    }
    Gates gates;
    Progress progress("training", config.seeds * static_cast<Index>(names.size()));
    for (Index s = 0; s < config.seeds; ++s) {
      const Rows rows = make_rows(config, seeds[at(s)]);
      if (s == 0) {
        std::printf("Seed 1: %td impressions, the first 3 quarters to train on:\n", rows.size());
        for (Index d = 0; d < domains; ++d) {
          Index count = 0, clicks = 0;
          for (Index r = 0; r < rows.size(); ++r)
            if (rows.domain[at(r)] == d) ++count, clicks += rows.labels[at(r)][0];
          std::printf("  %-9s %6td, clicks on %.1f %%\n", domain_names[d], count,
                      100 * static_cast<double>(clicks) / static_cast<double>(std::max(count, Index{1})));
        }
      }
      for (std::size_t k = 0; k < names.size(); ++k) {
        const Pepnet model = train(rows, systems[k], config, seeds[at(s)]);
        const Quality q = judge(rows, model, s == 0 && k == 3 ? &gates : nullptr);
        for (std::size_t d = 0; d < at(domains); ++d) {
          auc[d].set(static_cast<Index>(k), s, q.auc[d]);
          gauc[d].set(static_cast<Index>(k), s, q.gauc[d]);
        }
        progress.advance();
      }
    }
    progress.finish();
    for (std::size_t d = 0; d < at(domains); ++d) {
      std::printf("\n");
      auc[d].print();
      std::printf("\n");
      gauc[d].print();
    }
    print_gates(gates);
    std::printf("\n%.1f s\n", std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  } catch (const std::exception& e) {
    std::fprintf(stderr, "pepnet: %s\n", e.what());
    return 1;
  }
}
