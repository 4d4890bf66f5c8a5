/// @file   recops/io/safetensors.hpp
/// @brief  Loads and saves any layer: the weights of a PyTorch model come in here, and go out again.
///
///     recops::load(model, "model.safetensors", {.prefix = "ranker"});
///     recops::save(model, "model.safetensors", {.dtype = recops::Dtype::bf16});
///
/// Names       those of `fields()`, which are PyTorch's, behind `prefix`, renamed by `names`.
/// Types       float, double, BFloat16 and Float16 from F32, F64, BF16 and F16, rounded to nearest; integers (buffers such as
///             num_batches_tracked) from any integer type. A number that does not fit is refused, not cut.
/// Shapes      the layer's, exactly. A tensor may have further leading axes where memory is the same: [E, H, D] for a matrix
///             [E H, D], [E, H] for a vector [E H]; [] for a vector of one. A field that is empty in the layer must not be there.
/// Errors      one `Error` that lists what is missing, what is unused and what does not fit; the layer is untouched. Everything is
///             checked before the first number is written. `try_load` and `try_save` return that text instead.
/// Cost        the header, one pass over the numbers, and one before it where narrowing may fail; no copy of the file.
#pragma once
#include <recops/core/fields.hpp>
#include <recops/io/safetensors_writer.hpp>
#include <recops/nn/gradient.hpp>

namespace recops {
inline namespace RECOPS_ABI {

/// What is called `layer` in the layer, or anything inside it, is called `file` in the file: {"0.linear", {"fc1"}} finds
/// "0.linear.weight" as "fc1.weight". Several names are tensors joined along their first axis, {"experts", {"experts.0",
/// "experts.1"}}; saved, they are parts of equal size. The empty name leaves a part out. The longest rule that applies counts.
struct NameRule {
  std::string layer = {};
  std::vector<std::string> file = {};
};

/// Options of `load`.
struct LoadOptions {
  std::string prefix = {};           ///< part of the file that is the layer, e.g. "ranker.user"; what is outside does not count
  std::vector<NameRule> names = {};  ///< where names differ
  std::vector<std::string> ignore = {};  ///< tensors that may be unused: first or last dotted parts of their names in the file
  std::vector<std::string> keep = {};    ///< fields that may be missing and stay as they are: the same of names in the layer
  bool strict = true;                    ///< false: anything may be unused or missing (not of the wrong shape or type)
};

/// What `load` did.
struct LoadReport {
  Index loaded = 0;                       ///< fields of the layer that were filled
  std::vector<std::string> missing = {};  ///< names in the file of fields that stayed as they were, allowed to
  std::vector<std::string> unused = {};   ///< tensors that belong to no field, allowed to
};

/// Options of `save`.
struct SaveOptions {
  std::string prefix = {};           ///< in front of every name
  std::vector<NameRule> names = {};  ///< where names differ
  Dtype dtype = Dtype::none;         ///< of floating numbers in the file; none: the layer's
  std::vector<std::pair<std::string, std::string>> metadata = {
      {"format", "pt"}};  ///< texts; PyTorch's loaders ask for the format
};

namespace detail {

/// A field of a layer without its type.
struct LeafView {
  std::string name;
  Dtype dtype = Dtype::none;
  std::vector<Index> shape;
  const void* data = nullptr;
  void* writable = nullptr;
  bool empty = false;    // there is none in this layer
  bool by_rows = false;  // a gradient of a table

  Index size() const {
    Index n = 1;
    for (const Index extent : shape) n *= extent;
    return n;
  }
};

template <class Leaf>
void describe_leaf(Leaf& leaf, LeafView& out) {
  using Plain = std::remove_const_t<Leaf>;
  if constexpr (IsTable<Plain>::value) {
    describe_leaf(leaf.values, out);
    out.by_rows = leaf.by_rows;
  } else if constexpr (std::is_arithmetic_v<Plain>) {
    out.dtype = dtype_of<Plain>();
    out.data = &leaf;
    if constexpr (!std::is_const_v<Leaf>) out.writable = &leaf;
  } else {
    out.dtype = dtype_of<std::remove_cvref_t<decltype(*leaf.data())>>();
    out.data = leaf.data();
    if constexpr (!std::is_const_v<Leaf>) out.writable = leaf.data();
    if constexpr (requires { leaf.rows(); }) {
      out.shape = {leaf.rows(), leaf.cols()};
      out.empty = leaf.rows() == 0 && leaf.cols() == 0;
    } else {
      out.shape = {static_cast<Index>(leaf.size())};
      out.empty = leaf.size() == 0;
    }
  }
}

template <class L>
std::vector<LeafView> list_leaves(L& layer) {
  std::vector<LeafView> leaves;
  visit(
      [&](const FieldPath& path, auto& leaf) {
        leaves.emplace_back();
        leaves.back().name = path.str();
        describe_leaf(leaf, leaves.back());
      },
      layer);
  return leaves;
}

inline std::string join_names(const std::string& a, const std::string& b) { return a.empty() || b.empty() ? a + b : a + '.' + b; }

/// Whether `name` is `part` or begins with it and a dot.
inline bool is_inside(std::string_view name, std::string_view part) {
  return name.substr(0, part.size()) == part && (name.size() == part.size() || name[part.size()] == '.');
}
inline bool has_part(std::string_view name, std::string_view part) {
  if (part.empty()) return false;
  if (is_inside(name, part)) return true;
  return name.size() > part.size() && name.substr(name.size() - part.size()) == part &&
         name[name.size() - part.size() - 1] == '.';
}
inline bool has_any_part(std::string_view name, const std::vector<std::string>& parts) {
  for (const std::string& part : parts)
    if (has_part(name, part)) return true;
  return false;
}

inline std::string plain_prefix(std::string prefix) {
  if (!prefix.empty() && prefix.back() == '.') prefix.pop_back();
  return prefix;
}

/// Names in the file of every leaf. Returns the reason where a rule is no rule.
inline std::string file_names(const std::vector<LeafView>& leaves, const std::string& prefix, const std::vector<NameRule>& rules,
                              std::vector<std::vector<std::string>>& names) {
  std::vector<bool> applied(rules.size());
  names.clear();
  for (const LeafView& leaf : leaves) {
    std::size_t best = rules.size();
    for (std::size_t r = 0; r < rules.size(); ++r) {
      if (!is_inside(leaf.name, rules[r].layer)) continue;
      applied[r] = true;
      if (best == rules.size() || rules[r].layer.size() > rules[best].layer.size()) best = r;
    }
    names.emplace_back();
    if (best == rules.size()) {
      names.back() = {join_names(prefix, leaf.name)};
      continue;
    }
    const std::string rest = leaf.name.size() > rules[best].layer.size() ? leaf.name.substr(rules[best].layer.size() + 1) : "";
    for (const std::string& file : rules[best].file) names.back().push_back(join_names(prefix, join_names(file, rest)));
  }
  for (std::size_t r = 0; r < rules.size(); ++r) {
    const std::string shown = '"' + printable(rules[r].layer) + '"';
    if (rules[r].file.empty()) return "expected a name in the file for " + shown + " in names, got none";
    if (!applied[r]) return "expected a part that the layer has in names, got " + shown;
    for (std::size_t other = 0; other < r; ++other)
      if (rules[other].layer == rules[r].layer) return "expected one rule for each part in names, got two for " + shown;
  }
  return {};
}

/// Up to twenty names and how many there are.
inline std::string list_names(const std::vector<std::string>& names) {
  constexpr std::size_t most = 20;
  std::string text;
  for (std::size_t i = 0; i < names.size() && i < most; ++i) text += (i ? ", " : "") + printable(names[i]);
  return names.size() > most ? text + ", and " + std::to_string(names.size() - most) + " more" : text;
}

/// Numbers of a leaf that a tensor of this shape fills, one of several or all; -1 where it cannot.
inline Index filled_by(const LeafView& leaf, const StoredTensor& t, bool all) {
  if (leaf.shape.size() == 2) {
    if (t.shape.size() < 2 || t.shape.back() != leaf.shape[1]) return -1;
    if (all && t.shape.size() == 2 && t.shape[0] != leaf.shape[0]) return -1;
    if (leaf.shape[1] == 0) {  // then sizes say nothing of the rows
      Index rows = 1;
      for (std::size_t i = 0; i + 1 < t.shape.size(); ++i) rows *= t.shape[i];
      if (rows != leaf.shape[0]) return -1;
    }
  }
  if (leaf.shape.empty() && t.shape.size() > 1) return -1;
  return all && t.size() != leaf.size() ? -1 : t.size();
}

/// What fills a leaf.
struct LeafSource {
  std::vector<const StoredTensor*> parts;  // none: the leaf stays as it is
};

/// Finds and checks the tensors of all leaves. Returns the reason where anything is wrong.
inline std::string plan_load(const std::vector<LeafView>& leaves, const Safetensors& file, const LoadOptions& options,
                             std::vector<LeafSource>& plan, LoadReport& report) {
  const std::string prefix = plain_prefix(options.prefix);
  std::vector<std::vector<std::string>> names;
  if (std::string reason = file_names(leaves, prefix, options.names, names); !reason.empty()) return reason;

  const std::vector<StoredTensor>& tensors = file.tensors();
  std::vector<bool> used(tensors.size());
  std::vector<std::string> missing, unused, wrong;
  plan.assign(leaves.size(), {});
  for (std::size_t l = 0; l < leaves.size(); ++l) {
    const LeafView& leaf = leaves[l];
    const auto refuse = [&](const std::string& name, const std::string& expected, const std::string& got) {
      wrong.push_back(printable(name) + ": expected " + expected + ", got " + got);
    };
    std::vector<const StoredTensor*>& parts = plan[l].parts;
    std::vector<std::string> absent;
    for (const std::string& name : names[l]) {
      const StoredTensor* t = file.find(name);
      if (t) {
        used[static_cast<std::size_t>(t - tensors.data())] = true;
        parts.push_back(t);
      } else {
        absent.push_back(name);
      }
    }
    if (leaf.empty) {
      for (const StoredTensor* t : parts)
        if (t->size() != 0) refuse(t->name, "none, as the layer has none", shape_text(t->shape));
      parts.clear();
      continue;
    }
    if (leaf.by_rows) {
      refuse(leaf.name, "a dense table", "a gradient by rows");
      continue;
    }
    if (!absent.empty()) {
      const bool allowed = parts.empty() && (!options.strict || has_any_part(leaf.name, options.keep));
      auto& list = allowed ? report.missing : missing;
      list.insert(list.end(), absent.begin(), absent.end());
      continue;
    }
    Index filled = 0;
    bool fits = true;
    for (const StoredTensor* t : parts) {
      const Index n = filled_by(leaf, *t, parts.size() == 1);
      fits = fits && n >= 0 && n <= leaf.size() - filled;
      if (!fits) {
        refuse(t->name, (parts.size() > 1 ? "a part of " : "") + shape_text(leaf.shape), shape_text(t->shape));
        break;
      }
      filled += n;
      if (!is_convertible(t->dtype, leaf.dtype)) {
        refuse(t->name, "a type that becomes " + std::string(dtype_name(leaf.dtype)), std::string(dtype_name(t->dtype)));
      } else if (const Index i = first_misfit(t->dtype, t->bytes, leaf.dtype, n); i >= 0) {
        refuse(t->name, "numbers that fit " + std::string(dtype_name(leaf.dtype)),
               "one of " + std::string(dtype_name(t->dtype)) + " that does not, at position " + std::to_string(i));
      }
    }
    if (fits && filled != leaf.size())
      refuse(leaf.name, "parts that make " + shape_text(leaf.shape), std::to_string(filled) + " numbers");
    ++report.loaded;
  }
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const std::string& name = tensors[i].name;
    if (used[i] || (!prefix.empty() && !is_inside(name, prefix))) continue;
    (!options.strict || has_any_part(name, options.ignore) ? report.unused : unused).push_back(name);
  }
  if (missing.empty() && unused.empty() && wrong.empty()) return {};

  std::string reason = "expected every tensor of the layer and no other, got ";
  const auto add = [&](const std::vector<std::string>& list, const char* what) {
    if (list.empty()) return;
    if (reason.back() != ' ') reason += "; ";
    reason += std::to_string(list.size()) + what + list_names(list);
  };
  add(missing, " missing: ");
  add(unused, " unused: ");
  add(wrong, " that do not fit: ");
  return reason;
}

/// Cannot fail: all has been checked.
inline void execute_load(const std::vector<LeafView>& leaves, const std::vector<LeafSource>& plan) {
  for (std::size_t l = 0; l < leaves.size(); ++l) {
    auto* out = static_cast<unsigned char*>(leaves[l].writable);
    for (const StoredTensor* t : plan[l].parts) {
      const Index n = t->size();
      convert_numbers(t->dtype, t->bytes, leaves[l].dtype, out, n);
      if (n > 0) out += n * dtype_bytes(leaves[l].dtype);
    }
  }
}

inline std::string load_leaves(const std::vector<LeafView>& leaves, const Safetensors& file, const LoadOptions& options,
                               LoadReport* report) {
  LoadReport made;
  std::vector<LeafSource> plan;
  std::string reason = plan_load(leaves, file, options, plan, made);
  if (!reason.empty()) return reason;
  if (report) *report = std::move(made);
  execute_load(leaves, plan);
  return {};
}

template <class T>
VectorView<const T> leaf_numbers(const LeafView& leaf) {
  return VectorView<const T>(static_cast<const T*>(leaf.data), leaf.size());
}

/// Adds a leaf, or one of its parts, to a file.
inline std::string save_leaves(const std::vector<LeafView>& leaves, const SaveOptions& options, SafetensorsWriter& writer) {
  std::vector<std::vector<std::string>> names;
  if (std::string reason = file_names(leaves, plain_prefix(options.prefix), options.names, names); !reason.empty()) return reason;
  if (options.dtype != Dtype::none && !is_floating(options.dtype))
    return "expected a floating type for dtype, got " + std::string(dtype_name(options.dtype));
  writer.metadata = options.metadata;
  for (std::size_t l = 0; l < leaves.size(); ++l) {
    const LeafView& leaf = leaves[l];
    if (leaf.empty) continue;
    if (leaf.by_rows) return "expected dense tables, got a gradient by rows for \"" + printable(leaf.name) + '"';
    const auto parts = static_cast<Index>(names[l].size());
    std::vector<Index> shape = leaf.shape;
    if (parts > 1) {
      if (shape.empty() || shape[0] % parts != 0)
        return "expected a first axis that " + std::to_string(parts) + " parts share evenly, got " + shape_text(shape) +
               " for \"" + printable(leaf.name) + '"';
      shape[0] /= parts;
    }
    const Index n = leaf.size() / parts;
    const Dtype dtype = is_floating(leaf.dtype) ? options.dtype : Dtype::none;
    const auto add = [&](auto zero) {
      using T = decltype(zero);
      for (Index p = 0; p < parts; ++p)
        writer.add(names[l][static_cast<std::size_t>(p)], shape, leaf_numbers<T>(leaf).segment(p * n, n), dtype);
    };
    if (leaf.dtype == Dtype::boolean) add(bool());
    with_floating(leaf.dtype, add);
    with_integer(leaf.dtype, add);
  }
  return {};
}

}  // namespace detail

/// Reads a whole file. Throws `Error` where it cannot be read or is not sound.
inline Safetensors read_safetensors(const std::string& path) {
  FileBytes bytes;
  if (const std::string reason = bytes.read(path); !reason.empty())
    detail::fail_text("read_safetensors: " + detail::printable(path) + ": " + reason);
  return Safetensors(std::move(bytes), path);
}
/// The same into `file`, which stays as it was where there is a reason to refuse; returns that reason, else nothing.
[[nodiscard]] inline std::string try_read_safetensors(const std::string& path, Safetensors& file) {
  FileBytes bytes;
  std::string reason = bytes.read(path);
  return reason.empty() ? file.take(std::move(bytes), path) : reason;
}

/// Fills every parameter and buffer of `layer`, or none. Returns the reason where it does none, empty where it did.
template <class L>
[[nodiscard]] std::string try_load(L& layer, const Safetensors& file, const LoadOptions& options = {},
                                   LoadReport* report = nullptr) {
  return detail::load_leaves(detail::list_leaves(layer), file, options, report);
}
/// The same from a file that is read first.
template <class L>
[[nodiscard]] std::string try_load(L& layer, const std::string& path, const LoadOptions& options = {},
                                   LoadReport* report = nullptr) {
  Safetensors file;
  std::string reason = try_read_safetensors(path, file);
  return reason.empty() ? try_load(layer, file, options, report) : reason;
}
/// The same, throwing `Error`.
template <class L>
LoadReport load(L& layer, const Safetensors& file, const LoadOptions& options = {}) {
  LoadReport report;
  if (const std::string reason = try_load(layer, file, options, &report); !reason.empty())
    detail::fail_text("load: " + detail::printable(file.source()) + ": " + reason);
  return report;
}
template <class L>
LoadReport load(L& layer, const std::string& path, const LoadOptions& options = {}) {
  return load(layer, read_safetensors(path), options);
}

/// Writes every parameter and buffer of `layer` into a file that takes its name once it is complete. Returns the reason where it
/// is not written, empty where it is.
template <class L>
[[nodiscard]] std::string try_save(const L& layer, const std::string& path, const SaveOptions& options = {}) {
  SafetensorsWriter writer;
  std::string reason = detail::save_leaves(detail::list_leaves(layer), options, writer);
  return reason.empty() ? writer.try_write(path) : reason;
}
/// The same, throwing `Error`.
template <class L>
void save(const L& layer, const std::string& path, const SaveOptions& options = {}) {
  if (const std::string reason = try_save(layer, path, options); !reason.empty())
    detail::fail_text("save: " + detail::printable(path) + ": " + reason);
}

}  // namespace RECOPS_ABI
}  // namespace recops
