// Without exceptions, files are read and written through the members called try_, which return the reason of a refusal; the others
// call RECOPS_ERROR_HANDLER with the whole message, however long.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

namespace {
std::string expected;

[[noreturn]] void handle(const char* message) {
  const bool right = std::string(message).find(expected) != std::string::npos;
  if (!right) std::fprintf(stderr, "expected \"%s\", got \"%s\"\n", expected.c_str(), message);
  std::_Exit(right ? 0 : 1);
}
}  // namespace

#define RECOPS_ERROR_HANDLER(message) ::handle(message)
#include <recops/io/mapped_file.hpp>
#include <recops/io/safetensors.hpp>

using namespace recops;

namespace {

struct Net {
  Matrix<float> weight{{1, 2}, {3, 4}};
  Vector<float> bias{5, 6};
  static constexpr auto fields() { return std::tuple{parameter("weight", &Net::weight), parameter("bias", &Net::bias)}; }
};

int failures = 0;
void check(bool ok, const char* what) {
  if (ok) return;
  std::fprintf(stderr, "not so: %s\n", what);
  ++failures;
}

/// Runs `call` in a child; true if it ended in the handler with `message` in its text.
template <class Call>
bool ends_with(const std::string& message, Call call) {
  const pid_t child = fork();
  if (child < 0) return false;
  if (child == 0) {
    expected = message;
    call();
    std::fprintf(stderr, "expected \"%s\", but nothing was called\n", message.c_str());
    std::_Exit(1);
  }
  int status = 1;
  return waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace

int main() {
  char folder[] = "/tmp/recops-noexcept-XXXXXX";
  if (!mkdtemp(folder)) return 1;
  const std::string path = std::string(folder) + "/net";

  Net net, other;
  check(try_save(net, path) == "", "a layer is saved");
  other.weight.fill(0);
  check(try_load(other, path) == "" && other.weight(1, 1) == 4, "and loaded");
  MappedFile mapped;
  check(mapped.open(path) == "", "a file is mapped");
  Safetensors file;
  check(file.take(std::move(mapped), path) == "" && file.find("bias") != nullptr, "and read");

  check(file.parse("1234567", 7) == "expected at least 8 bytes, got 7", "too few bytes are refused");
  check(file.find("bias") != nullptr, "and what was read before stays");
  const std::string half = try_load(other, file, {.prefix = "x"});
  check(half.find("2 missing: x.weight, x.bias") != std::string::npos, "what is missing is listed");
  check(try_load(other, path + "2").find("expected a file that can be opened") == 0, "no file is refused");
  check(try_save(net, path + "/no/folder") != "", "no folder is refused");

  check(ends_with("load: " + path + ": expected every tensor of the layer", [&] { load(other, file, {.prefix = "x"}); }), "load");
  check(ends_with("read_safetensors: " + path + "2: ", [&] { read_safetensors(path + "2"); }), "read_safetensors");
  check(ends_with("MappedFile: " + path + "2: ", [&] { MappedFile(path + "2"); }), "MappedFile");
  check(ends_with("Safetensors: there: expected at least 8 bytes", [&] { Safetensors("", 0, "there"); }), "Safetensors");
  check(ends_with("save: " + path + "/no/folder: ", [&] { save(net, path + "/no/folder"); }), "save");
  check(ends_with("a tensor called y, got none", [&] { file.vector<float>("y"); }), "vector");
  ::unlink(path.c_str());
  ::rmdir(folder);
  std::printf("noexcept: %d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
