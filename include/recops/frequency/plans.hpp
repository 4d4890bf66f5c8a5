/// @file   recops/frequency/plans.hpp
/// @brief  What the frequency operators of sequences up to a length need to transform them: made once, shared by everything.
#pragma once
#include <recops/simd/fft_filter.hpp>

namespace recops {
inline namespace RECOPS_ABI {

/// A half spectrum in two planes `re`, `im`, `[K, D]` each, K = L / 2 + 1; of a jagged batch the K_b rows of its sequences one below
/// the other.
template <class T>
using SpectrumView = simd::FftPlanes<T>;

/// Transform plans and cosines of one length, or of every length up to a longest, as jagged batches want them. Immutable; copies
/// share the tables and cost nothing; safe from many threads. There is no cache behind it.
template <Real T>
class SpectralPlans {
 public:
  /// Length 0 alone.
  SpectralPlans() = default;
  /// Every length in [0, longest]: about 10 ms and 0.7 MB (float) up to 200, 0.3 s and 15 MB up to 1024. Throws `Error` unless
  /// 0 <= longest <= 65536.
  explicit SpectralPlans(Index longest) : SpectralPlans(longest, false) {}
  /// One length, for batches whose sequences all have it. Throws `Error` unless 0 <= length <= 2^26.
  static SpectralPlans only(Index length) { return SpectralPlans(length, true); }

  Index longest() const { return tables_ ? tables_->longest : 0; }
  /// Whether sequences of this length can be transformed.
  bool has(Index length) const {
    return length == 0 || (0 < length && length <= longest() && (!tables_->one || length == longest()));
  }
  /// The plan of a length that `has`.
  const simd::FftPlan<T>& operator[](Index length) const {
    assert(has(length) && tables_);
    return tables_->one ? tables_->plan : tables_->plans[length];
  }
  /// cos(2 pi m / L), then sin(2 pi m / L), m < L: `[2, L]`.
  const T* roots(Index length) const {
    assert(has(length) && tables_);
    return tables_->roots.data() + (tables_->one ? 0 : length * (length - 1));
  }

 private:
  struct Tables {
    bool one = false;
    Index longest = 0;
    simd::FftPlan<T> plan;
    simd::FftPlans<T> plans;
    Vector<T> roots;
  };
  [[gnu::noinline, gnu::cold]] SpectralPlans(Index length, bool one) {
    auto tables = std::make_shared<Tables>();
    tables->one = one;
    tables->longest = length;
    if (one) {
      tables->plan = simd::FftPlan<T>(length);
    } else {
      tables->plans = simd::FftPlans<T>(length);
    }
    tables->roots.resize(one ? 2 * length : length * (length + 1));
    T* to = tables->roots.data();
    for (Index l = one ? length : 1; l <= length; to += 2 * l, ++l) {
      for (Index m = 0; m < l; ++m) {
        double c, s;
        simd::detail::unit_root(m, l, c, s);
        to[m] = static_cast<T>(c);
        to[l + m] = static_cast<T>(s);
      }
    }
    tables_ = std::move(tables);
  }
  std::shared_ptr<const Tables> tables_;
};

namespace detail {

/// Bins of a half spectrum.
inline Index spectrum_bins(Index length) { return length == 0 ? 0 : length / 2 + 1; }

/// Every sequence must have a plan. O(B).
template <class T>
void check_plans(const char* operation, JaggedView<const T> x, const SpectralPlans<T>& plans) {
  for (Index b = 0; b < x.size(); ++b) {
    if (!plans.has(x.length(b))) [[unlikely]]
      fail_at(operation, "plans", plans.has(1) || plans.longest() == 0 ? "lengths of at most " : "sequences of the length ",
              plans.longest(), b, x.length(b));
  }
}

/// The sequences of a batch that hold anything, in order of their length, then of their place: those of one length are done two
/// at a time, and share what is prepared for it. Lives in the workspace.
struct LengthGroups {
  const Index* order = nullptr;  ///< sequences
  const Index* first = nullptr;  ///< [groups + 1], where each group begins in `order`
  Index groups = 0;

  template <class T>
  LengthGroups(JaggedView<const T> x, Workspace& ws) {
    Index* const all = ws.take<Index>(x.size());
    Index* const begins = ws.take<Index>(x.size() + 1);
    Index count = 0;
    for (Index b = 0; b < x.size(); ++b)
      if (x.length(b) > 0) all[count++] = b;
    std::sort(all, all + count, [&](Index a, Index b) {
      const Index la = x.length(a), lb = x.length(b);
      return la != lb ? la < lb : a < b;
    });
    for (Index i = 0; i < count; ++i)
      if (i == 0 || x.length(all[i]) != x.length(all[i - 1])) begins[groups++] = i;
    begins[groups] = count;
    order = all;
    first = begins;
  }
  template <class T>
  Index length(Index g, JaggedView<const T> x) const {
    return x.length(order[first[g]]);
  }
  /// `f(b, c)` for the sequences of group g two at a time; c < 0 with the last of an odd number.
  template <class F>
  void for_pairs(Index g, F&& f) const {
    for (Index i = first[g]; i < first[g + 1]; i += 2) f(order[i], i + 1 < first[g + 1] ? order[i + 1] : -1);
  }
};

/// The length that all sequences of a batch have, or -1.
template <class T>
Index common_length(JaggedView<const T> x) {
  const Index length = x.size() > 0 ? x.length(0) : -1;
  for (Index b = 1; b < x.size(); ++b)
    if (x.length(b) != length) return -1;
  return length;
}

}  // namespace detail
}  // namespace RECOPS_ABI
}  // namespace recops
