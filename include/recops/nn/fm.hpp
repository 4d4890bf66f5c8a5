/// @file   recops/nn/fm.hpp
/// @brief  Factorisation machine: the sum of all products of two different fields' embeddings, in one pass.
///
///     y = sum_f<g e_f e_g           per number: `pooled`, [B, K] (bi-interaction); summed over K: [B, 1]
///
/// Shapes      e [B, F K], which is [B, F, K]: the fields' embeddings side by side
/// Precision   in T, each field times the sum of those before it: within 2 F eps of the sum of the pairs' sizes also where fields nearly
///             cancel, which the usual half difference of squares is not.
/// Edge cases  no field or one: 0.   A NaN stays in its row (pooled: in its column too).   Same bits for any number of threads.
/// Cost        3 B F K flops, one pass over e; backward two.
/// Errors      Error if shapes or options disagree; outputs untouched.
/// Reference   Rendle, "Factorization Machines", ICDM 2010, lemma 3.1; pooled: He, Chua, "Neural Factorization Machines",
///             arXiv 1708.05027, equation 4.
#pragma once
#include <recops/nn/layer_norm.hpp>

namespace recops {

struct FmOptions {
  Index fields = 1;     ///< F, divides the columns of e
  bool pooled = false;  ///< K numbers, else their sum
};

inline namespace RECOPS_ABI {

namespace detail {
template <class T>
void check_fm(const char* name, MatrixView<const T> e, const FmOptions& o) {
  check_shape(name, "e", e, any_size, any_size);
  check_option(name, "fields", o.fields >= 1 && e.cols() % o.fields == 0, "a divisor of the columns of e",
               static_cast<double>(o.fields));
}

/// The pairs of all fields for a vector of their numbers. Fields times the sum of those before them: every pair once, and no large
/// squares that cancel. Four at a time, pairs within them and then they as one: a sum waits less for the one before.
template <class T, class Load>
RECOPS_INLINE simd::Batch<T> pairs_of_fields(const T* p, Index fields, Index k, Load load) {
  using B = simd::Batch<T>;
  B sum(T(0)), inner(T(0)), outer(T(0));
  for (; fields >= 4; fields -= 4, p += 4 * k) {
    const B a = load(p), b = load(p + k), c = load(p + 2 * k), d = load(p + 3 * k), ab = a + b, cd = c + d, all = ab + cd;
    inner = simd::mul_add(a, b, inner);
    outer = simd::mul_add(ab, cd, outer);
    inner = simd::mul_add(c, d, inner);
    outer = simd::mul_add(all, sum, outer);
    sum = sum + all;
  }
  for (; fields > 0; --fields, p += k) {
    const B a = load(p);
    outer = simd::mul_add(a, sum, outer);
    sum = sum + a;
  }
  return inner + outer;
}
}  // namespace detail

/// Writes y `[B, 1]`, or with `pooled` `[B, K]`.
template <Real T>
void fm(MatrixView<const T> e, const FmOptions& options, MatrixView<T> y, Workspace& ws) {
  detail::check_fm("fm", e, options);
  const Index k = e.cols() / options.fields;
  check_shape("fm", "y", y, e.rows(), options.pooled ? k : 1);
  detail::for_row_blocks(e.rows(), ws, [&](Index first, Index count, Index, Workspace&) {
    for (Index b = first; b < first + count; ++b) {
      const T* const row = e.row(b);
      simd::Batch<T> total(T(0));
      simd::for_each_vector<T, simd::DefaultArch>(k, [&](Index j, auto load, auto store) RECOPS_LAMBDA_INLINE {
        const simd::Batch<T> pairs = detail::pairs_of_fields<T>(row + j, options.fields, k, load);
        if (options.pooled) {
          store(y.row(b) + j, pairs);
        } else {
          total = total + pairs;
        }
      });
      if (!options.pooled) y(b, 0) = simd::sum_lanes(total);
    }
  });
}

/// Adds to `de`: dy (sum_g e_g - e_f) for field f.
template <Real T>
void fm_backward(MatrixView<const T> e, const FmOptions& options, MatrixView<const T> dy, MatrixView<T> de, Workspace& ws) {
  constexpr const char* name = "fm_backward";
  detail::check_fm(name, e, options);
  const Index k = e.cols() / options.fields;
  check_shape(name, "dy", dy, e.rows(), options.pooled ? k : 1);
  check_shape(name, "de", de, e.rows(), e.cols());
  detail::for_row_blocks(e.rows(), ws, [&](Index first, Index count, Index, Workspace& scratch) {
    const auto mark = scratch.mark();
    T *const sum = scratch.take<T>(k), *const up = scratch.take<T>(k);
    for (Index b = first; b < first + count; ++b) {
      const T* const row = e.row(b);
      T* const to = de.row(b);
      std::fill_n(sum, k, T(0));
      for (Index f = 0; f < options.fields; ++f) simd::add<T>(row + f * k, sum, k);
      if (options.pooled) {
        std::copy_n(dy.row(b), k, up);
      } else {
        std::fill_n(up, k, dy(b, 0));
      }
      for (Index f = 0; f < options.fields; ++f) {
        const T* const own = row + f * k;
        T* const out = to + f * k;
        simd::for_each_vector<T, simd::DefaultArch>(k, [&](Index i, auto load, auto store) RECOPS_LAMBDA_INLINE {
          store(out + i, simd::mul_add(load(up + i), load(sum + i) - load(own + i), load(out + i)));
        });
      }
    }
  });
}

/// The same as a row layer, for a `Sequential`. No parameters.
template <Real T>
struct Fm {
  FmOptions options;
  static constexpr auto fields() { return std::tuple{}; }
  /// 1, or K; throws `Error` unless the fields divide the columns.
  Index output_cols(Index cols) const {
    check_option("Fm", "fields", options.fields >= 1 && cols % options.fields == 0, "a divisor of the input's columns",
                 static_cast<double>(options.fields));
    return options.pooled ? cols / options.fields : 1;
  }
  struct Saved {};
  void forward(MatrixView<const T> e, MatrixView<T> y, Workspace& ws) const { fm<T>(e, options, y, ws); }
  void forward(MatrixView<const T> e, MatrixView<T> y, Saved&, const Step&, Workspace& ws) const { forward(e, y, ws); }
  void backward(MatrixView<const T> e, MatrixView<const T> dy, const Saved&, MatrixView<T> de, Fm&, Workspace& ws) const {
    if (!de.empty()) fm_backward<T>(e, options, dy, de, ws);
  }
};
template <Real T>
Fm<T> freeze(const Fm<T>& layer) {
  return layer;
}

}  // namespace RECOPS_ABI
}  // namespace recops
