/// @file   recops/attention/interest_memory.hpp
/// @brief  A bank of M^2 interests of which a user's query reads the best k exactly, at the cost of 2 M scores (ELASTIC's memory).
///
///     q = x W_h^T = [q1 | q2]      s1 = C1_h q1,  s2 = C2_h q2      score of slot i M + j:  s1_i + s2_j
///     slots_h = the k / heads slots of highest score       w = softmax(scores / temperature)
///     slots mode   experts_r = k_h w_r bank[slot_r]        k rows per user, what dispatcher attention begins with; the mean gate is 1
///     sum mode     y = sum_r w_r bank[slot_r]               one row per user: a memory layer
///
/// Exact: the best k of M^2 sums are among the sums of the best k of each half, so that retrieval equals the flat search over all
/// M^2 slots, to the slot: by the same float sums s1_i + s2_j, equal ones by the lowest slot. A bank of 2^20 interests has M = 1024.
/// Gradients reach the bank and the sub-keys of the chosen slots only: all three are tables that are updated by rows.
///
/// Shapes      x [B, Dx]: one row per user, e.g. the mean of a sequence (`mean_of_tokens`); weight [heads Dq, Dx];
///             keys1, keys2 [heads M, Dq / 2];
///             bank [M^2, D], shared by the heads.
/// NaN         A NaN in a user's scores ranks behind every number; it stays with the user.
/// Cost        2 Dx Dq heads + 2 M Dq heads + k D flops a user; choosing walks 2 M scores and about k log k pairs.
/// Errors      `Error` for shapes and options that do not fit, slots out of range; outputs untouched.
/// Source      arXiv 2408.09380 has a sparse memory whose retrieval is not described; product keys are Lample et al., arXiv 1907.05242,
///             their use here, gates and the balance loss are our reconstruction.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <recops/nn/embedding_bag.hpp>
#include <recops/nn/linear.hpp>
#include <recops/simd/softmax.hpp>
#include <recops/simd/top_k.hpp>

namespace recops {

/// What a memory gives.
enum class MemoryMode : unsigned char {
  slots,  ///< the chosen interests, each times its gate: [B k, D]
  sum     ///< their mean by the gates, summed over heads: [B, D]
};

/// Options of `InterestMemory`.
struct InterestMemoryOptions {
  Index sub_keys = 1024;   ///< M; the bank has M^2 interests
  Index width = 64;        ///< D of an interest
  Index input = 64;        ///< Dx
  Index query = 64;        ///< Dq, even
  Index experts = 16;      ///< k, a multiple of heads; k / heads <= M^2
  Index heads = 1;         ///< queries with keys of their own
  double temperature = 1;  ///< of the gates, 1e-30 or more
  MemoryMode mode = MemoryMode::slots;
};

inline namespace RECOPS_ABI {

/// The k best of the rows x cols sums a_i + b_j by looking at all of them: what `product_top_k` equals.
template <Real T>
void flat_top_k(const T* a, Index rows, const T* b, Index cols, Index k, T* sums, std::int32_t* slots, Workspace& ws) {
  const auto mark = ws.mark();
  T* const row = ws.take<T>(cols);
  simd::TopK<T> best(k, Order::descending, ws);
  for (Index i = 0; i < rows; ++i) {
    for (Index j = 0; j < cols; ++j) row[j] = a[i] + b[j];
    best.add(row, cols, i * cols);
  }
  best.finish(sums, slots);
}

/// The k best of the rows x cols sums a_i + b_j, best first: slots i cols + j and their sums, as they round in T; equal sums by the lowest
/// slot, NaN last. k <= rows cols < 2^31. To the slot what `flat_top_k` gives, at the cost of the k best of each half: the pair of ranks
/// (p, r) has (p + 1) (r + 1) pairs that are as good, so those with (p + 1) (r + 1) > k can only tie with the last. Numbers that are not
/// finite have no such order: then all sums are looked at.
template <Real T>
void product_top_k(const T* a, Index rows, const T* b, Index cols, Index k, T* sums, std::int32_t* slots, Workspace& ws) {
  assert(0 <= k && k <= rows * cols);
  if (k == 0) return;
  const T largest = std::numeric_limits<T>::max();
  const auto finite = [largest](const T* x, Index n) {
    bool all = true;
    for (Index i = 0; i < n; ++i) all &= std::abs(x[i]) <= largest;
    return all;
  };
  if (!finite(a, rows) || !finite(b, cols)) return flat_top_k<T>(a, rows, b, cols, k, sums, slots, ws);
  const auto mark = ws.mark();
  // One more than k of each, to see whether what was left out could tie.
  const Index na = std::min(k + 1, rows), nb = std::min(k + 1, cols);
  T *const best_a = ws.take<T>(na), *const best_b = ws.take<T>(nb);
  auto *const at_a = ws.take<std::int32_t>(na), *const at_b = ws.take<std::int32_t>(nb);
  simd::top_k<T>(a, rows, na, Order::descending, best_a, at_a, ws);
  simd::top_k<T>(b, cols, nb, Order::descending, best_b, at_b, ws);
  struct Pair {
    T sum;
    std::int32_t slot;
  };
  const auto before = [](const Pair& x, const Pair& y) { return x.sum != y.sum ? x.sum > y.sum : x.slot < y.slot; };
  Index room = 0, count = 0;
  for (Index p = 0; p < na; ++p) room += std::min(nb, k / (p + 1));
  Pair* const pairs = ws.take<Pair>(std::max(room, k) + k);
  for (Index p = 0; p < na; ++p)
    for (Index r = 0; r < std::min(nb, k / (p + 1)); ++r)
      pairs[count++] = {best_a[p] + best_b[r], static_cast<std::int32_t>(at_a[p] * cols + at_b[r])};
  std::nth_element(pairs, pairs + k - 1, pairs + count, before);
  // Sums above the last one are all here. Those equal to it may not be: the lowest of their slots fill what is left.
  const T last = pairs[k - 1].sum;
  Index kept = 0;
  for (Index i = 0; i < k; ++i)
    if (pairs[i].sum > last) pairs[kept++] = pairs[i];
  const Index wanted = k - kept;
  if ((na == rows || best_a[na - 1] + best_b[0] < last) && (nb == cols || best_a[0] + best_b[nb - 1] < last)) {
    // All within the lists. Each row of the lists has them side by side; the lowest `wanted` stay, sorted.
    Pair* const ties = pairs + kept;
    Index found = 0;
    for (Index p = 0; p < na; ++p) {
      for (Index r = 0; r < nb && best_a[p] + best_b[r] >= last; ++r) {
        if (best_a[p] + best_b[r] > last) continue;
        const Pair tie{last, static_cast<std::int32_t>(at_a[p] * cols + at_b[r])};
        if (found == wanted && ties[found - 1].slot < tie.slot) continue;
        Index at = found < wanted ? found++ : found - 1;
        for (; at > 0 && ties[at - 1].slot > tie.slot; --at) ties[at] = ties[at - 1];
        ties[at] = tie;
      }
    }
    kept += found;
  } else {
    // Slots in order: fewer than k rows have a sum above `last`, every other one that is walked has a tie.
    for (Index i = 0; i < rows && kept < k; ++i) {
      if (a[i] + best_b[0] < last) continue;
      for (Index j = 0; j < cols && kept < k; ++j)
        if (a[i] + b[j] == last) pairs[kept++] = {last, static_cast<std::int32_t>(i * cols + j)};
    }
  }
  assert(kept == k);
  std::sort(pairs, pairs + k, before);
  for (Index i = 0; i < k; ++i) {
    sums[i] = pairs[i].sum;
    slots[i] = pairs[i].slot;
  }
}

/// out `[B, D]`: the mean of the rows of each sequence that `mask` `[total]` shows (empty: all); zeros where there are none. Summed in
/// blocks of 512 rows, and these in double.
template <Real T>
void mean_of_tokens(JaggedView<const T> x, VectorView<const std::uint8_t> mask, MatrixView<T> out) {
  constexpr const char* name = "mean_of_tokens";
  check_jagged(name, "x", x, any_size, any_size);
  if (!mask.empty()) check_size(name, "mask", mask, x.values().rows());
  check_shape(name, "out", out, x.size(), x.cols());
  constexpr Index block = 512, strip = 64;  // of rows, of columns
  for (Index b = 0; b < x.size(); ++b) {
    const Index end = x.begin(b) + x.length(b);
    Index count = x.length(b);
    for (Index i = x.begin(b); i < end && !mask.empty(); ++i) count -= mask[i] == 0 ? 1 : 0;
    for (Index first = 0; first < x.cols(); first += strip) {
      const Index cols = std::min(strip, x.cols() - first);
      T part[strip];
      double total[strip] = {};
      for (Index start = x.begin(b); start < end; start += block) {
        std::fill_n(part, cols, T(0));
        for (Index i = start; i < std::min(end, start + block); ++i)
          if (mask.empty() || mask[i] != 0) simd::add<T>(x.values().row(i) + first, part, cols);
        for (Index c = 0; c < cols; ++c) total[c] += static_cast<double>(part[c]);
      }
      for (Index c = 0; c < cols; ++c) out(b, first + c) = static_cast<T>(total[c]);
    }
    if (count > 0) simd::scale<T>(T(1) / static_cast<T>(count), out.row(b), out.row(b), x.cols());
  }
}
/// Adds to dx.
template <Real T>
void mean_of_tokens_backward(JaggedView<const T> x, VectorView<const std::uint8_t> mask, MatrixView<const T> dout,
                             MatrixView<T> dx) {
  constexpr const char* name = "mean_of_tokens_backward";
  check_jagged(name, "x", x, any_size, any_size);
  if (!mask.empty()) check_size(name, "mask", mask, x.values().rows());
  check_shape(name, "dout", dout, x.size(), x.cols());
  check_shape(name, "dx", dx, x.values().rows(), x.cols());
  const auto shown = [&](Index i) { return mask.empty() || mask[i] != 0; };
  for (Index b = 0; b < x.size(); ++b) {
    Index count = 0;
    for (Index i = x.begin(b); i < x.begin(b) + x.length(b); ++i) count += shown(i);
    for (Index i = x.begin(b); i < x.begin(b) + x.length(b); ++i)
      if (shown(i)) simd::axpy<T>(T(1) / static_cast<T>(count), dout.row(b), dx.row(i), x.cols());
  }
}

/// How much of a bank lives: counts what is read.
class MemoryUsage {
 public:
  MemoryUsage() = default;
  explicit MemoryUsage(Index slots) : counts_(checked_size("MemoryUsage", "slots", slots), 0) {}
  /// Counts the slots of some retrievals; `Error` for one that is not in the bank.
  void add(VectorView<const std::int32_t> slots) {
    check_indices("MemoryUsage", "slots", slots, counts_.size());
    for (const std::int32_t s : slots) ++counts_[s];
    reads_ += slots.size();
  }
  Index reads() const { return reads_; }
  const Vector<std::int64_t>& counts() const { return counts_; }
  /// Slots that were read at least once, as a share of the bank.
  double live() const {
    Index used = 0;
    for (const std::int64_t c : counts_) used += c > 0;
    return counts_.empty() ? 0 : static_cast<double>(used) / static_cast<double>(counts_.size());
  }
  /// e to the entropy of the reads: as many slots, used evenly, would be as diverse. 0 before the first read.
  double perplexity() const {
    double entropy = 0;
    for (const std::int64_t c : counts_) {
      const double p = static_cast<double>(c) / static_cast<double>(reads_);
      if (c > 0) entropy -= p * std::log(p);
    }
    return reads_ > 0 ? std::exp(entropy) : 0;
  }

 private:
  Vector<std::int64_t> counts_;
  Index reads_ = 0;
};

namespace detail {

/// What the memory and its serving form share.
struct MemoryShape {
  InterestMemoryOptions o;
  Index per_head() const { return o.experts / o.heads; }
  Index slots() const { return o.sub_keys * o.sub_keys; }
  Index half() const { return o.query / 2; }
  Index output_rows(Index users) const { return o.mode == MemoryMode::slots ? users * o.experts : users; }
  void check() const {
    constexpr const char* name = "InterestMemory";
    const auto number = [](Index n) { return static_cast<double>(n); };
    check_option(name, "sub_keys", o.sub_keys >= 1 && o.sub_keys <= 46340, "1 to 46340, so that slots are int32",
                 number(o.sub_keys));
    check_option(name, "width", o.width >= 1, "width >= 1", number(o.width));
    check_option(name, "input", o.input >= 1, "input >= 1", number(o.input));
    check_option(name, "query", o.query >= 2 && o.query % 2 == 0, "an even number, 2 or more", number(o.query));
    check_option(name, "heads", o.heads >= 1, "heads >= 1", number(o.heads));
    check_option(name, "experts", o.experts >= 1 && o.experts % o.heads == 0 && per_head() <= slots(),
                 "a multiple of heads, at most sub_keys^2 for each", number(o.experts));
    check_option(name, "temperature", o.temperature >= 1e-30 && o.temperature - o.temperature == 0,
                 "a positive number, 1e-30 or more, so that float holds its inverse", o.temperature);
  }
  /// Chooses slots and gates [B, k] by the scores of all heads, `score(h, half, q, s)` [B, M] each.
  template <class T, class Score>
  void choose(MatrixView<const T> q, MatrixView<std::int32_t> slots_, MatrixView<T> gates, Workspace& ws, Score&& score) const {
    const auto mark = ws.mark();
    const Index users = q.rows(), m = o.sub_keys, n = per_head();
    const MatrixView<T> s1 = ws.matrix<T>(users, m), s2 = ws.matrix<T>(users, m);
    const T factor = static_cast<T>(1 / o.temperature);
    for (Index h = 0; h < o.heads; ++h) {
      score(h, 0, q.middle_cols(h * o.query, half()), s1);
      score(h, 1, q.middle_cols(h * o.query + half(), half()), s2);
      ws.parallel_for(users, [&](Index b, Workspace& scratch) {
        T* const w = gates.row(b) + h * n;
        product_top_k<T>(s1.row(b), m, s2.row(b), m, n, w, slots_.row(b) + h * n, scratch);
        simd::scale<T>(factor, w, w, n);
        simd::softmax<T>(w, n);
      });
    }
  }
  /// What each chosen interest is multiplied with: k / heads times its gate, or the gate itself.
  template <class T>
  VectorView<const T> factors(MatrixView<const T> gates, Workspace& ws) const {
    const T each = o.mode == MemoryMode::slots ? static_cast<T>(per_head()) : T(1);
    const VectorView<T> f = ws.vector<T>(gates.rows() * gates.cols());
    for (Index b = 0; b < gates.rows(); ++b) simd::scale<T>(each, gates.row(b), f.data() + b * gates.cols(), gates.cols());
    return f;
  }
  IndexView bags(Index users, Workspace& ws) const {
    if (o.mode == MemoryMode::slots) return {};
    auto* const offsets = ws.take<std::int64_t>(users + 1);
    for (Index b = 0; b <= users; ++b) offsets[b] = b * o.experts;
    return IndexView(offsets, users + 1);
  }
};

}  // namespace detail

/// The memory with its parameters.
template <class T>
struct InterestMemory {
  Linear<T> query;        ///< weight [heads Dq, Dx], no bias
  Table<T> keys1, keys2;  ///< [heads M, Dq / 2]
  EmbeddingBag<T> bank;   ///< [M^2, D]
  InterestMemoryOptions options;

  InterestMemory() = default;
  /// Throws `Error` for options out of range.
  InterestMemory(const InterestMemoryOptions& o, Random& random) : options(o) {
    detail::MemoryShape{o}.check();
    query = Linear<T>(o.input, o.heads * o.query, random, false);
    const double bound = 1 / std::sqrt(static_cast<double>(o.query / 2));
    for (Table<T>* keys : {&keys1, &keys2}) {
      keys->values.resize(o.heads * o.sub_keys, o.query / 2);
      for (T& k : leaf_values(*keys)) k = static_cast<T>(random.uniform(-bound, bound));
    }
    bank = EmbeddingBag<T>(o.sub_keys * o.sub_keys, o.width, 1 / std::sqrt(static_cast<double>(o.width)), random);
  }

  static constexpr auto fields() {
    return std::tuple{layer("query", &InterestMemory::query), parameter("keys1", &InterestMemory::keys1),
                      parameter("keys2", &InterestMemory::keys2), layer("bank", &InterestMemory::bank)};
  }
  /// Rows that a batch of users gets.
  Index output_rows(Index users) const { return detail::MemoryShape{options}.output_rows(users); }

  /// What backward needs, and what was chosen.
  struct Saved {
    Matrix<T> q, gates;          ///< [B, heads Dq], [B, k]
    Matrix<std::int32_t> slots;  ///< [B, k], head by head, best first
  };

  /// y `[B k, D]` or, in sum mode, `[B, D]` of x `[B, Dx]`.
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check("InterestMemory", x, "y", y);
    const auto mark = ws.mark();
    const MatrixView<T> q = ws.matrix<T>(x.rows(), query.weight.rows()), gates = ws.matrix<T>(x.rows(), options.experts);
    const MatrixView<std::int32_t> slots = ws.matrix<std::int32_t>(x.rows(), options.experts);
    read(x, q, gates, slots, y, ws);
  }
  void forward(MatrixView<const T> x, MatrixView<T> y, Saved& saved, const Step&, Workspace& ws) const {
    check("InterestMemory", x, "y", y);
    saved.q.resize(x.rows(), query.weight.rows());
    saved.gates.resize(x.rows(), options.experts);
    saved.slots.resize(x.rows(), options.experts);
    read(x, saved.q, saved.gates, saved.slots, y, ws);
  }
  /// Adds to dx, unless empty, and to `gradient`: keys and bank by rows. What was chosen is constant.
  void backward(MatrixView<const T> x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, InterestMemory& gradient,
                Workspace& ws) const {
    constexpr const char* name = "InterestMemory::backward";
    check(name, x, "dy", dy);
    const Index users = x.rows(), k = options.experts, heads = options.heads, n = k / heads, m = options.sub_keys,
                half = options.query / 2;
    if (!dx.empty()) check_shape(name, "dx", dx, users, x.cols());
    check_shape(name, "saved", saved.q.view(), users, query.weight.rows());
    check_shape(name, "saved", saved.gates.view(), users, k);
    check_shape(name, "saved", saved.slots.view(), users, k);
    check_gradient_shapes(name, *this, gradient);
    const auto mark = ws.mark();
    const detail::MemoryShape shape{options};
    const IndexView slots(saved.slots.data(), users * k);
    const VectorView<const T> factors = shape.factors<T>(saved.gates, ws);
    embedding_bag_backward<T>(shape.slots(), slots, shape.bags(users, ws), factors, {}, dy, gradient.bank.weight, ws);

    const MatrixView<T> dscores = ws.matrix<T>(users, k), dgates = ws.matrix<T>(users, k);
    std::fill_n(dscores.data(), users * k, T(0));
    const bool rows = options.mode == MemoryMode::slots;
    for (Index b = 0; b < users; ++b) {
      for (Index r = 0; r < k; ++r)
        dgates(b, r) = (rows ? static_cast<T>(n) : T(1)) *
                       simd::dot<T>(dy.row(rows ? b * k + r : b), bank.weight.values.row(saved.slots(b, r)), options.width);
      for (Index h = 0; h < heads; ++h)
        simd::softmax_backward<T>(saved.gates.row(b) + h * n, dgates.row(b) + h * n, dscores.row(b) + h * n, n);
      simd::scale<T>(static_cast<T>(1 / options.temperature), dscores.row(b), dscores.row(b), k);
    }
    // Every (user, head) is a bag of sub-keys, one for each chosen slot.
    auto *const first = ws.take<std::int32_t>(users * k), *const second = ws.take<std::int32_t>(users * k);
    auto* const offsets = ws.take<std::int64_t>(users * heads + 1);
    for (Index i = 0; i < users * k; ++i) {
      const Index h = i % k / n;
      first[i] = static_cast<std::int32_t>(h * m + slots[i] / m);
      second[i] = static_cast<std::int32_t>(h * m + slots[i] % m);
    }
    for (Index i = 0; i <= users * heads; ++i) offsets[i] = i * n;
    const IndexView bags(offsets, users * heads + 1);
    const VectorView<const T> ds(dscores.data(), users * k);
    const MatrixView<const T> q(saved.q.data(), users * heads, options.query);
    const MatrixView<T> dq = ws.matrix<T>(users * heads, options.query);
    const auto sub_keys = [&](const Table<T>& keys, std::int32_t* ids, Index at, Table<T>& dkeys) {
      const IndexView which(ids, users * k);
      embedding_bag<T, T>(keys.values.view(), which, bags, ds, {}, dq.middle_cols(at, half));
      embedding_bag_backward<T>(heads * m, which, bags, ds, {}, q.middle_cols(at, half), dkeys, ws);
    };
    sub_keys(keys1, first, 0, gradient.keys1);
    sub_keys(keys2, second, half, gradient.keys2);
    query.backward(x, MatrixView<const T>(dq.data(), users, heads * options.query), {}, dx, gradient.query, ws);
  }

  /// lambda M sum_i p_i^2 for each half and head, p_i the mean over the batch of the softmax (over all M, at the memory's temperature) that
  /// sub-key i gets: at least lambda per half and head, which is where all are used alike. Adds its gradient, which touches all sub-keys.
  double balance_value_and_grad(MatrixView<const T> x, double lambda, MatrixView<T> dx, InterestMemory& gradient,
                                Workspace& ws) const {
    constexpr const char* name = "InterestMemory::balance_value_and_grad";
    check_parameters(name);
    check_shape(name, "x", x, any_size, options.input);
    check_option(name, "lambda", lambda >= 0 && lambda - lambda == 0, "lambda >= 0", lambda);
    const Index users = x.rows(), m = options.sub_keys, half = options.query / 2;
    if (!dx.empty()) check_shape(name, "dx", dx, users, options.input);
    check_gradient_shapes(name, *this, gradient);
    if (users == 0) return 0;
    const auto mark = ws.mark();
    const MatrixView<T> q = ws.matrix<T>(users, query.weight.rows()), dq = ws.matrix<T>(users, query.weight.rows()),
                        p = ws.matrix<T>(users, m), d = ws.matrix<T>(users, m), rows = ws.matrix<T>(m, half);
    T *const mean = ws.take<T>(m), *const ids_row = ws.take<T>(m);
    auto* const ids = ws.take<std::int64_t>(m);
    query.forward(x, q, ws);
    double loss = 0;
    const T factor = static_cast<T>(1 / options.temperature), share = T(1) / static_cast<T>(users);
    for (Index h = 0; h < options.heads; ++h) {
      for (Index side = 0; side < 2; ++side) {
        const Index at = h * options.query + side * half;
        const Table<T>& keys = side == 0 ? keys1 : keys2;
        const MatrixView<const T> own = keys.values.view().middle_rows(h * m, m);
        simd::gemm<T>(simd::plain(MatrixView<const T>(q).middle_cols(at, half)), simd::transposed(own), {}, p, ws);
        std::fill_n(mean, m, T(0));
        for (Index b = 0; b < users; ++b) {
          simd::scale<T>(factor, p.row(b), p.row(b), m);
          simd::softmax<T>(p.row(b), m);
          simd::axpy<T>(share, p.row(b), mean, m);
        }
        for (Index i = 0; i < m; ++i)
          loss += lambda * static_cast<double>(m) * static_cast<double>(mean[i]) * static_cast<double>(mean[i]);
        simd::scale<T>(static_cast<T>(2 * lambda) * static_cast<T>(m) * share, mean, ids_row, m);
        for (Index b = 0; b < users; ++b) {
          std::fill_n(d.row(b), m, T(0));
          simd::softmax_backward<T>(p.row(b), ids_row, d.row(b), m);
          simd::scale<T>(factor, d.row(b), d.row(b), m);
        }
        simd::gemm<T>(simd::plain(MatrixView<const T>(d)), simd::plain(own), {}, dq.middle_cols(at, half), ws);
        simd::gemm<T>(simd::transposed(MatrixView<const T>(d)), simd::plain(MatrixView<const T>(q).middle_cols(at, half)), {},
                      rows, ws);
        for (Index i = 0; i < m; ++i) ids[i] = h * m + i;
        embedding_bag_backward<T>(options.heads * m, IndexView(ids, m), {}, {}, rows, side == 0 ? gradient.keys1 : gradient.keys2,
                                  ws);
      }
    }
    query.backward(x, dq, {}, dx, gradient.query, ws);
    return loss;
  }

  /// Throws `Error` unless the parameters, which may have been loaded, fit the options.
  void check_parameters(const char* op) const {
    const detail::MemoryShape shape{options};
    shape.check();
    check_shape(op, "query.weight", query.weight.view(), options.heads * options.query, options.input);
    for (const Table<T>* keys : {&keys1, &keys2})
      check_shape(op, keys == &keys1 ? "keys1" : "keys2", keys->values.view(), options.heads * options.sub_keys, shape.half());
    check_shape(op, "bank.weight", bank.weight.values.view(), shape.slots(), options.width);
  }

 private:
  template <class Y>
  void check(const char* op, MatrixView<const T> x, const char* output, MatrixView<Y> y) const {
    check_parameters(op);
    check_shape(op, "x", x, any_size, options.input);
    check_shape(op, output, y, output_rows(x.rows()), options.width);
  }
  void read(MatrixView<const T> x, MatrixView<T> q, MatrixView<T> gates, MatrixView<std::int32_t> slots, MatrixView<T> y,
            Workspace& ws) const {
    const auto mark = ws.mark();
    const detail::MemoryShape shape{options};
    query.forward(x, q, ws);
    shape.choose<T>(q, slots, gates, ws, [&](Index h, Index side, MatrixView<const T> part, MatrixView<T> s) {
      const Table<T>& keys = side == 0 ? keys1 : keys2;
      simd::gemm<T>(simd::plain(part), simd::transposed(keys.values.view().middle_rows(h * options.sub_keys, options.sub_keys)),
                    {}, s, ws);
    });
    bank.forward(IndexView(slots.data(), slots.rows() * slots.cols()), shape.bags(x.rows(), ws), y, shape.factors<T>(gates, ws));
  }
};

/// Serving form: projections and sub-keys packed, the bank as it is, in BFloat16 or in std::int8_t. The choice is the layer's but for
/// rounding of the scores. Immutable; threads may share it.
template <class T, class S = T>
class FrozenInterestMemory {
 public:
  FrozenInterestMemory() = default;
  explicit FrozenInterestMemory(const InterestMemory<T>& layer)
      : query_(freeze(layer.query)), bank_(freeze(layer.bank, Weights<S>())), shape_{layer.options} {
    layer.check_parameters("freeze(InterestMemory)");
    for (Index h = 0; h < layer.options.heads; ++h)
      for (const Table<T>* keys : {&layer.keys1, &layer.keys2})
        keys_.emplace_back(keys->values.view().middle_rows(h * layer.options.sub_keys, layer.options.sub_keys),
                           VectorView<const T>(), Activation::none);
  }
  const InterestMemoryOptions& options() const { return shape_.o; }
  Index output_rows(Index users) const { return shape_.output_rows(users); }
  /// As `InterestMemory::forward`; `chosen` `[B, k]`, unless empty, receives the slots.
  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& ws, MatrixView<std::int32_t> chosen = {}) const {
    constexpr const char* name = "FrozenInterestMemory";
    const InterestMemoryOptions& o = shape_.o;
    check_shape(name, "x", x, any_size, o.input);
    check_shape(name, "y", y, output_rows(x.rows()), o.width);
    if (!chosen.empty()) check_shape(name, "chosen", chosen, x.rows(), o.experts);
    const auto mark = ws.mark();
    const MatrixView<T> q = ws.matrix<T>(x.rows(), o.heads * o.query), gates = ws.matrix<T>(x.rows(), o.experts);
    const MatrixView<std::int32_t> slots = ws.matrix<std::int32_t>(x.rows(), o.experts);
    query_.forward(x, q, ws);
    shape_.template choose<T>(q, slots, gates, ws, [&](Index h, Index side, MatrixView<const T> part, MatrixView<T> s) {
      keys_[static_cast<std::size_t>(2 * h + side)].forward(part, s, ws);
    });
    bank_.forward(IndexView(slots.data(), slots.rows() * slots.cols()), shape_.bags(x.rows(), ws), y,
                  shape_.template factors<T>(gates, ws));
    for (Index b = 0; b < chosen.rows(); ++b) std::copy_n(slots.row(b), o.experts, chosen.row(b));
  }

 private:
  FrozenDense<T, T> query_;
  std::vector<FrozenDense<T, T>> keys_;  // of head h: 2 h and 2 h + 1
  FrozenEmbeddingBag<T, S> bank_;
  detail::MemoryShape shape_;
};
template <class T, class S = T>
FrozenInterestMemory<T, S> freeze(const InterestMemory<T>& layer, Weights<S> = {}) {
  return FrozenInterestMemory<T, S>(layer);
}

}  // namespace RECOPS_ABI
}  // namespace recops
