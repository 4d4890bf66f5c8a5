/// @file   recops/io/mapped_file.hpp
/// @brief  A file as memory: pages are read when they are touched, and shared by every process that maps the file.
///
///     recops::Safetensors weights(recops::MappedFile("model.safetensors"), "model.safetensors");
///
/// Whoever shortens the file while it is mapped ends the program with SIGBUS, and whoever writes into it changes what has been
/// checked: map only files that are replaced, as `save` does, and not written in place. Else read them (`FileBytes`).
#pragma once
#include <sys/mman.h>

#include <recops/io/file.hpp>
#include <utility>

namespace recops {
inline namespace RECOPS_ABI {

/// The bytes of a mapped file, for reading only. Move-only.
class MappedFile {
 public:
  MappedFile() = default;
  /// Throws `Error` where the file cannot be mapped.
  explicit MappedFile(const std::string& path) {
    if (const std::string reason = open(path); !reason.empty()) detail::fail_text("MappedFile: " + path + ": " + reason);
  }
  MappedFile(MappedFile&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  MappedFile& operator=(MappedFile&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~MappedFile() {
    if (data_) ::munmap(data_, size_);
  }

  /// Maps a regular file instead. Returns the reason where it cannot; what was mapped before then still is.
  [[nodiscard]] std::string open(const std::string& path) {
    detail::Descriptor file;
    MappedFile fresh;
    if (std::string reason = detail::open_regular(path, file, fresh.size_); !reason.empty()) return reason;
    if (fresh.size_ > 0) {  // no bytes cannot be mapped
      void* const at = ::mmap(nullptr, fresh.size_, PROT_READ, MAP_PRIVATE, file.number, 0);
      if (at == MAP_FAILED) return detail::system_reason("a file that can be mapped", errno);
      fresh.data_ = at;
    }
    *this = std::move(fresh);
    return {};
  }

  const unsigned char* data() const { return static_cast<const unsigned char*>(data_); }
  std::size_t size() const { return size_; }

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace RECOPS_ABI
}  // namespace recops
