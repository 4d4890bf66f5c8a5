/// Personalisation gates, sparse experts and adapters at production shapes.
///
///     taskset -c 1 build/bench/bench/recops_bench_gating_personal
///
/// `pepnet`: embeddings of 1024 numbers, 192 of a prior, 64 of a domain, 6 tasks of towers 512-256-128, gates with hidden layers of 256:
/// EPNet and PPNet together, frozen (`serve`) or a training forward and the whole backward (`train`). `sparse`: 512 -> top 2 of 64 experts
/// of 256, relu; the peer `dense` is our own frozen Mmoe of the same 64 experts and one task. `adapters`: 64 rows, each through the
/// adapter (256 -> rank 4 -> 128) of a user of its own.
/// Weights of PEPNet take turns, ours and Eigen's, so that they come from memory; PyTorch keeps one copy, ONNX Runtime up to four.
/// Peers: `torch` in its best form (eager or traced and frozen; sparse: rows sorted by expert, a product for each), `eigen` by hand:
/// PEPNet with wide products for what shares its input, biases, activations and gates in one pass; sparse with rows gathered
/// by expert; adapters row by row. `onnxruntime`: PEPNet, as PyTorch has it.
#include <recops/gating/adapters.hpp>
#include <recops/gating/epnet.hpp>
#include <recops/gating/mmoe.hpp>
#include <recops/gating/ppnet.hpp>
#include <recops/gating/sparse_mmoe.hpp>

#include "support/paired.hpp"
#if defined(RECOPS_BENCH_EIGEN) || __has_include(<Eigen/Core>)
#include <recops/core/eigen.hpp>
#define WITH_EIGEN 1
#endif

using namespace recops;
using namespace recops_bench;

namespace {

Matrix<float> random_of(Index rows, Index cols, Random& random) {
  Matrix<float> m(rows, cols);
  for (float& v : leaf_values(m)) v = static_cast<float>(random.uniform(-1.7, 1.7));
  return m;
}

constexpr Index de = 1024, dd = 64, dp = 192, tasks = 6, gate = 256;

struct Pepnet {
  Epnet<float> ep;
  Ppnet<float> pp;
  explicit Pepnet(Random& random)
      : ep({.embeddings = de, .domain = dd, .hidden_width = gate}, random),
        pp({.inputs = de, .prior = dp, .tasks = tasks, .widths = {512, 256, 128}, .gate_width = gate}, random) {}
};

#ifdef WITH_EIGEN
using ColMajor = Eigen::MatrixXf;
/// The whole of PEPNet by hand; weights transposed once, buffers preallocated.
struct EigenPepnet {
  ColMajor ep1, ep2, gate1, first;
  std::vector<ColMajor> gate2, deeper;  // deeper: per layer and task
  Eigen::RowVectorXf ep1_bias, ep2_bias, gate1_bias;
  std::vector<Eigen::RowVectorXf> gate2_bias, tower_bias;
  RowMajor<float> input, hidden, o, both, h, y;
  std::vector<RowMajor<float>> g, x;
  const Pepnet* model;

  EigenPepnet(const Pepnet& m, Index batch) : model(&m) {
    const auto t = [](const Matrix<float>& w) { return ColMajor(as_eigen(w).transpose()); };
    const auto row = [](const Vector<float>& b) { return Eigen::RowVectorXf(as_eigen(b).transpose()); };
    ep1 = t(m.ep.gate.hidden.weight);
    ep2 = t(m.ep.gate.output.weight);
    ep1_bias = row(m.ep.gate.hidden.bias);
    ep2_bias = row(m.ep.gate.output.bias);
    gate1.resize(dp + de, 3 * gate);
    gate1_bias.resize(3 * gate);
    for (std::size_t l = 0; l < 3; ++l) {
      gate1.middleCols(static_cast<Index>(l) * gate, gate) = t(m.pp.gates[l].hidden.weight);
      gate1_bias.segment(static_cast<Index>(l) * gate, gate) = row(m.pp.gates[l].hidden.bias);
      gate2.push_back(t(m.pp.gates[l].output.weight));
      gate2_bias.push_back(row(m.pp.gates[l].output.bias));
      tower_bias.push_back(row(m.pp.towers[l].bias));
      g.emplace_back(batch, m.pp.towers[l].weight.rows());
      x.emplace_back(batch, m.pp.towers[l].weight.rows());
      if (l == 0) continue;
      const Index n = m.pp.towers[l].weight.rows() / tasks;
      for (Index k = 0; k < tasks; ++k)
        deeper.push_back(ColMajor(as_eigen(m.pp.towers[l].weight).middleRows(k * n, n).transpose()));
    }
    first = t(m.pp.towers[0].weight);
    input.resize(batch, dd + de);
    hidden.resize(batch, gate);
    o.resize(batch, de);
    both.resize(batch, dp + de);
    h.resize(batch, 3 * gate);
    y.resize(batch, tasks);
  }
  template <class M>
  static void sigmoid2(M&& m) {
    m = 2.0f / (1.0f + (-m.array()).exp());
  }
  void run(const Matrix<float>& e, const Matrix<float>& d, const Matrix<float>& p) {
    input << as_eigen(d), as_eigen(e);
    hidden.noalias() = input * ep1;
    hidden = (hidden.rowwise() + ep1_bias).cwiseMax(0.0f);
    o.noalias() = hidden * ep2;
    o = as_eigen(e).array() * (2.0f / (1.0f + (-(o.rowwise() + ep2_bias).array()).exp()));
    both << as_eigen(p), o;
    h.noalias() = both * gate1;
    h = (h.rowwise() + gate1_bias).cwiseMax(0.0f);
    for (std::size_t l = 0; l < 3; ++l) {
      g[l].noalias() = h.middleCols(static_cast<Index>(l) * gate, gate) * gate2[l];
      if (l == 0) {
        x[0].noalias() = o * first;
      } else {
        const Index in = x[l - 1].cols() / tasks, out = x[l].cols() / tasks;
        for (Index t = 0; t < tasks; ++t)
          x[l].middleCols(t * out, out).noalias() =
              x[l - 1].middleCols(t * in, in) * deeper[(l - 1) * tasks + static_cast<std::size_t>(t)];
      }
      x[l] = (x[l].rowwise() + tower_bias[l]).array().max(0.0f) *
             (2.0f / (1.0f + (-(g[l].rowwise() + gate2_bias[l]).array()).exp()));
    }
    const Index n = x[2].cols() / tasks;
    for (Index t = 0; t < tasks; ++t) y.col(t) = x[2].middleCols(t * n, n) * as_eigen(model->pp.head.weight).row(t).transpose();
    benchmark::DoNotOptimize(y.data());
  }
};
#endif

void add_pepnet(Index batch, bool train) {
  const std::string name = std::string("gating/pepnet/") + (train ? "train" : "serve") + "/f32/B:" + std::to_string(batch);
  register_case<float>(
      name,
      [=] {
        struct Data {
          Random random{1};
          Pepnet model{random};
          std::vector<FrozenEpnet<float>> ep;
          std::vector<FrozenPpnet<float>> pp;
          Epnet<float> dep;
          Ppnet<float> dpp;
          Matrix<float> e, d, p, o, y, d_o, de_, dd_, dp_;
          Epnet<float>::Saved saved_e;
          Ppnet<float>::Saved saved_p;
          Workspace ws;
#ifdef WITH_EIGEN
          std::vector<EigenPepnet> eigen;
#endif
        };
        const auto data = std::make_shared<Data>();
        Data& s = *data;
        s.e = random_of(batch, de, s.random);
        s.d = random_of(batch, dd, s.random);
        s.p = random_of(batch, dp, s.random);
        s.o = s.d_o = s.de_ = s.e;
        s.dd_ = s.d;
        s.dp_ = s.p;
        s.y = random_of(batch, tasks, s.random);
        const double weights = static_cast<double>(parameter_count(s.model.ep) + parameter_count(s.model.pp));
        Case<float> c;
        c.flops = 2.0 * static_cast<double>(batch) * weights * (train ? 3 : 1);
        c.working_set = weights * sizeof(float) * (train ? 2 : 1);
        if (!train) c.copies = copies_for(c.working_set);
        if (train) {
          s.dep = make_gradient(s.model.ep);
          s.dpp = make_gradient(s.model.pp);
          c.kernel = [data] {
            Data& t = *data;
            t.model.ep.forward(t.e, t.d, t.o, t.saved_e, Step{}, t.ws);
            t.model.pp.forward(t.o, t.p, t.y, t.saved_p, Step{}, t.ws);
            t.d_o.fill(0);
            t.model.pp.backward(t.o, t.p, t.y, t.saved_p, t.d_o, t.dp_, t.dpp, t.ws);
            t.model.ep.backward(t.e, t.d, t.d_o, t.saved_e, t.de_, t.dd_, t.dep, t.ws);
          };
        } else {
          s.ep.assign(static_cast<std::size_t>(c.copies), freeze(s.model.ep));
          s.pp.assign(static_cast<std::size_t>(c.copies), freeze(s.model.pp));
          if (batch == 1) c.bytes = weights * sizeof(float);
          c.kernel = [data](Index copy) {
            Data& t = *data;
            t.ep[static_cast<std::size_t>(copy)].forward(t.e, t.d, t.o, t.ws);
            t.pp[static_cast<std::size_t>(copy)].forward(t.o, t.p, t.y, t.ws);
          };
#ifdef WITH_EIGEN
          s.eigen.assign(static_cast<std::size_t>(c.copies), EigenPepnet(s.model, batch));
          c.peers.push_back(
              {"eigen", [data](Index copy) { data->eigen[static_cast<std::size_t>(copy)].run(data->e, data->d, data->p); }});
#endif
        }
        c.peers.push_back(python_peer(
            "torch", "pepnet", "{\"batch\": " + std::to_string(batch) + ", \"train\": " + (train ? "true" : "false") + "}"));
        if (!train)
          c.peers.push_back(python_peer(
              "onnxruntime", "pepnet",
              "{\"batch\": " + std::to_string(batch) + ", \"copies\": " + std::to_string(std::min(c.copies, Index{4})) + "}"));
        return c;
      },
      train || batch >= 256 ? 20 : 60);
}

void add_sparse(Index n, bool train) {
  constexpr Index d = 512, h = 256, experts = 64, k = 2;
  register_case<float>(
      std::string("gating/sparse/") + (train ? "train" : "serve") + "/f32/N:" + std::to_string(n),
      [=] {
        struct Data {
          SparseMmoe<float> layer, gradient;
          FrozenSparseMmoe<float> served;
          FrozenMmoe<float> dense;
          Matrix<float> x, y, dx;
          SparseMmoe<float>::Saved saved;
          Workspace ws;
#ifdef WITH_EIGEN
          std::vector<ColMajor> weights;
          ColMajor gate;
          RowMajor<float> logits, in, out;
          std::vector<std::vector<std::pair<Index, float>>> rows;
#endif
        };
        const auto data = std::make_shared<Data>();
        Data& s = *data;
        Random random(1);
        s.layer = SparseMmoe<float>({.inputs = d, .experts = experts, .outputs = h, .route = {.k = k}}, random);
        s.x = random_of(n, d, random);
        s.y = random_of(n, h, random);
        s.dx = s.x;
        Case<float> c;
        c.flops = 2.0 * static_cast<double>(n) * static_cast<double>(d * (h * k + experts)) * (train ? 3 : 1);
        c.working_set = static_cast<double>(experts * h * d) * sizeof(float) * (train ? 2 : 1);
        if (train) {
          s.gradient = make_gradient(s.layer);
          c.kernel = [data] {
            Data& t = *data;
            t.layer.forward(t.x, t.y, t.saved, Step{}, t.ws);
            t.layer.backward(t.x, t.y, t.saved, t.dx, t.gradient, t.ws);
          };
        } else {
          s.served = freeze(s.layer);
          c.kernel = [data] { data->served.forward(data->x, data->y, data->ws); };
          Mmoe<float> dense({.inputs = d, .experts = experts, .outputs = h, .tasks = 1}, random);
          s.dense = freeze(dense);
          c.peers.push_back({"dense", [data] { data->dense.forward(data->x, data->y, data->ws); }});
#ifdef WITH_EIGEN
          for (Index e = 0; e < experts; ++e)
            s.weights.push_back(ColMajor(as_eigen(s.layer.experts[0].weight).middleRows(e * h, h).transpose()));
          s.gate = as_eigen(s.layer.gates.weight).transpose();
          s.logits.resize(n, experts);
          s.in.resize(n * k, d);
          s.out.resize(n * k, h);
          s.rows.resize(experts);
          c.peers.push_back({"eigen", [data] {
                               Data& t = *data;
                               const Index count = t.x.rows(), width = t.y.cols();
                               t.logits.noalias() = as_eigen(t.x) * t.gate;
                               for (auto& r : t.rows) r.clear();
                               for (Index r = 0; r < count; ++r) {
                                 Index a, b;
                                 const float first = t.logits.row(r).maxCoeff(&a);
                                 t.logits(r, a) = -1e30f;
                                 const float w = 1 / (1 + std::exp(t.logits.row(r).maxCoeff(&b) - first));
                                 t.rows[static_cast<std::size_t>(a)].emplace_back(r, w);
                                 t.rows[static_cast<std::size_t>(b)].emplace_back(r, 1 - w);
                               }
                               auto y = as_eigen(t.y);
                               y.setZero();
                               for (std::size_t e = 0; e < t.rows.size(); ++e) {
                                 const auto m = static_cast<Index>(t.rows[e].size());
                                 if (m == 0) continue;
                                 for (Index i = 0; i < m; ++i)
                                   t.in.row(i) = as_eigen(t.x).row(t.rows[e][static_cast<std::size_t>(i)].first);
                                 t.out.topRows(m).noalias() = t.in.topRows(m) * t.weights[e];
                                 const auto bias =
                                     as_eigen(t.layer.experts[0].bias).segment(static_cast<Index>(e) * width, width).transpose();
                                 for (Index i = 0; i < m; ++i) {
                                   const auto& [row, w] = t.rows[e][static_cast<std::size_t>(i)];
                                   y.row(row) += w * (t.out.row(i) + bias).cwiseMax(0.0f);
                                 }
                               }
                               benchmark::DoNotOptimize(t.y.data());
                             }});
#endif
        }
        c.peers.push_back(
            python_peer("torch", "sparse_moe",
                        "{\"n\": " + std::to_string(n) +
                            ", \"d\": 512, \"h\": 256, \"e\": 64, \"k\": 2, \"train\": " + (train ? "true" : "false") + "}"));
        return c;
      },
      n >= 512 ? 20 : 60);
}

void add_adapters_case(Index users) {
  constexpr Index batch = 64, d = 256, o = 128, r = 4;
  register_case<float>("gating/adapters/f32/users:" + std::to_string(users), [=] {
    struct Data {
      Matrix<float> x, y, table;
      std::vector<std::int32_t> ids;
      Workspace ws;
    };
    const auto data = std::make_shared<Data>();
    Random random(1);
    data->x = random_of(batch, d, random);
    data->y = random_of(batch, o, random);
    data->table = random_of(users, r * (d + o), random);
    for (Index b = 0; b < batch; ++b) data->ids.push_back(static_cast<std::int32_t>(random.below(users)));
    Case<float> c;
    c.flops = 4.0 * batch * r * (d + o) / 2;
    c.bytes = static_cast<double>(batch * r * (d + o)) * sizeof(float);
    c.kernel = [data] { add_adapters<float>(data->x, data->table, data->ids, 4, {}, data->y, data->ws); };
#ifdef WITH_EIGEN
    c.peers.push_back({"eigen", [data] {
                         for (Index b = 0; b < data->x.rows(); ++b) {
                           const float* const row = data->table.row(data->ids[static_cast<std::size_t>(b)]);
                           const Eigen::Map<const RowMajor<float>> down(row, 4, 256), up(row + 4 * 256, 4, 128);
                           const Eigen::Matrix<float, 4, 1> q = down * as_eigen(data->x).row(b).transpose();
                           as_eigen(data->y).row(b).noalias() += q.transpose() * up;
                         }
                         benchmark::DoNotOptimize(data->y.data());
                       }});
#endif
    c.peers.push_back(python_peer("torch", "adapters",
                                  "{\"batch\": 64, \"d\": 256, \"o\": 128, \"r\": 4, \"users\": " + std::to_string(users) + "}"));
    return c;
  });
}

}  // namespace

int main(int argc, char** argv) {
  for (const Index batch : {1, 8, 64, 512}) add_pepnet(batch, false);
  add_pepnet(512, true);
  for (const Index n : {1, 64, 512, 4096}) add_sparse(n, false);
  add_sparse(1024, true);
  for (const Index users : {64, 100000}) add_adapters_case(users);
  return recops_bench::run_registered(argc, argv);
}
