/// @file   recops/simd/head_search.hpp
/// @brief  For every query and head the k keys with the largest q_a . k_a + bias_a of one history, heads side by side in a row: by
///         the keys themselves, or, with the same result to the bit, by way of a copy in int8 or BFloat16.
///
/// A row of keys is read once for all heads and queries. Keys stand in order, or a list names the row of each, as where they lie in
/// a cache shared by many histories; those are copied together block by block, so that they come from memory once.
/// A score has the bits of `dot_rows` over the columns of its head, plus one addition, whatever the batch, the block or the path.
/// Certified as in certified_top_k.hpp: a score by a fast road and a bound eps on what it is off by; what may be among the k best is
/// scored again. The fast road is the copy, or, for many queries of the floats themselves, panels of keys.
#pragma once
#include <recops/simd/certified_top_k.hpp>
#include <recops/simd/panels.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace simd {

namespace detail {

/// Rows that follow each other, or those that `names` lists.
template <class S>
struct NamedRows {
  const S* data = nullptr;
  Index stride = 0, cols = 0, count = 0;
  IndexView names = {};

  NamedRows() = default;
  NamedRows(MatrixView<const S> rows, IndexView row_names)
      : data(rows.data()),
        stride(rows.stride()),
        cols(rows.cols()),
        count(row_names.empty() ? rows.rows() : row_names.size()),
        names(row_names) {}
  RECOPS_INLINE const S* row(Index i) const { return data + (names.empty() ? i : names[i]) * stride; }
  /// Rows first .. first + height - 1 one after the other; named ones, or all if `copied`, are copied to `room` [height, cols].
  Following<S> block(Index first, Index height, S* room, bool copied = false) const {
    if (names.empty() && !copied) return {data + first * stride, stride};
    constexpr Index ahead = 16;
    for (Index i = first; i < first + height; ++i) {
      if (i + ahead < count) {
        const auto next = reinterpret_cast<std::uintptr_t>(row(i + ahead));
        for (std::uintptr_t b = 0; b < static_cast<std::uintptr_t>(cols) * sizeof(S); b += 64) prefetch(next + b);
      }
      std::copy_n(row(i), cols, room + (i - first) * cols);
    }
    return {room, cols};
  }
  S* room(Index height, Workspace& ws) const { return names.empty() ? nullptr : ws.take<S>(height * cols); }
  bool far() const { return names.empty() && count * cols * Index{sizeof(S)} >= distant_bytes; }
};

/// Rows between two looks at the lists: with the scores of a group of lists they stay in L2.
inline constexpr Index head_block = 256;
/// Lists (of a query and a head each) that are kept at once.
inline constexpr Index head_lists = 64;

/// One number per row and head, e.g. a bias: block by block, head by head.
template <class T, class A>
class HeadColumns {
 public:
  HeadColumns() = default;
  /// `x` [rows, H or 1], or empty: none.
  HeadColumns(MatrixView<const T> x, IndexView names, Workspace& ws) : x_(x), names_(names) {
    if (!x.empty() && !direct()) room_ = ws.take<T>(x.cols() * head_block);
  }
  bool empty() const { return x_.empty(); }
  void block(Index first, Index height) {
    first_ = first;
    if (x_.empty() || direct()) return;
    const auto row = [&](Index i) RECOPS_LAMBDA_INLINE {
      return x_.data() + (names_.empty() ? first + i : names_[first + i]) * x_.stride();
    };
    Index i = 0;
    for (; x_.cols() == 4 && i + lanes<T, A> <= height; i += lanes<T, A>) {
      Batch<T, A> four[4];
      load_four_columns<T, A>([&](Index r) RECOPS_LAMBDA_INLINE { return row(i + r); }, four);
      for (Index h = 0; h < 4; ++h) four[h].store_aligned(room_ + h * head_block + i);
    }
    for (; i < height; ++i)
      for (Index h = 0; h < x_.cols(); ++h) room_[h * head_block + i] = row(i)[h];
  }
  /// Rows i .. i + height - 1 of the block, in lanes.
  RECOPS_INLINE Batch<T, A> load(Index head, Index i, Index height) const {
    return load_upto<T, A>((direct() ? x_.data() + first_ : room_ + (x_.cols() == 1 ? 0 : head) * head_block) + i, height);
  }

 private:
  bool direct() const { return names_.empty() && x_.cols() == 1 && x_.stride() == 1; }
  MatrixView<const T> x_;
  IndexView names_;
  T* room_ = nullptr;
  Index first_ = 0;
};

/// Scores with their bias; where that is -infinity the score is too, whatever the key holds.
template <class T, class A>
RECOPS_INLINE Batch<T, A> biased(Batch<T, A> dots, Batch<T, A> bias) {
  const Batch<T, A> hidden(-std::numeric_limits<T>::infinity());
  return xsimd::select(bias == hidden, hidden, Batch<T, A>(dots + bias));
}

/// Products of queries with a tile of fewer rows than lanes.
template <class T, class A, class S>
[[gnu::noinline]] Batch<T, A> last_head_tile(const T* q, Index width, const Following<S>& rows, Index height) {
  constexpr int W = static_cast<int>(lanes<T, A>);
  const S* row[W];
  for (int r = 0; r < W; ++r) row[r] = rows.row(r < height ? r : static_cast<int>(height) - 1);
  Batch<T, A> dots(T(0)), squares(T(0));
  score_tile<T, A, tile_dots, false>(q, Scattered<S>{row}, nullptr, width, width, Ahead{}, dots, squares);
  return dots;
}

/// Calls `emit(query, head, i, height, products)` for every tile of a block of rows, in order for each query and head.
template <class T, class A, class S, class Emit>
RECOPS_INLINE void head_tiles(MatrixView<const T> queries, Index heads, const Following<S>& rows, Index height, bool far,
                              const Emit& emit) {
  using B = Batch<T, A>;
  constexpr Index W = lanes<T, A>;
  const Index width = queries.cols() / heads, n = queries.rows();
  const auto whole = [&]<int Vectors>(std::integral_constant<int, Vectors>) RECOPS_LAMBDA_INLINE {
    for (Index i = 0; i + W <= height; i += W) {
      const S* const first = rows.first + i * rows.stride;
      for (Index h = 0; h < heads; ++h) {
        const Following<S> part{first + h * width, rows.stride};
        for (Index q = 0; q < n; ++q) {
          const T* const x = queries.row(q) + h * width;
          B dots(T(0)), squares(T(0));
          if constexpr (Vectors > 0) {
            B query[Vectors];
            RECOPS_UNROLL
            for (int v = 0; v < Vectors; ++v) query[v] = B::load_unaligned(x + v * W);
            if (far && q == 0) {  // each head asks for its share of the rows 4 KB ahead, in the order of address
              dots = short_tile<Vectors, true, T, A>(query, part, reinterpret_cast<std::uintptr_t>(first + h * W * width) + 4096);
            } else {
              dots = short_tile<Vectors, false, T, A>(query, part, 0);
            }
          } else {
            Ahead ahead{};
            if (far && q == 0 && h == 0)
              ahead = look_ahead(first, queries.cols(), rows.stride, W * sizeof(S), rows_at_once<T, A>);
            score_tile<T, A, tile_dots, false>(x, part, nullptr, width, width, ahead, dots, squares);
          }
          emit(q, h, i, W, dots);
        }
      }
    }
  };
  if (width == 2 * W) {
    whole(std::integral_constant<int, 2>());
  } else if (width == 8 * W) {
    whole(std::integral_constant<int, 8>());
  } else {
    whole(std::integral_constant<int, 0>());
  }
  const Index done = height / W * W;
  for (Index h = 0; h < heads && done < height; ++h) {
    const Following<S> part{rows.first + done * rows.stride + h * width, rows.stride};
    for (Index q = 0; q < n; ++q)
      emit(q, h, done, height - done, last_head_tile<T, A>(queries.row(q) + h * width, width, part, height - done));
  }
}

/// What a search writes: per query and head (row q H + h) at most `indices.cols()` rows of the history, best first.
struct HeadLists {
  MatrixView<std::int32_t> indices;
  VectorView<Index> counts;
};

/// The best of the keys by their exact scores, a whole block at a time.
template <class T, class A>
void scan_heads(MatrixView<const T> queries, Index heads, const NamedRows<T>& keys, MatrixView<const T> bias, Index k,
                HeadLists lists, Workspace& ws) {
  using Best = TopK<T, A>;
  const auto mark = ws.mark();
  const Index n = queries.rows(), all = n * heads;
  auto* const room = ws.take<std::byte>(all * Index{sizeof(Best)});
  auto** const best = ws.take<Best*>(all);
  for (Index l = 0; l < all; ++l)
    best[l] =
        ::new (static_cast<void*>(room + l * Index{sizeof(Best)})) Best(k < keys.count ? k : keys.count, Order::descending, ws);
  T* const scores = ws.take<T>(all * head_block);
  T* const rows = keys.room(head_block, ws);
  HeadColumns<T, A> added(bias, {}, ws);
  Index done = 0;
  if (keys.far()) {
    constexpr Index W = lanes<T, A>;
    const Index apart = InStreams<T, A>(keys.count).apart;
    auto* const names = ws.take<std::int32_t>(head_block);
    for (Index g = 0, steps; g < apart; g += steps) {
      steps = apart - g < head_block / W ? apart - g : head_block / W;
      for (Index s = 0; s < steps; ++s) {
        for (Index r = 0; r < W; ++r) names[s * W + r] = static_cast<std::int32_t>(r * apart + g + s);
        head_tiles<T, A>(queries, heads, Following<T>{keys.data + (g + s) * keys.stride, apart * keys.stride}, W, false,
                         [&](Index q, Index h, Index, Index, Batch<T, A> dots) RECOPS_LAMBDA_INLINE {
                           if (!bias.empty()) {
                             alignas(64) T b[W];
                             for (Index r = 0; r < W; ++r) b[r] = bias(names[s * W + r], bias.cols() == 1 ? 0 : h);
                             dots = biased(dots, Batch<T, A>::load_aligned(b));
                           }
                           dots.store_aligned(scores + (q * heads + h) * head_block + s * W);
                         });
      }
      for (Index l = 0; l < all; ++l) best[l]->add(scores + l * head_block, names, steps * W);
    }
    done = apart * W;
  }
  for (Index first = done; first < keys.count; first += head_block) {
    const Index height = keys.count - first < head_block ? keys.count - first : head_block;
    added.block(first, height);
    head_tiles<T, A>(queries, heads, keys.block(first, height, rows), height, keys.far(),
                     [&](Index q, Index h, Index i, Index tile, Batch<T, A> dots) RECOPS_LAMBDA_INLINE {
                       if (!added.empty()) dots = biased(dots, added.load(h, i, tile));
                       dots.store_aligned(scores + (q * heads + h) * head_block + i);
                     });
    for (Index l = 0; l < all; ++l) best[l]->add(scores + l * head_block, height, first);
  }
  for (Index l = 0; l < all; ++l) lists.counts[l] = best[l]->finish(nullptr, lists.indices.row(l));
}

/// What a score by another road may be off by, once a bias is added in both: eps and the roundings of these sums.
template <class A>
RECOPS_INLINE Batch<float, A> with_roundings(Batch<float, A> score, Batch<float, A> eps) {
  return mul_add(xsimd::abs(score) + eps, Batch<float, A>(0x1p-21f), eps);
}

/// Adds a bias to scores and what they may be off by. A hidden row is as good as the lowest score there is, and that is certain.
template <class A>
RECOPS_INLINE void add_bias(Batch<float, A> bias, Batch<float, A>& score, Batch<float, A>& eps) {
  using B = Batch<float, A>;
  const B sum = score + bias;
  const auto hidden = bias == B(-std::numeric_limits<float>::infinity());
  score = xsimd::select(hidden, B(-0x1p118f), sum);
  eps = xsimd::select(hidden, B(0.0f), with_roundings<A>(sum, eps));
}
template <class A>
RECOPS_INLINE void add_biased(Survivors<A>& kept, Index i, Index height, Batch<float, A> dots, Batch<float, A> eps,
                              Batch<float, A> bias) {
  add_bias<A>(bias, dots, eps);
  kept.add(i, height, dots, eps);
}

/// Scans with `scan(survivors of every list)`, then scores again what is left. Returns how many rows were scored again.
template <class A, class Scan>
Index certify_heads(MatrixView<const float> queries, Index heads, const NamedRows<float>& keys, MatrixView<const float> bias,
                    Index k, HeadLists lists, Workspace& ws, const Scan& scan) {
  using S = Survivors<A>;
  using B = Batch<float, A>;
  static_assert(std::is_trivially_destructible_v<S>);
  constexpr int W = static_cast<int>(lanes<float, A>);
  const auto mark = ws.mark();
  const Index all = queries.rows() * heads, width = queries.cols() / heads;
  auto* const room = ws.take<std::byte>(all * Index{sizeof(S)});
  auto** const survivors = ws.take<S*>(all);
  for (Index l = 0; l < all; ++l) survivors[l] = ::new (static_cast<void*>(room + l * Index{sizeof(S)})) S(k, keys.count, ws);
  scan(survivors);
  Index rescored = 0;
  float* const block = ws.take<float>(scan_block);
  for (Index l = 0; l < all; ++l) {
    const auto inner = ws.mark();
    const Index h = l % heads;
    const float* const q = queries.row(l / heads) + h * width;
    survivors[l]->finish();
    const auto names = survivors[l]->rows();
    TopK<float, A> best(k, Order::descending, ws);
    rescored += names.size();
    for (Index first = 0; first < names.size(); first += scan_block) {
      const Index height = names.size() - first < scan_block ? names.size() - first : scan_block;
      for (Index i = 0; i < height; i += W) {
        const float* row[W];
        alignas(64) float added[W];
        for (int r = 0; r < W; ++r) {
          const Index name = names[i + r < height ? first + i + r : first + height - 1];
          row[r] = keys.row(name) + h * width;
          added[r] = bias.empty() ? 0.0f : bias(name, bias.cols() == 1 ? 0 : h);
        }
        for (Index j = first + i + W; j < names.size() && j < first + i + 2 * W; ++j)
          prefetch(reinterpret_cast<std::uintptr_t>(keys.row(names[j]) + h * width));
        B dots(0.0f), squares(0.0f);
        score_tile<float, A, tile_dots, false>(q, Scattered<float>{row}, nullptr, width, width, Ahead{}, dots, squares);
        if (!bias.empty()) dots = biased(dots, B::load_aligned(added));
        dots.store_aligned(block + i);
      }
      best.add(block, names.data() + first, height);
    }
    lists.counts[l] = best.finish(nullptr, lists.indices.row(l));
  }
  return rescored;
}

/// Codes of `P` heads side by side in as many rows as lanes, one head of one row after the other.
template <int P>
struct HeadsOfRows {
  const std::int8_t* first;
  Index stride, width;
  RECOPS_INLINE const std::int8_t* row(int r) const { return first + r / P * stride + r % P * width; }
  RECOPS_INLINE HeadsOfRows from(int r) const { return {Following<std::int8_t>{first, stride}.from(r / P).first, stride, width}; }
};

/// Whether `quad_tile` is there.
template <class A>
inline constexpr bool has_quad_tile = has_avx2<A> && !has_avx512<A>;

/// Products of four heads of sixteen columns, side by side in a row, with as many rows as lanes, times 256: codes at odd and at
/// even places are taken as the high bytes of sixteen bits, as a mask and a shift leave them, where widening takes two shuffles
/// for half as many. `q`: of two heads each, codes at odd places, then those at even ones.
template <class A>
RECOPS_INLINE void quad_tile([[maybe_unused]] const std::int16_t* q, [[maybe_unused]] const Following<std::int8_t>& rows,
                             [[maybe_unused]] Words<A> (&products)[4]) {
#if defined(__AVX2__)
  const auto load = [](const void* p) RECOPS_LAMBDA_INLINE { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); };
  const __m256i high = _mm256_set1_epi16(-256), heads_in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  RECOPS_UNROLL
  for (int g = 0; g < 8; g += 4) {
    const auto part = rows.from(g);
    __m256i x[8], w[2];
    RECOPS_UNROLL
    for (int r = 0; r < 8; ++r) {
      const __m256i codes = load(part.row(r / 2) + r % 2 * 32), odd = load(q + r % 2 * 32), even = load(q + r % 2 * 32 + 16);
      x[r] = _mm256_add_epi32(_mm256_madd_epi16(odd, _mm256_and_si256(codes, high)),
                              _mm256_madd_epi16(even, _mm256_slli_epi16(codes, 8)));
    }
    sum_each_half(x, w);
    products[g / 2] = _mm256_permutevar8x32_epi32(w[0], heads_in_order);
    products[g / 2 + 1] = _mm256_permutevar8x32_epi32(w[1], heads_in_order);
  }
#endif
}

/// What is off by how much where lane r holds the integer product x of the codes and of the r-th head's query in sixteen bits, which
/// is exact. The score s that the floats give is at most
///
///     u = (x per_product + per_scale) scale + rest,   and fl(s + bias) <= fl(u + bias), since rounding is monotonous,
///
/// so that a row whose fl(u + bias) is below the k-th best lower bound is not among the best. The roundings of u are five at most (three
/// with FMA), each less than 2^-24 of 384 |q|_1 scale + rest, for which `per_scale` (64 of 127 |q|_1 scale) and `rest` have room. A scale
/// beyond `fair`, from which on sums might overflow, says nothing; neither does NaN, of which no comparison holds.
template <class A>
struct HeadBounds {
  static constexpr Index W = lanes<float, A>;
  alignas(64) float per_product[W], per_scale[W], rest[W], fair[W];
};

/// Tiles of as many rows as lanes, whose scales and biases for P heads follow each other as lanes do. Tile u begins
/// u mod streams * between + u / streams * lanes rows behind the first.
struct CodeTiles {
  const std::int8_t* codes;  // of the first of the heads
  Index stride, width;
  const float *scale, *bias;  // `bias` may be null
  bool in_place;              // these lie as the rows do, else tile after tile
  bool far;                   // what a tile reads is asked for a tile of its stream ahead
  Index count, streams, between;
  RECOPS_INLINE Index place(Index u, Index lanes) const { return streams == 1 ? u * lanes : u % 4 * between + u / 4 * lanes; }
};

/// Bit u: whether a row of tile u may be among the best. Keeps the products. `Width` of a head, or 0: as t says.
template <class A, int P, int Width>
[[gnu::noinline]] std::uint64_t look_at_tiles(const std::int16_t* query, Index apart, const HeadBounds<A>& bounds,
                                              Batch<float, A> least, const CodeTiles t, std::int32_t* products) {
  using B = Batch<float, A>;
  constexpr Index W = lanes<float, A>;
  const B per_product = B::load_aligned(bounds.per_product), per_scale = B::load_aligned(bounds.per_scale),
          rest = B::load_aligned(bounds.rest), fair = B::load_aligned(bounds.fair);
  std::uint64_t kept = 0;
  for (Index u = 0; u < t.count; ++u) {
    const Index at = t.place(u, W), beside = (t.in_place ? at : u * W) * P;
    if (t.far) {
      // As numbers: what comes next may lie past the end.
      const auto codes = reinterpret_cast<std::uintptr_t>(t.codes) + static_cast<std::uintptr_t>((at + W) * t.stride);
      const auto scales = reinterpret_cast<std::uintptr_t>(t.scale) + static_cast<std::uintptr_t>(beside + W * P) * sizeof(float);
      for (Index b = 0; b < W * t.stride; b += 64) prefetch(codes + static_cast<std::uintptr_t>(b));
      for (std::uintptr_t b = 0; b < W * P * sizeof(float); b += 64) prefetch(scales + b);
    }
    Words<A> x[P];
    if constexpr (P == 4 && Width == 16) {
      quad_tile<A>(query, {t.codes + at * t.stride, t.stride}, x);
    } else {
      const HeadsOfRows<P> rows{t.codes + at * t.stride, t.stride, t.width};
      for (int v = 0; v < P; ++v) x[v] = int_tile<A, P>(query, rows.from(v * int_lanes<A>), Width > 0 ? Width : t.width, apart);
    }
    B upper[P], largest(0.0f);
    RECOPS_UNROLL
    for (int v = 0; v < P; ++v) {
      x[v].store_aligned(products + (u * P + v) * W);
      const B scale = B::load_unaligned(t.scale + beside + v * W);
      upper[v] = mul_add(mul_add(xsimd::to_float(x[v]), per_product, per_scale), scale, rest);
      largest = xsimd::max(scale, largest);
    }
    if (t.bias != nullptr) {
      RECOPS_UNROLL
      for (int v = 0; v < P; ++v) upper[v] = upper[v] + B::load_unaligned(t.bias + beside + v * W);
    }
    auto beaten = largest <= fair;
    RECOPS_UNROLL
    for (int v = 0; v < P; ++v) beaten = beaten & (upper[v] < least);
    kept |= std::uint64_t{mask_bits(beaten) != (2u << (W - 1)) - 1u} << u;
  }
  return kept;
}

/// By way of int8 codes, one scale for each head of a row (or one for the row). Four heads of a query, or two, are searched at once,
/// in lanes as their scales lie in memory: one head of a row after the other.
template <class A>
Index search_codes(MatrixView<const float> queries, Index heads, const NamedRows<float>& keys,
                   const NamedRows<std::int8_t>& codes, MatrixView<const float> scales, MatrixView<const float> bias, Index k,
                   HeadLists lists, Workspace& ws) {
  using B = Batch<float, A>;
  constexpr Index W = lanes<float, A>, tiles = 16, at_once = tiles * W;  // the rows and their products share L1
  static_assert(W == int_lanes<A>);
  const Index all = queries.rows() * heads, width = queries.cols() / heads, side = heads % 4 == 0 ? 4 : heads % 2 == 0 ? 2 : 1;
  const bool quads = has_quad_tile<A> && width == 16 && side == 4;
  const auto mark = ws.mark();
  const Index unit = quads ? 256 : 1, apart = quads ? width : query_codes_size(width);
  auto* const query = ws.take<std::int16_t>(all * query_codes_size(width));
  auto* const bounds = ws.take<HeadBounds<A>>(all / side);
  for (Index l = 0; l < all; ++l) {
    const float* const q = queries.row(l / heads) + l % heads * width;
    auto* const to = query + l * apart;
    const float scale = quantize_query(q, width, to, query_code_limit(unit * width)).scale / static_cast<float>(unit);
    double lost = 0;
    for (Index d = 0; d < width; ++d)
      lost += std::abs(static_cast<double>(q[d]) - static_cast<double>(scale) * static_cast<double>(unit * to[d]));
    const float per_scale = at_least(code_error(q, width, width, lost)),
                rest = at_least(underflow(width, sums_of(q, width).absolute));
    const double most = 0x1p31 * static_cast<double>(scale) + static_cast<double>(per_scale);  // products are below 2^31
    for (Index r = l % side; r < W; r += side) {
      HeadBounds<A>& b = bounds[l / side];
      b.per_product[r] = scale;
      b.per_scale[r] = per_scale;
      b.rest[r] = rest;
      b.fair[r] = static_cast<float>((0.5 * static_cast<double>(Survivors<A>::limit) - static_cast<double>(rest)) / most);
    }
  }
  for (Index l = 0; l < all && quads; l += 2) {  // as `quad_tile` reads them
    std::int16_t two[32];
    for (Index d = 0; d < 32; ++d) two[(1 - d % 2) * 16 + d / 2] = query[l * apart + d];
    std::copy_n(two, 32, query + l * apart);
  }
  return certify_heads<A>(queries, heads, keys, bias, k, lists, ws, [&](Survivors<A>** survivors) {
    const NamedRows<float> scale(scales, codes.names), added(bias, {});
    auto* const code_room = ws.take<std::int8_t>(at_once * codes.cols);
    auto* const room = ws.take<float>(2 * at_once * side);  // for scales and biases
    auto* const products = ws.take<std::int32_t>(at_once * side);
    std::fill_n(code_room, at_once * codes.cols, std::int8_t{0});  // whole tiles are read
    std::fill_n(room, 2 * at_once * side, 0.0f);
    const auto scan = [&]<int P>(std::integral_constant<int, P>, const auto look) {
      const auto as_lanes = [](const NamedRows<float>& x) { return x.names.empty() && x.stride == P && x.cols == P; };
      const bool in_place = as_lanes(scale) && (bias.empty() || as_lanes(added));
      // From memory, four streams come faster than one, if they take turns tile by tile.
      constexpr Index step = at_once / 4;
      Index between = codes.far() ? keys.count / at_once * step : 0;
      if (between / step % 2 == 0 && between > 0) between -= step;  // streams should not all want the same places of L1
      for (Index first = 0; first < keys.count; first += first < between ? step : at_once) {
        if (first == between) first *= 4;  // what the streams have left
        const Index height = std::min(at_once, keys.count - first), streams = first < between ? 4 : 1;
        const bool copied = height % W != 0;
        const Following<std::int8_t> rows = codes.block(first, height, code_room, copied);
        CodeTiles t{nullptr, rows.stride,          width,   nullptr, nullptr, in_place && !copied,
                    false,   (height + W - 1) / W, streams, between};
        const auto beside = [&](const NamedRows<float>& x, Index head, float* to) -> const float* {
          if (t.in_place) return x.row(first);
          for (Index i = 0; i < height; ++i) {
            const Index at = first + t.place(i / W, W) + i % W;
            const float* const row = x.row(at);
            prefetch(reinterpret_cast<std::uintptr_t>(x.row(std::min(at + 16, x.count - 1))));
            if (x.cols == 1) {
              std::fill_n(to + i * P, P, row[0]);
            } else {
              std::copy_n(row + head, P, to + i * P);
            }
          }
          return to;
        };
        for (Index l = 0; l < all; l += P) {
          const Index head = l % heads;
          const HeadBounds<A>& bound = bounds[l / P];
          t.codes = rows.first + head * width;
          t.scale = beside(scale, head, room);
          if (!bias.empty()) t.bias = beside(added, head, room + at_once * side);
          t.far = streams > 1 && l == 0;
          alignas(64) float thresholds[W];
          for (Index r = 0; r < W; ++r) thresholds[r] = survivors[l + r % P]->threshold();
          const B least = B::load_aligned(thresholds), lowest(-Survivors<A>::limit);
          // Hidden rows are as good as `lowest`: while that may do, all rows are looked at.
          const B beaten_by = xsimd::select(least > lowest, least, B(-std::numeric_limits<float>::infinity()));
          std::uint64_t kept = look(query + l * apart, apart, bound, beaten_by, t, products);
          for (; kept != 0; kept &= kept - 1) {
            const Index u = std::countr_zero(kept), at = t.place(u, W), there = (t.in_place ? at : u * W) * P;
            std::uint64_t keep = 0;
            alignas(64) float score[P * W], error[P * W];
            RECOPS_UNROLL
            for (int v = 0; v < P; ++v) {
              const B s = B::load_unaligned(t.scale + there + v * W);
              B dots =
                  B::load_aligned(bound.per_product) * xsimd::to_float(Words<A>::load_aligned(products + (u * P + v) * W)) * s;
              B eps = mul_add(s, B::load_aligned(bound.per_scale), B::load_aligned(bound.rest));
              if (t.bias != nullptr) add_bias<A>(B::load_unaligned(t.bias + there + v * W), dots, eps);
              dots.store_aligned(score + v * W);
              eps.store_aligned(error + v * W);
              const std::uint32_t beaten = mask_bits((dots + eps < least) & (dots - eps >= lowest));
              keep |= std::uint64_t{~beaten & ((2u << (W - 1)) - 1u)} << (v * W);
            }
            if (copied && height - at < W) keep &= (std::uint64_t{1} << ((height - at) * P)) - 1;
            for (; keep != 0; keep &= keep - 1) {
              const Index r = std::countr_zero(keep);
              survivors[l + r % P]->add_one(first + at + r / P, score[r], error[r]);
            }
          }
        }
      }
    };
    using One = std::integral_constant<int, 1>;
    using Two = std::integral_constant<int, 2>;
    using Four = std::integral_constant<int, 4>;
    if constexpr (has_quad_tile<A>)
      if (quads) return scan(Four(), &look_at_tiles<A, 4, 16>);
    if (side == 4) return scan(Four(), &look_at_tiles<A, 4, 0>);
    if (side == 2) return scan(Two(), width == 32 ? &look_at_tiles<A, 2, 32> : &look_at_tiles<A, 2, 0>);
    scan(One(), width == 64 ? &look_at_tiles<A, 1, 64> : &look_at_tiles<A, 1, 0>);
  });
}

/// By way of keys rounded to BFloat16, and the lengths of every head of the float keys.
template <class A>
Index search_rounded(MatrixView<const float> queries, Index heads, const NamedRows<float>& keys, const NamedRows<BFloat16>& copy,
                     MatrixView<const float> norms, MatrixView<const float> bias, Index k, HeadLists lists, Workspace& ws) {
  using B = Batch<float, A>;
  const Index n = queries.rows(), width = queries.cols() / heads;
  const auto mark = ws.mark();
  auto* const error = ws.take<RoundedError>(n * heads);
  for (Index l = 0; l < n * heads; ++l)
    error[l] = rounded_error(sums_of(queries.row(l / heads) + l % heads * width, width), width, /*half=*/false);
  return certify_heads<A>(queries, heads, keys, bias, k, lists, ws, [&](Survivors<A>** survivors) {
    HeadColumns<float, A> norm(norms, copy.names, ws), added(bias, {}, ws);
    BFloat16* const room = copy.room(head_block, ws);
    for (Index first = 0; first < keys.count; first += head_block) {
      const Index height = keys.count - first < head_block ? keys.count - first : head_block;
      norm.block(first, height);
      added.block(first, height);
      head_tiles<float, A>(queries, heads, copy.block(first, height, room), height, copy.far(),
                           [&](Index q, Index h, Index i, Index tile, B dots) RECOPS_LAMBDA_INLINE {
                             const Index l = q * heads + h;
                             const B eps = mul_add(norm.load(h, i, tile), B(error[l].per_norm), B(error[l].rest));
                             if (added.empty()) {
                               survivors[l]->add(first + i, tile, dots, eps);
                             } else {
                               add_biased<A>(*survivors[l], first + i, tile, dots, eps, added.load(h, i, tile));
                             }
                           });
    }
  });
}

/// Many queries: keys are turned into panels once for all of them, whose products need no sums across lanes. Those are summed in
/// another order, so they are a copy like others: off by no more than roundings.
template <class A>
Index search_panels(MatrixView<const float> queries, Index heads, const NamedRows<float>& keys, MatrixView<const float> bias,
                    Index k, HeadLists lists, Workspace& ws) {
  using B = Batch<float, A>;
  constexpr Index P = panel_width<float>;
  static_assert(head_block % P == 0);
  const Index n = queries.rows(), width = queries.cols() / heads;
  const auto mark = ws.mark();
  auto* const per_norm = ws.take<float>(n * heads);
  auto* const rest = ws.take<float>(n * heads);
  float* const by_head = ws.take<float>(n * heads * width);  // head by head: what panels are multiplied with stands together
  for (Index h = 0; h < heads; ++h) {
    for (Index q = 0; q < n; ++q) {
      const float* const x = queries.row(q) + h * width;
      std::copy_n(x, width, by_head + (h * n + q) * width);
      const QuerySums sums = sums_of(x, width);
      // |k|^2 below has roundings of its own. Beyond 2^62 (of either length) a sum might overflow in one order and not in the other,
      // which an eps so small beside |q| |k| would not tell: nothing is certain then.
      per_norm[h * n + q] =
          sums.length <= 0x1p62 ? at_least(sums.length * 2 * roundings(width)) : std::numeric_limits<float>::infinity();
      rest[h * n + q] =
          at_least(2 * underflow(width, sums.absolute) + sums.length * std::sqrt(static_cast<double>(width)) * 0x1p-62);
    }
  }
  return certify_heads<A>(queries, heads, keys, bias, k, lists, ws, [&](Survivors<A>** survivors) {
    HeadColumns<float, A> added(bias, {}, ws);
    float* const room = keys.room(head_block, ws);
    float* const panel = ws.take<float>(P * width);
    float* const norm = ws.take<float>(P);
    for (Index first = 0; first < keys.count; first += head_block) {
      const Index height = keys.count - first < head_block ? keys.count - first : head_block;
      const Following<float> rows = keys.block(first, height, room);
      added.block(first, height);
      for (Index h = 0; h < heads; ++h) {
        for (Index p = 0; p < height; p += P) {
          const Index filled = height - p < P ? height - p : P;
          simd::pack_panel<float, A>(
              [&](Index i) RECOPS_LAMBDA_INLINE {
                return i < filled ? rows.first + (p + i) * rows.stride + h * width : static_cast<const float*>(nullptr);
              },
              width, panel, norm);
          for (Index i = 0; i < P; i += lanes<float, A>) {
            const B length = xsimd::sqrt(B::load_aligned(norm + i)), infinity(std::numeric_limits<float>::infinity());
            xsimd::select(length <= B(0x1p62f), length, infinity).store_aligned(norm + i);  // NaN becomes infinity
          }
          simd::panel_products<float, A>(
              panel, width, by_head + h * n * width, width, n,
              [&](Index q, Index i, B dots) RECOPS_LAMBDA_INLINE {
                if (i >= filled) return;
                const Index tile = filled - i < lanes<float, A> ? filled - i : lanes<float, A>, at = p + i;
                const B eps = mul_add(B::load_aligned(norm + i), B(per_norm[h * n + q]), B(rest[h * n + q]));
                Survivors<A>& kept = *survivors[q * heads + h];
                if (added.empty()) {
                  kept.add(first + at, tile, dots, eps);
                } else {
                  add_biased<A>(kept, first + at, tile, dots, eps, added.load(h, at, tile));
                }
              },
              filled);
        }
      }
    }
  });
}

}  // namespace detail

}  // namespace simd
}  // namespace RECOPS_ABI
}  // namespace recops
