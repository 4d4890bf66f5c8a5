/// Clients that keep their data: a shared backbone, adapters of groups, and an adapter of one's own that never leaves (after
/// arXiv 2405.04840).
///
///   1. A third of the users have agreed to be pooled. Of their log a backbone is trained: embeddings of items, a layer, a head.
///   2. The others are clients. Each sees its own impressions and nothing else. On top of the frozen backbone it trains a gate, the
///      adapter of its group and its own adapter; after each round the server averages gates over the clients that took part and the
///      group's adapters over its group. What leaves a client is counted.
///   3. Compared on each client's last impressions: the backbone as it is; every client on its own; adapters of groups, without and
///      with one's own; federated averaging of the whole backbone, without adapters; and the same with all data in one place. The truth's
///      own AUC is the ceiling. Of clients on their own there are two more, which learn nothing but the layer: its weights, or a
///      low-rank adapter on them (LoRA), merged once it has learned.
///   4. Groups that nobody was told (after arXiv 2412.16969): from what users clicked before, a network that all share, one twice as
///      wide, and one beside which a gate picks a network for each user. Do its picks find the groups?
///
/// --seeds 5 repeats it in other worlds, with intervals of the paired differences; --rounds 40 shows own adapters overfit: each has 184
/// numbers to learn from some 110 impressions.
#include <recops/gating/gated_adapters.hpp>
#include <recops/gating/group_gated_ffn.hpp>
#include <recops/gating/lora_linear.hpp>
#include <recops/metrics/gauc.hpp>
#include <recops/nn/embedding_bag.hpp>
#include <recops/nn/loss.hpp>
#include <recops/simd/build_info.hpp>
#include <recops/train/adam.hpp>

#include <array>
#include <chrono>
#include <numeric>

#include "examples/common/cli.hpp"
#include "examples/common/progress.hpp"
#include "examples/common/seeds.hpp"
#include "examples/common/simulator.hpp"

using namespace examples;
using recops::Index;
using recops::IndexView;
using recops::Matrix;
using recops::MatrixView;
using recops::Random;
using recops::Vector;
using recops::Workspace;

namespace {

struct Config {
  Index seeds = 3, users = 360, rounds = 12, rank = 4;
  double share = 0.5, rate = 5e-3;
};

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

constexpr Index item_width = 16, category_width = 8, own_width = 6, inputs = item_width + category_width + own_width, width = 16,
                groups = 4;

/// Impressions; what a row holds besides its ids is known to the client alone: how this user took to the category so far, ...
struct Rows {
  std::vector<std::int32_t> user, item, category, group;
  std::vector<std::array<float, own_width>> own;
  std::vector<std::uint8_t> click;
  std::vector<double> truth;
  std::vector<std::vector<Index>> of_user;  ///< in order of time
  Index items = 0, categories = 0, users = 0;
};

Rows make_rows(const Config& config, std::uint64_t seed) {
  SimulatorOptions o;
  o.seed = seed;
  o.users = config.users;
  o.items = 500;
  o.groups = groups;
  o.group_taste = 1.5;
  o.visits_per_user = 20;
  const Simulator world(o);
  const InteractionLog log = world.generate();
  Rows rows;
  rows.items = log.items;
  rows.categories = log.categories;
  rows.users = log.users;
  rows.of_user.resize(at(log.users));
  const auto users = at(log.users), categories = at(log.categories);
  std::vector<float> shown(users), taken(users), seen(users * categories), taste(users * categories);
  for (Index begin = 0, end = 0; begin < log.size(); begin = end) {
    while (end < log.size() && log.visit[at(end)] == log.visit[at(begin)]) ++end;
    for (Index r = begin; r < end; ++r) {
      const auto u = at(log.user[at(r)]), i = at(log.item[at(r)]), c = u * categories + at(log.item_category[i]);
      const double age = static_cast<double>(log.time[at(r)] - log.item_release[i]) / 86400;
      rows.own.push_back(
          {std::log((taste[c] + 0.5f) / (seen[c] + 2.5f)) + 1.6f, std::log((taken[u] + 2) / (shown[u] + 10)) + 1.6f,
           static_cast<float>(std::exp(-std::max(age, 0.0) / 5)), log.item_price[i],
           static_cast<float>(std::cos(0.2618 * log.hour[at(r)])), static_cast<float>(std::sin(0.2618 * log.hour[at(r)]))});
      rows.of_user[u].push_back(static_cast<Index>(rows.user.size()));
      rows.user.push_back(log.user[at(r)]);
      rows.item.push_back(log.item[at(r)]);
      rows.category.push_back(log.item_category[i]);
      rows.group.push_back(log.user_group[u]);
      rows.click.push_back(log.label(Label::click)[at(r)]);
      rows.truth.push_back(
          world.true_probability(log.user[at(r)], log.item[at(r)], log.time[at(r)], Label::click, log.position[at(r)]));
    }
    for (Index r = begin; r < end; ++r) {
      const auto u = at(log.user[at(r)]), c = u * categories + at(log.item_category[at(log.item[at(r)])]);
      const float click = log.label(Label::click)[at(r)];
      ++shown[u], ++seen[c], taken[u] += click, taste[c] += click;
    }
  }
  return rows;
}

/// Which adapters a row goes through, and what learns.
enum class Adapters { none, group, own };
struct Mode {
  Adapters adapters = Adapters::none;  ///< `own`: the client's, its table's only row, and its group's
  bool backbone = true;                ///< embeddings and base learn, else only gate, head and adapters
};

struct Net {
  recops::EmbeddingBag<float> item, category;
  recops::GatedAdapters<float> layer;
  recops::Linear<float> head;

  Net(const Rows& rows, Index adapters, Index rank, std::uint64_t seed) {
    Random random(seed, 29);
    item = {rows.items, item_width, 0.1, random};
    category = {rows.categories, category_width, 0.1, random};
    layer = recops::GatedAdapters<float>(
        {.inputs = inputs, .outputs = width, .adapters = {adapters, groups}, .rank = rank, .alpha = static_cast<double>(rank)},
        random);
    layer.gate_output.bias[0] = 2;  // begin near the backbone
    head = recops::Linear<float>(width, 1, random);
  }
  static constexpr auto fields() {
    return std::tuple{recops::layer("item", &Net::item), recops::layer("category", &Net::category),
                      recops::layer("layer", &Net::layer), recops::layer("head", &Net::head)};
  }

  struct Scratch {
    std::vector<std::int32_t> item, category, ids;
    Matrix<float> x, h, logits, dlogits, labels, dx, dh;
    recops::GatedAdapters<float>::Saved saved;
    Workspace ws;
  };
  /// Logits of rows.
  void forward(const Rows& rows, const Index* which, Index n, const Mode& mode, Scratch& s) const {
    s.item.clear();
    s.category.clear();
    s.ids.assign(at(2 * n), -1);
    s.x.resize(n, inputs);
    s.h.resize(n, width);
    s.logits.resize(n, 1);
    for (Index k = 0; k < n; ++k) {
      const auto r = at(which[k]);
      s.item.push_back(rows.item[r]);
      s.category.push_back(rows.category[r]);
      std::copy_n(rows.own[r].data(), own_width, s.x.row(k) + item_width + category_width);
      if (mode.adapters == Adapters::none) continue;
      if (mode.adapters == Adapters::own) s.ids[at(k)] = 0;
      s.ids[at(n + k)] = rows.group[r];
    }
    item.forward(s.item, IndexView(), s.x.view().middle_cols(0, item_width));
    category.forward(s.category, IndexView(), s.x.view().middle_cols(item_width, category_width));
    layer.forward(s.x, s.ids, s.h, s.saved, {}, s.ws);
    head.forward(s.h, s.logits, s.ws);
  }
  void backward(const Mode& mode, Net& gradient, Scratch& s) const {
    const Index n = s.x.rows();
    s.dx = Matrix<float>(mode.backbone ? n : 0, mode.backbone ? inputs : 0, 0.0f);
    s.dh = Matrix<float>(n, width, 0.0f);
    head.backward(s.h, s.dlogits.view(), {}, s.dh, gradient.head, s.ws);
    layer.backward(s.x, s.ids, s.dh.view(), s.saved, s.dx, gradient.layer, s.ws);
    if (mode.backbone) {
      const MatrixView<const float> dx = s.dx;
      item.backward(s.item, IndexView(), dx.middle_cols(0, item_width), gradient.item, s.ws);
      category.backward(s.category, IndexView(), dx.middle_cols(item_width, category_width), gradient.category, s.ws);
    } else {
      recops::zero_gradient(gradient.layer.base);
    }
  }
};

/// Passes over some rows with an Adam of its own.
void train(Net& net, const Rows& rows, std::vector<Index> which, const Mode& mode, Index epochs, Index batch, double rate,
           std::uint64_t seed, Net::Scratch& s) {
  Net gradient = recops::make_gradient(net);
  recops::Adam adam(net, {.learning_rate = rate});
  Random random(seed, 31);
  for (Index epoch = 0; epoch < epochs; ++epoch) {
    for (std::size_t i = which.size(); i > 1; --i) std::swap(which[i - 1], which[at(random.below(static_cast<Index>(i)))]);
    for (Index first = 0; first < static_cast<Index>(which.size()); first += batch) {
      const Index n = std::min(batch, static_cast<Index>(which.size()) - first);
      net.forward(rows, which.data() + first, n, mode, s);
      s.labels.resize(n, 1);
      for (Index k = 0; k < n; ++k) s.labels(k, 0) = rows.click[at(which[at(first + k)])];
      s.dlogits = Matrix<float>(n, 1, 0.0f);
      recops::bce_with_logits_value_and_grad<float>(s.logits, s.labels, {}, {}, s.dlogits);
      recops::zero_gradient(gradient);
      net.backward(mode, gradient, s);
      adam.step(net, gradient);
    }
  }
}

/// to += weight * (numbers of from), leaf by leaf.
template <class L>
void add_scaled(L& to, const L& from, float weight) {
  recops::visit(
      [&](const recops::FieldPath&, auto& a, const auto& b) {
        const auto x = recops::leaf_values(a);
        const auto y = recops::leaf_values(b);
        for (Index i = 0; i < x.size(); ++i) x[i] += weight * y[i];
      },
      to, from);
}

struct Client {
  Index user;
  std::vector<Index> train, test;
  Vector<float> adapter;  ///< stays here
};

struct Scores {
  Vector<float> score;  ///< of all clients' test rows, client after client
  Vector<std::uint8_t> click;
  std::vector<std::int32_t> offsets{0};
  void add(const Rows& rows, const Client& c, const Matrix<float>& logits) {
    for (std::size_t k = 0; k < c.test.size(); ++k) {
      score.push_back(logits(static_cast<Index>(k), 0));
      click.push_back(rows.click[at(c.test[k])]);
    }
    offsets.push_back(static_cast<std::int32_t>(score.size()));
  }
  double auc(Workspace& ws) const { return recops::auc<float>(score, click, ws).value; }
  double gauc(Workspace& ws) const { return recops::gauc<float>(score, click, offsets, {}, ws).value; }
};

/// One of the systems: its scores, and what left a client in a round.
enum class System { backbone, alone, layer, lora, group, adapters, whole, central, truth };
constexpr std::array<const char*, 9> names{"backbone",           "each on its own",  "each its own layer",
                                           "each its own LoRA",  "federated groups", "federated groups + own",
                                           "federated backbone", "central",          "truth"};

/// A layer of one's own between the backbone's embeddings and its head.
struct Personal {
  recops::LoraLinear<float> layer;
  static constexpr auto fields() { return std::tuple{recops::layer("layer", &Personal::layer)}; }
};

/// Logits of rows: the backbone with its layer replaced by `layer`. Fills s as the backbone's forward does; z is the layer's output.
template <class L>
void forward_with(const L& layer, const Net& backbone, const Rows& rows, const Index* which, Index n, Matrix<float>& z,
                  recops::LoraLinear<float>::Saved* saved, Net::Scratch& s) {
  backbone.forward(rows, which, n, {Adapters::none, false}, s);
  z.resize(n, width);
  if constexpr (std::is_same_v<L, recops::LoraLinear<float>>) {
    layer.forward(s.x, z, *saved, {}, s.ws);
  } else {
    layer.forward(s.x, z, s.ws);
  }
  for (Index r = 0; r < n; ++r)
    for (Index j = 0; j < width; ++j) s.h(r, j) = s.saved.gates(r, 0) * std::max(z(r, j), 0.0f);
  backbone.head.forward(s.h, s.logits, s.ws);
}

/// Trains the layer's weights (`whole`) or a low-rank adapter on them; what serves is one layer either way.
recops::Linear<float> own_layer(const Net& backbone, const Rows& rows, std::vector<Index> which, bool whole, Index rank,
                                Index epochs, Index batch, double rate, std::uint64_t seed, Net::Scratch& s) {
  Random random(seed, 37);
  Personal own{recops::LoraLinear<float>(backbone.layer.base, rank, static_cast<double>(rank), random)};
  Personal gradient = recops::make_gradient(own);
  if (whole) {
    gradient.layer.down = {};
    gradient.layer.up = {};
  } else {
    gradient.layer.base_layer = {};  // not wanted: it stays as it is
  }
  recops::Adam adam(own, {.learning_rate = rate});
  recops::LoraLinear<float>::Saved saved;
  Matrix<float> z, dz;
  for (Index epoch = 0; epoch < epochs; ++epoch) {
    for (std::size_t i = which.size(); i > 1; --i) std::swap(which[i - 1], which[at(random.below(static_cast<Index>(i)))]);
    for (Index first = 0; first < static_cast<Index>(which.size()); first += batch) {
      const Index n = std::min(batch, static_cast<Index>(which.size()) - first);
      forward_with(own.layer, backbone, rows, which.data() + first, n, z, &saved, s);
      s.labels.resize(n, 1);
      for (Index k = 0; k < n; ++k) s.labels(k, 0) = rows.click[at(which[at(first + k)])];
      s.dlogits = Matrix<float>(n, 1, 0.0f);
      recops::bce_with_logits_value_and_grad<float>(s.logits, s.labels, {}, {}, s.dlogits);
      dz.resize(n, width);
      for (Index r = 0; r < n; ++r)
        for (Index j = 0; j < width; ++j)
          dz(r, j) = z(r, j) > 0 ? s.dlogits(r, 0) * backbone.head.weight(0, j) * s.saved.gates(r, 0) : 0.0f;
      recops::zero_gradient(gradient);
      own.layer.backward(s.x, dz, saved, {}, gradient.layer, s.ws);
      adam.step(own, gradient);
    }
  }
  return own.layer.merged();
}

/// Section 4: a user's vector is the mean of what was clicked, each item once more through a network; its product with an item's
/// embedding says whether it is clicked.
constexpr Index taste = item_width + category_width;
using Plain = recops::Mlp<float>;
using Grouped = recops::GroupGatedFfn<float>;
template <class Network>
struct Taste {
  recops::EmbeddingBag<float> item, category;
  Network network;
  recops::Linear<float> own;  ///< of what else the client knows
  static constexpr auto fields() {
    return std::tuple{recops::layer("item", &Taste::item), recops::layer("category", &Taste::category),
                      recops::layer("network", &Taste::network), recops::layer("own", &Taste::own)};
  }
};

struct Tasted {
  double auc = 0;
  double purity = 0, chance = 0;  ///< users whose group is the commonest of their pick; the same if all were in one
  std::array<std::array<Index, groups>, groups> picked{};  ///< users by pick and group
};

/// Half of a user's impressions give the sequence of clicks, a quarter is learned from, the last is judged.
template <class Network>
Tasted learn_tastes(const Rows& rows, Network network, Index epochs, double rate, std::uint64_t seed) {
  constexpr bool grouped = std::is_same_v<Network, Grouped>;
  Random random(seed, 41);
  Taste<Network> model{{rows.items, item_width, 0.3, random},
                       {rows.categories, category_width, 0.3, random},
                       std::move(network),
                       recops::Linear<float>(own_width, 1, random)};
  Taste<Network> gradient = recops::make_gradient(model);
  recops::Adam adam(model, {.learning_rate = rate});
  Tasted out;
  Workspace ws;
  typename Network::Saved saved;
  Matrix<float> x, y, dx, e, de, own, logits, labels, dlogits, dgates, u, du;
  std::vector<std::int32_t> offsets, items, categories, row_items, row_categories, of_row;
  Vector<float> fraction(groups, 1.0f / groups);
  std::vector<Index> order(at(rows.users));
  std::iota(order.begin(), order.end(), Index{0});
  Vector<float> score;
  Vector<std::uint8_t> click;
  for (Index epoch = 0; epoch <= epochs; ++epoch) {
    const bool judging = epoch == epochs;
    for (std::size_t i = order.size(); !judging && i > 1; --i)
      std::swap(order[i - 1], order[at(random.below(static_cast<Index>(i)))]);
    Vector<float> counts(groups, 0.0f);
    for (std::size_t first = 0; first < order.size(); first += 16) {
      offsets.assign(1, 0);
      items.clear(), categories.clear(), row_items.clear(), row_categories.clear(), of_row.clear();
      std::vector<std::size_t> which;
      const std::size_t users = std::min<std::size_t>(16, order.size() - first);
      for (std::size_t b = 0; b < users; ++b) {
        const auto& all = rows.of_user[at(order[first + b])];
        const std::size_t half = all.size() / 2, cut = all.size() * 3 / 4;
        for (std::size_t k = 0; k < half; ++k)
          if (rows.click[at(all[k])]) items.push_back(rows.item[at(all[k])]), categories.push_back(rows.category[at(all[k])]);
        offsets.push_back(static_cast<std::int32_t>(items.size()));
        for (std::size_t k = judging ? cut : half; k < (judging ? all.size() : cut); ++k) {
          which.push_back(at(all[k]));
          of_row.push_back(static_cast<std::int32_t>(b));
          row_items.push_back(rows.item[at(all[k])]);
          row_categories.push_back(rows.category[at(all[k])]);
        }
      }
      const auto n = static_cast<Index>(which.size()), clicks = static_cast<Index>(items.size()),
                 batch = static_cast<Index>(users);
      if (n == 0) continue;
      const auto embed = [&](const auto& i, const auto& c, Matrix<float>& to, Index count) {
        to.resize(count, taste);
        model.item.forward(i, IndexView(), to.view().middle_cols(0, item_width));
        model.category.forward(c, IndexView(), to.view().middle_cols(item_width, category_width));
      };
      embed(items, categories, x, clicks);
      embed(row_items, row_categories, e, n);
      own.resize(n, own_width);
      labels.resize(n, 1);
      for (Index r = 0; r < n; ++r) {
        std::copy_n(rows.own[which[at(r)]].data(), own_width, own.row(r));
        labels(r, 0) = rows.click[which[at(r)]];
      }
      y.resize(clicks, taste);
      const recops::JaggedView<const float> sequences(x.view(), IndexView(offsets));
      if constexpr (grouped) {
        model.network.forward(sequences, y, saved, {}, ws);
        for (Index b = 0; b < batch; ++b) {
          counts[saved.picks[b]] += 1;
          if (judging) ++out.picked[at(saved.picks[b])][at(rows.group[at(rows.of_user[at(order[first + at(b)])][0])])];
        }
      } else {
        model.network.forward(x, y, saved, {}, ws);
      }
      u = Matrix<float>(batch, taste, 0.0f);
      const auto share = [&](Index b) { return 1.0f / static_cast<float>(std::max(1, offsets[at(b + 1)] - offsets[at(b)])); };
      for (Index b = 0; b < batch; ++b)
        for (Index l = offsets[at(b)]; l < offsets[at(b + 1)]; ++l) {
          recops::simd::axpy<float>(share(b), x.row(l), u.row(b), taste);
          recops::simd::axpy<float>(share(b), y.row(l), u.row(b), taste);
        }
      logits.resize(n, 1);
      model.own.forward(own, logits, ws);
      for (Index r = 0; r < n; ++r) logits(r, 0) += recops::simd::dot(u.row(of_row[at(r)]), e.row(r), taste);
      if (judging) {
        for (Index r = 0; r < n; ++r) {
          score.push_back(logits(r, 0));
          click.push_back(rows.click[which[at(r)]]);
        }
        continue;
      }
      dlogits = Matrix<float>(n, 1, 0.0f);
      recops::bce_with_logits_value_and_grad<float>(logits, labels, {}, {}, dlogits);
      recops::zero_gradient(gradient);
      model.own.backward(own, dlogits, {}, {}, gradient.own, ws);
      de = Matrix<float>(n, taste, 0.0f);
      du = Matrix<float>(batch, taste, 0.0f);
      for (Index r = 0; r < n; ++r) {
        recops::simd::axpy<float>(dlogits(r, 0), u.row(of_row[at(r)]), de.row(r), taste);
        recops::simd::axpy<float>(dlogits(r, 0), e.row(r), du.row(of_row[at(r)]), taste);
      }
      dx = Matrix<float>(clicks, taste, 0.0f);
      for (Index b = 0; b < batch; ++b)
        for (Index l = offsets[at(b)]; l < offsets[at(b + 1)]; ++l)
          recops::simd::axpy<float>(share(b), du.row(b), dx.row(l), taste);
      const Matrix<float> dy = dx;
      if constexpr (grouped) {
        dgates = Matrix<float>(batch, groups, 0.0f);
        recops::group_balance_value_and_grad<float>(saved.gates, IndexView(saved.picks.data(), saved.picks.size()), fraction,
                                                    0.01 / static_cast<double>(batch), dgates);
        model.network.backward(sequences, recops::MatrixView<const float>(nullptr, batch, 0), dy, dgates, saved, dx, {},
                               gradient.network, ws);
      } else {
        model.network.backward(x, dy, saved, dx, gradient.network, ws);
      }
      const auto back = [&](const auto& i, const auto& c, const Matrix<float>& d) {
        model.item.backward(i, IndexView(), d.view().middle_cols(0, item_width), gradient.item, ws);
        model.category.backward(c, IndexView(), d.view().middle_cols(item_width, category_width), gradient.category, ws);
      };
      back(items, categories, dx);
      back(row_items, row_categories, de);
      adam.step(model, gradient);
    }
    for (Index g = 0; g < groups; ++g) fraction[g] = counts[g] / static_cast<float>(rows.users);  // of the round before
  }
  out.auc = recops::auc<float>(score, click, ws).value;
  std::array<Index, groups> size{};
  for (const auto& pick : out.picked) {
    out.purity += static_cast<double>(*std::max_element(pick.begin(), pick.end())) / static_cast<double>(rows.users);
    for (std::size_t g = 0; g < pick.size(); ++g) size[g] += pick[g];
  }
  out.chance = static_cast<double>(*std::max_element(size.begin(), size.end())) / static_cast<double>(rows.users);
  return out;
}

struct Outcome {
  double auc = 0, gauc = 0;
  double bytes_per_round = 0, bytes = 0;  ///< that leave a client that takes part; all of them in all rounds
  std::vector<double> by_round;           ///< AUC after each round
  std::array<double, 3> gate{};           ///< mean weight of base, own adapter, group's adapter
};

Outcome run(System system, const Rows& rows, const Net& backbone, std::vector<Client> clients, const std::vector<Index>& pooled,
            const Config& config, std::uint64_t seed) {
  Outcome out;
  Net::Scratch s;
  const Mode own{Adapters::own, false};
  constexpr Index local_epochs = 2, local_batch = 32;
  // As many passes as a client makes that takes part in its share of the rounds.
  const auto passes_alone =
      std::max<Index>(1, static_cast<Index>(static_cast<double>(local_epochs * config.rounds) * config.share));
  const auto local_net = [&](const Net& server, const Client& c) {
    Net net = server;
    std::copy(c.adapter.begin(), c.adapter.end(), net.layer.adapters[0].weight.values.row(0));
    return net;
  };
  Scores scores;
  double gate_rows = 0;
  const auto judge = [&](const auto& net_of, const Mode& mode, bool last) {
    scores = {};
    for (const Client& c : clients) {
      const auto& net = net_of(c);
      net.forward(rows, c.test.data(), static_cast<Index>(c.test.size()), mode, s);
      scores.add(rows, c, s.logits);
      for (Index r = 0; last && r < s.saved.gates.rows(); ++r, gate_rows += 1)
        for (std::size_t j = 0; j < 3; ++j) out.gate[j] += static_cast<double>(s.saved.gates(r, static_cast<Index>(j)));
    }
    return scores.auc(s.ws);
  };

  if (system == System::truth) {
    for (const Client& c : clients) {
      Matrix<float> truth(static_cast<Index>(c.test.size()), 1);
      for (std::size_t k = 0; k < c.test.size(); ++k)
        truth(static_cast<Index>(k), 0) = static_cast<float>(rows.truth[at(c.test[k])]);
      scores.add(rows, c, truth);
    }
  } else if (system == System::backbone) {
    judge([&](const Client&) -> const Net& { return backbone; }, {Adapters::none, false}, false);
  } else if (system == System::central) {  // what nobody keeps: the clients' rows and the pooled ones in one place
    Net net(rows, 1, config.rank, seed);
    std::vector<Index> all = pooled;
    for (const Client& c : clients) all.insert(all.end(), c.train.begin(), c.train.end());
    const Mode mode{Adapters::none, true};
    train(net, rows, std::move(all), mode, 4, 256, config.rate, seed, s);
    judge([&](const Client&) -> const Net& { return net; }, mode, false);
  } else if (system == System::layer || system == System::lora) {
    Matrix<float> z;
    for (const Client& c : clients) {
      const auto layer = own_layer(backbone, rows, c.train, system == System::layer, config.rank, passes_alone, local_batch,
                                   config.rate, seed + at(c.user), s);
      forward_with(layer, backbone, rows, c.test.data(), static_cast<Index>(c.test.size()), z, nullptr, s);
      scores.add(rows, c, s.logits);
    }
  } else if (system == System::alone) {
    std::vector<Net> nets;
    for (Client& c : clients) {
      nets.push_back(local_net(backbone, c));
      train(nets.back(), rows, c.train, own, passes_alone, local_batch, config.rate, seed + at(c.user), s);
    }
    std::size_t next = 0;
    judge([&](const Client&) -> const Net& { return nets[next++]; }, own, true);
  } else {
    const bool whole = system == System::whole;
    const Mode mode = whole ? Mode{Adapters::none, true} : system == System::group ? Mode{Adapters::group, false} : own;
    Net server = backbone;
    // What is averaged over all who take part: everything but tables of adapters, or gate and head.
    const Index shared = whole ? recops::parameter_count(server.item) + recops::parameter_count(server.category) +
                                     recops::parameter_count(server.layer.base) +
                                     recops::parameter_count(server.layer.gate_hidden) +
                                     recops::parameter_count(server.layer.gate_output) + recops::parameter_count(server.head)
                               : recops::parameter_count(server.layer.gate_hidden) +
                                     recops::parameter_count(server.layer.gate_output) + recops::parameter_count(server.head);
    const Index group_row = whole ? 0 : server.layer.adapters[1].weight.values.cols();
    out.bytes_per_round = 4.0 * static_cast<double>(shared + group_row);
    for (Index round = 0; round < config.rounds; ++round) {
      Random random(seed, 1000 + static_cast<std::uint64_t>(round));
      std::vector<std::size_t> order(clients.size());
      std::iota(order.begin(), order.end(), std::size_t{0});
      for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[at(random.below(static_cast<Index>(i)))]);
      order.resize(std::max<std::size_t>(1, static_cast<std::size_t>(config.share * static_cast<double>(order.size()))));
      double total = 0;
      std::array<double, groups> group_total{};
      for (const std::size_t k : order) {
        const auto n = static_cast<double>(clients[k].train.size());
        total += n;
        group_total[at(rows.group[at(clients[k].train[0])])] += n;
      }
      Net next = recops::zeros_like(server);
      for (const std::size_t k : order) {
        Client& c = clients[k];
        Net net = local_net(server, c);
        train(net, rows, c.train, mode, local_epochs, local_batch, config.rate, seed + at(round * 100000 + c.user), s);
        if (!whole) std::copy_n(net.layer.adapters[0].weight.values.row(0), c.adapter.size(), c.adapter.begin());
        const auto weight = static_cast<float>(static_cast<double>(c.train.size()) / total);
        if (whole) {
          add_scaled(next.item, net.item, weight);
          add_scaled(next.category, net.category, weight);
          add_scaled(next.layer.base, net.layer.base, weight);
        } else {
          const Index g = rows.group[at(c.train[0])];
          const auto own_weight = static_cast<float>(static_cast<double>(c.train.size()) / group_total[at(g)]);
          recops::simd::axpy<float>(own_weight, net.layer.adapters[1].weight.values.row(g),
                                    next.layer.adapters[1].weight.values.row(g), group_row);
        }
        add_scaled(next.layer.gate_hidden, net.layer.gate_hidden, weight);
        add_scaled(next.layer.gate_output, net.layer.gate_output, weight);
        add_scaled(next.head, net.head, weight);
        out.bytes += out.bytes_per_round;
      }
      if (whole) {
        server.item = next.item;
        server.category = next.category;
        server.layer.base = next.layer.base;
      } else {
        for (Index g = 0; g < groups; ++g)
          if (group_total[at(g)] > 0)
            std::copy_n(next.layer.adapters[1].weight.values.row(g), group_row, server.layer.adapters[1].weight.values.row(g));
      }
      server.layer.gate_hidden = next.layer.gate_hidden;
      server.layer.gate_output = next.layer.gate_output;
      server.head = next.head;
      Net net = server;
      out.by_round.push_back(judge(
          [&](const Client& c) -> const Net& {
            std::copy(c.adapter.begin(), c.adapter.end(), net.layer.adapters[0].weight.values.row(0));
            return net;
          },
          mode, round + 1 == config.rounds));
    }
  }
  out.auc = scores.auc(s.ws);
  out.gauc = scores.gauc(s.ws);
  for (double& g : out.gate) g /= std::max(1.0, gate_rows);
  return out;
}

}  // namespace

int main(int argc, char** argv) {
  Config config;
  Cli cli("federated", "Clients that keep their data: a shared backbone, adapters of groups, and one's own that never leaves.");
  cli.refuse("data", "none of the sets in docs/data.md says which group a user is of");
  cli.option("seeds", config.seeds, "worlds to compare over", "seeds", 1, 100);
  cli.option("users", config.users, "users; a third of them are pooled, the others are clients", "users", 12, 1000000);
  cli.option("rounds", config.rounds, "rounds of training and averaging", "rounds", 1, 10000);
  cli.option("share", config.share, "share of the clients that take part in a round", "", 0.001, 1);
  cli.option("rank", config.rank, "of the adapters", "", 1, 64);
  cli.option("rate", config.rate, "learning rate of Adam", "", 0, 1);
  cli.parse(argc, argv);
  std::printf("%s\n", recops::build_info().c_str());
  const auto start = std::chrono::steady_clock::now();
  try {
    std::vector<std::uint64_t> seeds(at(config.seeds));
    std::iota(seeds.begin(), seeds.end(), std::uint64_t{1});
    const std::vector<std::string> labels(names.begin(), names.end());
    SeedTable auc("AUC", labels, seeds), gauc("GAUC", labels, seeds);
    SeedTable tastes("AUC from the clicks before", {"one network", "twice as wide", "own + a group's"}, seeds);
    Tasted found;
    double purity = 0, chance = 0;
    std::array<Outcome, names.size()> first;
    Progress progress("systems", config.seeds * static_cast<Index>(names.size()));
    for (Index k = 0; k < config.seeds; ++k) {
      const std::uint64_t seed = seeds[at(k)];
      const Rows rows = make_rows(config, seed);
      std::vector<Index> pooled;
      std::vector<Client> clients;
      Net backbone(rows, 1, config.rank, seed);
      for (Index u = 0; u < rows.users; ++u) {
        const auto& own = rows.of_user[at(u)];
        if (u % 3 == 0) {
          pooled.insert(pooled.end(), own.begin(), own.end());
        } else if (own.size() >= 8) {
          const auto cut = own.begin() + static_cast<std::ptrdiff_t>(own.size() * 3 / 4);
          Client c{u, {own.begin(), cut}, {cut, own.end()}, {}};
          Random random(seed, 7000 + static_cast<std::uint64_t>(u));
          const recops::AdapterTable<float> fresh(1, inputs, config.rank, width, random);
          c.adapter = Vector<float>(fresh.weight.values.cols());
          std::copy_n(fresh.weight.values.row(0), c.adapter.size(), c.adapter.begin());
          clients.push_back(std::move(c));
        }
      }
      Net::Scratch scratch;
      train(backbone, rows, pooled, {Adapters::none, true}, 4, 256, config.rate, seed, scratch);
      if (k == 0) {
        Index trained = 0, tested = 0;
        for (const Client& c : clients)
          trained += static_cast<Index>(c.train.size()), tested += static_cast<Index>(c.test.size());
        std::printf(
            "Seed 1: backbone from %zu pooled impressions; %zu clients with %td impressions to train on and %td to be tested "
            "on.\n",
            pooled.size(), clients.size(), trained, tested);
      }
      for (std::size_t m = 0; m < names.size(); ++m) {
        const Outcome o = run(static_cast<System>(m), rows, backbone, clients, pooled, config, seed);
        auc.set(static_cast<Index>(m), k, o.auc);
        gauc.set(static_cast<Index>(m), k, o.gauc);
        if (k == 0) first[m] = o;
        progress.advance();
      }
      Random random(seed, 43);
      const auto network = [&](Index hidden) { return [&random, hidden] { return Plain({taste, hidden, taste}, {}, random); }; };
      tastes.set(0, k, learn_tastes(rows, network(32)(), 30, 2e-3, seed).auc);
      tastes.set(1, k, learn_tastes(rows, network(64)(), 30, 2e-3, seed).auc);
      const Tasted t =
          learn_tastes(rows, Grouped(taste, 0, groups, network(32), random, {.scale_by_gate = true}), 30, 2e-3, seed);
      tastes.set(2, k, t.auc);
      purity += t.purity / static_cast<double>(config.seeds);
      chance += t.chance / static_cast<double>(config.seeds);
      if (k == 0) found = t;
    }
    progress.finish();
    std::printf("\n");
    auc.print();
    std::printf("\n");
    gauc.print();
    std::printf("\nWhat leaves a client (seed 1), %td rounds, %.0f %% of the clients in each:\n\n", config.rounds,
                100 * config.share);
    for (const System m : {System::alone, System::group, System::adapters, System::whole}) {
      const Outcome& o = first[static_cast<std::size_t>(m)];
      std::printf("  %-22s %8.1f KB a round, %8.2f MB from all clients in all rounds%s\n", names[static_cast<std::size_t>(m)],
                  o.bytes_per_round / 1024, o.bytes / (1024 * 1024), m == System::adapters ? "; its own adapter stays" : "");
    }
    std::printf("\nAUC by round (seed 1):\n");
    for (const System m : {System::group, System::adapters, System::whole}) {
      std::printf("  %-22s", names[static_cast<std::size_t>(m)]);
      for (const double v : first[static_cast<std::size_t>(m)].by_round) std::printf(" %.4f", v);
      std::printf("\n");
    }
    const auto& gate = first[static_cast<std::size_t>(System::adapters)].gate;
    std::printf("\nThe gate of groups + own, on average: backbone %.2f, own adapter %.2f, the group's %.2f\n", gate[0], gate[1],
                gate[2]);
    std::printf("\nNumbers that a client on its own trains: its layer %td, LoRA %td; what serves is one layer either way\n",
                inputs * width + width, config.rank * (inputs + width));
    std::printf("\nGroups that nobody was told: the gate of a group-gated network picks one of %td by what was clicked.\n\n",
                groups);
    tastes.print();
    std::printf("\nUsers by pick (down) and true group (across), seed 1:\n");
    for (const auto& pick : found.picked) {
      for (const Index users : pick) std::printf(" %5td", users);
      std::printf("\n");
    }
    std::printf(
        "Of the group that is commonest in their pick: %.0f %% of the users; were all in one, %.0f %% (mean over seeds)\n",
        100 * purity, 100 * chance);
    std::printf("\n%.1f s\n", std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  } catch (const std::exception& e) {
    std::fprintf(stderr, "federated: %s\n", e.what());
    return 1;
  }
}
