/// A model trained in PyTorch is served here, and one trained here opens there.
///
/// The model ranks candidates for a user with a history: embeddings, multi-head target attention, a mixture of experts with a
/// gate per task, and a tower per task. `examples/pytorch/train.py` trains it in PyTorch and writes its weights, some inputs, its
/// outputs, gradients and times. This program loads them, must find the same outputs and gradients, freezes the model in three
/// formats and times it. Then it trains a model of its own and writes what `examples/pytorch/check.py` loads into PyTorch.
/// Without arguments it takes the files in examples/pytorch/data; where they are not, only what it trains itself.
/// docs/from_pytorch.md walks through it.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <recops/gating/mmoe.hpp>
#include <recops/io/safetensors.hpp>
#include <recops/metrics/auc.hpp>
#include <recops/nn/embedding_bag.hpp>
#include <recops/nn/loss.hpp>
#include <recops/nn/mlp.hpp>
#include <recops/nn/multihead_attention.hpp>
#include <recops/simd/softmax.hpp>
#include <recops/train/adam.hpp>

#include "common/cli.hpp"

using namespace recops;

namespace {

std::size_t at(Index i) { return static_cast<std::size_t>(i); }

/// Sizes of the model. A state_dict has all of them but the number of heads.
struct Sizes {
  Index items = 300, users = 100, width = 16, heads = 2, experts = 4, expert_width = 32, tower_width = 16, tasks = 3;
};

/// The layers of examples/pytorch/ranker.py, under the names they have there.
struct Ranker {
  EmbeddingBag<float> item, user;
  MultiheadAttention<float> attention;
  Mmoe<float> mmoe;
  std::vector<Mlp<float>> towers;

  Ranker(const Sizes& s, Random random)
      : item(s.items, s.width, 1.0, random),
        user(s.users, s.width, 1.0, random),
        attention(s.width, s.heads, random),
        mmoe({.inputs = 3 * s.width, .experts = s.experts, .outputs = s.expert_width, .tasks = s.tasks}, random) {
    for (Index t = 0; t < s.tasks; ++t) towers.push_back(Mlp<float>({s.expert_width, s.tower_width, 1}, {}, random));
  }
  static constexpr auto fields() {
    return std::tuple{layer("item", &Ranker::item), layer("user", &Ranker::user), layer("attention", &Ranker::attention),
                      layer("mmoe", &Ranker::mmoe), layers("towers", &Ranker::towers)};
  }
};

/// Where the names differ: PyTorch has a Linear for every expert and gate where recops has a wide one for all, and its Sequential
/// counts the activations.
std::vector<NameRule> torch_names(const Sizes& s) {
  std::vector<NameRule> names = {{"mmoe.experts", {}}, {"mmoe.gates", {}}};
  for (Index e = 0; e < s.experts; ++e) names[0].file.push_back("mmoe.experts." + std::to_string(e));
  for (Index t = 0; t < s.tasks; ++t) {
    const std::string tower = "towers." + std::to_string(t), number = std::to_string(t);
    names[1].file.push_back("mmoe.gates." + number);
    names.push_back({tower + ".hidden.0.linear", {tower + ".0"}});
    names.push_back({tower + ".last.linear", {tower + ".2"}});
  }
  return names;
}

/// Users with a history each, and candidates for them, one after another.
struct Batch {
  Vector<std::int64_t> users, history, offsets, candidates;
  Vector<std::int64_t> candidate_offsets{0}, user_of;  // where a user's candidates begin, whose a candidate is
  Matrix<float> labels;                                // [candidates, tasks], or empty

  /// As many candidates for every user.
  void share_candidates() {
    const Index each = candidates.size() / std::max<Index>(users.size(), 1);
    for (Index u = 0; u < users.size(); ++u) {
      candidate_offsets.push_back((u + 1) * each);
      for (Index c = 0; c < each; ++c) user_of.push_back(users[u]);
    }
  }
};

/// Logits `[candidates, tasks]` of a Ranker or of its frozen form.
template <class Model>
void rank(const Model& model, const Sizes& s, const Batch& batch, MatrixView<float> logits, Workspace& ws) {
  const auto mark = ws.mark();
  const Index rows = batch.candidates.size(), width = s.width, outputs = s.expert_width;
  const MatrixView<float> history = ws.matrix<float>(batch.history.size(), width), x = ws.matrix<float>(rows, 3 * width),
                          mixed = ws.matrix<float>(rows, s.tasks * outputs);
  const MatrixView<float> interest = x.middle_cols(0, width), candidates = x.middle_cols(width, width);
  model.item.forward(batch.history, {}, history);
  model.item.forward(batch.candidates, {}, candidates);
  model.user.forward(batch.user_of, {}, x.middle_cols(2 * width, width));
  model.attention.forward(JaggedView<const float>(candidates, batch.candidate_offsets),
                          JaggedView<const float>(history, batch.offsets), interest, ws);
  model.mmoe.forward(x, mixed, ws);
  for (Index t = 0; t < s.tasks; ++t)
    model.towers[at(t)].forward(mixed.middle_cols(t * outputs, outputs), logits.middle_cols(t, 1), ws);
}

/// Loss of a batch, the sum over tasks of the mean binary cross-entropy; its gradient is added to `gradient`.
class Trainer {
 public:
  explicit Trainer(const Sizes& s) : s_(s) {}
  double step(const Ranker& model, const Batch& batch, const Step& step, Ranker& gradient, Workspace& ws) {
    const Index rows = batch.candidates.size(), width = s_.width, outputs = s_.expert_width;
    history_.resize(batch.history.size(), width);
    x_.resize(rows, 3 * width);
    mixed_.resize(rows, s_.tasks * outputs);
    logits_.resize(rows, s_.tasks);
    towers_.resize(model.towers.size());
    const MatrixView<float> x = x_;
    model.item.forward(batch.history, {}, history_);
    model.item.forward(batch.candidates, {}, x.middle_cols(width, width));
    model.user.forward(batch.user_of, {}, x.middle_cols(2 * width, width));
    const JaggedView<const float> candidates(x.middle_cols(width, width), batch.candidate_offsets),
        history(history_.view(), batch.offsets);
    model.attention.forward(candidates, history, x.middle_cols(0, width), attention_, step.child(0), ws);
    model.mmoe.forward(x_, mixed_, mmoe_, step.child(1), ws);
    for (Index t = 0; t < s_.tasks; ++t)
      model.towers[at(t)].forward(mixed_.view().middle_cols(t * outputs, outputs), logits_.view().middle_cols(t, 1),
                                  towers_[at(t)], step.child(2 + t), ws);

    const auto zero = [](Matrix<float>& m, Index m_rows, Index cols) {
      m.resize(m_rows, cols);
      m.fill(0);
    };
    zero(dlogits_, rows, s_.tasks);
    zero(dmixed_, rows, mixed_.cols());
    zero(dx_, rows, 3 * width);
    zero(dhistory_, history_.rows(), width);
    const double loss = bce_with_logits_value_and_grad<float>(logits_, batch.labels, {}, {}, dlogits_);
    for (Index t = 0; t < s_.tasks; ++t)
      model.towers[at(t)].backward(mixed_.view().middle_cols(t * outputs, outputs), dlogits_.view().middle_cols(t, 1),
                                   towers_[at(t)], dmixed_.view().middle_cols(t * outputs, outputs), gradient.towers[at(t)], ws);
    model.mmoe.backward(x_, dmixed_, mmoe_, dx_, gradient.mmoe, ws);
    const MatrixView<float> dx = dx_, dcandidates = dx.middle_cols(width, width);
    model.attention.backward(candidates, history, dx.middle_cols(0, width), attention_, dcandidates, dhistory_,
                             gradient.attention, ws);
    model.item.backward(batch.history, {}, dhistory_, gradient.item, ws);
    model.item.backward(batch.candidates, {}, dcandidates, gradient.item, ws);
    model.user.backward(batch.user_of, {}, dx.middle_cols(2 * width, width), gradient.user, ws);
    return loss;
  }

 private:
  Sizes s_;
  Matrix<float> history_, x_, mixed_, logits_, dhistory_, dx_, dmixed_, dlogits_;  // kept from step to step
  MultiheadAttention<float>::Saved attention_;
  Mmoe<float>::Saved mmoe_;
  std::vector<Mlp<float>::Saved> towers_;
};

/// The serving form: weights packed for the kernels in float, BFloat16 or std::int8_t. Immutable; threads may share it.
template <class S>
struct FrozenRanker {
  FrozenEmbeddingBag<float, S> item, user;
  FrozenMultiheadAttention<float, S> attention;
  FrozenMmoe<float, S> mmoe;
  std::vector<decltype(freeze(Mlp<float>(), Weights<S>()))> towers;

  explicit FrozenRanker(const Ranker& model) : item(model.item), user(model.user), attention(model.attention), mmoe(model.mmoe) {
    for (const Mlp<float>& tower : model.towers) towers.push_back(freeze(tower, Weights<S>()));
  }
};

Sizes sizes_of(const Safetensors& file) {
  const auto extent = [&](const std::string& name, std::size_t axis) {
    const StoredTensor* t = file.find(name);
    if (!t || t->shape.size() <= axis) throw Error(file.source() + ": expected a tensor " + name + " of a ranker, got none");
    return t->shape[axis];
  };
  const auto count = [&](const std::string& before, const std::string& after) {
    Index n = 0;
    while (file.find(before + std::to_string(n) + after)) ++n;
    return n;
  };
  Sizes s{.items = extent("item.weight", 0),
          .users = extent("user.weight", 0),
          .width = extent("item.weight", 1),
          .experts = count("mmoe.experts.", ".weight"),
          .expert_width = extent("mmoe.experts.0.weight", 0),
          .tower_width = extent("towers.0.0.weight", 0),
          .tasks = count("towers.", ".0.weight")};
  for (const auto& [key, value] : file.metadata())
    if (key == "heads") s.heads = std::atoi(value.c_str());
  return s;
}

/// "batch" or "request" of a file.
Batch read_batch(const Safetensors& file, const std::string& name) {
  Batch b;
  b.users = file.vector<std::int64_t>(name + ".users");
  b.history = file.vector<std::int64_t>(name + ".history");
  b.offsets = file.vector<std::int64_t>(name + ".offsets");
  b.candidates = file.vector<std::int64_t>(name + ".candidates");
  if (file.find(name + ".labels")) b.labels = file.matrix<float>(name + ".labels");
  b.share_candidates();
  return b;
}

/// The larger of two, or the NaN among them.
double larger(double a, double b) { return a >= b || std::isnan(a) ? a : b; }

double difference(VectorView<const float> a, VectorView<const float> b) {
  double most = a.size() == b.size() ? 0 : INFINITY;
  for (Index i = 0; i < a.size() && i < b.size(); ++i)
    most = larger(most, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  return most;
}
double difference(const Matrix<float>& a, const Matrix<float>& b) { return difference(leaf_values(a), leaf_values(b)); }

/// Largest difference of two gradients, relative to the largest number of the tensor it is in.
double gradient_difference(const Ranker& a, const Ranker& b) {
  double most = 0;
  visit(
      [&](const FieldPath&, const auto& x, const auto& y) {
        double largest = 1e-30;
        for (const float v : leaf_values(y)) largest = std::max(largest, std::abs(static_cast<double>(v)));
        most = larger(most, difference(leaf_values(x), leaf_values(y)) / largest);
      },
      a, b);
  return most;
}

/// Of one call, the fastest of many: others use this machine too.
template <class F>
double microseconds(F&& call) {
  using Clock = std::chrono::steady_clock;
  double best = 1e9;
  for (const auto end = Clock::now() + std::chrono::milliseconds(250); Clock::now() < end;) {
    const auto begin = Clock::now();
    call();
    best = std::min(best, std::chrono::duration<double, std::micro>(Clock::now() - begin).count());
  }
  return best;
}

bool all_right = true;
/// Ends a line; what does not hold makes the program return 1.
void expect(bool holds, const char* bound) {
  std::printf("%s%s\n", bound, holds ? "" : "   NO");
  all_right = all_right && holds;
}

/// Inputs, and the logits that must come out: PyTorch's, or those of the model that was saved.
struct Case {
  Batch batch, request;
  Matrix<float> batch_logits, request_logits;
};

/// One line of the table: differences from `c` and times.
template <class Model>
void show(const char* name, const Model& model, const Sizes& s, const Case& c, double bound, Workspace& ws) {
  Matrix<float> batch(c.batch_logits.rows(), s.tasks), request(c.request_logits.rows(), s.tasks);
  const double request_time = microseconds([&] { rank(model, s, c.request, request, ws); });
  const double batch_time = microseconds([&] { rank(model, s, c.batch, batch, ws); });
  const double most = larger(difference(batch, c.batch_logits), difference(request, c.request_logits));
  std::printf("  %-22s %8.0f %8.0f    %8.1e", name, request_time, batch_time, most);
  char text[32];
  std::snprintf(text, sizeof text, "  < %g", bound);
  expect(most < bound, text);
}
void show_frozen(const Ranker& model, const Sizes& s, const Case& c, Workspace& ws) {
  // Float must be PyTorch's numbers; narrow formats round every weight, by at most 2^-9 or 1/254 of its row's largest.
  show("frozen, float", FrozenRanker<float>(model), s, c, 1e-5, ws);
  show("frozen, bf16", FrozenRanker<BFloat16>(model), s, c, 0.1, ws);
  show("frozen, int8", FrozenRanker<std::int8_t>(model), s, c, 0.2, ws);
}

/// PyTorch -> recops.
void from_pytorch(const std::string& folder, Workspace& ws) {
  const Safetensors weights = read_safetensors(folder + "/model.safetensors"),
                    data = read_safetensors(folder + "/batch.safetensors");
  const auto note = [&](const std::string& key) {
    for (const auto& [name, value] : data.metadata())
      if (name == key) return value;
    return std::string("?");
  };
  const Sizes s = sizes_of(weights);
  Ranker model(s, Random(1));
  const LoadReport report = load(model, weights, {.names = torch_names(s)});
  std::printf("From PyTorch %s: %td tensors became %td fields, %td parameters.\n", note("torch").c_str(),
              std::ssize(weights.tensors()), report.loaded, parameter_count(model));

  const Case c{read_batch(data, "batch"), read_batch(data, "request"), data.matrix<float>("batch.logits"),
               data.matrix<float>("request.logits")};
  Ranker gradient = zeros_like(model), theirs = zeros_like(model);  // a gradient of a Ranker is a Ranker: it loads the same way
  load(theirs, folder + "/gradient.safetensors", {.names = torch_names(s)});
  const double loss = Trainer(s).step(model, c.batch, {}, gradient, ws),
               loss_off = std::abs(loss - static_cast<double>(data.vector<float>("batch.loss")[0]));
  const double gradient_off = gradient_difference(gradient, theirs);
  std::printf("  loss %.6f, off by %.1e", loss, loss_off);
  expect(loss_off < 1e-5, "  < 1e-5");
  std::printf("  gradients of all parameters off by %.1e of the largest in the tensor", gradient_off);
  expect(gradient_off < 1e-5, "  < 1e-5");

  std::printf("\n  microseconds for        %td cand.  %td rows    off by at most\n", c.request.candidates.size(),
              c.batch.candidates.size());
  std::printf("  %-22s %8s %8s    (%s)\n", "PyTorch, by train.py", note("request_microseconds").c_str(),
              note("batch_microseconds").c_str(), note("processor").c_str());
  show("as loaded", model, s, c, 1e-5, ws);
  show_frozen(model, s, c, ws);
}

/// The made-up world of train.py: a click is likely where a candidate is near any item of the history.
struct World {
  Matrix<float> items;
  Vector<double> users;

  World(const Sizes& s, Random random) : items(s.items, 4), users(s.users) {
    for (Index i = 0; i < s.items; ++i) {
      double square = 0;
      for (Index j = 0; j < 4; ++j) {
        items(i, j) = static_cast<float>(random.normal());
        square += static_cast<double>(items(i, j) * items(i, j));
      }
      for (Index j = 0; j < 4; ++j) items(i, j) /= static_cast<float>(std::sqrt(square));
    }
    for (double& u : users) u = random.normal();
  }
  /// `rows` users with a history of up to `longest` items and `each` candidates.
  Batch batch(Index rows, Index longest, Index each, const Sizes& s, Random& random) const {
    Batch b;
    b.offsets.push_back(0);
    for (Index r = 0; r < rows; ++r) {
      b.users.push_back(random.below(users.size()));
      for (Index k = random.below(longest); k >= 0; --k) b.history.push_back(random.below(items.rows()));
      b.offsets.push_back(b.history.size());
      for (Index c = 0; c < each; ++c) b.candidates.push_back(random.below(items.rows()));
    }
    b.share_candidates();
    b.labels.resize(b.candidates.size(), s.tasks);
    for (Index i = 0; i < b.candidates.size(); ++i) {
      const Index r = i / each;
      const float* v = items.row(b.candidates[i]);
      double best = -1;
      for (Index k = b.offsets[r]; k < b.offsets[r + 1]; ++k)
        best = std::max(best, static_cast<double>(simd::dot(items.row(b.history[k]), v, 4)));
      const double logits[3] = {6 * best - 5 + 0.7 * users[b.users[r]], 3 * static_cast<double>(v[0]) + 2 * best - 3,
                                2 * static_cast<double>(v[1] - v[2]) - 1};
      for (Index t = 0; t < s.tasks; ++t) b.labels(i, t) = random.chance(1 / (1 + std::exp(-logits[t % 3]))) ? 1.0f : 0.0f;
    }
    return b;
  }
};

/// recops -> PyTorch: trains a model and writes it to `folder`.
void to_pytorch(const Sizes& s, Index steps, const std::string& folder, Workspace& ws) {
  const World world(s, Random(1, 0));
  Random random(1, 2);
  Ranker model(s, Random(1, 1)), gradient = make_gradient(model);
  Adam<Ranker> adam(model, {.learning_rate = 5e-3});
  Trainer trainer(s);
  double first = 0, loss = 0;
  for (Index n = 0; n < steps; ++n) {
    const Batch batch = world.batch(512, 40, 1, s, random);
    zero_gradient(gradient);
    loss = trainer.step(model, batch, {.seed = 1, .number = static_cast<std::uint64_t>(n)}, gradient, ws);
    adam.step(model, gradient);
    if (n == 0) first = loss;
  }
  std::printf("\nTo PyTorch: trained here, %td steps of Adam on 512 rows, loss from %.3f to %.3f", steps, first, loss);
  expect(loss < first || steps < 2, "");

  Case c{world.batch(512, 40, 1, s, random), world.batch(1, 40, 200, s, random), {}, {}};
  c.batch_logits.resize(512, s.tasks);
  c.request_logits.resize(200, s.tasks);
  const Batch held_out = world.batch(8192, 40, 1, s, random);
  Matrix<float> logits(8192, s.tasks);
  rank(model, s, held_out, logits, ws);
  rank(model, s, c.batch, c.batch_logits, ws);
  rank(model, s, c.request, c.request_logits, ws);
  std::printf("  AUC of every task on 8192 new rows:");
  bool learned = true;
  for (Index t = 0; t < s.tasks; ++t) {
    Vector<float> scores(logits.rows());
    Vector<std::uint8_t> labels(logits.rows());
    for (Index r = 0; r < logits.rows(); ++r) {
      scores[r] = logits(r, t);
      labels[r] = held_out.labels(r, t) > 0;
    }
    const double a = auc<float>(scores, labels, ws).value;
    std::printf(" %.4f", a);
    learned = learned && a > 0.6;
  }
  expect(learned || steps < 200, "");

  // What PyTorch needs: the weights under its names, inputs with our outputs, and our gradients, to be compared with its own.
  std::filesystem::create_directories(folder);
  const std::vector<std::pair<std::string, std::string>> metadata = {{"format", "pt"}, {"heads", std::to_string(s.heads)}};
  save(model, folder + "/model.safetensors", {.names = torch_names(s), .metadata = metadata});
  Ranker dense = zeros_like(model);
  const Vector<float> batch_loss{static_cast<float>(trainer.step(model, c.batch, {}, dense, ws))};
  save(dense, folder + "/gradient.safetensors", {.names = torch_names(s)});
  SafetensorsWriter writer;
  writer.metadata = metadata;
  for (const auto& [name, batch] : {std::pair{std::string("batch."), &c.batch}, {std::string("request."), &c.request}}) {
    writer.add(name + "users", VectorView<const std::int64_t>(batch->users));
    writer.add(name + "history", VectorView<const std::int64_t>(batch->history));
    writer.add(name + "offsets", VectorView<const std::int64_t>(batch->offsets));
    writer.add(name + "candidates", VectorView<const std::int64_t>(batch->candidates));
    writer.add(name + "labels", batch->labels.view());
  }
  writer.add("batch.logits", std::as_const(c.batch_logits).view());
  writer.add("request.logits", std::as_const(c.request_logits).view());
  writer.add("batch.loss", VectorView<const float>(batch_loss));
  writer.write(folder + "/batch.safetensors");

  const Safetensors weights = read_safetensors(folder + "/model.safetensors");
  Ranker again(sizes_of(weights), Random(9));
  load(again, weights, {.names = torch_names(s)});
  double off = 0;
  visit([&](const FieldPath&, const auto& a, const auto& b) { off = larger(off, difference(leaf_values(a), leaf_values(b))); },
        model, again);
  std::printf("  saved under PyTorch's names and loaded again: off by %g", off);
  expect(off == 0, "");
  std::printf("\n  microseconds for        %td cand.  %td rows    off by at most\n", c.request.candidates.size(),
              c.batch.candidates.size());
  show_frozen(again, s, c, ws);
}

}  // namespace

int main(int argc, char** argv) {
  std::string from, to;
  Index steps = 400;
  examples::Cli cli("from_pytorch",
                    "Loads a ranker trained in PyTorch, agrees with it, freezes and times it; trains one and hands it back.");
  cli.option("from", from, "folder that examples/pytorch/train.py --out wrote; default: examples/pytorch/data");
  cli.option("to", to, "folder for the model trained here, which examples/pytorch/check.py loads; default: none is left");
  cli.option("steps", steps, "training steps of the model trained here", "", 1);
  cli.parse(argc, argv);

  try {
    Workspace ws;
#if defined(RECOPS_EXAMPLES)  // __FILE__ may be relative: ccache makes it so
    const std::filesystem::path committed = std::filesystem::path(RECOPS_EXAMPLES) / "pytorch" / "data";
#else
    const std::filesystem::path committed = std::filesystem::path(__FILE__).parent_path() / "pytorch" / "data";
#endif
    if (from.empty() && std::filesystem::exists(committed / "model.safetensors")) from = committed.string();
    if (!from.empty()) {
      from_pytorch(from, ws);
    } else {
      std::printf("No files from PyTorch here. `python3 examples/pytorch/train.py --out DIR` makes some; then --from DIR.\n");
    }
    const bool keep = !to.empty();
    if (!keep)
      to = (std::filesystem::temp_directory_path() /
            ("recops_from_pytorch_" + std::to_string(std::chrono::steady_clock::now().time_since_epoch().count())))
               .string();
    to_pytorch(Sizes(), steps, to, ws);
    if (keep) {
      std::printf(
          "\nNow `python3 examples/pytorch/check.py %s` loads the model into PyTorch and compares outputs and gradients.\n",
          to.c_str());
    } else {
      std::filesystem::remove_all(to);
      std::printf("\nWith --to DIR the files stay, and `python3 examples/pytorch/check.py DIR` loads them into PyTorch.\n");
    }
  } catch (const std::exception& e) {
    std::fprintf(stderr, "from_pytorch: %s\n", e.what());
    return 1;
  }
  return all_right ? 0 : 1;
}
