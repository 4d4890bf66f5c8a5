/// Life-long histories: what a user did among 10^4 to 10^6 behaviours that matters for the candidate at hand, and what it costs to
/// find out.
///
///   1. A small click model (TWIN's attention, arXiv 2302.02352, and a small network) is trained once, with attention over everything.
///   2. The same model with the same parameters then serves the same candidates in several ways: full target attention; the latest
///      behaviours only, as many as TWIN-V2 has clusters; attention to 100 behaviours that a search keeps: of the candidate's category
///      (SIM hard, arXiv 2006.05639), by inner product (SIM soft), by 64-bit signatures (ETA, arXiv 2108.04468), by the attention's own
///      scores (TWIN); attention to 100 clusters (TWIN-V2, arXiv 2407.16357); the mean of what collides in hash tables (SDIM, arXiv
///      2205.10249).
///      None is trained for its own way of looking: what is lost against full attention is what the way leaves out.
///   3. Printed: AUC and GAUC, how many of the exact top-100 each way looks at, memory a user, and p50 / p99 of a request as L grows.
///
/// Users come from the simulator: a history is what they clicked among items shown at random over two years; items have a noisy content
/// embedding. With --seasons 4 a category is shown in one quarter of the year only, and asked for at any time: what is old counts again.
/// --seeds 5 compares the losses against full attention over five worlds; --plot out.svg draws them as L grows; --longest
/// 1000000 goes to 10^6 behaviours. No public data set that the examples read has histories of these lengths; --data says so.
#include <recops/attention/eta.hpp>
#include <recops/attention/projected_key_cache.hpp>
#include <recops/attention/sdim.hpp>
#include <recops/attention/sim.hpp>
#include <recops/attention/twin_v2.hpp>
#include <recops/metrics/gauc.hpp>
#include <recops/nn/loss.hpp>
#include <recops/nn/mlp.hpp>
#include <recops/nn/scaled_dot_product_attention.hpp>
#include <recops/train/adam.hpp>

#include <ctime>
#include <map>

#include "examples/common/cli.hpp"
#include "examples/common/seeds.hpp"
#include "examples/common/simulator.hpp"
#include "examples/common/svg.hpp"

using namespace examples;
using namespace recops;

namespace {

constexpr Index width = 32, heads = 4, key_width = 16, value_width = 16, selected = 100;
constexpr Index cross_cols = 4;  // two features, how much was watched and how long ago, each with its square

struct Config {
  std::string plot;
  Index seeds = 1, seed = 1, users = 8, candidates = 100, train_users = 400, train_length = 400, epochs = 3, items = 20000,
        longest = 100000, seasons = 0;
};

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

/// One user's life, in the order of time, and a request at its end.
struct Life {
  std::vector<std::int32_t> items;
  Matrix<float> inherent, cross;
  Vector<float> ratio;
  Matrix<float> candidates;
  std::vector<std::int32_t> candidate_items;
  Matrix<float> labels;
  Index length() const { return inherent.rows(); }
};

/// The simulated world, and what a service knows of its items.
class World {
 public:
  World(const Config& c, std::uint64_t seed) : simulator_(options(c, seed)), embedding_(c.items, width), seasons_(c.seasons) {
    Random random(seed, 900);
    const Index d = simulator_.item_vectors().cols();
    const Matrix<double> turn = [&] {
      Matrix<double> m(width, d);
      for (Index i = 0; i < width * d; ++i) m.data()[i] = random.normal() / 4;
      return m;
    }();
    for (Index i = 0; i < c.items; ++i)
      for (Index k = 0; k < width; ++k) {
        double sum = 0.15 * random.normal();
        for (Index j = 0; j < d; ++j) sum += 4 * turn(k, j) * simulator_.item_vectors()(i, j);
        embedding_(i, k) = static_cast<float>(sum);
      }
  }
  const Matrix<float>& embedding() const { return embedding_; }
  Index category(Index item) const { return simulator_.item_category(item); }

  /// What `user` clicked among items shown at random, the latest `length` of it, and `count` candidates with what came of them.
  Life life(Index user, Index length, Index count, std::uint64_t seed) const {
    constexpr Index shown = 256;
    Random random(seed, at(1000 + user));
    const double end = static_cast<double>(simulator_.options().start_time) + simulator_.options().days * 86400.0;
    std::vector<std::int32_t> items;
    std::vector<float> ratio, age;
    std::vector<std::int32_t> list(shown);
    Vector<double> click(shown);
    // Backwards in time, sessions evenly spread; about a fifth of what is shown is clicked.
    const double sessions = std::max(1.0, static_cast<double>(length) / (0.15 * shown));
    for (Index s = 0; static_cast<Index>(items.size()) < length; ++s) {
      const double years = std::fmod((static_cast<double>(s) + random.uniform()) / sessions, 1.0);
      const auto time = static_cast<std::int64_t>(end - years * simulator_.options().days * 86400.0);
      for (auto& i : list) {
        do i = static_cast<std::int32_t>(random.below(simulator_.item_count()));
        while (!in_season(i, years));
      }
      simulator_.true_probabilities(user, list, time, Label::click, click);
      for (Index i = 0; i < shown && static_cast<Index>(items.size()) < length; ++i) {
        if (!random.chance(click[i])) continue;
        items.push_back(list[at(i)]);
        age.push_back(static_cast<float>(years));
        ratio.push_back(
            static_cast<float>(random.chance(0.3 + 0.6 * click[i]) ? random.uniform(0.6, 1.0) : random.uniform(0.0, 0.6)));
      }
    }
    Life life;
    life.inherent.resize(length, width);
    life.cross.resize(length, cross_cols);
    life.ratio.resize(length);
    for (Index l = 0; l < length; ++l) {  // turned around: the oldest first
      const auto from = at(length - 1 - l);
      life.items.push_back(items[from]);
      std::copy_n(embedding_.row(items[from]), width, life.inherent.row(l));
      life.ratio[l] = ratio[from];
      const float x[cross_cols] = {ratio[from], ratio[from] * ratio[from], age[from], age[from] * age[from]};
      std::copy_n(x, cross_cols, life.cross.row(l));
    }
    life.candidates.resize(count, width);
    life.labels.resize(count, 1);
    // As many that the user takes as not: it is the order between the two that counts.
    std::vector<std::int32_t> pool(shown);
    for (Index found = 0, taken = 0; found < count;) {
      for (auto& i : pool) i = static_cast<std::int32_t>(random.below(simulator_.item_count()));
      simulator_.true_probabilities(user, pool, static_cast<std::int64_t>(end), Label::click, click);
      for (Index i = 0; i < shown && found < count; ++i) {
        const bool yes = random.chance(click[i]);
        if (yes ? 2 * taken >= count : 2 * (found - taken) >= count) continue;
        taken += yes ? 1 : 0;
        life.candidate_items.push_back(pool[at(i)]);
        std::copy_n(embedding_.row(pool[at(i)]), width, life.candidates.row(found));
        life.labels(found++, 0) = yes ? 1.0f : 0.0f;
      }
    }
    return life;
  }

 private:
  static SimulatorOptions options(const Config& c, std::uint64_t seed) {
    SimulatorOptions o;
    o.seed = seed;
    o.users = c.users + c.train_users;
    o.items = c.items;
    o.categories = 60;
    o.themes = 12;
    o.days = 730;
    o.interests_min = 8;
    o.interests_max = 16;
    o.swing = 2;
    o.swing_days = 150;
    o.rates.click = 0.15;
    return o;
  }

  /// Whether an item is shown at a time: `before` the end, in units of the two years.
  bool in_season(Index item, double before) const {
    const Index season = static_cast<Index>(2 * before * static_cast<double>(seasons_));
    return seasons_ == 0 || (category(item) + season) % seasons_ == 0;
  }

  Simulator simulator_;
  Matrix<float> embedding_;
  Index seasons_;
};

/// What is trained: the user's interest in the candidate, and a network on it.
struct Model {
  Twin<float> twin;
  Mlp<float> head;
  static constexpr auto fields() { return std::tuple{layer("twin", &Model::twin), layer("head", &Model::head)}; }
};

/// [interest | candidate | interest * candidate]
void features(MatrixView<const float> interest, MatrixView<const float> candidates, MatrixView<float> x) {
  for (Index i = 0; i < x.rows(); ++i)
    for (Index d = 0; d < width; ++d) {
      x(i, d) = interest(i, d);
      x(i, width + d) = candidates(i, d);
      x(i, 2 * width + d) = interest(i, d) * candidates(i, d);
    }
}

Model train(const Config& c, const World& world, std::uint64_t seed) {
  Random random(seed, 7);
  Model model;
  model.twin = Twin<float>({.width = width,
                            .cross_features = 2,
                            .cross_width = 2,
                            .heads = heads,
                            .key_width = key_width,
                            .value_width = value_width,
                            .selected = c.train_length},
                           random);
  // Attention starts as similarity: keys projected as queries are, and out of the values what went in.
  for (float& w : leaf_values(model.twin.q_proj.weight)) w *= 2;
  model.twin.k_proj.weight = model.twin.q_proj.weight;
  for (Index o = 0; o < width; ++o)
    for (Index v = 0; v < heads * value_width; ++v) model.twin.out_proj.weight(o, v) = model.twin.v_proj.weight(v, o);
  model.head = Mlp<float>({3 * width, 32, 1}, {}, random);
  Adam<Model> adam(model, {.learning_rate = 4e-3});
  auto gradient = make_gradient(model);
  constexpr Index count = 24;
  std::vector<Life> lives;
  for (Index u = 0; u < c.train_users; ++u) lives.push_back(world.life(c.users + u, c.train_length, count, seed));
  Matrix<float> y(count, width), x(count, 3 * width), dx(count, 3 * width), dy(count, width), logits(count, 1), dlogits(count, 1);
  Twin<float>::Saved saved;
  Mlp<float>::Saved kept;
  Workspace ws;
  constexpr Index batch = 8;
  Index steps = 0;
  for (Index epoch = 0; epoch < c.epochs; ++epoch) {
    double loss = 0;
    for (Index u = 0; u < c.train_users; ++u) {
      const Life& life = lives[at(u)];
      const TwinHistory<float> history{.inherent = life.inherent.view(), .cross = life.cross};
      model.twin.forward(life.candidates.view(), history, y, saved, ws);
      features(y, life.candidates, x);
      model.head.forward(x, logits, kept, {}, ws);
      dlogits.fill(0);
      loss += bce_with_logits_value_and_grad<float>(logits, life.labels, {}, {}, dlogits);
      dx.fill(0);
      model.head.backward(x, dlogits, kept, dx, gradient.head, ws);
      for (Index i = 0; i < count; ++i)
        for (Index d = 0; d < width; ++d) dy(i, d) = dx(i, d) + dx(i, 2 * width + d) * life.candidates(i, d);
      model.twin.backward(life.candidates.view(), history, dy, saved, {}, {}, gradient.twin, ws);
      if ((u + 1) % batch != 0 && u + 1 != c.train_users) continue;
      visit(
          [](const FieldPath&, auto& leaf) {
            for (auto& g : leaf_values(leaf)) g /= batch;
          },
          gradient);
      adam.options.learning_rate =
          4e-3 * std::max(0.05, 1 - static_cast<double>(++steps) * batch / static_cast<double>(c.epochs * c.train_users));
      adam.step(model, gradient);
      zero_gradient(gradient);
    }
    std::printf("  epoch %td: loss %.4f\n", epoch + 1, loss / static_cast<double>(c.train_users));
  }
  model.twin.selected = selected;
  return model;
}

/// What one way of serving did at one length.
struct Score {
  std::vector<float> scores;
  std::vector<double> microseconds;
  double found = 0, bytes = 0;  ///< of the exact top-100 (NaN: it looks at all, or at none in particular), a user's memory
};

class Serving {
 public:
  Serving(const Model& model, const World& world)
      : world_(world),
        twin_(freeze(model.twin)),
        head_(freeze(model.head)),
        values_(freeze(model.twin.v_proj)),
        out_(freeze(model.twin.out_proj)),
        cache_(world.embedding().rows(), heads, key_width) {
    std::vector<std::int32_t> all(at(cache_.items()));
    for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::int32_t>(i);
    cache_.refresh(twin_, all, world.embedding(), ws_);
    Random random(99);
    planes_ = random_planes<float>(64, width, random);
    hash_planes_ = random_planes<float>(16 * 3, width, random);
  }
  Index cache_bytes() const { return cache_.bytes(); }

  /// Serves the request at the end of a life of which the latest `length` behaviours are known.
  void serve(const Life& life, Index length, std::map<std::string, Score>& out) {
    const Index first = life.length() - length;
    const MatrixView<const float> inherent = life.inherent.view().middle_rows(first, length),
                                  cross = life.cross.view().middle_rows(first, length);
    const TwinHistory<float> history{.inherent = inherent, .cross = cross};
    const IndexView items = IndexView(life.items).segment(first, length);
    const Index n = life.candidates.rows();
    const JaggedView<const float> candidates = life.candidates.view();
    Matrix<float> y(n, width);
    Matrix<std::int32_t> exact(n, selected), chosen(n, selected);
    const double raw = static_cast<double>(length * (width + cross_cols) * 4);

    // Everything that does not depend on the candidates is prepared beforehand.
    Matrix<float> keys(length, heads * key_width), projected(length, heads * value_width), bias(length, heads),
        both(length, width + cross_cols);
    twin_.project_keys(inherent, keys, ws_);
    twin_.score_bias(history, bias, ws_);
    for (Index l = 0; l < length; ++l) {
      std::copy_n(inherent.row(l), width, both.row(l));
      std::copy_n(cross.row(l), cross_cols, both.row(l) + width);
    }
    values_.forward(both, projected, ws_);
    const auto attend_all = [&](Index from) {
      const Index l = length - from;
      Matrix<float>& q = query_;
      q.resize(n, heads * key_width);
      attended_.resize(n, heads * value_width);
      twin_.project_queries(life.candidates, q, ws_);
      scaled_dot_product_attention<float>(q.view(), keys.view().middle_rows(from, l), projected.view().middle_rows(from, l),
                                          {.per_key = bias.view().middle_rows(from, l)}, {.heads = heads}, attended_, {}, ws_);
      out_.forward(attended_, y, ws_);
    };
    const SearchKeys<float> plain{JaggedView<const float>(keys.view())};
    twin_.forward(candidates, history, plain, exact, y, ws_);
    const auto overlap = [&] {
      double hits = 0;
      for (Index i = 0; i < n; ++i)
        for (Index j = 0; j < selected; ++j)
          hits += chosen(i, j) >= 0 && std::find(exact.row(i), exact.row(i) + selected, chosen(i, j)) != exact.row(i) + selected
                      ? 1
                      : 0;
      return hits / static_cast<double>(n);
    };

    request(out["full"], life, static_cast<double>(length * (heads * (key_width + value_width) + heads) * 4), y,
            [&] { attend_all(0); });
    compress_history<float>(
        inherent, life.ratio.size() ? VectorView<const float>(life.ratio).segment(first, length) : VectorView<const float>(),
        inherent, cross, {}, compressed_, ws_);
    const Index clusters = compressed_.size();
    request(out["latest"], life, static_cast<double>(clusters * (heads * (key_width + value_width) + heads) * 4), y,
            [&] { attend_all(length - clusters); });
    // Attention to what another search kept.
    const auto searched = [&](const char* way, double bytes, auto&& search) {
      Score& one = out[way];
      request(one, life, raw + bytes, y, [&] {
        search();
        twin_.attend(candidates, history, plain, chosen, y, ws_);
      });
      one.found += overlap();
    };
    std::vector<std::int32_t> category_of, wanted;
    for (Index l = 0; l < length; ++l) category_of.push_back(static_cast<std::int32_t>(world_.category(items[l])));
    for (const std::int32_t item : life.candidate_items) wanted.push_back(static_cast<std::int32_t>(world_.category(item)));
    const std::vector<std::int64_t> whole{0, length}, asked{0, n};
    CategoryIndex categories;
    categories.build(category_of, whole, ws_);
    const double keys_too = static_cast<double>(length * heads * key_width * 4);
    searched("SIM hard", keys_too + static_cast<double>(length * 4), [&] { categories.search(wanted, asked, chosen); });
    searched("SIM soft", keys_too, [&] { soft_search<float>(candidates, inherent, chosen, {}, ws_); });
    Matrix<std::uint64_t> signatures(length, 1), signature(n, 1);
    simhash<float>(inherent, planes_, signatures, ws_);
    searched("ETA", keys_too + static_cast<double>(length * 8), [&] {
      simhash<float>(life.candidates, planes_, signature, ws_);
      eta_search(signature.view(), signatures.view(), chosen, {}, ws_);
    });

    // SDIM: behaviours that collide with the candidate, and how many; their mean stands for what every head attends to.
    const SdimOptions hashes{.groups = 16, .bits = 3, .normalize = false};
    Matrix<std::uint16_t> codes(length, hashes.groups), code(n, hashes.groups);
    Matrix<float> counted(length, width + cross_cols + 1, 1.0f), tables(hashes.groups << hashes.bits, counted.cols()),
        pooled(n, counted.cols());
    for (Index l = 0; l < length; ++l) std::copy_n(both.row(l), both.cols(), counted.row(l));
    const MatrixView<const float> some_planes = hash_planes_;
    sdim_codes<float>(inherent, some_planes, hashes, codes, ws_);
    sdim_tables<float>(counted.view(), codes.view(), hashes, tables, ws_);
    request(out["SDIM"], life, static_cast<double>(tables.rows() * tables.cols() * 4), y, [&] {
      sdim_codes<float>(life.candidates, some_planes, hashes, code, ws_);
      sdim_lookup<float>(code.view(), tables, hashes, pooled, ws_);
      for (Index i = 0; i < n; ++i)
        simd::scale<float>(1 / std::max(pooled(i, pooled.cols() - 1), 1e-6f), pooled.row(i), pooled.row(i), pooled.cols());
      attended_.resize(n, heads * value_width);
      values_.forward(pooled.view().middle_cols(0, width + cross_cols), attended_, ws_);
      out_.forward(attended_, y, ws_);
    });

    const auto cached = cache_.keys(items);
    Score& twin = out["TWIN"];
    request(twin, life, raw + static_cast<double>(length * 4), y,
            [&] { twin_.forward(candidates, history, cached, chosen, y, ws_); });
    twin.found += overlap();
    std::vector<std::int32_t> names;
    for (const std::int32_t r : compressed_.representative) names.push_back(static_cast<std::int32_t>(items[r]));
    const auto few = cache_.keys(names);
    Score& v2 = out["TWIN-V2"];
    request(v2, life, static_cast<double>(compressed_.bytes() + clusters * 4), y,
            [&] { twin_.forward(candidates, compressed_.history(), few, chosen, y, ws_); });
    double hits = 0;  // of the exact top-100, those that are members of what was selected
    std::vector<std::int32_t> cluster_of(at(length));
    for (Index c = 0; c < clusters; ++c)
      for (const std::int32_t m : compressed_.clusters[c]) cluster_of[at(m)] = static_cast<std::int32_t>(c);
    for (Index i = 0; i < n; ++i)
      for (Index j = 0; j < selected; ++j)
        hits += exact(i, j) >= 0 && std::find(chosen.row(i), chosen.row(i) + selected, cluster_of[at(exact(i, j))]) !=
                                        chosen.row(i) + selected
                    ? 1
                    : 0;
    v2.found += hits / static_cast<double>(n);
  }

  /// Of 100 behaviours that attention would keep had it scored them all, how many the search finds: with float keys and with int8 ones.
  void print_consistency(const Life& life) {
    const Index n = life.candidates.rows(), l = life.length();
    const TwinHistory<float> history{.inherent = life.inherent.view(), .cross = life.cross};
    Matrix<float> keys(l, heads * key_width), bias(l, heads), q(n, heads * key_width), scores(n * heads, l), y(n, width);
    twin_.project_keys(life.inherent, keys, ws_);
    twin_.project_queries(life.candidates, q, ws_);
    twin_.score_bias(history, bias, ws_);
    const SearchKeys<float> plain{JaggedView<const float>(keys.view())};
    twin_scores<float>(q, plain, bias, {.heads = heads}, scores, ws_);
    double hits[2] = {};
    for (int with = 0; with < 2; ++with) {
      Matrix<std::int32_t> chosen(n, selected);
      double read = 0;
      // One candidate at a time, as in retrieval: many together are scored by the floats.
      for (Index i = 0; i < n; ++i)
        read += static_cast<double>(twin_.forward(life.candidates.view().middle_rows(i, 1), history,
                                                  with == 0 ? plain : cache_.keys(life.items), chosen.view().middle_rows(i, 1),
                                                  y.view().middle_rows(i, 1), ws_));
      for (Index i = 0; i < n; ++i) {
        std::vector<std::int32_t> want;
        std::vector<std::vector<std::int32_t>> ranks(heads);
        for (Index a = 0; a < heads; ++a) {
          auto& r = ranks[at(a)];
          for (Index j = 0; j < l; ++j) r.push_back(static_cast<std::int32_t>(j));
          const float* const s = scores.row(i * heads + a);
          std::stable_sort(r.begin(), r.end(), [s](std::int32_t x, std::int32_t z) { return s[x] > s[z]; });
        }
        for (std::size_t r = 0; static_cast<Index>(want.size()) < selected; ++r)
          for (Index a = 0; a < heads && static_cast<Index>(want.size()) < selected; ++a)
            if (std::find(want.begin(), want.end(), ranks[at(a)][r]) == want.end()) want.push_back(ranks[at(a)][r]);
        for (Index j = 0; j < selected; ++j)
          hits[with] += std::find(want.begin(), want.end(), chosen(i, j)) != want.end() ? 1 : 0;
      }
      std::printf("%s %.2f of 100 (keys read as floats: %.1f %%)\n",
                  with == 0 ? "Consistency of the two stages, L = 10^4: float keys"
                            : "                                         int8 keys",
                  hits[with] / static_cast<double>(n), 100 * read / static_cast<double>(n * heads * l));
    }
  }

 private:
  /// Times what `interest` and the network take of the processor, which other programs do not change much; the second time counts,
  /// when buffers are there.
  template <class F>
  void request(Score& s, const Life& life, double bytes, Matrix<float>& y, F&& interest) {
    const Index n = life.candidates.rows();
    x_.resize(n, 3 * width);
    logits_.resize(n, 1);
    std::clock_t taken = 0;
    for (int repeat = 0; repeat < 2; ++repeat) {
      const std::clock_t start = std::clock();
      interest();
      features(y, life.candidates, x_);
      head_.forward(x_, logits_, ws_);
      taken = std::clock() - start;
    }
    s.microseconds.push_back(1e6 * static_cast<double>(taken) / CLOCKS_PER_SEC);
    s.bytes += bytes;
    s.scores.insert(s.scores.end(), logits_.data(), logits_.data() + n);
  }

  const World& world_;
  FrozenTwin<float> twin_;
  decltype(freeze(std::declval<const Mlp<float>&>())) head_;
  FrozenDense<float> values_, out_;
  ProjectedKeyCache<std::int8_t> cache_;
  CompressedHistory<float> compressed_;
  Matrix<float> x_, logits_, query_, attended_, planes_, hash_planes_;
  Workspace ws_;
};

double quantile(std::vector<double> v, double q) {
  std::sort(v.begin(), v.end());
  return v[std::min(v.size() - 1, static_cast<std::size_t>(q * static_cast<double>(v.size())))];
}

const std::vector<std::string> ways{"full", "latest", "SIM hard", "SIM soft", "ETA", "SDIM", "TWIN", "TWIN-V2"};

/// What came of one world: per length and way AUC, GAUC, p50, found.
struct Outcome {
  std::map<std::pair<Index, std::string>, double> gauc, p50, found;
};

Outcome run(const Config& c, const std::vector<Index>& lengths, std::uint64_t seed) {
  std::printf("World %llu: %td items, %td users to learn from with %td behaviours each\n", static_cast<unsigned long long>(seed),
              c.items, c.train_users, c.train_length);
  const World world(c, seed);
  const Model model = train(c, world, seed);
  Serving serving(model, world);
  std::vector<std::map<std::string, Score>> scores(lengths.size());
  std::vector<std::uint8_t> labels;
  std::vector<std::int32_t> offsets{0};
  for (Index u = 0; u < c.users; ++u) {
    const Life life = world.life(u, lengths.back(), c.candidates, seed);
    for (Index i = 0; i < c.candidates; ++i) labels.push_back(life.labels(i, 0) > 0 ? 1 : 0);
    offsets.push_back(static_cast<std::int32_t>(labels.size()));
    for (std::size_t i = 0; i < lengths.size(); ++i) serving.serve(life, lengths[i], scores[i]);
  }
  serving.print_consistency(world.life(0, 10000, 20, seed));
  std::printf("One request: %td candidates. Projected keys of all items, shared by all users: %.1f MB\n", c.candidates,
              static_cast<double>(serving.cache_bytes()) / 1e6);
  std::printf("of top-100: how many of the behaviours that full attention weighs most are looked at; us: of processor time\n");
  std::printf("%9s  %-8s  %7s  %7s  %12s  %10s  %9s  %9s\n", "L", "way", "AUC", "GAUC", "of top-100", "MB a user", "p50 us",
              "p99 us");
  Outcome outcome;
  Workspace ws;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    for (const std::string& way : ways) {
      const Score& s = scores[i][way];
      const auto key = std::pair{lengths[i], way};
      const double users = static_cast<double>(c.users);
      outcome.gauc[key] = gauc<float>(s.scores, labels, offsets, {}, ws).value;
      outcome.p50[key] = quantile(s.microseconds, 0.5);
      outcome.found[key] = way == "full" ? 100 : s.found / users;
      char found[32] = "-";
      if (way == "full") std::snprintf(found, sizeof found, "all");
      if (s.found > 0) std::snprintf(found, sizeof found, "%.1f", s.found / users);
      std::printf("%9td  %-8s  %7.4f  %7.4f  %12s  %10.2f  %9.0f  %9.0f\n", lengths[i], way.c_str(),
                  auc<float>(s.scores, labels, ws).value, outcome.gauc[key], found, s.bytes / users / 1e6, outcome.p50[key],
                  quantile(s.microseconds, 0.99));
    }
  }
  return outcome;
}

void draw(const std::string& file, const std::vector<Index>& lengths, const Outcome& o) {
  SvgChart latency{.title = "A request of 100 candidates over a life-long history",
                   .x_label = "behaviours",
                   .y_label = "microseconds (p50)",
                   .log_x = true,
                   .log_y = true};
  SvgChart recall{
      .title = "Behaviours of the exact top-100 that are looked at", .x_label = "behaviours", .y_label = "of 100", .log_x = true};
  for (const std::string& way : ways) {
    SvgSeries time{.name = way}, hit{.name = way};
    for (const Index l : lengths) {
      const auto key = std::pair{l, way};
      time.x.push_back(static_cast<double>(l));
      time.y.push_back(o.p50.at(key));
      hit.x.push_back(static_cast<double>(l));
      hit.y.push_back(o.found.at(key));
    }
    latency.series.push_back(time);
    if (way != "latest" && way != "SDIM") recall.series.push_back(hit);
  }
  write_svg(file, latency);
  const std::size_t dot = file.rfind('.');
  const std::string second = (dot == std::string::npos ? file : file.substr(0, dot)) + "_recall.svg";
  write_svg(second, recall);
  std::printf("Drawn: %s, %s\n", file.c_str(), second.c_str());
}

}  // namespace

int main(int argc, char** argv) try {
  Config c;
  Cli cli("lifelong_interest",
          "Serves one click model over life-long histories in several ways: full attention, SIM, ETA, SDIM, TWIN, TWIN-V2.");
  cli.option("seeds", c.seeds, "worlds to compare the ways in", "", 1, 100);
  cli.option("seed", c.seed, "the first of them", "", 0);
  cli.option("users", c.users, "users served", "", 1, 10000);
  cli.option("candidates", c.candidates, "of a request", "", 2, 10000);
  cli.option("train-users", c.train_users, "users to learn from", "", 8, 100000);
  cli.option("train-length", c.train_length, "behaviours of each of them", "", 1, 100000);
  cli.option("epochs", c.epochs, "passes over them", "", 1, 1000);
  cli.option("items", c.items, "in the catalogue", "", 1000, 10000000);
  cli.option("longest", c.longest, "history: 1000, then ten times as long up to this", "behaviours", 1000, 10000000);
  cli.option("seasons", c.seasons, "of a year: a category is shown in one of them only, but asked for in all; 0: always", "", 0,
             12);
  cli.option("plot", c.plot, "draws latency and recall as L grows", "file.svg");
  cli.refuse("data", "none of the sets in docs/data.md has histories of 10^4 behaviours");
  cli.parse(argc, argv);
  std::vector<Index> lengths;
  for (Index l = 1000; l <= c.longest; l *= 10) lengths.push_back(l);
  std::vector<std::uint64_t> seeds;
  for (Index s = 0; s < c.seeds; ++s) seeds.push_back(static_cast<std::uint64_t>(c.seed + s));
  std::vector<Outcome> outcomes;
  for (const std::uint64_t seed : seeds) outcomes.push_back(run(c, lengths, seed));
  if (!c.plot.empty()) draw(c.plot, lengths, outcomes[0]);
  if (c.seeds == 1) return 0;
  for (const Index l : lengths) {
    SeedTable table("GAUC, L = " + std::to_string(l), ways, seeds);
    for (Index s = 0; s < c.seeds; ++s)
      for (std::size_t w = 0; w < ways.size(); ++w) table.set(static_cast<Index>(w), s, outcomes[at(s)].gauc.at({l, ways[w]}));
    std::printf("\n");
    table.print();
  }
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "lifelong_interest: %s\n", error.what());
  return 1;
}
