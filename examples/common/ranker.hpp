/// @file   examples/common/ranker.hpp
/// @brief  A multi-task ranking model out of recops layers: embeddings, the user's interest in each candidate, MMoE, towers.
///
///     event      = [ item | category | time gap and feedback ]       a row of the history
///     candidate  = [ item | category | hour ]                        a row to be ranked
///     interest   = attention(candidate over the user's events)       or a mean of the events, or nothing: the baselines
///     x          = [ candidate | interest | candidate * interest | context ]
///     logit_t    = tower_t( MMoE_t(x) ) + wide_t(context)            what is known of an item without knowing the user
///                                                                    (Wide & Deep, arXiv 1606.07792)
///
/// Training and serving share the functions; `FrozenRanker` is what a service holds.
#pragma once
#include <algorithm>
#include <array>
#include <chrono>
#include <recops/gating/mmoe.hpp>
#include <recops/nn/embedding_bag.hpp>
#include <recops/nn/loss.hpp>
#include <recops/nn/multihead_attention.hpp>
#include <vector>

namespace examples {

using recops::Index;
using recops::IndexView;
using recops::JaggedView;
using recops::Matrix;
using recops::MatrixView;
using recops::Workspace;

/// How the history becomes the user's interest in a candidate.
enum class InterestFrom { attention, mean, nothing };

/// Sizes of a `Ranker`.
struct RankerOptions {
  Index items = 0, categories = 0;  ///< number of ids
  Index context = 0;                ///< width of the dense context features
  Index tasks = 1;                  ///< labels predicted
  InterestFrom interest = InterestFrom::attention;
  Index item_width = 32, category_width = 16, time_width = 16;  ///< embedding widths; together a multiple of `heads`
  Index heads = 4;                                              ///< of the attention
  Index experts = 4, expert_width = 48;                         ///< of the mixture
  double embedding_deviation = 0.3;        ///< initial standard deviation of embeddings; small where most ids are rare
  std::vector<double> base_rates = {};     ///< [tasks] how often each label is set: where the logits begin
  bool context_begins_with_rates = false;  ///< its first `tasks` columns are the item's rates so far, as logs relative
                                           ///< to the base rate: the wide part begins by believing them
};

/// What an event was, besides its item: how long ago, in powers of two hours, and what came of it.
inline constexpr Index gap_buckets = 16, feedback_levels = 3;
inline std::int32_t event_code(float hours_ago, bool long_view, bool like) {
  std::int32_t bucket = 0;
  for (float limit = 0.25f; hours_ago > limit && bucket < gap_buckets - 1; limit *= 2) ++bucket;
  return bucket + static_cast<std::int32_t>(gap_buckets) * (like ? 2 : long_view ? 1 : 0);
}

/// Requests to score together: each has a history and a list of candidates.
struct RankerBatch {
  std::vector<std::int32_t> event_item, event_category, event_code, event_offsets{0};  ///< jagged histories
  std::vector<std::int32_t> item, category, hour, offsets{0};                          ///< jagged candidates
  std::vector<float> context;                                                          ///< [candidates, context]
  std::vector<float> labels;                                                           ///< [candidates, tasks], for training

  Index candidates() const { return static_cast<Index>(item.size()); }
  Index events() const { return static_cast<Index>(event_item.size()); }
  void clear() {
    for (auto* v : {&event_item, &event_category, &event_code, &item, &category, &hour}) v->clear();
    event_offsets.assign(1, 0);
    offsets.assign(1, 0);
    context.clear();
    labels.clear();
  }
  /// Ends a request: what was appended since the last call belongs to it.
  void close() {
    event_offsets.push_back(static_cast<std::int32_t>(event_item.size()));
    offsets.push_back(static_cast<std::int32_t>(item.size()));
  }
};

/// See the head of this file.
struct Ranker {
  RankerOptions options;
  recops::EmbeddingBag<float> item, category, event, hour;
  recops::MultiheadAttention<float> attention;
  recops::Linear<float> pooling;  ///< the mean of the events, projected (InterestFrom::mean)
  recops::Mmoe<float> mmoe;
  std::vector<recops::Linear<float>> towers;
  recops::Linear<float> wide;  ///< context to logits

  Ranker() = default;
  Ranker(const RankerOptions& o, std::uint64_t seed) : options(o) {
    recops::Random random(seed, 0x72616e6bull);
    item = {o.items, o.item_width, o.embedding_deviation, random};
    category = {o.categories, o.category_width, o.embedding_deviation, random};
    hour = {24, o.time_width, o.embedding_deviation, random};
    if (o.interest != InterestFrom::nothing) event = {gap_buckets * feedback_levels, o.time_width, o.embedding_deviation, random};
    if (o.interest == InterestFrom::attention) attention = {width(), o.heads, random};
    if (o.interest == InterestFrom::mean) pooling = {width(), width(), random};
    mmoe = recops::Mmoe<float>({.inputs = inputs(), .experts = o.experts, .outputs = o.expert_width, .tasks = o.tasks}, random);
    for (Index t = 0; t < o.tasks; ++t) towers.emplace_back(o.expert_width, 1, random);
    wide = {o.context, o.tasks, random};
    wide.weight.fill(0);
    wide.bias.fill(0);
    for (Index t = 0; t < o.tasks && o.context_begins_with_rates; ++t) wide.weight(t, t) = 1;
    for (std::size_t t = 0; t < o.base_rates.size(); ++t)
      wide.bias[static_cast<Index>(t)] = static_cast<float>(std::log(o.base_rates[t] / (1 - o.base_rates[t])));
  }

  static constexpr auto fields() {
    using namespace recops;
    return std::tuple{layer("item", &Ranker::item), layer("category", &Ranker::category),   layer("event", &Ranker::event),
                      layer("hour", &Ranker::hour), layer("attention", &Ranker::attention), layer("pooling", &Ranker::pooling),
                      layer("mmoe", &Ranker::mmoe), layers("towers", &Ranker::towers),      layer("wide", &Ranker::wide)};
  }

  /// Columns of a candidate, an event and an interest.
  Index width() const { return options.item_width + options.category_width + options.time_width; }
  /// Columns of x.
  Index inputs() const { return (options.interest == InterestFrom::nothing ? 1 : 3) * width() + options.context; }

  /// What backward needs, reused step after step.
  struct Saved {
    Matrix<float> event, mean, x, mixed;
    recops::MultiheadAttention<float>::Saved attention;
    recops::Mmoe<float>::Saved mmoe;
  };

  /// Training forward: logits `[candidates, tasks]`.
  void forward(const RankerBatch& batch, MatrixView<float> logits, Saved& s, const recops::Step& step, Workspace& ws) const {
    s.x.resize(batch.candidates(), inputs());
    embed_candidates(batch, s.x);
    const Index w = width();
    if (options.interest != InterestFrom::nothing) {
      s.event.resize(batch.events(), w);
      embed_events(batch, s.event);
      const MatrixView<float> candidate = s.x.view().middle_cols(0, w), interest = s.x.view().middle_cols(w, w);
      if (options.interest == InterestFrom::attention) {
        attention.forward(queries(batch, candidate), keys(batch, s.event), interest, s.attention, step.child(0), ws);
      } else {
        s.mean.resize(batch.candidates(), w);
        mean_of_events(batch, s.event, s.mean);
        pooling.forward(s.mean, interest, ws);
      }
      multiply(s.x, w);
    }
    s.mixed.resize(batch.candidates(), options.tasks * options.expert_width);
    mmoe.forward(s.x, s.mixed, s.mmoe, step.child(1), ws);
    for (Index t = 0; t < options.tasks; ++t)
      towers[static_cast<std::size_t>(t)].forward(task(s.mixed, t), logits.middle_cols(t, 1), ws);
    const auto mark = ws.mark();
    const MatrixView<float> known = ws.matrix<float>(batch.candidates(), options.tasks);
    wide.forward(context(s.x), known, ws);
    add(known, logits);
  }

  /// Adds the gradient of everything the batch touched.
  void backward(const RankerBatch& batch, MatrixView<const float> dlogits, const Saved& s, Ranker& gradient,
                Workspace& ws) const {
    const auto mark = ws.mark();
    const Index n = batch.candidates(), w = width();
    const MatrixView<float> dmixed = zeros(ws, n, s.mixed.cols()), dx = zeros(ws, n, inputs());
    for (Index t = 0; t < options.tasks; ++t) {
      const auto i = static_cast<std::size_t>(t);
      towers[i].backward(task(s.mixed, t), dlogits.middle_cols(t, 1), {},
                         dmixed.middle_cols(t * options.expert_width, options.expert_width), gradient.towers[i], ws);
    }
    wide.backward(context(s.x), dlogits, {}, {}, gradient.wide, ws);
    mmoe.backward(s.x, dmixed, s.mmoe, dx, gradient.mmoe, ws);
    const MatrixView<float> dcandidate = dx.middle_cols(0, w);
    if (options.interest != InterestFrom::nothing) {
      for (Index b = 0; b < n; ++b) {  // x[2w ..] = candidate * interest
        const float *x = s.x.row(b), *product = dx.row(b) + 2 * w;
        float* d = dx.row(b);
        for (Index j = 0; j < w; ++j) {
          d[j] += product[j] * x[w + j];
          d[w + j] += product[j] * x[j];
        }
      }
      const MatrixView<float> dinterest = dx.middle_cols(w, w), devent = zeros(ws, batch.events(), w);
      if (options.interest == InterestFrom::attention) {
        attention.backward(queries(batch, s.x.view().middle_cols(0, w)), keys(batch, s.event), dinterest, s.attention, dcandidate,
                           devent, gradient.attention, ws);
      } else {
        const MatrixView<float> dmean = zeros(ws, n, w);
        pooling.backward(s.mean, dinterest, {}, dmean, gradient.pooling, ws);
        mean_of_events_backward(batch, dmean, devent);
      }
      item.backward(batch.event_item, {}, columns(devent, 0), gradient.item, ws);
      category.backward(batch.event_category, {}, columns(devent, 1), gradient.category, ws);
      event.backward(batch.event_code, {}, columns(devent, 2), gradient.event, ws);
    }
    item.backward(batch.item, {}, columns(dcandidate, 0), gradient.item, ws);
    category.backward(batch.category, {}, columns(dcandidate, 1), gradient.category, ws);
    hour.backward(batch.hour, {}, columns(dcandidate, 2), gradient.hour, ws);
  }

  void embed_events(const RankerBatch& batch, MatrixView<float> rows) const {
    item.forward(batch.event_item, {}, columns(rows, 0));
    category.forward(batch.event_category, {}, columns(rows, 1));
    event.forward(batch.event_code, {}, columns(rows, 2));
  }
  /// Writes the candidate's columns of x and its context.
  void embed_candidates(const RankerBatch& batch, MatrixView<float> x) const {
    item.forward(batch.item, {}, columns(x, 0));
    category.forward(batch.category, {}, columns(x, 1));
    hour.forward(batch.hour, {}, columns(x, 2));
    const Index c = options.context;
    for (Index b = 0; b < x.rows(); ++b) std::copy_n(batch.context.data() + b * c, c, x.row(b) + x.cols() - c);
  }
  MatrixView<const float> context(MatrixView<const float> x) const {
    return x.middle_cols(x.cols() - options.context, options.context);
  }
  static void add(MatrixView<const float> from, MatrixView<float> to) {
    for (Index b = 0; b < to.rows(); ++b) recops::simd::add(from.row(b), to.row(b), to.cols());
  }
  static JaggedView<const float> queries(const RankerBatch& batch, MatrixView<const float> candidate) {
    return {candidate, batch.offsets};
  }
  static JaggedView<const float> keys(const RankerBatch& batch, MatrixView<const float> rows) {
    return {rows, batch.event_offsets};
  }
  /// Part 0, 1 or 2 of an embedded row: item, category, time.
  template <class T>
  MatrixView<T> columns(MatrixView<T> m, int part) const {
    const Index widths[] = {options.item_width, options.category_width, options.time_width};
    return m.middle_cols(part == 0 ? 0 : part == 1 ? widths[0] : widths[0] + widths[1], widths[part]);
  }
  MatrixView<const float> task(MatrixView<const float> mixed, Index t) const {
    return mixed.middle_cols(t * options.expert_width, options.expert_width);
  }
  /// x[2w ..] = x[.. w] * x[w .. 2w]
  static void multiply(MatrixView<float> x, Index w) {
    for (Index b = 0; b < x.rows(); ++b) {
      float* row = x.row(b);
      for (Index j = 0; j < w; ++j) row[2 * w + j] = row[j] * row[w + j];
    }
  }
  /// Each candidate gets the mean of its request's events, zeros if there are none.
  static void mean_of_events(const RankerBatch& batch, MatrixView<const float> rows, MatrixView<float> mean) {
    for (std::size_t r = 0; r + 1 < batch.offsets.size(); ++r) {
      const Index first = batch.offsets[r], last = batch.offsets[r + 1],
                  events = batch.event_offsets[r + 1] - batch.event_offsets[r];
      if (first == last) continue;
      std::fill_n(mean.row(first), mean.cols(), 0.0f);
      for (Index l = batch.event_offsets[r]; l < batch.event_offsets[r + 1]; ++l)
        recops::simd::axpy(1.0f / static_cast<float>(events), rows.row(l), mean.row(first), mean.cols());
      for (Index b = first + 1; b < last; ++b) std::copy_n(mean.row(first), mean.cols(), mean.row(b));
    }
  }
  static void mean_of_events_backward(const RankerBatch& batch, MatrixView<const float> dmean, MatrixView<float> devent) {
    for (std::size_t r = 0; r + 1 < batch.offsets.size(); ++r) {
      const Index events = batch.event_offsets[r + 1] - batch.event_offsets[r];
      for (Index l = batch.event_offsets[r]; l < batch.event_offsets[r + 1]; ++l)
        for (Index b = batch.offsets[r]; b < batch.offsets[r + 1]; ++b)
          recops::simd::axpy(1.0f / static_cast<float>(events), dmean.row(b), devent.row(l), dmean.cols());
    }
  }
  static MatrixView<float> zeros(Workspace& ws, Index rows, Index cols) {
    const MatrixView<float> m = ws.matrix<float>(rows, cols);
    std::fill_n(m.data(), rows * cols, 0.0f);
    return m;
  }
};

/// What a service holds: packed weights, immutable, shared by threads. Embeddings are read from the ranker, which must outlive it.
class FrozenRanker {
 public:
  explicit FrozenRanker(const Ranker& ranker)
      : ranker_(&ranker), pooling_(freeze(ranker.pooling)), wide_(freeze(ranker.wide)), mmoe_(freeze(ranker.mmoe)) {
    if (ranker.options.interest == InterestFrom::attention) attention_ = freeze(ranker.attention);
    for (const auto& tower : ranker.towers) towers_.push_back(freeze(tower));
  }

  /// Where the time of a request went, microseconds.
  struct Stages {
    double embed = 0, interest = 0, mixture = 0;
  };

  /// Logits `[candidates, tasks]`; `stages`, if given, is added to.
  void forward(const RankerBatch& batch, MatrixView<float> logits, Workspace& ws, Stages* stages = nullptr) const {
    using Clock = std::chrono::steady_clock;
    const auto microseconds = [](Clock::time_point a, Clock::time_point b) {
      return std::chrono::duration<double, std::micro>(b - a).count();
    };
    const auto mark = ws.mark();
    const Ranker& r = *ranker_;
    const Index n = batch.candidates(), w = r.width();
    const auto start = Clock::now();
    const MatrixView<float> x = ws.matrix<float>(n, r.inputs());
    r.embed_candidates(batch, x);
    const MatrixView<float> event = ws.matrix<float>(r.options.interest == InterestFrom::nothing ? 0 : batch.events(), w);
    if (r.options.interest != InterestFrom::nothing) r.embed_events(batch, event);
    const auto embedded = Clock::now();
    if (r.options.interest != InterestFrom::nothing) {
      const MatrixView<float> interest = x.middle_cols(w, w);
      if (r.options.interest == InterestFrom::attention) {
        attention_.forward(Ranker::queries(batch, x.middle_cols(0, w)), Ranker::keys(batch, event), interest, ws);
      } else {
        const MatrixView<float> mean = ws.matrix<float>(n, w);
        Ranker::mean_of_events(batch, event, mean);
        pooling_.forward(mean, interest, ws);
      }
      Ranker::multiply(x, w);
    }
    const auto interested = Clock::now();
    const MatrixView<float> mixed = ws.matrix<float>(n, r.options.tasks * r.options.expert_width);
    mmoe_.forward(x, mixed, ws);
    for (Index t = 0; t < r.options.tasks; ++t)
      towers_[static_cast<std::size_t>(t)].forward(r.task(mixed, t), logits.middle_cols(t, 1), ws);
    const MatrixView<float> known = ws.matrix<float>(n, r.options.tasks);
    wide_.forward(r.context(x), known, ws);
    Ranker::add(known, logits);
    if (stages) {
      stages->embed += microseconds(start, embedded);
      stages->interest += microseconds(embedded, interested);
      stages->mixture += microseconds(interested, Clock::now());
    }
  }
  const Ranker& ranker() const { return *ranker_; }

 private:
  const Ranker* ranker_;
  recops::FrozenMultiheadAttention<float> attention_;
  recops::FrozenDense<float> pooling_, wide_;
  recops::FrozenMmoe<float> mmoe_;
  std::vector<recops::FrozenDense<float>> towers_;
};

}  // namespace examples
