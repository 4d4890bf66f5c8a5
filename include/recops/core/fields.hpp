/// @file   recops/core/fields.hpp
/// @brief  The only reflection: a layer lists its fields once, and loading, saving, optimisers, zeroing, counting, gradient
///         checking and freezing all walk that list.
///
/// A layer says
///
///     static constexpr auto fields() {
///       return std::tuple{parameter("weight", &Linear::weight), parameter("bias", &Linear::bias)};
///     }
///
/// and `visit(f, a, b, ...)` calls `f(path, leaf_of_a, leaf_of_b, ...)` for every parameter and buffer of several values of one
/// type in lockstep (a layer, its gradient, its Adam moments), in the order of the list, descending into layers.
#pragma once
#include <recops/core/error.hpp>
#include <string>
#include <string_view>
#include <tuple>

namespace recops {

/// What a field is: learned, carried along (running statistics), one child, or several children named 0, 1, ...
enum class FieldKind { parameter, buffer, layer, layers };

/// One entry of a field list. `accessor` is a pointer to member or a captureless callable that gives the field by reference.
template <FieldKind Kind, class Accessor>
struct Field {
  static constexpr FieldKind kind = Kind;
  std::string_view name;  ///< as in PyTorch's state_dict; empty adds nothing to the path
  Accessor accessor;
};

template <class A>
RECOPS_INLINE constexpr auto parameter(std::string_view name, A accessor) {
  return Field<FieldKind::parameter, A>{name, accessor};
}
template <class A>
RECOPS_INLINE constexpr auto buffer(std::string_view name, A accessor) {
  return Field<FieldKind::buffer, A>{name, accessor};
}
/// A child layer; its leaves are called "name.leaf".
template <class A>
RECOPS_INLINE constexpr auto layer(std::string_view name, A accessor) {
  return Field<FieldKind::layer, A>{name, accessor};
}
/// A tuple, array or vector of child layers; their leaves are called "name.0.leaf", "name.1.leaf", ... as in ModuleList.
template <class A>
RECOPS_INLINE constexpr auto layers(std::string_view name, A accessor) {
  return Field<FieldKind::layers, A>{name, accessor};
}

/// A type with a field list.
template <class L>
concept HasFields = requires { std::remove_cvref_t<L>::fields(); };

inline namespace RECOPS_ABI {

/// Where a leaf is, without allocating; `str()` spells it out as "towers.0.weight".
struct FieldPath {
  const FieldPath* parent = nullptr;
  std::string_view name;
  Index number = -1;  ///< position in a list of layers, -1 for a named field
  FieldKind kind = FieldKind::layer;

  std::string str() const {
    std::string text = parent ? parent->str() : std::string();
    const std::string own = number >= 0 ? std::to_string(number) : std::string(name);
    if (!text.empty() && !own.empty()) text += '.';
    return text + own;
  }
};

namespace detail {

template <class A, class L>
constexpr auto& access(const A& accessor, L& object) {
  if constexpr (std::is_member_object_pointer_v<A>) {
    return object.*accessor;
  } else {
    return accessor(object);
  }
}

template <class F, class First, class... Rest>
void visit_at(F& f, const FieldPath& path, First& first, Rest&... rest);

template <class F, class First, class... Rest>
void visit_list(F& f, const FieldPath& path, First& first, Rest&... rest) {
  if constexpr (requires { std::tuple_size<std::remove_cv_t<First>>::value; }) {
    [[maybe_unused]] const auto one = [&]<std::size_t I>(std::integral_constant<std::size_t, I>) {
      visit_at(f, FieldPath{&path, {}, Index{I}, FieldKind::layer}, std::get<I>(first), std::get<I>(rest)...);
    };
    [&]<std::size_t... I>(std::index_sequence<I...>) {
      (one(std::integral_constant<std::size_t, I>()), ...);
    }(std::make_index_sequence<std::tuple_size_v<std::remove_cv_t<First>>>());
  } else {
    if (!((rest.size() == first.size()) && ...)) [[unlikely]]
      fail("visit", path.str().c_str(), "as many children in every value", "different numbers");
    for (std::size_t i = 0; i < first.size(); ++i)
      visit_at(f, FieldPath{&path, {}, static_cast<Index>(i), FieldKind::layer}, first[i], rest[i]...);
  }
}

template <class F, class First, class... Rest>
void visit_at(F& f, const FieldPath& path, First& first, Rest&... rest) {
  if constexpr (HasFields<First>) {
    std::apply(
        [&](const auto&... field) {
          [[maybe_unused]] const auto one = [&](const auto& entry) {
            using Entry = std::remove_cvref_t<decltype(entry)>;
            const FieldPath at{&path, entry.name, -1, Entry::kind};
            if constexpr (Entry::kind == FieldKind::layers) {
              visit_list(f, at, access(entry.accessor, first), access(entry.accessor, rest)...);
            } else if constexpr (Entry::kind == FieldKind::layer) {
              visit_at(f, at, access(entry.accessor, first), access(entry.accessor, rest)...);
            } else {
              f(at, access(entry.accessor, first), access(entry.accessor, rest)...);
            }
          };
          (one(field), ...);
        },
        std::remove_cv_t<First>::fields());
  } else {
    static_assert(HasFields<First>, "every child layer must have a static constexpr fields()");
  }
}

}  // namespace detail

/// Calls `f(const FieldPath&, leaf, leaves...)` for every parameter and buffer of `first` and, in lockstep, of `rest`, which
/// have the same type and the same number of children; throws `Error` if they have not. Allocates nothing.
template <class F, class First, class... Rest>
void visit(F&& f, First& first, Rest&... rest) {
  detail::visit_at(f, FieldPath{}, first, rest...);
}

}  // namespace RECOPS_ABI
}  // namespace recops
