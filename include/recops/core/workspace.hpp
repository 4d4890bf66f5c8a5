/// @file   recops/core/workspace.hpp
/// @brief  The execution context of a call: scratch memory that is kept from call to call, and the caller's threads.
///
/// One workspace belongs to one call at a time; a service keeps one per thread. After the first call with the largest shape
/// nothing is allocated any more.
#pragma once
#include <algorithm>
#include <recops/core/matrix.hpp>
#include <vector>

namespace recops {

/// The caller's threads: `run(context, tasks, task, data)` calls `task(data, i, worker)` once for every i in [0, tasks), on any
/// thread and in any order, with worker in [0, workers) never in use twice at once, and returns when all are done. The
/// library starts no thread: a default executor runs everything in the calling one.
struct Executor {
  using Task = void (*)(void* data, Index task, int worker);
  int workers = 1;
  void* context = nullptr;
  void (*run)(void* context, Index tasks, Task task, void* data) = nullptr;
};

inline namespace RECOPS_ABI {

/// An executor from any callable `f(Index tasks, auto&& task)` that calls `task(Index i, int worker)` for every i in [0, tasks).
/// `f` is referred to, not copied.
template <class F>
Executor make_executor(F& f, int workers) {
  return {workers, const_cast<std::remove_const_t<F>*>(&f), [](void* context, Index tasks, Executor::Task task, void* data) {
            (*static_cast<F*>(context))(tasks, [task, data](Index i, int worker) { task(data, i, worker); });
          }};
}

/// A growing arena (chunks, so live scratch never moves) with the caller's executor and one sub-arena per worker.
class Workspace {
 public:
  Workspace() = default;
  explicit Workspace(Executor executor) : executor_(executor) {}
  /// Moved only while nothing is taken from it.
  Workspace(Workspace&&) = default;
  Workspace& operator=(Workspace&&) = default;
  [[gnu::noinline]] ~Workspace() = default;  // holds workspaces: inlined, it would unfold into itself

  /// Gives back on destruction whatever was taken since it was made.
  class [[nodiscard]] Mark {
   public:
    explicit Mark(Workspace& w) : workspace_(w), chunk_(w.chunk_), used_(w.used_), total_(w.total_) { ++w.marks_; }
    Mark(const Mark&) = delete;
    Mark& operator=(const Mark&) = delete;
    ~Mark() {
      workspace_.chunk_ = chunk_;
      workspace_.used_ = used_;
      workspace_.total_ = total_;
      if (--workspace_.marks_ == 0 && workspace_.total_ == 0) workspace_.merge();
    }

   private:
    Workspace& workspace_;
    std::size_t chunk_;
    Index used_, total_;
  };
  Mark mark() { return Mark(*this); }

  /// `count` unspecified elements, 64-byte aligned, until the enclosing mark ends. Grows by doubling.
  template <class T>
  T* take(Index count) {
    static_assert(std::is_trivially_destructible_v<T> && alignof(T) <= 64);
    return reinterpret_cast<T*>(take_bytes(count * static_cast<Index>(sizeof(T))));
  }
  template <class T>
  VectorView<T> vector(Index size) {
    return VectorView<T>(take<T>(size), size);
  }
  template <class T>
  MatrixView<T> matrix(Index rows, Index cols) {
    return MatrixView<T>(take<T>(rows * cols), rows, cols);
  }

  /// Makes room for `bytes` at once (and as much per worker with `per_worker`), so that the first call allocates nothing.
  void reserve(Index bytes, Index per_worker = 0) {
    if (bytes > capacity()) {
      if (total_ == 0) chunks_.clear();
      add_chunk(bytes);
    }
    for (int i = 1; i < workers() && per_worker > 0; ++i) worker(i).reserve(per_worker);
  }
  /// The most bytes that were in use at any time (without the workers' own): what `reserve` wants.
  Index high_water() const { return high_water_; }
  Index capacity() const {
    Index sum = 0;
    for (const Chunk& c : chunks_) sum += static_cast<Index>(c.size());
    return sum;
  }

  int workers() const { return std::max(1, executor_.workers); }
  /// Scratch of worker `i`; worker 0 shares the caller's.
  Workspace& worker(int i) {
    assert(0 <= i && i < workers());
    if (i == 0) return *this;
    if (workers_.empty()) make_workers();
    return workers_[static_cast<std::size_t>(i - 1)];
  }

  /// Calls `f(Index task, Workspace& scratch)` once for every task in [0, tasks), on the caller's threads where there are any.
  /// What a task computes must not depend on which worker runs it: then results are the same for any number of threads.
  /// A parallel_for inside a task runs serially, on the scratch it was given.
  template <class F>
  void parallel_for(Index tasks, F&& f) {
    using Function = std::remove_reference_t<F>;
    if (executor_.run == nullptr || workers() == 1 || tasks <= 1 || busy_) {
      for (Index i = 0; i < tasks; ++i) run_task(f, i, *this);
      return;
    }
    worker(1);  // makes them all: they must not be made while threads run
    struct Call {
      Function* f;
      Workspace* self;
    } call{&f, this};
    struct Busy {  // worker 0 is this workspace: what it calls must not start the others, whose arenas are in use
      bool& flag;
      explicit Busy(bool& b) : flag(b) { flag = true; }
      ~Busy() { flag = false; }
    } busy(busy_);
    executor_.run(
        executor_.context, tasks,
        [](void* data, Index task, int worker) {
          const auto* c = static_cast<Call*>(data);
          run_task(*c->f, task, c->self->worker(worker));
        },
        &call);
  }

 private:
  /// Not inlined, so that the code of a task is there once.
  template <class F>
  [[gnu::noinline]] static void run_task(F& f, Index task, Workspace& scratch) {
    f(task, scratch);
  }

  using Chunk = std::vector<std::byte, detail::AlignedAllocator<std::byte>>;

  [[gnu::noinline]] std::byte* take_bytes(Index bytes) {
    assert(bytes >= 0);
    bytes = (bytes + 63) / 64 * 64;
    while (chunk_ < chunks_.size() && used_ + bytes > static_cast<Index>(chunks_[chunk_].size())) {
      ++chunk_;
      used_ = 0;
    }
    if (chunk_ == chunks_.size()) add_chunk(std::max(bytes, std::max(capacity(), Index{4096})));
    std::byte* p = chunks_[chunk_].data() + used_;
    used_ += bytes;
    total_ += bytes;
    high_water_ = std::max(high_water_, total_);
    return p;
  }
  [[gnu::noinline, gnu::cold]] void make_workers() { workers_ = std::vector<Workspace>(static_cast<std::size_t>(workers() - 1)); }
  [[gnu::noinline, gnu::cold]] void add_chunk(Index bytes) {
    chunks_.emplace_back(static_cast<std::size_t>((bytes + 63) / 64 * 64));
  }
  // Nothing is in use: one chunk instead of several, so that the next call finds its scratch in one piece.
  [[gnu::noinline, gnu::cold]] void merge() {
    if (chunks_.size() < 2) return;
    const Index bytes = capacity();
    chunks_.clear();
    add_chunk(bytes);
    chunk_ = 0;
    used_ = 0;
  }

  Executor executor_;
  std::vector<Chunk> chunks_;
  std::size_t chunk_ = 0;  // where the next take looks first, and how much of that chunk is used
  Index used_ = 0, total_ = 0, high_water_ = 0;
  int marks_ = 0;
  bool busy_ = false;  // a parallel_for of this workspace is running
  std::vector<Workspace> workers_;
};

}  // namespace RECOPS_ABI
}  // namespace recops
