// Without exceptions a failed check calls RECOPS_ERROR_HANDLER with the whole message; the handler does not return. Each case
// runs in a child process, which leaves through the handler (or, where nothing is wrong, past the check).
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {
const char* expected = nullptr;  // the message of the running case, null for none

[[noreturn]] void handle(const char* message) {
  const bool right = expected != nullptr && std::strcmp(message, expected) == 0;
  if (!right) std::fprintf(stderr, "expected \"%s\", got \"%s\"\n", expected != nullptr ? expected : "no call", message);
  std::_Exit(right ? 0 : 1);
}
}  // namespace

#define RECOPS_ERROR_HANDLER(message) ::handle(message)
#include <recops/core/error.hpp>
#include <recops/core/matrix.hpp>

namespace {

/// Runs `check` in a child; true if it ended with `message`, or went through where there is none.
template <class Check>
bool ends_with(const char* message, Check check) {
  const pid_t child = fork();
  if (child < 0) return false;
  if (child == 0) {
    expected = message;
    check();
    if (expected != nullptr) std::fprintf(stderr, "expected \"%s\", but nothing was called\n", expected);
    std::_Exit(expected == nullptr ? 0 : 1);
  }
  int status = 1;
  return waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace

int main() {
  const float numbers[6] = {};
  const std::int32_t falling[3] = {0, 4, 2};
  const recops::MatrixView<const float> m(numbers, 2, 3);
  int failures = 0;
  failures += !ends_with("op: x: expected shape [2, 4], got [2, 3]", [&] { recops::check_shape("op", "x", m, 2, 4); });
  failures += !ends_with(nullptr, [&] { recops::check_shape("op", "x", m, recops::any_size, 3); });
  failures += !ends_with("op: offsets: expected offsets that never fall, at least 4, got 2 at position 2",
                         [&] { recops::check_offsets("op", "offsets", recops::IndexView(falling, 3), 2); });
  failures += !ends_with("op: lambda: expected 0 <= lambda <= 1, got 1.5",
                         [&] { recops::check_option("op", "lambda", false, "0 <= lambda <= 1", 1.5); });
  failures += !ends_with("op: n: expected a size >= 0, got -1", [] { recops::checked_size("op", "n", -1); });
  failures += !ends_with("Vector::resize: size: expected a size >= 0, got -1", [] { recops::Vector<float>().resize(-1); });
  std::printf("noexcept: %d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
