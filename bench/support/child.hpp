/// @file   bench/support/child.hpp
/// @brief  Peers in Python: bench/peers/server.py in a child process on the same core, asked for one slice of calls at a time.
///
/// The child measures its calls itself, so neither the pipe nor the JSON is in its times. One child serves a library for the
/// whole program. What a library can do is in bench/peers/LIBRARY_peer.py; `python_peer("torch", "softmax", R"({"n": 1000})")`
/// asks for it.
#pragma once
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "support/calibration.hpp"
#include "support/work.hpp"

namespace recops_bench {

/// A program driven by lines over pipes.
class Child {
 public:
  explicit Child(const std::vector<std::string>& command) {
    signal(SIGPIPE, SIG_IGN);
    int to[2], from[2];
    if (pipe2(to, O_CLOEXEC) != 0) return;
    if (pipe2(from, O_CLOEXEC) != 0) {
      close(to[0]);
      close(to[1]);
      return;
    }
    process_ = fork();
    if (process_ == 0) {
      dup2(to[0], 0);
      dup2(from[1], 1);
      std::vector<char*> arguments;
      for (const std::string& a : command) arguments.push_back(const_cast<char*>(a.c_str()));
      arguments.push_back(nullptr);
      execvp(arguments[0], arguments.data());
      _exit(127);
    }
    close(to[0]);
    close(from[1]);
    in_ = to[1];
    out_ = from[0];
  }
  Child(const Child&) = delete;
  ~Child() {
    if (in_ >= 0) close(in_);  // the end of its input ends it
    if (out_ >= 0) close(out_);
    if (process_ > 0) waitpid(process_, nullptr, 0);
  }

  /// One line there, one line back; empty if the child is gone or silent for too long.
  std::string ask(std::string line, int timeout_seconds = 300) {
    line += '\n';
    for (std::size_t sent = 0; sent < line.size();) {
      const ssize_t n = write(in_, line.data() + sent, line.size() - sent);
      if (n <= 0) return {};
      sent += static_cast<std::size_t>(n);
    }
    for (;;) {
      if (const std::size_t end = buffer_.find('\n'); end != std::string::npos) {
        std::string answer = buffer_.substr(0, end);
        buffer_.erase(0, end + 1);
        return answer;
      }
      pollfd ready{out_, POLLIN, 0};
      char chunk[4096];
      if (poll(&ready, 1, timeout_seconds * 1000) <= 0) return {};
      const ssize_t n = read(out_, chunk, sizeof chunk);
      if (n <= 0) return {};
      buffer_.append(chunk, static_cast<std::size_t>(n));
    }
  }

 private:
  pid_t process_ = -1;
  int in_ = -1, out_ = -1;
  std::string buffer_;
};

namespace detail {

/// The folder of this source tree: from the build, or from where this file was compiled.
inline std::string bench_folder() {
  if (const char* folder = std::getenv("RECOPS_BENCH_SOURCE")) return folder;
#if defined(RECOPS_BENCH_SOURCE_DIR)
  return RECOPS_BENCH_SOURCE_DIR;
#else
  std::string file = __FILE__;
  file.erase(file.rfind("support/"));
  return file.empty() ? "." : file;
#endif
}

struct Library {
  std::string name;
  std::unique_ptr<Child> child;  // none if skipped
  std::string skipped;
};

/// The child of a library, started when first asked for. `torch`, `numpy` and `scipy` are the system's; `torch_new` and
/// `onnxruntime` come from PyPI, in build/peers. RECOPS_BENCH_PYTHON is tried first for all of them.
inline Library& library(const std::string& name) {
  static std::map<std::string, Library> all;
  const auto [at, fresh] = all.try_emplace(name);
  Library& l = at->second;
  if (!fresh) return l;
  l.name = name;
  const std::string folder = bench_folder(), own = folder + "/../build/peers/bin/python";
  std::vector<std::string> interpreters;
  if (const char* chosen = std::getenv("RECOPS_BENCH_PYTHON")) interpreters.push_back(chosen);
  if (name == "torch_new" || name == "onnxruntime") interpreters.push_back(own);
  if (name != "torch_new") interpreters.insert(interpreters.end(), {"/usr/bin/python3", "python3"});
  for (const std::string& python : interpreters) {
    auto child = std::make_unique<Child>(std::vector<std::string>{python, folder + "/peers/server.py", name});
    const std::string hello = child->ask("hello");
    if (hello.rfind("ok ", 0) == 0) {
      // Its own matrix product tells whether the fast BLAS and the wide kernels are in use.
      const double rate = std::strtod(hello.c_str() + 3, nullptr), peak = [] {
        double flops = 0;
        const double once =
            std::min(seconds([&] { flops = limits<float>().fma(); }), seconds([&] { flops = limits<float>().fma(); }));
        return flops / once * 1e-9;
      }();
      std::fprintf(stderr, "peer %s: %s\n", name.c_str(), hello.c_str() + 3);
      if (rate > 0 && rate < 0.4 * peak)
        std::fprintf(stderr, "peer %s: SLOW: its matrix product reaches %.0f of %.0f GFLOP/s; is a fast BLAS installed?\n",
                     name.c_str(), rate, peak);
      l.child = std::move(child);
      return l;
    }
  }
  l.skipped = "not installed; scripts/bench --install-peers";
  return l;
}

}  // namespace detail

/// `arguments` is a JSON object, what the function of that name in bench/peers/LIBRARY_peer.py takes. `name` is the counter's,
/// the library's if empty.
inline Peer python_peer(const std::string& library, const std::string& operation, const std::string& arguments,
                        std::string name = {}) {
  Peer peer;
  peer.name = name.empty() ? library : std::move(name);
  detail::Library& l = detail::library(library);
  if (!l.child) {
    peer.skipped = l.skipped;
    return peer;
  }
  const std::string answer = l.child->ask("{\"setup\": \"" + operation + "\", \"args\": " + arguments + "}");
  if (answer.rfind("ok ", 0) != 0) {
    peer.skipped = operation + ": " + (answer.empty() ? "the child died" : answer);
    return peer;
  }
  // The child forgets the case's data when the last copy of the peer goes.
  const auto id = std::shared_ptr<std::string>(new std::string(answer.substr(3)), [&l](std::string* gone) {
    l.child->ask("drop " + *gone);
    delete gone;
  });
  peer.timed = [&l, id](int calls, bool warm) {
    const std::string seconds = l.child->ask("run " + *id + " " + std::to_string(calls) + (warm ? " warm" : " cold"));
    if (seconds.empty() || seconds.rfind("error", 0) == 0) {
      std::fprintf(stderr, "peer %s failed: %s\n", l.name.c_str(), seconds.c_str());
      std::exit(1);
    }
    char* next = nullptr;
    const double total = std::strtod(seconds.c_str(), &next);
    return Span{total, std::strtod(next, nullptr)};
  };
  return peer;
}

}  // namespace recops_bench
