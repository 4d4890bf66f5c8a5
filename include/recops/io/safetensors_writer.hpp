/// @file   recops/io/safetensors_writer.hpp
/// @brief  Writes tensors, of a layer or not, into a safetensors file.
///
///     recops::SafetensorsWriter writer;
///     writer.add("x", x.view());
///     writer.add("ids", recops::VectorView<const std::int64_t>(ids));
///     writer.write("batch.safetensors");
///
/// The bytes are those that the reference implementation writes: widest types first, then by name, numbers aligned to 8 bytes. The
/// header is read back by our own parser before anything is written, so that what is written can be read: names are UTF-8, no
/// name occurs twice. The file is complete before it takes its name (`AtomicFile`).
#pragma once
#include <recops/io/safetensors_header.hpp>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

inline void append_json(std::string& out, std::string_view text) {
  static constexpr char digits[] = "0123456789abcdef";
  out += '"';
  for (const char c : text) {
    const auto u = static_cast<unsigned char>(c);
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      default:
        if (u < 0x20) {
          out += {'\\', 'u', '0', '0', digits[u >> 4], digits[u & 15u]};
        } else {
          out += c;
        }
    }
  }
  out += '"';
}

}  // namespace detail

/// Collects views of tensors, which must live until the file is written, and writes them. Members called try_ return the reason
/// where they fail, empty where they do not; the others throw `Error`.
class SafetensorsWriter {
 public:
  /// Texts beside the tensors; PyTorch's loaders ask for the format.
  std::vector<std::pair<std::string, std::string>> metadata = {{"format", "pt"}};

  /// A matrix `[rows, cols]`, stored as `dtype` (none: as it is).
  template <class T>
  void add(std::string name, MatrixView<T> m, Dtype dtype = Dtype::none) {
    constexpr Dtype from = dtype_of<std::remove_const_t<T>>();
    static_assert(from != Dtype::none, "a number type that safetensors has");
    check_shape("SafetensorsWriter", detail::printable(name).c_str(), m, any_size, any_size);
    const Index width = dtype_bytes(from);
    entries_.push_back({std::move(name),
                        from,
                        dtype == Dtype::none ? from : dtype,
                        {m.rows(), m.cols()},
                        reinterpret_cast<const unsigned char*>(m.data()),
                        m.rows(),
                        m.cols(),
                        m.stride() * width});
  }
  /// A vector `[size]`.
  template <class T>
  void add(std::string name, VectorView<T> v, Dtype dtype = Dtype::none) {
    add(std::move(name), MatrixView<T>(v.data(), 1, v.size()), dtype);
    entries_.back().shape = {v.size()};
  }
  /// Numbers one after another, of any shape that has as many.
  template <class T>
  void add(std::string name, std::vector<Index> shape, VectorView<T> values, Dtype dtype = Dtype::none) {
    Index size = 1;
    bool fits = true;
    for (const Index extent : shape) fits = fits && extent >= 0 && !__builtin_mul_overflow(size, extent, &size);
    check_option("SafetensorsWriter", "shape", fits && size == values.size(), "as many numbers as there are",
                 static_cast<double>(size));
    add(std::move(name), values, dtype);
    entries_.back().shape = std::move(shape);
  }

  /// Writes the file; what was called `path` is replaced once it is complete.
  [[nodiscard]] std::string try_write(const std::string& path) {
    AtomicFile file;
    std::string reason = prepare();
    if (reason.empty()) reason = file.open(path);
    if (reason.empty()) reason = emit([&](const void* data, std::size_t size) { return file.write(data, size); });
    return reason.empty() ? file.commit() : reason;
  }
  void write(const std::string& path) {
    if (const std::string reason = try_write(path); !reason.empty())
      detail::fail_text("SafetensorsWriter: " + detail::printable(path) + ": " + reason);
  }
  /// The same into memory.
  [[nodiscard]] std::string try_write(std::vector<unsigned char>& bytes) {
    std::string reason = prepare();
    if (!reason.empty()) return reason;
    bytes.clear();
    return emit([&](const void* data, std::size_t size) {
      bytes.insert(bytes.end(), static_cast<const unsigned char*>(data), static_cast<const unsigned char*>(data) + size);
      return std::string();
    });
  }
  std::vector<unsigned char> bytes() {
    std::vector<unsigned char> all;
    if (const std::string reason = try_write(all); !reason.empty()) detail::fail_text("SafetensorsWriter: " + reason);
    return all;
  }

 private:
  struct Entry {
    std::string name;
    Dtype from, to;
    std::vector<Index> shape;
    const unsigned char* data;
    Index rows, cols, stride;  // stride in bytes
  };

  /// Checks everything, sorts the entries and makes the header.
  std::string prepare() {
    for (const Entry& e : entries_) {
      const auto refuse = [&](const std::string& expected, const std::string& got) {
        return "expected " + expected + ", got " + got + " for tensor \"" + detail::printable(e.name) + '"';
      };
      if (e.name == "__metadata__") return refuse("another name", "the one of the metadata");
      if (!is_convertible(e.from, e.to))
        return refuse("a type that becomes " + std::string(dtype_name(e.to)), std::string(dtype_name(e.from)));
      for (Index r = 0; r < e.rows; ++r)
        if (const Index i = first_misfit(e.from, e.data + r * e.stride, e.to, e.cols); i >= 0)
          return refuse("numbers that fit " + std::string(dtype_name(e.to)),
                        "one that does not at position " + std::to_string(r * e.cols + i));
    }
    std::sort(entries_.begin(), entries_.end(),
              [](const Entry& a, const Entry& b) { return a.to != b.to ? a.to > b.to : a.name < b.name; });
    header_ = "{";
    if (!metadata.empty()) {
      header_ += "\"__metadata__\":{";
      for (const auto& [key, value] : metadata) {
        if (header_.back() != '{') header_ += ',';
        detail::append_json(header_, key);
        header_ += ':';
        detail::append_json(header_, value);
      }
      header_ += '}';
    }
    Index begin = 0;
    for (const Entry& e : entries_) {
      const Index end = begin + e.rows * e.cols * dtype_bytes(e.to);
      if (header_.size() > 1) header_ += ',';
      detail::append_json(header_, e.name);
      header_ += ":{\"dtype\":\"" + std::string(dtype_name(e.to)) + "\",\"shape\":[";
      for (std::size_t i = 0; i < e.shape.size(); ++i) header_ += (i ? "," : "") + std::to_string(e.shape[i]);
      header_ += "],\"data_offsets\":[" + std::to_string(begin) + ',' + std::to_string(end) + "]}";
      begin = end;
    }
    header_ += '}';
    header_.resize((header_.size() + 7) / 8 * 8, ' ');
    if (header_.size() > detail::max_header_bytes) return "expected a header of at most 100000000 bytes, got more";
    std::vector<StoredTensor> tensors;
    std::vector<std::pair<std::string, std::string>> pairs;
    return detail::parse_header(header_, static_cast<std::size_t>(begin), tensors, pairs);
  }

  /// Hands the bytes of the file to `sink(data, size)` one piece after another, until it returns a reason to stop.
  template <class Sink>
  std::string emit(Sink&& sink) const {
    const std::uint64_t length = header_.size();
    std::string reason = sink(&length, sizeof length);
    if (reason.empty()) reason = sink(header_.data(), header_.size());
    constexpr Index block = 8192;
    std::vector<unsigned char> converted(block * 8);
    for (const Entry& e : entries_) {
      const Index from = dtype_bytes(e.from), to = dtype_bytes(e.to);
      for (Index r = 0; r < e.rows && e.cols > 0 && reason.empty(); ++r) {
        const unsigned char* row = e.data + r * e.stride;
        if (e.from == e.to) {
          const bool whole = e.stride == e.cols * from;
          reason = sink(row, static_cast<std::size_t>((whole ? e.rows : 1) * e.cols * from));
          if (whole) break;
          continue;
        }
        for (Index i = 0; i < e.cols && reason.empty(); i += block) {
          const Index n = std::min(block, e.cols - i);
          convert_numbers(e.from, row + i * from, e.to, converted.data(), n);
          reason = sink(converted.data(), static_cast<std::size_t>(n * to));
        }
      }
    }
    return reason;
  }

  std::vector<Entry> entries_;
  std::string header_;
};

}  // namespace RECOPS_ABI
}  // namespace recops
