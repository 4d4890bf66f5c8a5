/// @file   recops/attention/sdim.hpp
/// @brief  SDIM: behaviours whose hash collides with the candidate's are its interest; tables make a candidate's cost independent of L.
///
///     code_t(x) = the t-th group of `bits` signs of random projections, 0 .. 2^bits - 1
///     u_t(c)    = sum of the behaviours j with code_t(e_j) = c                              the table: [groups, 2^bits, D] a user
///     out_n     = (1 / groups) sum_t u_t(code_t(q_n)) / |u_t(code_t(q_n))|                  or without the lengths (`normalize`)
///
/// In expectation over planes behaviour j weighs (1 - angle / pi)^bits in a group: attention that is sharper for more bits, estimated
/// better by more groups. The table of a user is built once, when the history changes; a candidate then reads `groups` rows of it.
/// Planes are fixed; selection has no gradient. See docs/history_search.md.
///
/// Shapes      history [total_L, D]   candidates [total_N, D]   planes [D, groups bits]   codes [total_L or total_N, groups]
///             tables [B groups 2^bits, D]: user b, group t, code c at row (b groups + t) 2^bits + c   out [total_N, D]
/// Edge cases  An empty bucket gives zeros.   bits = 0: one bucket, the (normalised) sum of the history, whatever the candidate.
///             A bucket whose sum is no longer than 1e-10 (double: 1e-12) is zero when normalised.
/// NaN         A behaviour's NaN stays in the buckets it falls into.
/// Cost        Building 2 L D groups bits + L D groups flops; a candidate 2 D groups bits + D groups, independent of L.
/// Precision   Sums run in blocks of 512 behaviours. Same bits for any number of threads.
/// Errors      Error if shapes, options or codes do not fit; outputs untouched.
/// Source      Cao et al., arXiv 2205.10249.
#pragma once
#include <recops/attention/simhash.hpp>
#include <recops/nn/gradient.hpp>
#include <recops/nn/layer.hpp>
#include <recops/nn/normalize_rows.hpp>

namespace recops {

struct SdimOptions {
  Index groups = 16;      ///< hash functions whose interests are averaged, at least 1
  Index bits = 3;         ///< bits of each, 0 to 12
  bool normalize = true;  ///< buckets to length 1 before they are averaged
};

inline namespace RECOPS_ABI {

namespace detail {

inline void check_sdim(const char* name, const SdimOptions& o) {
  check_option(name, "groups", o.groups >= 1, "groups >= 1", static_cast<double>(o.groups));
  check_option(name, "bits", o.bits >= 0 && o.bits <= 12, "0 to 12 bits", static_cast<double>(o.bits));
}
inline Index sdim_buckets(const SdimOptions& o) { return o.groups << o.bits; }

inline void check_codes(const char* name, const char* argument, const JaggedView<const std::uint16_t>& codes,
                        const SdimOptions& o) {
  check_jagged(name, argument, codes, any_size, o.groups);
  const MatrixView<const std::uint16_t> all = codes.values();
  for (Index i = 0; i < all.rows(); ++i) {
    const std::uint16_t* const row = all.row(i);
    unsigned seen = 0;
    for (Index t = 0; t < o.groups; ++t) seen |= row[t];
    for (Index t = 0; seen >> o.bits != 0 && t < o.groups; ++t)
      if (row[t] >> o.bits != 0) fail_at(name, argument, "codes from 0 to below ", Index{1} << o.bits, i * o.groups + t, row[t]);
  }
}

/// rows[t] += e for all t, which may be equal. Eight vectors of e stay in registers.
template <class T>
void add_to_rows(const T* e, T* const* rows, Index count, Index cols) {
  using B = simd::Batch<T>;
  constexpr Index W = simd::lanes<T>;
  constexpr int U = 8;
  Index c = 0;
  for (; c + U * W <= cols; c += U * W) {
    B v[U];
    RECOPS_UNROLL
    for (int u = 0; u < U; ++u) v[u] = B::load_unaligned(e + c + u * W);
    for (Index t = 0; t < count; ++t) {
      T* const to = rows[t] + c;
      RECOPS_UNROLL
      for (int u = 0; u < U; ++u) (B::load_unaligned(to + u * W) + v[u]).store_unaligned(to + u * W);
    }
  }
  for (Index t = 0; t < count && c < cols; ++t) simd::add<T>(e + c, rows[t] + c, cols - c);
}

/// out = scale * sum_t rows[t], or out += that.
template <class T>
void sum_of_rows(const T* const* rows, Index count, T scale, bool add, T* out, Index cols) {
  using B = simd::Batch<T>;
  constexpr Index W = simd::lanes<T>;
  constexpr int U = 8;
  Index c = 0;
  for (; c + U * W <= cols; c += U * W) {
    B sum[U];
    RECOPS_UNROLL
    for (int u = 0; u < U; ++u) sum[u] = B(T(0));
    for (Index t = 0; t < count; ++t) {
      const T* const from = rows[t] + c;
      RECOPS_UNROLL
      for (int u = 0; u < U; ++u) sum[u] = sum[u] + B::load_unaligned(from + u * W);
    }
    RECOPS_UNROLL
    for (int u = 0; u < U; ++u) {
      T* const to = out + c + u * W;
      (add ? simd::mul_add(sum[u], B(scale), B::load_unaligned(to)) : B(sum[u] * B(scale))).store_unaligned(to);
    }
  }
  simd::for_each_vector<T, simd::DefaultArch>(cols - c, [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
    B sum(T(0));
    for (Index t = 0; t < count; ++t) sum = sum + load(rows[t] + c + i);
    store(out + c + i, add ? simd::mul_add(sum, B(scale), load(out + c + i)) : B(sum * B(scale)));
  });
}

/// rows[t] = the row of table t, each `buckets` rows long, that code t names.
template <class T>
RECOPS_INLINE void rows_of(const std::uint16_t* codes, Index count, T* table, Index stride, Index bits, T** rows) {
  for (Index t = 0; t < count; ++t, table += stride << bits) rows[t] = table + codes[t] * stride;
}

/// Which row of a user's table the codes of a row name, group by group.
inline Index bucket_of(const std::uint16_t* codes, Index t, const SdimOptions& o) { return (t << o.bits) + codes[t]; }

}  // namespace detail

/// codes `[N, groups]` of the rows of x `[N, D]` by planes `[D, groups bits]`; plane t bits + i is bit i of group t.
template <Real T>
void sdim_codes(MatrixView<const T> x, MatrixView<const T> planes, const SdimOptions& options, MatrixView<std::uint16_t> codes,
                Workspace& ws) {
  constexpr const char* name = "sdim_codes";
  detail::check_sdim(name, options);
  check_shape(name, "x", x, any_size, any_size);
  check_shape(name, "planes", planes, x.cols(), options.groups * options.bits);
  check_shape(name, "codes", codes, x.rows(), options.groups);
  if (options.bits == 0) {
    for (Index i = 0; i < x.rows(); ++i) std::fill_n(codes.row(i), options.groups, std::uint16_t{0});
    return;
  }
  detail::sign_bits<T>(x, planes, ws, [&](Index i, const std::uint64_t* words) {
    const Index bits = options.bits;
    for (Index t = 0; t < options.groups; ++t) {
      const Index at = t * bits, word = at / 64, shift = at % 64;
      std::uint64_t code = words[word] >> shift;
      if (shift + bits > 64) code |= words[word + 1] << (64 - shift);
      codes(i, t) = static_cast<std::uint16_t>(code & ((std::uint64_t{1} << bits) - 1));
    }
  });
}

/// tables `[B groups 2^bits, D]`: the sums of the behaviours in each bucket of each user.
template <Real T>
void sdim_tables(JaggedView<const T> history, JaggedView<const std::uint16_t> codes, const SdimOptions& options,
                 MatrixView<T> tables, Workspace& ws) {
  constexpr const char* name = "sdim_tables";
  detail::check_sdim(name, options);
  check_jagged(name, "history", history, any_size, any_size);
  detail::check_codes(name, "codes", codes, options);
  detail::check_same_sequences(name, "codes", history, codes);
  const Index users = history.size(), buckets = detail::sdim_buckets(options), cols = history.cols();
  check_shape(name, "tables", tables, users * buckets, cols);
  // A task fills the tables of a few groups: their rows stay in L1 while the history passes.
  const Index per_group = Index{1} << options.bits;
  const Index together = ws.workers() > 1 ? std::min(options.groups, std::max(Index{1}, 32 / per_group)) : options.groups;
  const Index parts = (options.groups + together - 1) / together;
  constexpr Index block = 512;
  ws.parallel_for(users * parts, [&](Index task, Workspace& scratch) {
    const auto mark = scratch.mark();
    const Index b = task / parts, t0 = task % parts * together, t1 = std::min(options.groups, t0 + together);
    const Index first = history.begin(b), length = history.length(b), rows = (t1 - t0) * per_group;
    const MatrixView<T> table = tables.middle_rows(b * buckets + t0 * per_group, rows);
    for (Index r = 0; r < rows; ++r) std::fill_n(table.row(r), cols, T(0));
    const MatrixView<T> part = length > block ? scratch.matrix<T>(rows, cols) : table;
    T** const at = scratch.take<T*>(t1 - t0);
    for (Index l0 = 0; l0 < length; l0 += block) {
      const Index end = std::min(length, l0 + block);
      if (length > block) std::fill_n(part.data(), rows * cols, T(0));
      for (Index l = l0; l < end; ++l) {
        const T* const e = history.values().row(first + l);
        const std::uint16_t* const code = codes.values().row(codes.begin(b) + l);
        detail::rows_of<T>(code + t0, t1 - t0, part.data(), part.stride(), options.bits, at);
        detail::add_to_rows<T>(e, at, t1 - t0, cols);
      }
      if (length > block)
        for (Index r = 0; r < rows; ++r) simd::add<T>(part.row(r), table.row(r), cols);
    }
  });
}

/// out `[total_N, D]`: for each candidate the mean of the `groups` rows its codes name. Tables are those of `sdim_tables`, or these
/// scaled to length 1 by `normalize_rows`, once for all candidates to come.
template <Real T>
void sdim_lookup(JaggedView<const std::uint16_t> codes, MatrixView<const T> tables, const SdimOptions& options, MatrixView<T> out,
                 Workspace& ws) {
  constexpr const char* name = "sdim_lookup";
  detail::check_sdim(name, options);
  detail::check_codes(name, "codes", codes, options);
  const Index buckets = detail::sdim_buckets(options), cols = tables.cols();
  check_shape(name, "tables", tables, codes.size() * buckets, any_size);
  check_shape(name, "out", out, codes.values().rows(), cols);
  const T share = T(1) / static_cast<T>(options.groups);
  for (Index b = 0; b < codes.size(); ++b) {
    const Index first = codes.begin(b), n = codes.length(b);
    ws.parallel_for((n + 63) / 64, [&](Index task, Workspace& scratch) {
      const auto mark = scratch.mark();
      const T** const at = scratch.take<const T*>(options.groups);
      for (Index i = first + task * 64; i < first + std::min(n, task * 64 + 64); ++i) {
        detail::rows_of<const T>(codes.values().row(i), options.groups, tables.row(b * buckets), tables.stride(), options.bits,
                                 at);
        detail::sum_of_rows<T>(at, options.groups, share, false, out.row(i), cols);
      }
    });
  }
}

/// Adds to dhistory `[total_L, D]` the gradient of the whole operator: of `sdim_lookup` in tables normalised or not (`options`), of
/// `sdim_tables`. `tables` are the sums as `sdim_tables` left them. Candidates and planes have no gradient.
template <Real T>
void sdim_backward(JaggedView<const std::uint16_t> candidate_codes, JaggedView<const std::uint16_t> history_codes,
                   MatrixView<const T> tables, const SdimOptions& options, MatrixView<const T> dout, MatrixView<T> dhistory,
                   Workspace& ws) {
  constexpr const char* name = "sdim_backward";
  detail::check_sdim(name, options);
  detail::check_codes(name, "candidate_codes", candidate_codes, options);
  detail::check_codes(name, "history_codes", history_codes, options);
  const Index users = history_codes.size(), buckets = detail::sdim_buckets(options), cols = tables.cols();
  if (candidate_codes.size() != users) [[unlikely]]
    detail::fail_count(name, "candidate_codes", users, candidate_codes.size(), "sequences");
  check_shape(name, "tables", tables, users * buckets, any_size);
  check_shape(name, "dout", dout, candidate_codes.values().rows(), cols);
  if (dhistory.empty()) return;
  check_shape(name, "dhistory", dhistory, history_codes.values().rows(), cols);
  const T share = T(1) / static_cast<T>(options.groups);
  // Candidates scatter into the gradient of their user's table, behaviours gather from it: what L and N cost adds, not multiplies.
  ws.parallel_for(users, [&](Index b, Workspace& scratch) {
    const auto mark = scratch.mark();
    const MatrixView<T> d = scratch.matrix<T>(buckets, cols);
    std::fill_n(d.data(), buckets * cols, T(0));
    auto* const touched = scratch.take<std::uint8_t>(buckets);
    const T** const at = scratch.take<const T*>(options.groups);
    std::fill_n(touched, buckets, std::uint8_t{0});
    for (Index i = candidate_codes.begin(b); i < candidate_codes.begin(b) + candidate_codes.length(b); ++i)
      for (Index t = 0; t < options.groups; ++t) {
        const Index r = detail::bucket_of(candidate_codes.values().row(i), t, options);
        touched[r] = 1;
        simd::axpy<T>(share, dout.row(i), d.row(r), cols);
      }
    if (options.normalize) {
      T *const unit = scratch.take<T>(cols), *const of_sum = scratch.take<T>(cols);
      for (Index r = 0; r < buckets; ++r) {
        if (touched[r] == 0) continue;
        const T* const sum = tables.row(b * buckets + r);
        const T inverse = detail::inverse_length(sum, cols);
        std::fill_n(of_sum, cols, T(0));
        if (inverse != T(0)) {
          simd::scale<T>(inverse, sum, unit, cols);
          detail::normalize_row_backward<T>(unit, d.row(r), inverse, of_sum, cols);
        }
        std::copy_n(of_sum, cols, d.row(r));
      }
    }
    for (Index l = 0; l < history_codes.length(b); ++l) {
      const Index row = history_codes.begin(b) + l;
      detail::rows_of<const T>(history_codes.values().row(row), options.groups, d.data(), cols, options.bits, at);
      detail::sum_of_rows<T>(at, options.groups, T(1), true, dhistory.row(row), cols);
    }
  });
}

/// The operator with its planes. What serves many requests for one history keeps `tables`: `build` once, `lookup` for each.
template <Real T>
struct Sdim {
  Matrix<T> planes;  ///< [D, groups bits], fixed
  SdimOptions options;

  Sdim() = default;
  Sdim(Index width, SdimOptions o, Random& random)
      : planes(
            (detail::check_sdim("Sdim", o), random_planes<T>(o.groups * o.bits, checked_size("Sdim", "width", width), random))),
        options(o) {}

  static constexpr auto fields() { return std::tuple{buffer("planes", &Sdim::planes)}; }

  /// Rows of a user's table.
  Index buckets() const { return detail::sdim_buckets(options); }

  /// tables `[B groups 2^bits, D]` of the users, normalised where `options` say so: all that a request needs of their histories.
  void build(JaggedView<const T> history, MatrixView<T> tables, Workspace& ws) const {
    constexpr const char* name = "Sdim::build";
    check(name, "history", history);
    check_shape(name, "tables", tables, history.size() * buckets(), history.cols());
    const auto mark = ws.mark();
    const MatrixView<std::uint16_t> codes = ws.matrix<std::uint16_t>(history.values().rows(), options.groups);
    sdim_codes<T>(history.values(), planes, options, codes, ws);
    sdim_tables<T>(history, history.with_values(MatrixView<const std::uint16_t>(codes)), options, tables, ws);
    if (options.normalize) normalize_rows<T>(tables, tables);
  }
  /// y `[total_N, D]` of candidates `[total_N, D]` in the tables that `build` made.
  void lookup(JaggedView<const T> candidates, MatrixView<const T> tables, MatrixView<T> y, Workspace& ws) const {
    constexpr const char* name = "Sdim::lookup";
    check(name, "candidates", candidates);
    check_shape(name, "tables", tables, candidates.size() * buckets(), candidates.cols());
    check_shape(name, "y", y, candidates.values().rows(), candidates.cols());
    const auto mark = ws.mark();
    const MatrixView<std::uint16_t> codes = ws.matrix<std::uint16_t>(candidates.values().rows(), options.groups);
    sdim_codes<T>(candidates.values(), planes, options, codes, ws);
    sdim_lookup<T>(candidates.with_values(MatrixView<const std::uint16_t>(codes)), tables, options, y, ws);
  }

  struct Saved {
    Matrix<std::uint16_t> candidate_codes, history_codes;
    Matrix<T> tables;  ///< sums
  };
  void forward(JaggedView<const T> candidates, JaggedView<const T> history, MatrixView<T> y, Workspace& ws) const {
    check_both("Sdim", candidates, history, y);
    const auto mark = ws.mark();
    const MatrixView<T> tables = ws.matrix<T>(history.size() * buckets(), history.cols());
    build(history, tables, ws);
    lookup(candidates, tables, y, ws);
  }
  void forward(JaggedView<const T> candidates, JaggedView<const T> history, MatrixView<T> y, Saved& saved, const Step&,
               Workspace& ws) const {
    check_both("Sdim", candidates, history, y);
    saved.candidate_codes.resize(candidates.values().rows(), options.groups);
    saved.history_codes.resize(history.values().rows(), options.groups);
    saved.tables.resize(history.size() * buckets(), history.cols());
    sdim_codes<T>(candidates.values(), planes, options, saved.candidate_codes, ws);
    sdim_codes<T>(history.values(), planes, options, saved.history_codes, ws);
    sdim_tables<T>(history, codes_of(history, saved.history_codes), options, saved.tables, ws);
    const auto mark = ws.mark();
    MatrixView<const T> tables = saved.tables;
    if (options.normalize) {
      const MatrixView<T> unit = ws.matrix<T>(tables.rows(), tables.cols());
      normalize_rows<T>(tables, unit);
      tables = unit;
    }
    sdim_lookup<T>(codes_of(candidates, saved.candidate_codes), tables, options, y, ws);
  }
  /// Adds to dhistory (empty: not wanted). Candidates choose, which has no gradient; nor have the planes.
  void backward(JaggedView<const T> candidates, JaggedView<const T> history, MatrixView<const T> dy, const Saved& saved,
                MatrixView<T> dhistory, Workspace& ws) const {
    check_both("Sdim::backward", candidates, history, dy);
    check_shape("Sdim::backward", "saved", saved.candidate_codes.view(), candidates.values().rows(), options.groups);
    check_shape("Sdim::backward", "saved", saved.history_codes.view(), history.values().rows(), options.groups);
    check_shape("Sdim::backward", "saved", saved.tables.view(), history.size() * buckets(), history.cols());
    sdim_backward<T>(codes_of(candidates, saved.candidate_codes), codes_of(history, saved.history_codes), saved.tables, options,
                     dy, dhistory, ws);
  }

 private:
  static JaggedView<const std::uint16_t> codes_of(JaggedView<const T> rows, const Matrix<std::uint16_t>& codes) {
    return rows.with_values(codes.view());
  }
  void check(const char* name, const char* argument, JaggedView<const T> x) const {
    detail::check_sdim(name, options);
    check_shape(name, "planes", planes.view(), any_size, options.groups * options.bits);
    check_jagged(name, argument, x, any_size, planes.rows());
  }
  template <class Y>
  void check_both(const char* name, JaggedView<const T> candidates, JaggedView<const T> history, MatrixView<Y> y) const {
    check(name, "candidates", candidates);
    check(name, "history", history);
    if (candidates.size() != history.size()) [[unlikely]]
      detail::fail_count(name, "history", candidates.size(), history.size(), "sequences");
    check_shape(name, "y", y, candidates.values().rows(), candidates.cols());
  }
};

}  // namespace RECOPS_ABI
}  // namespace recops
