/// @file   tests/support/golden_layer.hpp
/// @brief  Compares a layer with golden vectors: output, gradient of the input and of every parameter, by name.
#pragma once
#include <recops/nn/gradient.hpp>
#include <recops/nn/layer.hpp>

#include "support/golden.hpp"
#include "support/numbers.hpp"

namespace recops_test {

/// Gives every parameter of the layer the golden numbers called `case.name`; sizes must agree. Empty parameters are left out.
template <class T, class L>
void set_parameters(const Golden& golden, const std::string& prefix, L& layer) {
  recops::visit(
      [&](const recops::FieldPath& path, auto& leaf) {
        if (path.kind != recops::FieldKind::parameter || recops::leaf_values(leaf).empty()) return;
        const auto values = golden.values<T>(prefix + path.str());
        auto to = recops::leaf_values(leaf);
        REQUIRE(to.size() == static_cast<recops::Index>(values.size()));
        std::copy(values.begin(), values.end(), to.begin());
      },
      layer);
}

/// What the golden case `name` holds against training forward and backward of `layer`, whose parameters are set first: the largest
/// difference relative to the largest number of each tensor (or 0.1). Backward runs twice, because it must add.
template <class T, class L>
double distance_to_golden(const Golden& golden, const std::string& name, L& layer, recops::IndexView offsets = {}) {
  using namespace recops;
  set_parameters<T>(golden, name + ".", layer);
  const Matrix<T> x = golden.matrix<T>(name + ".x"), dy = golden.matrix<T>(name + ".dy");
  const Matrix<double> y = golden.matrix<double>(name + ".y");
  Padded<T> out(y.rows(), y.cols()), dx(x.rows(), x.cols());
  L gradient = zeros_like(layer);
  typename L::Saved saved;
  Workspace ws;
  const JaggedView<const T> input = offsets.empty() ? JaggedView<const T>(x) : JaggedView<const T>(x, offsets);
  const LayerInput<T, L> in = recops::detail::input_of<L, T>(input, input.values());
  layer.forward(in, out, saved, Step{}, ws);
  for (int twice = 0; twice < 2; ++twice) layer.backward(in, dy.view(), saved, dx, gradient, ws);
  CHECK((out.intact() && dx.intact()));
  double worst = 0;
  const auto compare = [&](const std::string& what, const T* got, const std::vector<double>& expected, double times) {
    double most = 0.1, difference = 0;  // the floor: gradients that cancel to nothing leave rounding
    for (const double e : expected) most = std::max(most, std::abs(e));
    for (std::size_t i = 0; i < expected.size(); ++i)
      difference = std::max(difference, std::abs(static_cast<double>(got[i]) / times - expected[i]));
    if (difference / most > worst) UNSCOPED_INFO(name << ": " << what << " is off by " << difference / most);
    worst = std::max(worst, difference / most);
  };
  Matrix<T> whole(y.rows(), y.cols()), whole_dx(x.rows(), x.cols());
  for (Index i = 0; i < y.rows(); ++i) std::copy_n(out.view().row(i), y.cols(), whole.row(i));
  for (Index i = 0; i < x.rows(); ++i) std::copy_n(dx.view().row(i), x.cols(), whole_dx.row(i));
  compare("y", whole.data(), golden.values<double>(name + ".y"), 1);
  compare("dx", whole_dx.data(), golden.values<double>(name + ".dx"), 2);
  visit(
      [&](const FieldPath& path, const auto& leaf) {
        if constexpr (std::is_convertible_v<decltype(leaf_values(leaf).data()), const T*>)
          if (path.kind == FieldKind::parameter && !leaf_values(leaf).empty())
            compare("d " + path.str(), leaf_values(leaf).data(), golden.values<double>(name + ".d." + path.str()), 2);
      },
      gradient);
  return worst;
}

}  // namespace recops_test
