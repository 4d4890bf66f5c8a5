/// @file   recops/nn/gradient.hpp
/// @brief  Walks over a layer's parameters: gradients, zeroing, counting.
#pragma once
#include <recops/core/fields.hpp>
#include <recops/nn/table.hpp>

namespace recops {
inline namespace RECOPS_ABI {

namespace detail {
template <class Leaf>
struct IsTable : std::false_type {};
template <class T>
struct IsTable<Table<T>> : std::true_type {};

/// Two leaves of one type, matrices, vectors or tables' values, are of the same shape.
template <class Leaf>
bool same_shape(const Leaf& a, const Leaf& b) {
  if constexpr (IsTable<Leaf>::value) {
    return same_shape(a.values, b.values);
  } else if constexpr (requires { a.cols(); }) {
    return a.rows() == b.rows() && a.cols() == b.cols();
  } else {
    return a.size() == b.size();
  }
}
}  // namespace detail

/// The numbers of a parameter or buffer: all of a Matrix or Vector, the `values` of a Table.
template <class Leaf>
auto leaf_values(Leaf& leaf) {
  using Value = std::remove_reference_t<decltype(leaf)>;
  if constexpr (detail::IsTable<std::remove_const_t<Value>>::value) {
    return leaf_values(leaf.values);
  } else if constexpr (requires { leaf.rows(); }) {
    return VectorView(leaf.data(), leaf.rows() * leaf.cols());
  } else {
    return VectorView(leaf.data(), leaf.size());
  }
}

/// Sets a gradient to zero for the next step: dense leaves are filled, tables by rows forget them. Allocates nothing.
template <class L>
void zero_gradient(L& gradient) {
  visit(
      [](const FieldPath&, auto& leaf) {
        if constexpr (detail::IsTable<std::remove_cvref_t<decltype(leaf)>>::value) {
          if (leaf.by_rows) leaf.clear_rows(leaf.values.cols());  // then no values are left to fill
        }
        for (auto& value : leaf_values(leaf)) value = {};
      },
      gradient);
}

/// A layer of the same shape with every number 0: tables dense. What an optimiser keeps its moments in.
template <class L>
L zeros_like(const L& layer) {
  L zero = layer;
  visit(
      [](const FieldPath&, auto& leaf) {
        for (auto& value : leaf_values(leaf)) value = {};
      },
      zero);
  return zero;
}

/// A gradient for `layer`: the same type and options, dense leaves 0, tables by rows and untouched.
template <class L>
L make_gradient(const L& layer) {
  L gradient = layer;
  visit(
      [](const FieldPath&, auto& leaf) {
        using Leaf = std::remove_cvref_t<decltype(leaf)>;
        if constexpr (detail::IsTable<Leaf>::value) {
          const Index cols = leaf.values.cols();
          leaf = Leaf{};  // gives the copy's memory back
          leaf.clear_rows(cols);
        }
      },
      gradient);
  zero_gradient(gradient);
  return gradient;
}

namespace detail {

/// Names the parameter, its shape and that of what was given as its gradient.
template <class Leaf>
[[gnu::cold, gnu::noinline]] void fail_gradient(const char* operation, const FieldPath& path, const Leaf& parameter, const Leaf& g) {
  const std::string name = "gradient of " + path.str();
  if constexpr (IsTable<Leaf>::value) {
    check_shape(operation, name.c_str(), g.values.view(), parameter.values.rows(), parameter.values.cols());
  } else if constexpr (requires { g.rows(); }) {
    check_shape(operation, name.c_str(), g.view(), parameter.rows(), parameter.cols());
  } else {
    check_size(operation, name.c_str(), leaf_values(g), parameter.size());
  }
  fail(operation, name.c_str(), "rows as wide as the table's", "others");
}

}  // namespace detail

/// Every parameter of `gradient` must have the shape of its parameter in `layer` or be empty; one by rows, rows and width that
/// fit it. What a layer of several parts checks before the first of them writes. Throws `Error`.
template <class L>
void check_gradient_shapes(const char* operation, const L& layer, const L& gradient) {
  visit(
      [operation](const FieldPath& path, const auto& parameter, const auto& g) {
        if (path.kind != FieldKind::parameter) return;
        bool fits = leaf_values(g).empty() || detail::same_shape(parameter, g);
        if constexpr (detail::IsTable<std::remove_cvref_t<decltype(g)>>::value) {
          if (g.by_rows) {
            check_shape(operation, "gradient values", g.values.view(), g.rows.size(), any_size);
            check_indices(operation, "gradient rows", g.rows, parameter.values.rows());
            fits = g.rows.empty() || g.values.cols() == parameter.values.cols();
          }
        }
        if (!fits) [[unlikely]]
          detail::fail_gradient(operation, path, parameter, g);
      },
      layer, gradient);
}

/// Learned numbers in `layer`; buffers do not count.
template <class L>
Index parameter_count(const L& layer) {
  Index count = 0;
  visit(
      [&](const FieldPath& path, const auto& leaf) {
        if (path.kind == FieldKind::parameter) count += leaf_values(leaf).size();
      },
      layer);
  return count;
}

}  // namespace RECOPS_ABI
}  // namespace recops
