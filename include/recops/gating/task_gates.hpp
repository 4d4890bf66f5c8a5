/// @file   recops/gating/task_gates.hpp
/// @brief  All gates of all tasks as one small product and a softmax per task over the experts the task may see.
///
///     g_t = softmax((W_t x + c_t) / temperature)          over the E_t experts visible to task t
///
/// Shapes      x [B, D]   weight [G, D], bias [G] or empty, gates [B, G], where G = sum_t E_t and task t owns the entries
///             map.begin(t) .. map.end(t), in the order of its list.   With every expert visible gates are [B, T, E].
///             With `own_inputs` task t reads columns t D .. (t + 1) D of x [B, T D].
/// Edge cases  A task that sees nothing has no gates.   One visible expert: exactly 1, no gradient.   A NaN stays in its task of
///             its row.   Logits of -infinity get exactly 0; a task with nothing else gets zeros.
/// Precision   max-shifted softmax in T; gates of a task sum to 1 within 4 E_t eps.   Same bits for any number of threads.
/// Cost        2 B D G flops and B G exp; backward twice that.
/// Errors      Error if shapes or options disagree; outputs untouched.
/// Reference   Ma et al., KDD 2018, equation 8 (no bias).   Gate dropout: Zhao et al., "Recommending What Video to Watch
///             Next", RecSys 2019.
#pragma once
#include <recops/gating/block_linear.hpp>
#include <recops/gating/gate_map.hpp>
#include <recops/simd/softmax.hpp>

namespace recops {

struct TaskGatesOptions {
  double temperature = 1.0;  ///< divides the logits, 1e-6 to 1e6
  double dropout = 0.0;      ///< training only: share of gates dropped, the rest renormalised; 0 to below 1, 0.1 is usual
  bool own_inputs = false;   ///< x is [B, T D], one block of columns per task
};

inline namespace RECOPS_ABI {

namespace detail {

/// One row of logits to gates, in place. Small tasks share the vectors of exp; sums run in the order of the list.
template <class T>
void gate_softmax_row(T* x, const GateMap& map, T inverse_temperature) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  constexpr Index small = 32;
  const Index all = map.size();
  if (inverse_temperature != T(1)) simd::scale<T>(inverse_temperature, x, x, all);
  for (Index t = 0; t < map.tasks(); ++t) {
    T* const own = x + map.begin(t);
    const Index n = map.count(t);
    if (n > small) {
      simd::softmax<T>(own, n);
      continue;
    }
    T most = -infinity;
    for (Index i = 0; i < n; ++i) most = own[i] > most ? own[i] : most;
    if (most == -infinity) continue;  // nothing, or only -infinity and NaN: exp makes that 0 and NaN
    for (Index i = 0; i < n; ++i) own[i] -= most;
  }
  for (Index t = 0; t < map.tasks();) {
    if (map.count(t) > small) {
      ++t;
      continue;
    }
    const Index first = t;
    while (t < map.tasks() && map.count(t) <= small) ++t;
    T* const from = x + map.begin(first);
    simd::for_each_vector<T, simd::DefaultArch>(map.end(t - 1) - map.begin(first),
                                                [&](Index i, auto load, auto store)
                                                    RECOPS_LAMBDA_INLINE { store(from + i, simd::exp(load(from + i))); });
  }
  for (Index t = 0; t < map.tasks(); ++t) {
    T* const own = x + map.begin(t);
    const Index n = map.count(t);
    if (n > small) continue;
    T total = T(0);
    for (Index i = 0; i < n; ++i) total += own[i];
    if (total == T(0)) continue;
    const T scale = T(1) / total;
    for (Index i = 0; i < n; ++i) own[i] *= scale;
  }
}

/// Logits of dropped gates become -infinity; where a task would keep none, its largest stays (the first of equals).
template <class T>
void drop_gates(T* logits, const GateMap& map, double rate, Random random) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  for (Index t = 0; t < map.tasks(); ++t) {
    const Index first = map.begin(t), last = map.end(t);
    if (first == last) continue;
    Index best = first, kept = 0;
    T value = logits[first];
    for (Index g = first; g < last; ++g) {
      if (logits[g] > logits[best]) {
        best = g;
        value = logits[g];
      }
    }
    for (Index g = first; g < last; ++g) {
      if (random.chance(rate)) {
        logits[g] = -infinity;
      } else {
        ++kept;
      }
    }
    if (kept == 0) logits[best] = value;
  }
}

inline void check_gate_map(const char* name, const GateMap& map, const TaskGatesOptions& o) {
  check_option(name, "tasks", map.tasks() >= 1, "a GateMap with tasks", static_cast<double>(map.tasks()));
  check_option(name, "temperature", o.temperature >= 1e-6 && o.temperature <= 1e6, "a temperature from 1e-6 to 1e6",
               o.temperature);
  check_option(name, "dropout", o.dropout >= 0 && o.dropout < 1, "0 <= dropout < 1", o.dropout);
}

template <class T>
void check_task_gates(const char* name, MatrixView<const T> x, MatrixView<const T> weight, VectorView<const T> bias,
                      const GateMap& map, const TaskGatesOptions& o) {
  check_gate_map(name, map, o);
  check_shape(name, "weight", weight, map.size(), any_size);
  check_shape(name, "x", x, any_size, o.own_inputs ? map.tasks() * weight.cols() : weight.cols());
  if (!bias.empty()) check_size(name, "bias", bias, map.size());
}

/// Calls `f(blocks, block)` with the blocks of the gates' weight: one, or with inputs of their own one per task.
template <class F>
void with_gate_blocks(const GateMap& map, bool own_inputs, F&& f) {
  if (own_inputs) {
    f(map.tasks(), [&map](Index t) { return LinearBlock{map.begin(t), map.end(t), t}; });
  } else {
    f(Index{1}, even_blocks(map.size(), 1));
  }
}

template <class T>
void task_gates(MatrixView<const T> x, MatrixView<const T> weight, VectorView<const T> bias, const GateMap& map,
                const TaskGatesOptions& options, MatrixView<T> gates, const Step* step, Workspace& ws) {
  with_gate_blocks(map, options.own_inputs, [&](Index blocks, auto block) {
    block_linear<T>(x, weight, bias, blocks, block, Activation::none, gates, ws);
  });
  const T inverse = static_cast<T>(1.0 / options.temperature);
  for_row_blocks(x.rows(), ws, [&](Index first, Index count, Index, Workspace&) {
    for (Index r = first; r < first + count; ++r) {
      if (step && options.dropout > 0) drop_gates(gates.row(r), map, options.dropout, step->random(r));
      gate_softmax_row(gates.row(r), map, inverse);
    }
  });
}

}  // namespace detail

/// Serving: `gates [B, G]`.
template <Real T>
void task_gates(MatrixView<const T> x, MatrixView<const T> weight, VectorView<const T> bias, const GateMap& map,
                const TaskGatesOptions& options, MatrixView<T> gates, Workspace& ws) {
  detail::check_task_gates("task_gates", x, weight, bias, map, options);
  check_shape("task_gates", "gates", gates, x.rows(), map.size());
  if (x.rows() == 0 || map.size() == 0) return;
  detail::task_gates<T>(x, weight, bias, map, options, gates, nullptr, ws);
}

/// Training: with dropout the gates drawn by (step, row) are 0 and the others of the task sum to 1; a task that would keep none
/// keeps its largest.
template <Real T>
void task_gates_train(MatrixView<const T> x, MatrixView<const T> weight, VectorView<const T> bias, const GateMap& map,
                      const TaskGatesOptions& options, MatrixView<T> gates, const Step& step, Workspace& ws) {
  detail::check_task_gates("task_gates_train", x, weight, bias, map, options);
  check_shape("task_gates_train", "gates", gates, x.rows(), map.size());
  if (x.rows() == 0 || map.size() == 0) return;
  detail::task_gates<T>(x, weight, bias, map, options, gates, &step, ws);
}

/// Takes the gates that forward wrote (dropped ones are 0 there, which is all backward needs to know) and their gradient; adds to
/// each of `dx`, `dweight`, `dbias` that is not empty.
template <Real T>
void task_gates_backward(MatrixView<const T> x, MatrixView<const T> weight, const GateMap& map, const TaskGatesOptions& options,
                         MatrixView<const T> gates, MatrixView<const T> dgates, MatrixView<T> dx, MatrixView<T> dweight,
                         VectorView<T> dbias, Workspace& ws) {
  const char* const name = "task_gates_backward";
  detail::check_task_gates<T>(name, x, weight, {}, map, options);
  const Index n = map.size();
  check_shape(name, "gates", gates, x.rows(), n);
  check_shape(name, "dgates", dgates, x.rows(), n);
  if (!dx.empty()) check_shape(name, "dx", dx, x.rows(), x.cols());
  if (!dweight.empty()) check_shape(name, "dweight", dweight, n, weight.cols());
  if (!dbias.empty()) check_size(name, "dbias", dbias, n);
  if (x.rows() == 0 || n == 0) return;

  const auto mark = ws.mark();
  const MatrixView<T> dl = ws.matrix<T>(x.rows(), n);
  const T inverse = static_cast<T>(1.0 / options.temperature);
  detail::for_row_blocks(x.rows(), ws, [&](Index first, Index count, Index, Workspace&) {
    for (Index r = first; r < first + count; ++r) {
      const T *g = gates.row(r), *d = dgates.row(r);
      T* out = dl.row(r);
      for (Index t = 0; t < map.tasks(); ++t) {
        T mean = T(0);
        for (Index i = map.begin(t); i < map.end(t); ++i) mean += g[i] * d[i];
        for (Index i = map.begin(t); i < map.end(t); ++i) out[i] = g[i] == T(0) ? T(0) : g[i] * (d[i] - mean) * inverse;
      }
    }
  });
  detail::with_gate_blocks(map, options.own_inputs, [&](Index blocks, auto block) {
    detail::block_linear_backward<T>(x, weight, blocks, block, dl, dx, dweight, dbias, ws);
  });
}

/// `dense [B, T E]` with gates in the column of their expert and exactly 0 where a task does not see it.
template <Real T>
void scatter_gates(MatrixView<const T> gates, const GateMap& map, MatrixView<T> dense) {
  check_shape("scatter_gates", "gates", gates, any_size, map.size());
  check_shape("scatter_gates", "dense", dense, gates.rows(), map.tasks() * map.experts());
  for (Index r = 0; r < gates.rows(); ++r) {
    std::fill_n(dense.row(r), dense.cols(), T(0));
    for (Index t = 0; t < map.tasks(); ++t)
      for (Index g = map.begin(t); g < map.end(t); ++g) dense(r, t * map.experts() + map.expert(g)) = gates(r, g);
  }
}

/// Mean over rows and tasks of the entropy -sum_e g ln g (0 ln 0 = 0), times `scale`; adds its gradient to `dgates [B, G]` unless
/// that is empty. Subtract it from the loss (a negative scale) against gates that settle on one expert. A dropped gate (0) gets
/// no gradient. 0 for an empty batch.
template <Real T>
double gate_entropy_value_and_grad(MatrixView<const T> gates, const GateMap& map, double scale, MatrixView<T> dgates) {
  const char* const name = "gate_entropy_value_and_grad";
  check_shape(name, "gates", gates, any_size, map.size());
  check_option(name, "scale", std::isfinite(scale), "a finite scale", scale);
  if (!dgates.empty()) check_shape(name, "dgates", dgates, gates.rows(), gates.cols());
  if (gates.rows() == 0 || map.tasks() == 0) return 0;
  const double share = scale / (static_cast<double>(gates.rows()) * static_cast<double>(map.tasks()));
  double total = 0;
  for (Index r = 0; r < gates.rows(); ++r) {
    for (Index i = 0; i < map.size(); ++i) {
      const auto g = static_cast<double>(gates(r, i));
      if (g == 0) continue;
      const double log = std::log(g);
      total -= g * log;
      if (!dgates.empty()) dgates(r, i) -= static_cast<T>(share * (log + 1));
    }
  }
  return share * total;
}

/// What `TaskGates` is made of.
struct TaskGatesSpec {
  Index inputs = 0;                ///< D
  std::vector<Index> hidden = {};  ///< widths of each task's own relu layers before its logits; none is usual
  bool bias = false;               ///< of the logits; hidden layers always have one
  TaskGatesOptions options = {};   ///< with `own_inputs` x is [B, T D] and each task's gate reads its own columns
};

/// Gates of all tasks with their parameters. As a PyTorch module: the tasks' `Linear` layers concatenated along the output:
/// `weight [G, D]`, `bias`, and with hidden layers `hidden.0.weight [T h1, D]`, `hidden.1.weight [T h2, h1]`, ...,
/// `weight [G, last h]`.
template <Real T>
struct TaskGates {
  std::vector<Linear<T>> hidden;  ///< the first one wide, the others task by task
  Matrix<T> weight;               ///< [G, D], or [G, last hidden width]
  Vector<T> bias;                 ///< [G], or empty
  GateMap map;
  TaskGatesOptions options;

  /// What a training forward leaves for backward; the gates themselves come back through `y`.
  struct Saved {
    std::vector<Matrix<T>> hidden_out;
    Matrix<T> gates;
  };

  TaskGates() = default;
  /// Uniform in +-1 / sqrt(in), as `torch.nn.Linear`. Errors are reported as `name`'s.
  TaskGates(const TaskGatesSpec& spec, GateMap visible, Random& random, const char* name = "TaskGates")
      : map(std::move(visible)), options(spec.options) {
    check_option(name, "inputs", spec.inputs >= 1, "inputs >= 1", static_cast<double>(spec.inputs));
    detail::check_gate_map(name, map, options);
    Index in = spec.inputs;
    for (const Index width : spec.hidden) {
      check_option(name, "hidden", width >= 1, "widths >= 1", static_cast<double>(width));
      hidden.emplace_back(in, map.tasks() * width, random);
      in = width;
    }
    Linear<T> last(in, map.size(), random, spec.bias);
    weight = std::move(last.weight);
    bias = std::move(last.bias);
  }

  static constexpr auto fields() {
    return std::tuple{layers("hidden", &TaskGates::hidden), parameter("weight", &TaskGates::weight),
                      parameter("bias", &TaskGates::bias)};
  }

  /// D, or T D
  Index input_cols() const {
    return (options.own_inputs ? map.tasks() : 1) * (hidden.empty() ? weight.cols() : hidden[0].weight.cols());
  }
  /// G; throws `Error` unless the input has D columns.
  Index output_cols(Index cols) const {
    check_option("TaskGates", "input columns", cols == input_cols(), "as many as the weight has", static_cast<double>(cols));
    return map.size();
  }

  void forward(MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const {
    check("TaskGates::forward", x, y);
    const auto mark = ws.mark();
    MatrixView<const T> at = x;
    for (std::size_t l = 0; l < hidden.size(); ++l) {
      const MatrixView<T> next = ws.matrix<T>(x.rows(), hidden[l].weight.rows());
      hidden_layer(l, at, next, ws);
      at = next;
    }
    task_gates<T>(at, weight, bias, map, last_options(), y, ws);
  }
  void forward(MatrixView<const T> x, MatrixView<T> y, Saved& saved, const Step& step, Workspace& ws) const {
    check("TaskGates::forward", x, y);
    saved.hidden_out.resize(hidden.size());
    MatrixView<const T> at = x;
    for (std::size_t l = 0; l < hidden.size(); ++l) {
      saved.hidden_out[l].resize(x.rows(), hidden[l].weight.rows());
      hidden_layer(l, at, saved.hidden_out[l], ws);
      at = saved.hidden_out[l];
    }
    task_gates_train<T>(at, weight, bias, map, last_options(), y, step, ws);
    saved.gates.resize(x.rows(), map.size());
    for (Index r = 0; r < x.rows(); ++r) std::copy_n(y.row(r), y.cols(), saved.gates.row(r));
  }
  /// Adds to `dx` (unless empty) and to `gradient`.
  void backward(MatrixView<const T> x, MatrixView<const T> dy, const Saved& saved, MatrixView<T> dx, TaskGates& gradient,
                Workspace& ws) const {
    const char* const name = "TaskGates::backward";
    check_shape(name, "x", x, any_size, input_cols());
    check_shape(name, "saved.gates", saved.gates.view(), x.rows(), map.size());
    check_option(name, "saved.hidden", saved.hidden_out.size() == hidden.size(), "one entry per hidden layer",
                 static_cast<double>(saved.hidden_out.size()));
    check_shape(name, "dy", dy, x.rows(), map.size());
    check_gradient_shapes(name, *this, gradient);
    if (!dx.empty()) check_shape(name, "dx", dx, x.rows(), x.cols());
    const auto mark = ws.mark();
    const auto below = [&](std::size_t l) { return l == 0 ? x : MatrixView<const T>(saved.hidden_out[l - 1]); };
    const auto gradient_below = [&](std::size_t l) {
      if (l == 0) return dx;
      const MatrixView<T> d = ws.matrix<T>(x.rows(), hidden[l - 1].weight.rows());
      std::fill_n(d.data(), d.rows() * d.cols(), T(0));
      return d;
    };
    MatrixView<T> down = gradient_below(hidden.size());
    task_gates_backward<T>(below(hidden.size()), weight, map, last_options(), saved.gates, dy, down, gradient.weight,
                           gradient.bias, ws);
    for (std::size_t l = hidden.size(); l-- > 0;) {
      const MatrixView<T> up = down;
      const Matrix<T>& out = saved.hidden_out[l];
      for (Index r = 0; r < up.rows(); ++r)  // relu: y > 0 where z > 0
        simd::activate_backward<T>(Activation::relu, out.row(r), out.row(r), up.row(r), up.row(r), up.cols());
      down = gradient_below(l);
      const Index blocks = l == 0 && !options.own_inputs ? 1 : map.tasks();
      detail::block_linear_backward<T>(below(l), hidden[l].weight, blocks, detail::even_blocks(hidden[l].weight.rows(), blocks),
                                       up, down, gradient.hidden[l].weight, gradient.hidden[l].bias, ws);
    }
  }

  TaskGatesOptions last_options() const {
    TaskGatesOptions o = options;
    o.own_inputs = options.own_inputs || !hidden.empty();
    return o;
  }

  /// Throws `Error` unless all parameters fit each other; `name` is the operator of the message.
  void check_parameters(const char* name) const {
    detail::check_gate_map(name, map, options);
    Index cols = input_cols() / (options.own_inputs ? map.tasks() : 1);
    for (const Linear<T>& own : hidden) {
      const Index rows = own.weight.rows();
      check_shape(name, "hidden.weight", own.weight.view(), any_size, cols);
      check_option(name, "rows of hidden.weight", rows > 0 && rows % map.tasks() == 0, "tasks times the outputs of one",
                   static_cast<double>(rows));
      if (!own.bias.empty()) check_size(name, "hidden.bias", VectorView<const T>(own.bias), rows);
      cols = rows / map.tasks();
    }
    check_shape(name, "weight", weight.view(), map.size(), cols);
    if (!bias.empty()) check_size(name, "bias", VectorView<const T>(bias), map.size());
  }

 private:
  void check(const char* name, MatrixView<const T> x, MatrixView<T> y) const {
    check_parameters(name);
    check_shape(name, "x", x, any_size, input_cols());
    check_shape(name, "y", y, x.rows(), map.size());
  }
  void hidden_layer(std::size_t l, MatrixView<const T> x, MatrixView<T> y, Workspace& ws) const {
    const Index blocks = l == 0 && !options.own_inputs ? 1 : map.tasks();
    detail::block_linear<T>(x, hidden[l].weight, hidden[l].bias, blocks, detail::even_blocks(hidden[l].weight.rows(), blocks),
                            Activation::relu, y, ws);
  }
};

}  // namespace RECOPS_ABI
}  // namespace recops
