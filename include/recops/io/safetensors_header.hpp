/// @file   recops/io/safetensors_header.hpp
/// @brief  A safetensors file in memory: its header checked to the last number, its tensors as views.
///
/// The file is 8 bytes of header length, a header in JSON, and the numbers of all tensors one after another:
///
///     {"__metadata__": {"format": "pt"}, "bias": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}, ...}
///
/// Refused, with a reason, is whatever is not exactly that: a header longer than the file or than 100 MB, that does not begin with
/// {, is not JSON in UTF-8, names anything twice, has a field too many, too few or of another kind; an unknown number type; sizes
/// or products of sizes beyond 2^63; bytes that do not fit type and shape; tensors that overlap, leave a gap or bytes over. Nesting
/// has no depth to run out of: the third level is already refused. Numbers themselves may be anything.
///
/// Cost        one pass over the header; the numbers are not read.
/// Reference   https://github.com/huggingface/safetensors, "Format"; this is stricter in that no name may occur twice, no field is
///             ignored, and a shape has at most 64 sizes. Types of less than a byte are not known.
#pragma once
#include <algorithm>
#include <recops/core/matrix.hpp>
#include <recops/io/dtype.hpp>
#include <recops/io/file.hpp>
#include <recops/io/json.hpp>
#include <vector>

namespace recops {
inline namespace RECOPS_ABI {

/// One tensor of a file; its numbers are row-major and not necessarily aligned.
struct StoredTensor {
  std::string name;
  Dtype dtype = Dtype::none;
  std::vector<Index> shape;        ///< empty for a single number
  std::size_t begin = 0, end = 0;  ///< where its bytes are, counted from the end of the header
  const unsigned char* bytes = nullptr;

  /// Numbers in it.
  Index size() const {
    Index n = 1;
    for (const Index extent : shape) n *= extent;
    return n;
  }
};

namespace detail {

inline constexpr std::size_t max_header_bytes = 100'000'000;  // that of the reference implementation
inline constexpr std::size_t max_rank = 64;

inline std::string shape_text(const std::vector<Index>& shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

/// Takes the events of a JsonReader; returns false, with a reason, at the first that a header cannot have.
class HeaderEvents {
 public:
  std::vector<StoredTensor> tensors;
  std::vector<std::pair<std::string, std::string>> metadata;
  std::string reason;

  bool null() { return unexpected("null"); }
  bool boolean(bool) { return unexpected("true or false"); }
  bool other_number(std::string_view text) { return unexpected("the number " + printable(text, 40)); }
  bool number(std::uint64_t x) {
    if (at_ != At::extents && at_ != At::offsets) return unexpected("the number " + std::to_string(x));
    if (x > static_cast<std::uint64_t>(PTRDIFF_MAX)) return refuse("a number below 2^63", std::to_string(x));
    if (at_ == At::extents) {
      if (tensors.back().shape.size() == max_rank) return refuse("a shape of at most 64 sizes", "more");
      tensors.back().shape.push_back(static_cast<Index>(x));
    } else {
      if (offsets_ == 2) return refuse("two data_offsets", "more");
      (offsets_++ == 0 ? tensors.back().begin : tensors.back().end) = static_cast<std::size_t>(x);
    }
    return true;
  }
  bool string(std::string& text) {
    if (at_ == At::metadata_value) {
      metadata.back().second = text;
      at_ = At::metadata;
      return true;
    }
    if (at_ != At::dtype) return unexpected("the text \"" + printable(text, 40) + "\"");
    tensors.back().dtype = dtype_from_name(text);
    if (tensors.back().dtype == Dtype::none)
      return refuse("a dtype of whole bytes that the format has", '"' + printable(text, 40) + '"');
    at_ = At::tensor;
    return true;
  }
  bool start_object() {
    if (at_ == At::start) {
      at_ = At::names;
    } else if (at_ == At::tensor_start) {
      at_ = At::tensor;
      fields_ = offsets_ = 0;
    } else if (at_ == At::metadata_start) {
      at_ = At::metadata;
    } else {
      return unexpected("an object");
    }
    return true;
  }
  bool key(std::string& text) {
    if (at_ == At::names) {
      if (text == "__metadata__") {
        if (has_metadata_) return refuse("one __metadata__", "two");
        has_metadata_ = true;
        at_ = At::metadata_start;
      } else {
        tensors.emplace_back();
        tensors.back().name = text;
        at_ = At::tensor_start;
      }
    } else if (at_ == At::metadata) {
      metadata.emplace_back(text, std::string());
      at_ = At::metadata_value;
    } else {  // At::tensor: in no other state does the grammar have a key
      const unsigned field = text == "dtype" ? 1u : text == "shape" ? 2u : text == "data_offsets" ? 4u : 0u;
      if (field == 0 || (fields_ & field) != 0)
        return refuse("dtype, shape and data_offsets, once each", (field ? "another \"" : "\"") + printable(text, 40) + '"');
      fields_ |= field;
      at_ = field == 1 ? At::dtype : field == 2 ? At::shape : At::data_offsets;
    }
    return true;
  }
  bool end_object() {
    if (at_ == At::tensor) {
      if (fields_ != 7) return refuse("dtype, shape and data_offsets", "fewer");
      at_ = At::names;
    } else if (at_ == At::metadata) {
      at_ = At::names;
    } else {
      at_ = At::end;
    }
    return true;
  }
  bool start_array() {
    if (at_ != At::shape && at_ != At::data_offsets) return unexpected("a list");
    at_ = at_ == At::shape ? At::extents : At::offsets;
    return true;
  }
  bool end_array() {
    if (at_ == At::offsets && offsets_ != 2) return refuse("two data_offsets", "fewer");
    at_ = At::tensor;
    return true;
  }

 private:
  enum class At {
    start,
    names,
    tensor_start,
    tensor,
    dtype,
    shape,
    extents,
    data_offsets,
    offsets,
    metadata_start,
    metadata,
    metadata_value,
    end
  };

  bool refuse(const char* expected, const std::string& got) {
    reason = std::string("expected ") + expected + ", got " + got;
    if (at_ == At::metadata_start || at_ == At::metadata || at_ == At::metadata_value) {
      reason += " in __metadata__";
    } else if (!tensors.empty() && at_ != At::names && at_ != At::end) {
      reason += " in tensor \"" + printable(tensors.back().name) + '"';
    }
    return false;
  }
  bool unexpected(const std::string& what) {
    switch (at_) {
      case At::start:
        return refuse("an object", what);
      case At::tensor_start:
        return refuse("an object with dtype, shape and data_offsets", what);
      case At::dtype:
        return refuse("a text as dtype", what);
      case At::shape:
        return refuse("a list as shape", what);
      case At::extents:
        return refuse("whole numbers from 0 to below 2^63 in shape", what);
      case At::data_offsets:
        return refuse("a list as data_offsets", what);
      case At::offsets:
        return refuse("whole numbers from 0 to below 2^63 in data_offsets", what);
      case At::metadata_start:
        return refuse("an object of texts", what);
      case At::metadata_value:
        return refuse("a text", what);
      default:
        return refuse("nothing of the kind", what);
    }
  }

  At at_ = At::start;
  unsigned fields_ = 0;
  int offsets_ = 0;
  bool has_metadata_ = false;
};

/// Parses a header in front of `data_bytes` bytes of numbers. Returns the reason where it is refused. Tensors come sorted by name.
inline std::string parse_header(std::string_view header, std::size_t data_bytes, std::vector<StoredTensor>& tensors,
                                std::vector<std::pair<std::string, std::string>>& metadata) {
  if (header.empty() || header.front() != '{') return "expected a header that begins with {, got another";
  if (header.substr(header.find_last_not_of(' ')).front() != '}')
    return "expected a header that ends with } and spaces, got another";

  HeaderEvents events;
  if (JsonReader<HeaderEvents> reader(header, events); !reader.read())
    return !events.reason.empty()
               ? events.reason
               : "expected a header in JSON and UTF-8, got something else at byte " + std::to_string(8 + reader.position()) +
                     ", near \"" + printable(header.substr(reader.position()), 40) + '"';

  std::vector<StoredTensor>& found = events.tensors;
  std::sort(found.begin(), found.end(),
            [](const StoredTensor& a, const StoredTensor& b) { return a.begin != b.begin ? a.begin < b.begin : a.end < b.end; });
  std::size_t covered = 0;
  for (const StoredTensor& t : found) {
    const auto refuse = [&](const std::string& expected, const std::string& got) {
      return "expected " + expected + ", got " + got + " for tensor \"" + printable(t.name) + '"';
    };
    const std::string offsets = "data_offsets [" + std::to_string(t.begin) + ", " + std::to_string(t.end) + ']';
    if (t.end < t.begin) return refuse("data_offsets that do not fall", offsets);
    if (t.end > data_bytes)
      return refuse("data_offsets within the file's " + std::to_string(data_bytes) + " bytes of numbers", offsets);
    Index bytes = dtype_bytes(t.dtype);
    for (const Index extent : t.shape)
      if (__builtin_mul_overflow(bytes, extent, &bytes)) return refuse("a shape below 2^63 bytes", shape_text(t.shape));
    if (static_cast<std::size_t>(bytes) != t.end - t.begin)
      return refuse(std::to_string(bytes) + " bytes of " + std::string(dtype_name(t.dtype)) + ' ' + shape_text(t.shape), offsets);
    if (t.begin != covered)
      return refuse("tensors that follow each other without overlap or gap, this one at byte " + std::to_string(covered),
                    offsets);
    covered = t.end;
  }
  if (covered != data_bytes)
    return "expected " + std::to_string(covered) + " bytes of numbers, got " + std::to_string(data_bytes);

  std::sort(found.begin(), found.end(), [](const StoredTensor& a, const StoredTensor& b) { return a.name < b.name; });
  const auto twice = std::adjacent_find(found.begin(), found.end(),
                                        [](const StoredTensor& a, const StoredTensor& b) { return a.name == b.name; });
  if (twice != found.end()) return "expected each name once, got \"" + printable(twice->name) + "\" twice";
  auto& pairs = events.metadata;
  std::sort(pairs.begin(), pairs.end());
  const auto pair =
      std::adjacent_find(pairs.begin(), pairs.end(), [](const auto& a, const auto& b) { return a.first == b.first; });
  if (pair != pairs.end()) return "expected each name once, got \"" + printable(pair->first) + "\" twice in __metadata__";
  tensors = std::move(found);
  metadata = std::move(pairs);
  return {};
}

}  // namespace detail

/// The tensors of a safetensors file, found by name. A copy is another view of the same bytes.
class Safetensors {
 public:
  Safetensors() = default;
  /// Of bytes that the caller keeps. Throws `Error` where they are not a sound file; `source` names them in messages.
  Safetensors(const void* data, std::size_t size, std::string source = "safetensors") {
    require(parse(data, size, source), source);
  }
  /// Of something with `data()` and `size()` in bytes that is kept as long as any copy of this: FileBytes, MappedFile, a vector.
  template <class Owner>
  requires(!std::is_lvalue_reference_v<Owner> &&
           sizeof(*std::declval<Owner&>().data()) == 1) explicit Safetensors(Owner&& bytes, std::string source = "safetensors") {
    require(take(static_cast<Owner&&>(bytes), source), source);
  }

  /// The same without exceptions: returns the reason of a refusal, empty where there is none. Refused, this stays as it was.
  [[nodiscard]] std::string parse(const void* data, std::size_t size, std::string source = "safetensors") {
    const auto* bytes = static_cast<const unsigned char*>(data);
    if (size < 8) return "expected at least 8 bytes, got " + std::to_string(size);
    std::uint64_t length = 0;
    std::memcpy(&length, bytes, 8);
    if (length > detail::max_header_bytes)
      return "expected a header of at most " + std::to_string(detail::max_header_bytes) + " bytes, got " + std::to_string(length);
    if (length > size - 8)
      return "expected a header within the " + std::to_string(size - 8) + " bytes behind its length, got " +
             std::to_string(length);
    const std::size_t begin = 8 + static_cast<std::size_t>(length);
    const std::string_view header(reinterpret_cast<const char*>(bytes) + 8, begin - 8);
    if (std::string reason = detail::parse_header(header, size - begin, tensors_, metadata_); !reason.empty()) return reason;
    for (StoredTensor& t : tensors_) t.bytes = bytes + begin + t.begin;
    source_ = std::move(source);
    owner_.reset();
    return {};
  }
  template <class Owner>
  requires(!std::is_lvalue_reference_v<Owner> && sizeof(*std::declval<Owner&>().data()) == 1) [[nodiscard]] std::string
      take(Owner&& bytes, std::string source = "safetensors") {
    auto kept = std::make_shared<Owner>(static_cast<Owner&&>(bytes));
    std::string reason = parse(kept->data(), kept->size(), std::move(source));
    if (reason.empty()) owner_ = std::move(kept);
    return reason;
  }

  /// Sorted by name.
  const std::vector<StoredTensor>& tensors() const { return tensors_; }
  /// Sorted by name.
  const std::vector<std::pair<std::string, std::string>>& metadata() const { return metadata_; }
  /// What the file is called in messages.
  const std::string& source() const { return source_; }

  /// Null where no tensor is called that. O(log n).
  const StoredTensor* find(std::string_view name) const {
    const auto at = std::lower_bound(tensors_.begin(), tensors_.end(), name,
                                     [](const StoredTensor& t, std::string_view wanted) { return t.name < wanted; });
    return at != tensors_.end() && at->name == name ? &*at : nullptr;
  }
  /// The tensor as a vector: no shape or one size. Throws `Error` for another name, shape or type, or a number that T cannot hold.
  template <class T>
  Vector<T> vector(std::string_view name) const;
  /// The tensor as a matrix: the last size is the columns, all before it are the rows. Throws as `vector` does.
  template <class T>
  Matrix<T> matrix(std::string_view name) const;

 private:
  static void require(const std::string& reason, const std::string& source) {
    if (!reason.empty()) detail::fail_text("Safetensors: " + detail::printable(source) + ": " + reason);
  }
  /// Fills `out`, which has room for all of the tensor.
  template <class T>
  void copy(const StoredTensor& t, T* out) const {
    const Dtype to = dtype_of<T>();
    const std::string name = std::string(source_) + ": " + detail::printable(t.name);
    if (!is_convertible(t.dtype, to))
      fail("Safetensors", name.c_str(), "a type that becomes " + std::string(dtype_name(to)), std::string(dtype_name(t.dtype)));
    if (const Index i = first_misfit(t.dtype, t.bytes, to, t.size()); i >= 0)
      fail("Safetensors", name.c_str(), "numbers that fit " + std::string(dtype_name(to)),
           "one that does not at position " + std::to_string(i));
    convert_numbers(t.dtype, t.bytes, to, out, t.size());
  }
  const StoredTensor& at(std::string_view name) const {
    const StoredTensor* t = find(name);
    if (!t) fail("Safetensors", source_.c_str(), "a tensor called " + detail::printable(name), "none");
    return *t;
  }

  std::vector<StoredTensor> tensors_;
  std::vector<std::pair<std::string, std::string>> metadata_;
  std::string source_ = "safetensors";
  std::shared_ptr<const void> owner_;
};

template <class T>
Vector<T> Safetensors::vector(std::string_view name) const {
  const StoredTensor& t = at(name);
  if (t.shape.size() > 1) fail("Safetensors", detail::printable(name).c_str(), "at most one size", detail::shape_text(t.shape));
  Vector<T> v(t.size());
  copy(t, v.data());
  return v;
}

template <class T>
Matrix<T> Safetensors::matrix(std::string_view name) const {
  const StoredTensor& t = at(name);
  if (t.shape.empty()) fail("Safetensors", detail::printable(name).c_str(), "at least one size", "[]");
  Index rows = 1;
  for (std::size_t i = 0; i + 1 < t.shape.size(); ++i) rows *= t.shape[i];
  Matrix<T> m(rows, t.shape.back());
  copy(t, m.data());
  return m;
}

}  // namespace RECOPS_ABI
}  // namespace recops
