/// @file   recops/attention/projected_key_cache.hpp
/// @brief  ProjectedKeyCache: item -> its projected key h Wk^T for all heads, with the version of the parameters it was made with.
///
/// What TWIN projects of a behaviour depends on the item alone: whoever watched it, it is the same row. The cache keeps that row in
/// float and, for a search that reads a quarter or half of the bytes, beside it in int8 or BFloat16; `twin_search` selects the same
/// behaviours with any of them, because the floats decide where the copy cannot.
///
/// Versions   `set_version` says that parameters (or `forget`, that one item) changed. `refresh` projects again what is not of the
///            current version; until then `keys` refuses such items, or serves them as they are where `allow_stale` is set: a search
///            with stale keys is consistent with the parameters of then, not of now.
/// Memory     bytes an item: 4 H dk + 8, and H dk + 4 H in int8, 2 H dk + 4 H in BFloat16.
/// Threads    `const` calls are safe from many; a call that changes the cache needs it alone.
/// Errors     Error for items out of range, shapes that disagree, items that are missing or stale; nothing is changed then.
/// Reference  Chang et al., TWIN, arXiv 2302.02352, section 3.4.3 (there refreshed every 15 minutes).
#pragma once
#include <recops/attention/twin_search.hpp>

namespace recops {
inline namespace RECOPS_ABI {

/// `S`: the format that a search reads, float, BFloat16 or std::int8_t.
template <class S = float>
class ProjectedKeyCache {
  static_assert(std::is_same_v<S, float> || std::is_same_v<S, BFloat16> || std::is_same_v<S, std::int8_t>,
                "keys are kept as float, BFloat16 or std::int8_t");

 public:
  ProjectedKeyCache() = default;
  /// For items 0 .. items - 1, none of them there yet. Throws `Error` for sizes that make no key.
  ProjectedKeyCache(Index items, Index heads, Index key_width) : heads_(heads) {
    const char* op = "ProjectedKeyCache";
    check_option(op, "items", items >= 0, "items >= 0", static_cast<double>(items));
    check_option(op, "heads", heads >= 1, "heads >= 1", static_cast<double>(heads));
    check_option(op, "key_width", key_width >= 1, "key_width >= 1", static_cast<double>(key_width));
    exact_ = Matrix<float>(items, heads * key_width, 0.0f);
    versions_ = Vector<std::int64_t>(items, missing);
    if constexpr (!std::is_same_v<S, float>) {
      copy_.resize(items, heads * key_width);
      beside_ = Matrix<float>(items, heads, 0.0f);
    }
  }

  Index items() const { return exact_.rows(); }
  Index key_cols() const { return exact_.cols(); }
  /// Bytes of keys, what stands beside them, and versions.
  Index bytes() const {
    return items() * (key_cols() * Index{sizeof(float)} + Index{sizeof(std::int64_t)}) +
           copy_.rows() * copy_.cols() * Index{sizeof(S)} + beside_.rows() * beside_.cols() * Index{sizeof(float)};
  }

  std::int64_t version() const { return version_; }
  /// From now on keys are of this version; those of another are stale. Throws `Error` if it is negative.
  void set_version(std::int64_t version) {
    check_option("ProjectedKeyCache", "version", version >= 0, "version >= 0", static_cast<double>(version));
    version_ = version;
  }
  /// The features of an item changed, or it is gone.
  void forget(Index item) {
    check_option("ProjectedKeyCache", "item", 0 <= item && item < items(), "an item of the cache", static_cast<double>(item));
    versions_[item] = missing;
  }
  /// Whether the item's key is there and of the current version.
  bool fresh(Index item) const { return 0 <= item && item < items() && versions_[item] == version_; }

  /// Stores keys [n, H dk] of n items under the current version.
  void store(IndexView which, MatrixView<const float> keys) {
    const char* op = "ProjectedKeyCache::store";
    check_indices(op, "items", which, items());
    check_shape(op, "keys", keys, which.size(), key_cols());
    const Index width = key_cols() / heads_;
    for (Index i = 0; i < which.size(); ++i) {
      const Index item = which[i];
      const MatrixView<float> row = exact_.view().middle_rows(item, 1);
      std::copy_n(keys.row(i), key_cols(), row.data());
      if constexpr (std::is_same_v<S, std::int8_t>) {
        simd::quantize_rows(row, width, copy_.view().middle_rows(item, 1), beside_.view().middle_rows(item, 1));
      } else if constexpr (std::is_same_v<S, BFloat16>) {
        simd::convert(exact_.row(item), copy_.row(item), key_cols());
        for (Index a = 0; a < heads_; ++a)
          simd::row_norms<float>(row.middle_cols(a * width, width), VectorView<float>(beside_.row(item) + a, 1));
      }
      versions_[item] = version_;
    }
  }

  /// Projects and stores those of `which` that are not fresh, each once, by `model.project_keys` (FrozenTwin): inherent [n, D] are
  /// the features of the n items. Returns how many were projected.
  template <class Model>
  Index refresh(const Model& model, IndexView which, MatrixView<const float> inherent, Workspace& ws) {
    const char* op = "ProjectedKeyCache::refresh";
    check_indices(op, "items", which, items());
    check_shape(op, "inherent", inherent, which.size(), any_size);
    check_option(op, "model", model.key_cols() == key_cols(), "one whose keys are as wide as the cache's",
                 static_cast<double>(model.key_cols()));
    constexpr Index block = 256;
    const auto mark = ws.mark();
    const MatrixView<float> rows = ws.matrix<float>(block, inherent.cols()), keys = ws.matrix<float>(block, key_cols());
    auto* const some = ws.take<std::int64_t>(block);
    Index count = 0, all = 0;
    const auto flush = [&] {
      model.project_keys(rows.middle_rows(0, count), keys.middle_rows(0, count), ws);
      store(IndexView(some, count), keys.middle_rows(0, count));
      all += count;
      count = 0;
    };
    for (Index i = 0; i < which.size(); ++i) {
      if (versions_[which[i]] == version_) continue;
      if (std::find(some, some + count, which[i]) != some + count) continue;
      std::copy_n(inherent.row(i), inherent.cols(), rows.row(count));
      some[count++] = which[i];
      if (count == block) flush();
    }
    if (count > 0) flush();
    return all;
  }

  /// What `twin_search` and `FrozenTwin` read for histories of these items: `history` [total_L], users by `offsets` [B + 1] (empty:
  /// one user). Views of the cache and of both arguments, which must outlive their use.
  SearchKeys<float> keys(IndexView history, IndexView offsets = {}, bool allow_stale = false) const {
    const char* op = "ProjectedKeyCache::keys";
    check_indices(op, "history", history, items());
    for (Index l = 0; l < history.size(); ++l) {
      const std::int64_t v = versions_[history[l]];
      if (v == missing || (!allow_stale && v != version_)) [[unlikely]]
        detail::fail_at(op, "history", "items whose keys are there, of version ", static_cast<Index>(version_), l, history[l]);
    }
    SearchKeys<float> k;
    k.exact = exact_;
    k.rows = history;
    k.offsets = offsets;
    if (history.empty()) k.exact = exact_.view().middle_rows(0, 0);
    if (history.empty()) return k;
    if constexpr (std::is_same_v<S, std::int8_t>) k.int8 = {copy_, beside_, key_cols() / heads_};
    if constexpr (std::is_same_v<S, BFloat16>) {
      k.bfloat16 = copy_;
      k.norms = beside_;
    }
    return k;
  }

 private:
  static constexpr std::int64_t missing = -1;
  Index heads_ = 1;
  std::int64_t version_ = 0;
  Matrix<float> exact_;   // [items, H dk]
  Matrix<S> copy_;        // the same rounded
  Matrix<float> beside_;  // [items, H]: scales or norms
  Vector<std::int64_t> versions_;
};

}  // namespace RECOPS_ABI
}  // namespace recops
