/// @file   recops/diversity/selection.hpp
/// @brief  What every selector of the family returns: how many items it picked, and why it stopped.
#pragma once
#include <recops/core/views.hpp>

namespace recops {

/// Why a selector stopped. None of these is an error: what was picked is right in every case.
enum class SelectionStatus {
  ok,              ///< as many items as were asked for
  exhausted,       ///< fewer: every item that may be picked was picked
  rank_exhausted,  ///< fewer: what is left adds no volume (DPP)
  infeasible,      ///< fewer: what is left breaks a constraint that is never given up
};

/// How the picks are found; the picks are the same.
enum class SelectionEvaluation {
  lazy,   ///< only items whose score could still win are looked at
  eager,  ///< every item's score after every pick: for comparison
};

/// Result of a selector: `picks[0 .. count)` are valid; `status` is `ok` if and only if all places were filled.
struct Selection {
  Index count = 0;
  SelectionStatus status = SelectionStatus::ok;
  std::uint8_t relaxed = 0;  ///< constraints that were given up somewhere: a union of `ConstraintRule` (constraints.hpp)
};

}  // namespace recops
