/// @file   recops/io/file.hpp
/// @brief  Whole files: read at once, and written so that the name leads to the old contents or the new, never to a part.
///
/// Members that may fail return the reason as text, empty when all went well, so that they serve with and without exceptions.
#pragma once
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <new>
#include <recops/core/error.hpp>
#include <string>
#include <string_view>

namespace recops {
inline namespace RECOPS_ABI {
namespace detail {

/// Throws `Error` (or calls the handler) with a text of any length.
[[noreturn, gnu::cold, gnu::noinline]] inline void fail_text(const std::string& message) {
#if defined(__cpp_exceptions)
  throw Error(message);
#else
  RECOPS_ERROR_HANDLER(message.c_str());
  std::abort();
#endif
}

/// A name from a file as it may be shown: without control characters, cut after `most` bytes.
inline std::string printable(std::string_view text, std::size_t most = 160) {
  static constexpr char digits[] = "0123456789ABCDEF";
  std::string shown;
  std::size_t end = text.size() < most ? text.size() : most;
  while (end < text.size() && end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0u) == 0x80u) --end;  // between characters
  for (const char c : text.substr(0, end)) {
    const auto u = static_cast<unsigned char>(c);
    if (u < 0x20 || u == 0x7F) {
      shown += {'\\', 'x', digits[u >> 4], digits[u & 15u]};
    } else {
      shown += c;
    }
  }
  return end < text.size() ? shown + "..." : shown;
}

inline std::string system_reason(const char* expected, int error) {
  return std::string("expected ") + expected + ", got: " + std::strerror(error);
}

/// An open file that closes itself.
struct Descriptor {
  int number = -1;
  Descriptor() = default;
  explicit Descriptor(int n) : number(n) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (number >= 0) ::close(number);
  }
};

struct AlignedFree {
  std::size_t alignment = 64;
  void operator()(unsigned char* p) const { ::operator delete(p, std::align_val_t{alignment}); }
};

/// Opens a regular file for reading and says how long it is. A pipe or a device is refused, not waited for.
inline std::string open_regular(const std::string& path, Descriptor& file, std::size_t& size) {
  file.number = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file.number < 0) return system_reason("a file that can be opened", errno);
  struct stat about;
  if (::fstat(file.number, &about) != 0) return system_reason("a file that can be asked for its size", errno);
  if (!S_ISREG(about.st_mode)) return "expected a regular file, got a folder or a device";
  size = static_cast<std::size_t>(about.st_size);
  return {};
}

}  // namespace detail

/// The bytes of a file, at least 64-byte aligned. Move-only.
class FileBytes {
 public:
  FileBytes() = default;

  /// Reads all of a regular file. Returns the reason where it cannot; what was held before is then still there.
  [[nodiscard]] std::string read(const std::string& path) {
    detail::Descriptor file;
    std::size_t size = 0;
    if (std::string reason = detail::open_regular(path, file, size); !reason.empty()) return reason;
    const std::size_t alignment = size < huge_page ? 64 : huge_page;
    Pointer bytes(static_cast<unsigned char*>(::operator new(size + 1, std::align_val_t{alignment}, std::nothrow)),
                  detail::AlignedFree{alignment});
    if (!bytes) return "expected a file that fits in memory, got " + std::to_string(size) + " bytes";
    // Most of the time of reading a large file goes into giving it memory page by page. A hint: failure does not matter.
    if (size >= huge_page) ::madvise(bytes.get(), size, MADV_HUGEPAGE);
    std::size_t done = 0;
    while (done <= size) {  // one byte more than there should be, to see a file that grows
      const ssize_t got = ::read(file.number, bytes.get() + done, size + 1 - done);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return detail::system_reason("a file that can be read", errno);
      if (got == 0) break;
      done += static_cast<std::size_t>(got);
    }
    if (done != size) return "expected a file that stays as it is, got one that changed while it was read";
    bytes_ = std::move(bytes);
    size_ = size;
    return {};
  }

  const unsigned char* data() const { return bytes_.get(); }
  std::size_t size() const { return bytes_ ? size_ : 0; }

 private:
  static constexpr std::size_t huge_page = std::size_t{1} << 21;
  using Pointer = std::unique_ptr<unsigned char, detail::AlignedFree>;
  Pointer bytes_;
  std::size_t size_ = 0;
};

/// Writes a file beside its final name and renames it when it is complete: whoever opens the name sees the old contents or all of
/// the new, also after a crash. Not finished, it leaves nothing behind. Where the name is a link, the link is replaced.
class AtomicFile {
 public:
  AtomicFile() = default;
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile() { discard(); }

  /// Begins a file that is to be called `path`. Each member returns the reason where it fails.
  [[nodiscard]] std::string open(const std::string& path) {
    discard();
    for (int attempt = 0; attempt < 1000; ++attempt) {
      temporary_ = path + ".part-" + std::to_string(::getpid()) + "-" + std::to_string(attempt);
      file_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
      if (file_ >= 0) {
        path_ = path;
        return {};
      }
      if (errno != EEXIST) break;
    }
    return detail::system_reason("a folder that can be written to", errno);
  }
  [[nodiscard]] std::string write(const void* data, std::size_t size) {
    const char* at = static_cast<const char*>(data);
    while (size > 0) {
      const ssize_t done = ::write(file_, at, size < chunk ? size : chunk);
      if (done < 0 && errno == EINTR) continue;
      if (done < 0) return detail::system_reason("a disk that can be written to", errno);
      at += done;
      size -= static_cast<std::size_t>(done);
    }
    return {};
  }
  /// Waits for the disk and gives the file its name.
  [[nodiscard]] std::string commit() {
    if (::fsync(file_) != 0) return detail::system_reason("a disk that can be written to", errno);
    const int closed = ::close(file_);
    file_ = -1;
    if (closed != 0 || ::rename(temporary_.c_str(), path_.c_str()) != 0) {
      const int error = errno;
      ::unlink(temporary_.c_str());
      return detail::system_reason("a name that a file can be given", error);
    }
    return {};
  }

 private:
  static constexpr std::size_t chunk = std::size_t{1} << 30;  // the system takes at most 2^31 at a time

  void discard() {
    if (file_ < 0) return;
    ::close(file_);
    ::unlink(temporary_.c_str());
    file_ = -1;
  }

  std::string path_, temporary_;
  int file_ = -1;
};

}  // namespace RECOPS_ABI
}  // namespace recops
