/// @file   recops/gating/gate_map.hpp
/// @brief  Which experts each task may see: what gates and their mixtures share.
#pragma once
#include <recops/core/error.hpp>
#include <vector>

namespace recops {

inline constexpr Index max_gates = Index{1} << 30;  ///< of all tasks together

inline namespace RECOPS_ABI {

/// Which experts each task may see, as compact index lists.
class GateMap {
 public:
  GateMap() = default;
  /// Every task sees every expert, in order. Errors are reported as `name`'s.
  GateMap(Index tasks, Index experts, const char* name = "GateMap") : experts_(experts), dense_(true) {
    check(name, tasks, experts);
    for (Index t = 0; t < tasks; ++t) {
      for (Index e = 0; e < experts; ++e) list_.push_back(static_cast<std::int32_t>(e));
      begin_.push_back((t + 1) * experts);
    }
  }
  /// One list per task, gates in the order of the list: `GateMap(3, {{0, 2}, {1, 2}})`. Throws `Error` for an expert that is out
  /// of range or named twice.
  GateMap(Index experts, const std::vector<std::vector<Index>>& visible, const char* name = "GateMap") : experts_(experts) {
    check(name, static_cast<Index>(visible.size()), experts);
    for (const std::vector<Index>& own : visible) {
      for (std::size_t i = 0; i < own.size(); ++i) {
        check_option(name, "visible expert", own[i] >= 0 && own[i] < experts, "an expert from 0 to below the number of experts",
                     static_cast<double>(own[i]));
        for (std::size_t j = 0; j < i; ++j)
          check_option(name, "visible expert", own[i] != own[j], "an expert named once per task", static_cast<double>(own[i]));
        list_.push_back(static_cast<std::int32_t>(own[i]));
      }
      begin_.push_back(static_cast<Index>(list_.size()));
    }
    find_dense();
  }
  /// From a mask `[T, E]`: true where task t sees expert e.
  static GateMap from_mask(MatrixView<const bool> mask) {
    check_shape("GateMap", "mask", mask, any_size, any_size);
    std::vector<std::vector<Index>> visible(static_cast<std::size_t>(mask.rows()));
    for (Index t = 0; t < mask.rows(); ++t)
      for (Index e = 0; e < mask.cols(); ++e)
        if (mask(t, e)) visible[static_cast<std::size_t>(t)].push_back(e);
    return GateMap(mask.cols(), visible);
  }

  Index tasks() const { return static_cast<Index>(begin_.size()) - 1; }
  Index experts() const { return experts_; }
  /// Number of gates G.
  Index size() const { return static_cast<Index>(list_.size()); }
  /// First gate of task `t`, and one past its last.
  Index begin(Index t) const { return begin_[static_cast<std::size_t>(t)]; }
  Index end(Index t) const { return begin_[static_cast<std::size_t>(t) + 1]; }
  /// Number of experts task `t` sees, E_t.
  Index count(Index t) const { return end(t) - begin(t); }
  /// The expert behind gate `g`.
  Index expert(Index g) const { return list_[static_cast<std::size_t>(g)]; }
  /// Every task sees every expert in order: gates are `[B, T, E]`.
  bool is_dense() const { return dense_; }
  /// The same tasks see the same experts in the same order.
  bool operator==(const GateMap&) const = default;

 private:
  static void check(const char* name, Index tasks, Index experts) {
    check_option(name, "tasks", tasks >= 1 && tasks <= 65536, "1 to 65536 tasks", static_cast<double>(tasks));
    check_option(name, "experts", experts >= 1 && experts <= 65536 && tasks * experts <= max_gates, "1 to 65536 experts",
                 static_cast<double>(experts));
  }
  void find_dense() {
    dense_ = true;
    for (Index t = 0; t < tasks() && dense_; ++t) {
      dense_ = count(t) == experts_;
      for (Index e = 0; e < experts_ && dense_; ++e) dense_ = expert(begin(t) + e) == e;
    }
  }

  std::vector<std::int32_t> list_;
  std::vector<Index> begin_{0};
  Index experts_ = 0;
  bool dense_ = false;
};

}  // namespace RECOPS_ABI
}  // namespace recops
